"""The super-resolution recipe from end to end, on images written here."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pnp_lofi.checkpoint import load_checkpoint, save_checkpoint
from pnp_lofi.examples import Crops
from pnp_lofi.images import save_image
from pnp_lofi.learner import Learner
from pnp_lofi.leaves import dead_leaves
from pnp_lofi.metrics import snr
from pnp_lofi.recipes.superres import app, build, enlarge, figures_of, natural, scale_invariant_snr
from pnp_lofi.scales import Scales, resized
from pnp_lofi.train import TrainSettings
from pnp_lofi.zoom import zoom

MODES = {"FunkNN": "factor", "FunkNN-fast": "any", "LoFi": "continuous", "LIIF": "any", "U-Net": "single"}


def call(*words: object) -> str:
    result = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for k, x in enumerate(dead_leaves(3, 48, seed=5)):
        save_image(folder / f"{k}.png", x[None].expand(1, 3, -1, -1))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, photos) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("superres")
    paths = {name: folder / f"{name}.safetensors" for name in MODES}
    for name, path in paths.items():
        out = call("train", "-o", path, "--network", name, "--mode", MODES[name], "--data", photos, "--quick")
        assert "held-out SNR x2" in out and path.with_name(path.name + ".png").is_file()
    return paths


def test_train_and_test(trained, photos, tmp_path):
    header = load_checkpoint(trained["FunkNN"])[1]
    assert header["mode"] == "factor" and header["recipe"] == "superres" and header["trained_on"].startswith("folder")
    out = tmp_path / "t.json"
    assert "scale-invariant" in call("test", *trained.values(), "-o", out, "--data", photos, "--quick")
    rows = json.loads(out.read_text())["rows"]
    assert set(rows) == {"bilinear", "bicubic", "smooth", *MODES} and set(rows["LoFi"]) == {"x2"}
    assert all(row["x2"]["scale_invariant"] >= row["x2"]["snr"] - 1e-9 for row in rows.values())
    assert out.with_suffix(".png").is_file()
    with pytest.raises(FileExistsError, match="--overwrite"):
        call("test", *trained.values(), "-o", out, "--quick")


def test_colour_and_natural(photos, tmp_path):
    out = tmp_path / "rgb.safetensors"
    call("train", "-o", out, "--network", "LIIF", "--data", photos, "--colour", "--quick")
    assert load_checkpoint(out)[0].channels == 3
    with pytest.raises(ValueError, match='"natural" is grey'):
        call("train", "-o", tmp_path / "x.safetensors", "--colour", "--quick")
    crops = natural(32, 3, 0, torch.device("cpu"), 2)(torch.Generator().manual_seed(0))
    assert crops.shape == (3, 1, 32, 32) and bool(((crops >= 0) & (crops <= 1)).all())


def test_figures():
    x = dead_leaves(2, 32, seed=3)
    found = figures_of("bicubic", [x[:1], x[1:]], 2)
    each = [snr(zoom("bicubic", resized(t, (16, 16)), 2), t) for t in (x[:1], x[1:])]
    assert found["snr"] == pytest.approx(sum(each) / 2)
    assert snr(3 * x, x) < 0 and scale_invariant_snr(3 * x + 1e-9, x) > 100
    model = build("U-Net")
    with torch.no_grad():
        expected = model.eval()(resized(x, (48, 48)))
    torch.testing.assert_close(enlarge(model, x, (48, 48)), expected)


@pytest.mark.parametrize(("name", "steps"), [("FunkNN", 160), ("FunkNN-fast", 50)])
def test_few_steps_leave_the_kernel(name, steps):
    """A start whose units die, or stay at the kernel, would gain nothing."""
    torch.manual_seed(0)
    model = build(name, width=16)
    source = Scales(Crops(list(dead_leaves(12, 64, seed=1)), 32, 4), "continuous")
    learner = Learner(model, source, TrainSettings(steps, 64, lr=3e-3, ema=0.9), {})
    for _ in range(steps):
        learner.advance()
    held = list(dead_leaves(4, 64, seed=2)[:, None])
    assert figures_of(model, held, 2)["snr"] > figures_of("bicubic", held, 2)["snr"] + 0.1


def test_bad_input_is_told(trained, photos, tmp_path):
    with pytest.raises(ValueError, match="networks are FunkNN"):
        build("EDSR")
    with pytest.raises(ValueError, match="modes are single"):
        call("train", "-o", tmp_path / "a.safetensors", "--mode", "double", "--data", photos, "--quick")
    with pytest.raises(FileExistsError, match="--overwrite"):
        call("train", "-o", trained["LoFi"], "--quick")
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        call("train", "-o", tmp_path / "new.safetensors", "--data", photos, "--quick", "--resume")
    save_checkpoint(tmp_path / "other.safetensors", build("LIIF"), recipe="ldct")
    with pytest.raises(ValueError, match="made by the recipe 'ldct'"):
        call("test", tmp_path / "other.safetensors", "-o", tmp_path / "t.json")
    with pytest.raises(ValueError, match="rename one"):
        call("test", trained["LoFi"], trained["LoFi"], "-o", tmp_path / "t.json")
