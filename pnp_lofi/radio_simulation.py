"""Visibilities of a known sky: what `pnp-lofi simulate radio` does."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pnp_lofi import w_gridder
from pnp_lofi.antennas import Antennas, find_array, meerkat
from pnp_lofi.files import check_writable
from pnp_lofi.observation import Observation, write_observation
from pnp_lofi.operators import NUFFT, array_uvw, default_cell, uv_radians, w_phase
from pnp_lofi.operators.uv import SIDEREAL_DAY, C, hour_angles, quantifai_uv, uv_metres, within_nyquist
from pnp_lofi.radio_measurement import W_WARNING

DECLINATION = -30.0  # [deg], near MeerKAT's zenith
GMST = 280.46061837  # Greenwich mean sidereal time [deg] at J2000.0
J2000 = 51544.5 * 86400.0  # [s], MJD
FITS = (".fits", ".fit")
HDF5 = (".h5", ".hdf5")


def simulate(
    sky: np.ndarray,
    *,
    hours: float = 2.0,
    snr: float = 30.0,
    declination: float | None = None,
    frequency: float = 1.4e9,
    integration: float = 240.0,
    min_elevation: float = 15.0,
    cell: float | None = None,
    right_ascension: float = 0.0,
    seed: int = 0,
    antennas: Antennas | None = None,
    channels: int = 1,
    bandwidth: float | None = None,
    spectral_index: float = 0.0,
    mapping: str = "physical",
    wide_field: bool = False,
) -> Observation:
    """Observe a sky with an array of antennas.

    :param numpy.ndarray sky: (H, W) [Jy/pixel].
    :param float hours: length of the track about transit [h].
    :param float snr: 20 log10(||vis|| / ||noise||) [dB].
    :param float declination, right_ascension: of the phase centre [deg]; default: of MeerKAT -30, of other arrays their
        zenith, and 0.
    :param float frequency: [Hz]; float integration: of one dump [s]; float min_elevation: [deg].
    :param float cell: pixel size [arcsec]; default: the longest baseline falls on the Nyquist frequency.
    :param Antennas antennas: from :func:`pnp_lofi.antennas.find_array`; default MeerKAT's 64.
    :param int channels: of equal width, side by side; float bandwidth: of all together about the frequency [Hz].
    :param float spectral_index: a; a channel sees the sky times (its frequency / frequency)^a.
    :param str mapping: "physical", or "quantifai", see :func:`pnp_lofi.operators.array_uv`: uvw are such that with the
        observation's cell they give its uv, w is 0.
    :param bool wide_field: with the w-term, by :mod:`pnp_lofi.w_gridder`; else it is left out, which is warned of where
        its phase is large.
    :returns: an observation whose weights are 1/sigma^2 of the noise that was added, and whose truth is the sky; by
        time, then baseline i - j, i < j, then channel.
    :raises ValueError: for arguments out of range, a sky that is zero.
    """
    if not np.isfinite(snr):
        raise ValueError(f"snr must be finite [dB], got {snr}")
    if mapping not in ("physical", "quantifai"):
        raise ValueError(f'mapping must be "physical" or "quantifai", got {mapping!r}')
    if mapping == "quantifai" and channels > 1:
        raise ValueError('mapping="quantifai" knows no frequencies; leave channels at 1')
    band = channel_frequencies(frequency, channels, bandwidth)
    array = meerkat() if antennas is None else antennas
    if declination is None:
        declination = DECLINATION if array.observatory == "MeerKAT" else array.latitude
    uvw = array_uvw(array, hours, declination=declination, integration=integration, min_elevation=min_elevation)
    cell = default_cell(uvw, band.max()) if cell is None else cell
    if mapping == "quantifai":
        uvw = uv_metres(quantifai_uv(uvw), frequency, cell)
    each = np.tile(band, len(uvw)) if channels > 1 else np.asarray(frequency, np.float64)
    uvw = uvw.repeat_interleave(channels, 0)
    image = torch.as_tensor(np.asarray(sky, np.float64))[None, None]
    op = NUFFT(image.shape[-2:], within_nyquist(uv_radians(uvw, each, cell), cell))
    if wide_field:
        w_gridder.check(op.shape)
        seen = w_gridder.forward(image[0, 0], uvw * torch.as_tensor(each / C).reshape(-1, 1), cell)
    else:
        seen, (edge, _) = op.A(image)[0, 0], w_phase(uvw, float(band.max()), cell, op.shape)
        if edge > W_WARNING:
            warnings.warn(
                f"simulated without the w-term, whose phase would reach {edge:.2f} rad at the image's edge: image it "
                "without --wide-field, or simulate with it",
                stacklevel=2,
            )
    vis = seen * image[0, 0].numel() ** 0.5 * torch.as_tensor((each / frequency) ** spectral_index)
    sigma = float(10 ** (-snr / 20) * vis.abs().square().mean().sqrt() / 2**0.5)
    if not sigma > 0:
        raise ValueError("the sky is zero everywhere; there is nothing to observe")
    generator = torch.Generator().manual_seed(seed)
    vis = vis + sigma * torch.complex(*torch.randn(2, len(vis), dtype=torch.float64, generator=generator))
    rows = len(vis)
    return Observation(
        uvw.numpy(), each, vis.numpy(), np.full(rows, sigma**-2), np.zeros(rows, bool), cell,
        (right_ascension, declination), array.observatory, f"simulated, {hours} h, {snr} dB, seed {seed}",
        np.asarray(sky, np.float32), absolute_weights=True,
    )  # fmt: skip


def channel_frequencies(frequency: float, channels: int = 1, bandwidth: float | None = None) -> np.ndarray:
    """(channels,) middles of channels of equal width, side by side about a frequency [Hz].

    :raises ValueError: for a frequency that is not finite and > 0, fewer than one channel, several without a bandwidth,
        a bandwidth that reaches 0 Hz.
    """
    if not 0 < frequency < np.inf:
        raise ValueError(f"frequency must be finite and > 0 Hz, got {frequency}")
    if channels < 1 or (channels > 1) != (bandwidth is not None):
        raise ValueError(f"give several channels and their bandwidth, or neither; got {channels} and {bandwidth}")
    if bandwidth is None:
        return np.array([frequency], np.float64)
    if not 0 < bandwidth < 2 * frequency:
        raise ValueError(f"bandwidth must be > 0 and below twice the frequency, {frequency:g} Hz, got {bandwidth:g}")
    return frequency + bandwidth * ((np.arange(channels) + 0.5) / channels - 0.5)


def transit_times(H: np.ndarray, right_ascension: float, longitude: float) -> np.ndarray:
    """UTC [s, MJD] at hour angles H [rad], in the track whose transit is the nearest to J2000.0.

    By Greenwich mean sidereal time. On that day the mean equator is that of J2000, in which phase centres are given, so
    that antennas, times and uvw agree. Nutation and UT1 - UTC are left out: below 1e-4 of a baseline.

    :param float right_ascension: J2000 [deg]; float longitude: of the array [deg].
    Source: Aoki et al. 1982, A&A 105, 359.
    """
    turn = (right_ascension - longitude - GMST + 180) % 360 - 180
    return J2000 + SIDEREAL_DAY * (turn / 360 + H / (2 * np.pi))


def write_simulation(
    path: str | os.PathLike[str],
    obs: Observation,
    antennas: Antennas,
    *,
    hours: float = 2.0,
    integration: float = 240.0,
    min_elevation: float = 15.0,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write what :func:`simulate` gave as a MeasurementSet, with times, antennas and their positions.

    The channels are one spectral window. The true sky and the cell have no place in it.

    :param antennas, hours, integration, min_elevation: those of :func:`simulate`.
    :param int seed: of the noise by which XX and YY differ.
    :raises ValueError: if the observation is not of that track; and as
        :func:`pnp_lofi.measurement_set.write_measurement_set`.
    """
    from pnp_lofi.measurement_set import write_measurement_set

    ra, dec = obs.phase_centre
    H = hour_angles(antennas, hours, declination=dec, integration=integration, min_elevation=min_elevation)
    one, two = np.triu_indices(len(antennas.xyz), 1)
    channels = len(np.unique(obs.frequency))
    if len(obs.vis) != len(H) * len(one) * channels:
        raise ValueError(
            f"expected {len(H)} dumps x {len(one)} baselines x {channels} channels, got {len(obs.vis)} visibilities; "
            "give antennas, hours, integration and min_elevation as to simulate"
        )
    time = transit_times(H, ra, antennas.longitude).repeat(len(one) * channels)
    write_measurement_set(
        path, obs, time=time, antennas=(np.tile(one.repeat(channels), len(H)), np.tile(two.repeat(channels), len(H))),
        positions=antennas.itrf(), names=antennas.names, diameter=antennas.diameter, integration=integration,
        channels=channels, seed=[seed, 1], overwrite=overwrite,
    )  # fmt: skip


