"""Norms and extremes of the images of a batch, over all processes where an operator holds only a part of the image."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def over_processes(op: Any, values: Tensor, how: str) -> Tensor:
    """The sum or the maximum of values over the processes, see ``Operator.reduce``."""
    reduce = getattr(op, "reduce", None)
    return values if reduce is None else reduce(values, how)


def norms(op: Any, *images: Tensor) -> list[Tensor]:
    """The Euclidean norm of each item of each image, (B,) float64 on the CPU.

    :param op: the operator; its ``reduce(t, "sum")``, where it has one, adds up the processes' parts.
    """
    return norms_of(op, images)


def norms_of(op: Any, images: Iterable[Tensor]) -> list[Tensor]:
    """:func:`norms` of images that are made one after the other and not kept."""
    squares = torch.stack(list(map(_square, images)))
    return list(over_processes(op, squares, "sum").sqrt().cpu())


def largest(op: Any, x: Tensor) -> Tensor:
    """The largest value of each item of a real image, (B,) float64 on the CPU."""
    return over_processes(op, x.flatten(1).amax(1), "max").double().cpu()


def _square(x: Tensor) -> Tensor:
    """||x||^2 of each item, (B,) float64, without a copy of x."""
    flat = (torch.view_as_real(x) if x.is_complex() else x).flatten(1)
    return torch.linalg.vector_norm(flat, dim=1).double().square()
