"""Dead leaves: training images with the edges, shading and textures of photographs, made of random numbers."""

import math
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from torch import Tensor

from pnp_lofi.fields import TINY, Image, blur, gaussian_field, log_uniform, stack

BANK_SIZE = 256  # side of a stored texture, periodic [pixel]
BANK_COUNT = 48
MOST_LEAVES = 3000  # on 256 x 256 pixels
SHAPES = ("disk", "ellipse", "rectangle", "polygon", "stroke", "arc")
OPPONENT = np.array([[1, 1, -2], [3**0.5, -(3**0.5), 0]], np.float32) / 6**0.5  # to yellow and to red; neither is grey
REDS = 0.5  # spread of the second beside the first
SHAPE_ODDS = (0.14, 0.24, 0.18, 0.22, 0.11, 0.11)


def dead_leaves(count: int, size: int, *, seed: int) -> Tensor:
    """Opaque random shapes on top of each other: edges, shading and textures as photographs have them.

    Radii follow r^-3, so the images are statistically the same at every scale. A leaf has a grey level, a
    shade and perhaps a texture (1/f noise, fibres, cloth, stripes, checks, bricks); some throw shadows; some images
    are out of focus, and a few are pure 1/f noise.

    :param int count: images.
    :param int size: side [pixel], at least 16.
    :param int seed: image k is made from (seed, k) alone.
    :returns: (count, 1, size, size) float32 in [0, 1].
    :raises ValueError: for count < 1 or size < 16.
    Source: Lee, Mumford, Huang 2001 (IJCV 41). Differs: textures, shading, and a bounded number of leaves.
    """
    return stack(draw_leaves, count, size, seed, 1)


def colour_leaves(count: int, size: int, *, seed: int) -> Tensor:
    """Dead leaves whose grey levels have hues: neighbours resemble each other, some images are nearly grey.

    :param: as :func:`dead_leaves`.
    :returns: (count, 3, size, size) float32 in [0, 1].
    :raises ValueError: for count < 1 or size < 16.
    """
    return stack(partial(draw_leaves, coloured=True), count, size, seed, 8, channels=3)


@lru_cache(maxsize=1)
def _bank() -> np.ndarray:
    """(BANK_COUNT, BANK_SIZE, BANK_SIZE) textures, about [-2, 2]: smooth to rough, isotropic and fibrous."""
    rng = np.random.default_rng(20240611)
    bank = []
    for k in range(BANK_COUNT):
        fibrous = k % 3 == 0
        stretch, angle = (log_uniform(rng, 3, 25), rng.uniform(0, math.pi)) if fibrous else (1.0, 0.0)
        field = gaussian_field(rng, BANK_SIZE, rng.uniform(1.2, 3), stretch=stretch, angle=angle)
        bend = k % 4  # Gaussian, creased, blotchy, speckled
        if bend == 1:
            field = 2 - 2.5 * np.abs(field)
        elif bend == 2:
            field = np.tanh(2.5 * field)
        elif bend == 3:
            field = np.minimum(np.exp(field), 4) - 1
        bank.append((field - field.mean()) / field.std())
    return np.clip(np.stack(bank), -2.5, 2.5).astype(np.float32)


def draw_leaves(rng: Generator, size: int, coloured: bool = False) -> Image:
    """One image, (size, size), or (3, size, size) coloured."""
    spread = rng.uniform(0.1, 0.42)
    middle = rng.uniform(0.25, 0.7)
    image = np.full((3, size, size) if coloured else (size, size), middle, np.float32)
    if rng.random() < 0.06:
        beta = rng.uniform(1.4, 2.8)
        image += 0.5 * spread * gaussian_field(rng, size, beta)
        if coloured:
            image += np.tensordot(_hues(rng, size), OPPONENT, (0, 0)).transpose(2, 0, 1)
    else:
        _paint_leaves(rng, image, middle, spread)
    if rng.random() < 0.3:  # uneven light
        image *= np.exp(rng.uniform(0.05, 0.3) * gaussian_field(rng, size, 3.2))
    if rng.random() < 0.55:
        width = rng.uniform(0.3, 0.9) if rng.random() < 0.92 else rng.uniform(0.9, 1.8)
        image = np.stack([blur(part, width) for part in image]) if coloured else blur(image, width)
    image = image.clip(0, 1)
    if rng.random() < 0.4:
        image = image ** np.float32(log_uniform(rng, 0.6, 1.7))
    return image


def _hues(rng: Generator, size: int) -> np.ndarray:
    """(2, size, size): how yellow and how red places are, smooth, about a cast of the whole image."""
    depth = log_uniform(rng, 0.01, 0.2)
    fields = np.stack([gaussian_field(rng, size, 3.0) for _ in OPPONENT]) + rng.normal(0, 0.7, (2, 1, 1))
    return (depth * np.array([1, REDS])[:, None, None] * fields).astype(np.float32)


