"""Dense layers with ReLU between them, as fast as the processor's matrix products allow."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

Layers = Sequence[tuple[Tensor, Tensor]]  # weight (inputs, outputs), bias (outputs,)
Network = Callable[[Tensor], Tensor]


def uniform(shape: tuple[int, ...], fan_in: int) -> nn.Parameter:
    """He's uniform start for ReLU, the same for weights and biases."""
    bound = math.sqrt(3 / fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


def dense(h: Tensor, layers: Layers) -> Tensor:
    """(P, inputs) -> (P, outputs), computed in the dtype of the input; differentiable."""
    for k, (weight, bias) in enumerate(layers):
        h = torch.addmm(bias.to(h.dtype), h.relu_() if k else h, weight.to(h.dtype))
    return h


def prepared(layers: Layers, dtype: torch.dtype) -> Network:
    """``dense`` for many chunks of pixels without gradients: weights cast, and on a CPU packed, once.

    oneDNN's linear layer with its ReLU fused, on packed weights, ran 1.2 times (float32) to 3.5 times (bfloat16) as
    fast as addmm on chunks of 1024 pixels. It is what torch.compile calls; without it addmm is called. That ReLU turns
    NaN into 0: for weights that are not finite addmm is called, and callers must see to it that what they put in is.
    """
    cast = [(weight.detach().to(dtype), bias.detach().to(dtype)) for weight, bias in layers]
    if not (_fuses(cast[0][0]) and all(finite(weight) and finite(bias) for weight, bias in cast)):
        return lambda h: dense(h, cast)
    onednn = torch.ops.mkldnn
    packed = [(onednn._reorder_linear_weight(weight.T.contiguous()), bias) for weight, bias in cast]

    def network(h: Tensor) -> Tensor:
        for k, (weight, bias) in enumerate(packed):
            h = onednn._linear_pointwise(h, weight, bias, "relu" if k + 1 < len(packed) else "none", [], "")
        return h

    return network


def _fuses(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0  # the fused layer knows no tangents
        and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and has_bfloat16(x.device)))
    )


def finite(x: Tensor) -> bool:
    """Whether nothing in it is NaN or inf: the sum tells, if it does not overflow, without a copy of x."""
    return bool(torch.isfinite(x.detach().sum())) or bool(torch.isfinite(x).all())


def has_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are fast here."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
    return device.type == "cpu" and known and torch.ops.mkldnn._is_mkldnn_bf16_supported()
