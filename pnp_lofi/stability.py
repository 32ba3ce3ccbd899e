"""How much a denoiser magnifies what it is given: what the convergence of plug-and-play rests on."""

from typing import Any

import torch
from torch import Tensor

SETTLED = 1e-5  # relative change at which the power iteration has found its value


def lipschitz(
    prior: Any, x: Tensor, sigma: float, *, residual: bool = False, iterations: int = 50, seed: int = 0
) -> float:
    """The spectral norm of the denoiser's derivative at an image, by power iteration on J^T J.

    It is a lower bound of the Lipschitz constant, and what counts for a solver that is near this image: take x where
    the solver ended. <= 1 is non-expansive, see docs/solvers.md for what follows.

    :param Callable prior: D, called as ``prior(x, sigma)``, differentiable.
    :param torch.Tensor x: (1, C, H, W), small: all of it is kept for the derivative.
    :param float sigma: level [units of x].
    :param bool residual: of x - D(x), what the denoiser takes away, instead of D.
    :param int iterations: at most, two derivatives each.
    :param int seed: of the first direction.
    :returns: max over v of ||J v|| / ||v||.
    :raises ValueError: if the image or the derivative is not finite.
    Source: Ryu et al. 2019, section 4 (they bound it by normalising layers); Pesquet et al. 2021.
    """
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x holds NaN or inf")
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = prior(x, sigma)
        out = x - out if residual else out
        dual = torch.zeros_like(out, requires_grad=True)
        (back,) = torch.autograd.grad(out, x, dual, create_graph=True)  # J^T dual, linear in dual
    value = 0.0
    for _ in range(iterations):
        (forward,) = torch.autograd.grad(back, dual, v / v.norm(), retain_graph=True)  # J v
        before, value = value, float(forward.norm())
        if not value < float("inf"):
            raise ValueError("the denoiser's derivative is NaN or inf")
        if value == 0 or abs(value - before) < SETTLED * value:
            break
        (v,) = torch.autograd.grad(out, x, forward, retain_graph=True)
    return value
