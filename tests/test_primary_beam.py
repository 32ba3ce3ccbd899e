"""Primary beams against their formulas, published widths, astropy's angles, and what correction does to noise."""

import math

import numpy as np
import pytest
import torch
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from pnp_lofi.fits import sky_header, write_fits
from pnp_lofi.primary_beam import (
    correct,
    corrected_noise,
    gaussian,
    meerkat,
    pattern,
    primary_beam,
    read_pattern,
    vla,
)


def at(power, *degrees: float) -> np.ndarray:
    return power(torch.tensor(degrees, dtype=torch.float64)).numpy()


def test_meerkat_is_the_published_formula():
    frequency = 1.284e9
    fwhm = 57.5 / 60 * 1.5e9 / frequency
    angle = np.array([0.0, 0.1, 0.3, fwhm / 2, 0.8, 1.1, 2.0])
    rho = 1.189 * angle / fwhm
    expected = (np.cos(np.pi * rho) / (1 - 4 * rho**2)) ** 2
    found = at(lambda a: meerkat(a, frequency), *angle)
    np.testing.assert_allclose(found, expected, atol=5e-5)
    assert found[0] == 1 and found[3] == pytest.approx(0.5, abs=1e-6)
    removable = 0.5 / 1.18896478 * fwhm  # 0/0 in the formula
    assert at(lambda a: meerkat(a, frequency), removable)[0] == pytest.approx((math.pi / 4) ** 2, rel=1e-9)


# katbeam (JimBeam, MKAT-AA-L-JIM-2020), holography: mean of the four widths [arcmin] at [MHz]; the law's 1/frequency
# is wrong by up to 4 % of the width, that is 0.03 of the power
@pytest.mark.parametrize(("mhz", "width"), [(900, 99.16), (1100, 79.54), (1300, 65.70), (1500, 57.91), (1650, 54.31)])
def test_meerkat_against_holography(mhz, width):
    assert at(lambda a: meerkat(a, mhz * 1e6), width / 120)[0] == pytest.approx(0.5, abs=0.03)


def test_vla_by_hand():
    # x = (15 arcmin 1.4 GHz)^2 = 441
    expected = 1 - 1.343e-3 * 441 + 6.579e-7 * 441**2 - 1.186e-10 * 441**3
    assert at(lambda a: vla(a, 1.4e9), 0.25)[0] == pytest.approx(expected, rel=1e-12)
    for frequency in (0.33e9, 1.4e9, 4.5e9, 8e9, 15e9, 22e9, 43e9):
        radii = np.linspace(0, 2, 400) / (frequency / 1e9)
        powers = at(lambda a, f=frequency: vla(a, f), *radii)
        assert powers[0] == 1 and (np.diff(powers) <= 0).all() and powers[-1] == 0
        half = np.interp(-0.5, -powers, radii) * 2 * 60 * frequency / 1e9
        assert 41 < half < 54


def test_pattern_by_name_width_or_file(tmp_path):
    table = tmp_path / "beam.txt"
    table.write_text("# radius power\n0, 1\n0.5, 0.5\n1.0 0.1\n")
    assert at(pattern(table, 1e9), 0.0, 0.25, 0.75, 1.0, 1.1) == pytest.approx([1, 0.75, 0.3, 0.1, 0])
    assert at(pattern(0.8, 1e9), 0.4)[0] == pytest.approx(0.5)
    assert at(pattern("MeerKAT", 1.3e9), 0.4) == at(lambda a: meerkat(a, 1.3e9), 0.4)
    assert at(pattern("vla", 1.3e9), 0.2) == at(lambda a: vla(a, 1.3e9), 0.2)


@pytest.mark.parametrize("pointing", [(0.0, 0.0), (600.0, -1500.0)])
def test_on_the_grid_against_astropy(pointing):
    shape, cell = (20, 27), 300.0
    wcs = WCS(fits.Header(sky_header(shape, cell, (50.0, -30.0), "")))
    offset = wcs.pixel_to_world(13 - pointing[0] / cell, 10 + pointing[1] / cell)  # East is to the left
    rows, columns = np.mgrid[:20, :27]
    angle = SkyCoord(wcs.pixel_to_world(columns, rows)).separation(offset).deg
    found = primary_beam(shape, cell, lambda a: gaussian(a, 1.0), pointing=pointing)
    np.testing.assert_allclose(found, np.exp(-4 * np.log(2) * angle**2), atol=1e-9)


def test_correction_and_noise(tmp_path):
    shape, cell = (40, 41), 120.0
    beam = primary_beam(shape, cell, pattern("meerkat", 1.4e9))
    truth = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0)) + 1
    found = correct(truth * beam.float(), beam, cutoff=0.3)
    kept = beam >= 0.3
    assert 0.1 < float(kept.double().mean()) < 0.9
    torch.testing.assert_close(found[..., kept], truth[..., kept])
    assert bool(found[..., ~kept].isnan().all()) and found.dtype == truth.dtype
    noise = corrected_noise(0.2, beam, cutoff=0.3)
    assert float(noise[20, 20]) == pytest.approx(0.2)
    assert float(noise[kept].max()) == pytest.approx(0.2 / 0.3, rel=0.05)
    write_fits(tmp_path / "x.fits", found[0, 0].numpy(), sky_header(shape, cell, (0.0, 0.0), "Jy/beam"))
    np.testing.assert_array_equal(np.isnan(fits.getdata(tmp_path / "x.fits")), ~kept.numpy())


def test_noise_of_a_corrected_image_grows_as_told():
    beam = primary_beam((30, 30), 120.0, pattern("meerkat", 1.4e9))
    apparent = torch.randn(4000, 30, 30, generator=torch.Generator().manual_seed(1))
    spread = correct(apparent, beam).std(0)
    kept = beam >= 0.2
    torch.testing.assert_close(spread[kept].double(), corrected_noise(1.0, beam)[kept], rtol=0.06, atol=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1\n1 x\n", "expected lines of radius"),
        ("0 1 2\n1 0.5 2\n", "expected two columns"),
        ("0 1\n", "expected two columns"),
        ("0.1 1\n1 0.5\n", "radii must grow from 0"),
        ("0 1\n1 0.5\n1 0.4\n", "radii must grow from 0"),
        ("0 1\n1 nan\n", "powers must be finite"),
        ("0 100\n1 50\n", "per cent or decibel"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    path = tmp_path / "beam.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_pattern(path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pattern("effelsberg", 1e9), "known: meerkat, vla, or a table"),
        (lambda: pattern(0.0, 1e9), "width of a primary beam"),
        (lambda: pattern("vla", 0.0), "frequency must be"),
        (lambda: primary_beam((8, 8), 0.0, lambda a: a), "cell must be finite and > 0"),
        (lambda: correct(torch.zeros(8, 8), torch.ones(8, 9)), "of one size"),
        (lambda: correct(torch.zeros(8, 8), torch.ones(8, 8), cutoff=0.0), r"cutoff must lie in \(0, 1\]"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
