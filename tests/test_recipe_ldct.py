"""The recipe for low-dose CT: each command on small files of each kind, and what it says to files that are wrong."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pnp_lofi import LoFi, save_checkpoint
from pnp_lofi.checkpoint import load_checkpoint
from pnp_lofi.ct_scans import Draws, Scan, Scanned, fixed_pairs, from_hu, load_scans, noise_levels, to_hu
from pnp_lofi.dicom import dicom_series, read_slice
from pnp_lofi.dicom_writer import write_dicom, write_series
from pnp_lofi.hounsfield import attenuation
from pnp_lofi.lodopab import from_hu as lodopab_from_hu
from pnp_lofi.lodopab import write_lodopab
from pnp_lofi.metrics import psnr
from pnp_lofi.operators import FanBeam, Radon
from pnp_lofi.organs import CHEST_FIELD, chest
from pnp_lofi.pairs_file import write_authors_pairs, write_pairs
from pnp_lofi.recipes import ldct
from pnp_lofi.sinogram_file import Geometry, read_sinogram, write_sinogram

pytest.importorskip("pydicom")
SIDE, PIXEL = 32, CHEST_FIELD / 32
TINY = {"rays": 3, "rings": 3, "radius": 2.0, "hidden": (8,), "features": 4, "mixer": (8,)}
FEW = ("--quick", "--steps", "3", "--count", "6", "--objects", "2", "--side", str(SIDE))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(ldct.LOFI, "small", TINY)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network that answers what it sees: its output is zero, and it is residual."""
    torch.manual_seed(0)
    model = LoFi(**TINY)
    with torch.no_grad():
        for weight in model.mlp.parameters():
            weight.zero_()
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    save_checkpoint(path, model, recipe="ldct", scan={"views": 60, "snr": 30.0})
    return path


