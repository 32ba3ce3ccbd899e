"""Denoiser priors, one per file: deepinv ``Denoiser``s, called as ``prior(x, sigma)``."""

from pnp_lofi.priors.averaged import Averaged
from pnp_lofi.priors.lofi import LoFiPrior
from pnp_lofi.priors.sharded import ShardedPrior

__all__ = ["Averaged", "LoFiPrior", "ShardedPrior"]
