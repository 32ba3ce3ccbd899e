"""From visibilities to a picture of the sky: what `pnp-lofi simulate radio` and `solve radio` do."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepinv.models import Denoiser
from torch import Tensor

from pnp_lofi.admm import ADMM
from pnp_lofi.figures import Panel, save_figure
from pnp_lofi.files import check_writable
from pnp_lofi.fits import sky_header, write_fits
from pnp_lofi.observation import Observation, read_observation
from pnp_lofi.operators import NUFFT, StreamedNUFFT, default_cell, meerkat_uvw, uv_radians, w_phase
from pnp_lofi.posterior import FEWEST, Posterior
from pnp_lofi.priors import LoFiPrior
from pnp_lofi.resumable import run_file, solve_resumably
from pnp_lofi.solution import Solution
from pnp_lofi.uncertainty import Uncertainty

SIZE = 512  # side of an image where nothing says otherwise [pixel]
W_WARNING = 0.5  # neglected w phase at the image's edge [rad] from which on we say so
STRETCH = 300.0  # of asinh in pictures of the sky, over the peak


def simulate(
    sky: np.ndarray,
    *,
    hours: float = 2.0,
    snr: float = 30.0,
    declination: float = -30.0,
    frequency: float = 1.4e9,
    integration: float = 240.0,
    min_elevation: float = 15.0,
    cell: float | None = None,
    right_ascension: float = 0.0,
    seed: int = 0,
) -> Observation:
    """Observe a sky with MeerKAT's 64 antennas.

    :param numpy.ndarray sky: (H, W) [Jy/pixel].
    :param float hours: length of the track about transit [h].
    :param float snr: 20 log10(||vis|| / ||noise||) [dB].
    :param float declination, right_ascension: of the phase centre [deg].
    :param float frequency: [Hz]; float integration: of one dump [s]; float min_elevation: [deg].
    :param float cell: pixel size [arcsec]; default: the longest baseline falls on the Nyquist frequency.
    :returns: an observation whose weights are 1/sigma^2 of the noise that was added, and whose truth is the sky.
    """
    if not np.isfinite(snr):
        raise ValueError(f"snr must be finite [dB], got {snr}")
    uvw = meerkat_uvw(hours, declination=declination, integration=integration, min_elevation=min_elevation)
    cell = default_cell(uvw, frequency) if cell is None else cell
    image = torch.as_tensor(np.asarray(sky, np.float64))[None, None]
    op = NUFFT(image.shape[-2:], uv_radians(uvw, frequency, cell))
    vis = op.A(image)[0, 0] * image[0, 0].numel() ** 0.5
    sigma = float(10 ** (-snr / 20) * vis.abs().square().mean().sqrt() / 2**0.5)
    if not sigma > 0:
        raise ValueError("the sky is zero everywhere; there is nothing to observe")
    generator = torch.Generator().manual_seed(seed)
    vis = vis + sigma * torch.complex(*torch.randn(2, len(vis), dtype=torch.float64, generator=generator))
    rows = len(vis)
    return Observation(
        uvw.numpy(), np.asarray(frequency), vis.numpy(), np.full(rows, sigma**-2), np.zeros(rows, bool), cell,
        (right_ascension, declination), "MeerKAT", f"simulated, {hours} h, {snr} dB, seed {seed}",
        np.asarray(sky, np.float32), absolute_weights=True,
    )  # fmt: skip


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
    """

    solution: Solution
    dirty: Tensor
    residual: Tensor
    noise: float


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


def image_file(
    observation: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    size: int | None = None,
    cell: float | None = None,
    prior: str = "radio",
    sigma: float | None = None,
    iterations: int = 50,
    precision: Any = "float32",
    error_bars: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Image OBS.h5: writes OUT.fits, OUT_dirty.fits, OUT_residual.fits and OUT.png, with error bars OUT_std.fits.

    :param int size: side of the image [pixel]; default the truth's, else 512.
    :param float cell: pixel size [arcsec]; default the observation's.
    :param float sigma: noise per real component of the whitened data; default from the weights, else estimated.
    :param bool resume: go on with OUT.fits.run, which an interrupted run leaves.
    :param int error_bars: draws from the posterior, at least 8; None: no error bars.
    :returns: what was run and its figures.
    """
    if error_bars is not None and error_bars < FEWEST:
        raise ValueError(f"error bars need at least {FEWEST} draws, got {error_bars}; some 200 are good")
    out = Path(out)
    if out.suffix.lower() not in (".fits", ".fit"):
        raise ValueError(f"the output is a FITS file, name it .fits; got {out}")
    kinds = {"": "Jy/pixel", "_dirty": "Jy/beam", "_residual": "Jy/beam"}
    if error_bars is not None:
        kinds["_std"] = "Jy/pixel"
    paths = {kind: out.with_name(f"{out.stem}{kind}{out.suffix}") for kind in kinds}
    for path in (*paths.values(), out.with_suffix(".png"), out.with_suffix(".json")):
        check_writable(path, overwrite=overwrite)
    run = run_file(out, resume=resume, overwrite=overwrite)
    if sigma is not None and not 0 < sigma < float("inf"):
        raise ValueError(f"sigma must be finite and > 0, got {sigma}; leave it out to have it estimated")
    network = LoFiPrior(prior, precision=precision)
    obs = read_observation(observation)
    if size is not None and size < 2:
        raise ValueError(f"--size must be at least 2 pixels, got {size}")
    shape = (size, size) if size else obs.truth.shape if obs.truth is not None else (SIZE, SIZE)
    fits_truth = obs.truth is not None and obs.truth.shape == shape and cell in (None, obs.cell)
    truth = torch.as_tensor(obs.truth)[None, None] if fits_truth else None
    op, y = measurement(obs, shape, cell=cell)
    found = image(op, y, network, sigma_n=sigma, max_iter=iterations, progress=True, truth=truth, run=run)
    pictures = {"": found.solution.x[0, 0], "_dirty": found.dirty, "_residual": found.residual}
    bars = error_bars_of(op, y, network, found.solution, error_bars) if error_bars is not None else None
    if bars is not None:
        pictures["_std"] = bars.std[0, 0]
    for kind, unit in kinds.items():
        header = sky_header(shape, cell or obs.cell, obs.phase_centre, unit, TELESCOP=obs.telescope)
        write_fits(paths[kind], pictures[kind].numpy(), header, overwrite=overwrite)
    panels = sky_panels(found, truth, bars)
    save_figure(out.with_suffix(".png"), panels, sky=True, title=obs.description[:120], overwrite=overwrite)
    rms = float(found.residual.square().mean().sqrt())
    told = found.solution.metrics | ({} if bars is None else _told(bars))
    return {"observation": str(observation), "visibilities": y.shape[-1], "shape": list(shape),
            "cell_arcsec": cell or obs.cell, "prior": prior, "status": found.solution.status,
            "iterations": found.solution.iterations, "flux_jy": float(found.solution.x.sum()),
            "residual_rms_jy_per_beam": rms, "noise_jy_per_beam": found.noise} | told  # fmt: skip


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
        Panel("LoFi-ADMM (asinh)", x, (0.0, peak), "inferno", stretch, "Jy/pixel"),
        Panel("residual", found.residual, (-5 * found.noise, 5 * found.noise), "RdBu_r", unit="Jy/beam, +-5 noise"),
    ]
    if bars is not None:
        panels.append(Panel("error bar (1 std)", bars.std[0, 0], cmap="viridis", unit="Jy/pixel"))
    if truth is not None:
        panels.append(Panel("truth (asinh)", truth[0, 0], (0.0, peak), "inferno", stretch, "Jy/pixel"))
    return panels
