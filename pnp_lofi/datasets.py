"""What all sets of images have in common: length, items, a division by seed, and a memory for what was decoded.

A set of images gives (C, H, W) float32 tensors; a set of pairs gives (y, x): what was measured, then the truth.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Item = Tensor | tuple[Tensor, ...]
Read = Callable[[Any], Item]


class Images(Protocol):
    """A map-style set; ``torch.utils.data.DataLoader`` and :class:`pnp_lofi.examples.Crops` take it."""

    def __len__(self) -> int: ...

    def __getitem__(self, k: int) -> Any:
        """Item k; IndexError past the end."""


def checked_index(k: int, length: int) -> int:
    """k in [0, length), counted from the end if negative.

    :raises IndexError: past the end: it is what ends a ``for`` loop over a set.
    """
    if not -length <= k < length:
        raise IndexError(f"item {k} of a set of {length}")
    return k % length


class Subset(Sequence[Any]):
    """The items of a set at some places."""

    def __init__(self, items: Images, index: Sequence[int]) -> None:
        self.items, self.places = items, list(index)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, k: Any) -> Any:
        return self.items[self.places[checked_index(int(k), len(self))]]


def split(items: Images, parts: Sequence[float], *, seed: int = 0, groups: Sequence[Any] | None = None) -> list[Subset]:
    """Divide a set at random, for instance into training and test.

    :param parts: their shares, such as (0.8, 0.1, 0.1); they are divided by their sum.
    :param int seed: of the division.
    :param groups: one label an item, such as its patient; a group is never divided. The shares count groups.
    :raises ValueError: for shares that are not positive, or fewer groups than parts.
    """
    if not parts or not all(0 < p < math.inf for p in parts):
        raise ValueError(f"expected positive shares such as (0.8, 0.2), got {tuple(parts)}")
    labels = list(range(len(items))) if groups is None else list(groups)
    if len(labels) != len(items):
        raise ValueError(f"expected a group for each of {len(items)} items, got {len(labels)}")
    kinds = list(dict.fromkeys(labels))
    if len(kinds) < len(parts):
        what = "items" if groups is None else "groups"
        raise ValueError(f"{len(kinds)} {what} cannot be divided into {len(parts)} parts")
    order = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(seed)).tolist()
    ends, start, found = _ends(parts, len(kinds)), 0, []
    for end in ends:
        chosen = {kinds[k] for k in order[start:end]}
        found.append(Subset(items, [k for k, label in enumerate(labels) if label in chosen]))
        start = end
    return found


def _ends(parts: Sequence[float], count: int) -> list[int]:
    """Where each part ends; none is empty."""
    ends: list[int] = []
    total = 0.0
    for k, part in enumerate(parts):
        total += part / sum(parts)
        low, high = (ends[-1] if ends else 0) + 1, count - (len(parts) - 1 - k)
        ends.append(min(max(round(total * count), low), high))
    return ends


class Cached(Sequence[Any]):
    """A set whose items are kept in memory once read, as long as they fit.

    :param Images items: any set.
    :param float megabytes: budget [MB]; items past it are read anew each time.
    """

    def __init__(self, items: Images, megabytes: float = 2000) -> None:
        self.items, self.budget = items, megabytes * 1e6
        self.kept: dict[int, Item] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, k: Any) -> Any:
        k = checked_index(int(k), len(self))
        if k not in self.kept:
            item = self.items[k]
            size = _bytes(item)
            if size > self.budget:
                return item
            self.kept[k], self.budget = item, self.budget - size
        return self.kept[k]


class FileSet(Sequence[Any]):
    """A set with one item a file. All are read once at the start; what cannot be read is named, skipped, counted.

    :param paths: the files, in order.
    :param read: a path to its item; ValueError or OSError mean that the file is broken.
    :param float megabytes: as much as fits is kept in memory; the rest is read again when asked for.
    :raises ValueError: if no file can be read. Warns of those that cannot.
    """

    def __init__(self, paths: Iterable[Any], read: Read, *, megabytes: float = math.inf) -> None:
        self.paths: list[Any] = []
        self.shapes: list[tuple[int, ...]] = []  # of each item, of a pair the first's
        self.read = read
        self._cache = Cached(self, megabytes)
        broken, count = [], 0
        for path in paths:
            count += 1
            try:
                item = read(path)
            except (ValueError, OSError) as error:
                broken.append(told(path, error))
                continue
            if _bytes(item) <= self._cache.budget:
                self._cache.kept[len(self.paths)] = item
                self._cache.budget -= _bytes(item)
            self.paths.append(path)
            self.shapes.append(tuple((item[0] if isinstance(item, tuple) else item).shape))
        report_broken(broken, count)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, k: Any) -> Any:
        k = checked_index(int(k), len(self))
        return self._cache.kept[k] if k in self._cache.kept else self.read(self.paths[k])


def told(path: Any, error: Exception) -> str:
    """An error that names its file."""
    return str(error) if str(path) in str(error) else f"{path}: {error}"


def check_real(where: Any, **arrays: Tensor) -> None:
    """:raises ValueError: naming the array that is empty or complex, or holds NaN or infinity."""
    for name, x in arrays.items():
        bad = int((~torch.isfinite(x)).sum())
        if x.is_complex() or not x.numel() or bad:
            raise ValueError(
                f"{where}: expected finite real numbers of {name}, got {x.dtype} {tuple(x.shape)} with {bad} NaN or "
                "infinite; torch.isfinite finds them"
            )


def report_broken(broken: Sequence[str], count: int) -> None:
    """Warn of files that were left out, each with its reason.

    :raises ValueError: if that were all.
    """
    if not broken:
        return
    shown = "; ".join(broken[:3]) + (f"; and {len(broken) - 3} more" if len(broken) > 3 else "")
    if len(broken) == count:
        raise ValueError(f"none of {count} files can be read: {shown}")
    warnings.warn(f"skipped {len(broken)} of {count} files: {shown}", stacklevel=4)


def _bytes(item: Item) -> int:
    return sum(t.nbytes for t in item) if isinstance(item, tuple) else item.nbytes
