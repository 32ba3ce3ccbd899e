"""Training: it learns, it can be broken off, and it goes on to the same result."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from pnp_lofi import LoFi
from pnp_lofi.checkpoint import load_checkpoint
from pnp_lofi.examples import Crops, Mixture, Noisy
from pnp_lofi.train import TrainSettings, check_run, train

SETTINGS = TrainSettings(steps=60, pixels=64, lr=3e-3)


def network():
    torch.manual_seed(0)
    return LoFi(rays=4, rings=4, radius=2.5, hidden=(16,), features=8, mixer=(16,))


def ramps(size=32, count=2):
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    return Crops([rows[None], columns[None], ((rows + columns) / 2)[None]], size, count)


def noisy(sigma_min=0.02, sigma_max=0.2):
    return Noisy(ramps(), sigma_min, sigma_max)


def test_it_learns_to_denoise(tmp_path):
    settings = TrainSettings(steps=400, pixels=128, lr=5e-3)
    model = network()
    train(model, noisy(0.1, 0.1), settings, tmp_path / "a.safetensors", progress=False)
    clean = ramps()(torch.Generator().manual_seed(5))
    seen = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        error = (model(seen, 0.1) - clean).square().mean()
    assert float(error) < 0.25 * 0.1**2  # 16 points of a patch average a ramp's noise well below a half


def test_resume_is_exact(tmp_path, monkeypatch):
    whole = network()
    expected = train(whole, noisy(), SETTINGS, tmp_path / "whole.safetensors", progress=False)

    class Broken(Exception):
        pass

    calls = []

    def breaks(generator):
        calls.append(1)
        if len(calls) > 37:
            raise Broken
        return noisy()(generator)

    out = tmp_path / "part.safetensors"
    with pytest.raises(Broken):
        train(network(), breaks, SETTINGS, out, keep_every=10, progress=False)
    assert not out.exists()
    model = network()
    got = train(model, noisy(), SETTINGS, out, resume=True, progress=False)
    assert got == expected
    for a, b in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not (tmp_path / "part.safetensors.state").exists()


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_train import SETTINGS, network, noisy
from pnp_lofi.train import train
torch.set_num_threads(1)
def slow(g):
    import time; time.sleep(0.02); print("step", flush=True); return noisy()(g)
figures = train(network(), slow, SETTINGS, {out!r}, resume="--resume" in sys.argv, progress=False, keep_every=10)
print("done", figures["loss"])
"""


def run(out, *arguments):
    script = SCRIPT.format(tests=os.path.dirname(__file__), out=str(out))
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return run(tmp_path_factory.mktemp("unbroken") / "a.safetensors").communicate(timeout=120)[0].splitlines()[-1]


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_a_run_broken_off_resumes_to_the_same_loss(tmp_path, unbroken, blow):
    """By ctrl-C after the last step, by kill -9 from what was kept last."""
    process = run(tmp_path / "b.safetensors")
    for _ in range(15):
        process.stdout.readline()
    process.send_signal(blow)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert blow == signal.SIGKILL or "KeyboardInterrupt" in errors
    assert (tmp_path / "b.safetensors.state").exists()
    resumed = run(tmp_path / "b.safetensors", "--resume").communicate(timeout=120)[0].splitlines()
    assert resumed[-1] == unbroken
    assert 0 < len(resumed) - 1 < SETTINGS.steps


def test_resume_refuses_other_settings_and_nothing(tmp_path):
    out = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train(network(), noisy(), SETTINGS, out, resume=True, progress=False)
    assert not list(tmp_path.iterdir())

    def stop(generator):
        if time.time() - start > 0.2:
            raise RuntimeError
        return noisy()(generator)

    start = time.time()
    with pytest.raises(RuntimeError):
        train(network(), stop, TrainSettings(steps=10**6, pixels=8), out, keep_every=1, progress=False)
    with pytest.raises(ValueError, match="other settings"):
        train(network(), noisy(), SETTINGS, out, resume=True, progress=False)


def test_nothing_that_was_there_is_lost(tmp_path):
    out = tmp_path / "a.safetensors"
    check_run(out, resume=False, overwrite=False)
    for ending, told in ((".png", "of another run"), (".state", "broken-off run"), ("", "exists; pass --overwrite")):
        path = tmp_path / f"a.safetensors{ending}"
        path.touch()
        with pytest.raises(FileExistsError, match=told):
            check_run(out, resume=False, overwrite=False)
        check_run(out, resume=False, overwrite=True)
        path.unlink()
    with pytest.raises(FileNotFoundError, match="start without --resume"):
        check_run(out, resume=True, overwrite=False)
    out.touch()
    with pytest.raises(FileExistsError, match="is finished; pass --overwrite"):
        check_run(out, resume=True, overwrite=True)


def test_checkpoint_says_what_it_is(tmp_path):
    out = tmp_path / "a.safetensors"
    figures = train(network(), noisy(), SETTINGS, out, about={"trained_on": "ramps"}, validate=lambda m: {"x": 1.0},
                    progress=False)  # fmt: skip
    _, header = load_checkpoint(out)
    assert header["trained_on"] == "ramps"
    assert header["metrics"] == figures
    assert figures["x"] == 1.0
    assert header["settings"]["steps"] == 60


def test_a_loss_that_is_not_finite_stops(tmp_path):
    def broken(generator):
        return noisy()(generator)._replace(x=torch.full((2, 1, 32, 32), math.nan))

    with pytest.raises(FloatingPointError, match="lower lr"):
        train(network(), broken, SETTINGS, tmp_path / "a.safetensors", progress=False)


def test_crops_and_mixtures():
    g = torch.Generator().manual_seed(0)
    batch = Crops([torch.rand(1, 20, 40), torch.rand(1, 8, 8)], 16, 5)(g)
    assert batch.shape == (5, 1, 16, 16)
    with pytest.raises(ValueError, match="at least 64 x 64"):
        Crops([torch.rand(1, 20, 40)], 64, 5)
    mixed = Mixture([lambda g: torch.zeros(1), lambda g: torch.ones(1)], [0.25, 0.75])
    mean = torch.stack([mixed(g) for _ in range(2000)]).mean()
    assert abs(float(mean) - 0.75) < 0.05


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"lr": -1}, {"loss": "l3"}, {"ema": 1.0}, {"schedule": "steep"}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=r"must be positive|loss is l1 or l2"):
        TrainSettings(**wrong)


def test_noise_levels_are_log_uniform_on_both_sides_of_a_knee():
    source = Noisy(lambda generator: torch.zeros(20_000, 1, 1, 1), 1e-4, 1.0, knee=1e-3, below=0.125)
    level = source(torch.Generator().manual_seed(0)).sigma.log10()
    low = level[level < -3]
    assert len(low) / len(level) == pytest.approx(0.125, abs=0.01)
    for part, (first, last) in ((low, (-4, -3)), (level[level >= -3], (-3, 0))):
        expected = torch.linspace(first, last, len(part))
        torch.testing.assert_close(part.sort().values, expected, rtol=0, atol=0.05)
    with pytest.raises(ValueError, match="knee"):
        Noisy(lambda generator: torch.zeros(1), 1e-3, 1.0, knee=1e-4)


@pytest.mark.parametrize("levels", [(0, 0.1), (0.3, 0.2)])
def test_levels_are_checked(levels):
    with pytest.raises(ValueError, match="expected 0 < sigma_min"):
        Noisy(ramps(), *levels)
