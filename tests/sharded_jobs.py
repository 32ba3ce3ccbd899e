"""What the processes of tests/test_sharded.py do: each job compares strips with the whole, in every process."""

import math
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepinv as dinv
import numpy as np
import pytest
import torch
import torch.distributed as dist
from deepinv.distributed import DistributedContext, distribute
from torch import Tensor

from pnp_lofi import ADMM, LoFi, LoFiPrior, SharedLoFi, Solution, solver, strips
from pnp_lofi.cg import conjugate_gradient, operator_norm
from pnp_lofi.noise import residual_level
from pnp_lofi.operators import NUFFT, Mask, NormalEquations, ShardedEquations, ShardedNUFFT, Stacked, Weighted
from pnp_lofi.priors import ShardedPrior
from pnp_lofi.strips import Strips

SHAPE, M = (37, 26), 300
Data = tuple[Tensor, Tensor, Tensor]


def image(*lead: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*lead, *SHAPE, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def visibilities(channels: int = 1) -> Data:
    generator = torch.Generator().manual_seed(1)
    uv = (2 * torch.rand(2, M, dtype=torch.float64, generator=generator) - 1) * math.pi
    vis = torch.randn(channels, M, dtype=torch.complex128, generator=generator)
    w = torch.rand(M, dtype=torch.float64, generator=generator) + 0.1
    w[5::50] = 0
    vis[:, 5::100] = math.nan
    return uv, vis, w


def chunks(whole: Data, held: Strips, size: int = 40) -> Iterator[Data]:
    """Every n-th chunk, so that processes have different numbers of them."""
    uv, vis, w = whole
    for k in range(held.rank * size, uv.shape[1], size * held.world):
        part = slice(k, k + size)
        yield uv[:, part], vis[:, part], w[part]


def sharded(held: Strips, *, dtype: torch.dtype = torch.float64, **options) -> tuple[ShardedNUFFT, Tensor]:
    whole = visibilities(options.get("channels", 1))
    return ShardedEquations.from_chunks(held, chunks(whole, held), chunk=70, **options).measurement(dtype=dtype)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def networks() -> dict[str, LoFi | SharedLoFi]:
    torch.manual_seed(1)
    small = {"rays": 3, "rings": 3, "radius": 2.7, "hidden": (8,), "features": 5, "mixer": (7,)}
    made: dict[str, LoFi | SharedLoFi] = {
        "shared": SharedLoFi(window=3, filters=6, features=4, points=3, spacing=2, raw=5, hidden=(8, 8)),
        "colours": SharedLoFi(3, window=3, filters=6, features=4, points=3, spacing=1, raw=3, hidden=(8,)),
        "lofi": LoFi(**small),
        "filtered": LoFi(**small, filter={"kind": "spatial", "size": 3}),
        "plain": LoFi(**small, equivariant=False),
    }
    with torch.no_grad():
        for model in made.values():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return {name: model.requires_grad_(False) for name, model in made.items()}


# ---- strips ----------------------------------------------------------------------------------------------


def moves_rows(held: Strips) -> None:
    assert sum(b - a for a, b in zip(held.bounds, held.bounds[1:], strict=False)) == SHAPE[0]
    for dtype in (torch.float32, torch.float64, torch.complex64):
        full = image(2, 3, dtype=dtype)
        mine = held.scatter(full if held.rank == 0 else None)
        torch.testing.assert_close(mine, full[..., held.rows, :], rtol=0, atol=0)
        for everywhere in (False, True):
            found = held.gather(mine, everywhere=everywhere)
            assert (found is None) == (held.rank > 0 and not everywhere)
            assert found is None or torch.equal(found, full)


def has_halos(held: Strips) -> None:
    full = image(2)
    for reach in (0, 1, 5, SHAPE[0] // held.world):
        first, last = max(0, held.start - reach), min(SHAPE[0], held.stop + reach)
        found = held.halo(full[..., held.rows, :], reach)
        np.testing.assert_array_equal(found.numpy(), full.numpy()[:, first:last])
        assert held.above(reach) == held.start - first


def changes_to_columns_and_back(held: Strips) -> None:
    for dtype, n in ((torch.float64, 26), (torch.complex128, 31)):
        full = torch.randn(2, 1, SHAPE[0], n, dtype=dtype, generator=torch.Generator().manual_seed(3))
        columns = held.to_columns(full[..., held.rows, :])
        first, last = held.rank * n // held.world, (held.rank + 1) * n // held.world
        assert torch.equal(columns, full[..., first:last])
        assert torch.equal(held.to_rows(columns, n), full[..., held.rows, :])


def sums_and_draws(held: Strips) -> None:
    full = image(2)
    mine = full[..., held.rows, :]
    torch.testing.assert_close(held.total(mine.sum((1, 2))), full.sum((1, 2)))
    assert torch.equal(held.total(mine.amax((1, 2)), "max"), full.amax((1, 2)))
    for dtype in (torch.float32, torch.float64, torch.complex64):
        for block in (64, strips.BLOCK):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(strips, "BLOCK", block)
                drawn = held.normal((2, 3), dtype, torch.Generator().manual_seed(0))
            assert torch.equal(drawn, image(2, 3, dtype=dtype)[..., held.rows, :])


# ---- linear algebra and operators ------------------------------------------------------------------------


def solves_as_the_whole(held: Strips) -> None:
    diagonal, b = image(2, 1).abs() + 0.5, image(2, 1, seed=1) * 1e30
    rows = (..., held.rows, slice(None))
    expected, info = conjugate_gradient(lambda x: diagonal * x, b, 0.1 * b, tol=1e-8, max_iter=200)
    found, mine = conjugate_gradient(
        lambda x: diagonal[rows] * x, b[rows], 0.1 * b[rows], tol=1e-8, max_iter=200, reduce=held.total
    )
    assert relative(found, expected[rows]) < 1e-7 and mine.iterations == info.iterations
    torch.testing.assert_close(mine.residual, info.residual, rtol=1e-4, atol=0)


def masks(held: Strips) -> None:
    seen = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2)) < 0.6
    seen[: SHAPE[0] // held.world if held.world > 1 else 0] = False  # nothing in the first strip
    rows, x = (..., held.rows, slice(None)), image(2, 3)
    whole, op = Mask(seen), Mask(seen[held.rows], strips=held)
    assert torch.equal(op.A_adjoint_A(x[rows]), whole.A_adjoint_A(x)[rows])
    assert op.mean_eigenvalue == pytest.approx(whole.mean_eigenvalue) == pytest.approx(float(seen.double().mean()))
    assert float(op.adjointness_test(img_size=(1, *held.strip_shape))) < 1e-5
    weights = image().square()
    both = Weighted(op, weights[held.rows]), Weighted(whole, weights)
    found, expected = (
        part.solve_normal(x[..., r, :], 0.3, tol=1e-9) for part, r in zip(both, (held.rows, slice(None)), strict=True)
    )
    assert relative(found[0], expected[0][rows]) < 1e-8
    norms = [operator_norm(part, x[..., r, :]) for part, r in zip(both, (held.rows, slice(None)), strict=True)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-10)
    if held.world > 1:
        with pytest.raises(ValueError, match="noise is not estimated from a strip"):
            op.estimate_noise(x[rows])
        with pytest.raises(ValueError, match="some of the operators hold a strip"):
            Stacked(op, Mask(torch.ones(held.strip_shape)))


def interferes(held: Strips, **options) -> None:
    """As NUFFT and NormalEquations on the whole."""
    real, channels = options.get("real", True), options.get("channels", 1)
    uv, vis, w = whole = visibilities(channels)
    rows, x = (..., held.rows, slice(None)), image(2, channels, dtype=torch.float64 if real else torch.complex128)
    big, (op, y) = NUFFT(SHAPE, uv, w, real=real), sharded(held, **options)
    streamed, b = NormalEquations(SHAPE, **options).add(*whole).measurement(dtype=torch.float64)
    white = big.whiten(vis[None])
    assert relative(y, big.A_adjoint(white)[rows]) < 1e-11 and relative(y, b[rows]) < 1e-11
    assert relative(op.A_adjoint_A(x[rows]), big.A_adjoint_A(x)[rows]) < 1e-11
    assert relative(op.dirty(y), big.dirty(white)[rows]) < 1e-11
    assert relative(op.psf(dtype=torch.float64), big.psf(dtype=torch.float64)[held.rows]) < 1e-11
    assert op.dirty_noise(0.3) == pytest.approx(big.dirty_noise(0.3), rel=1e-12)
    assert op.mean_eigenvalue == pytest.approx(big.mean_eigenvalue, rel=1e-12)
    assert op.norm == pytest.approx(big.norm, rel=1e-5)  # in single precision
    assert operator_norm(op, x[rows]) == pytest.approx(operator_norm(big, x), rel=1e-11)
    for start in (None, x[:1]):
        mine = None if start is None else start[rows]
        expected = residual_level(white, torch.zeros_like(white) if start is None else big.A(start))
        assert op.residual_level(y, mine) == pytest.approx(expected, rel=1e-10)
        assert streamed.residual_level(b, start) == pytest.approx(expected, rel=1e-10)
    found, info = op.solve_normal(y, big.mean_eigenvalue, tol=1e-6, max_iter=300)
    expected, whole_info = streamed.solve_normal(b, big.mean_eigenvalue, tol=1e-6, max_iter=300)
    assert info.iterations == whole_info.iterations and relative(found, expected[rows]) < 1e-9
    assert float(op.adjointness_test(dtype=x.dtype)) < 1e-12
    moved = op.clone().to(torch.float32)
    assert relative(moved.A(x[rows].to(torch.complex64 if not real else torch.float32)), op.A(x[rows])) < 1e-6


def interferes_complex(held: Strips) -> None:
    interferes(held, real=False)


def interferes_channels(held: Strips) -> None:
    interferes(held, channels=2)


def counts_all_visibilities(held: Strips) -> None:
    """Also where only the last process has any."""
    uv, vis, w = whole = visibilities()
    mine = [whole] if held.rank == held.world - 1 else []
    op, y = ShardedEquations.from_chunks(held, mine, chunk=64).measurement(dtype=torch.float64, sigma=0.5)
    expected, b = NormalEquations(SHAPE).add(uv, vis, w).measurement(dtype=torch.float64)
    assert (op.count, op.sigma) == (expected.count, 0.5)
    assert relative(op.power, expected.power) < 1e-12 and relative(y, b[..., held.rows, :]) < 1e-11
    with pytest.raises(ValueError, match="no visibility of weight > 0 was added"):
        ShardedEquations.from_chunks(held, []).measurement()


# ---- priors ----------------------------------------------------------------------------------------------


def denoises(held: Strips) -> None:
    rows = (..., held.rows, slice(None))
    assert ShardedPrior(LoFiPrior("natural"), Strips((96, 64))).header["trained_on"]
    for name, model in networks().items():
        for dtype, tol in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
            prior = LoFiPrior(model.to(dtype))
            mine, x = ShardedPrior(prior, held), image(2, 3, dtype=dtype)
            x[0] *= 7
            level = 0.2 + image(2, 1, dtype=dtype, seed=4).abs()
            levels = [None] if name == "plain" else [0.3, torch.tensor([0.2, 0.5]), level]
            for sigma in levels:
                cut = sigma[rows] if isinstance(sigma, Tensor) and sigma.ndim == 4 else sigma
                assert relative(mine(x[rows], cut), prior(x, sigma)[rows]) < tol, (name, dtype)


def decides_alike(held: Strips) -> None:
    """precision="auto" looks at the range of the whole image."""
    asked: list[float] = []

    def spy(t: Tensor, op: str = "sum") -> Tensor:
        found = held.total(t, op)
        asked.extend(found.flatten().tolist())
        return found

    x = image(1, 1, dtype=torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pnp_lofi.priors.lofi.has_bfloat16", lambda device: True)
        prior = LoFiPrior(networks()["shared"].float(), precision="auto")
        level = torch.full((1, 1, *SHAPE), 9.0)
        level[..., -1, -1] = 0.01 * float(x.max() - x.min())
        mine = level[..., held.rows, :]
        assert prior._compute_dtype(x[..., held.rows, :], mine, spy) is None  # the last row's level is too low
        assert prior._compute_dtype(x[..., held.rows, :], 9.0, spy) is torch.bfloat16
    assert asked[:2] == [float(-x.min()), float(x.max())]


def reconstructs(held: Strips) -> None:
    """The solver on strips against the solver on the whole."""
    rows, model = (..., held.rows, slice(None)), networks()["shared"]
    for parameter in model.mixer.parameters():
        parameter.mul_(0.3)  # so that it does not amplify
    truth = image(1, 1).abs().float()
    options: dict[str, Any] = {"max_iter": 5, "progress": False}
    seen = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2)) < 0.6
    y = torch.where(seen, truth, 0)
    for sigma in (0.1, None):
        prior, extra = LoFiPrior(model.float()), {} if sigma else {"sigma_n": 0.0}
        expected = ADMM(Mask(seen, sigma=sigma), prior, **options, **extra).solve(y)
        op = Mask(seen[held.rows], sigma=sigma, strips=held)
        found = ADMM(op, ShardedPrior(prior, held), **options, **extra).solve(y[rows])
        assert relative(found.x, expected.x[rows]) < 1e-6
        same(found, expected, 1e-5, "sigma_n", "sigma_d", "alpha")
        assert found.metrics["residual"] == pytest.approx(expected.metrics["residual"], rel=1e-5, abs=1e-7)
    options |= {"cg_tol": 1e-6, "cg_max_iter": 40}  # a step more or less of CG would be seen
    for dtype, tol in ((torch.float32, 1e-4), (torch.float64, 1e-6)):
        prior = LoFiPrior(model.to(dtype))
        uv, vis, w = visibilities()
        vis = NUFFT(SHAPE, uv).A(truth.double())[0] + 0.05 * vis.nan_to_num()
        op, b = ShardedEquations.from_chunks(held, chunks((uv, vis, w), held)).measurement(dtype=dtype)
        streamed, whole = NormalEquations(SHAPE).add(uv, vis, w).measurement(dtype=dtype)
        known = {"sigma_n": 0.1} if dtype == torch.float32 else {}  # else it is estimated
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(solver, "GLANCE", 4)
            expected = ADMM(streamed, prior, **options, **known).solve(whole)
            found = ADMM(op, ShardedPrior(prior, held), **options, **known).solve(b)
        assert relative(found.x, expected.x[rows]) < tol, (dtype, relative(found.x, expected.x[rows]))
        same(found, expected, 10 * tol, "sigma_n", "sigma_d", "alpha", "residual")


