"""PatchGeometry: where a patch looks, how far, and what turns and shifts with the image."""

import math

import pytest
import torch

from pnp_lofi import LoFi
from pnp_lofi.geometry import PatchGeometry, circular_offsets, random_offsets, square_offsets
from pnp_lofi.sampling import KEYS_A, OFFICIAL_A, sample, stencil, windows_at


def image(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(seed=1, **config):
    """Float64, tiny, random weights."""
    torch.manual_seed(seed)
    default = {"rays": 3, "rings": 4, "radius": 2.7, "hidden": (8,), "features": 5, "mixer": (7,)}
    return LoFi(**(default | config)).double().requires_grad_(False)


def jittered(model, seed=2):
    offsets = model.geometry.offsets
    offsets += 0.1 * torch.randn(offsets.shape, dtype=offsets.dtype, generator=torch.Generator().manual_seed(seed))
    return model


# --- layouts


@pytest.mark.parametrize(("rays", "rings", "radius"), [(4, 3, 2.0), (9, 9, 2.0), (1, 5, 1.5), (7, 2, 10.0)])
def test_circular(rays, rings, radius):
    offsets = circular_offsets(rays, rings, radius)
    assert offsets.shape == (rays, rings, 2)
    for m in range(rays):
        for n in range(rings):
            reach, angle = radius * n / (rings - 1), 2 * math.pi * m / rays
            expected = [reach * math.sin(angle), reach * math.cos(angle)]  # ray 0 goes along the columns
            assert offsets[m, n].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_single_ring_lies_at_the_radius():
    assert circular_offsets(4, 1, 3.0).norm(dim=-1).flatten().tolist() == pytest.approx([3.0] * 4)


def test_square():
    offsets = square_offsets(3, 5, 2.0)
    assert offsets[:, :, 0].tolist() == [[-2.0] * 5, [0.0] * 5, [2.0] * 5]
    assert offsets[:, :, 1].tolist() == [[-2.0, -1.0, 0.0, 1.0, 2.0]] * 3
    assert square_offsets(1, 1, 2.0).tolist() == [[[0.0, 0.0]]]


def test_random_fills_the_square_by_torchs_generator():
    torch.manual_seed(0)
    offsets = random_offsets(50, 40, 3.0)
    assert offsets.shape == (50, 40, 2)
    assert 2.9 < float(offsets.max()) <= 3 and -3 <= float(offsets.min()) < -2.9
    assert float(offsets.std()) == pytest.approx(3 / math.sqrt(3), rel=0.03)
    assert abs(float(offsets.mean())) < 0.1
    torch.manual_seed(0)
    assert bool((random_offsets(50, 40, 3.0) == offsets).all())


@pytest.mark.parametrize("layout", ["circular", "square", "random"])
def test_points_are_rays_outermost(layout):
    geometry = PatchGeometry(3, 4, 2.0, layout=layout)
    assert geometry.points((9, 9)).shape == (12, 2)
    assert bool((geometry.points((9, 9))[4:8] == geometry.offsets[1]).all())


def test_learned_or_not():
    assert PatchGeometry(3, 4, 2.0).offsets.requires_grad
    assert not PatchGeometry(3, 4, 2.0, learned=False).offsets.requires_grad
    scaled = PatchGeometry(3, 4, 2.0, learned=False, learned_scale=True)
    assert scaled.scale is not None and scaled.scale.requires_grad


def test_the_learned_scale_multiplies_all_offsets():
    geometry = PatchGeometry(3, 4, 2.0, learned_scale=True)
    with torch.no_grad():
        geometry.scale.fill_(1.75)
    torch.testing.assert_close(geometry.points((9, 9)), 1.75 * geometry.offsets.reshape(-1, 2))
    assert geometry.margin((9, 9)) == math.ceil(3.5) + 1
    plain, scaled, q = network(), network(learned_scale=True), image(1, 1, 9, 8)
    scaled.geometry.scale.fill_(0.6)
    plain.geometry.offsets *= 0.6
    torch.testing.assert_close(scaled(q, 0.1), plain(q, 0.1), rtol=0, atol=1e-13)


def test_official_offsets_are_fractions_of_the_height():
    """N pixels stand at i/(N - 1): an offset of one pixel of N covers (N - 1)/N of the step between them."""
    geometry = PatchGeometry(3, 4, 2.0, official=True, learned_scale=True)
    with torch.no_grad():
        geometry.scale.fill_(2.0)
    rows, columns = (2 * geometry.offsets.detach().reshape(-1, 2)).T
    torch.testing.assert_close(geometry.points((10, 10)), torch.stack([rows * 0.9, columns * 0.9], 1))
    torch.testing.assert_close(geometry.points((10, 26)), torch.stack([rows * 0.9, columns * 2.5], 1))
    assert geometry.margin((10, 26)) == math.ceil(float(2.5 * columns.abs().max())) + 1


@pytest.mark.parametrize("reach", [0.3, 1.0, 1.5, 2.0, 2.999])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_margin_holds_every_tap(reach, sign):
    geometry = PatchGeometry(1, 1, 1.0)
    with torch.no_grad():
        geometry.offsets.copy_(torch.tensor([[[sign * reach, 0.0]]]))
    margin = geometry.margin((50, 50))
    assert margin == math.ceil(reach) + 1
    row = torch.arange(21.0, dtype=torch.float64)
    ramp = (row[:, None] ** 2).expand(21, 21)[None, None]
    point = torch.tensor([[[10.0 + sign * reach, 10.0]]], dtype=torch.float64)
    view = windows_at(ramp, torch.tensor([0]), torch.tensor([10]), torch.tensor([10]), margin)
    found = view.reshape(1, -1) @ stencil(geometry.points((50, 50)).double(), margin)
    torch.testing.assert_close(found[None], sample(ramp, point), rtol=1e-6, atol=0)


@pytest.mark.parametrize("a", [KEYS_A, OFFICIAL_A])
def test_stencil_and_gather_give_the_same_gradient_of_the_offsets(a):
    q, offsets = image(1, 1, 9, 9), (3 * image(5, 2) - 1.5).requires_grad_()
    middle = torch.tensor([[[4.0, 4.0]]], dtype=torch.float64)
    view = windows_at(q, torch.tensor([0]), torch.tensor([4]), torch.tensor([4]), 3).reshape(1, -1)

    def by_stencil(d):
        return (view @ stencil(d, 3, a))[0]

    def by_gather(d):
        return sample(q, middle + d, a)[0, :, 0]

    torch.testing.assert_close(by_stencil(offsets), by_gather(offsets), rtol=0, atol=1e-13)
    for call in (by_stencil, by_gather):
        assert torch.autograd.gradcheck(call, offsets)
        assert torch.autograd.gradgradcheck(call, offsets)
    first, second = (torch.autograd.grad(call(offsets).sum(), offsets)[0] for call in (by_stencil, by_gather))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PatchGeometry(0, 3, 1.0), "rays >= 1.*got 0, 3, 1.0"),
        (lambda: PatchGeometry(3, 0, 1.0), "rings >= 1"),
        (lambda: PatchGeometry(3, 3, 0.0), "radius > 0"),
        (lambda: PatchGeometry(3, 3, float("nan")), "radius > 0"),
        (lambda: PatchGeometry(3, 3, 1.0, layout="round"), "'circular', 'random', 'square'.*got 'round'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- symmetries


def turned(offsets):
    """(row, column) offsets -> those that see in the turned image, torch.rot90(q, 1, (2, 3)), what these saw in q."""
    return torch.stack([-offsets[..., 1], offsets[..., 0]], -1)


@pytest.mark.parametrize("config", [{}, {"head": "single"}, {"layout": "square"}, {"layout": "random"}, {"rays": 4}])
@pytest.mark.parametrize("shape", [(12, 12), (9, 14)])
def test_a_quarter_turn_is_exact_with_the_geometry_turned_along(config, shape):
    model, q = jittered(network(**config)), image(2, 1, *shape)
    straight = model(q, 0.1)
    model.geometry.offsets.copy_(turned(model.geometry.offsets))
    torch.testing.assert_close(model(q.rot90(1, (2, 3)), 0.1), straight.rot90(1, (2, 3)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("rays", [4, 8])
def test_a_quarter_turn_is_exact_with_the_rays_permuted(rays):
    model, q = network(rays=rays, features=5), image(1, 1, 10, 13)
    angle = 2 * math.pi * torch.arange(rays, dtype=torch.float64) / rays
    reach = torch.linspace(0, 2.7, 4, dtype=torch.float64)
    model.geometry.offsets.copy_(torch.stack([angle.sin(), angle.cos()], -1)[:, None] * reach[:, None])
    straight = model(q, 0.1)
    plain_turn = model(q.rot90(1, (2, 3)), 0.1)
    assert float((plain_turn - straight.rot90(1, (2, 3))).abs().max()) > 1e-3  # random networks tell rays apart
    k = rays // 4
    for value in [*model.mlp.ray_weights, *model.mlp.ray_biases]:
        value.copy_(value.roll(-k, 0))
    first = model.mlp.mixer_weights[0]
    first.copy_(first.reshape(rays, 5, -1).roll(-k, 0).reshape(first.shape))
    torch.testing.assert_close(model(q.rot90(1, (2, 3)), 0.1), straight.rot90(1, (2, 3)), rtol=0, atol=1e-12)


def test_a_flip_is_exact_with_the_geometry_flipped_along():
    model, q = jittered(network()), image(1, 1, 9, 14)
    straight = model(q, 0.1)
    model.geometry.offsets[..., 1] *= -1
    torch.testing.assert_close(model(q.flip(3), 0.1), straight.flip(3), rtol=0, atol=1e-13)


@pytest.mark.parametrize("config", [{}, {"head": "single"}, {"learned_scale": True}, {"ccpg": 1}, {"ccpg": 2}])
@pytest.mark.parametrize("step", [(-2, -1), (3, 0), (5, -4)])
def test_shifts_are_exact_in_the_interior(config, step):
    model, q = jittered(network(**config)), image(1, 1, 36, 33)
    coords = torch.rand(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    middle = coords * torch.tensor([36.0, 33.0], dtype=torch.float64) - 0.5
    reach = float((model.looks_at(q, coords, 0.1)[0] - middle[:, None]).abs().max())
    m = math.ceil(max(reach, 3.2)) + 3  # CCPG's later patches reach elsewhere
    a, b = model(q, 0.1), model(q.roll(step, (2, 3)), 0.1)
    cut = m + max(map(abs, step))
    inner = (..., slice(cut, -cut), slice(cut, -cut))
    torch.testing.assert_close(b[inner], a.roll(step, (2, 3))[inner], rtol=0, atol=1e-13)
    assert float((b - a)[inner].abs().max()) > 1e-2


# --- borders


@pytest.mark.parametrize("config", [{}, {"layout": "square", "radius": 1.4}, {"learned_scale": True}])
def test_the_interior_does_not_see_beyond_the_border_and_the_margin_does(config):
    model, q = jittered(network(residual=False, **config)), image(1, 1, 44, 40)
    m = model.geometry.margin((44, 40))
    whole, crop = model(q, 0.1)[..., 10:34, 10:30], model(q[..., 10:34, 10:30], 0.1)
    error = (crop - whole)[0, 0].abs()
    assert float(error[m:-m, m:-m].max()) < 1e-13
    border = error.clone()
    border[m:-m, m:-m] = 0
    assert float(border.max()) > 1e-2 * float(whole.abs().max())
    ring = torch.cat([error[m - 1], error[-m], error[:, m - 1], error[:, -m]])
    assert float(ring.max()) > 1e-9  # the margin is not wider than it must be


def test_beyond_the_border_lies_the_mirror_image():
    model, q = jittered(network()), image(1, 1, 12, 11)
    m = model.geometry.margin((12, 11))
    padded = torch.nn.functional.pad(q, (m,) * 4, mode="reflect")
    torch.testing.assert_close(model(padded, 0.1)[..., m:-m, m:-m], model(q, 0.1), rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (5, 1)])
def test_images_smaller_than_the_patch(shape):
    model, q = jittered(network()), image(2, 1, *shape)
    whole = model(q, 0.1)
    assert bool(whole.isfinite().all())
    pixels = model.at_pixels(q, torch.arange(shape[0] * shape[1]), 0.1)
    torch.testing.assert_close(pixels, whole.flatten(2).transpose(1, 2), rtol=0, atol=1e-12)
