"""From a file of visibilities to pictures of the sky: what `pnp-lofi solve radio` does."""

import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pnp_lofi.beam import Beam
from pnp_lofi.field_of_view import check_field
from pnp_lofi.figures import save_figure
from pnp_lofi.fits import read_grid, sky_header
from pnp_lofi.operators.uv import ARCSEC
from pnp_lofi.posterior import FEWEST
from pnp_lofi.primary_beam import CUTOFF
from pnp_lofi.priors import LoFiPrior
from pnp_lofi.radio import CLEAN_ITERATIONS, ITERATIONS, RadioImage, clean_image, error_bars_of, image, sky_panels
from pnp_lofi.radio_chunks import NATURAL, View, Weighting
from pnp_lofi.radio_gridding import Gridded, grid, major_cycles
from pnp_lofi.radio_measurement import warn_of_w
from pnp_lofi.radio_products import beams_of, output_paths, write_pictures
from pnp_lofi.resumable import run_file
from pnp_lofi.uncertainty import Uncertainty
from pnp_lofi.visibilities import Visibilities, open_visibilities

PIXEL = 200  # bytes of memory for each, measured at 4096 x 4096
SIZE = 512  # side of an image where nothing says otherwise [pixel]
LOUD = 2.0  # times the noise: a residual above it is warned of
OFF_CENTRE = 0.01  # pixels that the centre of --like may lie off


