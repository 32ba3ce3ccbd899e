"""M31 at 256 x 256 through QuantifAI's MeerKAT coverage of 1 h and 2 h at 30 dB, beside what QuantifAI published.

The case of their paper: the sky flipped up-down and scaled to [0, 1], A = DFT / (2 N), noise of numpy's default_rng(0),
real parts first. LoFi is not tuned on it. CLEAN and TV are given the best of a grid by the truth ("oracle"), and timed
at that point alone. Each method has a process of its own. logSNR is that of ``pnp_lofi.metrics.log_snr`` with a = the
truth's dynamic range, its peak over its faintest pixel that is not empty.
"""

import itertools
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from deepinv.models import TVDenoiser
from torch import Tensor

from benchmarks.common import need, parser, peak_memory_of, report, start
from pnp_lofi.admm import ADMM
from pnp_lofi.beam import Beam, fit_beam
from pnp_lofi.clean import clean
from pnp_lofi.files import check_writable
from pnp_lofi.hqs import HQS
from pnp_lofi.metrics import log_snr, psnr, snr
from pnp_lofi.operators import NUFFT, imaging_weights, noise_increase
from pnp_lofi.priors import LoFiPrior
from pnp_lofi.solution import Solution

SNR = 30.0  # of the data [dB]
GOAL, ALLOWED = 1.5, 60.0  # dB above QuantifAI, and seconds on 2 cores
UNIT = 2.0  # our A = DFT / N is unitary on the grid, theirs half of it
EMPTY = 1e-6  # of the truth's peak: rounding of the file, no emission
# CLEAN's grid: Briggs weights (None: natural), threshold [noise], width of the restoring beam over the fitted one
ROBUST, N_SIGMA, WIDTHS = (None, 0.5, 0.0, -0.5), (3.0, 1.5, 1.0, 0.7), (1.4, 1.2, 1.0, 0.85, 0.7, 0.6)
PLAIN = (None, 3.0, 1.0)  # what `pnp-lofi solve radio --clean` does
CLEAN_ITERATIONS = 200_000
# TV's grid: strength, alpha ths / L [peak of the sky], and alpha / L, which sets the speed
STRENGTHS, PENALTIES = (1.5e-5, 3e-5, 5e-5, 8e-5), (3e-3, 1e-2)
TV_ITERATIONS, TV_INNER, TV_TOL = 400, 30, 1e-4
# SNR [dB]
REFERENCE: dict[str, dict[str, Any]] = {
    "QuantifAI": {
        "1": 25.29, "2": 28.39,
        "source": "published (learned convex ridge prior, about 1100 iterations; 28 s on an A100 for 2 h)",
    },
}  # fmt: skip
DRAWN = ("dirty", "CLEAN, restored, oracle", "TV, oracle", "LoFi-ADMM, sigma known")
STRETCH = 100.0  # of the figure: brightness is shown as asinh(100 x)


class Case(NamedTuple):
    """:param NUFFT op: its sigma is the noise that was added.
    :param Tensor y: (1, 1, M) complex64; Tensor truth: (1, 1, 256, 256), its peak 1.
    """

    op: NUFFT
    y: Tensor
    truth: Tensor


class Found(NamedTuple):
    """:param Tensor x: like the truth; float seconds: without the choice of an oracle; dict told: for the table."""

    x: Tensor
    seconds: float
    told: dict[str, Any]


