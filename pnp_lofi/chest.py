"""Transverse slices of procedural chests; see :func:`pnp_lofi.organs.chest`."""

import math
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from pnp_lofi.canvas import AIR, BLOOD, FAT, SOFT, WATER, Canvas
from pnp_lofi.fields import TINY, Image, log_uniform

FIELD = 380.0  # side of the image [mm]
LUNG, MARROW, CORTEX = -860.0, 180.0, 900.0  # [HU]


class _Body(NamedTuple):
    """Half axes of the trunk and of the rib cage, and the middle of the latter [mm]."""

    a: float
    b: float
    fat: float
    cage_a: float
    cage_b: float
    y: float


def chest_slice(rng: Generator, size: int) -> Image:
    c = Canvas(rng, size, FIELD, rng.uniform(1, 4))
    a, b = rng.uniform(138, 172), rng.uniform(92, 128)
    fat, muscle = log_uniform(rng, 4, 24), rng.uniform(4, 11)
    body = _Body(a, b, fat, a - fat - muscle - 8, b - 0.7 * fat - muscle - 4, rng.uniform(-8, 4))
    _trunk(rng, c, body, muscle)
    lungs = _lungs(rng, c, body)
    _mediastinum(rng, c, body)
    _vessels(rng, c, body, lungs)
    _cage(rng, c, body)
    _spine(rng, c, body)
    if rng.random() < 0.25:
        _nodules(rng, c, body)
    return c.finish()


def _trunk(rng: Generator, c: Canvas, body: _Body, muscle: float) -> None:
    """Table, arms, breasts, skin, fat and muscle."""
    a, b, fat, _, _, y = body
    if rng.random() < 0.6:
        bench = c.ellipse(0, y + b - 60, 235, 75 + rng.uniform(0, 8))
        c.paint(np.maximum(np.abs(bench - 4) - 4, -(c.y - y - b + 25)), -880.0)
        c.paint(np.maximum(np.abs(bench) - 0.8, -(c.y - y - b + 25)), rng.uniform(-400, 0))
    if rng.random() < 0.15:
        for side in (-1, 1):
            arm = c.ellipse(side * (a + rng.uniform(18, 26)), y + rng.uniform(-10, 50), 30, rng.uniform(28, 40))
            c.paint(arm, FAT)
            c.paint(arm + fat / 2 + 2, SOFT)
            c.bone(arm + 19, 3, MARROW - 150, 1200)
    outline = c.ellipse(0, y, a, b, power=rng.uniform(2.1, 2.8))
    if rng.random() < 0.45:
        out, large = rng.uniform(0.42, 0.55), rng.uniform(28, 52)
        for side in (-1, 1):
            breast = c.ellipse(side * out * a, y - 0.8 * b, large, large * rng.uniform(0.5, 1))
            outline = np.minimum(outline, breast)
    c.paint(outline, WATER + 10)
    c.paint(outline + 1.8, FAT + 12 * c.noise(2.5))
    glands = c.noise(2.2) > rng.uniform(0.6, 1.6)
    c.paint(np.maximum(outline + 5, np.where(glands & (c.y < y - 0.75 * b), -3, 3)), 10.0, soft=3)
    inner = c.ellipse(0, y, a - fat, b - 0.7 * fat, power=rng.uniform(2.1, 2.6))
    c.paint(inner, SOFT + 4 * c.noise(2.0))
    streaks = np.abs(c.noise(3.0)) - rng.uniform(0.03, 0.12)  # fat between the muscles
    c.paint(np.maximum(inner + 2, 20 * streaks), FAT + 20, soft=2)
    for side in (-1, 1):  # shoulder blades
        if rng.random() < 0.6:
            x, turn = side * rng.uniform(0.55, 0.72) * a, side * rng.uniform(0.4, 1.0)
            c.bone(c.ellipse(x, y + 0.62 * b, rng.uniform(22, 38), rng.uniform(2.5, 4.5), -turn), 1.5, 250, CORTEX)


