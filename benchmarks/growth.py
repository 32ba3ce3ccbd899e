"""Memory and time against resolution, of one training step and of one answer: LoFi and networks of convolutions.

The paper's Table II: the same batch of images for all; LoFi draws 512 pixels of each, the others see all. SharedLoFi,
the network of the prior "natural", is trained on crops and so has no row in training. Each figure comes from a process
of its own whose memory is limited. Draws docs/images/growth.png. Also how many pixels a second LoFi is trained on,
beside the rate of large matrix products.
"""

import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import ROOT, parser, peak_memory_of, report, start, timed
from pnp_lofi.baselines import SIZES
from pnp_lofi.dense import has_bfloat16
from pnp_lofi.examples import Example
from pnp_lofi.learner import Learner
from pnp_lofi.recipes.denoise import build
from pnp_lofi.shared import SharedLoFi
from pnp_lofi.supervised import answer
from pnp_lofi.train import TrainSettings

SIDES = (128, 256, 512, 1024)
LARGEST, OURS = 2048, ("LoFi", "SharedLoFi")
PIXELS = 512  # that LoFi draws from an image
SIGMA = 0.15
PATIENCE = 120.0  # a network that took longer than a quarter of it is not tried at twice the side [s]
OBJECTS = 64  # of the step whose throughput is measured
NAMES = (*OURS, *SIZES)
PARTS = ("growth", "throughput")
MATRIX = 2048  # side of the matrices


def network(name: str, size: str) -> torch.nn.Module:
    """SharedLoFi, as the prior "natural", is told the level of the noise; it has one size."""
    return SharedLoFi() if name == "SharedLoFi" else build(name, size, 1, told=False)


def learner(name: str, size: str, side: int, batch: int, device: str, low: float = 0.0) -> Learner:
    torch.manual_seed(0)
    model = build(name, size, 1, told=False).to(device)
    x = torch.rand(batch, 1, side, side, generator=torch.Generator().manual_seed(1))
    example = Example(x + SIGMA * torch.randn(x.shape), x)
    return Learner(model, lambda g: example, TrainSettings(pixels=PIXELS, weight=0.0, low_precision=low), {})


def limited(gigabytes: float, device: str) -> None:
    if device == "cpu":
        resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 2**30),) * 2)


def nothing() -> None:
    """The price of the imports alone."""


def training(name: str, size: str, side: int, batch: int, gigabytes: float, device: str) -> dict[str, Any]:
    limited(gigabytes, device)
    run = learner(name, size, side, batch, device)
    return spent(run.advance, device)


def answering(name: str, size: str, side: int, batch: int, gigabytes: float, device: str) -> dict[str, Any]:
    limited(gigabytes, device)
    torch.manual_seed(0)
    model = network(name, size).to(device).eval()
    x = torch.rand(batch, 1, side, side)
    return spent(lambda: answer(model, x.to(device), SIGMA if name == "SharedLoFi" else None), device)


def spent(call: Any, device: str) -> dict[str, Any]:
    """Seconds, after a call that is not counted where it is short; None where memory did not suffice."""
    try:
        begin = time.perf_counter()
        call()
        seconds = time.perf_counter() - begin
        if seconds < PATIENCE / 4:
            seconds = timed(lambda: (call(), device == "cpu" or torch.cuda.synchronize()), repeats=3, warm_up=0)
    except (RuntimeError, MemoryError) as error:
        if "alloc" not in str(error) and "memory" not in str(error):
            raise
        return {"seconds": None}
    return {"seconds": seconds, "cuda_mb": torch.cuda.max_memory_allocated() / 2**20 if device != "cpu" else None}


def growth(name: str, call: Any, args: Any) -> list[dict[str, Any]]:
    """A row a side, until it takes too long or too much."""
    rows: list[dict[str, Any]] = []
    for side in (*args.sides, *((LARGEST,) if name in OURS else ())):
        if rows and (rows[-1]["seconds"] is None or rows[-1]["seconds"] > PATIENCE / 4):
            rows.append({"side": side, "seconds": None, "mb": None, "why": rows[-1].get("why", "time")})
            continue
        found, peak = peak_memory_of(call, name, args.size, side, args.batch, args.gigabytes, args.device)
        mb = found["cuda_mb"] if found.get("cuda_mb") else peak
        short = {"mb": None, "why": "memory"} if found["seconds"] is None else {"mb": mb}
        rows.append({"side": side, "seconds": found["seconds"]} | short)
        print(name, call.__name__, rows[-1], flush=True)
    return rows


