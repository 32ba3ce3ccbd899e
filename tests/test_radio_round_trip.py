"""A sky to a MeasurementSet to FITS, by the command line alone; what comes back is read by astropy."""

import json
import math
import warnings

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from typer.testing import CliRunner

from pnp_lofi.__main__ import app

pytest.importorskip("casacore.tables", reason="python-casacore is not installed: pip install 'pnp_lofi[ms]'")

N, CELL, CENTRE, FREQUENCY = 96, 2.8, (83.6, 22.0), 1.4e9
PLACES = {(22, 26): 1.0, (48, 48): 0.5, (70, 75): 0.8, (72, 24): 0.25}  # row, column: [Jy]
REACH = 9  # pixels about a source


def sky(path, width: float) -> None:
    """Sources of a Gaussian's width [pixel], 0 for points, and a header by astropy alone."""
    r, c = np.mgrid[:N, :N]
    image = np.zeros((N, N))
    for (row, column), flux in PLACES.items():
        one = np.exp(-((r - row) ** 2 + (c - column) ** 2) / (2 * width**2)) if width else (r == row) & (c == column)
        image += flux * one / one.sum()
    header = fits.Header({
        "CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN", "CRVAL1": CENTRE[0], "CRVAL2": CENTRE[1], "CRPIX1": N // 2 + 1,
        "CRPIX2": N // 2 + 1, "CDELT1": -CELL / 3600, "CDELT2": CELL / 3600, "CUNIT1": "deg", "CUNIT2": "deg",
        "RADESYS": "ICRS", "BUNIT": "Jy/pixel",
    })  # fmt: skip
    fits.PrimaryHDU(image.astype(np.float32), header).writeto(path)


def run(line: str) -> None:
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 0, (line, result.output, result.exception)


def found(path, row: int, column: int) -> tuple[SkyCoord, float]:
    """Where the brightest source near a pixel is, by its centre of gravity above a tenth; its flux [Jy]."""
    image, header = fits.getdata(path)[0, 0].astype(float), fits.getheader(path)
    box = image[row - REACH : row + REACH + 1, column - REACH : column + REACH + 1]
    beam = math.pi / (4 * math.log(2)) * header["BMAJ"] * header["BMIN"] / header["CDELT2"] ** 2
    bright = np.clip(box - 0.1 * box.max(), 0, None)
    r, c = np.mgrid[row - REACH : row + REACH + 1, column - REACH : column + REACH + 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wcs = WCS(header).celestial
    at = wcs.pixel_to_world((bright * c).sum() / bright.sum(), (bright * r).sum() / bright.sum())
    return at.icrs, float(box.sum() / beam)


def check(folder, path, flux_error: float) -> None:
    with fits.open(folder / "sky.fits") as truth:
        wcs = WCS(truth[0].header)
    for (row, column), flux in PLACES.items():
        at, measured = found(path, row, column)
        expected = wcs.pixel_to_world(column, row).icrs
        assert at.separation(expected).arcsec < 0.01 * CELL
        assert measured == pytest.approx(flux, rel=flux_error)


@pytest.mark.parametrize(
    ("array", "extra", "chosen"),
    [
        ("meerkat", "--dec -30", ""),
        ("vla-c", "--channels 3 --bandwidth 2e8", ""),
        ("vla-c", "--channels 4 --bandwidth 1e8 --integration 600", "--weight briggs --robust 0 --wide-field"),
    ],
)
def test_points_by_clean(tmp_path, array, extra, chosen):
    sky(tmp_path / "sky.fits", 0)
    run(f"simulate radio --sky {tmp_path}/sky.fits --array {array} --hours 4 --snr 40 {extra} -o {tmp_path}/obs.ms")
    if "--dec" in extra:  # the header's centre is overruled
        with fits.open(tmp_path / "sky.fits", mode="update") as moved:
            moved[0].header["CRVAL2"] = -30.0
    run(f"solve radio {tmp_path}/obs.ms --absolute-weights --size {N} --cell {CELL} --clean {chosen} "
        f"-o {tmp_path}/rec.fits")  # fmt: skip
    check(tmp_path, tmp_path / "rec_restored.fits", 0.01)
    report = json.loads((tmp_path / "rec.json").read_text())
    assert report["frequency_hz"] == pytest.approx(FREQUENCY) and report["status"] == "converged"
    assert report["misfit"] == pytest.approx(1, abs=0.1)
    header = fits.getheader(tmp_path / "rec_restored.fits")
    assert header["TELESCOP"].upper() == array.split("-")[0].upper()
    assert SkyCoord(header["CRVAL1"] * units.deg, header["CRVAL2"] * units.deg).dec.deg == pytest.approx(
        -30 if "--dec" in extra else CENTRE[1]
    )


@pytest.mark.slow
def test_small_sources_by_lofi_admm(tmp_path):
    sky(tmp_path / "sky.fits", 1.5)
    run(f"simulate radio --sky {tmp_path}/sky.fits --array vla-c --hours 4 --snr 40 -o {tmp_path}/obs.ms")
    run(f"solve radio {tmp_path}/obs.ms --absolute-weights --size {N} --cell {CELL} -o {tmp_path}/rec.fits")
    check(tmp_path, tmp_path / "rec_restored.fits", 0.01)
