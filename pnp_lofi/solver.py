"""What all solvers share: checks, parameters, progress, divergence, saving, and what they tell."""

import copy
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from deepinv.models import Denoiser, Reconstructor
from deepinv.physics import LinearPhysics
from deepinv.utils import TensorList
from torch import Tensor
from tqdm import tqdm

from pnp_lofi.budget import prior_memory, within
from pnp_lofi.checks import check_is_tensor, check_prior
from pnp_lofi.dense import finite
from pnp_lofi.memory import peak_memory_mb
from pnp_lofi.metrics import decibel
from pnp_lofi.noise import estimate_noise, misfit_level
from pnp_lofi.parameters import Parameters, Rule, choose, each, noise_level
from pnp_lofi.reduction import largest, norms
from pnp_lofi.run import Point, Run, State
from pnp_lofi.saving import check_same, read_run, write_run
from pnp_lofi.schedules import Level, Schedule
from pnp_lofi.solution import Iterate, Solution, Status

GLANCE = 20  # iterations for a guess of the noise level
BLOW_UP = 1e4  # growth of ||v|| over ||A^H y / L|| that is called divergence
EVERY = 60.0  # seconds between two savings
Callback = Callable[[Iterate], bool | None]


class Solver(Reconstructor):
    """Abstract: an algorithm brings ``_begin(run, x)``, its variables at the start, and ``_step(run, **variables)``,
    the next ones, both by name; ``answer`` names the image, ``split`` tells whether x and v come together.

    What is not given is chosen, see :func:`pnp_lofi.parameters.choose`.

    :param LinearPhysics op: forward operator A.
    :param Denoiser prior: D, called as ``prior(x, sigma)``; of complex images it gets real and imaginary parts.
    :param sigma_n: noise per real component [units of y], 0 for exact data, or (B,); default: the operator's, else
        estimated.
    :param sigma_d: level given to the denoiser [units of x], (B,), or a function of the iteration (from 0).
    :param alpha: penalty, sigma_n^2 / sigma_d^2, (B,), or a function of the iteration.
    :param int max_iter: iterations at most.
    :param float tol: stop when the relative residuals of all items are below it; 0 never stops early.
    :param bool nonneg: clip at zero after the denoiser; tuple box: (low, high), clip there, either may be None.
    :param bool turns: show the denoiser the image turned and mirrored, another one of the eight ways in each iteration,
        so that what it prefers along rows or columns does not build up.
    :param float cg_tol: relative residual of x steps without closed form; int cg_max_iter: their steps at most.
    :param float max_memory: working memory beyond what the process holds when ``solve`` is called [MB = 2^20 bytes]:
        prior and, where it can, operator work in chunks that keep to it, to the same result. Default: no limit.
    :param callback: called with an :class:`Iterate` after each iteration; returning True stops.
    :param bool progress: progress bar on stderr; default: where stderr is a terminal.
    :raises ValueError: for parameters that are not positive (sigma_n may be 0) or not finite.
    :raises TypeError: if the prior cannot be called as ``prior(x, sigma)``.
    """

    answer: ClassVar[str] = "v"
    split: ClassVar[bool] = True
    rule: ClassVar[Rule] = Rule(mean=1.0)
    spare: ClassVar[int] = 5  # images that are held at most, beyond the variables before and after a step

    def __init__(
        self,
        op: LinearPhysics,
        prior: Denoiser,
        *,
        sigma_n: Level | None = None,
        sigma_d: Level | Schedule | None = None,
        alpha: Level | Schedule | None = None,
        max_iter: int = 50,
        tol: float = 1e-3,
        nonneg: bool = False,
        box: tuple[float | None, float | None] | None = None,
        turns: bool = False,
        cg_tol: float = 1e-4,
        cg_max_iter: int = 12,
        max_memory: float | None = None,
        callback: Callback | None = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__()
        check_prior(prior)
        if sigma_n is not None and not _all(sigma_n, lambda s: s >= 0):
            raise ValueError(f"sigma_n must be finite and >= 0 (0: exact data), got {sigma_n}")
        positive = {"sigma_d": sigma_d, "alpha": alpha, "max_iter": max_iter, "max_memory": max_memory}
        for name, value in positive.items():
            if value is not None and not callable(value) and not _all(value, lambda s: s > 0):
                raise ValueError(f"{name} must be finite and > 0, got {value}; leave it out to have it chosen")
        if nonneg and box is not None:
            raise ValueError("pass nonneg or box, not both; nonneg is box=(0, None)")
        low, high = (0.0, None) if nonneg else (None, None) if box is None else box
        if low is not None and high is not None and not low < high:
            raise ValueError(f"box must be (low, high) with low < high, got {box}")
        self.op, self.prior = op, prior
        self.sigma_n, self.sigma_d, self.alpha = sigma_n, sigma_d, alpha
        self.max_iter, self.tol, self.turns = max_iter, tol, turns
        self.low, self.high = low, high
        self.cg_tol, self.cg_max_iter = cg_tol, cg_max_iter
        self.max_memory, self.callback, self.progress = max_memory, callback, progress

    # ---- what an algorithm brings ------------------------------------------------------------------------

    def _begin(self, run: Run, x: Tensor) -> State:
        raise NotImplementedError

    def _step(self, run: Run, **variables: Tensor) -> State:
        raise NotImplementedError

    def _gap(self, state: State) -> Tensor:
        """What goes to zero where the algorithm converges: between the image of the data and that of the prior."""
        return state["x"] - state["v"]

    def _choose(self, op: LinearPhysics, backprojection: Tensor, sigma_n: Level, max_iter: int) -> Parameters:
        return choose(
            op, backprojection, sigma_n, max_iter, sigma_d=self.sigma_d, alpha=self.alpha, rule=self.rule,
            loudest=_loudest(self.prior),
        )  # fmt: skip

    # ---- what a user calls -------------------------------------------------------------------------------

    def forward(self, y: Tensor, physics: LinearPhysics | None = None, **kwargs: Any) -> Tensor:
        """:returns: the image, (B, C, H, W); see :meth:`solve`."""
        return self.solve(y, physics, **kwargs).x

    @torch.no_grad()
    def solve(
        self,
        y: Tensor,
        physics: LinearPhysics | None = None,
        *,
        x0: Tensor | None = None,
        truth: Tensor | None = None,
        save: str | os.PathLike[str] | None = None,
        every: float = EVERY,
    ) -> Solution:
        """Reconstruct.

        :param torch.Tensor y: data in the operator's shape; a TensorList for stacked operators.
        :param LinearPhysics physics: operator to use in place of the solver's own.
        :param torch.Tensor x0: start, (B, C, H, W); default zero.
        :param torch.Tensor truth: to measure against.
        :param save: file to write the run to, on the way and when it is interrupted, for :meth:`resume`.
        :param float every: time between two savings [s].
        :raises ValueError: if y holds NaN or inf, or max_memory is too little; it says how much is needed.
        :raises FileExistsError: if there is a file ``save``: resume that run, or remove it; FileNotFoundError: if
            there is no folder for it.
        """
        begin, op = time.perf_counter(), self.op if physics is None else physics
        if save is not None and os.path.exists(save):
            raise FileExistsError(f"{save} exists; go on with that run by resume({str(save)!r}), or remove it")
        if save is not None and not Path(save).absolute().parent.is_dir():
            raise FileNotFoundError(f"there is no folder for {save}; make it first")
        check_is_tensor(type(self).__name__, y, "y")
        if not all(finite(part) for part in (y if isinstance(y, TensorList) else [y])):
            raise ValueError("y holds NaN or inf; flag such data (weight 0) or leave them out")
        with within(op, y, self.max_memory):
            backprojection = op.A_adjoint(y)
            run = self._new_run(op, y, backprojection, self._noise(op, y, backprojection), self.max_iter, x0)
            return self._go(run, truth, save, every, begin)

    @torch.no_grad()
    def resume(
        self,
        path: str | os.PathLike[str],
        physics: LinearPhysics | None = None,
        *,
        truth: Tensor | None = None,
        every: float = EVERY,
    ) -> Solution:
        """Go on with a run that ``solve(y, save=path)`` wrote, to the same result as if it had never stopped.

        Operator, prior and settings have to be those of the run. Priors with a memory of their own, as deepinv's
        TVDenoiser, start that anew.

        :raises FileNotFoundError: if there is no such file.
        :raises ValueError: if it is no run of this solver, or operator, prior or settings are others; it says which.
        """
        begin, op = time.perf_counter(), self.op if physics is None else physics
        saved = read_run(path)
        check_same(path, saved.about, self)
        with within(op, saved.data, self.max_memory):
            backprojection = op.A_adjoint(saved.data)
            sigma_n = torch.tensor(saved.about["sigma_n"], dtype=torch.float64)
            run = self._new_run(op, saved.data, backprojection, sigma_n, self.max_iter, None)
            check_same(path, saved.about, self, run)
            run.point, run.seconds, run.diverged = saved.point, saved.about["seconds"], saved.about["diverged"]
            return self._go(run, truth, path, every, begin)

    # ---- the loop ----------------------------------------------------------------------------------------

    def _new_run(
        self, op: LinearPhysics, y: Tensor, backprojection: Tensor, sigma_n: Level, max_iter: int, x0: Tensor | None
    ) -> Run:
        x = torch.zeros_like(backprojection) if x0 is None else x0.to(backprojection)
        if x.shape != backprojection.shape:
            raise ValueError(f"x0 must have shape {tuple(backprojection.shape)}, got {tuple(x.shape)}")
        if self.turns and getattr(op, "strips", None) is not None:
            raise ValueError("turns=True turns whole images; strips of one that processes share cannot be turned")
        run = Run(self, op, y, backprojection, self._choose(op, backprojection, sigma_n, max_iter))
        size, start = norms(op, backprojection, x)
        run.ceiling = BLOW_UP * (size / run.chosen.norm + start)
        run.point = Point(0, self._begin(run, x), x, float("inf"), ())
        count = len(run.point.state)
        run.prior_memory = prior_memory(
            op, self.prior, backprojection, self.max_memory, held=count + 3, working=2 * count + self.spare
        )
        return run

    def _noise(self, op: LinearPhysics, y: Tensor, backprojection: Tensor) -> Level:
        """What the user or the operator says, else an estimate for each item."""
        known = self.sigma_n if self.sigma_n is not None else noise_level(op, y)
        if known is not None:
            return known

        def glance(item: int, level: float, x0: Tensor | None) -> Tensor:
            one = copy.copy(self)
            one.sigma_d, one.alpha = _of_item(self.sigma_d, item), _of_item(self.alpha, item)
            run = one._new_run(op, _item(y, item), backprojection[item : item + 1], level, GLANCE, x0)
            for _ in tqdm(range(GLANCE), disable=self._quiet, desc=f"noise level {level:.2g}?", leave=False):
                run.step()
            return run.image

        found = [
            estimate_noise(op, _item(y, i), lambda level, x, i=i: glance(i, level, x))  # type: ignore[misc]
            for i in range(len(backprojection))
        ]
        return torch.tensor(found, dtype=torch.float64)

    @property
    def _quiet(self) -> bool | None:
        return None if self.progress is None else not self.progress  # None: tqdm looks whether there is a terminal

    def _go(
        self,
        run: Run,
        truth: Tensor | None,
        path: str | os.PathLike[str] | None,
        every: float,
        begin: float,
    ) -> Solution:
        before = run.seconds
        run.clock = lambda: before + time.perf_counter() - begin
        keep = _Keeper(run, path, every)
        try:
            status = self._iterate(run, truth, keep)
        except KeyboardInterrupt:
            if path is not None:
                keep.now()
                warnings.warn(
                    f"interrupted after iteration {run.point.iteration}; the run is in {path}, resume goes on with it",
                    stacklevel=4,
                )
            raise
        if path is not None:
            keep.now()
        return Solution(run.image, status, run.point.iteration, list(run.point.residuals), self._metrics(run, truth))

    def _iterate(self, run: Run, truth: Tensor | None, keep: "_Keeper") -> Status:
        name = type(self).__name__
        if run.diverged:  # before it was saved
            run.give_best()
            return "diverged"
        with tqdm(total=self.max_iter, initial=run.point.iteration, disable=self._quiet, desc=name, unit="it") as bar:
            while run.point.iteration < self.max_iter:
                if run.point.residuals and self._converged(run):  # a run that was over when it was saved
                    return "converged"
                alpha, level = run.alpha, run.level
                primal, dual = run.step()
                bar.update()
                bar.set_postfix_str(f"residuals {primal:.1e} {dual:.1e}", refresh=False)
                if run.diverged:
                    warnings.warn(
                        f"{name} diverged at iteration {run.point.iteration} (alpha {_shown(alpha)}, "
                        f"sigma_d {_shown(level)}); the best iterate is returned. "
                        "A larger alpha or a smaller sigma_d is steadier.",
                        stacklevel=5,  # _go, solve, no_grad, the user
                    )
                    run.give_best()
                    return "diverged"
                keep()
                if self.callback is not None:
                    error = None if truth is None else errors(run.op, run.image, truth)["snr"]
                    here = Iterate(run.point.iteration, run.image, primal, dual, level, alpha, run.clock(), error)
                    if self.callback(here):
                        return "stopped"
        return "converged" if self._converged(run) else "limit"

    def _converged(self, run: Run) -> bool:
        primal, dual = run.point.residuals[-1]
        worst = max(primal, dual) if self.split else dual
        return worst < self.tol and run.point.iteration > run.chosen.settled

    def _metrics(self, run: Run, truth: Tensor | None) -> dict[str, Any]:
        chosen, last = run.chosen, max(run.point.iteration - 1, 0)
        residual = torch.tensor(
            [misfit_level(run.op, _item(run.data, i), run.image[i : i + 1]) for i in range(len(run.image))]
        ).double()
        found: dict[str, Any] = {
            "sigma_n": _shown(chosen.sigma_n),
            "sigma_d": _shown(chosen.sigma_d(last)),
            "alpha": _shown(chosen.alpha(last)),
            "residual": float(residual.square().mean().sqrt()),
        }
        if bool((chosen.sigma_n > 0).all()):
            found["misfit"] = float((residual / chosen.sigma_n).square().mean().sqrt())
        found |= {"seconds": run.clock(), "peak_memory_mb": peak_memory_mb(run.image.device)}
        return found if truth is None else found | errors(run.op, run.image, truth)


class _Keeper:
    """Writes a run from time to time."""

    def __init__(self, run: Run, path: str | os.PathLike[str] | None, every: float) -> None:
        self.run, self.path, self.every = run, path, every
        self.last = time.perf_counter()

    def __call__(self) -> None:
        if self.path is None:
            return
        waited = torch.tensor([[time.perf_counter() - self.last]])
        if float(largest(self.run.op, waited)) >= self.every:  # the same decision in all processes
            self.now()

    def now(self) -> None:
        assert self.path is not None
        write_run(self.path, self.run)
        self.last = time.perf_counter()


def errors(op: LinearPhysics, x: Tensor, truth: Tensor) -> dict[str, float]:
    """snr and psnr [dB] of a batch, as pnp_lofi.metrics has them, over all processes that hold parts of it."""
    signal, error, ones = norms(op, truth, x - truth, torch.ones_like(x, dtype=x.real.dtype))
    rms = float(error.square().sum() / ones.square().sum()) ** 0.5
    parts = torch.view_as_real(truth) if truth.is_complex() else truth
    span = float(largest(op, parts).max() + largest(op, -parts).max())
    return {"snr": decibel(float(signal.norm()), float(error.norm())), "psnr": decibel(span, rms)}


def _loudest(prior: Any) -> float:
    """The largest noise level that a prior was trained for, over the range of its images; inf where it does not say."""
    header = getattr(prior, "header", {})
    if "sigma_range" not in header:
        return float("inf")
    low, high = header.get("value_range", (0.0, 1.0))
    return float(header["sigma_range"][1]) / (high - low)


def _item(y: Tensor, i: int) -> Tensor:
    """Data of one item, still a batch."""
    return TensorList([part[i : i + 1] for part in y]) if isinstance(y, TensorList) else y[i : i + 1]


def _of_item(level: Any, i: int) -> Any:
    """A level, or a schedule, of one item."""
    if callable(level):
        return lambda k: _of_item(level(k), i)
    return level.flatten()[i] if isinstance(level, Tensor) and level.numel() > 1 else level


def _all(value: Level, holds: Callable[[Tensor], Tensor]) -> bool:
    number = torch.as_tensor(value, dtype=torch.float64)
    return bool((torch.isfinite(number) & holds(number)).all())


def _shown(level: Level) -> Any:
    """A number where all items have the same, else a list."""
    found = each(level, torch.as_tensor(level).numel())
    return float(found[0]) if bool((found == found[0]).all()) else found.tolist()
