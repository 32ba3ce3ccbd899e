"""A file at any size: what `pnp-lofi zoom` does."""

import math
import os
from pathlib import Path
from typing import Any

from pnp_lofi.files import check_writable
from pnp_lofi.fits import write_fits
from pnp_lofi.images import check_ending, first_fits_image, load_image, save_image
from pnp_lofi.interpolation import KERNELS
from pnp_lofi.launch import working_device
from pnp_lofi.zoom import network, target_shape, zoom

FITS = (".fit", ".fits")
# cards that describe the array itself, or that a dict cannot hold
DROPPED = ("SIMPLE", "BITPIX", "NAXIS", "EXTEND", "BSCALE", "BZERO", "BLANK", "XTENSION", "PCOUNT", "GCOUNT", "DATAMIN",
           "DATAMAX", "CHECKSUM", "DATASUM", "COMMENT", "HISTORY", "CONTINUE", "END", "")  # fmt: skip
PER_PIXEL = ("/pix", "/pixel")
RANGED = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def zoom_file(
    file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    scale: float | tuple[float, float] | None = None,
    shape: tuple[int, int] | None = None,
    model: str = "zoom",
    device: str | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Write an image of another size.

    An image in its own units is brought to [0, 1] for a network and back. From FITS to FITS the header is kept: its
    reference pixel and pixel size follow, and an image in units per pixel is divided by the factor of the area.

    :param file: PNG, JPEG, TIFF, npy or FITS. :param out: .png, .npy or .fits.
    :param scale, shape: as :func:`~pnp_lofi.zoom.zoom`.
    :param str model: a shipped name, a path, or "bilinear", "bicubic", "smooth".
    :returns: (H, W) of what was written.
    :raises ValueError: for what cannot be read, written or asked for; FileExistsError: without overwrite.
    """
    check_writable(out, overwrite=overwrite)
    if (scale is None) == (shape is None):
        raise ValueError("give either --scale or --shape")
    x = load_image(file)
    check_ending(out, x)
    size = (x.shape[-2], x.shape[-1])
    target = shape if scale is None else target_shape(size, scale)
    found, again = (model, False) if model in KERNELS else network(model)
    if not isinstance(found, str):
        found = found.to(working_device(device))
    low, high = (0.0, 1.0) if Path(file).suffix.lower() in RANGED else (float(x.min()), float(x.max()))
    span = high - low or 1.0
    answer = zoom(found, (x - low) / span, shape=target, recursive=again, progress=progress) * span + low
    if Path(file).suffix.lower() in FITS and Path(out).suffix.lower() in FITS:
        header = dict(first_fits_image(file)[1])
        if any(str(header.get("BUNIT", "")).lower().endswith(unit) for unit in PER_PIXEL):
            answer = answer * (size[0] / answer.shape[-2]) * (size[1] / answer.shape[-1])
        cards = zoomed_header(header, size, (answer.shape[-2], answer.shape[-1]))
        write_fits(out, answer[0, 0].numpy(), cards, overwrite=overwrite)
    else:
        save_image(out, answer.clamp(0, 1) if Path(out).suffix.lower() == ".png" else answer, overwrite=overwrite)
    return answer.shape[-2], answer.shape[-1]


def zoomed_header(header: dict[str, Any], size: tuple[int, int], target: tuple[int, int]) -> dict[str, Any]:
    """FITS cards of an image on another grid over the same square: axis 1 is the columns.

    CRPIX <- (CRPIX - 1/2) f + 1/2, CDELT and column k of the CD matrix <- / f_k; a PC matrix of pixels that get another
    shape is corrected, since CDELT stands before it.
    """
    cards = {k: v for k, v in header.items() if not k.startswith("NAXIS") and k not in DROPPED and v is not None
             and math.isfinite(v if isinstance(v, int | float) else 0)}  # fmt: skip
    factors = {1: target[1] / size[1], 2: target[0] / size[0]}
    for k, factor in factors.items():
        if f"CRPIX{k}" in cards:
            cards[f"CRPIX{k}"] = (cards[f"CRPIX{k}"] - 0.5) * factor + 0.5
        if f"CDELT{k}" in cards:
            cards[f"CDELT{k}"] = cards[f"CDELT{k}"] / factor
        for row in (1, 2):
            if f"CD{row}_{k}" in cards:
                cards[f"CD{row}_{k}"] = cards[f"CD{row}_{k}"] / factor
            if f"PC{row}_{k}" in cards:  # CDELT_row was divided by the row's factor, column k wants its own
                cards[f"PC{row}_{k}"] = cards[f"PC{row}_{k}"] * factors[row] / factor
    return cards
