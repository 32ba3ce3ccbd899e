"""Priors, one per file: deepinv ``Denoiser``s, called as ``prior(x, sigma)``, and generators of images."""

from pnp_lofi.priors.averaged import Averaged
from pnp_lofi.priors.generative import ContinuousGenerator, Generator, load_generator, save_generator
from pnp_lofi.priors.lofi import LoFiPrior
from pnp_lofi.priors.sharded import ShardedPrior

__all__ = [
    "Averaged",
    "ContinuousGenerator",
    "Generator",
    "LoFiPrior",
    "ShardedPrior",
    "load_generator",
    "save_generator",
]
