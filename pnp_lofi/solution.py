"""What a solver returns."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Status = Literal["converged", "limit", "diverged", "stopped"]


@dataclass(frozen=True)
class Iterate:
    """What a solver's callback sees after each iteration.

    :param int iteration: from 1.
    :param torch.Tensor x: the image so far, (B, C, H, W); not a copy.
    :param float primal: ||x - v|| / ||v||.
    :param float dual: ||v - v_before|| / ||v||.
    """

    iteration: int
    x: Tensor
    primal: float
    dual: float


@dataclass(frozen=True)
class Solution:
    """An image and how it came about.

    :param torch.Tensor x: (B, C, H, W).
    :param str status: "converged" (both residuals below tol), "limit" (iterations used up), "stopped" (by the
        callback) or "diverged" (x is then the best iterate before).
    :param int iterations: done.
    :param list residuals: (primal, dual) of each iteration, relative.
    :param dict metrics: sigma_n, sigma_d, alpha, misfit (rms of y - A x over sigma_n, 1 when the data are
        explained), seconds, and snr / psnr [dB] where a truth was given.
    """

    x: Tensor
    status: Status
    iterations: int
    residuals: list[tuple[float, float]] = field(repr=False)
    metrics: dict[str, float]
