"""The command line as a user meets it: every command does its work, every mistake gets one line."""

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image
from typer.testing import CliRunner

import pnp_lofi.__main__ as cli
from pnp_lofi import LoFi, load_checkpoint, save_checkpoint
from pnp_lofi.observation import Observation, read_observation, write_observation
from pnp_lofi.radio_measurement import measurement

COMMANDS = [
    "",
    "demo",
    "train",
    "denoise",
    "zoom",
    "solve",
    "solve inpaint",
    "solve radio",
    "simulate",
    "simulate radio",
    "info",
    "test",
    "apply",
]
RADIO_OUT = [
    "rec.fits",
    "rec.json",
    "rec.png",
    "rec_dirty.fits",
    "rec_psf.fits",
    "rec_residual.fits",
    "rec_restored.fits",
    "rec_restored.png",
]
USAGE = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a command line in tmp_path through ``main``, as the installed script does, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")

    def call(line: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["pnp-lofi", *shlex.split(line)])
        capsys.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            pytest.fail(f"`pnp-lofi {line}` shows a traceback:\n{traceback.format_exc()}")
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def files(tmp_path, tiny):
    """A tiny prior and a few small inputs, in tmp_path; prior.safetensors denoises a little."""
    with torch.no_grad():
        for weight in tiny.parameters():
            weight.mul_(0.5)
    save_checkpoint(tmp_path / "prior.safetensors", tiny, trained_on="nothing", sigma_range=[0.01, 0.3])
    ramp = np.linspace(40, 200, 32)[:, None] + np.zeros(32)
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([ramp, ramp.T, ramp], -1).astype(np.uint8)).save(tmp_path / "colour.png")
    Image.fromarray(np.where(np.arange(1024).reshape(32, 32) % 3, 255, 0).astype(np.uint8)).save(tmp_path / "mask.png")
    Image.fromarray(np.full((32, 31), 255, np.uint8)).save(tmp_path / "mask31.png")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "black.png")
    np.save(tmp_path / "grey.npy", ramp * 1e3)
    np.save(tmp_path / "pickle.npy", np.array({"uu": np.ones(3)}, dtype=object), allow_pickle=True)
    sky = np.zeros((48, 48), np.float32)
    sky[20:24, 30:33] = 1.0
    sky[35, 10] = 2.0
    fits.PrimaryHDU(sky).writeto(tmp_path / "sky.fits")
    rng = np.random.default_rng(0)
    vis = rng.normal(size=(50, 2)) @ [1, 1j]
    write_observation(tmp_path / "small.h5", Observation(rng.normal(size=(50, 3)) * 500, 1.4e9, vis, np.ones(50),
                      np.zeros(50, bool), 5.0, (10.0, -40.0)))  # fmt: skip
    return tmp_path


def refused(result: Result, *parts: str) -> None:
    """Exit code 2 and one line on stderr that holds the parts."""
    lines = [line for line in result.err.splitlines() if line.strip()]
    assert result.code == 2, (result, parts)
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: "), result.err
    assert "Traceback" not in result.err
    for part in parts:
        assert part in lines[0], (part, lines[0])


# ---- help ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    result = USAGE.invoke(cli.app, [*command.split(), "--help"])
    assert result.exit_code == 0, result.output
    if command not in ("", "solve", "simulate"):
        assert "Example" in result.output
        assert f"pnp-lofi {command}" in result.output


def test_every_command_is_tested():
    found = {""} | {str(g.name) for g in cli.app.registered_groups}
    for prefix, app in [("", cli.app), *((f"{g.name} ", g.typer_instance) for g in cli.app.registered_groups)]:
        for command in app.registered_commands:
            found.add(prefix + (command.name or command.callback.__name__.replace("_", "-")))
    assert found == set(COMMANDS)


def test_examples_use_options_that_exist():
    for command in COMMANDS:
        text = USAGE.invoke(cli.app, [*command.split(), "--help"]).output
        for example in re.findall(r"Example: (.*)", text):
            options = set(re.findall(r"(?<=\s)--?[a-z][\w-]*", example.split("(")[0]))
            assert all(re.search(rf"(?<![\w-]){option}(?![\w-])", text.replace(example, "")) for option in options), (
                example
            )


