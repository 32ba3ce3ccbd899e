"""The recipe that trains a generator, from end to end."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pnp_lofi.priors import load_generator
from pnp_lofi.recipes import generative
from pnp_lofi.recipes.generative import app, images


def call(*words: object) -> str:
    result = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("generative") / "g.safetensors"
    assert "held-out PSNR" in call("train", "-o", path, "--quick")
    return path


def test_train_and_sample(trained, tmp_path):
    generator, header = load_generator(trained)
    assert header["family"] == "head" and {"held-out PSNR", "flow, held out"} <= header["metrics"].keys()
    assert generator.sample(2, 0).shape == (2, 1, 64, 64)
    for ending in (".png", ".autoencoder.csv", ".autoencoder.png"):
        assert Path(f"{trained}{ending}").exists()
    assert not Path(f"{trained}.flow.run").exists()
    out = tmp_path / "samples.png"
    assert "3 samples of 40 x 40" in call("sample", trained, "-o", out, "--count", 3, "--side", 40)
    assert out.exists()
    assert "2 samples of 64 x 64" in call("sample", trained, "-o", out, "--count", 2, "--overwrite")


def test_a_run_broken_off_in_the_flow_goes_on_to_the_same_result(trained, tmp_path, monkeypatch):
    path, calls = tmp_path / "g.safetensors", []
    true = generative.LatentFlow.log_prob

    def log_prob(self, w):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return true(self, w)

    monkeypatch.setattr(generative.LatentFlow, "log_prob", log_prob)
    result = CliRunner().invoke(app, ["train", "-o", str(path), "--quick"])
    assert result.exit_code == 130 and not path.exists() and Path(f"{path}.autoencoder").exists()
    monkeypatch.setattr(generative.LatentFlow, "log_prob", true)
    with pytest.raises(FileExistsError, match="--overwrite"):
        call("train", "-o", path, "--quick")
    with pytest.raises(ValueError, match="resume with the same options"):
        call("train", "-o", path, "--quick", "--resume", "--family", "chest")
    call("train", "-o", path, "--quick", "--resume")
    again, whole = load_generator(path)[0].state_dict(), load_generator(trained)[0].state_dict()
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_images_are_those_of_a_family():
    x = images("chest", 2, 64, 0)
    assert x.shape == (2, 1, 64, 64) and 0 <= float(x.min()) < 0.05 < 0.3 < float(x.max()) <= 1
    assert torch.equal(images("chest", 1, 64, 0), x[:1])


def test_bad_input_is_told(trained, tmp_path):
    with pytest.raises(FileExistsError, match="--overwrite"):
        call("train", "-o", trained, "--quick")
    with pytest.raises(ValueError, match="sizes are small, paper"):
        call("train", "-o", tmp_path / "g.safetensors", "--size", "huge")
    with pytest.raises(ValueError, match="families are head, chest"):
        call("train", "-o", tmp_path / "g.safetensors", "--quick", "--family", "cats")
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        call("train", "-o", tmp_path / "g.safetensors", "--quick", "--resume")
    with pytest.raises(ValueError, match="ending"):
        call("sample", trained, "-o", tmp_path / "x.jpg")
    with pytest.raises(ValueError, match="at least 1 pixel"):
        call("sample", trained, "-o", tmp_path / "x.png", "--side", 0)
