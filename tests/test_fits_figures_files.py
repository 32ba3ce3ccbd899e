"""Files that leave the house: FITS with coordinates, figures, JSON, and paths that cannot be written."""

import json
import math
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image

from pnp_lofi.beam import Beam
from pnp_lofi.figures import Panel, quick_look, save_figure
from pnp_lofi.files import check_writable, write_json, written_whole
from pnp_lofi.fits import Grid, read_grid, read_sky_grid, sky_header, write_fits
from pnp_lofi.images import load_image, save_image
from pnp_lofi.operators import NUFFT, uv_radians

CENTRE = (282.3, -40.9)
CELL = 3.0


def written(path: Path, shape: tuple[int, int] = (10, 13), centre: tuple[float, float] = CENTRE) -> Path:
    image = np.arange(shape[0] * shape[1]).reshape(shape)
    write_fits(path, image, sky_header(shape, CELL, centre, "Jy/pixel", TELESCOP="MeerKAT"))
    return path


def read_wcs(path: Path) -> WCS:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a header that astropy has to mend is not right
        return WCS(fits.getheader(path))


@pytest.mark.parametrize("shape", [(10, 13), (13, 10), (8, 8), (9, 9)])
@pytest.mark.parametrize("centre", [CENTRE, (0.0, -30.0), (359.9, 60.0)])
def test_reference_pixel_is_the_phase_centre(tmp_path, shape, centre):
    wcs = read_wcs(written(tmp_path / "x.fits", shape, centre))
    at = wcs.pixel_to_world(shape[1] // 2, shape[0] // 2)  # (column, row), from 0
    assert at.icrs.ra.deg == pytest.approx(centre[0]) and at.icrs.dec.deg == pytest.approx(centre[1])


def test_rows_go_north_and_columns_west(tmp_path):
    wcs = read_wcs(written(tmp_path / "x.fits"))
    centre, north, west = (wcs.pixel_to_world(6 + c, 5 + r).icrs for r, c in ((0, 0), (1, 0), (0, 1)))
    assert centre.separation(north).arcsec == pytest.approx(CELL, rel=1e-6)
    assert centre.separation(west).arcsec == pytest.approx(CELL, rel=1e-6)
    assert centre.position_angle(north).deg % 360 == pytest.approx(0, abs=1e-3)
    assert centre.position_angle(west).deg == pytest.approx(270, abs=1e-3)  # angles go from North to East
    assert north.dec > centre.dec and west.ra < centre.ra


def test_a_source_lies_where_its_visibilities_say(tmp_path):
    """The header and the operator's convention are one: a source at (l, m) peaks in the pixel of its RA and Dec."""
    shape = (24, 30)
    wcs = read_wcs(written(tmp_path / "x.fits", shape))
    row, column = 16, 9
    source, centre = wcs.pixel_to_world(column, row).icrs, wcs.pixel_to_world(15, 12).icrs
    ra, dec = source.ra.rad - centre.ra.rad, source.dec.rad
    l = math.cos(dec) * math.sin(ra)  # direction cosines of the SIN projection, East and North
    m = math.sin(dec) * math.cos(centre.dec.rad) - math.cos(dec) * math.sin(centre.dec.rad) * math.cos(ra)
    rng = np.random.default_rng(0)
    uv, frequency = rng.uniform(-4000, 4000, (400, 2)), 1.4e9
    vis = np.exp(-2j * np.pi * (uv @ [l, m]) * frequency / 299792458.0)
    op = NUFFT(shape, uv_radians(torch.from_numpy(uv), frequency, CELL))
    dirty = op.dirty(torch.from_numpy(vis)[None, None] / math.sqrt(24 * 30))[0, 0]
    assert divmod(int(dirty.argmax()), 30) == (row, column)
    assert float(dirty.max()) == pytest.approx(1, abs=1e-3)


def test_cards_and_pixels(tmp_path):
    path = written(tmp_path / "x.fits")
    header, data = fits.getheader(path), fits.getdata(path)
    assert data.dtype == np.dtype(">f4")
    np.testing.assert_array_equal(data, np.arange(130).reshape(10, 13))
    assert (header["BUNIT"], header["TELESCOP"], header["RADESYS"]) == ("Jy/pixel", "MeerKAT", "ICRS")
    assert (header["CTYPE1"], header["CTYPE2"]) == ("RA---SIN", "DEC--SIN")
    assert (header["CRPIX1"], header["CRPIX2"]) == (7, 6)
    assert read_sky_grid(path) == Grid((10, 13), pytest.approx(CELL), CENTRE)
    assert load_image(path).shape == (1, 1, 10, 13)
    assert float(load_image(path)[0, 0, 2, 3]) == 2 * 13 + 3
    save_image(tmp_path / "plain.fits", torch.zeros(1, 1, 4, 4))
    assert read_sky_grid(tmp_path / "plain.fits") is None
    write_fits(tmp_path / "beam.fits", np.zeros((4, 4)), sky_header((4, 4), CELL, CENTRE, "Jy/beam"))
    with pytest.raises(ValueError, match="is in Jy/beam, expected Jy/pixel"):
        read_sky_grid(tmp_path / "beam.fits")


def test_texts_that_fits_cannot_hold(tmp_path):
    header = sky_header((2, 2), CELL, CENTRE, "Jy/beam", TELESCOP="Örebro\nVLA", OBJECT="x" * 200)
    write_fits(tmp_path / "x.fits", np.zeros((2, 2)), header)
    back = fits.getheader(tmp_path / "x.fits")
    assert back["TELESCOP"] == "?rebro?VLA" and back["OBJECT"] == "x" * 200


def test_four_axes_with_frequency_and_beam(tmp_path):
    shape, path = (40, 51), tmp_path / "x.fits"
    header = sky_header(shape, CELL, CENTRE, "Jy/beam", frequency=1.284e9, bandwidth=8e8, beam=Beam(9.0, 6.0, -20.0),
                        TELESCOP="MeerKAT")  # fmt: skip
    image = np.arange(40.0 * 51).reshape(shape)
    image[3, 4] = np.nan
    write_fits(path, image, header)
    back, data = fits.getheader(path), fits.getdata(path)
    assert data.shape == (1, 1, 40, 51)
    np.testing.assert_array_equal(data[0, 0], image)
    assert [back[f"CTYPE{k}"] for k in range(1, 5)] == ["RA---SIN", "DEC--SIN", "FREQ", "STOKES"]
    assert (back["RESTFRQ"], back["CRVAL3"], back["CDELT3"], back["CUNIT3"]) == (1.284e9, 1.284e9, 8e8, "Hz")
    assert (back["BMAJ"], back["BMIN"], back["BPA"]) == pytest.approx((9 / 3600, 6 / 3600, -20))
    assert (back["BUNIT"], back["TELESCOP"], back["CRVAL4"]) == ("Jy/beam", "MeerKAT", 1)
    wcs = read_wcs(path)
    assert wcs.pixel_to_world_values(0, 0, 0, 0)[2] == pytest.approx(1.284e9)
    with pytest.raises(ValueError, match="expected Jy/pixel"):
        read_sky_grid(path)
    assert read_grid(path) == Grid(shape, pytest.approx(CELL), CENTRE)
    for row, column in ((0, 0), (20, 25), (39, 50), (7, 33)):
        l, m = ((25 - column) * CELL / 206264.806, (row - 20) * CELL / 206264.806)
        d0 = math.radians(CENTRE[1])
        n = math.sqrt(1 - l**2 - m**2)
        dec = math.asin(m * math.cos(d0) + n * math.sin(d0))
        ra = CENTRE[0] + math.degrees(math.atan2(l, n * math.cos(d0) - m * math.sin(d0)))
        found = wcs.celestial.world_to_pixel_values(ra, math.degrees(dec))
        assert found == pytest.approx((column, row), abs=1e-5)


@pytest.mark.parametrize("bad", [{"frequency": 0.0}, {"frequency": 1e9, "bandwidth": math.nan}, {"bandwidth": 1e6}])
def test_bad_frequencies(bad):
    with pytest.raises(ValueError, match="frequency"):
        sky_header((2, 2), CELL, CENTRE, "Jy/beam", **bad)


def test_fits_of_another_shape(tmp_path):
    with pytest.raises(ValueError, match=r"expects an image of shape \(H, W\), got \(1, 2, 2\)"):
        write_fits(tmp_path / "x.fits", np.zeros((1, 2, 2)), {})
    assert not os.listdir(tmp_path)


def writes(path: Path, overwrite: bool) -> None:
    {
        ".fits": lambda: write_fits(path, np.ones((2, 2)), {}, overwrite=overwrite),
        ".json": lambda: write_json(path, {"a": 1}, overwrite=overwrite),
        ".png": lambda: save_figure(path, [Panel("", torch.ones(4, 4))], overwrite=overwrite),
    }[path.suffix]()


@pytest.mark.parametrize("ending", [".fits", ".json", ".png"])
def test_nothing_is_overwritten_unasked(tmp_path, ending):
    path = tmp_path / f"x{ending}"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"exists; pass --overwrite \(overwrite=True\) to replace it"):
        writes(path, False)
    assert path.read_text() == "mine"
    writes(path, True)
    assert path.read_bytes() != b"mine"
    assert os.listdir(tmp_path) == [path.name]


