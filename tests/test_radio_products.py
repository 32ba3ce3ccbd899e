"""What `pnp-lofi solve radio` writes: fluxes and places of known sources, beams, and simulations with other arrays."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image
from typer.testing import CliRunner

from pnp_lofi.__main__ import app
from pnp_lofi.beam import Beam
from pnp_lofi.observation import Observation, read_observation, write_observation
from pnp_lofi.operators import NUFFT, array_uvw, meerkat_uvw
from pnp_lofi.primary_beam import meerkat
from pnp_lofi.radio_file import image_file
from pnp_lofi.radio_measurement import measurement
from pnp_lofi.radio_products import UNITS, beams_of, output_paths, parse_beam
from pnp_lofi.radio_simulation import simulate

SHAPE, CELL, FREQUENCY, CENTRE = (96, 96), 3.0, 1.4e9, (83.6, -32.0)
SOURCES = {(20, 24): 1.0, (46, 50): 0.4, (72, 76): 0.7, (74, 20): 0.2}  # row, column: [Jy]
BOX = 12  # pixels on both sides of a source; the beam is eight wide
SIGMA = 0.01  # noise per real component of a visibility [Jy]
ENU = "e,n,u\n0,0,0\n120,40,1\n-310,90,0\n55,-420,2\n-90,610,1\n400,330,0\n-510,-280,3\n700,-150,1\n"


def place(row: float, column: float) -> SkyCoord:
    """By spherical trigonometry, apart from any world coordinate system of FITS."""
    l, m = ((SHAPE[1] // 2 - column) * CELL / 206264.806, (row - SHAPE[0] // 2) * CELL / 206264.806)
    n, d0 = math.sqrt(1 - l**2 - m**2), math.radians(CENTRE[1])
    dec = math.asin(m * math.cos(d0) + n * math.sin(d0))
    ra = math.atan2(l, n * math.cos(d0) - m * math.sin(d0))
    return SkyCoord(CENTRE[0] * units.deg + ra * units.rad, dec * units.rad)


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """Visibilities of the sources by the sum over them, in OBS.h5."""
    path = tmp_path_factory.mktemp("points") / "obs.h5"
    uvw = meerkat_uvw(1.0, declination=CENTRE[1], integration=600.0).numpy()
    vis = np.zeros(len(uvw), complex)
    for (row, column), flux in SOURCES.items():
        lm = np.array([SHAPE[1] // 2 - column, row - SHAPE[0] // 2]) * CELL / 206264.806
        vis += flux * np.exp(-2j * np.pi * (uvw[:, :2] @ lm) * FREQUENCY / 299792458.0)
    rng = np.random.default_rng(0)
    vis += SIGMA * (rng.normal(size=len(vis)) + 1j * rng.normal(size=len(vis)))
    write_observation(path, Observation(uvw, FREQUENCY, vis, np.full(len(vis), SIGMA**-2), np.zeros(len(vis), bool),
                      CELL, CENTRE, "MeerKAT", absolute_weights=True))  # fmt: skip
    return path


def fluxes(path) -> dict[tuple[int, int], tuple[float, float]]:
    """Peak [Jy/beam] and flux integrated over a box around it [Jy], from the restored image and its header alone."""
    image, header = fits.getdata(path)[0, 0].astype(float), fits.getheader(path)
    pixels = math.pi / (4 * math.log(2)) * header["BMAJ"] * header["BMIN"] / header["CDELT2"] ** 2
    found = {}
    for r, c in SOURCES:
        box = image[r - BOX : r + BOX + 1, c - BOX : c + BOX + 1]
        found[r, c] = (float(box.max()), float(box.sum() / pixels))
    return found


def centroid(image: np.ndarray, row: int, column: int) -> tuple[float, float]:
    """Peak of the paraboloid through the logarithm of 3 x 3 pixels: exact for a Gaussian."""
    r, c = (a.ravel() for a in np.mgrid[-1:2, -1:2])
    terms = np.stack([np.ones(9), r, c, r * r, r * c, c * c], axis=-1)
    _, a, b, p, q, s = np.linalg.lstsq(terms, np.log(image[row - 1 : row + 2, column - 1 : column + 2].ravel()))[0]
    dr, dc = np.linalg.solve([[2 * p, q], [q, 2 * s]], [-a, -b])
    return row + dr, column + dc


def check_places(path, tolerance: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a header that astropy has to mend is not right
        wcs = WCS(fits.getheader(path))
    assert wcs.pixel_to_world_values(0, 0, 0, 0)[2] == pytest.approx(FREQUENCY)
    image = fits.getdata(path)[0, 0].astype(float)
    for row, column in SOURCES:
        r, c = centroid(image, row, column)
        read = wcs.celestial.pixel_to_world(c, r).icrs
        assert read.separation(place(row, column)).arcsec < tolerance * CELL


def test_clean_gives_fluxes_and_places(points, tmp_path):
    out = tmp_path / "rec.fits"
    report = image_file(points, out, size=96, clean=True)
    for place_, (peak, flux) in fluxes(tmp_path / "rec_restored.fits").items():
        assert peak == pytest.approx(SOURCES[place_], rel=0.01)
        assert flux == pytest.approx(SOURCES[place_], rel=0.01)
    check_places(tmp_path / "rec_restored.fits", 0.01)
    assert report["method"] == "Hogbom CLEAN, a baseline" and report["prior"] is None
    assert report["status"] == "converged" and "below the noise's threshold" in report["stopped"]
    assert report["noise_jy_per_beam"] == pytest.approx(measurement(read_observation(points), SHAPE)[0].dirty_noise())
    assert report["flux_jy"] == pytest.approx(sum(SOURCES.values()), rel=0.01)


@pytest.mark.slow
def test_lofi_admm_gives_fluxes_and_places(points, tmp_path):
    report = image_file(points, tmp_path / "rec.fits", size=96)
    for place_, (peak, flux) in fluxes(tmp_path / "rec_restored.fits").items():
        assert peak == pytest.approx(SOURCES[place_], rel=0.01)
        assert flux == pytest.approx(SOURCES[place_], rel=0.01)
    check_places(tmp_path / "rec_restored.fits", 0.01)
    assert report["method"] == "LoFi-ADMM" and report["prior"] == "radio"
    assert report["status"] == "converged" and report["stopped"] == "the residuals are below the tolerance"
    assert report["misfit"] == pytest.approx(1, abs=0.05)


def solve(line: str) -> str:
    """Run `pnp-lofi ...`; its output if it worked."""
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def test_every_product_from_the_command_line(points, tmp_path):
    out = tmp_path / "rec.fits"
    solve(f"solve radio {points} --size 96 --clean --beam 30,20,-40 --primary-beam meerkat --pb-cutoff 0.995 -o {out}")
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == sorted(["rec.fits", "rec.json", "rec.png", "rec_restored.png"]
                           + [f"rec{kind}.fits" for kind in UNITS if kind not in ("", "_std")])  # fmt: skip
    header = fits.getheader(tmp_path / "rec_restored.fits")
    assert [header[k] for k in ("BMAJ", "BMIN", "BPA")] == pytest.approx([30 / 3600, 20 / 3600, -40])
    for kind in ("", "_dirty", "_residual", "_psf", "_restored", "_pb", "_pbcor"):
        header = fits.getheader(tmp_path / f"rec{kind}.fits")
        assert header["NAXIS"] == 4 and header["CRVAL3"] == FREQUENCY and header["BUNIT"] == UNITS[kind]
        assert ("BMAJ" in header) == (kind in ("_restored", "_pbcor"))
    pb, restored, corrected = (fits.getdata(tmp_path / f"rec{k}.fits")[0, 0] for k in ("_pb", "_restored", "_pbcor"))
    for row, column in ((20, 24), (0, 0), (48, 48)):
        angle = place(row, column).separation(place(48, 48)).deg
        expected = float(meerkat(torch.tensor(angle, dtype=torch.float64), FREQUENCY))
        assert pb[row, column] == pytest.approx(expected, rel=1e-6)
    inside = pb >= 0.995
    assert 0 < inside.sum() < inside.size
    np.testing.assert_allclose(corrected[inside], restored[inside] / pb[inside], rtol=1e-6)
    assert np.isnan(corrected[~inside]).all()
    psf = fits.getdata(tmp_path / "rec_psf.fits")[0, 0]
    op = measurement(read_observation(points), SHAPE)[0]
    np.testing.assert_allclose(psf, op.psf().numpy(), atol=1e-6)
    report = json.loads((tmp_path / "rec.json").read_text())
    assert report["beam"] == "given" and report["beam_major_arcsec"] == 30 and report["beam_position_angle_deg"] == -40
    assert report["method"] == "Hogbom CLEAN, a baseline" and "threshold" in report["stopped"]
    assert report["pb_part_of_image_inside"] == pytest.approx(inside.mean(), abs=1e-3)
    assert Image.open(tmp_path / "rec_restored.png").width > 600


@pytest.mark.parametrize("width", ["0.5", "table.txt"])
def test_primary_beams_of_ones_own(points, tmp_path, monkeypatch, width):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.txt").write_text("0 1\n0.25 0.5\n")
    solve(f"solve radio {points} --size 96 --clean --primary-beam {width} -o rec.fits")
    pb = fits.getdata("rec_pb.fits")[0, 0]
    angle = place(48, 8).separation(place(48, 48)).deg
    expected = 2 ** -((2 * angle / 0.5) ** 2) if width == "0.5" else 1 - 2 * angle
    assert pb[48, 8] == pytest.approx(expected, rel=1e-5)


def test_a_beam_that_cannot_be_fitted_is_a_warning(points, tmp_path):
    """A single baseline's dirty beam is a fringe without end."""
    obs = read_observation(points)
    one = Observation(obs.uvw[:1], FREQUENCY, obs.vis[:1], obs.weight[:1], obs.flag[:1], CELL, CENTRE)
    write_observation(tmp_path / "one.h5", one)
    for name in ("rec_restored.fits", "rec_restored.png", "rec_pbcor.fits"):
        (tmp_path / name).write_text("of a run before")
    with pytest.warns(UserWarning, match="no restored image: .*--beam gives one"):
        report = image_file(tmp_path / "one.h5", tmp_path / "rec.fits", size=16, sigma=0.1, iterations=1,
                            primary_beam="vla", overwrite=True)  # fmt: skip
    assert report["beam"].startswith("none: the dirty beam")
    kinds = sorted(p.name[3:-5] for p in tmp_path.glob("rec*.fits"))
    assert kinds == ["", "_dirty", "_pb", "_psf", "_residual"]
    assert not (tmp_path / "rec_restored.png").exists()


