"""NUFFT: whitening, the beam, the dirty image, periodic coordinates, the convolution at size."""

import math

import pytest
import torch
from operator_rows import M, dft, uv_of, weights_of
from torch import Tensor

from pnp_lofi.operators import NUFFT


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_whiten() -> None:
    w, uv, x = weights_of(M), uv_of(M), torch.rand(1, 1, 6, 6, dtype=torch.float64)
    vis = NUFFT((6, 6), uv).A(x)
    op = NUFFT((6, 6), uv, w)
    torch.testing.assert_close(op.whiten(vis), op.A(x))
    torch.testing.assert_close(op.whiten(vis[0, 0]), op.A(x)[0, 0])
    vis[..., 3] = torch.nan  # its weight is zero: a flagged row
    torch.testing.assert_close(op.whiten(vis), op.A(x))
    assert op.whiten(vis.to(torch.complex64)).dtype == torch.complex64
    for kind in (">c16", "<c16"):
        array = vis.numpy().astype(kind)
        torch.testing.assert_close(op.whiten(array), op.A(x))
        torch.testing.assert_close(NUFFT((6, 6), uv).whiten(array), vis, equal_nan=True)
    with pytest.raises(ValueError, match=rf"the operator has {M} visibilities, the data \({M - 1},\)"):
        op.whiten(array[0, 0, 1:])


@pytest.mark.parametrize("shape", [(8, 8), (7, 10)])
@pytest.mark.parametrize("weighted", [True, False])
def test_psf_and_dirty_image(shape: tuple[int, int], weighted: bool) -> None:
    w = weights_of(M) if weighted else torch.ones(M, dtype=torch.float64)
    uv = uv_of(M)
    op = NUFFT(shape, uv, w if weighted else None, chunk=10)
    H, W = shape
    point = torch.zeros(1, 1, H, W, dtype=torch.float64)
    point[..., H // 2, W // 2] = 2.0
    beam = op.psf(dtype=torch.float64)
    torch.testing.assert_close(op.dirty(op.A(point))[0, 0], 2 * beam, rtol=1e-9, atol=1e-10)
    assert float(beam[H // 2, W // 2]) == pytest.approx(1.0, abs=1e-10) == pytest.approx(float(beam.max()), abs=1e-10)
    wide = op.psf((2 * H, 2 * W), dtype=torch.float64)
    r, c = torch.arange(2 * H) - H, torch.arange(2 * W) - W
    direct = (w[:, None, None] * torch.cos(uv[0, :, None, None] * r[:, None] + uv[1, :, None, None] * c)).sum(0)
    torch.testing.assert_close(wide, direct / w.sum(), rtol=1e-9, atol=1e-10)
    assert op.psf().dtype == torch.float32


def test_dirty_noise() -> None:
    shape, uv = (16, 16), uv_of(300)
    op = NUFFT(shape, uv, weights_of(300), sigma=0.7)
    torch.manual_seed(3)
    found = op.dirty(op(torch.zeros(200, 1, *shape))).std()
    assert op.dirty_noise() == pytest.approx(float(found), rel=0.02)
    assert op.dirty_noise(1.4) == pytest.approx(2 * op.dirty_noise())


def test_coordinates_wrap() -> None:
    x = torch.randn(1, 1, 7, 6, dtype=torch.float64)
    uv = torch.tensor([[math.pi, -math.pi * (1 + 5e-6), 1.0], [math.pi * (1 + 5e-6), 0.3, -math.pi]])
    for backend, accuracy in (("finufft", 1e-11), ("kb", 2e-3)):
        y = NUFFT((7, 6), uv, backend=backend).A(x)
        assert relative(y.flatten(2), x.flatten(2).to(y.dtype) @ dft((7, 6), uv.double()).T) < accuracy


@pytest.mark.parametrize(
    ("dtype", "eps", "accuracy"),
    [(torch.float32, None, 3e-6), (torch.float64, 1e-9, 1e-8), (torch.float64, None, 1e-11)],
)
def test_toeplitz_at_size(dtype: torch.dtype, eps: float | None, accuracy: float) -> None:
    uv, w = uv_of(3000), weights_of(3000)
    op = NUFFT((96, 75), uv, w, eps=eps)
    x = torch.randn(2, 1, 96, 75, dtype=dtype, generator=torch.Generator().manual_seed(0))
    y = op.A(x)
    assert relative(op.A_adjoint_A(x), op.A_adjoint(y)) < accuracy
    some = torch.randperm(3000, generator=torch.Generator().manual_seed(1))[:200]
    exact = x.flatten(1).to(torch.complex128) @ dft((96, 75), uv[:, some], w[some]).T
    assert relative(y[:, 0, some].to(torch.complex128), exact) < accuracy
