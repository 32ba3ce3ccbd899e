"""Super-resolution: FunkNN in its modes, LoFi, LIIF and a U-Net, trained for the same time, beside the plain kernels.

All are trained on crops of 128 x 128 of dead leaves and permissive photographs, by the recipe superres; checkpoints
that are in --work already are measured as they are. Measured on the images of Set12 that have 512 x 512
pixels, on the held-out camera, astronaut and coffee, and out of distribution on procedural chests and convergence maps.
What is seen is the truth shrunk by bicubic with antialias. Draws docs/images/zoom.png.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import ROOT, parser, report, set12, start, write_result
from pnp_lofi.checkpoint import load_checkpoint, shipped
from pnp_lofi.convergence import convergence
from pnp_lofi.dense import has_bfloat16
from pnp_lofi.figures import Panel, save_figure
from pnp_lofi.hounsfield import RANGE, window
from pnp_lofi.interpolation import KERNELS
from pnp_lofi.learner import Learner
from pnp_lofi.metrics import snr
from pnp_lofi.organs import chest
from pnp_lofi.recipes import superres
from pnp_lofi.scales import Scales, resized
from pnp_lofi.train import TrainSettings, train
from pnp_lofi.zoom import zoom

SIDE, OBJECTS = 128, 8
SEEN = 512  # side of the images that are measured, or less [pixel]
KINDS = {"Set12": (2, 4, 8), "photographs": (4,), "out of distribution": (2,)}  # factors; the CNNs take minutes
# network, mode, points of a crop (a U-Net takes all)
NETWORKS: dict[str, tuple[str, str, int]] = {
    "U-Net": ("U-Net", "any", 1),
    "LIIF small": ("LIIF", "any", 512),
    "LIIF": ("LIIF-paper", "any", 512),
    "LoFi factor": ("LoFi", "factor", 128),
    "FunkNN single": ("FunkNN", "single", 32),
    "FunkNN continuous": ("FunkNN", "continuous", 32),
    "FunkNN factor": ("FunkNN", "factor", 32),
    "FunkNN published": ("FunkNN-published", "factor", 32),
    "FunkNN fast": ("FunkNN-fast", "any", 256),
}


def trained(name: str, path: Path, minutes: float) -> None:
    """One network, unless it is there; as many steps as the processor makes in the time."""
    if path.is_file():
        return
    network, mode, pixels = NETWORKS[name]
    lr = superres.LR.get(network, 1e-3)
    torch.manual_seed(0)
    model = superres.build(network)
    source = Scales(superres.natural(SIDE, OBJECTS, 0, torch.device("cpu")), mode, enlarged=network == "U-Net")
    settings = TrainSettings(1000, pixels, lr=lr, ema=0.99, low_precision=0.0 if network == "LoFi" else 0.9)
    probe = Learner(superres.build(network), source, settings, {})
    probe.advance()
    begin = time.process_time()
    for _ in range(6):  # several sizes
        probe.advance()
    steps = max(20, int(60 * minutes / ((time.process_time() - begin) / 6)))
    settings = TrainSettings(steps, pixels, lr=lr, ema=0.99, low_precision=settings.low_precision)
    begin = time.process_time()
    about = {"recipe": superres.RECIPE, "network": network, "mode": mode, "objects": OBJECTS, "side": SIDE}
    train(model, source, settings, path, about=about, progress=False)
    print(f"{name}: {steps} steps, {time.process_time() - begin:.0f} s of one processor", flush=True)


def middle(x: Tensor, side: int) -> Tensor:
    top, left = (max(0, n - side) // 2 for n in x.shape[-2:])
    return x[..., top : top + side, left : left + side]


def images(data: Path) -> dict[str, list[Tensor]]:
    """By kind, (1, 1, H, W) in [0, 1]."""
    large = [middle(x, SEEN) for x in set12(data).values() if x.shape[-1] == 512]
    photographs = [middle(x, SEEN) for x in superres.held_out_photographs().values()]
    bodies = window(chest(2, 2 * SIDE, seed=superres.TESTED), RANGE).split(1)
    skies = (convergence(2, 2 * SIDE, 300 / 1024, seed=superres.TESTED) / 0.2 + 0.2).clamp(0, 1).split(1)
    return {"Set12": large, "photographs": photographs, "out of distribution": [*bodies, *skies]}


def measured(model: Any, sets: dict[str, list[Tensor]], **options: Any) -> dict[str, Any]:
    """SNR by kind and factor, and processor seconds for 100 images of 64 x 64 that become 128 x 128."""
    found: dict[str, Any] = {
        kind: {f"x{f}": superres.figures_of(model, sets[kind], f, **options) for f in asked}
        for kind, asked in KINDS.items()
    }
    q = middle(sets["out of distribution"][0], SIDE)[..., ::2, ::2]
    superres.enlarge(model, q, (SIDE, SIDE), **options)
    begin = time.process_time()  # of one processor: others may be busy
    superres.enlarge(model, q, (SIDE, SIDE), **options)
    return found | {"seconds_100": 100 * (time.process_time() - begin)}


def draw(path: Path) -> None:
    """The middle of the astronaut, a quarter of its size, and back."""
    x = middle(superres.held_out_photographs()["astronaut"][..., :320, :], 160)
    low = resized(x, (40, 40))
    panels = [Panel("seen, 40 x 40", low[0], (0.0, 1.0))]
    for name in ("bicubic", "zoom"):
        found = zoom(name, low, 4)
        panels.append(Panel(f"{name}, SNR {snr(found, x):.2f} dB", found[0].clamp(0, 1), (0.0, 1.0)))
    save_figure(path, [*panels, Panel("truth, 160 x 160", x[0], (0.0, 1.0))], overwrite=True)


def main() -> None:
    made = parser(__doc__, "superres", data=True)
    made.add_argument("--work", type=Path, default=Path("superres"), help="folder of checkpoints; those there are kept")
    made.add_argument("--minutes", type=float, default=1.0, help="of one processor, that a network is trained for")
    made.add_argument("--only", help="train these and stop, comma-separated")
    made.add_argument("--rows", help="measure these alone, comma-separated, and keep the others of the JSON")
    made.add_argument("--as-is", action="store_true", help="train nothing: measure the checkpoints that are there")
    args = start(made)
    args.work.mkdir(parents=True, exist_ok=True)
    paths = {name: args.work / f"{name.replace(' ', '_')}.safetensors" for name in NETWORKS}
    if args.as_is:
        paths = {name: path for name, path in paths.items() if path.is_file()}
    for name in args.only.split(",") if args.only else paths:
        trained(name, paths[name], args.minutes)
    if args.only:
        return
    sets, chosen = images(args.data), args.rows.split(",") if args.rows else None
    rows: dict[str, Any] = json.loads((args.results / "superres.json").read_text())["rows"] if chosen else {}
    rows |= {name: measured(name, sets) for name in KERNELS if chosen is None or name in chosen}
    if "zoom" in shipped():
        paths = {"zoom (shipped)": "zoom"} | paths  # type: ignore[assignment]
        draw(ROOT / "docs" / "images" / "zoom.png")
    payload = {"rows": rows, "minutes": args.minutes, "seen": SEEN, "counts": {k: len(v) for k, v in sets.items()}}
    for name, path in paths.items():
        if chosen is not None and name not in chosen:
            continue
        model, header = load_checkpoint(path)
        options: dict[str, Any] = {} if header["network"] == "U-Net" else {"recursive": header["mode"] == "factor"}
        if header["network"] in ("FunkNN", "FunkNN-published") and has_bfloat16(torch.device("cpu")):
            options["compute_dtype"] = torch.bfloat16  # a third of the time
        rows[name] = measured(model, sets, **options) | {
            "parameters": sum(p.numel() for p in model.parameters()), "mode": header["mode"],
            "steps": header["settings"]["steps"], "minutes": None if path == "zoom" else args.minutes,
            "points": header["settings"]["steps"] * header["objects"] * (
                SIDE**2 if header["network"] == "U-Net" else header["settings"]["pixels"]),
        }  # fmt: skip
        print(name, rows[name], flush=True)
        write_result("superres", payload, args.results)  # the CNNs take minutes
    report("superres", payload, args.results)


if __name__ == "__main__":
    main()
