"""M31 at 256 x 256 through QuantifAI's MeerKAT coverage of 1 h and 2 h at 30 dB, beside what QuantifAI published.

The case of their paper: the sky flipped up-down and scaled to [0, 1], A = DFT / (2 N), noise of numpy's default_rng(0),
real parts first. Nothing is tuned on it; --tv tunes TV on the truth. Each run has a process of its own.
"""

import itertools
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from deepinv.models import TVDenoiser
from torch import Tensor

from benchmarks.common import need, parser, peak_memory_of, report, start
from pnp_lofi.admm import ADMM
from pnp_lofi.cg import CGInfo
from pnp_lofi.files import check_writable
from pnp_lofi.operators import NUFFT
from pnp_lofi.priors import LoFiPrior

SNR = 30.0  # of the data [dB]
ALLOWED = 60.0  # seconds on 2 cores
UNIT = 2.0  # our A = DFT / N is unitary on the grid, theirs half of it
STRENGTHS = (1e-3, 3e-3, 6e-3, 1e-2, 2e-2)  # ths of TV [peak of the sky]
PENALTIES = (3e-3, 1e-2, 3e-2)  # alpha / L
TV_ITERATIONS, TV_INNER, TV_TOL = 150, 30, 1e-4
# SNR [dB]
REFERENCE = {
    "QuantifAI": {
        "1": 25.29, "2": 28.39,
        "source": "published (learned convex ridge prior, about 1100 iterations; 28 s on an A100 for 2 h)",
    },
    "TV, oracle-tuned": {
        "1": 23.8, "2": 26.4,
        "source": "TV and positivity, 2500-3000 iterations, tuned on the truth, by this project",
    },
}  # fmt: skip


class Case(NamedTuple):
    """:param NUFFT op: its sigma is the noise that was added.
    :param Tensor y: (1, 1, M) complex64; Tensor truth: (1, 1, 256, 256).
    """

    op: "CountingNUFFT"
    y: Tensor
    truth: Tensor


class CountingNUFFT(NUFFT):
    """Counts the steps of conjugate gradients."""

    cg_steps = 0

    def solve_normal(
        self, rhs: Tensor, alpha: float, init: Tensor | None = None, *, tol: float = 1e-5, max_iter: int = 50
    ) -> tuple[Tensor, CGInfo]:
        x, info = super().solve_normal(rhs, alpha, init, tol=tol, max_iter=max_iter)
        self.cg_steps += info.iterations
        return x, info


def quantifai_case(hours: int, data: Path) -> Case:
    """The published problem in our units. Its npy holds a pickle: read it only where the source is trusted."""
    from astropy.io import fits

    coverage = np.load(data / "radio" / f"meerkat_simulation_{hours}h_uv_only.npy", allow_pickle=True).item()
    uv = torch.as_tensor(np.stack([coverage["uu"], coverage["vv"]]).astype(np.float64))
    sky = np.flipud(fits.getdata(data / "radio" / "M31_256.fits").astype(np.float64).squeeze())
    sky = (sky - sky.min()) / (sky.max() - sky.min())
    x = torch.as_tensor(sky.copy())[None, None]
    clean = NUFFT(x.shape[-2:], uv).A(x) / UNIT
    count = uv.shape[1]
    sigma = 10 ** (-SNR / 20) * float(clean.norm()) / count**0.5  # complex, in their units
    rng = np.random.default_rng(0)
    noise = rng.normal(0, sigma / 2**0.5, count) + 1j * rng.normal(0, sigma / 2**0.5, count)
    y = UNIT * (clean + torch.as_tensor(noise)[None, None])
    op = CountingNUFFT(x.shape[-2:], uv, sigma=UNIT * sigma / 2**0.5)
    return Case(op, y.to(torch.complex64), x.float())


