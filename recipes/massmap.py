"""Mass maps in one pass: shear -> Wiener filter and Kaiser-Squires -> LoFi, told the survey's mask and noise.

Command:   python -m pnp_lofi.recipes.massmap train -o massmap.safetensors
           python -m pnp_lofi.recipes.massmap test massmap.safetensors -o massmap_test.json
           python -m pnp_lofi.recipes.massmap apply massmap.safetensors --e1 e1.fits --e2 e2.fits --mask mask.fits \
               --std std1.fits --std std2.fits -o kappa.fits      (or --catalogue galaxies.fits, or a shipped name)
           (`pnp-lofi train massmap ...` is the first; --quick tries each within a minute)
Data:      procedural convergence, kappaTNG, FITS or npy maps; surveys of random numbers, or given as FITS maps.
Hardware:  1 CPU core, 2 GB of memory: 0.2 s a step, 5 minutes for 1000 steps.
Expect:    kappaTNG behind the COSMOS mask, noise .148: Pearson r .59 with Wiener, .66 with LoFi (docs/massmap.md).
"""

import math
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from pnp_lofi.baselines import SIZES
from pnp_lofi.dense import has_bfloat16
from pnp_lofi.entry import start
from pnp_lofi.examples import PairCrops
from pnp_lofi.figures import Panel, save_figure
from pnp_lofi.files import write_json
from pnp_lofi.fits import write_fits
from pnp_lofi.launch import working_device
from pnp_lofi.mass_files import read_catalogue, read_image, read_shear, read_survey, two
from pnp_lofi.mass_maps import CHANNELS, CLASSICAL, UNIT, classical_maps, e_and_b, map_error, sky_power
from pnp_lofi.mass_scenes import scene_of, scenes, skies
from pnp_lofi.supervised import answer, build_network, check_outputs, command, given, load_network, load_networks
from pnp_lofi.train import TrainSettings, check_run
from pnp_lofi.train import train as run

RECIPE = "massmap"
LOFI: dict[str, dict[str, Any]] = {
    "small": {"rays": 8, "rings": 8, "radius": 9.0, "hidden": (64, 64), "features": 24, "mixer": (128, 128)},
    "paper": {"rays": 9, "rings": 9, "radius": 9.0, "hidden": (370,) * 3, "features": 100, "mixer": (370,) * 3},
}
PIXEL = 300 / 1024  # of kappaTNG, and about that of COSMOS [arcmin]
SLIP = 300 / 128  # pixel that the authors' code takes for the noise [arcmin]: 5 degrees, though the map is a part of it
LOW = 0.9  # leading part of the steps that is done in bfloat16, where the processor has it
LIMITS, VALUES = (-0.03, 0.09), (-0.05, 0.75)  # of pictures; of the convergence that is trained on, about
HELD = 2  # maps that validate
TESTED = 10_000  # seed of the maps that only measure
app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, rich_markup_mode=None)
console = Console()

Out = Annotated[Path, typer.Option("-o", "--out", help="Where to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU if there is one.")]
Quick = Annotated[bool, typer.Option("--quick", help="Little of everything: whether it works.")]
Data = Annotated[str, typer.Option(help="lognormal, a folder of kappaTNG, or a folder of FITS or npy maps.")]
Mask = Annotated[Path | None, typer.Option(help="FITS, zeros and ones; default: where the maps of --std are > 0.")]
Std = Annotated[list[str] | None, typer.Option(help="Noise of a pixel: a number, a FITS map, or two (give it twice).")]


def answered(model: Any, q: Tensor) -> Tensor:
    """Convergence (1, 1, H, W) from :func:`seen_maps`."""
    return answer(model, q) * UNIT