def test_module_runs_as_a_script(files):
    """python -m pnp_lofi: the real thing, with its exit code and one line."""

    def script(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "pnp_lofi", *arguments], capture_output=True, text=True, cwd=files)

    assert script("--help").returncode == 0
    failed = script("info", "none.safetensors")
    refused(Result(failed.returncode, failed.stdout, failed.stderr), "no network named 'none.safetensors'")


# ---- work ------------------------------------------------------------------------------------------------


def test_info(run, files):
    result = run("info prior.safetensors")
    assert result.code == 0, result.err
    model, _ = load_checkpoint(files / "prior.safetensors")
    assert f"{sum(p.numel() for p in model.parameters()):,}" in result.out
    assert "prior.safetensors" in result.out
    assert '"nothing"' in result.out and "[0.01, 0.3]" in result.out and '"LoFi"' in result.out


@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("grey.png", "out.png"),
        ("colour.png", "out.png"),
        ("grey.npy", "out.npy"),
        ("colour.png", "out.npy"),
        ("sky.fits", "out.fits"),
    ],
)
def test_denoise(run, files, source, out):
    from pnp_lofi import LoFiPrior
    from pnp_lofi.images import load_image

    result = run(f"denoise {source} --sigma 0.1 --prior prior.safetensors --precision float32 -o {out}")
    assert result.code == 0, result.err
    assert f"wrote {out}" in result.out and "estimated" not in result.out
    with torch.no_grad():
        expected = LoFiPrior(files / "prior.safetensors")(load_image(files / source), 0.1)
    if out.endswith("png"):
        torch.testing.assert_close(load_image(files / out), expected.clamp(0, 1), rtol=0, atol=0.51 / 255)
    else:
        torch.testing.assert_close(load_image(files / out), expected)


@pytest.mark.parametrize(("source", "prior"), [("grey.png", "natural"), ("colour.png", "natural-rgb")])
def test_denoise_takes_a_prior_that_sees_colour(run, files, source, prior):
    for out, option in (("a.npy", ""), ("b.npy", f"--prior {prior}")):
        assert run(f"denoise {source} --sigma 0.1 {option} -o {out}").code == 0
    assert np.array_equal(np.load(files / "a.npy"), np.load(files / "b.npy"))


def test_denoise_estimates_the_level(run, files):
    noisy = 0.5 + 0.1 * np.random.default_rng(0).normal(size=(64, 64))
    np.save(files / "noisy.npy", noisy)
    result = run("denoise noisy.npy --prior prior.safetensors -o out.npy")
    assert result.code == 0, result.err
    assert "(estimated)" in result.out
    level = float(re.search(r"noise level (\S+)", result.out)[1])
    assert level == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("source", ["grey", "colour"])
@pytest.mark.parametrize(("option", "kept"), [("--keep 0.5", 0.5), ("--mask mask.png", 682 / 1024)])
def test_inpaint(run, files, source, option, kept):
    result = run(f"solve inpaint {source}.png {option} --prior prior.safetensors --iterations 3 -o out.png")
    assert result.code == 0, result.err
    assert np.asarray(Image.open(files / "out.png")).shape == (32, 32, 3)[: 3 if source == "colour" else 2]
    report = json.loads((files / "out.json").read_text())
    assert report["command"].startswith(f"pnp-lofi solve inpaint {source}.png {option}")
    assert report["pnp_lofi"] == cli_version()
    assert report["kept"] == pytest.approx(kept, abs=1e-3)
    assert report["iterations"] <= 3 and report["status"] in ("converged", "limit", "stopped")
    assert ("psnr" in report) == (option == "--keep 0.5")
    assert not list(files.glob("*.part"))


def cli_version() -> str:
    import pnp_lofi

    return pnp_lofi.__version__


