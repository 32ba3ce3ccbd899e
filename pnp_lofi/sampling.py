"""Where LoFi reads the image: Keys cubic interpolation, reflected borders, windows.

Pixel positions are floats with pixel i's centre at i; ``positions`` maps the unit square to them.
Everything here is plain torch and differentiable to second order in the positions.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad as torch_pad

from pnp_lofi.tiles import Tile

KEYS_A = -0.5  # reproduces straight ramps exactly; torch's -0.75 does not (docs/conventions.md)
OFFICIAL_A = -0.75  # of torch's grid_sample and the LoFi authors' code


def keys_cubic(t: Tensor, a: float = KEYS_A) -> Tensor:
    """Keys' cubic convolution kernel, support [-2, 2].

    Where its second derivative jumps, autograd gives that towards growing ``t``: at pixel centres the taps then belong
    to one side, and second derivatives are right.

    :param torch.Tensor t: distances [pixel], any shape.
    :param float a: the kernel's free parameter.
    :returns: weights, shape of ``t``.
    Source: Keys 1981, IEEE TASSP 29(6), eq. 4 (there with a = -1/2).
    """
    u = t.abs()
    near = ((a + 2) * u - (a + 3)) * (t * t) + 1
    far = ((a * u - 5 * a) * u + 8 * a) * u - 4 * a
    outside = (t < -2) | (t >= 2)  # NaN stays NaN
    return torch.where((t >= -1) & (t < 1), near, torch.where(outside, torch.zeros_like(t), far))


def reflect_index(index: Tensor, size: int) -> Tensor:
    """Fold integer positions into 0..size-1 about the centres of the edge pixels (numpy's ``reflect``).

    :param torch.Tensor index: integers, any shape, however far outside.
    :param int size: number of pixels of the axis.
    :returns: integers in [0, size), shape of ``index``.
    """
    if size == 1:
        return torch.zeros_like(index)
    period = 2 * (size - 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index)


def reflect_pad(x: Tensor, margin: int) -> Tensor:
    """Pad both image axes by reflection, also where the image is smaller than the margin.

    :param torch.Tensor x: (B, C, H, W).
    :param int margin: pixels added on each side.
    :returns: (B, C, H + 2 margin, W + 2 margin).
    """
    if margin < min(x.shape[-2:]):
        return torch_pad(x, (margin,) * 4, mode="reflect")
    rows, columns = (reflect_index(torch.arange(-margin, n + margin, device=x.device), n) for n in x.shape[-2:])
    return x.index_select(-2, rows).index_select(-1, columns)


def positions(coords: Tensor, shape: tuple[int, int], *, corners: bool = False) -> Tensor:
    """Pixel positions of points of the unit square: pixel i of N has its centre at (i + 1/2)/N.

    :param torch.Tensor coords: (..., 2), (row, column) in [0, 1].
    :param tuple shape: (H, W) of the image.
    :param bool corners: pixel i at i/(N - 1) instead, the authors' convention.
    :returns: (..., 2) [pixel].
    """
    size = coords.new_tensor(shape)
    return coords * (size - 1) if corners else coords * size - 0.5


def coordinates(points: Tensor, shape: tuple[int, int], *, corners: bool = False) -> Tensor:
    """The inverse of ``positions``."""
    size = points.new_tensor(shape)
    return points / (size - 1).clamp_min(1) if corners else (points + 0.5) / size


def grid_coords(
    shape: tuple[int, int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    corners: bool = False,
) -> Tensor:
    """The centres of all pixels of a grid, row by row.

    :param tuple shape: (H, W).
    :param bool corners: as in ``positions``.
    :returns: (H W, 2), (row, column) in [0, 1].
    """
    points = torch.cartesian_prod(*(torch.arange(n, dtype=dtype, device=device) for n in shape))
    return coordinates(points, shape, corners=corners)


def sample(x: Tensor, points: Tensor, a: float = KEYS_A) -> Tensor:
    """Keys cubic interpolation of an image at arbitrary positions, borders reflected.

    :param torch.Tensor x: (B, C, H, W).
    :param torch.Tensor points: (B, P, 2) pixel positions (row, column), in float64 for the last digits far from zero.
    :param float a: parameter of the kernel.
    :returns: (B, P, C).
    """
    batch, channels, height, width = x.shape
    base = points.detach().floor()
    taps = torch.arange(-1, 3, device=x.device)
    weights, index = [], []
    for axis, size in enumerate((height, width)):
        at = base[..., axis, None].long() + taps
        weights.append(keys_cubic(points[..., axis, None] - at, a).to(x.dtype))
        index.append(reflect_index(at, size))
    flat = (index[0][..., :, None] * width + index[1][..., None, :]).reshape(batch, 1, -1)
    values = x.reshape(batch, channels, -1).gather(2, flat.expand(-1, channels, -1))
    values = values.reshape(batch, channels, *points.shape[1:-1], 4, 4)
    return torch.einsum("bcpij,bpi,bpj->bpc", values, weights[0], weights[1])


def sample_level(x: Tensor, points: Tensor) -> Tensor:
    """Bilinear interpolation of a noise map: between its neighbours, never below them.

    :param torch.Tensor x: (B, 1, H, W).
    :param torch.Tensor points: (B, P, 2) pixel positions (row, column); beyond the border reflected.
    :returns: (B, P).
    """
    height, width = x.shape[-2:]
    base = points.detach().floor()
    step = (points - base).to(x.dtype)
    row, column = base[..., 0].long(), base[..., 1].long()
    found = torch.zeros_like(step[..., 0])
    for i in (0, 1):
        for j in (0, 1):
            index = reflect_index(row + i, height) * width + reflect_index(column + j, width)
            weight = (step[..., 0] if i else 1 - step[..., 0]) * (step[..., 1] if j else 1 - step[..., 1])
            found = found + weight * x.flatten(1).gather(1, index)
    return found


def stencil(offsets: Tensor, margin: int, a: float = KEYS_A) -> Tensor:
    """The matrix that interpolates fixed offsets out of a window around a pixel.

    :param torch.Tensor offsets: (K, 2) [pixel], |offset| <= margin - 1.
    :param int margin: the window is (2 margin + 1) pixels wide.
    :param float a: parameter of the kernel.
    :returns: ((2 margin + 1)^2, K), differentiable in the offsets.
    """
    ticks = torch.arange(-margin, margin + 1, device=offsets.device, dtype=offsets.dtype)
    rows, columns = (keys_cubic(ticks[:, None] - offsets[:, axis], a) for axis in (0, 1))
    return (rows[:, None, :] * columns[None, :, :]).reshape(-1, len(offsets))


def windows(padded: Tensor, margin: int) -> Tensor:
    """All windows of a padded image, as a view.

    :param torch.Tensor padded: (B, C, H + 2 margin, W + 2 margin).
    :returns: (B, H, W, C, S, S) with S = 2 margin + 1; no memory is copied.
    """
    size = 2 * margin + 1
    return padded.unfold(2, size, 1).unfold(3, size, 1).permute(0, 2, 3, 1, 4, 5)


def padded_tile(x: Tensor, tile: Tile, margin: int) -> Tensor:
    """A tile of the grid and its margin, borders reflected; memory does not depend on the image.

    :param torch.Tensor x: (B, C, H, W).
    :param tuple tile: item, rows and columns.
    :returns: (C, h + 2 margin, w + 2 margin).
    """
    b, rows, columns = tile
    top, left = rows.start - margin, columns.start - margin
    bottom, right = rows.stop + margin, columns.stop + margin
    if top >= 0 and left >= 0 and bottom <= x.shape[-2] and right <= x.shape[-1]:
        return x[b, :, top:bottom, left:right]
    row = reflect_index(torch.arange(top, bottom, device=x.device), x.shape[-2])
    column = reflect_index(torch.arange(left, right, device=x.device), x.shape[-1])
    return x[b].index_select(-2, row).index_select(-1, column)


def windows_at(x: Tensor, item: Tensor, row: Tensor, column: Tensor, margin: int) -> Tensor:
    """Windows around some pixels, borders reflected; memory does not depend on the image.

    :param torch.Tensor x: (B, C, H, W).
    :param torch.Tensor item, row, column: (P,) integers, the pixels.
    :returns: (P, C, S, S) with S = 2 margin + 1.
    """
    reach = torch.arange(-margin, margin + 1, device=x.device)
    rows = reflect_index(row[:, None] + reach, x.shape[-2])
    columns = reflect_index(column[:, None] + reach, x.shape[-1])
    found = x[item[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (P, S, S, C)
    return found.movedim(-1, 1)
