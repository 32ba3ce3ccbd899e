"""Convergence maps of weak lensing, made of random numbers: a lognormal field and the peaks of halos."""

import math

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from pnp_lofi.fields import Image, log_uniform, stack
from pnp_lofi.lensing_power import ARCMIN, frequency, power_grid

# ln C_ell of ln(ell / 1000), ascending powers
SPECTRUM = (-21.344, -1.2645, -0.015688, -0.039404, -0.0091116, 0.0026404, 0.0003655, -5.2496e-05, -5.8231e-06)
SHIFT = 0.045  # the lognormal field is never below minus this
SPECIES = 6  # kinds of halos of a map, each with a size and a shape
SIZES = (0.35, 2.0)  # scale radii of halos [arcmin]
HEIGHTS = (0.03, 1.5)  # central convergence of halos of the least size
SLOPE = 2.0  # the number of halos falls as height^-SLOPE
CUT = 5.0  # halos end at so many scale radii
HALOS = 0.8  # of the power at small scales, at most, is the halos'
PIVOT = 5000.0  # ell at which it is
FINE = 400  # points of the table of a spectrum


def ktng_spectrum(ell: Tensor) -> Tensor:
    """C_ell [sr] of the convergence for sources like those of COSMOS, about as in kappaTNG.

    Source: a polynomial through the theory spectrum that comes with jax-lensing's kappaTNG map, 10 <= ell <= 1e5; it
    differs by at most 2 % from it.
    """
    x = torch.log(ell.double() / 1000)
    return torch.exp(sum(c * x**k for k, c in enumerate(SPECTRUM)))  # type: ignore[arg-type]


def convergence(
    count: int,
    size: int,
    pixel: float,
    *,
    seed: int,
    ell: Tensor | None = None,
    power: Tensor | None = None,
    halos: float = HALOS,
) -> Tensor:
    """Convergence maps of a given power spectrum with the skewness and the peaks of simulated ones, periodic.

    kappa = lognormal + halos - mean: a shifted lognormal field, with projected NFW halos at random places. The power
    of the halos is taken from that of the field, so that their sum has the power that is asked for.

    :param int count: maps.
    :param int size: side [pixel], at least 16.
    :param float pixel: side of a pixel [arcmin].
    :param int seed: map k is made from (seed, k) alone.
    :param torch.Tensor ell, power: (n,) table of C_ell [sr] over the modes of the map; default :func:`ktng_spectrum`.
    :param float halos: part of the power at ell about 5000 that is in halos, in [0, 0.9]; 0: lognormal alone.
    :returns: (count, 1, size, size) float32, each of mean zero.
    :raises ValueError: for count < 1, size < 16, or a table that is too short.
    Source: Hilbert, Hartlap and Schneider 2011 (lognormal); Bartelmann 1996 (NFW). Differs: halos are round or
    elliptical, cut off smoothly at 5 scale radii and not clustered; their number and sharpness fit the power.
    """
    if (ell is None) != (power is None):
        raise ValueError("pass both ell and power, or neither")
    if not 0 <= halos <= 0.9:
        raise ValueError(f"halos is the part of the power that is theirs, 0 to 0.9, got {halos}")
    if ell is None or power is None:
        if not 0 < pixel < math.inf:
            raise ValueError(f"pixel must be the pixel's size in arcmin, finite and > 0, got {pixel}")
        low, high = 2 * math.pi / (pixel * ARCMIN * max(size, 1)), 1.5 * math.pi / (pixel * ARCMIN)
        ell = torch.logspace(math.log10(0.99 * low), math.log10(high), FINE, dtype=torch.float64)
        power = ktng_spectrum(ell)
    wanted = power_grid((size, size), pixel, ell, power).numpy() if size > 1 else np.zeros((1, 1))
    modes = frequency((size, size)).numpy() * (2 * math.pi / (pixel * ARCMIN)) if size > 1 else wanted

    def draw(rng: Generator, size: int) -> Image:
        return _draw(rng, wanted, modes, pixel, halos)

    return stack(draw, count, size, seed, 7)


