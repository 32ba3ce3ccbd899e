"""Train a network to denoise, on a folder or on ten photographs: one noise level, a range, or blind; grey or colour.

Command:   python -m pnp_lofi.recipes.denoise train -o denoise.safetensors --data photos/ --sigma 0.15
           python -m pnp_lofi.recipes.denoise apply denoise.safetensors noisy.png -o clean.png
           python -m pnp_lofi.recipes.denoise tiny -o tiny/          (`pnp-lofi train denoise ...` is the first)
           With --sigma-max a range is trained and `apply` is told --sigma; with --blind as well it need not be.
Data:      a folder of images in [0, 1], or "photographs": those that come with scikit-image, scikit-learn and
           matplotlib. `tiny`: nine of them and one noise draw of each, tested on a tenth (the paper's Figures 4, 5).
Hardware:  2 CPU cores, 1 GB of memory: about 0.1 s a step for LoFi. A CUDA GPU is used if there is one.
Expect:    docs/denoise.md has the table of benchmarks/denoising.py and the curves of `tiny`.
"""

import copy
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pnp_lofi.baselines import SIZES
from pnp_lofi.dense import has_bfloat16
from pnp_lofi.entry import start
from pnp_lofi.examples import Crops, Noisy, PairCrops, Source, cached
from pnp_lofi.figures import Panel, save_figure
from pnp_lofi.files import check_writable, write_json
from pnp_lofi.images import check_ending, image_folder, load_image, permissive_photographs, save_image
from pnp_lofi.launch import working_device
from pnp_lofi.learner import Learner
from pnp_lofi.metrics import psnr
from pnp_lofi.shared import SharedLoFi
from pnp_lofi.supervised import answer, build_network, command, load_network
from pnp_lofi.train import Figures, TrainSettings, check_run, train
from pnp_lofi.training_log import read_log

RECIPE = "denoise"
LOFI: dict[str, dict[str, Any]] = {
    "small": {"rays": 9, "rings": 9, "radius": 6.0, "hidden": (64, 64), "features": 24, "mixer": (128, 128)},
    "paper": {"rays": 9, "rings": 9, "radius": 2.0, "hidden": (370,) * 3, "features": 100, "mixer": (370,) * 3},
}
NETWORKS = ("LoFi", *SIZES)
VALIDATED = 256  # side of the middle of an image that validates [pixel]
TINY_SIDE, HELD_OUT = 128, 3  # side of the ten photographs [pixel]; the number of the one that is held out
VALIDATIONS = 24  # of a network of `tiny`
LOGGED = {"steps": "step", "seconds": "seconds", "psnr": "held-out PSNR", "seen": "seen PSNR"}
PROBED = 3  # steps that are timed before a network of `tiny` is trained
app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, rich_markup_mode=None)
Network = Annotated[str, typer.Option(help=f"LoFi, SharedLoFi, {', '.join(SIZES)}.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU if there is one.")]
Size = Annotated[str, typer.Option(help='"small", about 0.2 million parameters, or "paper", about 3 million.')]


def build(network: str, size: str, channels: int, *, told: bool) -> nn.Module:
    """A network by name. LoFi works in units of sigma where it is told it, SharedLoFi always does.

    :raises ValueError: for a name or size that is not known, and a SharedLoFi that is not told sigma.
    """
    if network == "SharedLoFi" and size == "small":
        if not told:
            raise ValueError("a SharedLoFi works in units of the noise and so is always told its level; no --blind")
        return SharedLoFi(channels)
    return build_network(network, size, LOFI, channels, equivariant=told)


