"""The command line: `pnp-lofi --help`."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from pnp_lofi.entry import start
from pnp_lofi.options import Iterations, Out, Overwrite, Precision, Prior, Resume, console, example, finish, two
from pnp_lofi.radio_commands import SIMULATE, SOLVE, simulate_radio, solve_radio

# `pnp-lofi train ldct` is `python -m pnp_lofi.recipes.ldct train`
RECIPES = ("denoise", "generative", "ldct", "massmap", "superres", "transpose")
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
solve = typer.Typer(no_args_is_help=True, help="Reconstruct an image from measurements.")
simulate = typer.Typer(no_args_is_help=True, help="Make measurements of a known image.")
app.add_typer(solve, name="solve")
app.add_typer(simulate, name="simulate")
solve.command("radio", epilog=SOLVE)(solve_radio)
simulate.command("radio", epilog=SIMULATE)(simulate_radio)

Recipe = Annotated[str, typer.Argument(help=f"{', '.join(RECIPES)}; what follows is the recipe's.")]


@app.callback()
def about() -> None:
    """Plug-and-play imaging with LoFi, a resolution-free local prior."""


@app.command(epilog=example("pnp-lofi demo -o demo_output"))
def demo(out: Out = Path("demo_output"), overwrite: Overwrite = False) -> None:
    """Inpaint a photograph and image a simulated MeerKAT observation, against TV; a figure and a table."""
    from pnp_lofi.demo import run

    run(out, overwrite=overwrite)


@app.command(
    epilog=example("pnp-lofi train natural -o mine.safetensors --steps 2000   (ctrl-C, then the same with --resume)")
)
def train(
    images: Annotated[
        str,
        typer.Argument(
            help=f'"natural", "natural-rgb", "radio", "ct", "kappa", a folder, or a recipe: {", ".join(RECIPES)}.'
        ),
    ],
    out: Out,
    network: Annotated[str, typer.Option(help="S; L, which also looks elsewhere; DRU-Net, to compare with.")] = "S",
    start: Annotated[
        str | None,
        typer.Option(help="Checkpoint to begin with, such as natural: of the same network, or S for L."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 20_000,
    size: Annotated[
        int | None, typer.Option(help="Side of the crops, in pixels; default: 56 and a margin; of an L 128.")
    ] = None,
    objects: Annotated[int, typer.Option(help="Crops per step; of an L, per batch that is gathered.")] = 4,
    lr: Annotated[float, typer.Option(help="Adam's step at the start; cosine decay.")] = 2e-3,
    sigma_min: Annotated[float | None, typer.Option(help="Lowest noise level, of range 1.")] = None,
    sigma_max: Annotated[float | None, typer.Option(help="Highest noise level.")] = None,
    low_precision: Annotated[float, typer.Option(help="Leading part of the steps done in bfloat16.")] = 0.0,
    seed: int = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU if there is one.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT.state.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a denoiser prior on procedural images or a folder of your own."""
    from pnp_lofi.prior_training import train_prior

    levels = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    figures = train_prior(
        images, out, network=network, start=start, size=size, steps=steps, objects=objects, lr=lr, seed=seed,
        low_precision=low_precision, device=device, resume=resume, overwrite=overwrite,
        command=" ".join(["pnp-lofi", *sys.argv[1:]]), **{k: v for k, v in levels.items() if v is not None},
    )  # fmt: skip
    console.print(f"wrote {escape(str(out))}:", {k: round(v, 4) for k, v in figures.items()})


