"""LoFi's variants: heads, moving geometries, channels, grids, noise maps, derivatives; one pixel by hand for each."""

import pytest
import torch
from lofi_by_hand import EVERY, by_hand, image, level, network

from pnp_lofi import LoFi
from pnp_lofi.ccpg import CCPG
from pnp_lofi.checkpoint import load_checkpoint, save_checkpoint
from pnp_lofi.sampling import coordinates, grid_coords


@EVERY
@torch.no_grad()
def test_equals_one_pixel_by_hand(config):
    model, sigma = network(**config), level(network(**config))
    q = image(2, model.in_channels, 9, 7)
    with torch.enable_grad():
        whole = model(q, sigma)
    for b, r, c in [(0, 0, 0), (1, 4, 3), (0, 8, 2), (1, 6, 6)]:
        pixel = coordinates(torch.tensor([r, c], dtype=q.dtype), (9, 7))
        torch.testing.assert_close(whole[b, :, r, c], by_hand(model, q[b], pixel, sigma)[0], rtol=0, atol=1e-11)
    between = torch.tensor([[0.13, 0.77], [0.5, 0.5], [-0.1, 1.07]], dtype=q.dtype)
    found, places = model.at(q, between, sigma), model.looks_at(q, between, sigma)
    assert places.shape == (2, 3, model.rays * model.rings, 2)
    for b in range(2):
        for k in range(3):
            expected, looked = by_hand(model, q[b], between[k], sigma)
            torch.testing.assert_close(found[b, k], expected, rtol=0, atol=1e-11)
            torch.testing.assert_close(places[b, k], looked, rtol=0, atol=1e-11)


@EVERY
def test_three_ways_in_agree(config):
    model, sigma = network(**config), level(network(**config))
    for shape in [(16, 16), (9, 14), (2, 3)]:
        q = image(2, model.in_channels, *shape)
        whole = model(q, sigma)
        pixels = whole.flatten(2).transpose(1, 2)
        drawn = torch.randperm(shape[0] * shape[1], generator=torch.Generator().manual_seed(0))[:40]
        at = model.at(q, grid_coords(shape, dtype=q.dtype), sigma)
        torch.testing.assert_close(at, pixels, rtol=0, atol=1e-12)
        torch.testing.assert_close(model.at_pixels(q, drawn, sigma), pixels[:, drawn], rtol=0, atol=1e-12)
        for chunk in (1, shape[1], 50):
            torch.testing.assert_close(model(q, sigma, chunk=chunk), whole, rtol=0, atol=1e-12)


@EVERY
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_without_gradients_it_is_the_same(config, dtype, tolerance):
    """Without gradients the layers may run prepared (packed, fused)."""
    model, sigma = network(**config).to(dtype), level(network(**config))
    q, drawn = image(2, model.in_channels, 9, 14).to(dtype), torch.tensor([[0, 40, 5], [125, 3, 3]])
    coords = grid_coords((5, 6), dtype=dtype)
    with_gradients = model(q, sigma), model.at(q, coords, sigma), model.at_pixels(q, drawn, sigma)
    with torch.no_grad():
        without = model(q, sigma, chunk=50), model.at(q, coords, sigma), model.at_pixels(q, drawn, sigma)
    torch.testing.assert_close(without, with_gradients, rtol=0, atol=tolerance)


@EVERY
def test_round_trip(config, tmp_path):
    model, sigma = network(**config).float(), level(network(**config))
    save_checkpoint(tmp_path / "a.safetensors", model)
    again, header = load_checkpoint(tmp_path / "a.safetensors")
    assert again.config == model.config == header["config"]
    q = image(1, model.in_channels, 8, 8).float()
    torch.testing.assert_close(again(q, sigma), model(q, sigma), rtol=0, atol=0)


