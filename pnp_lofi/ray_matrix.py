"""Sums over weighted rays, three ways: by sparse matrices, without a matrix, and differentiably in the geometry.

``weigh(theta, s, rows)`` gives pixel numbers and weights (R, L, K) of rays that are followed by rows, or by columns;
see :func:`pnp_lofi.rays.joseph`.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pnp_lofi.rays import Orbits, Shape, by_rows

Weigh = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]
AT_ONCE = 2**22  # weights computed at a time
IMAGES = 8  # projected together: more would not fit the cache


class RayMatrix:
    """A x for a batch of images by one CSR matrix, A^H y by its transpose.

    Rays that are mirror images of each other share their weights: only base rays are stored, and the matrix is applied
    to the images and their mirror images together, which is also what makes a sparse product fast.

    :param Orbits rays: see :func:`pnp_lofi.rays.orbits`.
    :param Weigh weigh: the weights.
    :param tuple shape: (H, W).
    :param bool both: False: backprojection only.
    """

    def __init__(self, rays: Orbits, weigh: Weigh, shape: Shape, dtype: torch.dtype, *, both: bool = True) -> None:
        self.rays, self.shape = rays, shape
        pixels, count = shape[0] * shape[1], len(rays.theta)
        counts, columns, values = _weights(rays.theta, rays.s, weigh, 2 * max(shape), dtype)
        zero = counts.new_zeros(1)
        self._matrix = _csr(torch.cat([zero, counts.cumsum(0)]), columns, values, (count, pixels)) if both else None
        ray = torch.repeat_interleave(torch.arange(count, dtype=torch.int32, device=columns.device), counts)
        order = torch.argsort(columns, stable=True)
        starts = torch.cat([zero, torch.bincount(columns, minlength=pixels).cumsum(0)])
        self._transposed = _csr(starts, ray[order], values[order], (pixels, count))

    @property
    def memory(self) -> float:
        """[MB] of the matrices."""
        matrices = (m for m in (self._matrix, self._transposed) if m is not None)
        return sum(m.values().numel() * (m.values().element_size() + 4) for m in matrices) / 2**20

    def __deepcopy__(self, memo: dict[int, Any]) -> "RayMatrix":
        return self  # nothing in it changes, and torch cannot copy sparse tensors

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W) to (B, R)."""
        return torch.cat([self._forward(part) for part in x.split(IMAGES)])

    def backward(self, y: Tensor) -> Tensor:
        """(B, R) to (B, H, W)."""
        return torch.cat([self._backward(part) for part in y.split(IMAGES)])

    def _forward(self, x: Tensor) -> Tensor:
        assert self._matrix is not None, "this one was made for backprojection only"
        mirrors = self.rays.mirrors
        columns = x.new_empty(self.shape[0] * self.shape[1], len(mirrors), len(x))
        for k, mirror in enumerate(mirrors):
            columns[:, k] = mirror.apply(x).flatten(1).T
        y = self._matrix @ columns.flatten(1)
        return y.view(-1, len(x))[self.rays.source].T.contiguous()

    def _backward(self, y: Tensor) -> Tensor:
        mirrors, batch = self.rays.mirrors, len(y)
        base = y.new_zeros(len(self.rays.theta) * len(mirrors), batch).index_add_(0, self.rays.source, y.T.contiguous())
        columns = (self._transposed @ base.view(-1, len(mirrors) * batch)).view(-1, len(mirrors), batch)
        parts = (m.undo(columns[:, k].T.reshape(-1, *self.shape)) for k, m in enumerate(mirrors))
        return functools.reduce(torch.add, parts).contiguous()


def _weights(theta: Tensor, s: Tensor, weigh: Weigh, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Non-zero weights, ray after ray; rays that are followed by rows come first.

    :returns: how many each ray has; pixel numbers, int32; values.
    """
    parts = []
    for rows, place in _groups(theta, AT_ONCE // width):
        index, weight = weigh(theta[place], s[place], rows)
        used = weight != 0
        parts.append((used.sum((1, 2)), index[used].int(), weight[used].to(dtype)))
    counts, columns, values = zip(*parts, strict=True)
    return torch.cat(counts), torch.cat(columns), torch.cat(values)


def _groups(theta: Tensor, at_once: int) -> list[tuple[bool, Tensor]]:
    """Numbers of the rays that are followed by rows, then by columns, some at a time."""
    rows = by_rows(theta.detach())
    chosen = ((which, torch.nonzero(rows == which)[:, 0]) for which in (True, False))
    return [(which, place) for which, some in chosen if len(some) for place in some.split(max(1, at_once))]


def _csr(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():  # torch calls its CSR "beta", and says that nothing is checked
        warnings.simplefilter("ignore")
        return torch.sparse_csr_tensor(starts.int(), columns.int(), values, shape, check_invariants=False)


def project(x: Tensor, theta: Tensor, s: Tensor, weigh: Weigh) -> Tensor:
    """A x without a matrix; differentiable in x and in theta and s where they require gradients.

    :param torch.Tensor x: (B, H, W). theta, s: (R,) in float64.
    :returns: (B, R).
    """
    flat, values, places = x.flatten(1), [], []
    for rows, place in _groups(theta, AT_ONCE // (2 * max(x.shape[-2:]) * len(x))):
        index, weight = weigh(theta[place], s[place], rows)
        values.append((flat[:, index] * weight.to(x.dtype)).sum((-2, -1)))
        places.append(place)
    return torch.cat(values, 1)[:, torch.argsort(torch.cat(places))]


def backproject(y: Tensor, theta: Tensor, s: Tensor, weigh: Weigh, shape: Shape) -> Tensor:
    """A^H y without a matrix, of the same weights.

    :param torch.Tensor y: (B, R). :returns: (B, H, W).
    """
    image: Any = y.new_zeros(len(y), shape[0] * shape[1])
    for rows, place in _groups(theta, AT_ONCE // (2 * max(shape) * len(y))):
        index, weight = weigh(theta[place], s[place], rows)
        image = image.index_add(1, index.flatten(), (y[:, place, None, None] * weight.to(y.dtype)).flatten(1))
    return image.view(-1, *shape)
