"""Continuous super-resolution: train FunkNN, LoFi, LIIF or a U-Net, and measure them beside the plain kernels.

Command:   python -m pnp_lofi.recipes.superres train -o funknn.safetensors --network FunkNN --mode factor
           python -m pnp_lofi.recipes.superres train -o fast.safetensors --network FunkNN-fast --mode any
           python -m pnp_lofi.recipes.superres test funknn.safetensors fast.safetensors -o t.json --factors 2,4,8
           pnp-lofi zoom photo.png --scale 3.7 --model funknn.safetensors -o large.png
           (`pnp-lofi train superres ...` is the first; --quick tries each within a minute)
Data:      "natural": procedural dead leaves and the photographs that come with scikit-image, scikit-learn and
           matplotlib; or a folder of images. `test` takes a folder, or "held-out": camera, astronaut and coffee.
           What is seen is made by one rule everywhere: pnp_lofi/scales.py, bicubic with antialias.
Hardware:  1 CPU core, 2 GB of memory: 0.1 s a step of 4096 points for FunkNN-fast, 1 s for FunkNN. A GPU if there.
Expect:    docs/zoom.md has the table of benchmarks/superres.py.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from pnp_lofi.baselines import Baseline
from pnp_lofi.entry import start
from pnp_lofi.examples import Batch, Crops, Mixture, cached
from pnp_lofi.figures import Panel, save_figure
from pnp_lofi.files import write_json
from pnp_lofi.funknn import FunkNN
from pnp_lofi.images import image_folder, load_image
from pnp_lofi.interpolation import KERNELS
from pnp_lofi.launch import working_device
from pnp_lofi.leaves import dead_leaves
from pnp_lofi.liif import LIIF
from pnp_lofi.lofi import LoFi
from pnp_lofi.metrics import snr
from pnp_lofi.scales import RANGES, Scales, resized
from pnp_lofi.sources import photographs
from pnp_lofi.supervised import answer, check_outputs, command, given, load_networks
from pnp_lofi.train import TrainSettings, check_run
from pnp_lofi.train import train as run
from pnp_lofi.zoom import zoom

RECIPE = "superres"
LOFI: dict[str, Any] = {  # 140 thousand parameters, as FunkNN
    "rays": 9, "rings": 9, "radius": 5.0, "hidden": (72, 72), "features": 32, "mixer": (152, 128), "equivariant": False,
}  # fmt: skip
FUNKNN: dict[str, dict[str, Any]] = {
    "FunkNN": {"degree": 2, "activation": "silu"},  # learns within minutes; the published one hardly does
    "FunkNN-published": {},
    "FunkNN-fast": {"head": "mlp", "kernel": "smooth", "degree": 2, "footprint": True},  # ours
}
NETWORKS = (*FUNKNN, "LoFi", "LIIF", "LIIF-paper", "U-Net")
LR = {"FunkNN": 2e-3, "FunkNN-fast": 2e-3, "U-Net": 2e-3}  # of the others 1e-3
LEAVES, SIDE = 80, 256  # procedural images and their side [pixel]
SCALES = (1.0, 0.5)  # photographs are also shown shrunk
HELD_OUT = ("camera.png", "astronaut.png", "coffee.png")  # of scikit-image; nothing here is trained on them
TESTED = 10_000  # seed of the images that only measure
app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, rich_markup_mode=None)
console = Console()

Out = Annotated[Path, typer.Option("-o", "--out", help="Where to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU if there is one.")]
Quick = Annotated[bool, typer.Option("--quick", help="Little of everything: whether it works.")]


def build(network: str, channels: int = 1, width: int = 64) -> nn.Module:
    """A network by name; width is FunkNN's. :raises ValueError: for another name."""
    if network not in NETWORKS:
        raise ValueError(f"networks are {', '.join(NETWORKS)}, got {network!r}")
    if network == "LoFi":
        return LoFi(channels, **LOFI)
    if network == "U-Net":
        return Baseline("U-Net", channels, channels)
    if network.startswith("LIIF"):
        return LIIF(channels, "paper" if network == "LIIF-paper" else "small")
    return FunkNN(channels, width=width, **FUNKNN[network])


