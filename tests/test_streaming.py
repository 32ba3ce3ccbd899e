"""Normal equations in one pass against the whole, the definition, and a solver on either."""

import math
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from deepinv.models import Denoiser
from deepinv.optim import L2
from torch import Tensor

from pnp_lofi import ADMM
from pnp_lofi.noise import residual_level
from pnp_lofi.observation import Observation, write_observation
from pnp_lofi.operators import NUFFT, NormalEquations, StreamedNUFFT, WeightGrid, meerkat_uv
from pnp_lofi.operators.base import ConvergenceWarning
from pnp_lofi.radio import image
from pnp_lofi.radio_chunks import measurement_chunks
from pnp_lofi.radio_measurement import measurement

M = 700
SHAPES = [(8, 8), (7, 10), (1, 6)]
KINDS = [{}, {"real": False}, {"channels": 3}]
Data = tuple[Tensor, Tensor, Tensor]


def data(channels: int = 1, m: int = M, seed: int = 0) -> Data:
    """uv, vis and weights, a few of them zero, there vis NaN."""
    generator = torch.Generator().manual_seed(seed)
    uv = (2 * torch.rand(2, m, dtype=torch.float64, generator=generator) - 1) * math.pi
    vis = torch.randn(channels, m, dtype=torch.complex128, generator=generator)
    w = torch.rand(m, dtype=torch.float64, generator=generator) + 0.1
    w[5::50] = 0
    vis[:, 5::100] = math.nan
    return uv, vis if channels > 1 else vis[0], w


