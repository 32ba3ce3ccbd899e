"""What the slices of procedural bodies are painted with: outlines as signed distances, on bent axes.

Places are in millimetres from the middle of the field, x to the right of the picture, y down; bodies lie on their
backs. Values are in Hounsfield units.
"""

import math

import numpy as np
from numpy.random import Generator

from pnp_lofi.fields import TINY, Image, blur, gaussian_field

AIR, FAT, WATER, SOFT, BLOOD = -1000.0, -105.0, 0.0, 50.0, 45.0  # [HU]


class Canvas:
    """An image [HU] to paint on, with places (x, y) [mm] that are bent a little, so that no outline is exact."""

    def __init__(self, rng: Generator, size: int, field: float, bend: float) -> None:
        self.rng, self.size, self.pixel = rng, size, field / size
        t = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5) * np.float32(field)
        self.x = t[None] + bend * self.noise(4.0)
        self.y = t[:, None] + bend * self.noise(4.0)
        self.sponge = self.noise(1.5)
        self.image: Image = np.full((size, size), AIR, np.float32)

    def noise(self, beta: float) -> Image:
        """A Gaussian field of variance 1 whose power falls as f^-beta."""
        return gaussian_field(self.rng, self.size, beta)

    def folds(self, length: float) -> Image:
        """Distance to the zeros of a field of about that wavelength [mm]: curves that wind as those of a brain."""
        f = np.hypot(np.fft.fftfreq(self.size)[:, None], np.fft.rfftfreq(self.size)) / self.pixel * length
        white = np.fft.rfft2(self.rng.standard_normal((self.size, self.size), dtype=np.float32))
        field = np.fft.irfft2(white * np.exp(-((2.5 * (f - 1)) ** 2)), s=(self.size, self.size)).astype(np.float32)
        return np.abs(field) / (field.std() + TINY) * np.float32(length / 5)

    def cover(self, distance: Image, soft: float = 0.0) -> Image:
        """Which part of each pixel lies inside, from the distance to an outline [mm], negative inside."""
        return (0.5 - distance / np.float32(max(self.pixel, soft))).clip(0, 1)

    def paint(self, distance: Image, value: Image | float, soft: float = 0.0) -> None:
        self.image += self.cover(distance, soft) * (value - self.image)

    def ellipse(self, x: float, y: float, a: float, b: float, turn: float = 0.0, power: float = 2.0) -> Image:
        """Distance to a (super)ellipse [mm], half axes a along x and b along y before it is turned [rad]."""
        dx, dy = self.x - np.float32(x), self.y - np.float32(y)
        u = math.cos(turn) * dx + math.sin(turn) * dy
        v = math.cos(turn) * dy - math.sin(turn) * dx
        u, v = np.abs(u) / np.float32(a), np.abs(v) / np.float32(b)
        if power == 2:
            q = np.sqrt(u * u + v * v) + TINY
            return q * (q - 1) / (np.sqrt((u / a) ** 2 + (v / b) ** 2) + TINY)
        q = (u**power + v**power + TINY) ** np.float32(1 / power)
        return (q - 1) * min(a, b)

    def line(self, x0: float, y0: float, x1: float, y1: float, width: float) -> Image:
        """Distance to a straight stroke with round ends [mm]."""
        ax, ay = x1 - x0, y1 - y0
        t = (((self.x - x0) * ax + (self.y - y0) * ay) / (ax * ax + ay * ay + TINY)).clip(0, 1)
        return np.hypot(self.x - x0 - t * ax, self.y - y0 - t * ay) - width / 2

    def bone(self, distance: Image, thickness: float, marrow: float, cortex: float) -> None:
        """A shell of cortex [mm] about marrow that is spongy."""
        self.paint(distance, cortex)
        self.paint(distance + thickness, marrow + 60 * self.sponge, soft=1.5)

    def finish(self) -> Image:
        """Fine texture, and the sharpness of the machine."""
        image = self.image + self.rng.uniform(1, 6) * self.noise(0.5) * (self.image > -950)
        if self.rng.random() < 0.7:
            image = blur(image, self.rng.uniform(0.3, 0.8))
        return image.clip(AIR, 2000)
