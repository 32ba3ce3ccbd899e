"""What networks for mass maps see and are measured by: simulated surveys, maps of several scales, figures."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn.functional import pad

from pnp_lofi.convergence import ktng_spectrum
from pnp_lofi.fields import gaussian_field, log_uniform
from pnp_lofi.lensing_power import ARCMIN, power_grid, smooth
from pnp_lofi.operators import KaiserSquires

UNIT = 0.03  # convergence that a network counts as 1, about the rms of the sky
SCALES = (1.5, 3.0, 6.0)  # Gaussians [pixel]
GAUSSIAN = 3.0  # of the map that networks are compared with [pixel]
SHARP = 4.0  # of the second Wiener filter, which believes in so much more power
BLURRED = 1.5  # Gaussian through which the noise level is seen [pixel]
NOISE_UNIT = 0.1  # noise whose logarithm a network sees as 0
EMPTY = 0.05  # weight that is added lest shear far from any galaxy blows up; 1 is the mean on the mask
CLASSICAL = ("KS", "KS + Gaussian", "Wiener")
CHANNELS = 2 + len(SCALES) + 2
FILLED = (0.6, 1.1)  # half the sides of a field over half the side of the map
HOLES = (5e-4, 4e-3)  # of a field, per pixel
HOLE = (0.5, 5.0)  # their radii [pixel]
GALAXIES = (2.0, 30.0)  # mean number in a pixel


class Survey(NamedTuple):
    """Where shear is known, and how well.

    :param torch.Tensor mask: (H, W) bool.
    :param torch.Tensor sigma: (2, H, W) noise of a pixel and component, > 0 on the mask.
    """

    mask: Tensor
    sigma: Tensor

    def levels(self) -> tuple[float, float]:
        """Least and most noise on the mask."""
        seen = self.sigma[:, self.mask]
        return float(seen.min()), float(seen.max())

    def operator(self) -> KaiserSquires:
        return KaiserSquires(tuple(self.mask.shape), self.mask, self.sigma)


def random_survey(shape: tuple[int, int], rng: Generator, low: float, high: float) -> Survey:
    """A survey made of random numbers: a field, turned and with steps in its sides, holes of stars, galaxy counts.

    A third of the surveys have no border, a third the same noise in every pixel. In the others noise goes as n^-1/2
    with Poisson counts n about a mean that varies slowly; where there is no galaxy there is a hole.

    :param tuple shape: (H, W).
    :param float low, high: the noise at the mean count is log-uniform between them.
    """
    height, width = shape
    rows, columns = np.mgrid[:height, :width]
    mask = np.ones(shape, bool)
    if rng.random() > 1 / 3:
        angle = rng.uniform(-0.4, 0.4)
        u, v = (2 * (k - (n - 1) / 2) / max(shape) for k, n in ((rows, height), (columns, width)))
        u, v = math.cos(angle) * u - math.sin(angle) * v, math.sin(angle) * u + math.cos(angle) * v
        for a, b in ((u, v), (-u, v), (v, u), (-v, u)):
            step = rng.uniform(0, 0.1) * np.sign(np.sin(rng.uniform(4, 12) * b + rng.uniform(0, 6)))
            mask &= a < rng.uniform(*FILLED) + step
    count = rng.poisson(log_uniform(rng, *HOLES) * height * width)
    for row, column, radius in zip(rng.uniform(0, height, count), rng.uniform(0, width, count),
                                   HOLE[0] * (HOLE[1] / HOLE[0]) ** rng.random(count), strict=True):  # fmt: skip
        top, left, reach = int(row), int(column), math.ceil(radius)
        part = np.s_[max(0, top - reach) : top + reach + 1, max(0, left - reach) : left + reach + 1]
        mask[part] &= np.hypot(rows[part] - row, columns[part] - column) > radius
    level = np.full(shape, log_uniform(rng, low, high))
    if rng.random() > 1 / 3:
        depth = gaussian_field(rng, max(shape), 3.0)[:height, :width]
        mean = log_uniform(rng, *GALAXIES)
        galaxies = rng.poisson(mean * np.exp(0.2 * depth))
        mask &= galaxies > 0
        level *= np.sqrt(mean / np.maximum(galaxies, 1))
    mask[height // 2, width // 2] = True  # never empty
    return Survey(torch.from_numpy(mask), torch.from_numpy(level).float().expand(2, *shape).clone())


def sky_power(shape: tuple[int, int], pixel: float) -> Tensor:
    """Power of the convergence that is expected, :func:`pnp_lofi.convergence.ktng_spectrum` on a grid.

    :param tuple shape: (H, W); float pixel: its size [arcmin].
    """
    low, high = 2 * math.pi / (pixel * ARCMIN * max(shape)), 1.5 * math.pi / (pixel * ARCMIN)
    ell = torch.logspace(math.log10(0.99 * low), math.log10(high), 400, dtype=torch.float64)
    return power_grid(shape, pixel, ell, ktng_spectrum(ell))


def seen_maps(op: KaiserSquires, y: Tensor, power: Tensor) -> Tensor:
    """What a network gets: Wiener filters with the expected and with more power, Kaiser-Squires of shear that is
    smoothed with its weights, the mask, the logarithm of the noise.

    :param KaiserSquires op: with mask and sigma, without pad.
    :param torch.Tensor y: (1, 2, H, W) whitened; Tensor power: (H, W), see :func:`sky_power`.
    :returns: (1, 7, H, W) float32; convergence in units of ``UNIT``, the first channel is the Wiener map.
    """
    assert op.sigma is not None
    shear = op.shear(y)
    weights = torch.ones(op.shape) if op.weights is None else op.weights.mean(0).to(y.dtype)
    plain = KaiserSquires(op.shape)
    maps = [op.wiener(y, power), op.wiener(y, SHARP * power)]
    for scale in SCALES:
        maps.append(plain.ks(smooth(shear * weights, scale) / (smooth(weights, scale).clamp_min(0) + EMPTY)))
    depth = smooth(weights, BLURRED).clamp_min(0) + EMPTY
    noise = (op.sigma / depth.sqrt() / NOISE_UNIT).log()
    beside = torch.stack([(weights > 0).to(y.dtype), noise])[None]
    return torch.cat([torch.cat(maps, 1) / UNIT, beside], 1).float()


def classical_maps(op: KaiserSquires, y: Tensor, power: Tensor) -> dict[str, Tensor]:
    """What networks are compared with, (1, 1, H, W) each."""
    ks = op.ks(y)
    return dict(zip(CLASSICAL, (ks, smooth(ks, GAUSSIAN), op.wiener(y, power)), strict=True))


def rotated(shear: Tensor) -> Tensor:
    """(gamma2, -gamma1): the shear whose E mode is the B mode of this one."""
    return torch.stack([shear[:, 1], -shear[:, 0]], 1)


def e_and_b(
    answer: Callable[[Tensor], Tensor], gamma: Tensor, survey: Survey, pixel: float, margin: int
) -> dict[str, Tensor]:
    """E and B mode of a network and of the Wiener filter, "E", "E Wiener", "B", "B Wiener", (1, 1, H, W).

    :param Callable answer: convergence from :func:`seen_maps`.
    :param torch.Tensor gamma: (1, 2, H, W) shear; float pixel: [arcmin].
    :param int margin: pixels of unknown shear on each side, because a Fourier transform repeats the sky.
    :raises ValueError: for a margin below 0.
    """
    if margin < 0:
        raise ValueError(f"the margin is 0 pixels or more, got {margin}")
    gamma, mask, sigma = (pad(x, (margin,) * 4) for x in (gamma, *survey))
    (height, width), found = survey.mask.shape, {}
    for mode, turned, noise in (("E", gamma, sigma), ("B", rotated(gamma), sigma.flip(0))):
        op = Survey(mask, noise).operator()
        seen = seen_maps(op, op.whiten(turned), sky_power(op.shape, pixel))
        for name, x in ((mode, answer(seen)), (f"{mode} Wiener", seen[:, :1] * UNIT)):
            found[name] = x[..., margin : margin + height, margin : margin + width]
    return found


def map_error(x: Tensor, truth: Tensor, mask: Tensor) -> dict[str, float]:
    """rmse and Pearson's r of two maps (..., H, W) inside a mask (H, W), their means removed."""
    a, b = (image.reshape(-1, *mask.shape)[0][mask].double() for image in (x, truth))
    a, b = a - a.mean(), b - b.mean()
    return {"rmse": float((a - b).square().mean().sqrt()), "r": float((a * b).sum() / (a.norm() * b.norm()))}
