"""Figures people look at. Needs matplotlib: pip install 'pnp_lofi[plot]'."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pnp_lofi.files import check_writable, written_whole

LOWEST_CONTOUR, MOST_CONTOURS = 3.0, 12  # times the noise; each contour doubles the one before
TICKS = 7  # of the colour bar
BAD = "0.75"  # grey of pixels without value
NARROW = 20 / 3600  # field of view [deg] below which RA and Dec would need too many digits
OFFSETS = (("arcsec", 1.0), ("mas", 1e-3), ("uas", 1e-6))


@dataclass(frozen=True)
class Panel:
    """One picture of a figure.

    :param str title: above it.
    :param torch.Tensor image: (H, W), (1, H, W) or (3, H, W).
    :param tuple limits: black and white; default: minimum and maximum.
    :param str cmap: matplotlib's name.
    :param float stretch: values are shown as asinh(stretch x); 0 is linear.
    :param str unit: of the colour bar; none without.
    """

    title: str
    image: Tensor
    limits: tuple[float, float] | None = None
    cmap: str = "gray"
    stretch: float = 0.0
    unit: str = ""


def save_figure(
    path: str | os.PathLike[str],
    panels: Sequence[Panel],
    *,
    sky: bool = False,
    columns: int | None = None,
    title: str = "",
    overwrite: bool = False,
) -> None:
    """Panels as PNG.

    :param bool sky: row 0 is at the bottom (North up, East left).
    :param int columns: panels in a row; default all of them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_writable(path, overwrite=overwrite)
    columns = min(columns or len(panels), len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 4.1 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes, panels, strict=False):
        pixels = _pixels(panel)
        limits = panel.limits or (float(pixels.min()), float(pixels.max()))
        if panel.stretch:
            pixels = np.arcsinh(panel.stretch * pixels)
            limits = (float(np.arcsinh(panel.stretch * limits[0])), float(np.arcsinh(panel.stretch * limits[1])))
        shown = axis.imshow(pixels, cmap=panel.cmap, vmin=limits[0], vmax=limits[1], interpolation="nearest",
                            origin="lower" if sky else "upper")  # fmt: skip
        axis.set_title(panel.title, fontsize=9)
        axis.set_axis_off()
        if panel.unit:
            bar = figure.colorbar(shown, ax=axis, orientation="horizontal", fraction=0.05, pad=0.02)
            bar.set_label(panel.unit, fontsize=8)
            bar.ax.tick_params(labelsize=7)
            if panel.stretch:
                ticks = np.linspace(*limits, 4).tolist()
                bar.set_ticks(ticks, labels=[f"{np.sinh(t) / panel.stretch:.2g}" for t in ticks])
    if title:
        figure.suptitle(title, fontsize=10)
    with written_whole(path, overwrite=overwrite) as part:
        figure.savefig(part, format="png", dpi=110)


def _pixels(panel: Panel) -> np.ndarray:
    image = panel.image.detach().float().cpu()
    image = image[None] if image.ndim == 2 else image
    if image.ndim != 3 or len(image) not in (1, 3):
        raise ValueError(f"a panel shows (H, W), (1, H, W) or (3, H, W), got {tuple(panel.image.shape)}")
    return image[0].numpy() if len(image) == 1 else image.clamp(0, 1).permute(1, 2, 0).numpy()


