"""Solver parameters that nobody has to tune."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from deepinv.physics import GaussianNoise, LinearPhysics
from torch import Tensor

from pnp_lofi.cg import operator_norm

Schedule = Callable[[int], float]  # iteration, from 0 -> level

STRENGTH = 0.7  # alpha over the mean eigenvalue of A^H A; on MeerKAT's coverage that is L / 170
START = 0.3  # of the image's range: the level of the first iterations, at which gaps fill fast
HOLD, SETTLED = 0.2, 0.75  # parts of the iterations at the start level, and until the final one
NOISE_FREE = 1e-4  # sigma_n / sqrt(L) below this part of the range counts as no noise
NOISE_FREE_LEVEL, NOISE_FREE_ALPHA = 0.05, 0.05  # then sigma_d over the range, alpha over L


@dataclass(frozen=True)
class Parameters:
    """:param float sigma_n: noise per real component [units of y].
    :param float alpha: ADMM's penalty.
    :param Schedule sigma_d: the denoiser's level in each iteration [units of x].
    :param int settled: iteration from which sigma_d no longer changes.
    :param float norm: L, the largest eigenvalue of A^H A.
    """

    sigma_n: float
    alpha: float
    sigma_d: Schedule
    settled: int
    norm: float


def constant(level: float) -> Schedule:
    """The same level always."""
    return lambda k: level


def anneal(high: float, low: float, hold: int, settled: int) -> Schedule:
    """``high`` for ``hold`` iterations, geometrically down to ``low`` at iteration ``settled``, then ``low``."""

    def level(k: int) -> float:
        part = (k - hold) / max(settled - hold, 1)
        return high * (low / high) ** min(max(part, 0.0), 1.0)

    return level


def noise_level(op: LinearPhysics, y: Tensor) -> float | None:
    """Noise per real component [units of y] that the operator itself names, or None.

    Ours say ``op.sigma``; deepinv's GaussianNoise puts sigma / sqrt(2) on each component of complex data.
    """
    sigma = getattr(op, "sigma", None)
    if sigma is None and isinstance(getattr(op, "noise_model", None), GaussianNoise):
        sigma = op.noise_model.sigma / (2**0.5 if y.is_complex() else 1)
    if sigma is None:
        return None
    level = float(torch.as_tensor(sigma).double().square().mean().sqrt())
    return level if level > 0 else None


def operator_scale(op: LinearPhysics, like: Tensor) -> float:
    """L, the largest eigenvalue of A^H A: the operator's own ``norm`` where it has one, else by Lanczos."""
    known = getattr(op, "norm", None)
    return known if isinstance(known, float) else operator_norm(op, like)


def mean_eigenvalue(op: LinearPhysics, like: Tensor, *, probes: int = 2, seed: int = 0) -> float:
    """trace(A^H A) / N by Hutchinson's estimator: the mean of <z, A^H A z> / <z, z> over random z.

    :param torch.Tensor like: an image with the shape, dtype and device to work in; its values are unused.
    """
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn((probes, *like.shape[1:]), generator=generator, dtype=like.dtype).to(like.device)
    return float((z.conj() * op.A_adjoint_A(z)).real.sum() / z.abs().square().sum())


def choose(
    op: LinearPhysics,
    backprojection: Tensor,
    sigma_n: float,
    max_iter: int,
    *,
    sigma_d: float | Schedule | None = None,
    alpha: float | None = None,
) -> Parameters:
    """Fill in what the user left out, keeping alpha = sigma_n^2 / sigma_d^2.

    alpha is 0.7 of the mean eigenvalue of A^H A. sigma_d starts at 0.3 of the image's range, so that what was not
    measured fills in fast, and has come down to sigma_n / sqrt(alpha) after three quarters of the iterations.
    Data without noise: down to 0.05 of the range, alpha = 0.05 L as in the paper.

    :param torch.Tensor backprojection: A^H y, which gives the range.
    :param float sigma_n: noise per real component, 0 for none.
    :param sigma_d: a level, or a schedule, that the user chose; float alpha: likewise.
    :raises ValueError: if the data are all zero.
    """
    norm = operator_scale(op, backprojection)
    span = float(backprojection.max() - backprojection.min()) / norm or float(backprojection.abs().max()) / norm
    if span == 0:
        raise ValueError("A^H y is zero everywhere: the data are all zero, there is nothing to reconstruct")
    noise_free = sigma_n <= NOISE_FREE * span * norm**0.5
    if alpha is None:
        fixed = None if sigma_d is None else sigma_d(max_iter - 1) if callable(sigma_d) else sigma_d
        if noise_free:
            alpha = NOISE_FREE_ALPHA * norm
        else:
            alpha = (sigma_n / fixed) ** 2 if fixed else STRENGTH * mean_eigenvalue(op, backprojection)
    if sigma_d is not None:
        schedule = sigma_d if callable(sigma_d) else constant(sigma_d)
        return Parameters(sigma_n, alpha, schedule, max_iter - 1 if callable(sigma_d) else 0, norm)
    low = NOISE_FREE_LEVEL * span if noise_free else sigma_n / alpha**0.5
    settled = int(SETTLED * max_iter)
    return Parameters(sigma_n, alpha, anneal(max(START * span, low), low, int(HOLD * max_iter), settled), settled, norm)
