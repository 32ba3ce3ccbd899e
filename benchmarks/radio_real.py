"""3C391 as the VLA saw it: dirty image, CLEAN, TV and LoFi-ADMM, what they leave, and what they say of data held out.

One pointing (C3 of the mosaic) and one channel, see `pnp_lofi.recipes.vla_3c391`. A tenth of the baselines is held out
in a second run of each method; the rms of what it predicts of them, over their noise, is the measure. TV's strength is
chosen by it, nothing else is.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.io import fits
from deepinv.models import TVDenoiser
from torch import Tensor

from benchmarks.common import ROOT, need, parser, report, start
from pnp_lofi.admm import ADMM
from pnp_lofi.beam import Beam, fit_beam, restore
from pnp_lofi.clean import clean
from pnp_lofi.figures import Panel, save_figure
from pnp_lofi.observation import Observation
from pnp_lofi.operators import NUFFT
from pnp_lofi.priors import LoFiPrior
from pnp_lofi.radio_measurement import measurement
from pnp_lofi.recipes.vla_3c391 import load_mat, read_3c391

SHAPE, CELL = (256, 256), 4.0
THEIRS, THEIR_CELL = (512, 512), 2.5  # the data authors' model image
HELD_OUT = 0.1  # of the baselines
STRENGTHS = (3e-4, 1e-3, 3e-3, 1e-2)  # of TV [Jy/pixel]
TV_ALPHA, TV_ITERATIONS, TV_INNER = 1e-2, 150, 30  # alpha over the norm
REMNANT = 3.75 * 60  # radius [arcsec] about its centre, 2' north and 1' east of the pointing
FIGURE = ROOT / "docs" / "images" / "radio_3c391.png"


def split(obs: Observation, folder: Path) -> tuple[Observation, Observation]:
    """The observation without and with only a tenth of its baselines."""
    specs = load_mat(folder / "msSpecs.mat", "ant1", "ant2")
    baseline = specs["ant1"].astype(np.int64) * 1000 + specs["ant2"].astype(np.int64)
    there = np.unique(baseline)
    chosen = np.random.default_rng(0).choice(there, round(HELD_OUT * len(there)), replace=False)
    held = np.isin(baseline, chosen)
    return replace(obs, flag=obs.flag | held), replace(obs, flag=obs.flag | ~held)


def by_clean(op: NUFFT, y: Tensor) -> Tensor:
    """Down to three times a noise that is estimated: gain errors exceed the thermal one."""
    op = NUFFT(op.shape, op.uv, op.weights)
    return clean(op, y, nonneg=True, max_iter=50_000).model[None, None]


def by_tv(op: NUFFT, y: Tensor, strength: float) -> Tensor:
    prior, alpha = TVDenoiser(n_it_max=TV_INNER), TV_ALPHA * op.norm
    return ADMM(op, prior, sigma_d=strength, alpha=alpha, nonneg=True, max_iter=TV_ITERATIONS, tol=1e-4)(y)


def by_lofi(op: NUFFT, y: Tensor, prior: str) -> Tensor:
    """With its defaults, the noise estimated."""
    op = NUFFT(op.shape, op.uv, op.weights)
    return ADMM(op, LoFiPrior(prior), nonneg=True, progress=True)(y)


def misfit(op: NUFFT, y: Tensor, x: Tensor) -> float:
    """rms of y - A x per real component; its noise is 1."""
    return float(((y - op.A(x)).abs().square().mean() / 2).sqrt())


def figures(op: NUFFT, y: Tensor, x: Tensor, held: tuple[NUFFT, Tensor] | None, part: Tensor | None) -> dict[str, Any]:
    """What a method leaves of all the data, and of those that its second run had not seen."""
    residual = op.dirty(y - op.A(x))[0, 0]
    rms = float(residual.square().mean().sqrt())
    r, c = (torch.arange(n, dtype=torch.float64) - n // 2 for n in SHAPE)
    inside = ((r[:, None] * CELL - 120) ** 2 + (c[None] * CELL + 60) ** 2).sqrt() < REMNANT
    told = {"misfit": misfit(op, y, x), "flux_jy": float(x.sum()), "flux_remnant_jy": float(x[0, 0][inside].sum()),
            "residual_rms": rms, "residual_over_noise": rms / op.dirty_noise(),
            "residual_peak": float(residual.abs().max())}  # fmt: skip
    return told | {"held_out": misfit(*held, part) if held is not None and part is not None else None}


def run(folder: Path, prior: str) -> tuple[dict[str, Any], list[Panel]]:
    """:returns: the figures of all methods, and their pictures."""
    obs = replace(read_3c391(folder, cell=CELL), absolute_weights=True)
    op, y = measurement(obs, SHAPE)
    seen, held = (measurement(part, SHAPE) for part in split(obs, folder))
    beam = fit_beam(op.psf((2 * SHAPE[0], 2 * SHAPE[1])), CELL)
    nothing = torch.zeros(1, 1, *SHAPE)
    rows = [{"method": "dirty image"} | figures(op, y, nothing, held, nothing)]
    panels = [Panel("dirty image", op.dirty(y)[0, 0], cmap="inferno", unit="Jy/beam")]
    strengths = [{"strength": s, "held_out": misfit(*held, by_tv(*seen, s))} for s in STRENGTHS]
    best = min(strengths, key=lambda row: row["held_out"])["strength"]
    methods = {
        "CLEAN (Hogbom)": lambda op, y: by_clean(op, y),
        f"TV, strength {best:g} Jy/pixel": lambda op, y: by_tv(op, y, best),
        "LoFi-ADMM": lambda op, y: by_lofi(op, y, prior),
    }
    for name, method in methods.items():
        begin = time.perf_counter()
        x = method(op, y)
        seconds = time.perf_counter() - begin
        row = {"method": name} | figures(op, y, x, held, method(*seen)) | {"seconds": seconds}
        rows.append(row)
        panels += pictures(name.split(",")[0], op, y, x, beam)
        print(name, {k: round(v, 4) for k, v in row.items() if k != "method"}, flush=True)
    theirs = measurement(obs, THEIRS, cell=THEIR_CELL)
    model = torch.as_tensor(fits.getdata(folder / "3c391_512-512.fits").astype(np.float32).squeeze())[None, None]
    return {
        "noise": op.dirty_noise(), "beam": [beam.major, beam.minor, beam.position_angle], "rows": rows, "tv": strengths,
        "visibilities": y.shape[-1], "frequency": float(obs.frequency), "shape": SHAPE, "cell": CELL,
        "authors_misfit": misfit(*theirs, model),
    }, panels  # fmt: skip


def pictures(name: str, op: NUFFT, y: Tensor, x: Tensor, beam: Beam) -> list[Panel]:
    residual = op.dirty(y - op.A(x))[0, 0]
    noise = op.dirty_noise()
    restored = restore(x[0, 0], residual, beam, CELL)
    return [
        Panel(f"{name}: model", x[0, 0], (0.0, 0.02), "inferno", 3000.0, "Jy/pixel"),
        Panel(f"{name}: restored", restored, (-3 * noise, 0.5), "inferno", 1 / (5 * noise), "Jy/beam"),
        Panel(f"{name}: residual", residual, (-5 * noise, 5 * noise), "RdBu_r", unit="Jy/beam, +-5 noise"),
    ]


def main() -> None:
    made = parser(__doc__, "radio_real", data=True)
    made.add_argument("--prior", default="radio", help="shipped name or checkpoint")
    made.add_argument("--figure", type=Path, default=FIGURE, metavar="PATH.png")
    args = start(made)
    folder = args.data / "radio" / "vla_3c391"
    need(folder / "data.mat", folder / "msSpecs.mat")
    found, panels = run(folder, args.prior)
    save_figure(args.figure, panels[1:], columns=3, sky=True, overwrite=True, title="3C391, VLA D array, 4.536 GHz")
    report("radio_real", found | {"prior": Path(args.prior).name}, args.results)


if __name__ == "__main__":
    main()
