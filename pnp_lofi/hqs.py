"""Half-quadratic splitting."""

from dataclasses import replace
from typing import Any

from deepinv.models import Denoiser
from deepinv.physics import LinearPhysics
from torch import Tensor

from pnp_lofi.parameters import Parameters, Rule
from pnp_lofi.run import Run, State
from pnp_lofi.schedules import Level
from pnp_lofi.solver import Solver

DATA = 0.23  # DPIR's lambda


class HQS(Solver):
    """min_x ||A x - y||^2 / (2 sigma_n^2) + ||x - v||^2 / (2 sigma_d^2) + prior(v), with a sigma_d that falls:

        x <- (A^H A + alpha)^-1 (A^H y + alpha v)     closed form, or CG warm-started at x
        v <- D_sigma_d(x)

    The result is v. By default sigma_d falls geometrically to sigma_n / sqrt(L), at least 0.01 of the image's range,
    and alpha rises with it as DPIR's, 0.23 sigma_n^2 / sigma_d^2. With a level that does not fall v is over-smoothed.

    :param: as :class:`~pnp_lofi.solver.Solver`.
    Source: Geman and Yang 1995; Zhang et al. 2021 (DPIR), eqs. 5-6. DPIR itself, for images of range 1:
    ``HQS(op, prior, sigma_d=dpir(sigma_n), max_iter=8)``.
    """

    split = False
    rule = Rule(norm=1.0, exact_level=0.01, exact_alpha=1.0)

    def __init__(self, op: LinearPhysics, prior: Denoiser, *, max_iter: int = 24, **options: Any) -> None:
        super().__init__(op, prior, max_iter=max_iter, **options)

    def _choose(self, op: LinearPhysics, backprojection: Tensor, sigma_n: Level, max_iter: int) -> Parameters:
        found = super()._choose(op, backprojection, sigma_n, max_iter)
        if self.alpha is not None:
            return found
        last = max_iter - 1
        low = found.alpha(last) * found.sigma_d(last) ** 2  # sigma_n^2, or what takes its place where that is zero
        return replace(found, alpha=lambda k: DATA * low / found.sigma_d(k) ** 2)

    def _begin(self, run: Run, x: Tensor) -> State:
        return {"x": x, "v": x}

    def _step(self, run: Run, *, x: Tensor, v: Tensor) -> State:  # type: ignore[override]
        x = run.fit(v, start=x)
        return {"x": x, "v": run.bounded(run.denoise(x))}
