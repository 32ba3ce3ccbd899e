"""Images from files and from the packages that carry free photographs."""

import functools
import math
import os
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.datasets import FileSet, check_real
from pnp_lofi.files import written_whole
from pnp_lofi.fits import write_fits

PHOTOS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")  # scaled to [0, 1]
DATA = (".fit", ".fits", ".npy")  # kept in their own units
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's "L", here without its rounding

# Free to train on, and installed with the package named. Astronaut, camera and coffee are held out.
PHOTOGRAPHS: dict[str, tuple[str, tuple[str, ...]]] = {
    "skimage": (
        "data",
        (
            "brick.png",
            "chelsea.png",
            "coins.png",
            "grass.png",
            "gravel.png",
            "hubble_deep_field.jpg",
            "ihc.png",
            "moon.png",
            "motorcycle_left.png",
            "motorcycle_right.png",
            "retina.jpg",
            "rocket.jpg",
        ),
    ),
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
    "matplotlib": ("mpl-data/sample_data", ("grace_hopper.jpg",)),
}


def load_image(path: str | os.PathLike[str], *, grey: bool = False) -> Tensor:
    """Read an image file.

    PNG, JPEG, TIFF and BMP (8 or 16 bits, one page) come in [0, 1] with any alpha channel dropped; ``.npy``
    and ``.fits`` keep their own units. Row 0 of a FITS array is its first row: nothing is flipped.

    :param path: file; its ending decides how it is read.
    :param bool grey: one channel, by the BT.601 luma weights.
    :returns: (1, C, H, W) float32.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: for an unknown ending, an unreadable file, a wrong shape, NaN or infinity.
    :raises ImportError: for FITS without astropy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no image file {str(path)!r}{'; it is a folder' if path.is_dir() else ''}")
    ending = path.suffix.lower()
    readers: dict[str, Callable[[Path], np.ndarray]] = dict.fromkeys(PHOTOS, _read_photo)
    readers.update({".npy": _read_npy, ".fits": _read_fits, ".fit": _read_fits})
    if ending not in readers:
        known = ", ".join(sorted(readers))
        raise ValueError(f"{path}: expected an ending of {known}, got {ending or 'none'!r}")
    with np.errstate(over="ignore"):  # becomes infinite, which is told
        pixels = np.ascontiguousarray(_channels_first(readers[ending](path), path), dtype=np.float32)
    _check_finite(pixels, path)
    x = torch.from_numpy(pixels)[None]
    return to_grey(x) if grey else x


def to_grey(x: Tensor) -> Tensor:
    """BT.601 luma of (..., 3, H, W), as (..., 1, H, W); one channel passes through."""
    if x.shape[-3] == 1:
        return x
    if x.shape[-3] != 3:
        raise ValueError(f"expected 1 or 3 channels to make grey of, got shape {tuple(x.shape)}")
    weights = torch.tensor(LUMA, dtype=x.dtype, device=x.device)
    return (x * weights[:, None, None]).sum(-3, keepdim=True)


def save_png(path: str | os.PathLike[str], x: Tensor, *, overwrite: bool = False) -> None:
    """Write an image as 8-bit PNG, clipped to [0, 1].

    :param path: file to write, ending in ``.png``.
    :param torch.Tensor x: (H, W), (1, H, W), (3, H, W), or (1, C, H, W).
    :param bool overwrite: replace a file that is there.
    :raises FileExistsError: if there is one and ``overwrite`` is False.
    :raises FileNotFoundError: if the folder does not exist; PermissionError: if it cannot be written to.
    :raises ValueError: for another ending or shape, NaN or infinity.
    """
    from PIL import Image

    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"save_png writes .png files, got {str(path)!r}")
    image = x[0] if x.ndim == 4 and x.shape[0] == 1 else x
    image = image[None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.numel() == 0:
        raise ValueError(f"save_png expects (H, W), (1 or 3, H, W) or (1, C, H, W), got {tuple(x.shape)}")
    if image.is_complex():
        raise ValueError("save_png expects a real image, got a complex one; save its abs() or real")
    pixels = image.detach().float().cpu().numpy()
    _check_finite(pixels, path)
    bytes_ = np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)
    bytes_ = bytes_[0] if len(bytes_) == 1 else np.ascontiguousarray(bytes_.transpose(1, 2, 0))
    with written_whole(path, overwrite=overwrite) as part:
        Image.fromarray(bytes_).save(part, format="PNG")


def image_folder(folder: str | os.PathLike[str], *, grey: bool = True, megabytes: float = math.inf) -> Sequence[Tensor]:
    """Every image below a folder, sorted by path; sizes may differ, the number of channels may not.

    :param folder: searched recursively; hidden files are left out. A warning tells of files that are no images by
        their ending, and names those that are broken.
    :param bool grey: one channel each.
    :param float megabytes: as much is kept in memory; what is beyond is decoded anew each time [MB].
    :returns: sequence of (C, H, W) float32.
    :raises FileNotFoundError: if there is no such folder.
    :raises ValueError: if there is no image in it that can be read, or if some have one channel and some three.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no image folder {str(folder)!r}")
    found = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))
    images = [f for f in found if f.suffix.lower() in PHOTOS + DATA]
    if not images:
        raise ValueError(
            f"{folder}: expected images ({', '.join(PHOTOS + DATA)}), got {len(found)} files of other kinds"
        )
    if len(found) > len(images):
        skipped = f"skipped {len(found) - len(images)} of {len(found)} files"
        warnings.warn(f"{folder}: {skipped}, not images by their ending", stacklevel=2)
    read = FileSet(images, functools.partial(_one_image, grey=grey), megabytes=megabytes)
    channels = {shape[0]: path for shape, path in reversed(list(zip(read.shapes, read.paths, strict=True)))}
    if len(channels) > 1:
        shown = " and ".join(f"{path} has {count}" for count, path in sorted(channels.items()))
        raise ValueError(f"the images of a folder must have as many channels: {shown}; pass grey=True for one each")
    return read