def quantifai_case(hours: int, data: Path) -> Case:
    """The published problem in our units."""
    from astropy.io import fits

    uv = quantifai_uv(hours, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a card that astropy does not know
        sky = np.flipud(fits.getdata(data / "radio" / "M31_256.fits").astype(np.float64).squeeze())
    sky = (sky - sky.min()) / (sky.max() - sky.min())
    x = torch.as_tensor(sky.copy())[None, None]
    clean_data = NUFFT(x.shape[-2:], uv).A(x) / UNIT
    sigma = 10 ** (-SNR / 20) * float(clean_data.norm()) / uv.shape[1] ** 0.5  # complex, in their units
    y = UNIT * (clean_data + gaussian(sigma, uv.shape[1]))
    op = NUFFT(x.shape[-2:], uv, sigma=UNIT * sigma / 2**0.5)
    return Case(op, y.to(torch.complex64), x.float())


def quantifai_uv(hours: int, data: Path) -> Tensor:
    """(2, M) [rad/pixel] of their coverage. The npy holds a pickle: read it only where the source is trusted."""
    coverage = np.load(data / "radio" / f"meerkat_simulation_{hours}h_uv_only.npy", allow_pickle=True).item()
    return torch.as_tensor(np.stack([coverage["uu"], coverage["vv"]]).astype(np.float64))


def gaussian(sigma: float, count: int) -> Tensor:
    """(1, 1, count) complex noise of numpy's default_rng(0), real parts first; sigma of the complex number."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, sigma / 2**0.5, count) + 1j * rng.normal(0, sigma / 2**0.5, count)
    return torch.as_tensor(noise)[None, None]


def dynamic_range(truth: Tensor) -> float:
    """The truth's peak over its faintest pixel that is not empty."""
    peak = truth.max()
    return float(peak / truth[truth > EMPTY * peak].min())


# ---- the methods, each (case, prior) -> Found ------------------------------------------------------------------------


def dirty(case: Case, prior: str) -> Found:
    """A^H y / L."""
    begin = time.perf_counter()
    x = case.op.A_adjoint(case.y) / case.op.norm
    return Found(x, time.perf_counter() - begin, {})


def lofi_admm(case: Case, prior: str) -> Found:
    return _solved(ADMM(case.op, LoFiPrior(prior), nonneg=True), case)


def lofi_admm_estimated(case: Case, prior: str) -> Found:
    found = _solved(ADMM(NUFFT(case.op.shape, case.op.uv), LoFiPrior(prior), nonneg=True), case)
    assert case.op.sigma is not None
    return found._replace(told=found.told | {"noise_error": found.told["sigma_n"] / case.op.sigma - 1})


def lofi_hqs(case: Case, prior: str) -> Found:
    """Its schedule is the default: sigma_d falls geometrically in 24 iterations."""
    return _solved(HQS(case.op, LoFiPrior(prior), nonneg=True), case)


def tv_oracle(case: Case, prior: str) -> Found:
    """deepinv's TV in the same ADMM, nonnegative, the best of a grid by the truth."""
    grid = [
        (snr(_tv(case, strength, relative).x, case.truth), strength, relative)
        for strength, relative in itertools.product(STRENGTHS, PENALTIES)
    ]
    _, strength, relative = max(grid)
    found = _tv(case, strength, relative)
    choice = {"strength": strength, "alpha_over_L": relative, "points": len(grid)}
    return found._replace(told=found.told | {"choice": choice})


def _tv(case: Case, strength: float, relative: float) -> Found:
    prior = TVDenoiser(n_it_max=TV_INNER)  # a new one: it restarts from where its last call ended
    alpha, ths = relative * case.op.norm, strength / relative
    options: dict[str, Any] = {"sigma_d": ths, "alpha": alpha, "max_iter": TV_ITERATIONS, "tol": TV_TOL}
    return _solved(ADMM(case.op, prior, nonneg=True, **options), case)


def _solved(solver: ADMM | HQS, case: Case) -> Found:
    begin = time.perf_counter()
    solution: Solution = solver.solve(case.y)
    told = {"iterations": solution.iterations, "status": solution.status}
    told |= {key: solution.metrics[key] for key in ("sigma_n", "sigma_d", "alpha")}
    return Found(solution.x, time.perf_counter() - begin, told)


def clean_model(case: Case, prior: str) -> Found:
    """The components themselves: points, never meant to be looked at."""
    return _cleaned(case, PLAIN)[0]


def clean_restored(case: Case, prior: str) -> Found:
    """Natural weights, down to three times the noise, the components convolved with the fitted beam."""
    return _cleaned(case, PLAIN)[1]


def clean_oracle(case: Case, prior: str) -> Found:
    """Weights, threshold and width of the restoring beam that the truth says are best."""
    grid = []
    for robust, n_sigma in itertools.product(ROBUST, N_SIGMA):
        model, _, beam = _cleaned(case, (robust, n_sigma, 1.0))
        for width in WIDTHS:
            if (restored := _restored(model.x, beam, width)) is not None:
                grid.append((snr(restored, case.truth), (robust, n_sigma, width)))
    choice = max(grid, key=lambda point: point[0])[1]
    found = _cleaned(case, choice)[1]
    told = dict(zip(("robust", "n_sigma", "width"), choice, strict=True)) | {"points": len(grid)}
    return found._replace(told=found.told | {"choice": told})


def _cleaned(case: Case, choice: tuple[float | None, float, float]) -> tuple[Found, Found, Beam]:
    """Model, and model restored without residual [both per pixel, like the truth], and the fitted beam."""
    torch.set_num_threads(1)  # a point costs 0.05 ms: threads would wait for each other
    begin, (robust, n_sigma, width) = time.perf_counter(), choice
    uv, shape = case.op.uv, case.op.shape
    natural = torch.ones(uv.shape[1], dtype=torch.float64)
    weights = natural if robust is None else imaging_weights(shape, uv, natural, robust=robust)
    op = NUFFT(shape, uv, weights)
    noise = case.op.dirty_noise() * noise_increase(natural, weights)
    options: dict[str, Any] = {"noise": noise, "n_sigma": n_sigma, "max_iter": CLEAN_ITERATIONS}
    cleaned = clean(op, case.y * weights.sqrt().float(), nonneg=True, **options)
    told = {"iterations": cleaned.iterations, "status": cleaned.status}
    model = Found(cleaned.model[None, None], time.perf_counter() - begin, told)
    beam = fit_beam(op.psf((2 * shape[0], 2 * shape[1]), dtype=torch.float64), 1.0)
    restored = _restored(model.x, beam, width)
    if restored is None:
        raise ValueError(f"a beam of {width:g} times the fitted one is finer than a pixel")
    return model, Found(restored, time.perf_counter() - begin, told), beam


def _restored(model: Tensor, beam: Beam, width: float) -> Tensor | None:
    """The model convolved with a Gaussian of sum 1, so that it stays per pixel; None where that is finer than one."""
    if width * beam.minor < 1:
        return None
    shape = model.shape[-2:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a sum that is not the integral: the next line mends it
        kernel = Beam(width * beam.major, width * beam.minor, beam.position_angle).image(shape, 1.0)
    kernel = torch.fft.rfft2(torch.fft.ifftshift(kernel / kernel.sum()))
    return torch.fft.irfft2(torch.fft.rfft2(model.double()) * kernel, s=shape).to(model.dtype)


METHODS: dict[str, Callable[[Case, str], Found]] = {
    "dirty": dirty,
    "CLEAN, components": clean_model,
    "CLEAN, restored": clean_restored,
    "CLEAN, restored, oracle": clean_oracle,
    "TV, oracle": tv_oracle,
    "LoFi-HQS, sigma known": lofi_hqs,
    "LoFi-ADMM, sigma known": lofi_admm,
    "LoFi-ADMM, sigma estimated": lofi_admm_estimated,
}


# ---- what is done with them ------------------------------------------------------------------------------------------


def measure(method: str, hours: int, data: str, prior: str, keep: str) -> dict[str, Any]:
    """One method in a process of its own; the image goes to KEEP/METHOD.npy."""
    case = quantifai_case(hours, Path(data))
    found = METHODS[method](case, prior)
    np.save(Path(keep) / f"{method}.npy", found.x[0, 0].numpy())
    left = (case.y - case.op.A(found.x)).abs().square().mean() / 2
    assert case.op.sigma is not None
    row: dict[str, Any] = {"method": method, "hours": hours, "visibilities": case.y.shape[-1]}
    row |= {"snr": snr(found.x, case.truth), "psnr": psnr(found.x, case.truth)}
    row |= {"log_snr": log_snr(found.x, case.truth, dynamic_range(case.truth))}
    row |= {"misfit": float(left.sqrt()) / case.op.sigma, "seconds": found.seconds}
    return row | found.told


def draw(path: Path, rows: Sequence[dict[str, Any]], keep: Path, truth: Tensor) -> None:
    """Truth and methods above, their errors below, on asinh scales that are the same in each row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import AsinhNorm
    from matplotlib.figure import Figure

    shown = [row for name in DRAWN for row in rows if row["method"] == name]
    figure = Figure(figsize=(2.7 * (len(shown) + 1), 5.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(shown) + 1)
    norm, error_norm = AsinhNorm(1 / STRETCH, 0, 1), AsinhNorm(0.003, -0.3, 0.3)
    sky = axes[0, 0].imshow(truth[0, 0], cmap="inferno", norm=norm)
    axes[0, 0].set_title("truth", fontsize=10)
    for column, row in enumerate(shown, 1):
        x = torch.as_tensor(np.load(keep / f"{row['method']}.npy"))
        axes[0, column].imshow(x, cmap="inferno", norm=norm)
        told = f"{row['method']}\nSNR {row['snr']:.1f} dB, logSNR {row['log_snr']:.1f} dB"
        axes[0, column].set_title(told, fontsize=9)
        error = axes[1, column].imshow(x - truth[0, 0], cmap="RdBu_r", norm=error_norm)
    for axis in axes.flat:
        axis.set_axis_off()
    about = f"M31, {shown[0]['hours']} h, {SNR:g} dB\n\nthis row: image minus truth"
    axes[1, 0].text(0.5, 0.5, about, ha="center", va="center", transform=axes[1, 0].transAxes)
    for mapped, line, ticks in ((sky, 0, (0, 0.01, 0.1, 1)), (error, 1, (-0.3, -0.03, 0, 0.03, 0.3))):
        bar = figure.colorbar(mapped, ax=axes[line, :], fraction=0.02, pad=0.01, ticks=ticks)
        bar.ax.set_yticklabels([f"{tick:g}" for tick in ticks], fontsize=8)
        bar.minorticks_off()
        bar.set_label("[peak of the truth], asinh scale", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=100)


def main() -> None:
    made = parser(__doc__, "radio_m31", data=True)
    made.add_argument("--prior", default="radio", help="shipped name or checkpoint")
    made.add_argument("--hours", type=int, nargs="+", choices=(1, 2), default=(1, 2))
    made.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS), metavar="METHOD")
    made.add_argument("--figure", type=Path, metavar="PATH.png", help="picture of the last hours")
    args = start(made)
    need(args.data / "radio" / "M31_256.fits")
    need(*(args.data / "radio" / f"meerkat_simulation_{h}h_uv_only.npy" for h in args.hours))
    data = args.data.resolve()
    figure = check_writable(args.figure, overwrite=True).resolve() if args.figure else None
    prior = str(Path(args.prior).resolve()) if Path(args.prior).is_file() else args.prior
    truth, rows = quantifai_case(args.hours[-1], data).truth, []
    with tempfile.TemporaryDirectory() as keep:
        for hours, method in itertools.product(args.hours, args.methods):
            value, peak = peak_memory_of(measure, method, hours, str(data), prior, keep)
            rows.append(value | {"peak_memory_mb": peak})
            print(f"{hours} h, {method}: {value['snr']:.2f} dB, {value['seconds']:.1f} s", flush=True)
        if figure:
            draw(figure, [row for row in rows if row["hours"] == args.hours[-1]], Path(keep), truth)
    published = REFERENCE["QuantifAI"]
    ours = [row for row in rows if row["method"].startswith("LoFi-ADMM")]
    payload = {"prior": Path(args.prior).name, "data_snr": SNR, "a": dynamic_range(truth), "goal": GOAL, "rows": rows}
    payload |= {"reference": REFERENCE, "passes": bool(ours) and all(
        row["snr"] > float(published[str(row["hours"])]) + GOAL and row["seconds"] <= ALLOWED for row in ours
    )}  # fmt: skip
    report("radio_m31", payload, args.results)


if __name__ == "__main__":
    main()
