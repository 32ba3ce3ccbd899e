"""From visibilities to a picture of the sky: what `pnp-lofi solve radio` does."""

import os
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepinv.models import Denoiser
from torch import Tensor

from pnp_lofi.admm import ADMM
from pnp_lofi.beam import Beam
from pnp_lofi.clean import clean
from pnp_lofi.figures import Panel, save_figure
from pnp_lofi.fits import sky_header
from pnp_lofi.metrics import psnr, snr
from pnp_lofi.observation import Observation, read_observation
from pnp_lofi.operators import NUFFT, StreamedNUFFT, uv_radians, w_phase
from pnp_lofi.posterior import FEWEST, Posterior
from pnp_lofi.primary_beam import CUTOFF
from pnp_lofi.priors import LoFiPrior
from pnp_lofi.radio_products import beams_of, output_paths, write_pictures
from pnp_lofi.radio_simulation import simulate as simulate  # was here once
from pnp_lofi.resumable import run_file, solve_resumably
from pnp_lofi.solution import Solution
from pnp_lofi.uncertainty import Uncertainty

SIZE = 512  # side of an image where nothing says otherwise [pixel]
W_WARNING = 0.5  # neglected w phase at the image's edge [rad] from which on we say so
STRETCH = 300.0  # of asinh in pictures of the sky, over the peak
ITERATIONS, CLEAN_ITERATIONS = 50, 10_000  # at most, where nothing says otherwise
CLEAN = "Hogbom CLEAN, a baseline"


def measurement(obs: Observation, shape: tuple[int, int], *, cell: float | None = None) -> tuple[NUFFT, Tensor]:
    """The operator from x [Jy/pixel] to whitened visibilities, and those visibilities.

    Weights are scaled to a mean of one unless they are absolute, then the noise is 1 per component.

    :returns: the operator and y, (1, 1, M) complex64.
    """
    good = obs.good()
    weight = torch.as_tensor(good.weight, dtype=torch.float64)
    uv = uv_radians(torch.as_tensor(good.uvw), torch.as_tensor(good.frequency), obs.cell if cell is None else cell)
    pixels = shape[0] * shape[1]
    weight = weight * pixels if obs.absolute_weights else weight / weight.mean()
    op = NUFFT(shape, uv, weight, sigma=1.0 if obs.absolute_weights else None)
    _warn_of_w(good, shape, obs.cell if cell is None else cell)
    vis = torch.as_tensor(good.vis.astype(np.complex64))[None, None] / pixels**0.5
    return op, op.whiten(vis)


def _warn_of_w(obs: Observation, shape: tuple[int, int], cell: float) -> None:
    if obs.uvw.shape[1] < 3:
        return
    warn_of_w(*w_phase(torch.as_tensor(obs.uvw), float(np.max(obs.frequency)), cell, shape), stacklevel=4)


def warn_of_w(edge: float, corner: float, *, stacklevel: int = 2) -> None:
    """Warn if the neglected w phase is large at the image's edge [rad]; it is told for the corner as well."""
    if edge > W_WARNING:
        warnings.warn(
            f"the w-term is neglected: its phase reaches {edge:.2f} rad at the image's edge ({corner:.2f} at the "
            "corner); sources out there are smeared. A smaller field is exact: shape, on the command line --size.",
            stacklevel=stacklevel,
        )


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
    **solver: Any,
) -> RadioImage:
    """Reconstruct a nonnegative sky and what a radio astronomer looks at beside it.

    :param torch.Tensor truth: to measure against.
    :param Path run: file of an interrupted run to go on with, or to keep this one in until it is done.
    :param solver: keyword arguments of :class:`ADMM`.
    """
    solution = solve_resumably(ADMM(op, prior, nonneg=True, **solver), y, run, truth)
    residual = op.dirty(y - op.A(solution.x))
    return RadioImage(solution, op.dirty(y)[0, 0], residual[0, 0], op.dirty_noise(solution.metrics["sigma_n"]))


