"""Cartesian Fourier sampling: compressed sensing, single-coil MRI."""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.fft import fft2, fftshift, ifft2, ifftshift

from pnp_lofi.cg import linear_map
from pnp_lofi.checks import REAL_TO_COMPLEX, only
from pnp_lofi.operators.base import Operator
from pnp_lofi.operators.mask import checked_mask

SPACE = (-2, -1)
OUTER, QUANTILE = 0.25, 0.3  # of the samples, the farthest from zero; of those, where the noise is read


class Fourier(Operator):
    """Samples of the unitary Fourier transform on a Cartesian grid, y = m F x, zero outside of the mask m:

        (F x)[k] = (HW)^-1/2 sum x[r, c] exp(-2 pi i (k_r (r - H//2) / H + k_c (c - W//2) / W)),

    with frequency zero at the pixel (H//2, W//2) of y and m, and the image's origin at its own, as :class:`NUFFT` and
    deepinv's MRI have it. ``centred=False`` puts both at the pixel (0, 0): plain ``torch.fft.fft2``.

    A^H A is a convolution, of eigenvalues m(k), or (m(k) + m(-k)) / 2 where images are real: everything below is in
    closed form. What y holds outside of the mask, NaN included, is never looked at.

    :param torch.Tensor mask: (H, W), (C, H, W) or (1, C, H, W), bool or zeros and ones; see :func:`random_frequencies`,
        :func:`cartesian_lines` and :func:`radial_lines`.
    :param bool real: images are real; False: complex.
    :param bool centred: where frequency zero lies, in the middle or at the first pixel.
    :param float sigma: noise per real component [units of y] added to the samples by ``op(x)``; None: none, or unknown.
    :raises ValueError: if the mask is of another shape, holds other values, or keeps nothing; if sigma <= 0.
    """

    closed_form = True
    mend_nan: ClassVar[str] = "take those frequencies out of the mask"
    _symmetric: Tensor | None

    def __init__(self, mask: Tensor, *, real: bool = True, centred: bool = True, sigma: float | None = None) -> None:
        mask = checked_mask(mask)
        channels, *shape = mask.shape[1:]
        size = ("batch", "channel" if channels == 1 else channels, *shape)
        super().__init__(size, size, sigma=sigma, complex_images=not real, complex_data=True, device=mask.device)
        self.shape, self.real, self.centred = tuple(shape), real, centred
        self.register_buffer("mask", mask)

    @property
    def norm(self) -> float:
        """L, the largest eigenvalue of A^H A."""
        return float(self._eigenvalues().max())

    def _seen(self, y: Tensor) -> Tensor:
        return only(y, self.mask)

    def _forward(self, x: Tensor) -> Tensor:
        x = x.to(REAL_TO_COMPLEX.get(x.dtype, x.dtype))
        y = fftshift(fft2(ifftshift(x, SPACE), norm="ortho"), SPACE) if self.centred else fft2(x, norm="ortho")
        return torch.where(self.mask, y, 0)

    def _backward(self, y: Tensor) -> Tensor:
        y = torch.where(self.mask, y, 0)
        x = fftshift(ifft2(ifftshift(y, SPACE), norm="ortho"), SPACE) if self.centred else ifft2(y, norm="ortho")
        return x.real.contiguous() if self.real else x

    def _eigenvalues(self) -> Tensor:
        """Of A^H A, frequency zero first: (1, C, H, W) float64, in {0, 1} or {0, 1/2, 1}."""
        if self._symmetric is None:
            m = (ifftshift(self.mask, SPACE) if self.centred else self.mask).double()
            self._symmetric = (m + m.flip(SPACE).roll((1, 1), SPACE)) / 2 if self.real else m
        return self._symmetric

    def _forget(self) -> None:
        self._symmetric = None

    def _multiply(self, x: Tensor, gain: Tensor) -> Tensor:
        """A convolution, given by its spectrum; it does not depend on where the origin lies."""
        gain = gain.to(x.real.dtype)
        if not self.real:
            return ifft2(fft2(x) * gain)
        return torch.fft.irfft2(torch.fft.rfft2(x) * gain[..., : x.shape[-1] // 2 + 1], s=self.shape)

    def _normal(self, x: Tensor) -> Tensor:
        return self._multiply(x, self._eigenvalues())

    def _inverse(self, rhs: Tensor, alpha: float | Tensor) -> Tensor:
        eigenvalues = self._eigenvalues()
        alpha = torch.as_tensor(alpha, dtype=torch.float64, device=rhs.device)
        return self._multiply(rhs, torch.where((eigenvalues > 0) | (alpha > 0), 1 / (eigenvalues + alpha), 0))

    def _fit(self, y: Tensor, alpha: float | Tensor) -> Tensor:
        eigenvalues = self._eigenvalues()
        alpha = torch.as_tensor(alpha, dtype=torch.float64, device=y.device)
        gain = torch.where(eigenvalues > 0, 1 / (eigenvalues + alpha), 0)
        return self._multiply(linear_map(y, self._backward, self._forward), gain)

    def estimate_noise(self, y: Tensor) -> float:
        """Noise per real component [units of y], from a low quantile of |y| among the highest frequencies sampled.

        Detail as fine as the pixels counts as noise: the figure is an upper bound. (A solver's own, by its residual,
        came out a third too low: fewer samples than pixels can be fitted too well.)
        """
        self._check_data(self._seen(y))
        H, W = self.shape
        k_r, k_c = torch.fft.fftfreq(H, device=y.device), torch.fft.fftfreq(W, device=y.device)
        distance = torch.hypot(k_r[:, None], k_c)
        distance = fftshift(distance) if self.centred else distance
        mask = self.mask.expand(y.shape)
        distance, size = distance.expand(y.shape)[mask], y[mask].abs().double()
        outer = size[distance >= distance.kthvalue(math.ceil((1 - OUTER) * len(distance))).values]
        rank = max(1, round(QUANTILE * len(outer)))
        return float(outer.kthvalue(rank).values) / math.sqrt(-2 * math.log(1 - QUANTILE))