def call(*words: object) -> str:
    done = CliRunner().invoke(ldct.app, [str(w) for w in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


# ---- data ------------------------------------------------------------------------------------------------


def test_units():
    hu = torch.tensor([-1024.0, -1000, 0, 1000])
    assert from_hu(hu).tolist() == [0, 0, 1, 2] and to_hu(from_hu(hu))[1:].tolist() == [-1000, 0, 1000]


def test_noise_is_as_loud_as_asked_for():
    images = from_hu(chest(4, SIDE, seed=0))
    op = Scan().operator(SIDE)
    clean = op.A(images)
    y = Scan(snr=20).noisy(clean, torch.Generator().manual_seed(0), [PIXEL] * 4)
    snr = 20 * torch.log10(clean.flatten(1).norm(dim=1) / (y - clean).flatten(1).norm(dim=1))
    assert torch.allclose(snr, torch.tensor(20.0), atol=0.3)
    counted = Scan(photons=1e4).noisy(clean, torch.Generator().manual_seed(0), [PIXEL] * 4)
    expected = torch.exp(0.02 * PIXEL * clean / 2) / 100 / (0.02 * PIXEL)  # sqrt(exp(mu y) / N0) / mu
    ratio = ((counted - clean) / expected).square().mean()
    assert float(ratio) == pytest.approx(1, rel=0.1)
    with pytest.raises(ValueError, match="photons must be > 0"):
        Scan(photons=0)


def test_levels_scale_with_the_noise():
    data = Scanned(list(from_hu(chest(1, 64, seed=0))), [5.0], Scan(snr=30))
    louder = Scanned(data.images, [5.0], Scan(snr=20))
    a, b = (noise_levels(fixed_pairs(d)[0][0]) for d in (data, louder))
    assert 2 < float(b / a) < 3.5  # 10 dB are 3.16; what is fine in the image counts in both
    assert float(noise_levels(torch.zeros(1, 1, 8, 8))) > 0


def test_padding_is_not_taken_for_the_absence_of_noise():
    noise = 0.05 * torch.randn(1, 1, 80, 80, generator=torch.Generator().manual_seed(0))
    padded = noise.clone()
    padded[..., :50] = 0
    assert float(noise_levels(padded)) == pytest.approx(float(noise_levels(noise)), rel=0.1)
    assert float(noise_levels(noise)) == pytest.approx(0.05, rel=0.1)


def test_draws_are_turned_together_and_noise_is_fresh():
    data = Scanned(list(from_hu(chest(3, SIDE, seed=0))), [PIXEL] * 3, Scan(snr=60))
    one = Draws(data, 6)(torch.Generator().manual_seed(0))
    assert one.q.shape == one.x.shape == (6, 1, SIDE, SIDE) and one.sigma.shape == (6,)
    assert all(psnr(q, x) > 20 for q, x in zip(one.q, one.x, strict=True))  # they lie on each other
    again = Draws(data, 6)(torch.Generator().manual_seed(0))
    assert torch.equal(one.q, again.q)
    crops = Draws(data, 2, 16)(torch.Generator().manual_seed(0))
    assert crops.q.shape == (2, 1, 16, 16)
    with pytest.raises(ValueError, match="do not fit"):
        Draws(data, 2, 40)(torch.Generator())


def test_measured_sets_come_in_units_of_water(tmp_path):
    write_lodopab(tmp_path, {"test": 2}, shape=(32, 48, 47))
    (q, x), _ = fixed_pairs(load_scans(tmp_path, Scan(filter="hann"), part="test"))
    torch.testing.assert_close(x[0], from_hu(chest(1, 32, seed=0)).flip(-2).mT[0], atol=2e-3, rtol=0)
    assert q.shape == x.shape and psnr(q, x) > 12
    assert float(lodopab_from_hu(torch.zeros(1))) == pytest.approx(20 / 81.35858)
    small = fixed_pairs(load_scans(tmp_path, Scan(), part="test", side=16))
    assert small[0][0].shape == small[0][1].shape == (1, 1, 16, 16)


# ---- commands, on each kind of data ----------------------------------------------------------------------


def dicom_folder(folder: Path, count: int = 4) -> Path:
    write_series(folder, chest(count, SIDE, seed=0), PIXEL)
    return folder


def make(kind: str, folder: Path) -> str:
    images = chest(4, SIDE, seed=0)
    if kind == "dicom":
        dicom_folder(folder)
    elif kind == "lodopab":
        write_lodopab(folder, shape=(SIDE, 48, 47))
    elif kind == "npz":
        write_authors_pairs(folder, images / 1000, images / 1000)
    elif kind == "pairs":
        write_pairs(folder.with_suffix(".h5"), images / 1000, images / 1000)
        return str(folder.with_suffix(".h5"))
    return kind if kind == "phantoms" else str(folder)


@pytest.mark.parametrize("kind", ["phantoms", "dicom", "lodopab", "npz", "pairs"])
def test_train_and_test(kind, tmp_path):
    data, out = make(kind, tmp_path / "data"), tmp_path / "net.safetensors"
    assert "held-out PSNR" in call("train", "-o", out, "--data", data, *FEW)
    header = load_checkpoint(out)[1]
    assert header["recipe"] == "ldct" and header["scan"]["views"] == 180
    assert (tmp_path / "net.safetensors.png").exists() and (tmp_path / "net.safetensors.csv").exists()
    shown = call("test", out, "-o", tmp_path / "t.json", "--data", data, "--quick", "--side", SIDE)
    assert "FBP" in shown
    (row,) = json.loads((tmp_path / "t.json").read_text())["data"].values()
    assert row["images"] >= 2 and set(row) == {"images", "FBP", "net"}
    assert len(list(tmp_path.glob("t_*.png"))) == 1
    with pytest.raises(FileExistsError):
        call("test", out, "-o", tmp_path / "t.json", "--data", data, "--quick")
    with pytest.raises(FileExistsError):
        call("train", "-o", out, "--data", data, *FEW)


def test_baselines_and_sizes(tmp_path):
    """Any side: networks with strides get it padded."""
    paths = [tmp_path / f"{name}.safetensors" for name in ("U-Net", "SharedLoFi")]
    for path in paths:
        call("train", "-o", path, "--network", path.stem, "--quick", "--steps", 2, "--count", 3, "--side", 40,
             "--crop", 32, "--objects", 1)  # fmt: skip
    call("test", *paths, "-o", tmp_path / "t.json", "--quick", "--side", 37, "--count", 2)
    found = json.loads((tmp_path / "t.json").read_text())["data"]
    assert set(found) == {"chest", "head"} and set(found["head"]) == {"images", "FBP", "U-Net", "SharedLoFi"}


def test_resume(tmp_path, monkeypatch):
    """A run that is broken off and resumed ends where one in one go ends."""
    whole, parts = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    call("train", "-o", whole, *FEW, "--steps", 6)
    before, calls = Draws.__call__, []

    def broken(self, generator):
        calls.append(1)
        if len(calls) == 3:  # two steps each
            raise KeyboardInterrupt
        return before(self, generator)

    from pnp_lofi.learner import Learner

    step = Learner.advance

    def kept(self):
        found = step(self)
        self.save(Path(f"{parts}.state"))
        return found

    monkeypatch.setattr(Draws, "__call__", broken)
    monkeypatch.setattr(Learner, "advance", kept)
    CliRunner().invoke(ldct.app, [str(w) for w in ("train", "-o", parts, *FEW, "--steps", 6)])
    monkeypatch.undo()
    monkeypatch.setitem(ldct.LOFI, "small", TINY)
    with pytest.raises(FileExistsError, match="broken-off"):
        call("train", "-o", parts, *FEW, "--steps", 6)
    with pytest.raises(ValueError, match="other identity"):
        call("train", "-o", parts, *FEW, "--steps", 6, "--side", 40, "--resume")
    call("train", "-o", parts, *FEW, "--steps", 6, "--resume")
    with pytest.raises(FileExistsError, match=r"nothing to resume: .* is finished"):
        call("train", "-o", parts, *FEW, "--steps", 6, "--resume")
    a, b = (load_checkpoint(path)[0].state_dict() for path in (whole, parts))
    for name, value in a.items():
        torch.testing.assert_close(b[name], value)


# ---- apply -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["npy", "npz", "h5"])
def test_apply_to_a_sinogram(ending, tmp_path, checkpoint):
    """What comes out is the body that was scanned, in HU; geometry is told, or lies in the file."""
    hu = chest(1, 64, seed=1)
    pixel = CHEST_FIELD / 64
    op = Radon((64, 64), 90, pixel_size=pixel)
    y, path = op.A(attenuation(hu))[0, 0], tmp_path / f"y.{ending}"
    told: list[object] = []
    if ending == "npy":
        np.save(path, y.numpy().T)
        told = ["--transpose", "--geometry", f"spacing={pixel},side=64"]
    elif ending == "npz":
        np.savez(path, sinogram=y.numpy(), angles=op.angles.numpy(), spacing=pixel, side=64)
    else:
        write_sinogram(path, y, Geometry(spacing=pixel, side=64))
    outs = [tmp_path / f"out.{end}" for end in ("npy", "png", "dcm")]
    text = call("apply", checkpoint, path, *[w for out in outs for w in ("-o", out)], "--window", "lung", *told)
    assert "64 x 64" in text
    x = torch.from_numpy(np.load(outs[0]))
    assert psnr(x, hu[0]) > 28
    back, side = read_slice(outs[2])
    assert side == pytest.approx(pixel) and float((back.clamp(-1000) - x.clamp(-1000)).abs().max()) < 25
    with pytest.raises(FileExistsError):
        call("apply", checkpoint, path, "-o", outs[0], *told)


def test_apply_to_counts_of_a_fan(tmp_path, checkpoint):
    hu, pixel = chest(1, 48, seed=1), CHEST_FIELD / 48
    op = FanBeam((48, 48), 120, source_origin=600.0, source_detector=1000.0, pixel_size=pixel)
    counts = 1e6 * torch.exp(-op.A(attenuation(hu)))
    np.save(tmp_path / "y.npy", torch.stack([counts[0, 0] * 0 + 1e6, counts[0, 0]]).numpy())
    geometry = f"spacing={op.spacing},pixel={pixel},side=48,source_origin=600,source_detector=1000"
    call("apply", checkpoint, tmp_path / "y.npy", "--item", 1, "--photons", 1e6, "--geometry", geometry,
         "-o", tmp_path / "x.npy")  # fmt: skip
    assert psnr(torch.from_numpy(np.load(tmp_path / "x.npy")), hu[0]) > 25


def test_apply_to_slices(tmp_path, checkpoint):
    folder = dicom_folder(tmp_path / "in", 3)
    source = folder / "002.dcm"
    with pytest.warns(UserWarning, match="another texture of noise"):
        call("apply", checkpoint, source, "-o", tmp_path / "x.npy", "--noise", 20)
    hu, _ = read_slice(source)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "x.npy")), hu, atol=1e-2, rtol=0)
    assert "dB of the FBP" in call("apply", checkpoint, source, "--simulate", "--snr", 40, "-o", tmp_path / "y.dcm")
    with pytest.warns(UserWarning):
        call("apply", checkpoint, folder, "-o", tmp_path / "out")
    (files,) = dicom_series(tmp_path / "out").values()
    assert len(files) == 3
    with pytest.raises(FileExistsError):
        call("apply", checkpoint, folder, "-o", tmp_path / "out")
    write_series(folder / "other", chest(2, SIDE, seed=9), PIXEL)
    with pytest.warns(UserWarning):
        call("apply", checkpoint, folder, "-o", tmp_path / "both")
    assert sorted(map(len, dicom_series(tmp_path / "both").values())) == [2, 3]  # a patient's slices stay together
    for words in (["--noise", 0], ["--side", 0]):
        with pytest.raises(ValueError, match=r"must be > 0 HU|16 pixels"):
            call("apply", checkpoint, source, "-o", tmp_path / "z.npy", *words)
    with pytest.raises(ValueError, match="one other folder"):
        call("apply", checkpoint, folder, "-o", tmp_path / "out.png")


