"""Large images: 8192 x 8192 inpainting and a 4096 x 4096 sky on one machine, processes that share an image, rates.

Each large case runs a few iterations in a process of its own; 50 are extrapolated from the fastest. Images are
procedural: dead leaves in turned tiles, and a radio sky of which a process before makes visibilities. Processes that
share an image have one thread each, and talk by gloo on this machine: more of them than cores wait for each other.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.common import ROOT, machine, parser, peak_memory_of, report, start, timed
from pnp_lofi.admm import ADMM
from pnp_lofi.leaves import dead_leaves
from pnp_lofi.memory import peak_memory_mb
from pnp_lofi.operators import NUFFT, Mask, NormalEquations, ShardedEquations, meerkat_uv
from pnp_lofi.priors import LoFiPrior, ShardedPrior
from pnp_lofi.skies import radio_sky
from pnp_lofi.strips import Strips

SEED, KEEP, SNR = 31_005, 0.3, 30.0  # held out; part of the pixels seen; of the visibilities [dB]
TILE, TILES = 1024, 4  # of the large image
HOURS, INTEGRATION = 8.0, 50.0  # of MeerKAT's track: 1.16 million visibilities
SLICE = 2**18  # visibilities read at a time
BUDGET, ALLOWED = 4000.0, 6144  # MB: max_memory of the large cases; what their processes may take in all
WHOLE = 50  # iterations that are extrapolated to
PARTS = ("rates", "shared", "large")
Row = dict[str, Any]


# ---- images and data, in pieces --------------------------------------------------------------------------


def leaves(shape: tuple[int, int], rows: slice) -> Tensor:
    """Some rows of a large image, (1, 1, h, W): a few tiles, each time turned another way."""
    tile = min(TILE, shape[1])
    few = dead_leaves(TILES, tile, seed=SEED)
    x = torch.empty(1, 1, rows.stop - rows.start, shape[1])
    for top in range(rows.start // tile * tile, rows.stop, tile):
        first, last = max(top, rows.start), min(top + tile, rows.stop)
        for left in range(0, shape[1], tile):
            k = (top // tile) * 5 + (left // tile) * 3
            part = torch.rot90(few[k % TILES, 0], k // TILES % 4)
            x[..., first - rows.start : last - rows.start, left : left + tile] = part[
                first - top : last - top, : shape[1] - left
            ]
    return x


def kept(shape: tuple[int, int], rows: slice) -> Tensor:
    """Those rows of a random mask, which does not depend on how they are cut."""
    generator, mask = torch.Generator(), torch.empty(rows.stop - rows.start, shape[1], dtype=torch.bool)
    for r in range(rows.start, rows.stop):
        mask[r - rows.start] = torch.rand(shape[1], generator=generator.manual_seed(SEED + r)) < KEEP
    return mask


def observe(folder: str, height: int, width: int) -> Row:
    """Write uv.npy and vis.npy of a sky; returns the noise per real component."""
    side = max(height, width)
    sky = radio_sky(1, side, seed=SEED)[..., :height, :width].contiguous()
    uv = meerkat_uv(HOURS, integration=INTEGRATION)
    vis = NUFFT((height, width), uv, chunk=SLICE).A(sky)[0, 0].numpy()
    sigma = float(np.sqrt(np.mean(np.abs(vis) ** 2) / 2)) * 10 ** (-SNR / 20)
    rng = np.random.default_rng(SEED)
    vis = vis + sigma * (rng.standard_normal(vis.shape) + 1j * rng.standard_normal(vis.shape))
    np.save(Path(folder, "uv.npy"), uv.numpy())
    np.save(Path(folder, "vis.npy"), vis.astype(np.complex64))
    return {"sigma": sigma, "visibilities": len(vis)}


def visibilities(folder: str, strips: Strips) -> Iterator[tuple[Tensor, Tensor]]:
    """Those of this process, a slice at a time."""
    uv, vis = (np.load(Path(folder, f"{name}.npy"), mmap_mode="r") for name in ("uv", "vis"))
    for k in range(strips.rank * SLICE, len(vis), strips.world * SLICE):
        part = slice(k, k + SLICE)
        yield torch.from_numpy(uv[:, part].copy()), torch.from_numpy(vis[part].copy())


# ---- one case in one or several processes ----------------------------------------------------------------


def reconstruct(
    task: str, shape: tuple[int, int], folder: str, sigma: float, iterations: int, budget: float | None
) -> Row:
    """A few iterations on this process's strip. Without a budget the prior is exact, and the first process writes the
    image, for comparisons."""
    strips, begin = Strips(tuple(shape)), time.perf_counter()
    options: Row = {"max_iter": iterations, "tol": 0.0, "max_memory": budget, "progress": False}
    if task == "inpainting":
        op = Mask(kept(strips.shape, strips.rows), strips=strips)
        y, name = op.A(leaves(strips.shape, strips.rows)), "natural"
        options |= {"sigma_n": 0.0}
    else:
        op, y = ShardedEquations.from_chunks(strips, visibilities(folder, strips)).measurement(sigma=sigma)
        name, options = "radio", options | {"nonneg": True}
    build, stamps = time.perf_counter() - begin, []
    built_mb = peak_memory_mb()
    prior = LoFiPrior(name, precision="float32" if budget is None else "auto")
    solver = ADMM(op, ShardedPrior(prior, strips), **options)
    solver.callback = lambda at: stamps.append(time.perf_counter())
    begin, worked = time.perf_counter(), time.process_time()
    x = solver.solve(y).x
    share = (time.process_time() - worked) / (time.perf_counter() - begin)  # of a core; below 1 in one thread: waited
    seconds = [b - a for a, b in pairwise(stamps)]
    peak = peak_memory_mb()
    image = strips.gather(x) if budget is None else None
    if image is not None:
        np.save(Path(folder, f"{task}-{strips.world}.npy"), image.numpy())
    return {
        "build_seconds": build, "build_peak_mb": built_mb, "seconds_per_iteration": min(seconds),
        "before_seconds": stamps[0] - begin - min(seconds), "peak_mb": peak, "cpu_share": share,
    }  # fmt: skip


def nothing() -> None:
    """The price of the imports and a network."""
    LoFiPrior("natural")


def worker(rank: int, world: int, store: str, arguments: list[Any]) -> None:
    """One of several processes; prints its row."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
    row = reconstruct(*arguments)
    print(json.dumps(row))
    if world > 1:
        dist.destroy_process_group()


