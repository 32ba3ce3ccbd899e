"""Weak gravitational lensing: the shear that a convergence causes, and the classical inversions."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pnp_lofi.cg import damped_solve, linear_map
from pnp_lofi.checks import REAL_TO_COMPLEX, Shape, checked_shape, only
from pnp_lofi.lensing_power import check_power, fit_power, fourier_filter
from pnp_lofi.noise import estimate_image_noise
from pnp_lofi.operators.base import Operator
from pnp_lofi.operators.mask import checked_mask


class KaiserSquires(Operator):
    """Shear of a convergence, A = W^1/2 M C A0 with

        gamma1 + i gamma2 = A0 kappa = F^-1 D F kappa,    D(k) = (k1^2 - k2^2 + 2 i k1 k2) / |k|^2,  D(0) = 0,

    k1 along the columns, k2 along the rows. C cuts the field out of a larger periodic box, M keeps the pixels of a
    mask, W holds weights: the data are whitened alike, :meth:`whiten`. The *mean of kappa is unobservable*: A of a
    constant is zero, and what is solved in closed form has the mean of its prior, 0 in ``A_dagger``.

    Without mask, weights and pad, A^H A = 1 - mean and everything is in closed form. Otherwise conjugate gradients
    without a preconditioner: the best that was tried, Re A0^H (W + alpha)^-1 A0, halved the steps and doubled their
    cost; the diagonal of A^H A took more steps than none.

    What y holds outside of the mask, NaN included, is never looked at.

    :param tuple shape: (H, W) of the data.
    :param torch.Tensor mask: (H, W), bool or zeros and ones, True where shear was measured; default everywhere.
    :param sigma: noise per component of the shear: a number, or a map (H, W) or (2, H, W), > 0 on the mask. A map is
        taken as weights w = (sigma0 / sigma)^2, whose mean on the mask is 1, and ``op.sigma`` = sigma0 is the noise of
        the whitened y: what a solver needs to know. A constant map and the number are the same operator. None: no
        noise in ``op(x)``, or unknown.
    :param torch.Tensor weights: (H, W) or (2, H, W) >= 0, where the noise is only known up to a factor: that of
        component c in pixel p is sigma / sqrt(w). Zero is the same as outside of the mask.
    :param pad: pixels, or (rows, columns) of them, by which the box exceeds the field on each side. kappa lives on the
        box, (B, 1, H + 2 pad, W + 2 pad): the mass around a field shears what is in it, and is unknown rather than
        zero. :meth:`crop` gives the field's part.
    :param int max_iter, float tol: of ``A_dagger``, ``prox_l2`` and ``wiener`` by conjugate gradients.
    :raises ValueError: for other shapes, masks with other values or no pixel, sigma <= 0 or NaN on the mask, negative
        or all-zero weights, pad < 0.
    Source: Kaiser and Squires 1993. The authors of arXiv 2411.04995 use -conj(D); real COSMOS maps agree with D.
    """

    geometry: ClassVar[tuple[str, ...]] = ("kernel", "weights")
    blind_to_constants: ClassVar[bool] = True
    mend_nan: ClassVar[str] = "take those pixels out of the mask"

    def __init__(
        self,
        shape: Sequence[int],
        mask: Tensor | None = None,
        sigma: float | Tensor | None = None,
        *,
        weights: Tensor | None = None,
        pad: int | Sequence[int] = 0,
        max_iter: int = 100,
        tol: float = 1e-5,
    ) -> None:
        size = checked_shape(shape)
        rows, columns = _checked_pad(pad)
        box = (size[0] + 2 * rows, size[1] + 2 * columns)
        if box == (1, 1):
            raise ValueError("a single pixel has no shear; shape must have at least 2 pixels")
        level, weights = _checked_weights(size, mask, sigma, weights)
        super().__init__(
            ("batch", 1, *box),
            ("batch", 2, *size),
            sigma=level,
            max_iter=max_iter,
            tol=tol,
            device="cpu" if weights is None else weights.device,
        )
        self.shape, self.box, self.pad = size, box, (rows, columns)
        self.closed_form = weights is None and box == size
        self.register_buffer("kernel", _kernel(box).to(self._device_holder.device))
        self.register_buffer("weights", weights)
        self._forget()

    # ---- the model ---------------------------------------------------------------------------------------

    def _forward(self, x: Tensor) -> Tensor:
        y = self.crop(self._filtered(x[:, 0]))
        y = torch.stack([y.real, y.imag], 1)
        return y if self.weights is None else y.mul_(self._root(y.dtype))

    def _backward(self, y: Tensor) -> Tensor:
        return self._complex_kappa(y if self.weights is None else y * self._root(y.dtype)).real[:, None].contiguous()

    def _normal(self, x: Tensor) -> Tensor:
        if self.closed_form:
            return x - x.mean((-2, -1), keepdim=True)
        return self._backward(self._forward(x))

    def _inverse(self, rhs: Tensor, alpha: float | Tensor) -> Tensor:
        """(b - mean) / (1 + alpha) + mean / alpha; for alpha = 0 the pseudo-inverse, b - mean."""
        alpha = torch.as_tensor(alpha, dtype=rhs.dtype, device=rhs.device)
        mean = rhs.mean((-2, -1), keepdim=True)
        return (rhs - mean) / (1 + alpha) + mean * torch.where(alpha > 0, 1 / alpha, 0)

    def _fit(self, y: Tensor, alpha: float | Tensor) -> Tensor:
        """A^H y / (1 + alpha): it has no mean."""
        return linear_map(y, self._backward, self._forward) / (1 + alpha)

    @property
    def norm(self) -> float:
        """L, the largest eigenvalue of A^H A; computed once."""
        return 1.0 if self.closed_form else super().norm

    def estimate_noise(self, y: Tensor) -> float:
        """Noise of the whitened shear on the pixels seen, see :func:`pnp_lofi.noise.estimate_image_noise`."""
        self._check_data(self._seen(y))
        return estimate_image_noise(self._seen(y), None if self.mask is None else self.mask.expand(y.shape))

    # ---- data --------------------------------------------------------------------------------------------

    @property
    def mask(self) -> Tensor | None:
        """(1 or 2, H, W) bool, or None where every pixel is seen."""
        return None if self.weights is None else self.weights > 0

    def whiten(self, shear: Tensor) -> Tensor:
        """W^1/2 M shear: the y that the operator speaks of; zero outside of the mask, whatever shear holds there.

        :param torch.Tensor shear: (B, 2, H, W), gamma1 and gamma2.
        :raises ValueError: if it does not fit the operator or is NaN or inf on pixels that are seen.
        """
        seen = self._seen(shear)
        self._check_data(seen)
        return seen if self.weights is None else seen * self._root(seen.dtype)

    def shear(self, y: Tensor) -> Tensor:
        """W^-1/2 y, the shear of whitened data; zero outside of the mask."""
        seen = self._seen(y)
        self._check_data(seen)
        return seen if self.weights is None else self._seen(seen / self._root(seen.dtype))

    def crop(self, x: Tensor) -> Tensor:
        """The field's part of an image on the box, (..., H, W)."""
        (rows, columns), (height, width) = self.pad, self.shape
        return x[..., rows : rows + height, columns : columns + width]

    # ---- inversions --------------------------------------------------------------------------------------

    def ks(self, y: Tensor) -> Tensor:
        """Kaiser-Squires: Re F^-1 D* F gamma, missing shear taken as zero; of mean 0.

        :param torch.Tensor y: (B, 2, H, W) whitened. :returns: (B, 1, rows, columns) of the box.
        """
        return self.eb(y)[0]

    def eb(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """E and B modes, real and imaginary part of F^-1 D* F gamma. Lensing makes no B mode, but a mask turns some of
        E into B.

        :param torch.Tensor y: (B, 2, H, W) whitened. :returns: two images (B, 1, rows, columns) of the box.
        """
        kappa = self._complex_kappa(self.shear(y))[:, None]
        return kappa.real, kappa.imag

    def wiener(
        self, y: Tensor, power: Tensor | None = None, *, max_iter: int | None = None, tol: float | None = None
    ) -> Tensor:
        """The Wiener filter, the mean of a Gaussian field of power S given y: (A^H A + sigma^2 S^-1)^-1 A^H y.

        In closed form, or by conjugate gradients as S^1/2 (S^1/2 A^H A S^1/2 + sigma^2)^-1 S^1/2 A^H y, where S may
        be zero, preconditioned with the closed form for the mean weight: 19 steps for 25 behind the COSMOS mask, 8 for
        108 behind scattered holes at high signal to noise. Differentiable in y. Warns if the tolerance is not reached.

        :param torch.Tensor y: (B, 2, H, W) whitened.
        :param torch.Tensor power: (rows, columns) of the box in FFT order, S = <|F kappa|^2> / (rows columns), see
            :func:`pnp_lofi.lensing_power.power_grid` for C_ell; default :meth:`fit_power` of y.
        :raises ValueError: if the noise is not known, or the power has another shape, is negative, not finite, or not
            that of a real field, S(k) = S(-k).
        """
        sigma = self._known_noise()
        backprojection = self.A_adjoint(y)
        power = self.fit_power(y) if power is None else check_power(power, self.box)
        power = power.to(y.device, y.dtype)
        if self.closed_form:
            return fourier_filter(backprojection, power / (power + sigma**2))
        half, seen = power.sqrt(), self._mean_weight()

        def normal(u: Tensor) -> Tensor:
            return fourier_filter(self.A_adjoint_A(fourier_filter(u, half)), half)

        def precondition(u: Tensor) -> Tensor:
            return fourier_filter(u, 1 / (seen * power + sigma**2))

        options, rhs = self._options(max_iter, tol), fourier_filter(backprojection, half)
        u, info = damped_solve(normal, rhs, sigma**2, precondition=precondition, **options)
        return self._report(fourier_filter(u, half), info, **options)

    def fit_power(self, y: Tensor) -> Tensor:
        """Power of kappa from the data themselves: a parabola in log-log, see :func:`pnp_lofi.lensing_power.fit_power`.

        The level of the noise is that of the B mode on scales below 4 pixels; sigma is not used.

        :param torch.Tensor y: (B, 2, H, W) whitened; the batch shares one spectrum.
        :returns: (rows, columns) of the box, in FFT order.
        """
        y = self._seen(y)
        self._check_data(y)
        kept = 2.0 * math.prod(self.shape)
        if self.weights is not None:  # w gamma, lest noisy pixels drown the others
            y = y * self._root(y.dtype)
            kept = float(self.weights.square().sum()) * 2 / len(self.weights)
        return fit_power(self._complex_kappa(y), signal=kept / (2 * math.prod(self.box)))

    def _check_data(self, y: Tensor) -> None:
        if y.is_complex():
            raise TypeError(
                "KaiserSquires takes gamma1 and gamma2 as two channels; use torch.stack([y.real, y.imag], 1)"
            )
        if y.shape[-3:] == (*self.shape, 2) and self.shape[-1] != 2:
            raise ValueError(
                f"KaiserSquires expects y of shape (batch, 2, {self.shape[0]}, {self.shape[1]}), got {tuple(y.shape)}; "
                "move the components to the front with y.movedim(-1, -3)"
            )
        super()._check_data(y)

    def _known_noise(self) -> float:
        if self.sigma is None:
            raise ValueError("the noise is not known; pass sigma to KaiserSquires, for instance op.estimate_noise(y)")
        return self.sigma

    # ---- bookkeeping -------------------------------------------------------------------------------------

    def _mean_weight(self) -> float:
        """Over the box and both components."""
        mean = 1.0 if self.weights is None else float(self.weights.mean())
        return mean * math.prod(self.shape) / math.prod(self.box)

    def _complex_kappa(self, gamma: Tensor) -> Tensor:
        """F^-1 D* F (gamma1 + i gamma2) on the box, (B, rows, columns) complex: kappa_E + i kappa_B."""
        rows, columns = self.pad
        field = torch.nn.functional.pad(gamma, (columns, columns, rows, rows)) if any(self.pad) else gamma
        return self._filtered(torch.complex(field[:, 0], field[:, 1]), adjoint=True)

    def _filtered(self, field: Tensor, *, adjoint: bool = False) -> Tensor:
        kernel = self._complex_kernel(REAL_TO_COMPLEX.get(field.dtype, field.dtype))
        return torch.fft.ifft2(torch.fft.fft2(field) * (kernel.conj() if adjoint else kernel))

    def _complex_kernel(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._cache:
            self._cache[dtype] = torch.complex(*self.kernel).to(dtype)
        return self._cache[dtype]

    def _root(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._cache:
            self._cache[dtype] = self.weights.sqrt().to(dtype)
        return self._cache[dtype]

    def _seen(self, y: Tensor) -> Tensor:
        return y if self.weights is None else only(y, self.weights > 0)

    def _forget(self) -> None:
        self._cache: dict[torch.dtype, Tensor] = {}  # of the kernel (complex) and the root of the weights (real)


def _checked_pad(pad: int | Sequence[int]) -> Shape:
    both = (pad, pad) if isinstance(pad, int | float) else tuple(pad)
    if len(both) != 2 or any(not isinstance(n, int) or n < 0 for n in both):
        raise ValueError(f"pad must be an integer >= 0 [pixel], or two for rows and columns, got {pad}")
    return both[0], both[1]


def _kernel(box: Shape) -> Tensor:
    """D(k) as a real pair, (2, rows, columns), float64."""
    k2 = torch.fft.fftfreq(box[0], dtype=torch.float64)[:, None]
    k1 = torch.fft.fftfreq(box[1], dtype=torch.float64)[None, :]
    square = k1**2 + k2**2
    square[0, 0] = 1
    return torch.stack([(k1**2 - k2**2) / square, 2 * k1 * k2 / square])


def _checked_weights(
    shape: Shape, mask: Tensor | None, sigma: float | Tensor | None, weights: Tensor | None
) -> tuple[float | None, Tensor | None]:
    """The noise of the whitened data, and weights (1 or 2, H, W) in float64 that are zero outside of the mask.

    None in the place of weights that are all 1.
    """
    seen = None
    if mask is not None:
        seen = checked_mask(mask)[0]
        if tuple(seen.shape) != (1, *shape):
            raise ValueError(f"mask must have the data's shape {shape}, got {tuple(mask.shape)}; one mask serves both")
    level = None
    sigma = None if sigma is None else torch.as_tensor(sigma, dtype=torch.float64)
    if sigma is not None and sigma.ndim > 0:
        if weights is not None:
            raise ValueError("pass a map of sigma or weights, not both; weights are 1 / sigma^2 up to a factor")
        sigma = _checked_map(sigma, "sigma", shape, seen)
        inside = torch.ones_like(sigma, dtype=torch.bool) if seen is None else seen.expand(sigma.shape)
        if not bool((torch.isfinite(sigma) & (sigma > 0))[inside].all()):
            raise ValueError("sigma must be finite and > 0 on the mask; take the other pixels out of the mask")
        inverse = torch.where(inside, 1 / sigma.square(), 0)
        mean = inverse[inside].mean()
        level = float(mean.rsqrt())
        weights = inverse / mean
        if bool((sigma[inside] == sigma[inside][0]).all()):
            weights = inside.double()
    elif sigma is not None:
        level = float(sigma)
    if weights is None:
        weights = None if seen is None else seen.double()
    else:
        weights = _checked_map(weights, "weights", shape, seen)
        weights = weights if seen is None else torch.where(seen, weights, 0)
        if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
            raise ValueError("weights must be finite and >= 0 on the mask; give pixels not to be used weight zero")
        if not bool((weights > 0).any()):
            raise ValueError("all weights are zero; nothing is left to map")
    return level, None if weights is None or bool((weights == 1).all()) else weights.contiguous()


def _checked_map(values: Tensor, name: str, shape: Shape, seen: Tensor | None) -> Tensor:
    """(1 or 2, H, W) float64."""
    values = torch.as_tensor(values).detach()
    if tuple(values.shape) not in (shape, (1, *shape), (2, *shape)):
        raise ValueError(f"{name} must be {shape} or {(2, *shape)}, got {tuple(values.shape)}")
    if seen is not None and seen.device != values.device:
        raise ValueError(f"mask is on {seen.device}, {name} on {values.device}; move one with .to()")
    return values.to(torch.float64).reshape(-1, *shape)