def test_quality(tmp_path, checkpoint):
    """A network that answers what it sees is as sharp and as noisy as FBP."""
    call("test", checkpoint, "-o", tmp_path / "q.json", "--quick", "--count", 1, "--contrast", 300, "--side", 96)
    found = json.loads((tmp_path / "q.json").read_text())["quality"]
    assert (tmp_path / "q_quality.png").exists()
    assert found["net"]["mtf50"] == pytest.approx(found["FBP"]["mtf50"], rel=1e-4)
    assert 0.4 < found["FBP"]["mtf50"] / (0.5 / found["pixel"]) < 0.9  # of Nyquist: FBP interpolates linearly
    assert found["FBP"]["noise"] > 10


# ---- what is not right -----------------------------------------------------------------------------------


def test_bad_data(tmp_path):
    out = tmp_path / "net.safetensors"
    (tmp_path / "empty").mkdir()
    for data, error, text in (
        (tmp_path / "empty", ValueError, "no DICOM file"),
        (tmp_path / "nowhere", FileNotFoundError, "no folder"),
    ):
        with pytest.raises(error, match=text):
            call("train", "-o", out, "--data", data, *FEW)
    write_pairs(tmp_path / "two.npz", torch.rand(2, 2, 16, 16), torch.rand(2, 1, 16, 16))
    with pytest.raises(ValueError, match="expected one channel"):
        call("train", "-o", out, "--data", tmp_path / "two.npz", "--quick")
    write_authors_pairs(tmp_path / "mixed", torch.rand(2, 1, 20, 20), torch.rand(2, 1, 20, 20))
    np.savez(tmp_path / "mixed" / "00002.npz", fbp=np.zeros((24, 24)), image=np.zeros((24, 24)))
    np.savez(tmp_path / "mixed" / "00003.npz", fbp=np.zeros((24, 24)), image=np.zeros((24, 24)))
    with pytest.raises(ValueError, match=r"several sizes.*--crop"):
        call("train", "-o", out, "--data", tmp_path / "mixed", "--quick", "--objects", 16, "--steps", 3)
    for option in ("--steps", "--objects", "--crop", "--count", "--lr"):  # zero is no default
        with pytest.raises(ValueError, match=r"positive|objects >= 1|at least one image"):
            call("train", "-o", out, *FEW, option, 0)
    with pytest.raises(ValueError, match="baselines are"):
        call("train", "-o", out, "--network", "VGG", *FEW)