def together(world: int, *arguments: Any) -> Row:
    """:func:`reconstruct` in several processes: the slowest one's seconds, the largest one's memory.

    :raises RuntimeError: if one of them fails.
    """
    code = "import json, sys; from benchmarks.scaling import worker; worker(*json.loads(sys.argv[1]))"
    with tempfile.TemporaryDirectory() as folder:
        started = [
            subprocess.Popen(
                [sys.executable, "-c", code, json.dumps([rank, world, f"{folder}/store", arguments])],
                stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            for rank in range(world)
        ]  # fmt: skip
        told = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"{arguments} in {world} processes: one of them failed, see what it says")
    rows = [json.loads(text.splitlines()[-1]) for text in told]
    return {name: max(row[name] for row in rows) for name in rows[0]}


# ---- what is measured ------------------------------------------------------------------------------------


def large(sides: tuple[int, int], iterations: int, budget: float) -> list[Row]:
    """The two large cases."""
    imports = peak_memory_of(nothing).peak_mb
    rows = []
    for task, side in zip(("inpainting", "radio"), sides, strict=True):
        load = os.getloadavg()[0]
        with tempfile.TemporaryDirectory() as folder:
            data: Row = peak_memory_of(observe, folder, side, side).value if task == "radio" else {"sigma": 0.0}
            value, peak = peak_memory_of(reconstruct, task, (side, side), folder, data["sigma"], iterations, budget)
        whole = value["build_seconds"] + value["before_seconds"] + WHOLE * value["seconds_per_iteration"]
        rows.append(value | data | {"task": task, "side": side, "iterations": iterations, "peak_mb": peak, "load": load,
                                    "imports_mb": imports, "whole_seconds": whole})  # fmt: skip
        print(f"{task} {side}: {peak:.0f} MB, {value['seconds_per_iteration']:.1f} s an iteration", flush=True)
    return rows


