"""Fabrics: training images of stripes, twills and weaves in folds, as clothes and curtains have."""

import math
from functools import partial

import numpy as np
from numpy.random import Generator
from torch import Tensor

from pnp_lofi.fields import Image, blur, gaussian_field, log_uniform, stack
from pnp_lofi.leaves import draw_leaves

MOST = 4  # pieces of cloth in an image
PLAIN = 0.2  # of the pieces that show what lies under them, unchanged
FREQUENCIES = (0.08, 0.45)  # of threads and stripes [cycles/pixel]
CONTRASTS = (0.04, 0.35)


def fabrics(count: int, size: int, *, seed: int, coloured: bool = False) -> Tensor:
    """Pieces of cloth over dead leaves: regular fine patterns that folds bend and shade.

    :param int count: images.
    :param int size: side [pixel], at least 16.
    :param int seed: image k is made from (seed, k) alone.
    :param bool coloured: with three channels.
    :returns: (count, 1 or 3, size, size) float32 in [0, 1].
    :raises ValueError: for count < 1 or size < 16.
    """
    channels = 3 if coloured else 1
    return stack(partial(_fabrics, coloured=coloured), count, size, seed, 8 + channels, channels=channels)


def _fabrics(rng: Generator, size: int, coloured: bool) -> Image:
    """(size, size), or (3, size, size) coloured."""
    image = draw_leaves(rng, size, coloured)
    roughness = rng.uniform(3.5, 5)
    which = np.stack([gaussian_field(rng, size, roughness) for _ in range(rng.integers(1, MOST + 1))]).argmax(0)
    for k in range(which.max() + 1):
        if rng.random() > PLAIN:
            image = np.where(which == k, _cloth(rng, image), image)
    if rng.random() < 0.4:
        width = rng.uniform(0.3, 0.7)
        image = np.stack([blur(part, width) for part in image]) if coloured else blur(image, width)
    return image.clip(0, 1)


def _cloth(rng: Generator, image: Image) -> Image:
    """Image seen as the print of a cloth: paled, shaded by folds, with a pattern that they bend."""
    size = image.shape[-1]
    angle = rng.uniform(0, 2 * math.pi)
    folds, other, worn = (
        gaussian_field(rng, size, rng.uniform(4.5, 6.5), stretch=log_uniform(rng, 1, 6), angle=rng.uniform(0, math.pi))
        for _ in range(3)
    )
    ticks = np.arange(size, dtype=np.float32)
    u = math.cos(angle) * ticks + math.sin(angle) * ticks[:, None]
    v = math.cos(angle) * ticks[:, None] - math.sin(angle) * ticks
    low, high = FREQUENCIES
    frequency, bend = log_uniform(rng, low, high), log_uniform(rng, 0.1, 5)
    across = frequency * log_uniform(rng, 0.6, 1.6)
    s = np.sin(2 * math.pi * (frequency * u + bend * folds))
    t = np.sin(2 * math.pi * (across * v + bend * other))
    weave = rng.choice(4)  # stripes, sharp stripes, twill, weave
    pattern = (s, np.tanh(log_uniform(rng, 0.8, 5) * s), s + rng.uniform(0.2, 1) * t, 1.5 * s * t)[weave]
    contrast = log_uniform(rng, *CONTRASTS) * np.exp(0.4 * worn)
    plain = image.mean((-2, -1), keepdims=True)
    ground = (plain + rng.uniform(0, 1) ** 3 * (image - plain)) * np.exp(rng.uniform(0, 0.35) * folds)
    return (ground * rng.uniform(0.7, 1.3) + contrast * pattern).astype(np.float32)