def quick_look(
    path: str | os.PathLike[str],
    image: Tensor,
    header: dict[str, Any],
    *,
    noise: float | None = None,
    limits: tuple[float, float] | None = None,
    stretch: float | None = None,
    cmap: str = "inferno",
    title: str = "",
    overwrite: bool = False,
) -> None:
    """One image of the sky as PNG: axes in RA and Dec (below 20 arcsec in offsets), colour bar with the unit, contours
    at -3, 3, 6, 12, ... times the noise (negative ones dashed), the beam as a hatched ellipse in the corner. NaN is
    grey.

    :param torch.Tensor image: (H, W).
    :param dict header: from :func:`pnp_lofi.fits.sky_header`, whose BUNIT and BMAJ, BMIN, BPA are shown.
    :param float noise: [units of the image]; None: no contours.
    :param tuple limits: dark and bright; default -3 times the noise (or the minimum) and the maximum.
    :param float stretch: colours grow as asinh(stretch x); 0 is linear; default 1/(5 noise), or linear without.
    :raises ValueError: if the image is not (H, W) or has no finite pixel, or the noise is not > 0.
    """
    from astropy.io.fits import Header
    from astropy.wcs import WCS
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import AsinhNorm, Normalize
    from matplotlib.figure import Figure

    check_writable(path, overwrite=overwrite)
    pixels = image.detach().double().cpu().numpy()
    if pixels.ndim != 2 or not np.isfinite(pixels).any():
        raise ValueError(f"quick_look shows (H, W) with finite pixels, got {tuple(image.shape)}")
    if noise is not None and not 0 < noise < np.inf:
        raise ValueError(f"noise must be finite and > 0, got {noise}; leave it out where it is not known")
    low, high = limits or (float(np.nanmin(pixels)) if noise is None else -3 * noise, float(np.nanmax(pixels)))
    high = high if high > low else low + 1.0
    stretch = stretch if stretch is not None else 0.0 if noise is None else 1 / (5 * noise)
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    narrow = header["CDELT2"] * max(pixels.shape) < NARROW
    axis = figure.add_subplot(projection=None if narrow else WCS(Header(header)).celestial)
    norm = AsinhNorm(1 / stretch, low, high) if stretch else Normalize(low, high)
    colours = colormaps[cmap].with_extremes(bad=BAD)
    shown = axis.imshow(pixels, cmap=colours, norm=norm, interpolation="nearest", origin="lower")
    if noise is not None:
        multiples = LOWEST_CONTOUR * 2.0 ** np.arange(MOST_CONTOURS)
        levels = noise * np.array([-LOWEST_CONTOUR, *multiples])
        levels = levels[(levels > np.nanmin(pixels)) & (levels < np.nanmax(pixels))]
        if len(levels):
            styles = ["dashed" if level < 0 else "solid" for level in levels]
            axis.contour(pixels, levels, colors="white", linewidths=0.5, linestyles=styles)
    if "BMAJ" in header:
        _draw_beam(axis, header, pixels.shape)
    if narrow:
        _label_offsets(axis, header, pixels.shape)
    else:
        axis.set_xlabel("RA (ICRS)")
        axis.set_ylabel("Dec (ICRS)")
    unit = header.get("BUNIT", "")
    bar = figure.colorbar(shown, ax=axis, fraction=0.046, pad=0.02)
    ticks = np.asarray(norm.inverse(np.linspace(0, 1, TICKS))).tolist()
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
    bar.minorticks_off()
    bar.set_label(unit if noise is None else f"{unit}; contours -3, 3, 6, 12, ... x {noise:.2g}", fontsize=8)
    axis.set_title(title, fontsize=10)
    with written_whole(path, overwrite=overwrite) as part:
        figure.savefig(part, format="png", dpi=130)


def _label_offsets(axis: Any, header: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Offsets from the phase centre, East to the left, in the unit that fits."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    cell = header["CDELT2"] * 3600
    unit, scale = next((u, s) for u, s in OFFSETS if cell * max(shape) >= s or s == OFFSETS[-1][1])
    labels = (("x", shape[1], -1, "East"), ("y", shape[0], 1, "North"))
    for name, n, sign, towards in labels:
        one = getattr(axis, f"{name}axis")
        step = sign * cell / scale
        one.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
        one.set_major_formatter(FuncFormatter(lambda p, _, n=n, step=step: f"{(p - n // 2) * step:.4g}"))
        one.set_label_text(f"offset to the {towards} [{unit}]")


def _draw_beam(axis: Any, header: dict[str, Any], shape: tuple[int, ...]) -> None:
    """In the lower left corner, on white; its major axis turned from North (up) to East (left), that is to the left."""
    from matplotlib.patches import Ellipse, Rectangle

    major, minor = header["BMAJ"] / header["CDELT2"], header["BMIN"] / header["CDELT2"]
    side, gap = 1.3 * major, 0.02 * min(shape)
    axis.add_patch(Rectangle((gap - 0.5, gap - 0.5), side, side, facecolor="white", edgecolor="black", linewidth=0.5))
    middle = gap - 0.5 + side / 2
    axis.add_patch(Ellipse((middle, middle), minor, major, angle=header["BPA"], facecolor="none", edgecolor="black",
                           hatch="//////", linewidth=0.8))  # fmt: skip
