"""Steps of Langevin samplers: x moves down the gradient of -log p and is shaken; each is readable beside its paper."""

import math
from collections.abc import Callable

from torch import Tensor

Gradient = Callable[[Tensor], Tensor]  # x -> grad of -log p(x | y), same shape
DAMPING = 0.05  # eta: how far the Chebyshev polynomial stays below 1
ULA_PART = 1 / 3  # of 1 / L: Laumont et al. 2022, section 4.1
SKROCK_PART = 0.5  # of the limit of stability: stiff modes lose variance beyond, see benchmarks and docs/uncertainty.md


def ula_step(x: Tensor, gradient: Gradient, step: float | Tensor, noise: Tensor) -> Tensor:
    """x - step gradient(x) + sqrt(2 step) noise.

    :param step: a number, or (B, 1, 1, 1); torch.Tensor noise: standard normal, as x.
    Source: Laumont et al. 2022 (PnP-ULA), algorithm 1, without their pull towards a ball.
    """
    return x - step * gradient(x) + (2 * step) ** 0.5 * noise


def skrock_step(
    x: Tensor, gradient: Gradient, step: float | Tensor, noise: Tensor, stages: int, damping: float = DAMPING
) -> Tensor:
    """One step of SK-ROCK, a stochastic Runge-Kutta-Chebyshev scheme: ``stages`` gradients carry it through about
    stages^2 times the time that one gradient of ULA can.

    :param step: as above, below :func:`skrock_limit` / (largest curvature of -log p).
    Source: Abdulle, Almuslimani and Vilmart 2018; Pereyra, Vargas Mieles and Zygalakis 2020, algorithm 3.1.
    """
    w0, w1 = _chebyshev(stages, damping)
    shake = (2 * step) ** 0.5 * noise
    before, now = x, x - w1 / w0 * step * gradient(x + stages * w1 / 2 * shake) + stages * w1 / w0 * shake
    for j in range(2, stages + 1):
        ratio = _first_kind(j - 1, w0) / _first_kind(j, w0)
        mu, nu = 2 * w1 * ratio, 2 * w0 * ratio
        before, now = now, nu * now + (1 - nu) * before - mu * step * gradient(now)
    return now


def skrock_limit(stages: int, damping: float = DAMPING) -> float:
    """Largest step times curvature at which SK-ROCK is stable: (1 + w0) / w1, where its polynomial's argument is -1."""
    w0, w1 = _chebyshev(stages, damping)
    return (1 + w0) / w1


def stages_for(reach: float) -> int:
    """Fewest stages, at least 2, whose step may be ``reach`` / curvature with the safety that is kept here."""
    stages = 2
    while SKROCK_PART * skrock_limit(stages) < reach:
        stages += 1
    return stages


def _chebyshev(stages: int, damping: float) -> tuple[float, float]:
    """w0 = 1 + damping / stages^2 and w1 = T(w0) / T'(w0), T the Chebyshev polynomial of degree ``stages``."""
    w0 = 1 + damping / stages**2
    slope = stages * math.sinh(stages * math.acosh(w0)) / math.sqrt(w0**2 - 1)
    return w0, _first_kind(stages, w0) / slope


def _first_kind(degree: int, u: float) -> float:
    return math.cosh(degree * math.acosh(u))