class _Leaf(NamedTuple):
    """Grey level or colour (3, 1, 1), centre, radius r [pixel], direction [rad], and the uniform numbers p that say
    the rest."""

    shape: str
    grey: float | np.ndarray
    centre: list[float]
    r: float
    flow: float
    p: list[float]


def _paint_leaves(rng: Generator, image: Image, middle: float, spread: float) -> None:
    """Paint leaves into ``image``, last on top; the first covers all of it."""
    size = image.shape[-1]
    radius = _radii(rng, size)
    count = len(radius)
    rank = rng.choice([0.0, 0.7, 2.0]) * np.log(radius) + rng.standard_normal(count)  # 0: order is random
    rank[0] = np.inf
    odds = np.cumsum(rng.dirichlet(3 * np.array(SHAPE_ODDS)))
    shapes = np.searchsorted(odds, rng.random(count) * odds[-1]).clip(0, len(SHAPES) - 1)
    where = rng.uniform(-0.05 * size, 1.05 * size, (count, 2))
    where[0] = size / 2
    # neighbours resemble each other: a smooth field under the grey levels and the directions
    row, column = where.clip(0, size - 1).astype(int).T
    common = gaussian_field(rng, size, 3.2)[row, column]
    alike = rng.uniform(0.2, 0.9)
    grey = middle + spread * (alike * common + math.sqrt(1 - alike**2) * rng.laplace(0, 0.75, count))
    flow = rng.uniform(0, math.pi) + gaussian_field(rng, size, 4)[row, column] * rng.uniform(0.1, 0.8)
    numbers = rng.random((count, 20))
    numbers[numbers[:, 11] > rng.uniform(0.1, 0.75), 12] = 0  # no texture
    sharp = bool(rng.random() < 0.6)
    if image.ndim == 3:
        hue = _hues(rng, size)[:, row, column]
        hue += rng.uniform(0.2, 1.2) * np.abs(hue).mean() * rng.laplace(0, 1, hue.shape)
        colour = (grey + OPPONENT.T @ hue).clip(0.02, 0.98).astype(np.float32)
    for k in np.argsort(-rank):
        tone = float(grey[k].clip(0.02, 0.98)) if image.ndim == 2 else colour[:, k, None, None]
        leaf = _Leaf(SHAPES[shapes[k]], tone, where[k].tolist(), float(radius[k]), float(flow[k]), numbers[k].tolist())
        _paint_leaf(image, leaf, sharp)


def _radii(rng: Generator, size: int) -> np.ndarray:
    """Radii [pixel] of density r^-3, as many as paint each pixel a few times; the first spans the image."""
    smallest, largest = log_uniform(rng, 1.2, 14), size * rng.uniform(0.2, 0.6)
    largest = max(largest, 1.5 * smallest)
    density = 1 / (smallest**-2 - largest**-2)
    mean_area = 3 * density * math.log(largest / smallest)  # [pixel^2] of a leaf, about
    layers = log_uniform(rng, 0.25, 2.5)
    count = max(20, int(min(layers / mean_area, MOST_LEAVES / 256**2) * size**2))
    return np.append(3.0 * size, (smallest**-2 - rng.random(count) / density) ** -0.5)


def _paint_leaf(image: Image, leaf: _Leaf, sharp: bool) -> None:
    """Paint one leaf over its bounding box."""
    shape, grey, centre, r, flow, p = leaf
    soft = 1.0 if sharp or p[0] < 0.7 else 1 + 0.15 * r * p[1]  # width of the edge [pixel]
    shadow = 0.4 * r * p[3] if p[2] < 0.2 and r > 4 else 0.0
    reach = (1.45 if shape in ("rectangle", "polygon") else 1.1) * r + soft + shadow + 1
    top, left = (max(0, int(c - reach)) for c in centre)
    bottom, right = (min(image.shape[-1], int(c + reach) + 2) for c in centre)
    if top >= bottom or left >= right:
        return
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(centre[0])
    x = np.arange(left, right, dtype=np.float32)[None] - np.float32(centre[1])
    if shape in ("stroke", "arc", "ellipse") or p[5] < 0.3:  # grass and hair run alike
        angle = flow + 0.6 * (p[6] - 0.5)
    else:  # upright and level are commoner than slanted, as in photographs
        angle = math.pi * p[4] if p[5] < 0.6 else math.pi / 2 * round(2 * p[4]) + 0.1 * (p[6] - 0.5)
    u, v = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    distance = _distance(shape, u, v, r, p)
    box = image[..., top:bottom, left:right]
    if shadow:
        box *= 1 - (0.2 + 0.5 * p[7]) * (1 - distance / np.float32(shadow)).clip(0, 1)
    shade = np.float32(grey * 0.6 * (p[8] - 0.5) / min(r, image.shape[-1]))
    value = grey + shade * u
    if p[9] < 0.25:  # rounded: darker towards the rim
        value = value * (1 - (0.1 + 0.5 * p[10]) * (1 + distance / np.float32(r)).clip(0, 1) ** 3)
    if p[12] > 0 and r > 2.5:
        amplitude = (0.006 + 0.2 * p[12] ** 3) * (0.3 + grey)
        value = value + np.float32(amplitude) * _texture(u, v, (top, left), p[13:], angle)
    box += (0.5 - distance / np.float32(soft)).clip(0, 1) * (value - box)