def _lungs(rng: Generator, c: Canvas, body: _Body) -> Image:
    """The cage, filled with fat, and both lungs; returns the distance to their outlines."""
    _, _, _, a, b, y = body
    cage = c.ellipse(0, y, a, b, power=rng.uniform(2.2, 2.7))
    c.paint(cage, SOFT)
    c.paint(cage + 4, FAT + 25, soft=2)
    middle = rng.uniform(14, 28)  # half width of what lies between
    lungs = np.full_like(c.image, 1e3)
    for side in (-1, 1):
        high, wide = b * rng.uniform(0.84, 0.95), (a - middle) / 2
        lung = c.ellipse(
            side * (middle + wide), y + rng.uniform(-2, 8), wide + 6, high, side * 0.08, rng.uniform(2, 2.6)
        )
        lungs = np.minimum(lungs, np.maximum(lung, cage + rng.uniform(4, 7)))
    heart = c.ellipse(
        rng.uniform(12, 30), y - 0.18 * b, rng.uniform(38, 62), rng.uniform(30, 50), rng.uniform(0.3, 0.8)
    )
    lungs = np.maximum(lungs, -heart)
    column = c.ellipse(0, y + 0.72 * b, rng.uniform(22, 28), rng.uniform(30, 42))
    lungs = np.maximum(lungs, -column)
    value = LUNG + rng.uniform(-60, 80) + rng.uniform(20, 90) * (c.y - y) / b  # heavier below
    texture = rng.uniform(8, 25) * c.noise(1.2) + rng.uniform(5, 30) * c.noise(2.6)
    c.paint(lungs, value + texture)
    if rng.random() < 0.2:  # dust, water or scars
        patch = (c.noise(3.0) - rng.uniform(0.6, 1.5)).clip(0, 1)
        c.image += c.cover(lungs) * patch * rng.uniform(100, 700)
    return lungs


def _mediastinum(rng: Generator, c: Canvas, body: _Body) -> None:
    """Heart or the great vessels above it, aorta, windpipe or its branches, gullet; contrast medium at times."""
    b, y = body.cage_b, body.y
    contrast = rng.choice([0.0, 1.0], p=(0.5, 0.5)) * rng.uniform(60, 330)
    blood = BLOOD + contrast
    fat = c.ellipse(0, y - 0.05 * b, rng.uniform(22, 32), 0.8 * b)
    c.paint(np.maximum(fat, -(c.image + 500) * 0.01), FAT + 20 + 15 * c.noise(2.5), soft=2)
    x, turn = rng.uniform(8, 26), rng.uniform(0.3, 0.8)
    if rng.random() < 0.65:  # at the height of the heart
        wide, high = rng.uniform(36, 58), rng.uniform(28, 46)
        c.paint(c.ellipse(x, y - 0.18 * b, wide + 3, high + 3, turn), FAT + 30, soft=2)
        heart = c.ellipse(x, y - 0.18 * b, wide, high, turn)
        c.paint(heart, SOFT + 5 * c.noise(2.5) + 0.35 * contrast)
        for dx, dy, part in ((-0.35, -0.25, 0.42), (0.35, -0.2, 0.42), (-0.3, 0.4, 0.36), (0.3, 0.35, 0.36)):
            u, v = dx * wide, dy * high
            place = (
                x + math.cos(turn) * u - math.sin(turn) * v,
                y - 0.18 * b + math.sin(turn) * u + math.cos(turn) * v,
            )
            shade = blood * rng.uniform(0.8, 1.05)
            c.paint(np.maximum(c.ellipse(*place, part * wide, part * high, turn), heart + 3), shade, soft=3)
        fork = y + 0.25 * b
    else:  # above it
        c.paint(c.ellipse(-16, y - 0.3 * b, rng.uniform(13, 18), rng.uniform(13, 18)), blood)
        c.paint(c.ellipse(14, y - 0.25 * b, rng.uniform(12, 17), rng.uniform(12, 16)), blood * 0.95)
        c.paint(c.ellipse(-30, y - 0.2 * b, 8, rng.uniform(7, 11)), blood * rng.uniform(0.9, 1.6))
        fork = y + rng.uniform(0, 0.12) * b
    aorta = c.ellipse(rng.uniform(16, 24), y + rng.uniform(0.42, 0.55) * b, *rng.uniform(10, 15, 2))
    c.paint(aorta, blood)
    if rng.random() < 0.3:
        c.paint(np.maximum(np.abs(aorta + 1.5) - 1.2, 6 * c.noise(2.0) + 4), rng.uniform(300, 900))  # calcified
    for side in (0,) if rng.random() < 0.5 else (-1, 1):
        pipe = c.ellipse(18 * side + rng.uniform(-3, 3), fork, rng.uniform(6, 9), rng.uniform(6, 9))
        c.paint(pipe - 1.8, SOFT)
        c.paint(pipe, AIR + 10)
    gullet = c.ellipse(rng.uniform(-2, 8), fork + rng.uniform(16, 24), 8, 5)
    c.paint(gullet, SOFT - 8)
    if rng.random() < 0.4:
        c.paint(gullet + 3, AIR + 200)


