"""What the operators of radio interferometry share: A^H A is a convolution, with a beam, a dirty image and a norm."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pnp_lofi.cg import Linear
from pnp_lofi.checks import checked_shape
from pnp_lofi.convolution import along_rows, back_along_rows, filter_columns_, kernel_along_rows, spectrum_of
from pnp_lofi.nonuniform import Shape, fft_size
from pnp_lofi.operators.base import Operator
from pnp_lofi.operators.uv import SLACK
from pnp_lofi.strips import Strips

ROUNDING = 1e-12  # of the preconditioner's largest eigenvalue: what is below it is zero


class Interferometer(Operator):
    """A^H A x = crop(t * x) / (HW) with t(d) = sum_k w_k exp(i uv_k . d). Abstract: a model brings, beside A and A^H,

    - ``_kernel(shape, real=)``: t over d in a grid with zero at N//2, float64 (complex128);
    - ``_total_weight()``: t(0), the sum of w.

    :param tuple shape: (H, W) of the image; with ``strips`` of the whole one.
    :param bool real: images are real (the sky); False: complex.
    :param bool precondition: whether conjugate gradients are preconditioned, see :meth:`_preconditioner`.
    :param options: of :class:`Operator`.
    """

    mend_nan: ClassVar[str] = "give those visibilities weight zero and call op.whiten, or drop them"

    def __init__(
        self,
        shape: Shape,
        data_shape: Sequence[int | str],
        *,
        real: bool = True,
        precondition: bool = False,
        complex_data: bool = True,
        sigma: float | None = None,
        max_iter: int = 100,
        tol: float = 1e-5,
        device: torch.device | str = "cpu",
        strips: Strips | None = None,
    ) -> None:
        super().__init__(
            ("batch", "channel", *(shape if strips is None else strips.strip_shape)),
            data_shape,
            sigma=sigma,
            complex_images=not real,
            complex_data=complex_data,
            max_iter=max_iter,
            tol=tol,
            device=device,
            strips=strips,
        )
        self.shape, self.real, self.precondition = shape, real, precondition
        self._forget()

    def _kernel(self, shape: Shape, *, real: bool = True) -> Tensor:
        raise NotImplementedError

    def _total_weight(self) -> float:
        raise NotImplementedError

    @property
    def mean_eigenvalue(self) -> float:
        """trace(A^H A) / N, which is t(0) / (HW)."""
        return self._total_weight() / math.prod(self.shape)

    # ---- what an astronomer looks at ---------------------------------------------------------------------

    def dirty(self, y: Tensor) -> Tensor:
        """Dirty image [Jy/beam]: A^H y scaled so that a point source of 1 Jy gives :meth:`psf`, whose peak is 1.

        :param torch.Tensor y: data of the operator, whitened. :returns: (B, C, H, W).
        """
        return self.A_adjoint(y) * (math.prod(self.shape) / self._total_weight())

    def dirty_noise(self, sigma: float | None = None) -> float:
        """Expected rms of the noise in :meth:`dirty` [Jy/beam].

        With imaging weights (uniform, Briggs) it is larger by :func:`noise_increase`.

        :param float sigma: noise per real component of the whitened visibilities; default the operator's own.
        :raises ValueError: if neither is known.
        """
        sigma = self.sigma if sigma is None else sigma
        if sigma is None:
            raise ValueError("the noise is not known; pass sigma, the noise per real component of y")
        return sigma * math.sqrt(math.prod(self.shape) / self._total_weight())

    def psf(self, size: Sequence[int] | None = None, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Dirty beam, sum w cos(uv . d) / sum w, with its peak of 1 at the pixel N//2.

        :param tuple size: (rows, columns); default the image's, CLEAN wants twice that.
        :returns: (rows, columns).
        """
        shape = self.shape if size is None else checked_shape(size)
        return (self._kernel(shape) / self._total_weight()).to(dtype)

    # ---- the normal operator as a convolution ------------------------------------------------------------

    def _normal(self, x: Tensor) -> Tensor:
        """Crop(F^-1 spectrum F pad(x)), one axis and one block at a time."""
        columns = self._padded()[1]
        along = filter_columns_(along_rows(x, columns), self._spectrum(x.real.dtype))
        return back_along_rows(along, columns, self.shape[1], real=self.real)

    def _spectrum(self, dtype: torch.dtype) -> Tensor:
        """Eigenvalues of the circulant matrix that A^H A is a corner of: real, half of them for real images."""
        key = (self._device_holder.device, dtype)
        if key not in self._spectra:
            rows, columns = self._padded()
            along = kernel_along_rows(self._half_kernel(), columns).div_(math.prod(self.shape))
            self._spectra[key] = spectrum_of(along, rows, dtype)
        return self._spectra[key]

    def _half_kernel(self) -> Tensor:
        """t at the offsets d[0] in [0, H - 1], d[1] in [1 - W, W - 1]; the other half follows, t(-d) = t(d)*."""
        H, W = self.shape
        return self._kernel((2 * H - 1, 2 * W - 1), real=self.real)[H - 1 :]

    def _offsets(self) -> Tensor:
        """t / (HW) at all offsets between two pixels of the image, (2 H - 1, 2 W - 1)."""
        H, W = self.shape
        return self._kernel((2 * H - 1, 2 * W - 1), real=self.real) / (H * W)

    def _padded(self) -> Shape:
        return fft_size(2 * self.shape[0] - 1), fft_size(2 * self.shape[1] - 1)

    def _preconditioner(self, alpha: float | Tensor) -> Linear | None:
        """(C + alpha)^-1 with the circulant C nearest to A^H A, F^-1 diag(F A^H A F^-1) F, if it was asked for.

        Source: T. Chan 1988, on both axes.
        """
        if not self.precondition:
            return None

        def apply(x: Tensor) -> Tensor:
            damped = self._circulant(x.real.dtype) + alpha
            if not self.real:
                return torch.fft.ifft2(torch.fft.fft2(x) / damped)
            return torch.fft.irfft2(torch.fft.rfft2(x) / damped, s=self.shape)

        return apply

    def _circulant(self, dtype: torch.dtype) -> Tensor:
        """Eigenvalues of C: real, > 0, half of them for real images."""
        key = (self._device_holder.device, dtype)
        if key not in self._circulants:
            kernel = self._offsets()
            for axis, n in enumerate(self.shape):  # offset d is found between 1 - |d|/N of the pairs of pixels
                d = torch.arange(1 - n, n, dtype=torch.float64, device=kernel.device)
                kernel = kernel * (1 - d.abs() / n).reshape((-1, 1) if axis == 0 else (1, -1))
            circulant = _embedded(kernel, self.shape, self.shape)
            found = (torch.fft.rfft2(circulant) if self.real else torch.fft.fft2(circulant)).real
            self._circulants[key] = found.clamp_min(ROUNDING * float(found.max())).to(dtype).contiguous()
        return self._circulants[key]

    def working_memory(self, like: Tensor) -> int:
        """Bytes, see :class:`Operator`: of conjugate gradients (x, r, p), one A^H A (its result, the rows' transforms)
        and the eigenvalues."""
        columns, image = self._padded()[1], like.numel() * like.element_size()
        row = (columns // 2 + 1 if self.real else columns) / (self.shape[1] * (1 if like.is_complex() else 0.5))
        vectors = 6 if self.precondition else 4
        return int((vectors + row * (1 if self.strips is None else 3)) * image) + self._eigenvalues(like)

    def _eigenvalues(self, like: Tensor) -> int:
        """Bytes of the eigenvalues that are held here."""
        rows, columns = self._padded()
        count = rows * (columns // 2 + 1 if self.real else columns)
        return count // (1 if self.strips is None else self.strips.world) * like.real.element_size()

    # ---- bookkeeping -------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._spectra: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._circulants: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def _embedded(kernel: Tensor, period: Shape, shape: Shape) -> Tensor:
    """The kernel, zero at (H - 1, W - 1), on a torus with zero at (0, 0); what overlaps adds up."""
    for axis in (0, 1):
        n = kernel.shape[axis]
        torus = kernel.new_zeros([period[axis] if a == axis else m for a, m in enumerate(kernel.shape)])
        index = (torch.arange(n, device=kernel.device) - (shape[axis] - 1)) % period[axis]
        kernel = torus.index_add_(axis, index, kernel)
    return kernel


# ---- checks ----------------------------------------------------------------------------------------------


def checked_uv(uv: Tensor, *, empty: bool = False) -> Tensor:
    """float64, in [-pi, pi].

    :param bool empty: whether (2, 0), a part with nothing in it, is fine.
    :raises ValueError: for another shape, NaN or inf, |uv| > pi; TypeError if uv is complex.
    """
    uv = torch.as_tensor(uv)
    if uv.is_complex():
        raise TypeError(f"uv must be real, (2, M) in radians per pixel, got {uv.dtype}; stack its two parts")
    if empty and uv.shape == (2, 0):
        return uv.detach().to(torch.float64)
    if uv.ndim != 2 or uv.shape[0] != 2 or uv.shape[1] == 0:
        mend = "; transpose it with uv.T" if uv.ndim == 2 and uv.shape[1] == 2 else ""
        raise ValueError(f"uv must be (2, M) in radians per pixel, M >= 1, got {tuple(uv.shape)}{mend}")
    uv = uv.detach().to(torch.float64)
    if not bool(torch.isfinite(uv).all()):
        raise ValueError("uv holds NaN or inf; flag those visibilities and leave them out")
    largest = float(uv.abs().max())
    if largest > math.pi * (1 + SLACK):
        raise ValueError(
            f"uv must lie in [-pi, pi] radians per pixel, its largest value is {largest:.6g}; convert metres with "
            f"uv_radians(uv, frequency, cell), with cells at least {largest / math.pi:.3g} times smaller if it was used"
        )
    return torch.where(uv.abs() > math.pi, uv - 2 * math.pi * uv.sign(), uv).contiguous()


def checked_weights(weights: Tensor | None, uv: Tensor) -> Tensor | None:
    """float64, one per column of uv; None stays None.

    :raises ValueError: for another length or device, NaN or inf, negative weights; TypeError if they are complex.
    """
    if weights is None:
        return None
    weights = torch.as_tensor(weights).detach()
    if weights.is_complex():
        raise TypeError(f"weights must be real, 1/sigma^2 per real component, got {weights.dtype}")
    weights = weights.to(torch.float64)
    if weights.shape != uv.shape[1:]:
        raise ValueError(f"weights must be ({uv.shape[1]},), one per column of uv, got {tuple(weights.shape)}")
    if weights.device != uv.device:
        raise ValueError(f"uv is on {uv.device}, weights on {weights.device}; move one with .to()")
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise ValueError("weights must be finite and >= 0; give visibilities that are not to be used weight zero")
    return weights.contiguous()