def resumes(held: Strips) -> None:
    """Each process its own file; broken off in the same iteration, the run goes on to the same bits."""
    model, x = networks()["shared"], image(1, 1).abs()
    for parameter in model.mixer.parameters():
        parameter.mul_(0.3)
    uv, vis, w = visibilities()
    vis = NUFFT(SHAPE, uv).A(x)[0] + 0.05 * vis.nan_to_num()
    op, b = ShardedEquations.from_chunks(held, chunks((uv, vis, w), held)).measurement(dtype=torch.float64, sigma=0.1)
    prior = ShardedPrior(LoFiPrior(model), held)
    options: dict[str, Any] = {"max_iter": 6, "tol": 0.0, "progress": False, "nonneg": True}
    expected = ADMM(op, prior, **options).solve(b)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/run-{held.rank}.safetensors"
        ADMM(op, prior, callback=lambda at: at.iteration == 3, **options).solve(b, save=path)
        found = ADMM(op, prior, **options).resume(path)
    assert torch.equal(found.x, expected.x)
    assert (found.iterations, found.residuals) == (expected.iterations, expected.residuals)


def within_a_budget(held: Strips) -> None:
    """max_memory is one process's; what it is refused for is the strip."""
    seen = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2)) < 0.6
    op, y = Mask(seen[held.rows], sigma=0.1, strips=held), image(1, 1)[..., held.rows, :] * seen[held.rows]
    prior = ShardedPrior(LoFiPrior(networks()["shared"]), held)
    h, W = held.strip_shape
    with pytest.raises(ValueError, match=f"1 x 1 x {h} x {W} pixels works in 7[23] MB"):
        ADMM(op, prior, max_memory=50).solve(y)
    options: dict[str, Any] = {"max_iter": 2, "progress": False}
    expected = ADMM(op, prior, **options).solve(y).x
    assert relative(ADMM(op, prior, max_memory=80, **options).solve(y).x, expected) < 1e-12


