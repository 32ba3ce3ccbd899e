"""Conformal calibration: its guarantee by simulation, its edges by hand."""

import math

import pytest
import torch
from torch import Tensor

from pnp_lofi.calibration import calibrate, coverage, floored, scores


def skies(n: int, seed: int, pixels: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Errors whose scale differs from sky to sky by a lognormal factor, of which the error bars know nothing."""
    g = torch.Generator().manual_seed(seed)
    std = torch.rand(n, 1, pixels, pixels, generator=g, dtype=torch.float64) + 0.5
    scale = torch.exp(0.7 * torch.randn(n, 1, 1, 1, generator=g, dtype=torch.float64))
    centre = torch.randn(n, 1, pixels, pixels, generator=g, dtype=torch.float64)
    error = scale * std * torch.randn(n, 1, pixels, pixels, generator=g, dtype=torch.float64)
    return centre, std, centre + error


@pytest.mark.parametrize("level", [0.8, 0.9])
def test_new_skies_are_covered(level):
    """Over many calibrations the mean coverage of a new sky is at least the level, and at most 1 / (n + 1) more."""
    n, found = 30, []
    for seed in range(60):
        factor = calibrate(*skies(n, seed), level)
        found.append(coverage(*skies(100, 1000 + seed), factor).mean)
    mean = torch.tensor(found).mean()
    error = torch.tensor(found).std() / 60**0.5
    assert level - 3 * error <= mean <= level + 1 / (n + 1) + 3 * error


def test_by_hand():
    """9 skies of 10 pixels and 80 %: (9 + 1) 0.2 - 1 = 1 sky's worth of pixels may be missed, 10 of 90."""
    error = torch.arange(1, 91, dtype=torch.float64).reshape(9, 1, 2, 5)
    centre, std = torch.zeros_like(error), torch.full_like(error, 2.0)
    factor = calibrate(centre, std, error, 0.8)
    assert factor == 80 / 2
    assert coverage(centre, std, error, factor).each.tolist() == [1.0] * 8 + [0.0]
    # level 0.9 with 9 skies: none may be missed
    assert calibrate(centre, std, -error, 0.9) == 45
    with pytest.raises(ValueError, match=r"8 images are too few to calibrate for 0\.9: at least 9"):
        calibrate(centre[:8], std[:8], error[:8], 0.9)


def test_some_pixels_alone():
    """Pixels that do not count, and images without any that do, are as if they were not there."""
    error = torch.arange(1, 91, dtype=torch.float64).reshape(9, 1, 2, 5)
    centre, std = torch.zeros_like(error), torch.ones_like(error)
    extra = torch.full((9, 1, 2, 5), 1e3, dtype=torch.float64)
    wide = torch.cat([torch.cat([error, extra], -1), torch.cat([extra, extra], -1)])
    where = wide < 1e3
    factor = calibrate(torch.zeros_like(wide), torch.ones_like(wide), wide, 0.8, where)
    assert factor == calibrate(centre, std, error, 0.8) == 80
    limits = torch.where(where, 80.0, 2e3)
    each = coverage(torch.zeros_like(wide), torch.ones_like(wide), wide, limits).each.tolist()
    assert each == [1.0] * 8 + [0.5] + [1.0] * 9
    uneven = where.clone()
    uneven[8, 0, :, 1:] = False  # of the last sky one pixel of each row is left, 81 and 86: each is half a sky
    assert calibrate(torch.zeros_like(wide), torch.ones_like(wide), wide, 0.8, uneven) == 80


def test_coverage_counts_skies_alike():
    truth = torch.zeros(3, 1, 2, 2)
    centre = torch.tensor([0.0, 0.5, 2.0]).reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    std = torch.ones_like(truth)
    found = coverage(centre, std, truth, 1.0)
    assert found.each.tolist() == [1, 1, 0]
    assert found.mean == pytest.approx(2 / 3) and found.spread == pytest.approx(math.sqrt(1 / 3))
    where = torch.zeros(3, 1, 2, 2, dtype=torch.bool)
    where[2, 0, 0, 0] = True
    assert coverage(centre, std, truth, 1.0, where).each.tolist() == [0]


def test_empty_sky_has_a_floor():
    std = torch.tensor([0.0, 1.0, 1.0, 1.0]).reshape(1, 1, 2, 2)
    assert floored(std).flatten().tolist() == pytest.approx([0.1, 1, 1, 1])
    error = torch.tensor([0.05, 0.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    assert scores(torch.zeros_like(std), std, error).flatten().tolist() == pytest.approx([0.5, 0, 0, 0])
    nothing = torch.zeros(1, 1, 2, 2)  # std zero everywhere: exact is inside, anything else is not
    assert scores(nothing, nothing, error).flatten().tolist() == [math.inf, 0, 0, 0]


def test_bad_input():
    a = torch.ones(10, 1, 2, 2)
    for level in (0, 1, 90, math.nan):
        with pytest.raises(ValueError, match="level must lie between 0 and 1"):
            calibrate(a, a, a, level)
    with pytest.raises(ValueError, match="expected centre, std and truth of one shape"):
        calibrate(a, a[:5], a)
    with pytest.raises(ValueError, match="expected centre, std and truth of one shape"):
        calibrate(a[0], a[0], a[0])
    with pytest.raises(ValueError, match="std >= 0"):
        calibrate(a, -a, a)
    with pytest.raises(ValueError, match="must be finite"):
        calibrate(a, a, a * math.nan)
