"""Solver parameters that nobody has to tune."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from deepinv.physics import GaussianNoise, LinearPhysics
from deepinv.utils import TensorList
from torch import Tensor

from pnp_lofi.cg import operator_norm
from pnp_lofi.reduction import largest, over_processes
from pnp_lofi.schedules import Level, Schedule, anneal, constant

START = 0.3  # of the image's range: the level of the first iterations, at which gaps fill fast
HOLD, SETTLED = 0.2, 0.75  # parts of the iterations at the start level, and until the final one
NOISE_FREE = 1e-4  # sigma_n / sqrt(L) below this part of the range counts as no noise


@dataclass(frozen=True)
class Rule:
    """What an algorithm's alpha and its last level are, in the operator's and the data's own units.

    :param float mean, norm: alpha over the mean eigenvalue of A^H A, or over the largest, L; one of the two.
    :param float level: sigma_d sqrt(alpha) / sigma_n at the end.
    :param float exact_level, exact_alpha: sigma_d over the image's range, and alpha over L, for data without noise.
    """

    mean: float | None = None
    norm: float | None = None
    level: float = 1.0
    exact_level: float = 0.05
    exact_alpha: float = 0.05


@dataclass(frozen=True)
class Parameters:
    """Of one reconstruction; (B,) are float64 on the CPU, one for each item.

    :param torch.Tensor sigma_n: (B,) noise per real component [units of y].
    :param alpha: ADMM's penalty in each iteration, (B,).
    :param sigma_d: the denoiser's level in each iteration, (B,) [units of x].
    :param int settled: iteration from which neither changes.
    :param float norm: L, the largest eigenvalue of A^H A.
    """

    sigma_n: Tensor
    alpha: Callable[[int], Tensor]
    sigma_d: Callable[[int], Tensor]
    settled: int
    norm: float


def noise_level(op: LinearPhysics, y: Tensor) -> Level | None:
    """Noise per real component [units of y] that the operator itself names, (B,) where it does for each item, or None.

    Ours say ``op.sigma``; deepinv's GaussianNoise puts sigma / sqrt(2) on each component of complex data.
    """
    sigma = getattr(op, "sigma", None)
    if sigma is None and isinstance(y, TensorList):  # ours have said all they know; of deepinv's the parts are asked
        parts = [] if hasattr(op, "sigma") else getattr(op, "physics_list", [])
        levels = [noise_level(part, data) for part, data in zip(parts, y, strict=True)] if parts else [None]
        same = all(isinstance(level, float) and level == levels[0] for level in levels)
        return levels[0] if same else None
    if sigma is None and isinstance(getattr(op, "noise_model", None), GaussianNoise):
        sigma = op.noise_model.sigma / (2**0.5 if y.is_complex() else 1)
    if sigma is None:
        return None
    each_item = torch.as_tensor(sigma, dtype=torch.float64).flatten()
    if 1 < len(each_item) == len(y) and bool((each_item > 0).all()):
        return each_item
    level = float(each_item.square().mean().sqrt())
    return level if level > 0 else None


def operator_scale(op: LinearPhysics, like: Tensor) -> float:
    """L, the largest eigenvalue of A^H A: the operator's own ``norm`` where it has one, else by Lanczos."""
    known = getattr(op, "norm", None)
    return known if isinstance(known, float) else operator_norm(op, like)


def mean_eigenvalue(op: LinearPhysics, like: Tensor, *, probes: int = 2, seed: int = 0) -> float:
    """trace(A^H A) / N: the operator's own ``mean_eigenvalue`` where it has one, else by Hutchinson's estimator, the
    mean of <z, A^H A z> / <z, z> over random z.

    :param torch.Tensor like: an image with the shape, dtype and device to work in; its values are unused.
    """
    known = getattr(op, "mean_eigenvalue", None)
    if isinstance(known, float):
        return known
    generator, strips = torch.Generator().manual_seed(seed), getattr(op, "strips", None)
    if strips is None:
        z = torch.randn((probes, *like.shape[1:]), generator=generator, dtype=like.dtype).to(like.device)
    else:
        z = strips.normal((probes, like.shape[1]), like.dtype, generator).to(like.device)
    found = torch.stack([(z.conj() * op.A_adjoint_A(z)).real.sum(), z.abs().square().sum()])
    above, below = over_processes(op, found, "sum").tolist()
    return above / below


