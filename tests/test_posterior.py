"""Samplers against closed-form posteriors, deepinv's iterators, and in their manners."""

import json
import math
import shlex
import sys
import warnings

import deepinv.sampling.sampling_iterators as iterators
import numpy as np
import pytest
import torch
from astropy.io import fits
from deepinv.models import Denoiser
from deepinv.optim import L2, ScorePrior
from PIL import Image
from torch import Tensor

import pnp_lofi.__main__ as cli
from pnp_lofi import LoFiPrior, save_checkpoint
from pnp_lofi.langevin import skrock_limit, skrock_step, stages_for, ula_step
from pnp_lofi.observation import write_observation
from pnp_lofi.operators import NUFFT, Blur, Mask, NormalEquations, Stacked, random_mask
from pnp_lofi.posterior import Posterior
from pnp_lofi.radio_simulation import simulate
from pnp_lofi.uncertainty import Blocks, Uncertainty

pytestmark = pytest.mark.filterwarnings("ignore:the error bars rest on")
SIGMA_N, SIGMA_D, SPREAD = 0.3, 0.4, 0.8


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def uv(count: int = 30) -> Tensor:
    return math.pi * (2 * torch.rand(2, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1)


class Wiener(Denoiser):
    """The exact denoiser of white Gaussian images of standard deviation ``spread`` about ``centre``."""

    def __init__(self, spread: float = SPREAD, centre: float = 0.5):
        super().__init__()
        self.spread, self.centre = spread, centre

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: object) -> Tensor:
        sigma = sigma.reshape(-1, 1, 1, 1) if isinstance(sigma, Tensor) else sigma
        return self.centre + (x - self.centre) * self.spread**2 / (self.spread**2 + sigma**2)


def operators() -> dict[str, Mask | NUFFT]:
    return {"mask": Mask(random_mask((6, 6), 0.5), sigma=SIGMA_N), "nufft": NUFFT((6, 6), uv(), sigma=SIGMA_N)}


def dense(op: Mask | NUFFT) -> Tensor:
    """A as real rows, (M, 36)."""
    columns = [op.A(e.reshape(1, 1, 6, 6)).flatten() for e in torch.eye(36, dtype=torch.float64)]
    A = torch.stack(columns, 1)
    return torch.cat([A.real, A.imag]) if A.is_complex() else A


