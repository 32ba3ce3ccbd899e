"""The MultiMLP with a tile's activations kept on the chip: one kernel, for ray MLPs, mixer and both gradients.

Each layer of torch's way writes its activations, reads them for the ReLU, writes and reads them again: at paper
size (9 rays, 370 wide, bfloat16) 90 KB of traffic per pixel against 6.9 MFLOP. Here a program owns a tile of 128
pixels of one ray and takes it through all layers. Triton cannot index registers by a loop's counter, so a layer
either unrolls over its outputs or loops (and lets Triton prefetch weights) over them. Layers alternate:

    READ   memory -> registers: loop over the inputs, the outputs unrolled into a tuple of blocks;
    WRITE  registers -> memory: the inputs unrolled, loop over the outputs;
    KEEP   registers -> registers: both one block (a power of two, at most 128), one product.

What WRITE leaves between two layers is the program's own buffer (128 x 384 numbers = 96 KB; 13 MB for 132
programs, so it stays in the 50 MB L2). For a ray of paper size and a tile of 128 pixels: weights 0.7 MB from L2,
activations 0.4 MB, 80 MFLOP, 160 KB of shared memory, at most 255 registers (compiled for sm_90: 8 warps, three
stages of 64 x 128 operands; smaller tiles would read the weights more often, larger ones do not fit). Estimated,
not measured: at 5.5 TB/s of L2 a tile waits 26 us for its bytes, at 700 TFLOP/s 15 us for its products.

The rays' features do go through memory, 2 x 2.3 KB per pixel: summing them into the mixer's first layer instead
would hold 128 x 384 float32 sums (three quarters of the registers) through all rays, and leave one program per
tile, 32 for 4096 pixels, where tiles x rays fill the 132 multiprocessors. Blocks of 132 x 128 pixels bound the
memory, keep the features in L2 and give the mixer one full wave.

The gradient recomputes the activations of such a block, goes back through the same kernel (transposed weights,
ReLU replaced by its derivative), and leaves the weights' gradients, plain products over all pixels of the block,
to cuBLAS: a kernel of ours would need atomics on 3 million numbers per tile.
"""

# Triton has no types for what its kernels work on
# mypy: disable-error-code="no-untyped-def"

import functools
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from pnp_lofi import kernels
from pnp_lofi.triton_gather import gradients

READ, WRITE, KEEP = 0, 1, 2
BLOCK = 128  # widest block of activations held in registers
PIXELS = 132 * 128  # pixels per block: one tile for each multiprocessor of an H200
LARGE_SHARED = (9, 10)  # compute capabilities with 227 KB of shared memory per program
INTERPRETED_PROGRAMS = 3  # few, so that tests see a program take several tiles


Groups = tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]


def fused_multimlp(
    patches: Tensor,
    ray_weights: Sequence[Tensor],
    ray_biases: Sequence[Tensor],
    mixer_weights: Sequence[Tensor],
    mixer_biases: Sequence[Tensor],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """What ``MultiMLP.forward`` computes; products in ``dtype`` (float32: tf32 where torch may), sums in float32.

    Differentiable in patches, weights and biases; second derivatives are torch's. Weights are packed (cast, padded
    to the blocks) on each call, about 40 small copies: call with many pixels.

    :param torch.Tensor patches: (rays, P, ray_inputs).
    :param ray_weights, ray_biases: (rays, in, out) and (rays, 1, out) of each layer.
    :param mixer_weights, mixer_biases: (in, out) and (out,) of each layer.
    :param torch.dtype dtype: float16, bfloat16 or float32; default that of the patches.
    :returns: (P, outputs), in ``dtype``.
    :raises ValueError: if the dtype is another one.
    """
    dtype = patches.dtype if dtype is None else dtype
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"fused_multimlp computes in float16, bfloat16 or float32, got {dtype}; use MultiMLP")
    groups = (ray_weights, ray_biases, mixer_weights, mixer_biases)
    flat = [tensor for group in groups for tensor in group]
    out: Tensor = _MultiMLP.apply(dtype, len(groups[0]), patches, *flat)
    return out


def _groups(layers: int, flat: Sequence[Tensor]) -> Groups:
    """The four lists of parameters, given the number of a ray's layers."""
    middle = (len(flat) + 2 * layers) // 2
    return flat[:layers], flat[layers : 2 * layers], flat[2 * layers : middle], flat[middle:]


