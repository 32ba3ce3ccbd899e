"""The auto-encoder, its loss, the flow and the generators made of them, each against an independent reference."""

import builtins

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d
from torch import Tensor, nn

from pnp_lofi.autoencoder import AutoEncoder, laplacian_pyramid, pyramid_loss, reconstruction_loss
from pnp_lofi.checkpoint import write_tensors
from pnp_lofi.flow import LatentFlow, fit_flow
from pnp_lofi.interpolation import Interpolator
from pnp_lofi.operators import Derivatives
from pnp_lofi.priors import ContinuousGenerator, Generator, load_generator, save_generator

WIDTHS = (8, 8, 8, 8, 8, 8)
COORDS = torch.tensor([[0.3, 0.71], [0.52, 0.13], [0.9, 0.4]])


def small(latent: int = 6, channels: int = 1) -> AutoEncoder:
    torch.manual_seed(0)
    return AutoEncoder(64, channels, latent, widths=WIDTHS).eval()


def bent(latent: int, dtype: torch.dtype = torch.float32) -> LatentFlow:
    """A flow that is not the identity, scaled by some latents."""
    torch.manual_seed(1)
    flow = LatentFlow(latent, blocks=3, hidden=(16,))
    for p in flow.parameters():
        nn.init.normal_(p, std=0.3)
    flow.to(dtype).set_scale((torch.randn(50, latent) @ torch.randn(latent, latent) + 3).to(dtype))
    return flow


def made() -> Generator:
    return Generator(small(), bent(6)).eval()


def test_shapes_and_configuration():
    for size, channels in ((64, 1), (128, 3)):
        model = AutoEncoder(size, channels, 10, widths=WIDTHS)
        q = torch.rand(2, channels, size, size)
        assert model.encode(q).shape == (2, 10) and model(q).shape == q.shape
        again = AutoEncoder(**model.config)
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(q), model(q))
    assert AutoEncoder().config["latent"] == 512
    used = {id(p) for p in model.decoder_parameters()}
    model.decode(torch.zeros(1, 10)).sum().backward()
    assert used == {id(p) for p in model.parameters() if p.grad is not None}


def by_hand(x: np.ndarray, levels: int) -> list[np.ndarray]:
    """Burt and Adelson's pyramid by scipy."""

    def blurred(image: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            image = convolve1d(image, np.array([1, 4, 6, 4, 1]) / 16, axis=axis, mode="mirror")
        return image

    found = []
    for _ in range(levels):
        little = blurred(x)[::2, ::2]
        large = np.zeros_like(x)
        large[::2, ::2] = 4 * little
        found.append(x - blurred(large))
        x = little
    return [*found, x]


def test_the_loss_is_that_of_a_pyramid_by_hand():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 37, 48))
    found = laplacian_pyramid(torch.from_numpy(a)[None, None], 3)
    for ours, theirs in zip(found, by_hand(a, 3), strict=True):
        np.testing.assert_allclose(ours[0, 0].numpy(), theirs, atol=1e-12)
    expected = ((a - b) ** 2).mean()
    expected += sum(np.abs(p - q).mean() for p, q in zip(by_hand(a, 3), by_hand(b, 3), strict=True))
    x, truth = (torch.from_numpy(t)[None, None] for t in (a, b))
    assert float(pyramid_loss(x - truth, 3)) == pytest.approx(expected, rel=1e-12)
    assert float(reconstruction_loss(x, truth, levels=3)) == pytest.approx(expected, rel=1e-12)
    layers = [nn.AvgPool2d(2), nn.AvgPool2d(4)]
    with_features = reconstruction_loss(x, truth, levels=3, features=Layers(layers), weight=0.5)
    seen = sum(float((layer(x) - layer(truth)).abs().mean()) for layer in layers)
    assert float(with_features) == pytest.approx(expected + 0.5 * seen, rel=1e-12)


