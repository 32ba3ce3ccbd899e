"""Self-calibration: antenna gains from a model of the sky, V_ij = g_i conj(g_j) M_ij + noise (docs/selfcal.md)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from pnp_lofi.baseline_data import Baselines, intervals

SWEEPS = 100  # at most; a dozen are usual
ROUNDING = 1e-12  # of the misfit
SETTLED = 1e-12  # change in the last sweep, of the largest gain


@dataclass(frozen=True)
class Gains:
    """:param numpy.ndarray antennas: (A,) their numbers, sorted; numpy.ndarray interval: (M,) of each row, from 0.
    :param numpy.ndarray gain: (S, A) complex, 1 where there is no solution.
    :param numpy.ndarray solved: (S, A) bool, whether there is one.
    """

    antennas: np.ndarray
    interval: np.ndarray
    gain: np.ndarray
    solved: np.ndarray

    def _of(self, table: np.ndarray, data: Baselines) -> tuple[np.ndarray, np.ndarray]:
        if len(data.vis) != len(self.interval) or not np.isin([data.one, data.two], self.antennas).all():
            raise ValueError(f"these gains are of {len(self.interval)} other rows; apply them to those they came from")
        columns = (np.searchsorted(self.antennas, antenna) for antenna in (data.one, data.two))
        first, second = (table[self.interval, column] for column in columns)
        return first, second

    def corrected(self, data: Baselines) -> Baselines:
        """V / (g_i conj(g_j)), weights times |g_i g_j|^2; weight 0 where one of the two antennas has no solution."""
        first, second = self._of(self.gain, data)
        factor = first * np.conj(second)
        solved = np.logical_and(*self._of(self.solved, data))
        return replace(data, vis=data.vis / factor, weight=np.where(solved, data.weight * np.abs(factor) ** 2, 0.0))


def gains(
    data: Baselines,
    model: np.ndarray,
    *,
    seconds: float | None = None,
    spread: float | dict[int, float] = 0.0,
    reference: int | None = None,
    least: int = 2,
) -> Gains:
    """One complex gain per antenna and interval, the minimum of

        sum_ij w_ij |V_ij - g_i conj(g_j) M_ij|^2 + sum_i (|g_i| - 1)^2 / spread^2,

    antenna by antenna: with n = sum_j X_ij g_j and d = sum_j W_ij |g_j|^2 where X = sum_t w V conj(M) and W = sum_t w
    |M|^2, the best g_i has the phase of n and |g_i| = (spread^2 |n| + 1) / (spread^2 d + 1). After each sweep a step of
    Gauss-Newton is taken where it helps; the misfit never grows. The start is the phase of X's first eigenvector.

    :param numpy.ndarray model: (M,) M_ij [Jy], visibilities of a model of the sky.
    :param float seconds: length of an interval [s]; default a scan, see :func:`intervals`.
    :param spread: by how much amplitudes may differ from 1; 0: phases only, inf: as they fit best; or {antenna:
        spread}, 0 for those not named.
    :param int reference: antenna whose phase is 0; default, and where it is missing, the one of largest weight.
    :param int least: baselines to others that an antenna needs, else it has no solution: with one alone it would fit
        any model, and nothing would be learned.
    :raises ValueError: for a model of another length or not finite, a reference that is not there, arguments out of
        range, no interval with a solution.
    Source: Thompson and D'Addario 1982; Bhatnagar and Nityananda 1999; the penalty is ours.
    """
    model = np.asarray(model)
    if model.shape != data.vis.shape or not np.isfinite(model).all():
        raise ValueError(f"model must be finite visibilities {data.vis.shape} like the data, got {model.shape}")
    antennas = np.unique([data.one, data.two])
    allowed = [spread.get(int(a), 0.0) if isinstance(spread, dict) else spread for a in antennas]
    if not all(s >= 0 for s in allowed) or least < 1:
        raise ValueError(f"expected spread >= 0 and least >= 1, got {spread} and {least}")
    if reference is not None and reference not in antennas:
        raise ValueError(f"there is no antenna {reference} to refer to; there are {antennas.tolist()}")
    interval = intervals(data.time, seconds)
    size = (int(interval.max()) + 1, len(antennas), len(antennas))
    i, j = (np.searchsorted(antennas, antenna) for antenna in (data.one, data.two))
    X, W = np.zeros(size, complex), np.zeros(size)
    np.add.at(X, (interval, i, j), data.weight * data.vis * np.conj(model))
    np.add.at(W, (interval, i, j), data.weight * np.abs(model) ** 2)
    X, W = X + np.conj(np.swapaxes(X, 1, 2)), W + np.swapaxes(W, 1, 2)
    solved = np.ones(size[:2], bool)
    for _ in antennas:  # each loss may cost others theirs
        solved &= ((W > 0) & solved[:, None]).sum(-1) >= least
    if not solved.any():
        raise ValueError(f"no interval has antennas with {least} baselines each; give longer intervals, or least=1")
    both = solved[:, :, None] & solved[:, None]
    gain = _solve(np.where(both, X, 0), np.where(both, W, 0), np.array(allowed, float))
    rank = W.sum((0, 2))
    rank[antennas == reference] = np.inf
    place = np.where(solved, rank, -1).argmax(1)
    zero = gain[np.arange(len(gain)), place]
    return Gains(antennas, interval, np.where(solved, gain * (np.conj(zero) / np.abs(zero))[:, None], 1), solved)


def _solve(X: np.ndarray, W: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """(S, A) gains of all intervals at once, of any common phase."""
    g = np.exp(1j * np.angle(np.linalg.eigh(X)[1][..., -1]))
    free = np.where(np.isinf(spread), 1.0, spread**2)
    penalty = np.where(np.isinf(spread), 0.0, 1.0)  # times free: 1 / spread^2 that may be 0 or infinite
    reach = np.ones(len(g))
    for _ in range(SWEEPS):
        before = g.copy()
        for i in range(g.shape[1]):
            n, d = (X[:, i] * g).sum(1), (W[:, i] * np.abs(g) ** 2).sum(1)
            top, bottom = free[i] * np.abs(n) + penalty[i], free[i] * d + penalty[i]
            g[:, i] = np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), 1) * np.exp(1j * np.angle(n))
        trial = g * np.exp(reach[:, None] * _step(X, W, g, free, penalty))
        cost, new = (_cost(X, W, x, free, penalty) for x in (g, trial))
        slack = ROUNDING * (W * np.abs(g[:, :, None] * g[:, None]) ** 2).sum((1, 2))
        helped = new <= cost + slack
        g, reach = np.where(helped[:, None], trial, g), np.where(helped, np.minimum(2 * reach, 1), reach / 2)
        if np.abs(g - before).max() <= SETTLED * np.abs(g).max():
            break
    return g


def _step(X: np.ndarray, W: np.ndarray, g: np.ndarray, free: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Of log g by Gauss-Newton, a + i b: a_i + a_j and b_i - b_j nearest to what lacks; they do not mix."""
    P = g[:, :, None] * np.conj(g[:, None])
    w = W * np.abs(P) ** 2
    gap = X * np.conj(P) - w
    varies = free > 0
    stiff = np.where(varies, penalty / np.where(varies, free, 1), 0)
    size, eye = np.abs(g), np.eye(len(free))
    amplitude = (w.sum(-1) + stiff * size**2)[..., None] * eye + w
    phase = w.sum(-1)[..., None] * eye - w
    right = np.where(varies, gap.real.sum(-1) + stiff * size * (1 - size), 0)
    amplitude = amplitude * varies[:, None] * varies
    solved = (np.linalg.pinv(m, rcond=1e-12, hermitian=True) @ r[..., None]
              for m, r in ((amplitude, right), (phase, gap.imag.sum(-1))))  # fmt: skip
    a, b = (x[..., 0] for x in solved)
    return np.clip(a, -1, 1) + 1j * b


