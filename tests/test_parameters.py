"""How the solvers choose what nobody tuned: noise, penalty, levels."""

import numpy as np
import pytest
import torch
from deepinv.optim.dpir import get_DPIR_params
from deepinv.physics import Denoising, GaussianNoise, StackedLinearPhysics, ZeroNoise
from deepinv.utils import TensorList
from solver_pieces import SOLVERS, Shrink, operator, rand, solver, uv

from pnp_lofi import ADMM, HQS, PGD, RED, LoFiPrior
from pnp_lofi.operators import NUFFT, Mask, Stacked, meerkat_uv
from pnp_lofi.parameters import anneal, choose, each, mean_eigenvalue, noise_level
from pnp_lofi.schedules import dpir


def test_chosen_parameters_keep_the_relation():
    """alpha = sigma_n^2 / sigma_d^2 at the end, for each item; alpha is the mean eigenvalue, M / N for a NUFFT."""
    coverage = meerkat_uv(hours=1)
    op = NUFFT((64, 64), coverage, sigma=0.02)
    b = op.A_adjoint(op.A(rand(2, 1, 64, 64).abs().float()))
    noise = torch.tensor([0.02, 0.1], dtype=torch.float64)
    chosen = choose(op, b, noise, 100)
    torch.testing.assert_close(chosen.sigma_d(99), noise / chosen.alpha(99).sqrt())
    torch.testing.assert_close(chosen.alpha(0), torch.full((2,), coverage.shape[1] / 64**2).double(), rtol=0.1, atol=0)
    assert bool((chosen.sigma_d(0) > chosen.sigma_d(50)).all() and (chosen.sigma_d(50) > chosen.sigma_d(99)).all())
    assert chosen.settled == 75 and torch.equal(chosen.sigma_d(75), chosen.sigma_d(99))
    span = (b / op.norm).flatten(1)
    expected = 0.3 * (span.amax(1) - span.amin(1)).double()
    for k in (0, 20):
        torch.testing.assert_close(chosen.sigma_d(k), expected, rtol=1e-6, atol=0)
    given = choose(op, b, noise, 100, alpha=3.0)
    torch.testing.assert_close(given.sigma_d(99), noise / 3**0.5)
    given = choose(op, b, noise, 100, sigma_d=0.1)
    torch.testing.assert_close(given.alpha(99), noise**2 / 0.1**2)
    assert given.settled == 0
    given = choose(op, b, noise, 100, sigma_d=lambda k: 1.0 / (1 + k))
    torch.testing.assert_close(given.alpha(0), noise**2 * 100**2)
    assert given.settled == 99


def test_data_without_noise():
    """Down to 0.05 of the range, with alpha = 0.05 L; for each item whether it has noise."""
    b = torch.tensor([[0.0, 2.0], [0.0, 2.0]]).view(2, 1, 1, 2)
    chosen = choose(Mask(torch.ones(1, 2)), b, torch.tensor([0.0, 0.3]), 10)
    torch.testing.assert_close(chosen.sigma_d(9), torch.tensor([0.1, 0.3]).double())
    torch.testing.assert_close(chosen.alpha(9), torch.tensor([0.05, 1.0]).double())


@pytest.mark.parametrize("max_iter", [1, 2, 5, 24])
def test_hqs_keeps_dpirs_relation(max_iter):
    """alpha sigma_d^2 = 0.23 sigma_n^2 in every iteration, and sigma_d ends at sigma_n / sqrt(L)."""
    op, y, seen = operator("mask", sigma=0.07), operator("mask").A(rand(1, 1, 6, 7)), []
    HQS(op, Shrink(1.0), max_iter=max_iter, tol=0, callback=seen.append)(y)
    for at in seen:
        assert at.alpha * at.sigma_d**2 == pytest.approx(0.23 * 0.07**2)
    assert seen[-1].sigma_d == pytest.approx(0.07)
    assert len(seen) == 1 or seen[0].sigma_d > 2 * seen[-1].sigma_d


def test_steps_are_stable_whatever_level_is_given():
    """PGD's step is 1 / L where (sigma_n / sigma_d)^2 would make a longer one; one that was asked for is made."""
    op, y = operator("nufft"), operator("nufft").A(rand(2, 1, 6, 7))
    for accelerated in (True, False):
        for level in (0.5, lambda k: 0.5 / (1 + k), torch.tensor([0.5, 1e-3], dtype=torch.float64)):
            found = PGD(op, Shrink(1.0), sigma_n=0.01, sigma_d=level, accelerated=accelerated, max_iter=60).solve(y)
            assert found.status != "diverged"
    assert found.metrics["alpha"] == pytest.approx([op.norm, 100])
    with pytest.warns(UserWarning, match="diverged"):
        PGD(op, lambda x, sigma: x, sigma_n=0.01, alpha=op.norm / 3, max_iter=60)(y)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_relation_of_each_solver(name):
    """What the page of solvers says of the last level and penalty, [units of sigma_n^2]."""
    op = operator("blur", sigma=0.03)
    found = solver(name, op, Shrink(1.0), max_iter=50, tol=0).solve(op.A(rand(1, 1, 6, 7))).metrics
    part = {"HQS": 0.23, "RED": 0.25, "RED+": 0.25}.get(name, 1.0)
    assert found["alpha"] * found["sigma_d"] ** 2 == pytest.approx(part * 0.03**2)


