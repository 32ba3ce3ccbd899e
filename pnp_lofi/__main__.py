"""The command line: `pnp-lofi --help`."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pnp_lofi.entry import start

RECIPES = ("denoise", "ldct", "massmap", "transpose")  # `pnp-lofi train ldct`: `python -m pnp_lofi.recipes.ldct train`
console = Console()
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
solve = typer.Typer(no_args_is_help=True, help="Reconstruct an image from measurements.")
simulate = typer.Typer(no_args_is_help=True, help="Make measurements of a known image.")
app.add_typer(solve, name="solve")
app.add_typer(simulate, name="simulate")

Out = Annotated[Path, typer.Option("-o", "--out", help="Where to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Prior = Annotated[str, typer.Option(help="A shipped prior's name, or the path of a checkpoint.")]
Precision = Annotated[
    Literal["float32", "bfloat16", "auto"], typer.Option(help="Of the prior; auto: bfloat16 where it costs nothing.")
]
Recipe = Annotated[str, typer.Argument(help=f"{', '.join(RECIPES)}; what follows is the recipe's.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with OUT.run, which ctrl-C or a crash leaves.")]
Iterations = Annotated[int, typer.Option(help="Iterations at most.")]


def example(text: str) -> str:
    """The help's last paragraph."""
    return f"[bold]Example[/bold]: {text}"


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
        typer.Argument(help='"natural", "radio", a folder, or a recipe: denoise, ldct, massmap, transpose.'),
    ],
    out: Out,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 20_000,
    size: Annotated[int | None, typer.Option(help="Side of the crops, in pixels; default: 16 and a margin.")] = None,
    objects: Annotated[int, typer.Option(help="Crops per step.")] = 32,
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
    from pnp_lofi.sources import train_prior

    levels = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    figures = train_prior(
        images, out, size=size, steps=steps, objects=objects, lr=lr, seed=seed,
        low_precision=low_precision, device=device, resume=resume, overwrite=overwrite,
        command=" ".join(["pnp-lofi", *sys.argv[1:]]), **{k: v for k, v in levels.items() if v is not None},
    )  # fmt: skip
    console.print(f"wrote {escape(str(out))}:", {k: round(v, 4) for k, v in figures.items()})


