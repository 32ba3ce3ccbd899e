"""Radio skies: training images of galaxies, lobes, shells, filaments and points, made of random numbers."""

import math

import numpy as np
from numpy.random import Generator
from torch import Tensor

from pnp_lofi.fields import TINY, Image, blur, gaussian_field, log_uniform, stack


def radio_sky(count: int, size: int, *, seed: int) -> Tensor:
    """Random radio and H-alpha skies: galaxies, radio lobes, shells, filaments, diffuse emission, points.

    :param int count: images.
    :param int size: side [pixel], at least 16.
    :param int seed: image k is made from (seed, k) alone.
    :returns: (count, 1, size, size) float32, nonnegative, with peak 1; several decades of brightness.
    :raises ValueError: for count < 1 or size < 16.
    Source: the contrast x -> (a^x - 1)/(a - 1) is that of Terris et al. 2022 (MNRAS 518, 604), AIRI.
    """
    return stack(_radio_sky, count, size, seed, 2)


def _radio_sky(rng: Generator, size: int) -> Image:
    scenes = (_sparse, _disk_galaxy, _double, _remnant, _network, _strokes, _diffuse)
    scene = scenes[int(rng.choice(len(scenes), p=(0.13, 0.32, 0.13, 0.12, 0.09, 0.07, 0.14)))]
    sky = scene(rng, size)
    sky /= sky.max() + TINY
    if rng.random() < 0.2:
        other = scenes[int(rng.integers(1, len(scenes)))](rng, size)
        sky += log_uniform(rng, 0.01, 1) / (other.max() + TINY) * other
    if rng.random() < 0.5:
        points = _points(rng, size, int(log_uniform(rng, 1, 60)))
        sky += log_uniform(rng, 0.01, 1.5) / (points.max() + TINY) * points
    if rng.random() < 0.8:
        sky = blur(sky, rng.uniform(0.4, 1.1) if rng.random() < 0.6 else rng.uniform(1.1, 2.2))
    sky = (sky / sky.max()).clip(0, 1)
    contrast = rng.random()
    if contrast < 0.2:
        a = np.float32(log_uniform(rng, 10, 1e4))
        sky = np.expm1(sky * np.log(a)) / (a - 1)
    elif contrast < 0.6:
        sky = sky ** np.float32(log_uniform(rng, 0.4, 1.6))
    if rng.random() < 0.5:  # an exactly empty background
        sky = (sky - np.float32(log_uniform(rng, 1e-5, 1e-2))).clip(0)
    return sky / sky.max()


def _axes(rng: Generator, size: int, reach: tuple[float, float], tilt: tuple[float, float]) -> tuple[Image, Image]:
    """Turned and inclined axes about a random centre, in units of a radius of ``reach`` times the side."""
    radius = size * rng.uniform(*reach)
    away = max(0.08, 0.46 - 1.1 * radius / size)  # large sources keep to the middle
    centre = size * rng.uniform(0.5 - away, 0.5 + away, 2)
    angle = rng.uniform(0, 2 * math.pi)
    y = (np.arange(size, dtype=np.float32)[:, None] - np.float32(centre[0])) / np.float32(radius)
    x = (np.arange(size, dtype=np.float32)[None] - np.float32(centre[1])) / np.float32(radius)
    v = math.cos(angle) * y - math.sin(angle) * x
    return math.cos(angle) * x + math.sin(angle) * y, v / np.float32(rng.uniform(*tilt))


def _lognormal(rng: Generator, size: int, beta: tuple[float, float], depth: tuple[float, float]) -> Image:
    return np.exp(rng.uniform(*depth) * gaussian_field(rng, size, rng.uniform(*beta)))


def _points(rng: Generator, size: int, count: int, weight: Image | None = None) -> Image:
    """Points between the pixels (bilinear), flux log-uniform over 3.5 decades; dense where ``weight`` is."""
    if weight is None:
        at = rng.uniform(0, size - 1, (count, 2))
    else:
        mass = np.cumsum(weight.ravel(), dtype=np.float64)
        index = np.searchsorted(mass, rng.random(count) * mass[-1]).clip(0, size * size - 1)
        at = np.stack(np.divmod(index, size), 1) + rng.uniform(-0.5, 0.5, (count, 2))
    flux = 10 ** rng.uniform(-rng.uniform(1, 3.5), 0, count)
    if rng.random() < 0.3:
        at = np.rint(at)
    points = _splat(at, flux, size)
    return points if rng.random() < 0.3 else blur(points, rng.uniform(0.4, 1.5))


