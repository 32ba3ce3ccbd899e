"""Transverse slices of procedural heads; see :func:`pnp_lofi.organs.head`."""

import math

import numpy as np
from numpy.random import Generator

from pnp_lofi.canvas import AIR, FAT, SOFT, Canvas
from pnp_lofi.fields import Image, log_uniform

FIELD = 240.0  # side of the image [mm]
GREY, WHITE, FLUID = 39.0, 28.0, 6.0  # of the brain [HU]


def head_slice(rng: Generator, size: int) -> Image:
    c = Canvas(rng, size, FIELD, rng.uniform(0.3, 1.5))
    tilt = rng.uniform(-0.12, 0.12)
    c.x, c.y = math.cos(tilt) * c.x + math.sin(tilt) * c.y, math.cos(tilt) * c.y - math.sin(tilt) * c.x
    a, b = rng.uniform(64, 78), rng.uniform(82, 98)
    if rng.random() < 0.5:  # the head rest
        rest = c.ellipse(0, 15, a + 14, b + 6)
        c.paint(np.maximum(np.abs(rest) - 2.5, -(c.y - 25)), rng.uniform(-900, -600))
    outline = c.ellipse(0, 0, a, b, power=rng.uniform(2.0, 2.3))
    scalp, thick = rng.uniform(3, 8), rng.uniform(3.5, 8)
    c.paint(outline, 20.0)
    c.paint(outline + 1.6, FAT + 25 + 20 * c.noise(2.5))
    c.paint(outline + scalp * 0.6, SOFT - 10)
    skull = outline + scalp + 1.2 * c.noise(4.0)
    depth = thick * (1 + 0.25 * np.cos(2 * np.arctan2(c.y, c.x)) + 0.2 * c.noise(4.0)).clip(0.4, 2)
    c.paint(skull, rng.uniform(900, 1500) + 60 * c.noise(2.0))
    spongy = np.abs(skull + depth / 2) - 0.22 * depth
    c.paint(spongy, rng.uniform(350, 800) + 150 * c.noise(1.8), soft=1.5)
    inner = skull + depth
    c.paint(inner, FLUID + 4)
    _brain(rng, c, inner, a, b)
    if rng.random() < 0.35:
        _face(rng, c, inner, a, b)
    return c.finish()


def _brain(rng: Generator, c: Canvas, inner: Image, a: float, b: float) -> None:
    """Cortex with folds, white matter, nuclei, ventricles, falx; at times a bleeding or an infarct."""
    folds = c.folds(rng.uniform(17, 26))
    shrunk = rng.uniform(0.3, 2.2)  # half width of the fluid around, larger with age [mm]
    within = np.maximum(-inner - rng.uniform(16, 24), 3 * inner + 2) / 3  # the folds end that far inside
    cortex = inner + shrunk * (1 + 0.5 * c.noise(3.0))
    c.paint(cortex, GREY + 2 * c.noise(2.0), soft=1)
    white = np.maximum(cortex + rng.uniform(3, 5), np.minimum(rng.uniform(2.5, 4) - folds, -3 * within))
    c.paint(white, WHITE + 1.5 * c.noise(2.2), soft=2)
    c.paint(np.maximum(folds - shrunk * (1 + 0.6 * c.noise(3.0)), within), FLUID + 6, soft=1.5)
    y = rng.uniform(-8, 8)
    for side in (-1, 1):
        c.paint(c.ellipse(side * rng.uniform(14, 18), y + 4, 8, 14, side * 0.3), GREY - 2, soft=3)  # thalamus
        c.paint(c.ellipse(side * rng.uniform(24, 29), y - 10, 6, 15, side * -0.25), GREY, soft=3)  # nuclei
    large, shift = log_uniform(rng, 0.5, 1.9), rng.uniform(-2, 2)
    for side in (-1, 1):
        grow = large * rng.uniform(0.85, 1.15)
        front = c.ellipse(shift + side * 8 * grow**0.5, y - 24, 4.5 * grow, 13 * grow**0.5, side * 0.45)
        back = c.ellipse(shift + side * (16 + 4 * grow), y + 32, 4.5 * grow, 16 * grow**0.5, side * -0.35)
        c.paint(np.minimum(front, back), FLUID, soft=1.5)
        if rng.random() < 0.4:  # calcified plexus
            c.paint(c.ellipse(shift + side * 17, y + 28, 2.5, 4), rng.uniform(80, 300), soft=2)
    c.paint(c.ellipse(shift, y + 2, 1.2 + 1.2 * large, 10), FLUID, soft=1.5)
    c.paint(
        np.maximum(np.abs(c.x - shift * 0.5) - 0.8, np.maximum(inner + 1, 30 - np.abs(c.y))), 55.0, soft=1.5
    )  # falx
    if rng.random() < 0.3:
        c.paint(c.ellipse(0, y + 22, 2.5, 2.5), rng.uniform(100, 400))  # pineal gland
    if rng.random() < 0.2:  # blood is bright, an infarct dark
        x, r = rng.uniform(-0.6, 0.6) * a, log_uniform(rng, 5, 22)
        spot = c.ellipse(x, rng.uniform(-0.5, 0.5) * b, r, r * rng.uniform(0.6, 1)) + 0.2 * r * c.noise(3.0)
        c.paint(np.maximum(spot, inner + 3), rng.choice([rng.uniform(60, 85), rng.uniform(8, 20)]), soft=3)


