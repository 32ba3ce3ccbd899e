"""Sinograms in files, with the geometry that they were measured with. Lengths in millimetres."""

import math
import os
import warnings
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from pnp_lofi.datasets import check_real
from pnp_lofi.files import written_whole
from pnp_lofi.hdf5 import BROKEN, open_hdf5, write_hdf5
from pnp_lofi.operators.fan_beam import FanBeam
from pnp_lofi.operators.radon import Radon

ENDINGS = (".npy", ".npz", ".h5", ".hdf5")
NAMES = ("sinogram", "data", "y")  # of the array in a file of several, the first that is there
DIM = 1e-3  # of the photons: where the brightest ray has less, they are hardly counts


@dataclass(frozen=True)
class Geometry:
    """How a sinogram was measured; what is None has a default or comes from the file.

    :param float spacing: of the detectors, on the detector [mm].
    :param float pixel: side of a pixel of the image [mm]; default the rays' distance at the axis of rotation.
    :param int side: of the image [pixel]; default the largest square that all views see.
    :param float arc: that the views are evenly spread over, its end left out [degree]; default 180, of fans 360.
    :param float first: angle of the first view [degree]; see docs/ct.md for what it is counted from.
    :param float offset: of the middle of the detector [mm].
    :param float source_origin, source_detector: of a fan [mm]; without them rays are parallel.
    :raises ValueError: for numbers that cannot be.
    """

    spacing: float | None = None
    pixel: float | None = None
    side: int | None = None
    arc: float | None = None
    first: float | None = None
    offset: float | None = None
    source_origin: float | None = None
    source_detector: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            signed = name in ("arc", "first", "offset")
            if value is not None and not (-math.inf if signed else 0) < value < math.inf:
                raise ValueError(f"{name} must be finite{'' if signed else ' and > 0'}, got {value}")
        if self.arc == 0 or (self.side or 1) % 1:
            raise ValueError(f"arc must not be 0, and side a whole number, got {self.arc} and {self.side}")

    @classmethod
    def of(cls, text: str) -> "Geometry":
        """From "spacing=0.7,arc=360".

        :raises ValueError: for another key, or what is no such number.
        """
        known: dict[str, Any] = {}
        for word in filter(None, (word.strip() for word in text.split(","))):
            key, _, value = word.partition("=")
            try:
                known[key] = int(value) if key == "side" else float(value)
            except ValueError as error:
                raise ValueError(f"expected a geometry such as spacing=0.7,arc=360, got {word!r}") from error
            if key not in KEYS:
                raise ValueError(f"a geometry has {', '.join(KEYS)}, got {word!r}")
        return cls(**known)

    def over(self, other: "Geometry") -> "Geometry":
        """With what is None here taken from another."""
        return replace(other, **{k: v for k, v in asdict(self).items() if v is not None})

    def operator(self, views: int, detectors: int, angles: Tensor | None = None) -> Radon | FanBeam:
        """The projector, in millimetres: line integrals of attenuation in 1/mm have no unit.

        :param torch.Tensor angles: (A,) [rad] instead of arc and first.
        :raises ValueError: if the spacing is not known, or half of a fan is missing.
        """
        if self.spacing is None:
            raise ValueError("the distance of the detectors is not known: give it in mm, --geometry spacing=...")
        if (self.source_origin is None) != (self.source_detector is None):
            raise ValueError("a fan has both source_origin and source_detector, in millimetres; one is missing")
        fan = self.source_origin is not None
        shrunk = self.spacing
        if self.source_origin is not None and self.source_detector is not None:
            shrunk *= self.source_origin / self.source_detector
        pixel = self.pixel or shrunk
        side = self.side or max(1, int(detectors * shrunk / pixel / math.sqrt(2)))
        if angles is None:
            arc, first = math.radians(self.arc or (360 if fan else 180)), math.radians(self.first or 0)
            angles = first + torch.arange(views, dtype=torch.float64) * (arc / views)
        options: dict[str, Any] = {"pixel_size": pixel, "spacing": self.spacing, "offset": self.offset or 0.0}
        if self.source_origin is not None and self.source_detector is not None:
            options |= {"source_origin": self.source_origin, "source_detector": self.source_detector}
            return FanBeam((side, side), angles, detectors=detectors, **options)
        return Radon((side, side), angles, detectors, **options)


KEYS = tuple(f.name for f in fields(Geometry))


@dataclass(frozen=True)
class Sinogram:
    """:param torch.Tensor y: (1, 1, A, D) float32. angles: (A,) [rad] or None. Geometry geometry: as the file tells."""

    y: Tensor
    angles: Tensor | None
    geometry: Geometry

    def operator(self, given: Geometry | None = None) -> Radon | FanBeam:
        """:param Geometry given: what it names counts more than what the file tells."""
        known = self.geometry if given is None else given.over(self.geometry)
        chosen = None if given is not None and given.arc is not None else self.angles
        return known.operator(self.y.shape[-2], self.y.shape[-1], chosen)