def _one_image(path: Path, grey: bool) -> Tensor:
    return load_image(path, grey=grey)[0]


def permissive_photographs(*, min_size: int = 1, grey: bool = True) -> list[Tensor]:
    """The photographs in the installed scikit-image, scikit-learn and matplotlib that may be trained on.

    Read from the packages' own folders: nothing is downloaded. A file that a version of a package does not
    carry is left out. The held-out astronaut, camera and coffee are never among them.

    :param int min_size: leave out images with a shorter side [pixel].
    :param bool grey: one channel each; else those that have colour, with it.
    :returns: list of (1, H, W) or (3, H, W) float32 in [0, 1].
    :raises ImportError: if a package is missing.
    :raises ValueError: if no photograph is left.
    """
    photographs = [load_image(f, grey=grey)[0] for f in photograph_files()]
    photographs = [p for p in photographs if min(p.shape[-2:]) >= min_size and len(p) == (1 if grey else 3)]
    if not photographs:
        raise ValueError(f"expected photographs of {min_size} pixels a side, got none; lower min_size")
    return photographs


def photograph_files() -> list[Path]:
    """Where :func:`permissive_photographs` reads from, in its order."""
    files = []
    for package, (folder, names) in PHOTOGRAPHS.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise ImportError(f"the free photographs need {package}: pip install 'pnp_lofi[train]'")
        home = Path(spec.origin).parent / folder
        files += [home / name for name in names if (home / name).is_file()]
    return files