def test_one_bad_file_of_many_is_named_and_left_out(tmp_path):
    import pydicom

    folder = dicom_folder(tmp_path / "in", 4)
    (folder / "001.dcm").write_bytes((folder / "001.dcm").read_bytes()[:900])
    file = pydicom.dcmread(folder / "002.dcm")
    del file.PixelSpacing
    file.save_as(folder / "002.dcm")
    with pytest.warns(UserWarning) as caught:
        assert len(load_scans(folder, Scan(), side=16)) == 2
    text = " ".join(str(w.message) for w in caught)
    assert "001.dcm" in text and "002.dcm: has no PixelSpacing" in text
    with pytest.warns(UserWarning):
        assert len(load_scans(folder, Scan(), side=16, spacing=2.0)) == 3


def test_bad_checkpoints_outputs_and_options(tmp_path, checkpoint):
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, LoFi(**TINY), recipe="denoise")
    for command in (("test", other), ("apply", other, tmp_path / "y.npy")):
        with pytest.raises(ValueError, match="made by the recipe 'denoise'"):
            call(*command, "-o", tmp_path / ("y.png" if command[0] == "apply" else "t.json"))
    np.save(tmp_path / "y.npy", np.zeros((4, 5, 6)))
    for words, text in (
        (["-o", tmp_path / "x.png"], "choose one of them"),
        (["-o", tmp_path / "x.tif"], "expected an ending"),
        (["-o", tmp_path / "x.png", "--item", 9], "sinograms 0 to 3"),
        (["-o", tmp_path / "x.png", "--item", 1], "spacing=..."),
        (["-o", tmp_path / "x.png", "--geometry", "pitch=3"], "a geometry has"),
        (["-o", tmp_path / "x.png", "--window", "blue"], "expected a window"),
    ):
        with pytest.raises(ValueError, match=text):
            call("apply", checkpoint, tmp_path / "y.npy", *words)
    assert not (tmp_path / "x.png").exists()


