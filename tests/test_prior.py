"""LoFiPrior: a denoiser in deepinv's sense, and what the shipped ones are worth on images of our own."""

import deepinv
import pytest
import skimage.data
import torch

from benchmarks.priors import checkpoints
from pnp_lofi import LoFi, LoFiPrior, save_checkpoint
from pnp_lofi.baselines import Baseline
from pnp_lofi.leaves import colour_leaves, dead_leaves
from pnp_lofi.metrics import psnr
from pnp_lofi.sampling import grid_coords
from pnp_lofi.shared import SharedLoFi
from pnp_lofi.skies import radio_sky
from pnp_lofi.sources import KINDS

PRIORS, SLOW = list(checkpoints(None, None)), pytest.mark.slow


def noisy(x, sigma, seed=0):
    return x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def leaves(prior, count, size, seed):
    """Images of as many channels as a prior takes."""
    return (colour_leaves if prior.model.in_channels == 3 else dead_leaves)(count, size, seed=seed)


def test_rgb_runs_per_channel_with_one_level_or_several(tiny):
    prior, x = LoFiPrior(tiny), torch.rand(2, 3, 9, 9)
    sigma = torch.tensor([0.1, 0.3])
    apart = torch.stack([torch.cat([prior(x[b : b + 1, c : c + 1], float(sigma[b])) for c in range(3)], 1)[0]
                         for b in range(2)])  # fmt: skip
    torch.testing.assert_close(prior(x, sigma), apart)
    torch.testing.assert_close(prior(x, sigma[:, None, None, None].expand(2, 1, 9, 9)), apart)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(13, 17), (1, 7), (2, 3), (5, 1)])
def test_levels_in_every_form(tiny, channels, size):
    """What deepinv's denoisers take, at any size: each item as if it were alone with its number."""
    prior, x = LoFiPrior(tiny), torch.rand(2, channels, *size)
    apart = torch.cat([prior(x[:1], 0.1), prior(x[1:], 0.3)])
    two = torch.tensor([0.1, 0.3])
    item = two.view(2, 1, 1, 1)
    for sigma in (two, two.double(), [0.1, 0.3], (0.1, 0.3), two.numpy(), item, item.expand(2, 1, *size),
                  item.expand(2, channels, *size)):  # fmt: skip
        torch.testing.assert_close(prior(x, sigma), apart)
    for sigma in (torch.tensor(0.2), torch.tensor([0.2]), torch.tensor([[0.2]]), [0.2], torch.full((1, 1, *size), 0.2)):
        torch.testing.assert_close(prior(x, sigma), prior(x, 0.2))


@pytest.mark.parametrize("channels", [1, 3])
def test_levels_of_a_wrong_shape(tiny, channels):
    x = torch.rand(2, channels, 9, 9)
    for sigma in (torch.full((2, 1), 0.1), torch.full((4,), 0.1), torch.full((2, 1, 8, 9), 0.1)):
        with pytest.raises(ValueError, match=r"sigma must be a number, .* got shape"):
            LoFiPrior(tiny)(x, sigma)


def test_wrong_channel_count():
    prior = LoFiPrior(LoFi(2, rays=2, rings=2, hidden=(4,), features=2, mixer=(4,)))
    with pytest.raises(ValueError, match="trained on 2 channels"):
        prior(torch.rand(1, 3, 8, 8), 0.1)


def test_level_at_construction_and_missing(tiny):
    x = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(LoFiPrior(tiny, sigma=0.2)(x), LoFiPrior(tiny)(x, 0.2))
    with pytest.raises(ValueError, match="needs the noise level"):
        LoFiPrior(tiny)(x)


@pytest.mark.parametrize("wrong", [{"sigma": float("nan")}, {"sigma": -1.0}, {"scale": 0.0}, {"precision": "half"}])
def test_arguments_are_checked(tiny, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LoFiPrior(tiny, **wrong)


def test_plain_network_is_scaled():
    torch.manual_seed(0)
    plain = LoFi(rays=2, rings=2, radius=1.5, hidden=(4,), features=2, mixer=(4,), equivariant=False)
    x = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(LoFiPrior(plain, scale=50.0)(50 * x, 0.1), 50 * plain(x))
    peak = float(x.max())
    torch.testing.assert_close(LoFiPrior(plain)(x, 0.1), peak * plain(x / peak))


def test_networks_of_other_recipes_are_refused(tiny, tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", tiny, recipe="ldct")
    save_checkpoint(tmp_path / "b.safetensors", Baseline("DnCNN"), recipe="denoise")
    for name, kind in (("a", "LoFi of the recipe 'ldct'"), ("b", "Baseline of the recipe 'denoise'")):
        with pytest.raises(ValueError, match=f"is not a denoiser that LoFiPrior could use but a {kind}"):
            LoFiPrior(tmp_path / f"{name}.safetensors")


def test_nonneg_dtype_and_checkpoint(tiny, tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", tiny)
    prior = LoFiPrior(tmp_path / "a.safetensors", nonneg=True)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(prior(x, 0.1).min()) == 0
    assert prior.double()(x.double(), 0.1).dtype == torch.float64


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=SLOW)])
def test_shipped_priors_vanish_with_the_noise(name, precision):
    """By construction, also far below the levels of their training: no pixel changes by more than 8 sigma."""
    prior = LoFiPrior(name, precision=precision)
    x = leaves(prior, 2, 32, 99)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for sigma in (1e-2, 1e-4, 1e-8):
                change = (prior(x.double(), sigma) - x).abs().max()
                assert float(change.detach()) <= 8 * sigma * (1.0001 if precision == "float32" else 1.01)
            assert torch.equal(prior(x, 0), x)
            assert torch.equal(prior(x, torch.tensor([0.1, 0.0]))[1], x[1])


