"""What is asked of a mass map: where its peaks are, and whether its B mode is noise."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pnp_lofi.lensing_power import power_spectrum

REALISATIONS = 200  # of Gaussian noise, where none are asked for
TOGETHER = 16  # realisations transformed at a time
NEIGHBOURS = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]


class Peaks(NamedTuple):
    """Local maxima.

    :param torch.Tensor place: (n, 3) item of the batch, row, column; highest first.
    :param torch.Tensor height: (n,) [units of x].
    """

    place: Tensor
    height: Tensor


class NullTest(NamedTuple):
    """The B mode of data against realisations of the noise.

    :param torch.Tensor ell: (bins,).
    :param torch.Tensor power: (bins,) C_ell of the data's B mode [sr].
    :param torch.Tensor expected: (bins,) mean of the realisations' [sr]; Tensor spread: (bins,) standard deviation.
    :param float amplitude: mean of power / expected weighted by its precision: 1 for noise alone.
    :param float chi2: of power - expected with the covariance of the realisations; its expectation is about ``bins``.
    :param float pte: part of the realisations, data included, whose chi2 is at least as large; near 0: not noise.
    """

    ell: Tensor
    power: Tensor
    expected: Tensor
    spread: Tensor
    amplitude: float
    chi2: float
    pte: float


def find_peaks(x: Tensor, threshold: float = -math.inf, mask: Tensor | None = None) -> Peaks:
    """Pixels higher than their 8 neighbours; the pixels on the map's border are none.

    :param torch.Tensor x: (B, 1, H, W).
    :param float threshold: least height [units of x].
    :param torch.Tensor mask: (H, W), where peaks count.
    """
    _check_map(x)
    inner = x[:, 0, 1:-1, 1:-1]
    found = inner >= threshold
    height, width = x.shape[-2:]
    for r, c in NEIGHBOURS:
        found = found & (inner > x[:, 0, 1 + r : height - 1 + r, 1 + c : width - 1 + c])
    if mask is not None:
        found = found & mask.bool()[1:-1, 1:-1]
    place = found.nonzero()
    heights = inner[found]
    order = heights.argsort(descending=True)
    return Peaks(place[order] + torch.tensor([0, 1, 1], device=x.device), heights[order])


def peak_counts(x: Tensor, edges: Tensor, mask: Tensor | None = None) -> Tensor:
    """Number of peaks between heights.

    :param torch.Tensor x: (B, 1, H, W), usually smoothed.
    :param torch.Tensor edges: (n + 1,) growing [units of x]; a bin holds its lower edge.
    :param torch.Tensor mask: (H, W), where peaks count.
    :returns: (B, n) int64.
    """
    if edges.ndim != 1 or len(edges) < 2 or not bool((edges.diff() > 0).all()):
        raise ValueError("edges must be two or more heights that grow")
    peaks, n = find_peaks(x, mask=mask), len(edges) - 1
    which = torch.bucketize(peaks.height, edges.to(x), right=True) - 1
    fits = (which >= 0) & (which < n)
    flat = peaks.place[fits, 0] * n + which[fits]
    return torch.bincount(flat, minlength=len(x) * n).reshape(len(x), n)


@torch.no_grad()
def b_mode_test(
    op: Any,
    y: Tensor,
    *,
    pixel: float,
    bins: int | Tensor = 8,
    noise: Tensor | None = None,
    realisations: int | None = None,
    kappa: Tensor | None = None,
    seed: int = 0,
) -> NullTest:
    """Is the B mode of the data more than noise?

    A mask turns E into B; without ``kappa`` that part counts against the data, which matters where the signal is not
    far below the noise. The test is as good as the noise is known: small scales have so many modes that a noise
    that is a per cent off shows. For a catalogue let the galaxies tell: :func:`pnp_lofi.lensing.rotated_catalogue`.

    :param KaiserSquires op: with sigma, unless noise is given.
    :param torch.Tensor y: (1, 2, H, W) whitened.
    :param float pixel: pixel size [arcmin].
    :param bins: rings of ell, see :func:`pnp_lofi.lensing_power.power_spectrum`.
    :param torch.Tensor noise: (n, 2, H, W) realisations, whitened as y is: ``op.whiten(maps)``; default, Gaussian
        draws of level ``op.sigma``.
    :param int realisations: Gaussian draws, more than bins + 3; default 200. With noise given, n is their number.
    :param torch.Tensor kappa: (n, 1, rows, columns) convergence whose shear is in each realisation, such as Gaussian
        fields of the fitted power, used in turn; default none.
    :param int seed: of the Gaussian draws.
    :raises ValueError: if the noise is not known or does not fit y, or if the draws are too few for a covariance of
        the bins.
    Source: the precision matrix is unbiased after Hartlap et al. 2007.
    """
    if noise is None and op.sigma is None:
        raise ValueError("the noise is not known; pass sigma to KaiserSquires, or noise=")
    if noise is not None and (noise.ndim != 4 or noise.shape[1:] != y.shape[1:]):
        raise ValueError(f"noise must be (n, {', '.join(map(str, y.shape[1:]))}), whitened, got {tuple(noise.shape)}")
    if noise is not None and realisations is not None:
        raise ValueError("pass noise or realisations, not both; noise says how many there are")
    ell, power, *_ = power_spectrum(op.eb(y)[1].double(), pixel, bins)
    data = power.reshape(-1, len(ell))
    if len(data) != 1:
        raise ValueError(f"b_mode_test takes one map at a time, got a batch of {len(data)}")
    total = len(noise) if noise is not None else REALISATIONS if realisations is None else realisations
    if total <= len(ell) + 3:
        raise ValueError(f"{total} realisations cannot give a covariance of {len(ell)} bins; take more")
    signal = None if kappa is None else op.A(kappa.to(y))
    generator, drawn = torch.Generator().manual_seed(seed), []
    for start in range(0, total, TOGETHER):
        count = min(TOGETHER, total - start)
        if noise is None:
            draw = op.sigma * torch.randn((count, *y.shape[1:]), dtype=y.dtype, generator=generator).to(y.device)
        else:
            draw = noise[start : start + count].to(y)
        if signal is not None:
            draw = draw + signal[torch.arange(start, start + count, device=y.device) % len(signal)]
        drawn.append(power_spectrum(op.eb(draw)[1].double(), pixel, bins).power.reshape(count, -1))
    draws = torch.cat(drawn)
    expected, spread = draws.mean(0), draws.std(0)
    chi2, others = _chi2(data / spread, draws / spread)  # of order 1, for the inverse
    pte = float(1 + (others >= chi2).sum()) / (total + 1)
    weight = (expected / spread) ** 2
    amplitude = float((weight * data[0] / expected).sum() / weight.sum())
    return NullTest(ell, data[0], expected, spread, amplitude, float(chi2), pte)


def _chi2(data: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Of the data from the mean and covariance of n draws; and of each draw, (n,), from those of the n - 1 others.

    The latter follows from h, its square distance with all n, by a downdate of rank one. Counted with its own weight a
    draw would look nearer to the mean than data do.
    """
    n, bins = draws.shape
    centred = draws - draws.mean(0)
    precision = torch.linalg.inv(centred.mT @ centred / (n - 1))
    h = ((centred @ precision) * centred).sum(-1)
    h = (n / (n - 1)) ** 2 * (n - 2) / (n - 1) * h / (1 - n * h / (n - 1) ** 2)
    d = data - draws.mean(0)
    found = ((d @ precision) * d).sum()
    return found * (n - bins - 2) / (n - 1), h * (n - bins - 3) / (n - 2)


def _check_map(x: Tensor) -> None:
    if x.ndim != 4 or x.shape[1] != 1 or min(x.shape[-2:]) < 3:
        raise ValueError(f"expected maps of shape (batch, 1, H, W), at least 3 x 3, got {tuple(x.shape)}")
