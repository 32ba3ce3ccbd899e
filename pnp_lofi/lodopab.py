"""LoDoPaB-CT: 40,000 pairs of a simulated low-dose sinogram and a chest slice, in HDF5.

The set is at zenodo.org/records/3384092 under CC BY 4.0 (55 GB). Files ``observation_{part}_{k:03d}.hdf5`` and
``ground_truth_{part}_{k:03d}.hdf5`` hold 128 items each under ``data``: (128, 1000, 513) and (128, 362, 362); the last
ground-truth file is padded. ``patient_ids_rand_{part}.csv`` has a line an item.
"""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.datasets import checked_index
from pnp_lofi.files import written_whole
from pnp_lofi.hdf5 import Reader, write_hdf5
from pnp_lofi.operators.low_dose import LowDose
from pnp_lofi.operators.radon import Radon

LENGTHS = {"train": 35820, "validation": 3522, "test": 3553}  # of the published parts
ITEMS = 128  # of a file
FIELD = 0.26  # side of the images [m]
MU_MAX = 81.35858  # the images' unit [1/m]
PHOTONS = 4096
PAIR = ("observation", "ground_truth")


class LoDoPaB:
    """One part of LoDoPaB-CT: item k is (sinogram (1, A, D), image (1, N, N)), read from its files when asked for.

    Images are [x, y] in units of mu_max = 81.35858 / m, sinograms the line integrals in such units times metres: what
    ``self.operator()`` makes of the images.

    :param folder: that has the files, or folders ``observation_{part}`` and ``ground_truth_{part}`` that have.
    :param str part: "train", "validation" or "test".
    :raises FileNotFoundError: if there is no such folder, no file of the part, or one of a pair is missing.
    :raises ValueError: for a broken file, or two of a pair that do not hold as many items.
    Source: Leuschner et al. 2021, doi:10.1038/s41597-021-00893-z.
    """

    def __init__(self, folder: str | os.PathLike[str], part: str = "train") -> None:
        if part not in LENGTHS:
            raise ValueError(f"expected a part of {', '.join(LENGTHS)}, got {part!r}")
        self.folder, self.part = Path(folder), part
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no folder {str(folder)!r}")
        self._reader = Reader()
        self.files = self._pairs()
        shapes = [[self._reader.shape(path, "data") for path in pair] for pair in self.files]
        self.counts = [self._count(k, *pair) for k, pair in enumerate(shapes)]
        first = [tuple(s[1:]) for s in shapes[0]]
        for pair, shape in zip(self.files, shapes, strict=True):
            if [tuple(s[1:]) for s in shape] != first:
                raise ValueError(f"{pair[0]}: expected items of {first} as in the first file, got {shape}")
        self.sinogram_shape, self.shape = first
        whole = sum(self.counts)
        # a whole part whose last sinograms are padded like their images
        complete = len(self.files) == math.ceil(LENGTHS[part] / ITEMS) and self.counts[-1] == ITEMS == self.counts[0]
        self.length = LENGTHS[part] if complete else whole
        self._ends = np.cumsum(self.counts)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        k = checked_index(int(k), len(self))
        file = int(np.searchsorted(self._ends, k, side="right"))
        at = k - int(self._ends[file]) + self.counts[file]
        y, x = (self._reader.slice(path, "data", slice(at, at + 1)) for path in self.files[file])
        return y, x

    def operator(self, **options: Any) -> Radon:
        """The projection these sinograms were made with, noise included."""
        return lodopab_operator(self.shape[0], *self.sinogram_shape, **options)

    def patients(self) -> list[int]:
        """The patient of each item, for :func:`pnp_lofi.datasets.split`.

        :raises ValueError: if the list has another length.
        """
        path = self.folder / f"patient_ids_rand_{self.part}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there; it came with the set")
        try:
            found = [int(word) for word in re.split(r"[\s,;]+", path.read_text().strip())]
        except ValueError as error:
            raise ValueError(f"{path}: expected a whole number a line ({error})") from error
        if len(found) != len(self):
            raise ValueError(f"{path}: expected {len(self)} patients, one an item, got {len(found)}")
        return found

    def _pairs(self) -> list[list[Path]]:
        """The two files of each number, from 000 on without a gap."""
        there: list[dict[int, Path]] = []
        for kind in PAIR:
            name = re.compile(rf"{kind}_{self.part}_(\d+)\.hdf5")
            homes = [h for h in (self.folder, self.folder / f"{kind}_{self.part}") if h.is_dir()]
            found = [(name.fullmatch(f.name), f) for home in homes for f in home.iterdir()]
            there.append({int(match[1]): f for match, f in found if match})
        numbers = set(there[0]) | set(there[1])
        if not numbers:
            raise FileNotFoundError(f"{self.folder}: no file such as observation_{self.part}_000.hdf5")
        for number in range(max(numbers) + 1):
            for kind, files in zip(PAIR, there, strict=True):
                if number not in files:
                    raise FileNotFoundError(
                        f"{self.folder}: {kind}_{self.part}_{number:03d}.hdf5 is missing of 000 to {max(numbers):03d}"
                    )
        return [[files[number] for files in there] for number in sorted(numbers)]

    def _count(self, k: int, y: tuple[int, ...], x: tuple[int, ...]) -> int:
        """Items of a pair of files; the images of the last may be padded."""
        observation, truth = self.files[k]
        if len(y) != 3 or len(x) != 3 or x[1] != x[2] or 0 in y + x:
            raise ValueError(f"{observation}: expected (items, angles, detectors) and (items, N, N), got {y} and {x}")
        if x[0] < y[0] or (x[0] > y[0] and k < len(self.files) - 1):
            raise ValueError(f"{truth}: expected {y[0]} items as in {observation.name}, got {x[0]}")
        return y[0]


