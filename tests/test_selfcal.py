"""Antenna gains: the truth comes back, noise costs what it must, closures stay, and scipy finds the same minimum."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import least_squares

from pnp_lofi.baseline_data import Baselines, intervals, read_baselines
from pnp_lofi.closures import closure_misfit, misfit
from pnp_lofi.selfcal import gains, self_calibrate

ANTENNAS = (3, 4, 7, 9, 12, 20)
SCAN = 600.0  # between the beginnings of scans [s]


def array(scans: int = 4, dumps: int = 5, sigma: float = 0.0, seed: int = 0) -> tuple[Baselines, np.ndarray]:
    """Perfect antennas and a sky of two points; the model is what they see, the weight is as if sigma were 1 or is."""
    rng = np.random.default_rng(seed)
    place = dict(zip(ANTENNAS, rng.normal(scale=1000, size=(len(ANTENNAS), 3)), strict=True))
    rows = []
    for k in range(scans * dumps):
        time = 1e9 + SCAN * (k // dumps) + 10.0 * (k % dumps)
        turn = 2 * np.pi * (time - 1e9) / 20000
        for a, one in enumerate(ANTENNAS):
            for two in ANTENNAS[a + 1 :]:
                x, y, w = place[one] - place[two]
                rows.append(
                    (x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn), w, time, one, two)
                )
    u, v, w, time, one, two = np.array(rows).T
    model = 1.0 + 0.5 * np.exp(-2j * np.pi * (u * 0.8 + v * 0.3) / 1000)
    noise = sigma * (rng.normal(size=len(u)) + 1j * rng.normal(size=len(u)))
    weight = np.full(len(u), 1.0 if sigma == 0 else sigma**-2)
    uvw, numbers = np.stack([u, v, w], axis=1), (one.astype(int), two.astype(int))
    return Baselines(uvw, np.full(len(u), 1e9), model + noise, weight, time, *numbers), model


def corrupted(data: Baselines, model: np.ndarray, amplitude: float, seed: int = 1) -> tuple[Baselines, np.ndarray]:
    """Gains (scan, antenna) on the model; the noise of the data stays."""
    rng = np.random.default_rng(seed)
    scan = intervals(data.time)
    size = (scan.max() + 1, len(ANTENNAS))
    g = np.exp(amplitude * rng.normal(size=size) + 2j * np.pi * rng.uniform(size=size))
    first, second = (g[scan, np.searchsorted(ANTENNAS, a)] for a in (data.one, data.two))
    return replace(data, vis=first * np.conj(second) * model + (data.vis - model)), g


def referred(g: np.ndarray, k: int) -> np.ndarray:
    return g * (np.conj(g[:, k]) / np.abs(g[:, k]))[:, None]


@pytest.mark.parametrize(("amplitude", "spread"), [(0.0, 0.0), (0.3, np.inf)])
def test_true_gains_come_back(amplitude, spread):
    data, model = array()
    seen, true = corrupted(data, model, amplitude)
    found = gains(seen, model, spread=spread, reference=7)
    assert found.solved.all() and found.antennas.tolist() == list(ANTENNAS)
    np.testing.assert_allclose(found.gain, referred(true, 2), atol=1e-6)
    np.testing.assert_allclose(found.corrected(seen).vis, model, atol=1e-6)
    assert misfit(found.corrected(seen), model) < 1e-12


def test_noise_costs_what_it_must():
    """Errors of phases as the inverse of the information says; the misfit is the noise, less the gains fitted."""
    sigma, errors, left = 0.05, [], []
    for seed in range(30):
        data, model = array(2, 5, sigma, seed)
        seen, true = corrupted(data, model, 0.0, seed)
        found = gains(seen, model, reference=3)
        errors.append(np.angle(found.gain * np.conj(referred(true, 0)))[:, 1:])
        left.append(misfit(found.corrected(seen), model))
    info = np.zeros((6, 6))  # of scan 0; scan 1 is like it
    for a, b, m in zip(data.one, data.two, np.abs(model) ** 2, strict=True):
        i, j = ANTENNAS.index(a), ANTENNAS.index(b)
        info[[i, j], [i, j]] += m / sigma**2 / 2
        info[[i, j], [j, i]] -= m / sigma**2 / 2
    expected = np.sqrt(np.diag(np.linalg.inv(info[1:, 1:])).mean())
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(expected, rel=0.15)
    assert np.mean(left) == pytest.approx(1 - 2 * 5 / (2 * len(model)), abs=0.03)


@pytest.mark.parametrize("spread", [0.0, 0.1, np.inf, {3: 0.5, 9: 0.1}])
def test_least_squares_finds_the_same_minimum(spread):
    data, model = array(1, 3, 0.2)
    rng = np.random.default_rng(5)
    seen, true = corrupted(replace(data, weight=rng.uniform(1, 40, len(model))), model, 0.2)
    each = np.array([spread.get(a, 0.0) if isinstance(spread, dict) else spread for a in ANTENNAS])
    i, j = (np.searchsorted(ANTENNAS, a) for a in (seen.one, seen.two))

    def residuals(p):
        size = np.where(each > 0, p[:6], 1)
        g = size * np.exp(1j * np.concatenate([[0], p[6:]]))
        r = np.sqrt(seen.weight) * (seen.vis - g[i] * np.conj(g[j]) * model)
        bars = each[(each > 0) & np.isfinite(each)]
        held = (size[(each > 0) & np.isfinite(each)] - 1) / bars
        return np.concatenate([r.real, r.imag, held])

    start = np.concatenate([np.abs(true[0]), np.angle(referred(true, 0)[0, 1:])])
    best = least_squares(residuals, start, xtol=1e-14, ftol=1e-14, gtol=1e-12)
    found = gains(seen, model, spread=spread, reference=3).gain[0]
    ours = np.concatenate([np.abs(found), np.angle(found[1:])])
    assert np.square(residuals(ours)).sum() <= 2 * best.cost * (1 + 1e-10)
    p = np.where(each > 0, best.x[:6], 1) * np.exp(1j * np.concatenate([[0], best.x[6:]]))
    np.testing.assert_allclose(found, p, atol=1e-5)


def test_closures_stay():
    data, model = array(2, 1, 0.1)
    seen, _ = corrupted(data, model, 0.3)
    after = gains(seen, np.ones(len(model)), spread=0.5).corrected(seen)

    def triangles(vis):
        at = {(t, a, b): x for t, a, b, x in zip(data.time, data.one, data.two, vis, strict=True)}
        return np.array([at[t, 3, a] * at[t, a, b] * np.conj(at[t, 3, b]) for t, a, b in at if a > 3])

    turn = triangles(after.vis) * np.conj(triangles(seen.vis))
    assert np.abs(np.angle(turn)).max() < 1e-10
    np.testing.assert_allclose(closure_misfit(after, model), closure_misfit(seen, model), rtol=1e-6)


def test_closure_misfit_is_one_for_the_truth():
    data, model = array(200, 1, 0.05)
    seen, _ = corrupted(data, model, 0.3)
    assert closure_misfit(seen, model) == pytest.approx((1, 1), abs=0.1)
    phase, amplitude = closure_misfit(seen, np.ones(len(model)))
    assert phase > 5 and amplitude > 5
    with pytest.raises(ValueError, match="no baselines of one time close"):
        closure_misfit(seen.rows((seen.one == 3) & (seen.two < 9)), model[(seen.one == 3) & (seen.two < 9)])


def test_few_antennas_are_told():
    """In scan 0 antenna 20 has one baseline; in scan 1 there is one baseline altogether."""
    data, model = array(3)
    seen, _ = corrupted(data, model, 0.0)
    scan = intervals(seen.time)
    keep = ~((scan == 0) & (seen.two == 20) & (seen.one != 3)) & ~((scan == 1) & ((seen.one != 3) | (seen.two != 4)))
    seen, model = seen.rows(keep), model[keep]
    found = gains(seen, model)
    assert found.solved[0].tolist() == [True] * 5 + [False] and not found.solved[1].any() and found.solved[2].all()
    assert (found.gain[~found.solved] == 1).all()
    after = found.corrected(seen)
    assert ((after.weight == 0) == (scan[keep] == 1) | ((scan[keep] == 0) & (seen.two == 20))).all()
    used = after.weight > 0
    np.testing.assert_allclose(after.vis[used], model[used], atol=1e-6)
    assert gains(seen, model, least=1).solved[1].tolist() == [True, True, False, False, False, False]


def test_self_calibration_finds_the_sky():
    """A point as a first model; the image is a point at the middle and one at a known place, their fluxes free."""
    data, model = array(4, 2)
    seen, _ = corrupted(replace(data, weight=1e6 * data.weight), model, 0.1)
    terms = np.stack([np.ones(len(model)), (model - 1) / 0.5], axis=1)

    def image(d):
        root = np.sqrt(d.weight)
        rows, target = root[:, None] * terms, root * d.vis
        fluxes = np.linalg.lstsq(
            np.concatenate([rows.real, rows.imag]), np.concatenate([target.real, target.imag]), rcond=None
        )[0]
        return terms @ fluxes

    steps = [{"seconds": None}, {"spread": 0.3}]
    done = self_calibrate(seen, np.ones(len(model)), image, rounds=60, steps=steps)
    assert len(done) == 60 and len(done[0].gains) == 2
    away = [float(np.abs(d.model / model / (d.model / model).mean() - 1).max()) for d in done]
    assert away[0] > 0.1 and away[-1] < 0.002  # the flux scale is that of the mean gain


def test_intervals_and_averages():
    time = np.array([0, 10, 20, 30, 40, 50, 1000, 1010.0])
    assert intervals(time).tolist() == [0] * 6 + [1] * 2
    assert intervals(time[::-1], 20.0).tolist() == [3, 3, 2, 2, 1, 1, 0, 0]
    assert intervals(time - 1e-4 * np.arange(8), 20.0).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]  # clocks are rounded
    data, model = array(2, 4, 0.1)
    weight = np.random.default_rng(0).uniform(1, 2, len(model))
    weight[:3] = 0
    mean = replace(data, weight=weight).averaged()
    assert len(mean.vis) == 30 and mean.weight.sum() == pytest.approx(weight.sum())
    rows = (intervals(data.time) == 0) & (data.one == 3) & (data.two == 7)
    found = (intervals(mean.time) == 0) & (mean.one == 3) & (mean.two == 7)
    np.testing.assert_allclose(mean.vis[found], np.average(data.vis[rows], weights=weight[rows]))
    np.testing.assert_allclose(mean.uvw[found][0], np.average(data.uvw[rows], weights=weight[rows], axis=0))
    assert len(data.averaged(20.0).averaged(20.0).vis) == len(data.averaged(20.0).vis) == 60
    floored = data.floored(0.02)
    np.testing.assert_allclose(1 / floored.weight, 1 / data.weight + (0.02 * np.abs(data.vis)) ** 2)


def test_bad_input():
    data, model = array(1, 1)
    for change, words in (
        ({"vis": data.vis[1:]}, "expected uvw"), ({"weight": -data.weight}, "weight >= 0"),
        ({"vis": data.vis * np.nan}, "vis must be finite"), ({"two": data.one}, "autocorrelations"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            replace(data, **change)
    for options, words in (
        ({"model": model[1:]}, "model must be finite visibilities"), ({"spread": -1.0}, "spread >= 0"),
        ({"reference": 5}, r"no antenna 5 to refer to; there are \[3, 4"), ({"seconds": 0.0}, "must be > 0 s"),
        ({"least": 6}, "no interval has antennas with 6 baselines"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            gains(data, **{"model": model, **options})
    with pytest.raises(ValueError, match="other rows"):
        gains(data, model).corrected(data.rows(slice(3)))
    with pytest.raises(ValueError, match="at least 1 round"):
        self_calibrate(data, model, lambda d: model, rounds=0)
    with pytest.raises(ValueError, match="nothing is left to average"):
        replace(data, weight=0 * data.weight).averaged()
    block = SimpleNamespace(time=None, baseline=None)
    source = SimpleNamespace(path="a.npz", _blocks=lambda *_: [block], time_average=0.0, channel_average=1)
    with pytest.raises(ValueError, match="tells no times and antennas"):
        read_baselines(source)
    source.time_average = 60.0
    with pytest.raises(ValueError, match="open without averages"):
        read_baselines(source)