def joint(op: Mask | NUFFT, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (2, 6, 6), of z and x given y, of their joint Gaussian: x ~ N(c, s^2),
    z ~ N(x, sigma_d^2), y ~ N(A z, sigma_n^2)."""
    A, one = dense(op), torch.eye(36, dtype=torch.float64)
    data = torch.cat([y.real.flatten(), y.imag.flatten()]) if y.is_complex() else y.flatten()
    link = one / SIGMA_D**2
    precision = torch.cat([
        torch.cat([A.T @ A / SIGMA_N**2 + link, -link], 1), torch.cat([-link, link + one / SPREAD**2], 1)
    ])  # fmt: skip
    right = torch.cat([A.T @ data / SIGMA_N**2, torch.full((36,), 0.5, dtype=torch.float64) / SPREAD**2])
    covariance = torch.linalg.inv(precision)
    return (covariance @ right).reshape(2, 6, 6), covariance.diagonal().sqrt().reshape(2, 6, 6)


# ---- the steps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [1, 2, 7])
def test_steps_equal_deepinvs(stages):
    op, sigma_d, step = operators()["nufft"], 0.3, 0.004
    y, x = op.A(rand(1, 1, 6, 6)), rand(1, 1, 6, 6, seed=1)

    def gradient(u: Tensor) -> Tensor:
        return (op.A_adjoint_A(u) - op.A_adjoint(y)) / SIGMA_N**2 + (u - Wiener()(u, sigma_d)) / sigma_d**2

    parameters = {"step_size": step, "alpha": 1.0, "sigma": sigma_d, "inner_iter": stages, "eta": 0.05}
    kind = iterators.ULAIterator if stages == 1 else iterators.SKRockIterator
    torch.manual_seed(3)
    expected = kind(parameters)({"x": x}, y, op, L2(sigma=SIGMA_N), ScorePrior(Wiener()), 0)["x"]
    torch.manual_seed(3)
    noise = torch.randn_like(x)
    found = ula_step(x, gradient, step, noise) if stages == 1 else skrock_step(x, gradient, step, noise, stages)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stages", [2, 5, 12])
def test_stability_ends_at_the_limit(stages):
    for part, stable in ((0.999, True), (1.02, False)):
        x, quiet = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        for _ in range(400):
            x = skrock_step(x, lambda u: 7 * u, part * skrock_limit(stages) / 7, quiet, stages)
        assert (abs(float(x)) < 1) == stable
    published = (stages - 0.5) ** 2 * (2 - 4 / 3 * 0.05) - 1.5  # Pereyra et al. 2020, an approximation from below
    assert published < skrock_limit(stages) < 1.2 * published + 6
    assert stages_for(0.5 * skrock_limit(stages) * 0.99) == stages


# ---- closed forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mask", "nufft"])
@pytest.mark.parametrize("sampler", ["skrock", "ula"])
@pytest.mark.parametrize("blurred", [True, False])
def test_closed_form(kind, sampler, blurred):
    """40 chains of one problem. Of z, stiff modes lose some variance by SK-ROCK's steps and gain some by ULA's."""
    op, chains = operators()[kind], 40
    y = op.A(rand(1, 1, 6, 6, seed=4))
    mean, std = (part[0 if blurred else 1] for part in joint(op, y))
    sampler = Posterior(op, Wiener(), sampler=sampler, sigma_d=SIGMA_D, samples=150, burn_in=100, blurred=blurred)
    found = sampler.sample(y.expand(chains, *y.shape[1:]), x0=torch.zeros(chains, 1, 6, 6, dtype=torch.float64))
    error = found.mean.std(0)[0] / chains**0.5
    assert float(((found.mean.mean(0)[0] - mean) / error).abs().max()) < 4  # of 36 pixels
    assert float(error.mean() / std.mean()) < 0.05
    ratio = pooled(found) / std
    assert float((ratio - 1).abs().max()) < (0.12 if blurred else 0.06)
    assert float((ratio - 1).mean().abs()) < (0.05 if blurred else 0.02)


def pooled(found: Uncertainty) -> Tensor:
    """Standard deviation of all draws of all chains: within them, and of their means."""
    return (found.std.square().mean(0) + found.mean.var(0))[0].sqrt()


def test_smaller_levels_blur_less():
    """sigma_d is the bias: with it the posterior of x goes to the true one."""
    op = operators()["nufft"]
    y = op.A(rand(1, 1, 6, 6, seed=4))
    A = dense(op)
    exact = torch.linalg.inv(A.T @ A / SIGMA_N**2 + torch.eye(36, dtype=torch.float64) / SPREAD**2).diagonal().sqrt()
    off = []
    for sigma_d in (0.8, 0.4, 0.2):
        sampler = Posterior(op, Wiener(), sigma_d=sigma_d, samples=100, burn_in=150, progress=False)
        found = sampler.sample(y.expand(40, 1, -1), x0=torch.zeros(40, 1, 6, 6, dtype=torch.float64))
        off.append(float(pooled(found).flatten().div(exact).mean()) - 1)
    assert off[0] > off[1] > off[2] > -0.03
    assert abs(off[2]) < 0.05 < off[0]


def test_nine_in_ten_pixels_lie_within():
    """Images that the prior is exact for: the intervals cover, a little more because of sigma_d."""
    op, count = operators()["nufft"], 40
    x = 0.5 + SPREAD * rand(count, 1, 6, 6, seed=7)
    noise = torch.complex(*(SIGMA_N * rand(count, 1, 30, seed=seed) for seed in (8, 9)))
    sampler = Posterior(op, Wiener(), sigma_d=0.3, samples=500, burn_in=60, progress=False)
    found = sampler.sample(op.A(x) + noise, x0=torch.full_like(x, 0.5))
    for level in (0.5, 0.9):
        low, high = found.interval(level)
        inside = float(((low <= x) & (x <= high)).double().mean())
        assert level - 0.02 < inside < level + 0.05


def test_levels_of_each_item():
    """A batch of two noise levels: each item as alone with its own."""
    op = Mask(torch.ones(6, 6))
    y = rand(2, 1, 6, 6)
    levels = torch.tensor([0.1, 0.4], dtype=torch.float64)
    x0 = torch.zeros(2, 1, 6, 6, dtype=torch.float64)
    both = few(op, sigma_n=levels, sigma_d=levels).sample(y, x0=x0, seed=[3, 4])
    for k in range(2):
        one = few(op, sigma_n=float(levels[k]), sigma_d=float(levels[k]))
        alone = one.sample(y[k : k + 1], x0=x0[:1], seed=3 + k)
        torch.testing.assert_close(both.mean[k], alone.mean[0])
        torch.testing.assert_close(both.std[k], alone.std[0])
    assert both.metrics["sigma_n"] == pytest.approx([0.1, 0.4])


# ---- diagnostics -----------------------------------------------------------------------------------------


def test_moments_are_those_of_all_draws():
    draws = rand(50, 2, 1, 4, 5) + 100
    blocks = Blocks(draws[0], 50)
    for x in draws:
        blocks.add(x)
    found = blocks.result(0.0, None, (None, None), {})
    torch.testing.assert_close(found.mean, draws.mean(0))
    torch.testing.assert_close(found.std, draws.std(0))
    assert min(blocks.sizes) >= 3 and sum(blocks.sizes) == 50


@pytest.mark.parametrize("memory", [0.0, 0.6, 0.9])
def test_independent_draws_of_an_autoregression(memory):
    """x' = a x + sqrt(1 - a^2) n: ess = N (1 - a) / (1 + a)."""
    count, noise = 2000, rand(2000, 1, 1, 16, 16)
    x, blocks = noise[0], Blocks(noise[0], count)
    for n in noise:
        x = memory * x + (1 - memory**2) ** 0.5 * n
        blocks.add(x)
    found = blocks.result(0.0, None, (None, None), {})
    assert float(found.ess) == pytest.approx(count * (1 - memory) / (1 + memory), rel=0.15)
    assert 1 <= float(found.rhat) < 1.05 and 1 <= float(found.rhat_std) < 1.05


def test_r_hat_sees_drifts():
    for drift, widening in ((2.0, 1.0), (0.0, 3.0)):
        blocks = Blocks(torch.zeros(1, 1, 8, 8), 100)
        for k, n in enumerate(rand(100, 1, 1, 8, 8, dtype=torch.float32)):
            blocks.add(n * (widening if k >= 50 else 1) + (drift if k >= 50 else 0))
        found = blocks.result(0.0, None, (None, None), {})
        assert (float(found.rhat) > 1.3) == (drift > 0)
        assert (float(found.rhat_std) > 1.1) == (widening > 1)


def test_warns_of_too_few_draws_and_only_then():
    op, y = operators()["mask"], rand(1, 1, 6, 6)
    with pytest.warns(UserWarning, match="the error bars rest on [0-9]+ independent draws"):
        Posterior(op, Wiener(), sigma_d=SIGMA_D, samples=8).sample(y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Posterior(op, Wiener(), sigma_d=SIGMA_D, samples=1200).sample(y)


# ---- manners ---------------------------------------------------------------------------------------------


def few(op: object, prior: Denoiser | None = None, **given: object) -> Posterior:
    return Posterior(op, prior or Wiener(), **{"sigma_d": SIGMA_D, "samples": 8, "progress": False} | given)


def test_seeds():
    op, y = operators()["nufft"], operators()["nufft"].A(rand(3, 1, 6, 6))
    before = torch.get_rng_state()
    a, b, c = (few(op).sample(y, x0=torch.zeros(3, 1, 6, 6), seed=s) for s in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.mean, b.mean) and torch.equal(a.std, b.std)
    assert not torch.equal(a.mean, c.mean)
    for k in range(3):
        alone = few(op).sample(y[k : k + 1], x0=torch.zeros(1, 1, 6, 6), seed=5 + k)
        torch.testing.assert_close(alone.mean[0], a.mean[k])
        torch.testing.assert_close(alone.std[0], a.std[k])
    listed = few(op).sample(y, x0=torch.zeros(3, 1, 6, 6), seed=[5, 6, 7])
    torch.testing.assert_close(listed.mean, a.mean)
    with pytest.raises(ValueError, match="a list of 3, one for each image, got 2"):
        few(op).sample(y, seed=[1, 2])


def test_streamed_equals_whole():
    coordinates, x = uv(80), rand(1, 1, 6, 6)
    whole = NUFFT((6, 6), coordinates, sigma=SIGMA_N)
    y = whole.A(x)
    streamed, b = NormalEquations.from_chunks((6, 6), [(coordinates, y[0, 0])]).measurement(sigma=SIGMA_N)
    expected, found = few(whole).sample(y), few(streamed).sample(b.double())
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.std, expected.std, rtol=1e-4, atol=1e-4)


def test_lofi_and_its_defaults(tiny):
    """Nothing given: sigma_n and the start from ADMM; the result is the mean, within the bounds."""
    with torch.no_grad():
        for weight in tiny.parameters():
            weight.mul_(0.5)
    op = Mask(random_mask((16, 20), 0.6))
    y = op.A(0.5 + 0.05 * rand(1, 1, 16, 20, dtype=torch.float32))
    sampler = Posterior(op, LoFiPrior(tiny), samples=8, nonneg=True, keep=3, progress=False)
    found = sampler.sample(y)
    assert found.metrics["sigma_n"] == pytest.approx(0.05, rel=0.2)
    assert found.samples.shape == (3, 1, 1, 16, 20) and float(found.samples.min()) >= 0
    torch.testing.assert_close(sampler(y), found.mean)
    low, high = found.interval(0.999999)
    assert float(low.min()) >= 0 and bool((high > low).all())
    assert bool((found.quantile(0.5) >= 0).all())
    with pytest.raises(ValueError, match="no draws were kept"):
        few(op, sigma_n=0.1).sample(y).quantile(0.5)


def test_intervals():
    found = few(operators()["mask"]).sample(rand(1, 1, 6, 6))
    low, high = found.interval(0.9)
    torch.testing.assert_close((high - low) / 2, 1.6448536 * found.std, rtol=1e-5, atol=0)
    low, high = found.interval(factor=2.0, centre=torch.zeros_like(found.mean))
    torch.testing.assert_close(high, 2 * found.std)
    torch.testing.assert_close(low, -high)
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        found.interval(90)


def test_stacked_operators():
    parts = Mask(random_mask((6, 6), 0.5)), Blur((6, 6), torch.full((3, 3), 1 / 9))
    op, x = Stacked(*parts), rand(1, 1, 6, 6)
    found = few(op, sigma_n=0.1).sample(op.A(x))
    assert found.mean.shape == x.shape and bool(torch.isfinite(found.std).all())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sampler": "hmc"}, '"skrock" or "ula"'),
        ({"sigma_n": -1.0}, "sigma_n must be finite and >= 0"),
        ({"sigma_d": 0.0}, "sigma_d must be finite and > 0"),
        ({"samples": 3}, "samples must be at least 8, got 3"),
        ({"burn_in": -1}, "burn_in must be >= 0"),
        ({"keep": 9}, "keep must lie between 0 and samples = 8"),
        ({"box": (1.0, 0.0)}, "low < high"),
    ],
)
def test_bad_parameters(given, message):
    with pytest.raises(ValueError, match=message):
        few(operators()["mask"], **given)