def same(found: Solution, expected: Solution, tol: float, *names: str) -> None:
    assert (found.status, found.iterations) == (expected.status, expected.iterations)
    for name in names:
        assert found.metrics[name] == pytest.approx(expected.metrics[name], rel=tol), name


# ---- what deepinv.distributed is for ---------------------------------------------------------------------


def deepinv_tiles_a_prior(held: Strips) -> None:
    """A LoFiPrior on an image that all processes hold, with an overlap of its reach."""
    model, x = networks()["shared"].double(), image(1, 1)
    prior = LoFiPrior(model)
    with DistributedContext(device_mode="cpu", cleanup=False) as context, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deepinv, on how many patches there are
        tiled = distribute(prior, context, patch_size=16, overlap=model.reach, dtype=torch.float64)
        with torch.no_grad():
            assert relative(tiled(x, 0.3), prior(x, 0.3)) < 1e-12
            if held.world == 1:  # a level for each image is not tiled along: an error, or the wrong level
                with pytest.raises(ValueError, match="sigma must be"):
                    tiled(image(2, 1), torch.tensor([0.2, 0.5]))


def deepinv_shares_a_stack(held: Strips) -> None:
    uv, _, w = visibilities()
    parts = [NUFFT(SHAPE, uv, w), Mask(torch.rand(SHAPE) < 2), NUFFT(SHAPE, uv.flip(0))]
    x, whole = image(1, 1), Stacked(*parts)
    with DistributedContext(device_mode="cpu", cleanup=False) as context:
        shared = distribute(parts, context, dtype=torch.float64)
        assert relative(shared.A_adjoint_A(x), whole.A_adjoint_A(x)) < 1e-12


