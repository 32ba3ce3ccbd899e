"""Derivatives, the largest fifth of them, and limited-view tomography: a generator, LoFi, and older ways.

Reads what the recipes wrote in a folder, heads.safetensors and a folder for each run; what is not there is made first:
ten minutes of one core for the generator, some minutes for each run. The generator was trained on heads of 64 x 64:
chests are what it never saw, and at 128 x 128 its field is bicubic.
Draws docs/images/continuous.png.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from torch.nn.functional import interpolate

from benchmarks.common import ROOT, parser, report, start
from pnp_lofi.checkpoint import read_tensors
from pnp_lofi.metrics import snr
from pnp_lofi.priors import load_generator
from pnp_lofi.recipes.continuous import PROBLEMS, compare, truth_of
from pnp_lofi.recipes.generative import train
from pnp_lofi.training_log import read_log
from pnp_lofi.zoom import zoom

SIZE = 64  # of the generator's images
EFFORT = 0.4  # steps of the generator over the paper's: 1000 and 400, for CT 2000 and 400
RUNS: dict[str, dict[str, Any]] = {
    "head, 64": {"family": "head", "side": 64},
    "head, 128": {"family": "head", "side": 128},
    "chest, 64": {"family": "chest", "side": 64},
}
REFERENCE = {
    "source": "arXiv 2212.14042, generator of CelebA-HQ faces, 128 -> 256 pixels",
    "ct": {"FBP": [5.8, 7.2, 6.5], "FunkNN": [19.1, 19.1, 15.3]},
    "sparse, shifted": {"continuous GAN": [9.0], "FunkNN": [11.8]},
}


def main() -> None:
    made = parser(__doc__, "continuous")
    made.add_argument("--work", type=Path, help="folder of the checkpoint and the results; default, a new one")
    args = start(made)
    work = args.work or Path(tempfile.mkdtemp())
    checkpoint = work / "heads.safetensors"
    if not checkpoint.is_file():
        train(checkpoint)
    results = {}
    for name, options in RUNS.items():
        folder = work / name.replace(", ", "-")
        if not (folder / "results.json").is_file():
            compare(checkpoint, folder, effort=EFFORT, **options)
        results[name] = json.loads((folder / "results.json").read_text()) | {"ceiling": ceiling(**options)}
    draw(work, results)
    report("continuous", {"generator": about(checkpoint), "results": results, "reference": {"Quoted": REFERENCE}},
           args.results)  # fmt: skip


def about(checkpoint: Path) -> dict[str, Any]:
    """What was trained, and for how long."""
    generator, header = load_generator(checkpoint)
    rows = read_log(f"{checkpoint}.autoencoder.csv")
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in generator.named_children()}
    return {"metrics": header["metrics"], "trained_on": header["trained_on"], "parameters": counts,
            "latent": generator.latent, "size": generator.size, "steps": int(rows[-1]["step"]),
            "seconds": rows[-1]["seconds"]}  # fmt: skip


def ceiling(family: str, side: int) -> float | None:
    """SNR [dB] of the truth averaged to the generator's pixels and enlarged again; None where nothing is enlarged."""
    if side == SIZE:
        return None
    truth = truth_of(family, None, side, 0)
    small = interpolate(truth, (SIZE, SIZE), mode="area")
    return snr(zoom("bicubic", small, shape=(side, side)), truth)


def draw(work: Path, results: dict[str, Any]) -> None:
    """A row for each problem of each run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 19), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(RUNS) * len(PROBLEMS), 6)
    rows = [(run, name) for run in RUNS for name in PROBLEMS]
    for line, (run, name) in zip(axes, rows, strict=True):
        found = results[run]
        images, _ = read_tensors(work / run.replace(", ", "-") / "kept.safetensors")
        truth = truth_of(found["family"], None, found["side"], found["seed"])
        shown = [(f"truth: {PROBLEMS[name]}", truth)]
        for method, row in found["problems"][name].items():
            shown.append((f"{method}: {row['snr']:.1f} dB", images[f"{name}/{method}"]))
        for axis, (title, x) in zip(line, shown, strict=True):
            axis.imshow(x[0, 0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_title(title, fontsize=8)
            axis.set_axis_off()
    figure.savefig(ROOT / "docs" / "images" / "continuous.png", dpi=80)


if __name__ == "__main__":
    main()