class Layers(nn.Module):
    """What a user's network gives: several tensors."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x) for layer in self.layers]


def test_the_flow_inverts_and_counts_its_volume():
    flow = bent(5, torch.float64)
    w = torch.randn(4, 5, dtype=torch.float64)
    z = flow(w)
    torch.testing.assert_close(flow.inverse(z), w, rtol=1e-9, atol=1e-9)
    assert (z - w).abs().max() > 0.1
    for k in range(len(w)):
        jacobian = torch.autograd.functional.jacobian(lambda one: flow(one[None])[0], w[k])
        normal = torch.distributions.MultivariateNormal(torch.zeros(5).double(), torch.eye(5).double())
        expected = normal.log_prob(z[k]) + torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(flow.log_prob(w)[k], expected)


def test_a_new_flow_whitens():
    w = torch.randn(4000, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64) + 2
    flow = LatentFlow(3, blocks=2, hidden=(8,)).double()
    flow.set_scale(w)
    z = flow(w)
    torch.testing.assert_close(torch.cov(z.T), torch.eye(3).double(), atol=1e-9, rtol=0)
    assert z.mean(0).abs().max() < 1e-9
    known = torch.distributions.MultivariateNormal(w.mean(0), torch.cov(w.T))
    torch.testing.assert_close(flow.log_prob(w[:5]), known.log_prob(w[:5]))


def test_training_raises_the_likelihood_and_resumes_to_the_same_bits(tmp_path):
    torch.manual_seed(0)
    ring = torch.randn(500, 2)
    ring = ring / ring.norm(dim=1, keepdim=True) * (1 + 0.1 * torch.randn(500, 1))

    def start() -> LatentFlow:
        torch.manual_seed(3)
        return LatentFlow(2, blocks=4, hidden=(16, 16))

    options = {"batch": 64, "lr": 1e-2, "progress": False}
    whole = start()
    fit = fit_flow(whole, ring, steps=60, **options)
    assert np.mean(fit.losses[-10:]) < np.mean(fit.losses[:5]) - 0.05
    with torch.no_grad():
        assert fit.held_out == pytest.approx(-float(whole.log_prob(ring[450:]).mean()) / 2, rel=1e-5)
    parts, kept = start(), tmp_path / "flow.run"
    fit_flow_broken_off(parts, ring, kept, options)
    again = start()
    assert fit_flow(again, ring, steps=60, save=kept, resume=True, **options) == fit
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r"another run.*seed"):
        fit_flow(start(), ring, steps=60, save=kept, resume=True, seed=5, **options)


def test_a_flow_that_learns_by_heart_is_not_kept():
    torch.manual_seed(0)
    few = torch.randn(30, 4)
    flow = LatentFlow(4, blocks=4, hidden=(64, 64))
    fit = fit_flow(flow, few, steps=400, lr=1e-2, progress=False)
    with torch.no_grad():
        held = -float(flow.log_prob(few[27:]).mean()) / 4
    assert fit.losses[-1] < fit.losses[0] - 0.5 and fit.step < 400
    assert held == pytest.approx(fit.held_out, rel=1e-5) and held < fit.losses[0] + 1.5


def fit_flow_broken_off(flow: LatentFlow, latents: Tensor, path, options) -> None:
    """Stopped at the 25th step by an error, as kill -9 would, after a saving at each."""
    calls = []
    true = flow.log_prob

    def log_prob(w: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 28:
            raise MemoryError
        return true(w)

    flow.log_prob = log_prob
    with pytest.raises(MemoryError):
        fit_flow(flow, latents, steps=60, save=path, every=0, **options)


def test_samples_follow_from_the_seed():
    g = made()
    x = g.sample(3, seed=4)
    assert x.shape == (3, 1, 64, 64) and torch.equal(x, g.sample(3, seed=4))
    torch.testing.assert_close(g.sample(2, seed=4), x[:2])
    assert not torch.allclose(g.sample(3, seed=5), x)
    assert torch.equal(g.sample(1, 4, temperature=0.0), g(torch.zeros(1, 6)))
    torch.testing.assert_close(g.log_prob(x), g.flow.log_prob(g.autoencoder.encode(x)))
    g, x = g.double(), x.double()
    torch.testing.assert_close(g(g.encode(x)), g.autoencoder(x), atol=1e-4, rtol=0)


def test_a_continuous_generator_is_the_field_of_the_image():
    g, field = made(), Interpolator()
    f, z = ContinuousGenerator(field, g, shape=(96, 80)), torch.randn(2, 6)
    assert torch.equal(f.at(z, COORDS), field.at(g(z), COORDS)) and f.at(z, COORDS).shape == (2, 3, 1)
    assert torch.equal(ContinuousGenerator(field, g)(z), g(z))
    rows, columns = (torch.arange(96) + 0.5) / 96, (torch.arange(80) + 0.5) / 80
    grid = f.at(z, torch.cartesian_prod(rows, columns)).reshape(2, 1, 96, 80)
    torch.testing.assert_close(f(z), grid)
    torch.testing.assert_close(f.image(z, (64, 64)), g(z), atol=1e-5, rtol=0)
    assert {id(p) for p in f.tuned_parameters()} == {id(p) for p in g.autoencoder.decoder_parameters()}


def test_derivatives_by_autograd_are_those_of_the_operator():
    g = made().double()
    f, z = ContinuousGenerator(Interpolator(), g), torch.randn(2, 6, dtype=torch.float64)
    expected = Derivatives((64, 64), COORDS)(g(z))
    torch.testing.assert_close(f.gradient(z, COORDS.double()), expected, rtol=1e-6, atol=1e-6)
    z.requires_grad_(True)
    (slope,) = torch.autograd.grad(f.gradient(z, COORDS.double(), create_graph=True).square().sum(), z)
    (known,) = torch.autograd.grad(Derivatives((64, 64), COORDS)(g(z)).square().sum(), z)
    torch.testing.assert_close(slope, known, rtol=1e-5, atol=1e-5)


def test_any_module_stands_in_for_the_generator():
    stand_in = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8)))
    f = ContinuousGenerator(Interpolator(), stand_in, shape=(16, 16), latent=4)
    assert f(torch.zeros(2, 4)).shape == (2, 1, 16, 16) and len(f.tuned_parameters()) == 2
    with pytest.raises(ValueError, match="pass latent="):
        ContinuousGenerator(Interpolator(), stand_in)


def test_checkpoints(tmp_path):
    g, path, z = made(), tmp_path / "g.safetensors", torch.randn(2, 6)
    save_generator(path, g, trained_on="noise")
    again, header = load_generator(path)
    assert torch.equal(again(z), g(z)) and header["trained_on"] == "noise"
    with pytest.raises(FileNotFoundError, match=r"recipes\.generative train"):
        load_generator(tmp_path / "none.safetensors")
    write_tensors(tmp_path / "other.safetensors", {"a": z}, {"architecture": "LoFi", "format": 1})
    with pytest.raises(ValueError, match="'LoFi', not a Generator"):
        load_generator(tmp_path / "other.safetensors")
    with torch.no_grad():
        g.autoencoder.last.weight[0, 0, 0, 0] = torch.nan
    save_generator(tmp_path / "nan.safetensors", g)
    with pytest.raises(ValueError, match="NaN or inf"):
        load_generator(tmp_path / "nan.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        load_generator(path)


def test_bad_input_is_told():
    for size, widths, latent in ((100, WIDTHS, 4), (64, (8,) * 5, 4), (64, WIDTHS, 0)):
        with pytest.raises(ValueError, match=r"multiple|positive"):
            AutoEncoder(size, 1, latent, widths=widths)
    with pytest.raises(ValueError, match="64 x 64"):
        small().encode(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"\(batch, 6\)"):
        small().decode(torch.zeros(1, 7))
    with pytest.raises(ValueError, match="latents of 6, the flow of 5"):
        Generator(small(), bent(5))
    with pytest.raises(ValueError, match="latent >= 2"):
        LatentFlow(1)
    with pytest.raises(ValueError, match="two or more finite"):
        bent(5).set_scale(torch.full((4, 5), torch.nan))
    with pytest.raises(ValueError, match="n >= 1"):
        made().sample(0, 0)
    with pytest.raises(ValueError, match="1 to 4 levels"):
        laplacian_pyramid(torch.zeros(1, 1, 32, 32), 5)


def test_without_zuko_the_extra_is_named(monkeypatch):
    true = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == "zuko":
            raise ImportError(name)
        return true(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'pnp_lofi\[generative\]'"):
        LatentFlow(4)
