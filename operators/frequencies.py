"""Which frequencies are sampled: masks for :class:`Fourier`, frequency zero in the middle."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pnp_lofi.checks import checked_shape

CENTRE = 0.04  # of an axis: the frequencies around zero that are always sampled


def random_frequencies(
    shape: Sequence[int], acceleration: float, *, power: float = 3.0, centre: float = CENTRE, seed: int = 0
) -> Tensor:
    """H W / acceleration frequencies, drawn without replacement with a density that falls from the middle as
    (1 - d)^power, d the distance from zero over the largest one; all within d <= centre are kept.

    :param tuple shape: (H, W).
    :param float acceleration: >= 1, frequencies there are for each one sampled.
    :param float power: >= 0; 0 is uniform.
    :param float centre: fraction of the radius that is sampled fully, in [0, 1].
    :returns: (H, W) bool, frequency zero at (H//2, W//2); exactly round(H W / acceleration) True, unless the centre
        alone holds more.
    :raises ValueError: if a number is out of range.
    Source: Lustig, Donoho and Pauly 2007, section on variable density.
    """
    H, W = checked_shape(shape)
    _check(acceleration, centre, power)
    k_r = (torch.arange(H, dtype=torch.float64) - H // 2) / max(H // 2, 1)
    k_c = (torch.arange(W, dtype=torch.float64) - W // 2) / max(W // 2, 1)
    d = torch.hypot(k_r[:, None], k_c)
    d = d / d.max().clamp_min(1)
    return _draw((1 - d) ** power, d <= centre, round(H * W / acceleration), seed)


def cartesian_lines(
    shape: Sequence[int],
    acceleration: float,
    *,
    power: float = 3.0,
    centre: float = CENTRE,
    axis: int = 1,
    seed: int = 0,
) -> Tensor:
    """Whole lines of frequencies, as MRI scanners take them: N / acceleration of the N positions along an axis.

    :param int axis: along which lines are chosen: 1, columns of the mask; 0, rows.
    :param float power, centre: as in :func:`random_frequencies`.
    :returns: (H, W) bool, frequency zero at (H//2, W//2).
    :raises ValueError: if a number is out of range.
    """
    size = checked_shape(shape)
    _check(acceleration, centre, power)
    if axis not in (0, 1):
        raise ValueError(f"axis must be 0 (rows) or 1 (columns), got {axis}")
    N = size[axis]
    d = (torch.arange(N, dtype=torch.float64) - N // 2).abs() / max(N // 2, 1)
    line = _draw((1 - d) ** power, d <= centre, round(N / acceleration), seed)
    return (line if axis == 1 else line[:, None]).expand(size).clone()


def radial_lines(shape: Sequence[int], spokes: int, *, golden: bool = False) -> Tensor:
    """Pixels nearest to straight lines through frequency zero.

    :param int spokes: >= 1, lines through the middle.
    :param bool golden: turn by the golden angle, 111.25 degrees, from spoke to spoke; default: 180 / spokes degrees.
    :returns: (H, W) bool, frequency zero at (H//2, W//2).
    :raises ValueError: if spokes is below 1.
    Source: Winkelmann et al. 2007 (golden angle).
    """
    H, W = checked_shape(shape)
    if spokes < 1:
        raise ValueError(f"spokes must be at least 1, got {spokes}")
    step = math.pi * (math.sqrt(5) - 1) / 2 if golden else math.pi / spokes
    mask = torch.zeros(H, W, dtype=torch.bool)
    for angle in (step * n for n in range(spokes)):
        along = torch.tensor([H / 2 * math.sin(angle), W / 2 * math.cos(angle)], dtype=torch.float64)
        longest = float(along.abs().max())
        t = torch.arange(-int(longest), int(longest) + 1, dtype=torch.float64) / longest  # one pixel a step
        rows, columns = (t[:, None] * along).round().long().T + torch.tensor([[H // 2], [W // 2]])
        inside = (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W)
        mask[rows[inside], columns[inside]] = True
    return mask


def _draw(density: Tensor, always: Tensor, count: int, seed: int) -> Tensor:
    """The middle, and places drawn without replacement (Efraimidis and Spirakis 2006: the largest log(u) / w)."""
    u = torch.rand(density.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    key = torch.where(always, math.inf, u.log() / density.clamp_min(torch.finfo(torch.float64).tiny))
    count = max(count, int(always.sum()))
    chosen = torch.zeros(density.numel(), dtype=torch.bool)
    chosen[key.flatten().argsort(descending=True, stable=True)[:count]] = True
    return chosen.reshape(density.shape)


def _check(acceleration: float, centre: float, power: float) -> None:
    if not acceleration >= 1:
        raise ValueError(f"acceleration must be at least 1, got {acceleration}")
    if not 0 <= centre <= 1:
        raise ValueError(f"centre must be a fraction in [0, 1], got {centre}")
    if not 0 <= power < math.inf:
        raise ValueError(f"power must be finite and >= 0, got {power}")
