"""Composition and stacking: what it is, against the matrices; that solvers take it; what is refused."""

import math
import pickle

import deepinv.physics as dinv
import pytest
import torch
from deepinv.models import TVDenoiser
from deepinv.utils import TensorList
from torch import Tensor

from pnp_lofi import ADMM
from pnp_lofi.cg import solve_normal
from pnp_lofi.operators import (
    NUFFT,
    Blur,
    Composed,
    Derivatives,
    Downsample,
    Fourier,
    Mask,
    NormalEquations,
    Stacked,
    Weighted,
    random_mask,
)

SHAPE = (6, 8)
MASK = random_mask(SHAPE, 0.5)
KERNEL = torch.rand(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
UV = (2 * torch.rand(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 1) * math.pi
X = torch.randn(2, 1, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def matrix(op: dinv.LinearPhysics, parts: bool = False) -> Tensor:
    """A, with complex data as pairs of real ones."""
    y = op.A(torch.eye(math.prod(SHAPE), dtype=torch.float64).reshape(-1, 1, *SHAPE))
    flat = [torch.view_as_real(p) if p.is_complex() else p for p in (y if isinstance(y, TensorList) else [y])]
    return torch.cat([p.flatten(1) for p in flat], 1).T


def stacked(**options: object) -> Stacked:
    return Stacked(Blur(SHAPE, KERNEL), NUFFT(SHAPE, UV), Mask(MASK), **options)


def random_data(op: dinv.LinearPhysics) -> TensorList:
    torch.manual_seed(3)
    return TensorList([torch.randn_like(part) for part in op.A(X)])


@pytest.mark.parametrize("weights", [None, [2.0, 0.5, 3.0]])
def test_stacked_is_the_matrices_on_top_of_each_other(weights: list[float] | None) -> None:
    op = stacked(weights=weights)
    roots = [w**0.5 for w in weights or [1, 1, 1]]
    A = torch.cat([root * matrix(part) for root, part in zip(roots, op.operators, strict=True)])
    N = A.T @ A
    torch.testing.assert_close(matrix(op), A)
    torch.testing.assert_close(op.A_adjoint_A(X), (X.flatten(1) @ N).reshape(X.shape))
    assert float(op.adjointness_test(num_samples=10, dtype=torch.float64)) < 1e-12
    assert op.norm == pytest.approx(float(torch.linalg.eigvalsh(N)[-1]), rel=1e-5)
    y = random_data(op)
    expected = torch.linalg.solve(0.7 * N + torch.eye(len(N)), (0.7 * op.A_adjoint(y) + X).flatten(1).T).T
    torch.testing.assert_close(op.prox_l2(X, y, 0.7, tol=1e-13), expected.reshape(X.shape))
    x, info = solve_normal(op, X, 0.3, tol=1e-12, max_iter=200)
    torch.testing.assert_close(op.A_adjoint_A(x) + 0.3 * x, X)
    assert info.converged


def test_stacked_gradients() -> None:
    op, x = stacked(), X[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(op.A(x)), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: tuple(op.A(x)), x, fast_mode=True)
    y = [part.requires_grad_() for part in op.A(X[:1])]
    assert torch.autograd.gradcheck(lambda *y: op.A_adjoint(TensorList(list(y))), y, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *y: op.A_adjoint(TensorList(list(y))), y, fast_mode=True)


def test_flattened_as_deepinv_does() -> None:
    a, b, c = Blur(SHAPE, KERNEL), NUFFT(SHAPE, UV), Mask(MASK)
    assert len(a.stack(b).stack(c)) == len(a.stack(b.stack(c))) == 3
    assert a.stack(b).stack(c)[2] is c
    composed = NUFFT(SHAPE, UV) * (Mask(MASK) * a)
    assert len(composed.operators) == 3 and composed[0] is a
    torch.testing.assert_close(matrix(composed), matrix(b) @ matrix(c) @ matrix(a))
    inner = Stacked(a, c, weights=[4.0, 9.0])
    assert Stacked(inner, b, weights=[0.25, 1.0]).roots == [1.0, 1.5, 1.0]


def test_a_stack_after_a_blur() -> None:
    op = Stacked(NUFFT(SHAPE, UV), Mask(MASK)) * Blur(SHAPE, KERNEL)
    assert isinstance(op, Composed)
    A = matrix(op)
    torch.testing.assert_close(op.A_adjoint_A(X), (X.flatten(1) @ A.T @ A).reshape(X.shape))
    assert float(op.adjointness_test(num_samples=10, dtype=torch.float64)) < 1e-12


def test_with_operators_of_deepinv() -> None:
    """deepinv's own classes take over; ours are their parts."""
    other = dinv.Inpainting((1, *SHAPE), mask=MASK.double()[None])
    ours = Blur(SHAPE, KERNEL)
    for op in (other * ours, ours * other):
        assert isinstance(op, dinv.ComposedLinearPhysics)
        assert float(op.adjointness_test(X)) < 1e-12
        y = op.A(X)
        z = torch.zeros_like(X)
        x = op.prox_l2(z, y, 0.7, max_iter=200, tol=1e-12)
        torch.testing.assert_close(0.7 * op.A_adjoint(op.A(x) - y) + x, z, atol=1e-5, rtol=0)
    for op in (other.stack(ours), ours.stack(other)):
        assert isinstance(op, dinv.StackedLinearPhysics)
        assert float(op.adjointness_test(X)) < 1e-12


def test_noise() -> None:
    torch.manual_seed(0)
    zeros = torch.zeros(300, 1, *SHAPE)
    op = Stacked(Blur(SHAPE, KERNEL, sigma=0.5), NUFFT(SHAPE, UV, sigma=2.0), Mask(MASK, sigma=0.1))
    assert op.sigma is None
    y = op(zeros)
    assert [float(p.std()) for p in (y[0], y[1].real, y[2][..., MASK])] == pytest.approx([0.5, 2.0, 0.1], rel=0.03)
    assert bool((y[2][..., ~MASK] == 0).all())
    white = Stacked(*op.operators, weights=[1 / 0.5**2, 1 / 2.0**2, 1 / 0.1**2])
    assert white.sigma == pytest.approx(1.0)
    for found in (white(zeros), white.whiten(y)):
        assert [float(p.std()) for p in (found[0], found[1].real, found[2][..., MASK])] == pytest.approx(
            [1] * 3, rel=0.03
        )
    assert (NUFFT(SHAPE, UV, sigma=0.3) * Blur(SHAPE, KERNEL, sigma=7.0)).sigma == 0.3


@pytest.mark.parametrize("levels", [(0.1, 0.3), (0.05, 0.07), (0.02, 0.013), (0.3, 0.7), (0.11, 0.19)])
def test_whitened_noise_is_one(levels: tuple[float, float]) -> None:
    """To rounding."""
    parts = [Mask(MASK, sigma=level) for level in levels]
    assert Stacked(*parts, weights=[1 / level**2 for level in levels]).sigma == pytest.approx(1.0)
    assert Stacked(*parts).sigma is None


def test_another_noise_model() -> None:
    zeros = torch.zeros(300, 1, *SHAPE)
    composed = Mask(MASK, sigma=0.1) * Blur(SHAPE, KERNEL)
    composed.set_noise_model(dinv.GaussianNoise(0.4))
    assert composed.sigma == composed[1].sigma == pytest.approx(0.4)
    noise = composed(zeros)
    assert float(noise[..., MASK].std()) == pytest.approx(0.4, rel=0.03) and not noise[..., ~MASK].any()
    op = Stacked(Blur(SHAPE, KERNEL, sigma=0.1), Mask(MASK, sigma=0.1))
    assert op.sigma == 0.1
    op.set_noise_model(dinv.GaussianNoise(0.4), item=1)
    assert op.sigma is None and op[1].sigma == pytest.approx(0.4)
    op(zeros, sigma=0.2)
    assert op.sigma == pytest.approx(0.2)


def test_norm_follows_a_part_that_loads() -> None:
    half = Blur(SHAPE, KERNEL / 2).state_dict()
    for combine in (
        lambda op: Weighted(op, torch.ones(SHAPE)),
        lambda op: NUFFT(SHAPE, UV) * op,
        lambda op: Stacked(op, op),
    ):
        blur = Blur(SHAPE, KERNEL)
        op = combine(blur)
        before = op.norm
        blur.load_state_dict(half)
        assert op.norm == pytest.approx(before / 4, rel=1e-4)


def test_pickled_stack() -> None:
    op = pickle.loads(pickle.dumps(stacked(weights=[2.0, 0.5, 3.0])))
    for found, expected in zip(op.A(X), stacked(weights=[2.0, 0.5, 3.0]).A(X), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["kernel", "mask", "filter"])
@pytest.mark.parametrize("op", [Mask(MASK) * Blur(SHAPE, KERNEL), Stacked(Mask(MASK), Blur(SHAPE, KERNEL))])
def test_arguments_are_refused(op: Composed | Stacked, name: str) -> None:
    for call, given in ((op.A, X), (op.A_adjoint, op.A(X)), (op.A_adjoint_A, X)):
        with pytest.raises(TypeError, match=f"takes no {name}= in a call"):
            call(given, **{name: X})


def blocks() -> Tensor:
    x = torch.zeros(1, 1, 32, 32)
    x[..., 8:20, 10:24], x[..., 22:27, 4:12] = 1.0, 0.5
    return x


def test_admm_on_composed_and_stacked() -> None:
    """Each gets nearer to the truth than what it had, and data of unequal noise count by what they are worth."""
    truth, shape = blocks(), (32, 32)
    kernel = torch.ones(3, 3) / 9
    uv = (2 * torch.rand(2, 400, generator=torch.Generator().manual_seed(4)) - 1) * math.pi
    prior = TVDenoiser(n_it_max=100)

    def error(op: dinv.LinearPhysics, y: object, **options: float) -> float:
        return float((ADMM(op, prior, max_iter=15, progress=False, **options)(y) - truth).norm() / truth.norm())

    torch.manual_seed(0)
    composed = Mask(random_mask(shape, 0.7), sigma=0.02) * Blur(shape, kernel)
    assert error(composed, composed(truth)) < 0.2
    good, bad = Blur(shape, kernel, sigma=0.01), NUFFT(shape, uv, sigma=0.5)
    one, both = Stacked(good, bad), Stacked(good, bad, weights=[1 / 0.01**2, 1 / 0.5**2])
    y = one(truth)
    assert error(both, both.whiten(y)) < 0.15 < error(one, y, sigma_n=0.1)
    others = dinv.StackedLinearPhysics([good, good])
    assert error(others, others(truth), sigma_n=0.01) < 0.15
    y[0][..., 3, 3] = math.nan
    with pytest.raises(ValueError, match="NaN or inf"):
        error(one, y)


def test_what_solvers_look_for_comes_from_the_last() -> None:
    blur, mask, nufft = Blur(SHAPE, KERNEL), Mask(MASK), NUFFT(SHAPE, UV)
    assert not hasattr(nufft * blur, "estimate_noise") and not hasattr(nufft * blur, "residual_level")
    y = (mask * blur).A(X)
    assert (mask * blur).estimate_noise(y) == mask.estimate_noise(y)
    streamed, y = NormalEquations(SHAPE).add(UV, nufft.A(blur.A(X[:1]))[0, 0]).measurement(dtype=torch.float64)
    assert (streamed * blur).residual_level(y, None) == streamed.residual_level(y, None)
    assert (streamed * blur).residual_level(y, X[:1]) < 1e-6 * streamed.residual_level(y, None)
    assert (streamed * blur).clone().residual_level(y, X[:1]) < 1e-6 * streamed.residual_level(y, None)


def test_moves_as_one() -> None:
    for op in (stacked(), NUFFT(SHAPE, UV) * Blur(SHAPE, KERNEL)):
        reference, copy = matrix(op), op.clone().float().to(torch.float64)
        torch.testing.assert_close(matrix(copy), reference)
        copy.load_state_dict(op.state_dict())
        assert {b.device.type for b in copy.to("meta").buffers()} == {"meta"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Mask(MASK) * NUFFT(SHAPE, UV), r"Mask \* NUFFT: the inner operator gives \('batch', 'channel', 30\)"),
        (lambda: Mask(MASK) * Fourier(MASK), "gives complex data, the outer one takes real images"),
        (lambda: Blur((6, 6), KERNEL) * Blur(SHAPE, KERNEL), r"the outer one takes \('batch', 'channel', 6, 6\)"),
        (lambda: Blur(SHAPE, KERNEL) * stacked(), r"the inner operator gives \(\)"),
        (lambda: Blur(SHAPE, KERNEL) * Downsample(SHAPE, 2), "the inner operator gives"),
        (lambda: Mask(MASK).stack(Mask(MASK.T)), "stacked operators see one image"),
        (lambda: Mask(MASK).stack(Fourier(MASK, real=False)), "these take .* and .* complex"),
        (lambda: stacked(weights=[1.0, 1.0]), "weights must be 3 finite numbers > 0"),
        (lambda: stacked(weights=[1.0, 1.0, 0.0]), "weights must be 3 finite numbers > 0"),
        (lambda: stacked().A_adjoint(X), r"TensorList of 3 parts, got a tensor of shape \(2, 1, 6, 8\)"),
        (lambda: stacked().A_adjoint(TensorList([X, X])), "TensorList of 3 parts, got 2 parts"),
        (lambda: stacked().A(X * math.nan), "NaN or inf"),
        (lambda: stacked().A(X[:0]), "expects at least one item"),
        (lambda: Composed(), "Composed needs at least one operator"),
        (lambda: Stacked(), "Stacked needs at least one operator"),
        (
            lambda: ADMM(stacked(), TVDenoiser())(stacked().A(X.float())),
            "the noise of stacked operators is not estimated",
        ),
        (lambda: Derivatives(SHAPE, torch.rand(5, 2)).stack(Mask(MASK)).prox_l2(X, X, 1.0), "TensorList of 2 parts"),
    ],
)
def test_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
