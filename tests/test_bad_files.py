"""Sinograms, sets of scans and maps of shear that are broken, or hold something else: one error that names the file."""

import numpy as np
import pytest
import torch

from pnp_lofi.ct_files import window_of
from pnp_lofi.ct_scans import Scan, load_scans
from pnp_lofi.datasets import FileSet
from pnp_lofi.mass_files import read_catalogue, read_shear
from pnp_lofi.mass_scenes import skies
from pnp_lofi.pairs_file import write_pairs
from pnp_lofi.sinogram_file import Geometry, read_sinogram, write_sinogram

Y = np.random.default_rng(0).random((5, 7))


@pytest.mark.parametrize(
    ("arrays", "text"),
    [({"y": Y * 1e300}, "35 numbers are NaN or infinite"), ({"y": np.ones((5, 7), np.uint16)}, r"counts.*--photons"),
     ({"y": Y, "angles": np.full(5, np.nan)}, "finite angles in radians, got float64"),
     ({"y": Y, "angles": np.array(list("abcde"))}, "finite angles in radians, got <U1"),
     ({"y": Y, "angles": 1j * np.ones(5)}, "finite angles in radians, got complex128"),
     ({"y": Y, "angles": np.zeros(7)}, "axes look exchanged: --transpose"),
     ({"y": Y, "side": 2.7}, "side a whole number, got None and 2.7"), ({"y": Y, "side": 0}, "side must be .* > 0"),
     ({"y": Y, "pixel": 0.0}, "pixel must be finite and > 0, got 0.0"), ({"y": Y, "arc": 0.0}, "arc must not be 0"),
     ({"y": Y, "spacing": np.ones(2)}, "one number for spacing"), ({"y": Y + 0j}, r"expected real \(angles"),
     ({"y": Y[None, None, None], "source_origin": np.inf}, "source_origin must be finite"), ({"z": Y}, "got z")],
)  # fmt: skip
def test_sinograms(tmp_path, arrays, text):
    np.savez(tmp_path / "y.npz", **arrays)
    with pytest.raises(ValueError, match=rf"y\.npz: .*{text}"):
        read_sinogram(tmp_path / "y.npz")


def test_sinograms_by_place_and_photons(tmp_path):
    path = tmp_path / "Y.NPY"
    with path.open("wb") as file:
        np.save(file, Y)
    assert np.array_equal(read_sinogram(path, item=0).y[0, 0].numpy(), Y.astype("f4"))
    with pytest.raises(ValueError, match="has sinograms 0 to 0, asked for 3"):
        read_sinogram(path, item=3)
    for photons in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="photons must be finite and > 0"):
            read_sinogram(path, photons=photons)
    with pytest.warns(UserWarning, match=r"of 100000 photons; leave photons"):
        read_sinogram(path, photons=1e5)
    counts = np.array([[4096, 2048], [1, 0]])
    np.save(tmp_path / "counts.npy", counts)
    y = read_sinogram(tmp_path / "counts.npy", photons=4096.0).y[0, 0]
    torch.testing.assert_close(y, torch.tensor([[0, 0.693147], [8.317766, 10.620351]]))  # ln 2, ln 4096, ln 40960


def test_writing_sinograms(tmp_path):
    write_sinogram(tmp_path / "y.h5", torch.ones(1, 1, 1, 4), Geometry())  # one view
    assert read_sinogram(tmp_path / "y.h5").y.shape == (1, 1, 1, 4)
    for y, angles, text in ((torch.full((3, 4), torch.nan), None, "finite real numbers of y"),
                            (torch.ones(3, 4), torch.zeros(5), "expected 3 angles"),
                            (torch.ones(2, 3, 4), None, r"\(angles, detectors\)")):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            write_sinogram(tmp_path / "z.h5", y, Geometry(), angles)
    whole, errors = (tmp_path / "y.h5").read_bytes(), 0
    for k in range(96, 1200, 8):
        (tmp_path / "y.h5").write_bytes(whole[:k] + bytes([whole[k] ^ 0x55]) + whole[k + 1 :])
        try:
            read_sinogram(tmp_path / "y.h5")
        except ValueError as error:
            assert "y.h5" in str(error)
            errors += 1
    assert errors > 5


@pytest.mark.parametrize("text", ["spacing=0", "spacing=-1", "spacing=nan", "side=-3", "source_origin=0", "arc=0"])
def test_geometry(text):
    with pytest.raises(ValueError, match=text.partition("=")[0]):
        Geometry.of(text)


def test_windows():
    for text in ("nan,5", "0,0", "0,inf", "1,2,3", "liver"):
        with pytest.raises(ValueError, match="window"):
            window_of(text)


