"""An observation in memory as an operator and its data."""

import warnings

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.observation import Observation
from pnp_lofi.operators import NUFFT, uv_radians, w_phase

W_WARNING = 0.5  # neglected w phase at the image's edge [rad] from which on we say so


def measurement(obs: Observation, shape: tuple[int, int], *, cell: float | None = None) -> tuple[NUFFT, Tensor]:
    """The operator from x [Jy/pixel] to whitened visibilities, and those visibilities.

    Weights are scaled to a mean of one unless they are absolute, then the noise is 1 per component.

    :returns: the operator and y, (1, 1, M) complex64.
    """
    good = obs.good()
    weight = torch.as_tensor(good.weight, dtype=torch.float64)
    uv = uv_radians(torch.as_tensor(good.uvw), torch.as_tensor(good.frequency), obs.cell if cell is None else cell)
    pixels = shape[0] * shape[1]
    weight = weight * pixels if obs.absolute_weights else weight / weight.mean()
    op = NUFFT(shape, uv, weight, sigma=1.0 if obs.absolute_weights else None)
    _warn_of_w(good, shape, obs.cell if cell is None else cell)
    vis = torch.as_tensor(good.vis.astype(np.complex64))[None, None] / pixels**0.5
    return op, op.whiten(vis)


def _warn_of_w(obs: Observation, shape: tuple[int, int], cell: float) -> None:
    if obs.uvw.shape[1] < 3:
        return
    warn_of_w(*w_phase(torch.as_tensor(obs.uvw), float(np.max(obs.frequency)), cell, shape), stacklevel=4)


def warn_of_w(edge: float, corner: float, *, stacklevel: int = 2) -> None:
    """Warn if the neglected w phase is large at the image's edge [rad]; it is told for the corner as well."""
    if edge > W_WARNING:
        warnings.warn(
            f"the w-term is neglected: its phase reaches {edge:.2f} rad at the image's edge ({corner:.2f} at the "
            "corner); sources out there are smeared. A smaller field (shape, on the command line --size) loses less; "
            "`pnp-lofi solve radio --wide-field` sees the w-term.",
            stacklevel=stacklevel,
        )
