"""Inpainting: some pixels are seen, the others are not."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pnp_lofi.checks import only
from pnp_lofi.noise import estimate_image_noise
from pnp_lofi.operators.base import Operator
from pnp_lofi.strips import Strips


class Mask(Operator):
    """Keep the pixels of a mask: y = m x, zero outside.

    m is a projection, A = A^H = A^H A, hence everything below is in closed form. What y holds outside of the mask,
    NaN included, is never looked at.

    :param torch.Tensor mask: (H, W), (C, H, W) or (1, C, H, W), bool or zeros and ones; one mask serves all channels.
    :param float sigma: noise [units of y] that ``op(x)`` adds to the pixels seen; None: none, or unknown.
    :param Strips strips: where mask, x and y are this process's rows of an image that several share.
    :raises ValueError: if the mask is of another shape, holds other values, or keeps no pixel; if sigma <= 0."""

    closed_form = True
    mend_nan: ClassVar[str] = "take those pixels out of the mask"

    def __init__(self, mask: Tensor, *, sigma: float | None = None, strips: Strips | None = None) -> None:
        mask = checked_mask(mask, strips)
        channels, *shape = mask.shape[1:]
        size = ("batch", "channel" if channels == 1 else channels, *shape)
        super().__init__(size, size, sigma=sigma, device=mask.device, strips=strips)
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

    @property
    def mean_eigenvalue(self) -> float:
        """trace(A^H A) / N, the part of the pixels that is seen."""
        seen = torch.stack([self.mask.sum(), torch.tensor(self.mask.numel(), device=self.mask.device)])
        count, pixels = self.reduce(seen).tolist()
        return float(count / pixels)

    def _inverse(self, rhs: Tensor, alpha: float | Tensor) -> Tensor:
        """b / (m + alpha); for alpha = 0 the pseudo-inverse, m b."""
        alpha = torch.as_tensor(alpha, dtype=rhs.real.dtype, device=rhs.device)
        damped = alpha > 0
        outside = torch.where(damped, 1 / torch.where(damped, alpha, 1), 0)
        return rhs * torch.where(self.mask, 1 / (1 + alpha), outside)

    def working_memory(self, like: Tensor) -> int:
        """Bytes of the answer, the factor in front of it and what is made on the way to that, see :class:`Operator`."""
        return 3 * like.numel() * like.element_size()

    def estimate_noise(self, y: Tensor) -> float:
        """Noise of the pixels seen [units of y]; see :func:`pnp_lofi.noise.estimate_image_noise`.

        :raises ValueError: on a strip: the quantile that the estimate rests on is one of the whole image.
        """
        if self.strips is not None and self.strips.world > 1:
            raise ValueError("noise is not estimated from a strip of an image; pass Mask(..., sigma=) or sigma_n")
        return estimate_image_noise(self.A_adjoint(y), self.mask)


def checked_mask(mask: Tensor, strips: Strips | None = None) -> Tensor:
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
    if strips is not None and shape[-2:] != strips.strip_shape:
        raise ValueError(f"mask must be {strips.strip_shape}, this process's rows: mask[strips.rows], got {shape}")
    seen = mask.any()
    if not bool(seen if strips is None else strips.total(seen.long(), "max")):
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
