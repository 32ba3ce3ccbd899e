"""The denoising recipe, end to end on photographs written here."""

import json

import pytest
import torch
from typer.testing import CliRunner

from pnp_lofi.baselines import Baseline
from pnp_lofi.checkpoint import load_checkpoint, save_checkpoint
from pnp_lofi.images import load_image, save_image
from pnp_lofi.leaves import dead_leaves
from pnp_lofi.recipes import denoise


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for k, x in enumerate(dead_leaves(3, 48, seed=5)):
        save_image(folder / f"{k}.png", x[None].expand(1, 3, -1, -1))
    return folder


def run(*arguments):
    return CliRunner().invoke(denoise.app, [str(a) for a in arguments], catch_exceptions=False)


SMALL = ("--crop", 32, "--objects", 2, "--pixels", 64, "--quick")


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--colour",),
        ("--sigma-max", 0.3),
        ("--sigma-max", 0.3, "--blind"),
        ("--network", "U-Net"),
        ("--network", "SharedLoFi", "--colour"),
    ],
)
def test_train_and_apply(photos, tmp_path, options):
    out = tmp_path / "d.safetensors"
    assert "held-out PSNR" in run("train", "-o", out, "--data", photos, *SMALL, *options).stdout
    model, header = load_checkpoint(out)
    told = "SharedLoFi" in options or ("--sigma-max" in options and "--blind" not in options)
    assert header["recipe"] == "denoise" and header["told"] == told
    assert model.in_channels == (3 if "--colour" in options else 1)
    assert (tmp_path / "d.safetensors.csv").is_file() and (tmp_path / "d.safetensors.png").is_file()
    clean = tmp_path / "clean.png"
    sigma = ("--sigma", 0.2) if "--sigma-max" in options and told else ()
    run("apply", out, photos / "0.png", "-o", clean, *sigma)
    assert load_image(clean).shape[-2:] == (48, 48)
    with pytest.raises(FileExistsError):
        run("apply", out, photos / "0.png", "-o", clean, *sigma)


def test_resume_is_told(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        run("train", "-o", tmp_path / "d.safetensors", "--data", photos, *SMALL, "--resume")


def test_another_recipes_checkpoint(photos, tmp_path):
    save_checkpoint(tmp_path / "x.safetensors", Baseline("DnCNN"), recipe="ldct")
    with pytest.raises(ValueError, match="made by the recipe 'ldct', this one reads 'denoise'"):
        run("apply", tmp_path / "x.safetensors", photos / "0.png", "-o", tmp_path / "y.png")


def test_level_and_size_are_asked_for(photos, tmp_path):
    out = tmp_path / "d.safetensors"
    with pytest.raises(ValueError, match='size is "small" or "paper"'):
        run("train", "-o", out, "--data", photos, *SMALL, "--size", "huge")
    with pytest.raises(ValueError, match="no --blind"):
        run("train", "-o", out, "--data", photos, *SMALL, "--network", "SharedLoFi", "--sigma-max", 0.3, "--blind")
    with pytest.raises(ValueError, match="baselines are"):
        run("train", "-o", out, "--data", photos, *SMALL, "--network", "VGG")
    with pytest.raises(ValueError, match="expected 0 < sigma_min"):
        run("train", "-o", out, "--data", photos, *SMALL, "--sigma", 0)
    with pytest.raises(ValueError, match="expected 0 < sigma_min"):
        run("train", "-o", out, "--data", photos, *SMALL, "--sigma-max", 0)


def test_tiny(tmp_path, monkeypatch):
    monkeypatch.setattr(denoise, "ten_photographs", lambda side: list(dead_leaves(5, side, seed=3)))
    run("tiny", "-o", tmp_path, "--side", 32, "--quick")
    found = json.loads((tmp_path / "tiny.json").read_text())["curves"]
    assert set(found) == {"LoFi", "DnCNN"}
    assert found["LoFi"]["steps"] == list(range(1, 41)) and len(found["DnCNN"]["psnr"]) == 40
    assert (tmp_path / "tiny.png").is_file()
    with pytest.raises(FileExistsError):
        run("tiny", "-o", tmp_path, "--side", 32, "--quick")
    run("tiny", "-o", tmp_path, "--side", 32, "--quick", "--resume")
    assert json.loads((tmp_path / "tiny.json").read_text())["curves"] == found
    with pytest.raises(ValueError, match="take another folder"):
        run("tiny", "-o", tmp_path, "--side", 40, "--quick", "--resume")


def test_ten_photographs_are_squares():
    found = denoise.ten_photographs(16)
    assert len(found) == 10 and all(x.shape == (1, 16, 16) for x in found)
    assert all(float(x.min()) >= 0 and float(x.max()) <= 1 for x in found)
    assert torch.equal(denoise.middle(torch.arange(25.0).reshape(1, 5, 5), 3)[0, 0], torch.tensor([6.0, 7, 8]))
