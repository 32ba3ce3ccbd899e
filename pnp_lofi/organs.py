"""Slices of chests and heads in Hounsfield units, made of random numbers: what a CT prior is trained on.

A slice is painted from the outside in: each organ is a signed distance to its outline [mm], blended in over the width
of a pixel, on axes that are bent a little. A pixel is ``CHEST_FIELD / size`` or ``HEAD_FIELD / size`` millimetres.
"""

from torch import Tensor

from pnp_lofi.chest import FIELD as CHEST_FIELD
from pnp_lofi.chest import chest_slice
from pnp_lofi.fields import stack
from pnp_lofi.head import FIELD as HEAD_FIELD
from pnp_lofi.head import head_slice

__all__ = ["CHEST_FIELD", "HEAD_FIELD", "chest", "head"]


def chest(count: int, size: int, *, seed: int) -> Tensor:
    """Transverse slices of chests: lungs with vessels, heart, great vessels, spine, ribs, fat, sometimes arms.

    :param int count: images.
    :param int size: side [pixel], at least 16; the field is 380 mm wide whatever the size.
    :param int seed: image k is made from (seed, k) alone.
    :returns: (count, 1, size, size) float32 [HU], -1000 to 2000; see :func:`pnp_lofi.hounsfield.attenuation`.
    :raises ValueError: for count < 1 or size < 16.
    """
    return stack(chest_slice, count, size, seed, 5)


def head(count: int, size: int, *, seed: int) -> Tensor:
    """Transverse slices of heads: scalp, skull, brain with folds and ventricles, or eyes, sinuses and nose below it.

    :param int count: images.
    :param int size: side [pixel], at least 16; the field is 240 mm wide whatever the size.
    :param int seed: image k is made from (seed, k) alone.
    :returns: (count, 1, size, size) float32 [HU], -1000 to 2000; see :func:`pnp_lofi.hounsfield.attenuation`.
    :raises ValueError: for count < 1 or size < 16.
    """
    return stack(head_slice, count, size, seed, 6)
