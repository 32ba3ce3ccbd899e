"""Columns of HDF5, npz and npy in slices; Stokes I, averaging and conversion against what is computed by hand."""

import os
import tracemalloc
from dataclasses import fields

import h5py
import numpy as np
import pytest
import torch
from visibility_files import CELL, C, seen, write_npz

from pnp_lofi.observation import Observation, read_observation, write_observation
from pnp_lofi.operators import NormalEquations, default_cell
from pnp_lofi.radio_chunks import measurement_chunks
from pnp_lofi.radio_measurement import measurement
from pnp_lofi.visibilities import Block, Visibilities, _flat, convert, hands, open_visibilities, stokes_i

M = 60


def columns(rows: int = M, **changes: object) -> dict[str, object]:
    rng = np.random.default_rng(0)
    flag, vis = rng.random(rows) < 0.2, rng.normal(size=rows) + 1j * rng.normal(size=rows)
    flag[14:21] = True  # a whole slice of 7
    vis[flag] = np.nan
    weight = rng.uniform(0.5, 2, rows)
    weight[5] = 0
    return {
        "uvw": rng.normal(scale=600, size=(rows, 3)), "frequency": rng.uniform(1e9, 1.4e9, rows), "vis": vis,
        "weight": weight, "flag": flag,
    } | changes  # fmt: skip


def structured(path, given):
    kinds = [(name, value.dtype, value.shape[1:]) for name, value in given.items()]
    array = np.zeros(len(given["vis"]), kinds)
    for name, value in given.items():
        array[name] = value
    np.save(path, array)
    return path


def files(folder, given):
    """The same columns in each of the plain formats."""
    attributes = {"phase_centre_deg": (10.0, -20.0), "telescope": "VLA", "absolute_weights": True}
    write_observation(folder / "a.h5", Observation(**given, cell=CELL, phase_centre=(10.0, -20.0)))
    return [
        folder / "a.h5",
        write_npz(folder / "a.npz", **given, **attributes),
        write_npz(folder / "b.npz", compressed=True, **given),
        structured(folder / "a.npy", given),
    ]


def test_plain_files_in_slices(tmp_path):
    given = columns()
    used = ~given["flag"] & (given["weight"] > 0)
    longest = (np.hypot(*given["uvw"][used, :2].T) * given["frequency"][used] / C).max()
    for path in files(tmp_path, given):
        source = open_visibilities(path, phase_centre=(10.0, -20.0))
        pieces = [p for k in range(3) for p in source.chunks(7, (k, 3), cell=CELL)]
        assert max(len(p.vis) for p in pieces) <= 7
        for name in ("uvw", "frequency", "vis", "weight"):
            rtol = 1e-7 if name in ("vis", "weight") else 0  # complex64 and float32 in OBS.h5
            found = np.concatenate([getattr(p, name) for p in pieces])
            np.testing.assert_allclose(found, given[name][used], rtol=rtol, err_msg=path.name)
        assert source.rows == M and source.phase_centre == (10.0, -20.0)
        assert source.longest == pytest.approx(longest)
        assert source.mean_weight == pytest.approx(given["weight"][used].mean(), rel=1e-6)
        np.testing.assert_array_equal(source.frequencies, np.unique(given["frequency"]))
        assert source.absolute_weights == (path.name == "a.npz")
    assert open_visibilities(tmp_path / "a.npz").telescope == "VLA"
    assert open_visibilities(tmp_path / "a.npz", absolute_weights=False).absolute_weights is False


def test_cell(tmp_path):
    given = columns()
    plain, suggested = (open_visibilities(tmp_path / p.name) for p in files(tmp_path, given)[1::-1])
    used = ~given["flag"] & (given["weight"] > 0)
    assert plain.cell == pytest.approx(default_cell(given["uvw"][used], given["frequency"][used]))
    assert suggested.cell == suggested.observation().cell == CELL
    assert plain.observation(3.0).cell == 3.0


def test_chunks_image_what_arrays_image(tmp_path):
    for path in files(tmp_path, columns()):
        op, y = measurement(read_observation(path), (16, 12))
        chunks = measurement_chunks(path, (16, 12), rows=11)
        streamed, b = NormalEquations.from_chunks((16, 12), chunks).measurement(dtype=torch.float64)
        expected = op.A_adjoint(y.to(torch.complex128))
        assert float((b - expected).norm() / expected.norm()) < 1e-6, path
        assert streamed.count == y.shape[-1]


def test_reading_stays_small(tmp_path):
    given = columns(200_000, flag=np.zeros(200_000, bool), vis=np.ones(200_000, complex), weight=np.ones(200_000))
    for path in files(tmp_path, given):  # 57 bytes a row: 11 MB
        source = open_visibilities(path)
        tracemalloc.start()
        assert sum(len(p.vis) for p in source.chunks(2000, cell=CELL)) == 200_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1.5e6, path


# ---- Stokes I and averages -------------------------------------------------------------------------------