def chunks(whole: Data, size: int) -> Iterator[Data]:
    uv, vis, w = whole
    for k in range(0, uv.shape[1], size):
        yield uv[:, k : k + size], vis[..., k : k + size], w[k : k + size]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def assert_same(a: NormalEquations, b: NormalEquations, tol: float = 1e-12) -> None:
    for name in ("kernel", "backprojection", "power", "count"):
        assert relative(getattr(a, name), getattr(b, name)) < tol, name


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition(shape: tuple[int, int], options: dict) -> None:
    """A matrix of exponentials, and NUFFT on the whole."""
    real, channels = options.get("real", True), options.get("channels", 1)
    uv, vis, w = whole = data(channels)
    op, y = NormalEquations.from_chunks(shape, chunks(whole, 90), chunk=200, **options).measurement(dtype=torch.float64)
    r, c = (torch.arange(n, dtype=torch.float64) - n // 2 for n in shape)
    A = torch.exp(-1j * (uv[0, :, None, None] * r[:, None] + uv[1, :, None, None] * c)).flatten(1)
    A = (w.sqrt()[:, None] * A / math.sqrt(math.prod(shape)))[w > 0]
    data_ = (w.sqrt() * vis.reshape(channels, M))[:, w > 0]
    G, b = A.mH @ A, data_ @ A.conj()
    G, b = (G.real, b.real) if real else (G, b)
    assert y.shape == (1, channels, *shape) and relative(y.flatten(2)[0], b) < 1e-11
    x = torch.randn(2, channels, *shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    assert relative(op.A(x).flatten(2), x.flatten(2) @ G.T) < 1e-11
    whole_op = NUFFT(shape, uv, w, real=real)
    whole_y = whole_op.whiten(vis.reshape(1, channels, M))
    assert relative(y, whole_op.A_adjoint(whole_y)) < 1e-10
    assert op.norm == pytest.approx(whole_op.norm, rel=1e-5)
    torch.testing.assert_close(op.dirty(y), whole_op.dirty(whole_y), rtol=1e-10, atol=1e-12)
    twice = (2 * shape[0], 2 * shape[1])
    for size in (None, twice, (3, 2)):
        if size is None or all(a <= b for a, b in zip(size, twice, strict=True)):
            torch.testing.assert_close(op.psf(size), whole_op.psf(size))
    assert op.dirty_noise(0.3) == pytest.approx(whole_op.dirty_noise(0.3))
    exact = (data_ - (x[:1].flatten(2)[0].to(A.dtype) @ A.T)).abs().square().mean().sqrt() / 2**0.5
    assert op.residual_level(y, x[:1]) == pytest.approx(float(exact), rel=1e-10)
    assert op.residual_level(y, x[:1]) == pytest.approx(residual_level(whole_y, whole_op.A(x[:1])), rel=1e-10)
    assert op.residual_level(y, None) == pytest.approx(float(data_.abs().square().mean().sqrt()) / 2**0.5, rel=1e-12)
    assert op.residual_level(y.expand(4, -1, -1, -1), x[:1].expand(4, -1, -1, -1)) == pytest.approx(
        float(exact), rel=1e-10
    )


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_any_chunks_any_order_any_parts(options: dict) -> None:
    shape, whole = (8, 9), data(options.get("channels", 1))
    once = NormalEquations(shape, **options).add(*whole)
    for size, chunk in ((1, 300), (33, 64), (M, 10), (M, 2**20)):
        assert_same(NormalEquations.from_chunks(shape, chunks(whole, size), chunk=chunk, **options), once)
    parts = list(chunks(whole, 130))[::-1]
    added = NormalEquations(shape, **options)
    for part in parts:
        added.add(*part)
    assert_same(added, once)
    a, b = (NormalEquations.from_chunks(shape, parts[k::2], **options) for k in range(2))
    before = a.kernel.clone()
    assert_same(a + b, once)
    assert_same(b + a + NormalEquations(shape, **options), once)
    assert bool((a.kernel == before).all())


def test_what_is_added_later_does_not_change_an_operator() -> None:
    whole = data()
    equations = NormalEquations((8, 9)).add(*whole)
    op, y = equations.measurement(dtype=torch.float64)
    before = op.kernel.clone(), op.power.clone(), y.clone()
    equations.add(*whole)
    assert bool((op.kernel == before[0]).all() and (op.power == before[1]).all() and (y == before[2]).all())
    torch.testing.assert_close(equations.measurement(dtype=torch.float64)[1], 2 * y)


@pytest.mark.slow
def test_memory_does_not_grow() -> None:
    from benchmarks.common import peak_memory_of
    from benchmarks.radio import stream

    small, large = (peak_memory_of(stream, "", count, 128) for count in (2_000_000, 12_000_000))
    assert large.value["visibilities"] == 12_000_000
    assert large.peak_mb < small.peak_mb + 100  # the visibilities alone take 400 MB more


def test_weights_may_be_left_out() -> None:
    uv, vis, _ = data()
    vis = vis.nan_to_num()
    ones = NormalEquations((6, 6)).add(uv, vis, torch.ones(M))
    assert_same(NormalEquations((6, 6)).add(uv, vis), ones)
    assert_same(NormalEquations.from_chunks((6, 6), [(uv[:, :9], vis[:9]), (uv[:, 9:], vis[9:])]), ones)
    assert_same(NormalEquations((6, 6)).add(uv, vis[None]), ones)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_files_of_parts(tmp_path: Path, options: dict) -> None:
    whole = data(options.get("channels", 1))
    for k in range(3):
        NormalEquations.from_chunks((8, 9), list(chunks(whole, 50))[k::3], **options).save(
            tmp_path / f"{k}.safetensors"
        )
    read = [NormalEquations.load(tmp_path / f"{k}.safetensors") for k in range(3)]
    assert_same(read[0] + read[1] + read[2], NormalEquations((8, 9), **options).add(*whole))
    with pytest.raises(FileExistsError):
        read[0].save(tmp_path / "1.safetensors")
    read[0].save(tmp_path / "1.safetensors", overwrite=True)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "1.safetensors").read_bytes()[:500])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        NormalEquations.load(tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError, match="nope does not exist"):
        NormalEquations.load(tmp_path / "nope")


