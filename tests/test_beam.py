"""The restoring beam: fits and pictures against analytic Gaussians, astropy and direct sums."""

import math
import warnings

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.modeling.fitting import TRFLSQFitter
from astropy.modeling.models import Gaussian2D
from astropy.wcs import WCS

from pnp_lofi.beam import Beam, fit_beam, restore
from pnp_lofi.fits import sky_header
from pnp_lofi.operators import NUFFT, default_cell, imaging_weights, meerkat_uvw, uv_radians

CELL = 2.0
FWHM = 2 * math.sqrt(2 * math.log(2))  # over the standard deviation


def on_the_sky(major: float, minor: float, angle: float, shape: tuple[int, int]) -> np.ndarray:
    """A Gaussian about the pixel N//2 from the celestial offsets that astropy tells for each pixel."""
    wcs = WCS(fits.Header(sky_header(shape, CELL, (30.0, -45.0), "Jy/beam")))
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    sky = wcs.pixel_to_world(columns, rows)
    centre = wcs.pixel_to_world(shape[1] // 2, shape[0] // 2)
    distance = centre.separation(sky).arcsec
    turned = centre.position_angle(sky).rad - math.radians(angle)  # from the major axis; from North through East
    along, across = distance * np.cos(turned), distance * np.sin(turned)
    return np.exp(-4 * math.log(2) * ((along / major) ** 2 + (across / minor) ** 2))


@pytest.mark.parametrize("shape", [(64, 64), (61, 80)])
@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, -50.0])
def test_position_angle_is_the_astronomers(shape, angle):
    expected = torch.from_numpy(on_the_sky(20.0, 9.0, angle, shape))
    torch.testing.assert_close(Beam(20.0, 9.0, angle).image(shape, CELL), expected, atol=2e-5, rtol=0)
    found = fit_beam(expected, CELL)
    assert (found.major, found.minor) == pytest.approx((20.0, 9.0), rel=1e-4)
    assert (found.position_angle - angle + 90) % 180 - 90 == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(("major", "minor", "angle"), [(3.2, 3.0, 20.0), (80.0, 12.0, 75.0), (9.0, 9.0, 0.0)])
def test_the_fit_of_a_gaussian_is_exact(major, minor, angle):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        psf = Beam(major, minor, angle).image((90, 90), CELL)
    found = fit_beam(psf, CELL)
    assert (found.major, found.minor) == pytest.approx((major, minor), rel=1e-6)
    if major > minor:
        assert found.position_angle == pytest.approx(angle, abs=1e-4)


def test_side_lobes_are_left_alone():
    psf = Beam(18.0, 11.0, 20.0).image((64, 64), CELL)
    psf[5:9, 5:9] = psf[-9:-5, -9:-5] = 0.9
    found = fit_beam(psf, CELL)
    assert (found.major, found.minor, found.position_angle) == pytest.approx((18, 11, 20), rel=1e-6)


def test_a_real_beam_against_astropy():
    uvw = meerkat_uvw(1.0, declination=-10.0)
    cell = default_cell(uvw, 1.4e9)
    uv = uv_radians(uvw, 1.4e9, cell)
    psf = NUFFT((64, 64), uv, imaging_weights((64, 64), uv, robust=0.0)).psf()
    found = fit_beam(psf, cell)
    values = psf.double().numpy()
    rows, columns = np.nonzero(values > 0.35)
    near = np.hypot(rows - 32, columns - 32) < 8  # the main lobe
    rows, columns = rows[near], columns[near]
    start = Gaussian2D(1, 0, 0, 2, 2, 0.0, fixed={"amplitude": True, "x_mean": True, "y_mean": True})
    fitted = TRFLSQFitter()(start, 32.0 - columns, rows - 32.0, values[rows, columns])  # x East, y North
    widths = sorted(abs(s) * FWHM * cell for s in (fitted.x_stddev.value, fitted.y_stddev.value))
    assert (found.minor, found.major) == pytest.approx(widths, rel=1e-3)
    theta = math.degrees(float(fitted.theta.value)) % 180  # of the x axis from East towards North
    theta += 90 if abs(fitted.y_stddev.value) > abs(fitted.x_stddev.value) else 0
    assert (found.position_angle - (90 - theta) + 90) % 180 - 90 == pytest.approx(0, abs=0.5)
    assert found.major > 1.2 * found.minor  # else the angle says nothing