def _distance(shape: str, u: Image, v: Image, r: float, p: list[float]) -> Image:
    """Signed distance to the leaf's edge, negative inside [pixel]."""
    aspect = 0.15 + 0.85 * p[14]
    thin = 0.5 + min(3.0, 0.15 * r) * p[15] ** 2
    if shape == "disk":
        return np.hypot(u, v) - r
    if shape == "ellipse":
        a, b = np.float32(r), np.float32(max(0.7, aspect * r))
        q = np.hypot(u / a, v / b) + TINY
        return q * (q - 1) / (np.hypot(u / a**2, v / b**2) + TINY)
    if shape == "rectangle":
        return np.maximum(np.abs(u) - r, np.abs(v) - max(0.6, aspect * r))
    if shape == "polygon":
        edges = 1 if p[16] < 0.1 else 3 + int(3 * p[16])
        turns = [k / edges + 0.12 * p[14 + k] for k in range(edges)]
        return np.maximum.reduce([_half_plane(u, v, r, t, p[13 + k]) for k, t in enumerate(turns)])
    if shape == "stroke":  # tapered towards one end
        return np.hypot((np.abs(u) - r).clip(0), v) - thin * (1 + 0.5 * (u / r).clip(-1, 1))
    bend = r * (1 + 4 * p[14])  # an arc through the centre
    return np.maximum(np.abs(np.hypot(u, v + bend) - bend) - thin, np.abs(u) - r)


def _half_plane(u: Image, v: Image, r: float, turn: float, depth: float) -> Image:
    angle = 2 * math.pi * turn
    return math.cos(angle) * u + math.sin(angle) * v - r * (0.35 + 0.6 * depth)


def _texture(u: Image, v: Image, corner: tuple[int, int], p: list[float], angle: float) -> Image:
    """A pattern of about unit contrast on a leaf's own axes."""
    if p[0] < 0.5:
        texture = _bank()[int(p[1] * BANK_COUNT)]
        start = int(p[2] * BANK_SIZE) + corner[0], int(p[3] * BANK_SIZE) + corner[1]
        rows, columns = ((np.arange(n) + s) % BANK_SIZE for n, s in zip(u.shape, start, strict=True))
        return texture[rows[:, None], columns]
    if p[0] < 0.62:
        return _cloth(u, v, p)
    frequency = np.float32(0.35 * 0.08 ** p[1])  # cycles/pixel, .028 to .35
    turn = 0.4 * (p[2] - 0.5)
    s = frequency * (u + turn * v) + np.float32(p[3])
    if p[0] < 0.76:
        return np.sin(2 * math.pi * s)
    if p[0] < 0.84:
        return np.tanh((1 + 0.6 / frequency * p[4]) * np.sin(2 * math.pi * s)) * np.float32(0.8)
    t = frequency * (v - turn * u) * np.float32(0.7 + p[5]) + np.float32(p[4])
    if p[0] < 0.92:
        return np.tanh(0.4 / frequency * np.sin(2 * math.pi * s) * np.sin(2 * math.pi * t))
    return _bricks(s * 0.5, t, frequency)


def _cloth(u: Image, v: Image, p: list[float]) -> Image:
    """Fine stripes in folds: frequencies of .1 to .42 cycles/pixel, twice as strong as other patterns."""
    frequency, length = np.float32(0.42 * 0.24 ** p[1]), np.float32(15 * 10 ** p[5])
    folds = np.sin(2 * math.pi * (v + np.float32(p[3]) * u) / length + np.float32(2 * math.pi * p[2]))
    folds += np.float32(0.5) * np.sin(2 * math.pi * (u - np.float32(0.4) * v) / (np.float32(1.7) * length))
    s = frequency * u + np.float32(0.06 * p[6]) * length * folds
    return np.float32(1 + 2 * p[4]) * np.sin(2 * math.pi * s)


def _bricks(s: Image, t: Image, frequency: np.float32) -> Image:
    row = np.floor(t)
    s = s + 0.5 * (row % 2)
    mortar = np.minimum(0.5 - np.abs(t - row - 0.5), 2 * (0.5 - np.abs(s - np.floor(s) - 0.5))) / frequency
    tone = np.sin(12.9898 * np.floor(s) + 78.233 * row) * 0.5
    return ((mortar - 0.6).clip(0, 1) * (1.2 + tone) - 0.8).astype(np.float32)
