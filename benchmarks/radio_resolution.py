"""One prior at five image sizes: a finer observation against finer cells for the same observation.

The sky is a simulated one of 2048 x 2048, a shell with filaments down to single pixels, of the kind that the prior was
trained on at 128 x 128. (M31_512.fits and M31_1024.fits are M31_256.fits enlarged and hold no finer sky.) QuantifAI's
coverage of 2 h, in radians per pixel, is laid on an image of n x n pixels over the same field, so that its longest
baselines reach n / 2 cycles across the field.

"finer observation": n = 128 to 2048, baselines that grow with n, each imaged on its own n x n pixels.
"finer cells": the baselines of n = 128, imaged on 2 and 4 times as many pixels a side; of n = 256, on twice as many.

Data have 30 dB; LoFi-ADMM with the shipped prior and its defaults, sigma known. Images are brightness, peak of the
sky = 1: Jy/pixel over the pixel's area. All grids have the phase centre on their pixel N//2, so that going from one to
another is cropping or padding a Fourier series about that pixel, and nothing moves.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import need, parser, peak_memory_of, report, start
from benchmarks.radio_m31 import SNR, STRETCH, gaussian, quantifai_uv
from pnp_lofi.admm import ADMM
from pnp_lofi.files import check_writable
from pnp_lofi.metrics import snr
from pnp_lofi.operators import NUFFT
from pnp_lofi.priors import LoFiPrior
from pnp_lofi.skies import radio_sky

HOURS, SKY, SEED = 2, 2048, 4
FINER_OBSERVATION = ((128, 128), (256, 256), (512, 512), (1024, 1024), (2048, 2048))  # n, pixels a side
FINER_CELLS = ((128, 256), (128, 512), (256, 512))
TICKS = (0, 0.003, 0.01, 0.03, 0.1, 0.3)  # of the colour bar
AGREED = 0.5  # Fourier ring correlation down to which structure counts as recovered
TITLE = "Above: one observation on finer cells: smoother, hardly more detail. Below: finer observations: more detail."
ZOOM = (800, 580, 320)  # of the figure: first row, first column, side [pixel of the sky]
DRAWN = ((128, 128), (128, 256), (128, 512), (256, 256), (512, 512), (1024, 1024))


def sky() -> Tensor:
    """(1, 1, 2048, 2048) float64, its peak 1."""
    return radio_sky(1, SKY, seed=SEED).double()


def resample(x: Tensor, side: int) -> Tensor:
    """The Fourier series of x about its pixel N//2, cut off or filled with zeros, on side x side pixels.

    :param torch.Tensor x: (1, 1, N, N), N even; float64. The Nyquist frequency of the coarser grid is left out.
    """
    if (n := x.shape[-1]) == side:
        return x
    spectrum = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x, dim=(-2, -1))), dim=(-2, -1))
    inner = min(n, side)
    kept = slice(n // 2 - inner // 2 + 1, n // 2 + inner // 2)
    into = slice(side // 2 - inner // 2 + 1, side // 2 + inner // 2)
    made = torch.zeros((*x.shape[:-2], side, side), dtype=spectrum.dtype)
    made[..., into, into] = spectrum[..., kept, kept]
    image = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(made, dim=(-2, -1))), dim=(-2, -1))
    return image.real * (side / n) ** 2


def observe(truth: Tensor, uv: Tensor, n: int) -> tuple[Tensor, float]:
    """Noisy data of the sky with the coverage laid on n x n pixels, and sigma of a real component [units of n x n].

    The sum over fine pixels is (N / n)^2 times that over coarse ones, A has 1/N and 1/n: data are scaled by n / N.
    """
    ratio = n / SKY
    y = NUFFT((SKY, SKY), uv * ratio).A(truth) * ratio
    total = 10 ** (-SNR / 20) * float(y.norm()) / uv.shape[1] ** 0.5
    return y + gaussian(total, uv.shape[1]), total / 2**0.5


def ring_correlation(x: Tensor, truth: Tensor) -> Tensor:
    """(N/2,) correlation of two spectra in rings of a width of one cycle a field, 0 to N/2 - 1."""
    side = truth.shape[-1]
    X, Y = torch.fft.fft2(x)[0, 0], torch.fft.fft2(truth)[0, 0]
    cycles = torch.fft.fftfreq(side, dtype=torch.float64) * side
    ring = torch.hypot(cycles[:, None], cycles[None]).round().long().clamp(max=side // 2).flatten()

    def summed(values: Tensor) -> Tensor:
        return torch.zeros(side // 2 + 1, dtype=torch.float64).index_add_(0, ring, values.flatten())

    both = (summed(X.abs().square()) * summed(Y.abs().square())).sqrt()
    return (summed((X * Y.conj()).real) / both.clamp(min=torch.finfo(torch.float64).tiny))[:-1]


def reconstruct(n: int, side: int, data: str, prior: str, iterations: int, keep: str) -> dict[str, Any]:
    """The observation of n x n pixels imaged on side x side, in a process of its own; the image goes to KEEP."""
    truth, uv = sky(), quantifai_uv(HOURS, Path(data))
    y, sigma = observe(truth, uv, n)
    finer = side / n
    op = NUFFT((side, side), uv / finer, sigma=sigma * finer)
    ends: list[float] = []
    solver = ADMM(
        op, LoFiPrior(prior), nonneg=True, max_iter=iterations, callback=lambda _: ends.append(time.perf_counter())
    )
    begin = time.perf_counter()
    solution = solver.solve((y * finer).to(torch.complex64))
    seconds = time.perf_counter() - begin
    np.save(Path(keep) / f"{n}_{side}.npy", solution.x[0, 0].numpy())
    row: dict[str, Any] = {"n": n, "side": side, "iterations": solution.iterations, "status": solution.status}
    row |= {"seconds": seconds, "seconds_an_iteration": (ends[-1] - ends[0]) / (len(ends) - 1)}
    return row | {"misfit": solution.metrics["misfit"]} | detail(solution.x.double(), truth, n)


def detail(x: Tensor, truth: Tensor, n: int) -> dict[str, float | None]:
    """How much of the finest sky is there, and beyond the longest baseline along an axis, n / 2 cycles a field."""
    fine = resample(x, SKY)
    correlation = ring_correlation(fine, truth)
    below = torch.nonzero(correlation < AGREED).flatten()
    found: dict[str, float | None] = {"snr": snr(fine, truth)}
    found |= {"cycles": float(below[0]) if len(below) else SKY / 2, "ceiling": None, "correlation_beyond": None}
    if n < SKY:
        found |= {"ceiling": snr(resample(resample(truth, n), SKY), truth)}
        found |= {"correlation_beyond": beyond(fine, truth, n)}
    return found


def beyond(x: Tensor, truth: Tensor, n: int) -> float:
    """Correlation of what two images hold at 1 to 2 times the longest baseline."""
    band = [resample(resample(image, 2 * n), SKY) - resample(resample(image, n), SKY) for image in (x, truth)]
    size = float(band[0].norm() * band[1].norm())
    return float((band[0] * band[1]).sum()) / size if size > 0 else 0.0


def draw(path: Path, rows: Sequence[dict[str, Any]], keep: Path, truth: Tensor) -> None:
    """The same part of the field from each observation, and the sky itself."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import AsinhNorm
    from matplotlib.figure import Figure

    found = {(row["n"], row["side"]): row for row in rows}
    figure = Figure(figsize=(13.2, 7.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 4)
    norm = AsinhNorm(1 / STRETCH, 0, float(_zoom(truth[0, 0]).max()))
    places = (*axes[0, :3], *axes[1, :3])
    for axis, pair in zip(places, DRAWN, strict=True):
        axis.set_axis_off()
        if pair not in found:
            continue
        axis.imshow(_zoom(torch.as_tensor(np.load(keep / f"{pair[0]}_{pair[1]}.npy"))), cmap="inferno", norm=norm)
        axis.set_title(_title(found[pair]), fontsize=9)
    axes[0, 3].imshow(_zoom(truth[0, 0]), cmap="inferno", norm=norm)
    axes[0, 3].set_title(f"the sky, {SKY} x {SKY}", fontsize=9)
    axes[0, 3].set_axis_off()
    whole = axes[1, 3].imshow(truth[0, 0], cmap="inferno", norm=norm)
    row, column, side = ZOOM
    axes[1, 3].add_patch(_frame(column, row, side))
    axes[1, 3].set_title("the whole field and the part shown", fontsize=9)
    axes[1, 3].set_axis_off()
    bar = figure.colorbar(whole, ax=axes, fraction=0.015, pad=0.01, ticks=TICKS)
    bar.ax.set_yticklabels([f"{tick:g}" for tick in TICKS], fontsize=8)
    bar.minorticks_off()
    bar.set_label("brightness [peak of the sky], asinh scale", fontsize=8)
    figure.suptitle(TITLE)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=110)


