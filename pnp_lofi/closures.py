"""How well a model fits what no antenna's gain can change: closure phases and closure amplitudes."""

from dataclasses import replace

import numpy as np

from pnp_lofi.baseline_data import Baselines, intervals
from pnp_lofi.selfcal import gains

FAINT = 3.0  # signal to noise below which the logarithm of an amplitude is biased


def misfit(data: Baselines, model: np.ndarray) -> float:
    """sum w |V - M|^2 over the number of real values; 1 is the noise."""
    return float((data.weight * np.abs(data.vis - model) ** 2).sum() / (2 * (data.weight > 0).sum()))


def closure_misfit(data: Baselines, model: np.ndarray, *, seconds: float | None = None) -> tuple[float, float]:
    """Reduced chi^2 of the closure phases and of the log closure amplitudes, with all their covariance: of phases, and
    of log amplitudes, what no gains of antennas can take up, over its degrees of freedom. Gains do not change it.

    Rows of one interval must be of one time, :meth:`Baselines.averaged`; those with |V| < 3 sigma are left out.

    :raises ValueError: if nothing closes.
    Source: Blackburn et al. 2020, ApJ 894, 31 (closures and gains that are fitted are the same statistic).
    """
    strong = np.abs(data.vis) * np.sqrt(data.weight) >= FAINT
    if not strong.any():
        raise ValueError(f"no visibility is {FAINT:g} times its noise; average longer")
    kept, model = data.rows(strong), model[strong]
    ratio = kept.vis / model
    snr2 = kept.weight * np.abs(kept.vis) ** 2
    antennas, interval = np.unique([kept.one, kept.two]), intervals(kept.time, seconds)
    total, free = np.zeros(2), np.zeros(2)
    phases = replace(kept, vis=ratio / np.abs(ratio), weight=snr2)
    left = gains(phases, np.ones(len(ratio)), seconds=seconds, least=1).corrected(phases).vis
    for k in range(interval.max() + 1):
        rows = interval == k
        root = np.sqrt(snr2[rows])[:, None]
        one, two = (kept_[rows, None] == antennas for kept_ in (kept.one, kept.two))
        design, target = root * (one + 0.0 + two), root[:, 0] * np.log(np.abs(ratio[rows]))
        solution, _, rank, _ = np.linalg.lstsq(design, target, rcond=None)
        total += [2 * (snr2[rows] * (1 - left[rows].real)).sum(), np.square(target - design @ solution).sum()]
        free += rows.sum() - np.array([np.linalg.matrix_rank(one - 1.0 * two), rank])
    if not (free > 0).all():
        raise ValueError("no baselines of one time close; average longer, or give data of more antennas")
    phase, amplitude = total / free
    return float(phase), float(amplitude)
