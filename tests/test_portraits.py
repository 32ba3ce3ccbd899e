"""Portraits of a trained network: pictures are written, show what they say, and refuse clearly."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from pnp_lofi import LoFi
from pnp_lofi.portraits import _names, _responses, filter_portrait, patch_portrait

TINY = {"rays": 3, "rings": 4, "radius": 2.7, "hidden": (8,), "features": 5, "mixer": (7,)}


def network(**config):
    torch.manual_seed(0)
    model = LoFi(**(TINY | config))
    with torch.no_grad():
        for value in model.filter.parameters() if model.filter is not None else ():
            value.add_(0.1 * torch.randn(value.shape))
    return model


def pixels(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(float)


FILTERS = {
    "spectral": (1, {"kind": "spectral", "size": 16}),
    "odd": (1, {"kind": "spectral", "size": 5}),
    "spectral twice": (2, {"kind": "spectral", "size": 12, "count": 2}),
    "pair": (2, {"kind": "spectral", "size": 12, "complex_pair": True}),
    "spatial": (3, {"kind": "spatial", "size": 5}),
    "one pixel": (1, {"kind": "spatial", "size": 1, "count": 2}),
}


@pytest.mark.parametrize(("channels", "options"), FILTERS.values(), ids=FILTERS)
def test_filter_portrait(channels, options, tmp_path):
    model, path = network(in_channels=channels, filter=options), tmp_path / "filter.png"
    assert filter_portrait(model, path) == path
    picture = pixels(path)
    rows = len(_names(model.filter))
    assert rows == {"spatial": channels}.get(options["kind"], 1 if options.get("complex_pair") else channels) * (
        options.get("count", 1)
    )
    assert picture.shape[0] == pytest.approx(rows * 2.9 * 120, abs=2) and picture.shape[1] > 1000
    assert picture.std() > 20
    assert not list(tmp_path.glob("*.part"))


def test_portrait_of_an_untrained_and_of_a_dead_filter(tmp_path):
    model = LoFi(**TINY, filter={"kind": "spectral", "size": 8})
    filter_portrait(model, tmp_path / "ones.png")
    with torch.no_grad():
        model.filter.response.zero_()
    filter_portrait(model, tmp_path / "zeros.png")


def test_portrait_of_the_authors_filter(tmp_path):
    model = network(filter={"kind": "spectral", "size": 18}, official=True, centred=False, equivariant=False)
    filter_portrait(model, tmp_path / "a.png")


def test_rows_are_named_in_the_order_of_the_filter():
    options = {"count": 2, "size": 5}
    assert _names(network(in_channels=2, filter={"kind": "spectral"} | options).filter) == [
        "filter 1, channel 1", "filter 1, channel 2", "filter 2, channel 1", "filter 2, channel 2",
    ]  # fmt: skip
    assert _names(network(in_channels=2, filter={"kind": "spatial"} | options).filter) == [
        "filter 1, channel 1", "filter 2, channel 1", "filter 1, channel 2", "filter 2, channel 2",
    ]  # fmt: skip
    assert _names(network(filter={"kind": "spatial", "size": 3}).filter) == ["filter"]


@pytest.mark.parametrize("options", [{"kind": "spectral", "size": 32, "padding": 0}, {"kind": "spatial", "size": 5}])
def test_a_drawn_response_is_what_the_filter_does_to_a_wave(options):
    """exp(2 pi i (f r + g c)) comes out times H(f, g): the real and imaginary parts of the wave one by one."""
    filters = network(filter=options | {"use": "filtered"}).filter.double()
    f, g = 3 / 32, -5 / 32
    row, column = torch.meshgrid(torch.arange(64.0).double(), torch.arange(64.0).double(), indexing="ij")
    if options["kind"] == "spectral":
        row, column = row[:32, :32], column[:32, :32]
    wave = torch.exp(2j * math.pi * (f * row + g * column))
    with torch.no_grad():
        parts = [filters(part[None, None])[0] for part in (wave.real, wave.imag)]
    parts = [torch.complex(*p) if options["kind"] == "spectral" else p[0] + 0j for p in parts]
    through = (parts[0] + 1j * parts[1]) / wave
    ((response, _),) = _responses(filters)
    side = len(response)
    drawn = response[side // 2 + round(f * side), side // 2 + round(g * side)]
    assert complex(through[16, 16]) == pytest.approx(complex(drawn), abs=1e-9)


def test_a_drawn_impulse_response_is_what_becomes_of_an_impulse():
    filters = network(filter={"kind": "spectral", "size": 33, "padding": 0, "use": "filtered"}).filter.double()
    impulse = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    impulse[..., 16, 16] = 1
    with torch.no_grad():
        real, imaginary = filters(impulse)[0, :, 6:27, 6:27].numpy()
    ((_, drawn),) = _responses(filters)
    np.testing.assert_allclose(drawn, real + 1j * imaginary, rtol=0, atol=1e-12)


def test_no_filter_no_portrait(tmp_path):
    with pytest.raises(ValueError, match="no filter to draw"):
        filter_portrait(network(), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


PATCHES = {
    "plain": ({}, 1),
    "square": ({"layout": "square"}, 1),
    "random, rgb": ({"layout": "random", "in_channels": 3}, 3),
    "five channels": ({"in_channels": 5}, 5),
    "ccpg": ({"ccpg": 2}, 1),
    "inr": ({"inr": True}, 1),
    "filter": ({"filter": {"kind": "spatial", "size": 3}}, 1),
    "official": ({"official": True, "centred": False, "equivariant": False}, 1),
}


@pytest.mark.parametrize(("config", "channels"), PATCHES.values(), ids=PATCHES)
@pytest.mark.parametrize("count", [1, 3])
def test_patch_portrait(config, channels, count, tmp_path):
    model, path = network(**config), tmp_path / "patch.png"
    q, coords = torch.rand(1, channels, 20, 25), torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.9, 0.2]])[:count]
    assert patch_portrait(model, q, coords, path, sigma=0.1 if model.equivariant else None) == path
    picture = pixels(path)
    assert min(picture.shape[:2]) > 400 and picture.std() > 20
    spread = picture.max(2) - picture.min(2)
    assert (spread > 100).sum() > 100  # coloured points on a grey image
    assert not list(tmp_path.glob("*.part"))


def test_patch_portrait_of_a_flat_and_of_a_tiny_image(tmp_path):
    patch_portrait(network(), torch.ones(1, 1, 3, 2), torch.tensor([[0.5, 0.5]]), tmp_path / "a.png", sigma=0.1)


def test_patch_portrait_leaves_no_gradient_and_takes_what_needs_one(tmp_path):
    q, coords = torch.rand(1, 1, 9, 9, requires_grad=True), torch.rand(12, 2, requires_grad=True)
    patch_portrait(network(ccpg=1), q, coords, tmp_path / "a.png", sigma=torch.full((1, 1, 9, 9), 0.1))
    assert q.grad is None and coords.grad is None


@pytest.mark.parametrize(
    ("q", "coords", "sigma", "message"),
    [
        (torch.rand(2, 1, 9, 9), torch.rand(3, 2), 0.1, r"one image .* got \(2, 1, 9, 9\)"),
        (torch.rand(9, 9), torch.rand(3, 2), 0.1, r"one image .* got \(9, 9\)"),
        (torch.rand(1, 3, 9, 9), torch.rand(3, 2), 0.1, r"\(batch, 1, height, width\)"),
        (torch.rand(1, 1, 9, 9), torch.rand(0, 2), 0.1, r"1\.\.12, got \(0, 2\)"),
        (torch.rand(1, 1, 9, 9), torch.rand(13, 2), 0.1, r"1\.\.12, got \(13, 2\)"),
        (torch.rand(1, 1, 9, 9), torch.rand(2), 0.1, r"got \(2,\)"),
        (torch.rand(1, 1, 9, 9), torch.rand(3, 2), None, "needs the noise level"),
    ],
)
def test_bad_input(q, coords, sigma, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        patch_portrait(network(), q, coords, tmp_path / "a.png", sigma=sigma)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unasked(tmp_path):
    filtered, path = network(filter={"kind": "spatial", "size": 3}), tmp_path / "a.png"
    q, coords = torch.rand(1, 1, 9, 9), torch.rand(1, 2)
    path.write_text("mine")
    for draw in (
        lambda **k: filter_portrait(filtered, path, **k),
        lambda **k: patch_portrait(filtered, q, coords, path, sigma=0.1, **k),
    ):
        path.write_text("mine")
        with pytest.raises(FileExistsError, match="overwrite=True"):
            draw()
        assert path.read_text() == "mine"
        draw(overwrite=True)
        assert pixels(path).size
    with pytest.raises(FileNotFoundError, match="does not exist"):
        filter_portrait(filtered, tmp_path / "nowhere" / "a.png")
