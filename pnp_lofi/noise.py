"""Noise levels, where the user gives none."""

from collections.abc import Callable
from typing import Any

import torch
from deepinv.physics import LinearPhysics, NoiseModel
from deepinv.utils import TensorList
from torch import Tensor

from pnp_lofi.reduction import over_processes

ROUNDS, STEADY = 8, 0.03  # at most; relative change at which the level counts as found
START = 0.3  # of the rms of the data: from above
# (part, q): so much of |n| lies below q, n standard normal. The quiet places decide, the more so the more there are.
LOW, MIDDLE = (0.1, 0.12566), (0.3, 0.38532)
MANY = 10_000  # differences from which on the lower part is taken
PART = 2**20  # data looked at at once
FEW = 200  # whole blocks below which pairs of neighbours are taken


def unchanged(x: Any, **kwargs: Any) -> Any:
    """x."""
    return x


def make_picklable(model: NoiseModel) -> None:
    """Put :func:`unchanged` in the place of the identity that deepinv's constructor defines inside of itself, where
    pickle does not find it."""
    for part in model.modules():
        if getattr(getattr(part, "noise_model", None), "__qualname__", "") == "NoiseModel.__init__.<locals>.<lambda>":
            part.noise_model = unchanged


def estimate_image_noise(x: Tensor, mask: Tensor | None = None) -> float:
    """Standard deviation of white noise in an image, from a low quantile of its finest diagonal differences.

    Texture as fine as the pixels counts as noise: the figure is an upper bound.

    :param torch.Tensor x: (B, C, H, W), at least 2 x 2.
    :param torch.Tensor mask: (H, W) or broadcastable to x, True where x was measured; 2 x 2 blocks with all four
        pixels count, or pairs of neighbours where there are fewer than 200 of those.
    :returns: sigma [units of x].
    :raises ValueError: if no two neighbouring pixels were measured.
    Source: Donoho & Johnstone 1994 with the Haar wavelet at every shift; they take the median, which texture lifts.
    """
    kept = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.bool().expand(x.shape)
    whole = kept[..., 1:, 1:] & kept[..., :-1, 1:] & kept[..., 1:, :-1] & kept[..., :-1, :-1]
    difference, terms = (x[..., 1:, 1:] - x[..., :-1, 1:] - x[..., 1:, :-1] + x[..., :-1, :-1])[whole], 4
    if difference.numel() < FEW:
        across = (x[..., :-1] - x[..., 1:])[kept[..., :-1] & kept[..., 1:]]
        down = (x[..., :-1, :] - x[..., 1:, :])[kept[..., :-1, :] & kept[..., 1:, :]]
        difference, terms = torch.cat([across, down]), 2
    if difference.numel() == 0:
        raise ValueError("no two neighbouring pixels were measured: the noise cannot be estimated, pass sigma_n")
    part, quantile = LOW if difference.numel() > MANY else MIDDLE
    rank = max(1, round(part * difference.numel()))
    return float(difference.abs().flatten().kthvalue(rank).values) / terms**0.5 / quantile


def residual_level(y: Tensor | TensorList, prediction: Tensor | TensorList, op: Any = None) -> float:
    """rms of y - A x per real component, over the data that are not exactly zero (not measured).

    :param op: the operator; its ``reduce``, where it has one, adds up what the processes hold.
    """
    square, seen = 0.0, 0
    pairs = zip(y, prediction, strict=True) if isinstance(y, TensorList) else [(y, prediction)]
    for data, modelled in pairs:
        parts = zip(data.flatten().split(PART), modelled.flatten().split(PART), strict=True)
        for a, b in parts:
            square += float((a - b).abs()[a != 0].double().square().sum())
            seen += int((a != 0).sum()) * (2 if data.is_complex() else 1)
    total = over_processes(op, torch.tensor([square, seen], dtype=torch.float64), "sum")
    return float(total[0] / total[1].clamp_min(1)) ** 0.5


def misfit_level(op: LinearPhysics, y: Tensor, x: Tensor | None) -> float:
    """rms of y - A x per real component: by the operator's own ``residual_level(y, x)`` where it has one, as one does
    whose data are not the measurements themselves.

    :param torch.Tensor x: image; None is zero.
    """
    if hasattr(op, "residual_level"):
        return float(op.residual_level(y, x))
    return residual_level(y, torch.zeros_like(y) if x is None else op.A(x), op)


def estimate_noise(op: LinearPhysics, y: Tensor, reconstruct: Callable[[float, Tensor | None], Tensor]) -> float:
    """Noise per real component: by the operator's own ``estimate_noise(y)`` where it has one, else as the fixed
    point of: reconstruct at a level, measure the residual.

    The fixed point holds where the data outnumber what a reconstruction can fit, as visibilities do (1 % low on
    MeerKAT's coverage); an operator of which that is not true should bring an estimate of its own.

    :param Callable reconstruct: (level, start or None) -> image, a few iterations of a solver.
    :returns: sigma_n [units of y].
    """
    if hasattr(op, "estimate_noise"):
        return float(op.estimate_noise(y))
    if isinstance(y, TensorList):
        raise ValueError(
            "the noise of stacked operators is not estimated: give each its sigma or pass sigma_n; where the levels "
            "differ build Stacked(..., weights=[1 / sigma**2, ...]) and whiten the data"
        )
    level = START * misfit_level(op, y, None)
    x: Tensor | None = None
    for _ in range(ROUNDS):
        if level == 0:
            break
        x = reconstruct(level, x)
        before, level = level, misfit_level(op, y, x)
        if abs(level / before - 1) < STEADY:
            break
    return level
