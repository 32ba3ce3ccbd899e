"""ADMM: deepinv's iterates, the closed form, what it tells, and what it starts from."""

import math

import deepinv
import pytest
import torch
from deepinv.optim import L2, PnP
from deepinv.physics.functional import gaussian_blur
from solver_pieces import CG, SHAPE, Shrink, flat, matrix, operator, rand, tamed, uv

from pnp_lofi import ADMM, LoFiPrior
from pnp_lofi.operators import NUFFT, Blur, Fourier, Mask, random_mask
from pnp_lofi.parameters import noise_level


@pytest.mark.parametrize("case", ["mask", "nufft"])
def test_equals_deepinv_over_90_iterations(tiny, case):
    op, prior = operator(case, (16, 20)), tamed(tiny)
    y, alpha = op.A(rand(1, 1, 16, 20).abs()), 0.05 * op.norm
    x = ADMM(op, prior, sigma_n=0.01, sigma_d=0.1, alpha=alpha, max_iter=90, tol=0, **CG)(y)
    reference = deepinv.optim.ADMM(
        data_fidelity=L2(), prior=PnP(prior), stepsize=1 / alpha, g_param=0.1, max_iter=90, early_stop=False,
        custom_init=lambda y, physics: (torch.zeros_like(physics.A_adjoint(y)),) * 2,
    )(y, op)  # fmt: skip
    assert float(x.norm()) > 0.1
    torch.testing.assert_close(x, reference, rtol=0, atol=1e-10 * float(reference.abs().max()))


def test_closed_form_quadratic():
    """min ||A x - y||^2 / (2 sigma_n^2) + weight ||x||^2 / 2, whatever sigma_d: alpha follows it."""
    op, sigma_n, weight = operator("nufft"), 0.3, 2.0
    y, A = op.A(rand(1, 1, *SHAPE)), matrix(op)
    expected = torch.linalg.solve(A.T @ A + sigma_n**2 * weight * torch.eye(42, dtype=torch.float64), A.T @ flat(y))
    for sigma_d in (0.5, 1.0):
        solver = ADMM(op, Shrink(weight), sigma_n=sigma_n, sigma_d=sigma_d, max_iter=2000, tol=1e-13, **CG)
        solution = solver.solve(y)
        assert solution.status == "converged"
        torch.testing.assert_close(solution.x.flatten(), expected, rtol=0, atol=1e-10)


def test_deepinv_physics_and_denoisers_fit(tiny):
    x = rand(2, 1, 12, 12).abs().float()
    blur = deepinv.physics.BlurFFT(
        (1, 12, 12), filter=torch.ones(1, 1, 3, 3) / 9, noise_model=deepinv.physics.GaussianNoise(0.05)
    )
    assert noise_level(blur, x) == pytest.approx(0.05)
    solution = ADMM(blur, deepinv.models.TVDenoiser(n_it_max=20), max_iter=5).solve(blur(x))
    assert solution.metrics["sigma_n"] == pytest.approx(0.05)
    assert bool(solution.x.isfinite().all())
    inpainting = deepinv.physics.Inpainting((1, 12, 12), mask=random_mask((12, 12), 0.5).float())
    ours = ADMM(Mask(random_mask((12, 12), 0.5)), LoFiPrior(tiny), sigma_n=0.1, sigma_d=0.1, max_iter=8, tol=0)
    torch.testing.assert_close(ours(x), ours(x, physics=inpainting), rtol=0, atol=1e-5)


