"""Where an interferometer samples the Fourier plane: an array's tracks, and metres to radians per pixel."""

import functools
import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.antennas import Antennas, meerkat

C = 299792458.0  # speed of light [m/s]
SIDEREAL_DAY = 86164.09  # [s]
ARCSEC = math.pi / 180 / 3600  # [rad]
SLACK = 1e-5  # published coordinates at +-pi are off by a float32 rounding
LOWEST = 1e6  # frequency [Hz] below which no interferometer observes


@functools.cache
def _meerkat() -> Antennas:
    return meerkat()


def array_uvw(
    antennas: Antennas,
    hours: float,
    *,
    declination: float = -30.0,
    integration: float = 240.0,
    min_elevation: float = 15.0,
) -> Tensor:
    """Baselines of an array during a track centred on transit:

        u = sin(H) X + cos(H) Y;  v = -sin(d) cos(H) X + sin(d) sin(H) Y + cos(d) Z;
        w = cos(d) cos(H) X - cos(d) sin(H) Y + sin(d) Z

    at the middle of each dump, H = 2 pi t / 86164.09 s. Dumps below the elevation limit are dropped.

    :param Antennas antennas: from :mod:`pnp_lofi.antennas`, N of them.
    :param float hours: length of the track [h]; it holds the nearest number of whole dumps, at least one.
    :param float declination: d, of the phase centre [deg].
    :param float integration: length of a dump [s]; float min_elevation: [deg].
    :returns: (M, 3) float64 [m], ordered by time, then baseline i - j, i < j; M = N (N - 1) / 2 per dump.
    :raises ValueError: for arguments out of range, or if the source stays below the elevation limit.
    Source: Thompson, Moran and Swenson, Interferometry and Synthesis, equation 4.1.
    """
    H = hour_angles(antennas, hours, declination=declination, integration=integration, min_elevation=min_elevation)
    d = math.radians(declination)
    s, c = np.sin(H)[:, None], np.cos(H)[:, None]
    X, Y, Z = antennas.baselines().T
    u = s * X + c * Y
    v = math.sin(d) * (s * Y - c * X) + math.cos(d) * Z
    w = math.cos(d) * (c * X - s * Y) + math.sin(d) * Z
    return torch.from_numpy(np.stack([u, v, w], axis=-1).reshape(-1, 3))


def hour_angles(
    antennas: Antennas, hours: float, *, declination: float, integration: float, min_elevation: float
) -> np.ndarray:
    """(T,) hour angles [rad] of the dumps of :func:`array_uvw` that are kept; the arguments are its."""
    if not (math.isfinite(hours) and 0 < hours <= 24) or not (math.isfinite(integration) and integration > 0):
        raise ValueError(f"expected 0 < hours <= 24 and integration > 0 s, got {hours} h and {integration} s")
    if not -90 <= declination <= 90:
        raise ValueError(f"declination must lie in [-90, 90] deg, got {declination}")
    dumps = max(1, round(hours * 3600 / integration))
    H = 2 * math.pi * (np.arange(dumps) - (dumps - 1) / 2) * integration / SIDEREAL_DAY
    d, latitude = math.radians(declination), math.radians(antennas.latitude)
    elevation = np.arcsin(
        np.clip(math.sin(latitude) * math.sin(d) + math.cos(latitude) * math.cos(d) * np.cos(H), -1, 1)
    )
    up = elevation >= math.radians(min_elevation)
    if not up.any():
        best = math.degrees(elevation.max())
        raise ValueError(
            f"a source at declination {declination} deg rises to {best:.1f} deg at "
            f"{antennas.observatory or 'the array'}, below min_elevation = {min_elevation} deg; lower the limit or "
            f"choose a declination nearer to the latitude, {antennas.latitude:.1f} deg"
        )
    return H[up]


def array_uv(
    antennas: Antennas,
    hours: float = 4.0,
    *,
    declination: float = -30.0,
    frequency: float = 1.4e9,
    integration: float = 240.0,
    cell: float | None = None,
    min_elevation: float = 15.0,
    mapping: str = "physical",
) -> Tensor:
    """An array's coverage for :class:`NUFFT`.

    :param Antennas antennas, float hours, declination, integration, min_elevation: see :func:`array_uvw`.
    :param float frequency: [Hz].
    :param float cell: pixel size [arcsec]; default :func:`default_cell`, the longest baseline at Nyquist.
    :param str mapping: "physical", one scale for both axes; or "quantifai", u and v each stretched to [-pi, pi] by its
        own minimum and maximum and u put on the rows, as in the files that QuantifAI and the LoFi paper used. That is
        no sky: v is stretched by some 1.4 against u and the zero baseline moves away from zero. For reproduction only.
    :returns: (2, M) float64 [rad/pixel]; [0] acts on rows, [1] on columns.
    :raises ValueError: for an unknown mapping, or a cell with "quantifai", which has none.
    """
    if mapping not in ("physical", "quantifai"):
        raise ValueError(f'mapping must be "physical" or "quantifai", got {mapping!r}')
    if mapping == "quantifai" and cell is not None:
        raise ValueError('mapping="quantifai" has no pixel size; leave cell out or use mapping="physical"')
    uvw = array_uvw(antennas, hours, declination=declination, integration=integration, min_elevation=min_elevation)
    if mapping == "quantifai":
        return quantifai_uv(uvw)
    return uv_radians(uvw, frequency, default_cell(uvw, frequency) if cell is None else cell)


