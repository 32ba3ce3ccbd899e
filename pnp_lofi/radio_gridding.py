"""From visibilities on disk to what a solver needs, in one pass and in memory that does not grow with them."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pnp_lofi import w_gridder
from pnp_lofi.operators import NormalEquations, StreamedNUFFT
from pnp_lofi.radio_chunks import View
from pnp_lofi.visibilities import ROWS

CYCLES = 6  # major cycles at most
SETTLED = 0.1  # of the noise: the change of the dirty image's rms below which major cycles end
EPS = 1e-9  # relative accuracy of the transforms: the solver works in float32
W_ROWS = 2**21  # visibilities that it takes at a time: each call costs FFTs whatever it holds
T = TypeVar("T")


@dataclass(frozen=True)
class Gridded:
    """:param StreamedNUFFT op: its noise level is known if the weights are absolute, then 1 with natural ones.
    :param torch.Tensor y: (1, 1, H, W) float32.
    :param int count: visibilities that are used.
    :param float frequency: their mean [Hz].
    :param float spread: noise of the dirty image over that of white noise of the data's mean level; 1 with natural
        weights.
    :param float level: noise of the data over that of naturally weighted ones.
    """

    op: StreamedNUFFT
    y: Tensor
    count: int
    frequency: float
    spread: float
    level: float


def grid(view: View, *, wide_field: bool = False) -> Gridded:
    """:param bool wide_field: see the w-term in y; the operator does not, :func:`major_cycles` mends that.
    :raises ValueError: for what cannot be imaged, and with wide_field for baselines without w or an odd size.
    """
    if wide_field:
        _check_wide(view)
    sums = np.zeros(5)  # of 1, frequency, v, v / w, v^2 / w
    wide = torch.zeros(view.shape, dtype=torch.float64)

    def chunks():  # type: ignore[no-untyped-def]
        for piece in view.pieces(W_ROWS if wide_field else ROWS):
            ratio = torch.where(piece.natural > 0, piece.weight / piece.natural, 0)
            terms = (torch.ones_like(ratio), ratio * 0 + piece.frequency, piece.weight, ratio, piece.weight * ratio)
            sums[:] += [float(term.sum()) for term in terms]
            if wide_field:
                wide.add_(w_gridder.adjoint(piece.vis, piece.weight, piece.uvw, view.shape, view.cell))
            yield piece.uv, piece.vis, piece.weight

    equations = NormalEquations.from_chunks(view.shape, chunks(), eps=EPS)
    count, frequency, v, ratio, square = sums
    level = math.sqrt(ratio / count)
    op, y = equations.measurement(sigma=level if view.source.absolute_weights else None)
    if wide_field:
        y = wide.to(y.dtype)[None, None]
    spread = math.sqrt(square / v) / level
    return Gridded(op, y, int(count), frequency / count, spread, level)


# ---- the w-term ------------------------------------------------------------------------------------------


def major_cycles(
    view: View, gridded: Gridded, solve: Callable[[Gridded], T], sky: Callable[[T], Tensor], *, most: int = CYCLES
) -> tuple[T, Gridded, int]:
    """Solve with the w-term: minor cycles by an operator that neglects it, its error mended between them.

    With A of the w-gridder and G the convolution that stands for A^H A, each cycle solves for the data

        y' = G x + A^H W (vis - A x),

    whose misfit has at x the value and the gradient of the true one. Where y' stands still, x is the solution for A
    itself, whatever G is. It ends when y' changes by less than a tenth of the noise, after ``most`` cycles at the
    latest; each reads the visibilities once. If the changes grow it warns and keeps what was found before.

    :param Gridded gridded: of ``grid(view, wide_field=True)``.
    :param solve: finds something for a Gridded; sky: takes the image, (1, 1, H, W) [Jy/pixel], out of it.
    :returns: what was found last, the data of the next cycle (exact at that image), and the number of cycles.
    Source: the major cycles of Schwab 1984, AJ 89, 1076, around another minor cycle than CLEAN.
    """
    cycle, change, noise, least = 0, math.inf, 0.0, math.inf
    while cycle < most and change >= SETTLED * noise:
        cycle += 1
        tried = solve(gridded)
        x = sky(tried)
        after = _after(view, gridded, x)
        change = float(after.op.dirty(after.y - gridded.y).square().mean().sqrt())
        noise = after.op.dirty_noise(after.op.residual_level(after.y, x))
        if change > least:
            warnings.warn(
                f"the major cycles do not settle: the last would change the dirty image by {change:.3g} Jy/beam, the "
                f"one before by {least:.3g}, which is kept; take a smaller field",
                stacklevel=2,
            )
            break
        found, gridded, least = tried, after, change
    else:
        if change >= SETTLED * noise:
            warnings.warn(
                f"{most} major cycles are used up: another would change the dirty image by {change / noise:.2g} of the "
                "noise",
                stacklevel=2,
            )
    return found, gridded, cycle


def _after(view: View, gridded: Gridded, x: Tensor) -> Gridded:
    """The data of the cycle after the one that found x."""
    residual, power = torch.zeros(view.shape, dtype=torch.float64), 0.0
    for piece in view.pieces(W_ROWS):
        left = piece.vis - w_gridder.forward(x[0, 0], piece.uvw, view.cell)
        residual += w_gridder.adjoint(left, piece.weight, piece.uvw, view.shape, view.cell)
        power += float((piece.weight * left.abs().square()).sum())
    x = x.double()
    Gx = gridded.op.A(x)
    y = Gx + residual[None, None]
    power += float((x * (2 * y - Gx)).sum())  # so that <x, G x> - 2 <x, y> + power is the true misfit at x
    old = gridded.op
    op = StreamedNUFFT(old.shape, old.kernel, torch.tensor([power]), gridded.count, sigma=old.sigma)
    return replace(gridded, op=op, y=y.to(gridded.y.dtype))


def _check_wide(view: View) -> None:
    w_gridder.check(view.shape)
    with_w = next(iter(view.pieces()), None)
    if with_w is not None and with_w.uvw.shape[1] != 3:
        raise ValueError(f"{view.source.path} has u and v but no w; leave --wide-field out")