def test_status_residuals_and_callback(tiny):
    op = Mask(random_mask((12, 12), 0.5), sigma=0.1)
    y = op.A(rand(1, 1, 12, 12).abs().float())
    seen = []
    solution = ADMM(op, LoFiPrior(tiny), max_iter=7, tol=0, callback=seen.append).solve(y)
    assert (solution.status, solution.iterations, len(solution.residuals)) == ("limit", 7, 7)
    assert [s.iteration for s in seen] == list(range(1, 8))
    assert (seen[-1].primal, seen[-1].dual) == solution.residuals[-1]
    torch.testing.assert_close(seen[-1].x, solution.x)
    stopped = ADMM(op, LoFiPrior(tiny), max_iter=50, tol=0, callback=lambda s: s.iteration == 3).solve(y)
    assert (stopped.status, stopped.iterations) == ("stopped", 3)
    torch.testing.assert_close(ADMM(op, LoFiPrior(tiny), max_iter=7, tol=0)(y), solution.x)


def test_truth_and_start(tiny):
    op = Mask(random_mask((12, 12), 0.5), sigma=0.1)
    x = rand(1, 1, 12, 12).abs().float()
    solver = ADMM(op, LoFiPrior(tiny), max_iter=3, tol=0)
    metrics = solver.solve(op.A(x), truth=x).metrics
    error = solver(op.A(x)) - x
    assert metrics["snr"] == pytest.approx(10 * math.log10(float(x.square().sum() / error.square().sum())), abs=1e-4)
    peak = float(x.max() - x.min())
    assert metrics["psnr"] == pytest.approx(10 * math.log10(peak**2 / float(error.square().mean())), abs=1e-4)
    assert not torch.equal(solver.solve(op.A(x), x0=x).x, solver.solve(op.A(x)).x)
    with pytest.raises(ValueError, match="x0 must have shape"):
        solver.solve(op.A(x), x0=x[..., :5])


def test_complex_images():
    """With every frequency measured each part is denoised as the real image that it is; single precision stays."""
    kept, x = torch.ones(12, 12, dtype=torch.bool), rand(2, 1, 12, 12).float()
    levels = {"sigma_n": 0.1, "sigma_d": 0.2, "max_iter": 5, "tol": 0}
    one, two = Fourier(kept, real=True), Fourier(kept, real=False)
    found = ADMM(two, LoFiPrior("natural"), **levels)(two.A(torch.complex(x[:1], x[1:])))
    assert found.dtype == torch.complex64
    parts = [ADMM(one, LoFiPrior("natural"), **levels)(one.A(part[None])) for part in x]
    torch.testing.assert_close(found, torch.complex(*parts), rtol=0, atol=1e-5)


@pytest.mark.parametrize("real", [True, False])
def test_complex_images_untuned(real):
    """Noise and levels are chosen from data of either kind; the image is real where the operator says so."""
    x = rand(1, 1, 12, 12)
    for op in (Fourier(random_mask((12, 12), 0.7), real=real), NUFFT((12, 12), uv(400), real=real)):
        y = op.A(x if real else x + 1j * rand(1, 1, 12, 12, seed=1))
        solution = ADMM(op, Shrink(1.0), sigma_n=0.0, max_iter=60).solve(y)
        assert solution.x.is_complex() != real
        assert solution.metrics["residual"] < 0.2 * float(y.abs().square().mean().sqrt())


def test_a_start_for_the_border_that_was_not_seen():
    """Blur "valid" from zeros leaves a frame; from the data continued by their edge it does not (docs/operators.md)."""
    x = (2 + torch.linspace(0, 3, 48).sin()).expand(1, 1, 48, 48).contiguous()
    kernel = gaussian_blur(sigma=(2.0, 2.0))
    h, w = kernel.shape[-2:]
    op = Blur((48, 48), kernel, boundary="valid", sigma=0.01)
    y = op(x)
    margins = (w - 1 - w // 2, w // 2, h - 1 - h // 2, h // 2)
    start = torch.nn.functional.pad(y, margins, mode="replicate")
    error = {}
    for name, x0 in (("zeros", None), ("edge", start)):
        found = ADMM(op, LoFiPrior("natural"), max_iter=20, tol=0)(y, x0=x0)
        error[name] = float((found - x)[..., :4, :].square().mean().sqrt())
    assert error["zeros"] > 0.5 and error["edge"] < 0.2