def quantifai_uv(uvw: Tensor) -> Tensor:
    """Baselines as QuantifAI maps them, u and v each stretched to [-pi, pi]; see :func:`array_uv`.

    :param torch.Tensor uvw: (M, 3) or (M, 2) [m].
    :returns: (2, M) [rad/pixel], u on the rows.
    :raises ValueError: if u or v is the same everywhere.
    """
    uv = uvw[:, :2].T
    low, high = uv.amin(1, keepdim=True), uv.amax(1, keepdim=True)
    if not bool((high > low).all()):
        raise ValueError(
            f'mapping="quantifai" stretches u and v from their least to their greatest, but the {uv.shape[1]} '
            "baselines do not differ in both; observe longer or with more antennas"
        )
    return (2 * (uv - low) / (high - low) - 1) * math.pi


def meerkat_uvw(
    hours: float, *, declination: float = -30.0, integration: float = 240.0, min_elevation: float = 15.0
) -> Tensor:
    """Baselines of MeerKAT's 64 antennas, see :func:`array_uvw`; M = 2016 per dump."""
    return array_uvw(_meerkat(), hours, declination=declination, integration=integration, min_elevation=min_elevation)


def meerkat_uv(
    hours: float = 4.0,
    *,
    declination: float = -30.0,
    frequency: float = 1.4e9,
    integration: float = 240.0,
    cell: float | None = None,
    min_elevation: float = 15.0,
    mapping: str = "physical",
) -> Tensor:
    """MeerKAT's coverage for :class:`NUFFT`, see :func:`array_uv`."""
    return array_uv(
        _meerkat(),
        hours,
        declination=declination,
        frequency=frequency,
        integration=integration,
        cell=cell,
        min_elevation=min_elevation,
        mapping=mapping,
    )


def uv_radians(uv: Tensor | np.ndarray, frequency: float | Tensor | np.ndarray, cell: float) -> Tensor:
    """Baselines in metres to radians per pixel.

    On the sky V = sum I(l, m) exp(-2 pi i (u l + v m)) with u, v in wavelengths, l positive East, m positive North.
    In the image rows grow to the North and columns to the *West* (FITS: right ascension grows to the left, CDELT1 < 0):
    m = (r - H//2) cell, l = -(c - W//2) cell. Equating the phase with uv[0] (r - H//2) + uv[1] (c - W//2) gives

        uv[0] = +2 pi v cell / lambda,    uv[1] = -2 pi u cell / lambda.

    :param uv: tensor or array (M, 2) or (M, 3), u East, v North [m]; a w is ignored, see :func:`w_phase`.
    :param frequency: scalar or (M,) [Hz].
    :param float cell: pixel size [arcsec].
    :returns: (2, M) float64 tensor [rad/pixel].
    :raises ValueError: for other shapes, and for a frequency or cell that is not finite and positive. Warns if a
        frequency is below 1 MHz.
    """
    _warn_of_unit(frequency)
    u, v = _wavelengths(uv, frequency)
    scale = 2 * math.pi * _radians(cell)
    return torch.stack([scale * v, -scale * u])


def uv_metres(uv: Tensor, frequency: float, cell: float) -> Tensor:
    """(M, 3) baselines [m], w = 0, of which :func:`uv_radians` makes these uv (2, M) [rad/pixel]."""
    scale = C / (2 * math.pi * frequency * _radians(cell))
    return torch.stack([-uv[1] * scale, uv[0] * scale, torch.zeros_like(uv[0])], dim=1)


def within_nyquist(uv: Tensor, cell: float) -> Tensor:
    """:param torch.Tensor uv: of :func:`uv_radians`, which is returned; float cell: pixel size [arcsec].
    :raises ValueError: if the longest baselines would alias; says how large the cell may be.
    """
    reach = float(uv.abs().max()) / math.pi
    if reach > 1 + SLACK:
        raise ValueError(
            f"a cell of {cell:.4g} arcsec is too coarse, the longest baselines alias; use at most {cell / reach:.4g} "
            "arcsec, or leave the cell out to have it chosen"
        )
    return uv


