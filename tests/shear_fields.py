"""Fields, shears and catalogues that the tests of lensing share."""

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.lensing_power import (
    frequency,
)


def pixels(n: int) -> tuple[Tensor, Tensor]:
    """Rows (up) and columns (right) from the pixel n // 2."""
    at = torch.arange(n, dtype=torch.float64) - n // 2
    return at[:, None], at[None, :]


def tangential(gamma: Tensor) -> tuple[Tensor, Tensor]:
    """gamma_t and gamma_x about the pixel n // 2 of (1, 2, n, n)."""
    row, column = pixels(gamma.shape[-1])
    turned = -torch.complex(gamma[0, 0], gamma[0, 1]) * torch.exp(-2j * torch.atan2(row, column))
    return turned.real, turned.imag


def pearson(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def red(shape: tuple[int, int], level: float = 1e-3) -> Tensor:
    """A power that falls as f^-2, S = level at 0.1 cycles a pixel."""
    f = frequency(shape)
    return torch.where(f > 0, level * (0.1 / f.clamp_min(1e-9)) ** 2, 0)


def galaxies(n: int, seed: int) -> dict[str, np.ndarray]:
    """Of a square degree; faint ones, of low weight, are rounder."""
    rng = np.random.default_rng(seed)
    w = rng.choice([0.2, 1.0], n)
    e1, e2 = rng.normal(size=(2, n)) * np.where(w == 1, 0.4, 0.1)
    x, y = rng.uniform(-30, 30, (2, n))
    return {"x": x, "y": y, "e1": e1, "e2": e2, "weight": w}