def test_check_writable(tmp_path):
    assert check_writable(tmp_path / "new") == tmp_path / "new"
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").write_text("x")
    with pytest.raises(FileExistsError, match="old exists; pass --overwrite"):
        check_writable(tmp_path / "old")
    assert check_writable(str(tmp_path / "old"), overwrite=True) == tmp_path / "old"
    for overwrite in (False, True):
        with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
            check_writable(tmp_path, overwrite=overwrite)
    with pytest.raises(FileNotFoundError, match=r"the folder .*none does not exist; make it first"):
        check_writable(tmp_path / "none" / "x")
    with pytest.raises(FileNotFoundError, match=r"the folder .*old does not exist"):
        check_writable(tmp_path / "old" / "x")


def test_a_bare_name_is_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json("x.json", [1])
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="is not writable"):
        check_writable(locked / "x")


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    """As above for root, who passes every os.access."""
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == tmp_path and mode & os.W_OK))
    with pytest.raises(PermissionError, match="is not writable"):
        check_writable(tmp_path / "x")


@pytest.mark.parametrize("exists", [False, True])
def test_whole_or_not_at_all(tmp_path, exists):
    path = tmp_path / "x"
    if exists:
        path.write_text("before")
    with pytest.raises(KeyboardInterrupt), written_whole(path, overwrite=True) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == (["x"] if exists else [])
    assert not exists or path.read_text() == "before"