def clean_image(
    op: NUFFT | StreamedNUFFT,
    y: Tensor,
    *,
    truth: Tensor | None = None,
    sigma_n: float | None = None,
    max_iter: int = CLEAN_ITERATIONS,
) -> RadioImage:
    """What :func:`image` gives, by Hogbom's CLEAN: positive points, down to three times the noise.

    :param float sigma_n: noise per real component of y; default the operator's, else estimated from the residual.
    """
    begin = time.perf_counter()
    known = {} if sigma_n is None else {"noise": op.dirty_noise(sigma_n)}
    found = clean(op, y, nonneg=True, max_iter=max_iter, **known)
    x, noise = found.model[None, None], float(found.noise or 0.0)
    left = y - op.A(x)
    residual = float((left.abs().square().mean() / (2 if left.is_complex() else 1)).sqrt())
    metrics = {"sigma_n": noise / op.dirty_noise(1.0), "residual": residual, "threshold_jy_per_beam": found.threshold,
               "stopped": found.reason, "seconds": time.perf_counter() - begin}  # fmt: skip
    if truth is not None:
        metrics |= {"snr": snr(x, truth), "psnr": psnr(x, truth)}
    if found.status == "diverged":
        warnings.warn(f"CLEAN diverged: {found.reason}", stacklevel=2)
    status = "converged" if found.status in ("noise", "relative") else found.status
    solution = Solution(x, status, found.iterations, [], metrics)  # type: ignore[arg-type]
    return RadioImage(solution, op.dirty(y)[0, 0], op.dirty(left)[0, 0], noise, CLEAN)