def test_stokes_i_has_the_noise_it_says():
    """100,000 draws of two hands with their own sigma."""
    rng, sigma = np.random.default_rng(0), np.array([0.5, 2.0])
    vis = 3 + 1j + sigma * (rng.normal(size=(100_000, 2)) + 1j * rng.normal(size=(100_000, 2)))
    i, weight, flag = stokes_i(vis, np.broadcast_to(sigma**-2, vis.shape), np.zeros(vis.shape, bool))
    assert i.mean() == pytest.approx(3 + 1j, abs=0.02)
    assert i.real.std() == pytest.approx(weight[0] ** -0.5, rel=0.01) and not flag.any()


def test_one_flagged_hand_flags():
    vis, weight = np.ones((4, 2), complex), np.array([[1.0, 1], [1, 0], [1, -1], [1, 1]])
    _, combined, flag = stokes_i(vis, weight, np.array([[0, 0], [0, 0], [0, 0], [0, 1]], bool))
    assert flag.tolist() == [False, True, True, True] and combined.tolist() == [2, 0, 0, 0]
    _, single, _ = stokes_i(vis[:, :1], weight[:, :1], np.zeros((4, 1), bool))
    assert single.tolist() == [1, 1, 1, 1]


def test_hands():
    assert hands(["XX", "XY", "YX", "YY"]) == [0, 3] and hands(["LL", "RR"]) == [0, 1] and hands(["I", "Q"]) == [0]
    assert hands(["RR", "LL"], "LL") == [1]
    with pytest.raises(ValueError, match=r"expected correlation I \(or XX and YY.*holds \['XX', 'XY'\].*stokes='XX'"):
        hands(["XX", "XY"])


def block(**changes: object) -> Block:
    rng = np.random.default_rng(1)
    s = seen(integrations=5, antennas=3, auto=False)
    shape = (len(s.time), 5)
    return Block(
        s.uvw, np.linspace(1e9, 1.1e9, 5), rng.normal(size=shape) + 1j * rng.normal(size=shape),
        rng.uniform(1, 2, shape), rng.random(shape) < 0.3, s.time, s.one * 2**16 + s.two,
    )  # fmt: skip