def simulate_file(
    sky: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    array: str = "meerkat",
    latitude: float | None = None,
    hours: float = 2.0,
    integration: float = 240.0,
    min_elevation: float = 15.0,
    declination: float | None = None,
    cell: float | None = None,
    mapping: str = "physical",
    overwrite: bool = False,
    **options: Any,
) -> Observation:
    """Observe the sky in an image file, and write OBS.h5 or a MeasurementSet.

    :param sky: FITS [Jy/pixel], npy or PNG; a FITS header tells phase centre and pixel where they are not given.
    :param out: ending .h5, .hdf5 or .ms.
    :param str array, float latitude: see :func:`pnp_lofi.antennas.find_array`.
    :param options: further ones of :func:`simulate`.
    :returns: the observation.
    :raises ValueError: for another ending, a MeasurementSet of mapping="quantifai"; and as :func:`simulate`.
    """
    from pnp_lofi.fits import read_sky_grid
    from pnp_lofi.images import load_image

    sky, out = Path(sky), Path(out)
    hdf5 = _check_out(out, mapping, overwrite)
    antennas = find_array(array, latitude=latitude)
    image = load_image(sky, grey=True)[0, 0].numpy()
    grid = read_sky_grid(sky) if sky.suffix.lower() in FITS else None
    ra, dec, pixel = (0.0, None, None) if grid is None else (*grid.centre, grid.cell)
    obs = simulate(
        image, antennas=antennas, hours=hours, integration=integration, min_elevation=min_elevation, mapping=mapping,
        declination=dec if declination is None else declination, cell=pixel if cell is None else cell,
        right_ascension=ra, **options,
    )  # fmt: skip
    if hdf5:
        write_observation(out, obs, overwrite=overwrite)
    else:
        write_simulation(
            out, obs, antennas, hours=hours, integration=integration, min_elevation=min_elevation,
            seed=options.get("seed", 0), overwrite=overwrite,
        )  # fmt: skip
    return obs


def _check_out(out: Path, mapping: str, overwrite: bool) -> bool:
    """Whether it is to be OBS.h5, not a MeasurementSet."""
    if out.suffix.lower() in HDF5:
        check_writable(out, overwrite=overwrite)
        return True
    if out.suffix.lower() != ".ms":
        raise ValueError(f"{out}: the ending tells the format; name it .h5 or .hdf5 (OBS.h5), or .ms (MeasurementSet)")
    if mapping == "quantifai":
        raise ValueError('mapping="quantifai" is that of no array, so no MeasurementSet; write it as .h5')
    from pnp_lofi.measurement_set import casacore_tables, check_replaceable

    check_replaceable(out, overwrite=overwrite)
    casacore_tables()
    return False