def _read_photo(path: Path) -> np.ndarray:
    """(H, W) or (H, W, C) in [0, 1], without alpha."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            pages = getattr(picture, "n_frames", 1)
            if pages > 1:
                raise ValueError(f"{path}: expected one page, got {pages}; split the file")
            mode = picture.mode
            other = mode in ("P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa")
            pixels = np.asarray(picture.convert("RGB") if other else picture)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: raise PIL.Image.MAX_IMAGE_PIXELS if it is meant to be so large ({error})") from error
    except (OSError, MemoryError) as error:
        raise ValueError(f"{path}: broken image file ({error})") from error
    if mode in ("LA", "La", "RGBA"):
        pixels = pixels[..., 0] if pixels.shape[-1] == 2 else pixels[..., :3]
    if pixels.dtype == bool:
        return pixels.astype(np.float32)
    if pixels.dtype.kind == "f":  # a float TIFF states no range: its values are kept
        return pixels
    # Pillow reads some 16-bit files as int32 ("I")
    if pixels.dtype != np.uint8 and (pixels.min() < 0 or pixels.max() > 65535):
        raise ValueError(
            f"{path}: expected 8 or 16 bits without sign, got {pixels.min()} to {pixels.max()}; save it as float32 "
            "TIFF or .npy, which keep their units"
        )
    return pixels / np.float32(255 if pixels.dtype == np.uint8 else 65535)


def _read_npy(path: Path) -> np.ndarray:
    try:
        pixels = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy and zipfile raise of all kinds over broken files
        raise ValueError(
            f"{path}: expected a numeric .npy array, got a broken file or pickled objects, which can run "
            f"code when they are read; save it with np.save of a float array ({error})"
        ) from error
    if not isinstance(pixels, np.ndarray) or pixels.dtype.kind not in "biuf":
        got = getattr(pixels, "dtype", type(pixels).__name__)
        raise ValueError(f"{path}: expected real numbers, got {got}")
    return pixels


def _read_fits(path: Path) -> np.ndarray:
    return first_fits_image(path)[0].astype(np.float32)


def first_fits_image(path: str | os.PathLike[str]) -> tuple[np.ndarray, Any]:
    """The first image of a FITS file, leading axes of length one (frequency, Stokes) dropped, and its header.

    :raises FileNotFoundError, ValueError: if there is no such file, or it is no FITS image.
    """
    try:
        from astropy.io import fits
    except ImportError as error:
        raise ImportError("FITS files need astropy: pip install 'pnp_lofi[radio]'") from error
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    try:
        with fits.open(path, memmap=False) as units:
            found = next(((u.data, u.header) for u in units if u.is_image and u.data is not None), None)
    except Exception as error:  # astropy raises of all kinds over broken files
        raise ValueError(f"{path}: broken FITS file ({error})") from error
    if found is None:
        raise ValueError(f"{path}: expected a FITS image, got only headers or tables")
    pixels = np.asarray(found[0])
    while pixels.ndim > 2 and pixels.shape[0] == 1:
        pixels = pixels[0]
    return pixels, found[1]


def _channels_first(pixels: np.ndarray, path: Path) -> np.ndarray:
    """(H, W), (H, W, 3) of photographs, or (1 or 3, H, W) of data, as (C, H, W)."""
    if pixels.ndim == 4 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif pixels.ndim == 3 and pixels.shape[0] not in (1, 3) and pixels.shape[-1] in (1, 3):
        pixels = pixels.transpose(2, 0, 1)
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or pixels.size == 0:
        raise ValueError(f"{path}: expected (H, W) or 1 or 3 channels of it, got shape {pixels.shape}")
    return pixels


def _check_finite(pixels: np.ndarray, path: Path) -> None:
    bad = ~np.isfinite(pixels)
    if bad.any():
        channel, row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"{path}: expected finite pixels, got {int(bad.sum())} NaN or infinite of {bad.size}, the first "
            f"at row {row}, column {column}, channel {channel}; blank them first, e.g. with torch.nan_to_num"
        )


def check_ending(path: str | os.PathLike[str], x: Tensor) -> str:
    """The path's ending, if :func:`save_image` can write such an image by it.

    :raises ValueError: for another ending, or for colour in FITS.
    """
    ending = Path(path).suffix.lower()
    if ending not in (".png", ".npy", ".fits", ".fit") or (ending.startswith(".fit") and x.shape[1] != 1):
        raise ValueError(f"{path}: expected .png, .npy or (one channel) .fits for an image {tuple(x.shape)}")
    return ending


def save_image(path: str | os.PathLike[str], x: Tensor, *, overwrite: bool = False) -> None:
    """Write an image by the ending of the path: ``.png`` (clipped to [0, 1]), or ``.npy`` / ``.fits`` as it is.

    :param torch.Tensor x: (1, C, H, W), C = 1 or 3; FITS takes C = 1.
    :raises ValueError: for another ending or shape, NaN or infinity.
    :raises FileExistsError: if the path exists and overwrite is not asked for.
    """
    ending = check_ending(path, x)
    check_real(path, image=x)
    if ending == ".png":
        save_png(path, x, overwrite=overwrite)
    elif ending == ".npy":
        with written_whole(path, overwrite=overwrite) as part, part.open("wb") as file:
            np.save(file, x[0].detach().cpu().numpy())
    else:
        write_fits(path, x[0, 0].detach().cpu().numpy(), {}, overwrite=overwrite)