def image_file(
    observation: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    size: int | None = None,
    cell: float | None = None,
    super_resolution: float | None = None,
    like: str | os.PathLike[str] | None = None,
    weighting: Weighting = NATURAL,
    prior: str = "radio",
    sigma: float | None = None,
    iterations: int | None = None,
    precision: Any = "float32",
    error_bars: int | None = None,
    beam: Beam | None = None,
    primary_beam: str | float | None = None,
    pb_cutoff: float = CUTOFF,
    clean: bool = False,
    wide_field: bool = False,
    selection: dict[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Image a file: writes OUT.fits with _dirty, _residual, _psf, _restored beside it, OUT.png and OUT_restored.png.

    Visibilities are read in slices; the memory is that of the image.

    :param int size: side of the image [pixel]; default the truth's, else 512.
    :param float cell: pixel size [arcsec]; default the file's, else the one of ``super_resolution=1``.
    :param float super_resolution: pixels finer by this factor, 1 to 2.5, than those that put the longest baseline on
        the Nyquist frequency.
    :param like: FITS image of the same phase centre whose size and cell are taken.
    :param Weighting weighting: default natural, with which what is solved is the likelihood.
    :param float sigma: noise per real component of a visibility of mean weight [Jy]; default from the weights, else
        estimated.
    :param int iterations: at most; default 200, of CLEAN 50,000; in each of the major cycles of ``wide_field``.
    :param int error_bars: draws from the posterior, at least 8, for OUT_std.fits; None: no error bars.
    :param Beam beam: to restore with; default: fitted to the dirty beam.
    :param primary_beam: "meerkat", "vla", a file, or a width [deg]: writes OUT_pb.fits and the restored image divided
        by it, OUT_pbcor.fits, blank where it is below ``pb_cutoff``.
    :param bool clean: by Hogbom's CLEAN instead, a baseline; the prior is not used.
    :param bool wide_field: with the w-term, see :func:`pnp_lofi.radio_gridding.major_cycles`; needs ducc0.
    :param dict selection: field, spw, column of a MeasurementSet, see
        :func:`~pnp_lofi.visibilities.open_visibilities`.
    :param bool resume: go on with OUT.fits.run, which an interrupted run leaves.
    :returns: what was run, its figures and the seconds of each stage.
    """
    _check(error_bars, sigma, size, iterations, clean, wide_field, resume)
    unasked = ([] if error_bars is not None else ["_std"]) + ([] if primary_beam is not None else ["_pb", "_pbcor"])
    paths = output_paths(out, unasked, overwrite=overwrite)
    run = None if clean or wide_field else run_file(paths[""], resume=resume, overwrite=overwrite)
    network = None if clean else LoFiPrior(prior, precision=precision)
    most = iterations if iterations is not None else CLEAN_ITERATIONS if clean else ITERATIONS
    seconds: dict[str, float] = {}

    with _stage(seconds, "look"):
        source = open_visibilities(observation, **selection or {})
        shape, cell = _grid(source, size, cell, super_resolution, like)
        view = View(source, shape, cell=cell, weighting=weighting)
        truth = _truth(source, shape, view.cell)
    with _stage(seconds, "grid"):
        gridded = grid(view, wide_field=wide_field)
        field = check_field(source, shape, view.cell, gridded.frequency)
        if not wide_field:
            warn_of_w(*view.w_phase)
    with _stage(seconds, "beams"):
        beams = beams_of(gridded.op, view.cell, gridded.frequency, beam=beam, primary=primary_beam, cutoff=pb_cutoff)

    def solve(g: Gridded) -> RadioImage:
        level = None if sigma is None else sigma * _whitened(source, shape) * g.level
        if network is None:
            return clean_image(g.op, g.y, sigma_n=level, spread=g.spread, max_iter=most, truth=truth)
        told = {"sigma_n": level, "max_iter": most}
        return image(g.op, g.y, network, truth=truth, run=run, spread=g.spread, **told)

    with _stage(seconds, "solve"):
        cycles, last = None, gridded
        if wide_field:
            found, last, cycles = major_cycles(view, gridded, solve, lambda f: f.solution.x)
            residual = last.op.dirty(last.y - last.op.A(found.solution.x))[0, 0]
            found = replace(found, dirty=gridded.op.dirty(gridded.y)[0, 0], residual=residual)
            told = found.solution.metrics  # of the last cycle's data, in place of the true ones
            told["residual"] = last.op.residual_level(last.y, found.solution.x)
            told["misfit"] = told["residual"] / told["sigma_n"] if told["sigma_n"] else math.inf
        else:
            found = solve(gridded)
    bars = None
    if network is not None and error_bars is not None:
        with _stage(seconds, "error bars"):
            bars = error_bars_of(last.op, last.y, network, found.solution, error_bars)
    with _stage(seconds, "write"):
        pictures = {"_dirty": found.dirty} | beams.products(found.solution.x[0, 0], found.residual, view.cell)
        if bars is not None:
            pictures["_std"] = bars.std[0, 0]
        place = (shape, view.cell, source.phase_centre)
        header = partial(sky_header, *place, frequency=gridded.frequency, TELESCOP=source.telescope)
        fitted = beams.origin == "fitted"
        about: dict[str, Any] = {"noise": found.noise, "title": found.method, "overwrite": overwrite}
        write_pictures(paths, pictures, header, beams.beam, fitted=fitted, **about)
        panels = sky_panels(found, truth, bars)
        save_figure(paths["png"], panels, sky=True, title=source.description[:120], overwrite=overwrite)
    report = {"observation": str(observation), "selection": selection or {}, "visibilities": gridded.count,
              "shape": list(shape), "cell_arcsec": view.cell, "frequency_hz": gridded.frequency,
              "weights": str(weighting), "method": found.method, "prior": None if clean else prior,
              "major_cycles": cycles}  # fmt: skip
    _warn_of_residual(found)
    report |= field | _figures(found) | beams.told() | ({} if bars is None else _told(bars))
    return report | {f"seconds_{name.replace(' ', '_')}": value for name, value in seconds.items()}


def _check(
    error_bars: int | None,
    sigma: float | None,
    size: int | None,
    iterations: int | None,
    clean: bool,
    wide_field: bool,
    resume: bool,
) -> None:
    """What can be refused before anything is read."""
    if error_bars is not None and error_bars < FEWEST:
        raise ValueError(f"error bars need at least {FEWEST} draws, got {error_bars}; some 200 are good")
    if sigma is not None and not 0 < sigma < float("inf"):
        raise ValueError(f"sigma must be finite and > 0, got {sigma}; leave it out to have it estimated")
    if size is not None and size < 2:
        raise ValueError(f"--size must be at least 2 pixels, got {size}")
    if size is not None and (need := PIXEL * size**2) > (
        there := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    ):
        raise ValueError(f"--size {size} needs some {need / 1e9:.0f} GB, this machine has {there / 1e9:.0f}")
    if iterations is not None and iterations < 0:
        raise ValueError(f"--iterations must be at least 0, got {iterations}")
    if clean and error_bars is not None:
        raise ValueError("CLEAN has no error bars; leave out --clean, or --error-bars")
    if (clean or wide_field) and resume:
        raise ValueError("CLEAN and --wide-field keep no run to resume; leave out --resume, or those")


def _grid(
    source: Visibilities,
    size: int | None,
    cell: float | None,
    super_resolution: float | None,
    like: str | os.PathLike[str] | None,
) -> tuple[tuple[int, int], float]:
    """(H, W), and the pixel size [arcsec]."""
    if like is None:
        shape = (size, size) if size else source.truth.shape if source.truth is not None else (SIZE, SIZE)
        return shape, _cell(source, cell, super_resolution)
    if cell is not None or super_resolution is not None:
        raise ValueError("--like tells the cell; leave out --cell and --super-resolution")
    grid = read_grid(like)
    if size is not None and grid.shape != (size, size):
        raise ValueError(f"{like} has {grid.shape} pixels, --size is {size}; leave one of them out")
    (ra, dec), (ra0, dec0) = grid.centre, source.phase_centre
    across = math.remainder(ra - ra0, 360) * math.cos(math.radians(dec0))
    if math.hypot(across, dec - dec0) * 3600 > OFF_CENTRE * grid.cell:
        raise ValueError(
            f"{like} is centred on RA, Dec = {ra:.6f}, {dec:.6f} deg, the phase centre is {ra0:.6f}, {dec0:.6f}; "
            "images are made about the phase centre"
        )
    return grid.shape, grid.cell


def _cell(source: Visibilities, cell: float | None, super_resolution: float | None) -> float:
    """[arcsec]"""
    if cell is not None and super_resolution is not None:
        raise ValueError("give --cell or --super-resolution, not both; the one follows from the other")
    if super_resolution is None:
        return source.cell if cell is None else cell
    if not 1 <= super_resolution < float("inf"):
        raise ValueError(
            f"--super-resolution must be at least 1, usually up to 2.5, got {super_resolution}; with coarser pixels "
            "the longest baselines alias"
        )
    return 1 / (2 * super_resolution * source.longest) / ARCSEC


def _whitened(source: Visibilities, shape: tuple[int, int]) -> float:
    """The noise of whitened data for 1 Jy in a visibility of mean weight."""
    return source.mean_weight**0.5 if source.absolute_weights else math.prod(shape) ** -0.5


def _truth(source: Visibilities, shape: tuple[int, int], cell: float) -> Tensor | None:
    """The simulated sky, if it is on the image's grid."""
    if source.truth is None or source.truth.shape != shape or cell != source.suggested:
        return None
    return torch.as_tensor(source.truth)[None, None]


@contextmanager
def _stage(seconds: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - begin


def _warn_of_residual(found: RadioImage) -> None:
    """Say so where the model leaves more than noise: fluxes are then not what they could be."""
    times = float(found.residual.square().mean().sqrt()) / found.noise if found.noise > 0 else 0.0
    if times > LOUD:
        causes = "errors of calibration, a cell or field that does not suit, or a wrong --sigma"
        mend = "more --iterations would help" if found.solution.status == "limit" else causes
        warnings.warn(
            f"what the model leaves is {times:.1f} times the noise ({mend}): do not trust fluxes", stacklevel=3
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


def _told(bars: Uncertainty) -> dict[str, Any]:
    return {"error_bar_draws": bars.count, "error_bar_independent_draws": float(bars.ess.min()),
            "error_bar_rhat": float(torch.maximum(bars.rhat, bars.rhat_std).max()),
            "error_bar_median": float(bars.std.median()), "error_bar_seconds": bars.metrics["seconds"]}  # fmt: skip
