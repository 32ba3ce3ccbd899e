"""Every operator: one row of the table in operator_rows.py, compared with its dense matrix."""

import pytest
import torch
from deepinv.optim import L2
from operator_rows import ROWS, Row
from torch import Tensor

from pnp_lofi.cg import damped_solve, solve_normal

each = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def random_image(row: Row, *, batch: int = 2, seed: int = 5, dtype=torch.float64) -> Tensor:
    dtype = dtype.to_complex() if row.complex_image else dtype
    return torch.randn(batch, row.channels, *row.shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def random_data(like: Tensor, seed: int = 6) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, generator=torch.Generator().manual_seed(seed))


def inner(a: Tensor, b: Tensor) -> float:
    return float((a.conj() * b).real.sum())


def dense(row: Row, x: Tensor) -> Tensor:
    """A x, flat, by the matrix."""
    A = row.matrix()
    return x.flatten(2).to(A.dtype) @ A.T


def dense_normal(row: Row) -> Tensor:
    """A^H A on flat images: its real part where they are real."""
    A = row.matrix()
    return A.mH @ A if row.complex_image else (A.mH @ A).real


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@each
def test_equals_the_matrix(row: Row) -> None:
    op, x = row.build(), random_image(row)
    y = op.A(x)
    assert relative(y.reshape(2, row.channels, -1), dense(row, x)) < row.accuracy
    v = random_data(y)
    flat = v.reshape(2, row.channels, -1)
    expected = (flat @ row.matrix().conj().to(v.dtype)).reshape(x.shape)
    assert relative(op.A_adjoint(v), expected if row.complex_image else expected.real) < row.accuracy
    expected = (x.flatten(2) @ dense_normal(row).T).reshape(x.shape)
    assert relative(op.A_adjoint_A(x), expected) < row.accuracy
    assert op.A_adjoint(v).dtype == op.A_adjoint_A(x).dtype == x.dtype


@each
def test_adjoint(row: Row) -> None:
    op, x = row.build(), random_image(row)
    y = op.A(x)
    v = random_data(y)
    assert inner(v, y) == pytest.approx(inner(op.A_adjoint(v), x), abs=1e-12 * float(v.norm() * y.norm()))
    torch.manual_seed(0)
    assert float(op.adjointness_test(num_samples=10, img_size=(1, *row.shape), dtype=x.dtype)) < 1e-12


@each
def test_adjoint_in_single_precision(row: Row) -> None:
    torch.manual_seed(0)
    dtype = torch.complex64 if row.complex_image else torch.float32
    assert float(row.build().adjointness_test(num_samples=10, img_size=(1, *row.shape), dtype=dtype)) < 1e-5


@each
def test_linear(row: Row) -> None:
    op, x, z = row.build(), random_image(row), random_image(row, seed=7)
    torch.testing.assert_close(op.A(2.5 * x - z), 2.5 * op.A(x) - op.A(z), rtol=1e-10, atol=1e-10)


@each
def test_batch_is_a_loop(row: Row) -> None:
    op, x = row.build(), random_image(row)
    loop = [torch.cat([op.A(x[b : b + 1, c : c + 1]) for c in range(row.channels)], 1) for b in range(2)]
    torch.testing.assert_close(op.A(x), torch.cat(loop), rtol=1e-10, atol=1e-10)
    noncontiguous = random_image(row, batch=3).flip(0)[1:].mT.contiguous().mT
    torch.testing.assert_close(op.A(noncontiguous), op.A(noncontiguous.contiguous()))


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_image(row: Row, dtype: torch.dtype) -> None:
    op, x = row.build(), random_image(row, dtype=dtype)
    y = op.A(x)
    assert y.real.dtype == dtype and op.A_adjoint(y).dtype == op.A_dagger(y).dtype == x.dtype
    wide = row.build().A(x.to(torch.complex128 if row.complex_image else torch.float64))
    assert relative(y.to(wide.dtype), wide) < (1e-5 if dtype == torch.float32 else 1e-15)


@each
def test_moving_keeps_the_geometry(row: Row) -> None:
    x = random_image(row)
    for op in (row.build().to(torch.float64), row.build().float(), row.build().half()):
        assert relative(op.A(x).reshape(2, row.channels, -1), dense(row, x)) < row.accuracy
    copy = row.build()
    copy.load_state_dict(row.build().state_dict())
    torch.testing.assert_close(copy.A(x), row.build().A(x))


@each
def test_gradients(row: Row) -> None:
    op = row.build()
    x = random_image(row, batch=1)[:, :1].requires_grad_()
    y = random_data(op.A(x)).requires_grad_()
    for function, point in ((op.A, x), (op.A_adjoint, y), (op.A_adjoint_A, x)):
        assert torch.autograd.gradcheck(function, point, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, point, fast_mode=True)
    assert torch.autograd.gradcheck(lambda z, v: op.prox_l2(z, v, 0.7, tol=1e-13, max_iter=200), (x, y), fast_mode=True)