def reconstruct(hours: int, data: str, prior: str, known: bool, figure: str | None) -> dict[str, Any]:
    """One reconstruction with the defaults, sigma_n known or estimated."""
    op, y, truth = quantifai_case(hours, Path(data))
    sigma = op.sigma
    if sigma is None:
        raise ValueError("the case has no noise level")
    if not known:
        op = CountingNUFFT(op.shape, op.uv)
    network, calls = LoFiPrior(prior), []
    network.register_forward_hook(lambda *_: calls.append(1))
    begin = time.perf_counter()
    solution = ADMM(op, network, nonneg=True).solve(y, truth=truth)
    seconds = time.perf_counter() - begin
    if figure:
        _draw(Path(figure), op, y, solution.x, truth, sigma)
    row: dict[str, Any] = {"hours": hours, "sigma": "known" if known else "estimated", "visibilities": y.shape[-1]}
    row |= {key: solution.metrics[key] for key in ("snr", "psnr", "misfit", "sigma_d", "alpha")}
    row |= {"seconds": seconds, "status": solution.status, "iterations": solution.iterations}
    row |= {"denoiser_calls": len(calls), "cg_steps": op.cg_steps, "L_quantifai_units": op.norm / UNIT**2}
    row["noise_error"] = None if known else solution.metrics["sigma_n"] / sigma - 1
    return row | {"residuals": solution.residuals[-1]}


def _draw(path: Path, op: NUFFT, y: Tensor, x: Tensor, truth: Tensor, sigma: float) -> None:
    from pnp_lofi.figures import save_figure
    from pnp_lofi.radio import RadioImage, sky_panels
    from pnp_lofi.solution import Solution

    residual = op.dirty(y - op.A(x))[0, 0]
    found = RadioImage(Solution(x, "limit", 0, [], {}), op.dirty(y)[0, 0], residual, op.dirty_noise(sigma))
    save_figure(path, sky_panels(found, truth), sky=True, overwrite=True)


def tuned_tv(hours: int, data: str) -> dict[str, Any]:
    """deepinv's TV in the same ADMM, nonnegative, the best of a grid by the truth."""
    op, y, truth = quantifai_case(hours, Path(data))
    grid = []
    for ths, relative in itertools.product(STRENGTHS, PENALTIES):
        prior = TVDenoiser(n_it_max=TV_INNER)  # a new one: it restarts from where its last call ended
        alpha = relative * op.norm
        solver = ADMM(op, prior, sigma_d=ths, alpha=alpha, nonneg=True, max_iter=TV_ITERATIONS, tol=TV_TOL)
        solution = solver.solve(y, truth=truth)
        point: dict[str, Any] = {"ths": ths, "alpha_over_L": relative, "iterations": solution.iterations}
        grid.append(point | {key: solution.metrics[key] for key in ("snr", "psnr", "misfit", "seconds")})
    return {"hours": hours, "best": max(grid, key=lambda p: p["snr"]), "grid": grid}


def main() -> None:
    made = parser(__doc__, "radio_m31", data=True)
    made.add_argument("--prior", default="radio", help="shipped name or checkpoint")
    made.add_argument("--hours", type=int, nargs="+", choices=(1, 2), default=(1, 2))
    made.add_argument("--tv", action="store_true", help="also tune TV on the truth (minutes)")
    made.add_argument("--figure", type=Path, metavar="PATH.png", help="picture of the last hours, sigma known")
    args = start(made)
    need(args.data / "radio" / "M31_256.fits")
    need(*(args.data / "radio" / f"meerkat_simulation_{h}h_uv_only.npy" for h in args.hours))
    data = str(args.data.resolve())
    figure = str(check_writable(args.figure, overwrite=True).resolve()) if args.figure else None
    prior = str(Path(args.prior).resolve()) if Path(args.prior).is_file() else args.prior
    rows = []
    for hours, known in itertools.product(args.hours, (True, False)):
        drawn = figure if known and hours == args.hours[-1] else None
        value, peak = peak_memory_of(reconstruct, hours, data, prior, known, drawn)
        rows.append(value | {"peak_memory_mb": peak})
        print(f"{hours} h, sigma {value['sigma']}: {value['snr']:.2f} dB, {value['seconds']:.1f} s", flush=True)
    tv = [peak_memory_of(tuned_tv, hours, data).value for hours in args.hours] if args.tv else []
    payload = {"prior": Path(args.prior).name, "data_snr": SNR, "rows": rows, "tv": tv, "reference": REFERENCE}
    published = REFERENCE["QuantifAI"]
    payload |= {"passes": all(row["snr"] > published[str(row["hours"])] and row["seconds"] <= ALLOWED for row in rows)}
    report("radio_m31", payload, args.results)


if __name__ == "__main__":
    main()