class _MultiMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, layers: int, patches: Tensor, *flat: Tensor) -> Tensor:
        ctx.dtype, ctx.layers = dtype, layers
        ctx.save_for_backward(patches, *flat)
        nets = _nets(dtype, *_groups(layers, flat))
        outputs = flat[-1].shape[0]
        out = patches.new_empty(patches.shape[1], outputs, dtype=dtype)
        for start in range(0, len(out), PIXELS):
            part = slice(start, start + PIXELS)
            out[part] = _Block(nets, patches[:, part], save=False).out[: len(out[part]), :outputs]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[2:]

        def reference() -> tuple[Tensor | None, ...]:
            def function(patches: Tensor, *flat: Tensor) -> Tensor:
                return kernels.multimlp_reference(patches, *_groups(ctx.layers, flat), ctx.dtype)

            return gradients(function, inputs, needed, grad)

        def kernel() -> tuple[Tensor | None, ...]:
            return _gradients(ctx.dtype, ctx.layers, inputs, needed, grad)

        # grad mode is on where a second derivative is wanted
        found = reference() if torch.is_grad_enabled() else kernels.attempt(kernel, reference)
        return None, None, *found


def _gradients(
    dtype: torch.dtype, layers: int, inputs: Sequence[Tensor], needed: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients to patches and parameters, None where not needed; blocks of pixels add up in float32."""
    patches, flat = inputs[0], inputs[1:]
    groups = _groups(layers, flat)
    nets = _nets(dtype, *groups)
    back = [net.reverse() for net in nets]
    to_patches = torch.empty_like(patches) if needed[0] else None
    totals = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in flat] if any(needed[1:]) else []
    for start in range(0, patches.shape[1], PIXELS):
        part = slice(start, start + PIXELS)
        block = _Block(nets, patches[:, part], save=True)
        to_out = torch.zeros_like(block.out)
        to_out[: len(grad[part]), : grad.shape[1]] = grad[part]
        mixer = back[1].run(to_out[None], save=True, forward=block.mixer)
        # the mixer reads the rays side by side
        to_features = mixer.out[0].unflatten(1, (len(patches), -1)).transpose(0, 1)
        rays = back[0].run(to_features, save=True, forward=block.rays)
        if to_patches is not None:
            to_patches[:, part] = rays.out[:, : to_patches[:, part].shape[1], : patches.shape[2]]
        if totals:
            found = _groups(layers, totals)
            _add_products(found[0], found[1], block.rays.activations, rays.activations[::-1])
            _add_products(found[2], found[3], block.mixer.activations, mixer.activations[::-1], len(patches))
    sums = (
        [total.to(tensor.dtype) for total, tensor in zip(totals, flat, strict=True)] if totals else [None] * len(flat)
    )
    return to_patches, *(total if need else None for total, need in zip(sums, needed[1:], strict=True))


def _add_products(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    values: Sequence[Tensor],
    slopes: Sequence[Tensor],
    rays: int = 1,
) -> None:
    """Add h^T dh of each layer to ``weights`` and the sum of dh to ``biases``.

    :param values: (R, P, in) inputs of each layer.
    :param slopes: (R, P, out) gradients of each layer's sums.
    :param int rays: parts, each padded, that the first layer's inputs consist of.
    """
    for k, (weight, bias, h, dh) in enumerate(zip(weights, biases, values, slopes, strict=True)):
        product = torch.bmm(h.transpose(1, 2), dh)[..., : weight.shape[-1]]
        product = product.unflatten(1, (rays if k == 0 else 1, -1))
        inputs = weight.shape[-2] // product.shape[1]
        weight += product[:, :, :inputs].reshape(weight.shape)
        bias += dh.sum(1, dtype=torch.float32)[:, : bias.shape[-1]].reshape(bias.shape)


class _Block:
    """A block of pixels through both networks."""

    def __init__(self, nets: "Sequence[_Net]", patches: Tensor, *, save: bool) -> None:
        rays, pixels, inputs = patches.shape
        rows = triton.cdiv(pixels, BLOCK) * BLOCK
        x = patches.new_zeros(rays, rows, nets[0].widths[0], dtype=nets[0].dtype)
        x[:, :pixels, :inputs] = patches
        features = x.new_empty(rows, rays, nets[0].widths[-1])
        self.rays = nets[0].run(x, features.transpose(0, 1), save=save)
        self.mixer = nets[1].run(features.reshape(1, rows, -1), save=save)
        self.out = self.mixer.out[0]


def _nets(
    dtype: torch.dtype,
    ray_weights: Sequence[Tensor],
    ray_biases: Sequence[Tensor],
    mixer_weights: Sequence[Tensor],
    mixer_biases: Sequence[Tensor],
) -> "tuple[_Net, _Net]":
    rays, _, features = ray_weights[-1].shape
    each = _padded(features)
    first = pad(mixer_weights[0].detach().unflatten(0, (rays, features)), (0, 0, 0, each - features)).flatten(0, 1)
    mixers = [first, *mixer_weights[1:]]
    return (
        _Net(
            [_padded(ray_weights[0].shape[1]), *(_padded(w.shape[2]) for w in ray_weights)],
            dtype,
            ray_weights,
            ray_biases,
        ),
        _Net([rays * each, *(_padded(w.shape[1]) for w in mixers)], dtype, [w[None] for w in mixers], mixer_biases),
    )


class _Net:
    """R MLPs of one shape, their weights cast and padded in one buffer.

    :param Sequence[int] widths: padded, inputs first.
    :param weights: (R, in, out) of each layer.
    :param biases: (R, 1, out) or, for R = 1, (out,) of each layer; None for the gradient's way back.
    """

    def __init__(
        self, widths: Sequence[int], dtype: torch.dtype, weights: Sequence[Tensor], biases: Sequence[Tensor] | None
    ) -> None:
        self.widths, self.dtype, self.raw = tuple(widths), dtype, weights
        self.backward = biases is None
        rays, start = len(weights[0]), 0
        self.weights = weights[0].new_zeros(rays, sum(i * o for i, o in pairwise(widths)), dtype=dtype)
        for weight, (i, o) in zip(weights, pairwise(widths), strict=True):
            place = self.weights[:, start : start + i * o].unflatten(1, (i, o))
            place[:, : weight.shape[1], : weight.shape[2]] = weight
            start += i * o
        self.biases, start = weights[0].new_zeros(rays, sum(widths[1:]), dtype=torch.float32), 0
        for bias, width in zip(biases or (), widths[1:], strict=biases is not None):
            self.biases[:, start : start + bias.shape[-1]] = bias.reshape(rays, -1)
            start += width

    def reverse(self) -> "_Net":
        """The network that takes the gradient back."""
        return _Net(self.widths[::-1], self.dtype, [w.transpose(1, 2) for w in self.raw[::-1]], None)

    def run(self, x: Tensor, out: Tensor | None = None, *, save: bool, forward: "_Run | None" = None) -> "_Run":
        """Launch the kernel.

        :param torch.Tensor x: (R, P, inputs), padded, P to a multiple of 128, last axis dense.
        :param torch.Tensor out: (R, P, outputs) to write into; default a new one.
        :param bool save: keep all activations, for the gradient.
        :param _Run forward: the saved run whose ReLUs this one differentiates.
        """
        rays, rows, _ = x.shape
        out = x.new_empty(rays, rows, self.widths[-1]) if out is None else out
        shape = _shape(x, rays)
        tiles = rows // shape["BLOCK_M"]
        programs = min(tiles * rays, _multiprocessors(x.device))
        plan = _plan(self.widths)
        kept = [width if save or step == WRITE else 0 for width, step in zip(self.widths[1:-1], plan, strict=False)]
        slots = (0, *accumulate(kept))
        span = rays * rows if save else programs * shape["BLOCK_M"]
        buffer = x.new_empty(span * slots[-1])
        with torch.cuda.device_of(x):
            _chain[(programs,)](
                x, self.weights, self.biases, forward.buffer if forward else buffer, buffer, out,
                x.stride(0), x.stride(1), out.stride(0), out.stride(1), tiles, rays, rows, span,
                WIDTHS=self.widths, PLAN=plan, SLOTS=slots,
                MASKS=forward.slots[-2::-1] if forward else slots,
                WEIGHTS=self.weights.shape[1], BIASES=self.biases.shape[1],
                INS=_blocks(self.widths, shape.pop("IN")), OUTS=_blocks(self.widths, shape.pop("OUT")),
                BLOCKS=_blocks(self.widths, BLOCK), BACKWARD=self.backward, SAVE=save, **shape,
            )  # fmt: skip
        return _Run(x, out, buffer, slots, self.widths, save)


class _Run:
    """What a network leaves: its output and, if saved, what each layer read."""

    def __init__(
        self, x: Tensor, out: Tensor, buffer: Tensor, slots: tuple[int, ...], widths: tuple[int, ...], save: bool
    ) -> None:
        self.out, self.buffer, self.slots = out, buffer, slots
        self.activations = [x]
        size = x.shape[0] * x.shape[1]
        for slot, width in zip(slots, widths[1:-1], strict=False):
            if save:
                part = buffer[size * slot : size * (slot + width)]
                self.activations.append(part.view(*x.shape[:2], width))


def _padded(width: int) -> int:
    """The width that the kernel works with: a power of two from 16 or a multiple of 128."""
    if width > BLOCK:
        return triton.cdiv(width, BLOCK) * BLOCK
    return max(16, triton.next_power_of_2(width))


def _blocks(widths: Sequence[int], most: int) -> tuple[int, ...]:
    """The largest powers of two that divide the widths, at most ``most``."""
    return tuple(min(width & -width, most) for width in widths)


def _plan(widths: Sequence[int]) -> tuple[int, ...]:
    """How each layer runs (see the module's head)."""
    steps: list[int] = []
    for i, o in pairwise(widths):
        in_registers = bool(steps) and steps[-1] != WRITE
        one_block = _blocks((i, o), BLOCK) == (i, o)
        steps.append(READ if not in_registers else KEEP if one_block else WRITE)
    return tuple(steps)


def _shape(x: Tensor, rays: int) -> dict[str, Any]:
    """Sizes of tiles and blocks; shared memory and registers are those ptxas reports at paper size."""
    interpreted = x.device.type != "cuda"
    shape: dict[str, Any] = {
        "PRECISION": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        # the interpreter multiplies bfloat16 as if the bits were integers
        "UPCAST": interpreted and x.dtype == torch.bfloat16,
        "num_warps": 8,
    }
    if x.dtype == torch.float32:
        return shape | {"IN": 32, "OUT": 16, "BLOCK_M": 64, "num_stages": 2}  # 148 KB
    if not interpreted and torch.cuda.get_device_capability(x.device)[0] not in LARGE_SHARED:
        return shape | {"IN": 32, "OUT": 32, "BLOCK_M": 64, "num_stages": 2}  # 76 KB, 226 registers
    # half tiles (200 KB) where whole ones (160 KB) would leave multiprocessors idle
    block = 128 if x.shape[1] // 128 * rays >= _multiprocessors(x.device) else 64
    return shape | {"IN": 64, "OUT": 64, "BLOCK_M": block, "num_stages": 3}


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return _count(device)


@functools.cache
def _count(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@triton.jit
def _load(base, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.load(base + tl.arange(0, ROWS)[:, None] * stride + tl.arange(0, COLUMNS)[None, :])


@triton.jit
def _store(base, stride, value, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    tl.store(base + tl.arange(0, ROWS)[:, None] * stride + tl.arange(0, COLUMNS)[None, :], value)


@triton.jit
def _product(x, y, total, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    if UPCAST:
        return tl.dot(x.to(tl.float32), y.to(tl.float32), total, input_precision="ieee")
    else:  # noqa: RET505
        return tl.dot(x, y, total, input_precision=PRECISION)


@triton.jit
def _start(bias, BACKWARD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    total = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    if not BACKWARD:
        total += tl.load(bias + tl.arange(0, COLUMNS))[None, :]
    return total


@triton.jit
def _bend(total, mask, stride, BACKWARD: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """ReLU or, on the way back, its derivative; the last layer has none."""
    if not LAST:
        if BACKWARD:
            total = tl.where(_load(mask, stride, ROWS, COLUMNS).to(tl.float32) > 0, total, 0.0)
        else:
            total = tl.maximum(total, 0.0)
    return total


@triton.jit
def _read(
    source, stride, weight, bias, mask, target, pitch,
    IN: tl.constexpr, OUT: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_M: tl.constexpr,
    BACKWARD: tl.constexpr, LAST: tl.constexpr, SAVE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    h = ()
    for n in tl.static_range(0, OUT, BLOCK_OUT):
        total = _start(bias + n, BACKWARD, BLOCK_M, BLOCK_OUT)
        for k in tl.range(0, IN, BLOCK_IN):
            x = _load(source + k, stride, BLOCK_M, BLOCK_IN)
            y = _load(weight + k * OUT + n, OUT, BLOCK_IN, BLOCK_OUT)
            total = _product(x, y, total, PRECISION, UPCAST)
        total = _bend(total, mask + n, OUT, BACKWARD, LAST, BLOCK_M, BLOCK_OUT).to(weight.dtype.element_ty)
        if SAVE or LAST:
            _store(target + n, pitch, total, BLOCK_M, BLOCK_OUT)
        h = h + (total,)  # type: ignore[assignment]
    return h


@triton.jit
def _keep(
    h, weight, bias, mask, target, pitch,
    IN: tl.constexpr, OUT: tl.constexpr, BLOCK_M: tl.constexpr,
    BACKWARD: tl.constexpr, LAST: tl.constexpr, SAVE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    total = _start(bias, BACKWARD, BLOCK_M, OUT)
    total = _product(h[0], _load(weight, OUT, IN, OUT), total, PRECISION, UPCAST)
    total = _bend(total, mask, OUT, BACKWARD, LAST, BLOCK_M, OUT).to(weight.dtype.element_ty)
    if SAVE or LAST:
        _store(target, pitch, total, BLOCK_M, OUT)
    return (total,)


@triton.jit
def _write(
    h, weight, bias, mask, target, pitch,
    IN: tl.constexpr, OUT: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_M: tl.constexpr,
    BACKWARD: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    for n in tl.range(0, OUT, BLOCK_OUT):
        total = _start(bias + n, BACKWARD, BLOCK_M, BLOCK_OUT)
        for k in tl.static_range(IN // BLOCK_IN):
            y = _load(weight + k * (BLOCK_IN * OUT) + n, OUT, BLOCK_IN, BLOCK_OUT)
            total = _product(h[k], y, total, PRECISION, UPCAST)
        total = _bend(total, mask + n, OUT, BACKWARD, LAST, BLOCK_M, BLOCK_OUT)
        _store(target + n, pitch, total.to(weight.dtype.element_ty), BLOCK_M, BLOCK_OUT)


@triton.jit
def _chain(
    x, weights, biases, masks, buffer, out,
    x_ray, x_pixel, out_ray, out_pixel, tiles, rays, rows, span,
    WIDTHS: tl.constexpr, PLAN: tl.constexpr, SLOTS: tl.constexpr, MASKS: tl.constexpr,
    WEIGHTS: tl.constexpr, BIASES: tl.constexpr, INS: tl.constexpr, OUTS: tl.constexpr, BLOCKS: tl.constexpr,
    BACKWARD: tl.constexpr, SAVE: tl.constexpr, BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Tiles of pixels through all layers; in the backward direction ``masks`` holds the forward activations."""
    for item in tl.range(tl.program_id(0), tiles * rays, tl.num_programs(0)):
        ray = (item // tiles).to(tl.int64)
        row = (item % tiles) * BLOCK_M
        first = ray * rows + row
        slot = first
        if not SAVE:  # the program's own buffer, used again for each tile
            slot = (tl.program_id(0) * BLOCK_M).to(tl.int64)
        source = x + ray * x_ray + row.to(tl.int64) * x_pixel
        stride = x_pixel
        weight = weights + ray * WEIGHTS
        bias = biases + ray * BIASES
        h = ()
        for layer in tl.static_range(len(PLAN)):
            mask = masks
            if BACKWARD and layer + 1 < len(PLAN):
                mask = masks + MASKS[layer] * (rays * rows).to(tl.int64) + first * WIDTHS[layer + 1]
            if layer + 1 < len(PLAN):
                target = buffer + SLOTS[layer] * span.to(tl.int64) + slot * WIDTHS[layer + 1]
                pitch = WIDTHS[layer + 1]
            else:
                target = out + ray * out_ray + row.to(tl.int64) * out_pixel
                pitch = out_pixel
            if PLAN[layer] == 0:
                h = _read(
                    source, stride, weight, bias, mask, target, pitch,
                    WIDTHS[layer], WIDTHS[layer + 1], INS[layer], BLOCKS[layer + 1], BLOCK_M,
                    BACKWARD, layer + 1 == len(PLAN), SAVE, PRECISION, UPCAST,
                )  # fmt: skip
            elif PLAN[layer] == 1:
                _write(
                    h, weight, bias, mask, target, pitch,
                    WIDTHS[layer], WIDTHS[layer + 1], BLOCKS[layer], OUTS[layer + 1], BLOCK_M,
                    BACKWARD, layer + 1 == len(PLAN), PRECISION, UPCAST,
                )  # fmt: skip
                source = target
                stride = pitch
                tl.debug_barrier()  # the next layer's threads read what other threads wrote
            else:
                h = _keep(
                    h, weight, bias, mask, target, pitch,
                    WIDTHS[layer], WIDTHS[layer + 1], BLOCK_M,
                    BACKWARD, layer + 1 == len(PLAN), SAVE, PRECISION, UPCAST,
                )  # fmt: skip
            weight += WIDTHS[layer] * WIDTHS[layer + 1]
            bias += WIDTHS[layer + 1]
        tl.debug_barrier()  # the next tile's threads write where this one's read
