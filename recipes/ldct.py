"""Low-dose CT in one pass: Radon -> noise -> filtered backprojection -> LoFi, trained on pairs.

Command:   python -m pnp_lofi.recipes.ldct train -o ldct.safetensors
           python -m pnp_lofi.recipes.ldct test ldct.safetensors --data chest --data head -o ldct_test.json
           python -m pnp_lofi.recipes.ldct apply ldct.safetensors sinogram.h5 -o out.png -o out.dcm
           (`pnp-lofi train ldct ...` is the first; --quick tries each within a minute)
Data:      procedural chests, made on the fly (default); a folder of LoDoPaB-CT, of DICOM slices, of the LoFi authors'
           .npz; a file of pairs. What is scanned here gets fresh noise in each step (the paper keeps one draw).
Hardware:  1 CPU core, 2 GB of memory: 0.3 s a step, 30 minutes for 6000 steps. A CUDA GPU is used if there is one.
Expect:    the paper's setting, 128 x 128, 180 views, 30 dB, ramp filter: filtered backprojection has about 27 dB on
           procedural chests and 28 dB on heads, which are never trained on; LoFi 5 dB more, or better. docs/ldct.md
           has the table of benchmarks/ldct.py.
"""

import functools
import math
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from pnp_lofi.baselines import SIZES
from pnp_lofi.ct_files import TEXTURE, from_sinogram, from_slice, is_sinogram, jobs, window_of, write_picture
from pnp_lofi.ct_quality import Networks, figures_of_merit, measured, save_curves, told
from pnp_lofi.ct_scans import PHANTOMS, SIDE, Draws, Scan, fixed_pairs, held_out, load_scans, noise_levels, to_hu
from pnp_lofi.dense import has_bfloat16
from pnp_lofi.entry import start
from pnp_lofi.figures import Panel, save_figure
from pnp_lofi.files import write_json
from pnp_lofi.hounsfield import WATER
from pnp_lofi.launch import working_device
from pnp_lofi.metrics import psnr
from pnp_lofi.shared import SharedLoFi
from pnp_lofi.sinogram_file import KEYS, Geometry
from pnp_lofi.supervised import answer, build_network, check_outputs, command, given, load_network, load_networks
from pnp_lofi.train import TrainSettings, check_run
from pnp_lofi.train import train as run

RECIPE = "ldct"
LOFI: dict[str, dict[str, Any]] = {
    "small": {"rays": 12, "rings": 8, "radius": 5.0, "hidden": (48, 48), "features": 24, "mixer": (128, 128)},
    "paper": {"rays": 9, "rings": 9, "radius": 6.0, "hidden": (370,) * 3, "features": 100, "mixer": (370,) * 3},
}
CROP = 64  # of what all but LoFi are trained on; it draws pixels of whole images
RATE = {"LoFi": 2e-3, "SharedLoFi": 2e-3}
LITTLE = 1e-3  # noise that is next to none [water]
FIELD = 380.0  # of the insert that --contrast measures [mm]
VALIDATE = 500  # steps between two validations
LOW = 0.95  # leading part of the steps that is done in bfloat16, where the processor has it
app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, rich_markup_mode=None)
console = Console()

Out = Annotated[Path, typer.Option("-o", "--out", help="Where to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU if there is one.")]
Quick = Annotated[bool, typer.Option("--quick", help="Little of everything: whether it works.")]
Snr = Annotated[float | None, typer.Option(help="Of the sinogram's Gaussian noise [dB].")]
Photons = Annotated[float | None, typer.Option(help="Instead of --snr: counts a detector, 4096 in LoDoPaB-CT.")]
Side = Annotated[int | None, typer.Option(help="Images are resized to [pixel]; default: 128 where scanned here.")]
Spacing = Annotated[float | None, typer.Option(help="Of the pixels of DICOM slices that do not say [mm].")]


def build(network: str, size: str = "small") -> nn.Module:
    """A network by name. Those of LoFi work in units of the noise, which is estimated from what they see.

    :raises ValueError: for a name or size that is not known.
    """
    if network == "SharedLoFi" and size == "small":
        return SharedLoFi()
    return build_network(network, size, LOFI, 1)


def cleaned(model: Any, q: Tensor, level: float | None = None) -> Tensor:
    """What a network makes of (1, 1, H, W) [attenuation / that of water]; level: of its noise, default estimated."""
    return answer(model, q, noise_levels(q) if level is None else level)


