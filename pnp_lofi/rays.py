"""Weights of straight rays through a pixel grid, and which rays are mirror images of each other.

A ray is the line x cos t + y sin t = s [pixels], x = c - cx to the right, y = cy - r up. Everything that projects or
backprojects takes its weights from :func:`joseph`, hence the adjoint of one is exactly the adjoint of all.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Shape = tuple[int, int]
TURN = 2**34  # angles are compared as whole numbers of pi / TURN = 1.8e-10 rad
STEPS = 2**41  # and positions as whole numbers of max|s| / STEPS
WORTH = 1.3  # work that a symmetry may add where it does not quite fit, before a smaller one is taken


def by_rows(theta: Tensor) -> Tensor:
    """Whether a ray is followed from row to row: it is nearer to the vertical."""
    return theta.cos().abs() >= theta.sin().abs()


def joseph(theta: Tensor, s: Tensor, shape: Shape, centre: tuple[float, float], rows: bool) -> tuple[Tensor, Tensor]:
    """Joseph's weights: one linear interpolation in each row (or column) that a ray crosses, over its inclination.

    :param torch.Tensor theta: (R,) [rad], and s: (R,) [pixel].
    :param tuple shape: (H, W); tuple centre: (cy, cx), the row and column with x = y = 0.
    :param bool rows: whether these rays are followed by rows, see :func:`by_rows`, or by columns.
    :returns: flat pixel numbers and weights, (R, H, 2) by rows and (R, W, 2) by columns. Weights are zero outside of
        the image and are differentiable in theta and s.
    Source: Joseph 1982; the "linear" projector of ASTRA.
    """
    (height, width), (cy, cx) = shape, centre
    cos, sin = theta.cos()[:, None], theta.sin()[:, None]
    if rows:
        step = torch.arange(height, device=theta.device)
        position, across = cx + (s[:, None] - (cy - step) * sin) / cos, width
        slope = cos.abs()
    else:
        step = torch.arange(width, device=theta.device)
        position, across = cy - (s[:, None] - (step - cx) * cos) / sin, height
        slope = sin.abs()
    low = position.detach().floor()
    part = position - low
    neighbour = low.long()[..., None] + torch.arange(2, device=theta.device)
    weight = torch.stack([1 - part, part], -1) / slope[..., None]
    weight = torch.where((neighbour >= 0) & (neighbour < across), weight, 0)
    neighbour = neighbour.clamp(0, across - 1)
    index = step[:, None] * width + neighbour if rows else neighbour * width + step[:, None]
    return index, weight


def footprint(
    theta: Tensor,
    s: Tensor,
    shape: Shape,
    centre: tuple[float, float],
    rows: bool,
    *,
    reach: int,
    weigh: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The pixels within ``reach`` of a ray in each row (column), with weights of any kind.

    :param Callable weigh: (theta, s, x, y) to the weight of a pixel in a ray, zero where it is further away.
    :returns: as :func:`joseph`, (R, H or W, 2 reach).
    """
    (height, width), (cy, cx) = shape, centre
    index, _ = joseph(theta, s, (height, width), centre, rows)
    across = width if rows else height
    low = (index[..., 0] % width if rows else index[..., 0] // width)[..., None]
    spread = torch.arange(1 - reach, reach + 1, device=theta.device)
    neighbour = low + spread
    step = torch.arange(index.shape[1], device=theta.device)[:, None]
    row, column = (step, neighbour) if rows else (neighbour, step)
    weight = weigh(theta[:, None, None], s[:, None, None], column - cx, cy - row)
    weight = torch.where((neighbour >= 0) & (neighbour < across), weight, 0)
    return row.clamp(0, height - 1) * width + column.clamp(0, width - 1), weight


def crossings(theta: Tensor, s: Tensor, shape: Shape, centre: tuple[float, float]) -> Tensor:
    """An upper bound of the non-zero weights of each ray: twice the rows (columns) in which it is inside the image."""
    (height, width), (cy, cx) = shape, centre
    rows = by_rows(theta)
    cos, sin = theta.cos(), theta.sin()
    across, along = torch.where(rows, width, height), torch.where(rows, height, width)
    start = torch.where(rows, cx + (s - cy * sin) / cos, cy - (s + cx * cos) / sin)  # position = start + slope * step
    slope = torch.where(rows, sin / cos, cos / sin)
    flat = slope.abs() < 1e-12
    inverse = 1 / torch.where(flat, torch.ones_like(slope), slope)
    first, last = (-1 - start) * inverse, (across - start) * inverse
    inside = torch.minimum(torch.maximum(first, last), along - 1.0).ceil() - torch.minimum(first, last).clamp(min=0)
    inside = torch.where(flat, torch.where((start > -1) & (start < across), along, 0), inside.floor() + 1)
    return 2 * inside.clamp(min=0).minimum(along).long()


# ---- symmetry -----------------------------------------------------------------------------------------------


class Mirror(NamedTuple):
    """A symmetry of the pixel grid: transposing an image or not, then flipping axes, and where that takes a ray:
    to sign * theta + turn * pi, with the same s."""

    transpose: bool
    flip: tuple[int, ...]
    sign: int
    turn: float

    def apply(self, x: Tensor) -> Tensor:
        return (x.mT if self.transpose else x).flip(self.flip)

    def undo(self, x: Tensor) -> Tensor:
        return x.flip(self.flip).mT if self.transpose else x.flip(self.flip)


# of a point (x, y): flipping columns is x -> -x, flipping rows y -> -y, transposing (x, y) -> (-y, -x)
MIRRORS = (  # identity, half turn, both flips; then the four that need a square
    Mirror(False, (), 1, 0.0),
    Mirror(False, (-2, -1), 1, 1.0),
    Mirror(False, (-1,), -1, 1.0),
    Mirror(False, (-2,), -1, 0.0),
    Mirror(True, (), -1, -0.5),
    Mirror(True, (-2, -1), -1, 0.5),
    Mirror(True, (-1,), 1, 1.5),
    Mirror(True, (-2,), 1, 0.5),
)
TURNS = (0, 1, 6, 7)  # by multiples of a quarter: what a fan beam with a shifted detector has
SUBGROUPS = (tuple(range(8)), (0, 1, 2, 3), TURNS, (0, 1), (0, 2), (0,))


class Orbits(NamedTuple):
    """Rays up to symmetry: ray k of all is ray ``source[k] // len(mirrors)`` of the base rays, in the image as seen in
    mirror ``source[k] % len(mirrors)``."""

    theta: Tensor
    s: Tensor
    source: Tensor
    mirrors: tuple[Mirror, ...]


def orbits(theta: Tensor, s: Tensor, shape: Shape, centred: bool, *, directed: bool = False) -> Orbits:
    """The fewest rays that give all others by symmetry.

    :param torch.Tensor theta, s: (R,) float64.
    :param bool centred: x = y = 0 is the middle of the image; there is no symmetry otherwise.
    :param bool directed: (theta, s) and (theta + pi, -s), a line and the same line seen from its other end, are two.
    :returns: base rays, those followed by rows first.
    """
    square = shape[0] == shape[1]
    for group in SUBGROUPS:
        if len(group) > 1 and (not centred or (max(group) > 3 and not square)):
            continue
        found = _reduce(theta, s, tuple(MIRRORS[g] for g in group), directed)
        if len(found.theta) * len(group) <= WORTH * len(theta):
            break
    return found


def _seen_in(mirror: Mirror, angle: Tensor, place: Tensor, directed: bool) -> tuple[Tensor, Tensor]:
    """Angles and positions of rays in a mirror; angles in [0, TURN), or [0, 2 TURN) if they are directed."""
    k = (mirror.sign * angle + round(mirror.turn * TURN)) % (2 * TURN)
    if directed:  # a reflection turns a ray round
        return (k, place) if mirror.sign > 0 else ((k + TURN) % (2 * TURN), -place)
    return torch.where(k >= TURN, k - TURN, k), torch.where(k >= TURN, -place, place)


def _reduce(theta: Tensor, s: Tensor, mirrors: tuple[Mirror, ...], directed: bool = False) -> Orbits:
    angle = torch.round(theta * (TURN / math.pi)).long()
    unit = float(s.abs().max()) / STEPS or 1.0
    place = torch.round(s / unit).long()
    least, least_place, which = _seen_in(mirrors[0], angle, place, directed) + (torch.zeros_like(angle),)
    for k, mirror in enumerate(mirrors[1:], 1):
        other, other_place = _seen_in(mirror, angle, place, directed)
        better = (other < least) | ((other == least) & (other_place < least_place))
        least, least_place = torch.where(better, other, least), torch.where(better, other_place, least_place)
        which[better] = k
    # numbered before they are paired: a product of the two as they are would not fit 64 bits
    places = torch.unique(least_place, return_inverse=True)[1]
    pair = torch.unique(least, return_inverse=True)[1] * (int(places.max()) + 1) + places
    _, base = torch.unique(pair, return_inverse=True)
    first = torch.full((int(base.max()) + 1,), len(theta), device=theta.device)
    first = first.scatter_reduce(0, base, torch.arange(len(theta), device=theta.device), "amin")
    sign = torch.tensor([m.sign for m in mirrors], dtype=theta.dtype, device=theta.device)[which[first]]
    turn = torch.tensor([m.turn for m in mirrors], dtype=theta.dtype, device=theta.device)[which[first]]
    base_theta, base_s = sign * theta[first] + turn * math.pi, s[first]
    if directed:
        base_theta, base_s = torch.where(sign < 0, base_theta + math.pi, base_theta), sign * base_s
    order = torch.argsort((~by_rows(base_theta)).to(torch.int8), stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return Orbits(base_theta[order], base_s[order], rank[base] * len(mirrors) + which, mirrors)
