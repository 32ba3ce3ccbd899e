"""Inpainting: some pixels are seen, the others are not."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from deepinv.physics import GaussianNoise, LinearPhysics, ZeroNoise
from torch import Tensor

from pnp_lofi.cg import CGInfo, check_alpha
from pnp_lofi.noise import estimate_image_noise


class Mask(LinearPhysics):
    """Keep the pixels of a mask: y = m x, zero outside.

    m is a projection, A = A^H = A^H A, hence everything below is in closed form. What y holds outside of the mask,
    NaN included, is never looked at.

    :param torch.Tensor mask: (H, W), (C, H, W) or (1, C, H, W), bool or zeros and ones; one mask serves all channels.
    :param float sigma: noise [units of y] that ``op(x)`` adds to the pixels seen; None: none, or unknown.
    :raises ValueError: if the mask is of another shape, holds other values, or keeps no pixel; if sigma <= 0."""

    norm: float = 1.0  #: the largest eigenvalue of A^H A

    def __init__(self, mask: Tensor, *, sigma: float | None = None) -> None:
        if sigma is not None and not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma must be finite and > 0, got {sigma}; leave it out for no noise")
        noise = ZeroNoise() if sigma is None else GaussianNoise(sigma=float(sigma))
        super().__init__(noise_model=noise)
        self.sigma = None if sigma is None else float(sigma)
        self.register_buffer("mask", _checked_mask(mask))
        self.img_size = tuple(self.mask.shape[1:])

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """m x.

        :param torch.Tensor x: (B, C, H, W), float.
        :raises ValueError: if x does not fit the mask or is on another device.
        :raises TypeError: if x is not of a real floating type.
        """
        self._check(x)
        return torch.where(self.mask, x, 0)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """m y.

        :raises ValueError: if y does not fit the mask or is NaN or inf on pixels that are seen.
        """
        seen = self.A(y)
        if not bool(torch.isfinite(seen.detach()).all()):
            raise ValueError("y is NaN or inf on pixels that the mask keeps; take those pixels out of the mask")
        return seen

    def A_adjoint_A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """m x."""
        return self.A(x)

    def A_dagger(self, y: Tensor, **kwargs: Any) -> Tensor:
        """The least-squares image of smallest norm: m y."""
        return self.A_adjoint(y)

    def noise(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Noise on the pixels seen; y stays zero outside."""
        return torch.where(self.mask, super().noise(x, **kwargs), 0)

    def prox_l2(self, z: Tensor | float | None, y: Tensor, gamma: float | Tensor, **kwargs: Any) -> Tensor:
        """argmin_x gamma/2 ||A x - y||^2 + 1/2 ||x - z||^2 = (gamma y + z) / (gamma + 1) inside, z outside.

        :param torch.Tensor z: (B, C, H, W), or a number for a flat image; None is zero.
        :param float gamma: > 0, or a tensor that broadcasts. Arguments for iterative solvers are ignored.
        """
        y = self.A_adjoint(y)
        if not isinstance(z, Tensor):
            z = torch.full_like(y, 0.0 if z is None else float(z))
        self._check(z)
        return torch.where(self.mask, (gamma * y + z) / (gamma + 1), z)

    def solve_normal(
        self, rhs: Tensor, alpha: float, init: Tensor | None = None, *, tol: float = 0.0, max_iter: int = 0
    ) -> tuple[Tensor, CGInfo]:
        """(A^H A + alpha)^-1 b = b / (m + alpha); for alpha = 0 the pseudo-inverse, m b.

        :param torch.Tensor rhs: b, (B, C, H, W).
        :param float alpha: >= 0. init, tol and max_iter are for operators without a closed form.
        :raises ValueError: if alpha is negative or not finite.
        """
        check_alpha(alpha)
        self._check(rhs)
        x = torch.where(self.mask, rhs / (1 + alpha), rhs / alpha if alpha else 0)
        return x, CGInfo(0, torch.zeros(len(rhs), dtype=rhs.dtype, device=rhs.device), True)

    def estimate_noise(self, y: Tensor) -> float:
        """Noise of the pixels seen [units of y]; see :func:`pnp_lofi.noise.estimate_image_noise`."""
        return estimate_image_noise(self.A_adjoint(y), self.mask)

    def _check(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise TypeError(f"Mask expects a real floating image, got {x.dtype}; convert it with x.float()")
        channels, height, width = self.mask.shape[1:]
        fits = x.ndim == 4 and x.shape[-2:] == (height, width) and (channels == 1 or x.shape[1] == channels)
        if not fits:
            expected = f"(batch, {channels if channels > 1 else 'channel'}, {height}, {width})"
            mend = "crop or pad the image to the mask, or make the mask from the image's shape"
            if x.ndim < 4 and x.shape[-2:] == (height, width):
                mend = "add the leading axes with x[None, None]" if x.ndim == 2 else "add the batch axis with x[None]"
            raise ValueError(
                f"Mask of shape {tuple(self.mask.shape)} expects x of shape {expected}, got {tuple(x.shape)}; {mend}"
            )
        if x.device != self.mask.device:
            raise ValueError(f"x is on {x.device}, the mask on {self.mask.device}; move one with .to({x.device!s})")


def _checked_mask(mask: Tensor) -> Tensor:
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
