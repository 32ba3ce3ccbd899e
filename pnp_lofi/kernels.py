"""Where the Triton kernels run, and the same mathematics in torch for everywhere else.

A kernel runs on a CUDA device of capability 8.0 or more, or anywhere under ``TRITON_INTERPRET=1`` (tests).
``PNP_LOFI_KERNELS=0`` forces torch. A kernel that fails is not tried again in this process.
"""

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from pnp_lofi.dense import dense
from pnp_lofi.sampling import KEYS_A, sample

CAPABILITY = (8, 0)  # bfloat16 products
MAX_WIDTH = 512  # widest layer whose activations of a tile fit in registers (pnp_lofi/triton_mlp.py)

T = TypeVar("T")
_failure: str | None = None


def use_kernels() -> bool:
    """Whether the environment lets kernels run: ``PNP_LOFI_KERNELS=0`` says no."""
    return os.environ.get("PNP_LOFI_KERNELS", "1") != "0"


def interpreted() -> bool:
    """Whether Triton interprets its kernels, on any device and very slowly: ``TRITON_INTERPRET=1``."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def available(tensor: Tensor) -> bool:
    """Whether kernels run on this tensor's device.

    :param torch.Tensor tensor: one of the inputs.
    :returns: False too once a kernel has failed in this process.
    """
    if _failure or not use_kernels() or torch._C._are_functorch_transforms_active():
        return False
    if tensor.device.type != "cuda":
        return interpreted() and _installed()
    return _capable(tensor.device) and _installed()


def gather(image: Tensor, points: Tensor, offsets: Tensor, a: float = KEYS_A) -> Tensor:
    """Patches read by Keys cubic interpolation at ``points + offsets``, borders reflected.

    :param torch.Tensor image: (B, C, H, W).
    :param torch.Tensor points: (B, P, 2) [pixel], (row, column), pixel centres at integers.
    :param torch.Tensor offsets: (K, 2) or (B, P, K, 2) [pixel].
    :param float a: parameter of the kernel.
    :returns: (B, P, C, K), in the dtype of the image.
    """
    if not (image.is_floating_point() and available(image)):
        return gather_reference(image, points, offsets, a)

    def kernel() -> Tensor:
        from pnp_lofi.triton_gather import gather_patches

        return gather_patches(image, points, offsets, a)

    return attempt(kernel, lambda: gather_reference(image, points, offsets, a))


def multimlp(
    patches: Tensor,
    ray_weights: Sequence[Tensor],
    ray_biases: Sequence[Tensor],
    mixer_weights: Sequence[Tensor],
    mixer_biases: Sequence[Tensor],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """What ``MultiMLP.forward`` computes, from its lists of parameters.

    float32 takes the kernel only where torch may use tf32 (``torch.set_float32_matmul_precision``): exact float32
    has no tensor cores to gain from.

    :param torch.Tensor patches: (rays, P, ray_inputs).
    :param ray_weights, ray_biases: (rays, in, out) and (rays, 1, out) of each layer.
    :param mixer_weights, mixer_biases: (in, out) and (out,) of each layer.
    :param torch.dtype dtype: what to compute in; default that of the patches.
    :returns: (P, outputs), in ``dtype``.
    """
    dtype = patches.dtype if dtype is None else dtype
    weights = (ray_weights, ray_biases, mixer_weights, mixer_biases)
    hidden = [w.shape[-1] for group in (ray_weights, mixer_weights) for w in group]
    fast = dtype in (torch.bfloat16, torch.float16) or (
        dtype == torch.float32 and (interpreted() or torch.get_float32_matmul_precision() != "highest")
    )
    if not (fast and patches.shape[1] and max(hidden) <= MAX_WIDTH and available(patches)):
        return multimlp_reference(patches, *weights, dtype)

    def kernel() -> Tensor:
        from pnp_lofi.triton_mlp import fused_multimlp

        return fused_multimlp(patches, *weights, dtype)

    return attempt(kernel, lambda: multimlp_reference(patches, *weights, dtype))


def attempt(kernel: Callable[[], T], reference: Callable[[], T]) -> T:
    """The kernel's answer; should it fail, one warning and the reference's, now and for the rest of the process."""
    global _failure
    if _failure is None:
        try:
            return kernel()
        except torch.OutOfMemoryError:  # the reference needs more memory, not less
            raise
        except Exception as error:  # Triton raises its own errors, the driver's, the C compiler's, ...
            answer = reference()  # raises too where the input is at fault, and the kernel is not
            _failure = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"a Triton kernel failed, torch is used from here on ({_failure}); set PNP_LOFI_KERNELS=0 to skip it",
                RuntimeWarning,
                stacklevel=3,
            )
            return answer
    return reference()


def gather_reference(image: Tensor, points: Tensor, offsets: Tensor, a: float = KEYS_A) -> Tensor:
    """``gather`` in torch, differentiable to any order."""
    at = points[:, :, None] + offsets
    exact = image.to(torch.promote_types(image.dtype, torch.float32))
    patches = sample(exact, at.to(torch.promote_types(at.dtype, exact.dtype)).flatten(1, 2), a)
    return patches.reshape(*at.shape[:3], -1).transpose(2, 3).to(image.dtype)


def multimlp_reference(
    patches: Tensor,
    ray_weights: Sequence[Tensor],
    ray_biases: Sequence[Tensor],
    mixer_weights: Sequence[Tensor],
    mixer_biases: Sequence[Tensor],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``multimlp`` in torch, differentiable to any order."""
    dtype = patches.dtype if dtype is None else dtype
    h = patches.to(dtype)
    for k, (weight, bias) in enumerate(zip(ray_weights, ray_biases, strict=True)):
        h = torch.baddbmm(bias.to(dtype), h.relu_() if k else h, weight.to(dtype))
    return dense(h.transpose(0, 1).reshape(h.shape[1], -1), list(zip(mixer_weights, mixer_biases, strict=True)))


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _capable(device: torch.device) -> bool:
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= CAPABILITY
