"""What the procedural images share: seeds, random fields, blur.

Every image has a child seed of its own, so image k does not depend on how many are asked for.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from tqdm import tqdm

Image = np.ndarray  # (size, size) float32

MANY = 100  # images from which on a progress bar is shown, where there is a terminal
TINY = 1e-6  # keeps logarithms, roots and quotients finite


def stack(
    draw: Callable[[Generator, int], Image], count: int, size: int, seed: int, family: int, channels: int = 1
) -> Tensor:
    """Draw images 0..count-1 of a family, each from (seed, family, k); (count, channels, size, size) float32."""
    if count < 1 or size < 16:
        raise ValueError(f"expected count >= 1 and size >= 16 pixels, got count {count}, size {size}")
    if seed < 0:
        raise ValueError(f"expected a seed >= 0, got {seed}")
    images = np.empty((count, channels, size, size), np.float32)
    for k in tqdm(range(count), desc="drawing images", leave=False, disable=None if count >= MANY else True):
        images[k] = draw(np.random.default_rng([seed, family, k]), size)
    return torch.from_numpy(images)


def gaussian_field(rng: Generator, size: int, beta: float, *, stretch: float = 1.0, angle: float = 0.0) -> Image:
    """Periodic Gaussian noise whose power falls as f^-beta; mean 0, variance 1.

    :param int size: side [pixel].
    :param float beta: exponent of the power spectrum.
    :param float stretch: above 1, structures are longer by it along ``angle`` [rad].
    """
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    along = fx * math.cos(angle) + fy * math.sin(angle)
    across = fy * math.cos(angle) - fx * math.sin(angle)
    power = (stretch * along) ** 2 + across**2
    power[0, 0] = 1
    spectrum = rng.standard_normal((2, *power.shape), dtype=np.float32)
    spectrum *= power.astype(np.float32) ** np.float32(-beta / 4)
    spectrum[:, 0, 0] = 0
    field = np.fft.irfft2(spectrum[0] + 1j * spectrum[1], s=(size, size)).astype(np.float32)
    return field / (field.std() + TINY)


def blur(x: Image, sigma: float) -> Image:
    """Gaussian blur, reflected borders, sigma [pixel]."""
    reach = min(max(1, math.ceil(3 * sigma)), len(x) - 1)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for _ in range(2):
        wide = np.pad(x, ((reach, reach), (0, 0)), mode="reflect")
        x = np.add.reduce([t * wide[k : k + len(x)] for k, t in enumerate(taps)]).T
    return np.ascontiguousarray(x)


def log_uniform(rng: Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform between those of low and high."""
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))
