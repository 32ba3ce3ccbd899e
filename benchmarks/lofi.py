"""The LoFi core: equality of its ways in, its speed beside the authors' scheme and network denoisers, its memory.

Speed is measured with random images. The paper-size network (9 x 9 points, 3 layers of 370) has the same random
weights in both implementations, so its accuracy is the difference between them. DnCNN and DRUNet run with random
weights, as deepinv makes them, in channels-last layout and under autocast: the goals are against the fastest in
float32. Memory is the peak of a process beyond its input and target tensors and the network. The Triton kernels are
compared with torch on the GPU where there is one, and by Triton's interpreter elsewhere.
"""

import ctypes
import gc
import os
import random
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepinv.models import DnCNN, DRUNet
from torch import Tensor, nn

from benchmarks.common import ROOT, parser, peak_memory_of, report, start, timed
from benchmarks.faithful import Faithful
from pnp_lofi import LoFi, LoFiPrior
from pnp_lofi.ccpg import CCPG
from pnp_lofi.filters import SpatialFilter, SpectralFilter
from pnp_lofi.geometry import PatchGeometry
from pnp_lofi.kernels import gather
from pnp_lofi.memory import peak_memory_mb
from pnp_lofi.mlp import MLP
from pnp_lofi.multimlp import MultiMLP
from pnp_lofi.official import from_official
from pnp_lofi.sampling import grid_coords, stencil
from pnp_lofi.shared import SharedLoFi

SIGMA = 0.1
PAPER: dict[str, Any] = {
    "rays": 9,
    "rings": 9,
    "radius": 2.0,
    "hidden": (370,) * 3,
    "features": 100,
    "mixer": (370,) * 3,
}
PLAIN: dict[str, Any] = {"centred": False, "equivariant": False}
FAITHFUL_BATCH, FAITHFUL_BATCH_LOW = 512, 4096  # pixels of a batch, 512 is theirs; the fastest of 512, 4096, 16384
PAPER_SIDES, S_SIDE = (256, 512), 512
MEMORY_SIDES = (128, 256, 512, 1024, 2048)
PIXELS, STEPS = 512, 5  # of the training whose memory is measured
# glibc's default, held fixed: it grows otherwise, freed memory is kept by chance, and equal runs differ by 10 %
MMAP_THRESHOLD = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
ALLOWED = {"float32": 1e-5, "float64": 1e-12}
PRECISIONS = ("float32", "bfloat16")
GOALS = {"float32": 1.1, "bfloat16": 2.3, "DnCNN": 3.0, "DRUNet": 10.0, "training_mb": 200.0, "growth": 0.05}


