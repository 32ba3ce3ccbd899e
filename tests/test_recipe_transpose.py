"""The transposing recipe from end to end."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pnp_lofi.checkpoint import save_checkpoint
from pnp_lofi.recipes.transpose import Transposed, app, build, images, misplaced


def call(*words: object) -> str:
    result = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("transpose")
    paths = {name: folder / f"{name}.safetensors" for name in ("LoFi", "U-Net")}
    for name, path in paths.items():
        call("train", "-o", path, "--network", name, "--quick")
    return paths


def test_train_and_test(trained, tmp_path):
    out = tmp_path / "t.json"
    assert "beside the transposed pixel" in call("test", *trained.values(), "-o", out, "--quick")
    found = json.loads(out.read_text())
    assert set(found["psnr"]) == {"LoFi", "U-Net"} and set(found["misplaced"]) == {"LoFi"}
    assert set(found["psnr"]["LoFi"]) == {"leaves", "chest", "head", "convergence"}
    assert out.with_suffix(".png").exists()
    with pytest.raises(FileExistsError, match="--overwrite"):
        call("test", *trained.values(), "-o", out, "--quick")


def test_bad_input_is_told(trained, tmp_path):
    with pytest.raises(FileExistsError, match="--overwrite"):
        call("train", "-o", trained["LoFi"], "--quick")
    save_checkpoint(tmp_path / "other.safetensors", build("LoFi", "small"), recipe="massmap")
    with pytest.raises(ValueError, match="made by the recipe 'massmap'"):
        call("test", tmp_path / "other.safetensors", "-o", tmp_path / "t.json")
    with pytest.raises(ValueError, match="rename one"):
        call("test", trained["LoFi"], trained["LoFi"], "-o", tmp_path / "t.json")
    Path(tmp_path / "new.safetensors.state").touch()
    with pytest.raises(FileExistsError, match="--resume"):
        call("train", "-o", tmp_path / "new.safetensors", "--quick")
    with pytest.raises(ValueError, match="must be positive"):
        call("train", "-o", tmp_path / "lr.safetensors", "--quick", "--lr", 0)
    with pytest.raises(ValueError, match="small"):
        build("LoFi", "huge")


def test_examples_are_transposed():
    kept = images("leaves", 2, 32, 0)
    example = Transposed(kept, 3, 0.5)(torch.Generator().manual_seed(0))
    assert example.q.shape == (3, 1, 32, 32) and torch.equal(example.x, example.q.mT)


def test_a_map_that_transposes_is_not_misplaced():
    """INR(x) made by hand: relu(x) - relu(-x) of the other coordinate."""
    model = build("LoFi", "small")
    assert misplaced(model, 16) > 1

    class Swap(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flip(-1)

    model.inr = Swap()
    with torch.no_grad():  # a patch without an extent looks where the map says
        model.geometry.offsets.zero_()
    assert misplaced(model, 16) < 1e-4