@pytest.mark.parametrize("name", PRIORS)
def test_the_limit_of_eight_sigma_is_never_met_where_a_prior_was_trained(name):
    prior = LoFiPrior(name)
    x = leaves(prior, 1, 96, 98)
    for sigma in (1e-4, 2e-3, 2e-2, 0.5):
        y = noisy(x, sigma)
        with torch.no_grad():
            torch.testing.assert_close(prior(y, sigma), prior.model(y, sigma), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["natural", "radio"])
def test_the_limit_holds_on_another_grid_and_for_maps(name):
    m, x = LoFiPrior(name).model, torch.rand(1, 1, 12, 10, generator=torch.Generator().manual_seed(0))
    level = torch.full((1, 1, 12, 10), 0.05)
    level[..., 5:] = 1e-7
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            change = (m(x, level, most=0.5) - x).abs() / level
            assert float(change[..., :5].max()) <= 0.5001 and float(change[..., 5:].max()) < 1.5  # rounding of x
            finer, moved = m(x, 0.05, shape=(9, 17), most=1e-9), m(x, 0.05, shape=(9, 17))
        kept = m(x, 0.0, shape=(9, 17))
        torch.testing.assert_close(finer, kept, rtol=0, atol=1e-6)
        assert float((moved - kept).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["LoFi", "SharedLoFi", "ccpg"])
def test_no_noise_no_change(tiny, kind):
    """A network at sigma = 0 answers its input, everywhere or where a map says so, in each way in."""
    torch.manual_seed(0)
    shared = SharedLoFi(window=3, filters=4, features=2, points=3, raw=3, hidden=(5,))
    m = {"LoFi": tiny, "SharedLoFi": shared, "ccpg": LoFi(rays=2, rings=3, radius=2.0, hidden=(4,), features=3,
                                                          mixer=(5,), ccpg=1)}[kind].eval()  # fmt: skip
    x = torch.rand(2, 1, 11, 9, requires_grad=True)
    assert torch.equal(m(x, 0.0), x)
    torch.testing.assert_close(m.at(x, grid_coords((11, 9), dtype=torch.float64), 0.0)[..., 0], x.flatten(2)[:, 0])
    level = torch.full((2, 1, 11, 9), 0.1)
    level[..., 3:6, 2:7] = 0
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            out, scaled = m(x, level), m(7 * x, 7 * level)
        assert torch.equal(out[..., 3:6, 2:7], x[..., 3:6, 2:7]) and bool(out.isfinite().all())
        assert bool((out != x)[level > 0].all())
        torch.testing.assert_close(scaled, 7 * out, rtol=1e-4, atol=1e-5)
    m(x, level).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in (x, *m.parameters()) if p.grad is not None)
    for wrong in (-0.1, float("nan"), float("inf"), torch.tensor([0.1, -1e-9])):
        with pytest.raises(ValueError, match="finite and >= 0"):
            m(x, wrong)


def test_natural_beats_deepinvs_tv_by_a_decibel():
    x = dead_leaves(4, 128, seed=20_001)
    y = noisy(x, 0.1)
    tv = max(psnr(deepinv.models.TVDenoiser(n_it_max=200)(y, t), x, 1.0) for t in (0.05, 0.08, 0.12, 0.18))
    with torch.no_grad():
        assert psnr(LoFiPrior("natural")(y, 0.1), x, 1.0) > tv + 1


def test_radio_prior_serves_two_decades_of_noise():
    x = radio_sky(4, 128, seed=20_002)
    for sigma in (1e-3, 1e-2, 1e-1):
        with torch.no_grad():
            gain = psnr(LoFiPrior("radio")(noisy(x, sigma), sigma), x, 1.0) - psnr(noisy(x, sigma), x, 1.0)
        assert gain > 6


@pytest.mark.parametrize(("name", "sigma"), [("natural-rgb", 0.1), ("radio", 0.01), ("ct", 0.02), ("kappa", 0.1)])
def test_a_prior_is_worth_more_than_natural_on_images_of_its_kind(name, sigma):
    x = KINDS[name].images(2, 128, 20_004)
    y = noisy(x, sigma)
    with torch.no_grad():
        assert psnr(LoFiPrior(name)(y, sigma), x, 1.0) > psnr(LoFiPrior("natural")(y, sigma), x, 1.0) + 0.05


@pytest.mark.parametrize("kind", [kind if kind == "natural" else pytest.param(kind, marks=SLOW) for kind in KINDS])
def test_the_large_size_is_worth_more_where_things_are_seen_again_and_not_less_elsewhere(kind):
    large, small = LoFiPrior(f"{kind}-l"), LoFiPrior(kind)
    camera = torch.from_numpy(skimage.data.camera()[160:352, 160:352].copy())[None, None] / 255
    own = KINDS[kind].images(8, 128, 20_005)
    for x, more in ((camera.expand(-1, own.shape[1], -1, -1), 0.02), (own, -0.02)):
        y = noisy(x, 0.1)
        with torch.no_grad():
            assert psnr(large(y, 0.1), x, 1.0) > psnr(small(y, 0.1), x, 1.0) + more


def test_auto_precision_costs_less_than_a_hundredth_of_a_decibel():
    x = dead_leaves(2, 128, seed=20_003)
    for sigma in (0.02, 0.1):
        y = noisy(x, sigma)
        with torch.no_grad():
            full, auto = LoFiPrior("natural")(y, sigma), LoFiPrior("natural", precision="auto")(y, sigma)
        assert abs(psnr(full, x, 1.0) - psnr(auto, x, 1.0)) < 0.01
    y = noisy(x, 1e-3)
    torch.testing.assert_close(LoFiPrior("natural", precision="auto")(y, 1e-3), LoFiPrior("natural")(y, 1e-3))