@pytest.mark.parametrize("shape", [(60, 60), (45, 70)])
def test_a_point_keeps_its_peak_and_flux(shape):
    beam = Beam(12.0, 7.0, 40.0)
    model = torch.zeros(shape)
    model[20, 33] = 1.0
    found = restore(model, None, beam, CELL)
    assert divmod(int(found.argmax()), shape[1]) == (20, 33)
    assert float(found.max()) == pytest.approx(1, abs=1e-6)
    assert float(found.sum()) / beam.pixels(CELL) == pytest.approx(1, abs=1e-4)
    assert beam.pixels(CELL) == pytest.approx(float(beam.image((101, 101), CELL).sum()), rel=1e-6)


def test_restored_is_a_direct_sum():
    rng = np.random.default_rng(0)
    model, residual = rng.normal(size=(2, 11, 14))
    beam = Beam(9.0, 5.0, -35.0)
    rows, columns = np.mgrid[:11, :14]
    expected = residual.copy()
    for r in range(11):
        for c in range(14):
            north, east = (rows - r) * CELL, (c - columns) * CELL
            along = north * math.cos(math.radians(-35)) + east * math.sin(math.radians(-35))
            across = -north * math.sin(math.radians(-35)) + east * math.cos(math.radians(-35))
            expected += model[r, c] * 2.0 ** (-4 * ((along / 9.0) ** 2 + (across / 5.0) ** 2))
    found = restore(torch.from_numpy(model), torch.from_numpy(residual), beam, CELL)
    torch.testing.assert_close(found, torch.from_numpy(expected))
    batch = restore(torch.from_numpy(model).float()[None, None], None, beam, CELL)
    assert batch.shape == (1, 1, 11, 14) and batch.dtype == torch.float32


def test_cards_and_range_of_the_angle():
    assert Beam(36.0, 18.0, 190.0).cards() == pytest.approx({"BMAJ": 0.01, "BMIN": 0.005, "BPA": 10.0})
    for given, kept in ((90, 90), (-90, 90), (91, -89), (-100, 80), (0, 0), (360, 0)):
        assert Beam(2.0, 1.0, given).position_angle == pytest.approx(kept)


def test_a_coarse_beam_is_told():
    with pytest.warns(UserWarning, match=r"only 1.20 pixels across"):
        Beam(5.0, 2.4).image((9, 9), CELL)
    with pytest.raises(ValueError, match=r"finer than the pixel \(2 arcsec\); use a cell of at most 0.95 arcsec"):
        restore(torch.zeros(9, 9), None, Beam(5.0, 1.9), CELL)
    sharp = torch.zeros(9, 9)
    sharp[4, 4] = 1
    with pytest.raises(ValueError, match="the dirty beam is finer than the pixel"):
        fit_beam(sharp, CELL)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Beam(1.0, 2.0), "0 < minor <= major"),
        (lambda: Beam(math.nan, 1.0), "0 < minor <= major"),
        (lambda: Beam(2.0, 1.0, math.inf), "finite position angle"),
        (lambda: fit_beam(torch.ones(3, 3), CELL), "at least 5 x 5"),
        (lambda: fit_beam(torch.zeros(9, 9), CELL), r"peak of 1 at the pixel \(4, 4\), got 0"),
        (lambda: fit_beam(torch.ones(9, 9), CELL), "reaches the edge"),
        (lambda: fit_beam(torch.ones(9, 9), CELL, cutoff=0.0), "between 0 and 1"),
        (lambda: restore(torch.zeros(8, 8), torch.zeros(8, 9), Beam(9, 9), CELL), "alike"),
        (lambda: Beam(9.0, 9.0).image((4, 4), 0.0), "cell must be finite and > 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
