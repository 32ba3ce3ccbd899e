"""The recipe denoise: nine photographs to learn from, and images of 1024 x 1024 in and out of distribution.

`tiny`: one draw of noise of each photograph; a tenth is tested. `large`: LoFi and networks of convolutions, trained on
crops of photographs with fresh noise of .2 for the same time, on four photographs of Set12 beside each other and on a
galaxy in radio light, a convergence map and a procedural chest. Draws docs/images/tiny.png.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.common import ROOT, mean, need, parser, report, set12, start
from pnp_lofi.checkpoint import load_checkpoint
from pnp_lofi.convergence import convergence
from pnp_lofi.dense import has_bfloat16
from pnp_lofi.examples import Crops, Noisy
from pnp_lofi.hounsfield import RANGE, window
from pnp_lofi.images import load_image, permissive_photographs
from pnp_lofi.metrics import psnr
from pnp_lofi.organs import chest
from pnp_lofi.recipes.denoise import Untold, build, denoised, draw_curves, noisy, seconds_a_step, tiny
from pnp_lofi.shared import SharedLoFi
from pnp_lofi.train import TrainSettings, train

NETWORKS = ("LoFi", "SharedLoFi", "DnCNN", "IRCNN", "U-Net", "DRU-Net")
SIDE, SIGMA = 1024, 0.2
CROP = 64
OBJECTS = {"LoFi": 16}  # crops of a step, others 8
DRAWS = 2  # of noise, of each image


def wide(data: Path) -> dict[str, list[Tensor]]:
    """Images of 1024 x 1024 in [0, 1], by kind; photographs are in distribution."""
    need(data / "radio")
    halves = [x[0] for x in set12(data).values() if x.shape[-1] == 512]
    photographs = [torch.cat([torch.cat(halves[k : k + 2], -1) for k in at], -2) for at in ((0, 2), (1, 3))]
    galaxy = unit(load_image(data / "radio" / "M31_1024.fits")[0])
    sky = (convergence(1, SIDE, 300 / 1024, seed=77)[0] / 0.2 + 0.2).clamp(0, 1)
    body = window(chest(1, SIDE, seed=77)[0], RANGE)
    return {"photographs": photographs, "galaxy": [galaxy], "convergence": [sky], "chest": [body]}


def unit(x: Tensor) -> Tensor:
    """(1, H, W) stretched to [0, 1] and 1024 x 1024."""
    x = interpolate(x[None], (SIDE, SIDE), mode="bilinear", antialias=True)[0]
    return (x - x.min()) / (x.max() - x.min())


def trained(name: str, path: Path, minutes: float) -> dict[str, Any]:
    """One network, unless it is there."""
    if not path.is_file():
        low = 0.95 if has_bfloat16(torch.device("cpu")) else 0.0
        told, ours = name == "SharedLoFi", name in ("LoFi", "SharedLoFi")
        noise = Noisy(Crops(list(permissive_photographs()), CROP, OBJECTS.get(name, 8)), SIGMA, SIGMA)
        source = noise if told else Untold(noise)
        settings = TrainSettings(1, 1024, 1, 2e-3 if ours else 1e-3, weight=0.0, low_precision=low)
        torch.manual_seed(0)
        model = build(name, "small", 1, told=told)
        steps = int(60 * minutes / seconds_a_step(model, source, replace(settings, steps=1000)))
        train(model, source, replace(settings, steps=steps), path, progress=False)
    model, header = load_checkpoint(path)
    return {"parameters": sum(p.numel() for p in model.parameters()), "steps": header["settings"]["steps"]}


def large(folder: Path, data: Path, minutes: float) -> dict[str, Any]:
    found: dict[str, Any] = {"minutes": minutes, "sigma": SIGMA, "side": SIDE, "networks": {}}
    images = wide(data)
    found["noisy"] = {kind: measured(None, each) for kind, each in images.items()}
    for name in NETWORKS:
        about = trained(name, folder / f"{name}.safetensors", minutes)
        model = load_checkpoint(folder / f"{name}.safetensors")[0]
        found["networks"][name] = about | {"psnr": {kind: measured(model, each) for kind, each in images.items()}}
        print(name, found["networks"][name], flush=True)
    return found


def measured(model: Any, images: list[Tensor]) -> float:
    """PSNR [dB], range 1, mean over images and draws of noise; without a model, of what is seen."""
    each, told = [], isinstance(model, SharedLoFi)
    for x in images:
        for seed in range(DRAWS):
            q = noisy(x, SIGMA, seed)
            each.append(psnr(q if model is None else denoised(model, q, SIGMA, told), x, 1.0))
    return mean(each)


def main() -> None:
    made = parser(__doc__, "denoising", data=True)
    made.add_argument(
        "--work", type=Path, default=Path("denoising"), help="folder of checkpoints; those that are there are kept"
    )
    made.add_argument("--minutes", type=float, default=4.0, help="that a network of `large` is trained for")
    args = start(made)
    (args.work / "large").mkdir(parents=True, exist_ok=True)
    if not (args.work / "tiny" / "tiny.png").is_file():
        tiny(args.work / "tiny", resume=True)
    found = json.loads((args.work / "tiny" / "tiny.json").read_text())
    draw_curves(found["curves"], ROOT / "docs" / "images" / "tiny.png")
    report("denoising", {"tiny": found, "large": large(args.work / "large", args.data, args.minutes)}, args.results)


if __name__ == "__main__":
    main()
