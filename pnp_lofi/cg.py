"""Linear algebra on images: conjugate gradients, the normal equations, the norm of an operator."""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

Linear = Callable[[Tensor], Tensor]
SINGULAR = 4.0  # roundings of the largest eigenvalue seen, below which an eigenvalue cannot be told from zero
TRUSTED = 10.0  # roundings of b, below which CG's own residual falls whatever x is
SETTLED = 1e-4  # relative residual of an eigenvector at which its value, good to the square of that, is found
BREAKDOWN = 1e-6  # relative size of a Lanczos vector that is only rounding: the Krylov space is exhausted


class Reduce(Protocol):
    """The sum ("sum") or largest ("max") of a tensor's values over the processes that hold the parts of an image."""

    def __call__(self, t: Tensor, op: str = "sum") -> Tensor: ...


def whole(t: Tensor, op: str = "sum") -> Tensor:
    """The :class:`Reduce` of an image in one process: the tensor itself."""
    return t


class ConvergenceWarning(UserWarning):
    """An iterative solve stopped before it reached its tolerance."""


class CGInfo(NamedTuple):
    """How a solve ended.

    :param int iterations: applications of the operator by the slowest item.
    :param torch.Tensor residual: (B,) ||b - N x|| / ||b||: by CG's own recursion, but measured, by one more
        application, where the recursion has fallen below 10 roundings (1.2e-6 in single precision).
    :param bool converged: whether every item reached the tolerance.
    """

    iterations: int
    residual: Tensor
    converged: bool


class _LinearMap(torch.autograd.Function):
    """x -> L x whose derivative is the adjoint that was given, hence differentiable any number of times."""

    @staticmethod
    def forward(x: Tensor, apply: Linear, adjoint: Linear) -> Tensor:
        return apply(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Linear, Linear], output: Tensor) -> None:
        ctx.apply_map, ctx.adjoint_map = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None, None]:
        return _LinearMap.apply(grad[0], ctx.adjoint_map, ctx.apply_map), None, None

    @staticmethod
    def jvp(ctx: Any, *tangent: Tensor) -> Tensor:
        return _LinearMap.apply(tangent[0], ctx.apply_map, ctx.adjoint_map)