def image_range(op: LinearPhysics, backprojection: Tensor, norm: float) -> Tensor:
    """(B,) what the range of each image is about: max - min of A^H y / L, or its largest value if that is flat.

    :raises ValueError: if the data of an item are all zero.
    """
    parts = torch.view_as_real(backprojection) if backprojection.is_complex() else backprojection
    high, low = largest(op, parts), -largest(op, -parts)
    span = torch.where(high > low, high - low, torch.maximum(high.abs(), low.abs())) / norm
    if not bool((span > 0).all()):
        raise ValueError("A^H y is zero everywhere: the data are all zero, there is nothing to reconstruct")
    return span


def choose(
    op: LinearPhysics,
    backprojection: Tensor,
    sigma_n: Level,
    max_iter: int,
    *,
    sigma_d: Level | Schedule | None = None,
    alpha: Level | Schedule | None = None,
    rule: Rule = Rule(mean=1.0),
    loudest: float = START,
) -> Parameters:
    """Fill in what the user left out, keeping alpha = sigma_n^2 / sigma_d^2 at the end, item by item.

    Unless the algorithm's rule says otherwise alpha is the mean eigenvalue of A^H A. sigma_d starts at 0.3 of the
    image's range, so that what was not measured fills in fast, and has come down to sigma_n / sqrt(alpha) after three
    quarters of the iterations. Data without noise: down to 0.05 of the range, alpha = 0.05 L as in the paper.

    :param torch.Tensor backprojection: A^H y, which gives the range.
    :param sigma_n: noise per real component, 0 for none: a number, or (B,).
    :param sigma_d: a level, (B,), or a schedule, that the user chose; alpha: likewise.
    :param float loudest: level of the first iterations over the image's range, at most 0.3; what the prior knows.
    :raises ValueError: if the data are all zero.
    """
    norm, items = operator_scale(op, backprojection), len(backprojection)
    span, noise = image_range(op, backprojection, norm), each(sigma_n, items)
    noise_free = noise <= NOISE_FREE * span * norm**0.5
    last = max_iter - 1
    if alpha is None:
        fixed = None if sigma_d is None else each(sigma_d(last) if callable(sigma_d) else sigma_d, items)
        unit = norm if rule.mean is None else mean_eigenvalue(op, backprojection)
        noisy = (rule.norm or rule.mean or 1.0) * unit if fixed is None else (rule.level * noise / fixed) ** 2
        alpha = torch.where(noise_free, rule.exact_alpha * norm, noisy)
    penalty = _schedule(alpha, items)
    if sigma_d is not None:
        return Parameters(noise, penalty, _schedule(sigma_d, items), last if callable(sigma_d) else 0, norm)
    low = torch.where(noise_free, rule.exact_level * span, rule.level * noise / penalty(last).sqrt())
    settled = last if callable(alpha) else int(SETTLED * max_iter)
    high = torch.maximum(min(START, loudest) * span, low)
    return Parameters(noise, penalty, anneal(high, low, int(HOLD * max_iter), settled), settled, norm)


def each(level: Level, items: int) -> Tensor:
    """(B,) float64.

    :raises ValueError: if the level is neither a number nor one for each item.
    """
    found = torch.as_tensor(level, dtype=torch.float64, device="cpu").detach()
    if found.numel() not in (1, items):
        raise ValueError(f"expected a number, or one for each of {items} images, got shape {tuple(found.shape)}")
    return found.reshape(-1).expand(items)


def _schedule(level: Level | Schedule, items: int) -> Callable[[int], Tensor]:
    if callable(level):
        given = level
        return lambda k: each(given(k), items)
    return constant(each(level, items))