def default_cell(
    uv: Tensor | np.ndarray, frequency: float | Tensor | np.ndarray, *, super_resolution: float = 1.0
) -> float:
    """Pixel size [arcsec] that puts the longest projected baseline B on the Nyquist frequency: 1 / (2 sr B_lambda).

    :param uv: tensor or array (M, 2) or (M, 3) [m].
    :param frequency: scalar or (M,) [Hz].
    :param float super_resolution: sr, finer pixels by this factor; 1 to 2.5 is usual.
    :raises ValueError: if all baselines are zero or super_resolution < 1, with which the longest of them would alias.
        Warns if a frequency is below 1 MHz.
    """
    _warn_of_unit(frequency)
    if not (math.isfinite(super_resolution) and super_resolution >= 1):
        raise ValueError(
            f"super_resolution must be finite and at least 1, usually up to 2.5, got {super_resolution}; with coarser "
            "pixels the longest baselines alias"
        )
    u, v = _wavelengths(uv, frequency)
    longest = float(torch.hypot(u, v).max())
    if not longest > 0:
        raise ValueError("every baseline has length zero; there is no resolution to derive a cell from")
    return 1 / (2 * super_resolution * longest) / ARCSEC


def w_phase(
    uvw: Tensor | np.ndarray, frequency: float | Tensor | np.ndarray, cell: float, shape: Sequence[int]
) -> tuple[float, float]:
    """Largest phase [rad] that is lost by leaving w out: 2 pi |w| (1 - sqrt(1 - l^2 - m^2)).

    :param uvw: tensor or array (M, 3) [m].
    :param float cell: pixel size [arcsec]; tuple shape: (H, W) of the image.
    :returns: at the middle of the further edge, and at the corner.
    :raises ValueError: if uvw has no w, or the image reaches beyond the horizon.
    """
    uvw = _tensor(uvw)
    if uvw.ndim != 2 or uvw.shape[1] != 3:
        raise ValueError(f"w_phase needs uvw of shape (M, 3) in metres, got {tuple(uvw.shape)}")
    _wavelengths(uvw, frequency)
    w = float((uvw[:, 2].double() * _tensor(frequency).to(uvw.device) / C).abs().max())
    m, l = (_radians(cell) * (n // 2) for n in shape)
    if l**2 + m**2 > 1:
        raise ValueError(f"an image of {shape} pixels of {cell} arcsec reaches beyond the horizon; check cell [arcsec]")
    edge, corner = max(l, m) ** 2, l**2 + m**2
    edge_phase, corner_phase = (2 * math.pi * w * s / (1 + math.sqrt(1 - s)) for s in (edge, corner))
    return edge_phase, corner_phase  # 1 - sqrt(1 - s) = s / (1 + sqrt(1 - s)), without cancellation


def _radians(cell: float) -> float:
    if not (math.isfinite(cell) and cell > 0):
        raise ValueError(f"cell must be finite and > 0 arcsec, got {cell}")
    return float(cell) * ARCSEC


def _tensor(values: float | Tensor | np.ndarray) -> Tensor:
    """A tensor as it is, all else in float64: what is read from FITS may be big-endian, which torch refuses."""
    return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values, np.float64))


def _warn_of_unit(frequency: float | Tensor | np.ndarray) -> None:
    f = _tensor(frequency)
    if bool(((f > 0) & (f < LOWEST)).any()):
        lowest = float(f[f > 0].min())
        warnings.warn(
            f"a frequency of {lowest:g} Hz is below every interferometer's; if it is in MHz, multiply by 1e6, if in "
            "GHz, by 1e9",
            stacklevel=3,
        )


def _wavelengths(uv: Tensor | np.ndarray, frequency: float | Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
    """u and v in wavelengths, (M,) float64 each."""
    uv = _tensor(uv)
    if uv.ndim != 2 or uv.shape[1] not in (2, 3) or len(uv) == 0:
        mend = "; transpose it with uv.T" if uv.ndim == 2 and uv.shape[0] in (2, 3) else ""
        raise ValueError(f"uv must be (M, 2) or (M, 3) in metres, M >= 1, got {tuple(uv.shape)}{mend}")
    if not bool(torch.isfinite(uv).all()):
        raise ValueError("uv holds NaN or inf; flag those rows and leave them out")
    f = _tensor(frequency).to(uv.device, torch.float64)
    if f.ndim > 1 or (f.ndim == 1 and len(f) not in (1, len(uv))):
        raise ValueError(f"frequency must be a number or one per row ({len(uv)}), got shape {tuple(f.shape)}")
    if not bool((torch.isfinite(f) & (f > 0)).all()):
        raise ValueError("frequency must be finite and > 0 Hz")
    uv = uv.double() * (f / C).reshape(-1, 1)
    return uv[:, 0], uv[:, 1]
