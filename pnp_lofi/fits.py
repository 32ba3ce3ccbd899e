"""Sky images as FITS with a world coordinate system. Needs astropy: pip install 'pnp_lofi[radio]'."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pnp_lofi.beam import Beam
from pnp_lofi.files import written_whole


def sky_header(
    shape: tuple[int, int],
    cell: float,
    phase_centre: tuple[float, float],
    unit: str,
    *,
    frequency: float | None = None,
    bandwidth: float | None = None,
    beam: Beam | None = None,
    **cards: Any,
) -> dict[str, Any]:
    """FITS cards of an orthographic sky image.

    With a frequency the image has four axes, RA, Dec, frequency and Stokes I, the last two of length one (WSClean's
    order): casacore, on which CASA and CARTA rest, and astropy read place, frequency, Stokes and beam from it.

    :param tuple shape: (H, W); the reference pixel is (H//2, W//2), so CRPIX = N//2 + 1.
    :param float cell: pixel size [arcsec].
    :param tuple phase_centre: RA, Dec [deg].
    :param str unit: BUNIT, such as "Jy/pixel" or "Jy/beam".
    :param float frequency: middle of the band [Hz]; float bandwidth: its width [Hz], if it is known.
    :param Beam beam: the restoring beam, of an image in Jy/beam.
    :param cards: further cards.
    :raises ValueError: for a frequency or bandwidth that is not finite and > 0, a bandwidth alone.
    """
    height, width = shape
    header = {
        "CTYPE1": "RA---SIN", "CRVAL1": phase_centre[0], "CRPIX1": width // 2 + 1.0, "CDELT1": -cell / 3600,
        "CUNIT1": "deg",
        "CTYPE2": "DEC--SIN", "CRVAL2": phase_centre[1], "CRPIX2": height // 2 + 1.0, "CDELT2": cell / 3600,
        "CUNIT2": "deg", "LONPOLE": 180.0, "LATPOLE": phase_centre[1], "RADESYS": "ICRS", "BUNIT": unit,
        "BTYPE": "Intensity",
    }  # fmt: skip
    if any(f is not None and not 0 < f < float("inf") for f in (frequency, bandwidth)):
        raise ValueError(f"frequency and bandwidth must be finite and > 0 Hz, got {frequency} and {bandwidth}")
    if frequency is not None:
        header |= {
            "CTYPE3": "FREQ", "CRVAL3": frequency, "CRPIX3": 1.0, "CDELT3": bandwidth or 1.0, "CUNIT3": "Hz",
            "CTYPE4": "STOKES", "CRVAL4": 1.0, "CRPIX4": 1.0, "CDELT4": 1.0, "RESTFRQ": frequency,
            "SPECSYS": "TOPOCENT",
        }  # fmt: skip
    elif bandwidth is not None:
        raise ValueError("a bandwidth needs the frequency")
    return header | (beam.cards() if beam is not None else {}) | cards


def write_fits(
    path: str | os.PathLike[str], image: np.ndarray, header: dict[str, Any], *, overwrite: bool = False
) -> None:
    """Write an image as float32, whole or not at all. NaN is FITS' blank.

    :param numpy.ndarray image: (H, W); row 0 is the southern edge, column 0 the eastern. Where the header has more
        axes it gets them, each of length one.
    :param dict header: cards, from :func:`sky_header`; what FITS cannot hold in a text becomes "?".
    :raises ValueError: if the image has another shape.
    :raises FileExistsError: if the path exists and overwrite is not asked for.
    """
    from astropy.io import fits

    if np.ndim(image) != 2:
        raise ValueError(f"write_fits expects an image of shape (H, W), got {np.shape(image)}")
    cards = {k: _ascii(v) if isinstance(v, str) else v for k, v in header.items()}
    axes = 4 if "CTYPE4" in cards else 3 if "CTYPE3" in cards else 2
    pixels = np.asarray(image, np.float32).reshape((1,) * (axes - 2) + np.shape(image))
    with written_whole(path, overwrite=overwrite) as part:
        fits.PrimaryHDU(pixels, fits.Header(cards)).writeto(part, overwrite=True)


def _ascii(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in text)


@dataclass(frozen=True)
class Grid:
    """Where an image's pixels lie.

    :param tuple shape: (H, W); float cell: [arcsec]; tuple centre: RA, Dec [deg] of the pixel (H//2, W//2).
    """

    shape: tuple[int, int]
    cell: float
    centre: tuple[float, float]


def read_grid(path: str | os.PathLike[str]) -> Grid:
    """The grid of an image as :func:`sky_header` describes it, and as CASA and WSClean write it.

    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: for a file that is no FITS image, another projection, pixels that are turned or not square, a
        reference pixel elsewhere than in the middle.
    """
    from astropy.io import fits
    from astropy.wcs import WCS
    from astropy.wcs.utils import proj_plane_pixel_scales

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        header = fits.getheader(path)
        wcs = WCS(header).celestial
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no FITS image: {error}") from error
    if header.get("NAXIS", 0) < 2 or list(wcs.wcs.ctype) != ["RA---SIN", "DEC--SIN"]:
        raise ValueError(f"{path}: expected an image with axes RA---SIN and DEC--SIN, got {list(wcs.wcs.ctype)}")
    shape, scales = (int(header["NAXIS2"]), int(header["NAXIS1"])), proj_plane_pixel_scales(wcs)
    middle = (shape[1] // 2 + 1.0, shape[0] // 2 + 1.0)
    east, north = np.diag(wcs.pixel_scale_matrix)
    if not (np.allclose(scales, scales[1], rtol=1e-6) and np.allclose([-east, north], scales, rtol=1e-6)):
        raise ValueError(f"{path}: expected square pixels, North up and East left, got {wcs.pixel_scale_matrix} deg")
    if not np.allclose(wcs.wcs.crpix, middle):
        raise ValueError(f"{path}: expected the reference pixel {middle} (N//2 + 1), got {tuple(wcs.wcs.crpix)}")
    return Grid(shape, float(scales[1]) * 3600, (float(wcs.wcs.crval[0]), float(wcs.wcs.crval[1])))


def read_sky_grid(path: str | os.PathLike[str]) -> Grid | None:
    """The grid of a sky [Jy/pixel]; None where its header names no axes of the sky (CTYPE1 "RA...").

    :raises ValueError: for another unit; and as :func:`read_grid`.
    """
    from astropy.io import fits

    header = fits.getheader(path)
    unit = str(header.get("BUNIT", "")).strip()
    if unit.lower() not in ("", "jy/pixel", "jy/pix", "jy"):
        raise ValueError(
            f"{path} is in {unit}, expected Jy/pixel; divide by the beam's area in pixels, and change BUNIT"
        )
    return read_grid(path) if str(header.get("CTYPE1", "")).startswith("RA") else None