def test_averages_are_weighted_means_of_each_baseline():
    b, seconds, together = block(), 70.0, 2
    found = _flat(b, seconds, together)
    expected = {}
    for r in range(len(b.time)):
        for f in range(5):
            if not b.flag[r, f]:
                expected.setdefault((b.baseline[r], b.time[r] // seconds, f // together), []).append((r, f))
    assert len(found["vis"]) == len(expected) < np.sum(~b.flag)
    rows = np.lexsort((found["weight"],))
    means = []
    for members in expected.values():
        w = np.array([b.weight[m] for m in members])
        values = np.array([[*b.uvw[r], b.frequency[f], b.vis[r, f]] for r, f in members])
        means.append([*(w @ values / w.sum()), w.sum()])
    means = np.array(sorted(means, key=lambda m: m[-1].real))
    for name, column in (("uvw", means[:, :3].real), ("frequency", means[:, 3].real), ("vis", means[:, 4])):
        np.testing.assert_allclose(found[name][rows], column, rtol=1e-12)
    np.testing.assert_allclose(found["weight"][rows], means[:, 5].real, rtol=1e-12)


class Pole(Visibilities):
    """An East-West baseline that sees the pole: u turns at the Earth's rate, the worst of all."""

    width = 5e6
    frequencies = np.array([1.4e9])

    def _blocks(self, rows, part, data):
        one = np.ones((1, 1))
        yield Block(
            np.array([[3000.0, 0, 0]]), self.frequencies, one + 0j, one, one == 0, np.zeros(1), np.zeros(1, int)
        )


def test_smearing_is_the_phase_at_the_end_of_a_bin(tmp_path):
    source, l = Pole(tmp_path, (0, 90), time_average=60.0, channel_average=4), np.radians(600 / 3600)
    wave = C / 1.4e9

    def phase(seconds, hertz):
        angle = np.pi / 2 + 2 * np.pi / 86164.09 * seconds  # the source to the East where u is zero: the fastest
        return 2 * np.pi * 3000 * np.cos(angle) * l * (1.4e9 + hertz) / C

    time, band = source.smearing(1200.0)  # half of it is l
    assert time == pytest.approx(abs(phase(30, 0) - phase(0, 0)), rel=1e-3)
    assert band == pytest.approx(2 * np.pi * 3000 / wave * l * (10e6 / 1.4e9), rel=1e-9)
    assert Pole(tmp_path, (0, 90)).smearing(1200.0) == (0, 0)


# ---- OBS.h5 out ------------------------------------------------------------------------------------------


def test_convert(tmp_path):
    path = files(tmp_path, columns())[1]
    count = convert(path, tmp_path / "out.h5", rows=7, cell=2.0)
    found, expected = read_observation(tmp_path / "out.h5"), open_visibilities(path).observation(2.0)
    assert count == len(expected.vis) == len(found.vis)
    for field in fields(Observation):
        value = getattr(expected, field.name)
        value = value.astype(np.complex64) if field.name == "vis" else value
        np.testing.assert_array_equal(getattr(found, field.name), value, err_msg=field.name)
    with h5py.File(tmp_path / "out.h5") as f:
        assert f["uvw"].attrs["unit"] == "m" and f["vis"].dtype == np.complex64
    with pytest.raises(FileExistsError, match="--overwrite"):
        convert(path, tmp_path / "out.h5")
    convert(path, tmp_path / "out.h5", overwrite=True, absolute_weights=False)
    assert not read_observation(tmp_path / "out.h5").absolute_weights


def test_convert_keeps_a_single_frequency_and_the_truth(tmp_path):
    truth = np.ones((3, 4), np.float32)
    write_observation(tmp_path / "a.h5", Observation(**columns(frequency=1.4e9), cell=CELL, truth=truth))
    convert(tmp_path / "a.h5", tmp_path / "b.h5", rows=9)
    found = read_observation(tmp_path / "b.h5")
    assert found.frequency.shape == () and found.truth.tolist() == truth.tolist()


def test_an_error_on_the_way_leaves_nothing(tmp_path):
    vis = columns()["vis"]
    vis[np.flatnonzero(~np.isnan(vis))[-1]] = np.inf
    path = write_npz(tmp_path / "a.npz", **columns(vis=vis))
    with pytest.raises(ValueError, match=r"a\.npz: 1 unflagged values of vis are NaN or inf; flag those rows"):
        convert(path, tmp_path / "out.h5", rows=7)
    assert os.listdir(tmp_path) == ["a.npz"]


# ---- bad input -------------------------------------------------------------------------------------------

BAD = [
    ({"flag": np.ones(M, bool)}, "every visibility is flagged or of weight zero"),
    ({"weight": np.zeros(M)}, "every visibility is flagged or of weight zero"),
    ({"vis": np.full(M, np.nan + 0j)}, "unflagged values of vis are NaN or inf; flag those rows"),
    ({"weight": -np.ones(M)}, "weights must be >= 0"),
    ({"weight": np.ones(M - 1)}, r"must be of one length and vis \(M,\)"),
    ({"vis": np.ones((M, 2), complex)}, r"must be of one length and vis \(M,\)"),
    ({"uvw": np.zeros((M, 3))}, "every baseline has length zero"),
    ({"uvw": np.asfortranarray(columns()["uvw"])}, r"stored column by column; save np\.ascontiguousarray"),
    ({"vis": np.array([None] * M)}, "npy pickles are refused"),
    ({"phase_centre_deg": np.ones(3)}, "phase_centre_deg must be RA and Dec"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[b[1][:25] for b in BAD])
def test_bad_columns(tmp_path, changes, message):
    path = write_npz(tmp_path / "a.npz", **columns(**changes))
    with pytest.raises(ValueError, match=message):
        open_visibilities(path).observation()


def test_bad_files(tmp_path):
    good = write_npz(tmp_path / "a.npz", **columns())
    (tmp_path / "cut.npz").write_bytes(good.read_bytes()[:1000])
    (tmp_path / "a.txt").write_text("text")
    np.save(tmp_path / "plain.npy", np.ones(3))
    write_npz(tmp_path / "less.npz", uvw=np.ones((3, 3)))
    cases = [
        ("none.ms", FileNotFoundError, "does not exist"),
        (".", FileNotFoundError, "is a folder without table.dat, so no MeasurementSet"),
        ("a.txt", ValueError, "is not an HDF5 file, nor UVFITS, .mat, npz, npy or a MeasurementSet"),
        ("cut.npz", ValueError, "cannot be read; is it whole"),
        ("plain.npy", ValueError, r"expected a structured array with fields uvw.*got float64 \(3,\)"),
        ("less.npz", ValueError, "lacks frequency, vis"),
    ]
    for name, error, message in cases:
        with pytest.raises(error, match=message):
            open_visibilities(tmp_path / name)
    with pytest.raises(TypeError, match="field cannot be chosen for this format; there is phase_centre, absolute_"):
        open_visibilities(good, field=2)
    with pytest.raises(TypeError, match="field: the visibilities are open already"):
        measurement_chunks(open_visibilities(good), (8, 8), field=2)
    with pytest.raises(ValueError, match=r"expected rows >= 1 and part \(k, n\)"):
        list(open_visibilities(good).chunks(0))


def test_averaging_needs_times(tmp_path):
    with pytest.raises(ValueError, match="averaging in time needs the times and antennas"):
        _flat(Block(np.ones((1, 3)), np.ones(1), np.ones((1, 1)), np.ones((1, 1)), np.zeros((1, 1), bool)), 9.0, 1)
    with pytest.raises(ValueError, match="expected time_average >= 0 s and channel_average >= 1, got -1"):
        Pole(tmp_path, (0, 0), time_average=-1)