def one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    mine = list(chunks(data(), 60))[rank::2]
    NormalEquations.from_chunks((8, 8), mine).all_reduce().save(f"{folder}/{rank}.safetensors")
    odd = NormalEquations((4, 5), real=False).add(*mine[0]).all_reduce()
    grid = WeightGrid((8, 8))
    for uv, _, w in mine:
        grid.add(uv, w)
    torch.save([odd.kernel, grid.all_reduce().sums], f"{folder}/{rank}.pt")
    with pytest.raises(ValueError, match="the processes hold parts of different kinds"):
        NormalEquations((8, 8 + rank)).all_reduce()
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    mp.spawn(one_process, (str(tmp_path),), nprocs=2)
    uv, _, w = whole = data()
    first = [list(chunks(whole, 60))[k] for k in range(2)]
    odd = NormalEquations((4, 5), real=False).add(*first[0]).add(*first[1])
    for rank in range(2):
        assert_same(NormalEquations.load(tmp_path / f"{rank}.safetensors"), NormalEquations((8, 8)).add(*whole))
        kernel, grid = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(grid, WeightGrid((8, 8)).add(uv, w).sums)
        torch.testing.assert_close(kernel, odd.kernel)


# ---- solvers ---------------------------------------------------------------------------------------------


class Smooth(Denoiser):
    """A mean with the neighbours: any fixed map serves here."""

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        return 0.5 * x + 0.125 * sum(x.roll(s, d) for s in (1, -1) for d in (-1, -2))