def natural(side: int, objects: int, seed: int, device: torch.device, count: int = LEAVES) -> Batch:
    """Half dead leaves, half photographs at two scales; grey crops."""
    leaves = list(dead_leaves(count, max(SIDE, side), seed=seed))
    sets = [Crops(cached(images, device), side, objects) for images in (leaves, photographs(SCALES))]
    return Mixture(sets, [0.5, 0.5])


def held_out_photographs() -> dict[str, Tensor]:
    """Camera, astronaut and coffee of scikit-image, grey, (1, 1, H, W); those that are installed."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ImportError("the held-out photographs need scikit-image: pip install 'pnp_lofi[train]'")
    files = [Path(spec.origin).parent / "data" / name for name in HELD_OUT]
    return {f.stem: load_image(f, grey=True) for f in files if f.is_file()}


def enlarge(model: Any, q: Tensor, shape: tuple[int, int], **options: Any) -> Tensor:
    """``zoom``, or a network of one grid on what the kernel enlarged."""
    return answer(model, resized(q, shape)) if isinstance(model, Baseline) else zoom(model, q, shape=shape, **options)


def scale_invariant_snr(x: Tensor, truth: Tensor) -> float:
    """SNR [dB] of the best multiple of x."""
    factor = float((x.double() * truth).sum() / x.double().square().sum().clamp_min(1e-30))
    return snr(factor * x, truth)


def figures_of(model: Any, images: Sequence[Tensor], factor: float, **options: Any) -> dict[str, float]:
    """SNR and scale-invariant SNR [dB], means over images (1, C, H, W) that are shrunk by the factor first."""
    each = []
    for x in images:
        height, width = x.shape[-2:]
        low = resized(x, (max(1, round(height / factor)), max(1, round(width / factor))))
        found = enlarge(model, low, (height, width), **options)
        each.append((snr(found, x), scale_invariant_snr(found, x)))
    return {"snr": sum(a for a, _ in each) / len(each), "scale_invariant": sum(b for _, b in each) / len(each)}


@app.command()
def train(
    out: Out,
    network: Annotated[str, typer.Option(help=f"{', '.join(NETWORKS)}.")] = "FunkNN",
    mode: Annotated[str, typer.Option(help=f"{', '.join(RANGES)}: see pnp_lofi/scales.py.")] = "factor",
    data: Annotated[str, typer.Option(help='"natural", or a folder of images.')] = "natural",
    colour: Annotated[bool, typer.Option("--colour", help="Three channels, of a folder; default: grey.")] = False,
    side: Annotated[int, typer.Option(help="Of the crops [pixel].")] = 128,
    width: Annotated[int, typer.Option(help="Channels of FunkNN's layers.")] = 64,
    steps: int = 2000,
    objects: Annotated[int, typer.Option(help="Crops of a step.")] = 16,
    pixels: Annotated[int, typer.Option(help="Drawn from each crop; a U-Net takes all.")] = 64,
    draws: Annotated[int, typer.Option(help="Steps on the same crops, with other pixels.")] = 1,
    lr: Annotated[float | None, typer.Option(help="Adam's; default 1e-3 or 2e-3, by network.")] = None,
    ema: Annotated[float, typer.Option(help="Keep a running mean of the weights.")] = 0.99,
    low_precision: Annotated[float, typer.Option(help="Leading part of the steps done in bfloat16.")] = 0.0,
    seed: int = 0,
    device: Device = None,
    quick: Quick = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT.state.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train on images and their antialiased small copies; writes OUT, OUT.csv and OUT.png."""
    check_run(out, resume=resume, overwrite=overwrite)
    place = working_device(device)
    if colour and data == "natural":
        raise ValueError('--colour needs a folder of images; "natural" is grey')
    if quick:
        side, steps, objects, pixels = min(side, 32), min(steps, 12), min(objects, 4), min(pixels, 32)
    if data == "natural":
        images, held = natural(side, objects, seed, place, 4 if quick else LEAVES), dead_leaves(4, side, seed=TESTED)
        known = f"{4 if quick else LEAVES} procedural dead leaves of 256 x 256 and the permissive photographs"
    else:
        found = list(image_folder(data, grey=not colour))
        if len(found) < 2:
            raise ValueError(f"one image in ten is held out: at least two are needed, got {len(found)} in {data}")
        held = Crops(found[::10], min(side, *(n for x in found[::10] for n in x.shape[-2:])), 4)(
            torch.Generator().manual_seed(TESTED)
        )
        images = Crops(cached([x for k, x in enumerate(found) if k % 10], place), side, objects)
        known = f"folder {Path(data).name}"
    held = held[:1] if quick else held
    torch.manual_seed(seed)
    model = build(network, held.shape[1], width).to(place)
    source = Scales(images, mode, enlarged=network == "U-Net")
    settings = TrainSettings(steps=steps, pixels=pixels, draws=draws, lr=given(lr, LR.get(network, 1e-3)), ema=ema,
                             seed=seed, low_precision=low_precision)  # fmt: skip
    about = {"recipe": RECIPE, "trained_on": known, "network": network, "mode": mode, "side": side, "crop": side,
             "objects": objects, "value_range": [0.0, 1.0], "command": command(RECIPE)}  # fmt: skip

    def validate(model: Any) -> dict[str, float]:
        again = {"recursive": mode == "factor"} if network != "U-Net" else {}
        return {f"held-out SNR x{f}": figures_of(model, list(held[:, None]), f, **again)["snr"] for f in (2, 4)}

    def picture(model: Any, path: Path) -> None:
        x, shape = held[:1], (held.shape[-2], held.shape[-1])
        low = resized(x, (shape[0] // 4, shape[1] // 4))
        shown = {"bicubic": zoom("bicubic", low, shape=shape), network: enlarge(model, low, shape)}
        panels = [Panel(f"{k}: {snr(v, x):.2f} dB", v[0].clamp(0, 1), (0.0, 1.0)) for k, v in shown.items()]
        save_figure(
            path, [Panel("seen", low[0], (0.0, 1.0)), *panels, Panel("truth", x[0], (0.0, 1.0))], overwrite=True
        )

    figures = run(model, source, settings, out, about=about, validate=validate, picture=picture, resume=resume,
                  validate_every=None if quick else max(1, steps // 4))  # fmt: skip
    print(f"wrote {out}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))


@app.command()
def test(
    checkpoints: Annotated[list[Path], typer.Argument(help="What train wrote, one or more.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="JSON; a picture beside it.")],
    data: Annotated[str, typer.Option(help='"held-out" (camera, astronaut, coffee), or a folder.')] = "held-out",
    factors: Annotated[str, typer.Option(help="With commas between, of any size.")] = "2,4,8",
    device: Device = None,
    quick: Quick = False,
    overwrite: Overwrite = False,
) -> None:
    """SNR on images that were shrunk, beside the kernels; a network of mode factor is applied again and again."""
    check_outputs([out, out.with_suffix(".png")], ".json", overwrite=overwrite)
    place = working_device(device)
    asked = [float(f) for f in factors.split(",")]
    images = list(held_out_photographs().values()) if data == "held-out" else [x[None] for x in image_folder(data)]
    if quick:
        images, asked = [x[..., :48, :48] for x in images[:1]], asked[:1]
    images = [x.to(place) for x in images]
    models: dict[str, Any] = {name: (name, {}) for name in KERNELS}
    models |= load_networks(checkpoints, RECIPE, place, taken=list(KERNELS))
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name, (model, header) in models.items():
        again = {"recursive": header.get("mode") == "factor"} if header.get("network") not in (None, "U-Net") else {}
        rows[name] = {f"x{f:g}": figures_of(model, images, f, **again) for f in asked}
    table = Table("network", *(f"x{f:g} [dB]" for f in asked), *(f"x{f:g}, scale-invariant [dB]" for f in asked))
    for name, row in rows.items():
        cells = [f"{cell[key]:.2f}" for key in ("snr", "scale_invariant") for cell in row.values()]
        table.add_row(escape(name), *cells)
    write_json(out, {"data": data, "images": len(images), "rows": rows}, overwrite=overwrite)
    x = images[0][..., :192, :192]
    shape = (x.shape[-2], x.shape[-1])
    low = resized(x, (max(1, round(shape[0] / asked[-1])), max(1, round(shape[1] / asked[-1]))))
    panels = [Panel(name, enlarge(model, low, shape)[0].clamp(0, 1), (0.0, 1.0)) for name, (model, _) in models.items()]
    save_figure(out.with_suffix(".png"), [*panels, Panel("truth", x[0], (0.0, 1.0))], columns=4, overwrite=overwrite)
    console.print(table)


if __name__ == "__main__":
    start(app)
