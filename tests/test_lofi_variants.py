"""LoFi's variants: heads, moving geometries, channels, grids, noise maps, derivatives; one pixel by hand for each."""

import math

import pytest
import torch

from pnp_lofi import LoFi
from pnp_lofi.ccpg import CCPG
from pnp_lofi.checkpoint import load_checkpoint, save_checkpoint
from pnp_lofi.mlp import MLP
from pnp_lofi.multimlp import MultiMLP
from pnp_lofi.sampling import coordinates, grid_coords

TINY = {"rays": 3, "rings": 4, "radius": 2.7, "hidden": (8,), "features": 5, "mixer": (7,)}
VARIANTS = {
    "plain": {},
    "single": {"head": "single"},
    "single, deep": {"head": "single", "hidden": (9, 6, 5)},
    "no hidden layers": {"hidden": (), "mixer": ()},
    "one ray": {"rays": 1},
    "one ring": {"rings": 1},
    "square": {"layout": "square"},
    "random": {"layout": "random"},
    "scaled": {"learned_scale": True},
    "not residual": {"residual": False},
    "not centred": {"centred": False},
    "not equivariant": {"equivariant": False},
    "plain network": {"equivariant": False, "centred": False, "residual": False},
    "ccpg": {"ccpg": 1},
    "ccpg twice, single, scaled": {"ccpg": 2, "head": "single", "learned_scale": True},
    "ccpg thrice": {"ccpg": 3},
    "ccpg, plain network": {"ccpg": 1, "equivariant": False, "centred": False, "residual": False},
    "ccpg, rgb": {"ccpg": 1, "in_channels": 3},
    "inr": {"inr": True},
    "inr, single": {"inr": True, "head": "single", "residual": False},
    "inr and ccpg": {"inr": True, "ccpg": 1},
    "rgb": {"in_channels": 3},
    "rgb, single": {"in_channels": 3, "head": "single"},
    "rgb to grey": {"in_channels": 3, "out_channels": 1},
    "three to two": {"in_channels": 3, "out_channels": 2, "head": "single"},
    "grey to rgb": {"in_channels": 1, "out_channels": 3, "residual": False},
    "filter": {"filter": {"kind": "spectral", "size": 6}, "ccpg": 1},
}
EVERY = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def image(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(seed=1, **config):
    """Float64, tiny, random weights; the patches of CCPG and INR move by a pixel or so."""
    torch.manual_seed(seed)
    model = LoFi(**(TINY | config))
    with torch.no_grad():
        model.geometry.offsets.add_(0.1 * torch.randn(model.geometry.offsets.shape))
        if model.geometry.scale is not None:
            model.geometry.scale.fill_(0.8)
        if model.filter is not None:
            model.filter.response.add_(0.2 * torch.randn(model.filter.response.shape))
        for net in model.ccpg.networks if model.ccpg is not None else ():
            net.weights[-1].mul_(8)
    return model.double().eval()


def level(model):
    return 0.2 if model.equivariant else None


# --- one pixel by hand: Python loops, numpy's reflection, nn.functional.linear


def fold(i, n):
    i = abs(i) % (2 * (n - 1)) if n > 1 else 0
    return min(i, 2 * (n - 1) - i) if n > 1 else 0


def cubic(t):
    t = abs(t)
    return 1.5 * t**3 - 2.5 * t**2 + 1 if t < 1 else -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def read(q, y, x):
    """(C, H, W) at one position [pixel] -> (C,)."""
    found = torch.zeros(len(q), dtype=q.dtype)
    for i in range(math.floor(y) - 1, math.floor(y) + 3):
        for j in range(math.floor(x) - 1, math.floor(x) + 3):
            found += cubic(y - i) * cubic(x - j) * q[:, fold(i, q.shape[1]), fold(j, q.shape[2])]
    return found


def layers(h, weights, biases):
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        h = torch.nn.functional.linear(h.relu() if k else h, weight.T, bias)
    return h


def by_hand(model, q, coordinate, sigma):
    """f (C_out,) and the positions (K, 2) [pixel] that its patch reads, of one image (C, H, W) at one coordinate."""
    sigma, size = sigma or 1.0, torch.tensor(q.shape[1:], dtype=q.dtype)
    seen = q if model.filter is None else model.filter(q[None])[0]
    if model.inr is not None:
        coordinate = layers(coordinate - 0.5, model.inr.weights, model.inr.biases) + 0.5
    point = coordinate * size - 0.5
    scale = 1.0 if model.geometry.scale is None else model.geometry.scale
    offsets = model.geometry.offsets.reshape(-1, 2) * scale

    def patch():
        found = torch.stack([read(seen, *(point + d).tolist()) for d in offsets], 1)  # (C, K)
        found = found - found.mean(1, keepdim=True) if model.centred else found
        return found / sigma

    for net in model.ccpg.networks if model.ccpg is not None else ():
        offsets = layers(patch().flatten(), net.weights, net.biases).reshape(-1, 2) * scale
    p = patch()
    if isinstance(model.mlp, MLP):
        out = layers(p.flatten(), model.mlp.weights, model.mlp.biases)
    else:
        rays = p.reshape(len(p), model.rays, model.rings)
        net = model.mlp
        features = [
            layers(rays[:, m].flatten(), [w[m] for w in net.ray_weights], [b[m, 0] for b in net.ray_biases])
            for m in range(model.rays)
        ]
        out = layers(torch.cat(features), net.mixer_weights, net.mixer_biases)
    out = sigma * out
    if model.residual:
        out = out + read(q[: model.out_channels], *point.tolist())
    return out, point + offsets


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


# --- derivatives


@pytest.mark.parametrize("config", [{}, {"head": "single"}, {"ccpg": 1}, {"in_channels": 3, "out_channels": 1},
                                    {"inr": True}, {"official": True, "centred": False, "equivariant": False}],
                         ids=str)  # fmt: skip
def test_first_and_second_derivatives_in_the_coordinates(config):
    """Autograd against central differences, at points away from pixel centres and kinks."""
    model = network(**config)
    if model.inr is not None:
        model.inr = MLP([2, 16, 2]).double()  # 3 x 256 units have a kink everywhere
    q, sigma = image(1, model.in_channels, 8, 9), level(model)

    def f(x):
        return model.at(q, x[None], sigma)[0, 0, 0]

    axes, checked = torch.eye(2, dtype=q.dtype), 0
    for x in 0.1 + 0.8 * image(6, 2, seed=3):
        gradient = torch.autograd.functional.jacobian(f, x)
        hessian = torch.autograd.functional.hessian(f, x)
        with torch.no_grad():
            h = 1e-6
            first = torch.stack([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in axes])
            torch.testing.assert_close(gradient, first, rtol=1e-6, atol=1e-6)
            h = 1e-5
            second = torch.stack([
                torch.stack([
                    (f(x + h * d + h * e) - f(x + h * d - h * e) - f(x - h * d + h * e) + f(x - h * d - h * e))
                    / (4 * h * h) for e in axes
                ]) for d in axes
            ])  # fmt: skip
        torch.testing.assert_close(hessian, second, rtol=1e-4, atol=1e-3 * float(hessian.abs().max()))
        torch.testing.assert_close(hessian, hessian.T, rtol=0, atol=1e-9 * float(hessian.abs().max()))
        checked += float(hessian.abs().max()) > 1
    assert checked >= 5


@pytest.mark.parametrize("config", [{}, {"ccpg": 1}], ids=str)
def test_second_derivatives_reach_the_weights(config):
    """A loss on the gradient (Eikonal, total variation of the field) can be trained."""
    model, q = network(**config), image(1, 1, 8, 8)
    coords = (0.2 + 0.6 * image(5, 2)).requires_grad_()
    (slope,) = torch.autograd.grad(model.at(q, coords, 0.2).sum(), coords, create_graph=True)
    slope.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.mlp.ray_weights)
    assert bool(model.geometry.offsets.grad.any())