@app.command()
def train(
    out: Out,
    data: Data = "lognormal",
    mask: Mask = None,
    std: Std = None,
    noise: Annotated[str, typer.Option(help="range; or sigma_e / sqrt(n_gal area): true, published.")] = "range",
    sigma_min: Annotated[float, typer.Option(help="Least noise of a pixel and component, of --noise range.")] = 0.05,
    sigma_max: Annotated[float, typer.Option(help="Most.")] = 0.25,
    sigma_e: Annotated[float, typer.Option(help="Of a galaxy and component.")] = 0.37,
    n_gal: Annotated[float, typer.Option(help="Galaxies per square arcmin.")] = 30.0,
    pixel: Annotated[float, typer.Option(help="Of lognormal and FITS maps [arcmin].")] = PIXEL,
    side: Annotated[int, typer.Option(help="Of the maps [pixel].")] = 192,
    count: Annotated[int, typer.Option(help="Maps, each behind a survey with noise.")] = 400,
    network: Annotated[str, typer.Option(help=f"LoFi, {', '.join(SIZES)}.")] = "LoFi",
    size: Annotated[str, typer.Option(help="small (0.1 million parameters) or paper (3 million).")] = "small",
    steps: int = 1000,
    objects: Annotated[int, typer.Option(help="Crops of a step.")] = 12,
    pixels: Annotated[int, typer.Option(help="Drawn from each, for LoFi.")] = 512,
    crop: Annotated[int, typer.Option(help="Side of a crop [pixel].")] = 96,
    lr: float = 2e-3,
    seed: int = 0,
    device: Device = None,
    quick: Quick = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT.state.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train on the squared error, whose best answer is the posterior mean; writes OUT, OUT.csv and OUT.png."""
    check_run(out, resume=resume, overwrite=overwrite)
    if quick:
        side, count, steps, crop, objects, pixels = min(side, 64), 8, 20, min(crop, 48), 4, 128
    place = working_device(device)
    survey = read_survey(mask, std)
    side = side if survey is None else max(survey.mask.shape)
    kappa, pixel = skies(data, count + HELD, side, pixel, seed, apart=HELD)
    levels = {"range": (sigma_min, sigma_max)}
    levels |= {name: (sigma_e / (n_gal**0.5 * p),) * 2 for name, p in (("true", pixel), ("published", SLIP))}
    if noise not in levels or not 0 < levels[noise][0] <= levels[noise][1]:
        got = f"{noise!r}, sigma {levels.get(noise)}"
        raise ValueError(f'noise is "range" with 0 < sigma-min <= sigma-max, "true" or "published", got {got}')
    sigmas = levels[noise] if survey is None else survey.levels()
    made = scenes(kappa, pixel, sigmas, survey, seed=seed)
    held = [next(made) for _ in range(HELD)]
    source = PairCrops([(s.seen[0], s.kappa[0] / UNIT) for s in made], min(crop, *held[0].mask.shape), objects)
    torch.manual_seed(seed)
    shape: dict[str, Any] = {"out_channels": 1, "centred": False, "equivariant": False}
    model = build_network(network, size, LOFI, CHANNELS, **shape).to(place)
    surveys = "random surveys" if survey is None else ", ".join(Path(p).name for p in (mask, *(std or [])) if p)
    trained_on = f"{Path(data).name}, {count} maps of {side} x {side} pixels of {pixel:.4g} arcmin, {surveys}"
    about = {"recipe": RECIPE, "trained_on": trained_on, "crop": crop, "objects": objects, "pixel": pixel,
             "sigma_range": sigmas, "value_range": VALUES, "unit": UNIT, "command": command(RECIPE)}  # fmt: skip

    def validate(model: Any) -> dict[str, float]:
        answers = [(answered(model, s.seen), s.seen[:, :1], s) for s in held]
        found = [[map_error(x, s.kappa, s.mask)["r"] for x in (a, w)] for a, w, s in answers]
        return dict(zip(("held-out r", "its Wiener r"), np.mean(found, 0).tolist(), strict=True))

    def picture(model: Any, path: Path) -> None:
        found = {"Wiener": held[0].seen[:, :1] * UNIT, network: answered(model, held[0].seen), "truth": held[0].kappa}
        panels(path, found, overwrite=True)

    settings = TrainSettings(steps=steps, pixels=pixels, lr=lr, loss="l2", ema=0.9 if quick else 0.995, seed=seed,
                             low_precision=LOW if has_bfloat16(place) else 0.0)  # fmt: skip
    figures = run(model, source, settings, out, about=about, validate=validate, picture=picture,
                  resume=resume)  # fmt: skip
    print(f"wrote {out}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))


def panels(path: Path, maps: dict[str, Tensor], *, sky: bool = False, overwrite: bool) -> None:
    shown = [Panel(name, x.reshape(x.shape[-2:]), LIMITS, "inferno", unit="convergence") for name, x in maps.items()]
    save_figure(path, shown, sky=sky, overwrite=overwrite)


@app.command()
def test(
    checkpoints: Annotated[list[str], typer.Argument(help="What train wrote, one or more: LoFi, a U-Net ...")],
    out: Annotated[Path, typer.Option("-o", "--out", help="JSON; a picture is written beside it.")],
    data: Data = "lognormal",
    truth: Annotated[Path | None, typer.Option(help="Instead of --data: FITS of the convergence behind --e1.")] = None,
    e1: Annotated[Path | None, typer.Option(help="FITS of its noisy shear; without --e2, of both components.")] = None,
    e2: Path | None = None,
    mask: Mask = None,
    std: Std = None,
    level: Annotated[float | None, typer.Option(help="Noise of random surveys; default, as in training.")] = None,
    count: int = 8,
    side: int = 256,
    device: Device = None,
    quick: Quick = False,
    overwrite: Overwrite = False,
) -> None:
    """RMSE and Pearson's r inside the mask, means removed, beside Kaiser-Squires and Wiener; table, JSON, picture."""
    check_outputs([out, out.with_suffix(".png")], ".json", overwrite=overwrite)
    place = working_device(device)
    models = load_networks(checkpoints, RECIPE, place, taken=CLASSICAL)
    header = next(iter(models.values()))[1]
    if level is not None and not 0 < level < math.inf:
        raise ValueError(f"the noise of a pixel must be > 0, got --level {level}")
    pixel, (low, high) = header["pixel"], header["sigma_range"]
    if (truth is None) != (e1 is None):
        raise ValueError("--truth and the shear that was measured of it go together: pass --truth, --e1 (and --e2)")
    if truth is not None and e1 is not None:
        shear, x = read_shear(e1, e2, mask, std or []), torch.from_numpy(read_image(truth)).float()[None, None]
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{truth} holds NaN or inf, a truth is known everywhere")
        if x.shape[-2:] != shear.gamma.shape[-2:]:
            raise ValueError(f"{truth} is {tuple(x.shape[-2:])}, the shear {tuple(shear.gamma.shape[-2:])}")
        pixel = shear.pixel or pixel
        found = iter([scene_of(shear.survey, shear.gamma, x, pixel)])
    else:
        survey = read_survey(mask, std)
        side = (64 if quick else side) if survey is None else max(survey.mask.shape)
        kappa, pixel = skies(data, 1 if quick else count, side, pixel, TESTED)
        found = scenes(kappa, pixel, (given(level, low), given(level, high)), survey, seed=TESTED)
    rows: dict[str, list[dict[str, float]]] = {}
    for k, s in enumerate(found):
        maps = classical_maps(s.op, s.y, sky_power(s.op.shape, pixel))
        maps |= {name: answered(model, s.seen) for name, (model, _) in models.items()}
        for name, x in maps.items():
            rows.setdefault(name, []).append(map_error(x, s.kappa, s.mask))
        if k == 0:
            maps.pop("KS")
            panels(out.with_suffix(".png"), maps | {"truth": s.kappa}, overwrite=overwrite)
    report = {n: {key: float(np.mean([one[key] for one in each])) for key in ("rmse", "r")} for n, each in rows.items()}
    table = Table("map", "RMSE", "Pearson r")
    for name in report:
        table.add_row(escape(name), f"{report[name]['rmse']:.5f}", f"{report[name]['r']:.4f}")
    write_json(out, {"maps": len(rows["KS"]), "pixel": pixel, "rows": report}, overwrite=overwrite)
    console.print(table)


@app.command()
def apply(
    checkpoint: Annotated[str, typer.Argument(help='What train wrote, or "massmap", which comes with the package.')],
    out: Annotated[Path, typer.Option("-o", "--out", help="FITS of the E mode; OUT_b.fits and OUT.png beside it.")],
    e1: Annotated[Path | None, typer.Option(help="FITS of the shear; without --e2, of both components.")] = None,
    e2: Path | None = None,
    mask: Mask = None,
    std: Std = None,
    catalogue: Annotated[Path | None, typer.Option(help="FITS table, or a folder of a FITS for each column.")] = None,
    columns: Annotated[str, typer.Option(help="Of the catalogue.")] = "ra,dec,e1,e2,weight",
    shape: Annotated[str, typer.Option(help="Of the catalogue's map, ROWS,COLUMNS.")] = "360,360",
    pixel: Annotated[float | None, typer.Option(help="[arcmin]; default, the header's, or as in training.")] = None,
    centre: Annotated[str | None, typer.Option(help="Of the map, RA,DEC [deg]; default, the catalogue's.")] = None,
    east: Annotated[str, typer.Option(help="left or right, of the catalogue's map.")] = "left",
    positive_e2: Annotated[str, typer.Option(help="NW or NE, see docs/lensing.md.")] = "NW",
    margin: Annotated[int, typer.Option(help="Pixels of unknown shear that are put around the map.")] = 32,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Convergence of shear maps or of a catalogue, E and B mode: lensing makes no B mode, so it shows the noise."""
    files = {"E": out, "B": out.with_name(f"{out.stem}_b{out.suffix}")}
    check_outputs([*files.values(), out.with_suffix(".png")], ".fits", overwrite=overwrite)
    model, header = load_network(checkpoint, RECIPE, working_device(device))
    if (e1 is None) == (catalogue is None):
        raise ValueError("give either --e1 (and --e2, --mask, --std) or --catalogue")
    if catalogue is not None and (e2 or mask or std):
        raise ValueError("a catalogue has its own mask and noise: --e2, --mask and --std go with --e1")
    if catalogue is not None:
        grid: Any = {"shape": two(shape, "--shape", int), "pixel": given(pixel, header["pixel"])}
        grid["centre"] = None if centre is None else two(centre, "--centre", float)
        shear = read_catalogue(catalogue, columns.split(","), **grid | {"east": east, "positive_e2": positive_e2})
    else:
        assert e1 is not None
        shear = read_shear(e1, e2, mask, std or [], pixel=pixel)
    scale = shear.pixel or header["pixel"]
    if not 0.8 < scale / header["pixel"] < 1.25:
        warnings.warn(f"pixels of {scale:.3g} arcmin; the network was trained on {header['pixel']:.3g}", stacklevel=1)
    maps = e_and_b(partial(answered, model), shear.gamma, shear.survey, scale, margin)
    for mode, path in files.items():
        cards = {"BUNIT": "", "MODE": mode, "METHOD": f"{getattr(model, 'name', 'LoFi')}, {RECIPE}", **shear.cards}
        write_fits(path, maps[mode][0, 0].numpy(), cards, overwrite=overwrite)
    shown = {f"{mode} mode{w and ', Wiener'}": maps[f"{mode}{w}"] for w in ("", " Wiener") for mode in files}
    panels(out.with_suffix(".png"), shown, sky=bool(shear.cards), overwrite=overwrite)
    for name, x in maps.items():
        print(f"{name}: rms on the mask {float(x[0, 0][shear.survey.mask].std()):.5f}")


if __name__ == "__main__":
    start(app)