def test_json_is_json(tmp_path):
    write_json(tmp_path / "x.json", {"psnr": math.inf, "rows": [1.5, math.nan, (2, "a")], "path": tmp_path})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    back = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert back == {"psnr": None, "rows": [1.5, None, [2, "a"]], "path": str(tmp_path)}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), np.float64) / 255


def test_figure_shows_its_panels(tmp_path):
    grey, colour = torch.linspace(0, 1, 64).reshape(8, 8), torch.zeros(3, 8, 8)
    colour[0] = 1
    sky = Panel("sky", grey[None], (0.0, 1.0), "inferno", 100.0, "Jy")
    save_figure(tmp_path / "x.png", [Panel("grey", grey), Panel("colour", colour), sky], title="three")
    image = pixels(tmp_path / "x.png")
    assert image.shape[1] == pytest.approx(3 * 3.6 * 110, abs=2)
    red = (image[..., 0] > 0.99) & (image[..., 1:] < 0.01).all(-1)
    columns = np.nonzero(red.any(0))[0]
    third = image.shape[1] / 3
    assert red.mean() > 0.1
    assert 0.95 * third < columns.min() and columns.max() < 1.05 * 2 * third  # the panel in the middle


def test_sky_has_north_up(tmp_path):
    image = torch.zeros(8, 8)
    image[0] = 1  # the southern edge
    found = []
    for sky in (False, True):
        save_figure(tmp_path / f"{sky}.png", [Panel("", image)], sky=sky)
        shown = pixels(tmp_path / f"{sky}.png")
        black = np.nonzero((shown < 0.02).all(-1).mean(1) > 0.5)[0]  # rows of the dark part of the panel
        assert len(black) > 100
        found.append(black.mean() / len(shown))
    assert found[0] > 0.5 > found[1]  # the bright edge is on top, or at the bottom