def read_sinogram(
    path: str | os.PathLike[str],
    *,
    item: int | None = None,
    transpose: bool = False,
    photons: float | None = None,
) -> Sinogram:
    """Read one sinogram: line integrals of attenuation, or counts.

    ``.npy`` holds an array (A, D), or (n, A, D) of which ``item`` is taken; ``.npz`` and HDF5 hold it under
    "sinogram", "data" or "y", may hold "angles" (A,) [rad], and the fields of :class:`Geometry` as arrays of one
    number or, in HDF5, as attributes.

    :param bool transpose: the file has (detectors, angles).
    :param float photons: the file holds counts: y = -log(counts / photons), no photon counting as 0.1.
    :raises FileNotFoundError: if there is no such file. ValueError: if it is broken, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no sinogram {str(path)!r}")
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{path}: expected a sinogram in {', '.join(ENDINGS)}")
    arrays = _hdf5(path) if ending in (".h5", ".hdf5") else _numpy(path)
    name = next((n for n in NAMES if n in arrays), None)
    if name is None:
        raise ValueError(f"{path}: expected a sinogram under {', '.join(NAMES)}, got {', '.join(arrays) or 'nothing'}")
    raw = _chosen(path, np.asarray(arrays[name]), item)
    y = _integrals(path, raw.T if transpose else raw, photons)
    angles = _angles(path, arrays["angles"], y.shape[-2:]) if "angles" in arrays else None
    try:
        known: dict[str, Any] = {key: _one(key, arrays[key]) for key in KEYS if key in arrays}
        return Sinogram(y, angles, Geometry(**known))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _chosen(path: Path, raw: np.ndarray, item: int | None) -> np.ndarray:
    """One of the sinograms."""
    while raw.ndim > 3 and raw.shape[0] == 1:
        raw = raw[0]
    raw = raw[None] if raw.ndim == 2 else raw
    if raw.ndim != 3 or raw.dtype.kind not in "biuf" or 0 in raw.shape:
        raise ValueError(f"{path}: expected real (angles, detectors), got {raw.dtype} {raw.shape}")
    if item is None and len(raw) > 1:
        raise ValueError(f"{path}: holds {len(raw)} sinograms, {raw.shape}; choose one of them with item (--item)")
    if not 0 <= (item or 0) < len(raw):
        raise ValueError(f"{path}: has sinograms 0 to {len(raw) - 1}, asked for {item}")
    return raw[item or 0]


def _integrals(path: Path, raw: np.ndarray, photons: float | None) -> Tensor:
    """Line integrals (1, 1, A, D) from what is in the file."""
    if photons is None and raw.dtype.kind in "biu":
        raise ValueError(
            f"{path}: expected line integrals, got whole numbers ({raw.dtype}): if they are counts tell the number "
            "without an object with photons (--photons), else save them as float"
        )
    with np.errstate(over="ignore"):  # becomes infinite, which is told
        y = torch.from_numpy(np.ascontiguousarray(raw, np.float32))[None, None]
    if bad := int((~torch.isfinite(y)).sum()):
        raise ValueError(f"{path}: {bad} numbers are NaN or infinite; interpolate dead detectors first")
    if photons is None:
        return y
    if not 0 < photons < math.inf:
        raise ValueError(f"photons must be finite and > 0, got {photons}")
    if float(y.max()) < DIM * photons:
        warnings.warn(
            f"{path}: the most that was counted is {float(y.max()):.3g} of {photons:g} photons; leave photons "
            "(--photons) out if these are line integrals",
            stacklevel=3,
        )
    return math.log(photons) - y.clamp(min=0.1).log()


def _angles(path: Path, found: Any, shape: tuple[int, ...]) -> Tensor:
    angles = np.asarray(found)
    if angles.shape != (shape[0],):
        mend = "; its axes look exchanged: --transpose" if angles.shape == (shape[1],) else ""
        raise ValueError(f"{path}: expected {shape[0]} angles, one a view, got {angles.shape}{mend}")
    if angles.dtype.kind not in "iuf" or not np.isfinite(angles).all():
        raise ValueError(f"{path}: expected finite angles in radians, got {angles.dtype}; leave bad views out")
    return torch.from_numpy(angles.astype(np.float64))


def write_sinogram(
    path: str | os.PathLike[str],
    y: Tensor,
    geometry: Geometry,
    angles: Tensor | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write (A, D), or (1, 1, A, D), as HDF5 with its geometry in attributes.

    :raises ValueError: for another shape or ending, NaN or infinity.
    """
    path, shape = Path(path), tuple(y.shape)
    if path.suffix not in (".h5", ".hdf5") or len(shape) < 2 or set(shape[:-2]) - {1}:
        raise ValueError(f"{path}: expected an ending of .h5 and (angles, detectors), got {shape}")
    if angles is not None and angles.shape != shape[-2:-1]:
        raise ValueError(f"expected {shape[-2]} angles, one a view, got {tuple(angles.shape)}")
    check_real(path, y=y)
    y = y.detach().cpu().reshape(shape[-2:])
    arrays = {"sinogram": y.numpy()} | ({} if angles is None else {"angles": angles.cpu().numpy()})
    about = [(k, v) for k, v in asdict(geometry).items() if v is not None]
    with written_whole(path, overwrite=overwrite) as part:
        write_hdf5(part, arrays, about)


def _numpy(path: Path) -> dict[str, Any]:
    try:
        found = np.load(path, allow_pickle=False)
        return {"sinogram": found} if isinstance(found, np.ndarray) else {k: found[k] for k in found.files}
    except Exception as error:  # numpy, zipfile and zlib raise of all kinds over broken files
        raise ValueError(f"{path}: broken, or no array of numbers ({error})") from error


def _hdf5(path: Path) -> dict[str, Any]:
    with open_hdf5(path) as file:
        try:
            return dict(file.attrs) | {k: v[()] for k, v in file.items() if isinstance(v, h5py.Dataset)}
        except BROKEN as error:
            raise ValueError(f"{path}: damaged; copy it again ({error})") from error


def _one(name: str, value: Any) -> float:
    try:
        number = float(np.asarray(value).reshape(()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"expected one number for {name}, got {value!r}") from error
    return int(number) if name == "side" and number.is_integer() else number