@app.command(epilog=example("pnp-lofi denoise noisy.png --sigma 0.1 -o clean.png"))
def denoise(
    file: Annotated[Path, typer.Argument(help="PNG, JPEG, TIFF (range 0 to 1), npy or FITS (own units).")],
    out: Out,
    sigma: Annotated[float | None, typer.Option(help="Noise level, in the image's units; default: estimated.")] = None,
    prior: Prior = "natural",
    precision: Precision = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Remove Gaussian noise from an image; colour is done channel by channel."""
    import torch

    from pnp_lofi.files import check_writable
    from pnp_lofi.images import check_ending, load_image, save_image
    from pnp_lofi.noise import estimate_image_noise
    from pnp_lofi.priors import LoFiPrior

    check_writable(out, overwrite=overwrite)
    network = LoFiPrior(prior, precision=precision)
    x = load_image(file)
    check_ending(out, x)
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
    _finish(out, report, overwrite)


@simulate.command("radio", epilog=example("pnp-lofi simulate radio SKY.fits --hours 2 --snr 30 -o OBS.h5"))
def simulate_radio(
    sky: Annotated[Path, typer.Argument(help="Image of the sky, FITS (Jy/pixel) or npy/PNG.")],
    out: Out,
    hours: Annotated[float, typer.Option(help="Length of the track about transit, hours.")] = 2.0,
    snr: Annotated[float, typer.Option(help="20 log10(|vis| / |noise|), dB.")] = 30.0,
    declination: Annotated[
        float | None,
        typer.Option(
            help="Of the phase centre, degrees; default: the FITS header's, else -30, the latitude of --antennas."
        ),
    ] = None,
    frequency: Annotated[float, typer.Option(help="In Hz.")] = 1.4e9,
    integration: Annotated[float, typer.Option(help="Of one dump, seconds.")] = 240.0,
    min_elevation: Annotated[float, typer.Option(help="In degrees.")] = 15.0,
    cell: Annotated[
        float | None,
        typer.Option(help="Pixel in arcsec; default: the FITS header's, else the longest baseline at Nyquist."),
    ] = None,
    antennas: Annotated[
        Path | None,
        typer.Option(help="Table of x y z or e,n,u in metres, or CASA's .cfg (docs/radio.md); default: MeerKAT's."),
    ] = None,
    latitude: Annotated[
        float | None, typer.Option(help="Of the array, degrees; needed for e,n,u where the table does not tell it.")
    ] = None,
    seed: int = 0,
    overwrite: Overwrite = False,
) -> None:
    """Observe a sky with MeerKAT's 64 antennas, or with an array of yours."""
    from pnp_lofi.antennas import read_antennas
    from pnp_lofi.files import check_writable
    from pnp_lofi.fits import read_place
    from pnp_lofi.images import load_image
    from pnp_lofi.observation import write_observation
    from pnp_lofi.radio_simulation import simulate as observe

    check_writable(out, overwrite=overwrite)
    if latitude is not None and antennas is None:
        raise ValueError("--latitude belongs to an array of yours; give it with --antennas")
    array = None if antennas is None else read_antennas(antennas, latitude=latitude)
    image = load_image(sky, grey=True)[0, 0].numpy()
    ra, dec, pixel = read_place(sky) if sky.suffix.lower() in (".fits", ".fit") else (None, None, None)
    obs = observe(
        image, hours=hours, snr=snr, declination=dec if declination is None else declination, frequency=frequency,
        integration=integration, min_elevation=min_elevation, cell=cell or pixel, right_ascension=ra or 0.0, seed=seed,
        antennas=array,
    )  # fmt: skip
    write_observation(out, obs, overwrite=overwrite)
    console.print(
        f"wrote {escape(str(out))}: {len(obs.vis)} visibilities, cell {obs.cell:.3f} arcsec, image {escape(str(sky))}"
    )


@solve.command("radio", epilog=example("pnp-lofi solve radio OBS.h5 --size 512 --prior radio -o OUT.fits"))
def solve_radio(
    observation: Annotated[Path, typer.Argument(help="OBS.h5, MeasurementSet, UVFITS, .mat, npz.")],
    out: Out,
    size: Annotated[
        int | None, typer.Option(help="Side of the image in pixels; default: the truth's, else 512.")
    ] = None,
    cell: Annotated[float | None, typer.Option(help="Pixel size in arcsec; default: the observation's.")] = None,
    prior: Prior = "radio",
    sigma: Annotated[
        float | None, typer.Option(help="Noise of the whitened data; default: from the weights, else estimated.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Iterations at most; default: 50, of CLEAN 10000.")] = None,
    precision: Precision = "float32",
    beam: Annotated[
        str | None,
        typer.Option(metavar="MAJ,MIN,PA", help="To restore with: arcsec, arcsec, degrees; default: fitted."),
    ] = None,
    primary_beam: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE|FWHM",
            help="Also OUT_pb.fits, OUT_pbcor.fits: meerkat, vla, a table of radius and power, or a width in degrees.",
        ),
    ] = None,
    pb_cutoff: Annotated[float, typer.Option(help="OUT_pbcor.fits is blank where the primary beam is lower.")] = 0.2,
    clean: Annotated[bool, typer.Option("--clean", help="Hogbom's CLEAN, a baseline, instead of LoFi-ADMM.")] = False,
    field: Annotated[str | None, typer.Option(help="Of a MeasurementSet: name or number.")] = None,
    spw: Annotated[int | None, typer.Option(help="Its spectral window; default: all.")] = None,
    column: Annotated[str | None, typer.Option(help="CORRECTED_DATA, DATA ...; default: corrected if there.")] = None,
    channels: Annotated[str | None, typer.Option(metavar="FIRST,END", help="Of its channels.")] = None,
    error_bars: Annotated[
        int | None, typer.Option(help="Also OUT_std.fits, from so many draws of the posterior; some 200 are good.")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Image visibilities: FITS of the sky, dirty image, residual, dirty beam, restored image and error bars; pictures
    of all and of the restored one; a JSON of what was run."""
    from pnp_lofi.radio import image_file
    from pnp_lofi.radio_products import parse_beam

    chosen = {"field": int(field) if field and field.isdigit() else field, "spw": spw, "column": column,
              "channels": None if channels is None else _two(channels)}  # fmt: skip
    report = image_file(
        observation, out, selection={key: value for key, value in chosen.items() if value is not None},
        size=size, cell=cell, prior=prior, sigma=sigma, iterations=iterations, precision=precision,
        error_bars=error_bars, beam=None if beam is None else parse_beam(beam), primary_beam=primary_beam,
        pb_cutoff=pb_cutoff, clean=clean, resume=resume, overwrite=overwrite,
    )  # fmt: skip
    _finish(out, report, overwrite)


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


def _two(text: str) -> tuple[int, int]:
    try:
        first, end = (int(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"--channels takes FIRST,END, such as 4,60; got {text!r}") from None
    return first, end


def _finish(out: Path, report: dict[str, Any], overwrite: bool) -> None:
    """Write the JSON beside the picture and print the figures."""
    from pnp_lofi.files import write_json
    from pnp_lofi.version import __version__

    about = {"pnp_lofi": __version__, "command": " ".join(["pnp-lofi", *sys.argv[1:]])}
    write_json(out.with_suffix(".json"), about | report, overwrite=overwrite)
    table = Table(show_header=False)
    for key, value in report.items():
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else escape(str(value)))
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
