"""KaiserSquires: shears of known lenses, the Wiener filter against dense algebra, reduced shear."""

import math

import pytest
import torch
from shear_fields import pearson, pixels, red, relative, tangential
from torch import Tensor

from pnp_lofi import ADMM
from pnp_lofi.lensing import (
    invert_reduced,
    reduced_shear,
)
from pnp_lofi.lensing_power import (
    draw_field,
    fourier_filter,
    frequency,
)
from pnp_lofi.operators import KaiserSquires, random_mask
from pnp_lofi.operators.base import ConvergenceWarning

# ---- the physics -------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "q"), [(0, 3), (2, 0), (3, 4), (-2, 5), (7, 7)])
def test_shear_of_a_plane_wave(p: int, q: int) -> None:
    H, W = 24, 35
    k2, k1 = 2 * math.pi * p / H, 2 * math.pi * q / W
    phase = k2 * torch.arange(H, dtype=torch.float64)[:, None] + k1 * torch.arange(W, dtype=torch.float64) + 0.3
    angle = 2 * math.atan2(k2, k1)
    kappa = torch.cos(phase)
    expected = torch.stack([kappa * math.cos(angle), kappa * math.sin(angle)])[None]
    torch.testing.assert_close(KaiserSquires((H, W)).A(kappa[None, None]), expected, atol=1e-12, rtol=0)


def test_shear_of_a_gaussian_lens() -> None:
    """gamma_t = mean kappa inside r - kappa(r), gamma_x = 0; 4e-4 is what the periodic images do."""
    n, s = 256, 6.0
    row, column = pixels(n)
    r2 = row**2 + column**2
    kappa = torch.exp(-r2 / (2 * s**2))
    inside = 2 * s**2 / r2.clamp_min(1e-9) * (1 - kappa)
    gt, gx = tangential(KaiserSquires((n, n)).A(kappa[None, None]))
    ring = (r2 > 4) & (r2 < 40**2)
    assert float((gt - (inside - kappa))[ring].abs().max()) < 1e-3 and float(gx[ring].abs().max()) < 1e-3
    assert float(gt[ring].max()) > 0.2


def test_shear_of_an_isothermal_sphere() -> None:
    """kappa = theta_E / (2 sqrt(r^2 + a^2)), of which sqrt(r^2 + a^2) - a over r^2 is the mean inside r."""
    n, core = 384, 2.0
    row, column = pixels(n)
    r = torch.hypot(row, column)
    soft = torch.hypot(r, torch.tensor(core))
    kappa = 0.5 / soft
    gt, gx = tangential(KaiserSquires((n, n)).A(kappa[None, None]))
    for radius in (10, 20, 30):
        ring = (r > radius - 1) & (r < radius + 1)
        expected = float(((soft - core) / r**2 - kappa)[ring].mean())
        assert float(gt[ring].mean()) == pytest.approx(expected, rel=0.02) and abs(float(gx[ring].mean())) < 1e-6


