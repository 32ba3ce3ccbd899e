"""A ring of the sky, as that of M87: its diameter and brighter side, and how alike two images of it are."""

import itertools

import numpy as np
import torch
from torch import Tensor

UAS = 1e-6  # [arcsec]


def ring(image: Tensor, cell: float, beam: float) -> dict[str, float]:
    """Diameter [uas] and position angle of the brighter side [deg, North through East] of a ring, as restored.

    Peaks of radial profiles about the centre from which their radii differ least; a beam of width a draws them in by
    a^2 / (8 ln 2 r), which is undone. The angle is that of the first harmonic, within 10 uas of the ring.
    Without a closed ring there is nothing.

    :param torch.Tensor image: (H, W); float cell, beam: [arcsec].
    Source: EHT 2019, paper IV, section 9.
    """
    pixels, angles, radii = image.double().numpy(), np.radians(np.arange(0, 360, 5)), np.arange(8, 40, 0.5)

    def profiles(north: float, east: float) -> np.ndarray:
        reach = radii * UAS / cell
        rows = np.clip(pixels.shape[0] // 2 + north + np.cos(angles)[:, None] * reach, 0, pixels.shape[0] - 2)
        columns = np.clip(pixels.shape[1] // 2 - east - np.sin(angles)[:, None] * reach, 0, pixels.shape[1] - 2)
        r, c = rows.astype(int), columns.astype(int)
        y, x = rows - r, columns - c
        upper, lower = (pixels[k, c] * (1 - x) + pixels[k, c + 1] * x for k in (r + 1, r))
        return upper * y + lower * (1 - y)

    def uneven(place: tuple[float, float]) -> float:
        peaks = profiles(*place).argmax(1)
        inner = (peaks > 0) & (peaks < len(radii) - 1)
        return float(radii[peaks].std() / radii[peaks].mean()) if inner.all() else np.inf

    weight = np.maximum(pixels, 0) ** 2  # the ring, not the faint field
    middle = ((weight.sum(1) * np.arange(len(weight))).sum() / weight.sum() - pixels.shape[0] // 2,
              pixels.shape[1] // 2 - (weight.sum(0) * np.arange(weight.shape[1])).sum() / weight.sum())  # fmt: skip
    best = middle
    for reach, step in ((14, 2), (1.5, 0.5)):  # [uas]
        steps = np.arange(-reach, reach + step / 2, step) * UAS / cell
        best = min(((best[0] + n, best[1] + e) for n, e in itertools.product(steps, steps)), key=uneven)
    if np.isinf(uneven(best)):  # seen from everywhere it has a gap
        return {}
    found = radii[profiles(*best).argmax(1)]
    seen = 2 * float(found.mean())
    near = np.abs(radii - seen / 2) <= 10
    first = (profiles(*best)[:, near].sum(1) * np.exp(1j * angles)).sum()
    return {
        "diameter_uas": float(seen + (seen**2 + (beam / UAS) ** 2 / np.log(2)) ** 0.5) / 2,
        "diameter_spread_uas": 2 * float(found.std()),
        "bright_side_deg": float(np.degrees(np.angle(first)) % 360),
    }


def correlation(one: Tensor, two: Tensor) -> float:
    """Largest normalised cross-correlation of two images (H, W) over all shifts."""
    a, b = (torch.fft.fft2(image.double() - image.double().mean()) for image in (one, two))
    return float(torch.fft.ifft2(a * b.conj()).real.max() * one.numel() / (a.norm() * b.norm()))