def test_scans(tmp_path):
    path = tmp_path / "pairs.h5"
    write_pairs(path, torch.rand(3, 1, 16, 16), torch.rand(3, 1, 20, 20))
    with pytest.raises(ValueError, match=r"y and x of one size, got \(1, 16, 16\) and \(1, 20, 20\); pass --side"):
        load_scans(path, Scan())
    assert len(load_scans(path, Scan(), side=16)) == 3
    with pytest.raises(ValueError, match="expected a part of train, validation, test, got 'dev'"):
        load_scans("chest", Scan(), part="dev")


def test_files_that_are_skipped_are_named():
    def read(path):
        if path == "b":
            raise ValueError("expected a square image")
        return torch.zeros(1, 2, 2)

    with pytest.warns(UserWarning, match="skipped 1 of 2 files: b: expected a square image"):
        FileSet(["a", "b"], read)


@pytest.fixture
def fits(tmp_path):
    """Writes images into the folder and gives their path."""
    io = pytest.importorskip("astropy.io.fits")

    def write(name, image, **cards):
        first = io.PrimaryHDU() if name.startswith("extension") else io.PrimaryHDU(image, io.Header(cards))
        units = [first, io.ImageHDU(image, io.Header(cards))] if name.startswith("extension") else [first]
        io.HDUList(units).writeto(tmp_path / f"{name}.fits")
        return tmp_path / f"{name}.fits"

    return write


ONES = np.ones((4, 5))


@pytest.mark.parametrize(
    ("shear", "mask", "std", "text"),
    [(ONES, ONES, "nan", "nan: expected noise sigma > 0 inside the mask, got 20 pixels"),
     (ONES, ONES, "-1", "got 20 pixels"), (ONES, ONES, "inf", "got 20 pixels"),
     (ONES, ONES, ONES * (np.arange(5) > 0), r"std\.fits.*got 4 pixels"),
     (ONES, ONES, 1e300 * ONES, "got 20 pixels"), (ONES, 0 * ONES, "0.3", r"mask\.fits: no pixel is seen"),
     (ONES, None, 0 * ONES, r"std\.fits: no pixel is seen"), (1e300 * ONES, ONES, "0.3", r"e1\.fits: 20 NaN or inf"),
     (ONES, 0.5 * ONES, "0.3", "zeros and ones")],
)  # fmt: skip
def test_shear(fits, shear, mask, std, text):
    e1, e2 = fits("e1", shear), fits("e2", ONES)
    with pytest.raises(ValueError, match=text):
        read_shear(
            e1,
            e2,
            None if mask is None else fits("mask", mask),
            [std if isinstance(std, str) else str(fits("std", std))],
        )


def test_shear_where_nothing_is_seen_may_be_anything(fits):
    seen = ONES * (np.arange(5) > 0)
    hole = np.where(seen, 1, np.nan)
    found = read_shear(fits("e1", hole), fits("e2", hole), fits("mask", seen), [str(fits("std", hole))])
    assert torch.equal(found.survey.sigma, torch.from_numpy(seen).float().expand(2, -1, -1))
    assert torch.equal(found.gamma[0], torch.from_numpy(seen).float().expand(2, -1, -1))


def test_shear_in_an_extension_with_axes_of_length_one(fits):
    cards = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT2": 0.01}
    found = read_shear(fits("extension", ONES[None, None], **cards), fits("e2", ONES), None, ["0.3"])
    assert found.pixel == pytest.approx(0.6) and found.gamma.shape == (1, 2, 4, 5)
    with pytest.raises(ValueError, match=r"x\.fits: CDELT2 or CD2_2 is no number"):
        read_shear(fits("x", ONES, **cards | {"CDELT2": "wide"}), fits("y", ONES), None, ["0.3"])


def test_catalogues(tmp_path):
    io = pytest.importorskip("astropy.io.fits")
    names, path = ("ra", "dec", "e1", "e2"), tmp_path / "cat.fits"

    def write(form="D", rows=400, last=0.0):
        columns = [io.Column(n, form if n == "e2" else "D", array=np.full(rows, last)) for n in names]
        io.BinTableHDU.from_columns(columns).writeto(path, overwrite=True)

    def read():
        return read_catalogue(path, names, shape=(4, 4), pixel=1.0)

    write()
    whole = path.read_bytes()
    for content in (b"words", whole[:100], whole[:6000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cat\.fits: broken FITS file"):
            read()
    write(form="8A")
    with pytest.raises(ValueError, match=r"one number a row in the columns .* not so \['e2'\]"):
        read()
    write(rows=0)
    with pytest.raises(ValueError, match="the table has no rows"):
        read()


def test_skies(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((20, 20)))
    with pytest.raises(ValueError, match="at least one map, got count 0"):
        skies(str(tmp_path), 0, 16, 1.0, 0)
    np.save(tmp_path / "b.npy", np.ones((24, 30)))  # of another size
    assert skies(str(tmp_path), 3, 16, 1.0, 0)[0].shape == (3, 1, 16, 16)
