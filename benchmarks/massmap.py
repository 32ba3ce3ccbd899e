"""Mass maps: LoFi as shipped and a U-Net beside Kaiser-Squires and Wiener, on skies that none was trained on.

Procedural skies behind random surveys, kappaTNG behind the COSMOS mask, and the E and B modes of real COSMOS shear. The
skies and surveys of files are only measured on. The U-Net is a checkpoint of the recipe massmap (--unet); without one
its rows are left out. Draws docs/images/massmap.png and massmap_cosmos.png.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import ROOT, parser, report, start
from benchmarks.lensing import FILE_NOISE, PIXEL_COSMOS, PUBLISHED_OTHERS, SOURCE
from pnp_lofi.lensing_power import smooth
from pnp_lofi.mass_files import read_image, read_shear
from pnp_lofi.mass_maps import classical_maps, e_and_b, map_error, seen_maps, sky_power
from pnp_lofi.mass_scenes import Scene, scene_of, scenes, skies
from pnp_lofi.recipes.massmap import PIXEL, RECIPE, TESTED, answered, panels
from pnp_lofi.supervised import load_network

LEVELS = (0.08, 0.15, 0.22)
SEEDS = 3  # draws of the noise of the survey's maps


@torch.no_grad()
def rows_of(case: str, found: list[Scene], models: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each map, means over the scenes; and the maps of the first scene."""
    rows: dict[str, dict[str, list[float]]] = {}
    first: dict[str, Any] = {}
    for k, scene in enumerate(found):
        power = sky_power(scene.op.shape, PIXEL)
        maps = classical_maps(scene.op, scene.y, power)
        begin, seconds = time.perf_counter(), {}
        seen = seen_maps(scene.op, scene.y, power)
        inputs = time.perf_counter() - begin
        for name, model in models.items():
            begin = time.perf_counter()
            maps[name] = answered(model, seen)
            seconds[name] = inputs + time.perf_counter() - begin
        for name, x in maps.items():
            row = map_error(x, scene.kappa, scene.mask) | ({"seconds": seconds[name]} if name in seconds else {})
            for key, value in row.items():
                rows.setdefault(name, {}).setdefault(key, []).append(value)
        first = maps | {"truth": scene.kappa} if k == 0 else first
    means = [{"case": case, "map": name, "count": len(found)} | {key: float(np.mean(v)) for key, v in row.items()}
             for name, row in rows.items()]  # fmt: skip
    return means, first


def kappatng(folder: Path) -> dict[str, list[Scene]]:
    """The file's shear with its noise of 0.148, and noise drawn from the maps std1 and std2."""
    cosmos, truth = folder / "cosmos", folder / "ktng" / "ktng_cosmos_kappa360.fits"
    mask, e = cosmos / "cosmos_full_mask_0.29arcmin360.fits", folder / "ktng" / "ktng_cosmos_e360.fits"
    shear = read_shear(e, None, mask, [str(FILE_NOISE)])
    kappa = torch.from_numpy(read_image(truth)).float()[None, None]
    varied = read_shear(e, None, mask, [str(cosmos / "std1.fits"), str(cosmos / "std2.fits")]).survey
    drawn = scenes(kappa.expand(SEEDS, -1, -1, -1), PIXEL, (1.0, 1.0), varied, seed=TESTED)
    measured = scene_of(shear.survey, shear.gamma, kappa, PIXEL)
    return {f"kappaTNG, noise {FILE_NOISE:g} (the file)": [measured], "kappaTNG, noise of std1, std2": list(drawn)}


def cosmos_modes(folder: Path, model: Any, picture: Path) -> dict[str, float]:
    """rms of the E and B modes of real COSMOS shear on the mask."""
    files = [folder / f"cosmos_full_{name}_0.29arcmin360.fits" for name in ("e1", "e2", "mask")]
    shear = read_shear(*files, [str(folder / f"std{k}.fits") for k in (1, 2)])
    with torch.no_grad():
        maps = e_and_b(partial(answered, model), shear.gamma, shear.survey, PIXEL_COSMOS, 0)
    op = shear.survey.operator()
    e, b = op.eb(op.whiten(shear.gamma))
    maps |= {"E smoothed 6": smooth(e, 6.0), "B smoothed 6": smooth(b, 6.0)}
    named = {"E": "E mode, LoFi", "B": "B mode, LoFi", "E Wiener": "E mode, Wiener", "B Wiener": "B mode, Wiener"}
    panels(picture, {title: maps[name] * shear.survey.mask for name, title in named.items()}, overwrite=True)
    return {name: float(x[0, 0][shear.survey.mask].std()) for name, x in maps.items()}


def main() -> None:
    made = parser(__doc__, "massmap", data=True)
    made.add_argument("--checkpoint", default="massmap", help="of LoFi: shipped name or path")
    made.add_argument("--unet", type=Path, help="checkpoint of a U-Net, as the recipe massmap trains it")
    made.add_argument("--count", type=int, default=8, help="procedural skies of each noise")
    args = start(made)
    loaded = {"LoFi": load_network(args.checkpoint, RECIPE)} | (
        {"U-Net": load_network(args.unet, RECIPE)} if args.unet else {}
    )
    models, folder = {name: model for name, (model, _) in loaded.items()}, args.data / "lensing"
    rows: list[dict[str, Any]] = []
    for level in LEVELS:
        kappa, _ = skies("lognormal", args.count, 256, PIXEL, TESTED)
        drawn = list(scenes(kappa, PIXEL, (level, level), seed=TESTED))
        rows += rows_of(f"procedural, noise {level:g}", drawn, models)[0]
    payload: dict[str, Any] = {"networks": {
        name: {"parameters": sum(p.numel() for p in model.parameters()), "command": header["command"],
               "steps": header["settings"]["steps"]} for name, (model, header) in loaded.items()
    }}  # fmt: skip
    if folder.is_dir():
        for k, (case, found) in enumerate(kappatng(folder).items()):
            more, maps = rows_of(case, found, models)
            rows += more
            if k == 0:
                shown = {name: x for name, x in maps.items() if name != "KS"}
                panels(ROOT / "docs" / "images" / "massmap.png", shown, overwrite=True)
        payload["cosmos"] = cosmos_modes(folder / "cosmos", models["LoFi"], ROOT / "docs/images/massmap_cosmos.png")
    payload["rows"] = rows
    payload["quoted"] = {"r": {"KS + Gaussian": 0.57, "Wiener": 0.61} | PUBLISHED_OTHERS}
    payload["reference"] = {"Quoted": {"source": SOURCE}}
    report("massmap", payload, args.results)


if __name__ == "__main__":
    main()