def _face(rng: Generator, c: Canvas, inner: Image, a: float, b: float) -> None:
    """The base of the skull: eyes in fat, nose and sinuses, petrous bones with their cells, cerebellum."""
    top = -b + rng.uniform(14, 20)
    face = np.maximum(c.y + 0.42 * b, inner - 6)
    c.paint(np.maximum(face, inner + 2), SOFT - 5)
    for side in (-1, 1):
        c.bone(c.line(side * 12, -0.25 * b, side * (a - 10), -0.5 * b, rng.uniform(5, 9)), 1.5, 300, 900)
        c.bone(
            c.line(side * 17, 0.02 * b, side * (a - 8), rng.uniform(0.12, 0.25) * b, rng.uniform(10, 18)), 3, 500, 1400
        )
        cells = c.ellipse(side * (a - 18), 0.22 * b, 15, 12)
        c.paint(np.maximum(cells, 3 * (0.2 - c.noise(1.5))), AIR + 150, soft=1)
        c.paint(c.ellipse(side * 33, top + 22, 17, 24, side * -0.25), FAT + 25, soft=1)
        eye = c.ellipse(side * 33, top + 12, *rng.uniform(11.5, 13, 2))
        c.paint(eye, 45.0)
        c.paint(eye + 1.5, 12.0)
        c.paint(c.ellipse(side * 33, top + 3, 4.5, 2), 75.0)
        c.paint(c.line(side * 30, top + 24, side * 14, top + 46, 4), 35.0)  # the nerve
        c.paint(c.line(side * 46, top + 18, side * 20, top + 48, 3.5), SOFT)  # muscles
        c.paint(c.line(side * 20, top + 12, side * 15, top + 46, 3.5), SOFT)
    nose = c.ellipse(0, top + 22, rng.uniform(9, 14), rng.uniform(20, 30))
    c.paint(nose - 1.5, rng.uniform(300, 800))
    c.paint(nose, AIR + rng.uniform(0, 30))
    for x in np.linspace(-9, 9, 5):  # thin walls between the cells
        c.paint(np.maximum(np.abs(c.x - x - 2 * c.noise(3.0)) - 0.5, nose), rng.uniform(0, 300))
    sinus = c.ellipse(0, top + 52, rng.uniform(8, 14), rng.uniform(7, 11))
    c.paint(sinus - 1.8, 700.0)
    c.paint(sinus, AIR + 10 if rng.random() < 0.8 else 20.0)
