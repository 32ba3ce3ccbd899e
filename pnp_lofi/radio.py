"""From visibilities to the sky: by a prior, or by CLEAN."""

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepinv.models import Denoiser
from torch import Tensor

from pnp_lofi.admm import ADMM
from pnp_lofi.clean import clean
from pnp_lofi.figures import Panel
from pnp_lofi.metrics import psnr, snr
from pnp_lofi.noise import misfit_level
from pnp_lofi.operators import NUFFT, StreamedNUFFT
from pnp_lofi.posterior import Posterior
from pnp_lofi.radio_measurement import measurement as measurement
from pnp_lofi.resumable import solve_resumably
from pnp_lofi.solution import Solution
from pnp_lofi.uncertainty import Uncertainty

STRETCH = 300.0  # of asinh in pictures of the sky, over the peak
ITERATIONS, CLEAN_ITERATIONS = 200, 50_000  # at most, where nothing says otherwise
CLEAN = "Hogbom CLEAN, a baseline"


@dataclass(frozen=True)
class RadioImage:
    """:param Solution solution: x is the sky [Jy/pixel].
    :param torch.Tensor dirty: (H, W) dirty image [Jy/beam].
    :param torch.Tensor residual: (H, W) dirty image of y - A x [Jy/beam].
    :param float noise: its expected rms from the noise level [Jy/beam].
    :param str method: what found it.
    """

    solution: Solution
    dirty: Tensor
    residual: Tensor
    noise: float
    method: str = "LoFi-ADMM"


def image(
    op: NUFFT | StreamedNUFFT,
    y: Tensor,
    prior: Denoiser,
    *,
    truth: Tensor | None = None,
    run: Path | None = None,
    spread: float = 1.0,
    **solver: Any,
) -> RadioImage:
    """Reconstruct a nonnegative sky and what a radio astronomer looks at beside it.

    :param torch.Tensor truth: to measure against.
    :param Path run: file of an interrupted run to go on with, or to keep this one in until it is done.
    :param float spread: see :func:`pnp_lofi.clean.clean`.
    :param solver: keyword arguments of :class:`ADMM`.
    """
    solution = solve_resumably(ADMM(op, prior, nonneg=True, **solver), y, run, truth)
    residual, noise = op.dirty(y - op.A(solution.x)), op.dirty_noise(solution.metrics["sigma_n"]) * spread
    return RadioImage(solution, op.dirty(y)[0, 0], residual[0, 0], noise)


def clean_image(
    op: NUFFT | StreamedNUFFT,
    y: Tensor,
    *,
    truth: Tensor | None = None,
    sigma_n: float | None = None,
    spread: float = 1.0,
    max_iter: int = CLEAN_ITERATIONS,
) -> RadioImage:
    """What :func:`image` gives, by Hogbom's CLEAN: positive points, down to three times the noise.

    :param float sigma_n: mean noise per real component of y; default the operator's, else estimated.
    :param float spread: see :func:`pnp_lofi.clean.clean`.
    """
    begin = time.perf_counter()
    known = {} if sigma_n is None else {"noise": op.dirty_noise(sigma_n) * spread}
    found = clean(op, y, nonneg=True, max_iter=max_iter, spread=spread, **known)
    x, noise = found.model[None, None], float(found.noise or 0.0)
    level = noise / spread / op.dirty_noise(1.0)
    residual = misfit_level(op, y, x)
    metrics = {"sigma_n": level, "residual": residual, "misfit": residual / level if level else float("inf"),
               "threshold_jy_per_beam": found.threshold, "stopped": found.reason,
               "seconds": time.perf_counter() - begin}  # fmt: skip
    if truth is not None:
        metrics |= {"snr": snr(x, truth), "psnr": psnr(x, truth)}
    if found.status == "diverged":
        warnings.warn(f"CLEAN diverged: {found.reason}", stacklevel=2)
    status = "converged" if found.status in ("noise", "relative") else found.status
    solution = Solution(x, status, found.iterations, [], metrics)  # type: ignore[arg-type]
    return RadioImage(solution, op.dirty(y)[0, 0], op.dirty(y - op.A(x))[0, 0], noise, CLEAN)


def error_bars_of(
    op: NUFFT | StreamedNUFFT, y: Tensor, prior: Denoiser, solution: Solution, samples: int
) -> Uncertainty:
    """Error bars of a reconstruction, at its noise level, with a progress bar; std is in its units [Jy/pixel]."""
    sigma_n = solution.metrics["sigma_n"]
    sampler = Posterior(op, prior, sigma_n=sigma_n, samples=samples, nonneg=True)
    return sampler.sample(y, x0=solution.x)


def sky_panels(found: RadioImage, truth: Tensor | None = None, bars: Uncertainty | None = None) -> list[Panel]:
    """Dirty image, reconstruction on an asinh scale, residual on +-5 times the noise, error bars if drawn, and the
    truth if known."""
    x = found.solution.x[0, 0]
    peak = float(x.max() if truth is None else truth.max())
    stretch = STRETCH / peak if peak > 0 else 0.0
    panels = [
        Panel("dirty image", found.dirty, cmap="inferno", unit="Jy/beam"),
        Panel(f"{found.method} (asinh)", x, (0.0, peak), "inferno", stretch, "Jy/pixel"),
        Panel("residual", found.residual, (-5 * found.noise, 5 * found.noise), "RdBu_r", unit="Jy/beam, +-5 noise"),
    ]
    if bars is not None:
        panels.append(Panel("error bar (1 std)", bars.std[0, 0], cmap="viridis", unit="Jy/pixel"))
    if truth is not None:
        panels.append(Panel("truth (asinh)", truth[0, 0], (0.0, peak), "inferno", stretch, "Jy/pixel"))
    return panels