def _title(row: dict[str, Any]) -> str:
    side, n = row["side"], row["n"]
    told = "" if side == n else f", cells {side // n} x finer"
    quality = f"SNR {row['snr']:.1f} dB, right to {row['cycles']:.0f} cycles"
    return f"baselines to {n // 2} cycles\n{side} x {side}{told}\n{quality}"


def _zoom(image: Tensor) -> Tensor:
    """The part of the field that is drawn."""
    scale = image.shape[-1] / SKY
    row, column, side = (round(scale * value) for value in ZOOM)
    return image[row : row + side, column : column + side]


def _frame(x: float, y: float, side: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), side, side, fill=False, edgecolor="white", linewidth=0.8)


def main() -> None:
    made = parser(__doc__, "radio_resolution", data=True)
    made.add_argument("--prior", default="radio", help="shipped name or checkpoint")
    made.add_argument("--iterations", type=int, default=50, help=f"at most, at {SKY} x {SKY} (50)")
    made.add_argument("--largest", type=int, default=SKY, help=f"leave out larger images ({SKY})")
    made.add_argument("--figure", type=Path, metavar="PATH.png", help="picture")
    args = start(made)
    if args.iterations < 2:
        made.error(f"--iterations must be at least 2, got {args.iterations}")
    need(args.data / "radio" / f"meerkat_simulation_{HOURS}h_uv_only.npy")
    data = args.data.resolve()
    figure = check_writable(args.figure, overwrite=True).resolve() if args.figure else None
    prior = str(Path(args.prior).resolve()) if Path(args.prior).is_file() else args.prior
    rows = []
    with tempfile.TemporaryDirectory() as keep:
        for n, side in (pair for pair in FINER_OBSERVATION + FINER_CELLS if pair[1] <= args.largest):
            most = args.iterations if side == SKY else 50
            value, peak = peak_memory_of(reconstruct, n, side, str(data), prior, most, keep)
            rows.append(value | {"peak_memory_mb": peak, "most_iterations": most})
            print(f"n = {n}, {side} x {side}: {value['snr']:.2f} dB, {value['seconds']:.1f} s", flush=True)
        if figure:
            draw(figure, rows, Path(keep), sky())
    payload = {"prior": Path(args.prior).name, "hours": HOURS, "data_snr": SNR, "sky": SKY, "agreed": AGREED}
    report("radio_resolution", payload | {"rows": rows}, args.results)


if __name__ == "__main__":
    main()
