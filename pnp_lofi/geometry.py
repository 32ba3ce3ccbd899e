"""PatchGeometry: where around a pixel LoFi looks."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

Layout = Literal["circular", "square"]


def circular_offsets(rays: int, rings: int, radius: float) -> Tensor:
    """Points on rays x rings: ring n has radius n radius/(rings - 1), ray m points at 2 pi m / rays.

    :returns: (rays, rings, 2) [pixel], (row, column).
    Source: LoFi's code, whose ring n has radius n/4 pixel (arXiv 2411.04995, section VII).
    """
    angle = 2 * math.pi * torch.arange(rays) / rays
    reach = torch.linspace(0, radius, rings) if rings > 1 else torch.full((1,), radius)
    return torch.stack([angle.sin(), angle.cos()], -1)[:, None] * reach[:, None]


def square_offsets(rays: int, rings: int, radius: float) -> Tensor:
    """A regular rays x rings grid over the square [-radius, radius]^2; each row of it is one "ray".

    :returns: (rays, rings, 2) [pixel], (row, column).
    """
    axes = [torch.linspace(-radius, radius, n) if n > 1 else torch.zeros(1) for n in (rays, rings)]
    return torch.cartesian_prod(*axes).reshape(rays, rings, 2)


class PatchGeometry(nn.Module):
    """K = rays x rings offsets d_k in pixels of the observed image; the patch of x is q(x + d_k).

    :param int rays: groups of points; each gets an MLP of its own.
    :param int rings: points of a ray.
    :param float radius: reach at the start [pixel].
    :param str layout: "circular" or "square".
    :param bool learned: whether training moves the points.
    :raises ValueError: if a size is not positive or the layout is unknown.
    Source: arXiv 2411.04995, section III. Differs from the authors' code, which scales offsets by
    1/(h - 1) of the image: ours keep their footprint in pixels, so tiles are exact.
    """

    def __init__(
        self, rays: int, rings: int, radius: float, *, layout: Layout = "circular", learned: bool = True
    ) -> None:
        super().__init__()
        if rays < 1 or rings < 1 or not radius > 0:
            raise ValueError(
                f"PatchGeometry expects rays >= 1, rings >= 1 and radius > 0, got {rays}, {rings}, {radius}"
            )
        layouts = {"circular": circular_offsets, "square": square_offsets}
        if layout not in layouts:
            raise ValueError(f"PatchGeometry knows the layouts {sorted(layouts)}, got {layout!r}")
        self.offsets = nn.Parameter(layouts[layout](rays, rings, radius), requires_grad=learned)

    @property
    def points(self) -> Tensor:
        """(K, 2) offsets [pixel], rays outermost."""
        return self.offsets.reshape(-1, 2)

    @property
    def margin(self) -> int:
        """Pixels beyond the centre that the interpolated patch touches; also the halo of a tile."""
        return math.ceil(float(self.offsets.detach().abs().max())) + 1
