"""Proximal gradient descent and FISTA."""

from dataclasses import replace
from typing import Any, ClassVar

from deepinv.models import Denoiser
from deepinv.physics import LinearPhysics
from torch import Tensor

from pnp_lofi.parameters import Parameters, Rule
from pnp_lofi.run import Run, State
from pnp_lofi.schedules import Level
from pnp_lofi.solver import Solver

MOMENTUM = 4  # (k - 1) / (k - 1 + MOMENTUM), whose a = 3 is above the 2 that the source asks for


class PGD(Solver):
    """min_x ||A x - y||^2 / (2 sigma_n^2) + prior(x) without inverting anything:

        z <- x + m_k (x - x_before)          m_k = 0, accelerated (k - 1) / (k + 3)
        x <- D_sigma_d(z - A^H (A z - y) / alpha)

    A step of 1 / alpha is stable for alpha >= L, the largest eigenvalue of A^H A, which is the default. Cheap steps,
    many of them where the eigenvalues differ much, as in tomography and radio: there ADMM is faster and better.

    :param bool accelerated: FISTA. Faster where the eigenvalues differ much; with a learned prior it may run away where
        nothing was measured (pixels of a mask), because the momentum feeds on the prior's own inventions.
    :param: others as :class:`~pnp_lofi.solver.Solver`.
    Source: Beck and Teboulle 2009; Chambolle and Dossal 2015 (the momentum, under which iterates converge).
    """

    answer: ClassVar[str] = "x"
    split = False
    rule = Rule(norm=1.0, exact_level=0.01, exact_alpha=1.0)

    def __init__(
        self, op: LinearPhysics, prior: Denoiser, *, accelerated: bool = False, max_iter: int = 100, **options: Any
    ) -> None:
        super().__init__(op, prior, max_iter=max_iter, **options)
        self.settings = {"accelerated": accelerated}

    def _choose(self, op: LinearPhysics, backprojection: Tensor, sigma_n: Level, max_iter: int) -> Parameters:
        found = super()._choose(op, backprojection, sigma_n, max_iter)
        if self.alpha is not None:
            return found
        return replace(found, alpha=lambda k: found.alpha(k).clamp_min(found.norm))  # whatever sigma_d was given

    def _begin(self, run: Run, x: Tensor) -> State:
        return {"x": x, "before": x}

    def _step(self, run: Run, *, x: Tensor, before: Tensor) -> State:  # type: ignore[override]
        k = run.point.iteration
        z = x + max(k - 1, 0) / (k - 1 + MOMENTUM) * (x - before) if self.settings["accelerated"] else x
        return {"x": run.bounded(run.denoise(z - run.gradient(z) / run.alpha)), "before": x}
