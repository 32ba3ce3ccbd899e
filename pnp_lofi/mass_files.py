"""Shear in files, as maps or as a catalogue, and maps of the convergence written beside it. Needs astropy."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.images import first_fits_image
from pnp_lofi.lensing import grid_catalogue
from pnp_lofi.mass_maps import Survey

ANGLE, PLACE = ("CTYPE", "CUNIT"), ("CRVAL", "CRPIX", "CDELT")
CARDS = (*(f"{name}{axis}" for axis in (1, 2) for name in (*ANGLE, *PLACE)), "CD1_1", "CD1_2", "CD2_1", "CD2_2",
         "PC1_1", "PC1_2", "PC2_1", "PC2_2", "LONPOLE", "LATPOLE", "RADESYS", "EQUINOX")  # fmt: skip


class Shear(NamedTuple):
    """What was measured.

    :param torch.Tensor gamma: (1, 2, H, W); Survey survey: where and how well.
    :param dict cards: the FITS cards that place it on the sky; empty if nothing says.
    :param float pixel: size [arcmin], None if nothing says.
    """

    gamma: Tensor
    survey: Survey
    cards: dict[str, Any]
    pixel: float | None


def read_shear(
    e1: Path, e2: Path | None, mask: Path | None, std: Sequence[str], *, pixel: float | None = None
) -> Shear:
    """Maps of the shear, its mask and its noise.

    :param e1, e2: (H, W); without e2 both in one file, (2, H, W) or (H, W, 2).
    :param mask: (H, W), zeros and ones; default, where the noise is > 0.
    :param std: a number, or one file or two with the noise of a pixel and component, (H, W).
    :raises ValueError: if shapes differ, the mask is empty, or where it is 1 shear or noise are not finite, or noise is
        not > 0.
    """
    if e1 == e2 and str(e1) not in (str(mask), *std):  # as for a survey alone
        raise ValueError(f"{e1} is given for both components; leave --e2 out where one file holds both")
    first = read_image(e1)
    if e2 is None:
        if first.ndim != 3 or 2 not in (first.shape[0], first.shape[-1]):
            raise ValueError(f"{e1}: without --e2 expected both components, (2, H, W) or (H, W, 2), got {first.shape}")
        first = first if first.shape[0] == 2 else np.moveaxis(first, -1, 0)
        parts = {f"{e1}, component {k + 1}": part for k, part in enumerate(first)}
    else:
        parts = {str(e1): first, str(e2): read_image(e2)}
    maps = dict(parts)
    noise = [float(s) if _is_number(s) else read_image(Path(s)) for s in std]
    if not 1 <= len(noise) <= 2:
        raise ValueError(f"the noise is a number, one file or two files, got {len(noise)}: give --std once or twice")
    maps |= {s: value for s, value in zip(std, noise, strict=True) if not isinstance(value, float)}
    if mask is not None:
        maps[str(mask)] = read_image(mask)
    shapes = {name: value.shape for name, value in maps.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 2 for shape in shapes.values()):
        raise ValueError(f"maps of the shear, mask and noise must have one shape (H, W), got {shapes}")
    shape = next(iter(shapes.values()))
    sigma = np.stack([np.broadcast_to(noise[k], shape) for k in (0, -1)])
    seen = maps[str(mask)] if mask is not None else (np.nan_to_num(sigma) > 0).all(0)
    if not np.isin(seen, (0, 1)).all():
        raise ValueError(f"{mask}: a mask holds zeros and ones, got values from {seen.min()} to {seen.max()}")
    seen = seen.astype(bool)
    if not seen.any():
        raise ValueError(f"{mask or ', '.join(std)}: no pixel is seen: the mask, or the noise, is zero everywhere")
    with np.errstate(over="ignore"):  # becomes infinite, which is told
        gamma = np.where(seen, np.stack(list(parts.values())), 0).astype(np.float32)
        sigma = np.where(seen, sigma, 0).astype(np.float32)
    for name, part in zip(parts, gamma, strict=True):
        if bad := int((~np.isfinite(part)).sum()):
            raise ValueError(f"{name}: {bad} NaN or inf inside the mask; take those pixels out of the mask")
    if bad := int((~(np.isfinite(sigma) & (sigma > 0)).all(0) & seen).sum()):
        raise ValueError(
            f"{', '.join(std)}: expected noise sigma > 0 inside the mask, got {bad} pixels with NaN, inf, zero or "
            "less; take those pixels out of the mask"
        )
    cards = _cards(e1)
    survey = Survey(torch.from_numpy(seen), torch.from_numpy(sigma))
    return Shear(torch.from_numpy(gamma)[None], survey, cards, pixel or _pixel(cards, e1))


def read_survey(mask: Path | None, std: Sequence[str] | None) -> Survey | None:
    """The survey that files give, None if none is given. Without a mask it is where the maps of the noise are > 0.

    :raises ValueError: if there is a mask without the noise of its pixels, or a number for the noise without a mask.
    """
    if mask is None and not std:
        return None
    if not std:
        raise ValueError("a mask needs the noise of its pixels: pass --std, a number or FITS maps")
    like = mask or next((Path(s) for s in std if not _is_number(s)), None)
    if like is None:
        raise ValueError(f"--std {' '.join(std)} is of which pixels? Pass --mask too; random surveys take no --std")
    return read_shear(like, like, mask, std).survey


def read_catalogue(
    path: Path,
    columns: Sequence[str],
    *,
    shape: tuple[int, int],
    pixel: float,
    centre: tuple[float, float] | None = None,
    east: Literal["left", "right"] = "left",
    positive_e2: Literal["NW", "NE"] = "NW",
) -> Shear:
    """A catalogue on a grid.

    :param path: a FITS table, or a folder of one FITS image NAME.fits for each column.
    :param columns: names of RA, Dec [deg], e1, e2 and, where there are five, the weight.
    :raises ValueError: naming the columns that there are.
    """
    if not 4 <= len(columns) <= 5:
        raise ValueError(f"expected the names of RA, Dec, e1, e2 and, if there is one, weight, got {tuple(columns)}")
    ra, dec, *rest = _columns(path, columns)
    if centre is None:
        a, d = np.radians(ra), np.radians(dec)
        x, y, z = (np.nanmean(v) for v in (np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)))
        centre = float(np.degrees(np.arctan2(y, x))) % 360, float(np.degrees(np.arctan2(z, np.hypot(x, y))))
    maps = grid_catalogue(ra, dec, *rest, shape=shape, pixel=pixel, centre=centre, east=east, positive_e2=positive_e2)
    cards = {
        "CTYPE1": "RA---TAN", "CUNIT1": "deg", "CRVAL1": centre[0], "CRPIX1": shape[1] / 2 + 0.5,
        "CDELT1": (-1 if east == "left" else 1) * pixel / 60,
        "CTYPE2": "DEC--TAN", "CUNIT2": "deg", "CRVAL2": centre[1], "CRPIX2": shape[0] / 2 + 0.5,
        "CDELT2": pixel / 60, "RADESYS": "ICRS",
    }  # fmt: skip
    return Shear(maps.gamma, Survey(maps.mask, maps.sigma), cards, pixel)


def two(text: str, option: str, kind: Callable[[str], Any]) -> tuple[Any, Any]:
    """:raises ValueError: naming the option, if the text is not two numbers with a comma."""
    try:
        first, second = map(kind, text.split(","))
    except ValueError as error:
        raise ValueError(f"{option}: expected two numbers with a comma between them, got {text!r}") from error
    return first, second


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """The first image of a FITS file, float64, see :func:`pnp_lofi.images.first_fits_image`."""
    return first_fits_image(path)[0].astype(np.float64)


def _columns(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    if path.is_dir():
        return [read_image(path / f"{name}.fits").ravel() for name in names]
    from astropy.io import fits

    if not path.is_file():
        raise FileNotFoundError(f"no catalogue {str(path)!r}")
    try:
        with fits.open(path, memmap=False) as units:
            table = next((unit.data for unit in units if isinstance(unit, fits.BinTableHDU | fits.TableHDU)), None)
    except Exception as error:  # astropy raises of all kinds over broken files
        raise ValueError(f"{path}: broken FITS file ({error})") from error
    if table is None:
        raise ValueError(f"{path}: expected a FITS table with the columns {', '.join(names)}, got no table")
    if missing := [name for name in names if name not in table.names]:
        raise ValueError(f"{path} lacks the columns {missing}, has {table.names}; name yours with --columns")
    if odd := [name for name in names if table[name].dtype.kind not in "iuf" or table[name].shape != (len(table),)]:
        raise ValueError(f"{path}: expected one number a row in the columns {', '.join(names)}, not so {odd}")
    if not len(table):
        raise ValueError(f"{path}: the table has no rows")
    return [np.asarray(table[name], np.float64) for name in names]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cards(path: Path) -> dict[str, Any]:
    header = first_fits_image(path)[1]
    celestial = str(header.get("CTYPE1", "")).startswith("RA") and str(header.get("CTYPE2", "")).startswith("DEC")
    return {name: header[name] for name in CARDS if name in header} if celestial else {}


def _pixel(cards: dict[str, Any], path: Path) -> float | None:
    """[arcmin]"""
    try:
        degrees = cards.get("CDELT2") or np.hypot(cards.get("CD1_2", 0.0), cards.get("CD2_2", 0.0))
        return abs(float(degrees)) * 60 or None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: CDELT2 or CD2_2 is no number ({error}); pass the pixel's size") from error
