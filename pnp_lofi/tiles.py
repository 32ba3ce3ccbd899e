"""How a grid of pixels is cut into tiles of bounded size, and put together again."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Tile = tuple[int, slice, slice]


def tiles(batch: int, height: int, width: int, chunk: int, *, square: bool = False) -> Iterator[Tile]:
    """Tiles (item, rows, columns) of at most ``chunk`` pixels: whole rows where a row fits, or near squares.

    :raises ValueError: if chunk is not positive.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least one pixel, got {chunk}")
    columns = min(width, max(math.isqrt(chunk), chunk // max(1, height)) if square else chunk)
    rows = max(1, chunk // max(1, columns))
    for b in range(batch):
        for r in range(0, height, rows):
            for c in range(0, width, columns):
                yield b, slice(r, min(r + rows, height)), slice(c, min(c + columns, width))


def join(parts: Sequence[Tensor], batch: int, height: int, width: int, chunk: int, *, square: bool = False) -> Tensor:
    """Put the pixels of all tiles, (P, C) each, back on the grid without writing in place, for autograd.

    :returns: (B, H, W, C).
    """
    rows: list[Tensor] = []
    line: list[Tensor] = []
    for (_, r, c), part in zip(tiles(batch, height, width, chunk, square=square), parts, strict=True):
        line.append(part.reshape(r.stop - r.start, c.stop - c.start, -1))
        if c.stop == width:
            rows.append(torch.cat(line, 1))
            line = []
    return torch.cat(rows).reshape(batch, height, width, -1)


def over_tiles(like: Tensor, chunk: int, each: Callable[[Tile], Tensor]) -> Tensor:
    """An image of the shape of ``like``, (B, C, H, W), from what ``each`` answers, (C, h, w), for near square tiles."""
    batch, _, height, width = like.shape
    cut = list(tiles(batch, height, width, chunk, square=True))
    if torch.is_grad_enabled() and cut:
        parts = [each(tile).permute(1, 2, 0).flatten(0, 1) for tile in cut]
        return join(parts, batch, height, width, chunk, square=True).permute(0, 3, 1, 2)
    out = torch.empty_like(like)
    for tile in cut:
        b, rows, columns = tile
        out[b, :, rows, columns] = each(tile)
    return out