def _vessels(rng: Generator, c: Canvas, body: _Body, lungs: Image) -> None:
    """Trees that branch from each root of a lung outwards, and the ends of others that cross the slice."""
    blood = BLOOD + rng.uniform(-10, 120)
    layer = np.full_like(c.image, -1e3)  # how far inside a vessel [mm]
    for side in (-1, 1):
        root = (side * rng.uniform(26, 36), body.y + rng.uniform(-0.1, 0.15) * body.cage_b)
        ways = [
            (*root, side * rng.uniform(-1.2, 1.2), rng.uniform(2.2, 4.2), 0) for _ in range(int(rng.integers(3, 6)))
        ]
        while ways:
            x, y, angle, radius, order = ways.pop()
            length = radius * rng.uniform(4, 9) + 3
            dx = side * math.cos(angle) * length
            dy = side * math.sin(angle) * length
            x1, y1, r1 = x + dx, y + dy, radius * rng.uniform(0.75, 0.92)
            _stroke(c, layer, x, y, x1, y1, radius, r1)
            if r1 > 0.45 and order < 8 and math.hypot(x1 / body.cage_a, (y1 - body.y) / body.cage_b) < 1:
                spread = rng.uniform(0.25, 0.7)
                thick = rng.uniform(0.6, 0.9)
                ways.append((x1, y1, angle + spread * rng.uniform(0.3, 1), r1 * thick, order + 1))
                ways.append((x1, y1, angle - spread * rng.uniform(0.3, 1), r1 * (1.45 - thick), order + 1))
    for _ in range(int(rng.integers(80, 220))):  # that cross the slice
        x, y = rng.uniform(-body.cage_a, body.cage_a), body.y + rng.uniform(-1, 1) * body.cage_b
        radius = 0.5 + 2.2 * rng.random() ** 3
        _stroke(c, layer, x, y, x + rng.uniform(-3, 3), y + rng.uniform(-3, 3), radius, 0.7 * radius)
    c.image += c.cover(lungs + 2) * (0.5 + layer / np.float32(c.pixel)).clip(0, 1) * (blood - c.image)
    for _ in range(int(rng.integers(0, 7))):  # branches of the windpipe
        x, y = rng.choice([-1, 1]) * rng.uniform(32, 60), body.y + rng.uniform(-0.4, 0.4) * body.cage_b
        radius = rng.uniform(1.5, 4)
        pipe = np.maximum(c.ellipse(x, y, radius, radius * rng.uniform(0.6, 1)), lungs)
        c.paint(pipe - 1.2, -150.0)
        c.paint(pipe, AIR + 20)


