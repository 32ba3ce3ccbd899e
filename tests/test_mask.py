"""Mask: what only it does."""

import torch
from operator_rows import MASK

from pnp_lofi.operators import Mask, random_mask


def test_mask_never_looks_outside() -> None:
    y = torch.rand(2, 3, 6, 6)
    blotted = torch.where(MASK, y, torch.nan)
    torch.testing.assert_close(Mask(MASK).A_adjoint(blotted), Mask(MASK).A_adjoint(y))
    torch.testing.assert_close(Mask(MASK).prox_l2(y, blotted, 2.0), y)
    x, _ = Mask(MASK).solve_normal(y, 0.0)
    torch.testing.assert_close(x, torch.where(MASK, y, 0))


def test_mask_per_channel() -> None:
    mask = torch.stack([random_mask((6, 7), 0.5, seed) for seed in range(3)])
    x = torch.rand(2, 3, 6, 7)
    torch.testing.assert_close(Mask(mask).A(x), x * mask)
    torch.testing.assert_close(Mask(mask[None].double()).A(x), x * mask)


def test_random_mask() -> None:
    mask = random_mask((20, 30), 0.3, seed=4)
    assert mask.dtype == torch.bool and mask.shape == (20, 30) and int(mask.sum()) == 180
    assert bool((mask == random_mask((20, 30), 0.3, seed=4)).all())
    assert bool((mask != random_mask((20, 30), 0.3, seed=5)).any())
    assert bool(random_mask((3, 3), 1.0).all()) and int(random_mask((3, 3), 1e-9).sum()) == 1
