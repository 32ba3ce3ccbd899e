"""Sky images as FITS with a world coordinate system. Needs astropy: pip install 'pnp_lofi[radio]'."""

import os
from typing import Any

import numpy as np

from pnp_lofi.files import written_whole


def sky_header(
    shape: tuple[int, int], cell: float, phase_centre: tuple[float, float], unit: str, **cards: Any
) -> dict[str, Any]:
    """FITS cards of an orthographic sky image.

    :param tuple shape: (H, W); the reference pixel is (H//2, W//2), so CRPIX = N//2 + 1.
    :param float cell: pixel size [arcsec].
    :param tuple phase_centre: RA, Dec [deg].
    :param str unit: BUNIT, such as "Jy/pixel" or "Jy/beam".
    :param cards: further cards.
    """
    height, width = shape
    return {
        "CTYPE1": "RA---SIN", "CRVAL1": phase_centre[0], "CRPIX1": width // 2 + 1, "CDELT1": -cell / 3600,
        "CUNIT1": "deg",
        "CTYPE2": "DEC--SIN", "CRVAL2": phase_centre[1], "CRPIX2": height // 2 + 1, "CDELT2": cell / 3600,
        "CUNIT2": "deg", "RADESYS": "ICRS", "BUNIT": unit,
    } | cards  # fmt: skip


def write_fits(
    path: str | os.PathLike[str], image: np.ndarray, header: dict[str, Any], *, overwrite: bool = False
) -> None:
    """Write an image as float32, whole or not at all.

    :param numpy.ndarray image: (H, W); row 0 is the southern edge, column 0 the eastern.
    :param dict header: cards, from :func:`sky_header`; what FITS cannot hold in a text becomes "?".
    :raises ValueError: if the image has another shape.
    :raises FileExistsError: if the path exists and overwrite is not asked for.
    """
    from astropy.io import fits

    if np.ndim(image) != 2:
        raise ValueError(f"write_fits expects an image of shape (H, W), got {np.shape(image)}")
    cards = {k: _ascii(v) if isinstance(v, str) else v for k, v in header.items()}
    with written_whole(path, overwrite=overwrite) as part:
        fits.PrimaryHDU(np.asarray(image, np.float32), fits.Header(cards)).writeto(part, overwrite=True)


def _ascii(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def read_place(path: str | os.PathLike[str]) -> tuple[float | None, float | None, float | None]:
    """RA and Dec of the reference pixel [deg] and the pixel size [arcsec] that a FITS header names, else None.

    Only celestial axes count (CTYPE1 "RA...", CTYPE2 "DEC..."); a header without them names nothing.
    """
    from astropy.io import fits

    header = fits.getheader(path)
    celestial = str(header.get("CTYPE1", "")).startswith("RA") and str(header.get("CTYPE2", "")).startswith("DEC")
    if not celestial or not header.get("CDELT2"):
        return None, None, None
    return float(header["CRVAL1"]), float(header["CRVAL2"]), abs(float(header["CDELT2"])) * 3600
