"""A generator of one family of images: an auto-encoder, then a normalising flow on its latents (arXiv 2212.14042).

Command:   pnp-lofi train generative -o heads.safetensors
           python -m pnp_lofi.recipes.generative sample heads.safetensors -o samples.png --side 256
           (--quick tries each within a minute; ctrl-C or kill -9, then the same with --resume)
Data:      procedural heads or chests (pnp_lofi.organs). Nothing is downloaded.
Hardware:  1 CPU core and 1 GB for the small size, 64 x 64 pixels: twenty minutes; the paper's, 128 x 128, wants a GPU.
Expect:    held-out heads are reconstructed to what docs/generative.md shows, samples look like heads.
           `python -m pnp_lofi.recipes.continuous` solves inverse problems with the result.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn.functional import avg_pool2d

from pnp_lofi.autoencoder import PAPER_WIDTHS, AutoEncoder, pyramid_loss
from pnp_lofi.checkpoint import read_tensors
from pnp_lofi.dense import has_bfloat16
from pnp_lofi.entry import start
from pnp_lofi.examples import Example
from pnp_lofi.figures import Panel, save_figure
from pnp_lofi.files import check_writable
from pnp_lofi.flow import LatentFlow, fit_flow
from pnp_lofi.hounsfield import RANGE, window
from pnp_lofi.launch import working_device
from pnp_lofi.metrics import psnr
from pnp_lofi.organs import chest, head
from pnp_lofi.priors import ContinuousGenerator, Generator, load_generator, save_generator
from pnp_lofi.supervised import check_outputs
from pnp_lofi.train import LOSSES, TrainSettings, check_run
from pnp_lofi.train import train as run
from pnp_lofi.zoom import network

RECIPE = "generative"
SIZES: dict[str, dict[str, Any]] = {
    "small": {"widths": (16, 32, 48, 64, 96, 128), "latent": 96, "side": 64, "hidden": (256, 128)},
    "paper": {"widths": PAPER_WIDTHS, "latent": 512, "side": 128, "hidden": (1024, 512)},
}
FAMILIES = {"head": head, "chest": chest}
FINER = 2  # training images are drawn so much finer and averaged
TESTED = 10_000  # seed of the images that only measure
LOSS = "laplacian"
app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, rich_markup_mode=None)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Quick = Annotated[bool, typer.Option("--quick", help="Little of everything: whether it works.")]


def images(family: str, count: int, side: int, seed: int) -> Tensor:
    """(count, 1, side, side) in [0, 1]. :raises ValueError: for a family that is not known."""
    if family not in FAMILIES:
        raise ValueError(f"families are {', '.join(FAMILIES)}, got {family!r}")
    hu = FAMILIES[family](count, FINER * side, seed=seed)
    return avg_pool2d(window(hu, RANGE), FINER)


class Copies:
    """Batches of images, to be answered with themselves.

    :param torch.Tensor kept: (N, 1, side, side); int objects: of a batch.
    """

    def __init__(self, kept: Tensor, objects: int) -> None:
        self.kept, self.objects = kept, objects

    def __call__(self, generator: torch.Generator) -> Example:
        x = self.kept[torch.randint(len(self.kept), (self.objects,), generator=generator)]
        return Example(x, x)


def mean_psnr(x: Tensor, truth: Tensor) -> float:
    return sum(psnr(a, b, 1.0) for a, b in zip(x, truth, strict=True)) / len(x)


@app.command()
def train(
    out: Annotated[Path, typer.Option("-o", "--out", help="The generator; what is beside it keeps the run.")],
    family: Annotated[str, typer.Option(help=f"Of images: {', '.join(FAMILIES)}.")] = "head",
    size: Annotated[str, typer.Option(help="small, or paper (latent 512, 128 x 128 pixels).")] = "small",
    count: Annotated[int, typer.Option(help="Images.")] = 3000,
    steps: Annotated[int, typer.Option(help="Of the auto-encoder.")] = 4500,
    objects: Annotated[int, typer.Option(help="Images of a step.")] = 16,
    lr: Annotated[float, typer.Option(help="Adam's.")] = 2e-3,
    flow_steps: Annotated[int, typer.Option(help="Of the flow.")] = 1500,
    seed: int = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU if there is one.")] = None,
    quick: Quick = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run was broken off.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train auto-encoder and flow; writes OUT, OUT.autoencoder with .csv and .png, and OUT.png with samples."""
    if size not in SIZES:
        raise ValueError(f"sizes are {', '.join(SIZES)}, got {size!r}")
    coder, flowing = Path(f"{out}.autoencoder"), Path(f"{out}.flow.run")
    for path in (out, Path(f"{out}.png")):
        check_writable(path, overwrite=overwrite)
    finished = resume and coder.exists() and not Path(f"{coder}.state").exists()
    if not finished:
        check_run(coder, resume=resume, overwrite=overwrite)
    chosen = SIZES[size]
    if quick:
        chosen = chosen | {"latent": 8, "hidden": (16,), "side": 64}
        count, steps, objects, flow_steps = 8, 6, 4, 20
    place, side = working_device(device), chosen["side"]
    kept, held = images(family, count, side, seed).to(place), images(family, 8, side, seed + TESTED).to(place)
    torch.manual_seed(seed)
    model = AutoEncoder(side, 1, chosen["latent"], widths=chosen["widths"]).to(place)
    about = {"recipe": RECIPE, "trained_on": f"{count} procedural images: {family}, {side} x {side}",
             "objects": objects, "value_range": [0.0, 1.0], "family": family}  # fmt: skip
    if finished:
        figures = read_autoencoder(coder, model, about)
    else:
        figures = train_autoencoder(model, kept, held, objects, steps, lr, seed, coder, about, resume)
    with torch.no_grad():
        latents = torch.cat([model.encode(x) for x in kept.split(64)]).cpu()
        others = model.encode(held).cpu()
    torch.manual_seed(seed)
    flow = LatentFlow(chosen["latent"], hidden=chosen["hidden"])
    if not resume:
        flowing.unlink(missing_ok=True)
    fit = fit_flow(flow, latents, steps=flow_steps, batch=min(256, 4 * count), seed=seed, save=flowing,
                   resume=resume and flowing.exists())  # fmt: skip
    with torch.no_grad():
        trained, unseen = (-float(flow.log_prob(w).mean()) / flow.latent for w in (latents, others))
    figures |= {"flow, nats per number": trained, "flow, held out": unseen, "flow, step": fit.step}
    generator = Generator(model.cpu(), flow).eval()
    save_generator(out, generator, metrics=figures, side=side, **about)
    draw(Path(f"{out}.png"), generator, held.cpu(), seed)
    flowing.unlink(missing_ok=True)
    print(f"wrote {out}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))


def train_autoencoder(
    model: AutoEncoder, kept: Tensor, held: Tensor, objects: int, steps: int, lr: float, seed: int, out: Path,
    about: dict[str, Any], resume: bool,
) -> dict[str, float]:  # fmt: skip
    """By the package's trainer: the loss is one of the error alone, as those that it knows."""
    LOSSES[LOSS] = pyramid_loss

    @torch.no_grad()
    def validate(model: Any) -> dict[str, float]:
        return {"held-out PSNR": mean_psnr(model(held), held)}

    @torch.no_grad()
    def picture(model: Any, path: Path) -> None:
        pairs = [*held[:4], *model(held[:4])]
        panels = [Panel("held out" if k < 4 else "its reconstruction", x, (0.0, 1.0)) for k, x in enumerate(pairs)]
        save_figure(path, panels, columns=4, overwrite=True)

    low = 0.9 if has_bfloat16(held.device) else 0.0
    settings = TrainSettings(steps=steps, lr=lr, loss=LOSS, seed=seed, low_precision=low)  # type: ignore[arg-type]
    return run(model, Copies(kept, objects), settings, out, about=about, validate=validate, picture=picture,
               validate_every=max(1, steps // 6), resume=resume)  # fmt: skip


def read_autoencoder(path: Path, model: AutoEncoder, about: dict[str, Any]) -> dict[str, float]:
    """Of a run broken off after it. :raises ValueError: if it is another one than was asked for."""
    tensors, header = read_tensors(path)
    asked = json.loads(json.dumps({"config": model.config, "trained_on": about["trained_on"]}))
    there = {key: header.get(key) for key in asked}
    if there != asked:
        raise ValueError(f"{path} is of a run with {there}, asked for {asked}; resume with the same options")
    model.load_state_dict(tensors)
    model.eval()
    return dict(header["metrics"])


def draw(path: Path, generator: Generator, held: Tensor, seed: int) -> None:
    """Held-out images, their reconstructions, samples."""
    with torch.no_grad():
        rows = [held[:4], generator.autoencoder(held[:4]), generator.sample(4, seed)]
    names = ("held out", "its reconstruction", "sample")
    panels = [Panel(name, x, (0.0, 1.0)) for name, row in zip(names, rows, strict=True) for x in row]
    save_figure(path, panels, columns=4, overwrite=True)


@app.command()
def sample(
    checkpoint: Annotated[Path, typer.Argument(help="What train wrote.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A PNG.")],
    count: int = 8,
    side: Annotated[int | None, typer.Option(help="Of the samples [pixel]; default the generator's.")] = None,
    field: Annotated[str, typer.Option(help="bilinear, bicubic, smooth, or the checkpoint of a FunkNN.")] = "bicubic",
    temperature: Annotated[float, typer.Option(help="Below 1: more alike, and cleaner.")] = 1.0,
    seed: int = 0,
    overwrite: Overwrite = False,
) -> None:
    """Images of the family that never were, at any resolution."""
    check_outputs([out], ".png", overwrite=overwrite)
    if side is not None and side < 1:
        raise ValueError(f"side must be at least 1 pixel, got {side}")
    generator, _ = load_generator(checkpoint)
    f = ContinuousGenerator(network(field)[0], generator)
    with torch.no_grad():
        x = f.image(temperature * generator.normal(count, seed), None if side is None else (side, side))
    panels = [Panel(f"sample {k}", one, (0.0, 1.0)) for k, one in enumerate(x)]
    save_figure(out, panels, columns=4, overwrite=overwrite)
    print(f"wrote {out}: {count} samples of {x.shape[-2]} x {x.shape[-1]}")


if __name__ == "__main__":
    start(app)