def image_file(
    observation: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    size: int | None = None,
    cell: float | None = None,
    prior: str = "radio",
    sigma: float | None = None,
    iterations: int | None = None,
    precision: Any = "float32",
    error_bars: int | None = None,
    beam: Beam | None = None,
    primary_beam: str | float | None = None,
    pb_cutoff: float = CUTOFF,
    clean: bool = False,
    selection: dict[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Image OBS.h5: writes OUT.fits with _dirty, _residual, _psf, _restored beside it, OUT.png and OUT_restored.png.

    :param int size: side of the image [pixel]; default the truth's, else 512.
    :param float cell: pixel size [arcsec]; default the observation's.
    :param float sigma: noise per real component of the whitened data; default from the weights, else estimated.
    :param int iterations: at most; default 50, of CLEAN 10,000.
    :param int error_bars: draws from the posterior, at least 8, for OUT_std.fits; None: no error bars.
    :param Beam beam: to restore with; default: fitted to the dirty beam.
    :param primary_beam: "meerkat", "vla", a file, or a width [deg]: writes OUT_pb.fits and the restored image divided
        by it, OUT_pbcor.fits, blank where it is below ``pb_cutoff``.
    :param bool clean: by Hogbom's CLEAN instead, a baseline; the prior is not used.
    :param dict selection: field, spw, column of a MeasurementSet, see
        :func:`~pnp_lofi.visibilities.open_visibilities`.
    :param bool resume: go on with OUT.fits.run, which an interrupted run leaves.
    :returns: what was run and its figures.
    """
    _check(error_bars, sigma, size, clean, resume)
    unasked = ([] if error_bars is not None else ["_std"]) + ([] if primary_beam is not None else ["_pb", "_pbcor"])
    paths = output_paths(out, unasked, overwrite=overwrite)
    run = None if clean else run_file(paths[""], resume=resume, overwrite=overwrite)
    network = None if clean else LoFiPrior(prior, precision=precision)
    obs = read_observation(observation, **selection or {})
    shape = (size, size) if size else obs.truth.shape if obs.truth is not None else (SIZE, SIZE)
    fits_truth = obs.truth is not None and obs.truth.shape == shape and cell in (None, obs.cell)
    truth = torch.as_tensor(obs.truth)[None, None] if fits_truth else None
    op, y = measurement(obs, shape, cell=cell)
    cell, frequency = obs.cell if cell is None else cell, float(np.mean(obs.good().frequency))
    beams = beams_of(op, cell, frequency, beam=beam, primary=primary_beam, cutoff=pb_cutoff)
    bars = None
    most = iterations if iterations is not None else CLEAN_ITERATIONS if clean else ITERATIONS
    if network is None:
        found = clean_image(op, y, sigma_n=sigma, max_iter=most, truth=truth)
    else:
        found = image(op, y, network, sigma_n=sigma, max_iter=most, progress=True, truth=truth, run=run)
        bars = error_bars_of(op, y, network, found.solution, error_bars) if error_bars is not None else None
    pictures = {"_dirty": found.dirty} | beams.products(found.solution.x[0, 0], found.residual, cell)
    if bars is not None:
        pictures["_std"] = bars.std[0, 0]
    header = partial(sky_header, shape, cell, obs.phase_centre, frequency=frequency, TELESCOP=obs.telescope)
    write_pictures(paths, pictures, header, beams.beam, noise=found.noise, title=found.method, overwrite=overwrite)
    panels = sky_panels(found, truth, bars)
    save_figure(paths["png"], panels, sky=True, title=obs.description[:120], overwrite=overwrite)
    report = {"observation": str(observation), "selection": selection or {}, "visibilities": y.shape[-1],
              "shape": list(shape), "cell_arcsec": cell, "frequency_hz": frequency, "method": found.method,
              "prior": None if clean else prior}  # fmt: skip
    return report | _figures(found) | beams.told() | ({} if bars is None else _told(bars))


def _check(error_bars: int | None, sigma: float | None, size: int | None, clean: bool, resume: bool) -> None:
    """What can be refused before anything is read."""
    if error_bars is not None and error_bars < FEWEST:
        raise ValueError(f"error bars need at least {FEWEST} draws, got {error_bars}; some 200 are good")
    if sigma is not None and not 0 < sigma < float("inf"):
        raise ValueError(f"sigma must be finite and > 0, got {sigma}; leave it out to have it estimated")
    if size is not None and size < 2:
        raise ValueError(f"--size must be at least 2 pixels, got {size}")
    if clean and (resume or error_bars is not None):
        raise ValueError(
            "CLEAN has no error bars and no run to resume; leave out --clean, or --error-bars and --resume"
        )


def _figures(found: RadioImage) -> dict[str, Any]:
    """How it came about, for the JSON."""
    solution, rms = found.solution, float(found.residual.square().mean().sqrt())
    stopped = {
        "converged": "the residuals are below the tolerance", "limit": f"{solution.iterations} iterations are used up",
        "diverged": "the residuals grew; the best image before is kept", "stopped": "stopped on the way",
    }[solution.status]  # fmt: skip
    return {"status": solution.status, "stopped": stopped, "iterations": solution.iterations,
            "flux_jy": float(solution.x.sum()), "residual_rms_jy_per_beam": rms,
            "noise_jy_per_beam": found.noise} | solution.metrics  # fmt: skip


def error_bars_of(
    op: NUFFT | StreamedNUFFT, y: Tensor, prior: Denoiser, solution: Solution, samples: int
) -> Uncertainty:
    """Error bars of a reconstruction, at its noise level, with a progress bar; std is in its units [Jy/pixel]."""
    sigma_n = solution.metrics["sigma_n"]
    sampler = Posterior(op, prior, sigma_n=sigma_n, samples=samples, nonneg=True, progress=True)
    return sampler.sample(y, x0=solution.x)


def _told(bars: Uncertainty) -> dict[str, Any]:
    return {"error_bar_draws": bars.count, "error_bar_independent_draws": float(bars.ess.min()),
            "error_bar_rhat": float(torch.maximum(bars.rhat, bars.rhat_std).max()),
            "error_bar_median": float(bars.std.median()), "error_bar_seconds": bars.metrics["seconds"]}  # fmt: skip


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
