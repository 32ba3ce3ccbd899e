"""Straight rays on a GPU: A x and its exact adjoint A^H y, with Joseph's weights computed as they are needed.

Of a ray x cos t + y sin t = s and a pixel (x, y), Joseph's weight is max(0, 1 - e) / m, with m = max(|cos t|, |sin t|)
and e = |x cos t + y sin t - s| / m, the distance along the row (column): see :func:`pnp_lofi.rays.joseph`.
A program of A x walks along some rays, one of A^H y goes through the views for some pixels; no sum is shared, hence no
atomic additions and the same result on every run.

Positions are whole numbers of 2^-30 pixel, made from float64: float32 would be wrong by 3e-5 pixel at pixel 500.
Images of a batch lie side by side, (blocks, pixels, IMAGES): one position serves all images of a block and each of its
loads is a whole line of the cache. A thread takes four images; of fewer images, a warp takes neighbouring rays.
"""

# Triton has no types for what its kernels work on
# mypy: disable-error-code="no-untyped-def"

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pnp_lofi.rays import Shape, by_rows

BITS = 30  # of the fraction of a position; slopes are at most 1 and have to fit in int32
FAR = 2.0**21  # pixels: where a ray is put that is even further away
FAR_DETECTOR = 2.0**29  # the same on the detector
IMAGES = 32  # of float32 are 128 bytes, a line of the cache
TILE = 128  # rays or pixels of a program
VIEWS, DETECTORS = 4, 8  # neighbouring rays read the same pixels: most loads of a program find them in L1
COLUMNS = 16  # of the 8 x 16 pixels of a program, likewise
WARPS = 8  # TILE < 32 WARPS: Triton then repeats a ray's numbers in the lanes that need them, and there is no barrier
FEW = 4  # images that leave a thread of so many warps no number of its own: half as many warps
EDGE = 2  # zeros around the images: no load has to ask whether there is a pixel
UNROLL = 8  # candidates per pixel and view up to which the loop over them is written out
EVEN = 1e-6  # of a detector: views that are less even than that count as irregular
SLACK = 0.05  # of a detector: what float32 may be wrong by when a pixel is projected onto a fan's detector


