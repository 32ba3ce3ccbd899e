"""NUFFT measured: accuracy, time per prox step against M, beside deepinv, streaming, the preconditioner.

Rows are dicts; seconds are of the fastest call. Accuracy is against the direct DFT, a sum of exponentials in float64.
"""

import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepinv
import h5py
import torch
from torch import Tensor

from benchmarks.common import Measured, peak_memory_of, timed
from pnp_lofi.operators import (
    NUFFT,
    NormalEquations,
    WeightGrid,
    default_cell,
    imaging_weights,
    meerkat_uv,
    noise_increase,
)
from pnp_lofi.radio_chunks import measurement_chunks

SIDE = 512
DAMPING = 100.0  # L / alpha of a prox step, as ADMM chooses it for Fourier data
TOL = 1e-4  # relative residual of its conjugate gradients
STEPS = 12  # of conjugate gradients in a step of our ADMM, at most
SLICE = 2**18  # visibilities in a chunk of the streamed case
Row = dict[str, Any]


def uniform_uv(count: int, seed: int = 0) -> Tensor:
    """(2, M) [rad/pixel], uniformly random."""
    generator = torch.Generator().manual_seed(seed)
    return math.pi * (2 * torch.rand((2, count), dtype=torch.float64, generator=generator) - 1)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.to(b.dtype) - b).norm() / b.norm())


class DirectDFT:
    """A and A^H by matrices of exponentials: the sum over rows, then over columns."""

    def __init__(self, side: int, uv: Tensor) -> None:
        place = torch.arange(side, dtype=torch.float64) - side // 2
        self.rows, self.columns = (torch.exp(-1j * angle[:, None] * place) for angle in uv)
        self.side = side

    def A(self, x: Tensor) -> Tensor:
        return ((self.rows @ x[0, 0].to(torch.complex128)) * self.columns).sum(1)[None, None] / self.side

    def A_adjoint(self, y: Tensor) -> Tensor:
        return (self.rows.mH @ (y[0, 0, :, None] * self.columns.conj())).real[None, None] / self.side


def deepinv_radio(side: int, uv: Tensor) -> deepinv.physics.RadioInterferometry:
    """Its scale is half the unitary one: A of ours is twice its A."""
    return deepinv.physics.RadioInterferometry((side, side), samples_loc=uv.float())


@torch.no_grad()
def accuracy_rows(count: int = 10_000, side: int = SIDE) -> list[Row]:
    """Errors of A, A^H and A^H A of every backend and precision, and of deepinv's operator."""
    uv, generator = uniform_uv(count), torch.Generator().manual_seed(1)
    x = torch.randn((1, 1, side, side), dtype=torch.float64, generator=generator)
    y = torch.randn((1, 1, count), dtype=torch.complex128, generator=generator)
    direct = DirectDFT(side, uv)
    Ax, AHy = direct.A(x), direct.A_adjoint(y)
    AHAx = direct.A_adjoint(Ax)
    rows = []
    for backend in ("finufft", "kb"):
        op = NUFFT((side, side), uv, backend=backend)
        for dtype in (torch.float32, torch.float64):
            x_, y_ = x.to(dtype), y.to(dtype.to_complex())
            row: Row = {"operator": f"NUFFT, {backend}", "dtype": str(dtype).removeprefix("torch.")}
            row |= {"forward": relative(op.A(x_), Ax), "adjoint": relative(op.A_adjoint(y_), AHy)}
            rows.append(row | {"normal": relative(op.A_adjoint_A(x_), AHAx), "visibilities": count, "side": side})
    theirs, x_, y_ = deepinv_radio(side, uv), x.float(), y.to(torch.complex64)
    row = {"operator": "deepinv RadioInterferometry", "dtype": "float32", "forward": relative(2 * theirs.A(x_), Ax)}
    row |= {"adjoint": relative(2 * theirs.A_adjoint(y_), AHy), "normal": relative(4 * theirs.A_adjoint_A(x_), AHAx)}
    return [*rows, row | {"visibilities": count, "side": side}]


