"""What priors are trained on, and the command that trains them: every kind, every network, few images."""

import pytest
import torch

import pnp_lofi.prior_training as training
import pnp_lofi.sources as sources
from pnp_lofi.checkpoint import load_checkpoint, read_tensors, save_checkpoint
from pnp_lofi.images import save_image
from pnp_lofi.matching import NonLocalLoFi
from pnp_lofi.priors import LoFiPrior
from pnp_lofi.shared import SharedLoFi

SMALL = {"window": 3, "filters": 4, "features": 2, "points": 3, "spacing": 1, "raw": 3, "hidden": (4,), "patch": 3}


@pytest.fixture
def few(monkeypatch):
    """Sets of a few images."""
    monkeypatch.setattr(sources, "COUNT", 3)
    monkeypatch.setattr(sources, "CLOTHS", 2)
    monkeypatch.setattr(sources, "QUARTER", 1)
    monkeypatch.setattr(sources, "SIDE", 32)
    monkeypatch.setattr(sources, "FIELD", 32)
    monkeypatch.setattr(sources, "SLICES", {32: 1, 48: 1})
    photograph = torch.rand(3, 70, 60, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(sources, "permissive_photographs", lambda grey: [photograph[:1] if grey else photograph])


@pytest.mark.parametrize("kind", sources.KINDS)
def test_batches_and_held_out_images(kind, few):
    about = sources.KINDS[kind]
    g, batches = torch.Generator().manual_seed(0), about.batches(24, 4, 0)
    drawn = torch.cat([batches(g) for _ in range(12)])
    held_out = about.images(3, 32, training.HELD_OUT)
    assert drawn.shape == (48, about.channels, 24, 24) and held_out.shape == (3, about.channels, 32, 32)
    for x in (drawn, held_out):
        assert x.dtype == torch.float32 and bool(x.isfinite().all()) and x.min() >= 0 and x.max() <= 1
    assert torch.equal(about.batches(24, 4, 0)(torch.Generator().manual_seed(3)),
                       about.batches(24, 4, 0)(torch.Generator().manual_seed(3)))  # fmt: skip


def test_ct_is_hounsfield_units_and_kappa_fills_the_range():
    x = sources.KINDS["ct"].images(2, 64, 0)
    assert abs(float(x[0, 0, 20:44, 20:44].median()) - 0.5) < 0.3 and float(x[:, :, 0].min()) == 0  # air is 0
    kappa = sources.KINDS["kappa"].images(2, 64, 0)
    assert torch.equal(kappa.amin((1, 2, 3)), torch.zeros(2)) and torch.equal(kappa.amax((1, 2, 3)), torch.ones(2))


@pytest.mark.parametrize(("kind", "network"), [("natural-rgb", "S"), ("kappa", "S"), ("ct", "DRU-Net")])
def test_training_writes_half_precision_and_what_it_was(kind, network, few, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SMALL", SMALL)
    monkeypatch.setattr(training, "COLOUR", {})
    monkeypatch.setattr(training, "CROP", 32)
    out = tmp_path / "a.safetensors"
    figures = training.train_prior(kind, out, network=network, steps=2, objects=2)
    assert sum("held-out" in name for name in figures) == len(sources.KINDS[kind].probes)
    model, header = load_checkpoint(out)
    assert header["sigma_range"] == [1e-4, 0.5] and header["trained_on"] == sources.KINDS[kind].trained_on
    assert {w.dtype for w in read_tensors(out)[0].values()} == {torch.float16}
    assert model.in_channels == sources.KINDS[kind].channels
    if isinstance(model, SharedLoFi):
        assert training.held_out_figures(kind)(model) == {k: v for k, v in figures.items() if "held-out" in k}
        x = torch.rand(1, model.in_channels, 16, 16)
        assert LoFiPrior(out)(x, 0.1).shape == x.shape


def test_training_starts_from_a_checkpoint_and_may_add_stages_and_larger_patches(few, tmp_path, monkeypatch):
    torch.manual_seed(1)
    before = SharedLoFi(**SMALL)
    save_checkpoint(tmp_path / "a.safetensors", before)
    q = torch.rand(1, 1, 20, 20)
    for more in ({}, {"patch": SMALL["patch"] + 4}, {"stages": ((3, 2, 5),)}):
        model = SharedLoFi(**(SMALL | more))
        training.start_from(model, tmp_path / "a.safetensors")
        torch.testing.assert_close(model(q, 0.1), before(q, 0.1), rtol=0, atol=1e-6)
    model(q, 0.1).square().sum().backward()
    assert bool(model.stages[0].mix.grad.any())  # the new stage learns
    monkeypatch.setattr(training, "SMALL", SMALL)
    training.train_prior("kappa", tmp_path / "b.safetensors", start=tmp_path / "a.safetensors", steps=1, objects=1)
    after, header = load_checkpoint(tmp_path / "b.safetensors")
    assert header["start"].startswith(f"{tmp_path / 'a.safetensors'}, sha256 ")
    torch.testing.assert_close(after.windows, before.windows, rtol=0, atol=5e-3)  # a step of 2e-3 away
    for other in (SharedLoFi(**(SMALL | {"features": 3})), SharedLoFi(2, **SMALL), torch.nn.Conv2d(1, 1, 1)):
        with pytest.raises(ValueError, match="of another shape"):
            training.start_from(other, tmp_path / "a.safetensors")


def test_size_l_learns_beside_what_it_begins_with(few, tmp_path, monkeypatch):
    monkeypatch.setattr(training.held_out_figures, "__defaults__", (64,))
    monkeypatch.setattr(training, "SMALL", SMALL)
    monkeypatch.setattr(training, "GATHERED", 2)
    torch.manual_seed(1)
    local = SharedLoFi(**SMALL)
    save_checkpoint(tmp_path / "s.safetensors", local)
    q = torch.rand(1, 1, 40, 40)
    torch.testing.assert_close(training.build("L", 1, tmp_path / "s.safetensors")(q, 0.1), local(q, 0.1))
    out = tmp_path / "l.safetensors"
    training.train_prior("kappa", out, network="L", start=tmp_path / "s.safetensors", steps=1, objects=1, size=40)
    model, header = load_checkpoint(out)
    assert isinstance(model, NonLocalLoFi) and header["start"].startswith(f"{tmp_path / 's.safetensors'}, sha256 ")
    for name, weight in local.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-3, atol=1e-3)  # stored in float16
    assert bool(model.matching.mixer.weights[-1].any())
    assert LoFiPrior(out)(q, 0.1).shape == q.shape
    training.train_prior("kappa", tmp_path / "b.safetensors", network="L", start=out, steps=1, objects=1, size=40)
    with pytest.raises(ValueError, match="pass its checkpoint as start"):
        training.build("L", 1)
    with pytest.raises(ValueError, match="of another shape"):
        training.build("L", 3, out)
    with pytest.raises(ValueError, match="massmap is a LoFi"):
        training.build("L", 1, "massmap")
    with pytest.raises(ValueError, match="ldct is of the recipe 'ldct': begin with a prior"):
        training.build("L", 1, "ldct")


def test_a_network_of_the_literature_may_begin_with_another(tmp_path):
    first = training.build("DRU-Net", 1)
    save_checkpoint(tmp_path / "a.safetensors", first)
    again = training.build("DRU-Net", 1, tmp_path / "a.safetensors")
    for name, w in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], w)
    with pytest.raises(ValueError, match="is a Baseline of another shape"):
        training.build("DRU-Net", 3, tmp_path / "a.safetensors")


def test_unknown_networks_are_told():
    with pytest.raises(ValueError, match="networks are S, L and, to compare with, DRU-Net; got 'XL'"):
        training.build("XL", 1)


def test_crops_larger_than_the_reach(few, tmp_path):
    with pytest.raises(ValueError, match="reaches 19 pixels: crops need more than 38"):
        training.train_prior("natural", tmp_path / "a.safetensors", size=20)


def test_a_folder_of_small_images_is_cut_into_small_crops(tmp_path, monkeypatch):
    monkeypatch.setattr(training.held_out_figures, "__defaults__", (64,))
    for k, shape in enumerate([(40, 48), (30, 30), (90, 60)]):
        save_image(tmp_path / f"{k}.npy", torch.rand(1, 1, *shape))
    training.train_prior(str(tmp_path), tmp_path / "a.safetensors", steps=1, objects=1)
    assert load_checkpoint(tmp_path / "a.safetensors")[1]["crop"] == 39  # 2 x 19 and a pixel: two images serve
