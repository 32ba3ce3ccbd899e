"""CT pictures in and out: sinograms and DICOM slices are read, Hounsfield units are written."""

import math
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pnp_lofi.ct_scans import Scan, from_hu, resized
from pnp_lofi.dicom import dicom_series, read_slice
from pnp_lofi.dicom_writer import write_dicom
from pnp_lofi.files import check_writable
from pnp_lofi.hounsfield import WATER, WINDOWS, window
from pnp_lofi.images import save_image, save_png
from pnp_lofi.sinogram_file import ENDINGS, Geometry, read_sinogram

OUT = (".png", ".npy", ".dcm")
TEXTURE = (
    "slices are taken for filtered backprojection as the network was trained on; a scanner's smoother kernel or larger "
    "images give another texture of noise, which may be sharpened instead of removed: compare, and train on pairs of "
    "that scanner"
)


class Picture(NamedTuple):
    """:param torch.Tensor q: (1, 1, H, W) what filtered backprojection shows, in units of water's attenuation.
    :param float pixel: [mm]. torch.Tensor truth: like q, where it is known. Path like: the DICOM slice it came from.
    """

    q: Tensor
    pixel: float
    truth: Tensor | None = None
    like: Path | None = None


@torch.no_grad()
def from_sinogram(
    path: str | os.PathLike[str],
    scan: Scan,
    geometry: Geometry,
    *,
    item: int | None = None,
    transpose: bool = False,
    photons: float | None = None,
    water: float = WATER,
) -> Picture:
    """Filtered backprojection of a file, with the filter of ``scan``.

    :param float water: attenuation of water that makes Hounsfield units of the result [1/mm].
    :param item, transpose, photons: see :func:`~pnp_lofi.sinogram_file.read_sinogram`.
    """
    if not 0 < water < math.inf:
        raise ValueError(f"water's attenuation must be > 0, got {water}")
    sinogram = read_sinogram(path, item=item, transpose=transpose, photons=photons)
    op = sinogram.operator(geometry)
    return Picture(op.fbp(sinogram.y, filter=scan.filter, cutoff=scan.cutoff) / water, op.pixel_size)


@torch.no_grad()
def from_slice(
    path: Path, scan: Scan | None, *, side: int | None = None, spacing: float | None = None, seed: int = 0
) -> Picture:
    """A DICOM slice as it is, or as the truth that is scanned.

    :param Scan scan: None: the slice is itself a noisy filtered backprojection.
    :param int side: resize to [pixel]; float spacing: of a slice that does not say [mm].
    :raises ValueError: for a side below 16, or a slice to scan that is not square.
    """
    if side is not None and side < 16:
        raise ValueError(f"expected a side of 16 pixels or more, got {side}")
    hu, pixel = read_slice(path, spacing=None if spacing is None else (spacing, spacing), resample=True)
    if side is not None:
        pixel, hu = pixel * hu.shape[-1] / side, resized(hu, side)
    if scan is None:
        return Picture(1 + hu[None] / 1000, pixel, None, path)
    if hu.shape[-1] != hu.shape[-2]:
        raise ValueError(f"{path}: only square slices are scanned here, got {tuple(hu.shape[-2:])}")
    truth = from_hu(hu)[None]
    clean = scan.operator(hu.shape[-1]).A(truth)
    y = scan.noisy(clean, torch.Generator().manual_seed(seed), [pixel])
    return Picture(scan.seen(y, hu.shape[-1]), pixel, truth, path)


def is_sinogram(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS


def jobs(source: Path, outs: Sequence[Path], *, overwrite: bool = False) -> list[tuple[Path, list[Path], str]]:
    """What is read, what is then written, and its DICOM series: one file, or the slices of a folder into another one.

    :raises ValueError: for an ending that is not .png, .npy or .dcm, or a folder that is not written to one folder.
    :raises FileNotFoundError: if there is no such file or folder; FileExistsError: as :func:`check_writable`.
    """
    if not source.exists():
        raise FileNotFoundError(f"no file or folder {str(source)!r}")
    if not source.is_dir():
        found = [(source, list(outs), _series())]
    else:
        named = [(series, _series()) for series in dicom_series(source).values()]
        slices = [(path, uid) for series, uid in named for path in series]
        if len(outs) != 1 or outs[0].suffix or outs[0].resolve() == source.resolve():
            raise ValueError(f"{source} is a folder: name one other folder for its slices with -o")
        outs[0].mkdir(exist_ok=True)
        found = [(path, [outs[0] / f"{k + 1:04d}.dcm"], uid) for k, (path, uid) in enumerate(slices)]
    for _, paths, _ in found:
        for path in paths:
            if path.suffix.lower() not in OUT:
                raise ValueError(f"{path}: expected an ending of {', '.join(OUT)}")
            check_writable(path, overwrite=overwrite)
    return found


def _series() -> str:
    """A new SeriesInstanceUID."""
    return f"2.25.{uuid.uuid4().int}"


def write_picture(
    path: Path,
    hu: Tensor,
    picture: Picture,
    *,
    shown: str | tuple[float, float] = "soft",
    series: str | None = None,
    number: int = 1,
    overwrite: bool = False,
) -> None:
    """Write (1, 1, H, W) [HU]: .npy as it is, .png in a window, .dcm as a derived image of the slice it came from.

    :param shown: name of a window, or centre and width [HU].
    :param str series, int number: of a DICOM image.
    """
    if path.suffix.lower() == ".png":
        save_png(path, window(hu, shown), overwrite=overwrite)
    elif path.suffix.lower() == ".npy":
        save_image(path, hu, overwrite=overwrite)
    else:
        limited = hu[0].clamp(-1024, 31743)
        write_dicom(path, limited, picture.pixel, like=picture.like, series=series, number=number, overwrite=overwrite)


def window_of(text: str) -> str | tuple[float, float]:
    """A window: "soft", "lung", "bone", "brain", or "CENTRE,WIDTH" in HU.

    :raises ValueError: for anything else.
    """
    if text in WINDOWS:
        return text
    try:
        centre, width = (float(word) for word in text.split(","))
    except ValueError as error:
        raise ValueError(f"expected a window of {', '.join(WINDOWS)} or CENTRE,WIDTH in HU, got {text!r}") from error
    if not (math.isfinite(centre) and 0 < width < math.inf):
        raise ValueError(f"a window has a finite centre and a width > 0 HU, got {text!r}")
    return centre, width
