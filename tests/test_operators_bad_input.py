"""Errors of the operators: what was expected, what came, how to mend it."""

import math
from collections.abc import Callable

import pytest
import torch

from pnp_lofi.operators import NUFFT, Mask, random_mask

MASK = random_mask((6, 6), 0.5)
UV = torch.linspace(-3, 3, 20, dtype=torch.float64).reshape(2, 10)
X = torch.rand(2, 1, 6, 6)


def vis(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.complex64)


def nan_at(value: float) -> torch.Tensor:
    y = vis(1, 1, 10)
    y[..., 4] = value
    return y


def op(**options: object) -> NUFFT:
    return NUFFT((6, 6), UV, **options)


Case = tuple[Callable[[], object], type[Exception], str]
CASES: list[Case] = [
    # a mask that cannot be one
    (lambda: Mask(torch.zeros(6, 6)), ValueError, r"shape \(6, 6\) keeps no pixel"),
    (lambda: Mask(torch.full((6, 6), math.nan)), ValueError, "zeros and ones only, got NaN"),
    (lambda: Mask(torch.full((6, 6), 0.5)), ValueError, "got other values; threshold it"),
    (lambda: Mask(torch.ones(6)), ValueError, r"\(H, W\), \(C, H, W\) or \(1, C, H, W\), got \(6,\)"),
    (lambda: Mask(torch.ones(2, 1, 6, 6)), ValueError, "one mask serves the whole batch"),
    (lambda: Mask(MASK, sigma=0.0), ValueError, "sigma must be finite and > 0, got 0.0"),
    (lambda: Mask(MASK, sigma=math.nan), ValueError, "sigma must be finite and > 0, got nan"),
    # images that do not fit it
    (lambda: Mask(MASK).A(X[..., :5]), ValueError, r"x of shape \(batch, channel, 6, 6\), got \(2, 1, 6, 5\); build"),
    (lambda: Mask(MASK).A(X[0, 0]), ValueError, r"got \(6, 6\); add the leading axes with x\[None, None\]"),
    (lambda: Mask(MASK).A(X[0]), ValueError, r"add the batch axis with x\[None\]"),
    (lambda: Mask(torch.ones(3, 6, 6)).A(X), ValueError, r"shape \(batch, 3, 6, 6\), got \(2, 1, 6, 6\)"),
    (lambda: Mask(MASK).A(X.int()), TypeError, r"got torch.int32; use x.float\(\)"),
    (lambda: Mask(MASK).A(X + 0j), TypeError, "float32 or float64, got torch.complex64; pass x.real"),
    (lambda: Mask(MASK).A_adjoint(X * math.nan), ValueError, "NaN or inf; take those pixels out of the mask"),
    (lambda: Mask(MASK).A(X.to("meta")), ValueError, "x is on meta, the operator on cpu"),
    (lambda: Mask(MASK).prox_l2(X[0], X, 1.0), ValueError, "add the batch axis"),
    (lambda: Mask(MASK).solve_normal(X, -1.0), ValueError, "alpha must be finite and >= 0, got -1.0"),
    (lambda: random_mask((6, 6), 0.0), ValueError, "0 < keep <= 1, got 0.0"),
    (lambda: random_mask((6, 6), 1.1), ValueError, "0 < keep <= 1, got 1.1"),
    (lambda: random_mask((6, 6), math.nan), ValueError, "0 < keep <= 1, got nan"),
    # geometry of the visibilities
    (lambda: NUFFT((6, 6), UV.T), ValueError, r"\(2, M\) in radians per pixel.*got \(10, 2\); transpose it"),
    (lambda: NUFFT((6, 6), UV[:, :0]), ValueError, r"M >= 1, got \(2, 0\)"),
    (lambda: NUFFT((6, 6), UV * math.nan), ValueError, "uv holds NaN or inf"),
    (lambda: NUFFT((6, 6), UV * math.inf), ValueError, "uv holds NaN or inf"),
    (lambda: NUFFT((6, 6), UV * 2), ValueError, r"\[-pi, pi\].* its largest value is 6; .*uv_radians.* 1.91 times"),
    (lambda: NUFFT((6, 0), UV), ValueError, r"two positive integers, got \(6, 0\)"),
    (lambda: NUFFT((1, 6, 6), UV), ValueError, r"two positive integers, got \(1, 6, 6\)"),
    (lambda: op(weights=torch.ones(9)), ValueError, r"weights must be \(10,\), one per column of uv, got \(9,\)"),
    (lambda: op(weights=-torch.ones(10)), ValueError, "weights must be finite and >= 0"),
    (lambda: op(weights=torch.full((10,), math.nan)), ValueError, "weights must be finite and >= 0"),
    (lambda: op(weights=torch.zeros(10)), ValueError, "all weights are zero"),
    (lambda: op(weights=torch.ones(10, device="meta")), ValueError, "uv is on cpu, weights on meta"),
    (lambda: op(sigma=-1.0), ValueError, "sigma must be finite and > 0, got -1.0"),
    (lambda: op(backend="ducc"), ValueError, 'backend must be "finufft" or "kb", got \'ducc\''),
    (lambda: op(eps=0.0), ValueError, "eps must lie between 0 and 1"),
    (lambda: op(chunk=0), ValueError, "chunk must be at least 1"),
    # images
    (lambda: op().A(X[..., :5]), ValueError, r"shape \(batch, channel, 6, 6\), got \(2, 1, 6, 5\); build the operator"),
    (lambda: op().A(X[0, 0]), ValueError, r"got \(6, 6\); add the leading axes with x\[None, None\]"),
    (lambda: op().A_adjoint_A(X[0]), ValueError, r"add the batch axis with x\[None\]"),
    (lambda: op().A(X.int()), TypeError, r"got torch.int32; use x.float\(\)"),
    (lambda: op().A(X.half()), TypeError, r"got torch.float16; use x.float\(\)"),
    (lambda: op().A(X + 0j), TypeError, "got torch.complex64; pass x.real"),
    (lambda: op(real=False).A(X), TypeError, r"got torch.float32; use x.to\(complex64\)"),
    (lambda: op().A(X.to("meta")), ValueError, "x is on meta, the operator on cpu"),
    # data
    (lambda: op().A_adjoint(vis(1, 1, 9)), ValueError, r"has 10 visibilities, the data \(1, 1, 9\)"),
    (lambda: op().A_adjoint(vis(10)), ValueError, r"got \(10,\); add the leading axes with y\[None, None\]"),
    (lambda: op().A_adjoint(vis(1, 1, 10).real), TypeError, "complex64 or complex128, got torch.float32"),
    (lambda: op().A_adjoint(nan_at(math.nan)), ValueError, "y holds NaN or inf"),
    (lambda: op().dirty(nan_at(math.inf)), ValueError, "y holds NaN or inf"),
    (lambda: op().A_adjoint(vis(1, 1, 10).to("meta")), ValueError, "y is on meta, the operator on cpu"),
    (lambda: op().whiten(vis(9)), ValueError, r"has 10 visibilities, the data \(9,\)"),
    (lambda: op().solve_normal(X, math.nan), ValueError, "alpha must be finite and >= 0, got nan"),
    (lambda: op().dirty_noise(), ValueError, "the noise is not known; pass sigma"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), CASES, ids=[f"{i}-{c[2][:24]}" for i, c in enumerate(CASES)])
def test_error_says_what_to_do(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
