"""Visibilities of any file that radio astronomers keep, read in slices (docs/visibilities.md)."""

import functools
import inspect
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from pnp_lofi.files import written_whole
from pnp_lofi.observation import UNITS, Observation, write_header
from pnp_lofi.operators.uv import ARCSEC, SIDEREAL_DAY, C

ROWS = 2**18  # visibilities read at a time
NAMES = ("uvw", "frequency", "vis", "weight", "flag")
HANDS = (("XX", "YY"), ("RR", "LL"))
# what casacore, h5py, astropy and zip files raise for broken files
BROKEN = (RuntimeError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
Centre = tuple[float, float]


@dataclass
class Block:
    """R rows of F channels as a file has them, Stokes I, V = sum I exp(-2 pi i (u l + v m)).

    :param numpy.ndarray uvw: (R, 3) or (R, 2) [m].
    :param numpy.ndarray frequency: (F,) or (R, 1) [Hz].
    :param numpy.ndarray vis, weight, flag: (R, F) [Jy, 1/Jy^2].
    :param numpy.ndarray time: (R,) [s]; numpy.ndarray baseline: (R,) one integer a pair of antennas. For averaging.
    """

    uvw: np.ndarray
    frequency: np.ndarray
    vis: np.ndarray
    weight: np.ndarray
    flag: np.ndarray
    time: np.ndarray | None = None
    baseline: np.ndarray | None = None


class Visibilities(ABC):
    """Visibilities on disk.

    :param pathlib.Path path: where they are.
    :param tuple phase_centre: RA, Dec [deg].
    :param str telescope, description: free text.
    :param bool absolute_weights: whether weights are 1/sigma^2, or hold only up to a common factor.
    :param float time_average: [s], 0 for none; int channel_average: neighbouring channels taken together.
    :param numpy.ndarray truth: (H, W) [Jy/pixel], of a simulation.
    :param int rows: visibilities, before flags and averaging.
    :param numpy.ndarray frequencies: all of them, sorted [Hz].
    """

    rows: int = 0
    truth: np.ndarray | None = None
    telescope = ""
    suggested: float | None = None  # cell of the file [arcsec]
    width = 0.0  # of a channel [Hz]

    def __init__(
        self,
        path: Path,
        phase_centre: Centre,
        *,
        absolute_weights: bool = False,
        time_average: float = 0.0,
        channel_average: int = 1,
    ) -> None:
        if not 0 <= time_average < np.inf or channel_average < 1:
            raise ValueError(
                f"expected time_average >= 0 s and channel_average >= 1, got {time_average} and {channel_average}"
            )
        self.path, self.phase_centre, self.absolute_weights = path, phase_centre, absolute_weights
        self.time_average, self.channel_average = time_average, channel_average
        self.description = path.name

    @property
    @abstractmethod
    def frequencies(self) -> np.ndarray: ...

    @abstractmethod
    def _blocks(self, rows: int, part: tuple[int, int], data: bool) -> Iterator[Block]:
        """About ``rows`` visibilities at a time; without data vis may be anything finite."""

    def chunks(
        self, rows: int = ROWS, part: tuple[int, int] = (0, 1), *, cell: float | None = None, data: bool = True
    ) -> Iterator[Observation]:
        """What is neither flagged nor of weight zero, a slice at a time.

        Averaging stays within a slice: the bins at its ends may be parted.

        :param int rows: visibilities read at a time.
        :param tuple part: (k, n), the k-th of n parts, from 0.
        :param float cell: pixel size [arcsec] of the pieces; default :attr:`cell`.
        :param bool data: False: vis is not read, and may be anything finite.
        :raises ValueError: for what cannot be imaged.
        """
        check_part(rows, part)
        return self._pieces(rows, part, self.cell if cell is None else cell, data)

    def _pieces(self, rows: int, part: tuple[int, int], cell: float, data: bool = True) -> Iterator[Observation]:
        what = f"reading {self.path.name}" if data else f"weights of {self.path.name}"
        bar = {"total": self.rows // part[1] or None, "unit": "vis", "unit_scale": True, "leave": False, "delay": 2}
        try:
            with tqdm(desc=what, disable=None, **bar) as done:
                for block in self._blocks(rows, part, data):
                    columns = _flat(block, self.time_average, self.channel_average)
                    if len(columns["vis"]):
                        yield self._observation(columns, cell)
                    done.update(block.flag.size)
        except BROKEN as error:
            raise ValueError(f"{self.path} cannot be read; is it whole? {error}") from error
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error

    def _observation(self, columns: dict[str, np.ndarray], cell: float, truth: np.ndarray | None = None) -> Observation:
        return Observation(
            **columns, flag=np.zeros(len(columns["vis"]), bool), cell=cell, phase_centre=self.phase_centre,
            telescope=self.telescope, description=self.description, truth=truth,
            absolute_weights=self.absolute_weights,
        )  # fmt: skip

    @functools.cached_property
    def _survey(self) -> tuple[float, float, int]:
        """Longest baseline [wavelengths], mean weight and number of what is used: one pass without the data."""
        longest, total, count = 0.0, 0.0, 0
        for obs in self._pieces(ROWS, (0, 1), 1.0, data=False):
            longest = max(longest, float((np.hypot(*obs.uvw[:, :2].T) * obs.frequency).max()) / C)
            total, count = total + float(obs.weight.sum(dtype=np.float64)), count + len(obs.vis)
        if count == 0:
            raise ValueError(f"{self.path}: every visibility is flagged or of weight zero; nothing is left to image")
        return longest, total / count, count

    @property
    def longest(self) -> float:
        """Longest projected baseline that is used [wavelengths]."""
        return self._survey[0]

    @property
    def mean_weight(self) -> float:
        """Of what is used [1/Jy^2]."""
        return self._survey[1]

    @property
    def cell(self) -> float:
        """Pixel size [arcsec]: the file's, else the one that puts the longest baseline on the Nyquist frequency."""
        if self.suggested is not None:
            return self.suggested
        if not self.longest > 0:
            raise ValueError(f"{self.path}: every baseline has length zero; there is nothing to derive a cell from")
        return 1 / (2 * self.longest) / ARCSEC

    def smearing(self, field: float) -> tuple[float, float]:
        """Largest phase [rad] between a bin's end and its middle, at half the field of view from its centre.

        Time: pi B theta omega dt; channels: pi B theta df / f, with theta half the field, B the longest baseline.

        :param float field: of view [arcsec].
        :returns: by averaging in time, by averaging of channels; 0 where nothing is averaged.
        """
        reach = np.pi * self.longest * field / 2 * ARCSEC
        band = self.width * self.channel_average if self.channel_average > 1 else 0.0
        return (
            float(reach * 2 * np.pi / SIDEREAL_DAY * self.time_average),
            float(reach * band / self.frequencies.max()),
        )

    def observation(self, cell: float | None = None) -> Observation:
        """All that is used, in memory.

        :param float cell: pixel size [arcsec]; default :attr:`cell`.
        """
        cell = self.cell if cell is None else cell
        pieces = list(self.chunks(cell=cell))
        if not pieces:
            raise ValueError(f"{self.path}: every visibility is flagged or of weight zero; nothing is left to image")
        columns = {name: np.concatenate([getattr(p, name) for p in pieces]) for name in NAMES if name != "flag"}
        if (columns["frequency"] == columns["frequency"][0]).all():
            columns["frequency"] = columns["frequency"][0]
        return self._observation(columns, cell, self.truth)


def check_part(rows: int, part: tuple[int, int]) -> None:
    """:raises ValueError: unless rows >= 1 and 0 <= k < n."""
    if rows < 1 or not 0 <= part[0] < part[1]:
        raise ValueError(f"expected rows >= 1 and part (k, n) with 0 <= k < n, got {rows} and {part}")


def slices(total: int, step: int, part: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """(start, stop) of steps through the k-th of n parts."""
    first, last = (total * k // part[1] for k in (part[0], part[0] + 1))
    for start in range(first, last, max(1, step)):
        yield start, min(start + max(1, step), last)


def _flat(block: Block, seconds: float, channels: int) -> dict[str, np.ndarray]:
    """What is used of a block as the columns of an observation, averaged."""
    row, channel = np.nonzero(~block.flag & (block.weight != 0))
    columns = {
        "uvw": block.uvw[row], "frequency": np.broadcast_to(block.frequency, block.vis.shape)[row, channel],
        "vis": block.vis[row, channel], "weight": block.weight[row, channel],
    }  # fmt: skip
    if (seconds == 0 and channels == 1) or not len(row):
        return columns
    group = np.arange(len(block.uvw))
    if seconds:
        if block.time is None or block.baseline is None:
            raise ValueError("averaging in time needs the times and antennas of a MeasurementSet or UVFITS file")
        bins = np.stack([block.baseline, np.floor(block.time / seconds).astype(np.int64)], axis=1)
        group = np.unique(bins, axis=0, return_inverse=True)[1].ravel()
    group = np.unique(group[row] * -(-block.vis.shape[1] // channels) + channel // channels, return_inverse=True)[1]
    weight = columns.pop("weight").astype(np.float64)
    total = np.bincount(group, weight)

    def mean(x: np.ndarray) -> np.ndarray:
        return np.bincount(group, weight * x) / total

    vis = columns["vis"]
    return {
        "uvw": np.stack([mean(x) for x in columns["uvw"].T], axis=1), "frequency": mean(columns["frequency"]),
        "vis": mean(vis.real) + 1j * mean(vis.imag), "weight": total,
    }  # fmt: skip


def hands(names: list[str], stokes: str = "I") -> list[int]:
    """Places of the correlations that make Stokes I = (XX + YY)/2 = (RR + LL)/2; or of the one asked for.

    :raises ValueError: if they are not all there.
    """
    if stokes in names:
        return [names.index(stokes)]
    for pair in HANDS if stokes == "I" else ():
        if set(pair) <= set(names):
            return sorted(names.index(name) for name in pair)
    raise ValueError(
        f"expected correlation {stokes}{' (or XX and YY, or RR and LL)' if stokes == 'I' else ''}, the file holds "
        f"{names}; of an unpolarised source one hand is enough: stokes='XX'"
    )


def stokes_i(vis: np.ndarray, weight: np.ndarray, flag: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of the hands on the last axis; sigma^2 = sum sigma_h^2 / n^2; one flagged hand flags."""
    n = vis.shape[-1]
    flag = flag | (weight <= 0)
    bad = np.asarray(flag.any(-1))
    inverse = np.divide(1.0, weight, out=np.zeros(weight.shape), where=~flag).sum(-1)
    combined = np.divide(float(n**2), inverse, out=np.zeros(inverse.shape), where=~bad)
    return vis.mean(-1), combined, bad


def open_visibilities(path: str | os.PathLike[str], **selection: Any) -> Visibilities:
    """Open a MeasurementSet, a UVFITS or OBS.h5 file, BASP's .mat, an npz or npy file; told by what is in it.

    :param selection: keyword arguments of :class:`MeasurementSet`, :class:`UVFITS`, :func:`basp` or, for the others,
        :class:`Columns`.
    :raises FileNotFoundError: if there is nothing, or a folder that is no MeasurementSet.
    :raises ValueError: for another format, a broken file, a selection that does not fit.
    :raises TypeError: for a keyword that the format does not have.
    """
    path = Path(path)
    opener = _opener(path)
    known = [p.name for p in inspect.signature(opener).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if "field" in selection and "source" in known:  # what MeasurementSets call a field UVFITS calls a source
        selection["source"] = selection.pop("field")
    unknown = [name for name in selection if name not in known]
    if unknown:
        raise TypeError(f"{path}: {', '.join(unknown)} cannot be chosen for this format; there is {', '.join(known)}")
    try:
        return opener(path, **selection)
    except (FileNotFoundError, PermissionError):
        raise
    except BROKEN as error:
        raise ValueError(f"{path} cannot be read; is it whole? {error}") from error


def _opener(path: Path) -> Callable[..., Visibilities]:
    from pnp_lofi.visibility_columns import hdf5, npy, npz

    if path.is_dir():
        if not (path / "table.dat").is_file():
            raise FileNotFoundError(f"{path} is a folder without table.dat, so no MeasurementSet")
        from pnp_lofi.measurement_set import MeasurementSet

        return MeasurementSet
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    with path.open("rb") as f:
        start = f.read(16)
    if start.startswith(b"MATLAB"):
        from pnp_lofi.basp import basp

        return basp
    if start.startswith(b"SIMPLE  ="):
        from pnp_lofi.uvfits import UVFITS

        return UVFITS
    if start.startswith(b"PK\x03\x04"):
        return npz
    if start.startswith(b"\x93NUMPY"):
        return npy
    if h5py.is_hdf5(path):
        return hdf5
    raise ValueError(
        f"{path} is not an HDF5 file, nor UVFITS, .mat, npz, npy or a MeasurementSet; docs/visibilities.md tells what "
        "is read"
    )


def convert(
    path: str | os.PathLike[str] | Visibilities,
    out: str | os.PathLike[str],
    *,
    cell: float | None = None,
    rows: int = ROWS,
    overwrite: bool = False,
    **selection: Any,
) -> int:
    """Write what is used as OBS.h5 (docs/obs_h5.md), a slice at a time, whole or not at all.

    :param float cell: pixel size to suggest [arcsec]; default that of the visibilities.
    :param selection: as for :func:`open_visibilities`.
    :returns: the number of visibilities written.
    :raises FileExistsError: if out exists and overwrite is not asked for.
    """
    source = path if isinstance(path, Visibilities) else open_visibilities(path, **selection)
    with written_whole(out, overwrite=overwrite) as part, h5py.File(part, "w") as f:
        one = len(source.frequencies) == 1
        for obs in source.chunks(rows, cell=cell):
            if "vis" not in f:
                write_header(f, obs)
            for name in NAMES:
                value = np.asarray(getattr(obs, name))
                value = value.astype(np.complex64) if name == "vis" else value
                if name == "frequency" and one:
                    value = value[:1].reshape(())
                if name not in f:
                    f.create_dataset(name, data=value, maxshape=(None, *value.shape[1:]) if value.ndim else None)
                    f[name].attrs["unit"] = UNITS[name]
                elif value.ndim:
                    f[name].resize(len(f[name]) + len(value), axis=0)
                    f[name][-len(value) :] = value
        if "vis" not in f:
            raise ValueError(f"{source.path}: every visibility is flagged or of weight zero; nothing is left to image")
        if source.truth is not None and (cell is None or cell == source.suggested):
            f["truth"] = source.truth
            f["truth"].attrs["unit"] = UNITS["truth"]
        return len(f["vis"])
