"""Forward operators, one physical model per file."""

from pnp_lofi.operators.base import ConvergenceWarning, Operator
from pnp_lofi.operators.blur import Blur
from pnp_lofi.operators.combine import Composed, Stacked
from pnp_lofi.operators.ct_adapters import AstraRadon, TorchRadon
from pnp_lofi.operators.derivatives import Derivatives
from pnp_lofi.operators.downsample import Downsample
from pnp_lofi.operators.fan_beam import FanBeam
from pnp_lofi.operators.fourier import Fourier
from pnp_lofi.operators.frequencies import cartesian_lines, radial_lines, random_frequencies
from pnp_lofi.operators.interferometer import Interferometer
from pnp_lofi.operators.kaiser_squires import KaiserSquires
from pnp_lofi.operators.low_dose import LowDose
from pnp_lofi.operators.mask import Mask, random_mask
from pnp_lofi.operators.normal_equations import NormalEquations
from pnp_lofi.operators.nufft import NUFFT
from pnp_lofi.operators.projector import Projector
from pnp_lofi.operators.radon import Radon
from pnp_lofi.operators.sharded import ShardedEquations, ShardedNUFFT
from pnp_lofi.operators.streamed import StreamedNUFFT
from pnp_lofi.operators.uv import array_uv, array_uvw, default_cell, meerkat_uv, meerkat_uvw, uv_radians, w_phase
from pnp_lofi.operators.weighted import Weighted
from pnp_lofi.operators.weighting import WeightGrid, imaging_weights, noise_increase, taper

__all__ = [
    "NUFFT",
    "AstraRadon",
    "Blur",
    "Composed",
    "ConvergenceWarning",
    "Derivatives",
    "Downsample",
    "FanBeam",
    "Fourier",
    "Interferometer",
    "KaiserSquires",
    "LowDose",
    "Mask",
    "NormalEquations",
    "Operator",
    "Projector",
    "Radon",
    "ShardedEquations",
    "ShardedNUFFT",
    "Stacked",
    "StreamedNUFFT",
    "TorchRadon",
    "WeightGrid",
    "Weighted",
    "array_uv",
    "array_uvw",
    "cartesian_lines",
    "default_cell",
    "imaging_weights",
    "meerkat_uv",
    "meerkat_uvw",
    "noise_increase",
    "radial_lines",
    "random_frequencies",
    "random_mask",
    "taper",
    "uv_radians",
    "w_phase",
]
