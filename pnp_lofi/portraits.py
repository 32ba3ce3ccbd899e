"""Portraits of a trained LoFi: what its filter lets through, and where its patches look. Needs matplotlib."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.files import check_writable, written_whole
from pnp_lofi.filters import SpatialFilter, SpectralFilter
from pnp_lofi.lofi import LoFi
from pnp_lofi.sampling import positions, reflect_pad

REACH = 10  # an impulse response is shown this far from its centre [pixel]
FREQUENCIES = 256  # side of the grid on which a kernel's transfer function is drawn
TRANSPARENT = 0.05  # of the largest |H|: below, a phase means nothing and is faded out
MOST_PATCHES = 12
BEYOND = 2  # an inset shows so much more than the patch [pixel]
LABEL = 0.06  # height of a patch's number, of the image's


def filter_portrait(model: LoFi, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Draw a model's learned filter: for each response H its modulus, its phase and its impulse response.

    One row per filter and channel. Frequencies are in cycles/pixel with 0 in the middle, displacements in pixels.
    A spatial filter's kernels are drawn as the weights of q(x + d), and H(f) = sum_d k(d) exp(2 pi i f d).

    :param path: of the PNG.
    :returns: the path.
    :raises ValueError: if the model has no filter.
    Source: arXiv 2411.04995v2, Fig. 17.
    """
    path = check_writable(path, overwrite=overwrite)
    filters = model.filter
    if filters is None:
        raise ValueError("this LoFi has no filter to draw; it was built with filter=None")
    figure, axes = _canvas(len(_names(filters)), 4, 3.1, 2.9)
    for row, (name, found) in enumerate(zip(_names(filters), _responses(filters), strict=True)):
        response, impulse = found
        size, middle = np.abs(response), impulse.shape[0] // 2
        _frequency(figure, axes[row, 0], size, f"{name}: |H|", cmap="viridis", vmin=0)
        alpha = np.clip(size / max(TRANSPARENT * size.max(), np.finfo(float).tiny), 0, 1)
        axes[row, 1].set_facecolor("0.5")
        _frequency(figure, axes[row, 1], np.angle(response), "phase of H [rad]", cmap="twilight_shifted",
                   vmin=-math.pi, vmax=math.pi, alpha=alpha)  # fmt: skip
        spatial = isinstance(filters, SpatialFilter)
        parts = [("kernel" if spatial else "impulse response, real", impulse.real)]
        parts += [] if spatial else [("impulse response, imaginary", impulse.imag)]
        for axis, (title, values) in zip(axes[row, 2:], parts, strict=False):
            limit = float(np.abs(values).max()) or 1.0
            shown = axis.imshow(values, extent=(-middle - 0.5, middle + 0.5, middle + 0.5, -middle - 0.5),
                                cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")  # fmt: skip
            _finish(figure, axis, shown, title, "[pixel]")
        if spatial:
            _section(axes[row, 3], response)
    _save(figure, path, overwrite)
    return path


def patch_portrait(
    model: LoFi,
    q: Tensor,
    coords: Tensor,
    path: str | os.PathLike[str],
    *,
    sigma: float | Tensor | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw an image with the points that the patches of some coordinates read, one colour per ray.

    The image on the left, and every patch enlarged on the right; what lies beyond the border is the mirror image.

    :param torch.Tensor q: (1, C, H, W); one channel is drawn in grey, three in colour, of others the first.
    :param torch.Tensor coords: (P, 2) in [0, 1], as in :meth:`~pnp_lofi.lofi.LoFi.at`, at most 12.
    :param path: of the PNG.
    :param sigma: as in :meth:`~pnp_lofi.lofi.LoFi.at`.
    :returns: the path.
    :raises ValueError: if there is more than one image, or there are no coordinates or too many.
    Source: arXiv 2411.04995v2, Figs. 7 and 9.
    """
    path = check_writable(path, overwrite=overwrite)
    if q.ndim != 4 or len(q) != 1:
        raise ValueError(f"a patch portrait shows one image (1, channels, height, width), got {tuple(q.shape)}")
    if coords.ndim != 2 or coords.shape[-1] != 2 or not 1 <= len(coords) <= MOST_PATCHES:
        raise ValueError(f"a patch portrait shows (P, 2) coordinates, P = 1..{MOST_PATCHES}, got {tuple(coords.shape)}")
    with torch.no_grad():
        places = model.looks_at(q, coords, sigma)[0].cpu().double().numpy()
    size = (q.shape[-2], q.shape[-1])
    asked = positions(coords.detach().cpu().double(), size, corners=model.official).numpy()  # before an INR
    rays = places.reshape(len(places), model.rays, -1, 2)
    line = model.geometry.layout == "circular"  # of a square or a cloud, a ray is no line
    columns = min(len(coords), 3 if len(coords) > 4 else 2)
    rows = math.ceil(len(coords) / columns)
    figure, whole, insets = _halves(rows, columns, q.shape[-1] / q.shape[-2])
    picture, limits = _picture(q)
    whole.imshow(_drawn(picture, 0), cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest")
    whole.set_xlim(-0.5, q.shape[-1] - 0.5)
    whole.set_ylim(q.shape[-2] - 0.5, -0.5)
    _ticks(whole)
    for k, axis in enumerate(insets):
        if k >= len(coords):
            axis.set_axis_off()
            continue
        box = _inset(axis, picture, limits, rays[k], asked[k], line=line)
        axis.set_title(f"{k + 1}: ({asked[k][0]:.4g}, {asked[k][1]:.4g}) [pixel]", fontsize=9)
        _mark(whole, k, rays[k], asked[k], box)
    whole.set_title(f"{q.shape[-2]} x {q.shape[-1]} pixels, {model.rays} rays of {model.rings} points", fontsize=9)
    _save(figure, path, overwrite)
    return path


def _names(filters: SpectralFilter | SpatialFilter) -> list[str]:
    """Rows of a filter's portrait; spectral filters count filters first, spatial ones channels first."""
    if isinstance(filters, SpatialFilter):
        pairs = [(k, c) for c in range(filters.channels) for k in range(filters.count)]
        channels = filters.channels
    else:
        channels = 1 if filters.complex_pair else filters.channels
        pairs = [(k, c) for k in range(filters.count) for c in range(channels)]
    return [
        ", ".join([f"filter {k + 1}"] * (filters.count > 1) + [f"channel {c + 1}"] * (channels > 1)) or "filter"
        for k, c in pairs
    ]


def _responses(filters: SpectralFilter | SpatialFilter) -> list[tuple[np.ndarray, np.ndarray]]:
    """H with frequency 0 in the middle, and the impulse response (of a spatial filter the kernel) around its centre."""
    if isinstance(filters, SpatialFilter):
        kernels = filters.kernels.detach().cpu().double().numpy()[:, 0]
        found = []
        for kernel in kernels:
            padded = np.zeros((FREQUENCIES, FREQUENCIES))
            side = len(kernel)
            padded[:side, :side] = kernel
            padded = np.roll(padded, (-(side // 2), -(side // 2)), (0, 1))
            found.append((np.fft.fftshift(np.conj(np.fft.fft2(padded))), kernel + 0j))
        return found
    pair = filters.response.detach().cpu().double().numpy()
    found = []
    for response in pair[0] + 1j * pair[1]:
        impulse, reach = np.fft.fftshift(np.fft.ifft2(response)), min(REACH, (len(response) - 1) // 2)
        middle = len(response) // 2
        cut = slice(middle - reach, middle + reach + 1)
        found.append((np.fft.fftshift(response), impulse[cut, cut]))
    return found


def _frequency(figure: Any, axis: Any, values: np.ndarray, title: str, **look: Any) -> None:
    """Values on a square of frequencies, 0 at index n // 2."""
    n = len(values)
    first, last = (-(n // 2) - 0.5) / n, (n - n // 2 - 0.5) / n
    shown = axis.imshow(values, extent=(first, last, last, first), interpolation="nearest", **look)
    _finish(figure, axis, shown, title, "[cycles/pixel]")


def _section(axis: Any, response: np.ndarray) -> None:
    """|H| along both axes of frequency, beside a kernel."""
    n, middle, size = len(response), len(response) // 2, np.abs(response)
    f = (np.arange(n) - middle) / n
    axis.plot(f, size[middle], label="along columns")
    axis.plot(f, size[:, middle], "--", label="along rows")
    axis.set_title(f"|H| on the axes, H(0) = {round(response[middle, middle].real, 3) + 0.0:.3f}", fontsize=9)
    axis.set_xlabel("[cycles/pixel]", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=7)


def _finish(figure: Any, axis: Any, shown: Any, title: str, unit: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(unit, fontsize=8)
    axis.tick_params(labelsize=7)
    figure.colorbar(shown, ax=axis, fraction=0.046, pad=0.03).ax.tick_params(labelsize=7)


def _picture(q: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """(1, 1 or 3, H, W) for the eye, and its black and white."""
    x = q.detach().cpu().float()
    x = x if x.shape[1] in (1, 3) else x[:, :1]
    low, high = float(x.min()), float(x.max())
    if x.shape[1] == 3:
        x = (x - low) / ((high - low) or 1.0)
        return x, (0.0, 1.0)
    return x, (low, high if high > low else low + 1)


def _drawn(picture: Tensor, margin: int) -> np.ndarray:
    wide = reflect_pad(picture, margin)[0].permute(1, 2, 0).numpy()
    return wide[..., 0] if wide.shape[-1] == 1 else wide


def _box(points: np.ndarray) -> tuple[float, float, float]:
    """Centre (row, column) and half side of the square that holds the points [pixel]."""
    low, high = points.min(0) - BEYOND, points.max(0) + BEYOND
    (row, column), half = (low + high) / 2, float((high - low).max()) / 2
    return float(row), float(column), half


def _inset(
    axis: Any,
    picture: Tensor,
    limits: tuple[float, float],
    rays: np.ndarray,
    centre: np.ndarray,
    *,
    line: bool,
) -> tuple[float, float, float]:
    """One patch, enlarged: rays (M, N, 2) [pixel]; returns the square that is shown, as ``_box``."""
    height, width = picture.shape[-2:]
    row, column, half = box = _box(np.concatenate([rays.reshape(-1, 2), centre[None]]))
    margin = math.ceil(max(half - row, half - column, row + half - height, column + half - width, 0)) + 1
    extent = (-margin - 0.5, width + margin - 0.5, height + margin - 0.5, -margin - 0.5)
    axis.imshow(_drawn(picture, margin), extent=extent, cmap="gray", vmin=limits[0], vmax=limits[1],
                interpolation="nearest")  # fmt: skip
    _border(axis, height, width, extent)
    for colour, ray in zip(_colours(len(rays)), rays, strict=True):
        if line:
            axis.plot(ray[:, 1], ray[:, 0], "-", color=colour, linewidth=0.8, alpha=0.7)
        axis.scatter(ray[:, 1], ray[:, 0], s=16, color=colour, edgecolors="white", linewidths=0.4, zorder=3)
    axis.plot(centre[1], centre[0], "+", color="white", markersize=15, markeredgewidth=3.2, zorder=4)
    axis.plot(centre[1], centre[0], "+", color="black", markersize=13, markeredgewidth=1.4, zorder=5)
    axis.set_xlim(column - half, column + half)
    axis.set_ylim(row + half, row - half)
    _ticks(axis)
    return box


def _border(axis: Any, height: int, width: int, extent: tuple[float, float, float, float]) -> None:
    """Shade what is not image but its mirror, and draw the line between."""
    from matplotlib.patches import Rectangle

    left, right, bottom, top = extent
    for x, y, w, h in (
        (left, top, right - left, -0.5 - top),
        (left, height - 0.5, right - left, bottom - height + 0.5),
        (left, -0.5, -0.5 - left, height),
        (width - 0.5, -0.5, right - width + 0.5, height),
    ):
        axis.add_patch(Rectangle((x, y), w, h, color="tab:blue", alpha=0.25, linewidth=0))
    axis.add_patch(Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor="tab:blue", linewidth=1))


def _mark(axis: Any, k: int, rays: np.ndarray, centre: np.ndarray, box: tuple[float, float, float]) -> None:
    """A patch on the whole image: its points, its square and its number."""
    from matplotlib.patches import Rectangle

    row, column, half = box
    for colour, ray in zip(_colours(len(rays)), rays, strict=True):
        axis.scatter(ray[:, 1], ray[:, 0], s=2, color=colour, linewidths=0, zorder=3)
    axis.add_patch(
        Rectangle((column - half, row - half), 2 * half, 2 * half, fill=False, edgecolor="gold", linewidth=0.9)
    )
    top = axis.get_ylim()[0] * LABEL > row - half  # no room above: the number goes into the square
    axis.text(max(column - half, -0.5), max(row - half, -0.5), str(k + 1), fontsize=9, zorder=5, va="top" if top
              else "bottom", bbox={"boxstyle": "round,pad=0.15", "facecolor": "gold", "linewidth": 0})  # fmt: skip
    axis.plot(centre[1], centre[0], "+", color="white", markersize=6, markeredgewidth=1.2, zorder=4)


def _ticks(axis: Any) -> None:
    axis.tick_params(labelsize=7)
    axis.locator_params(nbins=6, integer=True)
    axis.set_aspect("equal")


def _colours(count: int) -> list[Any]:
    """One colour per ray, round the circle."""
    import matplotlib

    return [matplotlib.colormaps["hsv"](m / count) for m in range(count)]


def _canvas(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _halves(rows: int, columns: int, aspect: float) -> tuple[Any, Any, list[Any]]:
    """A figure, the axis of the whole image, which is ``aspect`` times as wide as high, and those of the insets."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = max(4.4, 2.9 * rows)
    widths = [min(max(height * aspect, 3.0), 12.0), 2.9 * columns]
    figure = Figure(figsize=(sum(widths), height), layout="constrained")
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(1, 2, width_ratios=widths)
    return figure, halves[0].subplots(), list(halves[1].subplots(rows, columns, squeeze=False).flat)


def _save(figure: Any, path: Path, overwrite: bool) -> None:
    with written_whole(path, overwrite=overwrite) as part:
        figure.savefig(part, format="png", dpi=120)
