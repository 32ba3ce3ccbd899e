"""Filtered backprojection: ramp filters, and how much each view counts."""

import math

import torch
from torch import Tensor

WINDOWS = ("ramp", "shepp-logan", "cosine", "hamming", "hann")
ALONE = 4.0  # a gap between views this many times the median is no sampling but a missing wedge


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


def view_weights(angles: Tensor, period: float) -> Tensor:
    """How much of an arc each view stands for [rad]: half of the gaps to its neighbours.

    A missing wedge belongs to nobody, and views of the same angle share.

    :param torch.Tensor angles: (A,) in any order. float period: pi for parallel rays, 2 pi for fans.
    """
    folded, order = torch.sort(angles.double() % period)
    folded = torch.where(period - folded < 1e-9, torch.zeros_like(folded), folded)
    folded, again = torch.sort(folded)
    order = order[again]
    gaps = torch.diff(folded, append=folded[:1] + period)
    real = gaps[gaps > 1e-9]
    gaps = torch.where(gaps > ALONE * real.median(), real.median(), gaps)
    result = torch.empty_like(gaps)
    result[order] = (gaps + gaps.roll(1)) / 2
    return result


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
