"""Every operator: one row of the table below, compared with a dense matrix that is built here."""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from deepinv.optim import L2
from deepinv.physics import LinearPhysics
from dense_rays import fan, joseph_matrix, parallel
from torch import Tensor

from pnp_lofi.cg import damped_solve, solve_normal
from pnp_lofi.operators import (
    NUFFT,
    Blur,
    Derivatives,
    Downsample,
    FanBeam,
    Fourier,
    KaiserSquires,
    Mask,
    Radon,
    Weighted,
    random_mask,
)
from pnp_lofi.sampling import keys_cubic

M = 25


def uv_of(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(2, n, dtype=torch.float64, generator=generator) - 1) * math.pi


def weights_of(n: int) -> Tensor:
    w = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    w[3] = 0
    return w


def dft(shape: tuple[int, int], uv: Tensor, weights: Tensor | None = None) -> Tensor:
    """(M, HW): the definition of the visibilities, term by term."""
    r = torch.arange(shape[0], dtype=torch.float64) - shape[0] // 2
    c = torch.arange(shape[1], dtype=torch.float64) - shape[1] // 2
    phase = uv[0, :, None, None] * r[:, None] + uv[1, :, None, None] * c
    A = torch.exp(-1j * phase).flatten(1) / math.sqrt(shape[0] * shape[1])
    return A if weights is None else weights.sqrt()[:, None] * A


@dataclass(frozen=True)
class Row:
    name: str
    shape: tuple[int, int]
    build: Callable[..., LinearPhysics]  # takes sigma=
    matrix: Callable[[], Tensor]  # acts on one channel's pixels, or on all channels together where channels == 1
    complex_image: bool = False
    accuracy: float = 1e-11  # against the definition, float64
    channels: int = 3  # of the images that it is tried with
    noisy: Callable[[Tensor], Tensor] = lambda y: y  # the data that get noise


def nufft(
    name: str, shape: tuple[int, int], *, weighted: bool = True, accuracy: float = 1e-11, **options: object
) -> Row:
    w = weights_of(M) if weighted else None
    return Row(
        name, shape, lambda **noise: NUFFT(shape, uv_of(M), w, **options, **noise), lambda: dft(shape, uv_of(M), w),
        not options.get("real", True), accuracy,
    )  # fmt: skip


def random_kernel(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) - 0.2


def folded(n: int, size: int, boundary: str) -> int | None:
    """The pixel that a position beyond the image stands for."""
    if boundary == "circular":
        return n % size
    if boundary == "replicate":
        return min(max(n, 0), size - 1)
    if boundary == "reflect":
        return int(np.pad(np.arange(size), 20, mode="reflect")[n + 20])
    return n if 0 <= n < size else None


