"""One reconstruction on its way."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from pnp_lofi.cg import solve_normal
from pnp_lofi.parameters import Parameters
from pnp_lofi.reduction import norms_of

if TYPE_CHECKING:
    from pnp_lofi.solver import Solver

State = dict[str, Tensor]


class Point(NamedTuple):
    """All that the next iteration needs; replaced as a whole, so that an interruption leaves no half of one.

    :param int iteration: done; dict state: the algorithm's variables by name.
    :param torch.Tensor best: image with the smallest residual; float best_residual: that.
    :param tuple residuals: (primal, dual) of each iteration.
    """

    iteration: int
    state: State
    best: Tensor
    best_residual: float
    residuals: tuple[tuple[float, float], ...]


@dataclass
class Run:
    """An algorithm at work on one batch: what its steps are written in.

    :param data: y, a tensor or a TensorList; torch.Tensor backprojection: A^H y.
    """

    solver: "Solver"
    op: LinearPhysics
    data: Any
    backprojection: Tensor
    chosen: Parameters
    point: Point = field(init=False)
    ceiling: Tensor = field(init=False)
    seconds: float = 0.0
    clock: Callable[[], float] = lambda: 0.0
    diverged: bool = False
    prior_memory: float | None = None  # [MB], for the prior's chunk of pixels

    # ---- what steps are made of --------------------------------------------------------------------------

    @property
    def alpha(self) -> float | Tensor:
        """The penalty of this iteration: a number, or (B, 1, 1, 1)."""
        return self._level(self.chosen.alpha(self.point.iteration), 4)

    @property
    def level(self) -> float | Tensor:
        """sigma_d of this iteration: a number, or (B,)."""
        return self._level(self.chosen.sigma_d(self.point.iteration), 1)

    def fit(self, z: Tensor, start: Tensor, *, dual: Tensor | None = None) -> Tensor:
        """argmin_x ||A x - y||^2 + alpha ||x - z + u||^2 = (A^H A + alpha)^-1 (A^H y + alpha (z - u)), u the dual."""
        alpha, s = self.alpha, self.solver
        factor = torch.as_tensor(alpha, dtype=z.dtype, device=z.device)
        right = torch.addcmul(self.backprojection, z, factor)
        if dual is not None:
            right.addcmul_(dual, factor, value=-1)
        return solve_normal(self.op, right, alpha, init=start, tol=s.cg_tol, max_iter=s.cg_max_iter)[0]

    def gradient(self, x: Tensor) -> Tensor:
        """A^H (A x - y), that of ||A x - y||^2 / 2."""
        return self.op.A_adjoint_A(x) - self.backprojection

    def denoise(self, x: Tensor, *, prior: Any = None, level: float | Tensor | None = None) -> Tensor:
        """D(x), of complex images for each part, by default the solver's prior at this iteration's level."""
        prior = self.solver.prior if prior is None else prior
        level = self.level if level is None else level
        if x.is_complex():
            twice = level.repeat(2) if isinstance(level, Tensor) else level
            return torch.complex(*self.denoise(torch.cat([x.real, x.imag]), prior=prior, level=twice).chunk(2))
        known = self.prior_memory is not None and hasattr(prior, "working_memory")
        options = {"max_memory": self.prior_memory} if known else {}
        if not self.solver.turns:
            return prior(x, level, **options)
        k = self.point.iteration % 8
        return turned(prior(turned(x, k), level, **options), k, back=True)

    def rescaled(self, u: Tensor) -> Tensor:
        """A scaled dual, u = (multiplier) / alpha, for this iteration's alpha."""
        now, k = self.alpha, self.point.iteration
        before = self._level(self.chosen.alpha(max(k - 1, 0)), 4)
        same = before is now or (isinstance(now, float) and now == before)
        return u if same else u * (before / now)

    def bounded(self, x: Tensor) -> Tensor:
        """x within nonneg or box, of complex images each part; of mean zero where the operator is blind to constants,
        as the prior is too: nothing else would keep the mean from drifting."""
        if getattr(self.op, "blind_to_constants", False):
            x = x - x.mean((-2, -1), keepdim=True)
        low, high = self.solver.low, self.solver.high
        if low is None and high is None:
            return x
        return torch.complex(x.real.clamp(low, high), x.imag.clamp(low, high)) if x.is_complex() else x.clamp(low, high)

    # ---- bookkeeping -------------------------------------------------------------------------------------

    @property
    def image(self) -> Tensor:
        return self.point.state[self.solver.answer]

    def step(self) -> tuple[float, float]:
        """One iteration; returns the relative primal and dual residuals of the worst item."""
        at, before = self.point, self.image
        state = self.solver._step(self, **at.state)
        v = state[self.solver.answer]
        found = norms_of(self.op, self._differences(state, before))
        size = found[0].clamp_min(torch.finfo(torch.float32).tiny)
        dual, primal = (_worst(part / size) for part in (*found[1:], torch.zeros(1))[:2])
        fine = bool((found[0] <= self.ceiling).all())
        best, residual = at.best, at.best_residual
        if fine and max(primal, dual) < residual:
            best, residual = v, max(primal, dual)
        self.point = Point(at.iteration + 1, state, best, residual, (*at.residuals, (primal, dual)))
        self.diverged = not fine
        return primal, dual

    def _differences(self, state: State, before: Tensor) -> Iterator[Tensor]:
        """The answer, its change, and the gap that goes to zero; each to be let go before the next is made."""
        yield state[self.solver.answer]
        yield state[self.solver.answer] - before
        if self.solver.split:
            yield self.solver._gap(state)

    def give_best(self) -> None:
        """Make the best iterate the answer."""
        state = self.point.state | {self.solver.answer: self.point.best}
        self.point = self.point._replace(state=state)

    def _level(self, values: Tensor, ndim: int) -> float | Tensor:
        if bool((values == values[0]).all()):
            return float(values[0])
        like = self.backprojection
        return values.to(like.device, like.real.dtype).reshape(-1, *(1,) * (ndim - 1))


def turned(x: Tensor, k: int, *, back: bool = False) -> Tensor:
    """x in one of the eight orientations of the square, k = 0 as it is.

    :param bool back: undo that.
    """
    if back:
        x = torch.rot90(x, -(k % 4), (-2, -1))
        return (x.flip(-1) if k >= 4 else x).contiguous()
    return torch.rot90(x.flip(-1) if k >= 4 else x, k % 4, (-2, -1)).contiguous()


def _worst(values: Tensor) -> float:
    """The largest; NaN if there is one."""
    return float(values.max())
