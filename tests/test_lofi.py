"""The LoFi core: three ways in, its symmetries, its memory, and an independent forward."""

import math

import pytest
import torch
from torch import nn

from pnp_lofi import LoFi
from pnp_lofi.sampling import grid_coords


def image(*shape, dtype=torch.float64, seed=0):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def plain_forward(model, q, sigma):
    """Pixel by pixel with torch's bilinear-free building blocks: loops, nn.functional.linear, numpy reflection."""
    batch, channels, height, width = q.shape
    offsets = model.geometry.offsets.detach()
    rays, rings, _ = offsets.shape

    def fold(i, n):
        i = abs(i) % (2 * (n - 1)) if n > 1 else 0
        return min(i, 2 * (n - 1) - i) if n > 1 else 0

    def cubic(t):
        t = abs(t)
        return 1.5 * t**3 - 2.5 * t**2 + 1 if t < 1 else -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0

    out = torch.zeros(batch, model.out_channels, height, width, dtype=q.dtype)
    for b in range(batch):
        for r in range(height):
            for c in range(width):
                patch = torch.zeros(channels, rays, rings, dtype=q.dtype)
                for ray in range(rays):
                    for ring in range(rings):
                        y, x = (float(v) for v in offsets[ray, ring])
                        for i in range(math.floor(y) - 1, math.floor(y) + 3):
                            for j in range(math.floor(x) - 1, math.floor(x) + 3):
                                value = q[b, :, fold(r + i, height), fold(c + j, width)]
                                patch[:, ray, ring] += cubic(y - i) * cubic(x - j) * value
                patch = (patch - patch.mean((1, 2), keepdim=True)) / sigma
                features = []
                for ray in range(rays):
                    h = patch[:, ray].flatten()
                    for k, (w, bias) in enumerate(zip(model.mlp.ray_weights, model.mlp.ray_biases, strict=True)):
                        h = nn.functional.linear(h, w[ray].T, bias[ray, 0])
                        h = h.relu() if k + 1 < len(model.mlp.ray_weights) else h
                    features.append(h)
                h = torch.cat(features)
                for k, (w, bias) in enumerate(zip(model.mlp.mixer_weights, model.mlp.mixer_biases, strict=True)):
                    h = nn.functional.linear(h, w.T, bias)
                    h = h.relu() if k + 1 < len(model.mlp.mixer_weights) else h
                out[b, :, r, c] = sigma * h + (q[b, :, r, c] if model.residual else 0)
    return out


@pytest.mark.parametrize("channels", [1, 2])
def test_forward_equals_a_loop_over_pixels(channels):
    torch.manual_seed(0)
    model = LoFi(channels, rays=3, rings=2, radius=2.3, hidden=(6, 5), features=4, mixer=(7,)).double()
    q = image(2, channels, 5, 7)
    torch.testing.assert_close(model(q, 0.2), plain_forward(model, q, 0.2), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (2, 1, 13, 18), (1, 1, 3, 2)])
