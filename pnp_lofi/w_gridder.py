"""The w-term, by ducc0's w-gridder (GPL, an optional extra): V = sum I exp(-2 pi i (u l + v m + w (n - 1))).

Rows grow to the North, columns to the West, as everywhere; V is in the units of ``NUFFT``'s A0, times (HW)^-1/2.
Source: Arras et al. 2021, A&A 646, A58.
"""

import math
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.operators.uv import ARCSEC, C

EPS = 1e-7  # relative accuracy
SMALLEST = 32  # pixels a side


def forward(x: Tensor, uvw: Tensor, cell: float) -> Tensor:
    """(HW)^-1/2 sum x exp(-2 pi i (u l + v m + w (n - 1))), (m,) complex128.

    :param torch.Tensor x: (H, W) [Jy/pixel]; torch.Tensor uvw: (m, 3) [wavelengths]; float cell: [arcsec].
    """
    dirty = np.ascontiguousarray(x.double().numpy())
    found = ducc().dirty2vis(dirty=dirty, **_geometry(uvw, cell))
    return torch.from_numpy(found)[:, 0] / math.sqrt(dirty.size)


def adjoint(vis: Tensor, weight: Tensor, uvw: Tensor, shape: tuple[int, int], cell: float) -> Tensor:
    """(HW)^-1/2 Re sum w vis exp(+2 pi i (u l + v m + w (n - 1))), (H, W) float64.

    :param torch.Tensor vis: (m,) complex128; torch.Tensor weight: (m,) float64; others as :func:`forward`.
    """
    found = ducc().vis2dirty(
        vis=np.ascontiguousarray(vis.resolve_conj().numpy())[:, None], wgt=weight.numpy()[:, None],
        npix_x=shape[0], npix_y=shape[1], **_geometry(uvw, cell),
    )  # fmt: skip
    return torch.from_numpy(found) / math.sqrt(math.prod(shape))


def check(shape: tuple[int, int]) -> None:
    """:raises ImportError: without ducc0; ValueError: for sizes that it does not take."""
    ducc()
    if min(shape) < SMALLEST or any(n % 2 for n in shape):
        raise ValueError(f"the w-gridder needs even sizes of at least {SMALLEST} pixels, got {shape}")


def ducc() -> ModuleType:
    """:raises ImportError: that says what to install."""
    try:
        import ducc0
    except ImportError as error:
        raise ImportError("the w-term needs ducc0's w-gridder: pip install 'pnp_lofi[wide]'") from error
    return ducc0.wgridder


def _geometry(uvw: Tensor, cell: float) -> dict[str, object]:
    u, v, w = uvw.T
    return {
        "uvw": np.ascontiguousarray(torch.stack([v, -u, w], dim=1).numpy()), "freq": np.array([C]),
        "pixsize_x": cell * ARCSEC, "pixsize_y": cell * ARCSEC, "epsilon": EPS, "do_wgridding": True,
        "divide_by_n": False, "flip_w": True, "nthreads": torch.get_num_threads(),
    }  # fmt: skip
