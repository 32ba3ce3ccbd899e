"""SharedLoFi: an independent forward, three ways in, symmetries, derivatives, training and bad input."""

import math
from functools import cache

import pytest
import torch
from torch.nn.functional import linear, pad

from pnp_lofi import LoFi, LoFiPrior
from pnp_lofi.checkpoint import load_checkpoint, save_checkpoint
from pnp_lofi.examples import Crops, Noisy
from pnp_lofi.matching import NonLocalLoFi
from pnp_lofi.sampling import grid_coords
from pnp_lofi.shared import SharedLoFi, near
from pnp_lofi.train import TrainSettings, train

KINDS = [  # what a network may have
    pytest.param({}, id="plain"),
    pytest.param({"stages": ((3, 1, 5), (3, 2, 3))}, id="stages"),
    pytest.param({"stages": ((3, 1, 5),), "patch": 3}, id="patch"),
    pytest.param({"patch": 7, "points": 1, "raw": 0}, id="wide-patch"),
]


def network(channels=1, **kwargs):
    torch.manual_seed(0)
    small = {"window": 5, "filters": 7, "features": 4, "points": 3, "spacing": 2, "raw": 3, "hidden": (9, 8)}
    return SharedLoFi(channels, **(small | kwargs)).double().eval()


def image(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain_forward(m, q, sigma):
    """Pixel by pixel and neighbour by neighbour, the image reflected by torch's pad."""
    wide, r, zero = pad(q, (m.reach,) * 4, mode="reflect"), m.reach, lambda w: w - w.mean((-2, -1), keepdim=True)

    def window(b, y, x, side):
        half = side // 2
        return wide[b, :, r + y - half : r + y + half + 1, r + x - half : r + x + half + 1].flatten()

    @cache
    def feature(b, y, x, stages):
        if not stages:
            first = linear(window(b, y, x, m.windows.shape[-1]) / sigma, zero(m.windows).flatten(1)) + m.windows_bias
            first = first.relu() if m.shrinkage is None else first.relu().log1p()
            return linear(first, m.summary, m.summary_bias)
        stage, (n, spacing, _) = m.stages[stages - 1], m.config["stages"][stages - 1]
        total = stage.gather_bias
        for i in range(n):
            for j in range(n):
                dy, dx = (spacing * (k - n // 2) for k in (i, j))
                total = total + stage.gather[:, :, i, j] @ feature(b, y + dy, x + dx, stages - 1).relu()
        return feature(b, y, x, stages - 1) + linear(total.relu(), stage.mix, stage.mix_bias)

    @cache
    def small(b, y, x):  # what the patch around a pixel takes for noise
        s = m.shrinkage
        z = linear(window(b, y, x, s.side), zero(s.analysis).flatten(1)) / sigma
        kept = 1 - (
            1
            / (
                1
                + (s.gates_bias + s.gates @ feature(b, y, x, len(m.stages)).relu() - (s.steepness_bias * z) ** 2).exp()
            )
        )
        return (sigma * z * kept) @ s.synthesis.flatten(1)

    def noise(b, y, x):
        if m.shrinkage is None:
            return 0
        n, total = m.shrinkage.side, torch.zeros(q.shape[1], dtype=q.dtype)
        for i in range(n):
            for j in range(n):
                covering = small(b, y + n // 2 - i, x + n // 2 - j)
                total = total + covering.reshape(-1, n, n)[:, i, j] / n**2
        return total

    out = torch.zeros_like(q)
    for b in range(len(q)):
        for y in range(q.shape[2]):
            for x in range(q.shape[3]):
                mixed = m.neighbours_bias
                if m.raw is not None:
                    mixed = mixed + linear(window(b, y, x, m.raw.shape[-1]), zero(m.raw).flatten(1)) / sigma
                for i in range(m.points):
                    for j in range(m.points):
                        dy, dx = (m.spacing * (k - m.points // 2) for k in (i, j))
                        mixed = mixed + m.neighbours[:, :, i, j] @ feature(b, y + dy, x + dx, len(m.stages)).relu()
                for w, bias in zip(m.mixer.weights, m.mixer.biases, strict=True):
                    mixed = linear(mixed.relu(), w.T, bias)
                out[b, :, y, x] = sigma * mixed + q[b, :, y, x] - noise(b, y, x)
    return out


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_equals_a_loop_over_pixels(channels, kind):
    m, q = network(channels, **kind), image(2, channels, 8, 9)
    expected = plain_forward(m, q, 0.2)
    torch.testing.assert_close(m(q, 0.2, chunk=13), expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(m(q, 0.2, chunk=13), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", ["number", "batch", "map"])
@pytest.mark.parametrize("shape", [(2, 1, 13, 18), (2, 3, 9, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_three_ways_in_agree_at_every_noise_level(sigma, shape, kind):
    m, q = network(shape[1], **kind), image(*shape)
    level = {"number": 0.1, "batch": 0.1 + image(2), "map": 0.1 + image(2, 1, *shape[2:], seed=3)}[sigma]
    whole = m(q, level, chunk=50)
    flat = whole.flatten(2).transpose(1, 2)
    with torch.no_grad():
        torch.testing.assert_close(m(q, level), whole, rtol=0, atol=1e-12)
    at = m.at(q, grid_coords(shape[2:], dtype=q.dtype), level, chunk=31)
    torch.testing.assert_close(at, flat, rtol=0, atol=1e-12)
    index = torch.tensor([[3, 11], [17, 0]])
    expected = torch.stack([flat[b, index[b]] for b in range(2)])
    torch.testing.assert_close(m.at_pixels(q, index, level), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_interior_is_the_whole_without_its_border(kind):
    m, q, level = network(**kind), image(2, 1, 17, 20), 0.1 + image(2, 1, 17, 20, seed=1)
    inner = (slice(None), slice(None), slice(m.reach, -m.reach), slice(m.reach, -m.reach))
    torch.testing.assert_close(m.interior(q, level), m(q, level)[inner], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_scale_level_and_shift_equivariance(kind):
    m, q = network(**kind), image(1, 1, 30, 31)
    torch.testing.assert_close(m(7e3 * q, 7e2), 7e3 * m(q, 0.1), rtol=1e-9, atol=0)
    torch.testing.assert_close(m(q + 5, 0.1), m(q, 0.1) + 5, rtol=0, atol=1e-11)
    e = m.reach + 3
    inner = (slice(None), slice(None), slice(e, -e), slice(e, -e))
    torch.testing.assert_close(
        m(q.roll((3, 2), (-2, -1)), 0.1)[inner], m(q, 0.1).roll((3, 2), (-2, -1))[inner], rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("kind", KINDS)
def test_reach_is_where_a_pixel_stops_to_matter(kind):
    m, q = network(**kind), image(1, 1, 31, 31)
    other = q.clone()
    other[..., 15, 15] += 1
    changed = (m(other, 0.1) - m(q, 0.1))[0, 0].abs() > 1e-12
    rows = changed.any(1).nonzero().flatten()
    assert (int(rows.min()), int(rows.max())) == (15 - m.reach, 15 + m.reach)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    m, q, level = (
        network(**kind),
        image(1, 1, 6, 5).requires_grad_(),
        (0.5 + image(1, 1, 6, 5, seed=4)).requires_grad_(),
    )
    assert torch.autograd.gradcheck(lambda x, s: m(x, s, chunk=11), (q, level))
    coords = (0.2 + 0.5 * image(3, 2, seed=2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, c: m.at(x, c, 0.5), (q, coords))
    assert torch.autograd.gradgradcheck(lambda c: m.at(q.detach(), c, 0.5), coords)
    m(q, 0.5).square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in m.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_another_grid_and_a_memory_budget(kind):
    m, q = network(**kind), image(1, 1, 12, 10)
    finer = m(q, 0.1, shape=(24, 15))
    expected = m.at(q, grid_coords((24, 15), dtype=q.dtype), 0.1).transpose(1, 2).reshape(1, 1, 24, 15)
    torch.testing.assert_close(finer, expected, rtol=0, atol=0)
    torch.testing.assert_close(m(q, 0.1, max_memory=0.02), m(q, 0.1), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="too little"):
        m(q, 0.1, max_memory=1e-6)
    with pytest.raises(ValueError, match="not both"):
        m(q, 0.1, max_memory=1, chunk=4)


@pytest.mark.parametrize("level", [0.2, "map"])
def test_bfloat16_is_close_and_leaves_the_dtype(level):
    m, q = network().float(), image(1, 1, 32, 32).float() + 100
    sigma = 0.1 + image(1, 1, 32, 32).float() if level == "map" else level
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            full, low = m(q, sigma), m(q, sigma, compute_dtype=torch.bfloat16)
        assert low.dtype == torch.float32
        assert float((low - full).norm() / (full - q).norm()) < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_prior_with_a_checkpoint(tmp_path, kind):
    m = network(**kind).float()
    save_checkpoint(tmp_path / "m.safetensors", m, sigma_range=[0.01, 0.1])
    again, header = load_checkpoint(tmp_path / "m.safetensors")
    assert isinstance(again, SharedLoFi) and header["architecture"] == "SharedLoFi"
    q = image(2, 3, 9, 8).float()
    with torch.no_grad():
        expected = torch.cat([m(q[:, c : c + 1], 0.1) for c in range(3)], 1)
        torch.testing.assert_close(LoFiPrior(tmp_path / "m.safetensors", max_memory=1)(q, 0.1), expected)


def test_training_learns_and_resumes_exactly(tmp_path):
    x = image(2, 1, 40, 40).float().cumsum(-1) / 20
    settings = TrainSettings(steps=80, lr=5e-3)
    source = Noisy(Crops(list(x), 24, 4), 0.1, 0.2)

    def run(out, **kwargs):
        torch.manual_seed(0)
        return train(network().float(), source, settings, out, progress=False, **kwargs)

    figures = run(tmp_path / "a.safetensors")
    assert figures["psnr"] > -20 * math.log10(0.15) + 1

    class Stop(Exception):
        pass

    calls = []

    def batches(generator):
        calls.append(1)
        if len(calls) == 50:
            raise Stop
        return source(generator)

    with pytest.raises(Stop):
        train(network().float(), batches, settings, tmp_path / "b.safetensors", keep_every=20, progress=False)
    assert run(tmp_path / "b.safetensors", resume=True)["loss"] == pytest.approx(figures["loss"], rel=1e-6)


def test_the_image_may_be_smaller_than_the_patch():
    m, q = network(), image(1, 1, 2, 1)
    assert m(q, 0.1).shape == q.shape and bool(m(q, 0.1).isfinite().all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.rand(8, 8), 0.1), r"x\[None, None\]"),
        (lambda m: m(torch.rand(1, 1, 8, 8).double(), -1.0), "finite and >= 0"),
        (lambda m: m(torch.rand(1, 1, 8, 8).double(), None), "needs the noise level"),
        (lambda m: m(torch.rand(1, 1, 8, 8).double(), 0.1, chunk=0), "chunk"),
        (lambda m: m.at(torch.rand(1, 1, 8, 8).double(), torch.rand(4), 0.1), "coords must be"),
        (lambda m: m.at_pixels(torch.rand(1, 1, 8, 8).double(), torch.tensor([64]), 0.1), r"0\.\.63"),
        (lambda m: SharedLoFi(window=4), "odd"),
        (lambda m: SharedLoFi(hidden=()), "hidden layer"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(network())


def test_size_s_keeps_its_budget():
    from pnp_lofi.prior_training import SMALL

    m = SharedLoFi(**SMALL)
    assert sum(p.numel() for p in m.parameters() if p.ndim > 1) <= 250_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["shared", "plain", "single", "matching"])
def test_nan_is_not_swallowed(kind, dtype):
    """Packed layers turn NaN into 0; what cannot be computed must be seen."""
    torch.manual_seed(0)
    small = {"rays": 3, "rings": 3, "radius": 2.0, "hidden": (6,), "features": 4, "mixer": (5,)}
    m = network().float() if kind == "shared" else LoFi(**small, head="single" if kind == "single" else "multi")
    if kind == "matching":
        m = NonLocalLoFi(radius=2, alike=(1,), mixing=(3,), **network().config)
    q = image(1, 1, 30, 30).float()
    broken = q.clone()
    broken[0, 0, 15, 15] = float("nan")
    with torch.no_grad():
        assert bool(m(broken, 0.1, compute_dtype=dtype)[..., 13:18, 13:18].isnan().all())
        list(m.parameters())[-1].fill_(float("inf"))
        assert not bool(m(q, 0.1, compute_dtype=dtype).isfinite().any())


def test_scattered_places_are_grouped():
    points = 1000 * image(200, 2)
    groups = near(points, 64)
    assert torch.equal(torch.cat(groups).sort().values, torch.arange(200))
    for group in groups:
        size = points[group].amax(0) - points[group].amin(0) + 1
        assert len(group) == 1 or (len(group) <= 64 and float(size.prod()) <= 1024)
    m, q = network(), image(1, 1, 60, 50)
    coords = image(40, 2, seed=5)
    one_by_one = torch.cat([m.at(q, c[None], 0.1) for c in coords], 1)
    torch.testing.assert_close(m.at(q, coords, 0.1, chunk=16), one_by_one, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(m.at(q, coords, 0.1), one_by_one, rtol=0, atol=1e-12)


def test_at_takes_a_compute_dtype_and_other_dtypes():
    m, q, coords = network().float(), image(1, 1, 20, 20).float() + 50, image(9, 2)
    full = m.at(q, coords, 0.1)
    low = m.at(q, coords, 0.1, compute_dtype=torch.bfloat16)
    assert low.dtype == torch.float32 and float((low - full).detach().abs().max()) < 0.02
    torch.testing.assert_close(m.at(q.double(), coords, 0.1).float(), full, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("q", "sigma", "message"),
    [
        (torch.rand(1, 1, 8, 30), torch.tensor(0.1), "nothing is inside 8 x 30"),
        (torch.rand(2, 1, 30, 30), torch.tensor([0.1, 0.2]), r"\(2, 1, 1, 1\) or a map"),
    ],
)
def test_interior_refuses(q, sigma, message):
    with pytest.raises(ValueError, match=message):
        network().float().interior(q, sigma)


def test_places_must_be_finite():
    with pytest.raises(ValueError, match="finite"):
        network().at(image(1, 1, 9, 9), torch.tensor([[0.5, float("nan")]]), 0.1)


def test_no_images_no_answer():
    m = network()
    assert m(image(0, 1, 9, 9), 0.1).shape == (0, 1, 9, 9)
    assert m.at(image(1, 1, 9, 9), torch.rand(0, 2), 0.1).shape == (1, 0, 1)
