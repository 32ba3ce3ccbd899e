"""CT slices from DICOM: files, and folders of series. :mod:`pnp_lofi.dicom_writer` writes them.

Needs pydicom: pip install 'pnp_lofi[ct]'. Lengths in millimetres, rows first.
"""

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pnp_lofi.datasets import checked_index, report_broken
from pnp_lofi.hounsfield import attenuation

if TYPE_CHECKING:
    from pydicom import Dataset

AIR = -1000.0  # [HU]
PADDING = -1024.0  # below it nothing was measured [HU]
PADDINGS = ("PixelPaddingValue", "PixelPaddingRangeLimit")  # nor between these, before slope and intercept
SAME = 1e-3  # two sides of a pixel that differ by less, relatively, are equal
ENDINGS = (".dcm", ".dicom", ".ima")


class Slice(NamedTuple):
    """A CT slice: hu (1, H, W) float32 [HU], and the side of its square pixels [mm]."""

    hu: Tensor
    pixel: float


class _Found(NamedTuple):
    """What sorts a slice: its series, its place along the patient [mm], its number in the series."""

    path: Path
    series: str
    place: float
    number: int


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Whatever pydicom raises over a damaged file, as a ValueError with its path; its warnings are not ours to mend."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except _FaultError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # of all kinds, when an element is looked at
        raise ValueError(f"{path}: broken, or not DICOM as pydicom reads it ({error})") from error


class _FaultError(ValueError):
    """What is wrong with a file that can be read."""


def read_slice(
    path: str | os.PathLike[str],
    *,
    spacing: tuple[float, float] | None = None,
    rescale: tuple[float, float] | None = None,
    resample: bool = False,
) -> Slice:
    """Read one CT slice in Hounsfield units; PixelPaddingValue and what lies below -1024 HU become air, -1000.

    :param tuple spacing: between rows and between columns [mm], for a file that does not say.
    :param tuple rescale: slope and intercept that make HU of the numbers, for a file that does not say.
    :param bool resample: a pixel that is not square is made so, with the finer side, bilinearly.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: for a broken file, one that is no CT slice in HU, or without pixel spacing, or with pixels that
        are not square if resample is False, or compressed in a way that pydicom cannot undo.
    """
    path = Path(path)
    file = read_file(path, pixels=True)
    with named(path):
        raw = file.pixel_array
        if raw.shape != (file.Rows, file.Columns):
            raise _FaultError(f"expected {file.Rows} x {file.Columns} pixels, got {raw.shape}")
        slope, intercept = _rescale(file, rescale)
        hu = raw.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        ends = [float(value) for value in map(file.get, PADDINGS) if value is not None] or [math.nan]
        hu[(hu < PADDING) | ((raw >= min(ends)) & (raw <= max(ends)))] = AIR
        return _square(torch.from_numpy(hu)[None], _spacing(file, spacing), resample)


def _rescale(file: "Dataset", given: tuple[float, float] | None) -> tuple[float, float]:
    found = given if given is not None else (file.get("RescaleSlope"), file.get("RescaleIntercept"))
    if None in found:
        raise _FaultError(
            "has no RescaleSlope (0028,1053) and RescaleIntercept (0028,1052), so that its numbers need not be "
            "HU; pass rescale=(slope, intercept), (1, 0) if they are, or write both into the file"
        )
    if given is None and file.get("RescaleType", "HU") not in ("HU", "US", "", None):
        raise _FaultError(
            f"expected RescaleType HU, got {file.RescaleType}; pass rescale=(slope, intercept) to make HU"
        )
    slope, intercept = (float(s) for s in found)
    if not (0 < abs(slope) < math.inf and math.isfinite(intercept)):
        raise _FaultError(f"slope {slope} and intercept {intercept} give no numbers; pass rescale=(slope, intercept)")
    return slope, intercept


def _square(hu: Tensor, sides: tuple[float, float], resample: bool) -> Slice:
    row, column = sides
    if abs(row - column) <= SAME * max(sides):
        return Slice(hu, row)
    if not resample:
        raise _FaultError(
            f"pixels of {row} x {column} mm are not square; pass resample=True to make them of {min(sides)} mm"
        )
    side = min(sides)
    shape = [round(n * s / side) for n, s in zip(hu.shape[-2:], sides, strict=True)]
    return Slice(interpolate(hu[None], shape, mode="bilinear", antialias=True)[0], side)


def _spacing(file: "Dataset", given: tuple[float, float] | None) -> tuple[float, float]:
    found = given if given is not None else file.get("PixelSpacing")
    if found is None:
        raise _FaultError("has no PixelSpacing (0028,0030); pass spacing=(rows, columns) in mm if you know it")
    if np.shape(found) != (2,):
        raise _FaultError(f"expected a spacing of (rows, columns) in mm, got {found}")
    row, column = (float(s) for s in found)
    if not (0 < row < math.inf and 0 < column < math.inf):
        raise _FaultError(f"expected a pixel spacing > 0 mm, got {row} x {column}")
    return row, column


def import_pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise ImportError("DICOM files need pydicom: pip install 'pnp_lofi[ct]'") from error
    return pydicom


