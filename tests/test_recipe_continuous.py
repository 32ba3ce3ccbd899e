"""The recipe of the three inverse problems, from end to end."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import pnp_lofi.recipes.continuous as recipe
from pnp_lofi.autoencoder import AutoEncoder
from pnp_lofi.flow import LatentFlow
from pnp_lofi.metrics import snr
from pnp_lofi.priors import Generator, save_generator
from pnp_lofi.recipes.continuous import anchored, app, make_problem, shifted_snr, truth_of

METHODS = {
    "derivatives": {"Poisson", "TV", "LoFi-ADMM", "LoFi-HQS", "generator"},
    "sparse": {"Poisson (others 0)", "TV", "LoFi-ADMM", "LoFi-HQS", "generator"},
    "ct": {"FBP", "TV", "LoFi-ADMM", "LoFi-HQS", "generator"},
}


def call(*words: object) -> str:
    result = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("continuous") / "g.safetensors"
    save_generator(path, Generator(AutoEncoder(64, 1, 4, widths=(8,) * 6), LatentFlow(4, hidden=(8,))), trained_on="-")
    return path


def test_the_three_problems(checkpoint, tmp_path):
    out = tmp_path / "out"
    assert "LoFi-ADMM" in call(checkpoint, "-o", out, "--quick")
    found = json.loads((out / "results.json").read_text())
    assert {name: set(rows) for name, rows in found["problems"].items()} == METHODS
    for rows in found["problems"].values():
        assert all(math.isfinite(row["snr"]) and row["shifted snr"] >= row["snr"] - 1e-6 for row in rows.values())
    assert all((out / f"{name}.png").exists() and not (out / f"{name}.run").exists() for name in METHODS)
    with pytest.raises(FileExistsError, match="--overwrite"):
        call(checkpoint, "-o", out, "--quick")


def test_only_some_methods(checkpoint, tmp_path):
    words = ["--quick", "--problems", "ct", "--field", "zoom", "--side", 20]
    call(checkpoint, "-o", tmp_path / "a", *words, "--only", "generator,FBP")
    found = json.loads((tmp_path / "a" / "results.json").read_text())
    assert list(found["problems"]["ct"]) == ["generator", "FBP"] and found["field"] == "zoom"
    with pytest.raises(ValueError, match="methods are FBP, TV"):
        call(checkpoint, "-o", tmp_path / "b", *words, "--only", "magic")


def test_a_run_broken_off_goes_on_to_the_same_result(checkpoint, tmp_path, monkeypatch):
    words = ["--quick", "--problems", "derivatives"]
    call(checkpoint, "-o", tmp_path / "whole", *words)
    true = recipe.LatentSolver.solve

    def breaks(self, *args, **kwargs):
        def stop(step):
            raise KeyboardInterrupt

        self.callback, kwargs["every"] = stop, 0
        return true(self, *args, **kwargs)

    monkeypatch.setattr(recipe.LatentSolver, "solve", breaks)
    out = tmp_path / "broken"
    assert CliRunner().invoke(app, [str(checkpoint), "-o", str(out), *words]).exit_code == 130
    assert not (out / "results.json").exists()
    monkeypatch.setattr(recipe.LatentSolver, "solve", true)
    with pytest.raises(ValueError, match="take another folder"):
        call(checkpoint, "-o", out, *words, "--resume", "--snr", 20)
    call(checkpoint, "-o", out, *words, "--resume")
    rows = [json.loads((folder / "results.json").read_text())["problems"]["derivatives"]
            for folder in (tmp_path / "whole", out)]  # fmt: skip
    assert {m: row["snr"] for m, row in rows[0].items()} == {m: row["snr"] for m, row in rows[1].items()}


def test_the_problems_are_what_they_say():
    x = truth_of("head", None, 32, 0)
    assert x.shape == (1, 1, 32, 32) and 0 <= float(x.min()) < float(x.max()) <= 1
    exact = 200.0  # dB
    whole = make_problem("derivatives", x, exact, 0)
    assert shifted_snr(whole.first(), x) > 30 and snr(anchored(whole.first(), 0.0), x) > 25
    largest, ct = make_problem("sparse", x, exact, 0), make_problem("ct", x, exact, 0)
    assert abs(largest.y.shape[-1] / whole.y.shape[-1] - 0.2) < 0.01
    assert float(largest.y.norm(dim=2).min()) >= float(whole.y.norm(dim=2).quantile(0.8)) - 1e-4
    assert math.degrees(float(ct.op.angles.max() - ct.op.angles.min())) == pytest.approx(140)
    noisy = make_problem("ct", x, 30.0, 0)
    assert snr(noisy.y, ct.y) == pytest.approx(30, abs=0.3)
    assert noisy.op.sigma == pytest.approx(float((noisy.y - ct.y).std()), rel=0.05)


def test_a_file_of_the_users(tmp_path):
    Image.new("L", (60, 40), 128).save(tmp_path / "grey.png")
    x = truth_of("head", tmp_path / "grey.png", 24, 0)
    assert x.shape == (1, 1, 24, 24)
    torch.testing.assert_close(x, torch.full_like(x, 128 / 255), atol=1e-3, rtol=0)


def test_bad_input_is_told(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="problems are derivatives, sparse, ct, got mri"):
        call(checkpoint, "-o", tmp_path / "o", "--problems", "ct,mri")
    with pytest.raises(ValueError, match="families are head, chest"):
        call(checkpoint, "-o", tmp_path / "o", "--quick", "--family", "cat")
    with pytest.raises(FileNotFoundError, match=r"recipes\.generative train"):
        call(tmp_path / "none.safetensors", "-o", tmp_path / "o")