def test_three_ways_in_agree(tiny, dtype, tolerance, shape):
    model, q, pixels = tiny.to(dtype), image(*shape, dtype=dtype), shape[2] * shape[3]
    whole = model(q, 0.1).flatten(2).transpose(1, 2)
    at = model.at(q, grid_coords(shape[2:], dtype=dtype), 0.1)
    drawn = torch.randperm(pixels, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(at, whole, rtol=0, atol=tolerance)
    torch.testing.assert_close(model.at_pixels(q, drawn, 0.1), whole[:, drawn], rtol=0, atol=tolerance)


@pytest.mark.parametrize("chunk", [1, 5, 18, 100, 10_000])
def test_chunks_equal_the_whole(tiny, chunk):
    q, tiny = image(2, 1, 13, 18), tiny.double()
    whole = tiny(q, 0.1, chunk=10_000)
    torch.testing.assert_close(tiny(q, 0.1, chunk=chunk), whole, rtol=0, atol=1e-13)
    with torch.no_grad():
        torch.testing.assert_close(tiny(q, 0.1, chunk=chunk), whole, rtol=0, atol=1e-13)
    coords = grid_coords((13, 18), dtype=q.dtype)
    torch.testing.assert_close(tiny.at(q, coords, 0.1, chunk=chunk), tiny.at(q, coords, 0.1), rtol=0, atol=1e-13)


def test_a_batch_equals_its_items_and_sigma_may_differ(tiny):
    q, sigma, tiny = image(3, 1, 9, 8), torch.tensor([0.1, 0.02, 0.3], dtype=torch.float64), tiny.double()
    together = tiny(q, sigma)
    noise_map = sigma[:, None, None, None].expand(3, 1, 9, 8)
    torch.testing.assert_close(tiny(q, noise_map), together, rtol=0, atol=1e-13)
    coords = grid_coords((9, 8), dtype=q.dtype)
    torch.testing.assert_close(tiny.at(q, coords, sigma), together.flatten(2).transpose(1, 2), rtol=0, atol=1e-12)
    for k in range(3):
        torch.testing.assert_close(tiny(q[k : k + 1], float(sigma[k])), together[k : k + 1], rtol=0, atol=1e-13)


def test_scale_and_level_equivariance(tiny):
    q, tiny = image(1, 1, 10, 10), tiny.double()
    torch.testing.assert_close(tiny(7e3 * q, 7e3 * 0.1), 7e3 * tiny(q, 0.1), rtol=1e-10, atol=0)
    torch.testing.assert_close(tiny(q + 5, 0.1), tiny(q, 0.1) + 5, rtol=0, atol=1e-11)


def test_shift_equivariance_is_exact_in_the_interior(tiny):
    q, tiny, m = image(1, 1, 30, 30), tiny.double(), tiny.geometry.margin((40, 40))
    a, b = tiny(q, 0.1), tiny(q.roll((3, 2), (-2, -1)), 0.1)
    inner = (slice(None), slice(None), slice(m + 3, -m), slice(m + 3, -m))
    torch.testing.assert_close(b[inner], a.roll((3, 2), (-2, -1))[inner], rtol=0, atol=1e-13)


def test_a_tile_with_its_halo_equals_the_whole(tiny):
    q, tiny, m = image(1, 1, 40, 40), tiny.double(), tiny.geometry.margin((40, 40))
    tile = tiny(q[..., 10 - m : 25 + m, 12 - m : 30 + m], 0.1)[..., m:-m, m:-m]
    torch.testing.assert_close(tile, tiny(q, 0.1)[..., 10:25, 12:30], rtol=0, atol=1e-13)


def test_gradients(tiny):
    tiny, q = tiny.double(), image(1, 1, 5, 4).requires_grad_()
    coords = (0.2 + 0.5 * image(3, 2, seed=2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tiny(x, 0.5, chunk=6), q)
    assert torch.autograd.gradcheck(lambda x, c: tiny.at(x, c, 0.5), (q, coords))
    tiny(q, 0.5).square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in tiny.parameters())


def test_bfloat16_is_close_and_leaves_the_dtype(tiny):
    q = image(1, 1, 32, 32, dtype=torch.float32)
    with torch.no_grad():
        full, low = tiny(q, 0.2), tiny(q, 0.2, compute_dtype=torch.bfloat16)
    assert low.dtype == torch.float32
    assert float((low - full).norm() / (full - q).norm()) < 0.03


@pytest.mark.parametrize("more", [{"ccpg": 1}, {"inr": True}])
def test_positions_are_exact_in_a_low_precision_image(tiny, more):
    """bfloat16 counts pixels up to 256 only."""
    torch.manual_seed(0)
    model = LoFi(rays=3, rings=3, radius=2, hidden=(6,), features=4, mixer=(5,), **more)
    q = image(1, 1, 2, 600, dtype=torch.float32).bfloat16()
    with torch.no_grad():
        full, low = model(q.float(), 0.5), model(q, 0.5).float()
    far = (low - full)[..., 300:].abs().mean()
    assert float(far) < 1.5 * float((low - full)[..., :200].abs().mean())


def test_plain_network_takes_no_sigma():
    torch.manual_seed(0)
    model = LoFi(2, 3, rays=3, rings=3, radius=2, hidden=(4,), features=3, mixer=(4,), residual=False,
                 centred=False, equivariant=False, layout="square", learned=False)  # fmt: skip
    assert model(image(1, 2, 6, 5, dtype=torch.float32)).shape == (1, 3, 6, 5)
    assert not model.geometry.offsets.requires_grad
    with pytest.raises(ValueError, match="takes no sigma"):
        model(image(1, 2, 6, 5, dtype=torch.float32), 0.1)


def test_paper_size_has_three_million_parameters():
    model = LoFi(rays=9, rings=9, hidden=(370,) * 3, features=100, mixer=(370,) * 3, equivariant=False)
    assert 2.8e6 < sum(p.numel() for p in model.parameters()) < 3.5e6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.rand(8, 8), 0.1), r"x\[None, None\]"),
        (lambda m: m(torch.rand(1, 2, 8, 8), 0.1), r"\(batch, 1, height, width\), got \(1, 2, 8, 8\)"),
        (lambda m: m(torch.rand(1, 1, 8, 8)), "needs the noise level"),
        (lambda m: m(torch.rand(1, 1, 8, 8), -1.0), "finite and >= 0"),
        (lambda m: m(torch.rand(1, 1, 8, 8), float("nan")), "finite and >= 0"),
        (lambda m: m(torch.rand(1, 1, 8, 8), torch.ones(3)), "sigma must be a number"),
        (lambda m: m(torch.rand(1, 1, 8, 8), 0.1, chunk=0), "chunk"),
        (lambda m: m.at(torch.rand(1, 1, 8, 8), torch.rand(4), 0.1), "coords must be"),
        (lambda m: m.at_pixels(torch.rand(1, 1, 8, 8), torch.tensor([64]), 0.1), r"0\.\.63"),
        (lambda m: m((255 * torch.rand(1, 1, 8, 8)).byte(), 0.1), "floating-point"),
        (lambda m: LoFi(1, 2), "residual=False"),
        (lambda m: LoFi(rays=0), "rays >= 1"),
        (lambda m: LoFi(layout="hexagonal"), "circular"),
    ],
)
def test_bad_input(tiny, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(tiny)
