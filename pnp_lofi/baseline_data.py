"""Visibilities with their times and antennas, for calibration: few, and in memory."""

from dataclasses import dataclass, replace

import numpy as np

from pnp_lofi.operators.uv import C
from pnp_lofi.visibilities import ROWS, Visibilities

GAP = 150.0  # between scans, at least; and more than what was averaged before [s]
COLUMNS = ("uvw", "frequency", "vis", "weight", "time", "one", "two")


@dataclass(frozen=True)
class Baselines:
    """M visibilities whose times and antennas are known; few enough to be held in memory.

    :param numpy.ndarray uvw: (M, 3) [m]; numpy.ndarray frequency: (M,) [Hz].
    :param numpy.ndarray vis: (M,) complex [Jy], signs as in docs/conventions.md.
    :param numpy.ndarray weight: (M,) 1/sigma^2 per real component [1/Jy^2]; 0 is not used.
    :param numpy.ndarray time: (M,) [s]; numpy.ndarray one, two: (M,) numbers of the antennas, which differ.
    :raises ValueError: for lengths that differ, values that are not finite, negative weights, one == two, no rows.
    """

    uvw: np.ndarray
    frequency: np.ndarray
    vis: np.ndarray
    weight: np.ndarray
    time: np.ndarray
    one: np.ndarray
    two: np.ndarray

    def __post_init__(self) -> None:
        shapes = {name: np.shape(getattr(self, name)) for name in COLUMNS}
        rows = len(self.vis)
        if any(shape != (rows, 3)[: 1 + (name == "uvw")] for name, shape in shapes.items()) or not rows:
            raise ValueError(f"expected uvw (M, 3) and all else (M,), M >= 1, got {shapes}")
        bad = [name for name in COLUMNS[:5] if not np.isfinite(getattr(self, name)).all()]
        if bad or (self.weight < 0).any():
            raise ValueError(f"{' and '.join(bad) or 'weight'} must be finite, and weight >= 0; leave such rows out")
        if (self.one == self.two).any():
            raise ValueError("an antenna with itself has no phase to calibrate; leave autocorrelations out")

    def rows(self, keep: np.ndarray) -> "Baselines":
        """Those rows only.

        :param numpy.ndarray keep: (M,) bool, or row numbers.
        """
        return Baselines(*(getattr(self, name)[keep] for name in COLUMNS))

    @property
    def length(self) -> np.ndarray:
        """(M,) projected, in wavelengths."""
        return np.hypot(self.uvw[:, 0], self.uvw[:, 1]) * self.frequency / C

    def floored(self, fraction: float) -> "Baselines":
        """sigma^2 + (fraction |V|)^2 in the place of sigma^2: an error that no antenna's gain accounts for."""
        used = self.weight > 0
        weight = np.zeros(len(self.vis))
        weight[used] = 1 / (1 / self.weight[used] + (fraction * np.abs(self.vis[used])) ** 2)
        return replace(self, weight=weight)

    def averaged(self, seconds: float | None = None) -> "Baselines":
        """Weighted means over :func:`intervals`, each baseline and frequency for itself; weight 0 is left out.

        :param float seconds: longest average [s]; None: a scan. Phases must hold still meanwhile.
        """
        if not (self.weight > 0).any():
            raise ValueError("all weights are zero; nothing is left to average")
        data = self.rows(self.weight > 0)
        key = np.stack([intervals(data.time, seconds), data.one, data.two, data.frequency], axis=1)
        first, group = np.unique(key, axis=0, return_index=True, return_inverse=True)[1:]
        total = np.bincount(group.ravel(), data.weight)

        def mean(x: np.ndarray) -> np.ndarray:
            return np.bincount(group.ravel(), data.weight * x) / total

        uvw, vis = np.stack([mean(x) for x in data.uvw.T], axis=1), mean(data.vis.real) + 1j * mean(data.vis.imag)
        found = data.rows(first)
        return replace(found, uvw=uvw, vis=vis, weight=total, time=mean(data.time - data.time[0]) + data.time[0])


def read_baselines(source: Visibilities) -> Baselines:
    """All that is used of a MeasurementSet or UVFITS file, as it is there, not averaged.

    :param Visibilities source: of :func:`pnp_lofi.visibilities.open_visibilities`, absolute_weights for noise levels.
    :raises ValueError: if the format does not tell times and antennas, or nothing is left.
    """
    if source.time_average or source.channel_average > 1:
        raise ValueError("calibrate what is not averaged: open without averages, and use Baselines.averaged after")
    parts: list[tuple[np.ndarray, ...]] = []
    for block in source._blocks(ROWS, (0, 1), True):
        if block.time is None or block.baseline is None:
            raise ValueError(f"{source.path} tells no times and antennas; a MeasurementSet or UVFITS file does")
        row, channel = np.nonzero(~block.flag & (block.weight != 0))
        frequency = np.broadcast_to(block.frequency, block.vis.shape)[row, channel]
        pair = block.baseline[row]
        vis, weight = block.vis[row, channel].astype(complex), block.weight[row, channel].astype(float)
        parts.append((block.uvw[row], frequency, vis, weight, block.time[row], pair >> 16, pair & 0xFFFF))
    if not sum(len(part[0]) for part in parts):
        raise ValueError(f"{source.path}: every visibility is flagged or of weight zero; nothing is left to calibrate")
    return Baselines(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def intervals(time: np.ndarray, seconds: float | None = None, *, gap: float = GAP) -> np.ndarray:
    """(M,) number of the interval of each row: a scan, which ends where no row follows for ``gap``, or equal pieces
    of it that are at most ``seconds`` long.

    :param numpy.ndarray time: (M,) [s], in any order.
    :param float seconds: [s]; None: whole scans. float gap: [s].
    :raises ValueError: unless both are > 0.
    """
    if not gap > 0 or (seconds is not None and not 0 < seconds < np.inf):
        raise ValueError(f"an interval and a gap must be > 0 s, got {seconds} and {gap}; seconds=None is a scan")
    moments, row = np.unique(time, return_inverse=True)
    step = np.diff(moments)
    scan = np.concatenate([[0], np.cumsum(step > gap)])
    if seconds is None:
        return scan[row.ravel()]
    begin = moments[np.searchsorted(scan, np.arange(scan[-1] + 1))][scan]
    dump = float(np.median(step[step <= gap])) if (step <= gap).any() else 0.0
    piece = np.floor((moments - begin + dump / 4) / seconds).astype(int)  # clocks are rounded: no dump is torn off
    return np.unique(np.stack([scan, piece], axis=1), axis=0, return_inverse=True)[1].ravel()[row.ravel()]
