"""Peak memory of "natural" at growing image sizes: one denoising, and a few iterations of inpainting 30 %.

Each figure is the peak resident memory of a process of its own that loads a procedural image, torch and the network.
--full runs the default inpainting on the largest image to the end.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import parser, peak_memory_of, report, start
from benchmarks.inpaint import EXACT, ITERATIONS, KEEP, SEED
from pnp_lofi.admm import ADMM
from pnp_lofi.leaves import dead_leaves
from pnp_lofi.metrics import psnr
from pnp_lofi.operators import Mask, random_mask
from pnp_lofi.priors import LoFiPrior

SIDES = (256, 512, 1024, 2048)
IMAGE_SEED = 31_005  # held out: training uses seeds 0 and 1
SIGMA = 25 / 255
ALLOWED = 2048  # MB, at 2048 x 2048


def nothing(prior: str) -> None:
    """The price of the imports and the network alone."""
    LoFiPrior(prior)


@torch.no_grad()
def denoise(prior: str, path: str) -> dict[str, float]:
    x = _image(path)
    noisy = x + SIGMA * torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED))
    begin = time.perf_counter()
    answer = LoFiPrior(prior, precision="auto")(noisy, SIGMA)
    return {"seconds": time.perf_counter() - begin, "psnr": psnr(answer, x, 1.0)}


def inpaint(prior: str, path: str, iterations: int | None) -> dict[str, Any]:
    """A few iterations, or with None all that `pnp-lofi solve inpaint` does."""
    x = _image(path)
    op = Mask(random_mask(x.shape[-2:], KEEP, SEED))
    network = LoFiPrior(prior, precision="auto")
    solver = ADMM(op, network, max_iter=iterations or ITERATIONS, sigma_n=EXACT)
    begin = time.perf_counter()
    solution = solver.solve(op.A(x))
    found = {"seconds": time.perf_counter() - begin, "psnr": psnr(solution.x, x, 1.0)}
    return found | {"iterations": solution.iterations, "status": solution.status}


def _image(path: str) -> torch.Tensor:
    return torch.from_numpy(np.load(path))


def main() -> None:
    made = parser(__doc__, "memory")
    made.add_argument("--prior", default="natural", help="shipped name or checkpoint")
    made.add_argument("--sides", type=int, nargs="+", default=SIDES, help="of the images [pixel]")
    made.add_argument("--iterations", type=int, default=2, help="of inpainting")
    made.add_argument("--full", action="store_true", help="also the whole inpainting of the largest image")
    args = start(made)
    prior = str(Path(args.prior).resolve()) if Path(args.prior).is_file() else args.prior
    payload: dict[str, Any] = {"prior": Path(args.prior).name, "allowed_mb": ALLOWED, "keep": KEEP, "full": None}
    payload |= {"imports_mb": peak_memory_of(nothing, prior).peak_mb, "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        for side in sorted(args.sides):
            path = str(Path(folder) / f"{side}.npy")
            np.save(path, dead_leaves(1, side, seed=IMAGE_SEED).numpy())
            row: dict[str, Any] = {"side": side, "image_mb": 4 * side**2 / 2**20}
            runs = {"denoise": peak_memory_of(denoise, prior, path)}
            runs["inpaint"] = peak_memory_of(inpaint, prior, path, args.iterations)
            for task, (value, peak) in runs.items():
                row[task] = value | {"peak_memory_mb": peak}
            payload["rows"].append(row)
            print(f"{side}: {runs['denoise'].peak_mb:.0f} and {runs['inpaint'].peak_mb:.0f} MB", flush=True)
        if args.full:
            value, peak = peak_memory_of(inpaint, prior, path, None)
            payload["full"] = {"side": side, "peak_memory_mb": peak} | value
    runs_at_largest = [payload["rows"][-1][task]["peak_memory_mb"] for task in ("denoise", "inpaint")]
    whole = [payload["full"]["peak_memory_mb"]] if payload["full"] else []
    payload["passes"] = max(runs_at_largest + whole) < ALLOWED
    report("memory", payload, args.results)


if __name__ == "__main__":
    main()