def test_clean_with_a_given_and_with_an_estimated_noise(points, tmp_path):
    known = image_file(points, tmp_path / "a.fits", size=96, clean=True, sigma=2 * SIGMA, iterations=500)
    assert known["sigma_n"] == pytest.approx(2)
    assert known["threshold_jy_per_beam"] == pytest.approx(3 * known["noise_jy_per_beam"])
    obs = read_observation(points)
    obs.absolute_weights = False
    write_observation(tmp_path / "relative.h5", obs)
    guessed = image_file(tmp_path / "relative.h5", tmp_path / "b.fits", size=96, clean=True)
    assert guessed["noise_jy_per_beam"] == pytest.approx(known["noise_jy_per_beam"] / 2, rel=0.2)
    short = image_file(points, tmp_path / "c.fits", size=96, clean=True, iterations=3)
    assert short["status"] == "limit" and short["iterations"] == 3


def test_frequency_is_the_mean_of_what_is_used(tmp_path):
    rng = np.random.default_rng(0)
    frequency, flag = np.repeat([1.0e9, 1.2e9, 3.0e9], 50), np.repeat([False, False, True], 50)
    obs = Observation(rng.normal(scale=300, size=(150, 2)), frequency, np.ones(150, complex), np.ones(150), flag, 5.0)
    write_observation(tmp_path / "obs.h5", obs)
    report = image_file(tmp_path / "obs.h5", tmp_path / "rec.fits", size=32, clean=True, beam=Beam(60, 40))
    assert report["frequency_hz"] == fits.getheader(tmp_path / "rec.fits")["RESTFRQ"] == pytest.approx(1.1e9)


