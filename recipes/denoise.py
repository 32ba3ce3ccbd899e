"""Train a network to denoise, on a folder or on ten photographs: fixed or blind sigma, grey or colour.

Command:   python -m pnp_lofi.recipes.denoise train -o denoise.safetensors --data photos/ --sigma 0.15
           python -m pnp_lofi.recipes.denoise apply denoise.safetensors noisy.png -o clean.png --sigma 0.15
           python -m pnp_lofi.recipes.denoise tiny -o tiny/          (`pnp-lofi train denoise ...` is the first)
Data:      a folder of images in [0, 1], or "tiny": nine of the photographs that come with scikit-image,
           scikit-learn and matplotlib, tested on a tenth, as the paper's Figures 4 and 5.
Hardware:  2 CPU cores, 1 GB of memory; about 10 ms a step for LoFi, 10 minutes for 20,000 steps at the default.
Expect:    grey, sigma .15: about 29 dB on photographs of 512 x 512; `tiny`: networks of convolutions come to a peak on
           the tenth photograph and fall, LoFi does not.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pnp_lofi.baselines import SIZES, Baseline
from pnp_lofi.checkpoint import load_checkpoint
from pnp_lofi.examples import Crops, Noisy
from pnp_lofi.figures import Panel, save_figure
from pnp_lofi.files import check_writable, write_json
from pnp_lofi.images import check_ending, image_folder, load_image, permissive_photographs, save_image
from pnp_lofi.lofi import LoFi
from pnp_lofi.metrics import psnr
from pnp_lofi.train import Figures, TrainSettings, train
from pnp_lofi.training_log import read_log

RECIPE = "denoise"
LOFI: dict[str, dict[str, Any]] = {
    "small": {"rays": 9, "rings": 9, "radius": 6.0, "hidden": (64, 64), "features": 24, "mixer": (128, 128)},
    "paper": {"rays": 9, "rings": 9, "radius": 2.0, "hidden": (370,) * 3, "features": 100, "mixer": (370,) * 3},
}
NETWORKS = ("LoFi", *SIZES)
VALIDATED = 256  # side of the middle of an image that validates [pixel]
TINY_SIDE, HELD_OUT = 128, 3  # side of the ten photographs [pixel]; the number of the one that is held out
app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, rich_markup_mode=None)
Network = Annotated[str, typer.Option(help=f"One of {', '.join(NETWORKS)}.")]
Size = Annotated[str, typer.Option(help='"small", about 0.2 million parameters, or "paper", about 3 million.')]


def build(network: str, size: str, channels: int, *, blind: bool) -> nn.Module:
    """A network by name. LoFi works in units of sigma where it is blind to nothing but that.

    :raises ValueError: for a name or size that is not known.
    """
    if network != "LoFi":
        return Baseline(network, channels, channels, size)  # type: ignore[arg-type]
    if size not in LOFI:
        raise ValueError(f'size is "small" or "paper", got {size!r}')
    return LoFi(channels, **LOFI[size], equivariant=blind)


@app.command("train")
def train_denoiser(
    out: Annotated[Path, typer.Option("-o", "--out", help="Checkpoint to write.")],
    data: Annotated[str, typer.Option(help='A folder of images, or "photographs", which come with the package.')],
    sigma: Annotated[float, typer.Option(help="Noise level of the images' range 1.")] = 0.15,
    sigma_max: Annotated[float | None, typer.Option(help="Then every level from sigma to it, which is told.")] = None,
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
    quick: Annotated[bool, typer.Option("--quick", help="60 steps: whether everything works.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT.state.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Train; one image in ten is held out for validation. Writes OUT, OUT.best, OUT.csv and OUT.png."""
    check_writable(out, overwrite=overwrite or resume)
    found = list(permissive_photographs() if data == "photographs" else image_folder(data, grey=not colour))
    images = [x if colour or x.shape[0] == 1 else x.mean(0, keepdim=True) for x in found]
    if len(images) < 2:
        raise ValueError(f"one image in ten is held out: at least two are needed, got {len(images)} in {data}")
    held = [middle(x, VALIDATED) for x in images[::10]]
    blind = sigma_max is not None
    source = Noisy(Crops([x for k, x in enumerate(images) if k % 10], crop, objects), sigma, sigma_max or sigma)
    torch.manual_seed(seed)
    model = build(network, size, images[0].shape[0], blind=blind)
    settings = TrainSettings(
        60 if quick else steps, pixels, draws, lr, ema=ema, seed=seed, weight=0.7 if blind else 0.0
    )
    about = {"recipe": RECIPE, "trained_on": data, "crop": crop, "objects": objects, "blind": blind,
             "sigma_range": [sigma, sigma_max or sigma], "value_range": [0.0, 1.0]}  # fmt: skip
    figures = train(
        model, source if blind else Untold(source), settings, out, about=about, validate=validation(held, sigma, blind),
        validate_every=30 if quick else validate_every, picture=picture(held[0], sigma, blind), tensorboard=tensorboard,
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
    return x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def denoised(model: Any, q: Tensor, sigma: float, blind: bool) -> Tensor:
    """(C, H, W) -> (C, H, W); networks with strides get the image padded to a multiple of 16."""
    height, width = q.shape[-2:]
    if isinstance(model, LoFi):
        return model(q[None], sigma if blind else None)[0]
    padded = nn.functional.pad(q[None], (0, -width % 16, 0, -height % 16), mode="reflect")
    return model(padded, torch.tensor([sigma]) if blind else None)[0, :, :height, :width]


def validation(images: list[Tensor], sigma: float, blind: bool) -> Any:
    """PSNR [dB], range 1, mean over images that no training sees."""

    def figures(model: Any) -> Figures:
        each = [psnr(denoised(model, noisy(x, sigma, k), sigma, blind), x, 1.0) for k, x in enumerate(images)]
        return {"held-out PSNR": sum(each) / len(each)}

    return figures


def picture(x: Tensor, sigma: float, blind: bool) -> Any:
    def draw(model: Any, path: Path) -> None:
        q = noisy(x, sigma, 0)
        panels = {"noisy": q, "denoised": denoised(model, q, sigma, blind), "truth": x}
        found = [Panel(f"{k}: {psnr(v, x, 1.0):.2f} dB", v.clamp(0, 1), (0.0, 1.0)) for k, v in panels.items()]
        save_figure(path, found, overwrite=True)

    return draw


@app.command()
def apply(
    checkpoint: Annotated[Path, typer.Argument(help="What train wrote.")],
    image: Annotated[Path, typer.Argument(help="PNG, JPEG, TIFF (range 0 to 1), npy or FITS.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write.")],
    sigma: Annotated[float | None, typer.Option(help="Noise level, for networks that are told it.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Denoise a file."""
    check_writable(out, overwrite=overwrite)
    model, header = load_checkpoint(checkpoint)
    if header.get("recipe") != RECIPE:
        raise ValueError(f"{checkpoint} was made by the recipe {header.get('recipe')!r}, this one reads {RECIPE!r}")
    if header["blind"] and sigma is None:
        raise ValueError("this network is told the noise level: pass --sigma")
    x = load_image(image, grey=model.in_channels == 1)[0]
    check_ending(out, x[None])
    if x.shape[0] != model.in_channels:
        raise ValueError(f"{checkpoint} was trained on {model.in_channels} channels, {image} has {x.shape[0]}")
    level = header["sigma_range"][0] if sigma is None else sigma
    save_image(out, denoised(model, x, level, header["blind"])[None], overwrite=overwrite)


@app.command()
def tiny(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")],
    networks: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(NETWORKS),
    size: Size = "small",
    side: Annotated[int, typer.Option(help="Of the photographs [pixel].")] = TINY_SIDE,
    steps: int = 2000,
    sigma: float = 0.15,
    quick: Annotated[bool, typer.Option("--quick", help="40 steps of LoFi and DnCNN.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Nine photographs to train on, one to test on: test PSNR against steps for LoFi and networks of its size."""
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out / "tiny.json", overwrite=overwrite)
    chosen = ["LoFi", "DnCNN"] if quick else networks.split(",")
    steps = 40 if quick else steps
    photos = ten_photographs(side)
    test = photos.pop(HELD_OUT)
    curves: dict[str, Any] = {}
    for name in chosen:
        torch.manual_seed(0)
        model = build(name, size, 1, blind=False)
        source = Untold(Noisy(Crops(photos, None, 3), sigma, sigma))
        settings = TrainSettings(steps=steps, pixels=2048, lr=1e-3, weight=0.0, schedule="constant")
        path = out / f"{name}.safetensors"
        train(model, source, settings, path, about={"recipe": RECIPE, "blind": False, "sigma_range": [sigma, sigma]},
              validate=validation([test], sigma, False), validate_every=max(1, steps // 40))  # fmt: skip
        rows = [row for row in read_log(f"{path}.csv") if "held-out PSNR" in row]
        values = [row["held-out PSNR"] for row in rows]
        count = sum(p.numel() for p in model.parameters())
        curves[name] = {"parameters": count, "steps": [row["step"] for row in rows], "psnr": values,
                        "best": max(values), "last": values[-1], "seconds": rows[-1]["seconds"]}  # fmt: skip
        print(f"{name}: best {max(values):.2f} dB, last {values[-1]:.2f} dB", flush=True)
    write_json(out / "tiny.json", {"sigma": sigma, "side": side, "size": size, "curves": curves}, overwrite=True)
    draw_curves(curves, out / "tiny.png")


def ten_photographs(side: int) -> list[Tensor]:
    """The central squares of the first ten free photographs, grey, (1, side, side)."""
    found = []
    for x in list(permissive_photographs())[:10]:
        square = middle(x.mean(0, keepdim=True), min(x.shape[-2:]))[None]
        found.append(interpolate(square, (side, side), mode="bicubic", antialias=True)[0].clamp(0, 1))
    return found


def draw_curves(curves: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    for name, curve in curves.items():
        ax.plot(curve["steps"], curve["psnr"], label=name, linewidth=2.5 if name == "LoFi" else 1.2)
    ax.set(xlabel="optimiser steps", ylabel="PSNR of the photograph held out [dB]", title="nine photographs")
    ax.legend()
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    app()
