"""Power spectra of maps of the convergence: measured, tabulated, fitted, drawn from; and filters in Fourier.

Two units: S, the power of a mode on the grid [units of x^2], <|F x|^2> / (H W) with the plain FFT, so that white
noise of rms s has S = s^2; and C_ell [units of x^2 sr] = S times the pixel's area, at ell = 2 pi f / pixel size.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ARCMIN = math.pi / 180 / 60  # [rad]
FIT_BINS, FIT_STEPS, FIT_TOL = 40, 200, 1e-8
FINE = 0.25  # [cycles/pixel]: from here on the B mode is noise, not what a mask made of the signal
NO_NOISE = 1e-8  # of the power: the least that counts as noise
STEEPEST = 8.0  # of the fitted slopes and curvatures, |d ln S / d ln f|: what no convergence has
RANGE = 60.0  # of the fitted ln S: below exp(-60) of the noise there is no signal


class PowerSpectrum(NamedTuple):
    """A spectrum in rings of ell.

    :param torch.Tensor ell: (bins,) mean over the modes of a ring.
    :param torch.Tensor power: (..., bins) C_ell [units of x^2 sr].
    :param torch.Tensor modes: (bins,) Fourier modes in a ring; half of them are independent in a real map.
    :param torch.Tensor edges: (bins + 1,) of the rings, in ell.
    """

    ell: Tensor
    power: Tensor
    modes: Tensor
    edges: Tensor


def frequency(shape: Sequence[int]) -> Tensor:
    """|f| of each mode [cycles/pixel], (H, W) in FFT order, float64."""
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64) for n in shape)
    return torch.hypot(rows[:, None], columns[None, :])


def fourier_filter(x: Tensor, response: Tensor) -> Tensor:
    """F^-1 response F x, for real maps and a real response with response(k) = response(-k).

    :param torch.Tensor x: (..., H, W); Tensor response: (H, W) in FFT order.
    """
    half = response[..., : response.shape[-1] // 2 + 1]
    return torch.fft.irfft2(torch.fft.rfft2(x) * half, s=tuple(x.shape[-2:]))


def smooth(x: Tensor, sigma: float, mask: Tensor | None = None) -> Tensor:
    """Gaussian smoothing with periodic borders.

    :param torch.Tensor x: (..., H, W).
    :param float sigma: standard deviation of the Gaussian [pixel], >= 0.
    :param torch.Tensor mask: (H, W); where given, the weighted mean of what is in the mask, and zero outside.
    """
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma must be finite and >= 0 pixels, got {sigma}")
    response = torch.exp(-2 * (math.pi * sigma * frequency(x.shape[-2:])) ** 2).to(x.device, x.dtype)
    if mask is None:
        return fourier_filter(x, response)
    mask = mask.bool()
    share = fourier_filter(mask.to(x.dtype), response)
    found = fourier_filter(torch.where(mask, x, 0), response)
    return torch.where(mask, found / torch.where(mask, share, 1), 0)


def power_spectrum(
    x: Tensor, pixel: float, bins: int | Tensor = 20, *, other: Tensor | None = None, mask: Tensor | None = None
) -> PowerSpectrum:
    """C_ell of periodic maps, averaged over rings of ell; the mode ell = 0 belongs to none.

    :param torch.Tensor x: (..., H, W).
    :param float pixel: pixel size [arcmin].
    :param bins: a number of rings, evenly spaced in log ell up to the Nyquist frequency of an axis, or their edges.
    :param torch.Tensor other: for the cross spectrum; its shape is that of x.
    :param torch.Tensor mask: (H, W); x is taken as zero outside and the power divided by the part that is kept, which
        restores the level but not what the mask's edges mix.
    :raises ValueError: if a ring has no mode.
    """
    _check_pixel(pixel)
    ell = frequency(x.shape[-2:]).to(x.device) * (2 * math.pi / (pixel * ARCMIN))
    edges = _edges(ell, math.pi / (pixel * ARCMIN), bins).to(x.device)
    ring = torch.bucketize(ell, edges, right=True) - 1
    count = len(edges) - 1
    inside = (ring >= 0) & (ring < count) & (ell > 0)
    ring = ring[inside]
    modes = torch.bincount(ring, minlength=count)
    if not bool((modes > 0).all()):
        empty = int((modes == 0).nonzero()[0])
        raise ValueError(
            f"the ring of ell from {float(edges[empty]):.4g} to {float(edges[empty + 1]):.4g} has no Fourier mode of "
            f"a {tuple(x.shape[-2:])} map; take fewer or wider bins"
        )
    kept = 1.0 if mask is None else float(mask.double().mean())
    a = torch.fft.fft2((x if mask is None else torch.where(mask.bool(), x, 0)).double())
    b = a if other is None else torch.fft.fft2((other if mask is None else torch.where(mask.bool(), other, 0)).double())
    area = (pixel * ARCMIN) ** 2
    values = (a * b.conj()).real[..., inside] * (area / (ell.numel() * kept))
    power = values.new_zeros((*values.shape[:-1], count)).index_add_(-1, ring, values) / modes
    mean_ell = ell.new_zeros(count).index_add_(0, ring, ell[inside]) / modes
    return PowerSpectrum(mean_ell, power, modes, edges)


def _edges(ell: Tensor, nyquist: float, bins: int | Tensor) -> Tensor:
    if isinstance(bins, Tensor):
        edges = bins.double()
        if edges.ndim != 1 or len(edges) < 2 or not bool((edges.diff() > 0).all()):
            raise ValueError("bins must be a number, or two or more edges in ell that grow")
        return edges
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    lowest = float(ell[ell > 0].min())
    return torch.logspace(math.log10(lowest * (1 - 1e-9)), math.log10(nyquist * (1 + 1e-9)), bins + 1, dtype=ell.dtype)


def power_grid(shape: Sequence[int], pixel: float, ell: Tensor, power: Tensor) -> Tensor:
    """S of each mode from a table of C_ell, interpolated in log-log; S = 0 for the mean.

    :param tuple shape: (H, W), for an operator its ``box``.
    :param float pixel: pixel size [arcmin].
    :param torch.Tensor ell: (n,) > 0, growing; Tensor power: (n,) C_ell > 0 [units of x^2 sr].
    :returns: (H, W) float64 in FFT order.
    :raises ValueError: if the table does not reach over the modes of the grid.
    """
    _check_pixel(pixel)
    ell, power = torch.as_tensor(ell).double(), torch.as_tensor(power).double()
    fine = ell.ndim == 1 and ell.shape == power.shape and len(ell) > 1
    if not fine or not bool((ell.diff() > 0).all() and (ell[0] > 0) and (power > 0).all() and power.isfinite().all()):
        raise ValueError(
            f"a power spectrum is ell, growing and > 0, and C_ell > 0, both (n,), got {tuple(ell.shape)} "
            f"and {tuple(power.shape)}"
        )
    grid = frequency(shape) * (2 * math.pi / (pixel * ARCMIN))
    low, high = float(grid[grid > 0].min()), float(grid.max())
    if low < float(ell[0]) * (1 - 1e-9) or high > float(ell[-1]) * (1 + 1e-9):
        raise ValueError(
            f"the table spans ell {float(ell[0]):.4g} to {float(ell[-1]):.4g}, the modes of {tuple(shape)} pixels of "
            f"{pixel} arcmin {low:.4g} to {high:.4g}; extend the table"
        )
    where = torch.where(grid > 0, grid, low).log()
    x, y = ell.log(), power.log()
    k = torch.searchsorted(x, where.contiguous()).clamp(1, len(x) - 1)
    part = (where - x[k - 1]) / (x[k] - x[k - 1])
    found = torch.exp(y[k - 1] + part * (y[k] - y[k - 1])) / (pixel * ARCMIN) ** 2
    return torch.where(grid > 0, found, 0)


def draw_field(power: Tensor, count: int = 1, *, seed: int = 0) -> Tensor:
    """Gaussian fields of a power spectrum.

    :param torch.Tensor power: (H, W) S in FFT order, see :func:`power_grid`.
    :returns: (count, 1, H, W) float64.
    """
    power = check_power(power, tuple(power.shape))
    white = torch.randn((count, 1, *power.shape), dtype=power.dtype, generator=torch.Generator().manual_seed(seed))
    return fourier_filter(white.to(power.device), power.sqrt())


def fit_power(kappa: Tensor, *, signal: float = 1.0) -> Tensor:
    """S of the E mode from noisy maps, ln S = a + b t + c t^2 with t = ln f and c <= 0, by maximum likelihood.

    The power of a mode is taken as exponentially distributed with mean ``signal S(f) + noise`` (Whittle's likelihood),
    where the white level ``noise`` is that of the B mode above 1/4 cycle a pixel. Solved by Fisher's scoring on rings
    of f.

    :param torch.Tensor kappa: (..., H, W) complex, E + i B; all maps share one spectrum.
    :param float signal: part of S that the maps show, such as the part of the sky that was seen.
    :returns: (H, W) float64 in FFT order; S = 0 for the mean.
    Source: Whittle 1953.
    """
    with torch.no_grad():
        shape = tuple(kappa.shape[-2:])
        f = frequency(shape).to(kappa.device)
        e, b = (
            torch.fft.fft2(part.double()).abs().square().reshape(-1, *shape).mean(0) / f.numel()
            for part in (kappa.real, kappa.imag)
        )
        fine = f >= min(FINE, float(f.max()))
        noise = max(float(b[fine].mean()), NO_NOISE * float(e.mean()))
        if noise == 0:
            raise ValueError("the maps are zero everywhere; there is no power to fit")
        edges = torch.logspace(math.log10(float(f[f > 0].min())), math.log10(float(f.max())), FIT_BINS + 1)[1:-1]
        ring = torch.bucketize(f[f > 0], edges.to(f))
        modes = torch.bincount(ring, minlength=FIT_BINS).double()
        full = modes > 0

        def average(values: Tensor) -> Tensor:
            return (modes.new_zeros(FIT_BINS).index_add_(0, ring, values) / modes)[full]

        t, level = average(f[f > 0].log()), average(e[f > 0])
        basis = torch.stack([torch.ones_like(t), t, t * t], -1)
        theta = _whittle(basis, level / noise, modes[full], signal / noise)
        t = torch.where(f > 0, f, 1).log()
        fitted = (theta[0] + theta[1] * t + theta[2] * t * t).clamp(-RANGE, RANGE).exp()
        return torch.where(f > 0, fitted, 0)


def _whittle(basis: Tensor, level: Tensor, modes: Tensor, signal: float) -> Tensor:
    """theta of mean = signal exp(basis theta) + 1, by damped scoring on the negative log likelihood."""

    def loss(theta: Tensor) -> float:
        mean = signal * (basis @ theta).clamp(-RANGE, RANGE).exp() + 1
        return float((modes * (mean.log() + level / mean)).sum())

    start = float((level - 1).clamp_min(0.1 * level.median()).max()) / signal
    theta = torch.tensor([math.log(start), 0.0, 0.0], dtype=basis.dtype, device=basis.device)
    theta[0], theta[1] = theta[0] - 2 * float(-basis[:, 1].min()), -2.0  # falling as f^-2 from the largest scale
    damping, best = 1.0, loss(theta)
    for _ in range(FIT_STEPS):
        part = signal * (basis @ theta).clamp(-RANGE, RANGE).exp()
        slope = basis * (part / (part + 1))[:, None]
        score = ((modes * (level - part - 1) / (part + 1))[:, None] * slope).sum(0)
        fisher = (slope * modes[:, None]).mT @ slope
        scale = fisher.diagonal() + 1e-12 * fisher.diagonal().max()
        trial = theta + torch.linalg.solve(fisher + damping * torch.diag(scale), score)
        trial[1:] = trial[1:].clamp(-STEEPEST, STEEPEST)
        trial[2] = trial[2].clamp_max(0)
        now = loss(trial)
        if now <= best:
            done = best - now < FIT_TOL * abs(best)
            theta, best, damping = trial, now, damping / 3
            if done:
                break
        else:
            damping = damping * 4
            if damping > 1e12:
                break
    return theta


def check_power(power: Tensor, shape: Sequence[int]) -> Tensor:
    """:raises ValueError: unless power is (H, W), finite, >= 0 and even."""
    power = torch.as_tensor(power)
    if tuple(power.shape) != tuple(shape) or power.ndim != 2:
        raise ValueError(f"power must have the shape of the image, {tuple(shape)}, got {tuple(power.shape)}")
    if not bool((torch.isfinite(power) & (power >= 0)).all()):
        raise ValueError("power must be finite and >= 0")
    turned = power.flip(0, 1).roll((1, 1), (0, 1))
    if not torch.allclose(power, turned, rtol=1e-4, atol=1e-6 * float(power.max())):
        raise ValueError("power must be that of a real map, S(k) = S(-k), in FFT order; use torch.fft.ifftshift")
    return power


def _check_pixel(pixel: float) -> None:
    if not 0 < pixel < math.inf:
        raise ValueError(f"pixel must be the pixel's size in arcmin, finite and > 0, got {pixel}")