def lodopab_operator(size: int = 362, angles: int = 1000, detectors: int = 513, **options: Any) -> Radon:
    """:meth:`Radon.lodopab` for any numbers of pixels, views and detectors on the same (0.26 m)^2."""
    if min(size, angles, detectors) < 1:
        raise ValueError(f"expected pixels, views and detectors >= 1, got {size}, {angles} and {detectors}")
    noise = LowDose(PHOTONS, mu=MU_MAX) if "sigma" not in options else None
    views = (torch.arange(angles, dtype=torch.float64) + 0.5) * (math.pi / angles)
    spacing = FIELD * math.sqrt(2) / detectors
    chosen = {"noise_model": noise, "pixel_size": FIELD / size, "spacing": spacing} | options
    return Radon((size, size), views - math.pi / 2, detectors, **chosen)


def from_hu(hu: Tensor) -> Tensor:
    """LoDoPaB's images from Hounsfield units: attenuation of water 20 / m, of air 0.02 / m, in [0, 1] of mu_max."""
    return ((hu * ((20 - 0.02) / 1000) + 20) / MU_MAX).clamp(0, 1)


@torch.no_grad()
def write_lodopab(
    folder: str | os.PathLike[str],
    counts: dict[str, int] | None = None,
    *,
    shape: Sequence[int] = (32, 48, 47),
    items: int = 4,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write a small set of LoDoPaB-CT's layout: chest phantoms, its geometry on the same field, 4096 photons.

    :param folder: made if it is not there.
    :param dict counts: items of each part; default 6, 3 and 2.
    :param tuple shape: pixels a side (>= 16), views, detectors.
    :param int items: of a file.
    :param int seed: of phantoms and noise.
    :raises FileExistsError: if a file is there and overwrite is not asked for.
    """
    from pnp_lofi.organs import chest

    counts = {"train": 6, "validation": 3, "test": 2} if counts is None else counts
    unknown = set(counts) - set(LENGTHS)
    if unknown or not counts or min(counts.values()) < 1 or items < 1:
        raise ValueError(f"expected at least one item of parts {', '.join(LENGTHS)}, got {counts} and {items} a file")
    home = Path(folder)
    home.mkdir(parents=True, exist_ok=True)
    op = lodopab_operator(*shape)
    for number, (part_name, count) in enumerate(sorted(counts.items())):
        x = from_hu(chest(count, shape[0], seed=seed + number)).flip(-2).mT  # [x, y], both growing
        rng = torch.Generator().manual_seed(seed + number)
        y = LowDose(PHOTONS, mu=MU_MAX, rng=rng)(op.A(x))
        for k, start in enumerate(range(0, count, items)):
            held = x[start : start + items, 0]
            padded = torch.cat([held, held.new_zeros(items - len(held), *held.shape[1:])])
            for kind, data in zip(PAIR, (y[start : start + items, 0], padded), strict=True):
                with written_whole(home / f"{kind}_{part_name}_{k:03d}.hdf5", overwrite=overwrite) as part:
                    write_hdf5(part, {"data": data.numpy()})
        with written_whole(home / f"patient_ids_rand_{part_name}.csv", overwrite=overwrite) as part:
            part.write_text("".join(f"{100 * number + k // 2}\n" for k in range(count)))