@pytest.mark.parametrize(
    ("name", "alpha", "level"),
    [("ADMM", 0.05, 0.05), ("HQS", 0.23, 0.01), ("PGD", 1.0, 0.01), ("FISTA", 1.0, 0.01), ("RED", 0.2, 0.02)],
)
def test_each_solver_without_noise(name, alpha, level):
    """Likewise, over L and over the range of A^H y / L."""
    op = operator("nufft")
    y = op.A(rand(1, 1, 6, 7))
    found = solver(name, op, Shrink(1.0), sigma_n=0, max_iter=40, tol=0).solve(y).metrics
    span = op.A_adjoint(y) / op.norm
    assert found["alpha"] == pytest.approx(alpha * op.norm)
    assert found["sigma_d"] == pytest.approx(level * float(span.max() - span.min()))


def test_the_prior_says_how_loud_it_may_be():
    """The first level is not above what a prior was trained for, nor above 0.3 of the range."""
    seen, op = [], Mask(torch.ones(16, 16), sigma=0.01)
    y = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
    quiet = LoFiPrior("natural")
    quiet.header = {"sigma_range": [1e-4, 0.25]}
    ADMM(op, quiet, max_iter=5, callback=seen.append)(y)
    assert seen[0].sigma_d == pytest.approx(0.25)
    ADMM(op, Shrink(1.0), max_iter=5, callback=seen.append)(y)
    assert seen[5].sigma_d == pytest.approx(0.3)


def test_noise_levels_that_physics_name():
    real, waves = rand(2, 1, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.complex64)
    assert noise_level(Denoising(GaussianNoise(0.1)), real) == pytest.approx(0.1)
    assert noise_level(Denoising(GaussianNoise(0.1)), waves) == pytest.approx(0.1 / 2**0.5)
    each_item = noise_level(Denoising(GaussianNoise(torch.tensor([0.1, 0.2]))), real)
    torch.testing.assert_close(each_item, torch.tensor([0.1, 0.2], dtype=torch.float64))
    assert noise_level(Denoising(GaussianNoise(torch.tensor([0.0, 0.2]))), real) == pytest.approx(0.02**0.5)
    assert (
        noise_level(Denoising(GaussianNoise(0.0)), real) is None and noise_level(Denoising(ZeroNoise()), real) is None
    )
    assert noise_level(operator("nufft", sigma=0.1), waves) == 0.1  # ours are per real component


def test_noise_level_of_stacked_physics():
    y = TensorList([rand(1, 1, 4, 4), rand(1, 1, 4, 4)])
    for levels, expected in (((0.1, 0.1), 0.1), ((0.1, 0.2), None)):
        theirs = StackedLinearPhysics([Denoising(GaussianNoise(s)) for s in levels])
        ours = Stacked(*[Mask(torch.ones(4, 4), sigma=s) for s in levels])
        for op in (theirs, ours):
            assert noise_level(op, y) == (None if expected is None else pytest.approx(expected))
    whitened = Stacked(*ours.operators, weights=[100.0, 25.0])
    assert noise_level(whitened, y) == pytest.approx(1.0)
    assert ADMM(theirs, Shrink(1.0), sigma_n=0.1)(y).shape == (1, 1, 4, 4)
    with pytest.raises(ValueError, match="the noise of stacked operators is not estimated"):
        ADMM(theirs, Shrink(1.0))(y)


def test_levels_of_items():
    assert each(0.5, 3).tolist() == [0.5] * 3 and each(np.float32(0.5), 2).tolist() == [0.5] * 2
    for wrong in (torch.ones(2), torch.ones(3, 3)):
        with pytest.raises(ValueError, match="expected a number, or one for each of 3 images, got shape"):
            each(wrong, 3)


def test_flat_and_zero_data(tiny):
    op = Mask(torch.ones(12, 12))
    flat = ADMM(op, LoFiPrior(tiny), sigma_n=0.0, max_iter=3)(torch.full((1, 1, 12, 12), 0.5))
    assert bool(flat.isfinite().all())
    for y in (torch.zeros(1, 1, 12, 12), torch.stack([torch.ones(1, 12, 12), torch.zeros(1, 12, 12)])):
        with pytest.raises(ValueError, match="all zero"):
            ADMM(op, LoFiPrior(tiny), sigma_n=0.0)(y)


def test_mean_eigenvalue_is_the_trace():
    op = NUFFT((8, 8), uv(50))
    eye = torch.eye(64, dtype=torch.float64).reshape(64, 1, 8, 8)
    exact = float((eye * op.A_adjoint_A(eye)).sum()) / 64
    assert exact == pytest.approx(50 / 64)
    assert mean_eigenvalue(op, eye, probes=4000) == pytest.approx(exact, rel=0.05)


def test_schedules():
    level = anneal(1.0, 0.01, 2, 6)
    assert [round(level(k), 6) for k in (0, 1, 2, 4, 6, 50)] == [1, 1, 1, 0.1, 0.01, 0.01]
    assert [anneal(1.0, 0.01, 0, 0)(k) for k in (0, 1)] == [0.01, 0.01]  # nothing but the end
    levels, _, iterations = get_DPIR_params(0.03)
    assert [dpir(0.03)(k) for k in range(iterations)] == pytest.approx(levels.tolist(), rel=1e-5)
    torch.testing.assert_close(dpir(torch.tensor([0.03, 0.1]))(7), torch.tensor([0.03, 0.1]))


def test_red_is_told_by_its_rule():
    """Four mean eigenvalues, half the level: of a mask that sees 60 % of the pixels."""
    op = operator("mask", sigma=0.03)
    found = RED(op, Shrink(1.0), max_iter=8).solve(op.A(rand(1, 1, 6, 7))).metrics
    assert found["alpha"] == pytest.approx(4 * float(op.mask.double().mean()))
    assert found["sigma_d"] == pytest.approx(0.5 * 0.03 / found["alpha"] ** 0.5)
