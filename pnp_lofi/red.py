"""Regularisation by denoising."""

from typing import Any, ClassVar

from deepinv.models import Denoiser
from deepinv.physics import LinearPhysics
from torch import Tensor

from pnp_lofi.parameters import Rule
from pnp_lofi.pgd import MOMENTUM
from pnp_lofi.run import Run, State
from pnp_lofi.solver import Solver


class RED(Solver):
    """Where A^H (A x - y) + alpha (x - D_sigma_d(x)) = 0, by gradient steps:

        z <- x + m_k (x - x_before)          m_k = (k - 1) / (k + 3), or 0 without acceleration
        x <- z - (A^H (A z - y) + alpha (z - D_sigma_d(z))) / (L + alpha)

    :param bool accelerated: with momentum.
    :param: others as :class:`~pnp_lofi.solver.Solver`.
    Source: Romano, Elad and Milanfar 2017, eq. 22; Reehorst and Schniter 2019.
    """

    answer: ClassVar[str] = "x"
    split = False
    rule = Rule(mean=4.0, level=0.5, exact_level=0.02, exact_alpha=0.2)

    def __init__(
        self, op: LinearPhysics, prior: Denoiser, *, accelerated: bool = True, max_iter: int = 100, **options: Any
    ) -> None:
        super().__init__(op, prior, max_iter=max_iter, **options)
        self.settings = {"accelerated": accelerated}

    def _begin(self, run: Run, x: Tensor) -> State:
        return {"x": x, "before": x}

    def _step(self, run: Run, *, x: Tensor, before: Tensor) -> State:  # type: ignore[override]
        k, alpha = run.point.iteration, run.alpha
        z = x + max(k - 1, 0) / (k - 1 + MOMENTUM) * (x - before) if self.settings["accelerated"] else x
        gradient = run.gradient(z) + alpha * (z - run.denoise(z))
        return {"x": run.bounded(z - gradient / (run.chosen.norm + alpha)), "before": x}