class RayKernels:
    """A x and A^H y for a batch of images, as :class:`pnp_lofi.ray_matrix.RayMatrix` has them.

    Views of parallel and evenly spaced rays, and fans from a point onto a flat and evenly spaced detector, know which
    rays pass a pixel; in a view of any other rays A^H y tries all of them.

    :param torch.Tensor theta: (A, D) [rad], and s: (A, D) [pixel], float64, on the device that is to compute.
    :param tuple shape: (H, W). tuple centre: (cy, cx).
    """

    def __init__(self, theta: Tensor, s: Tensor, shape: Shape, centre: tuple[float, float]) -> None:
        self.shape, self.centre = shape, centre
        self.views, self.detectors = theta.shape
        theta, s = theta.detach().double(), s.detach().double()
        self._walk(theta, s)
        self.parallel = bool((theta == theta[:, :1]).all()) and _uneven(s) < EVEN
        if self.parallel:
            self._stripes(theta[:, 0], s)
        else:
            self._fans(theta, s)
        self._edge = self._candidates  # zeros around each view: no load has to ask whether there is a detector

    def __deepcopy__(self, memo: dict[int, Any]) -> "RayKernels":
        return self  # nothing in it changes

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W) to (B, A D)."""
        blocks, images = _blocks(len(x))
        # the transposed copy is for rays that are followed by columns: they read along memory as well
        upright, turned = _side_by_side(x, blocks, images, EDGE), _side_by_side(x.mT, blocks, images, EDGE)
        rays = self.views * self.detectors
        out = x.new_empty(blocks, rays, images)
        self._launch(
            _project, (len(self._order) // TILE, blocks), upright, turned, out, self._order, *self._rays,
            self._first, self._last, self._row_tiles, *self.shape, rays,
            BITS=BITS, EDGE=EDGE, IMAGES=images, TILE=TILE,
        )  # fmt: skip
        return out.transpose(1, 2).reshape(blocks * images, rays)[: len(x)].contiguous()

    def backward(self, y: Tensor) -> Tensor:
        """(B, A D) to (B, H, W)."""
        height, width = self.shape
        blocks, images = _blocks(len(y))
        source = _side_by_side(y.unflatten(1, (self.views, self.detectors)), blocks, images, self._edge)
        out = y.new_empty(blocks, height, width, images)
        tiles = triton.cdiv(width, COLUMNS) * triton.cdiv(height, TILE // COLUMNS)
        sizes = (self.views, self.detectors, height, width)
        constants = {
            "EDGE": self._edge, "CANDIDATES": self._candidates, "UNROLL": UNROLL,
            "IMAGES": images, "TILE": TILE, "COLUMNS": COLUMNS,
        }  # fmt: skip
        if self.parallel:
            self._launch(
                _backproject_parallel, (tiles, blocks), source, out, *self._lines, *self._hats, *sizes,
                BITS=self._bits, **constants,
            )  # fmt: skip
        else:
            self._launch(
                _backproject_fan, (tiles, blocks), source, out, self._maps, *self._edged, *sizes,
                BITS=BITS, ALL=self._candidates == self.detectors, **constants,
            )  # fmt: skip
        return out.permute(0, 3, 1, 2).reshape(blocks * images, height, width)[: len(y)].contiguous()

    def _launch(self, kernel: Any, grid: tuple[int, int], *arguments: Any, **constants: Any) -> None:
        if min(grid):
            with torch.cuda.device_of(arguments[0]):
                kernel[grid](*arguments, **constants, num_warps=WARPS if constants["IMAGES"] > FEW else WARPS // 2)

    def _walk(self, theta: Tensor, s: Tensor) -> None:
        """Position = start + slope * step of every ray; its inclination, negative if it is followed by columns; the
        steps in which it can be inside the image. Then the order of the rays, those by rows first."""
        (height, width), (cy, cx) = self.shape, self.centre
        rows, cos, sin = by_rows(theta), theta.cos(), theta.sin()
        start = torch.where(rows, cx + (s - cy * sin) / cos, cy - (s + cx * cos) / sin).clamp(-FAR, FAR)
        slope = torch.where(rows, sin / cos, cos / sin)
        inclination = torch.where(rows, 1 / cos.abs(), -1 / sin.abs())
        self._rays = (_fixed(start, BITS), _fixed(slope, BITS).int(), inclination.flatten().float())
        across, along = torch.where(rows, width, height), torch.where(rows, height, width)
        inverse = 1 / torch.where(slope.abs() < 1e-9, 1e-9, slope)  # of a pixel in 10^9 steps
        ends = torch.stack([(-1 - start) * inverse, (across - start) * inverse]).clamp(-FAR, FAR)
        first, last = ends.amin(0).floor() - 1, ends.amax(0).ceil() + 2  # one more at each end: kernels look again
        self._first = torch.minimum(first.clamp(min=0), along).int().flatten()
        self._last = torch.minimum(last.clamp(min=0), along).int().flatten()
        self._order, self._row_tiles = self._tiles(rows)

    def _tiles(self, rows: Tensor) -> tuple[Tensor, int]:
        """Ray numbers in programs of TILE: neighbouring detectors of neighbouring views; -1 fills up. And how many
        programs have rays by rows."""
        number = torch.arange(rows.numel(), device=rows.device).view_as(rows)
        padded = torch.nn.functional.pad(number, (0, -self.detectors % DETECTORS, 0, -self.views % VIEWS), value=-1)
        tiled = padded.unflatten(1, (-1, DETECTORS)).unflatten(0, (-1, VIEWS)).transpose(1, 2).flatten()
        tiled, flat = tiled[tiled >= 0], rows.flatten()
        parts = [tiled[flat[tiled]], tiled[~flat[tiled]]]
        filled = [torch.nn.functional.pad(part, (0, -len(part) % TILE), value=-1) for part in parts]
        return torch.cat(filled).int(), len(filled[0]) // TILE

    def _stripes(self, theta: Tensor, s: Tensor) -> None:
        """Parallel views: the pixel (r, c) is seen at detector origin + down r + right c, where a hat of half-width
        m / d detectors and height 1 / m has the weights of the detectors around it."""
        cy, cx = self.centre
        count = max(self.detectors - 1, 1)
        d = (s[:, -1] - s[:, 0]) / count if self.detectors > 1 else torch.ones_like(theta)
        cos, sin = theta.cos(), theta.sin()
        m = torch.maximum(cos.abs(), sin.abs())
        finest = float(d.abs().min())
        self._bits = BITS - max(0, math.ceil(-math.log2(finest)))
        origin = ((cy * sin - cx * cos - s[:, 0]) / d).clamp(-FAR_DETECTOR, FAR_DETECTOR)
        down, right = (_fixed(value, self._bits).int() for value in (-sin / d, cos / d))
        self._lines = (_fixed(origin, self._bits), down, right)
        self._hats = ((1 / m).float(), (d.abs() / m**2).float())
        self._candidates = max(1, math.ceil(float((2 * m / d.abs()).max()) - EVEN))

    def _fans(self, theta: Tensor, s: Tensor) -> None:
        """Fans: the pixel (r, c) is seen at detector (n0 + n1 r + n2 c) / (d0 + d1 r + d2 c), the numbers of a view.
        The nearest CANDIDATES rays are all that can pass it."""
        (height, width), (cy, cx) = self.shape, self.centre
        first, last = theta[:, 0], theta[:, -1]
        turn = torch.sin(last - first)  # the first and the last ray meet in the source (px, py)
        px = (s[:, 0] * last.sin() - s[:, -1] * first.sin()) / turn
        py = (s[:, -1] * first.cos() - s[:, 0] * last.cos()) / turn
        origin, beta = torch.hypot(px, py), torch.atan2(px, -py)
        tangent = torch.tan(beta[:, None] - theta)
        begin, spacing = tangent[:, 0], (tangent[:, -1] - tangent[:, 0]) / max(self.detectors - 1, 1)
        cos, sin = beta.cos(), beta.sin()
        depth = torch.stack([origin + cx * sin + cy * cos, -cos, -sin], -1)
        aside = torch.stack([cy * sin - cx * cos, -sin, cos], -1)
        places = (aside - begin[:, None] * depth) / spacing[:, None]
        self._maps = torch.cat([places, depth], -1).float().contiguous()
        corners = [math.hypot(r - cy, c - cx) for r in (0, height - 1) for c in (0, width - 1)]
        nearest = origin - max(corners) - 1  # a ray's weights reach one pixel away from it
        regular = bool(torch.isfinite(self._maps).all()) and _uneven(tangent) < EVEN and float(nearest.min()) > 0
        self._candidates = self.detectors
        if regular:
            # the fastest that a detector's coordinate changes over a pixel: on a circle around the image
            phi = torch.linspace(0, math.pi / 2, 1000, dtype=torch.float64, device=theta.device)
            closest, radius = float(origin.min()), max(corners) + 1
            away = closest - radius * phi.cos()
            fastest = float((torch.hypot(away, radius * phi.sin()) / away**2).max())
            reach = 1.001 * fastest / float(spacing.abs().min())
            self._candidates = min(self.detectors, math.ceil(2 * (reach + SLACK)))
        edges = (self._candidates, self._candidates)
        self._edged = tuple(torch.nn.functional.pad(t.view(theta.shape), edges).contiguous() for t in self._rays)


def _fixed(value: Tensor, bits: int) -> Tensor:
    return torch.round(value.flatten() * 2.0**bits).long()


def _uneven(values: Tensor) -> float:
    """How far values (A, D) are from even spacing along D, in steps."""
    if values.shape[1] < 3:
        return 0.0
    step = (values[:, -1:] - values[:, :1]) / (values.shape[1] - 1)
    even = values[:, :1] + step * torch.arange(values.shape[1], device=values.device)
    return float(((values - even) / step).abs().nan_to_num(math.inf).max())


def _blocks(batch: int) -> tuple[int, int]:
    """Blocks of images, and images in each."""
    images = min(IMAGES, triton.next_power_of_2(max(batch, 1)))
    return triton.cdiv(batch, images), images


def _side_by_side(x: Tensor, blocks: int, images: int, edge: int) -> Tensor:
    """(B, H, W) to (blocks, H, edge + W + edge, images), zeros along the edges and for images that are not there."""
    batch, height, width = x.shape
    out = x.new_zeros(blocks, height, width + 2 * edge, images)
    inner = out[:, :, edge : edge + width]
    whole = batch // images
    inner[:whole] = x[: whole * images].unflatten(0, (whole, images)).permute(0, 2, 3, 1)
    if whole < blocks:
        inner[whole, :, :, : batch - whole * images] = x[whole * images :].permute(1, 2, 0)
    return out


@triton.jit
def _part(position, BITS: tl.constexpr):
    """The fraction of a position, in [0, 1]."""
    return (position & ((1 << BITS) - 1)).to(tl.int32).to(tl.float32) * (1.0 / (1 << BITS))


@triton.jit
def _project(
    upright, turned, out, order, start, slope, inclination, first, last,
    row_tiles, height, width, rays,
    BITS: tl.constexpr, EDGE: tl.constexpr, IMAGES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(1).to(tl.int64)
    ray = tl.load(order + tl.program_id(0) * TILE + tl.arange(0, TILE))
    known = ray >= 0
    begin = tl.min(tl.load(first + ray, mask=known, other=2147483647))
    end = tl.max(tl.load(last + ray, mask=known, other=0))
    move = tl.load(slope + ray, mask=known, other=0).to(tl.int64)
    position = tl.load(start + ray, mask=known, other=0) + move * begin
    if tl.program_id(0) < row_tiles:
        across, along, source = width, height, upright
    else:
        across, along, source = height, width, turned
    pitch = (across + 2 * EDGE) * IMAGES
    image = tl.arange(0, IMAGES)[None, :]
    line = source + (block * along + begin) * pitch + EDGE * IMAGES
    total = tl.zeros((TILE, IMAGES), tl.float32)
    for _ in tl.range(begin, end):
        low = tl.minimum(tl.maximum((position >> BITS).to(tl.int32), -EDGE), across + (EDGE - 2))
        right = _part(position, BITS)
        at = line + (low[:, None] * IMAGES + image)
        total = tl.fma((1 - right)[:, None], tl.load(at), total)
        total = tl.fma(right[:, None], tl.load(at + IMAGES), total)
        position += move
        line += pitch
    scale = tl.abs(tl.load(inclination + ray, mask=known, other=0.0))
    to = out + (block * rays + ray[:, None]) * IMAGES + image
    tl.store(to, total * scale[:, None], mask=known[:, None])


@triton.jit
def _pixels(width, TILE: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows and columns of this program's pixels."""
    tiles = tl.cdiv(width, COLUMNS)
    k = tl.arange(0, TILE)
    row = tl.program_id(0) // tiles * (TILE // COLUMNS) + k // COLUMNS
    column = tl.program_id(0) % tiles * COLUMNS + k % COLUMNS
    return row, column


