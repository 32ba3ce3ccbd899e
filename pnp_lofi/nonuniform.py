"""The libraries that compute non-uniform FFTs, each imported where it is used.

Kind 1 takes values (T, M) at points to modes (T, H, W) with e^{+i}, kind 2 takes modes to values with e^{-i}; the mode
N//2 has frequency zero, nothing is scaled.
"""

import functools
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, int]


def transform(kind: int, data: Tensor, uv: Tensor, shape: Shape, eps: float) -> Tensor:
    """By finufft on the CPU, by cufinufft on CUDA, both in double precision; the dtype is that of the data."""
    backend = by_cufinufft if data.is_cuda else by_finufft
    return backend(kind, data.to(torch.complex128).contiguous(), uv, shape, eps).to(data.dtype)


def rows_from(first: int, values: Tensor, uv: Tensor, shape: Shape, eps: float) -> Tensor:
    """Kind 1 onto the rows first, first + 1, ... instead of those about zero.

    :param torch.Tensor values: (T, m) complex128. :returns: (T, *shape).
    """
    phase = uv[0] * (first + shape[0] // 2)  # a grid has its zero at n//2
    return transform(1, values * torch.polar(torch.ones_like(phase), phase), uv, shape, eps)


def by_finufft(kind: int, data: Tensor, uv: Tensor, shape: Shape, eps: float) -> Tensor:
    import finufft

    upsampling = 1.25 if eps >= 1e-9 else 2.0  # the smaller grid is up to 5 times faster and good to 1e-9
    plan = finufft.Plan(
        kind, shape, len(data), eps, 1 if kind == 1 else -1, "complex128",
        nthreads=torch.get_num_threads(), upsampfac=upsampling,
    )  # fmt: skip
    plan.setpts(uv[0].contiguous().numpy(), uv[1].contiguous().numpy())
    result = torch.from_numpy(plan.execute(data.numpy()))
    return result.reshape(len(data), *(shape if kind == 1 else (-1,)))


def by_cufinufft(kind: int, data: Tensor, uv: Tensor, shape: Shape, eps: float) -> Tensor:
    try:
        import cufinufft
    except ImportError as error:
        raise ImportError("NUFFT on CUDA needs cufinufft: pip install cufinufft, or move to the CPU") from error
    plan = cufinufft.Plan(kind, shape, len(data), eps, 1 if kind == 1 else -1, "complex128")
    plan.setpts(uv[0].contiguous(), uv[1].contiguous())
    out = data.new_empty((len(data), *(shape if kind == 1 else (uv.shape[1],))))
    plan.execute(data, out=out)
    return out


@functools.lru_cache(maxsize=8)
def _kb_module(kind: int, shape: Shape, dtype: torch.dtype, device: torch.device) -> Any:
    import torchkbnufft

    module = torchkbnufft.KbNufftAdjoint if kind == 1 else torchkbnufft.KbNufft
    return module(shape, grid_size=tuple(2 * n for n in shape), numpoints=6, dtype=dtype, device=device)


def by_torchkbnufft(kind: int, data: Tensor, uv: Tensor, shape: Shape) -> Tensor:
    module = _kb_module(kind, shape, data.dtype, data.device)
    return module(data[None], uv.to(data.real.dtype))[0]


def fft_size(n: int) -> int:
    """The next even number with no prime factor above 5."""
    n += n % 2
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 2
