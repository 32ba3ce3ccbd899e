"""Inpainting Set12 from 30 % of its pixels, exact data: LoFi-ADMM untuned, and deepinv's TV tuned for the set.

TV is deepinv's TVDenoiser in the same ADMM: strengths `ths` and penalties `alpha` are searched on central crops of all
images, the best few then on the whole images, and the best of these is shown. SSIM is deepinv's.
"""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from deepinv.loss.metric import SSIM
from deepinv.models import TVDenoiser
from torch import Tensor

from benchmarks.common import mean, parser, report, set12, start
from pnp_lofi.admm import ADMM
from pnp_lofi.metrics import psnr
from pnp_lofi.operators import Mask, random_mask
from pnp_lofi.priors import LoFiPrior

KEEP, SEED = 0.3, 0
ITERATIONS = 60  # of LoFi, as `pnp-lofi solve inpaint`
CROP = 128  # side of the crops that the grid is searched on [pixel]
STRENGTHS = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)  # ths, the TV denoiser's threshold [units of x]
PENALTIES = (0.0005, 0.002, 0.01, 0.05)  # alpha; alpha ths is what weighs TV against the data
TV_ITERATIONS, TV_INNER, TV_TOL = 100, 30, 1e-4
FINALISTS = 3  # points of the grid that run on the whole images
EXACT = 0.0  # sigma_n, as `pnp-lofi solve inpaint` passes it
GOAL = 2.0  # dB over TV
Solve = Callable[[Mask, Tensor], Tensor]


def lofi(prior: str, sigma_n: float | None = EXACT) -> Solve:
    """What `pnp-lofi solve inpaint` runs; with None the noise level is estimated."""
    network = LoFiPrior(prior, precision="auto")
    return lambda op, y: ADMM(op, network, sigma_n=sigma_n, max_iter=ITERATIONS)(y)


def total_variation(ths: float, alpha: float) -> Solve:
    """A new denoiser for each image: it restarts from where its last call ended."""

    def solve(op: Mask, y: Tensor) -> Tensor:
        prior = TVDenoiser(n_it_max=TV_INNER)
        return ADMM(op, prior, sigma_n=EXACT, sigma_d=ths, alpha=alpha, max_iter=TV_ITERATIONS, tol=TV_TOL)(y)

    return solve


def measure(images: dict[str, Tensor], solve: Solve, *, crop: int | None = None) -> dict[str, Any]:
    """PSNR (range 1), SSIM and seconds, the mean over the images and each."""
    found: list[dict[str, Any]] = []
    for name, whole in images.items():
        mask, x = random_mask(whole.shape[-2:], KEEP, SEED), whole
        if crop is not None:
            mask, x = _centre(mask, crop), _centre(whole, crop)
        op = Mask(mask)
        begin = time.perf_counter()
        with torch.no_grad():
            answer = solve(op, op.A(x))
        seconds = time.perf_counter() - begin
        ssim = float(SSIM()(answer, x))
        found.append({"image": name, "psnr": psnr(answer, x, 1.0), "ssim": ssim, "seconds": seconds})
    return {key: mean([row[key] for row in found]) for key in ("psnr", "ssim", "seconds")} | {"images": found}


def search(images: dict[str, Tensor]) -> list[dict[str, float]]:
    """The grid on crops, best first."""
    grid = []
    for ths, alpha in itertools.product(STRENGTHS, PENALTIES):
        found = measure(images, total_variation(ths, alpha), crop=CROP)
        grid.append({"ths": ths, "alpha": alpha, "psnr": found["psnr"], "seconds": found["seconds"]})
        print(f"TV, crops: ths {ths:g}, alpha {alpha:g}: {found['psnr']:.2f} dB", flush=True)
    return sorted(grid, key=lambda point: -point["psnr"])


def _centre(x: Tensor, side: int) -> Tensor:
    top, left = ((n - side) // 2 for n in x.shape[-2:])
    return x[..., top : top + side, left : left + side]


def main() -> None:
    made = parser(__doc__, "inpaint", data=True)
    made.add_argument("--prior", default="natural", help="shipped name or checkpoint")
    made.add_argument("--quick", action="store_true", help="three images only")
    made.add_argument("--tv", type=float, nargs=2, metavar=("THS", "ALPHA"), help="skip the search")
    args = start(made)
    images = set12(args.data, 3 if args.quick else None)
    ours = measure(images, lofi(args.prior))
    estimated = measure(images, lofi(args.prior, None))
    print(f"LoFi-ADMM: {ours['psnr']:.2f} dB; sigma estimated: {estimated['psnr']:.2f} dB", flush=True)
    grid = [] if args.tv else search(images)
    points = [tuple(args.tv)] if args.tv else [(p["ths"], p["alpha"]) for p in grid[:FINALISTS]]
    finals = []
    for ths, alpha in points:
        finals.append({"ths": ths, "alpha": alpha} | measure(images, total_variation(ths, alpha)))
        print(f"TV, whole images: ths {ths:g}, alpha {alpha:g}: {finals[-1]['psnr']:.2f} dB", flush=True)
    best = max(finals, key=lambda found: found["psnr"])
    payload: dict[str, Any] = {"prior": Path(args.prior).name, "count": len(images), "keep": KEEP, "seed": SEED}
    payload |= {"lofi": ours, "lofi_estimated": estimated, "tv": best, "gain": ours["psnr"] - best["psnr"]}
    payload |= {"tv_grid_on_crops": grid, "tv_finalists": finals, "tv_iterations": [TV_ITERATIONS, TV_INNER]}
    payload |= {"goal": GOAL, "passes": payload["gain"] >= GOAL}
    report("inpaint", payload, args.results)


if __name__ == "__main__":
    main()
