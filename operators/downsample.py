"""Super-resolution: blur, then keep every f-th pixel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pnp_lofi.cg import linear_map
from pnp_lofi.checks import REAL_TO_COMPLEX, Shape, checked_shape
from pnp_lofi.noise import estimate_image_noise
from pnp_lofi.operators.base import Operator
from pnp_lofi.operators.blur import Blur, damped
from pnp_lofi.sampling import keys_cubic


class Downsample(Operator):
    """y[j] = (h * x)[f j + p], a grid f times coarser.

    The named kernels are centred on the coarse pixel: pixel j of N/f has its centre at (j + 1/2) / (N/f) of the unit
    square, where the middle of its f fine pixels lies. (deepinv's Downsampling takes p = 0: with its even kernels the
    coarse image is shifted by f/2 - 1 fine pixels, none for f = 2, one for f = 4.)

    With circular boundaries A A^H is a convolution on the coarse grid, whose eigenvalues G are the mean of |H|^2 over
    the f^2 aliases, hence (A^H A + alpha)^-1 b = (b - A^H (G + alpha)^-1 A b) / alpha in closed form.

    :param tuple img_size: (H, W) of the fine image, multiples of f.
    :param int factor: f >= 1.
    :param kernel: "box", the mean of the fine pixels; "bicubic", Keys' cubic stretched by f (torch's antialiased
        interpolation); or a tensor as :class:`Blur` takes it.
    :param int phase: p in [0, f), the fine pixel under the kernel's centre; default (f - 1)//2, which is exact for
        kernels of even length where f is even and of odd length where f is odd, and half a fine pixel off otherwise.
    :param str boundary: "circular", "reflect", "replicate" or "zero", see :class:`Blur`.
    :param float sigma: noise [units of y] that ``op(x)`` adds; None: none, or unknown.
    :param int max_iter, float tol: of ``A_dagger`` and ``prox_l2`` where conjugate gradients are needed.
    :raises ValueError: if f does not divide the image's sides, for another kernel, phase or boundary.
    Source: Zhao et al. 2016, IEEE TIP 25(8), theorem 1, by the matrix inversion lemma on the coarse grid.
    """

    _aliased: Tensor | None

    def __init__(
        self,
        img_size: Sequence[int],
        factor: int,
        kernel: Tensor | str = "bicubic",
        *,
        phase: int | None = None,
        boundary: str = "circular",
        sigma: float | None = None,
        max_iter: int = 100,
        tol: float = 1e-5,
    ) -> None:
        shape = checked_shape(img_size)
        phase = int(factor - 1) // 2 if phase is None else phase
        _check(shape, factor, phase, boundary)
        blur = Blur(
            shape, downsampling_kernel(kernel, factor) if isinstance(kernel, str) else kernel, boundary=boundary
        )
        coarse = (shape[0] // factor, shape[1] // factor)
        super().__init__(
            blur.image_shape,
            (*blur.image_shape[:2], *coarse),
            sigma=sigma,
            max_iter=max_iter,
            tol=tol,
            device=blur.kernel.device,
        )
        self.shape, self.coarse, self.factor, self.phase = shape, coarse, factor, phase
        self.blur, self.closed_form = blur, blur.closed_form

    def _forget(self) -> None:
        self._aliased = None

    @property
    def norm(self) -> float:
        """L, the largest eigenvalue of A^H A."""
        return float(self._eigenvalues().max()) if self.closed_form else super().norm

    def _forward(self, x: Tensor) -> Tensor:
        return self.blur._forward(x)[..., self.phase :: self.factor, self.phase :: self.factor].contiguous()

    def _backward(self, y: Tensor) -> Tensor:
        return self.blur._backward(self._placed(y))

    def _placed(self, y: Tensor) -> Tensor:
        """The coarse image on the fine grid, zero between its pixels."""
        fine = y.new_zeros((*y.shape[:2], *self.shape))
        fine[..., self.phase :: self.factor, self.phase :: self.factor] = y
        return fine

    def _eigenvalues(self) -> Tensor:
        """G of A A^H, repeated over the aliases, (C, H, W // 2 + 1), float64."""
        if self._aliased is None:
            comb = torch.zeros(self.shape, dtype=torch.float64, device=self.blur.kernel.device)
            comb[:: self.factor, :: self.factor] = 1
            autocorrelation = torch.fft.irfft2(self.blur.power(), s=self.shape)
            self._aliased = torch.fft.rfft2(autocorrelation * comb).real.clamp_min(0)
        return self._aliased

    def _inverse(self, rhs: Tensor, alpha: float | Tensor) -> Tensor:
        gain, kept = damped(self._eigenvalues(), alpha, rhs.dtype)
        Ab = linear_map(rhs, self._forward, self._backward)
        alpha = torch.as_tensor(alpha, dtype=gain.dtype, device=rhs.device)
        none = alpha == 0
        x = ((rhs - self._spread(Ab, gain)) / torch.where(none, 1, alpha)).to(rhs.dtype)
        return torch.where(none, self._spread(Ab, torch.where(kept, gain.square(), 0)), x) if bool(none.any()) else x

    def _fit(self, y: Tensor, alpha: float | Tensor) -> Tensor:
        """A^H (G + alpha)^-1 y."""
        gain, kept = damped(self._eigenvalues(), alpha, y.dtype)
        return self._spread(y, torch.where(kept, gain, 0))

    def _spread(self, y: Tensor, gain: Tensor) -> Tensor:
        """A^H of a filtered coarse image, in one go: what the gain lifts and A^H removes never rounds."""
        return self.blur._filter(self._placed(y), (self.blur.transfer().conj() * gain).to(REAL_TO_COMPLEX[y.dtype]))

    def estimate_noise(self, y: Tensor) -> float:
        """Noise of the coarse image [units of y]; see :func:`pnp_lofi.noise.estimate_image_noise`."""
        return estimate_image_noise(y)


def downsampling_kernel(name: str, factor: int) -> Tensor:
    """Kernels centred on the coarse pixel, of unit sum.

    :param str name: "box" or "bicubic".
    :returns: (h, h) float64, of odd length where f is.
    :raises ValueError: for another name.
    """
    if name == "box":
        line = torch.ones(factor, dtype=torch.float64)
    elif name == "bicubic":
        reach = 2 * factor - 1  # the next tap would be zero
        taps = 2 * reach + 1 if factor % 2 else 2 * reach + 2
        line = keys_cubic((torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / factor)
    else:
        raise ValueError(f'kernel must be "box", "bicubic" or a tensor, got {name!r}')
    line = line / line.sum()
    return line[:, None] * line


def _check(shape: Shape, factor: int, phase: int, boundary: str) -> None:
    if factor < 1 or int(factor) != factor:
        raise ValueError(f"factor must be an integer >= 1, got {factor}")
    if any(n % factor for n in shape):
        fits = tuple(n - n % factor for n in shape)
        raise ValueError(f"the image, {shape}, must be a multiple of the factor {factor}; crop it to {fits} or pad it")
    if not 0 <= phase < factor:
        raise ValueError(f"phase must lie in [0, {factor}), got {phase}")
    if boundary == "valid":
        raise ValueError(
            'boundary "valid" does not keep the coarse grid; use "circular", "reflect", "replicate" or "zero"'
        )