def shared(side: int, worlds: list[int], iterations: int) -> list[Row]:
    """Strong scaling (one image) and weak (rows grow with the processes)."""
    rows: list[Row] = []
    for task in ("inpainting", "radio"):
        for kind in ("strong", "weak"):
            first: Row = {}
            with tempfile.TemporaryDirectory() as folder:
                for world in worlds:
                    shape = (side if kind == "strong" else side * world // 2, side)
                    data = observe(folder, *shape) if task == "radio" else {"sigma": 0.0}
                    load = os.getloadavg()[0]
                    found = together(world, task, shape, folder, data["sigma"], iterations, None)
                    first = first or found
                    speed = first["seconds_per_iteration"] / found["seconds_per_iteration"]
                    efficiency = speed * worlds[0] / world if kind == "strong" else speed
                    row = {
                        "task": task,
                        "kind": kind,
                        "processes": world,
                        "shape": shape,
                        "difference": None,
                        "load": load,
                    }
                    if kind == "strong":
                        alone, here = (np.load(Path(folder, f"{task}-{n}.npy")) for n in (worlds[0], world))
                        row["difference"] = float(np.abs(here - alone).max() / (alone.max() - alone.min()))
                    rows.append(row | found | {"speed_up": speed, "efficiency": efficiency})
                    print(f"{task}, {kind}, {world}: {found['seconds_per_iteration']:.2f} s", flush=True)
    return rows


@torch.no_grad()
def rates(sides: tuple[int, ...] = (1024, 2048), visible: tuple[int, int] = (1_000_000, 3_000_000)) -> Row:
    """Seconds of the parts that a large image is extrapolated from, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found: Row = {"prior": [], "normal": [], "build": [], "load": os.getloadavg()[0]}
    for side in sides:
        x = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(SEED))
        for precision in ("float32", "bfloat16"):
            prior = LoFiPrior("radio", precision=precision)  # type: ignore[arg-type]
            seconds = timed(partial(prior, x, 0.1), repeats=3)
            found["prior"].append({"side": side, "precision": precision, "seconds": seconds})
        op, _ = NormalEquations((side, side), eps=1e-6).add(*_random(1000)).measurement()
        found["normal"].append({"side": side, "seconds": timed(partial(op.A_adjoint_A, x), repeats=3)})
    for eps in (1e-12, 1e-6):  # what a visibility costs: the difference of two numbers of them
        equations = NormalEquations((256, 256), eps=eps)
        few, many = (timed(partial(equations.add, *_random(m)), repeats=5) for m in visible)
        found["build"].append({"eps": eps, "seconds_per_visibility": (many - few) / (visible[1] - visible[0])})
    torch.set_num_threads(threads)
    return found


def _random(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    uv = math.pi * (2 * torch.rand((2, count), dtype=torch.float64, generator=generator) - 1)
    return uv, torch.randn(count, dtype=torch.complex128, generator=generator)


def main() -> None:
    made = parser(__doc__, "scaling")
    made.add_argument("--sides", type=int, nargs=2, default=(8192, 4096), help="of the large inpainting and radio case")
    made.add_argument("--side", type=int, default=1024, help="of the image that processes share")
    made.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    made.add_argument("--iterations", type=int, default=4, help="that are timed, at least 2; the first is not")
    made.add_argument("--budget", type=float, default=BUDGET, help="max_memory of the large cases [MB]")
    made.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="to measure anew beside earlier results")
    args = start(made)
    before = Path(args.results, "scaling.json")
    payload: Row = json.loads(before.read_text()) if before.is_file() and len(args.parts) < len(PARTS) else {}
    payload |= {"keep": KEEP, "budget_mb": args.budget, "allowed_mb": ALLOWED, "whole": WHOLE}
    payload |= {"cores": machine()["cores"], "machine": machine()}
    if "rates" in args.parts:
        payload["rates"] = rates()
    if "shared" in args.parts:
        payload["shared"] = shared(args.side, args.processes, args.iterations)
    if "large" in args.parts:
        payload["large"] = large(tuple(args.sides), args.iterations, args.budget)
    payload["passes"] = max(row["peak_mb"] for row in payload["large"]) < ALLOWED
    report("scaling", payload, args.results)


if __name__ == "__main__":
    main()