@each
def test_prox_is_the_minimiser(row: Row) -> None:
    op, z = row.build(), random_image(row)
    y = random_data(op.A(z))
    before = (op.max_iter, op.tol, op.solver)
    backprojection = op.A_adjoint(y)
    n = z[0, 0].numel()
    for gamma in (0.3, torch.tensor([0.2, 5.0], dtype=torch.float64).reshape(2, 1, 1, 1)):
        per_item = torch.as_tensor(gamma, dtype=torch.float64).reshape(-1).expand(2)
        N = per_item[:, None, None] * dense_normal(row) + torch.eye(n, dtype=torch.float64)
        rhs = per_item.reshape(2, 1, 1, 1) * backprojection + z
        expected = torch.linalg.solve(N, rhs.flatten(2).mT.to(N.dtype)).mT.reshape(z.shape)
        found = op.prox_l2(z, y, gamma, tol=1e-12, max_iter=300, solver="CG", verbose=False)
        assert relative(found, expected) < 10 * row.accuracy
    assert before == (op.max_iter, op.tol, op.solver)
    zero = op.prox_l2(torch.zeros_like(z), y, 0.3)
    torch.testing.assert_close(op.prox_l2(None, y, 0.3), zero)
    torch.testing.assert_close(op.prox_l2(0.0, y, 0.3), zero)


@each
def test_deepinv_finds_its_way(row: Row) -> None:
    op, z = row.build(), random_image(row)
    y = random_data(op.A(z))
    fidelity = L2()
    torch.testing.assert_close(fidelity.prox(z, y, op, gamma=0.7), op.prox_l2(z, y, 0.7))
    torch.testing.assert_close(fidelity.grad(z, y, op), op.A_adjoint(op.A(z) - y))
    copy = op.clone()
    torch.testing.assert_close(copy.A(z), op.A(z))
    assert op.noise_model is not row.build().noise_model


@each
def test_solve_normal(row: Row) -> None:
    op, b = row.build(), random_image(row)
    n = b[0, 0].numel()
    expected = torch.linalg.solve(
        dense_normal(row) + 0.2 * torch.eye(n, dtype=torch.float64), b.flatten(2).mT
    ).mT.reshape(b.shape)
    x, info = solve_normal(op, b, 0.2, init=torch.ones_like(b), tol=1e-12, max_iter=300)
    assert info.converged and info.residual.shape == (2,)
    assert relative(x, expected) < 10 * row.accuracy
    general, _ = damped_solve(op.A_adjoint_A, b, 0.2, tol=1e-12, max_iter=300)
    assert relative(x, general) < 1e-9


@each
def test_dagger_is_the_pseudo_inverse(row: Row) -> None:
    op = row.build()
    x = random_image(row)
    y = op.A(x)
    N = dense_normal(row)
    backprojection = op.A_adjoint(y).flatten(2)
    expected = (torch.linalg.pinv(N, rtol=1e-10, hermitian=True) @ backprojection.mT).mT.reshape(x.shape)
    found = op.A_dagger(y, tol=1e-9, max_iter=300)
    assert relative(op.A(found), op.A(expected)) < max(1e-4, row.accuracy)


@each
def test_norm(row: Row) -> None:
    op = row.build()
    assert isinstance(op.norm, float)
    exact = float(torch.linalg.eigvalsh(dense_normal(row))[-1])
    assert op.norm == pytest.approx(exact, rel=max(1e-5, row.accuracy))


@each
def test_noise_is_per_real_component(row: Row) -> None:
    op = row.build(sigma=0.3)
    assert op.sigma == 0.3 and row.build().sigma is None
    x = random_image(row, batch=1, dtype=torch.float32).expand(300, -1, -1, -1)
    torch.manual_seed(1)
    noise = op(x) - op.A(x)
    kept = row.noisy(noise)
    parts = torch.view_as_real(kept).unbind(-1) if kept.is_complex() else [kept]
    for part in parts:
        assert float(part.std()) == pytest.approx(0.3, rel=0.03)
        assert float(part.mean()) == pytest.approx(0, abs=0.01)
    assert (noise != 0).sum() == (kept != 0).sum()
    torch.testing.assert_close(row.build()(x), op.A(x))  # and none where sigma is not given


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@each
def test_on_cuda(row: Row) -> None:
    op, x = row.build(), random_image(row)
    y, moved = op.A(x), row.build().to("cuda")
    assert relative(moved.A(x.cuda()).cpu(), y) < 1e-9
    assert relative(moved.A_adjoint(y.cuda()).cpu(), op.A_adjoint(y)) < 1e-9
    assert relative(moved.A_adjoint_A(x.cuda()).cpu(), op.A_adjoint_A(x)) < 1e-9
