"""Every operator: one row of the table in operator_rows.py, compared with its dense matrix."""

import io
import pickle

import pytest
import torch
from deepinv.optim import L2
from deepinv.physics import GaussianNoise
from operator_rows import ROWS, Row
from torch import Tensor

from pnp_lofi.cg import ConvergenceWarning, damped_solve, solve_normal
from pnp_lofi.operators import LowDose, Radon

each = pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.slow else []) for row in ROWS]
)
CLOSED = [row for row in ROWS if row.build().closed_form]


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
        found = op.prox_l2(z, y, gamma, tol=1e-13, max_iter=300, solver="CG", verbose=False)
        assert relative(found, expected) < 10 * row.accuracy
    assert before == (op.max_iter, op.tol, op.solver)
    zero = op.prox_l2(torch.zeros_like(z), y, 0.3)
    torch.testing.assert_close(op.prox_l2(None, y, 0.3), zero)
    torch.testing.assert_close(op.prox_l2(0.0, y, 0.3), zero)


@pytest.mark.parametrize("row", CLOSED, ids=lambda row: row.name)
@pytest.mark.parametrize("gamma", [1e6, 1e12])
def test_a_large_gamma_does_not_amplify_rounding(row: Row, gamma: float) -> None:
    """What A^H does not reach stays that of z."""
    op, z = row.build(), random_image(row, dtype=torch.float32)
    y = random_data(op.A(z))
    wide = torch.promote_types(z.dtype, torch.float64)
    expected = op.prox_l2(z.to(wide), y.to(torch.promote_types(y.dtype, torch.float64)), gamma)
    assert relative(op.prox_l2(z, y, gamma).to(wide), expected) < 1e-5


@each
def test_gamma_has_a_gradient(row: Row) -> None:
    op, z = row.build(), random_image(row)
    y = random_data(op.A(z))
    gamma = torch.tensor([0.4, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: op.prox_l2(z, y, g, tol=1e-13, max_iter=300), gamma, fast_mode=True)


@each
def test_gamma_may_be_of_another_precision(row: Row) -> None:
    op, z = row.build(), random_image(row, dtype=torch.float32)
    y = random_data(op.A(z))
    for gamma in (torch.tensor([0.5], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)):
        torch.testing.assert_close(op.prox_l2(z, y, gamma), op.prox_l2(z, y, 0.5))
    alpha = torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64)
    torch.testing.assert_close(op.solve_normal(z, alpha)[0], op.solve_normal(z, 0.5)[0])


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


@each
def test_sigma_is_that_of_the_noise_model(row: Row) -> None:
    op, x = row.build(sigma=0.3), random_image(row, dtype=torch.float32)
    per_component = 2**0.5 if op.complex_data else 1.0  # of deepinv's convention
    op.set_noise_model(GaussianNoise(0.5 * per_component))
    assert op.sigma == pytest.approx(0.5)
    op(x, sigma=0.7 * per_component)
    assert op.sigma == pytest.approx(0.7)
    op.update(sigma=torch.tensor(0.2 * per_component))
    assert op.sigma == pytest.approx(0.2)
    op.update(sigma=torch.tensor([0.1, 0.2]))
    assert op.sigma is None


@each
def test_no_steps_are_no_steps(row: Row) -> None:
    op, x = row.build(), random_image(row)
    y = op.A(x)
    if op.closed_form:
        torch.testing.assert_close(op.A_dagger(y, max_iter=0), op.A_dagger(y))
        return
    with pytest.warns(ConvergenceWarning, match="stopped after 0 of 0 steps"):
        assert not op.A_dagger(y, max_iter=0).any()
    with pytest.warns(ConvergenceWarning, match="stopped after 0 of 0 steps"):
        torch.testing.assert_close(op.prox_l2(x, 2 * y, 1.0, max_iter=0), x)


@each
def test_arguments_that_would_be_ignored_are_refused(row: Row) -> None:
    op, x = row.build(), random_image(row)
    y = op.A(x)
    parts = {name.rpartition(".")[2]: part for name, part in op.named_buffers() if not name.endswith("_holder")}
    for name, part in ({"filter": x} | parts).items():
        calls = [
            lambda **k: op.A_adjoint_A(x, **k),
            lambda **k: op.A_dagger(y, **k),
            lambda **k: op.prox_l2(x, y, 1.0, **k),
            op.update,
        ]
        if name != "angles":  # which projectors take
            calls += [lambda **k: op.A(x, **k), lambda **k: op.A_adjoint(y, **k), lambda **k: op(x, **k)]
        for call in calls:
            with pytest.raises(TypeError, match=f"takes no {name}= in a call"):
                call(**{name: part})
            call(**{name: None})
    with pytest.raises(TypeError, match="takes no sigma= in a call"):  # there is no noise to set
        op(x, sigma=0.1)
    torch.testing.assert_close(op.A(x, seed=1, verbose=True), y)


@each
def test_an_empty_batch_is_refused(row: Row) -> None:
    op, x = row.build(), random_image(row)
    y = op.A(x)
    for call in (lambda: op.A(x[:0]), lambda: op.A_adjoint(y[:0]), lambda: op.A_adjoint_A(x[:, :0])):
        with pytest.raises(ValueError, match=r"expects at least one item, got [xy] of shape|expects x of shape"):
            call()


@each
def test_pickle(row: Row) -> None:
    """Without what is kept between calls."""
    op, x = row.build(sigma=0.3), random_image(row)
    fresh = pickle.dumps(op)
    y = op.A(x)
    prox = op.prox_l2(x, y, 0.5)
    file = io.BytesIO()
    torch.save(op, file)
    file.seek(0)
    for data in (fresh, pickle.dumps(op)):
        copy = pickle.loads(data)
        torch.testing.assert_close(copy.A(x), y)
        torch.testing.assert_close(copy.prox_l2(x, y, 0.5), prox)
        assert copy.sigma == op.sigma and len(data) < 1.1 * len(fresh)
    torch.testing.assert_close(torch.load(file, weights_only=False).A_adjoint(y), op.A_adjoint(y))


def test_pickled_noise() -> None:
    """That of photons, and a generator's state."""
    noise = LowDose(500.0, rng=torch.Generator().manual_seed(3))
    op = Radon((6, 6), 8, 9, noise_model=noise)
    x = torch.rand(1, 1, 6, 6)
    copies = pickle.loads(pickle.dumps(op)), pickle.loads(pickle.dumps(noise))
    y = op(x)
    torch.testing.assert_close(copies[0](x), y)
    torch.testing.assert_close(copies[1](op.A(x)), y)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@each
def test_on_cuda(row: Row) -> None:
    op, x = row.build(), random_image(row)
    y, moved = op.A(x), row.build().to("cuda")
    assert relative(moved.A(x.cuda()).cpu(), y) < 1e-9
    assert relative(moved.A_adjoint(y.cuda()).cpu(), op.A_adjoint(y)) < 1e-9
    assert relative(moved.A_adjoint_A(x.cuda()).cpu(), op.A_adjoint_A(x)) < 1e-9
