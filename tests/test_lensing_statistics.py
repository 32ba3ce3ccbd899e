"""Power spectra, peaks and the null test of the B mode."""

import math

import numpy as np
import pytest
import torch
from shear_fields import galaxies, red

from pnp_lofi.lensing import (
    grid_shear,
    rotated_shear,
)
from pnp_lofi.lensing_power import (
    ARCMIN,
    draw_field,
    fit_power,
    frequency,
    power_grid,
    power_spectrum,
    smooth,
)
from pnp_lofi.lensing_statistics import b_mode_test, find_peaks, peak_counts
from pnp_lofi.operators import KaiserSquires, random_mask

# ---- spectra -----------------------------------------------------------------------------------


def test_power_of_white_noise() -> None:
    """C_ell = sigma^2 times the pixel's area."""
    x = 0.3 * torch.randn(8, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    found = power_spectrum(x, 2.0, 6)
    expected = 0.09 * (2 * ARCMIN) ** 2
    spread = expected * (2 / (8 * found.modes)).sqrt()  # half of the modes are independent
    assert float(((found.power.mean((0, 1)) - expected) / spread).abs().max()) < 3
    assert float(found.edges[0]) == pytest.approx(2 * math.pi / (96 * 2 * ARCMIN))
    assert int(found.modes.sum()) < 64 * 96 and bool((found.ell.diff() > 0).all())
    masked = power_spectrum(x, 2.0, 6, mask=random_mask((64, 96), 0.5))
    assert float(((masked.power.mean((0, 1)) - expected) / spread).abs().max()) < 3
    one = power_spectrum(x, 2.0, torch.tensor([200.0, 4000.0]), other=-x)
    assert one.power.shape == (8, 1, 1) and float(one.power.max()) < 0


def test_power_of_a_field_of_known_spectrum() -> None:
    shape, pixel = (128, 160), 0.5
    ell = torch.logspace(1.5, 5, 60, dtype=torch.float64)
    table = 1e-9 * (1000 / ell) ** 1.7
    S = power_grid(shape, pixel, ell, table)
    assert float(S[0, 0]) == 0 and float(S[3, 5]) == pytest.approx(
        1e-9 * (1000 / (2 * math.pi * math.hypot(3 / 128, 5 / 160) / (pixel * ARCMIN))) ** 1.7 / (pixel * ARCMIN) ** 2
    )
    fields = draw_field(S, 60, seed=1)
    found = power_spectrum(fields, pixel, 8)
    truth = power_spectrum(torch.fft.ifft2((S * S.numel()).sqrt()).real[None, None], pixel, 8).power[0, 0]
    torch.testing.assert_close(found.power.mean((0, 1)), truth, rtol=0.1, atol=0)
    # variance is the integral over the modes
    assert float(fields.square().mean()) == pytest.approx(float(S.mean()), rel=0.1)


def test_fitted_power() -> None:
    shape = (96, 96)
    f, S = frequency(shape), red(shape)
    fields = draw_field(S, 20, seed=2)[:, 0]
    for level in (1e-4, 1e-3):
        noise = level**0.5 * torch.randn(2, *fields.shape, generator=torch.Generator().manual_seed(5)).double()
        found = fit_power(torch.complex(0.5**0.5 * fields + noise[0], noise[1]), signal=0.5)
        strong = (f > 0.02) & (level < S)
        assert float((found / S)[strong].log().abs().max()) < 0.2


def test_smoothing_is_a_gaussian() -> None:
    x = torch.zeros(1, 1, 41, 50, dtype=torch.float64)
    x[..., 20, 25] = 1
    row, column = torch.arange(41.0)[:, None] - 20, torch.arange(50.0)[None] - 25
    expected = torch.exp(-(row**2 + column**2) / 18) / (18 * math.pi)
    torch.testing.assert_close(smooth(x, 3.0)[0, 0], expected.double(), atol=1e-7, rtol=0)
    mask = random_mask((41, 50), 0.5)
    torch.testing.assert_close(smooth(torch.ones_like(x), 2.0, mask)[0, 0], mask.double())
    torch.testing.assert_close(smooth(x, 0.0), x)


# ---- peaks and the B mode ----------------------------------------------------------------------


def test_peaks() -> None:
    x = torch.zeros(2, 1, 9, 9)
    x[0, 0, 2, 3], x[0, 0, 5, 5], x[0, 0, 5, 6], x[1, 0, 4, 4], x[1, 0, 0, 0] = 1.0, 2.0, 1.5, 3.0, 9.0
    found = find_peaks(x, 0.5)
    assert found.place.tolist() == [[1, 4, 4], [0, 5, 5], [0, 2, 3]] and found.height.tolist() == [3.0, 2.0, 1.0]
    edges = torch.tensor([0.5, 2.0, 2.5, 4.0])
    assert peak_counts(x, edges).tolist() == [[1, 1, 0], [0, 0, 1]]
    mask = torch.ones(9, 9)
    mask[4:6] = 0
    assert peak_counts(x, edges, mask).tolist() == [[1, 0, 0], [0, 0, 0]]


def test_b_mode_null_test() -> None:
    shape = (48, 48)
    mask = torch.ones(shape)
    mask[10:20, 15:30] = 0
    op = KaiserSquires(shape, mask, 0.1 + 0.1 * torch.rand(shape, generator=torch.Generator().manual_seed(0)))
    chance = []
    for seed in range(20):
        torch.manual_seed(seed)
        found = b_mode_test(op, op(torch.zeros(1, 1, *shape)), pixel=1.0, bins=5, realisations=100, seed=seed + 50)
        chance.append(found.pte)
        assert found.amplitude == pytest.approx(1, abs=0.15)
    assert 0.3 < np.mean(chance) < 0.7
    wrong = op.whiten(op.shear(op(draw_field(red(shape, 0.05), seed=1)))[:, [1, 0]])
    assert b_mode_test(op, wrong, pixel=1.0, bins=5, realisations=100).pte == pytest.approx(1 / 101)


def test_b_mode_null_test_with_the_noise_of_the_galaxies() -> None:
    """Where bright galaxies are the less round ones, a formula with weight 1 for sigma_e is wrong; the galaxies are
    not."""
    shape = (48, 48)
    grid = {"shape": shape, "pixel": 1.25}
    formula, rotated = [], []
    for seed in range(10):
        table = galaxies(20_000, seed)
        rms = float(np.sqrt((table["e1"] ** 2 + table["e2"] ** 2).mean() / 2))
        maps = grid_shear(**table, **grid, sigma_e=rms)
        op = KaiserSquires(maps.shape, maps.mask, maps.sigma)
        y = op.whiten(maps.gamma)
        formula.append(b_mode_test(op, y, pixel=1.25, bins=5, realisations=100))
        noise = op.whiten(rotated_shear(**table, **grid, count=100, seed=seed + 50))
        rotated.append(b_mode_test(op, y, pixel=1.25, bins=5, noise=noise))
    assert max(test.pte for test in formula) < 0.05
    assert 0.25 < np.mean([test.pte for test in rotated]) < 0.75
    assert np.mean([test.amplitude for test in rotated]) == pytest.approx(1, abs=0.02)
    unknown = KaiserSquires(shape, weights=torch.ones(shape))
    assert b_mode_test(unknown, maps.gamma, pixel=1.25, bins=5, noise=maps.gamma + noise).pte > 0


def test_b_mode_null_test_knows_what_a_mask_makes() -> None:
    shape = (64, 64)
    mask = torch.zeros(shape)
    mask[8:56, 8:56] = 1
    mask[20:30, 15:40] = 0
    op, S = KaiserSquires(shape, mask, 0.02), red(shape, 0.01)
    torch.manual_seed(1)
    y = op(draw_field(S, seed=8))
    alone = b_mode_test(op, y, pixel=1.0, bins=5)
    told = b_mode_test(op, y, pixel=1.0, bins=5, kappa=draw_field(S, 200, seed=100))
    assert alone.pte < 0.01 and told.pte > 0.05
