"""Convolutions with kernels twice as large as the image, by FFTs of zero-padded rows and columns, a block at a time.

    crop(k * x) = crop(F^-1 spectrum F pad(x)),   k(-d) = k(d)*

Half of the rows are zero before and not wanted after, so they are transformed neither way. Blocks that stay in the
processor's cache bound the working memory, and were 2 to 3 times as fast as transforms of the whole.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

Shape = tuple[int, int]
BLOCK, BLOCK_GPU = 2**20, 2**28  # bytes transformed at once


def along_rows(x: Tensor, columns: int) -> Tensor:
    """Transforms of zero-padded rows.

    :param torch.Tensor x: (..., h, W), real or complex.
    :param int columns: length to pad to.
    :returns: (..., h, n) complex with n = columns // 2 + 1, of complex images n = columns.
    """
    n = columns if x.is_complex() else columns // 2 + 1
    out = x.new_empty((*x.shape[:-1], n), dtype=x.dtype.to_complex())
    transform = torch.fft.fft if x.is_complex() else torch.fft.rfft
    source, target = x.reshape(-1, x.shape[-1]), out.view(-1, n)
    for part in _blocks(len(source), columns * out.element_size(), x.device):
        target[part] = transform(source[part], columns)
    return out


def filter_columns_(along: Tensor, spectrum: Tensor) -> Tensor:
    """Multiply the transforms of the columns, zero-padded to the length of the spectrum, in place.

    :param torch.Tensor along: (..., H, n) complex; torch.Tensor spectrum: (rows, n) real.
    """
    (H, n), rows = along.shape[-2:], len(spectrum)
    stack = along.view(-1, H, n)
    size = rows * along.element_size()
    for items in _blocks(len(stack), size * n, along.device):
        images = stack[items]
        for part in _blocks(n, size * len(images), along.device):
            columns = torch.fft.fft(images[..., part], rows, dim=-2).mul_(spectrum[:, part])
            images[..., part] = torch.fft.ifft(columns, dim=-2)[..., :H, :]
    return along


def back_along_rows(along: Tensor, columns: int, width: int, *, real: bool) -> Tensor:
    """The first ``width`` pixels of the rows whose transforms are given; the way back from :func:`along_rows`.

    :param torch.Tensor along: (..., h, n) complex.
    :returns: (..., h, width), real or complex.
    """
    dtype = along.real.dtype if real else along.dtype
    out = along.new_empty((*along.shape[:-1], width), dtype=dtype)
    source, target = along.reshape(-1, along.shape[-1]), out.view(-1, width)
    for part in _blocks(len(source), columns * along.element_size(), along.device):
        back = torch.fft.irfft(source[part], columns) if real else torch.fft.ifft(source[part])
        target[part] = back[:, :width]
    return out


def kernel_along_rows(kernel: Tensor, columns: int) -> Tensor:
    """Transforms of the rows of a kernel with offset zero in the middle, put on a ring of ``columns``.

    :param torch.Tensor kernel: (h, 2 W - 1), real or complex.
    :returns: (h, n) complex, n as of :func:`along_rows`.
    """
    n, half = columns if kernel.is_complex() else columns // 2 + 1, kernel.shape[1] // 2
    out = kernel.new_empty((len(kernel), n), dtype=kernel.dtype.to_complex())
    transform = torch.fft.fft if kernel.is_complex() else torch.fft.rfft
    for part in _blocks(len(kernel), columns * out.element_size(), kernel.device):
        ring = kernel.new_zeros((part.stop - part.start, columns))
        ring[:, : half + 1], ring[:, columns - half :] = kernel[part, half:], kernel[part, :half]
        out[part] = transform(ring)
    return out


def spectrum_of(along: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Eigenvalues of the convolution, real because the kernel is Hermitian.

    :param torch.Tensor along: (H, n), :func:`kernel_along_rows` of the offsets 0, ..., H - 1 of the rows.
    :param int rows: length to pad columns to, even and at least 2 H - 1.
    :returns: (rows, n) of that dtype.
    """
    out = along.new_empty((rows, along.shape[1]), dtype=dtype)
    for part in _blocks(along.shape[1], rows * along.element_size(), along.device):
        out[:, part] = torch.fft.hfft(along[:, part], rows, dim=0)
    return out


def _blocks(count: int, size: int, device: torch.device) -> Iterator[slice]:
    """Of ``count`` pieces of ``size`` bytes."""
    step = max(1, (BLOCK if device.type == "cpu" else BLOCK_GPU) // max(size, 1))
    return (slice(k, min(k + step, count)) for k in range(0, count, step))
