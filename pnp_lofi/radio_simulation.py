"""Visibilities of a known sky: what `pnp-lofi simulate radio` does."""

import numpy as np
import torch

from pnp_lofi.antennas import Antennas, meerkat
from pnp_lofi.observation import Observation
from pnp_lofi.operators import NUFFT, array_uvw, default_cell, uv_radians

DECLINATION = -30.0  # [deg], near MeerKAT's zenith


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
) -> Observation:
    """Observe a sky with an array of antennas.

    :param numpy.ndarray sky: (H, W) [Jy/pixel].
    :param float hours: length of the track about transit [h].
    :param float snr: 20 log10(||vis|| / ||noise||) [dB].
    :param float declination, right_ascension: of the phase centre [deg]; default: of MeerKAT -30, of other arrays their
        zenith, and 0.
    :param float frequency: [Hz]; float integration: of one dump [s]; float min_elevation: [deg].
    :param float cell: pixel size [arcsec]; default: the longest baseline falls on the Nyquist frequency.
    :param Antennas antennas: from :func:`pnp_lofi.antennas.read_antennas`; default MeerKAT's 64.
    :returns: an observation whose weights are 1/sigma^2 of the noise that was added, and whose truth is the sky.
    """
    if not np.isfinite(snr):
        raise ValueError(f"snr must be finite [dB], got {snr}")
    array = meerkat() if antennas is None else antennas
    if declination is None:
        declination = DECLINATION if antennas is None else array.latitude
    uvw = array_uvw(array, hours, declination=declination, integration=integration, min_elevation=min_elevation)
    cell = default_cell(uvw, frequency) if cell is None else cell
    image = torch.as_tensor(np.asarray(sky, np.float64))[None, None]
    op = NUFFT(image.shape[-2:], uv_radians(uvw, frequency, cell))
    vis = op.A(image)[0, 0] * image[0, 0].numel() ** 0.5
    sigma = float(10 ** (-snr / 20) * vis.abs().square().mean().sqrt() / 2**0.5)
    if not sigma > 0:
        raise ValueError("the sky is zero everywhere; there is nothing to observe")
    generator = torch.Generator().manual_seed(seed)
    vis = vis + sigma * torch.complex(*torch.randn(2, len(vis), dtype=torch.float64, generator=generator))
    rows = len(vis)
    return Observation(
        uvw.numpy(), np.asarray(frequency), vis.numpy(), np.full(rows, sigma**-2), np.zeros(rows, bool), cell,
        (right_ascension, declination), array.observatory, f"simulated, {hours} h, {snr} dB, seed {seed}",
        np.asarray(sky, np.float32), absolute_weights=True,
    )  # fmt: skip