def test_constant_panel_and_wrong_shapes(tmp_path):
    save_figure(tmp_path / "x.png", [Panel("flat", torch.zeros(8, 8), unit="Jy", stretch=10.0)])
    for shape in ((2, 8, 8), (8,), (1, 1, 8, 8)):
        with pytest.raises(ValueError, match=r"a panel shows \(H, W\), \(1, H, W\) or \(3, H, W\)"):
            save_figure(tmp_path / "y.png", [Panel("", torch.zeros(shape))])
    assert os.listdir(tmp_path) == ["x.png"]


def shown(path: Path, image: torch.Tensor, beam: Beam | None = None, **options) -> np.ndarray:
    header = sky_header(tuple(image.shape), CELL, CENTRE, "Jy/beam", beam=beam)
    quick_look(path, image, header, cmap="gray", overwrite=True, **options)
    return pixels(path)


def test_quick_look_draws_the_beam_north_through_east(tmp_path):
    """In the lower left, and its long axis leans to the left, which is East."""
    grey = torch.full((64, 64), 0.5)
    without = shown(tmp_path / "x.png", grey, limits=(0.0, 1.0))
    found = shown(tmp_path / "x.png", grey, Beam(20 * CELL, 6 * CELL, 35.0), limits=(0.0, 1.0))
    rows, columns = np.nonzero(np.abs(found - without).max(-1) > 0.2)
    assert rows.min() > found.shape[0] / 2 and columns.max() < found.shape[1] / 2
    box = found[rows.min() : rows.max(), columns.min() : columns.max(), 0]
    inside = box[4:-4, 4:-4]  # without its frame
    y, x = np.nonzero(inside < 0.5)
    (_, _), axes = np.linalg.eigh(np.cov(np.stack([-y, -x])))  # up is North, left is East
    north, east = axes[:, 1]
    assert math.degrees(math.atan2(east, north)) % 180 == pytest.approx(35, abs=4)


def test_quick_look_contours_and_blanks(tmp_path):
    ramp = torch.linspace(-5, 40, 64).expand(64, 64).clone()
    options = {"limits": (-100.0, 100.0), "stretch": 0.0}
    plain, lined = shown(tmp_path / "x.png", ramp, **options), shown(tmp_path / "x.png", ramp, noise=1.0, **options)
    frame = lined[100:500, 150:680, 0]  # of the panel
    columns = np.nonzero((frame > 0.9).mean(0) > 0.9)[0]
    groups = 1 + int((np.diff(columns) > 2).sum())
    assert groups == 4  # 3, 6, 12, 24; the dashed one at -3 is not whole
    assert not (plain[100:500, 150:680, 0] > 0.9).any()
    ramp[:, 32:] = torch.nan
    blank = shown(tmp_path / "x.png", ramp, **options)
    assert np.isclose(blank[300, 150:680], 0.75, atol=0.01).all(-1).mean() > 0.4


def test_quick_look_flat_and_bad_input(tmp_path):
    shown(tmp_path / "x.png", torch.zeros(8, 8))
    shown(tmp_path / "x.png", torch.zeros(8, 8), noise=1.0)
    with pytest.raises(ValueError, match=r"shows \(H, W\) with finite pixels, got \(1, 8, 8\)"):
        quick_look(tmp_path / "y.png", torch.zeros(1, 8, 8), {})
    with pytest.raises(ValueError, match="finite pixels"):
        quick_look(tmp_path / "y.png", torch.full((8, 8), torch.nan), {})
    with pytest.raises(ValueError, match="noise must be finite and > 0"):
        shown(tmp_path / "y.png", torch.zeros(8, 8), noise=0.0)
    assert os.listdir(tmp_path) == ["x.png"]
