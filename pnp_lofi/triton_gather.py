"""Patches at arbitrary coordinates in one kernel: Keys cubic interpolation, borders reflected.

Torch's way writes 16 values, 16 indices of 8 bytes and 8 weights per sample to memory before it adds them; here a
sample costs its own store, and its 16 taps come from L1, where the patches of neighbouring pixels overlap.

A tile is (samples k, pixels p) with the lanes of a warp along p. The same offset of neighbouring pixels lies on
one or two rows of the image, so a warp's load touches 1-2 cache lines; lanes along k would touch one per ring
of the patch. Only the store wants k first: Triton turns the tile round for it in shared memory.
"""

# Triton has no types for what its kernels work on
# mypy: disable-error-code="no-untyped-def"

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pnp_lofi import kernels
from pnp_lofi.sampling import KEYS_A

BLOCK_K = 16
BLOCK_P = 64
WARPS = 8  # 4 samples a thread, each with 8 weights and 8 positions: 66 registers (float32, compiled for sm_90)
INT32 = 2**31


def gather_patches(image: Tensor, points: Tensor, offsets: Tensor, a: float = KEYS_A) -> Tensor:
    """``sampling.sample`` at ``points + offsets``, patch by patch.

    Integer and fractional parts of the positions are kept apart, so that float32 is exact to 1e-7 pixel at
    pixel 10^5 too, where the sum itself is not. Differentiable in image, points and offsets; second derivatives
    are torch's.

    :param torch.Tensor image: (B, C, H, W), float16, bfloat16, float32 (added up in float32) or float64.
    :param torch.Tensor points: (B, P, 2) [pixel], (row, column), pixel centres at integers.
    :param torch.Tensor offsets: (K, 2) for all pixels or (B, P, K, 2) [pixel].
    :param float a: parameter of the kernel.
    :returns: (B, P, C, K), in the dtype of the image.
    :raises ValueError: if the shapes do not fit.
    """
    if image.ndim != 4 or points.ndim != 3 or points.shape[::2] != (len(image), 2):
        raise ValueError(f"expected (B, C, H, W) and (B, P, 2), got {tuple(image.shape)} and {tuple(points.shape)}")
    shared = offsets.ndim == 2 and offsets.shape[1] == 2
    if not shared and (offsets.ndim != 4 or offsets.shape[:2] != points.shape[:2] or offsets.shape[3] != 2):
        raise ValueError(f"offsets must be (K, 2) or (B, P, K, 2), got {tuple(offsets.shape)}")
    out: Tensor = _Gather.apply(image, points, offsets, float(a))
    return out


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, points: Tensor, offsets: Tensor, a: float) -> Tensor:
        ctx.save_for_backward(image, points, offsets)
        ctx.a = a
        launch = _Launch(image, points, offsets, a)
        batch, channels, pixels, count = launch.sizes
        out = image.new_empty(batch, pixels, channels, count)
        launch(_gather, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[:3]

        def reference() -> tuple[Tensor | None, ...]:
            return gradients(lambda x, p, o: kernels.gather_reference(x, p, o, ctx.a), inputs, needed, grad)

        if torch.is_grad_enabled():  # a second derivative is wanted
            return *reference(), None
        return *kernels.attempt(lambda: _gradients(inputs, ctx.a, grad, needed), reference), None


def gradients(function: Any, inputs: Any, needed: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """What autograd returns for a torch function, with a graph of its own where one is wanted.

    :param Callable function: of all inputs.
    :param inputs: tensors.
    :param needed: for each input, whether its gradient is wanted; None goes to the others.
    :param torch.Tensor grad: gradient of the result.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        if not create_graph:
            inputs = [x.detach().requires_grad_(need) for x, need in zip(inputs, needed, strict=True)]
        wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
        found = iter(torch.autograd.grad(function(*inputs), wanted, grad, create_graph=create_graph))
    return tuple(next(found) if need else None for need in needed)


class _Launch:
    """The arguments that the two kernels share."""

    def __init__(self, image: Tensor, points: Tensor, offsets: Tensor, a: float) -> None:
        batch, channels, height, width = image.shape
        pixels, count = points.shape[1], offsets.shape[-2]
        dtypes = (image.dtype, points.dtype, offsets.dtype)
        place = functools.reduce(torch.promote_types, dtypes, torch.float32)
        self.place = place
        self.inputs = (image.contiguous(), points.to(place).contiguous(), offsets.to(place).contiguous())
        self.sizes = (batch, channels, pixels, count)
        self.blocks = (triton.cdiv(pixels, BLOCK_P), triton.cdiv(count, BLOCK_K))
        # reflection repeats every 2 (n - 1) pixels
        axes = (height - 1, max(2 * (height - 1), 1), width - 1, max(2 * (width - 1), 1))
        self.arguments = (channels, pixels, count, *self.blocks, width, height * width, *axes)
        self.constants = {
            "SHARED": offsets.ndim == 2, "WIDE": height * width >= INT32, "A": a,
            "BLOCK_P": BLOCK_P, "BLOCK_K": BLOCK_K,
        }  # fmt: skip

    def __call__(self, kernel: Any, *arrays: Tensor, **constants: bool) -> None:
        programs = self.sizes[0] * self.blocks[0] * self.blocks[1]
        if programs and self.sizes[1]:
            with torch.cuda.device_of(self.inputs[0]):
                kernel[(programs,)](
                    *self.inputs, *arrays, *self.arguments, **self.constants, **constants, num_warps=WARPS
                )


def _gradients(
    inputs: tuple[Tensor, Tensor, Tensor], a: float, grad: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients to image, points and offsets, None where not needed.

    Only the image needs atomic additions. Sums over pixels (shared offsets) and over samples (points) leave one
    partial sum per tile, added up by torch: 1/64 and 1/16 of the size of ``grad``, and the same on every run.
    """
    image, points, offsets = inputs
    launch = _Launch(*inputs, a)
    (batch, _, pixels, count), place, shared = launch.sizes, launch.place, launch.constants["SHARED"]
    total = torch.promote_types(image.dtype, torch.float32)
    none = image.new_empty(0, dtype=total)
    to_image = torch.zeros_like(image, dtype=total, memory_format=torch.contiguous_format) if needed[0] else none
    to_points = none
    if needed[1]:
        to_points = image.new_zeros(launch.blocks[1], batch, pixels, 2, dtype=place)
    to_offsets = none
    if needed[2]:
        rows = (batch * launch.blocks[0],) if shared else (batch, pixels)
        to_offsets = image.new_zeros(*rows, count, 2, dtype=place)
    flags = {"TO_IMAGE": needed[0], "TO_POINTS": needed[1], "TO_OFFSETS": needed[2]}
    launch(_gather_backward, grad.contiguous(), to_image, to_points, to_offsets, **flags)
    return (
        to_image.to(image.dtype) if needed[0] else None,
        to_points.sum(0).to(points.dtype) if needed[1] else None,
        (to_offsets.sum(0) if shared else to_offsets).to(offsets.dtype) if needed[2] else None,
    )


@triton.jit
def _near(d, A: tl.constexpr):
    return ((A + 2) * d - (A + 3)) * d * d + 1


@triton.jit
def _far(d, A: tl.constexpr):
    return ((A * d - 5 * A) * d + 8 * A) * d - 4 * A


@triton.jit
def _near_slope(d, A: tl.constexpr):
    return (3 * (A + 2) * d - 2 * (A + 3)) * d


@triton.jit
def _far_slope(d, A: tl.constexpr):
    return (3 * A * d - 10 * A) * d + 8 * A


@triton.jit
def _weights(t, A: tl.constexpr):
    """Of the pixels at -1, 0, 1, 2 for a sample at t in [0, 1]."""
    return _far(1 + t, A), _near(t, A), _near(1 - t, A), _far(2 - t, A)


@triton.jit
def _slopes(t, A: tl.constexpr):
    """Derivatives of ``_weights`` in t."""
    return _far_slope(1 + t, A), _near_slope(t, A), -_near_slope(1 - t, A), -_far_slope(2 - t, A)


@triton.jit
def _split(point, offset):
    """Integer and fractional part of point + offset, exact for points far from zero."""
    whole = tl.floor(point)
    rest = (point - whole) + offset
    floor = tl.floor(rest)
    return whole.to(tl.int32) + floor.to(tl.int32), rest - floor


@triton.jit
def _fold(index, last, period):
    """Reflected positions of index - 1 .. index + 2; in range whatever the index, so that no load needs a mask."""
    start = index % period  # the sign of index, as in C
    start = tl.where(start < 0, start + period, start)
    one = tl.abs(start - 1)
    three = start + 1
    four = start + 2
    # start + 2 <= period + 1: one fold at the far end and one at zero
    return (
        tl.minimum(tl.minimum(one, tl.abs(period - one)), last),
        tl.minimum(tl.minimum(start, period - start), last),
        tl.minimum(tl.minimum(three, tl.abs(period - three)), last),
        tl.minimum(tl.minimum(four, tl.abs(period - four)), last),
    )


@triton.jit
def _tile(
    points, offsets, pixels, count, p_blocks, k_blocks,
    SHARED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """This program's (batch, first pixel) and, as (k, p) tiles, its integer and fractional positions."""
    pid = tl.program_id(0)
    k = (pid % k_blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    batch = (pid // k_blocks // p_blocks).to(tl.int64)
    start = (pid // k_blocks % p_blocks) * BLOCK_P
    lane = tl.arange(0, BLOCK_P)
    inside = start + lane < pixels
    first = batch * pixels + start
    mask = (k < count)[:, None] & inside[None, :]
    at = points + first * 2 + lane * 2
    if SHARED:
        move = offsets + k[:, None] * 2
        known = (k < count)[:, None]
    else:
        move = offsets + first * count * 2 + (lane[None, :] * count + k[:, None]) * 2
        known = mask
    row = tl.load(at, mask=inside, other=0.0)[None, :]
    column = tl.load(at + 1, mask=inside, other=0.0)[None, :]
    down = tl.load(move, mask=known, other=0.0)
    right = tl.load(move + 1, mask=known, other=0.0)
    i, s = _split(row, down)
    j, t = _split(column, right)
    return batch, first, k, lane, mask, i, j, s, t


@triton.jit
def _gather(
    image, points, offsets, out,
    channels, pixels, count, p_blocks, k_blocks, width, plane, last_i, period_i, last_j, period_j,
    SHARED: tl.constexpr, WIDE: tl.constexpr, A: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    batch, first, k, lane, mask, i, j, s, t = _tile(
        points, offsets, pixels, count, p_blocks, k_blocks, SHARED, BLOCK_P, BLOCK_K
    )
    rows = _fold(i, last_i, period_i)
    columns = _fold(j, last_j, period_j)
    u = _weights(s, A)
    v = _weights(t, A)
    for c in tl.range(0, channels):
        source = image + (batch * channels + c) * plane
        total = tl.full((BLOCK_K, BLOCK_P), 0.0, s.dtype)
        for m in tl.static_range(4):
            line = rows[m].to(tl.int64) * width if WIDE else rows[m] * width
            part = tl.full((BLOCK_K, BLOCK_P), 0.0, s.dtype)
            for n in tl.static_range(4):
                part += v[n] * tl.load(source + (line + columns[n])).to(s.dtype)
            total += u[m] * part
        target = out + (first * channels + c) * count + lane[None, :] * (channels * count) + k[:, None]
        tl.store(target, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gather_backward(
    image, points, offsets, grad, to_image, to_points, to_offsets,
    channels, pixels, count, p_blocks, k_blocks, width, plane, last_i, period_i, last_j, period_j,
    SHARED: tl.constexpr, WIDE: tl.constexpr, A: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
    TO_IMAGE: tl.constexpr, TO_POINTS: tl.constexpr, TO_OFFSETS: tl.constexpr,
):  # fmt: skip
    batch, first, k, lane, mask, i, j, s, t = _tile(
        points, offsets, pixels, count, p_blocks, k_blocks, SHARED, BLOCK_P, BLOCK_K
    )
    rows = _fold(i, last_i, period_i)
    columns = _fold(j, last_j, period_j)
    u = _weights(s, A)
    v = _weights(t, A)
    du = _slopes(s, A)
    dv = _slopes(t, A)
    down = tl.full((BLOCK_K, BLOCK_P), 0.0, s.dtype)
    right = tl.full((BLOCK_K, BLOCK_P), 0.0, s.dtype)
    for c in tl.range(0, channels):
        base = (batch * channels + c) * plane
        at = grad + (first * channels + c) * count + lane[None, :] * (channels * count) + k[:, None]
        g = tl.load(at, mask=mask, other=0.0).to(s.dtype)
        for m in tl.static_range(4):
            line = rows[m].to(tl.int64) * width if WIDE else rows[m] * width
            for n in tl.static_range(4):
                where = line + columns[n]
                if TO_IMAGE:
                    weight = (g * u[m] * v[n]).to(to_image.dtype.element_ty)
                    tl.atomic_add(to_image + base + where, weight, mask=mask, sem="relaxed")
                if TO_POINTS or TO_OFFSETS:
                    value = g * tl.load(image + base + where).to(s.dtype)
                    down += du[m] * v[n] * value
                    right += u[m] * dv[n] * value
    if TO_OFFSETS:
        if SHARED:
            block = tl.program_id(0) // k_blocks
            to = to_offsets + (block.to(tl.int64) * count + k) * 2
            tl.store(to, tl.sum(down, 1), mask=k < count)
            tl.store(to + 1, tl.sum(right, 1), mask=k < count)
        else:
            each = to_offsets + first * count * 2 + (lane[None, :] * count + k[:, None]) * 2
            tl.store(each, down, mask=mask)
            tl.store(each + 1, right, mask=mask)
    if TO_POINTS:
        batches = tl.num_programs(0) // (p_blocks * k_blocks)
        block = (tl.program_id(0) % k_blocks).to(tl.int64)
        to = to_points + (block * batches * pixels + first + lane) * 2
        inside = first + lane < (batch + 1) * pixels
        tl.store(to, tl.sum(down, 0), mask=inside)
        tl.store(to + 1, tl.sum(right, 0), mask=inside)