@EVERY
def test_every_parameter_learns(config):
    model, sigma = network(**config), level(network(**config))
    q = image(1, model.in_channels, 8, 7)
    for call in (lambda: model(q, sigma, chunk=20), lambda: model.at_pixels(q, torch.arange(56), sigma)):
        model.zero_grad()
        call().square().sum().backward()
        for name, value in model.named_parameters():
            assert bool(value.grad.isfinite().all()) and bool(value.grad.any()), name


# --- grids of other sizes


@EVERY
def test_any_grid_equals_its_coordinates(config):
    model, sigma = network(**config), level(network(**config))
    q = image(2, model.in_channels, 9, 7)
    found = model(q, sigma, shape=(5, 11), chunk=13)
    at = model.at(q, grid_coords((5, 11), dtype=q.dtype), sigma)
    assert found.shape == (2, model.out_channels, 5, 11)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), at, rtol=0, atol=1e-13)


@pytest.mark.parametrize("factor", [3, 5])
def test_a_finer_grid_passes_through_the_pixels(factor):
    model, q = network(), image(1, 1, 8, 9)
    fine = model(q, 0.2, shape=(8 * factor, 9 * factor))
    middle = slice(factor // 2, None, factor)
    torch.testing.assert_close(fine[..., middle, middle], model(q, 0.2), rtol=0, atol=1e-12)


def test_a_finer_official_grid_passes_through_the_pixels():
    model = network(official=True, centred=False, equivariant=False)
    q = image(1, 1, 8, 9)
    torch.testing.assert_close(model(q, shape=(15, 25))[..., ::2, ::3], model(q), rtol=0, atol=1e-12)


# --- CCPG and INR


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_ccpg_with_zero_weights_is_the_plain_geometry(iterations):
    moving, plain, q = network(ccpg=iterations), network(), image(1, 1, 9, 8)
    moving.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        for net in moving.ccpg.networks:
            net.weights[-1].zero_()
            net.biases[-1].copy_(plain.geometry.offsets.flatten())
    torch.testing.assert_close(moving(q, 0.2), plain(q, 0.2), rtol=0, atol=1e-12)


def test_ccpg_starts_near_the_asked_geometry():
    torch.manual_seed(0)
    model = LoFi(ccpg=2).double()
    q, coords = 0.5 + 0.2 * torch.randn(1, 1, 40, 40, dtype=torch.float64), image(50, 2)
    asked = (coords * 40 - 0.5)[:, None] + model.geometry.offsets.reshape(-1, 2)
    moved = (model.looks_at(q, coords, 0.2)[0] - asked).norm(dim=-1)
    assert 0 < float(moved.detach().mean()) < 0.5  # of a radius of 8 pixels
    assert model.ccpg.networks[0].biases[-1].requires_grad


def test_ccpg_looks_where_the_image_tells():
    model, q = network(ccpg=1), image(2, 1, 9, 8)
    coords = torch.tensor([[0.4, 0.6]], dtype=q.dtype)
    a, b = model.looks_at(q, coords, 0.2).detach()
    assert float((a - b).abs().max()) > 0.05
    fixed = network().looks_at(q, coords, 0.2)
    torch.testing.assert_close(fixed[0], fixed[1], rtol=0, atol=0)


def test_ccpg_keeps_scale_and_level_equivariance():
    model, q = network(ccpg=2), image(1, 1, 10, 9)
    torch.testing.assert_close(model(7e3 * q, 7e3 * 0.1), 7e3 * model(q, 0.1), rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(model(q + 5, 0.1), model(q, 0.1) + 5, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("iterations", "width"), [(0, 8), (1, 0)])
def test_ccpg_needs_an_iteration_and_a_hidden_unit(iterations, width):
    with pytest.raises(ValueError, match="at least one"):
        CCPG(12, torch.zeros(12, 2), iterations, width)


@pytest.mark.parametrize("each", [False, True])
def test_inr_is_lofi_at_changed_coordinates(each):
    bent, plain, q = network(inr=True), network(), image(2, 1, 9, 8)
    plain.load_state_dict({k: v for k, v in bent.state_dict().items() if not k.startswith("inr.")})
    coords = image(2, 6, 2) if each else image(6, 2)
    changed = bent.inr(coords.reshape(-1, 2) - 0.5).reshape(coords.shape) + 0.5
    torch.testing.assert_close(bent.at(q, coords, 0.2), plain.at(q, changed, 0.2), rtol=0, atol=1e-13)


# --- channels


def test_a_residual_adds_the_first_channels():
    model, q = network(in_channels=3, out_channels=2), image(2, 3, 7, 8)
    with torch.no_grad():
        for value in model.mlp.parameters():
            value.zero_()
    coords, drawn = grid_coords((7, 8), dtype=q.dtype), torch.tensor([5, 17])
    torch.testing.assert_close(model(q, 0.1), q[:, :2], rtol=0, atol=0)
    torch.testing.assert_close(model.at(q, coords, 0.1), q[:, :2].flatten(2).transpose(1, 2), rtol=0, atol=1e-14)
    expected = q[:, :2].flatten(2)[..., drawn].transpose(1, 2)
    torch.testing.assert_close(model.at_pixels(q, drawn, 0.1), expected, rtol=0, atol=0)


def test_every_channel_is_seen():
    model, q = network(in_channels=3, out_channels=1, residual=False), image(1, 3, 9, 9).requires_grad_()
    (seen,) = torch.autograd.grad(model(q, 0.1)[0, 0, 4, 4], q)
    assert all(bool(channel.any()) for channel in seen[0])


# --- noise maps


def a_map(batch, height, width):
    return 0.05 + 0.3 * image(batch, 1, height, width, seed=5)


@pytest.mark.parametrize("config", [{}, {"head": "single"}, {"ccpg": 1}], ids=str)
def test_a_noise_map_is_a_level_for_every_pixel(config):
    model, q, noise = network(**config), image(2, 1, 7, 6), a_map(2, 7, 6)
    whole = model(q, noise)
    for b, r, c in [(0, 0, 0), (1, 3, 5), (0, 6, 2)]:
        alone = model(q, float(noise[b, 0, r, c]))[b, :, r, c]
        torch.testing.assert_close(whole[b, :, r, c], alone, rtol=0, atol=1e-12)
    pixels, drawn = whole.flatten(2).transpose(1, 2), torch.tensor([[0, 41, 7], [3, 3, 40]])
    torch.testing.assert_close(
        model.at_pixels(q, drawn, noise), torch.stack([pixels[b, drawn[b]] for b in range(2)]), rtol=0, atol=1e-12
    )
    coords = grid_coords((7, 6), dtype=q.dtype)
    torch.testing.assert_close(model.at(q, coords, noise, chunk=9), pixels, rtol=0, atol=1e-12)
    for chunk in (1, 5, 20):
        torch.testing.assert_close(model(q, noise, chunk=chunk), whole, rtol=0, atol=1e-12)


def test_a_noise_map_is_broadcast():
    model, q, noise = network(), image(2, 1, 7, 6), a_map(1, 7, 6)
    whole = model(q, noise.expand(2, 1, 7, 6))
    for smaller in (noise, noise[0], noise[0, 0]):
        torch.testing.assert_close(model(q, smaller), whole, rtol=0, atol=0)
    per_image = torch.tensor([0.1, 0.3], dtype=q.dtype)
    torch.testing.assert_close(model(q, per_image), model(q, per_image[:, None, None, None]), rtol=0, atol=0)


def test_scale_equivariance_with_a_noise_map():
    model, q, noise = network(), image(1, 1, 9, 8), a_map(1, 9, 8)
    torch.testing.assert_close(model(1e4 * q, 1e4 * noise), 1e4 * model(q, noise), rtol=1e-10, atol=1e-8)


def test_between_pixels_the_level_stays_between_its_neighbours():
    """Also beside a step: a level below zero would turn the network's answer upside down."""
    model, q = network(residual=False), image(1, 1, 8, 8)
    with torch.no_grad():
        for value in model.mlp.parameters():
            value.zero_()
        model.mlp.mixer_biases[-1].fill_(1)  # the answer is the level itself
    noise = torch.full_like(q, 0.01)
    noise[..., 4:] = 1.0
    found = model(q, noise, shape=(8, 80)).detach()
    assert float(found.min()) >= 0.01 - 1e-12
    assert float(found.max()) <= 1 + 1e-12


# --- memory


@pytest.mark.parametrize("config", [{}, {"ccpg": 1}, {"inr": True}, {"head": "single"}], ids=str)
def test_max_memory_sets_the_chunk(config):
    model, q = network(**config), image(1, 1, 40, 40)
    whole, coords = model(q, 0.1, chunk=200), image(300, 2)
    torch.testing.assert_close(model(q, 0.1, max_memory=0.5), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        model.at(q, coords, 0.1, max_memory=0.5), model.at(q, coords, 0.1, chunk=7), rtol=0, atol=1e-12
    )
    for call in (lambda **k: model(q, 0.1, **k), lambda **k: model.at(q, coords, 0.1, **k)):
        with pytest.raises(ValueError, match="too little"):
            call(max_memory=1e-4)
        with pytest.raises(ValueError, match="chunk or max_memory, not both"):
            call(max_memory=10, chunk=100)


@pytest.mark.parametrize("config", [{}, {"ccpg": 1}], ids=str)
def test_a_chunk_is_at_least_one_pixel(config):
    model, q = network(**config), image(1, 1, 8, 8)
    for call in (lambda: model(q, 0.1, chunk=0), lambda: model.at(q, image(3, 2), 0.1, chunk=-1)):
        with pytest.raises(ValueError, match="chunk"):
            call()


@pytest.mark.parametrize("config", [{"inr": True}, {"ccpg": 1}, {"head": "single"}, {}], ids=str)
def test_every_network_works_on_chunks(config):
    """The chunk, not the image, sets the memory: no network ever sees more pixels at once."""
    model, q, seen = network(**config), image(2, 1, 20, 20), []
    for part in (model.inr, model.mlp, *(model.ccpg.networks if model.ccpg is not None else ())):
        if part is not None:
            part.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-2]))
    model(q, 0.1, chunk=50)
    model.at(q, image(300, 2), 0.1, chunk=50)
    assert seen and max(seen) <= 50