def _stroke(c: Canvas, layer: Image, x0: float, y0: float, x1: float, y1: float, r0: float, r1: float) -> None:
    """Raise ``layer`` to the depth inside a tapered stroke [mm], within its own box."""
    half, reach = c.size * c.pixel / 2, max(r0, r1) + 6  # the places are bent by less than 6 mm nearly always
    box = []
    for low, high in ((min(y0, y1), max(y0, y1)), (min(x0, x1), max(x0, x1))):
        box.append(slice(max(0, int((low - reach + half) / c.pixel)), max(0, int((high + reach + half) / c.pixel) + 1)))
    rows, columns = box
    dx, dy = c.x[rows, columns] - np.float32(x0), c.y[rows, columns] - np.float32(y0)
    ax, ay = np.float32(x1 - x0), np.float32(y1 - y0)
    t = ((dx * ax + dy * ay) / (ax * ax + ay * ay + TINY)).clip(0, 1)
    inside = np.float32(r0) + t * np.float32(r1 - r0) - np.sqrt((dx - t * ax) ** 2 + (dy - t * ay) ** 2)
    np.maximum(layer[rows, columns], inside, out=layer[rows, columns])


def _cage(rng: Generator, c: Canvas, body: _Body) -> None:
    """Ribs, cut obliquely, and the breastbone."""
    count, start = int(rng.integers(5, 9)), rng.uniform(0, 0.3)
    for side in (-1, 1):
        for k in range(count):
            angle = -1.2 + 2.6 * (k + start + rng.uniform(-0.2, 0.2)) / count  # from the front to the back
            x = side * (body.cage_a + 1) * math.cos(angle) ** (0.85 if math.cos(angle) > 0 else 1)
            y = body.y + (body.cage_b + 1) * math.sin(angle)
            along = math.atan2(body.cage_b * math.cos(angle), -side * body.cage_a * math.sin(angle))
            long, thick = rng.uniform(7, 22), rng.uniform(3.2, 5.5)
            c.bone(c.ellipse(x, y, long, thick, along), rng.uniform(1.0, 1.8), MARROW, rng.uniform(600, 1100))
    breastbone = c.ellipse(0, body.y - body.cage_b - 5, rng.uniform(14, 24), rng.uniform(5, 8))
    c.bone(breastbone, 1.4, MARROW - 60, rng.uniform(400, 800))


def _spine(rng: Generator, c: Canvas, body: _Body) -> None:
    y, large = body.y + 0.78 * body.cage_b, rng.uniform(14, 19)
    cortex, marrow = rng.uniform(400, 900), rng.uniform(100, 260)
    c.paint(c.ellipse(0, y + 26, 40, 22), SOFT)  # muscles of the back
    for side in (-1, 1):
        c.bone(c.line(side * 8, y + 16, side * rng.uniform(28, 40), y + rng.uniform(20, 28), 8), 1.5, marrow, cortex)
    c.bone(c.line(0, y + 25, rng.uniform(-2, 2), y + rng.uniform(38, 48), 7), 1.5, marrow, cortex)
    c.bone(c.ellipse(0, y + 20, 14, 12), 2.0, marrow, cortex)
    c.bone(c.ellipse(0, y, large, large * rng.uniform(0.75, 0.95), power=2.4), rng.uniform(1, 2), marrow, cortex)
    c.paint(c.ellipse(0, y + 20, 9.5, 8), FAT / 3)
    c.paint(c.ellipse(0, y + 20, 5.5, 4.5), 35.0)


def _nodules(rng: Generator, c: Canvas, body: _Body) -> None:
    for _ in range(int(rng.integers(1, 4))):
        x = rng.choice([-1, 1]) * rng.uniform(0.35, 0.8) * body.cage_a
        y, radius = body.y + rng.uniform(-0.5, 0.5) * body.cage_b, log_uniform(rng, 2, 14)
        edge = c.ellipse(x, y, radius, radius * rng.uniform(0.7, 1)) + 0.15 * radius * c.noise(2.0)
        c.paint(edge, rng.uniform(-50, 80), soft=rng.uniform(0, 3))
