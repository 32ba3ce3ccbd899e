"""What a sampler returns: moments, how far to trust them, intervals."""

import warnings
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from pnp_lofi.calibration import checked_level, floored

BLOCKS = 16  # of consecutive draws, whose means tell how much the mean of all is worth
ESS_WANTED = 50  # independent draws: the standard deviation is then good to 10 %
RHAT_WANTED = 1.05


@dataclass(frozen=True)
class Uncertainty:
    """The posterior of each pixel.

    :param torch.Tensor mean: (B, C, H, W) [units of x].
    :param torch.Tensor std: standard deviation, (B, C, H, W) [units of x].
    :param int count: draws they are from.
    :param torch.Tensor ess: (B,) as many independent draws would give means as good, from the means of 16 blocks.
        Pixels count by their variance, here and in what follows.
    :param torch.Tensor rhat: (B,) split R-hat of the means of the chain's two halves.
    :param torch.Tensor rhat_std: (B,) the like for their widths, (1 + sum (std_1 - std_2)^2 / sum std^2)^1/2.
    :param torch.Tensor samples: (S, B, C, H, W) draws that were kept, or None.
    :param tuple box: (low, high) of x, None for none.
    :param dict metrics: sigma_n, sigma_d, step, gradients, seconds.
    """

    mean: Tensor
    std: Tensor
    count: int
    ess: Tensor
    rhat: Tensor
    rhat_std: Tensor
    samples: Tensor | None = field(repr=False, default=None)
    box: tuple[float | None, float | None] = (None, None)
    metrics: dict[str, Any] = field(default_factory=dict)

    def interval(
        self, level: float = 0.9, *, factor: float | None = None, centre: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """centre -+ factor std, cut at the bounds of x.

        :param float level: of the interval, 0 < level < 1; not looked at where a factor is given.
        :param float factor: of :func:`pnp_lofi.calibration.calibrate`; default that of a Gaussian.
        :param torch.Tensor centre: such as ADMM's reconstruction; default the mean.
        :returns: low and high, (B, C, H, W).
        """
        factor = NormalDist().inv_cdf((1 + checked_level(level)) / 2) if factor is None else factor
        half = factor * floored(self.std)
        centre = self.mean if centre is None else centre
        low, high = centre - half, centre + half
        if self.box != (None, None):
            low, high = low.clamp(*self.box), high.clamp(*self.box)
        return low, high

    def quantile(self, q: float) -> Tensor:
        """The q-quantile of the kept draws, (B, C, H, W).

        :raises ValueError: if none were kept.
        """
        if self.samples is None:
            raise ValueError("no draws were kept: Posterior(..., keep=100)")
        return self.samples.quantile(q, dim=0)


def warn_of_few(found: Uncertainty, *, stacklevel: int = 2) -> None:
    """Warn if the worst item has too few independent draws, or its halves differ."""
    ess, rhat = float(found.ess.min()), float(torch.maximum(found.rhat, found.rhat_std).max())
    if ess < ESS_WANTED or rhat > RHAT_WANTED:
        warnings.warn(
            f"the error bars rest on {ess:.0f} independent draws (wanted {ESS_WANTED}; split R-hat {rhat:.3f}, wanted "
            f"{RHAT_WANTED}): draw more than samples = {found.count}",
            stacklevel=stacklevel,
        )


class Blocks:
    """Running moments (Welford) in 16 blocks of consecutive draws: the memory is 32 images, whatever the draws.

    :param torch.Tensor like: an image; int count: draws that will come.
    """

    def __init__(self, like: Tensor, count: int) -> None:
        self.count, self.seen, self.number = count, 0, min(BLOCKS, 2 * (count // 4))
        self.sizes = [0] * self.number
        self.means = like.new_zeros((self.number, *like.shape))
        self.squares = torch.zeros_like(self.means)  # sums of squared distances from the block's mean

    def add(self, x: Tensor) -> None:
        b = self.seen * self.number // self.count
        self.seen += 1
        self.sizes[b] += 1
        before = x - self.means[b]
        self.means[b] += before / self.sizes[b]
        self.squares[b] += before * (x - self.means[b])

    def result(
        self,
        extra: Tensor | float,
        samples: Tensor | None,
        box: tuple[float | None, float | None],
        metrics: dict[str, Any],
    ) -> Uncertainty:
        """:param torch.Tensor extra: variance to add, (B, C, H, W)."""
        half = self.number // 2
        mean, square = self._merged(0, self.number)
        var = square / (self.count - 1)
        apart = (self.means - mean).square().sum(0) / (self.number - 1) / self.number
        ess = (_sum(var) / _sum(apart)).nan_to_num(nan=self.count).clamp(max=self.count)  # 0 / 0: nothing moves
        (a, square_a), (b, square_b) = self._merged(0, half), self._merged(half, self.number)
        wide_a, wide_b = (
            (q / sum(n)).sqrt() for q, n in ((square_a, self.sizes[:half]), (square_b, self.sizes[half:]))
        )
        within = _sum(square_a + square_b) / (self.count - 2)
        rhat = (1 + (_sum((a - b).square()) / 2 / within).nan_to_num()).sqrt()
        rhat_std = (1 + (_sum((wide_a - wide_b).square()) / within).nan_to_num()).sqrt()
        std = (var + extra).sqrt()
        return Uncertainty(mean, std, self.count, ess, rhat, rhat_std, samples, box, metrics)

    def _merged(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Mean and sum of squares of some blocks together (Chan et al. 1979)."""
        means = self.means[first:last]
        sizes = means.new_tensor(self.sizes[first:last]).reshape(-1, *(1,) * (means.ndim - 1))
        mean = (sizes * means).sum(0) / sizes.sum()
        return mean, (self.squares[first:last] + sizes * (means - mean).square()).sum(0)


def _sum(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)
