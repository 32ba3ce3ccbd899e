"""Errors of the operators: what was expected, what came, how to mend it."""

import math
from collections.abc import Callable

import pytest
import torch

from pnp_lofi.operators import (
    NUFFT,
    Blur,
    Derivatives,
    Downsample,
    Fourier,
    KaiserSquires,
    Mask,
    Radon,
    cartesian_lines,
    radial_lines,
    random_frequencies,
    random_mask,
)

MASK = random_mask((6, 6), 0.5)
UV = torch.linspace(-3, 3, 20, dtype=torch.float64).reshape(2, 10)
X = torch.rand(2, 1, 6, 6)
SHEAR = torch.rand(2, 2, 6, 6)


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
    (lambda: Mask(MASK).A(X.numpy()), TypeError, r"x as a torch tensor, got ndarray; use torch.from_numpy\(x\)"),
    (lambda: Mask(MASK).A_adjoint([1.0]), TypeError, r"y as a torch tensor, got list; use torch.as_tensor\(y\)"),
    (lambda: Radon((6, 6), 5, 9).A_adjoint(X[..., :5].new_ones(1, 1, 9, 5)), ValueError, "look exchanged, try y.mT"),
    (lambda: Radon(6, 5), ValueError, r"must be \(rows, columns\), two positive integers, got 6"),
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
    (lambda: op(weights=torch.ones(10, dtype=torch.complex64)), TypeError, "weights must be real, .* got .*complex64"),
    (lambda: NUFFT((8, 8), torch.ones(2, 9, dtype=torch.complex64)), TypeError, "uv must be real, .* got .*complex64"),
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
    # shear
    (lambda: KaiserSquires((6, 6), torch.zeros(6, 6)), ValueError, r"shape \(6, 6\) keeps no pixel"),
    (lambda: KaiserSquires((6, 6), torch.full((6, 6), 0.5)), ValueError, "got other values; threshold it"),
    (lambda: KaiserSquires((6, 6), torch.full((6, 6), math.nan)), ValueError, "zeros and ones only, got NaN"),
    (lambda: KaiserSquires((6, 7), MASK), ValueError, r"mask must have the data's shape \(6, 7\), got \(6, 6\)"),
    (lambda: KaiserSquires((6, 6), torch.ones(2, 6, 6)), ValueError, r"got \(2, 6, 6\); one mask serves both"),
    (lambda: KaiserSquires((6, 0)), ValueError, r"two positive integers, got \(6, 0\)"),
    (lambda: KaiserSquires((1, 1)), ValueError, "a single pixel has no shear"),
    (lambda: KaiserSquires((6, 6), sigma=0.0), ValueError, "sigma must be finite and > 0, got 0.0"),
    (lambda: KaiserSquires((6, 6), sigma=math.nan), ValueError, "sigma must be finite and > 0, got nan"),
    (lambda: KaiserSquires((6, 6), sigma=torch.ones(6)), ValueError, r"must be \(6, 6\) or \(2, 6, 6\), got \(6,\)"),
    (lambda: KaiserSquires((6, 6), sigma=MASK.float()), ValueError, "sigma must be finite and > 0 on the mask; take"),
    (lambda: KaiserSquires((6, 6), MASK, torch.full((2, 6, 6), math.nan)), ValueError, "> 0 on the mask; take"),
    (lambda: KaiserSquires((6, 6), MASK, torch.ones(6, 6, device="meta")), ValueError, "mask is on cpu, sigma on meta"),
    (lambda: KaiserSquires((6, 6), weights=-torch.ones(6, 6)), ValueError, "must be finite and >= 0 on the mask"),
    (lambda: KaiserSquires((6, 6), ~MASK, weights=MASK.float()), ValueError, "all weights are zero"),
    (lambda: KaiserSquires((6, 6), sigma=X[0], weights=X[0]), ValueError, "pass a map of sigma or weights, not both"),
    (lambda: KaiserSquires((6, 6), pad=-1), ValueError, r"an integer >= 0 \[pixel\], or two .* got -1"),
    (lambda: KaiserSquires((6, 6), pad=(1, 2, 3)), ValueError, r"an integer >= 0 \[pixel\], or two .* got \(1, 2, 3\)"),
    (lambda: KaiserSquires((6, 6), pad=1).A(X), ValueError, r"shape \(batch, 1, 8, 8\), got \(2, 1, 6, 6\)"),
    (lambda: KaiserSquires((6, 6)).A(X.expand(2, 3, 6, 6)), ValueError, r"\(batch, 1, 6, 6\), got \(2, 3, 6, 6\)"),
    (lambda: KaiserSquires((6, 6)).A(X[0]), ValueError, r"add the batch axis with x\[None\]"),
    (lambda: KaiserSquires((6, 6)).A(X.int()), TypeError, r"got torch.int32; use x.float\(\)"),
    (lambda: KaiserSquires((6, 6)).A(X.half()), TypeError, r"got torch.float16; use x.float\(\)"),
    (lambda: KaiserSquires((6, 6)).A(X.to("meta")), ValueError, "x is on meta, the operator on cpu"),
    (lambda: KaiserSquires((6, 6), MASK).ks(SHEAR.to("meta")), ValueError, "y is on meta, the operator on cpu"),
    (lambda: KaiserSquires((6, 6), MASK).A_adjoint(SHEAR[0]), ValueError, r"add the batch axis with y\[None\]"),
    (lambda: KaiserSquires((6, 6)).A_adjoint(SHEAR.movedim(1, -1)), ValueError, r"front with y.movedim\(-1, -3\)"),
    (lambda: KaiserSquires((6, 6)).A_adjoint(X + 0j), TypeError, r"use torch.stack\(\[y.real, y.imag\], 1\)"),
    (lambda: KaiserSquires((6, 6), MASK).whiten(SHEAR * math.nan), ValueError, "NaN or inf; take those pixels out of"),
    (lambda: KaiserSquires((6, 6), MASK).eb(SHEAR * math.inf), ValueError, "NaN or inf; take those pixels out of the"),
    (lambda: KaiserSquires((6, 6)).solve_normal(X, -1.0), ValueError, "alpha must be finite and >= 0, got -1.0"),
    (lambda: KaiserSquires((6, 6), MASK).prox_l2(X, SHEAR, 0.0), ValueError, "gamma must be > 0, got 0.0"),
    (lambda: KaiserSquires((6, 6)).wiener(SHEAR), ValueError, "the noise is not known; pass sigma to KaiserSquires"),
    (lambda: KaiserSquires((6, 6), sigma=1.0).wiener(SHEAR, X[0, 0, :5]), ValueError, r"\(6, 6\), got \(5, 6\)"),
    (lambda: KaiserSquires((6, 6), sigma=1.0).wiener(SHEAR, -X[0, 0]), ValueError, "power must be finite and >= 0"),
    (lambda: KaiserSquires((6, 6), sigma=1.0).wiener(SHEAR, X[0, 0]), ValueError, r"S\(k\) = S\(-k\), in FFT order"),
    # blur and downsampling
    (lambda: Blur((6, 6), torch.ones(3)), ValueError, r"kernel must be \(h, w\), \(C, h, w\) or .*, got \(3,\)"),
    (lambda: Blur((6, 6), torch.ones(2, 1, 3, 3)), ValueError, "one kernel serves the batch"),
    (lambda: Blur((6, 6), torch.zeros(0, 3)), ValueError, r"got \(0, 3\)"),
    (lambda: Blur((6, 6), torch.full((3, 3), math.nan)), ValueError, "real and finite, got NaN or inf"),
    (lambda: Blur((6, 6), torch.ones(3, 3) + 0j), ValueError, "real and finite, got complex"),
    (lambda: Blur((6, 6), torch.zeros(3, 3)), ValueError, "the kernel is zero everywhere"),
    (lambda: Blur((6, 6), torch.ones(7, 3), boundary="zero"), ValueError, r"\(7, 3\), is larger than the image"),
    (lambda: Blur((6, 6), torch.ones(3, 3), boundary="mirror"), ValueError, "must be one of circular, .*'mirror'"),
    (lambda: Blur((6, 0), torch.ones(3, 3)), ValueError, r"two positive integers, got \(6, 0\)"),
    (lambda: Blur((6, 6), torch.ones(3, 3)).A(X[..., :5]), ValueError, r"got \(2, 1, 6, 5\); build the operator"),
    (lambda: Blur((6, 6), torch.ones(2, 3, 3)).A(X), ValueError, r"\(batch, 2, 6, 6\), got \(2, 1, 6, 6\)"),
    (lambda: Blur((6, 6), torch.ones(3, 3)).A_adjoint(X * math.inf), ValueError, "y holds NaN or inf"),
    (lambda: Blur((6, 6), torch.ones(3, 3), boundary="valid").A_adjoint(X), ValueError, r"\(batch, channel, 4, 4\)"),
    (lambda: Downsample((7, 6), 2), ValueError, r"multiple of the factor 2; crop it to \(6, 6\) or pad it"),
    (lambda: Downsample((6, 6), 0), ValueError, "factor must be an integer >= 1, got 0"),
    (lambda: Downsample((6, 6), 1.5), ValueError, "factor must be an integer >= 1, got 1.5"),
    (lambda: Downsample((6, 6), 2, "lanczos"), ValueError, "\"box\", \"bicubic\" or a tensor, got 'lanczos'"),
    (lambda: Downsample((6, 6), 2, phase=2), ValueError, r"phase must lie in \[0, 2\), got 2"),
    (lambda: Downsample((6, 6), 2, boundary="valid"), ValueError, "does not keep the coarse grid"),
    (lambda: Downsample((6, 6), 2, torch.zeros(3, 3)), ValueError, "the kernel is zero everywhere"),
    (lambda: Downsample((6, 6), 2).A_adjoint(X), ValueError, r"y of shape \(batch, channel, 3, 3\)"),
    # frequencies
    (lambda: Fourier(torch.zeros(6, 6)), ValueError, "keeps no pixel"),
    (lambda: Fourier(torch.full((6, 6), 2.0)), ValueError, "zeros and ones only, got other values"),
    (lambda: Fourier(MASK).A(X + 0j), TypeError, "float32 or float64, got torch.complex64; pass x.real"),
    (lambda: Fourier(MASK, real=False).A(X), TypeError, r"got torch.float32; use x.to\(complex64\)"),
    (lambda: Fourier(MASK).A_adjoint(X), TypeError, "complex64 or complex128, got torch.float32"),
    (lambda: Fourier(MASK).A_adjoint(X * math.nan + 0j), ValueError, "take those frequencies out of the mask"),
    (lambda: random_frequencies((6, 6), 0.5), ValueError, "acceleration must be at least 1, got 0.5"),
    (lambda: random_frequencies((6, 6), math.nan), ValueError, "acceleration must be at least 1, got nan"),
    (lambda: random_frequencies((6, 6), 2.0, centre=1.1), ValueError, r"a fraction in \[0, 1\], got 1.1"),
    (lambda: random_frequencies((6, 6), 2.0, power=-1.0), ValueError, "power must be finite and >= 0, got -1.0"),
    (lambda: cartesian_lines((6, 6), 2.0, axis=2), ValueError, r"axis must be 0 \(rows\) or 1 \(columns\), got 2"),
    (lambda: radial_lines((6, 6), 0), ValueError, "spokes must be at least 1, got 0"),
    # derivatives
    (lambda: Derivatives((6, 6), torch.rand(2, 5)), ValueError, r"\(P, 2\), .* got \(2, 5\); transpose it"),
    (lambda: Derivatives((6, 6), torch.rand(0, 2)), ValueError, r"with P >= 1, got \(0, 2\)"),
    (lambda: Derivatives((6, 6), torch.rand(5, 2) + 1), ValueError, r"coords must lie in \[0, 1\]"),
    (lambda: Derivatives((6, 6), torch.full((5, 2), math.nan)), ValueError, r"coords must lie in \[0, 1\]"),
    (lambda: Derivatives((6, 6), torch.rand(5, 2), order=3), ValueError, "order must be 1 .* or 2 .*, got 3"),
    (lambda: Derivatives((6, 6), torch.rand(5, 2), taps=5), ValueError, "taps must be 4 or 6, got 5"),
    (lambda: Derivatives((6, 6), torch.rand(5, 2), chunk=0), ValueError, "chunk must be at least 1, got 0"),
    (lambda: Derivatives((6, 6), torch.rand(5, 2)).A_adjoint(X), ValueError, r"y of shape \(batch, channel, 2, 5\)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), CASES, ids=[f"{i}-{c[2][:24]}" for i, c in enumerate(CASES)])
def test_error_says_what_to_do(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
