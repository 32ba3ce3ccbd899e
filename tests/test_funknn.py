"""FunkNN: patches against a loop, the authors' layers written out, derivatives, chunks, footprints, checkpoints."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pnp_lofi.checkpoint import load_checkpoint, save_checkpoint
from pnp_lofi.funknn import PATCH, FunkNN
from pnp_lofi.interpolation import KERNELS, Interpolator, kernel_value, patches
from pnp_lofi.operators.derivatives import kernel_weights
from pnp_lofi.sampling import sample

TAPS = {"bicubic": 4, "smooth": 6}


def image(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(channels=1, seed=1, **config):
    """Float64, tiny, random weights everywhere, scales that are not one."""
    torch.manual_seed(seed)
    model = FunkNN(channels, **({"width": 3} | config)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) / max(1, p[0].numel()) ** 0.5)
        model.scale.copy_(torch.tensor([0.9, 1.15]))
    return model


# --- the patch


def by_loop(q, point, scale, kernel, width=(1.0, 1.0)):
    """One patch, sample by sample, borders by numpy's reflect; the kernels are those of the operator Derivatives."""

    def value(t):
        table = KERNELS[kernel]
        k = int(abs(t))
        return sum(c * abs(t) ** n for n, c in enumerate(table[k])) if k < len(table) else 0.0

    out = np.zeros((q.shape[0], PATCH, PATCH))
    pad = 40
    padded = np.pad(q.numpy(), ((0, 0), (pad, pad), (pad, pad)), mode="reflect")
    for i, j in itertools.product(range(PATCH), repeat=2):
        r = float(point[0]) + (i - 4) * scale[0] * width[0]
        c = float(point[1]) + (j - 4) * scale[1] * width[1]
        total = 0.0
        for a in range(-pad, q.shape[1] + pad):
            for b in range(-pad, q.shape[2] + pad):
                if abs(r - a) < 3 * width[0] and abs(c - b) < 3 * width[1]:
                    weight = value((r - a) / width[0]) * value((c - b) / width[1])
                    total += weight
                    out[:, i, j] += weight * padded[:, a + pad, b + pad]
        if width != (1.0, 1.0):
            out[:, i, j] /= total
    return out


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("width", [(1.0, 1.0), (1.0, 2.3)])
def test_a_patch_is_that_of_a_loop(kernel, width):
    q = image(1, 2, 7, 11)
    points = torch.tensor([[3.2, 5.7], [0.0, 10.0], [-0.4, 10.3], [6.0, 2.5]], dtype=torch.float64)
    scale = torch.tensor([0.9, 1.3], dtype=torch.float64)
    found = patches(q, points[None], scale, PATCH, kernel, width)[0]
    for got, point in zip(found, points, strict=True):
        expected = by_loop(q[0], point, scale.tolist(), kernel, width)
        np.testing.assert_allclose(got.permute(2, 0, 1).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", TAPS)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_kernels_are_those_of_the_operator(kernel, order):
    """Values and derivatives, at the pixels' centres too."""
    taps = TAPS[kernel]
    rest = torch.tensor([0.0, 0.25, 0.6, 0.999], dtype=torch.float64)
    t = (rest[:, None] - torch.arange(1 - taps // 2, taps // 2 + 1)).requires_grad_()
    found = kernel_value(t, kernel)
    for _ in range(order):
        (found,) = torch.autograd.grad(found.sum(), t, create_graph=True)
    torch.testing.assert_close(found.detach(), kernel_weights(rest, taps, order), rtol=0, atol=1e-12)


def test_bicubic_is_the_packages_sampler():
    q, points = image(2, 3, 6, 9), 8 * image(2, 50, 2) - 1
    found = patches(q, points, torch.ones(2), 1, "bicubic")[:, :, 0, 0]
    torch.testing.assert_close(found, sample(q, points), rtol=0, atol=1e-12)


# --- the network


def test_size_of_the_paper():
    assert sum(p.numel() for p in FunkNN(3).parameters()) == 140_933


def layers_by_hand(model, x):
    """The authors' order, with the skips between dense layers that the paper describes and their code leaves out."""
    for k, layer in enumerate(model.convolutions):
        before = x
        x = F.relu(F.conv2d(F.pad(x, (0, 1, 0, 1)), layer.weight, layer.bias))  # padding="same" of a 2 x 2 kernel
        if k % 4 == 3:
            x = F.max_pool2d(x, 2, 2)
        elif k > 0:
            x = x + before
    x = torch.flatten(x, 1)
    x = F.relu(model.dense[0](x))
    x = x + F.relu(model.dense[1](x))
    x = x + F.relu(model.dense[2](x))
    return model.dense[3](x)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_layers_are_those_of_the_authors(channels):
    model = network(channels, width=64)
    q, coords = image(2, channels, 12, 10), image(2, 7, 2, seed=3)
    points = coords * torch.tensor([12.0, 10.0]) - 0.5
    patch = patches(q, points, model.scale, PATCH, "bicubic").flatten(0, 1).permute(0, 3, 1, 2)
    expected = (layers_by_hand(model, patch) + patch[:, :, 4, 4]).reshape(2, 7, channels)
    torch.testing.assert_close(model.at(q, coords), expected, rtol=0, atol=1e-10)


def test_training_starts_at_the_kernel():
    q, coords = image(1, 1, 8, 8).float(), image(9, 2).float()
    for model in (FunkNN(), FunkNN(degree=2, footprint=True)):
        torch.testing.assert_close(model.at(q, coords), Interpolator().at(q, coords))


@pytest.mark.parametrize("config", [{}, {"footprint": True, "degree": 2}])
def test_chunks_do_not_change_the_answer(config):
    model, q, coords = network(**config), image(2, 1, 9, 8), image(2, 23, 2, seed=4)
    whole = model.at(q, coords)
    for options in ({"chunk": 1}, {"chunk": 10}, {"max_memory": 1.0}):
        torch.testing.assert_close(model.at(q, coords, **options), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.at(q, coords[0])[0], whole[0], rtol=0, atol=1e-12)


def test_a_degree_leaves_smooth_images_to_the_kernel():
    """A parabola is interpolated exactly whatever the weights; a constant passes, brightness scales."""
    r, c = torch.meshgrid(*(torch.arange(24, dtype=torch.float64) for _ in "rc"), indexing="ij")
    q = (0.3 + 0.1 * r - 0.2 * c + 0.01 * r * c + 0.02 * r**2 - 0.03 * c**2)[None, None]
    coords = 0.35 + 0.3 * image(20, 2)
    model = network(degree=2)
    p = coords * 24 - 0.5
    r, c = p.unbind(-1)
    expected = 0.3 + 0.1 * r - 0.2 * c + 0.01 * r * c + 0.02 * r**2 - 0.03 * c**2
    torch.testing.assert_close(model.at(q, coords)[0, :, 0], expected, rtol=0, atol=1e-10)
    noise = image(1, 1, 24, 24)
    out = model.at(noise, coords)
    assert bool(((out - Interpolator().at(noise, coords)).abs() > 1e-3).any())
    torch.testing.assert_close(model.at(3 * noise + 2, coords), 3 * out + 2, rtol=0, atol=1e-10)


def test_the_mlp_is_three_layers_on_the_patch():
    model = network(2, head="mlp", degree=1, footprint=True, width=4)
    q, coords = image(1, 2, 12, 10), image(5, 2, seed=3)
    patch = patches(q, (coords * torch.tensor([12.0, 10.0]) - 0.5)[None], model.scale, PATCH, "bicubic")[0]
    seen = patch.flatten(1, 2)
    i, j = (t.flatten() - 4.0 for t in np.mgrid[:9, :9])
    plane = torch.from_numpy(np.stack([np.ones(81), i, j], 1))
    seen = seen - plane @ (torch.linalg.pinv(plane) @ seen)
    told = torch.tensor([0.5, 0.7, 0.25, 0.49, 0.35], dtype=torch.float64)
    one, two, three = (1 + model.modulation.weight @ told).chunk(3)
    h = F.relu(seen.mT.flatten(1) @ model.dense[0].weight.T) * one
    h = h + F.relu(h @ model.dense[1].weight.T) * two
    h = h + F.relu(h @ model.dense[2].weight.T) * three
    expected = patch[:, 4, 4] + (1 - 0.35) * h @ model.dense[3].weight.T
    torch.testing.assert_close(model.at(q, coords, (0.5, 0.7))[0], expected, rtol=0, atol=1e-10)


# --- derivatives


@pytest.mark.parametrize("kernel", ["bicubic", "smooth"])
@pytest.mark.parametrize(
    "config",
    [{}, {"degree": 2, "footprint": True, "activation": "silu", "pool": "mean"}, {"head": "mlp", "degree": 2}],
    ids=str,
)
def test_gradcheck_twice_in_the_coordinates(kernel, config):
    model, q = network(kernel=kernel, **config), image(1, 2, 8, 9)[:, :1]
    coords = (0.15 + 0.7 * image(3, 2, seed=5)).requires_grad_()
    away = coords.detach() * torch.tensor([8.0, 9.0]) - 0.5
    assert float((away - away.round()).abs().min()) > 0.01  # off the integers
    assert torch.autograd.gradcheck(lambda x: model.at(q, x), coords, eps=1e-7, atol=1e-5)
    assert torch.autograd.gradgradcheck(lambda x: model.at(q, x), coords, eps=1e-7, atol=1e-4)


def test_gradcheck_of_scales_weights_and_image():
    model = network(footprint=True, width=2)
    names = [name for name, _ in model.named_parameters()]
    q, coords = image(1, 1, 6, 5).requires_grad_(), 0.1 + 0.8 * image(2, 2)

    def call(q, *values):
        held = dict(zip((f"model.{n}" for n in names), values, strict=True))
        return torch.func.functional_call(At(model), held, (q, coords, (0.4, 0.7)))

    assert torch.autograd.gradcheck(call, [q, *(p.detach().clone().requires_grad_() for p in model.parameters())])


class At(torch.nn.Module):
    """``at`` as a module's forward."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args):
        return self.model.at(*args)


# --- the footprint


def test_footprint_one_is_the_image_and_more_does_not_alias():
    model, q = network(footprint=True), image(1, 1, 32, 32)
    coords = (torch.cartesian_prod(*(torch.arange(32, dtype=torch.float64),) * 2) + 0.5) / 32
    torch.testing.assert_close(model.at(q, coords, 1.0).reshape(32, 32), q[0, 0], rtol=0, atol=1e-12)
    stripes = (torch.arange(32) % 2).double().expand(1, 1, 32, 32)
    coarse = (torch.cartesian_prod(*(torch.arange(8, dtype=torch.float64),) * 2) + 0.4) / 8
    flat = model.at(stripes, coarse, 4.0).reshape(8, 8)[2:-2, 2:-2]
    aliased = model.at(stripes, coarse, 1.0).reshape(8, 8)[2:-2, 2:-2]
    assert float((flat - 0.5).abs().max()) < 0.01 < 0.1 < float((aliased - 0.5).abs().max())


def test_the_footprint_changes_the_answer_smoothly():
    model, q, coords = network(footprint=True), image(1, 1, 8, 8), image(5, 2)
    a, b, c = (model.at(q, coords, f) for f in (0.5, 0.5 + 1e-6, (0.5, 0.8)))
    assert 0 < float((a - b).abs().max()) < 1e-4 and float((a - c).abs().max()) > 1e-4
    torch.testing.assert_close(model.at(q, coords), model.at(q, coords, 0.0))


# --- keeping, and what cannot be


def test_checkpoint(tmp_path):
    model = network(3, degree=1, footprint=True, kernel="smooth").float()
    save_checkpoint(tmp_path / "f.safetensors", model, mode="continuous")
    loaded, header = load_checkpoint(tmp_path / "f.safetensors")
    q, coords = image(1, 3, 8, 8).float(), image(6, 2).float()
    assert header["architecture"] == "FunkNN" and loaded.config == model.config
    torch.testing.assert_close(loaded.at(q, coords, 0.5), model.at(q, coords, 0.5), rtol=0, atol=0)


def test_bad_input_is_told():
    model = FunkNN()
    with pytest.raises(ValueError, match="kernels are bilinear, bicubic, smooth"):
        FunkNN(kernel="lanczos")
    with pytest.raises(ValueError, match="degree of None, 0, 1 or 2"):
        FunkNN(degree=3)
    for config in ({"activation": "tanh"}, {"pool": "min"}, {"head": "kan"}):
        with pytest.raises(ValueError, match="activation is relu, silu, pool max, mean, head cnn, mlp"):
            FunkNN(**config)
    with pytest.raises(ValueError, match=r"x\[None, None\]"):
        model.at(torch.rand(8, 8), torch.rand(3, 2))
    with pytest.raises(ValueError, match="coords must be"):
        model.at(torch.rand(1, 1, 8, 8), torch.rand(3))
    with pytest.raises(ValueError, match="takes no footprint"):
        model.at(torch.rand(1, 1, 8, 8), torch.rand(3, 2), 0.5)
    with pytest.raises(ValueError, match="one or two numbers >= 0"):
        FunkNN(footprint=True).at(torch.rand(1, 1, 8, 8), torch.rand(3, 2), -1.0)
    with pytest.raises(ValueError, match="chunk must be"):
        model.at(torch.rand(1, 1, 8, 8), torch.rand(3, 2), chunk=0)