def throughput(size: str, device: str, *, low: bool) -> dict[str, Any]:
    """Pixels a second of training steps, and their share of the rate of matrix products."""
    run = learner("LoFi", size, 128, OBJECTS, device, 1.0 if low else 0.0)
    with FlopCounterMode(display=False) as counter:
        run.advance()
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    seconds = timed(lambda: (run.advance(), wait()), repeats=2, warm_up=0)
    a = torch.randn(MATRIX, MATRIX, device=device, dtype=torch.bfloat16 if low else torch.float32)
    rate = 2 * MATRIX**3 / timed(lambda: (a @ a, wait()), repeats=5)
    flops = counter.get_total_flops()
    parameters = sum(p.numel() for p in run.model.parameters())
    return {"size": size, "precision": "bfloat16" if low else "float32", "parameters": parameters, "seconds": seconds,
            "pixels_per_s": OBJECTS * PIXELS / seconds, "flops": flops, "matmul_rate": rate,
            "share": flops / seconds / rate}  # fmt: skip


def picture(path: Path, found: dict[str, Any]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (kind, title) in zip(figure.subplots(2, 2), (("training", "a training step"), ("answering", "an answer")),
                                   strict=True):  # fmt: skip
        for axis, key, unit in zip(
            axes, ("mb", "seconds"), ("memory above the imports' [MB]", "time [s]"), strict=True
        ):
            base = found["imports_mb"] if key == "mb" else 0.0
            for name, rows in found[kind].items():
                points = [(row["side"], row[key] - base) for row in rows if row[key] is not None]
                axis.plot(
                    *zip(*points, strict=True),
                    marker="o",
                    label=name,
                    color=f"C{NAMES.index(name)}",
                    linewidth=2.5 if name in OURS else 1.2,
                )
            axis.set(xscale="log", yscale="log", title=f"{title}: {unit}", xlabel="side [pixel]")
            axis.set_xticks([*SIDES, LARGEST], [*map(str, SIDES), str(LARGEST)], minor=False)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    figure.axes[2].legend(fontsize=8)
    figure.savefig(path, dpi=90)


def main() -> None:
    made = parser(__doc__, "growth")
    made.add_argument("--size", default="small", choices=("small", "paper"), help="0.2 or 3 million parameters")
    made.add_argument("--sides", type=int, nargs="+", default=SIDES, help="of the images [pixel]")
    made.add_argument("--batch", type=int, default=1, help="images of a step, and of an answer")
    made.add_argument("--gigabytes", type=float, default=12.0, help="of address space a process may take, on a CPU")
    made.add_argument("--networks", default=",".join(NAMES), help="comma-separated")
    made.add_argument("--device", default="cpu", help="cpu or cuda")
    made.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="to measure anew beside earlier results")
    args = start(made)
    before = args.results / "growth.json"
    found: dict[str, Any] = json.loads(before.read_text()) if before.is_file() and len(args.parts) == 1 else {}
    if "throughput" in args.parts:
        low = (False, True) if has_bfloat16(torch.device(args.device)) else (False,)
        found["throughput"] = [throughput(size, args.device, low=one) for size in ("small", "paper") for one in low]
        found["throughput_threads"] = torch.get_num_threads()
    if "growth" in args.parts:
        found |= {key: getattr(args, key) for key in ("size", "batch", "gigabytes", "device")}
        found |= {"pixels": PIXELS, "patience": PATIENCE, "imports_mb": peak_memory_of(nothing).peak_mb}
        found["growth_threads"] = torch.get_num_threads()
        for call in (training, answering):
            found[call.__name__] = {name: growth(name, call, args) for name in args.networks.split(",")
                                    if name != "SharedLoFi" or call is answering}  # fmt: skip
        picture(ROOT / "docs" / "images" / "growth.png", found)
    found = {key: value for key, value in found.items() if key not in ("benchmark", "machine")}
    report("growth", found, args.results)


if __name__ == "__main__":
    main()