def _cost(X: np.ndarray, W: np.ndarray, g: np.ndarray, free: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """(S,) what is minimised, less a constant."""
    P = g[:, :, None] * np.conj(g[:, None])
    fit = (W * np.abs(P) ** 2 / 2 - (X * np.conj(P)).real).sum((1, 2))
    held = np.where(free > 0, penalty / np.where(free > 0, free, 1), 0)
    return fit + (held * (np.abs(g) - 1) ** 2).sum(-1)


class Round(NamedTuple):
    """:param Baselines data: corrected; numpy.ndarray model: (M,) imaged from them [Jy]; tuple gains: of each step."""

    data: Baselines
    model: np.ndarray
    gains: tuple[Gains, ...]


def self_calibrate(
    data: Baselines,
    model: np.ndarray,
    image: Callable[[Baselines], np.ndarray],
    *,
    rounds: int = 10,
    steps: Sequence[dict[str, Any]] = ({},),
) -> list[Round]:
    """Gains from a model, a model from the corrected data, and again; each round starts from ``data`` as they are.

    Nothing but the data's closures holds this up: try several first models, and see that they come to the same end.

    :param numpy.ndarray model: (M,) visibilities of a first model [Jy].
    :param image: from corrected data to the (M,) visibilities of their image [Jy]; it must not use rows of weight 0.
    :param int rounds: how often.
    :param steps: options of :func:`gains`, which are found one after the other: phases by the minute, say, then
        amplitudes by the scan.
    """
    if rounds < 1 or not steps:
        raise ValueError(f"expected at least 1 round and 1 step, got {rounds} and {len(steps)}")
    done: list[Round] = []
    for _ in range(rounds):
        corrected, found = data, []
        for options in steps:
            found.append(gains(corrected, model, **options))
            corrected = found[-1].corrected(corrected)
        model = image(corrected)
        done.append(Round(corrected, model, tuple(found)))
    return done
