"""Deblurring: convolution with a known kernel."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from pnp_lofi.cg import Linear
from pnp_lofi.checks import REAL_TO_COMPLEX, Shape, checked_shape
from pnp_lofi.noise import estimate_image_noise
from pnp_lofi.nonuniform import fft_size
from pnp_lofi.operators.base import Operator
from pnp_lofi.sampling import reflect_index

BOUNDARIES = ("circular", "reflect", "replicate", "zero", "valid")
LOST = 100  # machine epsilons below the largest eigenvalue of A^H A where the pseudo-inverse takes one for zero
EXACT = 1e-28  # of the largest |H|^2: the rounding of H


class Blur(Operator):
    """Convolution y[n] = sum_k h[k] x[n - (k - c)], the kernel's centre c at its pixel (rows//2, columns//2).

    With circular boundaries everything is in closed form in Fourier: A = F^-1 H F. The others continue the image as
    far as the kernel reaches, convolve by FFT, and need conjugate gradients, which the circular closed form
    preconditions for "zero" and "valid" (1.5 to 4 times fewer steps; for the two others it does not pay).
    deepinv's own classes are not used, because ``Blur`` has no closed form, and no adjoint for kernels one pixel wide,
    ``BlurFFT.to(float64)`` drops the imaginary part of H without an error, and a filter passed to a call stays.

    :param tuple img_size: (H, W).
    :param torch.Tensor kernel: (h, w), or (C, h, w) with one kernel per channel; deepinv's (1, C, h, w) as well.
    :param str boundary: what lies beyond the image: "circular", "reflect" (about the centre of the edge pixel),
        "replicate", "zero"; "valid": y keeps only what needs nothing beyond, (H - h + 1, W - w + 1).
    :param float sigma: noise [units of y] that ``op(x)`` adds; None: none, or unknown.
    :param int max_iter, float tol: of ``A_dagger`` and ``prox_l2`` where conjugate gradients are needed.
    :raises ValueError: if the kernel is of another shape, NaN or all zero, or larger than the image
        where it cannot wrap; for another boundary.
    """

    geometry: ClassVar[tuple[str, ...]] = ("kernel",)
    _transfers: dict[torch.dtype, Tensor]
    _linear: dict[torch.dtype, Tensor]
    _power: Tensor | None

    def __init__(
        self,
        img_size: Sequence[int],
        kernel: Tensor,
        *,
        boundary: str = "circular",
        sigma: float | None = None,
        max_iter: int = 100,
        tol: float = 1e-5,
    ) -> None:
        shape = checked_shape(img_size)
        if boundary not in BOUNDARIES:
            raise ValueError(f"boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")
        kernel = _checked_kernel(kernel, shape, wraps=boundary == "circular")
        channels, h, w = kernel.shape
        channel = "channel" if channels == 1 else channels
        seen = (shape[0] - h + 1, shape[1] - w + 1) if boundary == "valid" else shape
        super().__init__(
            ("batch", channel, *shape),
            ("batch", channel, *seen),
            sigma=sigma,
            max_iter=max_iter,
            tol=tol,
            device=kernel.device,
        )
        self.shape, self.boundary, self.closed_form = shape, boundary, boundary == "circular"
        self.register_buffer("kernel", kernel)
        self._forget()

    def transfer(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """H, the transform of the centred kernel wrapped around the image: (C, H, W//2 + 1) complex."""
        if dtype not in self._transfers:
            wrapped = self.kernel
            for axis, size in ((1, self.shape[0]), (2, self.shape[1])):
                taps = torch.arange(wrapped.shape[axis], device=wrapped.device)
                folded = wrapped.new_zeros([size if i == axis else n for i, n in enumerate(wrapped.shape)])
                wrapped = folded.index_add(axis, (taps - len(taps) // 2) % size, wrapped)
            self._transfers[dtype] = torch.fft.rfft2(wrapped).to(REAL_TO_COMPLEX[dtype])
        return self._transfers[dtype]

    def power(self) -> Tensor:
        """|H|^2, (C, H, W//2 + 1) float64."""
        if self._power is None:
            self._power = self.transfer().abs().square()
        return self._power

    @property
    def norm(self) -> float:
        """L, the largest eigenvalue of A^H A."""
        return float(self.power().max()) if self.closed_form else super().norm

    def _forget(self) -> None:
        self._transfers, self._linear = {}, {}
        self._power = None

    def _filter(self, x: Tensor, spectrum: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * spectrum, s=self.shape)

    def _forward(self, x: Tensor) -> Tensor:
        if self.closed_form:
            return self._filter(x, self.transfer(x.dtype))
        (h, w), size = self.kernel.shape[1:], self._padded()
        y = torch.fft.irfft2(torch.fft.rfft2(self._continued(x), s=size) * self._spectrum(x.dtype), s=size)
        return y[..., h - 1 : h - 1 + self.data_shape[2], w - 1 : w - 1 + self.data_shape[3]].contiguous()

    def _backward(self, y: Tensor) -> Tensor:
        if self.closed_form:
            return self._filter(y, self.transfer(y.dtype).conj())
        (h, w), size = self.kernel.shape[1:], self._padded()
        spectrum = torch.fft.rfft2(pad(y, (w - 1, 0, h - 1, 0)), s=size) * self._spectrum(y.dtype).conj()
        return self._folded(torch.fft.irfft2(spectrum, s=size))

    def _normal(self, x: Tensor) -> Tensor:
        if self.closed_form:
            return self._filter(x, self.power().to(x.dtype))
        return super()._normal(x)

    def _inverse(self, rhs: Tensor, alpha: float | Tensor) -> Tensor:
        """F^-1 (|H|^2 + alpha)^-1 F b; for alpha = 0 the pseudo-inverse."""
        gain, kept = damped(self.power(), alpha, rhs.dtype)
        return self._filter(rhs, torch.where(kept | (torch.as_tensor(alpha) > 0), gain, 0).to(rhs.dtype))

    def _fit(self, y: Tensor, alpha: float | Tensor) -> Tensor:
        """F^-1 H* (|H|^2 + alpha)^-1 F y."""
        gain, kept = damped(self.power(), alpha, y.dtype)
        return self._filter(y, torch.where(kept, self.transfer().conj() * gain, 0).to(REAL_TO_COMPLEX[y.dtype]))

    # ---- beyond the image --------------------------------------------------------------------------------

    def _margins(self) -> tuple[int, int, int, int]:
        """How far the kernel reaches beyond the image: left, right, top, bottom [pixel]."""
        h, w = self.kernel.shape[1:]
        return (0, 0, 0, 0) if self.boundary == "valid" else (w - 1 - w // 2, w // 2, h - 1 - h // 2, h // 2)

    def _padded(self) -> Shape:
        left, right, top, bottom = self._margins()
        return fft_size(self.shape[0] + top + bottom), fft_size(self.shape[1] + left + right)

    def _spectrum(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._linear:
            self._linear[dtype] = torch.fft.rfft2(self.kernel, s=self._padded()).to(REAL_TO_COMPLEX[dtype])
        return self._linear[dtype]

    def _places(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the image that stand for those as far as the kernel reaches."""
        (H, W), (left, right, top, bottom) = self.shape, self._margins()
        rows = torch.arange(-top, H + bottom, device=self.kernel.device)
        columns = torch.arange(-left, W + right, device=self.kernel.device)
        if self.boundary == "reflect":
            return reflect_index(rows, H), reflect_index(columns, W)
        return rows.clamp(0, H - 1), columns.clamp(0, W - 1)

    def _continued(self, x: Tensor) -> Tensor:
        """The image as far as the kernel reaches."""
        if self.boundary in ("zero", "valid"):
            return pad(x, self._margins())
        rows, columns = self._places()
        return x[..., rows[:, None], columns]

    def _folded(self, wide: Tensor) -> Tensor:
        """The adjoint of :meth:`_continued`; what lies farther out is ignored."""
        (H, W), (left, right, top, bottom) = self.shape, self._margins()
        wide = wide[..., : H + top + bottom, : W + left + right]
        if self.boundary in ("zero", "valid"):
            return wide[..., top : top + H, left : left + W].contiguous()
        rows, columns = self._places()
        x = wide.new_zeros((*wide.shape[:2], H, wide.shape[3])).index_add_(2, rows, wide)
        return x.new_zeros((*x.shape[:2], H, W)).index_add_(3, columns, x)

    def _preconditioner(self, alpha: float | Tensor) -> Linear | None:
        if self.boundary not in ("zero", "valid"):
            return None
        power = self.power()
        gain = 1 / (power + torch.as_tensor(alpha, dtype=power.dtype, device=power.device))
        return lambda x: self._filter(x, gain.to(x.dtype))

    def estimate_noise(self, y: Tensor) -> float:
        """Noise of the blurred image [units of y]; see :func:`pnp_lofi.noise.estimate_image_noise`."""
        return estimate_image_noise(y)


def damped(power: Tensor, alpha: float | Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """1 / (power + alpha), and where an eigenvalue of A^H A or A A^H is not only rounding.

    :param torch.Tensor power: the eigenvalues, float64.
    :param torch.dtype dtype: of the images, whose rounding counts where alpha = 0.
    """
    alpha = torch.as_tensor(alpha, dtype=power.dtype, device=power.device)
    kept = power > power.max() * torch.where(alpha > 0, EXACT, LOST * torch.finfo(dtype).eps).double()
    return 1 / torch.where(kept | (alpha > 0), power + alpha, 1), kept


def _checked_kernel(kernel: Tensor, shape: Shape, wraps: bool) -> Tensor:
    """The kernel as (C, h, w) float64."""
    size = tuple(kernel.shape)
    if len(size) == 4 and size[0] == 1:
        kernel = kernel[0]
    if kernel.ndim == 2:
        kernel = kernel[None]
    if kernel.ndim != 3 or kernel.numel() == 0:
        raise ValueError(f"kernel must be (h, w), (C, h, w) or (1, C, h, w), got {size}; one kernel serves the batch")
    if kernel.is_complex() or not bool(torch.isfinite(kernel).all()):
        raise ValueError(
            "kernel must be real and finite" + (", got complex" if kernel.is_complex() else ", got NaN or inf")
        )
    if not wraps and any(k > n for k, n in zip(kernel.shape[1:], shape, strict=True)):
        raise ValueError(f"the kernel, {tuple(kernel.shape[1:])}, is larger than the image, {shape}; crop it")
    if not bool(kernel.any()):
        raise ValueError("the kernel is zero everywhere; nothing would be seen")
    return kernel.detach().to(torch.float64, copy=True)