# ---- errors ----------------------------------------------------------------------------------------------


def refuses(held: Strips) -> None:
    models = networks()
    x = image(1, 1)[..., held.rows, :]
    with pytest.raises(TypeError, match=r"deepinv.distributed.distribute\(denoiser, context, overlap=...\)"):
        ShardedPrior(dinv.models.TVDenoiser(), held)
    small = {"rays": 2, "rings": 2, "hidden": (4,), "features": 3, "mixer": (4,)}
    for options, reason in (
        ({"filter": {"kind": "spectral", "size": 8}}, "spectral filter is a Fourier transform"),
        ({"ccpg": 1}, "CCPG moves"),
        ({"inr": True}, "changes coordinates"),
        ({"official": True, "centred": False, "equivariant": False}, "scales patches with the image"),
    ):
        with pytest.raises(ValueError, match=reason):
            ShardedPrior(LoFiPrior(LoFi(**small, **options)), held)
    with pytest.raises(ValueError, match=r"take image\[..., strips.rows, :\]"):
        ShardedPrior(LoFiPrior(models["shared"].double()), held)(x[..., :-1], 0.3)
    with pytest.raises(ValueError, match='op must be "sum" or "max"'):
        held.total(x, "mean")
    with pytest.raises(ValueError, match="scatter expects"):
        held.scatter(x[..., :-1])
    with pytest.raises(ValueError, match="kernel must be"):
        ShardedNUFFT(held, x[0, 0], 1.0, torch.ones(1), 3)
    with pytest.raises(ValueError, match="chunk >= 1"):
        ShardedEquations(held, chunk=0)
    with pytest.raises(ValueError, match="has the image's size"):
        sharded(held)[0].psf((4, 4))
    with pytest.raises(ValueError, match="this process's rows"):
        Mask(torch.ones(3, 3), strips=held)
    if held.world == 1:
        return
    thinnest = SHAPE[0] // held.world
    with pytest.raises(ValueError, match=f"strips of {thinnest} rows of an image of 37, what is asked reaches"):
        held.halo(x, thinnest + 1)
    with pytest.raises(ValueError, match="start at most"):
        ShardedPrior(LoFiPrior(SharedLoFi(points=3, spacing=20)), held)
    with pytest.raises(ValueError, match="cannot share"):
        Strips((held.world - 1, 9))
    uv, vis, w = visibilities()
    mine = [(uv, vis[:, :9], w)] if held.rank == 1 else [(uv, vis, w)]  # one of them has bad data
    expected = (ValueError, "vis must be") if held.rank == 1 else (RuntimeError, "process 1 could not read")
    with pytest.raises(expected[0], match=expected[1]):
        ShardedEquations.from_chunks(held, mine)


JOBS: list[Callable[[Strips], None]] = [
    moves_rows, has_halos, changes_to_columns_and_back, sums_and_draws, solves_as_the_whole, masks, interferes,
    interferes_complex, interferes_channels, counts_all_visibilities, denoises, decides_alike, deepinv_tiles_a_prior,
    deepinv_shares_a_stack, refuses, reconstructs, resumes, within_a_budget,
]  # fmt: skip


def one_process(rank: int, world: int, folder: str) -> None:
    """All jobs, in order; what failed goes to a file, and ends the work, since the others no longer hear us."""
    torch.set_num_threads(1)
    store, patience = dist.FileStore(f"{folder}/store", world), timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=patience)
    held = Strips(SHAPE)
    for job in JOBS:
        try:
            job(held)
        except BaseException:
            Path(f"{folder}/{job.__name__}.{rank}").write_text(traceback.format_exc())
            raise
        Path(f"{folder}/{job.__name__}.{rank}").write_text("")
    dist.destroy_process_group()
