"""HDF5 files read piece by piece, from any number of data-loading processes."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor

MOST_OPEN = 32  # files a reader keeps open
BROKEN = (OSError, RuntimeError, KeyError, MemoryError)  # what h5py raises inside of a damaged file


def open_hdf5(path: str | os.PathLike[str]) -> h5py.File:
    """:raises FileNotFoundError: if there is none. ValueError: if it is broken or no HDF5."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no HDF5 file {str(path)!r}")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        short = "truncated" in str(error) or "eof" in str(error)
        why = "it is cut short; copy or download it again" if short else "broken, or not HDF5"
        raise ValueError(f"{path}: {why} ({error})") from error


class Reader:
    """Arrays of HDF5 files, read where asked; each process opens the files for itself.

    h5py's handles do not survive a fork or a pickle: they are kept with the number of the process that opened them.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[str, h5py.File] = OrderedDict()
        self._owner = os.getpid()

    def array(self, path: str | os.PathLike[str], key: str) -> h5py.Dataset:
        """The data set ``key`` of a file.

        :raises ValueError: if there is none, or it does not hold real numbers.
        """
        if self._owner != os.getpid():
            self._open, self._owner = OrderedDict(), os.getpid()
        name = str(path)
        if name not in self._open:
            self._open[name] = open_hdf5(path)
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(name)
        file = self._open[name]
        try:
            found, there = file.get(key), sorted(file)[:8]
        except BROKEN as error:
            raise ValueError(f"{path}: damaged; copy or download it again ({error})") from error
        if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "biuf":
            raise ValueError(f"{path}: expected numbers under {key!r}, got {there}")
        return found

    def shape(self, path: str | os.PathLike[str], key: str) -> tuple[int, ...]:
        """Of a data set, without keeping the file open."""
        shape = tuple(self.array(path, key).shape)
        self._open.pop(str(path)).close()
        return shape

    def slice(self, path: str | os.PathLike[str], key: str, where: Any) -> Tensor:
        """A part of a data set, float32.

        :raises ValueError: if the file breaks off there, or there is NaN or infinity in it.
        """
        try:
            x = torch.as_tensor(self.array(path, key)[where], dtype=torch.float32)
        except BROKEN as error:
            raise ValueError(f"{path}: {key!r} cannot be read at {where} ({error})") from error
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{path}: {key!r} holds NaN or infinity at {where}")
        return x

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Reader.__init__(self)


def write_hdf5(path: str | os.PathLike[str], arrays: dict[str, Any], about: Sequence[tuple[str, Any]] = ()) -> None:
    """Write arrays under their keys, and attributes.

    :raises OSError: if that fails.
    """
    try:
        with h5py.File(path, "w") as file:
            for key, value in arrays.items():
                file.create_dataset(key, data=value)
            file.attrs.update(dict(about))
    except RuntimeError as error:  # of h5py, when the disk is full
        raise OSError(f"{path} cannot be written; is the disk full? ({error})") from error
