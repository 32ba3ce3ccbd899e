"""How sharp and how noisy a CT picture is: modulation transfer function and noise power spectrum."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pnp_lofi.ct_scans import Scan, from_hu, to_hu
from pnp_lofi.datasets import check_real
from pnp_lofi.files import check_writable, written_whole
from pnp_lofi.metrics import psnr
from pnp_lofi.phantoms import draw

BIN = 0.2  # of the edge spread function [pixel]: each pixel has a radius of its own, so finer than pixels
REACH = 8.0  # of the edge spread function to either side of the edge [pixel]
WINGS = 0.25  # of its length at either end: where it is level
BODY, INSERT = 0.84, 0.4  # radii of the phantom's cylinder and of its insert; the image is [-1, 1]^2
ASIDE = (0.31, 0.23)  # the insert's centre lies off the middle by so much, that no two pixels are equally far [pixel]
Networks = dict[str, Callable[[Tensor], Tensor]]


class MTF(NamedTuple):
    """:param torch.Tensor frequency: (F,) [1/mm], value: (F,), 1 at zero."""

    frequency: Tensor
    value: Tensor

    def at(self, level: float) -> float:
        """The frequency at which it first falls to a level, such as 0.5 [1/mm]; NaN if it does not."""
        below = (self.value <= level).nonzero()
        if not len(below) or not 0 < level < 1:
            return math.nan
        k = int(below[0])
        a, b = float(self.value[k - 1]), float(self.value[k])
        f, g = float(self.frequency[k - 1]), float(self.frequency[k])
        return f + (g - f) * (a - level) / (a - b)


class NPS(NamedTuple):
    """:param torch.Tensor plane: (H, W) [units^2 mm^2], zero frequency first; its mean over pixel^2 is the variance.
    :param torch.Tensor frequency: (F,) [1/mm], ring: (F,) the mean of the plane on rings.
    """

    plane: Tensor
    frequency: Tensor
    ring: Tensor

    def level(self, pixel: float) -> float:
        """Standard deviation [units]. float pixel: [mm]."""
        return float(self.plane.mean()) ** 0.5 / pixel


def edge_spread(image: Tensor, centre: tuple[float, float], radius: float, *, reach: float = REACH) -> Tensor:
    """Profile across the edge of a disk, finer than the pixels: the mean over bins of 0.2 pixel of the distance.

    :param torch.Tensor image: (H, W).
    :param tuple centre: row and column [pixel]. float radius: of the disk [pixel].
    :param float reach: to either side of the edge [pixel], where nothing else may lie.
    :returns: (bins,) from inside to outside.
    :raises ValueError: if the image or the disk is too small for that, for NaN or infinity.
    """
    if image.ndim != 2:
        raise ValueError(f"expected a picture (H, W), got {tuple(image.shape)}")
    check_real("edge_spread", image=image)
    H, W = image.shape
    inside = min(centre[0], H - 1 - centre[0], centre[1], W - 1 - centre[1])
    if radius + reach > inside or radius < reach:
        raise ValueError(
            f"expected a disk with {reach:g} pixels to either side of its edge, got a radius of {radius:g} with "
            f"{inside:g} pixels from its centre to the border; draw it larger, on more pixels"
        )
    rows = torch.arange(H, dtype=torch.float64)[:, None] - centre[0]
    columns = torch.arange(W, dtype=torch.float64) - centre[1]
    distance = torch.hypot(rows, columns) - radius
    near = distance.abs() < reach
    count = round(2 * reach / BIN)
    where = ((distance[near] + reach) / BIN).long().clamp(0, count - 1)
    values = image.double()[near]
    total = torch.zeros(count, dtype=torch.float64).index_add_(0, where, values)
    number = torch.zeros(count, dtype=torch.float64).index_add_(0, where, torch.ones_like(values))
    if bool((number == 0).any()):
        raise ValueError(f"a disk of radius {radius:g} has too few pixels at its edge; draw it on more pixels")
    return total / number


def mtf(image: Tensor, centre: tuple[float, float], radius: float, pixel: float, *, reach: float = REACH) -> MTF:
    """Of a picture of a disk: the Fourier transform of the derivative of its edge.

    For a network, which is not linear, this is the *task* transfer function: of an edge of that contrast in that
    noise. Take the mean over noise realisations for the image.

    :param torch.Tensor image: (H, W). tuple centre: [pixel]. float radius: [pixel].
    :param float pixel: side of a pixel [mm].
    :raises ValueError: if there is no edge, or the disk does not fit.
    Source: Samei et al. 2019, AAPM report TG-233, section 3; edges of disks: Richard et al. 2012.
    Differs: averages over bins and the difference quotient are divided out; only the outer quarters are tapered.
    """
    profile = edge_spread(image, centre, radius, reach=reach)
    count = len(profile)
    wing = max(1, int(WINGS * count))
    step = float(profile[-wing:].mean() - profile[:wing].mean())
    if abs(step) < 1e-6 * float(image.abs().max()) or step == 0:
        raise ValueError("the disk does not differ from what is around it: there is no edge to measure")
    line = profile.diff() / step
    ramp = torch.linspace(0, 1, wing + 2, dtype=torch.float64)[1:-1]
    line[:wing] *= 0.5 - 0.5 * torch.cos(math.pi * ramp)  # what noise there is far from the edge counts less
    line[-wing:] *= 0.5 + 0.5 * torch.cos(math.pi * ramp)
    size = 8 * count
    spectrum = torch.fft.rfft(line, size).abs()
    cycles = torch.fft.rfftfreq(size, dtype=torch.float64)  # per bin
    value = spectrum / spectrum[0] / torch.sinc(cycles) ** 2  # a bin's mean, and the difference of two bins
    kept = cycles / BIN <= 1  # cycles/pixel: twice Nyquist
    return MTF(cycles[kept] / (BIN * pixel), value[kept])


def nps(images: Tensor, pixel: float) -> NPS:
    """Of pictures of one object with independent noise: the power of what differs between them.

    :param torch.Tensor images: (n, H, W), n >= 2, in HU for instance.
    :param float pixel: side of a pixel [mm].
    :raises ValueError: for other shapes, NaN or infinity.
    Source: Samei et al. 2019, AAPM report TG-233: dx dy / (H W) mean |F(image - mean)|^2 n / (n - 1).
    """
    if images.ndim != 3 or len(images) < 2 or min(images.shape[-2:]) < 4:
        raise ValueError(f"expected two or more pictures of one object, (n, H, W), got {tuple(images.shape)}")
    check_real("nps", images=images)
    n, H, W = images.shape
    noise = images.double() - images.double().mean(0)
    power = torch.fft.fft2(noise).abs().square().sum(0) / (n - 1)
    plane = power * (pixel**2 / (H * W))
    rows, columns = (torch.fft.fftfreq(k, dtype=torch.float64) for k in (H, W))
    radius = torch.hypot(rows[:, None], columns)
    width = 1 / min(H, W)
    ring = (radius / width).round().long()
    count = int(0.5 / width) + 1
    kept = ring < count
    total = torch.zeros(count, dtype=torch.float64).index_add_(0, ring[kept], plane[kept])
    number = torch.zeros(count, dtype=torch.float64).index_add_(0, ring[kept], torch.ones_like(plane[kept]))
    frequency = torch.arange(count, dtype=torch.float64) * width / pixel
    return NPS(plane, frequency, total / number.clamp(min=1))


def figures_of_merit(images: Sequence[tuple[Tensor, Tensor]]) -> dict[str, dict[str, float]]:
    """PSNR [dB] (range: max - min of the truth, as in the LoFi paper) and SSIM (deepinv's, of that range): mean and
    standard deviation over (answer, truth), (1, 1, H, W) each."""
    from deepinv.loss.metric import SSIM

    ssim = SSIM(max_pixel=None, min_pixel=None)
    each = {"psnr": [psnr(a, x) for a, x in images], "ssim": [float(ssim(a, x)) for a, x in images]}
    rows = {name: torch.tensor(values, dtype=torch.float64) for name, values in each.items()}
    return {name: {"mean": float(row.mean()), "std": float(row.std(correction=min(1, len(row) - 1)))}
            for name, row in rows.items()}  # fmt: skip


def disk_phantom(side: int, contrast: float) -> Tensor:
    """A cylinder of water with an insert in its middle, (side, side) float32 [HU].

    :param float contrast: of the insert [HU].
    """
    x, y = 2 * ASIDE[1] / side, -2 * ASIDE[0] / side
    ellipses = torch.tensor([[1.0, BODY, BODY, 0, 0, 0], [contrast / 1000, INSERT, INSERT, x, y, 0]])
    return (1000 * (draw(ellipses, side, samples=8) - 1)).float()


def insert_of(side: int) -> tuple[tuple[float, float], float]:
    """Centre and radius of the insert of :func:`disk_phantom` [pixel]."""
    return ((side - 1) / 2 + ASIDE[0], (side - 1) / 2 + ASIDE[1]), INSERT * side / 2


def flat_part(image: Tensor) -> Tensor:
    """Of pictures (..., side, side) of a cylinder without insert: the square in its middle."""
    side = image.shape[-1]
    margin = round(side * (1 - BODY / math.sqrt(2) * 0.9) / 2)
    return image[..., margin : side - margin, margin : side - margin]


@torch.no_grad()
def measured(
    networks: Networks, scan: Scan, *, contrast: float, side: int, pixel: float, draws: int, seed: int = 0
) -> dict[str, tuple[MTF, NPS]]:
    """Of each method: the MTF of an insert's edge, from the mean over noise realisations, and the NPS in water.

    :param dict networks: what makes a picture of a filtered backprojection (1, 1, side, side), in units of water's
        attenuation both.
    :param float contrast: of the insert [HU]. float pixel: [mm]. int draws: noise realisations.
    """
    generator, seen = torch.Generator().manual_seed(seed), []
    for part in (disk_phantom(side, contrast), disk_phantom(side, 0.0)):  # an edge, and water without one
        clean = scan.operator(side).A(from_hu(part)[None, None]).expand(draws, -1, -1, -1)
        seen.append(scan.seen(scan.noisy(clean, generator, [pixel] * draws), side))
    found = {}
    for name, network in networks.items():
        edge, flat = (to_hu(torch.cat([network(q[None]).cpu() for q in part]))[:, 0] for part in seen)
        found[name] = mtf(edge.mean(0), *insert_of(side), pixel), nps(flat_part(flat), pixel)
    return found


def told(found: dict[str, tuple[MTF, NPS]], pixel: float) -> dict[str, Any]:
    """For JSON. float pixel: [mm]."""
    return {
        name: {
            "mtf50": sharp.at(0.5), "mtf10": sharp.at(0.1), "noise": noisy.level(pixel),
            "mtf": [sharp.frequency.tolist(), sharp.value.tolist()],
            "nps": [noisy.frequency.tolist(), noisy.ring.tolist()],
        }
        for name, (sharp, noisy) in found.items()
    }  # fmt: skip


def save_curves(
    path: str | os.PathLike[str], found: dict[str, tuple[MTF, NPS]], *, title: str = "", overwrite: bool = False
) -> None:
    """Both curves of each method as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_writable(path, overwrite=overwrite)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for name, (sharp, noisy) in found.items():
        left.plot(sharp.frequency, sharp.value, label=name)
        right.semilogy(noisy.frequency[1:], noisy.ring[1:], label=name)
    left.set(xlabel="frequency [1/mm]", ylabel="MTF of the insert's edge", ylim=(0, None))
    right.set(xlabel="frequency [1/mm]", ylabel="NPS [HU$^2$ mm$^2$]")
    left.legend()
    figure.suptitle(title, fontsize=10)
    with written_whole(path, overwrite=overwrite) as part:
        figure.savefig(part, format="png", dpi=110)