@app.command(epilog=example("pnp-lofi denoise noisy.png --sigma 0.1 -o clean.png"))
def denoise(
    file: Annotated[Path, typer.Argument(help="PNG, JPEG, TIFF (range 0 to 1), npy or FITS (own units).")],
    out: Out,
    sigma: Annotated[float | None, typer.Option(help="Noise level, in the image's units; default: estimated.")] = None,
    prior: Annotated[
        str | None,
        typer.Option(help="A shipped prior's name, or a checkpoint's path; default: natural, for colour natural-rgb."),
    ] = None,
    precision: Precision = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Remove Gaussian noise from an image."""
    import torch

    from pnp_lofi.files import check_writable
    from pnp_lofi.images import check_ending, load_image, save_image
    from pnp_lofi.noise import estimate_image_noise
    from pnp_lofi.priors import LoFiPrior

    check_writable(out, overwrite=overwrite)
    x = load_image(file)
    check_ending(out, x)
    network = LoFiPrior(prior or ("natural-rgb" if x.shape[1] == 3 else "natural"), precision=precision)
    level = estimate_image_noise(x) if sigma is None else sigma
    if sigma is None and level == 0:
        raise ValueError(f"no noise was found in {file} (a flat or quantised image?); give its level with --sigma")
    with torch.no_grad():
        save_image(out, network(x, level), overwrite=overwrite)
    console.print(f"wrote {escape(str(out))}: noise level {level:.4g}" + (" (estimated)" if sigma is None else ""))


@solve.command(
    epilog=example("pnp-lofi solve inpaint photo.png --keep 0.3 -o filled.png")
    + "  or  pnp-lofi solve inpaint damaged.png --mask kept.png -o filled.png"
)
def inpaint(
    image: Annotated[Path, typer.Argument(help="The image.")],
    out: Out,
    keep: Annotated[float | None, typer.Option(help="Simulate: keep this part of the pixels at random.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Image of the same size; white marks measured pixels.")] = None,
    prior: Prior = "natural",
    sigma: Annotated[float | None, typer.Option(help="Noise of the measured pixels; default: none.")] = None,
    iterations: Iterations = 50,
    precision: Precision = "auto",
    seed: int = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Fill in the pixels that were not measured."""
    from pnp_lofi.inpainting import inpaint_file

    if (keep is None) == (mask is None):
        raise ValueError("give either --keep (simulate a loss) or --mask (which pixels were measured)")
    report = inpaint_file(
        image, out, keep=keep, mask=mask, prior=prior, sigma=sigma, iterations=iterations, precision=precision,
        seed=seed, resume=resume, overwrite=overwrite,
    )  # fmt: skip
    finish(out, report, overwrite)


@app.command(epilog=example("pnp-lofi zoom photo.png --scale 3.7 -o large.png"))
def zoom(
    file: Annotated[Path, typer.Argument(help="PNG, JPEG, TIFF (range 0 to 1), npy or FITS (own units).")],
    out: Out,
    scale: Annotated[str | None, typer.Option(help="Any factor: 3.7, or 2,3.5 for rows and columns.")] = None,
    shape: Annotated[str | None, typer.Option(help="Instead: the size, such as 480,640.")] = None,
    model: Annotated[str, typer.Option(help="A shipped name, a path, or bilinear, bicubic, smooth.")] = "zoom",
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU if there is one.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Enlarge (or shrink) an image to any size; colour is done channel by channel."""
    from pnp_lofi.zoom_file import zoom_file

    if (scale is None) == (shape is None):
        raise ValueError("give either --scale 3.7 or --shape 480,640")
    pair = scale if scale is None or "," in scale else f"{scale},{scale}"
    height, width = zoom_file(
        file, out, scale=None if pair is None else two(pair, "--scale takes 3.7 or 2,3.5", float),
        shape=None if shape is None else two(shape, "--shape takes 480,640", int),
        model=model, device=device, progress=sys.stderr.isatty(), overwrite=overwrite,
    )  # fmt: skip
    console.print(f"wrote {escape(str(out))}: {height} x {width} pixels")


@app.command(epilog=example("pnp-lofi info radio"))
def info(checkpoint: Annotated[str, typer.Argument(help="A shipped prior's name, or a checkpoint's path.")]) -> None:
    """What a checkpoint holds."""
    from pnp_lofi.checkpoint import find_checkpoint, load_checkpoint

    model, header = load_checkpoint(checkpoint)
    table = Table(show_header=False, title=escape(str(find_checkpoint(checkpoint))))
    table.add_row("parameters", f"{sum(p.numel() for p in model.parameters()):,}")
    for key, value in header.items():
        table.add_row(key, escape(json.dumps(value)))
    console.print(table)


@app.command(epilog=example("pnp-lofi test ldct --help"))
def test(recipe: Recipe) -> None:
    """Measure what `train RECIPE` wrote on images that it has not seen; `pnp-lofi test RECIPE --help`."""
    raise ValueError(f"recipes are {', '.join(RECIPES)}, got {recipe!r}")


@app.command(epilog=example("pnp-lofi apply massmap --help"))
def apply(recipe: Recipe) -> None:
    """Use what `train RECIPE` wrote on a file of yours; `pnp-lofi apply RECIPE --help`."""
    raise ValueError(f"recipes are {', '.join(RECIPES)}, got {recipe!r}")


def main() -> None:
    """Entry point; what follows `train RECIPE`, `test RECIPE` or `apply RECIPE` is the recipe's."""
    what, name = [*sys.argv[1:3], "", ""][:2]
    if what in ("train", "test", "apply") and name in RECIPES:
        start(lambda: _recipe(what, name))
    else:
        start(app)


def _recipe(what: str, name: str) -> None:
    commands = typer.main.get_command(import_module(f"pnp_lofi.recipes.{name}").app).commands  # type: ignore[attr-defined]
    if what not in commands:
        raise ValueError(f"the recipe {name} has {', '.join(commands)}, but no {what}")
    commands[what].main(sys.argv[3:], prog_name=f"pnp-lofi {what} {name}")


if __name__ == "__main__":
    main()