@app.command()
def train(
    out: Out,
    data: Annotated[str, typer.Option(help="phantoms (or chest, head), a folder, a file of pairs.")] = "phantoms",
    network: Annotated[str, typer.Option(help=f"LoFi, SharedLoFi, {', '.join(SIZES)}.")] = "LoFi",
    size: Annotated[str, typer.Option(help="small (0.1 to 0.2 million parameters) or paper (3 million).")] = "small",
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; default 6000, with --quick 60.")] = None,
    objects: Annotated[int | None, typer.Option(help="Images of a step; default 32, of crops 8.")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of crops [pixel]; default 64, of LoFi none.")] = None,
    count: Annotated[int | None, typer.Option(help="Phantoms (1000), or the most that is taken of a folder.")] = None,
    side: Side = None,
    views: int = 180,
    snr: Annotated[float, typer.Option(help="Of the sinogram's Gaussian noise [dB].")] = 30.0,
    spread: Annotated[float, typer.Option(help="snr is drawn from snr - spread to snr + spread.")] = 0.0,
    photons: Photons = None,
    filter: Annotated[str, typer.Option(help="ramp, shepp-logan, cosine, hamming or hann.")] = "ramp",
    spacing: Spacing = None,
    lr: Annotated[float | None, typer.Option(help="Adam's; default 2e-3, of baselines 1e-3.")] = None,
    seed: int = 0,
    device: Device = None,
    quick: Quick = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT.state.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train; writes OUT, OUT.best, OUT.csv and OUT.png. Under torchrun processes share the images of a step."""
    check_run(out, resume=resume, overwrite=overwrite)
    place = working_device(device)
    local, scan = network == "LoFi", Scan(views, snr, spread, photons, filter)
    torch.manual_seed(seed)
    model = build(network, size).to(place)
    objects, crop = given(objects, 32 if local else 8), given(crop, None if local else CROP)
    low = LOW if has_bfloat16(place) else 0.0
    settings = TrainSettings(steps=given(steps, 60 if quick else 6000), draws=2 if local else 1,
                             lr=given(lr, RATE.get(network, 1e-3)), low_precision=low, seed=seed)  # fmt: skip
    options: dict[str, Any] = {"side": side, "seed": seed, "spacing": spacing, "device": place}
    everything = load_scans(data, scan, count=given(count, 40 if quick else None), **options)
    known, held = held_out(everything, data, scan, **options)
    pairs = fixed_pairs(held)
    height, width = pairs[0][1].shape[-2:]
    about = {"recipe": RECIPE, "trained_on": f"{Path(data).name}, {len(known)} images, {height} x {width}, {scan}",
             "scan": asdict(scan), "objects": objects, "crop": crop, "command": command(RECIPE)}  # fmt: skip

    def validate(model: Any) -> dict[str, float]:
        each = torch.tensor([[psnr(cleaned(model, q), x), psnr(q, x)] for q, x in pairs]).mean(0).tolist()
        return {"held-out PSNR": each[0], "its FBP": each[1]}

    def picture(model: Any, path: Path) -> None:
        panels(path, {"FBP": pairs[0][0], network: cleaned(model, pairs[0][0])}, pairs[0][1], overwrite=True)

    source = Draws(known, objects, crop)
    figures = run(model, source, settings, out, about=about, validate=validate, validate_every=VALIDATE,
                  picture=picture, resume=resume)  # fmt: skip
    print(f"wrote {out}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))


def panels(path: Path, images: dict[str, Tensor], truth: Tensor, *, overwrite: bool) -> None:
    """A row of pictures, with PSNR, between the truth's air and bone."""
    limits = (0.0, float(truth.max().clamp(max=1.6)))
    shown = [Panel(f"{name}: {psnr(x, truth):.2f} dB", x[0], limits) for name, x in images.items()]
    save_figure(path, [*shown, Panel("truth", truth[0], limits)], overwrite=overwrite)


@app.command()
def test(
    checkpoints: Annotated[list[Path], typer.Argument(help="What train wrote, one or more.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="JSON; pictures are written beside it.")],
    data: Annotated[list[str] | None, typer.Option(help="As of train; several; default chest and head.")] = None,
    count: Annotated[int | None, typer.Option(help="Images of each; default 100, with --quick 4.")] = None,
    side: Side = None,
    snr: Snr = None,
    photons: Photons = None,
    spacing: Spacing = None,
    contrast: Annotated[float | None, typer.Option(help="Also MTF of an insert's edge [HU], and NPS.")] = None,
    seed: int = 0,
    device: Device = None,
    quick: Quick = False,
    overwrite: Overwrite = False,
) -> None:
    """FBP and networks on images that none was trained on: PSNR, SSIM, MTF, noise; OUT as JSON, OUT_DATA.png."""
    data = data or ["chest", "head"]
    names = {kind: kind if kind in PHANTOMS else "_".join(Path(kind).resolve().parts[-2:]) for kind in data}
    named = names if contrast is None else names | {"": "quality"}
    pictures = {kind: out.with_name(f"{out.stem}_{name}.png") for kind, name in named.items()}
    check_outputs([out, *pictures.values()], ".json", overwrite=overwrite)
    place = working_device(device)
    networks: Networks = {"FBP": lambda q: q}
    loaded = load_networks(checkpoints, RECIPE, place, taken=list(networks))
    scans = [Scan(**header["scan"]) for _, header in loaded.values()]
    if len({(scan.views, scan.filter) for scan in scans}) > 1:
        each = ", ".join(f"{name} {s.views} and {s.filter}" for name, s in zip(loaded, scans, strict=True))
        raise ValueError(f"expected networks for one number of views and one filter, got {each}; test them apart")
    scan = scans[0].with_noise(snr, photons)
    networks |= {name: functools.partial(cleaned, model) for name, (model, _) in loaded.items()}
    report: dict[str, Any] = {}
    for kind in data:
        held = load_scans(kind, scan, part="test", count=given(count, 4 if quick else 100), side=side, seed=seed,
                          spacing=spacing, device=place)  # fmt: skip
        pairs = fixed_pairs(held, seed=seed)
        answers = {name: [(network(q), x) for q, x in pairs] for name, network in networks.items()}
        report[names[kind]] = {"images": len(pairs)} | {name: figures_of_merit(a) for name, a in answers.items()}
        panels(pictures[kind], {name: a[0][0] for name, a in answers.items()}, pairs[0][1], overwrite=overwrite)
    lines, curves = [], {}
    if contrast is not None:
        pixel = FIELD / (side or SIDE)  # [mm]
        found = measured(networks, scan, contrast=contrast, side=side or SIDE, pixel=pixel, draws=4 if quick else 32)
        save_curves(pictures[""], found, title=f"edge of {contrast:g} HU in water, {scan}", overwrite=overwrite)
        curves = {"contrast": contrast, "pixel": pixel} | told(found, pixel)
        lines = [f"{k}: MTF 50 % at {a.at(0.5):.3f}/mm, noise {b.level(pixel):.1f} HU" for k, (a, b) in found.items()]
    write_json(out, {"scan": asdict(scan), "data": report, "quality": curves}, overwrite=overwrite)
    table = Table("data", "images", "picture", escape("PSNR [dB]"), "SSIM")
    for kind, row in report.items():
        for name in networks:
            rated = ((row[name]["psnr"], 2), (row[name]["ssim"], 3))
            cells = (f"{value['mean']:.{n}f} +- {value['std']:.{n}f}" for value, n in rated)
            table.add_row(escape(kind), str(row["images"]), escape(name), *cells)
    console.print(table)
    for line in lines:
        print(line)


@app.command()
def apply(
    checkpoint: Annotated[Path, typer.Argument(help="What train wrote.")],
    source: Annotated[Path, typer.Argument(help="A sinogram (npy, npz, HDF5), a DICOM slice, or a folder of slices.")],
    out: Annotated[list[Path], typer.Option("-o", "--out", help="png, npy [HU] or dcm, several; or a folder.")],
    shown: Annotated[str, typer.Option("--window", help="Of the png: soft, lung, bone, brain; CENTRE,WIDTH.")] = "soft",
    simulate: Annotated[bool, typer.Option("--simulate", help="Scan the slice; without, it is the noisy FBP.")] = False,
    snr: Snr = None,
    photons: Annotated[float | None, typer.Option(help="Of --simulate; or what a sinogram's counts are of.")] = None,
    item: Annotated[int | None, typer.Option(help="Which sinogram of a file of several.")] = None,
    transpose: Annotated[bool, typer.Option("--transpose", help="The sinogram is (detectors, angles).")] = False,
    geometry: Annotated[str, typer.Option(help=f"Of a sinogram, KEY=VALUE,...: {', '.join(KEYS)}.")] = "",
    side: Side = None,
    spacing: Spacing = None,
    water: Annotated[float, typer.Option(help="Attenuation of water [1/mm].")] = WATER,
    noise: Annotated[float | None, typer.Option(help="Of the picture [HU]; default: estimated.")] = None,
    seed: int = 0,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """One picture, or a series of slices, in Hounsfield units. A DICOM result belongs to the slice's patient."""
    (model, header), looks = load_network(checkpoint, RECIPE, working_device(device)), window_of(shown)
    scan, known = Scan(**header["scan"]), Geometry.of(geometry)
    simulated = scan.with_noise(snr, photons) if simulate else None
    if noise is not None and not 0 < noise < math.inf:
        raise ValueError(f"the noise of the picture must be > 0 HU, got {noise}; without --noise it is estimated")
    for number, (path, outs, series) in enumerate(jobs(source, out, overwrite=overwrite), 1):
        if is_sinogram(path):
            seen = from_sinogram(path, scan, known, item=item, transpose=transpose, photons=photons, water=water)
        else:
            seen = from_slice(path, simulated, side=side, spacing=spacing, seed=seed + number)
            if simulated is None and number == 1:
                warnings.warn(TEXTURE, stacklevel=1)
        level = float(noise_levels(seen.q)) if noise is None else noise / 1000
        if noise is None and level < LITTLE:
            warnings.warn(f"{path.name}: next to no noise was found, so little is changed; pass --noise", stacklevel=1)
        x = cleaned(model, seen.q, level)
        for name in outs:
            write_picture(name, to_hu(x), seen, shown=looks, series=series, number=number, overwrite=overwrite)
        size = f"{x.shape[-2]} x {x.shape[-1]} pixels of {seen.pixel:.3g} mm"
        print(f"wrote {', '.join(map(str, outs))}: {size}, noise of the FBP about {1000 * level:.0f} HU")
        if seen.truth is not None:
            print(f"PSNR {psnr(seen.q, seen.truth):.2f} dB of the FBP, {psnr(x, seen.truth):.2f} dB of the answer")


if __name__ == "__main__":
    start(app)
