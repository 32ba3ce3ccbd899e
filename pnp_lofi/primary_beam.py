"""The antennas' primary beam on our grid, and images corrected for it.

A pattern is a function from the angle to the pointing [deg] to the power, 1 at the centre. A reconstruction shows the
apparent sky, the true one times the power; dividing by it gives the true sky, and noise that grows outwards.
"""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.checks import checked_shape

Pattern = Callable[[Tensor], Tensor]

HALF_POWER = 1.18896478  # twice the x at which (cos(pi x) / (1 - 4 x^2))^2 = 1/2
MEERKAT_FWHM = 57.5 / 60 * 1.5e9  # [deg Hz]
CUTOFF = 0.2  # power below which a corrected image is blank, as in CASA's pblimit
ARCSEC = math.pi / 180 / 3600  # [rad]
VLA_BANDS = (  # upper frequency [Hz], a1, a2, a3 of 1 + a1 x + a2 x^2 + a3 x^3
    (1.1e9, -0.935e-3, 3.23e-7, -0.378e-10),
    (2e9, -1.343e-3, 6.579e-7, -1.186e-10),
    (6e9, -1.372e-3, 6.940e-7, -1.309e-10),
    (10e9, -1.306e-3, 6.253e-7, -1.100e-10),
    (18e9, -1.305e-3, 6.155e-7, -1.030e-10),
    (30e9, -1.417e-3, 7.332e-7, -1.352e-10),
    (math.inf, -1.321e-3, 6.185e-7, -0.983e-10),
)


def pattern(kind: str | float | os.PathLike[str], frequency: float) -> Pattern:
    """The pattern of a telescope, of a Gaussian, or of a file.

    :param kind: "meerkat", "vla", a Gaussian's full width at half maximum [deg] at this frequency, or a file's path.
    :param float frequency: [Hz]; a file is taken to be of this frequency.
    :raises ValueError: for another name, a width or frequency that is not finite and > 0.
    """
    if not 0 < frequency < math.inf:
        raise ValueError(f"frequency must be finite and > 0 Hz, got {frequency}")
    if isinstance(kind, int | float):
        width = float(kind)
        if not 0 < width < math.inf:
            raise ValueError(f"the width of a primary beam must be finite and > 0 deg, got {kind}")
        return lambda angle: gaussian(angle, width)
    if str(kind).lower() == "meerkat":
        return lambda angle: meerkat(angle, frequency)
    if str(kind).lower() == "vla":
        return lambda angle: vla(angle, frequency)
    if not Path(kind).is_file():
        raise ValueError(f"no telescope or file {str(kind)!r}; known: meerkat, vla, or a table of radius [deg], power")
    return read_pattern(kind)


def gaussian(angle: Tensor, fwhm: float) -> Tensor:
    """exp(-4 ln 2 (angle / fwhm)^2), both in the same unit."""
    return torch.exp(-4 * math.log(2) * (angle / fwhm) ** 2)


def meerkat(angle: Tensor, frequency: float) -> Tensor:
    """MeerKAT's power, circularly symmetric: (cos(1.189 pi rho) / (1 - 4 (1.189 rho)^2))^2, rho = angle / FWHM,
    FWHM = 57.5 arcmin 1.5 GHz / frequency.

    An approximation that is only scaled with frequency. The real beam is somewhat wider in one direction than in the
    other, and the side lobes are not to be relied on; katbeam has measured ones.

    :param torch.Tensor angle: [deg]; float frequency: [Hz].
    Source: Mauch et al. 2020, ApJ 888, 61, equations 3 and 4, as katbeam and others quote it; not checked there.
    """
    x = HALF_POWER * angle * frequency / MEERKAT_FWHM
    taper = math.pi / 4 * (torch.sinc(x + 0.5) + torch.sinc(x - 0.5))  # the quotient, without its 0/0 at x = 1/2
    return taper**2


def vla(angle: Tensor, frequency: float) -> Tensor:
    """The VLA's power by AIPS' polynomials, x = (angle [arcmin] frequency [GHz])^2; zero beyond their root.

    Half power is some 43 arcmin / GHz wide.

    :param torch.Tensor angle: [deg]; float frequency: [Hz].
    Source: AIPS' PBCALC, as Obit's ObitPBUtilPoly repeats it: fits to the VLA before its upgrade. For other values
    give a table.
    """
    a1, a2, a3 = next(band[1:] for band in VLA_BANDS if frequency < band[0])
    x = (angle * 60 * frequency / 1e9) ** 2
    return (1 + x * (a1 + x * (a2 + x * a3))).clamp_min(0.0)


