"""ADMM with a denoiser in the place of a proximal step."""

import torch
from torch import Tensor

from pnp_lofi.run import Run, State
from pnp_lofi.solver import Solver


class ADMM(Solver):
    """min_x ||A x - y||^2 / (2 sigma_n^2) + prior(x), split as x = v:

        x <- (A^H A + alpha)^-1 (A^H y + alpha (v - u))     closed form, or CG warm-started at x
        v <- D_sigma_d(x + u)
        u <- u + x - v

    The result is v. Where alpha changes, u is rescaled with it.

    :param: as :class:`~pnp_lofi.solver.Solver`.
    Source: Boyd et al. 2011, sections 3.1.1 and 3.4.1; Venkatakrishnan et al. 2013; arXiv 2411.04995, Algorithm 1,
    which prints v <- D(x - u), a sign slip (its code has x + u).
    """

    spare = 3  # measured

    def _begin(self, run: Run, x: Tensor) -> State:
        return {"x": x, "v": x, "u": torch.zeros_like(x)}

    def _step(self, run: Run, *, x: Tensor, v: Tensor, u: Tensor) -> State:  # type: ignore[override]
        u = run.rescaled(u)
        x = run.fit(v, start=x, dual=u)
        v = run.bounded(run.denoise(x + u))
        return {"x": x, "v": v, "u": (u + x).sub_(v)}
