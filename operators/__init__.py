"""Forward operators, one physical model per file."""

from pnp_lofi.operators.mask import Mask, random_mask
from pnp_lofi.operators.nufft import NUFFT
from pnp_lofi.operators.uv import default_cell, meerkat_uv, meerkat_uvw, uv_radians, w_phase

__all__ = [
    "NUFFT",
    "Mask",
    "default_cell",
    "meerkat_uv",
    "meerkat_uvw",
    "random_mask",
    "uv_radians",
    "w_phase",
]
