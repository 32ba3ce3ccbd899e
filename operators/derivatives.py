"""Derivatives of an image at scattered places."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pnp_lofi.checks import checked_shape
from pnp_lofi.interpolation import KERNELS
from pnp_lofi.operators.base import Operator
from pnp_lofi.sampling import positions, reflect_index

NAMES = {4: "bicubic", 6: "smooth"}  # of the kernels, by the number of taps
Taps = tuple[Tensor, Tensor, Tensor]
ORDERS = {1: ((1, 0), (0, 1)), 2: ((2, 0), (1, 1), (0, 2))}  # derivatives along (rows, columns), as they stand in y


class Derivatives(Operator):
    """Derivatives of the interpolated image f at coordinates of the unit square.

    Order 1, the gradient: y[..., 0, p] = df/dr, y[..., 1, p] = df/dc at (r, c) = coords[p]. Order 2: d2f/dr2,
    d2f/drdc, d2f/dc2, of which the Laplacian is y[..., 0, :] + y[..., 2, :]. Pixel i of N has its centre at
    (i + 1/2)/N, borders reflect about the centre of the edge pixel, and derivatives are with respect to coords
    [units of x per side of the image]: they do not change with the resolution. Divide by N (N^2) for units per pixel.
    Where a derivative jumps, the second at the pixels' centres, it is that towards growing coordinates.

    :param tuple img_size: (H, W).
    :param torch.Tensor coords: (P, 2) in [0, 1], (row, column); kept in float64.
    :param int order: 1 or 2.
    :param int taps: 4, Keys' cubic interpolation as everywhere in this package, or 6, his more accurate one; default 4
        for the gradient (error 8e-4 at 48 pixels per period, 1e-5 with 6) and 6 for second derivatives (7e-4; 8e-2
        with 4).
    :param int chunk: places at a time, which bounds the working memory.
    :param float sigma: noise [units of y] that ``op(x)`` adds; None: none, or unknown.
    :param int max_iter, float tol: of ``A_dagger`` and ``prox_l2`` by conjugate gradients.
    :raises ValueError: if coords are of another shape, NaN or outside of [0, 1]; for another order.
    Source: Khorashadizadeh et al. 2022, arXiv 2212.14042 (images from their derivatives); Keys 1981.
    """

    geometry: ClassVar[tuple[str, ...]] = ("coords",)

    def __init__(
        self,
        img_size: Sequence[int],
        coords: Tensor,
        *,
        order: int = 1,
        taps: int | None = None,
        chunk: int = 2**17,
        sigma: float | None = None,
        max_iter: int = 100,
        tol: float = 1e-5,
    ) -> None:
        shape = checked_shape(img_size)
        if order not in ORDERS:
            raise ValueError(f"order must be 1 (gradient) or 2 (second derivatives), got {order}")
        taps = {1: 4, 2: 6}[order] if taps is None else taps
        if taps not in NAMES:
            raise ValueError(f"taps must be 4 or 6, got {taps}")
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        coords = _checked_coords(coords)
        super().__init__(
            ("batch", "channel", *shape),
            ("batch", "channel", len(ORDERS[order]), len(coords)),
            sigma=sigma,
            max_iter=max_iter,
            tol=tol,
            device=coords.device,
        )
        self.shape, self.order, self.taps, self.chunk = shape, order, taps, chunk
        self.register_buffer("coords", coords)
        self._forget()

    def _forget(self) -> None:
        self._kept: dict[torch.dtype, Taps] = {}

    def _chunks(self, dtype: torch.dtype) -> Iterator[tuple[slice, Taps]]:
        """The taps of the places, chunk by chunk; kept where there is but one."""
        places = len(self.coords)
        if places <= self.chunk and dtype not in self._kept:
            self._kept[dtype] = self._taps(self.coords, dtype)
        for start in range(0, places, self.chunk):
            part = slice(start, start + self.chunk)
            yield part, self._kept[dtype] if places <= self.chunk else self._taps(self.coords[part], dtype)

    def _taps(self, coords: Tensor, dtype: torch.dtype) -> Taps:
        """Pixels (p, t, t) that places (p, 2) read, and the weights (D, p, t) along rows and along columns."""
        points = positions(coords, self.shape)
        base = points.floor()
        reach = torch.arange(1 - self.taps // 2, self.taps // 2 + 1, device=coords.device)
        index, weights = [], []
        for axis, size in enumerate(self.shape):
            index.append(reflect_index(base[:, axis, None].long() + reach, size))
            rest = points[:, axis] - base[:, axis]
            along = [kernel_weights(rest, self.taps, n[axis]) * size ** n[axis] for n in ORDERS[self.order]]
            weights.append(torch.stack(along).to(dtype))
        return index[0][:, :, None] * self.shape[1] + index[1][:, None, :], weights[0], weights[1]

    def _forward(self, x: Tensor) -> Tensor:
        flat, found = x.flatten(2), []
        for _, (index, rows, columns) in self._chunks(x.dtype):
            values = flat[..., index.flatten()].unflatten(2, index.shape)
            found.append(torch.einsum("bcpij,dpi,dpj->bcdp", values, rows, columns))
        return torch.cat(found, dim=-1)

    def _backward(self, y: Tensor) -> Tensor:
        x = y.new_zeros((*y.shape[:2], self.shape[0] * self.shape[1]))
        for part, (index, rows, columns) in self._chunks(y.dtype):
            values = torch.einsum("bcdp,dpi,dpj->bcpij", y[..., part], rows, columns)
            x.index_add_(2, index.flatten(), values.flatten(2))
        return x.unflatten(2, self.shape)


def kernel_weights(rest: Tensor, taps: int, order: int) -> Tensor:
    """What the pixels around a place weigh in a derivative of the interpolated row.

    :param torch.Tensor rest: (p,) in [0, 1), distance from the pixel before the place [pixel].
    :param int taps: 4 or 6 pixels, from 1 - taps/2 to taps/2.
    :param int order: of the derivative, 0 for the value.
    :returns: (p, taps).
    """
    taken = torch.arange(1 - taps // 2, taps // 2 + 1, device=rest.device)
    before = taken <= 0
    polynomial = torch.tensor(KERNELS[NAMES[taps]], dtype=rest.dtype, device=rest.device)
    polynomial = polynomial[torch.where(before, -taken, taken - 1)]  # by the pixel: rest = 0 belongs to one side
    for _ in range(order):
        polynomial = polynomial[:, 1:] * torch.arange(1, polynomial.shape[1], device=rest.device)
    distance = (rest[:, None] - taken).abs()
    weights = torch.zeros_like(distance)
    for coefficients in polynomial.T.flip(0):
        weights = weights * distance + coefficients
    return torch.where(before, weights, (-1) ** order * weights)


def _checked_coords(coords: Tensor) -> Tensor:
    size = tuple(coords.shape)
    if len(size) != 2 or size[1] != 2 or size[0] == 0:
        hint = "; transpose it" if len(size) == 2 and size[0] == 2 else ""
        raise ValueError(f"coords must be (P, 2), (row, column), with P >= 1, got {size}{hint}")
    if not bool(((coords >= 0) & (coords <= 1)).all()):
        raise ValueError(
            "coords must lie in [0, 1], the unit square, and be finite; pixel i of N has its centre at (i + 1/2)/N"
        )
    return coords.detach().to(torch.float64, copy=True)
