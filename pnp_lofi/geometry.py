"""PatchGeometry: where around a pixel LoFi looks."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

Layout = Literal["circular", "square", "random"]


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


def random_offsets(rays: int, rings: int, radius: float) -> Tensor:
    """Points drawn uniformly from the square [-radius, radius]^2, by torch's generator.

    :returns: (rays, rings, 2) [pixel], (row, column).
    """
    return radius * (2 * torch.rand(rays, rings, 2) - 1)


LAYOUTS = {"circular": circular_offsets, "random": random_offsets, "square": square_offsets}


class PatchGeometry(nn.Module):
    """K = rays x rings offsets d_k in pixels of the observed image; the patch of x is q(x + scale d_k).

    :param int rays: groups of points; each gets an MLP of its own.
    :param int rings: points of a ray.
    :param float radius: reach at the start [pixel].
    :param str layout: "circular", "square" or "random" (uniform in the square).
    :param bool learned: whether training moves the points.
    :param bool learned_scale: whether it stretches all of them by one more number, the adaptive receptive field.
    :param bool official: shrink the offsets by (N - 1)/N of the image, as the authors' code does.
    :raises ValueError: if a size is not positive or the layout is unknown.
    Source: arXiv 2411.04995, section III. Differs from the authors' code, which gives offsets as fractions of the
    image: ours keep their footprint in pixels, so tiles are exact.
    """

    def __init__(
        self,
        rays: int,
        rings: int,
        radius: float,
        *,
        layout: Layout = "circular",
        learned: bool = True,
        learned_scale: bool = False,
        official: bool = False,
    ) -> None:
        super().__init__()
        if rays < 1 or rings < 1 or not 0 < radius < math.inf:
            raise ValueError(
                f"PatchGeometry expects rays >= 1, rings >= 1 and radius > 0, got {rays}, {rings}, {radius}"
            )
        if layout not in LAYOUTS:
            raise ValueError(f"PatchGeometry knows the layouts {sorted(LAYOUTS)}, got {layout!r}")
        self.offsets = nn.Parameter(LAYOUTS[layout](rays, rings, radius), requires_grad=learned)
        self.scale = nn.Parameter(torch.ones(1)) if learned_scale else None
        self.official, self.layout = official, layout

    def points(self, shape: tuple[int, int]) -> Tensor:
        """(K, 2) offsets [pixel] for an image of (H, W), rays outermost."""
        return self.stretch(self.offsets.reshape(-1, 2), shape)

    def stretch(self, offsets: Tensor, shape: tuple[int, int]) -> Tensor:
        """Offsets (..., 2) as the network holds them, in pixels of an image of (H, W)."""
        if self.scale is not None:
            offsets = offsets * self.scale
        if self.official:  # fractions of the *height*, of an axis whose pixels reach from end to end
            height, width = shape
            offsets = offsets * offsets.new_tensor([(height - 1) / height, (width - 1) / height])
        return offsets

    def margin(self, shape: tuple[int, int]) -> int:
        """Pixels beyond the centre that the interpolated patch touches; also the halo of a tile."""
        return math.ceil(float(self.points(shape).detach().abs().max())) + 1