# --- gradcheck, part by part


def check(model, names, call):
    """gradcheck of ``call`` with respect to the named parameters."""
    values = [model.get_parameter(name) for name in names]

    def replaced(*values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), call)

    assert torch.autograd.gradcheck(replaced, values)


@pytest.mark.parametrize("config", [{}, {"layout": "square"}, {"learned_scale": True}], ids=str)
def test_gradcheck_of_the_geometry_through_the_stencil(config):
    model = network(**({"hidden": (4,), "features": 2, "mixer": (3,)} | config))
    names = ["geometry.offsets"] + ["geometry.scale"] * bool(config.get("learned_scale"))
    check(model, names, (image(1, 1, 4, 3), 0.5))


class At(torch.nn.Module):
    """``at`` as a module's forward."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args):
        return self.model.at(*args)


@pytest.mark.parametrize("config", [{}, {"learned_scale": True}, {"inr": True}], ids=str)
def test_gradcheck_of_the_geometry_through_the_gather(config):
    model = network(**({"hidden": (4,), "features": 2, "mixer": (3,)} | config))
    names = ["model.geometry.offsets"] + ["model.geometry.scale"] * bool(config.get("learned_scale"))
    check(At(model), names, (image(1, 1, 5, 4), image(3, 2), 0.5))


def test_gradcheck_of_ccpg():
    model = network(ccpg=2, rays=2, rings=2, hidden=(4,), features=2, mixer=(3,))
    model.ccpg = CCPG(4, model.geometry.offsets, 2, width=3).double()
    names = [name for name, _ in model.named_parameters() if name.startswith(("ccpg.", "geometry."))]
    check(model, names, (image(1, 1, 3, 3), 0.5))


def test_gradcheck_of_the_inr():
    model = network(inr=True, rays=2, rings=2, hidden=(4,), features=2, mixer=(3,))
    model.inr = MLP([2, 5, 2]).double()
    check(model, [name for name, _ in model.named_parameters() if name.startswith("inr.")], (image(1, 1, 4, 4), 0.5))


@pytest.mark.parametrize("kind", ["spectral", "spatial"])
def test_gradcheck_of_a_filter_within(kind):
    size = {"spectral": 4, "spatial": 3}[kind]
    model = LoFi(rays=2, rings=2, radius=1.3, hidden=(4,), features=2, mixer=(3,),
                 filter={"kind": kind, "size": size}).double()  # fmt: skip
    check(model, [{"spectral": "filter.response", "spatial": "filter.kernels"}[kind]], (image(1, 1, 3, 4), 0.5))


@pytest.mark.parametrize("module", [MultiMLP(2, 3, (4, 3), 2, (3,), 2), MLP([6, 4, 3, 2])], ids=["multi", "single"])
def test_gradcheck_of_the_networks(module):
    module = module.double()
    x = (image(2, 4, 3) if isinstance(module, MultiMLP) else image(4, 6)) - 0.5
    check(module, [name for name, _ in module.named_parameters()], (x,))
    assert torch.autograd.gradcheck(module, x.requires_grad_())


# --- what cannot be


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