def test_bad_input():
    op, y = operators()["mask"], rand(1, 1, 6, 6)
    with pytest.raises(TypeError, match="got the name 'radio'"):
        Posterior(op, "radio")
    with pytest.raises(ValueError, match="y holds NaN or inf"):
        few(op).sample(y * math.nan)
    with pytest.raises(TypeError, match=r"use torch.from_numpy\(y\)"):
        few(op).sample(y.numpy())
    with pytest.raises(ValueError, match=r"expects y of shape \(batch, channel, 6, 6\), got \(1, 1, 6, 5\)"):
        few(op).sample(y[..., :5])
    with pytest.raises(ValueError, match=r"x0 must have shape \(1, 1, 6, 6\), got \(1, 1, 5, 6\)"):
        few(op).sample(y, x0=y[:, :, :5])
    with pytest.raises(ValueError, match="x0 holds NaN or inf"):
        few(op).sample(y, x0=y * math.nan)
    with pytest.raises(ValueError, match="data without noise have no posterior"):
        few(op, sigma_n=0.0).sample(y)
    complex_images = NUFFT((6, 6), uv(), sigma=0.1, real=False)
    with pytest.raises(TypeError, match=r"Posterior is for real images.*real=True"):
        few(complex_images).sample(complex_images.A(rand(1, 1, 6, 6).to(torch.complex128)))


