"""Denoising Set12: PSNR in float32 and bfloat16, and seconds beside deepinv's network denoisers.

Noise is seeded per image and not clipped; PSNR has range 1. The levels include the one below which LoFiPrior's "auto"
keeps float32. DnCNN and DRUNet run with random weights: only their seconds are measured.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepinv.models import Denoiser, DnCNN, DRUNet
from torch import Tensor

from benchmarks.common import mean, parser, report, set12, start, timed
from pnp_lofi.metrics import psnr
from pnp_lofi.priors import LoFiPrior
from pnp_lofi.priors.lofi import BF16_FLOOR
from pnp_lofi.shared import SharedLoFi

LEVELS = {"15/255": 15 / 255, "25/255": 25 / 255, "50/255": 50 / 255, f"{BF16_FLOOR:g}": BF16_FLOOR}
SIDE = 512  # of the image that is timed [pixel]
SEED = 0
ALLOWED = 0.01  # loss by bfloat16 [dB]
GOAL = {"25/255": 28.8}  # [dB]
# Set12 means [dB]
REFERENCE = {
    "BM3D": {
        "15/255": 32.37, "25/255": 29.97, "50/255": 26.72,
        "source": "published Set12 means",
    },
    "DnCNN-S-25": {
        "25/255": 30.38,
        "source": "the authors' weights on draws of ours, measured once by this project",
    },
}  # fmt: skip


def noisy(x: Tensor, sigma: float) -> Tensor:
    return x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED))


@torch.no_grad()
def quality(prior: str, images: dict[str, Tensor]) -> list[dict[str, Any]]:
    """A row per noise level."""
    networks = {precision: LoFiPrior(prior, precision=precision) for precision in ("float32", "bfloat16")}
    rows = []
    for label, sigma in LEVELS.items():
        found = {
            precision: {name: psnr(network(noisy(x, sigma), sigma), x, 1.0) for name, x in images.items()}
            for precision, network in networks.items()
        }
        loss = [found["float32"][name] - found["bfloat16"][name] for name in images]
        row = {"sigma": label, "float32": mean([*found["float32"].values()])}
        row |= {"bfloat16": mean([*found["bfloat16"].values()]), "loss": mean(loss), "largest_loss": max(loss)}
        row |= {name: values.get(label) for name, values in REFERENCE.items()}
        rows.append(row | {"goal": GOAL.get(label), "images": found})
    return rows


@torch.no_grad()
def symmetry(prior: str, images: dict[str, Tensor]) -> dict[str, Any]:
    """What local networks promise and what they are bad at, at 25/255: turns by 90 degrees, and the border."""
    network, sigma = LoFiPrior(prior), LEVELS["25/255"]
    margin = network.model.reach if isinstance(network.model, SharedLoFi) else network.model.geometry.margin((256, 256))
    turned, border, interior = [], [], []
    for x in images.values():
        y = noisy(x, sigma)
        out = network(y, sigma)
        back = network(y.rot90(1, (-2, -1)), sigma).rot90(-1, (-2, -1))
        turned.append(psnr(back, x, 1.0) - psnr(out, x, 1.0))
        error = (out - x).square()
        inner = error[..., margin:-margin, margin:-margin]
        interior.append(float(inner.mean()))
        border.append(float((error.sum() - inner.sum()) / (error.numel() - inner.numel())))
    largest = max(turned, key=abs)
    return {"margin": margin, "rotation_db": mean(turned), "largest_rotation_db": largest,
            "border_over_interior": (mean(border) / mean(interior)) ** 0.5}  # fmt: skip


@torch.no_grad()
def speed(prior: str, repeats: int) -> list[dict[str, Any]]:
    """A row per network: seconds for one 512 x 512 image."""
    x = torch.rand((1, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(SEED))
    networks: dict[str, Denoiser] = {
        "LoFi, float32": LoFiPrior(prior, precision="float32"),
        "LoFi, bfloat16": LoFiPrior(prior, precision="bfloat16"),
        "DnCNN (deepinv)": DnCNN(in_channels=1, out_channels=1, pretrained=None).eval(),
        "DRUNet (deepinv)": DRUNet(in_channels=1, out_channels=1, pretrained=None).eval(),
    }
    rows = []
    for name, network in networks.items():
        seconds = timed(partial(network, x, 25 / 255), repeats=repeats)
        parameters = sum(p.numel() for p in network.parameters())
        rows.append({"network": name, "parameters": parameters, "seconds": seconds})
    for row in rows:
        row["over_float32"], row["over_bfloat16"] = (row["seconds"] / rows[k]["seconds"] for k in (0, 1))
    return rows


def main() -> None:
    made = parser(__doc__, "denoise", data=True)
    made.add_argument("--prior", default="natural", help="shipped name or checkpoint")
    made.add_argument("--images", type=int, help="only the first so many")
    made.add_argument("--repeats", type=int, default=3, help="timed calls; the fastest counts")
    args = start(made)
    images = set12(args.data, args.images)
    rows = quality(args.prior, images)
    payload = {"prior": Path(args.prior).name, "images": len(images), "side": SIDE, "allowed_loss": ALLOWED}
    payload |= {"quality": rows, "speed": speed(args.prior, args.repeats), "reference": REFERENCE}
    payload["symmetry"] = symmetry(args.prior, images)
    payload["passes"] = all(row["loss"] < ALLOWED and row["float32"] >= (row["goal"] or 0) for row in rows)
    report("denoise", payload, args.results)


if __name__ == "__main__":
    main()
