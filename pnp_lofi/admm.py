"""ADMM with a denoiser in the place of a proximal step."""

import inspect
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from deepinv.models import Denoiser, Reconstructor
from deepinv.optim import Prior
from deepinv.physics import LinearPhysics
from deepinv.utils import TensorList
from torch import Tensor
from tqdm import tqdm

from pnp_lofi.cg import solve_normal
from pnp_lofi.checks import check_is_tensor
from pnp_lofi.metrics import psnr, snr
from pnp_lofi.noise import estimate_noise, misfit_level
from pnp_lofi.parameters import Parameters, Schedule, choose, noise_level
from pnp_lofi.solution import Iterate, Solution, Status

GLANCE = 20  # iterations for a guess of the noise level
BLOW_UP = 1e4  # growth of ||v|| over ||A^H y / L|| that is called divergence


class ADMM(Reconstructor):
    """min_x ||A x - y||^2 / (2 sigma_n^2) + prior(x), split as x = v:

        x <- (A^H A + alpha)^-1 (A^H y + alpha (v - u))     closed form, or CG warm-started at x
        v <- D_sigma_d(x + u)
        u <- u + x - v

    What is not given is chosen, see :func:`pnp_lofi.parameters.choose`. The result is v.

    :param LinearPhysics op: forward operator A.
    :param Denoiser prior: D, called as ``prior(x, sigma)``.
    :param float sigma_n: noise per real component [units of y], 0 for exact data; default: the operator's, else
        estimated.
    :param sigma_d: level given to the denoiser [units of x], or a function of the iteration (from 0).
    :param float alpha: penalty, sigma_n^2 / sigma_d^2.
    :param int max_iter: iterations at most.
    :param float tol: stop when both relative residuals are below it; 0 never stops early.
    :param bool nonneg: clip v at zero after the denoiser.
    :param float cg_tol: relative residual of the x step; int cg_max_iter: its steps at most.
    :param callback: called with an :class:`Iterate` after each iteration; returning True stops.
    :param bool progress: progress bar on stderr; default: where stderr is a terminal.
    :raises ValueError: for parameters that are not positive (sigma_n may be 0) or not finite.
    :raises TypeError: if the prior cannot be called as ``prior(x, sigma)``.
    Source: Boyd et al. 2011, section 3.1.1; Venkatakrishnan et al. 2013; arXiv 2411.04995, Algorithm 1, which
    prints v <- D(x - u), a sign slip (its code has x + u).
    """

    def __init__(
        self,
        op: LinearPhysics,
        prior: Denoiser,
        *,
        sigma_n: float | None = None,
        sigma_d: float | Schedule | None = None,
        alpha: float | None = None,
        max_iter: int = 50,
        tol: float = 1e-3,
        nonneg: bool = False,
        cg_tol: float = 1e-4,
        cg_max_iter: int = 12,
        callback: Callable[[Iterate], bool | None] | None = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__()
        _check_prior(prior)
        if sigma_n is not None and not 0 <= sigma_n < float("inf"):
            raise ValueError(f"sigma_n must be finite and >= 0 (0: exact data), got {sigma_n}")
        for name, value in {"sigma_d": sigma_d, "alpha": alpha, "max_iter": max_iter}.items():
            if isinstance(value, float | int) and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be finite and > 0, got {value}; leave it out to have it chosen")
        self.op, self.prior = op, prior
        self.sigma_n, self.sigma_d, self.alpha = sigma_n, sigma_d, alpha
        self.max_iter, self.tol, self.nonneg = max_iter, tol, nonneg
        self.cg_tol, self.cg_max_iter = cg_tol, cg_max_iter
        self.callback, self.progress = callback, progress

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
    ) -> Solution:
        """Reconstruct.

        :param torch.Tensor y: data in the operator's shape; a TensorList for stacked operators.
        :param LinearPhysics physics: operator to use in place of the solver's own.
        :param torch.Tensor x0: start, (B, C, H, W); default zero.
        :param torch.Tensor truth: to measure against.
        :raises ValueError: if y holds NaN or inf.
        :raises TypeError: if the operator's images are complex.
        """
        start = time.perf_counter()
        op = self.op if physics is None else physics
        check_is_tensor("ADMM", y, "y")
        if not all(bool(torch.isfinite(part).all()) for part in (y if isinstance(y, TensorList) else [y])):
            raise ValueError("y holds NaN or inf; flag such data (weight 0) or leave them out")
        backprojection = op.A_adjoint(y)
        if backprojection.is_complex():
            raise TypeError(
                f"priors are for real images, those of {type(op).__name__} are complex ({backprojection.dtype}): build "
                "the operator with real=True"
            )
        sigma_n = self.sigma_n if self.sigma_n is not None else noise_level(op, y)
        if sigma_n is None:
            sigma_n = estimate_noise(op, y, lambda level, x: self._glance(op, backprojection, level, x))
        chosen = choose(op, backprojection, sigma_n, self.max_iter, sigma_d=self.sigma_d, alpha=self.alpha)
        run = _Run(self, op, backprojection, chosen, x0)
        status = self._iterate(run)
        seconds = time.perf_counter() - start
        return Solution(run.v, status, run.iteration, run.residuals, self._metrics(run, y, truth, seconds))

    def _glance(self, op: LinearPhysics, backprojection: Tensor, level: float, x0: Tensor | None) -> Tensor:
        """A few iterations for a guess of the noise level."""
        run = _Run(self, op, backprojection, choose(op, backprojection, level, GLANCE), x0)
        for _ in tqdm(range(GLANCE), disable=self._quiet, desc=f"noise level {level:.2g}?", leave=False):
            run.step()
        return run.v

    @property
    def _quiet(self) -> bool | None:
        return None if self.progress is None else not self.progress  # None: tqdm looks whether there is a terminal

    def _iterate(self, run: "_Run") -> Status:
        with tqdm(total=self.max_iter, disable=self._quiet, desc="ADMM", unit="it") as bar:
            while run.iteration < self.max_iter:
                primal, dual = run.step()
                bar.update()
                bar.set_postfix_str(f"residuals {primal:.1e} {dual:.1e}", refresh=False)
                if run.diverged():
                    level = run.chosen.sigma_d(run.iteration - 1)
                    warnings.warn(
                        f"ADMM diverged at iteration {run.iteration} (alpha {run.chosen.alpha:.3g}, "
                        f"sigma_d {level:.3g}); the best iterate is returned. "
                        "A larger alpha or a smaller sigma_d is steadier.",
                        stacklevel=3,
                    )
                    run.v = run.best
                    return "diverged"
                if self.callback is not None and self.callback(Iterate(run.iteration, run.v, primal, dual)):
                    return "stopped"
                if max(primal, dual) < self.tol and run.iteration > run.chosen.settled:
                    return "converged"
        return "limit"

    def _metrics(self, run: "_Run", y: Tensor, truth: Tensor | None, seconds: float) -> dict[str, float]:
        chosen = run.chosen
        sigma_d = chosen.sigma_d(max(run.iteration - 1, 0))
        found = {"sigma_n": chosen.sigma_n, "sigma_d": sigma_d, "alpha": chosen.alpha}
        found["residual"] = misfit_level(run.op, y, run.v)
        if chosen.sigma_n > 0:
            found["misfit"] = found["residual"] / chosen.sigma_n
        found["seconds"] = seconds
        if truth is not None:
            found |= {"snr": snr(run.v, truth), "psnr": psnr(run.v, truth)}
        return found