@torch.no_grad()
def prox_rows(counts: tuple[int, ...] = (10_000, 100_000, 1_000_000), side: int = SIDE, repeats: int = 3) -> list[Row]:
    """Time of a prox step, (A^H A + alpha)^-1 b with alpha = L / 100, as the number of visibilities grows: to the
    tolerance, in the number of steps that this coverage takes, and for 12 steps, the most that ADMM takes.
    """
    rows = []
    for count in counts:
        op = NUFFT((side, side), uniform_uv(count))
        x = torch.randn((1, 1, side, side), generator=torch.Generator().manual_seed(1))
        begin = time.perf_counter()
        op.A_adjoint_A(x)  # builds the kernel
        build = time.perf_counter() - begin
        rows.append({"operator": "NUFFT", "visibilities": count, "kernel_seconds": build} | _prox(op, x, repeats))
    return rows


def _prox(op: Any, x: Tensor, repeats: int) -> Row:
    alpha, b = op.norm / DAMPING, op.A_adjoint_A(x)
    _, info = op.solve_normal(b, alpha, tol=TOL)
    normal = timed(lambda: op.A_adjoint_A(x), repeats=10 * repeats)
    prox = timed(lambda: op.solve_normal(b, alpha, tol=TOL), repeats=repeats)
    fixed = timed(lambda: op.solve_normal(b, alpha, tol=0.0, max_iter=STEPS), repeats=repeats)
    row = {"normal_seconds": normal, "prox_seconds": prox, "steps": info.iterations}
    return row | {f"prox_{STEPS}_steps_seconds": fixed, "side": x.shape[-1]}


@torch.no_grad()
def deepinv_rows(count: int = 1_000_000, side: int = SIDE, repeats: int = 3) -> list[Row]:
    """One A^H A and one ``prox_l2`` of each library, to the same tolerance, with 1 / gamma = L / 100.

    ``prox_l2`` of both computes A^H y anew; ``solve_normal``, what a step of our ADMM costs, does not.
    """
    uv, generator = uniform_uv(count), torch.Generator().manual_seed(1)
    ours, theirs = NUFFT((side, side), uv), deepinv_radio(side, uv)
    x = torch.rand((1, 1, side, side), generator=generator)
    y, z = ours.A(x), torch.rand((1, 1, side, side), generator=generator)
    alpha = ours.norm / DAMPING
    expected = ours.prox_l2(z.double(), y.to(torch.complex128), 1 / alpha, tol=1e-10, max_iter=500)

    prox = timed(lambda: ours.prox_l2(z, y, 1 / alpha, tol=TOL), repeats=repeats)
    row: Row = {"operator": "pnp_lofi NUFFT", "visibilities": count, "prox_l2_seconds": prox}
    row["error"] = relative(ours.prox_l2(z, y, 1 / alpha, tol=TOL), expected)
    rows = [row | _prox(ours, x, repeats)]

    calls, A = [0], theirs.A

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls[0] += 1
        return A(*args, **kwargs)

    theirs.A = counted  # half the unitary scale: gamma and y follow
    normal = timed(lambda: theirs.A_adjoint_A(x), repeats=1)
    calls[0], begin = 0, time.perf_counter()
    found = theirs.prox_l2(z, y / 2, 4 / alpha, tol=TOL)
    prox = time.perf_counter() - begin
    row = {"operator": f"deepinv {deepinv.__version__} RadioInterferometry", "visibilities": count}
    row |= {"prox_l2_seconds": prox, "prox_seconds": prox, "normal_seconds": normal, "steps": calls[0] - 1}
    rows.append(row | {"error": relative(found, expected), "side": side})
    for row in rows:
        row |= {f"{name}_ratio": rows[1][f"{name}_seconds"] / row[f"{name}_seconds"] for name in ("normal", "prox")}
        row["prox_l2_ratio"] = rows[1]["prox_l2_seconds"] / row["prox_l2_seconds"]
    return rows


# ---- streaming -------------------------------------------------------------------------------------------