def _splat(at: np.ndarray, flux: np.ndarray, size: int) -> Image:
    """Add ``flux`` (N,) at ``at`` (N, 2) [pixel, row and column], shared among the four pixels around."""
    corner = np.floor(at).astype(np.int64)
    part = at - corner
    sky = np.zeros(size * size)
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = corner[:, 0] + dy, corner[:, 1] + dx
            share = np.abs(1 - dy - part[:, 0]) * np.abs(1 - dx - part[:, 1]) * flux
            inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
            sky += np.bincount((row * size + column)[inside], share[inside], size * size)
    return sky.reshape(size, size).astype(np.float32)


def _sersic(rng: Generator, size: int, reach: tuple[float, float]) -> Image:
    """I(r) = exp(-b (r^(1/n) - 1)), with b = 2 n - 1/3."""
    u, v = _axes(rng, size, reach, (0.25, 1))
    n = rng.uniform(0.5, 4)
    r = np.hypot(u, v) + 0.02
    return np.exp(-(2 * n - 1 / 3) * (r ** np.float32(1 / n) - 1)).clip(0, 60)


def _sparse(rng: Generator, size: int) -> Image:
    """Points, small galaxies and small doubles on an empty sky."""
    sky = _points(rng, size, int(log_uniform(rng, 8, 300)))
    sky /= sky.max() + TINY
    for _ in range(rng.integers(0, 7)):
        source = _sersic(rng, size, (0.008, 0.06)) if rng.random() < 0.6 else _double(rng, size, (0.02, 0.12))
        sky += log_uniform(rng, 0.01, 1) / (source.max() + TINY) * source
    return sky


def _disk_galaxy(rng: Generator, size: int) -> Image:
    """An inclined disk with arms or rings, clumps, knots along the arms, dark lanes and a bulge."""
    u, v = _axes(rng, size, (0.15, 0.55), (0.22, 1))
    warp = 0.12 * gaussian_field(rng, size, 3.0)
    r = np.hypot(u, v) + TINY
    arms = int(rng.integers(0, 5))  # none: rings
    wind = rng.uniform(2.5, 7)
    phase = arms * np.arctan2(v, u) + wind * (np.log(r + 0.15) if arms else 2.2 * r) + 6 * warp
    arm = np.exp(rng.uniform(1, 4) * (np.cos(phase) - 1))
    clumps = _lognormal(rng, size, (1.8, 3), (0.3, 1.0))
    disk = np.exp(-rng.uniform(0.5, 3.5) * r) * (1 - np.exp(-((r / rng.uniform(0.05, 0.5)) ** 2)))
    disk *= 1 / (1 + np.exp(np.minimum(12 * (r * (1 + warp) - 1.2), 50)))
    sky = disk * (rng.uniform(0.02, 0.4) + arm) * clumps
    lanes = np.exp(-((gaussian_field(rng, size, 2.6) / rng.uniform(0.1, 0.4)) ** 2))
    sky *= 1 - rng.uniform(0, 0.9) * lanes
    sky /= np.quantile(sky, 0.999)
    if rng.random() < 0.8:
        knots = _points(rng, size, int(log_uniform(rng, 50, 2500)), sky**1.2)
        sky += log_uniform(rng, 0.1, 2) / (knots.max() + TINY) * knots
    if rng.random() < 0.6:
        q = np.hypot(u, v * rng.uniform(0.4, 1)) ** np.float32(rng.uniform(0.6, 1))
        sky += log_uniform(rng, 0.1, 2) * np.exp(-rng.uniform(8, 25) * q)
    return sky


def _double(rng: Generator, size: int, reach: tuple[float, float] = (0.2, 0.45)) -> Image:
    """Core, jets with knots, and two filamentary lobes ending in hot spots; along u."""
    u, v = _axes(rng, size, reach, (1, 1))
    u = u + rng.uniform(-0.35, 0.35) * v**2 + 0.03 * gaussian_field(rng, size, 3.5)
    v = v + rng.uniform(-0.25, 0.25) * u**2 * (u if rng.random() < 0.5 else 1)
    texture = _lognormal(rng, size, (2.4, 3.6), (0.3, 0.9))
    sky = log_uniform(rng, 0.02, 2) * np.exp(-(u**2 + v**2) / rng.uniform(0.02, 0.05) ** 2)
    for side in (1, -1):
        end = side * rng.uniform(0.7, 1)
        length, width = rng.uniform(0.25, 0.55), rng.uniform(0.12, 0.35)
        q = ((u - end + side * length) / length) ** 2 + (v / width) ** 2
        lobe = np.sqrt((1 - q).clip(0)) if rng.random() < 0.6 else np.exp(-1.5 * q)
        sky += rng.uniform(0.2, 1) * lobe * texture
        spot = (u - 0.96 * end) ** 2 + (v - rng.uniform(-0.3, 0.3) * width) ** 2
        sky += log_uniform(rng, 0.2, 4) * np.exp(-spot / rng.uniform(0.02, 0.07) ** 2)
        along = (side * u > 0) & (side * u < abs(end))
        beam = np.exp(-((v / (rng.uniform(0.008, 0.02) + 0.03 * np.abs(u))) ** 2)) * along
        sky += log_uniform(rng, 0.02, 1) * beam * (1 + 0.8 * np.sin(rng.uniform(15, 50) * u)) * texture
    return sky