def linear_map(x: Tensor, apply: Linear, adjoint: Linear) -> Tensor:
    """L x, with L^H for its derivative: for linear maps that run outside of autograd.

    :param torch.Tensor x: real or complex.
    :param Callable apply: L.
    :param Callable adjoint: L^H with respect to Re<., .>, so that a real x gets a real gradient.
    """
    return _LinearMap.apply(x, apply, adjoint)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Re<a, b> of each item, (B,)."""
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    return torch.linalg.vecdot(a.reshape(len(a), -1), b.reshape(len(b), -1))


@torch.no_grad()
def conjugate_gradient(
    normal: Linear,
    rhs: Tensor,
    init: Tensor | None = None,
    *,
    tol: float = 1e-5,
    max_iter: int = 50,
    precondition: Linear | None = None,
    reduce: Reduce = whole,
) -> tuple[Tensor, CGInfo]:
    """Solve N x = b for a self-adjoint N >= 0 that acts on each item of the batch alike.

    Every item has its own unit, its largest value, lest squares under- or overflow, its own step length, and stops on
    its own: when ||b - N x|| <= tol ||b|| or when <r, M r> or <p, N p> is lost in rounding, as the latter is for
    directions that a singular N does not see. Not differentiated: :func:`solve_normal` is.

    :param Callable normal: N, (B, ...) to (B, ...).
    :param torch.Tensor rhs: b, (B, ...), real or complex; the inner product is Re<., .>.
    :param torch.Tensor init: where to start, the shape of b; default zero, as for items that are farther off than zero.
    :param float tol: relative residual; int max_iter: steps at most.
    :param Callable precondition: M, self-adjoint and positive, near N^-1; default the identity.
    :param Reduce reduce: where b is a part of an image, over whose parts inner products are summed.
    :returns: x and a :class:`CGInfo`.
    :raises ValueError: if init does not have the shape of b.
    Source: Hestenes and Stiefel 1952.
    """
    if init is not None and init.shape != rhs.shape:
        raise ValueError(f"init must have the shape of rhs, {tuple(rhs.shape)}, got {tuple(init.shape)}")

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return reduce(_dot(a, b))

    spread = (-1,) + (1,) * (rhs.ndim - 1)
    largest = reduce(torch.linalg.vector_norm(rhs.flatten(1), math.inf, dim=1), "max").view(spread)
    unit = torch.where(largest > 0, largest, 1)
    r = rhs / unit
    size = dot(r, r).sqrt()
    x = torch.zeros_like(r)
    if init is not None:
        start = init.to(r.dtype) / unit
        rest = r - normal(start)
        nearer = (dot(rest, rest).sqrt() < size).view(spread)
        x, r = torch.where(nearer, start, x), torch.where(nearer, rest, r)
        del start, rest  # images may be large
    z = r if precondition is None else precondition(r)
    p, power, iterations = z.clone(), dot(r, z), 0
    square = power if precondition is None else dot(r, r)
    eps, tiny, steepest = torch.finfo(r.dtype).eps, torch.finfo(r.dtype).tiny, torch.zeros_like(power)
    active = (square.sqrt() > tol * size) & (power > tiny)
    while iterations < max_iter and bool(active.any()):
        q = normal(p)
        curvature, length = dot(p, q), dot(p, p)
        steepest = torch.maximum(steepest, curvature / length.clamp(min=tiny))
        active = active & (curvature > SINGULAR * eps * steepest * length)
        step = torch.where(active, power / curvature, 0).to(x.dtype).view(spread)
        x.addcmul_(p, step)
        r.addcmul_(q, -step)
        del q
        z = r if precondition is None else precondition(r)
        new = torch.where(active, dot(r, z), power)
        p.mul_(torch.where(active, new / power, 0).to(x.dtype).view(spread)).add_(z)
        square = torch.where(active, new if precondition is None else dot(r, r), square)
        active = active & (square.sqrt() > tol * size) & (new > tiny)
        power, iterations = new, iterations + 1
    residual = square.sqrt() / torch.where(size > 0, size, 1)
    doubtful = (residual < TRUSTED * eps) & (size > 0)
    if bool(doubtful.any()):
        rest = rhs / unit - normal(x)
        residual = torch.where(doubtful, dot(rest, rest).sqrt() / size, residual)
    return x.mul_(unit), CGInfo(iterations, residual, bool((residual <= tol).all()))


class _DampedSolve(torch.autograd.Function):
    """b, alpha -> x = (N + alpha)^-1 b, whose derivative (N + alpha)^-1 (db - dalpha x) is a solve as well."""

    @staticmethod
    def forward(b: Tensor, alpha: Tensor, solve: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return solve(b, alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1], output)
        ctx.save_for_forward(inputs[1], output)
        ctx.solve = inputs[2]

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        alpha, x = ctx.saved_tensors
        b = _DampedSolve.apply(grad[0], alpha, ctx.solve)
        return b, -(b.conj() * x).real.sum_to_size(alpha.shape) if ctx.needs_input_grad[1] else None, None

    @staticmethod
    def jvp(ctx: Any, *tangent: Any) -> Tensor:
        alpha, x = ctx.saved_tensors
        db = torch.zeros_like(x) if tangent[0] is None else tangent[0]
        return _DampedSolve.apply(db if tangent[1] is None else db - tangent[1] * x, alpha, ctx.solve)


def damped_solve(
    normal: Linear,
    rhs: Tensor,
    alpha: float | Tensor,
    init: Tensor | None = None,
    *,
    tol: float = 1e-5,
    max_iter: int = 50,
    precondition: Linear | None = None,
    reduce: Reduce = whole,
) -> tuple[Tensor, CGInfo]:
    """(N + alpha)^-1 b by conjugate gradients; differentiable in b and alpha, any number of times, by further solves
    (implicitly), which warn if they do not reach the tolerance.

    :param float alpha: >= 0, or a tensor that broadcasts against b.
    :param Callable precondition: self-adjoint and positive, near (N + alpha)^-1.
    :param Reduce reduce: as in :func:`conjugate_gradient`. The derivative in alpha is then that of the part held here.
    """
    infos: list[CGInfo] = []

    def solve(b: Tensor, alpha: Tensor) -> Tensor:
        start = init if not infos else None  # the first call is ours, later ones are derivatives
        damping = alpha.to(b.dtype)
        x, info = conjugate_gradient(
            lambda v: torch.addcmul(normal(v), v, damping),
            b,
            start,
            tol=tol,
            max_iter=max_iter,
            precondition=precondition,
            reduce=reduce,
        )
        if infos and not info.converged:
            what = f"a derivative by conjugate gradients {shortfall(info, max_iter, tol)}"
            warnings.warn(what, ConvergenceWarning, stacklevel=2)
        infos.append(info)
        return x

    alpha = torch.as_tensor(alpha, dtype=rhs.real.dtype, device=rhs.device)
    return _DampedSolve.apply(rhs, alpha, solve), infos[0]


def shortfall(info: CGInfo, max_iter: int, tol: float) -> str:
    """What a warning says."""
    return (
        f"stopped after {info.iterations} of {max_iter} steps at a relative residual of "
        f"{float(info.residual.max()):.1e}, wanted {tol:.1e}; raise max_iter or tol"
    )


def checked_alpha(alpha: float | Tensor, rhs: Tensor) -> float | Tensor:
    """A number as it is, a tensor on the device and in the precision of b.

    :raises ValueError: unless alpha is finite and >= 0.
    """
    fine = torch.as_tensor(alpha)
    if not bool((torch.isfinite(fine) & (fine >= 0)).all()):
        raise ValueError(f"alpha must be finite and >= 0, got {alpha}; it is sigma_n^2 / sigma_d^2")
    return alpha.to(rhs.device, rhs.real.dtype) if isinstance(alpha, Tensor) else alpha


def solve_normal(
    op: LinearPhysics,
    rhs: Tensor,
    alpha: float | Tensor,
    init: Tensor | None = None,
    *,
    tol: float = 1e-5,
    max_iter: int = 50,
) -> tuple[Tensor, CGInfo]:
    """(A^H A + alpha)^-1 b: by the operator's own ``solve_normal`` where it has one, else by conjugate gradients.

    :param LinearPhysics op: forward operator A.
    :param torch.Tensor rhs: b, (B, C, H, W).
    :param float alpha: >= 0, or a tensor (B, 1, 1, 1).
    :param torch.Tensor init: where to start; closed forms need none.
    :param float tol: relative residual; int max_iter: steps at most.
    :returns: x, differentiable in b and alpha, and a :class:`CGInfo`.
    :raises ValueError: if alpha is negative or not finite.
    """
    alpha = checked_alpha(alpha, rhs)
    if hasattr(op, "solve_normal"):
        return op.solve_normal(rhs, alpha, init=init, tol=tol, max_iter=max_iter)
    reduce = getattr(op, "reduce", whole)
    return damped_solve(op.A_adjoint_A, rhs, alpha, init, tol=tol, max_iter=max_iter, reduce=reduce)


@torch.no_grad()
def operator_norm(op: LinearPhysics, like: Tensor, *, iterations: int = 30, seed: int = 0) -> float:
    """L, the largest eigenvalue of A^H A, by Lanczos.

    One application of A^H A a step, as in power iteration, whose vectors span the same space; taking the best vector
    of the whole space gives in 30 steps what power iteration needs hundreds for. The value is approached from below.

    :param LinearPhysics op: forward operator A; on a strip of the image (its ``strips``) with the answer of the whole.
    :param torch.Tensor like: (B, C, H, W), an image with the shape, dtype and device to work in; its values are unused.
    :param int iterations: steps at most.
    :param int seed: of the first vector, the same on every device.
    :raises ValueError: if A^H A gives NaN or inf.
    Source: Golub and Van Loan, Matrix Computations, section 10.1.
    """
    generator = torch.Generator().manual_seed(seed)
    strips, reduce = getattr(op, "strips", None), getattr(op, "reduce", whole)
    if strips is None:
        v = torch.randn((1, *like.shape[1:]), dtype=like.dtype, generator=generator).to(like.device)
    else:
        v = strips.normal((1, *like.shape[1:-2]), like.dtype, generator).to(like.device)
    v = v / _norm(v, reduce)
    before, diagonal, off = torch.zeros_like(v), [], [0.0]
    for _ in range(iterations):
        w = op.A_adjoint_A(v)
        diagonal.append(float(reduce(_dot(v, w))))
        w = w - diagonal[-1] * v - off[-1] * before
        size = float(_norm(w, reduce))
        if not math.isfinite(size):
            raise ValueError("A^H A of a finite image is NaN or inf; check the operator's geometry and weights")
        off.append(size)
        value, vector = _largest(diagonal, off[1:-1])
        if size * abs(float(vector[-1])) <= SETTLED * value or size <= BREAKDOWN * max(diagonal):
            break  # the first is ||A^H A u - value u|| of the best vector u so far
        before, v = v, w / size
    return value


def _norm(v: Tensor, reduce: Reduce) -> Tensor:
    own = v.norm()
    square = own.double().square()
    total = reduce(square)
    return own if total is square else total.sqrt().to(own.dtype)  # whole images to the last bit


def _largest(diagonal: list[float], off: list[float]) -> tuple[float, Tensor]:
    """The largest eigenvalue of a tridiagonal matrix, and its vector."""
    beta = torch.tensor(off, dtype=torch.float64)
    T = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(beta, 1) + torch.diag(beta, -1)
    values, vectors = torch.linalg.eigh(T)
    return float(values[-1]), vectors[:, -1]
