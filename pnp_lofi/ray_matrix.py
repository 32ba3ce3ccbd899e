"""Sums over weighted rays: by sparse matrices, kept or made anew at each call, and differentiably in the geometry.

``weigh(theta, s, rows)`` gives pixel numbers and weights (R, L, K) of rays that are followed by rows, or by columns;
see :func:`pnp_lofi.rays.joseph`.
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pnp_lofi.rays import Orbits, Shape, by_rows

Weigh = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]
AT_ONCE = 2**20  # weights computed at a time, some 100 bytes each
IMAGES = 8  # projected together: more would not fit the cache


class RayMatrix:
    """A x for a batch of images by one CSR matrix, A^H y by its transpose.

    Rays that are mirror images of each other share their weights: only base rays are stored, and the matrix is applied
    to the images and their mirror images together, which is also what makes a sparse product fast.

    :param Orbits rays: see :func:`pnp_lofi.rays.orbits`.
    :param Weigh weigh: the weights.
    :param tuple shape: (H, W).
    :param bool keep: False: the matrix is made anew, some rays at a time, at each call; all images of a call share it.
    :param bool both: False: backprojection only, which saves one of the two matrices.
    """

    def __init__(
        self, rays: Orbits, weigh: Weigh, shape: Shape, dtype: torch.dtype, *, keep: bool = True, both: bool = True
    ) -> None:
        self.rays, self.weigh, self.shape, self.dtype = rays, weigh, shape, dtype
        self._matrix: Tensor | None = None
        self._transposed: Tensor | None = None
        if not keep:
            return
        parts = list(self._weights(progress=True))
        counts, columns, values = (torch.cat([part[k] for part in parts]) for k in range(3))
        parts.clear()
        zero, pixels, count = counts.new_zeros(1), shape[0] * shape[1], len(rays.theta)
        if both:
            self._matrix = _csr(torch.cat([zero, counts.cumsum(0)]), columns, values, (count, pixels))
        order = torch.argsort(columns, stable=True)
        starts = torch.cat([zero, torch.bincount(columns, minlength=pixels).cumsum(0)])
        ray = torch.repeat_interleave(torch.arange(count, dtype=torch.int32, device=columns.device), counts)
        self._transposed = _csr(starts, ray[order], values[order], (pixels, count))

    @property
    def memory(self) -> float:
        """[MB] of the matrices that are kept."""
        matrices = (m for m in (self._matrix, self._transposed) if m is not None)
        return sum(m.values().numel() * (m.values().element_size() + 4) for m in matrices) / 2**20

    def __deepcopy__(self, memo: dict[int, Any]) -> "RayMatrix":
        return self  # nothing in it changes, and torch cannot copy sparse tensors

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W) to (B, R)."""
        mirrors = self.rays.mirrors
        images = x.split(IMAGES)
        columns = [x.new_empty(self.shape[0] * self.shape[1], len(mirrors), len(part)) for part in images]
        for part, column in zip(images, columns, strict=True):
            for k, mirror in enumerate(mirrors):
                column[:, k] = mirror.apply(part).flatten(1).T
        pieces = [[matrix @ column.flatten(1) for column in columns] for _, matrix in self._matrices()]
        base = [torch.cat(piece) if len(piece) > 1 else piece[0] for piece in zip(*pieces, strict=True)]
        y = [rows.view(-1, len(part))[self.rays.source].T for rows, part in zip(base, images, strict=True)]
        return torch.cat(y).contiguous()

    def backward(self, y: Tensor) -> Tensor:
        """(B, R) to (B, H, W)."""
        count, rows = len(self.rays.mirrors), len(self.rays.theta)
        data = y.split(IMAGES)
        base = [
            y.new_zeros(rows * count, len(part)).index_add_(0, self.rays.source, part.T.contiguous()).view(rows, -1)
            for part in data
        ]
        if self._transposed is not None:
            columns = [self._transposed @ part for part in base]
        else:
            columns = [y.new_zeros(self.shape[0] * self.shape[1], part.shape[1]) for part in base]
            for place, matrix in self._matrices():
                for column, part in zip(columns, base, strict=True):
                    column += matrix.t() @ part[place]
        return torch.cat(
            [self._undo(column.view(-1, count, len(part))) for column, part in zip(columns, data, strict=True)]
        )

    def _undo(self, columns: Tensor) -> Tensor:
        """(HW, mirrors, B) to the sum of all mirror images, each back in its place, (B, H, W)."""
        parts = (m.undo(columns[:, k].T.reshape(-1, *self.shape)) for k, m in enumerate(self.rays.mirrors))
        return functools.reduce(torch.add, parts).contiguous()

    def _matrices(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows of the matrix, all of them if it is kept."""
        if self._matrix is not None:
            yield slice(None), self._matrix
            return
        begin = 0
        for counts, columns, values in self._weights():
            starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            yield (
                slice(begin, begin + len(counts)),
                _csr(starts, columns, values, (len(counts), self.shape[0] * self.shape[1])),
            )
            begin += len(counts)

    def _weights(self, *, progress: bool = False) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Non-zero weights, ray after ray: how many each ray has; pixel numbers, int32; values."""
        theta, s = self.rays.theta, self.rays.s
        groups = list(_groups(theta, self.weigh, s, 1))
        # on a terminal, and only if it takes longer than that
        for rows, place in tqdm(groups, "ray weights", leave=False, delay=2, disable=None if progress else True):
            index, weight = self.weigh(theta[place], s[place], rows)
            used = weight != 0
            yield used.sum((1, 2)), index[used].int(), weight[used].to(self.dtype)


def _groups(theta: Tensor, weigh: Weigh, s: Tensor, batch: int) -> Iterator[tuple[bool, Tensor]]:
    """Numbers of the rays that are followed by rows, then by columns, some at a time."""
    rows = by_rows(theta.detach())
    for which in (True, False):
        some = torch.nonzero(rows == which)[:, 0]
        if len(some):
            with torch.no_grad():
                one = weigh(theta[some[:1]], s[some[:1]], which)[1].numel()
            for place in some.split(max(1, AT_ONCE // (one * batch))):
                yield which, place


def _csr(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():  # torch calls its CSR "beta", and says that nothing is checked
        warnings.simplefilter("ignore")
        return torch.sparse_csr_tensor(starts.int(), columns.int(), values, shape, check_invariants=False)


def project(x: Tensor, theta: Tensor, s: Tensor, weigh: Weigh) -> Tensor:
    """A x without a matrix; differentiable in x, theta and s.

    :param torch.Tensor x: (B, H, W). theta, s: (R,) in float64.
    :returns: (B, R).
    """
    flat, values, places = x.flatten(1), [], []
    for rows, place in _groups(theta, weigh, s, len(x)):
        index, weight = weigh(theta[place], s[place], rows)
        values.append((flat[:, index] * weight.to(x.dtype)).sum((-2, -1)))
        places.append(place)
    return torch.cat(values, 1)[:, torch.argsort(torch.cat(places))]


def backproject(y: Tensor, theta: Tensor, s: Tensor, weigh: Weigh, shape: Shape) -> Tensor:
    """A^H y without a matrix, of the same weights; differentiable in y, theta and s.

    :param torch.Tensor y: (B, R). :returns: (B, H, W).
    """
    image: Any = y.new_zeros(len(y), shape[0] * shape[1])
    for rows, place in _groups(theta, weigh, s, len(y)):
        index, weight = weigh(theta[place], s[place], rows)
        image = image.index_add(1, index.flatten(), (y[:, place, None, None] * weight.to(y.dtype)).flatten(1))
    return image.view(-1, *shape)