def _remnant(rng: Generator, size: int) -> Image:
    """A hollow sphere in projection, with a ragged edge, clumps, filaments and a bright side."""
    u, v = _axes(rng, size, (0.12, 0.45), (0.75, 1))
    r = np.hypot(u, v) * (1 + rng.uniform(0.01, 0.08) * gaussian_field(rng, size, 3.6))
    inner = rng.uniform(0.7, 0.97)
    shell = np.sqrt((1 - r**2).clip(0)) - np.sqrt((inner**2 - r**2).clip(0))
    bright = np.exp(rng.uniform(0, 1.5) * (u + rng.uniform(-0.5, 0.5) * v * u).clip(-1.5, 1.5))
    sky = shell * bright * _lognormal(rng, size, (2.2, 3.4), (0.3, 0.9))
    threads = np.exp(-np.abs(gaussian_field(rng, size, 3.4)) / rng.uniform(0.03, 0.15))
    sky += rng.uniform(0, 0.8) * threads * (r < 1) * (0.3 + r**2) * sky.max()
    return sky


def _envelope(rng: Generator, size: int) -> Image:
    u, v = _axes(rng, size, (0.1, 0.4), (0.4, 1))
    r = np.hypot(u, v) * (1 + 0.15 * gaussian_field(rng, size, 3))
    return np.exp(-(r ** np.float32(rng.uniform(1, 4))))


def _network(rng: Generator, size: int) -> Image:
    """Ridges where random fields cross zero, brighter in some places than in others."""
    sky = np.zeros((size, size), np.float32)
    for _ in range(rng.integers(1, 4)):
        field = gaussian_field(rng, size, rng.uniform(3.2, 4.6))
        slope = np.hypot(*np.gradient(field)) + 0.02
        distance = np.abs(field) / slope  # to the zero line [pixel]
        ridge = 1 / (1 + (distance / rng.uniform(0.6, 2.5)) ** 2) ** np.float32(rng.uniform(1, 3))
        sky += rng.uniform(0.1, 1) * ridge * _lognormal(rng, size, (2.5, 3.5), (0.4, 1.2))
    return sky * _envelope(rng, size) if rng.random() < 0.85 else sky


def _strokes(rng: Generator, size: int) -> Image:
    """Curved filaments with Gaussian profiles, in bundles or scattered."""
    sky = np.zeros((size, size), np.float32)
    home, heading = rng.uniform(0.2, 0.8, 2) * size, rng.uniform(0, 2 * math.pi)
    bundled = rng.random() < 0.5
    for _ in range(3):  # three widths
        for _ in range(rng.integers(1, 9)):
            steps = int(size * rng.uniform(0.5, 3))
            turns = np.cumsum(rng.normal(0, 0.03, steps) + rng.normal(0, 0.004))
            start = home + rng.normal(0, 0.06 * size, 2) if bundled else rng.uniform(0, size, 2)
            angle = (heading + rng.normal(0, 0.25) if bundled else rng.uniform(0, 2 * math.pi)) + turns
            path = start + 0.4 * np.cumsum(np.stack([np.sin(angle), np.cos(angle)], 1), 0)
            glow = np.exp(np.cumsum(rng.normal(0, 0.08, steps))) * np.sin(math.pi * np.linspace(0, 1, steps))
            sky += _splat(path, log_uniform(rng, 0.03, 1) * glow / glow.max(), size)
        sky = blur(sky, rng.uniform(0.6, 1.8))
    return sky


def _diffuse(rng: Generator, size: int) -> Image:
    """Lognormal clouds, mostly confined to a part of the field."""
    sky = _lognormal(rng, size, (2.2, 4), (0.5, 1.6))
    if rng.random() < 0.3:
        sky += rng.uniform(0.1, 0.6) * sky.max() * _sersic(rng, size, (0.03, 0.2)).clip(0, 1)
    return sky * _envelope(rng, size) if rng.random() < 0.85 else sky