def test_a_chain_that_runs_away_is_an_error():
    class Wild(Denoiser):
        def forward(self, x: Tensor, sigma: float, **kwargs: object) -> Tensor:
            return -50 * x

    op, y = operators()["mask"], rand(1, 1, 6, 6)
    with pytest.raises(FloatingPointError, match=r"the chain ran away after .* A larger sigma_d is steadier"):
        few(op, Wild(), samples=400).sample(y, x0=y)


# ---- the command line ------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, tiny):
    """Run a command line in tmp_path, where prior.safetensors and obs.h5 are; exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    with torch.no_grad():
        for weight in tiny.parameters():
            weight.mul_(0.5)
    save_checkpoint("prior.safetensors", tiny, trained_on="nothing", sigma_range=[0.01, 0.3])
    sky = np.zeros((32, 32), np.float32)
    sky[10:14, 20:23] = 1.0
    write_observation("obs.h5", simulate(sky, hours=0.1, snr=20.0, declination=-45.0))

    def call(line: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["pnp-lofi", *shlex.split(line)])
        capsys.readouterr()
        code: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


def test_error_bars_of_the_command_line(run, tmp_path):
    line = "solve radio obs.h5 --prior prior.safetensors --iterations 4 --error-bars 8 -o rec.fits"
    code, _, err = run(line)
    assert code == 0, err
    assert "error bars:" not in err  # bars are for terminals
    assert {"rec.fits", "rec.json", "rec.png", "rec_std.fits"} < {p.name for p in tmp_path.glob("rec*")}
    header, std = fits.getheader("rec_std.fits"), fits.getdata("rec_std.fits")[0, 0]
    assert header["BUNIT"] == "Jy/pixel" and header["CRPIX1"] == 17
    assert std.shape == (32, 32) and np.isfinite(std).all() and std.min() >= 0 and std.max() > 0
    report = json.loads((tmp_path / "rec.json").read_text())
    assert report["error_bar_draws"] == 8 and report["error_bar_seconds"] > 0
    assert 1 <= report["error_bar_independent_draws"] <= 8 and report["error_bar_rhat"] >= 1
    assert report["error_bar_median"] == pytest.approx(float(np.sort(std.flatten())[511]), rel=1e-5)
    with Image.open("rec.png") as picture:
        width = picture.width
    assert width == int(5 * 3.6 * 110)  # dirty, reconstruction, residual, error bars, truth


def test_mistakes_of_the_command_line(run, tmp_path):
    (tmp_path / "rec_std.fits").write_text("mine")
    line = "solve radio obs.h5 --prior prior.safetensors -o rec.fits --error-bars"
    for count, message in ((3, "error bars need at least 8 draws, got 3"), (8, "rec_std.fits exists")):
        code, _, err = run(f"{line} {count}")
        assert code == 2 and message in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "rec.fits").exists()