def read_pattern(path: str | os.PathLike[str]) -> Pattern:
    """A table of radius [deg] and power, one pair a line, commas or blanks between, # comments; linear in between and
    zero beyond its end.

    :raises ValueError: unless the radii grow from 0 and the powers are finite, 1 at radius 0.
    """
    try:
        text = Path(path).read_text("utf-8").replace(",", " ")
        table = np.loadtxt(text.splitlines(), ndmin=2, dtype=np.float64)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected lines of radius [deg] and power; {error}") from error
    if table.ndim != 2 or table.shape[1] != 2 or len(table) < 2:
        raise ValueError(f"{path}: expected two columns, radius [deg] and power, got an array of {table.shape}")
    radius, power = table.T
    if radius[0] != 0 or not (np.diff(radius) > 0).all() or not np.isfinite(table).all() or (power < 0).any():
        raise ValueError(f"{path}: radii must grow from 0, powers must be finite and >= 0")
    if not abs(power[0] - 1) < 1e-3:
        raise ValueError(f"{path}: the power at radius 0 must be 1, got {power[0]:g}; is it in per cent or decibel?")
    return lambda angle: torch.from_numpy(np.interp(angle.double().cpu().numpy(), radius, power, right=0.0)).to(angle)


def primary_beam(
    shape: Sequence[int], cell: float, power: Pattern, *, pointing: tuple[float, float] = (0.0, 0.0)
) -> Tensor:
    """A pattern on the grid of an image, rows to the North, columns to the West, orthographic.

    :param tuple shape: (H, W); float cell: pixel size [arcsec].
    :param Pattern power: of the angle [deg].
    :param tuple pointing: of the antennas, East and North of the phase centre [arcsec]; direction cosines.
    :returns: (H, W) float64; NaN beyond the horizon.
    :raises ValueError: for a cell <= 0.
    """
    shape = checked_shape(shape)
    if not 0 < cell < math.inf:
        raise ValueError(f"cell must be finite and > 0 arcsec, got {cell}")
    rows, columns = (cell * ARCSEC * (torch.arange(n, dtype=torch.float64) - n // 2) for n in shape)
    m, l = rows[:, None], -columns[None]
    l0, m0 = (offset * ARCSEC for offset in pointing)
    n, n0 = torch.sqrt(1 - l**2 - m**2), math.sqrt(1 - l0**2 - m0**2)
    chord = torch.sqrt((l - l0) ** 2 + (m - m0) ** 2 + (n - n0) ** 2)
    return power(torch.rad2deg(2 * torch.asin(chord / 2)))


def correct(image: Tensor, beam: Tensor, *, cutoff: float = CUTOFF) -> Tensor:
    """image / beam, NaN where the beam is below the cutoff.

    NaN is how FITS says "no value" in images of floating point (the card BLANK is for integers only); CARTA, DS9 and
    astropy leave such pixels out of the picture and of statistics.

    :param torch.Tensor image: (..., H, W), apparent [Jy/beam or Jy/pixel]; torch.Tensor beam: (H, W).
    :raises ValueError: if the shapes differ, or the cutoff is not in (0, 1].
    """
    if image.shape[-2:] != beam.shape:
        raise ValueError(f"image and beam must be of one size, got {tuple(image.shape)} and {tuple(beam.shape)}")
    if not 0 < cutoff <= 1:
        raise ValueError(f"cutoff must lie in (0, 1], got {cutoff}; at 0 the noise is unbounded")
    beam = beam.to(image.device, torch.promote_types(image.dtype, torch.float32))
    return torch.where(beam >= cutoff, image / beam, torch.nan).to(image.dtype)


def corrected_noise(noise: float, beam: Tensor, *, cutoff: float = CUTOFF) -> Tensor:
    """Noise of the corrected image, (H, W): noise / beam, which is 1/cutoff times larger at the edge; NaN beyond."""
    return correct(torch.full_like(beam, noise), beam, cutoff=cutoff)
