"""OBS.h5 in slices: visibilities that do not fit memory."""

import os
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from pnp_lofi.observation import Observation, check_layout
from pnp_lofi.operators import uv_radians, w_phase
from pnp_lofi.radio import warn_of_w

ROWS = 2**18  # read at a time


def measurement_chunks(
    observation: str | os.PathLike[str],
    shape: tuple[int, int],
    *,
    cell: float | None = None,
    rows: int = ROWS,
    part: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What :func:`pnp_lofi.radio.measurement` images, a slice at a time, for :class:`NormalEquations`.

    Flagged rows and those of weight zero are left out. Weights that are not absolute are scaled to a mean of one over
    the whole file, which takes a first pass over them.

    :param observation: OBS.h5.
    :param tuple shape: (H, W) of the image.
    :param float cell: pixel size [arcsec]; default the observation's.
    :param int rows: read at a time.
    :param tuple part: (k, n), the k-th of n parts of the rows, from 0: one for each of n processes.
    :returns: iterator of uv (2, m) [rad/pixel], vis (m,) complex128 not whitened, weights (m,) float64.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is not of the layout, holds what cannot be imaged, or part or rows cannot be.
    """
    path = Path(observation)
    k, n = part
    if rows < 1 or not 0 <= k < n:
        raise ValueError(f"expected rows >= 1 and part (k, n) with 0 <= k < n, got {rows} and {part}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path} is not an HDF5 file; docs/obs_h5.md tells the layout")
    return _chunks(path, shape, cell, rows, part)


def _chunks(
    path: Path, shape: tuple[int, int], cell: float | None, rows: int, part: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    pixels, worst = shape[0] * shape[1], (0.0, 0.0)
    with h5py.File(path) as f:
        check_layout(f, path)
        _check_rows(f, path)
        (total,), (k, n) = f["vis"].shape, part
        scale = pixels if bool(f.attrs.get("absolute_weights", False)) else 1 / _mean_weight(f, rows)
        for start in range(k * total // n, (k + 1) * total // n, rows):
            obs = _slice(f, start, min(start + rows, (k + 1) * total // n), cell)
            if obs is None:
                continue
            uvw, frequency = torch.as_tensor(obs.uvw), torch.as_tensor(obs.frequency)
            if uvw.shape[1] == 3:
                worst = max(worst, w_phase(uvw, float(frequency.max()), obs.cell, shape))
            vis = torch.as_tensor(obs.vis.astype(np.complex128)) / pixels**0.5
            weight = torch.as_tensor(obs.weight, dtype=torch.float64) * scale
            yield uv_radians(uvw, frequency, obs.cell), vis, weight
    warn_of_w(*worst)


def _slice(f: h5py.File, start: int, stop: int, cell: float | None) -> Observation | None:
    """The rows that are neither flagged nor of weight zero, checked; None if there are none."""
    rows = slice(start, stop)
    weight = f["weight"][rows] if "weight" in f else np.ones(stop - start, np.float32)
    flag = f["flag"][rows].astype(bool) if "flag" in f else np.zeros(stop - start, bool)
    keep = ~flag & (weight != 0)
    if not keep.any():
        return None
    frequency = f["frequency"][rows][keep] if f["frequency"].ndim else f["frequency"][()]
    uvw, vis = f["uvw" if "uvw" in f else "uv"][rows], f["vis"][rows]
    size = float(f.attrs["cell_arcsec"]) if cell is None else cell
    return Observation(uvw[keep], frequency, vis[keep], weight[keep], flag[keep], size)


def _mean_weight(f: h5py.File, rows: int) -> float:
    """Over the rows that are used."""
    total, count = 0.0, 0
    for start in range(0, len(f["vis"]), rows):
        weight = _used_weights(f, start, start + rows)
        total, count = total + float(weight.sum(dtype=np.float64)), count + len(weight)
    return total / count if total > 0 else 1.0


def _used_weights(f: h5py.File, start: int, stop: int) -> np.ndarray:
    weight = f["weight"][start:stop] if "weight" in f else np.ones(len(f["vis"][start:stop]), np.float32)
    good = weight != 0
    return weight[good & ~f["flag"][start:stop].astype(bool)] if "flag" in f else weight[good]


def _check_rows(f: h5py.File, path: Path) -> None:
    names = [name for name in ("uvw" if "uvw" in f else "uv", "frequency", "vis", "weight", "flag") if name in f]
    lengths = {name: f[name].shape[0] for name in names if f[name].ndim}
    if f["vis"].ndim != 1 or len(set(lengths.values())) > 1:
        raise ValueError(f"{path}: the data sets must be of one length and vis (M,), got {lengths}; see docs/obs_h5.md")
