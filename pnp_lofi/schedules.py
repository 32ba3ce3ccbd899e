"""Levels that change from iteration to iteration: plain functions of its number, from 0."""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

Level = float | Tensor  # one for all, or (B,)
Schedule = Callable[[int], Level]
L = TypeVar("L", float, Tensor)


def constant(level: L) -> Callable[[int], L]:
    """The same level always."""
    return lambda k: level


def anneal(high: L, low: L, hold: int, settled: int) -> Callable[[int], L]:
    """``high`` for ``hold`` iterations, geometrically down to ``low`` at iteration ``settled``, then ``low``."""

    def level(k: int) -> L:
        if k >= settled:
            return low
        return high if k <= hold else high * (low / high) ** ((k - hold) / (settled - hold))

    return level


def dpir(low: L, iterations: int = 8, high: L | float = 49 / 255) -> Callable[[int], L]:
    """DPIR's: geometrically from ``high`` down to ``low`` in the last of so many iterations.

    Source: Zhang et al. 2021, section 4.2, for images of range 1.
    """
    return anneal(high * (low / low), low, 0, iterations - 1)