@pytest.mark.parametrize("shape", [(16, 16), (15, 22)])
def test_kaiser_squires_undoes_the_shear_but_for_the_mean(shape: tuple[int, int]) -> None:
    op, x = KaiserSquires(shape), torch.randn(2, 1, *shape, dtype=torch.float64) + 3
    without = x - x.mean((-2, -1), keepdim=True)
    for found in (op.ks(op.A(x)), op.A_dagger(op.A(x))):
        torch.testing.assert_close(found, without)
    assert float(op.A(torch.full_like(x, 5.0)).abs().max()) < 1e-12
    e, b = op.eb(op.A(x)[:, [1, 0]] * torch.tensor([-1.0, 1.0])[:, None, None])  # turned by 45 degrees: E becomes B
    odd = [n - n % 2 for n in shape]  # the Nyquist frequencies of a real map have no partner to turn into
    keep = (frequency(shape) > 0).double()
    keep[odd[0] // 2 if shape[0] % 2 == 0 else slice(0, 0)] = 0
    keep[:, odd[1] // 2 if shape[1] % 2 == 0 else slice(0, 0)] = 0
    assert float(fourier_filter(e, keep).abs().max()) < 1e-12
    torch.testing.assert_close(fourier_filter(b, keep), fourier_filter(without, keep))


def test_a_constant_map_of_noise_is_a_number() -> None:
    mask, x = random_mask((6, 7), 0.6), torch.rand(1, 1, 6, 7)
    for where in (None, mask):
        number, constant = KaiserSquires((6, 7), where, 0.3), KaiserSquires((6, 7), where, torch.full((2, 6, 7), 0.3))
        assert number.sigma == pytest.approx(constant.sigma) and number.closed_form == constant.closed_form
        torch.testing.assert_close(number.A(x), constant.A(x))
    assert KaiserSquires((6, 7), torch.ones(6, 7), 0.3).closed_form


def test_noise_map_is_the_noise_of_the_shear() -> None:
    mask = random_mask((6, 7), 0.7)
    sigma = torch.where(mask, 0.1 + torch.rand(2, 6, 7), math.nan)
    op = KaiserSquires((6, 7), mask, sigma)
    torch.manual_seed(0)
    y = op(torch.zeros(4000, 1, 6, 7))
    assert float(y[:, :, mask].std()) == pytest.approx(op.sigma, rel=0.01)
    torch.testing.assert_close(op.shear(y).std(0)[:, mask], sigma[:, mask], rtol=0.08, atol=0)
    torch.testing.assert_close(op.whiten(op.shear(y)), y)
    shear = op.shear(y[:1])
    torch.testing.assert_close(op.whiten(torch.where(mask, shear, math.nan)), op.whiten(shear))
    torch.testing.assert_close(op.ks(torch.where(mask, y, math.nan)), op.ks(y))
    assert float(op.weights[mask.expand(2, -1, -1)].mean()) == pytest.approx(1)


def test_the_box_holds_the_mass_around_the_field() -> None:
    row, column = pixels(64)
    kappa = torch.exp(-((row - 10) ** 2 + (column + 4) ** 2) / 18)[None, None]
    whole, op = KaiserSquires((64, 64)), KaiserSquires((40, 48), pad=(12, 8))
    assert op.box == (64, 64)
    y = op.A(kappa)
    torch.testing.assert_close(y, whole.A(kappa)[..., 12:52, 8:56])
    seen = torch.zeros(64, 64)
    seen[12:52, 8:56] = 1
    masked = KaiserSquires((64, 64), seen)
    torch.testing.assert_close(op.A_adjoint(y), masked.A_adjoint(masked.A(kappa)))
    torch.testing.assert_close(op.crop(kappa), kappa[..., 12:52, 8:56])
    assert op.ks(y).shape == kappa.shape


# ---- the Wiener filter -------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["periodic", "masked", "weighted", "padded"])
def test_wiener_is_the_gaussian_posterior_mean(case: str) -> None:
    shape, mask = (6, 7), random_mask((6, 7), 0.6)
    sigma = 0.1 + torch.rand(2, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    op = {
        "periodic": lambda: KaiserSquires(shape, sigma=0.2),
        "masked": lambda: KaiserSquires(shape, mask, 0.2),
        "weighted": lambda: KaiserSquires(shape, mask, sigma),
        "padded": lambda: KaiserSquires(shape, sigma=0.2, pad=2),
    }[case]()
    n, S = op.box[0] * op.box[1], red(op.box, 0.05)
    unit = torch.eye(n, dtype=torch.float64).reshape(n, 1, *op.box)
    A, prior = op.A(unit).flatten(1).T, fourier_filter(unit, S).flatten(1)
    y = op(torch.randn(2, 1, *op.box, dtype=torch.float64))
    gain = prior @ A.T @ torch.linalg.pinv(A @ prior @ A.T + op.sigma**2 * torch.eye(len(A), dtype=torch.float64))
    expected = (y.flatten(1) @ gain.T).reshape(2, 1, *op.box)
    assert relative(op.wiener(y, S, tol=1e-12, max_iter=300), expected) < 1e-9
    assert relative(op.wiener(y.float(), S), expected.float()) < 1e-3
    small = y[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: op.wiener(v, S, tol=1e-13, max_iter=300), small, fast_mode=True)


def test_samples_of_the_posterior() -> None:
    shape = (8, 8)
    mask = torch.ones(shape)
    mask[2:6, 2:5] = 0
    op, S = KaiserSquires(shape, mask, 0.1), red(shape, 0.02)
    torch.manual_seed(0)
    y = op(draw_field(S, seed=1))
    fields = draw_field(S, 4000, seed=2)
    samples = fields + op.wiener(y - op(fields), S)
    unit = torch.eye(64, dtype=torch.float64).reshape(64, 1, 8, 8)
    A, prior = op.A(unit).flatten(1).T, fourier_filter(unit, S).flatten(1)
    gain = prior @ A.T @ torch.linalg.inv(A @ prior @ A.T + 0.01 * torch.eye(128, dtype=torch.float64))
    expected = (prior - gain @ A @ prior).diagonal().sqrt().reshape(8, 8)
    torch.testing.assert_close(samples.std(0)[0], expected, rtol=0.06, atol=0)
    assert relative(samples.mean(0, keepdim=True), op.wiener(y, S)) < 0.05


def test_wiener_with_the_power_of_the_data() -> None:
    shape = (128, 128)
    mask = torch.ones(shape)
    mask[30:50, 20:90] = 0
    op = KaiserSquires(shape, mask, 0.1 + 0.1 * torch.rand(shape, generator=torch.Generator().manual_seed(0)))
    S = red(shape, 5e-3)
    kappa = draw_field(S, seed=4).float()
    torch.manual_seed(1)
    y = op(kappa)
    best, found = pearson(op.wiener(y, S), kappa), pearson(op.wiener(y), kappa)
    assert best > 0.6 and found > best - 0.01
    assert found > pearson(op.ks(y), kappa) + 0.2
    noise = op(torch.zeros_like(kappa))
    assert float(op.wiener(noise).std()) < 0.1 * float(op.wiener(y).std())  # no power is found where there is none


def test_wiener_warns_when_it_stops_early() -> None:
    op = KaiserSquires((16, 16), random_mask((16, 16), 0.5), 0.01)
    with pytest.warns(ConvergenceWarning, match="KaiserSquires: conjugate gradients stopped after 2 of 2 steps"):
        op.wiener(op(torch.rand(1, 1, 16, 16)), red((16, 16)), max_iter=2)


class Soft(torch.nn.Module):
    """A denoiser of a few lines: what is finer than its level allows is smoothed away."""

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        S = red(tuple(x.shape[-2:]), 0.02).to(x)
        return fourier_filter(x, S / (S + sigma**2))


@pytest.mark.parametrize("noise", ["number", "map", "unknown"])
def test_admm_untuned(noise: str) -> None:
    shape = (64, 64)
    mask = random_mask(shape, 0.7)
    kappa = draw_field(red(shape, 0.02), seed=2).float()
    sigma = torch.where(mask, 0.05 + 0.2 * torch.rand(shape, generator=torch.Generator().manual_seed(3)), 0)
    op = KaiserSquires(shape, mask, sigma if noise == "map" else 0.15)
    torch.manual_seed(0)
    y = op(kappa)
    asked = KaiserSquires(shape, mask) if noise == "unknown" else op
    solution = ADMM(asked, Soft(), progress=False).solve(y)
    assert solution.metrics["sigma_n"] == pytest.approx(op.sigma, rel=0.1)
    assert pearson(solution.x, kappa) > pearson(op.ks(y), kappa) + 0.1


# ---- reduced shear -----------------------------------------------------------------------------


def test_reduced_shear_round_trip() -> None:
    kappa = 0.4 * torch.exp(-(pixels(64)[0] ** 2 + pixels(64)[1] ** 2) / 50)[None, None]
    op = KaiserSquires((64, 64))
    g = reduced_shear(op.A(kappa), kappa)
    torch.testing.assert_close(g * (1 - kappa), op.A(kappa))
    mean = float(kappa.mean())
    assert relative(op.ks(g) + mean, kappa) > 0.05
    assert relative(invert_reduced(op, g, mean=mean, tol=1e-9, max_iter=60), kappa) < 1e-6
    sheet = invert_reduced(op, g, tol=1e-9, max_iter=60)  # mean 0: another member of the family, of the same g
    scale = (1 - sheet) / (1 - kappa)
    torch.testing.assert_close(scale, scale.mean().expand_as(scale))
    with pytest.warns(ConvergenceWarning, match="last of 2 steps"):
        invert_reduced(op, g, max_iter=2)


def test_reduced_shear_through_the_wiener_filter() -> None:
    row, column = pixels(64)
    kappa = (0.5 * torch.exp(-(row**2 + column**2) / 40))[None, None]
    op = KaiserSquires((48, 48), random_mask((48, 48), 0.9), 0.02, pad=8)
    torch.manual_seed(0)
    y = op(kappa)
    S = red(op.box, 0.02)
    wanted = op.wiener(y, S)
    observed = y / (1 - op.crop(kappa))
    found = invert_reduced(op, observed, lambda v: op.wiener(v, S), tol=1e-4)
    assert relative(found, wanted) < 0.3 * relative(op.wiener(observed, S), wanted)
