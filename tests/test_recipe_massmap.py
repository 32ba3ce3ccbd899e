"""The mass-mapping recipe from end to end, on small files of the project's own writers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.wcs import WCS
from typer.testing import CliRunner

from pnp_lofi.checkpoint import load_checkpoint
from pnp_lofi.convergence import convergence
from pnp_lofi.kappatng import write_kappatng
from pnp_lofi.mass_files import read_catalogue, read_shear
from pnp_lofi.mass_maps import Survey, e_and_b, map_error, random_survey, rotated, seen_maps, sky_power
from pnp_lofi.mass_scenes import scenes, skies
from pnp_lofi.operators import KaiserSquires
from pnp_lofi.recipes.massmap import app

SIDE, PIXEL = 64, 300 / 1024


def call(*words: object) -> str:
    """Run a command; its errors are raised."""
    result = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("massmap") / "m.safetensors"
    call("train", "-o", out, "--quick")
    return out


@pytest.fixture(scope="module")
def observed(tmp_path_factory) -> Path:
    """truth, e1, e2, mask and std; what is outside of the mask is NaN."""
    folder = tmp_path_factory.mktemp("observed")
    kappa = convergence(1, SIDE, PIXEL, seed=3)
    mask = torch.ones(SIDE, SIDE, dtype=torch.bool)
    mask[:6], mask[30:34, 40:45] = False, False
    shear = KaiserSquires((SIDE, SIDE)).A(kappa)[0]
    shear = shear + 0.05 * torch.randn(shear.shape, generator=torch.Generator().manual_seed(0))
    shear[:, ~mask] = np.nan
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.1, "CRVAL2": 2.2,
                          "CRPIX1": 32.5, "CRPIX2": 32.5, "CDELT1": -PIXEL / 60, "CDELT2": PIXEL / 60})  # fmt: skip
    maps = {"truth": kappa[0, 0], "e1": shear[0], "e2": shear[1], "mask": mask, "std": torch.full((SIDE, SIDE), 0.05)}
    for name, x in maps.items():
        fits.PrimaryHDU(x.numpy().astype(np.float32), header).writeto(folder / f"{name}.fits")
    return folder


def given(folder: Path, *names: str) -> list[object]:
    return [word for name in names for word in (f"--{name}", folder / f"{name}.fits")]


def test_train_writes_a_checkpoint_that_says_what_it_is(trained):
    _, header = load_checkpoint(trained)
    assert header["recipe"] == "massmap" and header["sigma_range"] == [0.05, 0.25]
    assert header["pixel"] == pytest.approx(PIXEL) and 0 < header["metrics"]["held-out r"] < 1
    assert Path(f"{trained}.csv").exists() and Path(f"{trained}.png").exists()


def test_it_is_not_overwritten_unasked(trained):
    with pytest.raises(FileExistsError, match="--overwrite"):
        call("train", "-o", trained, "--quick")


@pytest.mark.parametrize(("noise", "level"), [("published", 0.0288), ("true", 0.37 / (30**0.5 * PIXEL))])
def test_noise_as_published_and_true(tmp_path, noise, level):
    call("train", "-o", tmp_path / "m.safetensors", "--quick", "--noise", noise, "--network", "U-Net")
    assert load_checkpoint(tmp_path / "m.safetensors")[1]["sigma_range"][0] == pytest.approx(level, rel=2e-3)


def test_test_on_a_truth_in_files(trained, observed, tmp_path):
    out = tmp_path / "t.json"
    call("test", trained, "-o", out, *given(observed, "truth", "e1", "e2", "mask", "std"))
    rows = json.loads(out.read_text())["rows"]
    assert set(rows) == {"KS", "KS + Gaussian", "Wiener", "m"} and rows["Wiener"]["rmse"] < rows["KS"]["rmse"]
    assert out.with_suffix(".png").exists()
    call("test", trained, "-o", tmp_path / "q.json", "--quick")
    assert 0 < json.loads((tmp_path / "q.json").read_text())["rows"]["m"]["r"] < 1


def test_apply_to_maps(trained, observed, tmp_path):
    out = tmp_path / "kappa.fits"
    assert "rms" in call("apply", trained, "-o", out, *given(observed, "e1", "e2", "mask", "std"))
    e, b = fits.getdata(out), fits.getdata(tmp_path / "kappa_b.fits")
    assert e.shape == (SIDE, SIDE) and np.isfinite(e).all() and e.std() > b.std()
    assert out.with_suffix(".png").exists()
    header = fits.getheader(out)
    assert header["MODE"] == "E" and WCS(header).wcs_pix2world([[32.5, 32.5]], 1)[0] == pytest.approx([150.1, 2.2])
    truth = torch.from_numpy(fits.getdata(observed / "truth.fits").astype("float32"))
    mask = torch.from_numpy(fits.getdata(observed / "mask.fits") > 0)
    assert map_error(torch.from_numpy(e.astype("float32")), truth, mask)["r"] > 0.5


def test_apply_to_a_catalogue(trained, tmp_path):
    rng, n = np.random.default_rng(0), 4000
    columns = {"ra": 150 + rng.uniform(-0.15, 0.15, n), "dec": 2.2 + rng.uniform(-0.15, 0.15, n),
               "e1": 0.3 * rng.normal(size=n), "e2": 0.3 * rng.normal(size=n), "weight": np.ones(n)}  # fmt: skip
    fits.BinTableHDU.from_columns([fits.Column(k, "D", array=v) for k, v in columns.items()]).writeto(
        tmp_path / "g.fits"
    )
    out = tmp_path / "kappa.fits"
    call("apply", trained, "-o", out, "--catalogue", tmp_path / "g.fits", "--shape", "60,48", "--pixel", PIXEL)
    assert fits.getdata(out).shape == (60, 48)
    ra, dec = WCS(fits.getheader(out)).wcs_pix2world([[24.5, 30.5]], 1)[0]  # the middle
    assert ra == pytest.approx(columns["ra"].mean(), abs=1e-3) and dec == pytest.approx(columns["dec"].mean(), abs=1e-3)
    for name, values in columns.items():  # a folder of columns is the same catalogue
        fits.PrimaryHDU(values).writeto(tmp_path / f"{name}.fits")
    options = {"shape": (60, 48), "pixel": PIXEL}
    table, folder = (read_catalogue(path, list(columns), **options) for path in (tmp_path / "g.fits", tmp_path))
    assert torch.equal(table.gamma, folder.gamma)
    with pytest.raises(ValueError, match=r"lacks the columns \['z'\]"):
        read_catalogue(tmp_path / "g.fits", ["ra", "dec", "e1", "z"], **options)


def write(path: Path, x: np.ndarray) -> Path:
    fits.PrimaryHDU(x).writeto(path, overwrite=True)
    return path


def test_bad_input_is_told(trained, observed, tmp_path):
    out, files = tmp_path / "k.fits", given(observed, "e1", "e2", "mask", "std")
    small = write(tmp_path / "small.fits", np.ones((5, 6)))
    grey = write(tmp_path / "grey.fits", np.full((SIDE, SIDE), 0.5))
    cases = [
        ([*given(observed, "e1", "e2", "std"), "--mask", small], "one shape"),
        ([*given(observed, "e1", "mask", "std"), "--e2", small], "one shape"),
        ([*given(observed, "e1", "e2", "std"), "--mask", grey], "zeros and ones"),
        ([*given(observed, "e1", "e2"), "--std", 0.05], "NaN or inf inside the mask"),
        ([*given(observed, "e1", "e2", "mask")], "--std"),
        ([*given(observed, "e1", "mask", "std")], "without --e2"),
        ([*given(observed, "e1", "e2", "mask"), "--std", "0"], "sigma"),
        (["--e1", observed / "e1.fits", "--e2", observed / "e1.fits", *given(observed, "mask", "std")], "both comp"),
        ([*files, "--margin", -1], "margin"),
        (["--catalogue", tmp_path, "--mask", observed / "mask.fits"], "go with --e1"),
        (["--catalogue", tmp_path, "--shape", "60"], "--shape: expected two numbers"),
        ([], "either --e1"),
    ]
    for words, told in cases:
        with pytest.raises(ValueError, match=told):
            call("apply", trained, "-o", out, *words)
        assert not out.exists()
    with pytest.raises(ValueError, match=r"ending of \.fits"):
        call("apply", trained, "-o", tmp_path / "k.png", *files)
    with pytest.raises(FileNotFoundError, match="no file"):
        call("apply", trained, "-o", out, "--e1", tmp_path / "none.fits", "--std", 0.1)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        call("apply", trained, "-o", tmp_path / "no" / "k.fits", *files)
    write(tmp_path / "k_b.fits", np.ones((2, 2)))
    with pytest.raises(FileExistsError, match="exists; pass --overwrite"):
        call("apply", trained, "-o", out, *files)
    with pytest.raises(ValueError, match="made by the recipe 'prior'"):
        call("apply", "natural", "-o", tmp_path / "n.fits", *files)


def test_kappatng_and_fits_folders(tmp_path):
    write_kappatng(tmp_path / "ktng", 2, size=64)
    kappa, pixel = skies("lognormal", 1, 32, 0.5, 0)
    assert pixel == 0.5
    kappa, pixel = skies(str(tmp_path / "ktng"), 9, 32, 0.5, 0)
    assert kappa.shape == (9, 1, 32, 32) and pixel == pytest.approx(300 / 64)
    (tmp_path / "maps").mkdir()
    write(tmp_path / "maps" / "a.fits", np.random.default_rng(0).normal(size=(40, 40)).astype("float32"))
    kappa, pixel = skies(str(tmp_path / "maps"), 3, 32, 0.5, 0)
    assert kappa.shape == (3, 1, 32, 32) and pixel == 0.5 and abs(float(kappa.mean())) < 1e-6
    with pytest.raises(ValueError, match="--side"):
        skies(str(tmp_path / "maps"), 1, 64, 0.5, 0)


def test_maps_that_validate_train_nobody(tmp_path):
    for k in range(3):
        write(tmp_path / f"{k}.fits", np.random.default_rng(k).normal(size=(20, 20)).astype("float32"))
    kappa, _ = skies(str(tmp_path), 12, 20, PIXEL, 0, apart=2)
    levels = kappa.square().mean((1, 2, 3))  # the same however a map is turned
    assert not torch.isclose(levels[:2, None], levels[2:], rtol=1e-5).any()
    for k in range(1, 3):
        (tmp_path / f"{k}.fits").unlink()
    with pytest.raises(ValueError, match="two are needed"):
        skies(str(tmp_path), 12, 20, PIXEL, 0, apart=2)


def test_the_noise_that_a_survey_brings_is_what_is_trained_on(observed, tmp_path):
    """Without a mask it is where the map of the noise is > 0; a number has no place."""
    out = tmp_path / "m.safetensors"
    call("train", "-o", out, "--quick", "--std", observed / "std.fits")
    header = load_checkpoint(out)[1]
    assert header["sigma_range"] == pytest.approx([0.05, 0.05]) and "std.fits" in header["trained_on"]
    with pytest.raises(ValueError, match="Pass --mask"):
        call("train", "-o", tmp_path / "n.safetensors", "--quick", "--std", 0.1)


def test_two_networks_of_one_name_are_told(trained, tmp_path):
    for paths in ((trained, trained), (trained.rename(trained.with_name("Wiener.safetensors")),)):
        with pytest.raises(ValueError, match="rename one"):
            call("test", *paths, "-o", tmp_path / "t.json", "--quick")
    trained.with_name("Wiener.safetensors").rename(trained)


def test_surveys_and_what_is_seen():
    surveys = [random_survey((48, 64), np.random.default_rng(k), 0.05, 0.2) for k in range(12)]
    for mask, sigma in surveys:
        assert mask.any() and sigma.shape == (2, 48, 64) and bool((sigma[:, mask] > 0).all())
    assert any(bool(s.mask.float().mean() < 0.7) for s in surveys)
    again = random_survey((48, 64), np.random.default_rng(3), 0.05, 0.2)
    assert all(torch.equal(a, b) for a, b in zip(surveys[3], again, strict=True))
    (scene,) = scenes(convergence(1, 48, PIXEL, seed=0), PIXEL, (0.1, 0.1), seed=1)
    assert scene.seen.shape == (1, 7, 48, 48) and bool(torch.isfinite(scene.seen).all())
    flat = Survey(torch.ones(48, 48, dtype=torch.bool), torch.full((2, 48, 48), 0.1)).operator()
    seen = seen_maps(flat, flat(convergence(1, 48, PIXEL, seed=0)), sky_power((48, 48), PIXEL))
    assert float(seen[0, -1].std()) < 1e-5 and bool((seen[0, -2] == 1).all())  # one noise level, no hole


def test_a_survey_that_is_no_square():
    survey = random_survey((40, 56), np.random.default_rng(0), 0.1, 0.1)
    (scene,) = scenes(convergence(1, 56, PIXEL, seed=0), PIXEL, (1, 1), survey)
    assert scene.seen.shape == (1, 7, 40, 56) and torch.equal(scene.mask, survey.mask)
    with pytest.raises(ValueError, match="the skies only"):
        next(scenes(convergence(1, 32, PIXEL, seed=0), PIXEL, (1, 1), survey))


def test_rotated_shear_swaps_e_and_b():
    op = KaiserSquires((32, 32))
    gamma = torch.randn(1, 2, 32, 32, dtype=torch.float64)
    (e, b), (turned, other) = op.eb(gamma), op.eb(rotated(gamma))
    torch.testing.assert_close(turned, b)
    torch.testing.assert_close(other, -e)


def test_no_signal_has_equal_e_and_b():
    survey = Survey(torch.ones(32, 32, dtype=torch.bool), torch.full((2, 32, 32), 0.1))
    gamma = 0.1 * torch.randn((1, 2, 32, 32), generator=torch.Generator().manual_seed(0))
    maps = e_and_b(lambda q: q[:, :1], gamma, survey, PIXEL, 8)
    assert {x.shape for x in maps.values()} == {(1, 1, 32, 32)}
    assert 0.3 < float(maps["E Wiener"].std() / maps["B Wiener"].std()) < 3


def test_two_components_in_one_file(observed, tmp_path):
    both = np.stack([fits.getdata(observed / f"e{k}.fits") for k in (1, 2)], -1)
    path = write(tmp_path / "e.fits", both)
    mask = observed / "mask.fits"
    a, b = read_shear(path, None, mask, ["0.1"]), read_shear(observed / "e1.fits", observed / "e2.fits", mask, ["0.1"])
    assert torch.equal(a.gamma, b.gamma) and a.pixel is None and b.pixel == pytest.approx(PIXEL)
