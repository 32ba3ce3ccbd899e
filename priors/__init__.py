"""Denoiser priors, one per file: deepinv ``Denoiser``s, called as ``prior(x, sigma)``."""

from pnp_lofi.priors.lofi import LoFiPrior

__all__ = ["LoFiPrior"]