def sky(shape: tuple[int, int] = (32, 24)) -> Tensor:
    x = torch.zeros(1, 1, *shape, dtype=torch.float64)
    x[..., 10:20, 6:15] = torch.rand(10, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return x


@pytest.mark.parametrize("sigma", [0.02, None])
def test_admm_gives_the_same(sigma: float | None) -> None:
    shape, uv = (32, 24), meerkat_uv(0.3)
    w = torch.rand(uv.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(4)) + 0.5
    whole = NUFFT(shape, uv, w, sigma=sigma)
    noise = torch.randn(uv.shape[1], dtype=torch.complex128, generator=torch.Generator().manual_seed(5)) * 0.02 * 2**0.5
    vis = NUFFT(shape, uv).A(sky())[0, 0] + noise / w.sqrt()
    y = whole.whiten(vis)[None, None]
    op, b = NormalEquations.from_chunks(shape, chunks((uv, vis, w), 1000)).measurement(sigma=sigma, dtype=y.real.dtype)
    expected = ADMM(whole, Smooth(), max_iter=15, progress=False).solve(y, truth=sky())
    found = ADMM(op, Smooth(), max_iter=15, progress=False).solve(b, truth=sky())
    assert relative(found.x, expected.x) < 1e-8
    assert found.status == expected.status and found.iterations == expected.iterations
    for name in ("sigma_n", "sigma_d", "alpha", "residual", "misfit", "snr"):
        assert found.metrics[name] == pytest.approx(expected.metrics[name], rel=1e-6), name
    tight = {"max_iter": 15, "progress": False, "cg_tol": 1e-8, "cg_max_iter": 100}
    expected = ADMM(whole, Smooth(), **tight).solve(y.to(torch.complex64))
    found = ADMM(op, Smooth(), **tight).solve(b.float())
    assert found.x.dtype == torch.float32 and relative(found.x, expected.x) < 1e-4
    assert found.metrics["residual"] == pytest.approx(expected.metrics["residual"], rel=1e-4)


@pytest.mark.parametrize("precondition", [False, True])
def test_prox_and_dagger_are_those_of_nufft(precondition: bool) -> None:
    uv, vis, w = whole = data(m=2000)
    shape = (8, 9)
    big, options = NUFFT(shape, uv, w), {"tol": 1e-12, "max_iter": 300}
    op, b = NormalEquations.from_chunks(shape, chunks(whole, 300)).measurement(
        dtype=torch.float64, precondition=precondition
    )
    y, z = big.whiten(vis)[None, None], torch.randn(1, 1, *shape, dtype=torch.float64)
    assert relative(op.prox_l2(z, b, 0.7, **options), big.prox_l2(z, y, 0.7, **options)) < 1e-9
    assert relative(op.A_dagger(b, **options), big.A_dagger(y, **options)) < 1e-9
    torch.testing.assert_close(L2().grad(z, b, op), big.A_adjoint(big.A(z) - y), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(L2().prox(z, b, op, gamma=0.7), op.prox_l2(z, b, 0.7))
    with pytest.warns(ConvergenceWarning, match="conjugate gradients stopped after 1 of 1 steps"):
        op.prox_l2(z, b, 0.7, tol=1e-12, max_iter=1)


def test_is_an_operator() -> None:
    op, b = NormalEquations.from_chunks((8, 9), chunks(data(), 90), real=False).measurement(dtype=torch.float64)
    x = torch.randn(1, 1, 8, 9, dtype=torch.complex128)
    moved = op.clone().to(torch.float32).to(torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(moved.A(x), op.A(x))
    assert float(op.adjointness_test(num_samples=5, dtype=torch.complex128)) < 1e-12
    assert float(op.adjointness_test(u=x)) < 1e-12
    for function, point in ((op.A, x), (op.A_adjoint, b)):
        point = point.clone().requires_grad_()
        assert torch.autograd.gradcheck(function, point, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, point, fast_mode=True)
    torch.testing.assert_close(op(x), op.A(x))
    found, kept = op.A_adjoint(b), b.clone()
    found.zero_()  # its own memory
    torch.testing.assert_close(b, kept)
    copy = pickle.loads(pickle.dumps(op))
    torch.testing.assert_close(copy.A(x), op.A(x))
    with pytest.raises(TypeError, match="StreamedNUFFT takes no uv= in a call"):
        op.A(x, uv=x)
    with pytest.raises(ValueError, match="expects at least one item"):
        op.A_adjoint(b[:0])


# ---- the preconditioner ----------------------------------------------------------------------------------


@pytest.mark.parametrize("real", [True, False])
def test_preconditioner_is_the_nearest_circulant(real: bool) -> None:
    """Its eigenvalues are the diagonal of F A^H A F^-1, F the unitary DFT: T. Chan's definition, by a matrix."""
    H, W = shape = (5, 6)
    uv, _, w = data()
    op = NUFFT(shape, uv, w, precondition=True, real=real)
    eye = torch.eye(H * W, dtype=torch.float64 if real else torch.complex128).reshape(H * W, 1, H, W)
    G = op.A_adjoint_A(eye).flatten(1).T.to(torch.complex128)
    F = torch.fft.fft2(eye.to(torch.complex128), norm="ortho").flatten(1).T
    C = F.mH @ torch.diag((F @ G @ F.mH).diagonal()) @ F
    expected = torch.linalg.inv(C + 0.3 * torch.eye(H * W, dtype=C.dtype))
    apply = op._preconditioner(0.3)
    assert apply is not None
    assert relative(apply(eye).flatten(1).T.to(torch.complex128), expected) < 1e-10
    assert NUFFT(shape, uv, w)._preconditioner(0.3) is None


def test_preconditioner_saves_steps_where_coverage_is_dense() -> None:
    shape, generator = (64, 64), torch.Generator().manual_seed(0)
    uv = (0.5 * torch.randn(2, 40_000, dtype=torch.float64, generator=generator)).clamp(-math.pi, math.pi)
    b = torch.randn(1, 1, *shape, dtype=torch.float64, generator=generator)
    steps, found = {}, {}
    for precondition in (False, True):
        op = NUFFT(shape, uv, precondition=precondition)
        found[precondition], info = op.solve_normal(op.A_adjoint_A(b), op.norm / 1000, tol=1e-6, max_iter=500)
        assert info.converged
        steps[precondition] = info.iterations
    assert steps[True] < 0.6 * steps[False]
    assert relative(found[True], found[False]) < 1e-4


# ---- OBS.h5 ----------------------------------------------------------------------------------------------


def observation(*, absolute: bool, per_row: bool, columns: int = 3) -> Observation:
    rng = np.random.default_rng(0)
    uvw = rng.normal(scale=600, size=(M, 3))[:, :columns]
    vis = rng.normal(size=M) + 1j * rng.normal(size=M)
    weight, flag = rng.uniform(0.5, 2, M).astype(np.float32), rng.random(M) < 0.1
    weight[::70] = 0
    vis[flag] = np.nan
    flag[100:300] = True  # whole slices of nothing
    frequency = rng.uniform(1e9, 1.4e9, M) if per_row else 1.4e9
    return Observation(uvw, frequency, vis.astype(np.complex64), weight, flag, 8.0, absolute_weights=absolute)


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("per_row", [True, False])
def test_hdf5_equals_arrays(tmp_path: Path, absolute: bool, per_row: bool) -> None:
    path, shape = tmp_path / "obs.h5", (16, 12)
    obs = observation(absolute=absolute, per_row=per_row)
    write_observation(path, obs)
    whole, y = measurement(obs, shape)
    parts = [
        NormalEquations.from_chunks(shape, measurement_chunks(path, shape, rows=40, part=(k, 3))) for k in range(3)
    ]
    equations = parts[0] + parts[1] + parts[2]
    assert_same(equations, NormalEquations.from_chunks(shape, measurement_chunks(path, shape)))
    op, b = equations.measurement(dtype=torch.float64)
    wide = y.to(torch.complex128)
    found, expected = (image(A, d, Smooth(), max_iter=3, sigma_n=1.0, cg_tol=1e-8) for A, d in ((op, b), (whole, wide)))
    for name in ("dirty", "residual"):
        assert relative(getattr(found, name), getattr(expected, name)) < 1e-4
    assert found.noise == pytest.approx(expected.noise)
    assert op.count == y.shape[-1]
    assert relative(b, whole.A_adjoint(wide)) < 1e-6  # y is complex64
    x = torch.randn(1, 1, *shape, dtype=torch.float64)
    assert relative(op.A(x), whole.A_adjoint_A(x)) < 1e-10
    other = next(iter(measurement_chunks(path, shape, cell=4.0)))[0]
    torch.testing.assert_close(other, next(iter(measurement_chunks(path, shape)))[0] / 2)


def test_hdf5_with_the_least(tmp_path: Path) -> None:
    obs = observation(absolute=False, per_row=False, columns=2)
    with h5py.File(tmp_path / "least.h5", "w") as f:
        f["uv"], f["frequency"], f["vis"] = obs.uvw, 1.4e9, np.nan_to_num(obs.vis)
        f.attrs["cell_arcsec"] = 8.0
    weights = torch.cat([w for _, _, w in measurement_chunks(tmp_path / "least.h5", (16, 12), rows=99)])
    assert weights.shape == (M,) and bool((weights == 1).all())


def test_w_is_warned_of_once(tmp_path: Path) -> None:
    obs = observation(absolute=False, per_row=False)
    write_observation(tmp_path / "obs.h5", obs)
    with pytest.warns(UserWarning, match="the w-term is neglected") as caught:
        list(measurement_chunks(tmp_path / "obs.h5", (400, 400), rows=50))
    with pytest.warns(UserWarning, match="the w-term is neglected") as whole:
        measurement(obs, (400, 400))
    assert [str(w.message) for w in caught] == [str(w.message) for w in whole]
    assert "A smaller field (shape" in str(caught[0].message)


# ---- bad input -------------------------------------------------------------------------------------------

UV, VIS, WEIGHT = (t[..., 6:16] for t in data())
NAN = torch.full_like(WEIGHT, math.nan)


def add(*args: Tensor, **options) -> NormalEquations:
    return NormalEquations((8, 8), **options).add(*args)


CASES = [
    (lambda: add(UV, VIS[1:], WEIGHT), ValueError, r"vis must be \(10,\) or \(1, 10\), one column per .*, got \(9,\)"),
    (lambda: add(UV, VIS.expand(2, 10), WEIGHT), ValueError, r"vis must be \(10,\) or \(1, 10\).*got \(2, 10\)"),
    (lambda: add(UV, VIS, WEIGHT, channels=3), ValueError, r"vis must be \(3, 10\), one column.*got \(10,\)"),
    (lambda: add(UV, VIS, WEIGHT[1:]), ValueError, r"weights must be \(10,\), one per column of uv, got \(9,\)"),
    (lambda: add(UV, VIS, NAN), ValueError, "weights must be finite and >= 0"),
    (lambda: add(UV, VIS, -WEIGHT), ValueError, "weights must be finite and >= 0"),
    (lambda: add(UV, VIS * math.nan, WEIGHT), ValueError, "vis holds NaN or inf; give those visibilities weight zero"),
    (lambda: add(UV, VIS.real, WEIGHT), TypeError, "vis must be complex, got torch.float64"),
    (lambda: add(UV * math.nan, VIS, WEIGHT), ValueError, "uv holds NaN or inf"),
    (lambda: add(UV * 3, VIS, WEIGHT), ValueError, r"uv must lie in \[-pi, pi\] radians per pixel"),
    (lambda: add(UV.T, VIS, WEIGHT), ValueError, r"got \(10, 2\); transpose it with uv.T"),
    (lambda: add(UV[:, :0], VIS[:0]).measurement(), ValueError, "no visibility of weight > 0 was added"),
    (lambda: add(UV, VIS, 0 * WEIGHT).measurement(), ValueError, "no visibility of weight > 0 was added"),
    (lambda: NormalEquations.from_chunks((8, 8), []).measurement(), ValueError, "no visibility of weight > 0"),
    (lambda: NormalEquations.from_chunks((8, 8), [(UV, VIS), (UV, VIS[:4])]), ValueError, "vis must be"),
    (lambda: NormalEquations.from_chunks((8, 8), [UV]), ValueError, "a chunk is .uv, vis. or .uv, vis, weights."),
    (lambda: NormalEquations((8, 8), channels=0), ValueError, "expected channels >= 1"),
    (lambda: NormalEquations((8, 8), eps=2), ValueError, "0 < eps < 1, got 1, 1048576 and 2"),
    (lambda: NormalEquations((8,)), ValueError, "two positive integers"),
    (lambda: NormalEquations((8, 8)) + NormalEquations((8, 9)), ValueError, "parts must be of one kind to be added"),
    (lambda: NormalEquations((8, 8)).all_reduce(), RuntimeError, "there is no process group"),
    (lambda: add(UV, VIS).measurement()[0].psf((17, 8)), ValueError, r"the kernel reaches to \(16, 16\) pixels"),
    (lambda: add(UV, VIS).measurement(sigma=1.0)[0](torch.ones(1, 1, 8, 8)), ValueError, "cannot draw noise"),
    (lambda: add(UV, VIS).measurement(sigma=-1.0), ValueError, "sigma must be finite and > 0"),
    (lambda: StreamedNUFFT((8, 8), torch.ones(16, 15), torch.ones(1), 3), ValueError, r"must be \(16, 16\) and real"),
]


@pytest.mark.parametrize(("call", "error", "message"), CASES, ids=range(len(CASES)))
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "obs.h5"
    obs = observation(absolute=True, per_row=False)
    write_observation(path, obs)
    for options in ({"part": (2, 2)}, {"part": (-1, 2)}, {"rows": 0}):
        with pytest.raises(ValueError, match=r"expected rows >= 1 and part \(k, n\)"):
            measurement_chunks(path, (8, 8), **options)
    with pytest.raises(FileNotFoundError):
        measurement_chunks(tmp_path / "none.h5", (8, 8))
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(ValueError, match="not an HDF5 file"):
        measurement_chunks(tmp_path / "text.h5", (8, 8))
    first = int(np.flatnonzero(~obs.flag & (obs.weight > 0))[0])
    for name, value, message in (
        ("vis", np.nan, "1 unflagged values of vis are NaN or inf"),
        ("weight", -1.0, "weights must be >= 0"),
    ):
        write_observation(path, obs, overwrite=True)
        with h5py.File(path, "r+") as f:
            f[name][first] = value
        with pytest.raises(ValueError, match=message):
            list(measurement_chunks(path, (8, 8), rows=50))
    with h5py.File(path, "r+") as f:
        del f["weight"]
        f["weight"] = np.ones(M - 1)
    with pytest.raises(ValueError, match="must be of one length"):
        list(measurement_chunks(path, (8, 8)))
    with h5py.File(path, "r+") as f:
        del f["vis"]
    with pytest.raises(ValueError, match="lacks vis"):
        list(measurement_chunks(path, (8, 8)))
