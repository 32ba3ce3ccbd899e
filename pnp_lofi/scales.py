"""Pairs of low and high resolution for super-resolution: what is seen has fewer pixels than what is asked for."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pnp_lofi.examples import Batch, Example

Mode = Literal["single", "continuous", "factor", "any"]
# side of what is seen, of an image of side n: from n over the first to below n over the second
RANGES = {"single": (2, 2), "continuous": (4, 2), "factor": (8, 2), "any": (8, 1)}


def resized(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """An image with other numbers of pixels over the same square, without aliasing: every low image here is made so.

    Keys' cubic kernel with a = -1/2, stretched to the wider of the two pixels (torch's bicubic with antialias, Pillow's
    BICUBIC).

    :param torch.Tensor x: (B, C, H, W). :param tuple shape: (H', W').
    """
    if tuple(x.shape[-2:]) == tuple(shape):
        return x
    return interpolate(x, tuple(shape), mode="bicubic", antialias=True)


class Scales:
    """Examples whose q is x at a lower resolution, another one for each batch.

    :param Batch images: draws (B, C, n, n).
    :param str mode: "single" n/2 -> n; "continuous" m -> n with m in [n/4, n/2); "factor" m -> 2 m with m in
        [n/8, n/2), for networks that are applied again and again; "any" m -> n with m in [n/8, n), for networks with a
        footprint.
    :param bool enlarged: q is brought to the size of x by :func:`resized`, for networks of one grid.
    :raises ValueError: for another mode.
    Source: arXiv 2212.14042, its three modes.
    """

    def __init__(self, images: Batch, mode: str, *, enlarged: bool = False) -> None:
        if mode not in RANGES:
            raise ValueError(f"modes are {', '.join(RANGES)}, got {mode!r}")
        self.images, self.mode, self.enlarged = images, mode, enlarged

    def __call__(self, generator: torch.Generator) -> Example:
        x = self.images(generator)
        n = x.shape[-1]
        if n < 16 or x.shape[-2] != n:
            raise ValueError(f"expected squares of at least 16 pixels, got {tuple(x.shape)}")
        low, high = (n // part for part in RANGES[self.mode])
        side = int(torch.randint(low, max(high, low + 1), (), generator=generator))
        q = resized(x, (side, side))
        if self.mode == "factor":
            x = resized(x, (2 * side, 2 * side))
        return Example(resized(q, (x.shape[-2], x.shape[-1])) if self.enlarged else q, x)