def simulated_chunks(count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Visibilities that are nowhere kept: each slice is made when it is asked for."""
    for start_ in range(0, count, SLICE):
        m = min(SLICE, count - start_)
        generator = torch.Generator().manual_seed(start_)
        uv = math.pi * (2 * torch.rand((2, m), dtype=torch.float64, generator=generator) - 1)
        vis = torch.randn(m, dtype=torch.complex128, generator=generator)
        yield uv, vis, torch.rand(m, dtype=torch.float64, generator=generator) + 0.5


def write_simulated(path: str, count: int) -> None:
    """OBS.h5 of random visibilities, written in slices."""
    longest = 5000.0  # [m]
    cell = default_cell(torch.tensor([[0.0, longest * 2**0.5]]), 1.4e9)
    with h5py.File(path, "w") as f:
        f.attrs.update({"format": "pnp_lofi observation", "version": 1, "cell_arcsec": cell, "absolute_weights": True})
        f["frequency"] = 1.4e9
        f.create_dataset("uvw", (count, 2), "f8"), f.create_dataset("vis", (count,), "c8")
        f.create_dataset("weight", (count,), "f4")
        done = 0
        for uv, vis, weight in simulated_chunks(count):
            rows = slice(done, done + len(weight))
            f["uvw"][rows], f["vis"][rows], f["weight"][rows] = uv.T / math.pi * longest, vis, weight
            done += len(weight)


@torch.no_grad()
def stream(source: str, count: int, side: int) -> Row:
    """Run in a process of its own: one pass, then a prox step. An empty source is the simulation itself."""
    shape = (side, side)
    begin = time.perf_counter()
    if source == "nothing":
        return {}
    chunks = measurement_chunks(source, shape) if source else simulated_chunks(count)
    op, y = NormalEquations.from_chunks(shape, chunks).measurement()
    seconds = time.perf_counter() - begin
    alpha = op.norm / DAMPING
    prox = timed(lambda: op.solve_normal(y, alpha, tol=0.0, max_iter=STEPS), repeats=3)
    return {"visibilities": op.count, "seconds": seconds, f"prox_{STEPS}_steps_seconds": prox}


@torch.no_grad()
def weigh(count: int, side: int) -> Row:
    """Run in a process of its own: Briggs weights in two passes."""
    begin, grid = time.perf_counter(), WeightGrid((side, side))
    for uv, _, w in simulated_chunks(count):
        grid.add(uv, w)
    chunks = ((uv, vis, grid.briggs(uv, w)) for uv, vis, w in simulated_chunks(count))
    op, _ = NormalEquations.from_chunks((side, side), chunks).measurement()
    return {"visibilities": op.count, "seconds": time.perf_counter() - begin}


def streamed_rows(counts: tuple[int, ...] = (1_000_000, 10_000_000), side: int = SIDE) -> list[Row]:
    """Seconds and peak memory of one pass, each in a fresh process, from an iterator and from OBS.h5."""
    rows = [_memory("imports alone", peak_memory_of(stream, "nothing", 0, side))]
    for count in counts:
        rows.append(_memory("iterator", peak_memory_of(stream, "", count, side)))
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder, "obs.h5"))
            write_simulated(path, count)
            rows.append(_memory("OBS.h5", peak_memory_of(stream, path, count, side)))
        rows.append(_memory("iterator, Briggs, two passes", peak_memory_of(weigh, count, side)))
    return rows


def _memory(source: str, measured: Measured) -> Row:
    return {"source": source, **measured.value, "peak_mb": measured.peak_mb}


# ---- weighting and the preconditioner --------------------------------------------------------------------


def coverages(side: int = SIDE) -> dict[str, tuple[Tensor, Tensor]]:
    """uv and weights."""
    generator = torch.Generator().manual_seed(0)
    dense = (0.7 * torch.randn((2, 1_000_000), dtype=torch.float64, generator=generator)).clamp(-math.pi, math.pi)
    tracks = meerkat_uv(8.0)
    found = {}
    for name, uv in {"Gaussian, M = 1e6": dense, f"MeerKAT 8 h, M = {tracks.shape[1]}": tracks}.items():
        found[f"{name}, natural"] = uv, torch.ones(uv.shape[1], dtype=torch.float64)
        found[f"{name}, Briggs 0"] = uv, imaging_weights((side, side), uv)
        found[f"{name}, uniform"] = uv, imaging_weights((side, side), uv, scheme="uniform")
    return found


@torch.no_grad()
def preconditioner_rows(
    side: int = SIDE, dampings: tuple[float, ...] = (1e2, 3e2, 1e3, 1e4), tol: float = TOL
) -> list[Row]:
    """Steps and seconds of the first prox step of a solver, with and without T. Chan's circulant.

    (A^H A + alpha)^-1 (A^H y + alpha v) from zero, for a soft box, y with noise at 30 dB and v with noise of 0.1 %.
    """
    generator, rows = torch.Generator().manual_seed(1), []
    x = torch.zeros((1, 1, side, side))
    x[..., side // 3 : side // 2, side // 2 : 3 * side // 4] = 1
    x = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    v = x + 1e-3 * torch.randn(x.shape, generator=generator)
    for name, (uv, w) in coverages(side).items():
        ops = [NUFFT((side, side), uv, w, precondition=precondition) for precondition in (False, True)]
        y = ops[0].A(x)
        noise = torch.randn(y.shape, dtype=y.dtype, generator=generator)
        backprojection = ops[0].A_adjoint(y + noise * (10 ** (-30 / 20) * y.norm() / noise.norm()))
        for damping in dampings:
            row: Row = {"coverage": name, "L_over_alpha": damping}
            alpha = ops[0].norm / damping
            for op, prefix in zip(ops, ("plain", "preconditioned"), strict=True):
                b = backprojection + alpha * v
                op.solve_normal(b, alpha, tol=tol, max_iter=1)  # builds the kernels
                begin = time.perf_counter()
                _, info = op.solve_normal(b, alpha, tol=tol, max_iter=1000)
                row |= {f"{prefix}_steps": info.iterations, f"{prefix}_seconds": time.perf_counter() - begin}
            rows.append(row)
    return rows


def weighting_rows(side: int = SIDE, hours: float = 4.0) -> list[Row]:
    """MeerKAT's noise and beam as the weighting goes from natural to uniform.

    The beam's width is that of a Gaussian with the same curvature k at its peak, 2 sqrt(2 ln 2 / k) [pixel].
    """
    uv = meerkat_uv(hours)
    natural, rows = torch.ones(uv.shape[1], dtype=torch.float64), []
    schemes: list[tuple[str, dict[str, Any]]] = [("natural", {"scheme": "natural"})]
    schemes += [(f"Briggs {R:g}", {"robust": R}) for R in (2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0)]
    for name, options in [*schemes, ("uniform", {"scheme": "uniform"})]:
        v = imaging_weights((side, side), uv, natural, **options)
        beam, c = NUFFT((side, side), uv, v).psf(dtype=torch.float64), side // 2
        around = beam[c - 1, c] + beam[c + 1, c] + beam[c, c - 1] + beam[c, c + 1]
        curvature = float(2 * beam[c, c] - around / 2)  # the mean of both axes
        side_lobe = beam.clone()
        side_lobe[c - 8 : c + 9, c - 8 : c + 9] = 0
        row = {
            "weighting": name,
            "noise": noise_increase(natural, v),
            "fwhm_pixels": 4 * math.sqrt(math.log(2) / 2 / curvature),
        }
        rows.append(row | {"side_lobe": float(side_lobe.abs().max())})
    return rows


def measure(side: int = SIDE) -> dict[str, Any]:
    """Everything, as the JSON has it."""
    return {
        "side": side,
        "accuracy": accuracy_rows(side=side),
        "prox": prox_rows(side=side),
        "preconditioner": preconditioner_rows(side),
        "weighting": weighting_rows(side),
        "streamed": streamed_rows(side=side),
        "deepinv": deepinv_rows(side=side),
    }
