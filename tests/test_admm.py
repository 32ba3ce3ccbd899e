"""ADMM against deepinv's own, against a closed form, and in its manners."""

import math

import deepinv
import pytest
import torch
from deepinv.models import Denoiser
from deepinv.optim import L2, PnP
from deepinv.physics.functional import gaussian_blur

from pnp_lofi import ADMM, LoFiPrior
from pnp_lofi.operators import NUFFT, Blur, Fourier, Mask, meerkat_uv, random_mask
from pnp_lofi.parameters import anneal, choose, mean_eigenvalue, noise_level


def rand(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class Shrink(Denoiser):
    """The proximal step of sigma^2 weight ||x||^2 / 2: x / (1 + weight sigma^2), a prior with a closed form."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x, sigma, **kwargs):
        return x / (1 + self.weight * sigma**2)


def uv(count=300, seed=0):
    return math.pi * (2 * torch.rand(2, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1)


def deepinv_admm(physics, y, denoiser, alpha, sigma_d, iterations):
    solver = deepinv.optim.ADMM(
        data_fidelity=L2(), prior=PnP(denoiser), stepsize=1 / alpha, g_param=sigma_d, max_iter=iterations,
        early_stop=False, custom_init=lambda y, physics: (torch.zeros_like(physics.A_adjoint(y)),) * 2,
    )  # fmt: skip
    return solver(y, physics)


@pytest.mark.parametrize("case", ["mask", "nufft"])
def test_equals_deepinv_over_90_iterations(tiny, case):
    if case == "mask":
        op = Mask(random_mask((16, 20), 0.4, seed=1))
        alpha = 0.05
    else:
        op = NUFFT((16, 20), uv(), tol=1e-13, max_iter=400)
        alpha = 0.1 * op.norm
    tiny = tiny.double()
    with torch.no_grad():
        tiny.mlp.mixer_weights[-1].mul_(0.02)  # random weights, made tame enough for 90 iterations
        tiny.mlp.mixer_biases[-1].zero_()
    y = op.A(rand(1, 1, 16, 20).abs())
    prior = LoFiPrior(tiny)
    ours = ADMM(op, prior, sigma_n=0.01, sigma_d=0.1, alpha=alpha, max_iter=90, tol=0, cg_tol=1e-13, cg_max_iter=400)
    x = ours(y)
    reference = deepinv_admm(op, y, prior, alpha, 0.1, 90)
    assert float(x.norm()) > 0.1
    torch.testing.assert_close(x, reference, rtol=1e-5, atol=1e-5 * float(reference.abs().max()))


def test_closed_form_quadratic():
    op = NUFFT((6, 7), uv(60), tol=1e-14, max_iter=500)
    y = op.A(rand(1, 1, 6, 7))
    columns = [op.A(e.reshape(1, 1, 6, 7))[0, 0] for e in torch.eye(42, dtype=torch.float64)]
    A = torch.view_as_real(torch.stack(columns, 1)).permute(0, 2, 1).reshape(-1, 42)
    b = torch.view_as_real(y[0, 0]).reshape(-1)
    sigma_n, sigma_d, weight = 0.3, 0.5, 2.0
    # min ||Ax - y||^2 / (2 sigma_n^2) + weight ||x||^2 / 2
    expected = torch.linalg.solve(A.T @ A + sigma_n**2 * weight * torch.eye(42, dtype=torch.float64), A.T @ b)
    solver = ADMM(op, Shrink(weight), sigma_n=sigma_n, sigma_d=sigma_d, max_iter=2000, tol=1e-13, cg_tol=1e-14,
                  cg_max_iter=200)  # fmt: skip
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


def test_our_prior_and_operator_serve_deepinvs_solvers(tiny):
    op = Mask(random_mask((12, 12), 0.5))
    y = op.A(rand(1, 1, 12, 12).abs().float())
    for solver in (deepinv.optim.PGD, deepinv.optim.HQS):
        x = solver(data_fidelity=L2(), prior=PnP(LoFiPrior(tiny)), stepsize=0.9, g_param=0.1, max_iter=5)(y, op)
        assert bool(x.isfinite().all())


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


class Explode(Denoiser):
    def forward(self, x, sigma, **kwargs):
        return 10 * x


class Nan(Denoiser):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x, sigma, **kwargs):
        self.calls += 1
        return x * float("nan") if self.calls > 4 else x * 0.9


@pytest.mark.parametrize("prior", [Explode, Nan])
def test_divergence_and_nan_are_caught(prior):
    op = Mask(random_mask((12, 12), 0.5), sigma=0.1)
    with pytest.warns(UserWarning, match="diverged at iteration"):
        solution = ADMM(op, prior(), max_iter=100).solve(op.A(rand(1, 1, 12, 12).abs().float()))
    assert solution.status == "diverged"
    assert bool(solution.x.isfinite().all())


def test_nonneg(tiny):
    op = Mask(random_mask((12, 12), 0.9), sigma=0.3)
    y = op.A(rand(1, 1, 12, 12).float())
    assert float(ADMM(op, LoFiPrior(tiny), max_iter=3)(y).min()) < 0
    assert float(ADMM(op, LoFiPrior(tiny), max_iter=3, nonneg=True)(y).min()) == 0


@pytest.mark.parametrize(
    "wrong", [{"sigma_n": -1}, {"sigma_d": 0}, {"alpha": -2.0}, {"max_iter": 0}, {"sigma_n": math.nan}]
)
def test_parameters_are_checked(tiny, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ADMM(Mask(torch.ones(4, 4)), LoFiPrior(tiny), **wrong)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ("radio", r"got the name 'radio'; use LoFiPrior\('radio'\)"),
        (torch.nn.Identity(), r"called as prior\(x, sigma\), Identity is called as Identity\(input"),
        (lambda x: x, r"called as prior\(x, sigma\)"),
        (None, r"such as LoFiPrior\('natural'\), got NoneType"),
        (LoFiPrior, "got LoFiPrior"),
        (PnP(Shrink(1.0)), "got deepinv's PnP; pass the denoiser inside it"),
    ],
    ids=["name", "identity", "function", "none", "class", "deepinv"],
)
def test_prior_is_checked(prior, message):
    with pytest.raises(TypeError, match=message):
        ADMM(Mask(torch.ones(4, 4)), prior)


def test_prior_may_be_any_function_of_an_image_and_a_level():
    op = Mask(torch.ones(4, 4), sigma=0.1)
    y = rand(1, 1, 4, 4)
    torch.testing.assert_close(ADMM(op, lambda x, sigma: x / (1 + sigma**2))(y), ADMM(op, Shrink(1.0))(y))
    for prior in (deepinv.models.TVDenoiser(), deepinv.models.DnCNN(1, 1, pretrained=None), LoFiPrior("natural")):
        ADMM(op, prior)


def test_complex_images_are_refused(tiny):
    kept = torch.ones(12, 12, dtype=torch.bool)
    points = uv(50)
    for real in (True, False):
        for op in (Fourier(kept, real=real, sigma=0.1), NUFFT((12, 12), points, real=real, sigma=0.1)):
            x = rand(1, 1, 12, 12).float()
            y, solver = op.A(x if real else x.to(torch.complex64)), ADMM(op, LoFiPrior(tiny), max_iter=2)
            if real:
                assert not solver(y).is_complex()
            else:
                with pytest.raises(TypeError, match=r"are for real images, .*: build the operator with real=True"):
                    solver(y)


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


def test_a_start_lies_where_the_kernel_says():
    """The margins of docs/operators.md, for a kernel of even size: a kernel of one pixel, off its centre, shows x."""
    x = rand(1, 1, 12, 13)
    kernel = torch.zeros(4, 3)
    kernel[2, 1] = 1
    y = Blur((12, 13), kernel, boundary="valid").A(x)
    torch.testing.assert_close(torch.nn.functional.pad(y, (1, 1, 1, 2))[..., 1:-2, 1:-1], x[..., 1:-2, 1:-1])


def test_nan_in_the_data(tiny):
    y = torch.full((1, 1, 4, 4), math.nan)
    with pytest.raises(ValueError, match="NaN"):
        ADMM(Mask(torch.ones(4, 4)), LoFiPrior(tiny))(y)


def test_chosen_parameters_keep_the_relation():
    op = NUFFT((64, 64), meerkat_uv(hours=1), sigma=0.02)
    b = op.A_adjoint(op.A(rand(1, 1, 64, 64).abs().float()))
    chosen = choose(op, b, 0.02, 100)
    assert chosen.sigma_d(99) == pytest.approx(0.02 / chosen.alpha**0.5)
    assert chosen.sigma_d(0) >= chosen.sigma_d(50) >= chosen.sigma_d(99)
    assert op.norm / 300 < chosen.alpha < op.norm / 100  # what was found to converge fast on Fourier data
    assert choose(op, b, 0.02, 100, alpha=3.0).sigma_d(99) == pytest.approx(0.02 / 3**0.5)
    assert choose(op, b, 0.02, 100, sigma_d=0.1).alpha == pytest.approx(0.04)
    assert choose(Mask(torch.ones(4, 4)), torch.tensor([[[[0.0, 2.0]]]]), 0.0, 10).sigma_d(9) == pytest.approx(0.1)


def test_flat_and_zero_data(tiny):
    op = Mask(torch.ones(12, 12))
    flat = ADMM(op, LoFiPrior(tiny), sigma_n=0.0, max_iter=3)(torch.full((1, 1, 12, 12), 0.5))
    assert bool(flat.isfinite().all())
    with pytest.raises(ValueError, match="all zero"):
        ADMM(op, LoFiPrior(tiny), sigma_n=0.0)(torch.zeros(1, 1, 12, 12))


def test_mean_eigenvalue_is_the_trace():
    op = NUFFT((8, 8), uv(50))
    eye = torch.eye(64, dtype=torch.float64).reshape(64, 1, 8, 8)
    exact = float((eye * op.A_adjoint_A(eye)).sum()) / 64
    assert exact == pytest.approx(50 / 64)
    assert mean_eigenvalue(op, eye, probes=4000) == pytest.approx(exact, rel=0.05)


def test_anneal():
    level = anneal(1.0, 0.01, 2, 6)
    assert [round(level(k), 6) for k in (0, 1, 2, 4, 6, 50)] == [1, 1, 1, 0.1, 0.01, 0.01]
