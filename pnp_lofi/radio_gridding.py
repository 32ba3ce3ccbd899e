"""From visibilities on disk to what a solver needs, in one pass and in memory that does not grow with them."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.operators import NormalEquations, StreamedNUFFT
from pnp_lofi.operators.uv import C
from pnp_lofi.radio_chunks import Piece, View
from pnp_lofi.visibilities import ROWS

CYCLES = 6  # major cycles at most
SETTLED = 0.1  # of the noise: the change of the dirty image's rms below which major cycles end
EPS = 1e-9  # relative accuracy of the transforms: the solver works in float32
W_EPS = 1e-7  # relative accuracy of the w-gridder
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
                wide.add_(w_adjoint(piece, piece.vis, view))
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
    return found, gridded, cycle


def _after(view: View, gridded: Gridded, x: Tensor) -> Gridded:
    """The data of the cycle after the one that found x."""
    residual, power = torch.zeros(view.shape, dtype=torch.float64), 0.0
    for piece in view.pieces(W_ROWS):
        left = piece.vis - w_forward(piece, x[0, 0], view)
        residual += w_adjoint(piece, left, view)
        power += float((piece.weight * left.abs().square()).sum())
    x = x.double()
    Gx = gridded.op.A(x)
    y = Gx + residual[None, None]
    power += float((x * (2 * y - Gx)).sum())  # so that <x, G x> - 2 <x, y> + power is the true misfit at x
    old = gridded.op
    op = StreamedNUFFT(old.shape, old.kernel, torch.tensor([power]), gridded.count, sigma=old.sigma)
    return replace(gridded, op=op, y=y.to(gridded.y.dtype))


def w_adjoint(piece: Piece, vis: Tensor, view: View) -> Tensor:
    """(HW)^-1/2 Re sum w vis exp(+2 pi i (u l + v m + w (n - 1))), (H, W) float64, by ducc0's w-gridder.

    :param torch.Tensor vis: (m,) complex128.
    Source: Arras et al. 2021, A&A 646, A58.
    """
    H, W = view.shape
    found = _ducc().vis2dirty(
        vis=np.ascontiguousarray(vis.resolve_conj().numpy())[:, None], wgt=piece.weight.numpy()[:, None],
        npix_x=H, npix_y=W, **_geometry(piece, view),
    )  # fmt: skip
    return torch.from_numpy(found) / math.sqrt(H * W)


def w_forward(piece: Piece, x: Tensor, view: View) -> Tensor:
    """(HW)^-1/2 sum x exp(-2 pi i (u l + v m + w (n - 1))), (m,) complex128.

    :param torch.Tensor x: (H, W) [Jy/pixel].
    """
    dirty = np.ascontiguousarray(x.double().numpy())
    found = _ducc().dirty2vis(dirty=dirty, **_geometry(piece, view))
    return torch.from_numpy(found)[:, 0] / math.sqrt(dirty.size)


def _geometry(piece: Piece, view: View) -> dict[str, object]:
    u, v, w = piece.uvw.T
    pixel = math.radians(view.cell / 3600)
    return {
        "uvw": np.ascontiguousarray(torch.stack([v, -u, w], dim=1).numpy()),  # rows to the North, columns to the West
        "freq": np.array([C]), "pixsize_x": pixel, "pixsize_y": pixel, "epsilon": W_EPS,
        "do_wgridding": True, "divide_by_n": False, "flip_w": True, "nthreads": torch.get_num_threads(),
    }  # fmt: skip


def _check_wide(view: View) -> None:
    _ducc()
    if min(view.shape) < 32 or any(n % 2 for n in view.shape):
        raise ValueError(f"the w-gridder needs even sizes of at least 32 pixels, got {view.shape}")
    with_w = next(iter(view.pieces()), None)
    if with_w is not None and with_w.uvw.shape[1] != 3:
        raise ValueError(f"{view.source.path} has u and v but no w; leave --wide-field out")


def _ducc() -> ModuleType:
    """:raises ImportError: that says what to install."""
    try:
        import ducc0
    except ImportError as error:
        raise ImportError("the w-term needs ducc0's w-gridder: pip install 'pnp_lofi[wide]'") from error
    return ducc0.wgridder