def convolution(shape: tuple[int, int], kernel: Tensor, boundary: str) -> Tensor:
    """(HW, HW) or, for "valid", fewer rows: y[n] = sum_k h[k] x[n - (k - c)], term by term."""
    (H, W), (h, w) = shape, kernel.shape
    A = torch.zeros(H, W, H, W, dtype=torch.float64)
    for r, c, i, j in itertools.product(range(H), range(W), range(h), range(w)):
        row, column = folded(r - (i - h // 2), H, boundary), folded(c - (j - w // 2), W, boundary)
        if row is not None and column is not None:
            A[r, c, row, column] += kernel[i, j]
    if boundary == "valid":
        top, left = h - 1 - h // 2, w - 1 - w // 2
        A = A[top : top + H - h + 1, left : left + W - w + 1]
    return A.flatten(2).flatten(0, 1)


def blur(shape: tuple[int, int], size: tuple[int, int], boundary: str = "circular") -> Row:
    kernel = random_kernel(*size)
    name = f"blur-{boundary}-{size[0]}x{size[1]}"
    return Row(
        name, shape, lambda **noise: Blur(shape, kernel, boundary=boundary, **noise),
        lambda: convolution(shape, kernel, boundary),
    )  # fmt: skip


def downsample(shape: tuple[int, int], factor: int, size: tuple[int, int], phase: int, boundary: str) -> Row:
    kernel = random_kernel(*size)

    def matrix() -> Tensor:
        A = convolution(shape, kernel, boundary).unflatten(0, shape)
        return A[phase::factor, phase::factor].flatten(0, 1)

    return Row(
        f"downsample-{factor}-{boundary}", shape,
        lambda **noise: Downsample(shape, factor, kernel, phase=phase, boundary=boundary, **noise), matrix,
    )  # fmt: skip


def fourier(shape: tuple[int, int], *, real: bool = True, centred: bool = True) -> Row:
    mask = random_mask(shape, 0.5, seed=8)

    def matrix() -> Tensor:
        k = [torch.arange(n, dtype=torch.float64) - n // 2 for n in shape]
        uv = torch.cartesian_prod(*(2 * math.pi * f / n for f, n in zip(k, shape, strict=True))).T
        A = dft(shape, uv)
        if not centred:  # the image's origin at the pixel (0, 0), and frequency zero as well
            A = A * torch.exp(-1j * (uv[0] * (shape[0] // 2) + uv[1] * (shape[1] // 2)))[:, None]
            A = torch.fft.ifftshift(A.unflatten(0, shape), (0, 1)).flatten(0, 1)
        return A * mask.flatten()[:, None]

    name = f"fourier-{'real' if real else 'complex'}-{'centred' if centred else 'plain'}-{shape[0]}x{shape[1]}"
    return Row(
        name, shape, lambda **noise: Fourier(mask, real=real, centred=centred, **noise), matrix, not real,
        noisy=lambda y: y[..., mask],
    )  # fmt: skip


def keys_six(t: Tensor) -> Tensor:
    """Keys 1981, eq. 20, as printed."""
    t = t.abs()
    near = 4 / 3 * t**3 - 7 / 3 * t**2 + 1
    middle = -7 / 12 * t**3 + 3 * t**2 - 59 / 12 * t + 15 / 6
    far = 1 / 12 * t**3 - 2 / 3 * t**2 + 21 / 12 * t - 3 / 2
    return torch.where(t < 1, near, torch.where(t < 2, middle, torch.where(t < 3, far, 0)))


def derivatives(shape: tuple[int, int], order: int, taps: int, **options: int) -> Row:
    coords = torch.rand(15, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def weights(at: Tensor, size: int) -> Tensor:
        n = torch.arange(-4, size + 4)
        w = (keys_cubic if taps == 4 else keys_six)(at * size - 0.5 - n)
        return torch.zeros(size, dtype=at.dtype).index_add(
            0, torch.tensor([folded(int(i), size, "reflect") for i in n]), w
        )

    def value(at: Tensor) -> Tensor:
        return (weights(at[0], shape[0])[:, None] * weights(at[1], shape[1])).flatten()

    @functools.cache
    def matrix() -> Tensor:
        if order == 1:
            return torch.stack([torch.func.jacfwd(value)(at).T for at in coords], 1).flatten(0, 1)
        second = torch.stack([torch.func.hessian(value)(at) for at in coords])  # (P, HW, 2, 2)
        return torch.cat([second[..., 0, 0], second[..., 0, 1], second[..., 1, 1]])

    return Row(
        f"derivatives-{order}-{taps}",
        shape,
        lambda **noise: Derivatives(shape, coords, order=order, taps=taps, **options, **noise),
        matrix,
    )


def composed(**noise: float) -> LinearPhysics:
    return NUFFT((6, 6), uv_of(M), weights_of(M), **noise) * Blur((6, 6), random_kernel(3, 3))


def tomography(name: str, shape: tuple[int, int], kind: Callable[..., LinearPhysics], lines: tuple) -> Row:
    return Row(name, shape, lambda **noise: kind(**noise), lambda: joseph_matrix(shape, *lines))


VIEWS = torch.arange(8, dtype=torch.float64) * math.pi / 8
FAN = {"source_origin": 12.0, "source_detector": 18.0, "detectors": 11, "spacing": 1.4}
TOMOGRAPHY = [
    tomography("radon", (6, 6), functools.partial(Radon, (6, 6), 8, 9), parallel(VIEWS, 9)),
    tomography(
        "radon-shifted-rectangle", (5, 8), functools.partial(Radon, (5, 8), VIEWS, 8, spacing=1.2, offset=0.3),
        parallel(VIEWS, 8, 1.2, 0.3),
    ),
    tomography("radon-free", (7, 6), functools.partial(Radon, (7, 6), 8, 9, backend="free"), parallel(VIEWS, 9)),
    tomography("fan", (6, 6), functools.partial(FanBeam, (6, 6), 2 * VIEWS, **FAN), fan(2 * VIEWS, 11, 12, 18, 1.4)),
]  # fmt: skip


def shear_weights(components: int, shape: tuple[int, int]) -> Tensor:
    w = torch.rand(components, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9)) + 0.1
    return w if components == 2 else w[0]


def shear(
    name: str, shape: tuple[int, int], *, mask: Tensor | None = None, weights: Tensor | None = None,
    pad: tuple[int, int] = (0, 0),
) -> Row:  # fmt: skip
    box = (shape[0] + 2 * pad[0], shape[1] + 2 * pad[1])
    seen = torch.ones(shape, dtype=torch.bool) if mask is None else mask

    def matrix() -> Tensor:
        """(2 HW, box): gamma1, then gamma2, by explicit discrete Fourier transforms of the box."""
        k = torch.cartesian_prod(*((torch.arange(n) + n // 2) % n - n // 2 for n in box)).double()
        p = torch.cartesian_prod(*(torch.arange(n) for n in box)).double()
        F = torch.exp(-2j * math.pi * (p / torch.tensor(box) @ k.T).T)
        k2, k1 = (k / torch.tensor(box)).T  # cycles a pixel, rows and columns
        D = torch.complex(k1**2 - k2**2, 2 * k1 * k2) / (k1**2 + k2**2).clamp_min(1e-30)
        gamma = (F.mH @ (D[:, None] * F) / len(p)).unflatten(0, box)
        gamma = gamma[pad[0] : pad[0] + shape[0], pad[1] : pad[1] + shape[1]]
        pair = torch.stack([gamma.real, gamma.imag]) * seen[..., None]
        return (pair if weights is None else pair * weights.sqrt()[..., None]).flatten(0, 2)

    return Row(
        f"shear-{name}", box, lambda **noise: KaiserSquires(shape, mask, weights=weights, pad=pad, **noise), matrix,
        channels=1, noisy=lambda y: y[..., seen],
    )  # fmt: skip


DOSE = weights_of(72).reshape(8, 9)
TOMOGRAPHY.append(
    Row(
        "radon-weighted", (6, 6), lambda **noise: Weighted(Radon((6, 6), 8, 9), DOSE, **noise),
        lambda: DOSE.flatten().sqrt()[:, None] * joseph_matrix((6, 6), *parallel(VIEWS, 9)),
        noisy=lambda y: y[..., DOSE > 0],
    )
)  # fmt: skip
MASK = random_mask((6, 6), 0.6, seed=2)
ROWS = [
    Row(
        "mask",
        (6, 6),
        lambda **noise: Mask(MASK, **noise),
        lambda: torch.diag(MASK.flatten().double()),
        noisy=lambda y: y[..., MASK],
    ),
    *TOMOGRAPHY,
    nufft("nufft", (6, 6)),
    nufft("nufft-odd-rectangle", (5, 8), weighted=False),
    nufft("nufft-one-row", (1, 7)),
    nufft("nufft-chunks", (6, 7), chunk=4),
    nufft("nufft-complex", (6, 6), real=False),
    nufft("nufft-preconditioned", (6, 7), precondition=True),
    nufft("nufft-preconditioned-complex", (5, 6), precondition=True, real=False),
    nufft("nufft-kb", (6, 6), backend="kb", accuracy=2e-3),
    nufft("nufft-kb-odd-complex", (7, 6), backend="kb", real=False, accuracy=2e-3),
    blur((6, 6), (3, 3)),
    blur((7, 6), (4, 5)),
    blur((4, 6), (7, 7)),  # larger than the image: it wraps
    blur((6, 7), (3, 4), "reflect"),
    blur((6, 6), (4, 3), "replicate"),
    blur((7, 6), (3, 3), "zero"),
    blur((6, 6), (3, 2), "valid"),
    downsample((6, 6), 2, (3, 4), 0, "circular"),
    downsample((6, 9), 3, (4, 5), 2, "circular"),
    downsample((6, 8), 2, (3, 3), 1, "reflect"),
    *(fourier((6, 6), real=real, centred=centred) for real in (True, False) for centred in (True, False)),
    fourier((5, 7)),
    fourier((7, 6), centred=False),
    derivatives((6, 6), 1, 4),
    derivatives((5, 8), 1, 6),
    derivatives((5, 7), 2, 6, chunk=9),
    Row(
        "composed",
        (6, 6),
        composed,
        lambda: dft((6, 6), uv_of(M), weights_of(M)) @ convolution((6, 6), random_kernel(3, 3), "circular").cdouble(),
    ),
    shear("periodic", (6, 6)),
    shear("odd-rectangle", (5, 8)),
    shear("one-row", (1, 6)),
    shear("masked", (6, 6), mask=MASK),
    shear("weighted", (6, 5), weights=shear_weights(1, (6, 5))),
    shear("weighted-masked", (6, 6), mask=MASK, weights=shear_weights(2, (6, 6))),
    shear("padded", (3, 4), pad=(1, 2)),
]
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


def test_mask_never_looks_outside() -> None:
    y = torch.rand(2, 3, 6, 6)
    blotted = torch.where(MASK, y, torch.nan)
    torch.testing.assert_close(Mask(MASK).A_adjoint(blotted), Mask(MASK).A_adjoint(y))
    torch.testing.assert_close(Mask(MASK).prox_l2(y, blotted, 2.0), y)
    x, _ = Mask(MASK).solve_normal(y, 0.0)
    torch.testing.assert_close(x, torch.where(MASK, y, 0))


def test_mask_per_channel() -> None:
    mask = torch.stack([random_mask((6, 7), 0.5, seed) for seed in range(3)])
    x = torch.rand(2, 3, 6, 7)
    torch.testing.assert_close(Mask(mask).A(x), x * mask)
    torch.testing.assert_close(Mask(mask[None].double()).A(x), x * mask)


def test_random_mask() -> None:
    mask = random_mask((20, 30), 0.3, seed=4)
    assert mask.dtype == torch.bool and mask.shape == (20, 30) and int(mask.sum()) == 180
    assert bool((mask == random_mask((20, 30), 0.3, seed=4)).all())
    assert bool((mask != random_mask((20, 30), 0.3, seed=5)).any())
    assert bool(random_mask((3, 3), 1.0).all()) and int(random_mask((3, 3), 1e-9).sum()) == 1


def test_whiten() -> None:
    w, uv, x = weights_of(M), uv_of(M), torch.rand(1, 1, 6, 6, dtype=torch.float64)
    vis = NUFFT((6, 6), uv).A(x)
    op = NUFFT((6, 6), uv, w)
    torch.testing.assert_close(op.whiten(vis), op.A(x))
    torch.testing.assert_close(op.whiten(vis[0, 0]), op.A(x)[0, 0])
    vis[..., 3] = torch.nan  # its weight is zero: a flagged row
    torch.testing.assert_close(op.whiten(vis), op.A(x))
    assert op.whiten(vis.to(torch.complex64)).dtype == torch.complex64


@pytest.mark.parametrize("shape", [(8, 8), (7, 10)])
@pytest.mark.parametrize("weighted", [True, False])
def test_psf_and_dirty_image(shape: tuple[int, int], weighted: bool) -> None:
    w = weights_of(M) if weighted else torch.ones(M, dtype=torch.float64)
    uv = uv_of(M)
    op = NUFFT(shape, uv, w if weighted else None, chunk=10)
    H, W = shape
    point = torch.zeros(1, 1, H, W, dtype=torch.float64)
    point[..., H // 2, W // 2] = 2.0
    beam = op.psf(dtype=torch.float64)
    torch.testing.assert_close(op.dirty(op.A(point))[0, 0], 2 * beam, rtol=1e-9, atol=1e-10)
    assert float(beam[H // 2, W // 2]) == pytest.approx(1.0, abs=1e-10) == pytest.approx(float(beam.max()), abs=1e-10)
    wide = op.psf((2 * H, 2 * W), dtype=torch.float64)
    r, c = torch.arange(2 * H) - H, torch.arange(2 * W) - W
    direct = (w[:, None, None] * torch.cos(uv[0, :, None, None] * r[:, None] + uv[1, :, None, None] * c)).sum(0)
    torch.testing.assert_close(wide, direct / w.sum(), rtol=1e-9, atol=1e-10)
    assert op.psf().dtype == torch.float32


def test_dirty_noise() -> None:
    shape, uv = (16, 16), uv_of(300)
    op = NUFFT(shape, uv, weights_of(300), sigma=0.7)
    torch.manual_seed(3)
    found = op.dirty(op(torch.zeros(200, 1, *shape))).std()
    assert op.dirty_noise() == pytest.approx(float(found), rel=0.02)
    assert op.dirty_noise(1.4) == pytest.approx(2 * op.dirty_noise())


def test_coordinates_wrap() -> None:
    x = torch.randn(1, 1, 7, 6, dtype=torch.float64)
    uv = torch.tensor([[math.pi, -math.pi * (1 + 5e-6), 1.0], [math.pi * (1 + 5e-6), 0.3, -math.pi]])
    for backend, accuracy in (("finufft", 1e-11), ("kb", 2e-3)):
        y = NUFFT((7, 6), uv, backend=backend).A(x)
        assert relative(y.flatten(2), x.flatten(2).to(y.dtype) @ dft((7, 6), uv.double()).T) < accuracy


@pytest.mark.parametrize(
    ("dtype", "eps", "accuracy"),
    [(torch.float32, None, 3e-6), (torch.float64, 1e-9, 1e-8), (torch.float64, None, 1e-11)],
)
def test_toeplitz_at_size(dtype: torch.dtype, eps: float | None, accuracy: float) -> None:
    uv, w = uv_of(3000), weights_of(3000)
    op = NUFFT((96, 75), uv, w, eps=eps)
    x = torch.randn(2, 1, 96, 75, dtype=dtype, generator=torch.Generator().manual_seed(0))
    y = op.A(x)
    assert relative(op.A_adjoint_A(x), op.A_adjoint(y)) < accuracy
    some = torch.randperm(3000, generator=torch.Generator().manual_seed(1))[:200]
    exact = x.flatten(1).to(torch.complex128) @ dft((96, 75), uv[:, some], w[some]).T
    assert relative(y[:, 0, some].to(torch.complex128), exact) < accuracy


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@each
def test_on_cuda(row: Row) -> None:
    op, x = row.build(), random_image(row)
    y, moved = op.A(x), row.build().to("cuda")
    assert relative(moved.A(x.cuda()).cpu(), y) < 1e-9
    assert relative(moved.A_adjoint(y.cuda()).cpu(), op.A_adjoint(y)) < 1e-9
    assert relative(moved.A_adjoint_A(x.cuda()).cpu(), op.A_adjoint_A(x)) < 1e-9