def test_read_only_output(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode, **kw: mode != os.W_OK)  # root may write everywhere
    for words in (("train",), ("test", checkpoint), ("apply", checkpoint, checkpoint)):
        with pytest.raises(PermissionError):
            call(*words, "-o", tmp_path / "net.png")


def test_more_processes_than_images(tmp_path, monkeypatch):
    from pnp_lofi.learner import Learner

    start = Learner.__init__

    def eight(self, *args):
        start(self, *args)
        self.world = 8

    monkeypatch.setattr(Learner, "__init__", eight)
    with pytest.raises(ValueError, match="do not go round 8 processes"):
        call("train", "-o", tmp_path / "net.safetensors", *FEW)


def test_sinogram_file(tmp_path):
    y, geometry = torch.rand(5, 7), Geometry(spacing=0.5, offset=0.1, side=4)
    write_sinogram(tmp_path / "y.h5", y, geometry, torch.linspace(0, 3, 5))
    found = read_sinogram(tmp_path / "y.h5")
    assert torch.equal(found.y[0, 0], y) and found.geometry == geometry and len(found.angles) == 5
    assert found.operator(Geometry(side=6)).shape == (6, 6) and found.operator(Geometry(arc=180)).angles[0] == 0
    with pytest.raises(ValueError, match=r"got \(5,\).*--transpose"):
        read_sinogram(tmp_path / "y.h5", transpose=True)
    with pytest.raises(ValueError, match="one is missing"):
        found.operator(Geometry(source_origin=3.0))
    (tmp_path / "bad.npy").write_bytes(b"no")
    with pytest.raises(ValueError, match="broken"):
        read_sinogram(tmp_path / "bad.npy")
    np.save(tmp_path / "nan.npy", np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="NaN"):
        read_sinogram(tmp_path / "nan.npy")


def test_real_slices(shared_data, tmp_path, checkpoint):
    out = call("test", checkpoint, "--data", shared_data / "ct" / "head", "--count", 2, "--side", 64, "-o",
               tmp_path / "t.json")  # fmt: skip
    assert "head" in out
    write_dicom(tmp_path / "x.dcm", chest(1, 16, seed=0)[0], 3.0)
