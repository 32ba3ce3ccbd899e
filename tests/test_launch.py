"""Where a process works: the device that is asked for, and the processes of torchrun."""

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import pnp_lofi.__main__ as cli
from pnp_lofi.launch import working_device
from pnp_lofi.recipes import transpose


def test_devices(monkeypatch):
    assert working_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match='"cpu", "cuda" or "cuda:N", got \'tpux\''):
        working_device("tpux")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert working_device() == torch.device("cpu")
    with pytest.raises(ValueError, match="sees 0 CUDA GPUs here; pass --device cpu"):
        working_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert working_device() == torch.device("cuda") and working_device("cuda:1").index == 1
    with pytest.raises(ValueError, match="sees 2 CUDA GPUs"):
        working_device("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="process 2 of this machine has no GPU: there are 2"):
        working_device()


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
TRAIN = ("train", "-o", "t.safetensors", "--network", "U-Net", "--quick", "--device", "cpu")


@pytest.mark.slow
def test_torchrun_gives_the_network_of_one_process(tmp_path):
    """The recipe's own command, on two processes."""
    for name, start in (("one", (sys.executable,)), ("two", (*TORCHRUN, "2"))):
        (tmp_path / name).mkdir()
        done = subprocess.run([*start, "-m", "pnp_lofi.recipes.transpose", *TRAIN], cwd=tmp_path / name, text=True,
                              capture_output=True, timeout=300, env=None, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
    for name in ("one", "two"):
        done = CliRunner().invoke(transpose.app, ["test", str(tmp_path / name / "t.safetensors"), "-o",
                                                  str(tmp_path / f"{name}.json"), "--quick"])  # fmt: skip
        assert done.exit_code == 0, done.output
    one, two = (json.loads((tmp_path / f"{name}.json").read_text())["psnr"]["t"] for name in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-2)


def test_more_processes_than_objects_are_told(tmp_path):
    done = subprocess.run([*TORCHRUN, "2", "-m", "pnp_lofi.recipes.transpose", *TRAIN[:-3], "--device", "cpu", "--side",
                           "16", "--count", "1", "--steps", "2", "--objects", "1"], cwd=tmp_path, text=True,
                          capture_output=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode != 0 and "1 objects a step do not go round 2 processes" in done.stderr


def test_recipes_are_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pnp-lofi", "train", *TRAIN])
    for arguments, told in (
        (("train", "transpose", *TRAIN[1:]), "wrote t.safetensors"),
        (("test", "transpose", "t.safetensors", "-o", "t.json", "--quick"), "leaves [dB]"),
        (("apply", "denoise", "t.safetensors", "x.png", "-o", "y.png"), "made by the recipe 'transpose'"),
        (("train", "transpose", *TRAIN[1:]), "--overwrite"),
        (("test", "denoise"), "the recipe denoise has train, apply, tiny, but no test"),
    ):
        monkeypatch.setattr(sys, "argv", ["pnp-lofi", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
        found = capsys.readouterr()
        assert told in found.out + found.err and "Traceback" not in found.err
