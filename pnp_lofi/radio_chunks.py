"""Visibilities in slices, for what does not fit memory."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.operators import uv_radians, w_phase
from pnp_lofi.radio import warn_of_w
from pnp_lofi.visibilities import ROWS, Visibilities, check_part, open_visibilities


def measurement_chunks(
    observation: str | os.PathLike[str] | Visibilities,
    shape: tuple[int, int],
    *,
    cell: float | None = None,
    rows: int = ROWS,
    part: tuple[int, int] = (0, 1),
    **selection: Any,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What :func:`pnp_lofi.radio.measurement` images, a slice at a time, for :class:`NormalEquations`.

    Flagged rows and those of weight zero are left out. Weights that are not absolute are scaled to a mean of one over
    the whole file, which takes a first pass over them.

    :param observation: OBS.h5, MeasurementSet, UVFITS, .mat, npz, npy, or visibilities that were opened.
    :param tuple shape: (H, W) of the image.
    :param float cell: pixel size [arcsec]; default the observation's.
    :param int rows: visibilities read at a time.
    :param tuple part: (k, n), the k-th of n parts of the rows, from 0: one for each of n processes.
    :param selection: as for :func:`open_visibilities`.
    :returns: iterator of uv (2, m) [rad/pixel], vis (m,) complex128 not whitened, weights (m,) float64.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is not of the layout, holds what cannot be imaged, or part or rows cannot be.
    """
    check_part(rows, part)
    if isinstance(observation, Visibilities):
        if selection:
            raise TypeError(f"{', '.join(selection)}: the visibilities are open already; choose in open_visibilities")
        return _chunks(observation, shape, cell, rows, part)
    return _chunks(open_visibilities(observation, **selection), shape, cell, rows, part)


def _chunks(
    source: Visibilities, shape: tuple[int, int], cell: float | None, rows: int, part: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    pixels, worst = shape[0] * shape[1], (0.0, 0.0)
    scale = pixels if source.absolute_weights else 1 / source.mean_weight
    for obs in source.chunks(rows, part, cell=cell):
        uvw, frequency = torch.as_tensor(obs.uvw), torch.as_tensor(obs.frequency)
        if uvw.shape[1] == 3:
            worst = max(worst, w_phase(uvw, float(frequency.max()), obs.cell, shape))
        vis = torch.as_tensor(obs.vis.astype(np.complex128)) / pixels**0.5
        yield uv_radians(uvw, frequency, obs.cell), vis, torch.as_tensor(obs.weight, dtype=torch.float64) * scale
    warn_of_w(*worst)
