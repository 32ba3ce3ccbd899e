"""Derivatives, the largest fifth of them, and limited-view tomography: a generator, LoFi, and older ways.

Reads what the recipes wrote in a folder, heads.safetensors and a folder for each image; what is not there is made
first: twenty minutes of one core for the generator, some minutes for each image. The generator was trained on heads of
64 x 64: chests are what it never saw, and at 128 x 128 its field is bicubic, or the shipped FunkNN.
Draws docs/images/continuous.png and generator.png.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from torch.nn.functional import interpolate

from benchmarks.common import ROOT, mean, parser, report, start
from pnp_lofi.checkpoint import read_tensors
from pnp_lofi.metrics import snr
from pnp_lofi.priors import load_generator
from pnp_lofi.recipes.continuous import PROBLEMS, compare, truth_of
from pnp_lofi.recipes.generative import TESTED, images, train
from pnp_lofi.recipes.generative import draw as draw_generator
from pnp_lofi.training_log import read_log
from pnp_lofi.zoom import zoom

SIZE = 64  # of the generator's images
EFFORT = 0.4  # steps of the generator over the paper's: 1000 and 400, for CT 2000 and 400
RUNS: dict[str, list[dict[str, Any]]] = {  # what is averaged
    "3 heads, 64": [{"family": "head", "side": 64, "seed": k} for k in range(3)],
    "3 chests, 64": [{"family": "chest", "side": 64, "seed": k} for k in range(3)],
    "head, 128": [{"family": "head", "side": 128, "seed": 0}],
}
FUNKNN = "FunkNN o generator"  # at 128 x 128; a step takes a third of a second
FUNKNN_EFFORT = 0.15
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
    results = {name: averaged([found(work, options) for options in each]) for name, each in RUNS.items()}
    for options in RUNS["head, 128"]:
        for name, rows in found(work, options, True)["problems"].items():
            results["head, 128"]["problems"][name][FUNKNN] = rows["generator"]
        results["head, 128"]["ceiling"] = {field: ceiling(field, **options) for field in ("bicubic", "zoom")}
    payload = {"generator": about(checkpoint), "results": results, "effort": EFFORT, "funknn_effort": FUNKNN_EFFORT,
               "snr": 30.0, "reference": {"Quoted": REFERENCE}}  # fmt: skip
    draw(work, results)
    generator, _ = load_generator(checkpoint)
    draw_generator(ROOT / "docs" / "images" / "generator.png", generator, images("head", 8, SIZE, TESTED), 0)
    report("continuous", payload, args.results)


def found(work: Path, options: dict[str, Any], funknn: bool = False) -> dict[str, Any]:
    """What the recipe measured of one image; made if it is not there."""
    folder = work / (f"{options['family']}-{options['side']}-{options['seed']}" + ("-funknn" if funknn else ""))
    if not (folder / "results.json").is_file():
        asked = {"effort": FUNKNN_EFFORT, "field": "zoom", "only": "generator"} if funknn else {"effort": EFFORT}
        compare(work / "heads.safetensors", folder, **asked, **options)
    return {"folder": folder.name} | options | json.loads((folder / "results.json").read_text())


def averaged(each: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over images, and the figures of each."""
    problems: dict[str, Any] = {}
    for name, rows in each[0]["problems"].items():
        problems[name] = {}
        for method, row in rows.items():
            all_rows = [one["problems"][name][method] for one in each]
            kept = [key for key, value in row.items() if isinstance(value, int | float)]
            problems[name][method] = {key: mean([one[key] for one in all_rows]) for key in kept} | {
                "snr of each": [one["snr"] for one in all_rows]
            }
    shown = {key: each[0][key] for key in ("folder", "family", "side", "seed")}
    return shown | {"problems": problems, "ceiling": None}


def about(checkpoint: Path) -> dict[str, Any]:
    """What was trained, and for how long."""
    generator, header = load_generator(checkpoint)
    rows = read_log(f"{checkpoint}.autoencoder.csv")
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in generator.named_children()}
    return {"metrics": header["metrics"], "trained_on": header["trained_on"], "parameters": counts,
            "latent": generator.latent, "size": generator.size, "steps": int(rows[-1]["step"]),
            "seconds": rows[-1]["seconds"]}  # fmt: skip


def ceiling(field: str, family: str, side: int, seed: int) -> float:
    """SNR [dB] of the truth averaged to the generator's pixels and enlarged again."""
    truth = truth_of(family, None, side, seed)
    return snr(zoom(field, interpolate(truth, (SIZE, SIZE), mode="area"), shape=(side, side)), truth)


def draw(work: Path, results: dict[str, Any]) -> None:
    """A row for each problem of the first image of each run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 19), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(RUNS) * len(PROBLEMS), 6)
    rows = [(run, name) for run in RUNS for name in PROBLEMS]
    for line, (run, name) in zip(axes, rows, strict=True):
        one = results[run]
        answers, _ = read_tensors(work / one["folder"] / "kept.safetensors")
        truth = truth_of(one["family"], None, one["side"], one["seed"])
        shown = [(f"truth: {PROBLEMS[name]}", truth)]
        for key, x in answers.items():
            if key.startswith(f"{name}/"):
                shown.append((f"{key.split('/')[1]}: {snr(x, truth):.1f} dB", x))
        for axis, (title, x) in zip(line, shown, strict=True):
            axis.imshow(x[0, 0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_title(title, fontsize=8)
            axis.set_axis_off()
    figure.savefig(ROOT / "docs" / "images" / "continuous.png", dpi=80)


if __name__ == "__main__":
    main()