def _check_prior(prior: Any) -> None:
    """:raises TypeError: unless ``prior(x, sigma)`` is a call that can be."""
    if isinstance(prior, str):
        raise TypeError(f"prior must be a denoiser, got the name {prior!r}; use LoFiPrior({prior!r})")
    if isinstance(prior, Prior):
        raise TypeError(f"prior must be a denoiser, got deepinv's {type(prior).__name__}; pass the denoiser inside it")
    name = prior.__name__ if isinstance(prior, type) else type(prior).__name__
    if not callable(prior) or isinstance(prior, type):
        raise TypeError(f"prior must be a denoiser such as LoFiPrior('natural'), got {name}")
    try:
        signature = inspect.signature(prior.forward if isinstance(prior, torch.nn.Module) else prior)
    except (TypeError, ValueError):  # compiled: nothing is known of it
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise TypeError(
            f"prior must be a denoiser that is called as prior(x, sigma), {name} is called as {name}{signature}"
        ) from error


class _Run:
    """The variables of one reconstruction."""

    def __init__(
        self, solver: ADMM, op: LinearPhysics, backprojection: Tensor, chosen: Parameters, x0: Tensor | None
    ) -> None:
        self.solver, self.op, self.backprojection, self.chosen = solver, op, backprojection, chosen
        self.x = torch.zeros_like(backprojection) if x0 is None else x0.to(backprojection)
        if self.x.shape != backprojection.shape:
            raise ValueError(f"x0 must have shape {tuple(backprojection.shape)}, got {tuple(self.x.shape)}")
        self.v, self.u = self.x, torch.zeros_like(self.x)
        self.ceiling = BLOW_UP * float((backprojection / chosen.norm).norm() + self.x.norm())
        self.iteration, self.best, self.best_residual = 0, self.v, float("inf")
        self.residuals: list[tuple[float, float]] = []

    def step(self) -> tuple[float, float]:
        """One iteration; returns the relative primal and dual residuals."""
        s, alpha, before = self.solver, self.chosen.alpha, self.v
        right = self.backprojection + alpha * (self.v - self.u)
        self.x, _ = solve_normal(self.op, right, alpha, init=self.x, tol=s.cg_tol, max_iter=s.cg_max_iter)
        self.v = s.prior(self.x + self.u, self.chosen.sigma_d(self.iteration))
        if s.nonneg:
            self.v = self.v.clamp_min(0)
        gap = self.x - self.v
        self.u = self.u + gap
        self.iteration += 1
        scale = max(float(self.v.norm()), torch.finfo(gap.dtype).tiny)
        primal, dual = float(gap.norm()) / scale, float((self.v - before).norm()) / scale
        self.residuals.append((primal, dual))
        if not self.diverged() and max(primal, dual) < self.best_residual:
            self.best, self.best_residual = self.v, max(primal, dual)
        return primal, dual

    def diverged(self) -> bool:
        size = float(self.v.norm())
        return not size <= self.ceiling
