"""Pairs of what was measured and the truth: the LoFi authors' folders, and one file of our own.

The authors' low-dose CT set (AmirEhsan95/LoFi, datasets.py) is a folder of .npz files, an image each, with the arrays
``fbp`` (H, W), a filtered backprojection, and ``image`` (H, W), the truth. Their mass maps and radio skies are folders
of .npy files (H, W), which :func:`pnp_lofi.images.image_folder` reads; the pairs are made of them in training.
Ours is one file with ``y`` (n, C, H, W) and ``x`` (n, C', H', W'), .npz or .h5; the latter is read piece by piece.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.datasets import FileSet, check_real, checked_index
from pnp_lofi.files import written_whole
from pnp_lofi.hdf5 import Reader, write_hdf5

KEYS = ("y", "x")
AUTHORS = ("fbp", "image")
HDF5 = (".h5", ".hdf5")


class Pairs:
    """Pairs of one file; item k is (y (C, H, W), x (C', H', W')) float32.

    :param path: .npz, read whole, or .h5 / .hdf5, of which only the item is read.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: for a broken file, missing keys, or arrays that do not pair.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self._reader, self._arrays = Path(path), Reader(), {}  # type: Path, Reader, dict[str, Tensor]
        if self.path.suffix in HDF5:
            shapes = [self._reader.shape(path, key) for key in KEYS]
        elif self.path.suffix == ".npz":
            self._arrays = dict(zip(KEYS, _npz(self.path, KEYS), strict=True))
            shapes = [tuple(a.shape) for a in self._arrays.values()]
        else:
            raise ValueError(f"{path}: expected an ending of .npz, {', '.join(HDF5)}")
        if any(len(s) != 4 for s in shapes) or shapes[0][0] != shapes[1][0] or 0 in shapes[0] + shapes[1]:
            raise ValueError(
                f"{path}: expected y and x of shape (n, C, H, W) with one n, got {shapes[0]} and {shapes[1]}"
            )
        self.shapes = shapes[0][1:], shapes[1][1:]
        self.length = shapes[0][0]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        k = checked_index(int(k), len(self))
        if self._arrays:
            return self._arrays["y"][k], self._arrays["x"][k]
        y, x = (self._reader.slice(self.path, key, k) for key in KEYS)
        return y, x


def write_pairs(path: str | os.PathLike[str], y: Tensor, x: Tensor, *, overwrite: bool = False, **about: Any) -> None:
    """Write pairs, .npz or .h5 by the ending.

    :param torch.Tensor y, x: (n, C, H, W) and (n, C', H', W').
    :param about: attributes of an HDF5 file, such as units.
    :raises ValueError: for another ending or shape, NaN or infinity, or attributes for .npz.
    """
    path = Path(path)
    if path.suffix not in (".npz", *HDF5) or (about and path.suffix == ".npz"):
        raise ValueError(f"{path}: expected an ending of .npz (no attributes), {', '.join(HDF5)}")
    if y.ndim != 4 or x.ndim != 4 or len(y) != len(x):
        raise ValueError(f"expected y and x of shape (n, C, H, W), got {tuple(y.shape)} and {tuple(x.shape)}")
    check_real(path, y=y, x=x)
    arrays = {key: a.detach().cpu().float().numpy() for key, a in zip(KEYS, (y, x), strict=True)}
    with written_whole(path, overwrite=overwrite) as part:
        if path.suffix == ".npz":
            with part.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
        else:
            write_hdf5(part, arrays, list(about.items()))


def authors_pairs(folder: str | os.PathLike[str], *, megabytes: float = 2000) -> FileSet:
    """The LoFi authors' low-dose CT set: item k is (fbp (1, H, W), image (1, H, W)) float32, a file each.

    They resize both to 128 x 128 when they load them; here they stay as they are.

    :param float megabytes: as much is kept in memory.
    :raises FileNotFoundError: if there is no such folder. ValueError: if it has no .npz that can be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}")
    files = sorted(f for f in folder.glob("*.npz") if not f.name.startswith("."))
    if not files:
        raise ValueError(f"{folder}: expected .npz files with {' and '.join(AUTHORS)}, got none")
    return FileSet(files, _authors_pair, megabytes=megabytes)


def _authors_pair(path: Path) -> tuple[Tensor, Tensor]:
    y, x = _npz(path, AUTHORS)
    if y.ndim != 2 or y.shape != x.shape:
        raise ValueError(
            f"{path}: expected fbp and image of one shape (H, W), got {tuple(y.shape)} and {tuple(x.shape)}"
        )
    return y[None], x[None]


def write_authors_pairs(folder: str | os.PathLike[str], fbp: Tensor, image: Tensor, *, overwrite: bool = False) -> None:
    """Write pairs (n, 1, H, W) in the authors' layout, 00000.npz and on."""
    if fbp.shape != image.shape or fbp.ndim != 4 or fbp.shape[1] != 1:
        raise ValueError(f"expected two of shape (n, 1, H, W), got {tuple(fbp.shape)} and {tuple(image.shape)}")
    check_real(folder, fbp=fbp, image=image)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for k, pair in enumerate(zip(fbp, image, strict=True)):
        arrays = {key: a[0].detach().cpu().numpy() for key, a in zip(AUTHORS, pair, strict=True)}
        with written_whole(Path(folder) / f"{k:05d}.npz", overwrite=overwrite) as part, part.open("wb") as file:
            np.savez(file, **arrays)


def _npz(path: Path, keys: tuple[str, ...]) -> list[Tensor]:
    """Arrays of a .npz as float32.

    :raises ValueError: if it is broken, lacks one, or holds no finite numbers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in keys if key not in file]
            if missing:
                raise ValueError(f"has no {', '.join(missing)} but {', '.join(file.files) or 'nothing'}")
            arrays = [file[key] for key in keys]
    except Exception as error:  # numpy, zipfile and zlib raise of all kinds over broken files
        raise ValueError(f"{path}: expected a .npz with {' and '.join(keys)} ({error})") from error
    for key, a in zip(keys, arrays, strict=True):
        if a.dtype.kind not in "biuf":
            raise ValueError(f"{path}: expected finite real numbers of {key}, got {a.dtype}")
    with np.errstate(over="ignore"):  # becomes infinite, which is told
        found = [torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in arrays]
    check_real(path, **dict(zip(keys, found, strict=True)))
    return found
