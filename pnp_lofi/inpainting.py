"""Filling in missing pixels of an image file: what `pnp-lofi solve inpaint` does."""

import os
from pathlib import Path
from typing import Any

import torch

from pnp_lofi.admm import ADMM
from pnp_lofi.files import check_writable
from pnp_lofi.images import check_ending, load_image, save_image
from pnp_lofi.metrics import psnr
from pnp_lofi.operators import Mask, random_mask
from pnp_lofi.priors import LoFiPrior
from pnp_lofi.resumable import run_file, solve_resumably


def inpaint_file(
    image: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    keep: float | None = None,
    mask: str | os.PathLike[str] | None = None,
    prior: str = "natural",
    sigma: float | None = None,
    iterations: int = 50,
    precision: Any = "auto",
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Inpaint a file and write the result.

    :param float keep: simulate: keep this part of the pixels; mask: file whose white pixels were measured.
    :param float sigma: noise of the measured pixels [units of the image]; None: they are exact.
    :param bool resume: go on with OUT.run, which an interrupted run leaves.
    :returns: what was run and its figures; PSNR where the whole image is known.
    """
    for path in (out, Path(out).with_suffix(".json")):
        check_writable(path, overwrite=overwrite)
    run = run_file(Path(out), resume=resume, overwrite=overwrite)
    network = LoFiPrior(prior, precision=precision)
    x = load_image(image)
    check_ending(out, x)
    if mask is None:
        kept = random_mask(x.shape[-2:], keep if keep is not None else 1.0, seed)
    else:
        kept = load_image(mask, grey=True)[0, 0] > 0.5
        if kept.shape != x.shape[-2:]:
            raise ValueError(
                f"the mask {mask} is {tuple(kept.shape)}, the image {tuple(x.shape[-2:])}; they must be of one size"
            )
    op = Mask(kept, sigma=sigma)
    y = op.A(x)
    if sigma is not None and mask is None:
        noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
        y = op.A(y + sigma * noise)
    solver = ADMM(op, network, sigma_n=sigma or 0.0, max_iter=iterations)
    solution = solve_resumably(solver, y, run)
    save_image(out, solution.x, overwrite=overwrite)
    report = {"image": str(image), "shape": list(x.shape), "kept": float(kept.float().mean()), "prior": prior,
              "status": solution.status, "iterations": solution.iterations} | solution.metrics  # fmt: skip
    if mask is None:
        report |= {"psnr": psnr(solution.x, x, 1.0), "psnr_range": 1.0}
    return report
