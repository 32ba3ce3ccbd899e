"""Filtered backprojection: ramp filters, and how much each view counts."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

WINDOWS = ("ramp", "shepp-logan", "cosine", "hamming", "hann")
NEAREST = 1e-6  # of the distance from source to axis: pixels are never nearer to the source
SAME = 1e-3  # of the mean gap: views nearer than this are one
ALONE, CHANCE = 4.0, 3.0  # a gap is a missing wedge beyond max(4, 3 ln A) mean gaps; chance makes it ln A


def window(name: str, frequency: Tensor) -> Tensor:
    """W(f) of a filter |f| W(f).

    :param torch.Tensor frequency: f relative to the cut-off; beyond 1 the window is zero.
    :raises ValueError: for an unknown name.
    Source: Kak and Slaney, Principles of Computerized Tomographic Imaging, chapter 3; names as in scikit-image.
    """
    f = frequency.abs()
    if name == "ramp":
        w = torch.ones_like(f)
    elif name == "shepp-logan":
        w = torch.sinc(f / 2)
    elif name == "cosine":
        w = torch.cos(math.pi / 2 * f)
    elif name == "hamming":
        w = 0.54 + 0.46 * torch.cos(math.pi * f)
    elif name == "hann":
        w = 0.5 + 0.5 * torch.cos(math.pi * f)
    else:
        raise ValueError(f"filter must be one of {', '.join(WINDOWS)}, got {name!r}")
    return torch.where(f <= 1, w, 0)


def ramp_filter(y: Tensor, spacing: float, name: str = "ramp", cutoff: float = 1.0) -> Tensor:
    """Convolve the rows of a sinogram with the band-limited ramp, times a window.

    :param torch.Tensor y: (..., D).
    :param float spacing: of the detectors.
    :param float cutoff: where the window ends, as a fraction of the Nyquist frequency, 0 < cutoff <= 1.
    :returns: (..., D) [units of y / unit of spacing].
    :raises ValueError: for an unknown filter or a cut-off out of range.
    Source: Kak and Slaney, equation 3.61: sampled in space, where the mean is right, not in frequency.
    """
    if not 0 < cutoff <= 1:
        raise ValueError(f"cutoff must be a fraction of Nyquist with 0 < cutoff <= 1, got {cutoff}")
    count = y.shape[-1]
    size = max(64, 2 ** math.ceil(math.log2(2 * count)))
    n = torch.arange(size // 2 + 1, dtype=torch.float64, device=y.device)
    kernel = torch.where(n % 2 == 1, -1 / (math.pi * n.clamp(min=1)) ** 2, 0)
    kernel[0] = 0.25
    kernel = torch.cat([kernel, kernel[1:-1].flip(0)])
    frequency = torch.fft.rfftfreq(size, dtype=torch.float64, device=y.device) * 2
    response = torch.fft.rfft(kernel).real * window(name, frequency / cutoff) / spacing
    return torch.fft.irfft(torch.fft.rfft(y, size) * response.to(y.dtype), size)[..., :count]


class Arc(NamedTuple):
    """What views cover.

    :param torch.Tensor weights: (A,) how much of the arc each view stands for [rad].
    :param float start, length: of the arc [rad]; the whole period if no wedge is missing.
    """

    weights: Tensor
    start: float
    length: float


def view_arc(angles: Tensor, period: float) -> Arc:
    """How much of an arc each view stands for: half of the gaps to its neighbours.

    Views at nearly one angle share what one of them would have. Of the gaps only the widest can be a missing wedge,
    which belongs to nobody: if it is wider than chance would make it among as many views.

    :param torch.Tensor angles: (A,) in any order. float period: pi for parallel rays, 2 pi for fans.
    """
    folded, order = torch.sort(angles.double() % period)
    gaps = torch.diff(folded, append=folded[:1] + period)
    last = int(gaps.argmax())  # the first view follows the widest gap
    order, gaps = order.roll(-last - 1), gaps.roll(-last - 1)
    rest = period - float(gaps[-1])
    distinct = 1 + int((gaps[:-1] > SAME * rest / max(len(gaps) - 1, 1)).sum())
    mean = rest / (distinct - 1) if distinct > 1 else period
    wedge = float(gaps[-1]) > max(ALONE, CHANCE * math.log(distinct)) * mean
    if wedge:
        gaps[-1] = mean
    cells = (gaps + gaps.roll(1)) / 2
    near = torch.cat([gaps.new_zeros(1), (gaps[:-1] > SAME * mean).double().cumsum(0)]).long()  # views that are one
    shared = torch.zeros_like(cells).index_add_(0, near, cells) / torch.bincount(near, minlength=len(cells)).clamp(
        min=1
    )
    weights = torch.empty_like(cells)
    weights[order] = shared[near]
    start = float(angles.double()[order[0]]) % period - mean / 2
    return Arc(weights, start, rest + mean if wedge else period)


def displaced(places: Tensor, radius: float) -> Tensor | None:
    """How much of each line's two measurements a detector element stands for in a whole turn, if the detector reaches
    further on one side than on the other.

    :param torch.Tensor places: (D,) of the elements [any unit], in order.
    :param float radius: how far an image reaches, in the same unit.
    :returns: (D,) with w(u) + w(-u) = 1 where both are measured, or None if both sides reach far enough.
    Source: Wang 2002, Med. Phys. 29, 1634, equation 8.
    """
    half = float(places[-1] - places[0]) / max(len(places) - 1, 1) / 2
    low, high = -float(places.min()) + half, float(places.max()) + half
    short = min(low, high)
    if short >= radius or math.isclose(low, high, rel_tol=1e-3) or short <= 0:
        return None
    outward = places if high > low else -places
    return (torch.sin(math.pi / 2 * (outward / short).clamp(-1, 1)) + 1) / 2


def parker(beta: Tensor, gamma: Tensor, arc: float) -> Tensor:
    """Weights of a short scan, in which some lines are measured twice and others once.

    :param torch.Tensor beta: (A, 1) view angles from the start of the arc [rad]; gamma: (1, D) fan angles [rad].
    :param float arc: pi + 2 delta, which delta >= the largest |gamma| follows from.
    Source: Parker 1982, equation 12, gamma with the sign of this package (theta = beta - gamma).
    """
    delta = (arc - math.pi) / 2
    rising = torch.sin(math.pi / 4 * beta / (delta + gamma).clamp(min=1e-12)) ** 2
    falling = torch.sin(math.pi / 4 * (math.pi + 2 * delta - beta) / (delta - gamma).clamp(min=1e-12)) ** 2
    one = torch.ones_like(rising)
    return torch.where(beta < 2 * (delta + gamma), rising, torch.where(beta > math.pi + 2 * gamma, falling, one))


def smear(
    q: Tensor,
    angles: Tensor,
    shape: tuple[int, int],
    centre: tuple[float, float],
    *,
    spacing: float,
    first: float,
    source: float | None = None,
) -> Tensor:
    """Backprojection for pictures, sum_a w q_a(u): filtered data interpolated linearly at each pixel, view after view.

    :param torch.Tensor q: (B, A, D).
    :param torch.Tensor angles: (A,) [rad] float64.
    :param float spacing, first: of the detectors at the axis of rotation, and where the first one is [pixel].
    :param float source: of a fan, its distance from the axis [pixel]; then w = 1 / U^2, U the distance of the pixel
        from the source over that of the axis. None: parallel rays, w = 1.
    :returns: (B, H, W).
    """
    x = torch.arange(shape[1], dtype=torch.float64, device=q.device) - centre[1]
    y = (centre[0] - torch.arange(shape[0], dtype=torch.float64, device=q.device))[:, None]
    padded = torch.nn.functional.pad(q, (1, 1)).permute(1, 2, 0).contiguous()  # nothing beyond the ends
    total = q.new_zeros(shape[0] * shape[1], len(q))
    for cos, sin, data in zip(angles.cos().tolist(), angles.sin().tolist(), padded, strict=True):
        if source is None:
            place = (x * (cos / spacing)).to(q.dtype) + ((y * sin - first) / spacing).to(q.dtype)
        else:
            depth = ((1 - x * (sin / source)) + y * (cos / source)).to(q.dtype).clamp(min=NEAREST)
            place = ((x * (cos / spacing)).to(q.dtype) + (y * (sin / spacing)).to(q.dtype)) / depth - first / spacing
        place = place.flatten().clamp(-1, q.shape[-1])
        low = place.floor().clamp_(max=q.shape[-1] - 1)
        part, low = (place - low)[:, None], low.long() + 1
        value = torch.lerp(data[low], data[low + 1], part)
        total += value if source is None else value / depth.flatten()[:, None] ** 2
    return total.T.reshape(-1, *shape)