@app.command("train")
def train_denoiser(
    out: Annotated[Path, typer.Option("-o", "--out", help="Checkpoint to write.")],
    data: Annotated[str, typer.Option(help='A folder of images, or "photographs", which come with the package.')],
    sigma: Annotated[float, typer.Option(help="Noise level of the images' range 1.")] = 0.15,
    sigma_max: Annotated[float | None, typer.Option(help="Then every level from sigma to it.")] = None,
    blind: Annotated[bool, typer.Option("--blind", help="The network is not told the level of --sigma-max.")] = False,
    colour: Annotated[bool, typer.Option("--colour", help="Three channels; default: grey.")] = False,
    network: Network = "LoFi",
    size: Size = "small",
    crop: Annotated[int, typer.Option(help="Side of the crops [pixel].")] = 64,
    steps: int = 20_000,
    objects: Annotated[int, typer.Option(help="Crops of a step.")] = 16,
    pixels: Annotated[int, typer.Option(help="Pixels drawn from each, for LoFi.")] = 512,
    draws: Annotated[int, typer.Option(help="Steps on the same crops, with other pixels.")] = 1,
    lr: float = 1e-3,
    ema: Annotated[float, typer.Option(help="Keep a running mean of the weights.")] = 0.999,
    validate_every: int = 1000,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write OUT.tb.")] = False,
    seed: int = 0,
    device: Device = None,
    quick: Annotated[bool, typer.Option("--quick", help="60 steps: whether everything works.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT.state.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Train; one image in ten is held out for validation. Writes OUT, OUT.best, OUT.csv and OUT.png."""
    check_run(out, resume=resume, overwrite=overwrite)
    place = working_device(device)
    found = list(permissive_photographs() if data == "photographs" else image_folder(data, grey=not colour))
    images = [x if colour or x.shape[0] == 1 else x.mean(0, keepdim=True) for x in found]
    if len(images) < 2:
        raise ValueError(f"one image in ten is held out: at least two are needed, got {len(images)} in {data}")
    if colour and images[0].shape[0] == 1:
        raise ValueError(f"--colour needs images of three channels, those of {data} are grey")
    held = [middle(x, VALIDATED) for x in images[::10]]
    if blind and sigma_max is None:
        raise ValueError("--blind is for a range of levels: pass --sigma-max too")
    told = (sigma_max is not None or network == "SharedLoFi") and not blind
    known = cached([x for k, x in enumerate(images) if k % 10], place)
    high = sigma if sigma_max is None else sigma_max
    source = Noisy(Crops(known, crop, objects), sigma, high)
    torch.manual_seed(seed)
    model = build(network, size, images[0].shape[0], told=told).to(place)
    levels = sorted({sigma, high})
    settings = TrainSettings(60 if quick else steps, pixels, draws, lr, ema=ema, seed=seed, weight=0.7 if told else 0.0)
    about = {"recipe": RECIPE, "trained_on": data, "crop": crop, "objects": objects, "told": told,
             "sigma_range": [sigma, high], "value_range": [0.0, 1.0],
             "command": command(RECIPE)}  # fmt: skip
    figures = train(
        model, source if told else Untold(source), settings, out, about=about, validate=validation(held, levels, told),
        validate_every=30 if quick else validate_every, picture=picture(held[0], sigma, told), tensorboard=tensorboard,
        resume=resume,
    )  # fmt: skip
    print(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))


def middle(x: Tensor, side: int) -> Tensor:
    """The central part of (C, H, W), no side longer than that."""
    top, left = (max(0, (n - side) // 2) for n in x.shape[-2:])
    return x[:, top : top + side, left : left + side]


class Untold:
    """A source whose noise level the network is not told."""

    def __init__(self, source: Noisy) -> None:
        self.source = source

    def __call__(self, generator: torch.Generator) -> Any:
        return self.source(generator)._replace(sigma=None)


def noisy(x: Tensor, sigma: float, seed: int) -> Tensor:
    return x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)


def denoised(model: Any, q: Tensor, sigma: float, told: bool) -> Tensor:
    """(C, H, W) -> (C, H, W)."""
    return answer(model, q[None], sigma if told else None)[0]


def validation(images: list[Tensor], levels: list[float], told: bool) -> Any:
    """PSNR [dB], range 1, mean over images that no training sees, and over levels."""

    def figures(model: Any) -> Figures:
        each = [psnr(denoised(model, noisy(x, s, k), s, told), x, 1.0) for s in levels for k, x in enumerate(images)]
        return {"held-out PSNR": sum(each) / len(each)}

    return figures


def picture(x: Tensor, sigma: float, told: bool) -> Any:
    def draw(model: Any, path: Path) -> None:
        q = noisy(x, sigma, 0)
        panels = {"noisy": q, "denoised": denoised(model, q, sigma, told), "truth": x}
        found = [Panel(f"{k}: {psnr(v, x, 1.0):.2f} dB", v.clamp(0, 1), (0.0, 1.0)) for k, v in panels.items()]
        save_figure(path, found, overwrite=True)

    return draw


@app.command()
def apply(
    checkpoint: Annotated[Path, typer.Argument(help="What train wrote.")],
    image: Annotated[Path, typer.Argument(help="PNG, JPEG, TIFF (range 0 to 1), npy or FITS.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write.")],
    sigma: Annotated[float | None, typer.Option(help="Noise level, for networks that are told it.")] = None,
    device: Device = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Denoise a file."""
    check_writable(out, overwrite=overwrite)
    model, header = load_network(checkpoint, RECIPE, working_device(device))
    if sigma is None and header["told"] and len(set(header["sigma_range"])) > 1:
        raise ValueError("this network is told the noise level: pass --sigma")
    x = load_image(image, grey=model.in_channels == 1)[0]
    check_ending(out, x[None])
    if x.shape[0] != model.in_channels:
        raise ValueError(f"{checkpoint} was trained on {model.in_channels} channels, {image} has {x.shape[0]}")
    level = header["sigma_range"][0] if sigma is None else sigma
    save_image(out, denoised(model, x, level, header["told"])[None], overwrite=overwrite)


@app.command()
def tiny(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")],
    networks: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(NETWORKS),
    size: Size = "small",
    side: Annotated[int, typer.Option(help="Of the photographs [pixel].")] = TINY_SIDE,
    steps: Annotated[int, typer.Option(help="At most.")] = 6000,
    minutes: Annotated[float, typer.Option(help="Of processor or GPU time a network, at most, about.")] = 10.0,
    sigma: float = 0.15,
    device: Device = None,
    quick: Annotated[bool, typer.Option("--quick", help="40 steps of LoFi and DnCNN.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the networks of a run broken off.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Nine noisy photographs to train on, one to test on: test PSNR against steps for LoFi and networks of its size.

    Each photograph has one draw of noise, whole images are seen, neither cut nor turned: what can be learned by heart
    is.
    """
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out / "tiny.json", overwrite=overwrite or resume)
    chosen = ["LoFi", "DnCNN"] if quick else networks.split(",")
    steps = 40 if quick else steps
    photos = ten_photographs(side)
    test = photos.pop(HELD_OUT)
    place = working_device(device)
    low = 1.0 if has_bfloat16(place) else 0.0
    pairs = [(noisy(x, sigma, 1 + k), x) for k, x in enumerate(cached(photos, place))]
    source = PairCrops(pairs, None, 3)
    about, curves = {"sigma": sigma, "side": side, "size": size, "minutes": minutes}, {}
    if resume and (out / "tiny.json").exists():
        kept = json.loads((out / "tiny.json").read_text())
        curves = kept.pop("curves")
        if kept != about:
            raise ValueError(f"{out / 'tiny.json'} is of a run with {kept}, asked for {about}; take another folder")

    def both(model: Any) -> Figures:
        seen = [psnr(denoised(model, q, sigma, False), x, 1.0) for q, x in pairs]
        return validation([test], [sigma], False)(model) | {"seen PSNR": sum(seen) / len(seen)}

    for name in (name for name in chosen if name not in curves):
        torch.manual_seed(0)
        model = build(name, size, 1, told=False).to(place)
        settings = TrainSettings(steps, 2048, lr=1e-3, weight=0.0, schedule="constant", low_precision=low)
        path = out / f"{name}.safetensors"
        count = min(steps, max(VALIDATIONS, int(60 * minutes / seconds_a_step(model, source, settings))))
        train(model, source, replace(settings, steps=count), path,
              about={"recipe": RECIPE, "told": False, "sigma_range": [sigma, sigma]},
              validate=both, validate_every=max(1, count // VALIDATIONS))  # fmt: skip
        rows = [row for row in read_log(f"{path}.csv") if "held-out PSNR" in row]
        curve = {key: [row[name] for row in rows] for key, name in LOGGED.items()}
        curves[name] = curve | {"parameters": sum(p.numel() for p in model.parameters())}
        print(f"{name}: best {max(curve['psnr']):.2f} dB, last {curve['psnr'][-1]:.2f} dB", flush=True)
        write_json(out / "tiny.json", about | {"curves": curves}, overwrite=True)
    draw_curves(curves, out / "tiny.png")


def seconds_a_step(model: nn.Module, source: Source, settings: TrainSettings) -> float:
    """Of a copy, after a first step that is not counted; of processor time where no GPU works: others may be busy."""
    learner = Learner(copy.deepcopy(model), source, settings, {})
    clock = time.process_time if learner.device.type == "cpu" else time.perf_counter
    learner.advance()
    begin = clock()
    for _ in range(PROBED):
        learner.advance()
    return (clock() - begin) / PROBED


def ten_photographs(side: int) -> list[Tensor]:
    """The central squares of the first ten free photographs, grey, (1, side, side)."""
    found = []
    for x in list(permissive_photographs())[:10]:
        square = middle(x.mean(0, keepdim=True), min(x.shape[-2:]))[None]
        found.append(interpolate(square, (side, side), mode="bicubic", antialias=True)[0].clamp(0, 1))
    return found


def draw_curves(curves: dict[str, Any], path: Path) -> None:
    """The photograph held out to the left, those that were trained on to the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    for axis, key, title in zip(axes, ("psnr", "seen"), ("held out", "trained on"), strict=True):
        for name, curve in curves.items():
            axis.plot(curve["steps"], curve[key], label=name, linewidth=2.5 if name == "LoFi" else 1.2)
        axis.set(xlabel="optimiser steps", title=f"{title}, PSNR [dB]", xscale="log")
        axis.grid(alpha=0.3)
        late = [value for curve in curves.values() for value in curve[key][len(curve[key]) // 2 :]]
        axis.set_ylim(min(late) - 0.5, max(late) + 0.5)
    axes[1].legend()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    start(app)
