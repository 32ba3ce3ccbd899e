"""Several operators and several priors that have to agree on one image."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from deepinv.models import Denoiser
from deepinv.physics import LinearPhysics
from deepinv.utils import TensorList
from torch import Tensor

from pnp_lofi.cg import solve_normal
from pnp_lofi.checks import check_prior
from pnp_lofi.parameters import noise_level
from pnp_lofi.run import Run, State
from pnp_lofi.schedules import Level
from pnp_lofi.solution import Solution
from pnp_lofi.solver import Solver


class Consensus(Solver):
    """min_z sum_i ||A_i z - y_i||^2 / (2 sigma_i^2) + sum_j w_j prior_j(z), every term with an image of its own:

        x_i <- (A_i^H A_i + alpha sigma_i^2)^-1 (A_i^H y_i + alpha sigma_i^2 (z - u_i))
        x_j <- D_j at the level sqrt(w_j) sigma_d, of z - u_j
        z   <- the mean of x + u over all terms;   u <- u + x - z for each

    The result is z. With one operator and one prior it is ADMM with an over-cautious step; ADMM with a
    :class:`~pnp_lofi.operators.Stacked` operator needs fewer iterations where (sum_i A_i^H A_i + alpha)^-1 is as cheap
    as its parts, this one where only the parts have closed forms.

    :param Sequence[LinearPhysics] ops: of images of one shape, pnp_lofi's.
    :param Sequence[Denoiser] priors: each called as ``prior(x, sigma)``.
    :param weights: w_j > 0, which sum to one; default equal.
    :param sigma_n: noise of each operator's data per real component; default: what the operators say.
    :param: others as :class:`~pnp_lofi.solver.Solver`; alpha is in units of 1 / sigma_n^2 of the whitened data.
    :raises ValueError: if a noise level is neither given nor known, or weights do not fit.
    Source: Boyd et al. 2011, section 7.1; Buzzard et al. 2018 (consensus equilibrium).
    """

    answer: ClassVar[str] = "z"
    spare: ClassVar[int] = 12

    def __init__(
        self,
        ops: Sequence[LinearPhysics],
        priors: Sequence[Denoiser],
        *,
        weights: Sequence[float] | None = None,
        sigma_n: Sequence[float] | None = None,
        max_iter: int = 100,
        **options: Any,
    ) -> None:
        from pnp_lofi.operators import Stacked

        if not ops or not priors:
            raise ValueError(f"Consensus needs operators and priors, got {len(ops)} and {len(priors)}")
        for prior in priors:
            check_prior(prior)
        weights = [1 / len(priors)] * len(priors) if weights is None else [float(w) for w in weights]
        if len(weights) != len(priors) or min(weights) <= 0 or abs(sum(weights) - 1) > 1e-6:
            raise ValueError(f"weights must be {len(priors)} numbers > 0 that sum to one, got {weights}")
        levels: list[Any] = [noise_level(op, torch.empty(0)) for op in ops] if sigma_n is None else list(sigma_n)
        if len(levels) != len(ops) or any(s is None or not 0 < s < float("inf") for s in levels):
            raise ValueError(f"Consensus needs a noise level > 0 for each of {len(ops)} operators, got {levels}; "
                             "pass sigma_n=[...]")  # fmt: skip
        whitened = Stacked(*ops, weights=[1 / s**2 for s in levels if s is not None])
        super().__init__(whitened, priors[0], sigma_n=1.0, max_iter=max_iter, **options)
        self.priors, self.weights = list(priors), weights
        self.networks = torch.nn.ModuleList(p for p in priors if isinstance(p, torch.nn.Module))  # for .to()
        self.settings = {"weights": weights}

    def solve(  # type: ignore[override]
        self, y: Sequence[Tensor], physics: None = None, **options: Any
    ) -> Solution:
        """Reconstruct; see :meth:`pnp_lofi.solver.Solver.solve`.

        :param y: the data of each operator.
        :raises TypeError: for another operator: the solver is made of its own.
        """
        if physics is not None:
            raise TypeError("Consensus takes no operator in a call; build another one with these operators")
        if isinstance(y, Tensor):
            raise TypeError(f"Consensus expects a list of {len(self.op)} data, got a tensor; use [y]")
        return super().solve(self.op.whiten(TensorList(list(y))), **options)

    def _begin(self, run: Run, x: Tensor) -> State:
        terms = len(self.op.operators) + len(self.priors)
        zero = torch.zeros_like(x)
        return {"z": x} | {f"x{i}": x for i in range(terms)} | {f"u{i}": zero for i in range(terms)}

    def _step(self, run: Run, **state: Tensor) -> State:
        z, operators, level = state["z"], list(zip(self.op.operators, self.op.roots, strict=True)), run.level
        found: State = {}
        total = torch.zeros_like(z)
        for i in range(len(operators) + len(self.priors)):
            u = run.rescaled(state[f"u{i}"])
            if i < len(operators):
                x = self._fit(run, i, z - u, state[f"x{i}"])
            else:
                j = i - len(operators)
                x = run.denoise(z - u, prior=self.priors[j], level=level * self.weights[j] ** 0.5)
            found |= {f"x{i}": x, f"u{i}": u + x}
            total += u + x
        z = run.bounded(total / (len(operators) + len(self.priors)))
        return {"z": z} | {name: t - z if name.startswith("u") else t for name, t in found.items()}

    def _gap(self, state: State) -> Tensor:
        apart = [t - state["z"] for name, t in state.items() if name.startswith("x")]
        return torch.cat(apart, 1) / len(apart) ** 0.5

    def _fit(self, run: Run, i: int, z: Tensor, start: Tensor) -> Tensor:
        op, root = self.op.operators[i], self.op.roots[i]
        alpha: Level = run.alpha / root**2
        right = op.A_adjoint(run.data[i]) / root + alpha * z
        return solve_normal(op, right, alpha, init=start, tol=self.cg_tol, max_iter=self.cg_max_iter)[0]
