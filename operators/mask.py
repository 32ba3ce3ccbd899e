"""Inpainting: some pixels are seen, the others are not."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pnp_lofi.checks import only
from pnp_lofi.noise import estimate_image_noise
from pnp_lofi.operators.base import Operator


class Mask(Operator):
    """Keep the pixels of a mask: y = m x, zero outside.

    m is a projection, A = A^H = A^H A, hence everything below is in closed form. What y holds outside of the mask,
    NaN included, is never looked at.

    :param torch.Tensor mask: (H, W), (C, H, W) or (1, C, H, W), bool or zeros and ones; one mask serves all channels.
    :param float sigma: noise [units of y] that ``op(x)`` adds to the pixels seen; None: none, or unknown.
    :raises ValueError: if the mask is of another shape, holds other values, or keeps no pixel; if sigma <= 0."""

    closed_form = True
    mend_nan: ClassVar[str] = "take those pixels out of the mask"

    def __init__(self, mask: Tensor, *, sigma: float | None = None) -> None:
        mask = checked_mask(mask)
        channels, *shape = mask.shape[1:]
        size = ("batch", "channel" if channels == 1 else channels, *shape)
        super().__init__(size, size, sigma=sigma, device=mask.device)
        self.register_buffer("mask", mask)

    def _forward(self, x: Tensor) -> Tensor:
        return torch.where(self.mask, x, 0)

    def _backward(self, y: Tensor) -> Tensor:
        return self._forward(y)

    def _normal(self, x: Tensor) -> Tensor:
        return self._forward(x)

    def _seen(self, y: Tensor) -> Tensor:
        return only(y, self.mask)

    @property
    def norm(self) -> float:
        """L, the largest eigenvalue of A^H A."""
        return 1.0

    def _inverse(self, rhs: Tensor, alpha: float | Tensor) -> Tensor:
        """b / (m + alpha); for alpha = 0 the pseudo-inverse, m b."""
        alpha = torch.as_tensor(alpha, dtype=rhs.dtype, device=rhs.device)
        inverse = torch.where(self.mask | (alpha > 0), 1 / (self.mask + alpha), 0)
        return rhs * inverse

    def estimate_noise(self, y: Tensor) -> float:
        """Noise of the pixels seen [units of y]; see :func:`pnp_lofi.noise.estimate_image_noise`."""
        return estimate_image_noise(self.A_adjoint(y), self.mask)


def checked_mask(mask: Tensor) -> Tensor:
    """The mask as (1, C, H, W) bool."""
    mask = torch.as_tensor(mask)
    shape = tuple(mask.shape)
    if not 2 <= len(shape) <= 4 or (len(shape) == 4 and shape[0] != 1):
        raise ValueError(
            f"mask must be (H, W), (C, H, W) or (1, C, H, W), got {shape}; one mask serves the whole batch"
        )
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        what = "NaN" if bool(torch.isnan(mask).any()) else "other values"
        raise ValueError(f"mask must hold zeros and ones only, got {what}; threshold it, for instance mask > 0.5")
    if not bool(mask.any()):
        raise ValueError(f"mask of shape {shape} keeps no pixel; True (or 1) marks the pixels that are seen")
    return mask.bool().reshape((1,) * (4 - len(shape)) + shape)


def random_mask(shape: Sequence[int], keep: float, seed: int = 0) -> Tensor:
    """A mask that keeps the nearest number to keep H W pixels (at least one), drawn without replacement.

    :param tuple shape: (H, W); float keep: fraction of the pixels that are seen, 0 < keep <= 1.
    :returns: (H, W) bool.
    :raises ValueError: if keep is out of range.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be a fraction with 0 < keep <= 1, got {keep}")
    height, width = shape
    order = torch.randperm(height * width, generator=torch.Generator().manual_seed(seed))
    return (order < max(1, round(keep * height * width))).reshape(height, width)