def _draw(rng: Generator, wanted: np.ndarray, ell: np.ndarray, pixel: float, halos: float) -> Image:
    size = len(wanted)
    kappa, rest = np.zeros((size, size)), wanted
    if halos > 0:
        spectra = np.fft.fft2(np.stack([_profile(rng, size, pixel) for _ in range(SPECIES)]))
        each = (np.abs(spectra) ** 2).mean(0) * _mean_power(2.0) / size**2  # power that a halo adds
        level = np.argsort(np.abs(np.log((ell + 1e-9) / PIVOT)).ravel())[: 2 * SPECIES]  # modes about there
        number = halos * float(wanted.ravel()[level].mean() / each.ravel()[level].mean())
        theirs = np.minimum(number * each, halos * wanted)  # where they would have more, they are damped
        rest, half = wanted - theirs, slice(0, size // 2 + 1)
        damping = np.sqrt(theirs / (number * each))[:, half]
        total = sum(np.fft.rfft2(_seeds(rng, size, number / SPECIES)) * h[:, half] for h in spectra)
        kappa = np.fft.irfft2(total * damping, s=(size, size))
    kappa += _lognormal(rng, rest)
    return (kappa - kappa.mean()).astype(np.float32)


def _lognormal(rng: Generator, power: np.ndarray) -> np.ndarray:
    """A field SHIFT (exp(g - s^2/2) - 1) with the power S given: g has the correlation ln(1 + xi / SHIFT^2)."""
    xi = np.fft.ifft2(power).real
    s = np.maximum(np.fft.fft2(np.log1p(np.maximum(xi / SHIFT**2, -0.99))).real, 0)
    s[0, 0] = 0
    white = np.fft.rfft2(rng.standard_normal(power.shape))
    g = np.fft.irfft2(white * np.sqrt(s)[:, : power.shape[1] // 2 + 1], s=power.shape)
    return SHIFT * np.expm1(g - s.mean() / 2)


def _profile(rng: Generator, size: int, pixel: float) -> np.ndarray:
    """The projected NFW profile of a halo at pixel (0, 0), periodic; 1 at a tenth of its scale radius.

    Larger halos are flatter: the height falls as the square root of the size.
    """
    radius, axes = log_uniform(rng, *SIZES), rng.uniform(0.6, 1)
    angle = rng.uniform(0, math.pi)
    d = np.fft.fftfreq(size, 1 / size) * pixel
    u = math.cos(angle) * d[None] + math.sin(angle) * d[:, None]
    v = math.cos(angle) * d[:, None] - math.sin(angle) * d[None]
    core = max(0.1, 0.5 * pixel / radius)
    x = np.sqrt((u**2 * axes + v**2 / axes) / radius**2 + core**2)
    cut = np.exp(-((x / CUT) ** 4))
    return (SIZES[0] / radius) ** 0.5 * _nfw(x) / _nfw(np.array([0.1]))[0] * cut


def _nfw(x: np.ndarray) -> np.ndarray:
    """Projected NFW density at x scale radii, up to a factor (Bartelmann 1996, equation 7)."""
    x = np.where(np.abs(x - 1) < 1e-4, 1 + 1e-4, x)
    inside = np.arctanh(np.sqrt(np.maximum((1 - x) / (1 + x), 0))) * 2 / np.sqrt(np.abs(1 - x**2))
    outside = np.arctan(np.sqrt(np.maximum((x - 1) / (1 + x), 0))) * 2 / np.sqrt(np.abs(1 - x**2))
    return (1 - np.where(x < 1, inside, outside)) / (x**2 - 1)


def _seeds(rng: Generator, size: int, mean: float) -> np.ndarray:
    """Heights of halos at random pixels, Poisson in number."""
    count = int(rng.poisson(mean))
    a, b = (h ** (1 - SLOPE) for h in HEIGHTS)
    heights = (a + rng.random(count) * (b - a)) ** (1 / (1 - SLOPE))
    places = rng.integers(0, size * size, count)
    return np.bincount(places, heights, minlength=size * size).reshape(size, size)


def _mean_power(k: float) -> float:
    """Mean of height^k over the halos."""
    low, high = HEIGHTS
    norm = (low ** (1 - SLOPE) - high ** (1 - SLOPE)) / (SLOPE - 1)
    return (high ** (k + 1 - SLOPE) - low ** (k + 1 - SLOPE)) / (k + 1 - SLOPE) / norm