def test_no_points_no_answer():
    model, q = network(), image(2, 1, 8, 8)
    assert model.at(q, torch.zeros(0, 2, dtype=q.dtype), 0.1).shape == (2, 0, 1)
    assert model.at_pixels(q, torch.zeros(0, dtype=torch.long), 0.1).shape == (2, 0, 1)


def test_a_coordinate_that_is_no_number_gives_no_number():
    model, q = network(), image(1, 1, 8, 8)
    coords = torch.tensor([[0.5, 0.5], [float("nan"), 0.5], [0.5, float("nan")]], dtype=q.dtype)
    assert model.at(q, coords, 0.1)[0, :, 0].isnan().tolist() == [False, True, True]


@pytest.mark.parametrize(("batch", "shape"), [(1, (3, 4)), (2, (3, 4)), (2, (1, 2, 3)), (2, ())])
@pytest.mark.parametrize("config", [{}, {"ccpg": 1}], ids=str)
def test_pixel_numbers_are_for_every_image_or_all(config, batch, shape):
    model = network(**config)
    with pytest.raises(ValueError, match=r"pixel numbers|index"):
        model.at_pixels(image(batch, 1, 8, 8), torch.zeros(shape, dtype=torch.long), 0.1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"head": "double"}, "'multi' or 'single', got 'double'"),
        ({"official": True}, "centred=False, equivariant=False"),
        ({"in_channels": 2, "out_channels": 3}, "residual=False"),
        ({"ccpg": -1}, "at least one iteration"),
    ],
)
def test_bad_configurations(config, message):
    with pytest.raises(ValueError, match=message):
        LoFi(**config)
