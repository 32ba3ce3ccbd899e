"""Lensing: errors, and real data."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from shear_fields import pearson
from torch import Tensor

from pnp_lofi.lensing import (
    grid_catalogue,
    grid_shear,
    invert_reduced,
    reduced_shear,
    rotated_catalogue,
    rotated_shear,
)
from pnp_lofi.lensing_power import (
    draw_field,
    fit_power,
    power_grid,
    power_spectrum,
    smooth,
)
from pnp_lofi.lensing_statistics import b_mode_test, find_peaks, peak_counts
from pnp_lofi.operators import KaiserSquires

# ---- errors ------------------------------------------------------------------------------------


X, Y = torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 8, 8)
NOISY = KaiserSquires((8, 8), sigma=1.0)
ROW = {"ra": [1.0], "dec": [1.0], "e1": [0.1], "e2": [0.1]}
FLAT = {"x": [0.0], "y": [0.0], "e1": [0.1], "e2": [0.1]}
GRID = {"shape": (4, 4), "pixel": 1.0}
CASES = [
    (lambda: grid_catalogue(**ROW | {"e1": [0.1, 0.2]}, **GRID), "columns of a catalogue must be of one length"),
    (lambda: grid_catalogue(**ROW | {"ra": [math.nan]}, **GRID), "no row of the catalogue has a finite ra and dec"),
    (lambda: grid_catalogue(**ROW, **GRID, centre=(9, 1)), "no galaxy is in the field of 4 x 4 pixels .* 1 outside"),
    (lambda: grid_catalogue(**ROW, **GRID, centre=(9, 91)), r"\|Dec\| <= 90, got \(9, 91\)"),
    (lambda: grid_catalogue(**ROW, **GRID, east="up"), 'east must be "left"'),
    (lambda: grid_catalogue(**ROW, **GRID, positive_e2="N"), 'positive_e2 must be "NW"'),
    (lambda: grid_catalogue(**ROW, **GRID), r"noise of one galaxy must be finite and > 0, got \(0.0, 0.0\); pass"),
    (lambda: grid_shear(**FLAT, weight=[-1.0], **GRID), "1 weights are negative"),
    (lambda: grid_shear(**FLAT, shape=(4, 4), pixel=0.0), "a pixel > 0 arcmin"),
    (lambda: reduced_shear(X.expand(1, 2, 8, 8), X + 1), "needs kappa < 1"),
    (lambda: invert_reduced(KaiserSquires((8, 8)), X.expand(1, 2, 8, 8), max_iter=0), "max_iter must be at least 1"),
    (lambda: power_spectrum(X, 0.0), "pixel must be the pixel's size in arcmin"),
    (lambda: power_spectrum(X, 1.0, 0), "bins must be at least 1"),
    (lambda: power_spectrum(X, 1.0, 30), r"has no Fourier mode of a \(8, 8\) map; take fewer or wider bins"),
    (lambda: power_spectrum(X, 1.0, torch.tensor([3.0, 2.0])), "edges in ell that grow"),
    (lambda: power_grid((8, 8), 1.0, torch.tensor([10.0, 20.0]), torch.ones(2)), "extend the table"),
    (lambda: power_grid((8, 8), 1.0, torch.tensor([10.0, 1e5]), torch.zeros(2)), "growing and > 0, and C_ell > 0"),
    (lambda: fit_power(torch.zeros(1, 8, 8, dtype=torch.complex64)), "zero everywhere"),
    (lambda: draw_field(-torch.ones(8, 8)), "power must be finite and >= 0"),
    (lambda: smooth(X, -1.0), "sigma must be finite and >= 0"),
    (lambda: find_peaks(X[0]), r"shape \(batch, 1, H, W\), at least 3 x 3, got \(1, 8, 8\)"),
    (lambda: peak_counts(X, torch.tensor([1.0])), "two or more heights"),
    (lambda: b_mode_test(KaiserSquires((8, 8)), X, pixel=1.0), "the noise is not known"),
    (lambda: b_mode_test(NOISY, torch.zeros(2, 2, 8, 8), pixel=1.0, bins=2), "batch of 2"),
    (lambda: b_mode_test(NOISY, torch.zeros(1, 2, 8, 8), pixel=1.0, bins=2, realisations=4), "a covariance of"),
    (lambda: b_mode_test(NOISY, Y, pixel=1.0, bins=2, noise=Y[0]), r"noise must be \(n, 2, 8, 8\), whitened, got"),
    (lambda: b_mode_test(NOISY, Y, pixel=1.0, bins=2, noise=Y), "1 realisations cannot give a covariance of"),
    (lambda: b_mode_test(NOISY, Y, pixel=1.0, noise=Y, realisations=9), "pass noise or realisations, not both"),
    (lambda: rotated_shear(**FLAT, **GRID, count=0), "count must be at least 1 map, got 0"),
    (lambda: rotated_catalogue(**ROW, **GRID, centre=(9, 1)), "no galaxy is in the field"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), CASES, ids=[f"{i}-{c[1][:24]}" for i, c in enumerate(CASES)])
def test_error_says_what_to_do(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# ---- real data ---------------------------------------------------------------------------------


@pytest.fixture
def cosmos(shared_data: Path):
    fits = pytest.importorskip("astropy.io.fits")

    def read(name: str) -> Tensor:
        return torch.as_tensor(fits.getdata(shared_data / "lensing" / name).astype(np.float64))

    return read


def test_real_cosmos_maps_give_the_published_one(cosmos) -> None:
    gamma = torch.stack([cosmos(f"cosmos/cosmos_full_e{i}_0.29arcmin360.fits") for i in (1, 2)])[None].float()
    op = KaiserSquires((360, 360), cosmos("cosmos/cosmos_full_mask_0.29arcmin360.fits"))
    found = smooth(op.ks(op.whiten(gamma)), 2.0).flip(-1)
    assert pearson(found, cosmos("cosmos/ks_e_0.29arcmin360.fits")) > 0.99999


def test_real_cosmos_catalogue_gives_the_published_maps(cosmos) -> None:
    """They are binned in RA and Dec as they stand, about the medians, East to the right, 0.29 arcmin a pixel."""
    ra, dec, e1, e2, w = (cosmos(f"cosmos/{name}.fits") for name in ("ra", "dec", "e1", "e2", "nhweight_int"))
    x, y = ((v.numpy() - np.median(v)) * 60 for v in (ra, dec))
    maps = grid_shear(x, y, e1, -e2, w, shape=(360, 360), pixel=0.29)
    assert maps.used == len(ra) == 417_117
    assert torch.equal(maps.mask.double(), cosmos("cosmos/cosmos_full_mask_0.29arcmin360.fits"))
    for i in (0, 1):
        published = cosmos(f"cosmos/cosmos_full_e{i + 1}_0.29arcmin360.fits")
        torch.testing.assert_close(maps.gamma[0, i].double(), published, atol=1e-6, rtol=0)
        std = torch.where(maps.mask, (e1, e2)[i].std(correction=0) / maps.count.clamp_min(1).double().sqrt(), 0)
        torch.testing.assert_close(std, cosmos(f"cosmos/std{i + 1}.fits"), atol=1e-6, rtol=0)
    op = KaiserSquires(maps.shape, maps.mask, maps.sigma)
    assert op.estimate_noise(op.whiten(maps.gamma)) == pytest.approx(op.sigma, rel=0.02)
    centre = float(np.median(ra)), float(np.median(dec))
    sky = grid_catalogue(ra, dec, e1, e2, w, shape=(360, 360), pixel=0.29, centre=centre, east="right")
    assert sky.used == maps.used and float((sky.mask == maps.mask).float().mean()) > 0.995
    kappa = [smooth(op.ks(op.whiten(part.gamma)), 6.0) for part in (maps, sky)]
    assert pearson(*kappa) > 0.97


def test_b_mode_of_real_cosmos(cosmos) -> None:
    """As docs/lensing.md says: Gaussian noise fails everywhere, rotations only on large scales, kappa mends that."""
    ra, dec, e1, e2, w = (cosmos(f"cosmos/{name}.fits") for name in ("ra", "dec", "e1", "e2", "nhweight_int"))
    grid = {"shape": (360, 360), "pixel": 0.29}
    maps = grid_catalogue(ra, dec, e1, e2, w, **grid)
    op = KaiserSquires(maps.shape, maps.mask, maps.sigma)
    y = op.whiten(maps.gamma)
    noise = op.whiten(rotated_catalogue(ra, dec, e1, e2, w, **grid, count=60))
    kappa = draw_field(op.fit_power(y), 60).float()

    def off(test) -> Tensor:
        return (test.power - test.expected) / test.spread

    gaussian, rotated = (b_mode_test(op, y, pixel=0.29, bins=6, noise=n) for n in (None, noise))
    both = b_mode_test(op, y, pixel=0.29, bins=6, noise=noise, kappa=kappa)
    assert gaussian.amplitude > 1.015 and abs(rotated.amplitude - 1) < 0.01
    assert rotated.pte < 0.02 < both.pte and both.chi2 < rotated.chi2 / 2
    assert int((off(gaussian) > 1.5).sum()) >= 5
    assert bool((off(rotated)[:2] > 3).all()) and abs(float(off(rotated)[-1])) < 2


def test_baselines(cosmos) -> None:
    """The table of the COSMOS-like kappaTNG case, in the mask, mean removed: rmse and Pearson's r."""
    mask = cosmos("cosmos/cosmos_full_mask_0.29arcmin360.fits")
    sigma = torch.stack([cosmos(f"cosmos/std{i}.fits") for i in (1, 2)])
    truth, gamma = cosmos("ktng/ktng_cosmos_kappa360.fits"), cosmos("ktng/ktng_cosmos_e360.fits")
    op = KaiserSquires((360, 360), mask, sigma)
    path = Path(__file__).resolve().parents[2] / "shared" / "data" / "lensing" / "ktng" / "ktng_PS_theory.npy"
    S = power_grid((360, 360), 300 / 1024, *torch.as_tensor(np.load(path)))
    seen = mask > 0

    def figures(x: Tensor) -> tuple[float, float]:
        a, b = x[0, 0][seen].double(), truth[seen]
        return float(((a - a.mean()) - (b - b.mean())).square().mean().sqrt()), pearson(a, b)

    y = op.whiten(gamma.movedim(-1, 0)[None].float())
    assert figures(op.ks(y)) == pytest.approx((0.146, 0.19), rel=0.02)
    assert figures(smooth(op.ks(y), 3.0)) == pytest.approx((0.0234, 0.571), rel=0.02)
    torch.manual_seed(0)  # noise drawn as the maps say; that of the file is 0.148 in every pixel
    drawn = [figures(op.wiener(op(truth[None, None].float()), S)) for _ in range(3)]
    assert np.mean(drawn, 0) == pytest.approx((0.0218, 0.624), rel=0.02)
    level = KaiserSquires((360, 360), mask, 0.148)
    residual = gamma.movedim(-1, 0) - level.A(truth[None, None])[0]
    assert float(residual[:, seen].std()) == pytest.approx(0.148, rel=0.01)
    y = level.whiten(gamma.movedim(-1, 0)[None].float())
    assert figures(level.wiener(y, S)) == pytest.approx((0.02246, 0.591), rel=0.02)  # by an independent numpy version
    assert figures(level.wiener(y))[1] > 0.585