@pytest.mark.parametrize("kind", ["", "_dirty", "_psf", "_restored", "_pb", "_pbcor", ".png", "_restored.png", ".json"])
def test_nothing_is_overwritten_or_begun(points, tmp_path, kind):
    path = tmp_path / (f"rec{kind}" if "." in kind else f"rec{kind}.fits")
    path.write_text("mine")
    options = {"size": 96, "clean": True, "primary_beam": "meerkat"}
    with pytest.raises(FileExistsError, match=f"{path.name} exists"):
        image_file(points, tmp_path / "rec.fits", **options)
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_text() == "mine"
    if kind != ".json":  # that one is the command line's
        image_file(points, tmp_path / "rec.fits", **options, overwrite=True)
        assert path.read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clean": True, "error_bars": 20}, "CLEAN has no error bars"),
        ({"clean": True, "resume": True}, "no run to resume"),
        ({"beam": Beam(2.5, 2.0)}, "finer than the pixel"),
        ({"primary_beam": "alma"}, "no telescope or file 'alma'; known: meerkat, vla"),
        ({"primary_beam": "-1"}, "must be finite and > 0 deg"),
        ({"primary_beam": "meerkat", "pb_cutoff": 0.0}, r"cutoff must lie in \(0, 1\]"),
    ],
)
def test_bad_options(points, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        image_file(points, tmp_path / "rec.fits", size=96, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["9", "9,6", "9,6,x", "9,6,1,2", ""])
def test_beam_of_the_command_line(text):
    assert parse_beam("9, 6,-20") == Beam(9, 6, -20)
    with pytest.raises(ValueError, match="--beam takes MAJ,MIN,PA"):
        parse_beam(text)


def test_paths_without_what_was_not_asked_for(tmp_path):
    paths = output_paths(tmp_path / "a.fit", ["_std"])
    assert paths["_psf"].name == "a_psf.fit" and "_std" not in paths


@pytest.mark.parametrize("shape", [(8, 9), (9, 8)])
def test_dirty_beam_of_odd_and_even_sizes(shape):
    op = NUFFT(shape, torch.rand(2, 300, dtype=torch.float64) * 4 - 2)
    torch.testing.assert_close(beams_of(op, 1.0, 1e9, beam=Beam(3, 3)).psf, op.psf(), atol=1e-6, rtol=0)


# ---- simulations with another array ----------------------------------------------------------------------


def test_simulate_with_ones_own_array(tmp_path):
    sky = np.zeros((32, 32), np.float32)
    sky[10, 20] = 1.0
    np.save(tmp_path / "sky.npy", sky)
    (tmp_path / "array.csv").write_text(ENU)
    line = f"simulate radio --sky {tmp_path}/sky.npy --array {tmp_path}/array.csv --hours 1 --snr 60"
    solve(f"{line} --latitude 48 -o {tmp_path}/obs.h5")
    obs = read_observation(tmp_path / "obs.h5")
    assert len(obs.vis) == 15 * 28 and obs.phase_centre == (0, 48) and obs.telescope == ""
    op, y = measurement(obs, (32, 32))
    assert divmod(int(op.dirty(y)[0, 0].argmax()), 32) == (10, 20)
    solve(f"{line} --latitude 48 --declination 30 -o {tmp_path}/low.h5")
    assert read_observation(tmp_path / "low.h5").phase_centre[1] == 30
    refused = CliRunner().invoke(app, [*line.split(), "-o", f"{tmp_path}/x.h5"])
    assert isinstance(refused.exception, ValueError) and "need the latitude" in str(refused.exception)
    bare = ["simulate", "radio", "--sky", f"{tmp_path}/sky.npy", "--latitude", "3", "-o", f"{tmp_path}/x.h5"]
    assert "meerkat has its own latitude" in str(CliRunner().invoke(app, bare).exception)


def test_meerkat_is_the_default_array():
    from pnp_lofi.antennas import meerkat as table

    sky = np.zeros((8, 8), np.float32)
    sky[2, 3] = 1
    plain, given = simulate(sky, hours=0.1), simulate(sky, hours=0.1, antennas=table(), declination=-30.0)
    np.testing.assert_array_equal(plain.vis, given.vis)
    np.testing.assert_array_equal(plain.uvw, array_uvw(table(), 0.1))
    assert plain.phase_centre[1] == -30 and plain.telescope == "MeerKAT"
