"""One visibility a row under the names of OBS.h5, in slices: HDF5, npz and npy."""

import functools
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from pnp_lofi.observation import check_layout, read_truth, text
from pnp_lofi.visibilities import NAMES, ROWS, Block, Centre, Visibilities, slices


class Columns(Visibilities):
    """One visibility a row, under the names of OBS.h5: HDF5, npz, npy, and what was read from BASP's .mat.

    :param opened: gives a mapping from names to sliceable columns, for a while.
    :param attributes: cell_arcsec, phase_centre_deg, telescope, description, absolute_weights; all optional.
    :param tuple phase_centre: RA, Dec [deg]; bool absolute_weights: both overrule the file's.
    :raises ValueError: for names that are missing and lengths that differ.
    """

    def __init__(
        self,
        path: Path,
        opened: Callable[[], AbstractContextManager[Any]],
        attributes: dict[str, Any],
        *,
        phase_centre: Centre | None = None,
        absolute_weights: bool | None = None,
    ) -> None:
        given = attributes.get("phase_centre_deg", (0.0, 0.0)) if phase_centre is None else phase_centre
        centre = np.ravel(given)
        if len(centre) != 2:
            raise ValueError(f"{path}: phase_centre_deg must be RA and Dec [deg], got {centre}")
        absolute = attributes.get("absolute_weights", False) if absolute_weights is None else absolute_weights
        super().__init__(path, (float(centre[0]), float(centre[1])), absolute_weights=bool(absolute))
        self._opened = opened
        self.telescope = text(attributes.get("telescope", ""))
        self.description = text(attributes.get("description", ""))
        cell = attributes.get("cell_arcsec")
        self.suggested = None if cell is None else float(cell)
        with opened() as columns:
            baselines = "uvw" if "uvw" in columns else "uv"
            missing = [name for name in (baselines, "frequency", "vis") if name not in columns]
            if missing:
                raise ValueError(f"{path} lacks {', '.join(missing)}; docs/visibilities.md tells the names")
            self._present = [name for name in (baselines, *NAMES[1:]) if name in columns]
            shapes = {name: columns[name].shape for name in self._present}
        lengths = {name: shape[0] for name, shape in shapes.items() if shape}
        if len(shapes["vis"]) != 1 or len(set(lengths.values())) > 1:
            raise ValueError(f"{path}: the columns must be of one length and vis (M,), got {shapes}")
        self.rows, self._scalar = shapes["vis"][0], not shapes["frequency"]

    @functools.cached_property
    def frequencies(self) -> np.ndarray:
        with self._opened() as columns:
            if self._scalar:
                return np.atleast_1d(columns["frequency"][()])
            found = [np.unique(columns["frequency"][a:b]) for a, b in slices(self.rows, ROWS, (0, 1))]
        return np.unique(np.concatenate(found))

    def _blocks(self, rows: int, part: tuple[int, int], data: bool) -> Iterator[Block]:
        with self._opened() as columns:
            for start, stop in slices(self.rows, rows, part):
                got = {
                    name: columns[name][start:stop]
                    for name in self._present
                    if not (name == "frequency" and self._scalar) and (data or name != "vis")
                }
                n = stop - start
                frequency = np.asarray(columns["frequency"][()] if self._scalar else got["frequency"], np.float64)
                vis, weight = got.get("vis", np.zeros(n, np.complex64)), got.get("weight", np.ones(n, np.float32))
                flag = np.asarray(got.get("flag", np.zeros(n, bool)), bool)
                yield Block(
                    got[self._present[0]], frequency.reshape(-1, 1), vis[:, None], weight[:, None], flag[:, None]
                )


def hdf5(path: Path, *, phase_centre: Centre | None = None, absolute_weights: bool | None = None) -> Columns:
    """OBS.h5 (docs/obs_h5.md)."""
    with h5py.File(path) as f:
        check_layout(f, path)
        attributes, truth = dict(f.attrs), read_truth(f)
    source = Columns(
        path, lambda: h5py.File(path), attributes, phase_centre=phase_centre, absolute_weights=absolute_weights
    )
    source.truth = truth
    return source


def npy(path: Path, *, phase_centre: Centre | None = None, absolute_weights: bool | None = None) -> Columns:
    """A structured array (M,) with fields uvw (3,) or uv (2,), frequency, vis, and weight, flag if there are."""
    try:
        array = np.load(path, mmap_mode="r")
    except ValueError as error:
        raise ValueError(
            f"{path} is not an HDF5 file, and no plain array: npy pickles are refused ({error})"
        ) from error
    if array.dtype.names is None:
        raise ValueError(
            f"{path}: expected a structured array with fields uvw, frequency, vis, weight, flag, got {array.dtype} "
            f"{array.shape}; np.savez(file, uvw=..., frequency=..., vis=...) is simpler"
        )
    columns = {name: array[name] for name in array.dtype.names}
    return Columns(path, lambda: nullcontext(columns), {}, phase_centre=phase_centre, absolute_weights=absolute_weights)


def npz(path: Path, *, phase_centre: Centre | None = None, absolute_weights: bool | None = None) -> Columns:
    """Arrays under the names of OBS.h5's data sets and attributes; compressed ones are read in slices too."""
    names = ("cell_arcsec", "phase_centre_deg", "telescope", "description", "absolute_weights")
    with Npz(path) as f:
        attributes = {name: f[name][()] for name in names if name in f}
    return Columns(path, lambda: Npz(path), attributes, phase_centre=phase_centre, absolute_weights=absolute_weights)


class Npz(zipfile.ZipFile):
    """The arrays of an npz file as columns that are read in slices."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._columns: dict[str, NpzColumn] = {}

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self.namelist()

    def __getitem__(self, name: str) -> "NpzColumn":
        if name not in self._columns:
            self._columns[name] = NpzColumn(self.open(f"{name}.npy"), f"{self.filename}: {name}")
        return self._columns[name]


class NpzColumn:
    """One array of an npz file."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, fortran, self.dtype = header(file)
        if self.dtype.hasobject:
            raise ValueError(f"{name} holds Python objects; npy pickles are refused, save plain arrays")
        if fortran and len(self.shape) > 1:
            raise ValueError(f"{name} is stored column by column; save np.ascontiguousarray of it")
        self._file, self._start = file, file.tell()

    def __getitem__(self, key: Any) -> np.ndarray:
        first, last = (key.start, min(key.stop, self.shape[0])) if isinstance(key, slice) else (0, 1)
        shape = (last - first, *self.shape[1:]) if isinstance(key, slice) else self.shape
        each = self.dtype.itemsize * int(np.prod(self.shape[1:] if isinstance(key, slice) else self.shape))
        self._file.seek(self._start + first * each)
        return np.frombuffer(self._file.read((last - first) * each), self.dtype).reshape(shape)
