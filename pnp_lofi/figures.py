"""Figures people look at. Needs matplotlib: pip install 'pnp_lofi[plot]'."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pnp_lofi.files import check_writable, written_whole


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
    title: str = "",
    overwrite: bool = False,
) -> None:
    """A row of panels as PNG.

    :param bool sky: row 0 is at the bottom (North up, East left).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_writable(path, overwrite=overwrite)
    figure = Figure(figsize=(3.6 * len(panels), 4.1), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
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