def read_file(path: Path, *, pixels: bool) -> "Dataset":
    """:raises FileNotFoundError: if there is none. ValueError: if the file is broken, or no single CT slice."""
    pydicom = import_pydicom()
    if not path.is_file():
        raise FileNotFoundError(f"no DICOM file {str(path)!r}")
    with named(path):
        try:
            with path.open("rb") as stream:
                file = pydicom.dcmread(stream, stop_before_pixels=not pixels)
                at = stream.tell()
        except pydicom.errors.InvalidDicomError as error:
            raise _FaultError("no DICOM, or without its preamble; rewrite it with dcmconv +F") from error
        if fault := _fault(file):
            raise _FaultError(fault)
        syntax = file.file_meta.get("TransferSyntaxUID")
        if syntax is not None and syntax.is_compressed and not _decodes(syntax):
            raise _FaultError(
                f"compressed as {syntax.name}, which needs a decoder: pip install pylibjpeg pylibjpeg-libjpeg "
                "pylibjpeg-openjpeg, or write it uncompressed with gdcmconv --raw"
            )
        plain = syntax is None or not (syntax.is_compressed or syntax.is_deflated)
        tag = 8 if syntax is not None and syntax.is_implicit_VR else 12  # bytes before the pixels
        end = at + tag + file.Rows * file.Columns * int(file.get("BitsAllocated", 16)) // 8
        if not pixels and plain and path.stat().st_size < end:
            raise _FaultError(f"breaks off before its {file.Rows} x {file.Columns} pixels end")
    return file


def _fault(file: "Dataset") -> str:
    """Why a file is no CT slice; empty if it is one."""
    if file.get("Modality", "CT") != "CT":
        return f"expected Modality CT, got {file.Modality or 'none'}"
    if "LOCALIZER" in file.get("ImageType", []):
        return "a localizer (scout view), not a slice"
    if not (file.get("Rows") and file.get("Columns")):
        return "has no image"
    if int(file.get("NumberOfFrames") or 1) > 1:
        return f"expected one frame, got {file.NumberOfFrames}; split the file, for instance with emf2sf of dcm4che"
    if int(file.get("SamplesPerPixel", 1)) != 1:
        return f"expected one channel, got {file.SamplesPerPixel}"
    if file.get("PhotometricInterpretation") == "PALETTE COLOR":
        return "expected numbers, got the indices of a palette"
    return ""


def _decodes(syntax: Any) -> bool:
    from pydicom.pixels import get_decoder

    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def dicom_series(folder: str | os.PathLike[str]) -> dict[str, list[Path]]:
    """The CT slices below a folder: SeriesInstanceUID -> files, along the patient.

    Headers alone are read. Slices are sorted by ImagePositionPatient along the normal of the image, or by
    InstanceNumber where the former is missing or the same. Files that are no DICOM by ending and content are left
    out; a broken one, or one that is no CT slice, is named in a warning.

    :raises FileNotFoundError: if there is no such folder.
    :raises ValueError: if there is no CT slice in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no DICOM folder {str(folder)!r}")
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith(".") and _is_dicom(f))
    if not files:
        raise ValueError(f"{folder}: no DICOM file ({', '.join(ENDINGS)}, or DICM after 128 bytes) in it")
    broken, series = [], {}  # type: list[str], dict[str, list[_Found]]
    for path in files:
        try:
            found = _place(path)
        except ValueError as error:
            broken.append(str(error))
        else:
            series.setdefault(found.series, []).append(found)
    report_broken(broken, len(files))
    return {uid: [f.path for f in _in_order(found)] for uid, found in series.items()}


def _is_dicom(path: Path) -> bool:
    if path.name == "DICOMDIR":
        return False
    with path.open("rb") as stream:
        return path.suffix.lower() in ENDINGS or stream.read(132)[128:] == b"DICM"


def _place(path: Path) -> _Found:
    file = read_file(path, pixels=False)
    with named(path):
        place, plane = file.get("ImagePositionPatient"), file.get("ImageOrientationPatient")
        along = math.nan
        if place is not None and len(place) == 3:
            axes = np.array(plane, float).reshape(2, 3) if plane is not None and len(plane) == 6 else np.eye(3)[:2]
            along = float(np.cross(*axes) @ np.array(place, float))
        series = str(file.get("SeriesInstanceUID", path.parent))
        return _Found(path, series, along, int(file.get("InstanceNumber") or 0))


def _in_order(found: list[_Found]) -> list[_Found]:
    distinct = len({f.place for f in found}) == len(found) and not any(math.isnan(f.place) for f in found)
    return sorted(found, key=lambda f: (f.place if distinct else 0.0, f.number, f.path))


class DicomSlices:
    """The CT slices below a folder, series after series; item k is (1, H, W) float32, read when asked for.

    :param folder: see :func:`dicom_series`.
    :param str units: "HU", "1/mm" or "1/pixel" (attenuation, see :func:`attenuation`).
    :param int size: bilinear, antialiased, to (size, size); default as it is.
    :param options: of :func:`read_slice`.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, units: str = "1/mm", size: int | None = None, **options: Any
    ) -> None:
        if units not in ("HU", "1/mm", "1/pixel"):
            raise ValueError(f"expected units of HU, 1/mm or 1/pixel, got {units!r}")
        if size is not None and size < 1:
            raise ValueError(f"expected a size of 1 pixel or more, got {size}")
        found = dicom_series(folder)
        self.files = [path for files in found.values() for path in files]
        self.series = [uid for uid, files in found.items() for _ in files]  # of each item
        self.units, self.size, self.options = units, size, options

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, k: int) -> Tensor:
        return self.slice(k)[0]

    def slice(self, k: int) -> Slice:
        """Item k and its pixel [mm]."""
        hu, pixel = read_slice(self.files[checked_index(int(k), len(self))], **self.options)
        if self.size is not None:
            if hu.shape[-1] != hu.shape[-2]:
                raise ValueError(f"{self.files[k]}: size needs square images, got {tuple(hu.shape)}; leave it out")
            pixel = pixel * hu.shape[-1] / self.size
            hu = interpolate(hu[None], (self.size, self.size), mode="bilinear", antialias=True)[0]
        return Slice(hu if self.units == "HU" else attenuation(hu, pixel if self.units == "1/pixel" else 1.0), pixel)
