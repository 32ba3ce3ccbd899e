"""Checkpoints: what goes in comes out, and what is not ours is refused."""

import struct

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.priors import kind_of, rounding
from pnp_lofi.checkpoint import (
    convert_checkpoint,
    find_checkpoint,
    load_checkpoint,
    read_tensors,
    save_checkpoint,
    shipped,
)
from pnp_lofi.files import write_json
from pnp_lofi.priors import LoFiPrior
from pnp_lofi.sources import KINDS

PRIORS = [f"{kind}{size}" for kind in KINDS for size in ("", "-l")]


def test_round_trip(tiny, tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, tiny, sigma_range=[0.1, 0.2], command="pnp-lofi train")
    model, header = load_checkpoint(path)
    q = torch.rand(1, 1, 9, 9)
    torch.testing.assert_close(model(q, 0.1), tiny(q, 0.1), rtol=0, atol=0)
    assert header["config"] == tiny.config
    assert header["command"] == "pnp-lofi train"
    assert not list(tmp_path.glob("*.part"))


def test_shipped_networks_load_and_tell_what_they_are():
    assert shipped() == sorted([*PRIORS, "ldct", "massmap", "zoom"])
    assert sum(find_checkpoint(name).stat().st_size for name in shipped()) < 40e6
    for name in shipped():
        model, header = load_checkpoint(name)
        assert find_checkpoint(name).stat().st_size < 8e6
        assert {"trained_on", "command", "metrics"} <= header.keys()
        assert "scan" in header or "mode" in header or {"sigma_range", "value_range"} <= header.keys()
        assert sum(p.numel() for p in model.parameters()) < 1_000_000


@pytest.mark.parametrize("name", PRIORS)
def test_half_the_bytes_change_a_prior_by_a_small_part_of_sigma(name):
    """At sigma 1e-4, the lowest level of training, where it matters most: rms over sigma, docs/priors.md has it."""
    prior = LoFiPrior(name)
    for sigma, allowed in ((1e-4, 0.03), (1e-2, 0.005)):
        assert 0 < rounding(prior, KINDS[kind_of(name, prior)], sigma) < allowed


def test_conversion_keeps_the_header_and_computes_in_float32(tmp_path):
    out = tmp_path / "half.safetensors"
    convert_checkpoint("natural", out, torch.float16)
    (whole, header), (half, same) = load_checkpoint("natural"), load_checkpoint(out)
    assert same == header and all(p.dtype == torch.float32 for p in half.parameters())
    assert out.stat().st_size < 2.3 * sum(p.numel() for p in whole.parameters())
    for key, value in whole.state_dict().items():
        assert torch.equal(half.state_dict()[key], value.half().float())


def test_weights_that_half_precision_cannot_hold(tiny, tmp_path):
    with torch.no_grad():
        tiny.mlp.mixer_weights[0][0, 0] = 7e4
    with pytest.raises(ValueError, match=r"too large for torch.float16 in \['mlp"):
        save_checkpoint(tmp_path / "a.safetensors", tiny, dtype=torch.float16)
    save_checkpoint(tmp_path / "a.safetensors", tiny, dtype=torch.bfloat16)
    assert {w.dtype for w in read_tensors(tmp_path / "a.safetensors")[0].values()} == {torch.bfloat16}


def test_unknown_name_lists_the_known():
    with pytest.raises(FileNotFoundError, match="natural, natural-l, natural-rgb, natural-rgb-l, radio"):
        load_checkpoint("nature")


def test_truncated(tiny, tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, tiny)
    data = path.read_bytes()
    for size in (len(data) // 2, 6, 0):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="truncated"):
            load_checkpoint(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle(tiny, tmp_path, legacy):
    path = tmp_path / "a.pt"
    torch.save(tiny.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="pickle"):
        load_checkpoint(path)


def test_a_header_of_any_length_is_no_pickle(tiny, tmp_path):
    path = tmp_path / "a.safetensors"
    first = set()
    for padding in range(0, 300, 8):  # safetensors aligns its header to 8 bytes: all of its first bytes come by
        save_checkpoint(path, tiny, padding="x" * padding)
        first.add(path.read_bytes()[0])
        load_checkpoint(path)
    assert 0x80 in first


def test_other_architecture_and_foreign_files(tiny, tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, tiny, architecture="DRUNet")
    with pytest.raises(ValueError, match="'DRUNet'"):
        load_checkpoint(path)
    save_file({"w": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="no pnp_lofi header"):
        load_checkpoint(path)


def test_weights_that_do_not_fit_or_are_not_finite(tiny, tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, tiny, config=tiny.config | {"features": 9})
    with pytest.raises(ValueError, match="do not fit"):
        load_checkpoint(path)
    with torch.no_grad():
        tiny.mlp.mixer_weights[0][0, 0] = float("nan")
    save_checkpoint(path, tiny)
    with pytest.raises(ValueError, match="NaN or inf"):
        load_checkpoint(path)


def test_header_that_lies_about_its_length(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 10**12) + b"{}")
    with pytest.raises(ValueError, match="not a whole safetensors"):
        read_tensors(path)


def test_a_full_disk_keeps_what_was_there(tiny, tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, tiny)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"a\.safetensors was not written: .*too large"):
            save_checkpoint(path, tiny)
        with pytest.raises(OSError, match=r"too large: .*b\.json was not written"):
            write_json(tmp_path / "b.json", list(range(1000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
