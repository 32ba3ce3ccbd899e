"""Interpolation of square patches at any place, spacing and width: separable, twice differentiable in the places."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pnp_lofi.sampling import positions, reflect_index
from pnp_lofi.units import check_coords, pixels_at_once

Kernel = Literal["bilinear", "bicubic", "smooth"]
# Polynomials of the distance |t|: a row for each of [0, 1), [1, 2), ..., powers rising; beyond the last it is zero.
KERNELS: dict[str, tuple[tuple[float, ...], ...]] = {
    "bilinear": ((1, -1, 0, 0),),
    "bicubic": ((1, 0, -5 / 2, 3 / 2), (2, -4, 5 / 2, -1 / 2)),  # Keys, a = -1/2; exact on parabolas
    "smooth": ((1, 0, -7 / 3, 4 / 3), (5 / 2, -59 / 12, 3, -7 / 12), (-3 / 2, 7 / 4, -2 / 3, 1 / 12)),  # on cubics
}
CHUNK = 1 << 16  # places at once


def checked_kernel(kernel: str) -> str:
    """:raises ValueError: for a kernel that is not known."""
    if kernel not in KERNELS:
        raise ValueError(f"kernels are {', '.join(KERNELS)}, got {kernel!r}")
    return kernel


def kernel_value(t: Tensor, kernel: str) -> Tensor:
    """The kernel at signed distances: place minus pixel.

    Where a derivative jumps, it is that towards growing places, as in :class:`pnp_lofi.operators.Derivatives`: second
    derivatives at the pixels' centres are right.

    :param torch.Tensor t: distances [pixel], any shape.
    :returns: shape of ``t``.
    Source: Keys 1981, IEEE TASSP 29(6), eq. 4 with a = -1/2 ("bicubic"), and section VI ("smooth").
    """
    table = torch.tensor([*KERNELS[kernel], (0.0,) * 4], dtype=t.dtype, device=t.device)
    before = t < 0
    distance = torch.where(before, -t, t)
    with torch.no_grad():
        piece = torch.where(before, distance.ceil() - 1, distance.floor()).clamp_(max=len(table) - 1).long()
        one, two, three, four = table[piece].unbind(-1)
    return ((four * distance + three) * distance + two) * distance + one


def patches(
    q: Tensor,
    points: Tensor,
    scale: Tensor,
    size: int,
    kernel: str,
    width: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """Patches of size x size samples of the interpolated image; borders reflect about the edge pixel's centre.

    Along each axis sample i of a patch lies at the place plus (i - (size - 1)/2) scale width, and the kernel is
    stretched by the width: wider than 1 it averages, as an image that is shrunk must be.

    :param torch.Tensor q: (B, C, H, W).
    :param torch.Tensor points: (B, P, 2) places (row, column) [pixel of q]; float64 keeps the last digits far from 0.
    :param torch.Tensor scale: (2,) spacing along rows' and columns' axes [pixel]; differentiable.
    :param tuple width: of the kernel along both axes, >= 1.
    :returns: (B, P, size, size, C).
    """
    batch, channels = q.shape[:2]
    count = points.shape[1]
    base = points.detach().floor()
    rest = (points - base).to(q.dtype).reshape(-1, 2)
    steps = torch.arange(size, dtype=q.dtype, device=q.device) - (size - 1) / 2
    index, weights = [], []
    for axis in (0, 1):
        offsets = steps * scale[axis].to(q.dtype) * width[axis]
        reach = float(offsets.detach().abs().max()) + len(KERNELS[kernel]) * width[axis]
        ticks = torch.arange(math.floor(-reach) + 1, math.ceil(1 + reach), device=q.device)
        at = (rest[:, axis, None, None] + offsets[:, None] - ticks) / width[axis]
        weight = kernel_value(at, kernel)
        weights.append(weight if width[axis] == 1 else weight / weight.sum(-1, keepdim=True))
        index.append(reflect_index(base[..., axis].long().reshape(-1, 1) + ticks, q.shape[2 + axis]))
    item = torch.arange(batch, device=q.device).repeat_interleave(count)
    window = q[item[:, None, None], :, index[0][:, :, None], index[1][:, None, :]]  # (B P, rows, columns, C)
    lines = weights[0] @ window.flatten(2)
    found = torch.einsum("pjs,pisc->pijc", weights[1], lines.unflatten(2, window.shape[2:]))
    return found.reshape(batch, count, size, size, channels)


def checked_footprint(footprint: float | tuple[float, float]) -> tuple[float, float]:
    """:raises ValueError: if a footprint is negative or not finite."""
    pair = (footprint, footprint) if isinstance(footprint, int | float) else tuple(footprint)
    if len(pair) != 2 or not all(0 <= f < math.inf for f in pair):
        raise ValueError(f"footprint is one or two numbers >= 0 [pixel], got {footprint}")
    return float(pair[0]), float(pair[1])


class Interpolator(nn.Module):
    """A kernel alone, asked like a network: what super-resolution has to beat.

    :param str kernel: "bilinear", "bicubic" (Keys, a = -1/2) or "smooth" (Keys' 6 taps).
    :param int channels: of the images.
    """

    def __init__(self, kernel: str = "bicubic", channels: int = 1) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"kernel": checked_kernel(kernel), "channels": channels}
        self.kernel, self.channels, self.footprint = kernel, channels, True

    def at(
        self,
        q: Tensor,
        coords: Tensor,
        footprint: float | tuple[float, float] = 0.0,
        *,
        chunk: int | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Any coordinates of the unit square; twice differentiable in them.

        :param torch.Tensor q: (B, C, H, W).
        :param torch.Tensor coords: (P, 2) or (B, P, 2), (row, column) in [0, 1]; pixel i of N is (i + 1/2)/N.
        :param footprint: size of an output pixel [pixel of q]; beyond 1 the kernel is stretched to it.
        :returns: (B, P, C).
        """
        check_coords(coords, len(q))
        width = tuple(max(1.0, f) for f in checked_footprint(footprint))
        chunk = pixels_at_once(q.device, chunk, None, 1, default=CHUNK)
        points = positions(coords, (q.shape[-2], q.shape[-1])).expand(len(q), -1, 2)
        parts = points.split(max(1, chunk // len(q)), 1)
        one = q.new_ones(2)
        return torch.cat([patches(q, p, one, 1, self.kernel, width)[:, :, 0, 0] for p in parts], 1)  # type: ignore[arg-type]
