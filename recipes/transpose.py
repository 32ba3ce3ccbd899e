"""A change of coordinates is learned: the answer is the image transposed (the toy of arXiv 2411.04995, Figure 10).

Command:   python -m pnp_lofi.recipes.transpose train -o lofi.safetensors
           python -m pnp_lofi.recipes.transpose train -o unet.safetensors --network U-Net
           python -m pnp_lofi.recipes.transpose test lofi.safetensors unet.safetensors -o transpose.json
           (`pnp-lofi train transpose ...` is the first; --quick tries each within a minute)
Data:      procedural dead leaves; chests, heads and convergence are out of distribution. Nothing is downloaded.
Hardware:  1 CPU core, 1 GB of memory: 0.1 s a step, 3 minutes for 2000 steps at 64 x 64.
Expect:    INR-LoFi, f(x) = LoFi(INR(x), q), finds the map (row, column) -> (column, row) and so transposes any image;
           a U-Net and DnCNN, which see some pixels around, fail. docs/benchmarks.md has
           the table of benchmarks/transpose.py.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from pnp_lofi.baselines import SIZES
from pnp_lofi.convergence import convergence
from pnp_lofi.entry import start
from pnp_lofi.examples import Example
from pnp_lofi.figures import Panel, save_figure
from pnp_lofi.files import write_json
from pnp_lofi.hounsfield import RANGE, window
from pnp_lofi.launch import working_device
from pnp_lofi.leaves import dead_leaves
from pnp_lofi.lofi import LoFi
from pnp_lofi.metrics import psnr
from pnp_lofi.organs import chest, head
from pnp_lofi.sampling import grid_coords
from pnp_lofi.supervised import answer, build_network, check_outputs, command, given, load_networks
from pnp_lofi.train import TrainSettings, check_run
from pnp_lofi.train import train as run

RECIPE = "transpose"
LOFI: dict[str, dict[str, Any]] = {
    "small": {"rays": 6, "rings": 4, "radius": 2.0, "hidden": (32,), "features": 16, "mixer": (64,)},
    "paper": {"rays": 9, "rings": 9, "radius": 2.0, "hidden": (370,) * 3, "features": 100, "mixer": (370,) * 3},
}
SETS = ("leaves", "chest", "head", "convergence")  # the first is trained on
TESTED = 10_000  # seed of the images that only measure
app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, rich_markup_mode=None)
console = Console()

Out = Annotated[Path, typer.Option("-o", "--out", help="Where to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU if there is one.")]
Quick = Annotated[bool, typer.Option("--quick", help="Little of everything: whether it works.")]


def build(network: str, size: str) -> nn.Module:
    """LoFi is residual: without it coordinates wander. :raises ValueError: for a name or size that is not known."""
    return build_network(network, size, LOFI, 1, inr=True, equivariant=False)


def images(kind: str, count: int, side: int, seed: int) -> Tensor:
    """(count, 1, side, side) in [0, 1]."""
    if kind in ("chest", "head"):
        hu = (chest if kind == "chest" else head)(count, side, seed=seed)
        return window(hu, RANGE)
    if kind == "leaves":
        return dead_leaves(count, side, seed=seed).clamp(0, 1)
    return (convergence(count, side, 300 / 1024, seed=seed) / 0.2 + 0.2).clamp(0, 1)


class Transposed:
    """Batches of images and their transposes; blurred at the start, which shows a coordinate where to go from afar.

    :param torch.Tensor kept: (N, 1, side, side); int objects: of a batch.
    :param float blurred: part of the batches that is averaged over 8, 4 or 2 pixels.
    """

    def __init__(self, kept: Tensor, objects: int, blurred: float) -> None:
        self.kept, self.objects, self.blurred = kept, objects, blurred

    def __call__(self, generator: torch.Generator) -> Example:
        x = self.kept[torch.randint(len(self.kept), (self.objects,), generator=generator)]
        lot = float(torch.rand((), generator=generator))
        if lot < self.blurred:
            width = (8, 4, 2)[int(3 * lot / self.blurred)]
            x = interpolate(avg_pool2d(x, width), x.shape[-2:], mode="bilinear")
        return Example(x, x.mT.contiguous())


def answered(model: Any, q: Tensor) -> Tensor:
    return answer(model, q).clamp(0, 1)


@app.command()
def train(
    out: Out,
    network: Annotated[str, typer.Option(help=f"LoFi, {', '.join(SIZES)}.")] = "LoFi",
    size: Annotated[str, typer.Option(help="small or paper (3 million parameters).")] = "small",
    side: Annotated[int, typer.Option(help="Of the images [pixel].")] = 64,
    count: Annotated[int, typer.Option(help="Images.")] = 400,
    steps: int = 2000,
    objects: Annotated[int, typer.Option(help="Images of a step.")] = 32,
    pixels: Annotated[int, typer.Option(help="Drawn from each, for LoFi.")] = 64,
    blurred: Annotated[float, typer.Option(help="Part of the batches that is blurred, for LoFi.")] = 0.5,
    lr: Annotated[float | None, typer.Option(help="Adam's; default 3e-4 for LoFi, else 1e-3.")] = None,
    seed: int = 0,
    device: Device = None,
    quick: Quick = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT.state.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train on dead leaves and their transposes; writes OUT, OUT.csv and OUT.png."""
    check_run(out, resume=resume, overwrite=overwrite)
    place = working_device(device)
    if quick:
        side, count, steps, objects = min(side, 32), 8, 20, 4
    kept, held = images(SETS[0], count, side, seed), images(SETS[0], 4, side, seed + TESTED)
    torch.manual_seed(seed)
    model = build(network, size).to(place)
    blurred = blurred if network == "LoFi" else 0.0
    about = {"recipe": RECIPE, "trained_on": f"{count} dead leaves, {side} x {side}, {blurred:g} of them blurred",
             "objects": objects, "side": side, "command": command(RECIPE)}  # fmt: skip

    def validate(model: Any) -> dict[str, float]:
        return {"held-out PSNR": mean_psnr(answered(model, held), held.mT)}

    def picture(model: Any, path: Path) -> None:
        shown = {"seen": held[0], network: answered(model, held[:1])[0], "truth": held[0].mT}
        save_figure(path, [Panel(name, x, (0.0, 1.0)) for name, x in shown.items()], overwrite=True)

    source = Transposed(kept, objects, blurred)
    lr = given(lr, 3e-4 if network == "LoFi" else 1e-3)
    settings = TrainSettings(steps=steps, pixels=pixels, lr=lr, seed=seed)
    figures = run(model, source, settings, out, about=about, validate=validate, picture=picture, resume=resume,
                  validate_every=max(1, steps // 4))  # fmt: skip
    print(f"wrote {out}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))


def mean_psnr(x: Tensor, truth: Tensor) -> float:
    return sum(psnr(a, b, 1.0) for a, b in zip(x, truth, strict=True)) / len(x)


def misplaced(model: Any, side: int) -> float:
    """rms distance between where an INR-LoFi looks for a pixel and the transposed pixel [pixel].

    What is looked at beyond the border is reflected into the image.
    """
    coords = grid_coords((side, side), dtype=torch.float32)
    with torch.no_grad():
        found = model.looks_at(torch.zeros(1, 1, side, side), coords).mean(2)[0]
    found = (side - 1) - (found.remainder(2 * (side - 1)) - (side - 1)).abs()
    return float((found - (coords.flip(-1) * side - 0.5)).square().sum(-1).mean().sqrt())


@app.command()
def test(
    checkpoints: Annotated[list[Path], typer.Argument(help="What train wrote, one or more.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="JSON; a picture is written beside it.")],
    count: Annotated[int, typer.Option(help="Images of each set.")] = 32,
    quick: Quick = False,
    overwrite: Overwrite = False,
) -> None:
    """PSNR on dead leaves and on images of other kinds; table, JSON, and a row of pictures for each set."""
    check_outputs([out, out.with_suffix(".png")], ".json", overwrite=overwrite)
    models = load_networks(checkpoints, RECIPE)
    sides = {header["side"] for _, header in models.values()}
    if len(sides) > 1:
        raise ValueError(f"these networks were trained on images of several sizes, {sorted(sides)}; test them apart")
    side, rows, pictures = sides.pop(), {name: {} for name in models}, []  # type: ignore[var-annotated]
    for kind in SETS:
        q = images(kind, 2 if quick else count, side, TESTED + 1)
        for name, (model, _) in models.items():
            x = answered(model, q)
            rows[name][kind] = mean_psnr(x, q.mT)
            pictures.append((f"{name}: {psnr(x[0], q[0].mT, 1.0):.1f} dB", x[0]))
        pictures.append(("truth", q[0].mT))
    table = Table("network", *(escape(f"{kind} [dB]") for kind in SETS))
    for name, row in rows.items():
        table.add_row(escape(name), *(f"{value:.2f}" for value in row.values()))
    places = {n: misplaced(m, side) for n, (m, _) in models.items() if isinstance(m, LoFi)}
    write_json(out, {"side": side, "psnr": rows, "misplaced": places}, overwrite=overwrite)
    draw(out.with_suffix(".png"), pictures, len(SETS))
    console.print(table)
    for name, distance in places.items():
        print(f"{name} looks {distance:.2f} pixels (rms) beside the transposed pixel")


def draw(path: Path, pictures: list[tuple[str, Tensor]], rows: int) -> None:
    """A grid of pictures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(pictures) // rows
    figure = Figure(figsize=(2.1 * columns, 2.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (title, x) in zip(figure.subplots(rows, columns, squeeze=False).flat, pictures, strict=True):
        axis.imshow(x[0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=8)
        axis.set_axis_off()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    start(app)
