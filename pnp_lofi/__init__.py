"""Plug-and-play imaging with LoFi: ``ADMM(op, LoFiPrior("radio"))(y)``."""

from pnp_lofi.admm import ADMM
from pnp_lofi.checkpoint import load_checkpoint, save_checkpoint
from pnp_lofi.consensus import Consensus
from pnp_lofi.hqs import HQS
from pnp_lofi.lofi import LoFi
from pnp_lofi.matching import NonLocalLoFi
from pnp_lofi.pgd import PGD
from pnp_lofi.priors import LoFiPrior
from pnp_lofi.red import RED
from pnp_lofi.shared import SharedLoFi
from pnp_lofi.solution import Iterate, Solution
from pnp_lofi.solver import Solver
from pnp_lofi.version import __version__

__all__ = [
    "ADMM",
    "HQS",
    "PGD",
    "RED",
    "Consensus",
    "Iterate",
    "LoFi",
    "LoFiPrior",
    "NonLocalLoFi",
    "SharedLoFi",
    "Solution",
    "Solver",
    "__version__",
    "load_checkpoint",
    "save_checkpoint",
]
