"""Non-local LoFi: a local field whose answer says where else in the noisy image the same is seen once more."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pnp_lofi.mlp import MLP
from pnp_lofi.sampling import padded_tile, positions, sample
from pnp_lofi.shared import SharedLoFi, bounded, cropped, level_inside
from pnp_lofi.tiles import Tile, over_tiles
from pnp_lofi.units import divisor, noise_unit, pixels_at_once

WIDTH, WIDTHS = 0.32, 4  # of a match: mean squared difference in units of the noise's; and halves, quarters, eighths
LEAST = -10.0  # logarithm of a weight of the first width; of the last it is still a normal float32: others are slow
FAR = 1e6  # noise levels; what differs by more differs by so much, and squares stay finite
FAINT = 1e-3  # keeps logarithms finite
LOGARITHM = 0.3  # brings them to the size of one
CHUNK = 256**2  # pixels worked on at once
PLANES = 52  # numbers that a pixel needs at once for each channel and one more, measured


class Matching(nn.Module):
    """c(x) = sigma sum_k M_k(e(x)) d_k(x): what pixels of the noisy image q that are seen amid the same say beside p.

    d_0 = (q - p) / sigma; the others are (t - p) / sigma with t(x) the mean over x' around x of q(x') with the weight
    exp(-|P(x) - P(x')|^2 / (n sigma^2 width)), P being the patch of p around a pixel, n its values, and at least e^-10
    for the first width; p(x) itself counts as one: a t for each size of patch and each width. Where sigma is a map,
    differences are divided by the root mean square of both places' levels. M is an MLP of a pixel that sees logarithms
    of means over each size of patch around it: squares of d and of what p varies by; and of the sums of weights. So c
    is in units of sigma and blind to a constant. M is zero at first.

    :param int radius: how far x' is looked for, in rows and columns; Sequence[int] alike: how far patches, and what
        means are over, reach from their middle [pixel].
    :param Sequence[int] hidden: layers of M.
    Source: non-local means, Buades, Coll, Morel 2005 (CVPR), here guided by a first answer and mixed by what is seen.
    """

    def __init__(self, radius: int, alike: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        if min(radius, *alike) < 1:
            raise ValueError(f"radius and alike must be positive, got {radius} and {list(alike)}")
        self.radius, self.alike = radius, list(alike)
        self.margin = radius + 2 * max(alike)
        self.mixer = MLP([len(alike) * (2 * WIDTHS + 2), *hidden, len(alike) * WIDTHS + 1])
        for last in (self.mixer.weights[-1], self.mixer.biases[-1]):
            nn.init.zeros_(last)

    def forward(self, q: Tensor, pilot: Tensor, sigma: Tensor, inside: Tensor | None = None) -> Tensor:
        """Valid: (B, C, H, W) twice -> (B, C, H - 2 margin, W - 2 margin).

        :param torch.Tensor sigma: (), (B, 1, 1, 1) or (B, 1, H, W).
        :param torch.Tensor inside: (H, W), False where there is no image and pixels are those of a mirror.
        """
        units, seen = self.evidence(q, pilot, sigma, inside)
        mixed = self.mixer(seen.movedim(0, -1).flatten(0, 2)).reshape(*seen.shape[1:], -1).movedim(-1, 0)
        return level_inside(sigma, self.margin) * (mixed[:, :, None] * units).sum(0)

    def evidence(self, q: Tensor, pilot: Tensor, sigma: Tensor, inside: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """d and e of :meth:`forward`: (M, B, C, H - 2 margin, W - 2 margin) and (E, B, H - 2 margin, W - 2 margin)."""
        each = [self._amid(q, pilot, sigma, inside, alike) for alike in self.alike]
        own = each[0][0][:1]  # d_0 is the same for all
        return torch.cat([own, *(units[1:] for units, _ in each)]), torch.cat([seen for _, seen in each])

    def _amid(
        self, q: Tensor, pilot: Tensor, sigma: Tensor, inside: Tensor | None, alike: int
    ) -> tuple[Tensor, Tensor]:
        """The same for one size of patch."""
        radius, left, wide = self.radius, self.margin - self.radius - 2 * alike, divisor(sigma)
        sums = cropped(_sums(q, pilot, sigma, inside, radius, alike), radius)
        here, own = cropped(pilot, alike + radius), level_inside(wide, alike + radius)
        kept = (cropped(q, alike + radius) - here) / own
        units = torch.cat([kept[None], (sums[:, :, :-1] / sums[:, :, -1:] - here) / own])
        varies = (cropped(pilot, alike) - _mean(pilot, alike)) / level_inside(wide, alike)
        squares = _mean(units.square().mean(2), alike)
        varies = cropped(_mean(varies.square().mean(1), alike), radius)
        seen = torch.cat([cropped(sums[:, :, -1], alike), squares + FAINT, varies[None] + FAINT])
        return cropped(units, alike + left), LOGARITHM * cropped(seen, left).log()


def _sums(q: Tensor, pilot: Tensor, sigma: Tensor, inside: Tensor | None, radius: int, alike: int) -> Tensor:
    """For each width, sums of weighted pixels and of weights, (WIDTHS, B, C + 1, H - 2 alike, W - 2 alike); those
    less than radius from the border are not complete."""
    ones = torch.ones_like(q[:, :1])
    read = torch.cat([q, ones], 1)
    read = cropped(read if inside is None else read * inside, alike)
    sums = cropped(torch.cat([pilot, ones], 1), alike).repeat(WIDTHS, 1, 1, 1, 1)
    varies = sigma.ndim > 2 and sigma.shape[-1] > 1
    unit = pilot if varies else pilot / divisor(sigma)
    level = sigma.clamp_min(4 * torch.finfo(q.dtype).tiny) * 0.5**0.5
    for down, right in _shifts(radius):
        first, second = _pair(down, right)
        unlike = unit[first] - unit[second]
        if varies:
            unlike = (unlike / level[first].hypot(level[second])).clamp(-FAR, FAR)
        unlike = unlike.square()
        unlike = unlike if q.shape[1] == 1 else unlike.mean(1, keepdim=True)
        weight = (_mean(unlike, alike) / -WIDTH).clamp_min(LEAST).exp()
        for k in range(WIDTHS):
            weight = weight.square() if k else weight  # half the width
            sums[k][first].addcmul_(weight, read[second])
            sums[k][second].addcmul_(weight, read[first])
    return sums


def _shifts(radius: int) -> Iterator[tuple[int, int]]:
    """Half of all shifts: the others are their negatives."""
    for down in range(radius + 1):
        for right in range(-radius, radius + 1):
            if down > 0 or right > 0:
                yield down, right


def _mean(x: Tensor, alike: int) -> Tensor:
    """Over patches, valid."""
    side = 2 * alike + 1
    return _sums_of(_sums_of(x, side, -2), side, -1) / side**2


class NonLocalLoFi(SharedLoFi):
    """A :class:`~pnp_lofi.shared.SharedLoFi`, and what :class:`Matching` makes of its answer.

    A pixel still depends on ``reach`` pixels around it and nothing else, but what counts among them is found in the
    image. Equivariance, tiles and ways in are those of a SharedLoFi; ``at`` answers on the grid first, as a whole.

    :param int in_channels: channels of q and of the answer.
    :param int radius: see :class:`Matching`; Sequence alike; Sequence mixing: its hidden layers.
    :param local: of :class:`~pnp_lofi.shared.SharedLoFi`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        radius: int = 10,
        alike: Sequence[int] = (3, 7),
        mixing: Sequence[int] = (32, 32),
        **local: Any,
    ) -> None:
        super().__init__(in_channels, **local)
        self.config |= {"radius": radius, "alike": list(alike), "mixing": list(mixing)}
        self.matching = Matching(radius, alike, mixing)
        self.reach = self.inner + self.matching.margin

    def forward(
        self,
        q: Tensor,
        sigma: float | Tensor,
        *,
        shape: tuple[int, int] | None = None,
        chunk: int | None = None,
        max_memory: float | None = None,
        compute_dtype: torch.dtype | None = None,
        most: float | None = None,
    ) -> Tensor:
        """As :meth:`SharedLoFi.forward`; the answer of the local part is kept, an image beyond ``max_memory``."""
        budget: dict[str, Any] = {"chunk": chunk, "max_memory": max_memory, "compute_dtype": compute_dtype}
        pilot = super().forward(q, sigma, shape=shape, most=most, **budget)
        if pilot.shape[-2:] != q.shape[-2:]:
            return pilot
        return self._second(q, pilot, sigma, chunk, max_memory, most)

    def _second(
        self,
        q: Tensor,
        pilot: Tensor,
        sigma: float | Tensor,
        chunk: int | None,
        max_memory: float | None,
        most: float | None,
    ) -> Tensor:
        """The whole answer, from that of the local part."""
        noise = noise_unit(sigma, q)
        chunk = pixels_at_once(q.device, chunk, max_memory, self._each(q), default=CHUNK)
        if max_memory is not None:  # the margin of a square tile is worked on too
            chunk = round(max(1.0, chunk**0.5 - 2 * self.matching.margin) ** 2)
        return over_tiles(q, chunk, lambda tile: self._matched(q, pilot, noise, tile, most))

    def _each(self, q: Tensor) -> int:
        """Bytes of a pixel that is worked on."""
        return q.element_size() * PLANES * (self.in_channels + 1)

    def plenty(self, q: Tensor) -> float:
        """As :meth:`SharedLoFi.plenty`."""
        chunk = pixels_at_once(q.device, None, None, 1, default=CHUNK)
        return max(super().plenty(q), (chunk**0.5 + 2 * self.matching.margin) ** 2 * self._each(q) / 2**20)

    def evidence(self, q: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """What there is to learn from at every pixel of one image, (1, C, H, W), without gradients.

        :returns: d, e of :class:`Matching`, (M, 1, C, H, W) and (E, 1, H, W), and the local answer, (1, C, H, W).
        """
        with torch.no_grad():
            pilot, whole = super().forward(q, sigma), (0, slice(0, q.shape[-2]), slice(0, q.shape[-1]))
            around = self._around(q, pilot, noise_unit(sigma, q), whole)
            return *self.matching.evidence(*around), pilot

    def _matched(self, q: Tensor, pilot: Tensor, noise: Tensor, tile: Tile, most: float | None) -> Tensor:
        """(C, h, w): a tile of the grid."""
        seen, first, level, inside = self._around(q, pilot, noise, tile)
        change = self.matching(seen, first, level, inside)
        return self._answer(seen, first, change, level, most)[0]

    def _around(
        self, q: Tensor, pilot: Tensor, noise: Tensor, tile: Tile
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What :class:`Matching` is given for a tile of the grid."""
        margin, (_, rows, columns) = self.matching.margin, tile
        level = noise if noise.ndim == 0 else padded_tile(noise, tile, margin)[None]
        inside = None
        if (
            min(rows.start, columns.start) < margin
            or rows.stop + margin > q.shape[-2]
            or columns.stop + margin > q.shape[-1]
        ):
            row, column = (
                torch.arange(part.start - margin, part.stop + margin, device=q.device) for part in (rows, columns)
            )
            inside = ((row >= 0) & (row < q.shape[-2]))[:, None] & (column >= 0) & (column < q.shape[-1])
        return padded_tile(q, tile, margin)[None], padded_tile(pilot, tile, margin)[None], level, inside

    def _answer(self, q: Tensor, pilot: Tensor, change: Tensor, level: Tensor, most: float | None) -> Tensor:
        margin = self.matching.margin
        q = cropped(q, margin)
        whole = cropped(pilot, margin) - q + change
        return q + (whole if most is None else bounded(whole, level_inside(level, margin), most))

    def interior(
        self, q: Tensor, sigma: Tensor, *, compute_dtype: torch.dtype | None = None, most: float | None = None
    ) -> Tensor:
        """As :meth:`SharedLoFi.interior`."""
        self._check_interior(q, sigma)
        pilot = self._interior(q, sigma, compute_dtype, most)
        seen, level = cropped(q, self.inner), level_inside(sigma.to(q.dtype), self.inner)
        return self._answer(seen, pilot, self.matching(seen, pilot, level), level, most)

    def at(
        self,
        q: Tensor,
        coords: Tensor,
        sigma: float | Tensor,
        *,
        chunk: int | None = None,
        max_memory: float | None = None,
        compute_dtype: torch.dtype | None = None,
        most: float | None = None,
    ) -> Tensor:
        """As :meth:`SharedLoFi.at`; what matching changes is interpolated."""
        budget: dict[str, Any] = {"chunk": chunk, "max_memory": max_memory, "compute_dtype": compute_dtype}
        local = super().at(q, coords, sigma, most=most, **budget)
        if not local.numel():
            return local
        pilot = super().forward(q, sigma, most=most, **budget)
        change = self._second(q, pilot, sigma, chunk, max_memory, most) - pilot
        points = positions(coords.to(torch.promote_types(coords.dtype, q.dtype)), (q.shape[-2], q.shape[-1]))
        return local + sample(change, points.expand(len(q), -1, 2))


def _sums_of(x: Tensor, side: int, axis: int) -> Tensor:
    """Of so many neighbours, from sums of 1, 2, 4, ...: ten times as fast as avg_pool2d on a CPU."""
    count, done, width = x.shape[axis] - side + 1, 0, 1
    total: Tensor | None = None
    while width <= side:
        if side & width:
            part = x.narrow(axis, done, count)
            total, done = part if total is None else total + part, done + width
        width *= 2
        if width <= side:
            fewer = x.shape[axis] - width // 2
            x = x.narrow(axis, 0, fewer) + x.narrow(axis, width // 2, fewer)
    assert total is not None
    return total


def _pair(down: int, right: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Where pixels are that have another one ``down`` and ``right`` of them, and where those are."""
    left = max(0, -right)
    first = (..., slice(0, -down or None), slice(left, -max(0, right) or None))
    second = (..., slice(down, None), slice(max(0, right), -left or None))
    return first, second
