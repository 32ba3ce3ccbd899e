"""Conjugate gradients against dense linear algebra."""

import warnings

import pytest
import torch
from deepinv.physics import Denoising, LinearPhysics

from pnp_lofi.cg import ConvergenceWarning, conjugate_gradient, damped_solve, linear_map, operator_norm, solve_normal
from pnp_lofi.operators import Blur, Radon


def matrix(n: int, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    """A well-conditioned self-adjoint positive matrix."""
    a = torch.randn(n, n, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return a @ a.mH / n + torch.eye(n, dtype=dtype)


def dense_op(A: torch.Tensor, shape: tuple[int, int]) -> LinearPhysics:
    """deepinv physics of a matrix, with neither closed forms nor a norm of its own."""

    def forward(x: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return x.flatten(2) @ A.T

    def adjoint(y: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return (y @ A.conj()).unflatten(-1, shape)

    return LinearPhysics(A=forward, A_adjoint=adjoint, noise_model=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_solution_is_the_dense_one(dtype: torch.dtype) -> None:
    N, b = matrix(12, dtype=dtype), torch.randn(3, 12, dtype=dtype, generator=torch.Generator().manual_seed(1))
    tol = 1e-5 if b.real.dtype == torch.float32 else 1e-12
    x, info = conjugate_gradient(lambda v: v @ N.T, b, tol=tol, max_iter=100)
    torch.testing.assert_close(x, torch.linalg.solve(N, b.T).T, rtol=50 * tol, atol=50 * tol)
    assert info.converged and x.dtype == dtype and info.residual.shape == (3,) and info.iterations <= 24


def test_items_are_solved_on_their_own() -> None:
    N = matrix(10)
    b = torch.randn(3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    b[0] = torch.linalg.eigh(N)[1][:, 0]  # one step
    b[1] *= 1e8
    batch, info = conjugate_gradient(lambda v: v @ N.T, b, tol=1e-10, max_iter=99)
    alone = [conjugate_gradient(lambda v: v @ N.T, item[None], tol=1e-10, max_iter=99) for item in b]
    assert alone[0][1].iterations == 1 and info.iterations == max(i.iterations for _, i in alone)
    torch.testing.assert_close(batch, torch.cat([x for x, _ in alone]), rtol=1e-12, atol=1e-12)


def test_start_and_limits() -> None:
    N = matrix(10)
    b = torch.randn(2, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    exact = torch.linalg.solve(N, b.T).T
    x, info = conjugate_gradient(lambda v: v @ N.T, b, exact, tol=1e-9)
    assert info.iterations == 0 and info.converged and x is not exact
    _, info = conjugate_gradient(lambda v: v @ N.T, b, tol=1e-9, max_iter=2)
    assert info.iterations == 2 and not info.converged
    x, info = conjugate_gradient(lambda v: v @ N.T, 0 * b, torch.ones_like(b))
    assert not x.any() and info.converged and not info.residual.any()
    _, info = conjugate_gradient(lambda v: v @ N.T, b * torch.nan)
    assert not info.converged


def test_arguments_are_left_alone_and_memory_does_not_alias() -> None:
    b, start = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.3)
    x, _ = solve_normal(Denoising(), b, 1.0, start)  # deepinv's identity returns its argument
    torch.testing.assert_close(x, b / 2)
    assert bool((b == 1).all()) and bool((start == 0.3).all())


def test_solve_normal_is_dense_and_differentiable() -> None:
    A = torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    op = dense_op(A, (3, 4))
    b = torch.randn(2, 1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5), requires_grad=True)
    N = A.T @ A + 0.3 * torch.eye(12, dtype=torch.float64)
    x, info = solve_normal(op, b, 0.3, tol=1e-13, max_iter=99)
    torch.testing.assert_close(x.flatten(1), torch.linalg.solve(N, b.flatten(1).T).T)
    assert info.converged

    def solve(rhs: torch.Tensor) -> torch.Tensor:
        return solve_normal(op, rhs, 0.3, tol=1e-13, max_iter=99)[0]

    assert torch.autograd.gradcheck(solve, b) and torch.autograd.gradgradcheck(solve, b)


def test_linear_map_has_forward_derivatives() -> None:
    A = torch.randn(3, 4, dtype=torch.float64)
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def apply(v: torch.Tensor) -> torch.Tensor:
        return linear_map(v, lambda t: A @ t.detach(), lambda t: A.T @ t.detach())

    assert torch.autograd.gradcheck(apply, x, check_forward_ad=True)
    torch.testing.assert_close(torch.func.vjp(apply, x)[1](torch.ones(3, dtype=torch.float64))[0], A.sum(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_norm_is_the_largest_eigenvalue(dtype: torch.dtype) -> None:
    A = torch.randn(20, 35, dtype=dtype, generator=torch.Generator().manual_seed(6))
    like = torch.zeros(2, 1, 5, 7, dtype=dtype)
    exact = float(torch.linalg.matrix_norm(A, 2)) ** 2
    found = operator_norm(dense_op(A, (5, 7)), like)
    assert found == pytest.approx(exact, rel=1e-6)
    assert found == operator_norm(dense_op(A, (5, 7)), like) and isinstance(found, float)
    assert operator_norm(Denoising(), like.real) == pytest.approx(1.0, rel=1e-12)
    assert operator_norm(dense_op(0 * A, (5, 7)), like) == 0


def test_bad_input() -> None:
    b = torch.ones(1, 1, 2, 2)
    for alpha in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="alpha must be finite and >= 0"):
            solve_normal(Denoising(), b, alpha)
    with pytest.raises(ValueError, match=r"init must have the shape of rhs, \(1, 1, 2, 2\), got \(2, 2\)"):
        solve_normal(Denoising(), b, 1.0, b[0, 0])
    broken = LinearPhysics(A=lambda x, **k: x * torch.nan, A_adjoint=lambda y, **k: y, noise_model=None)
    with pytest.raises(ValueError, match="NaN or inf"):
        operator_norm(broken, b)


def test_a_singular_system_is_reported() -> None:
    """alpha = 0 with a null space: an answer for data in the range, a warning for the rest, never NaN or inf."""
    op = Radon((8, 8), 2)
    b = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.warns(ConvergenceWarning, match="conjugate gradients stopped after"):
        x, info = op.solve_normal(b, 0.0)
    assert not info.converged and bool(torch.isfinite(x).all())
    y = op.A(b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, info = op.solve_normal(op.A_adjoint(y), 0.0)
        torch.testing.assert_close(op.A(op.A_dagger(y)), y, rtol=1e-4, atol=1e-4)
    assert info.converged


def test_preconditioned_solution_is_the_same() -> None:
    N = torch.diag(torch.logspace(0, 5, 30, dtype=torch.float64))
    b = torch.randn(2, 30, dtype=torch.float64)
    plain, slow = conjugate_gradient(lambda x: x @ N, b, tol=1e-10, max_iter=500)
    fast, quick = conjugate_gradient(
        lambda x: x @ N, b, tol=1e-10, max_iter=500, precondition=lambda r: r / (1.1 * N.diagonal())
    )
    torch.testing.assert_close(fast, plain)
    assert quick.converged and quick.iterations <= 3 < slow.iterations


@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e-12, 1e15, 1e30])
def test_no_scale_is_too_small_or_too_large(scale: float) -> None:
    """Squares of float32 leave its range beyond 1e-19 and 1e19."""
    N = matrix(12).float()
    b = torch.randn(3, 12, generator=torch.Generator().manual_seed(7))
    b[1] *= 1e5  # each item for itself
    x, info = conjugate_gradient(lambda v: v @ N, scale * b)
    assert info.converged
    tolerance = 1e-2 if scale == 1e-40 else 1e-4  # there are no more digits
    torch.testing.assert_close(x / scale, torch.linalg.solve(N, b.T).T, rtol=tolerance, atol=tolerance)
    start = torch.full_like(b, 1e30)
    again, info = conjugate_gradient(lambda v: v @ N, scale * b, start)
    assert info.converged
    if scale < 1:  # zero is the better start
        torch.testing.assert_close(again, x, rtol=0, atol=0)


def test_steps_beyond_rounding_do_no_harm() -> None:
    op = Radon((24, 24), 20)
    b = op.A_adjoint(op.A(torch.rand(3, 1, 24, 24, generator=torch.Generator().manual_seed(8))))
    for tol in (0.0, 1e-30):
        x, info = op.solve_normal(b, 5.0, tol=tol, max_iter=2000)
        rest = (op.A_adjoint_A(x) + 5.0 * x - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)
        assert not info.converged and 1e-8 < float(rest.max()) < 1e-5
        torch.testing.assert_close(info.residual, rest, rtol=0.3, atol=0)  # the recursion's own is below 1e-18
    x, info = op.solve_normal(b, 5.0, tol=1e-5)
    assert info.converged


def damped(A: torch.Tensor, b: torch.Tensor, alpha: torch.Tensor, **options: float) -> torch.Tensor:
    return damped_solve(lambda x: x @ (A.T @ A), b, alpha, **({"tol": 1e-14, "max_iter": 99} | options))[0]


@pytest.mark.parametrize("shape", [(), (1,), (2, 1)])
def test_derivatives_in_alpha(shape: tuple[int, ...]) -> None:
    """Of first and second order, backwards and forwards, together with those in b."""
    A = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    b = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(10), requires_grad=True)
    alpha = torch.linspace(0.3, 0.8, 2, dtype=torch.float64)[: 2 if shape == (2, 1) else 1].reshape(shape)
    alpha.requires_grad_()

    def solve(b: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        return damped(A, b, alpha)

    assert torch.autograd.gradcheck(solve, (b, alpha), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(solve, (b, alpha))
    closed = torch.linalg.solve(A.T @ A + alpha.detach().reshape(-1, 1, 1) * torch.eye(8), b.unsqueeze(2))[..., 0]
    torch.testing.assert_close(solve(b, alpha), closed)


@pytest.mark.parametrize("boundary", ["circular", "zero"])  # in closed form, and by preconditioned conjugate gradients
def test_second_derivatives_in_gamma(boundary: str) -> None:
    kernel = torch.tensor([[1.0, 2.0, 0.5], [0.0, 3.0, 1.0]]) / 7.5
    op = Blur((5, 4), kernel, boundary=boundary)
    z, y = torch.rand(2, 2, 1, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(11))
    gamma = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)

    def prox(gamma: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return op.prox_l2(z, y, gamma, tol=1e-14, max_iter=200)

    assert torch.autograd.gradcheck(prox, (gamma, z.requires_grad_()))
    assert torch.autograd.gradgradcheck(prox, (gamma, z))


def test_a_derivative_that_stops_early_warns() -> None:
    generator = torch.Generator().manual_seed(12)
    A, weights = (torch.randn(n, 20, dtype=torch.float64, generator=generator) for n in (20, 1))
    b = torch.zeros(1, 20, dtype=torch.float64, requires_grad=True)  # solved in no step
    x = damped(A, b, torch.tensor(0.1), max_iter=3)
    with pytest.warns(ConvergenceWarning, match=r"a derivative by conjugate gradients stopped after 3 of 3 steps"):
        x.backward(weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        damped(A, b, torch.tensor(0.1)).backward(weights)
