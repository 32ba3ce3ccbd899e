"""Figures of merit. SSIM and the rest are deepinv.metric's."""

import math

from torch import Tensor


def snr(x: Tensor, truth: Tensor) -> float:
    """20 log10(||truth|| / ||x - truth||) [dB], as the radio papers report it."""
    return decibel(float(truth.double().norm()), float((x - truth).double().norm()))


def psnr(x: Tensor, truth: Tensor, value_range: float | None = None) -> float:
    """20 log10(range / rms error) [dB].

    :param float value_range: default max - min of the truth, as in the LoFi paper.
    """
    span = float(truth.max() - truth.min()) if value_range is None else value_range
    return decibel(span, float((x - truth).double().square().mean().sqrt()))


def decibel(signal: float, error: float) -> float:
    """20 log10(signal / error) [dB]."""
    if error == 0:
        return math.inf
    return 20 * math.log10(signal / error) if signal > 0 else -math.inf
