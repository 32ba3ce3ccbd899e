"""A small interferometer that sees two points, from antenna positions and delays alone, and files of what it sees."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

C = 299792458.0
CENTRE = (120.0, -25.0)  # RA, Dec [deg]
CELL = 1.5  # [arcsec]
OFFSETS = ((6, 4, 1.0), (-9, 11, 0.5))  # pixels to the East, to the North, flux [Jy]
FREQUENCIES = np.array([1.40e9, 1.42e9, 1.44e9])
SHIFT = 1e6  # of a second window [Hz]
STEP = 30.0  # between integrations [s]
EARTH_RATE = 7.292115e-5  # [rad/s]


@dataclass
class Seen:
    """Rows by time, then pair; vis (R, F)."""

    uvw: np.ndarray  # antenna 1 minus antenna 2 [m]
    time: np.ndarray
    one: np.ndarray
    two: np.ndarray
    vis: np.ndarray
    positions: np.ndarray


def direction(ra: float, dec: float, angle: float) -> np.ndarray:
    """Unit vector to (RA, Dec) at that sidereal angle [rad]; X to the meridian, Y to the East, Z to the pole."""
    hour = angle - ra
    return np.array([np.cos(dec) * np.cos(hour), -np.cos(dec) * np.sin(hour), np.sin(dec)])


def seen(integrations: int = 12, antennas: int = 6, seed: int = 0, auto: bool = True) -> Seen:
    """V_12 = <E_1 conj(E_2)>, E_j = sum_s a_s exp(i w (t + r_j . s / c)): the nearer to the source, the earlier."""
    rng = np.random.default_rng(seed)
    positions = rng.normal(scale=(900, 1500, 900), size=(antennas, 3))
    ra0, dec0 = np.radians(CENTRE)
    pixel = CELL / 3600 * np.pi / 180
    rows = []
    for k in range(integrations):
        angle = ra0 - 0.3 + k * 600 * EARTH_RATE  # far apart: a good beam
        s0 = direction(ra0, dec0, angle)
        h, d = angle - ra0, dec0
        east = np.array([np.sin(h), np.cos(h), 0.0])
        north = np.array([-np.sin(d) * np.cos(h), np.sin(d) * np.sin(h), np.cos(d)])
        for i in range(antennas):
            for j in range(i if auto else i + 1, antennas):
                r = positions[i] - positions[j]
                vis = np.zeros(len(FREQUENCIES), complex)
                for l, m, flux in OFFSETS:
                    s = direction(ra0 + l * pixel / np.cos(dec0 + m * pixel), dec0 + m * pixel, angle)
                    fields = [
                        np.exp(2j * np.pi * FREQUENCIES / C * (p @ (s - s0))) for p in (positions[i], positions[j])
                    ]
                    vis += flux * fields[0] * np.conj(fields[1])
                rows.append((r @ np.stack([east, north, s0], axis=1), 5e9 + k * STEP, i, j, vis))
    uvw, time, one, two, vis = (np.array(x) for x in zip(*rows, strict=True))
    return Seen(uvw, time, one, two, vis, positions)


def peaks(dirty: np.ndarray, psf: np.ndarray) -> list[tuple[int, int]]:
    """(pixels East, pixels North) of the sources: Hogbom's CLEAN with gain 1; the beam is twice as large."""
    found, image, (H, W) = [], np.array(dirty), dirty.shape
    for _ in OFFSETS:
        r, c = divmod(int(image.argmax()), W)
        found.append((W // 2 - c, r - H // 2))
        image -= image[r, c] * psf[H - r : 2 * H - r, W - c : 2 * W - c]
    return found


def write_npz(path: Path, compressed: bool = False, **columns: object) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **columns)
    return path