@triton.jit
def _store(out, total, row, column, height, width, IMAGES: tl.constexpr):
    pixel = tl.program_id(1).to(tl.int64) * (height * width) + row * width + column
    mask = (row < height) & (column < width)
    tl.store(out + pixel[:, None] * IMAGES + tl.arange(0, IMAGES)[None, :], total, mask=mask[:, None])


@triton.jit
def _candidates(place, detectors, EDGE: tl.constexpr, CANDIDATES: tl.constexpr):
    """The first of the detectors around a place; the zeros of the edge are the same to all places outside."""
    first = place - (CANDIDATES - 1) // 2
    return tl.minimum(tl.maximum(first, -EDGE), detectors + (EDGE - CANDIDATES))


@triton.jit
def _hat(total, at, k, away, top, pitch, IMAGES: tl.constexpr):
    """Adds the k-th of the detectors around a pixel of a parallel view."""
    weight = tl.maximum(tl.fma(tl.abs(away + k), -pitch, top), 0.0)
    return tl.fma(weight[:, None], tl.load(at + k * IMAGES), total)


@triton.jit
def _backproject_parallel(
    source, out, origin, down, right, tops, pitches,
    views, detectors, height, width,
    BITS: tl.constexpr, EDGE: tl.constexpr, CANDIDATES: tl.constexpr, UNROLL: tl.constexpr,
    IMAGES: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column = _pixels(width, TILE, COLUMNS)
    image = tl.arange(0, IMAGES)[None, :]
    pitch = (detectors + 2 * EDGE) * IMAGES
    line = source + tl.program_id(1).to(tl.int64) * views * pitch + EDGE * IMAGES
    half: tl.constexpr = (CANDIDATES % 2) * (1 << BITS) // 2  # the nearest are around a detector, or between two
    shift: tl.constexpr = 0.5 * (CANDIDATES % 2) - (CANDIDATES - 1) // 2
    total = tl.zeros((TILE, IMAGES), tl.float32)
    for view in tl.range(0, views):
        place = tl.load(origin + view) + half + tl.load(down + view).to(tl.int64) * row
        place += tl.load(right + view).to(tl.int64) * column
        first = _candidates((place >> BITS).to(tl.int32), detectors, EDGE, CANDIDATES)
        away = shift - _part(place, BITS)
        top, fall = tl.load(tops + view), tl.load(pitches + view)
        at = line + (first[:, None] * IMAGES + image)
        if CANDIDATES <= UNROLL:
            for k in tl.static_range(CANDIDATES):
                total = _hat(total, at, k, away, top, fall, IMAGES)
        else:
            for k in tl.range(0, CANDIDATES):
                total = _hat(total, at, k, away, top, fall, IMAGES)
        line += pitch
    _store(out, total, row, column, height, width, IMAGES)


@triton.jit
def _joseph(total, at, start, slope, inclination, k, row, column, BITS: tl.constexpr, IMAGES: tl.constexpr):
    """Adds the k-th of the detectors around a pixel of a fan, by the table that A x walks along."""
    scale = tl.load(inclination + k)
    step = tl.where(scale > 0, row, column)
    pixel = tl.where(scale > 0, column, row).to(tl.int64) << BITS
    position = tl.load(start + k) + tl.load(slope + k).to(tl.int64) * step
    one: tl.constexpr = 1 << BITS
    away = tl.minimum(tl.abs(position - pixel), one).to(tl.int32).to(tl.float32)
    weight = tl.abs(scale) * (1 - away * (1.0 / one))
    value = tl.load(at + k * IMAGES, mask=(weight > 0)[:, None], other=0.0)  # half of the candidates are none
    return tl.fma(weight[:, None], value, total)


@triton.jit
def _backproject_fan(
    source, out, maps, start, slope, inclination,
    views, detectors, height, width,
    BITS: tl.constexpr, ALL: tl.constexpr, EDGE: tl.constexpr, CANDIDATES: tl.constexpr, UNROLL: tl.constexpr,
    IMAGES: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row, column = _pixels(width, TILE, COLUMNS)
    image = tl.arange(0, IMAGES)[None, :]
    pitch = detectors + 2 * EDGE
    line = source + tl.program_id(1).to(tl.int64) * views * pitch * IMAGES + EDGE * IMAGES
    rays = EDGE
    total = tl.zeros((TILE, IMAGES), tl.float32)
    for view in tl.range(0, views):
        if ALL:
            first = row * 0
        else:
            at = maps + view * 6
            place = tl.load(at) + tl.load(at + 1) * row + tl.load(at + 2) * column
            depth = tl.load(at + 3) + tl.load(at + 4) * row + tl.load(at + 5) * column
            between = tl.floor(place / depth + 0.5 * (CANDIDATES % 2)).to(tl.int32)
            first = _candidates(between, detectors, EDGE, CANDIDATES)
        at = line + (first[:, None] * IMAGES + image)
        ray = rays + first
        if CANDIDATES <= UNROLL:
            for k in tl.static_range(CANDIDATES):
                total = _joseph(total, at, start + ray, slope + ray, inclination + ray, k, row, column, BITS, IMAGES)
        else:
            for k in tl.range(0, CANDIDATES):
                total = _joseph(total, at, start + ray, slope + ray, inclination + ray, k, row, column, BITS, IMAGES)
        line += pitch * IMAGES
        rays += pitch
    _store(out, total, row, column, height, width, IMAGES)
