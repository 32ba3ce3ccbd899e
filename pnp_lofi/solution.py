"""What a solver tells."""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Status = Literal["converged", "limit", "diverged", "stopped"]


@dataclass(frozen=True)
class Iterate:
    """What a solver's callback sees after each iteration; of a batch the worst item's residuals.

    :param int iteration: from 1.
    :param torch.Tensor x: the image so far, (B, C, H, W); not a copy.
    :param float primal: ||x - v|| / ||v||, how far the data's image and the prior's are apart; 0 where a solver has but
        one image.
    :param float dual: ||v - v_before|| / ||v||.
    :param sigma_d, alpha: the denoiser's level [units of x] and the penalty of this iteration, a float or (B,).
    :param float seconds: since the start.
    :param float snr: of x [dB], where the truth was given.
    """

    iteration: int
    x: Tensor
    primal: float
    dual: float
    sigma_d: float | Tensor = 0.0
    alpha: float | Tensor = 0.0
    seconds: float = 0.0
    snr: float | None = None


@dataclass(frozen=True)
class Solution:
    """An image and how it came about.

    :param torch.Tensor x: (B, C, H, W).
    :param str status: "converged" (the residuals are below tol), "limit" (iterations used up), "stopped" (by the
        callback) or "diverged" (x is then the best iterate before).
    :param int iterations: done.
    :param list residuals: (primal, dual) of each iteration, relative, the worst of the batch.
    :param dict metrics: sigma_n, sigma_d, alpha (lists where the items of a batch differ); residual, the rms of
        y - A x, and misfit, that over sigma_n: 1 when the data are explained; seconds; peak_memory_mb, of the process
        so far, on a GPU of torch's allocator; and snr / psnr [dB] where a truth was given.
    """

    x: Tensor
    status: Status
    iterations: int
    residuals: list[tuple[float, float]] = field(repr=False)
    metrics: dict[str, Any]
