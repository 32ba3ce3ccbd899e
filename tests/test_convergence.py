"""Procedural convergence: the power spectrum that is asked for, and the peaks of a simulated map."""

import numpy as np
import pytest
import torch

from pnp_lofi.convergence import convergence, ktng_spectrum
from pnp_lofi.lensing_power import draw_field, power_grid, power_spectrum, smooth

PIXEL = 0.8  # [arcmin]


def skewness(x: torch.Tensor) -> torch.Tensor:
    x = x.double() - x.double().mean((1, 2, 3), keepdim=True)
    return (x**3).mean((1, 2, 3)) / x.std((1, 2, 3)) ** 3


def rings(grid: torch.Tensor) -> torch.Tensor:
    """Mean of the requested power S over the rings of ell, as C_ell, from white noise of that power."""
    white = torch.fft.ifft2(grid.sqrt() * len(grid)).real  # a map whose modes have exactly the power
    return power_spectrum(white[None, None], PIXEL, 8).power.reshape(-1)


@pytest.mark.parametrize("halos", [0.0, 0.5, 0.8])
def test_power_is_what_is_asked_for(halos):
    ell = torch.logspace(1, 5, 200, dtype=torch.float64)
    power = 3e-10 * (ell / 1000) ** -1.2  # not the built-in one
    x = convergence(120, 64, PIXEL, seed=3, ell=ell, power=power, halos=halos)
    found = power_spectrum(x.double(), PIXEL, 8).power[:, 0]
    want = rings(power_grid((64, 64), PIXEL, ell, power))
    error = found.std(0) / len(found) ** 0.5
    assert bool(((found.mean(0) - want).abs() < 4 * error + 0.01 * want).all())


def test_power_by_hand():
    """C_ell = |sum kappa exp(-i ell theta)|^2 (pixel / N)^2, pixel in radians, and ell of that sum."""
    n, count, radians = 64, 100, np.pi / 180 / 60 * PIXEL
    x = convergence(count, n, PIXEL, seed=5)[:, 0].double().numpy()
    found = (np.abs(np.fft.fft2(x)) ** 2).mean(0) * (radians / n) ** 2
    f = np.fft.fftfreq(n, radians)
    ell = 2 * np.pi * np.hypot(f[:, None], f)
    for low, high in ((1500, 4000), (4000, 8000), (8000, 19000)):
        ring = (ell > low) & (ell < high)
        wanted = ktng_spectrum(torch.from_numpy(ell[ring])).numpy()
        assert found[ring].mean() == pytest.approx(wanted.mean(), rel=0.06)


def test_rings_are_those_of_gaussian_fields():
    ell = torch.logspace(1, 5, 200, dtype=torch.float64)
    grid = power_grid((64, 64), PIXEL, ell, ktng_spectrum(ell))
    found = power_spectrum(draw_field(grid, 200), PIXEL, 8).power[:, 0]
    assert bool(((found.mean(0) / rings(grid) - 1).abs() < 4 * found.std(0) / found.mean(0) / 200**0.5 + 0.01).all())


def test_maps_have_mean_zero_and_a_long_tail():
    x = convergence(20, 64, PIXEL, seed=1)
    assert x.shape == (20, 1, 64, 64) and x.dtype == torch.float32
    assert x.mean((1, 2, 3)).abs().max() < 1e-8 * 64**2
    assert skewness(x).mean() > 0.8 and (x.amax((1, 2, 3)) > 3 * -x.amin((1, 2, 3))).float().mean() > 0.5
    gaussian = draw_field(power_grid((64, 64), PIXEL, *spectrum()), 20)
    assert skewness(gaussian).abs().mean() < 0.4


def spectrum() -> tuple[torch.Tensor, torch.Tensor]:
    ell = torch.logspace(1, 5, 200, dtype=torch.float64)
    return ell, ktng_spectrum(ell)


def test_same_seed_same_maps_whatever_the_count():
    x = convergence(3, 32, PIXEL, seed=7)
    assert torch.equal(x[:2], convergence(2, 32, PIXEL, seed=7))
    assert not torch.equal(x[0], x[1]) and not torch.equal(x[0], convergence(1, 32, PIXEL, seed=8)[0])


@pytest.mark.parametrize(
    ("change", "text"),
    [({"count": 0}, "count 0"), ({"size": 8}, "size 8"), ({"pixel": 0}, "arcmin"), ({"halos": 1.5}, "got 1.5"),
     ({"ell": torch.ones(3)}, "both ell and power"), ({"seed": -1}, "-1"),
     ({"ell": torch.tensor([100.0, 200]), "power": torch.ones(2)}, "extend the table")],
)  # fmt: skip
def test_errors(change, text):
    options = {"count": 1, "size": 32, "pixel": PIXEL, "seed": 0} | change
    with pytest.raises(ValueError, match=text):
        convergence(**options)


def test_the_built_in_spectrum_is_that_of_the_simulation(shared_data):
    ell, power = torch.from_numpy(np.load(shared_data / "lensing" / "ktng" / "ktng_PS_theory.npy"))
    torch.testing.assert_close(ktng_spectrum(ell), power, rtol=0.025, atol=0)


def test_statistics_are_about_those_of_a_simulated_map(shared_data):
    fits = pytest.importorskip("astropy.io.fits")
    kappa = fits.getdata(shared_data / "lensing" / "ktng" / "ktng_cosmos_kappa360.fits").astype(np.float64)
    real = torch.from_numpy(kappa - kappa.mean())[None, None]
    x = convergence(6, 360, 0.293, seed=1).double()
    assert float(x.std()) == pytest.approx(float(real.std()), rel=0.15)
    assert 0.6 < float(skewness(x).mean() / skewness(real)) < 1.5
    assert 0.6 < float(skewness(smooth(x, 2)).mean() / skewness(smooth(real, 2))) < 1.7
    for q in (0.001, 0.1, 0.5, 0.9, 0.99):
        ours, theirs = (float(np.quantile(m.numpy(), q)) for m in (x, real))
        assert ours == pytest.approx(theirs, abs=0.15 * abs(theirs) + 0.001)
