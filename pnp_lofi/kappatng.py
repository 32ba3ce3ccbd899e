"""kappaTNG: convergence maps ray-traced through IllustrisTNG, 1024 x 1024 pixels on 5 degrees, at 40 source redshifts.

The maps are at columbialensing.org (code MIT; cite Osato, Liu and Haiman 2021, MNRAS 502, 5593). Two layouts: since
2024 ``LP001_run001_maps.hdf5`` with the convergence of source plane 23 under ``z23/kappa``; before, a file a plane,
``LP001/run001/kappa23.dat``: an int32, ng^2 float64 row by row, an int32.
"""

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.datasets import check_real, checked_index, report_broken, told
from pnp_lofi.files import written_whole
from pnp_lofi.hdf5 import Reader, write_hdf5

SIDE = 300.0  # of a map [arcmin]
PLANES = 40
MARK = 4  # bytes of the int32 before and after


class KappaTNG:
    """Convergence maps of one source plane; item k is (1, N, N) float32, of which only the crop is read.

    :param folder: searched recursively for ``*_maps.hdf5`` and ``kappa{plane}.dat``; of one run the HDF5 is taken.
    :param int plane: source plane 1 to 40; 20 is z = 0.858, the paper's.
    :param int crop: side of square crops [pixel]; default the whole map.
    :param bool tiles: all crops that fit side by side are items; else the middle one of each map.
    :raises FileNotFoundError: if there is no such folder, or no map of the plane.
    :raises ValueError: if no file can be read, for maps of different sizes, or a crop larger than they. Warns of files
        that cannot be read, and leaves them out.
    """

    def __init__(
        self, folder: str | os.PathLike[str], plane: int = 20, *, crop: int | None = None, tiles: bool = False
    ) -> None:
        self.key, self._reader = _key(plane), Reader()
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"no folder {str(folder)!r}")
        self.files, sides = self._readable(_maps(Path(folder), plane))
        if len(set(sides)) > 1:
            odd = next(k for k, side in enumerate(sides) if side != sides[0])
            raise ValueError(f"{self.files[odd]}: expected {sides[0]} pixels a side as before, got {sides[odd]}")
        self.crop = sides[0] if crop is None else crop
        if not 1 <= self.crop <= sides[0]:
            raise ValueError(f"crops of {self.crop} pixels do not fit into maps of {sides[0]}")
        self.pixel = SIDE / sides[0]  # [arcmin], of the crops as well
        rest, fit = divmod(sides[0], self.crop)[::-1]
        starts = [rest // 2 + k * self.crop for k in range(fit)] if tiles else [(sides[0] - self.crop) // 2]
        self._corners = [(row, column) for row in starts for column in starts]

    def __len__(self) -> int:
        return len(self.files) * len(self._corners)

    def __getitem__(self, k: int) -> Tensor:
        file, corner = divmod(checked_index(int(k), len(self)), len(self._corners))
        row, column = self._corners[corner]
        where = slice(row, row + self.crop), slice(column, column + self.crop)
        return _part(self._reader, self.files[file], self.key, where)

    def _readable(self, paths: list[Path]) -> tuple[list[Path], list[int]]:
        """Those that can be read, and their sides [pixel]."""
        broken, sides = [], {}  # type: list[str], dict[Path, int]
        for path in paths:
            try:
                sides[path] = _side(self._reader, path, self.key)
            except (ValueError, OSError) as error:
                broken.append(told(path, error))
        report_broken(broken, len(paths))
        return list(sides), list(sides.values())


def read_kappa(path: str | os.PathLike[str], plane: int = 20) -> Tensor:
    """One whole map, (1, N, N) float32, of either layout; ``plane`` chooses in an HDF5 file."""
    reader, path, key = Reader(), Path(path), _key(plane)
    _side(reader, path, key)
    return _part(reader, path, key, ...)


def _key(plane: int) -> str:
    if not 1 <= plane <= PLANES:
        raise ValueError(f"expected a source plane of 1 to {PLANES}, got {plane}")
    return f"z{plane:02d}/kappa"


def _side(reader: Reader, path: Path, key: str) -> int:
    shape = reader.shape(path, key) if path.suffix == ".hdf5" else _binary(path).shape
    if len(shape) != 2 or shape[0] != shape[1] or 0 in shape:
        raise ValueError(f"{path}: expected a square map under {key!r}, got {shape}")
    return shape[0]


def _part(reader: Reader, path: Path, key: str, where: Any) -> Tensor:
    if path.suffix == ".hdf5":
        return reader.slice(path, key, where)[None]
    with np.errstate(over="ignore"):  # becomes infinite, which is told
        kappa = torch.from_numpy(np.array(_binary(path)[where], np.float32))[None]
    check_real(path, kappa=kappa)
    return kappa


def _maps(folder: Path, plane: int) -> list[Path]:
    new, old = (
        sorted(path for path in folder.rglob(name) if path.is_file() and not path.name.startswith("."))
        for name in ("*_maps.hdf5", f"kappa{plane:02d}.dat")
    )
    runs = {_run(path) for path in new}
    found = new + [path for path in old if _run(path) not in runs]
    if not found:
        raise FileNotFoundError(f"{folder}: no LPxxx_runyyy_maps.hdf5 and no kappa{plane:02d}.dat below it")
    return found


def _run(path: Path) -> str:
    """What names the run in both layouts, such as LP001_run002; the path itself where nothing does."""
    match = re.search(r"(LP\d+).*(run\d+)", "_".join([*path.parts[-3:-1], path.name]))
    return f"{match[1]}_{match[2]}" if match else str(path)


def _binary(path: Path) -> np.ndarray:
    """The map of an old file, (ng, ng) float64, mapped into memory.

    :raises ValueError: if its length or its marks do not fit: they are ng, or the bytes of the map as Fortran writes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no kappaTNG file {str(path)!r}")
    size = path.stat().st_size
    side = math.isqrt(max(0, size - 2 * MARK) // 8)
    with path.open("rb") as file:
        first = int.from_bytes(file.read(MARK), "little")
        file.seek(-MARK, os.SEEK_END) if size >= MARK else None
        last = int.from_bytes(file.read(MARK), "little")
    if side == 0 or size != 2 * MARK + 8 * side**2:
        told = f"; it says {first} x {first}" if 0 < first < 1 << 15 else ""
        raise ValueError(f"{path}: expected an int32, N x N float64 and an int32, got {size} bytes{told}: cut short?")
    if first not in (side, 8 * side**2) or last != first:
        raise ValueError(
            f"{path}: expected the int32 {side} before and after {side} x {side} numbers, got {first}, {last}"
        )
    return np.memmap(path, "<f8", "r", offset=MARK, shape=(side, side))


def write_kappa(path: str | os.PathLike[str], kappa: Tensor, plane: int = 20, *, overwrite: bool = False) -> None:
    """Write one map, by the ending ``.hdf5`` (float64 under ``z20/kappa``) or ``.dat``.

    :param torch.Tensor kappa: (N, N) or (1, N, N).
    :raises ValueError: for another ending, shape or plane, NaN or infinity.
    """
    path, image = Path(path), kappa[0] if kappa.ndim == 3 and len(kappa) == 1 else kappa
    if image.ndim != 2 or image.shape[0] != image.shape[1] or path.suffix not in (".hdf5", ".dat"):
        raise ValueError(f"expected .hdf5 or .dat and a map (N, N) or (1, N, N), got {path} and {tuple(kappa.shape)}")
    check_real(path, kappa=image)
    key, values = _key(plane), image.detach().cpu().double().numpy()
    with written_whole(path, overwrite=overwrite) as part:
        if path.suffix == ".hdf5":
            write_hdf5(part, {key: values})
        else:
            mark = len(values).to_bytes(MARK, "little")
            part.write_bytes(mark + values.astype("<f8").tobytes() + mark)


def write_kappatng(
    folder: str | os.PathLike[str],
    count: int = 4,
    *,
    size: int = 64,
    plane: int = 20,
    seed: int = 0,
    binary: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a small set of kappaTNG's layout, of procedural convergence on 5 degrees.

    :param folder: made if it is not there.
    :param int size: pixels a side, >= 16; bool binary: the layout before 2024.
    """
    from pnp_lofi.convergence import convergence

    for run, kappa in enumerate(convergence(count, size, SIDE / size, seed=seed), 1):
        path = Path(folder) / "LP001" / f"LP001_run{run:03d}_maps.hdf5"
        if binary:
            path = Path(folder) / "LP001" / f"run{run:03d}" / f"kappa{plane:02d}.dat"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_kappa(path, kappa, plane, overwrite=overwrite)
