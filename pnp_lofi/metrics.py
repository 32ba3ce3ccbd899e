"""Figures of merit. SSIM and the rest are deepinv.metric's."""

import math

import torch
from torch import Tensor


def snr(x: Tensor, truth: Tensor) -> float:
    """20 log10(||truth|| / ||x - truth||) [dB], as the radio papers report it."""
    return decibel(float(truth.double().norm()), float((x - truth).double().norm()))


def log_snr(x: Tensor, truth: Tensor, a: float) -> float:
    """SNR [dB] of rlog(x) = m log_a(a x / m + 1), where faint emission counts; always say what a is.

    m is the truth's peak, for both images, so that a wrong peak counts. What is below zero counts as zero.

    :param float a: dynamic range of the truth, > 1: its peak over the faintest emission that it holds.
    :raises ValueError: unless a is finite and > 1, and the truth has a peak > 0.
    Source: Terris et al. 2022 and 2023 (AIRI), arXiv 2202.12959 and 2312.07137.
    """
    peak = float(truth.max())
    if not (1 < a < math.inf and peak > 0):
        raise ValueError(f"log_snr needs a finite a > 1 and a truth with a peak > 0, got a = {a}, peak {peak}")

    def rlog(image: Tensor) -> Tensor:
        return torch.log1p(a / peak * image.double().clamp(min=0)) * (peak / math.log(a))

    return snr(rlog(x), rlog(truth))


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