def image(side: int, *, channels: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random image, fresh in every run."""
    return torch.rand(1, channels, side, side, dtype=dtype)


def networks() -> dict[str, tuple[nn.Module, int]]:
    """Every kind of network, random weights, with the channels it takes."""
    small: dict[str, Any] = {"rays": 4, "rings": 5, "radius": 3.0, "hidden": (16,), "features": 8, "mixer": (16,)}
    return {
        "LoFi": (LoFi(**small), 1),
        "LoFi, paper size": (LoFi(**PAPER, **PLAIN, residual=False), 1),
        "LoFi, spectral filter": (LoFi(**small, filter={"kind": "spectral", "size": 32}), 1),
        "LoFi, spatial filter, RGB": (LoFi(3, **small, filter={"kind": "spatial", "size": 5}), 3),
        "LoFi, CCPG": (LoFi(**small, ccpg=2), 1),
        "LoFi, single MLP": (LoFi(**small, head="single"), 1),
        "LoFi, official": (LoFi(**small, **PLAIN, official=True), 1),
        "SharedLoFi (size S)": (SharedLoFi(), 1),
    }


@torch.no_grad()
def ways_in() -> list[dict[str, Any]]:
    """The largest difference between grid, coordinates and pixels, over the largest value."""
    rows = []
    for name, (model, channels) in networks().items():
        row: dict[str, Any] = {"check": f"grid = coordinates = pixels: {name}"}
        for label, dtype in (("float32", torch.float32), ("float64", torch.float64)):
            model.to(dtype)
            q = image(24, channels=channels, dtype=dtype)
            sigma = () if name in ("LoFi, paper size", "LoFi, official") else (SIGMA,)
            grid = model(q, *sigma).flatten(2).transpose(1, 2)
            coords = grid_coords((24, 24), dtype=torch.float64, corners="official" in name)
            index = torch.randperm(24 * 24)
            others = (model.at(q, coords, *sigma) - grid, model.at_pixels(q, index, *sigma) - grid[:, index])
            row[label] = max(float(d.abs().max()) for d in others) / float(grid.abs().max())
        rows.append(row | {"passes": all(row[k] <= ALLOWED[k] for k in ALLOWED)})
    return rows


def gradchecks() -> list[dict[str, Any]]:
    """Derivatives of every part against finite differences, float64."""
    torch.set_default_dtype(torch.float64)
    try:
        q, coords = image(6, dtype=torch.float64).requires_grad_(), (0.2 + 0.6 * torch.rand(3, 2)).requires_grad_()
        geometry, deform = PatchGeometry(3, 2, 1.7), CCPG(6, torch.randn(6, 2), 1, width=5)
        multi, plain = MultiMLP(3, 4, (5,), 3, (4,), 2), MLP([4, 5, 2])
        spectral, spatial = SpectralFilter(1, size=4, padding=2), SpatialFilter(1, size=3)
        points, offsets = (6 * torch.rand(1, 3, 2)).requires_grad_(), torch.randn(4, 2).requires_grad_()
        field, shared = LoFi(rays=3, rings=2, radius=1.7, hidden=(4,), features=3, mixer=(4,)), SharedLoFi(
            window=3, filters=4, features=2, points=3, spacing=1, raw=3, hidden=(4,)
        )  # fmt: skip
        first: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
            "gather": (gather, (q, points, offsets)),
            "stencil": (lambda d: stencil(d, 4), (offsets,)),
            "PatchGeometry": (lambda _: geometry.points((6, 6)), (geometry.offsets,)),
            "CCPG": (lambda p, *_: deform.offsets(0, p), (torch.randn(2, 1, 6).requires_grad_(), *deform.parameters())),
            "MultiMLP": (lambda p, *_: multi(p), (torch.randn(3, 2, 4).requires_grad_(), *multi.parameters())),
            "MLP": (lambda p, *_: plain(p), (torch.randn(3, 4).requires_grad_(), *plain.parameters())),
            "SpectralFilter": (lambda x, _: spectral(x), (q, spectral.response)),
            "SpatialFilter": (lambda x, _: spatial(x), (q, spatial.kernels)),
            "LoFi": (lambda x, *_: field(x, 0.5, chunk=7), (q, *field.parameters())),
            "LoFi.at": (lambda x, c: field.at(x, c, 0.5), (q, coords)),
            "SharedLoFi": (lambda x, *_: shared(x, 0.5, chunk=7), (q, *shared.parameters())),
            "SharedLoFi.at": (lambda x, c: shared.at(x, c, 0.5), (q, coords)),
        }
        rows = [{"check": f"gradcheck: {k}", "passes": _holds(torch.autograd.gradcheck, *v)} for k, v in first.items()]
        for name, model in (("LoFi.at", field), ("SharedLoFi.at", shared)):
            second = partial(_at, model, q.detach())
            rows.append({"check": f"second: {name}", "passes": _holds(torch.autograd.gradgradcheck, second, (coords,))})
    finally:
        torch.set_default_dtype(torch.float32)
    return rows


def _at(model: Any, q: Tensor, coords: Tensor) -> Tensor:
    return model.at(q, coords, 0.5)


def _holds(check: Callable[..., bool], function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> bool:
    return check(function, inputs, raise_exception=False)


def kernels_equal() -> dict[str, Any]:
    """Triton = torch, on fresh random inputs: the tests that say so, in a process of their own, from a fresh seed."""
    gpu, seed = torch.cuda.is_available(), random.SystemRandom().randrange(10**6)
    line = [sys.executable, "-m", "pytest", "-q", "tests/test_kernels.py", *(["-m", "gpu"] if gpu else [])]
    done = subprocess.run(
        line,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PNP_LOFI_SEED": str(seed)},
        capture_output=True,
        text=True,
    )
    summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-200:]
    where = "on the GPU" if gpu else "by Triton's interpreter"
    return {
        "check": f"Triton = torch {where}, seed {seed}: {summary}",
        "passes": done.returncode == 0 and "skipped" not in summary,
    }


def gemm_rate(dtype: torch.dtype, device: str = "cpu", side: int = 2048) -> float:
    """Rate of one large matrix product [GFLOP/s]."""
    a = torch.randn(side, side, device=device).to(dtype)

    def product() -> None:
        a @ a
        if device != "cpu":
            torch.cuda.synchronize()

    return 2 * side**3 / timed(product, repeats=9, warm_up=3) / 1e9


@torch.no_grad()
def paper_speed(repeats: int) -> list[dict[str, Any]]:
    """The paper-size network: the authors' scheme, and ours with the same weights, in turn."""
    torch.manual_seed(0)
    theirs = Faithful(fourier_filtering=False).eval()
    ours = from_official(theirs.state_dict(), image_size=theirs.image_size)
    flop = 2 * sum(p.numel() for name, p in ours.mlp.named_parameters() if "weights" in name)
    rates = {name: gemm_rate(getattr(torch, name)) for name in PRECISIONS}
    rows = []
    for side in PAPER_SIDES:
        x = image(side)
        runs: dict[str, Callable[[], Tensor]] = {
            "the authors' scheme, float32": lambda x=x: theirs.whole(x, FAITHFUL_BATCH),
            "the authors' scheme, bfloat16 (autocast)": lambda x=x: _autocast(theirs.whole, x, FAITHFUL_BATCH_LOW),
            "LoFi, float32": lambda x=x: ours(x),
            "LoFi, bfloat16": lambda x=x: ours(x, compute_dtype=torch.bfloat16),
        }
        seconds = _in_turn(runs, repeats)
        first, second = list(runs)[:2]
        reference = runs[first]()
        for name, run in runs.items():
            low = "bfloat16" in name
            rate, gemm = flop * side**2 / seconds[name] / 1e9, rates["bfloat16" if low else "float32"]
            difference = float((run() - reference).abs().max() / (reference - reference.mean()).abs().max())
            rows.append({
                "side": side, "name": name, "seconds": seconds[name], "speed_up": seconds[first] / seconds[name],
                "like_for_like": seconds[second if low else first] / seconds[name],
                "gflops": rate, "gemm_gflops": gemm, "share": rate / gemm, "difference": difference,
            })  # fmt: skip
    return rows


@torch.no_grad()
def size_s_speed(prior: str, repeats: int) -> list[dict[str, Any]]:
    """Size S beside deepinv's network denoisers, one 512 x 512 image."""
    x = image(S_SIDE)
    own = {name: LoFiPrior(prior, precision=name) for name in PRECISIONS}
    if not isinstance(own["float32"].model, SharedLoFi):
        raise SystemExit(f"{prior!r} is not of size S; name a checkpoint of a SharedLoFi with --prior")
    runs: dict[str, Callable[[], Tensor]] = {f"LoFi S, {name}": partial(p, x, SIGMA) for name, p in own.items()}
    parameters = dict.fromkeys(runs, sum(p.numel() for p in own["float32"].parameters()))
    last = x.contiguous(memory_format=torch.channels_last)
    for name, make in (("DnCNN", DnCNN), ("DRUNet", DRUNet)):
        network = make(in_channels=1, out_channels=1, pretrained=None).eval()
        nhwc = deepcopy(network).to(memory_format=torch.channels_last)
        runs[f"{name} (deepinv), float32"] = partial(network, x, SIGMA)
        runs[f"{name} (deepinv), float32, channels last"] = partial(nhwc, last, SIGMA)
        runs[f"{name} (deepinv), bfloat16 (autocast), channels last"] = partial(_autocast, nhwc, last, SIGMA)
        parameters |= {run: sum(p.numel() for p in network.parameters()) for run in runs if run.startswith(name)}
    seconds = _in_turn(runs, repeats)
    return [
        {"name": name, "parameters": parameters[name], "seconds": seconds[name],
         "over_float32": seconds[name] / seconds["LoFi S, float32"],
         "over_bfloat16": seconds[name] / seconds["LoFi S, bfloat16"]}
        for name in runs
    ]  # fmt: skip


def _autocast(call: Callable[..., Tensor], *args: Any) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return call(*args).float()


def _in_turn(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Fastest of several calls each, taken in turn so that a slow minute of the machine meets all alike."""
    found = {name: float("inf") for name in runs}
    for k in range(repeats):
        for name, run in runs.items():
            found[name] = min(found[name], timed(run, repeats=1, warm_up=int(k == 0)))
    return found


def training_memory(kind: str, side: int) -> float:
    """Peak beyond input, target and network of some steps on one object [MB]."""
    model, q, target = _network(kind), image(side), image(side)
    optimiser = torch.optim.Adam(model.parameters())
    before = _fresh_peak()
    for _ in range(STEPS):
        index = torch.randint(side**2, (PIXELS,))
        wanted = target.flatten()[index][None, :, None]
        optimiser.zero_grad()
        (model.at_pixels(q, index) - wanted).abs().mean().backward()
        optimiser.step()
    return peak_memory_mb() - before


@torch.no_grad()
def inference_memory(kind: str, side: int) -> float:
    """Peak beyond input and network of one evaluation [MB]; the result is part of it."""
    model, q = _network(kind), image(side)
    sigma = (SIGMA,) if kind == "size S" else ()
    before = _fresh_peak()
    model(q, *sigma)
    return peak_memory_mb() - before


def _network(kind: str) -> Any:
    return SharedLoFi() if kind == "size S" else LoFi(**PAPER, **PLAIN)


def _fresh_peak() -> float:
    """Forget the peak so far (Linux) and read the memory in use [MB]."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what imports have left in the heap would be used uncounted
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory_mb()


def memory() -> list[dict[str, Any]]:
    """A row per network, task and side."""
    runs = (("paper size", "training", training_memory), ("paper size", "inference", inference_memory),
            ("size S", "inference", inference_memory))  # fmt: skip
    os.environ |= MMAP_THRESHOLD
    rows = []
    for kind, task, run in runs:
        for side in MEMORY_SIDES:
            mb = peak_memory_of(run, kind, side).value
            rows.append({"network": kind, "task": task, "side": side, "mb": mb})
            print(f"{kind}, {task}, {side}: {mb:.0f} MB", flush=True)
    return rows


def gpu() -> dict[str, Any] | None:
    """Achieved rates over the card's own, or None without one."""
    if not torch.cuda.is_available():
        return None
    bf16, side = torch.bfloat16, 1024
    model = LoFi(**PAPER, **PLAIN).cuda()
    flop = 2 * sum(p.numel() for name, p in model.mlp.named_parameters() if "weights" in name)
    x, rate = image(side).cuda(), gemm_rate(bf16, "cuda", 8192)

    def seconds(run: Callable[[], Any]) -> float:
        def synchronised() -> None:
            run()
            torch.cuda.synchronize()

        return timed(synchronised, repeats=5, warm_up=3)

    with torch.no_grad():
        whole = seconds(lambda: model(x, compute_dtype=bf16))
        theirs = Faithful(fourier_filtering=False).cuda().eval()
        scheme = seconds(lambda: theirs.whole(x, 1 << 16))
        points, offsets = torch.rand(1, 1 << 20, 2, device="cuda") * side, torch.randn(81, 2, device="cuda")
        moved = 4 * (points.numel() + points.shape[1] * 81)
        gathered = seconds(lambda: gather(x, points, offsets))
        copied = torch.empty(moved // 8, device="cuda")
        copy = seconds(lambda: copied.clone())
    objects, optimiser = image(128).cuda().expand(64, -1, -1, -1).contiguous(), torch.optim.Adam(model.parameters())

    def step() -> None:
        index = torch.randint(128 * 128, (64, 512), device="cuda")
        optimiser.zero_grad()
        model.at_pixels(objects, index, compute_dtype=bf16).abs().mean().backward()
        optimiser.step()

    trained = seconds(step)
    return {
        "card": torch.cuda.get_device_name(), "gemm_tflops": rate / 1e3, "denoise_seconds": whole,
        "denoise_share": flop * side**2 / whole / 1e9 / rate, "over_scheme": scheme / whole,
        "gather_share": copy / gathered, "step_seconds": trained,
        "step_share": 3 * flop * 64 * 512 / trained / 1e9 / rate,
    }  # fmt: skip


def main() -> None:
    made = parser(__doc__, "lofi")
    made.add_argument("--prior", default="natural", help="shipped name or checkpoint of size S")
    made.add_argument("--repeats", type=int, default=3, help="timed rounds; the fastest counts")
    args = start(made)
    payload: dict[str, Any] = {"goals": GOALS, "s_side": S_SIDE, "pixels": PIXELS}
    payload |= {"paper": paper_speed(args.repeats), "size_s": size_s_speed(args.prior, args.repeats)}
    payload |= {"memory": memory(), "gpu": gpu(), "equality": [*ways_in(), *gradchecks(), kernels_equal()]}
    payload["passes"] = _passes(payload)
    report("lofi", payload, args.results)


def _passes(found: dict[str, Any]) -> dict[str, bool]:
    """Which of the goals are met."""
    best = {name: [row["speed_up"] for row in found["paper"] if row["name"] == f"LoFi, {name}"] for name in PRECISIONS}
    ours = {
        name: min(
            row["over_float32"] for row in found["size_s"] if row["name"].startswith(name) and "bf" not in row["name"]
        )
        for name in ("DnCNN", "DRUNet")
    }
    training = [row["mb"] for row in found["memory"] if row["task"] == "training"]
    return {
        "equality": all(row["passes"] for row in found["equality"]),
        **{f"paper size, {name}": min(values) >= GOALS[name] for name, values in best.items()},
        **{f"size S over {name}": ours[name] >= GOALS[name] for name in ("DnCNN", "DRUNet")},
        "training memory": max(training) < GOALS["training_mb"],
        "training memory growth": max(training) / min(training) - 1 <= GOALS["growth"],
    }


if __name__ == "__main__":
    main()
