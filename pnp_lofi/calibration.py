"""Are nine in ten pixels inside their 90 % intervals? Measured on images whose truth is known, and mended."""

from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 1e-6  # of sums of weights, in images
FLOOR = 0.1  # of an image's median error bar: none counts as smaller


class Coverage(NamedTuple):
    """:param float mean: part of the pixels inside, mean over the images; float spread: its standard deviation from
        image to image.
    :param torch.Tensor each: (B,) part of each image.
    """

    mean: float
    spread: float
    each: Tensor


def floored(std: Tensor) -> Tensor:
    """Error bars of which none is below a tenth of the image's median one, so that no score is infinite.

    :param torch.Tensor std: (B, C, H, W).
    """
    return std.maximum(FLOOR * std.flatten(1).median(1).values.reshape(-1, *(1,) * (std.ndim - 1)))


def scores(centre: Tensor, std: Tensor, truth: Tensor) -> Tensor:
    """|truth - centre| / std of each pixel, (B, C H W).

    :param torch.Tensor centre, std, truth: (B, C, H, W).
    :raises ValueError: if the shapes differ, a std is negative or something is not finite.
    """
    if not centre.shape == std.shape == truth.shape or centre.ndim != 4:
        shapes = ", ".join(str(tuple(t.shape)) for t in (centre, std, truth))
        raise ValueError(f"expected centre, std and truth of one shape (batch, channel, height, width), got {shapes}")
    if not all(bool(torch.isfinite(t).all()) for t in (centre, std, truth)) or not bool((std >= 0).all()):
        raise ValueError("centre, std and truth must be finite, and std >= 0")
    error, bar = (truth - centre).abs(), floored(std)
    return torch.where(error > 0, error / bar, 0).flatten(1)  # 0 / 0: exactly known


def calibrate(centre: Tensor, std: Tensor, truth: Tensor, level: float = 0.9, where: Tensor | None = None) -> float:
    """The factor on std for intervals that hold ``level`` of the pixels of a new image, in the mean over images.

    The images are exchangeable, their pixels are not: each image counts as one, and the new one, of which nothing is
    known, counts as missed altogether. With n images the factor is the smallest at which

        (sum of the parts of the pixels missed in each + 1) / (n + 1)  <=  1 - level,

    and the new image's expected coverage is then at least ``level`` whatever the errors look like, and at most
    1 / (n + 1) more where scores do not tie: 60 images cost 1.6 % of sharpness, 9 are the fewest for 90 %.

    :param torch.Tensor centre, std, truth: (n, C, H, W), of simulations like the observation to come.
    :param torch.Tensor where: bool, (n, C, H, W), the pixels that count, for a factor of their own: sources, found in
        the reconstruction and not in the truth, have larger errors than empty sky. Images without any are left out.
    :raises ValueError: for level out of range, or too few images for it.
    Source: Angelopoulos et al. 2024 (conformal risk control), equation 4; Dunn, Wasserman and Ramdas 2023.
    """
    found, weight = _counted(scores(centre, std, truth), where)
    n = len(found)
    allowed = (1 - checked_level(level)) * (n + 1) - 1  # images' worth of missed pixels
    if allowed < -1e-9:
        raise ValueError(f"{n} images are too few to calibrate for {level:g}: at least {_fewest(level)} are needed")
    ordered, index = found.flatten().sort(descending=True)
    missed = weight.flatten()[index].cumsum(0)  # images' worth, up to and with each pixel
    return float(ordered[int((missed <= allowed + ROUNDING).sum())])


def coverage(
    centre: Tensor, std: Tensor, truth: Tensor, factor: float | Tensor, where: Tensor | None = None
) -> Coverage:
    """Part of the pixels with |truth - centre| <= factor std.

    :param factor: a number, or (B, C, H, W).
    :param torch.Tensor where: bool, (B, C, H, W), the pixels that count; images without any are left out.
    """
    limit = factor.flatten(1) if isinstance(factor, Tensor) else factor
    inside, weight = _counted((scores(centre, std, truth) <= limit).double(), where)
    each = (inside * weight).sum(1)
    return Coverage(float(each.mean()), float(each.std()) if len(each) > 1 else 0.0, each)


def _counted(values: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor]:
    """Values (n, P) of the images that have pixels that count, and weights that sum to one in each."""
    counted = torch.ones_like(values, dtype=torch.float64) if where is None else where.flatten(1).double()
    total = counted.sum(1)
    return values[total > 0], (counted / total[:, None])[total > 0]


def checked_level(level: float) -> float:
    """:raises ValueError: unless 0 < level < 1."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, for instance 0.9, got {level}")
    return level


def _fewest(level: float) -> int:
    n = 1
    while (1 - level) * (n + 1) - 1 < -1e-9:
        n += 1
    return n
