"""Low-dose CT in one pass, the paper's setting: LoFi and networks of convolutions, trained on procedural chests for the
same processor time each, tested on chests, on heads, and on real slices of both.

128 x 128, 180 views, 30 dB, ramp filter; about 0.1 to 0.2 million parameters; the same trainer, L1 loss, images turned
and flipped, fresh noise. Nothing is trained on heads or on real slices.
"""

import copy
import functools
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import need, parser, report, start
from pnp_lofi.checkpoint import load_checkpoint
from pnp_lofi.ct_quality import Networks, figures_of_merit, measured, told
from pnp_lofi.ct_scans import Draws, Scan, fixed_pairs, load_scans
from pnp_lofi.files import write_json
from pnp_lofi.metrics import psnr
from pnp_lofi.recipes.ldct import LOW, RATE, RECIPE, build, cleaned
from pnp_lofi.train import TrainSettings, train

NETWORKS = ("LoFi", "SharedLoFi", "DnCNN", "IRCNN", "U-Net", "DRU-Net")
SHOWN = ("LoFi", "SharedLoFi", "DnCNN", "U-Net", "DRU-Net")
OBJECTS, CROP = {"LoFi": 32}, 48  # images a step, others 8; side of their crops [pixel]
WARM, PROBES = 2, 8  # steps that are not timed, and that are
SHIPPED = "SharedLoFi, shipped as ldct"
REAL = {"real chest": "chest", "real head": "head"}
QUOTED = {
    "source": "arXiv 2411.04995, Table I: 3 million parameters each, trained on 1000 real chest slices; out of "
    "distribution are 16 brain slices",
    "chest": {"FBP": (26.0, 0.55), "LoFi": (33.9, 0.90), "DnCNN": (34.2, 0.90), "IRCNN": (34.5, 0.91),
              "U-Net": (33.0, 0.90), "DRU-Net": (33.8, 0.90)},
    "brain": {"FBP": (26.0, 0.61), "LoFi": (30.6, 0.94), "DnCNN": (27.6, 0.82), "IRCNN": (29.8, 0.93),
              "U-Net": (13.9, 0.81), "DRU-Net": (29.0, 0.90)},
}  # fmt: skip


def trained(name: str, folder: Path, data: Any, scan: Scan, seconds: float, trained_on: str) -> dict[str, Any]:
    """Train one network for so much processor time; its steps, seconds and parameters. One that is there is kept."""
    kept = folder / f"{name}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    torch.manual_seed(0)
    model = build(name)
    source = Draws(data, OBJECTS.get(name, 8), None if name == "LoFi" else CROP)

    def settings(steps: int) -> TrainSettings:
        return TrainSettings(steps=steps, draws=2 if name == "LoFi" else 1, lr=RATE.get(name, 1e-3), low_precision=LOW)

    def spent(steps: int) -> float:
        begin = time.process_time()
        train(copy.deepcopy(model), source, settings(steps), folder / "probe.safetensors", progress=False)
        return time.process_time() - begin

    spent(WARM)
    steps = max(WARM, int(seconds / (spent(PROBES) / PROBES)))
    begin, clock = time.process_time(), time.perf_counter()
    about = {"recipe": RECIPE, "scan": asdict(scan), "trained_on": trained_on, "objects": source.objects,
             "crop": source.crop, "command": "python -m benchmarks.ldct"}  # fmt: skip
    train(model, source, settings(steps), folder / f"{name}.safetensors", about=about, progress=False)
    row = {"steps": steps, "seconds": time.process_time() - begin, "wall_seconds": time.perf_counter() - clock,
           "parameters": sum(p.numel() for p in model.parameters())}  # fmt: skip
    write_json(kept, row)
    return row


def picture(path: Path, rows: dict[str, dict[str, Tensor]]) -> None:
    """A row for each image: FBP, networks, truth."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.9 * columns, 2.15 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (kind, images) in zip(figure.subplots(len(rows), columns), rows.items(), strict=True):
        truth = images["truth"]
        for axis, (name, x) in zip(axes, images.items(), strict=True):
            axis.imshow(x[0, 0], cmap="gray", vmin=0.0 if "chest" in kind else 0.8, vmax=1.4, interpolation="nearest")
            axis.set_title(f"{kind}: truth" if x is truth else f"{name}, {psnr(x, truth):.1f} dB", fontsize=8)
            axis.set_axis_off()
    figure.savefig(path, dpi=100)


def main() -> None:
    made = parser(__doc__, "ldct", data=True)
    made.add_argument("--seconds", type=float, default=80, help="processor time that a network is trained for")
    made.add_argument(
        "--work", type=Path, default=Path("ldct_networks"), help="folder of the checkpoints; those there are kept"
    )
    made.add_argument("--images", type=int, default=1000, help="procedural chests to train on")
    made.add_argument("--tests", type=int, default=40, help="procedural images of each kind to test on")
    made.add_argument("--networks", default=",".join(NETWORKS), help="comma-separated")
    made.add_argument("--figure", type=Path, metavar="PATH.png", help="picture of real slices")
    args = start(made)
    need(*(args.data / "ct" / kind for kind in REAL.values()))
    args.work.mkdir(parents=True, exist_ok=True)
    scan = Scan()
    names = args.networks.split(",")
    missing = [name for name in names if not (args.work / f"{name}.json").exists()]
    data = load_scans("chest", scan, count=args.images) if missing else None
    rows: list[dict[str, Any]] = []
    networks: Networks = {"FBP": lambda q: q}
    for name in names:
        row = trained(name, args.work, data, scan, args.seconds, f"{args.images} procedural chests")
        model = load_checkpoint(args.work / f"{name}.safetensors")[0]
        networks[name] = functools.partial(cleaned, model)
        rows.append({"network": name} | row)
        print(row, flush=True)
    model, header = load_checkpoint("ldct")
    networks[SHIPPED] = functools.partial(cleaned, model)
    rows.append({"network": SHIPPED, "parameters": sum(p.numel() for p in model.parameters()),
                 "steps": header["settings"]["steps"], "seconds": None})  # fmt: skip
    tests = {kind: load_scans(kind, scan, part="test", count=args.tests) for kind in ("chest", "head")}
    tests |= {kind: load_scans(args.data / "ct" / folder, scan) for kind, folder in REAL.items()}
    found: dict[str, Any] = {"rows": rows, "count": {}, "quality": {}, "training_images": args.images}
    found |= {"seconds": args.seconds, "reference": {"Quoted": QUOTED}}
    shown: dict[str, dict[str, Tensor]] = {}
    for kind, held in tests.items():
        pairs = fixed_pairs(held)
        answers = {name: [(network(q), x) for q, x in pairs] for name, network in networks.items()}
        found["quality"][kind] = {name: figures_of_merit(each) for name, each in answers.items()}
        found["count"][kind] = len(pairs)
        if kind in REAL:
            first = {name: each[0][0] for name, each in answers.items() if name == "FBP" or name in SHOWN}
            shown[kind] = first | {"truth": pairs[0][1]}
    pixel = 380.0 / 128
    curves = told(measured(networks, scan, contrast=300.0, side=128, pixel=pixel, draws=32), pixel)
    found["sharpness"] = {name: {k: row[k] for k in ("mtf50", "mtf10", "noise")} for name, row in curves.items()}
    if args.figure:
        picture(args.figure, shown)
    report("ldct", found, args.results)


if __name__ == "__main__":
    main()