def test_inpaint_with_noise_is_repeatable(run, files):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        line = f"solve inpaint grey.png --keep 0.5 --sigma 0.05 --prior prior.safetensors --iterations 2 --seed {seed}"
        result = run(f"{line} -o {name}.png")
        assert result.code == 0, result.err
    a, b, c = ((files / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_simulate_and_solve_radio(run, files):
    result = run("simulate radio --sky sky.fits --hours 0.2 --snr 20 --integration 360 --dec -45 --seed 3 -o obs.h5")
    assert result.code == 0, result.err
    obs = read_observation(files / "obs.h5")
    assert len(obs.vis) == 2 * 2016 and obs.absolute_weights
    assert obs.phase_centre[1] == -45
    np.testing.assert_array_equal(obs.truth, fits.getdata(files / "sky.fits"))
    assert f"{len(obs.vis)} visibilities" in result.out
    result = run("solve radio obs.h5 --prior prior.safetensors --iterations 4 -o rec.fits")
    assert result.code == 0, result.err
    assert sorted(p.name for p in files.glob("rec*")) == RADIO_OUT
    units = dict.fromkeys(["rec_dirty", "rec_residual", "rec_psf", "rec_restored"], "Jy/beam") | {"rec": "Jy/pixel"}
    for name, unit in units.items():
        header = fits.getheader(files / f"{name}.fits")
        assert (header["NAXIS1"], header["NAXIS2"], header["BUNIT"]) == (48, 48, unit)
        wcs = WCS(header).celestial
        at = wcs.pixel_to_world(24, 24).icrs
        assert at.ra.deg % 360 == pytest.approx(obs.phase_centre[0], abs=1e-9)
        assert at.dec.deg == pytest.approx(-45)
        assert wcs.pixel_to_world(24, 25).icrs.separation(at).arcsec == pytest.approx(obs.cell, rel=1e-6)
    sky = fits.getdata(files / "rec.fits")
    assert sky.min() >= 0 and np.isfinite(sky).all()
    assert Image.open(files / "rec.png").width > 1000
    report = json.loads((files / "rec.json").read_text())
    assert {"pnp_lofi", "command", "observation", "visibilities", "shape", "prior", "status", "iterations", "sigma_n",
            "sigma_d", "alpha", "misfit", "snr", "psnr", "seconds"} <= report.keys()  # fmt: skip
    assert report["visibilities"] == 4032 and report["shape"] == [48, 48]
    assert report["sigma_n"] == pytest.approx(1)  # whitened, with weights that are 1/sigma^2
    assert report["iterations"] <= 4
    assert report["flux_jy"] == pytest.approx(float(sky.sum()), rel=1e-4)


def test_dirty_image_of_the_command_line_is_a_plain_sum(run, files):
    """Against the direct sum over baselines on the sky: sign, units and orientation from file to file."""
    obs = read_observation(files / "small.h5")
    result = run("solve radio small.h5 --size 16 --sigma 1 --prior prior.safetensors --iterations 1 -o rec.fits")
    assert result.code == 0, result.err
    rad = obs.cell / 3600 * np.pi / 180
    l = -(np.arange(16) - 8)[None, :] * rad  # East is to the left
    m = (np.arange(16) - 8)[:, None] * rad
    u, v = (obs.uvw[:, :2] * float(obs.frequency) / 299792458.0).T
    phase = 2 * np.pi * (u[:, None, None] * l + v[:, None, None] * m)
    expected = (obs.vis[:, None, None] * np.exp(1j * phase)).real.mean(0)
    dirty = fits.getdata(files / "rec_dirty.fits")[0, 0]
    np.testing.assert_allclose(dirty, expected, atol=1e-4 * np.abs(expected).max())


def test_simulated_noise_has_the_snr_asked_for(run, files):
    for snr, name in ((10, "a"), (300, "b")):
        assert run(f"simulate radio --sky sky.fits --hours 0.1 --snr {snr} -o {name}.h5").code == 0
    noisy, clean = (read_observation(files / f"{name}.h5") for name in "ab")
    noise = noisy.vis - clean.vis
    found = 20 * np.log10(np.linalg.norm(clean.vis) / np.linalg.norm(noise))
    assert found == pytest.approx(10, abs=0.3)
    assert noisy.weight[0] ** -0.5 == pytest.approx(noise.view(np.float32).std(), rel=0.05)


def test_whitened_noise_is_one_per_component(run, files):
    """What the solver is told of absolute weights: y - A x of the true sky has rms 1 in each real component."""
    assert run("simulate radio --sky sky.fits --hours 0.1 --snr 15 -o obs.h5").code == 0
    obs = read_observation(files / "obs.h5")
    op, y = measurement(obs, (48, 48))
    residual = y - op.A(torch.from_numpy(obs.truth)[None, None])
    assert op.sigma == 1
    assert float(torch.view_as_real(residual).std()) == pytest.approx(1, rel=0.03)


def test_broken_fits_is_told_with_its_name(run, files):
    (files / "cut.fits").write_bytes((files / "sky.fits").read_bytes()[:4000])
    result = run("denoise cut.fits --sigma 0.1 --prior prior.safetensors -o out.npy")
    assert result.code == 2 and result.err.splitlines()[-1].startswith("error: cut.fits: broken FITS file")


def test_train_on_a_folder_and_resume(run, files, monkeypatch):
    import pnp_lofi.prior_training as training

    small = {"window": 3, "filters": 4, "features": 2, "points": 3, "spacing": 1, "raw": 3, "hidden": (4,)}
    monkeypatch.setattr(training, "SMALL", small)
    (files / "photos").mkdir()
    for k in range(2):
        pixels = np.random.default_rng(k).integers(0, 255, (40, 40)).astype(np.uint8)
        Image.fromarray(pixels).save(files / "photos" / f"{k}.png")
    line = "train photos --steps 6 --size 32 --objects 2"
    result = run(f"{line} -o whole.safetensors")
    assert result.code == 0, result.err
    assert "wrote whole.safetensors" in result.out
    whole, header = load_checkpoint(files / "whole.safetensors")
    assert header["trained_on"] == "folder photos"
    assert header["command"] == f"pnp-lofi {line} -o whole.safetensors"
    refused(run(f"{line} -o whole.safetensors"), "exists; pass --overwrite")
    refused(run(f"{line} --resume -o none.safetensors"), "nothing to resume")

    advance, steps = training.train.__globals__["Learner"].advance, []

    def interrupted(self: Any) -> Any:
        steps.append(1)
        if len(steps) == 4:
            os.kill(os.getpid(), 2)  # ctrl-C
        return advance(self)

    with monkeypatch.context() as patched:
        patched.setattr(training.train.__globals__["Learner"], "advance", interrupted)
        result = run(f"{line} -o part.safetensors")
    assert result.code == 130 and "Traceback" not in result.err, result
    assert (files / "part.safetensors.state").exists() and not (files / "part.safetensors").exists()
    refused(run(f"{line} -o part.safetensors"), "part.safetensors.state holds a broken-off run", "--resume")
    result = run(f"{line} --resume -o part.safetensors")
    assert result.code == 0, result.err
    part, _ = load_checkpoint(files / "part.safetensors")
    for a, b in zip(whole.parameters(), part.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not (files / "part.safetensors.state").exists()


# ---- mistakes --------------------------------------------------------------------------------------------

INPAINT = "solve inpaint grey.png --prior prior.safetensors --iterations 2 -o out.png"
DENOISE = "--prior prior.safetensors -o out.png"
RADIO = "--prior prior.safetensors --iterations 1 --size 16 -o rec.fits"
MISTAKES = [
    (f"denoise none.png --sigma 0.1 {DENOISE}", ["no image file 'none.png'"]),
    (f"denoise photos.gif --sigma 0.1 {DENOISE}", ["photos.gif"]),
    (f"denoise pickle.npy --sigma 0.1 {DENOISE}", ["pickled objects"]),
    (f"denoise empty.npy --sigma 0.1 {DENOISE}", ["empty.npy", "broken file"]),
    (f"denoise zip.npy --sigma 0.1 {DENOISE}", ["zip.npy", "broken file"]),
    (f"denoise cut.png --sigma 0.1 {DENOISE}", ["cut.png: broken image file"]),
    (f"denoise nan.npy --sigma 0.1 {DENOISE}", ["nan.npy: expected finite pixels"]),
    (f"denoise grey.png --sigma -0.1 {DENOISE}", ["sigma must be finite and >= 0, got -0.1"]),
    (f"denoise grey.png --sigma nan {DENOISE}", ["sigma must be finite and >= 0, got nan"]),
    ("denoise grey.png --sigma 0.1 --prior nature -o out.png", ["no network named 'nature'", "shipped:"]),
    ("denoise grey.png --sigma 0.1 --prior cut.safetensors -o out.png", ["cut.safetensors", "truncated"]),
    ("denoise grey.png --sigma 0.1 --prior pickle.pt -o out.png", ["pickle.pt is a pickle"]),
    ("denoise grey.png --sigma 0.1 --prior plain.pkl -o out.png", ["plain.pkl is a pickle"]),
    ("denoise grey.png --sigma 0.1 --prior other.safetensors -o out.png", ["'DRUNet'"]),
    ("denoise grey.png --sigma 0.1 --prior three.safetensors -o out.png", ["trained on 3 channels"]),
    ("denoise grey.png --sigma 0.1 --prior prior.safetensors -o here.png", ["here.png exists; pass --overwrite"]),
    ("denoise grey.png --sigma 0.1 --prior prior.safetensors -o no/x.png", ["does not exist; make it first"]),
    ("denoise grey.png --sigma 0.1 --prior prior.safetensors -o x.gif", ["x.gif", ".png"]),
    ("denoise grey.png --sigma 0.1 --prior prior.safetensors -o .", ["is a folder"]),
    ("train photos --network XL -o t.safetensors", ["networks are S, L and", "got 'XL'"]),
    (INPAINT, ["either --keep", "or --mask"]),
    (f"{INPAINT} --keep 0.5 --mask mask.png", ["either --keep", "or --mask"]),
    (f"{INPAINT} --mask mask31.png", ["mask31.png is (32, 31), the image (32, 32)"]),
    (f"{INPAINT} --mask none.png", ["no image file 'none.png'"]),
    (f"{INPAINT} --mask black.png", ["keeps no pixel"]),
    (f"{INPAINT} --keep 0", ["keep must be a fraction with 0 < keep <= 1, got 0"]),
    (f"{INPAINT} --keep 1.5", ["keep must be a fraction", "got 1.5"]),
    (f"{INPAINT} --keep nan", ["keep must be a fraction", "got nan"]),
    (f"{INPAINT} --keep 0.5 --sigma 0", ["sigma must be finite and > 0, got 0"]),
    (f"{INPAINT} --keep 0.5 --sigma -1", ["sigma must be finite and > 0, got -1"]),
    (f"{INPAINT} --keep 0.5 --iterations 0", ["max_iter must be"]),
    (INPAINT.replace("out.png", "here.png") + " --keep 0.5", ["here.png exists; pass --overwrite"]),
    (INPAINT.replace("out.png", "there.png") + " --keep 0.5", ["there.json exists; pass --overwrite"]),
    ("simulate radio --sky none.fits -o obs.h5", ["no image file 'none.fits'"]),
    ("simulate radio --sky sky.fits -o small.h5", ["small.h5 exists; pass --overwrite"]),
    ("simulate radio --sky sky.fits --hours 0 -o obs.h5", ["0 < hours <= 24"]),
    ("simulate radio --sky sky.fits --declination 80 -o obs.h5", ["below min_elevation"]),
    ("simulate radio --sky sky.fits --cell 60 -o obs.h5", ["a cell of 60 arcsec is too coarse", "at most 3.028"]),
    ("simulate radio --sky sky.fits --cell -1 -o obs.h5", ["cell must be finite and > 0 arcsec, got -1"]),
    ("simulate radio --sky sky.fits --snr nan -o obs.h5", ["snr must be finite"]),
    ("simulate radio --sky sky.fits --array alma -o obs.h5", ["alma is no array and no file; arrays are meerkat,"]),
    ("simulate radio --sky sky.fits -o obs.fits", ["obs.fits: the ending tells the format; name it .h5"]),
    ("simulate radio --sky sky.fits -o empty.ms", ["empty.ms exists; pass --overwrite"]),
    ("simulate radio --sky sky.fits --overwrite -o empty.ms", ["if it is a MeasurementSet"]),
    ("simulate radio --sky sky.fits --channels 2 --bandwidth 3e9 -o obs.h5", ["below twice the frequency"]),
    ("simulate radio --sky black.png -o obs.h5", ["the sky is zero everywhere"]),
    (f"solve radio none.h5 {RADIO}", ["none.h5 does not exist"]),
    (f"solve radio pickle.npy {RADIO}", ["pickle.npy is not an HDF5 file", "pickles are refused"]),
    (f"solve radio lengths.h5 {RADIO}", ["must be of one length", "'vis': (49,)"]),
    (f"solve radio nan.h5 {RADIO}", ["1 unflagged values of vis are NaN or inf; flag those rows"]),
    (f"solve radio negative.h5 {RADIO}", ["weights must be >= 0"]),
    (f"solve radio zero.h5 {RADIO}", ["every visibility is flagged or of weight zero"]),
    (f"solve radio flagged.h5 {RADIO}", ["every visibility is flagged"]),
    (f"solve radio lacks.h5 {RADIO}", ["lacks.h5 lacks vis"]),
    (f"solve radio cut.h5 {RADIO}", ["cut.h5 cannot be read; is it whole?"]),
    (f"solve radio small.h5 --cell 600 {RADIO}", ["a cell of 600 arcsec is too coarse", "use at most 14.22 arcsec"]),
    (f"solve radio small.h5 --cell 0 {RADIO}", ["--cell takes arcsec, or a number and one of as, arcsec, mas, uas"]),
    (f"solve radio small.h5 --sigma 0 {RADIO}", ["sigma", "must be finite and > 0, got 0"]),
    (
        "solve radio small.h5 --size 0 --prior prior.safetensors -o rec.fits",
        ["--size must be at least 2", "got 0"],
    ),
    ("solve radio small.h5 --prior radioo -o rec.fits", ["no network named 'radioo'", "shipped:"]),
    ("solve radio small.h5 --prior prior.safetensors -o rec.png", ["name it .fits"]),
    ("solve radio small.h5 --prior prior.safetensors -o old.fits", ["old_dirty.fits exists; pass --overwrite"]),
    ("train none -o x.safetensors --steps 1", ["no image folder 'none'"]),
    ("train empty -o x.safetensors --steps 1", ["empty: expected images"]),
    ("train photos -o x.safetensors --steps 1 --size 64", ["no image is at least 64 x 64"]),
    ("train photos -o x.safetensors --steps 0", ["must be positive"]),
    ("train photos -o x.safetensors --steps 1 --sigma-min 0", ["expected 0 < sigma_min"]),
    ("train photos -o no/x.safetensors --steps 1", ["does not exist; make it first"]),
    ("info nature", ["no network named 'nature'", "shipped:"]),
    ("info cut.safetensors", ["truncated"]),
    ("info pickle.pt", ["is a pickle"]),
]


def broken(folder: Path, tiny: LoFi) -> None:
    """Files with something wrong, in the folder of ``files``."""
    import h5py

    whole = (folder / "prior.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save(tiny.state_dict(), folder / "pickle.pt")
    (folder / "plain.pkl").write_bytes(pickle.dumps({"a": 1}))
    save_checkpoint(folder / "other.safetensors", tiny, architecture="DRUNet")
    save_checkpoint(
        folder / "three.safetensors", LoFi(3, rays=2, rings=2, radius=1.0, hidden=(3,), features=2, mixer=(3,))
    )
    for name in ("here.png", "there.json", "old_dirty.fits", "photos.gif", "empty.npy"):
        (folder / name).touch()
    (folder / "zip.npy").write_bytes(b"PK\x03\x04 but no zip")
    photo = (folder / "colour.png").read_bytes()
    (folder / "cut.png").write_bytes(photo[: len(photo) // 2])
    np.save(folder / "nan.npy", np.full((8, 8), np.nan))
    (folder / "empty").mkdir()
    (folder / "empty.ms").mkdir()
    (folder / "photos").mkdir()
    Image.fromarray(np.full((40, 40), 9, np.uint8)).save(folder / "photos" / "a.png")
    changes = {"lengths": ("vis", lambda v: v[:-1]), "nan": ("vis", lambda v: np.where(np.arange(50) == 3, np.nan, v)),
               "negative": ("weight", lambda v: -v), "zero": ("weight", lambda v: 0 * v),
               "flagged": ("flag", lambda v: ~v), "lacks": ("vis", None)}  # fmt: skip
    for name, (key, change) in changes.items():
        (folder / f"{name}.h5").write_bytes((folder / "small.h5").read_bytes())
        with h5py.File(folder / f"{name}.h5", "a") as f:
            value = f[key][()]
            del f[key]
            if change is not None:
                f[key] = change(value)
    (folder / "cut.h5").write_bytes((folder / "small.h5").read_bytes()[:1500])


@pytest.mark.parametrize(
    ("line", "parts"), MISTAKES, ids=[m[0].replace("--prior prior.safetensors ", "") for m in MISTAKES]
)
def test_mistake(run, files, tiny, line, parts):
    broken(files, tiny)
    before = {p: p.stat().st_mtime_ns for p in files.rglob("*")}
    refused(run(line), *parts)
    assert {p: p.stat().st_mtime_ns for p in files.rglob("*")} == before  # nothing is left behind, nothing touched


def test_names_of_shipped_priors_are_listed(run, files, monkeypatch):
    monkeypatch.setattr("pnp_lofi.checkpoint.shipped", lambda: ["natural", "radio"])
    refused(run("info nature"), "shipped: natural, radio")


def test_an_unwritable_folder(run, files, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    refused(run("denoise grey.png --sigma 0.1 --prior prior.safetensors -o out.png"), "is not writable")


def test_a_missing_package_is_named_with_its_extra(run, files, monkeypatch):
    """The brackets of the extra are part of the message: without them the advice is useless."""
    monkeypatch.setitem(sys.modules, "astropy.io", None)
    refused(run("denoise sky.fits --sigma 0.1 --prior prior.safetensors -o out.npy"), "pip install 'pnp_lofi[radio]'")


def test_names_with_brackets(run, files):
    """Rich takes [words] for markup; a path is not."""
    (files / "a[bold]b.png").write_bytes((files / "grey.png").read_bytes())
    result = run("denoise 'a[bold]b.png' --sigma 0.1 --prior prior.safetensors -o 'o[red].png'")
    assert result.code == 0, result.err
    assert "wrote o[red].png" in result.out
    refused(run("denoise 'no[/x].png' --sigma 0.1 --prior prior.safetensors -o x.png"), "'no[/x].png'")


def test_overwrite(run, files):
    line = "solve inpaint grey.png --keep 0.5 --prior prior.safetensors --iterations 1 -o out.png"
    assert run(line).code == 0
    refused(run(line), "out.png exists")
    assert run(f"{line} --overwrite").code == 0
    line = "solve radio small.h5 --size 16 --sigma 1 --prior prior.safetensors --iterations 1 -o rec.fits"
    assert run(line).code == 0
    refused(run(line), "rec.fits exists")
    assert run(f"{line} --overwrite").code == 0


def test_unknown_options_are_clicks_business(run, files):
    result = run("denoise grey.png --sigmaa 0.1 -o x.png")
    assert result.code == 2 and "--sigmaa" in result.err and "Traceback" not in result.err
