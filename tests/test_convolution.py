"""Convolutions by blocks of FFTs against sums over offsets."""

import numpy as np
import pytest
import torch

from pnp_lofi import convolution
from pnp_lofi.convolution import along_rows, back_along_rows, filter_columns_, kernel_along_rows, spectrum_of
from pnp_lofi.nonuniform import fft_size


def hermitian(H: int, W: int, *, real: bool) -> torch.Tensor:
    """k(d) with k(-d) = k(d)*, zero offset in the middle."""
    k = torch.randn(2 * H - 1, 2 * W - 1, dtype=torch.float64 if real else torch.complex128)
    return k + k.flip(0, 1).conj()


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (5, 8), (12, 7)])
@pytest.mark.parametrize("block", [1, 700, 2**20])
def test_equals_the_sum(monkeypatch, real, shape, block):
    """Whatever the size of a block, down to one row, column and item."""
    monkeypatch.setattr(convolution, "BLOCK", block)
    torch.manual_seed(0)
    (H, W), kernel = shape, hermitian(*shape, real=real)
    x = torch.randn(2, 3, H, W, dtype=kernel.dtype)
    expected = np.zeros(x.shape, x.numpy().dtype)
    for r in range(H):
        for c in range(W):
            part = kernel.numpy()[H - 1 - r : 2 * H - 1 - r, W - 1 - c : 2 * W - 1 - c]
            expected += x.numpy()[..., r : r + 1, c : c + 1] * part
    rows, columns = fft_size(2 * H - 1), fft_size(2 * W - 1)
    spectrum = spectrum_of(kernel_along_rows(kernel[H - 1 :], columns), rows, torch.float64)
    along = filter_columns_(along_rows(x, columns), spectrum)
    found = back_along_rows(along, columns, W, real=real)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_needs_no_copies_of_the_padded_image():
    """The transforms of the rows, the result and some blocks: counted by torch's own profiler."""
    n = 1024
    x, spectrum = torch.randn(1, 1, n, n), torch.randn(2 * n, n + 1)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        along = filter_columns_(along_rows(x, 2 * n), spectrum)
        back_along_rows(along, 2 * n, n, real=True)
    sizes = [event.cpu_memory_usage for event in seen.events() if event.cpu_memory_usage > 0]
    assert sorted(sizes)[-3] <= 6 * convolution.BLOCK < n * n * 4 * 2
