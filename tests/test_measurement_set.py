"""MeasurementSets that casacore alone wrote: what is read, where its sources lie, what is refused; and ours."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from visibility_files import CELL, CENTRE, FREQUENCIES, OFFSETS, Seen, peaks, seen

import pnp_lofi.__main__ as cli
from pnp_lofi.observation import Observation, read_observation
from pnp_lofi.operators import NormalEquations
from pnp_lofi.radio_chunks import measurement_chunks
from pnp_lofi.radio_measurement import measurement
from pnp_lofi.visibilities import convert, open_visibilities

tables = pytest.importorskip("casacore.tables", reason="python-casacore is not installed: pip install 'pnp_lofi[ms]'")
from pnp_lofi.measurement_set import write_measurement_set  # noqa: E402

SHAPE = (48, 40)
NAMES = ("UVW", "DATA", "FLAG", "WEIGHT", "TIME", "ANTENNA1", "ANTENNA2")


def fill(path: Path, rows: list[dict[str, object]]) -> None:
    table = tables.table(str(path), readonly=False, ack=False)
    table.addrows(len(rows))
    for k, row in enumerate(rows):
        for name, value in row.items():
            table.putcell(name, k, value)
    table.close()


def by_hand(path: Path, s: Seen, columns: tuple[str, ...] = ("DATA",), corr=(9, 10, 11, 12), **puts) -> Path:
    """A MeasurementSet of 4 correlations, V_XX = 1.2 V, V_YY = .8 V, cross hands junk; puts: whole columns."""
    F, P = len(FREQUENCIES), len(corr)
    described = [tables.makearrcoldesc(c, 0j, ndim=2, shape=[F, P], valuetype="complex") for c in columns]
    if "WEIGHT_SPECTRUM" in puts:
        described.append(tables.makearrcoldesc("WEIGHT_SPECTRUM", 0.0, ndim=2, shape=[F, P], valuetype="float"))
    main = tables.default_ms(str(path), tables.maketabdesc(described))
    rows = len(s.time)
    main.addrows(rows)
    data = np.full((rows, F, P), 99 + 9j, np.complex64)
    data[..., 0], data[..., -1] = 1.2 * s.vis, 0.8 * s.vis
    whole = {
        "UVW": s.uvw, "TIME": s.time, "ANTENNA1": s.one, "ANTENNA2": s.two, "FLAG": np.zeros(data.shape, bool),
        "WEIGHT": np.tile(np.linspace(1, 2, P, dtype=np.float32), (rows, 1)),
        "SIGMA": np.tile(np.float32([0.5] * P), (rows, 1)),
    }  # fmt: skip
    for name, value in (whole | {c: data for c in columns} | puts).items():
        main.putcol(name, value)
    main.close()
    fill(path / "FIELD", [
        {"NAME": "calibrator", "PHASE_DIR": np.zeros((1, 2))}, {"NAME": "sky", "PHASE_DIR": np.radians([CENTRE])}
    ])  # fmt: skip
    fill(path / "POLARIZATION", [{"NUM_CORR": P, "CORR_TYPE": np.array(corr, np.int32)}])
    spectra = [{"CHAN_FREQ": FREQUENCIES + k * 1e8, "CHAN_WIDTH": np.full(F, 2e7), "NUM_CHAN": F} for k in (0, 1)]
    fill(path / "SPECTRAL_WINDOW", spectra)
    fill(path / "DATA_DESCRIPTION", [{"SPECTRAL_WINDOW_ID": k, "POLARIZATION_ID": 0} for k in (0, 1)])
    fill(path / "OBSERVATION", [{"TELESCOPE_NAME": "EVLA"}])
    return path


def target(s: Seen, **puts) -> dict[str, object]:
    return {"FIELD_ID": np.ones(len(s.time), np.int32)} | puts


def dirty_peaks(source) -> list[tuple[int, int]]:
    chunks = measurement_chunks(source, SHAPE, cell=CELL, rows=100)
    op, b = NormalEquations.from_chunks(SHAPE, chunks).measurement()
    return peaks(op.dirty(b)[0, 0].numpy(), op.psf((2 * SHAPE[0], 2 * SHAPE[1])).numpy())


@pytest.mark.parametrize("direction", [1, -1])
def test_sources_lie_where_they_are(tmp_path, direction):
    """Antenna 1 minus 2 as CASA and the VLA write, and 2 minus 1 as note 229 has it, whose data are the conjugate."""
    s = seen()
    s.uvw, s.vis = direction * s.uvw, s.vis if direction == 1 else np.conj(s.vis)
    source = open_visibilities(by_hand(tmp_path / "a.ms", s, **target(s)))
    assert source.phase_centre == pytest.approx(CENTRE)
    assert dirty_peaks(source) == [o[:2] for o in OFFSETS]
    obs = source.observation(CELL)
    op, y = measurement(obs, SHAPE)
    assert float(op.dirty(y).max()) == pytest.approx(1, abs=0.15)  # 1 Jy, and a side lobe of the other


def test_values_are_those_that_casacore_reads(tmp_path):
    s = seen()
    rng = np.random.default_rng(0)
    flag = rng.random((len(s.time), 3, 4)) < 0.05
    weight = rng.uniform(1, 2, (len(s.time), 4)).astype(np.float32)
    row_flag = rng.random(len(s.time)) < 0.1
    path = by_hand(tmp_path / "a.ms", s, **target(s, FLAG=flag, WEIGHT=weight, FLAG_ROW=row_flag))
    source = open_visibilities(path)
    pieces = [p for k in range(2) for p in source.chunks(50, (k, 2))]
    expected = []
    for row in tables.table(str(path), ack=False):
        for f in range(3):
            xx, yy = row["DATA"][f, 0], row["DATA"][f, 3]
            used = not (row["FLAG"][f, [0, 3]].any() or row["FLAG_ROW"]) and row["ANTENNA1"] != row["ANTENNA2"]
            w = 4 / (1 / row["WEIGHT"][0] + 1 / row["WEIGHT"][3])
            if used:
                expected.append([*row["UVW"], FREQUENCIES[f], np.conj(xx + yy) / 2, w])
    expected = np.array(expected)
    joined = {n: np.concatenate([getattr(p, n) for p in pieces]) for n in ("uvw", "frequency", "vis", "weight")}
    np.testing.assert_allclose(joined["uvw"], expected[:, :3].real)
    np.testing.assert_allclose(joined["frequency"], expected[:, 3].real)
    np.testing.assert_allclose(joined["vis"], expected[:, 4], rtol=1e-6)
    np.testing.assert_allclose(joined["weight"], expected[:, 5].real, rtol=1e-6)
    assert source.rows == (s.one != s.two).sum() * 3
    assert (source.telescope, source.description) == ("EVLA", "a.ms, field 1 sky, DATA")


def test_the_command_line_chooses(tmp_path, monkeypatch, capsys):
    """One field, window and channels of several, as `open_visibilities` takes them."""
    s = seen()
    field = np.where(np.arange(len(s.time)) < 40, 0, 1).astype(np.int32)
    by_hand(tmp_path / "a.ms", s, FIELD_ID=field)
    monkeypatch.chdir(tmp_path)
    line = ["pnp-lofi", "solve", "radio", "a.ms", "--size", "16", "--clean", "-o", "a.fits"]
    chosen = ["--field", "sky", "--spw", "0", "--channels", "1,3", "--column", "DATA"]
    for words, code, told in (
        ([], 2, "holds the fields 0 calibrator, 1 sky"),
        ([*chosen, "--channels", "1"], 2, "expected two numbers with a comma"),
        (chosen, 0, ""),
        ([*chosen, "--overwrite", "--field", "1"], 0, ""),
    ):
        monkeypatch.setattr(sys, "argv", [*line, *words])
        try:
            cli.main()
            found = 0
        except SystemExit as stop:
            found = stop.code or 0
        said = capsys.readouterr()
        assert found == code, said.err
        assert told in said.err
    report = json.loads((tmp_path / "a.json").read_text())
    source = open_visibilities(tmp_path / "a.ms", field=1, spw=0, channels=(1, 3))
    assert report["visibilities"] == source.rows and report["selection"]["channels"] == [1, 3]
    assert report["frequency_hz"] == pytest.approx(source.frequencies.mean())


def test_selections(tmp_path):
    s = seen()
    half = np.arange(len(s.time)) % 2
    field = np.where(np.arange(len(s.time)) < 40, 0, 1)
    puts = {"FIELD_ID": field.astype(np.int32), "DATA_DESC_ID": half.astype(np.int32)}
    path = by_hand(tmp_path / "a.ms", s, **puts)
    with pytest.raises(
        ValueError, match="holds the fields 0 calibrator, 1 sky; choose one, field= \\(--field\\); got None"
    ):
        open_visibilities(path)
    with pytest.raises(ValueError, match="got 'moon'"):
        open_visibilities(path, field="moon")
    used = (field == 1) & (s.one != s.two)
    by_name, by_number = open_visibilities(path, field="sky"), open_visibilities(path, field=1)
    assert by_name.rows == by_number.rows == 3 * used.sum()
    np.testing.assert_allclose(by_name.frequencies, [*FREQUENCIES, *(FREQUENCIES + 1e8)])
    assert open_visibilities(path, field=0).phase_centre == (0, 0)
    second = open_visibilities(path, field=1, spw=1, channels=(1, 3))
    np.testing.assert_allclose(second.frequencies, FREQUENCIES[1:] + 1e8)
    rows = used & (half == 1)
    np.testing.assert_allclose(second.observation().vis, np.conj(s.vis[rows][:, 1:]).ravel(), rtol=1e-6)
    hand = open_visibilities(path, field=1, spw=(1,), stokes="YY").observation()
    np.testing.assert_allclose(hand.vis, 0.8 * np.conj(s.vis[rows]).ravel(), rtol=1e-6)
    with pytest.raises(ValueError, match=r"has spectral windows \[0, 1\], got spw=5"):
        open_visibilities(path, field=1, spw=5)
    with pytest.raises(ValueError, match=r"3 channels, got channels=\(2, 9\)"):
        open_visibilities(path, field=1, channels=(2, 9))
    with pytest.raises(ValueError, match="expected correlation RR"):
        open_visibilities(path, field=1, stokes="RR")


def test_columns_of_data_and_weights(tmp_path):
    s = seen(3)
    shape = (len(s.time), 3, 2)
    spectrum = np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)
    puts = {"CORRECTED_DATA": np.full(shape, 7 + 0j, np.complex64), "WEIGHT_SPECTRUM": spectrum}
    path = by_hand(tmp_path / "a.ms", s, ("DATA", "CORRECTED_DATA"), (5, 8), **target(s, **puts))
    cross = s.one != s.two
    auto = open_visibilities(path).observation()
    assert (auto.vis == 7).all()
    np.testing.assert_allclose(auto.weight, (4 / (1 / spectrum).sum(-1))[cross].ravel(), rtol=1e-6)
    np.testing.assert_allclose(open_visibilities(path, column="DATA").observation().vis, np.conj(s.vis[cross]).ravel())
    assert (open_visibilities(path, weights="SIGMA").observation().weight == 8).all()  # 2 / 0.5^2
    assert open_visibilities(path, weights="WEIGHT").observation().weight == pytest.approx(4 / 1.5)
    with pytest.raises(ValueError, match=r"no data: expected a column MODEL_DATA that is not empty, it has .*DATA"):
        open_visibilities(path, column="MODEL_DATA")


def test_averages_keep_the_sources(tmp_path):
    s = seen(24)  # 30 s
    s.time = 5e9 + np.round((s.time - 5e9) / 30) * 30
    path = by_hand(tmp_path / "a.ms", s, **target(s))
    plain = open_visibilities(path)
    thin = open_visibilities(path, channel_average=3)
    assert len(thin.observation(CELL).vis) * 3 == len(plain.observation(CELL).vis)
    assert dirty_peaks(thin) == [o[:2] for o in OFFSETS]
    assert thin.smearing(60.0)[1] > 0 and thin.width == 2e7
    both = open_visibilities(path, channel_average=3, time_average=60.0).observation(CELL)
    pairs = 15
    assert len(both.vis) == pairs * 12
    assert both.weight.sum() == pytest.approx(plain.observation(CELL).weight.sum(), rel=1e-5)


def test_convert_images_the_same(tmp_path):
    s = seen(4)
    path = by_hand(tmp_path / "a.ms", s, **target(s))
    convert(path, tmp_path / "a.h5", rows=64, cell=CELL)
    (one, a), (two, b) = (
        NormalEquations.from_chunks(SHAPE, measurement_chunks(p, SHAPE, cell=CELL)).measurement()
        for p in (path, tmp_path / "a.h5")
    )
    np.testing.assert_allclose(a, b, atol=1e-6 * float(a.abs().max()))
    np.testing.assert_allclose(one.psf(), two.psf(), atol=1e-6)
    assert read_observation(path).phase_centre == pytest.approx(CENTRE)


# ---- what we write ---------------------------------------------------------------------------------------


def observed() -> tuple[Observation, Seen]:
    """One frequency a row, some flagged."""
    s = seen(4, auto=False)
    frequency = np.resize(FREQUENCIES, len(s.time))
    vis = np.conj(s.vis[np.arange(len(s.time)), np.arange(len(s.time)) % 3])
    flag = np.arange(len(s.time)) % 7 == 0
    vis[flag] = np.nan
    weight = np.linspace(1, 3, len(s.time))
    return Observation(s.uvw, frequency, vis, weight, flag, CELL, CENTRE, "MeerKAT", "two points"), s


def test_written_sets_come_back(tmp_path):
    obs, s = observed()
    path = tmp_path / "out.ms"
    write_measurement_set(path, obs, time=s.time, antennas=(s.one, s.two), positions=s.positions)
    found, expected = open_visibilities(path).observation(CELL), obs.good()
    order = np.argsort(np.round(expected.frequency), kind="stable")  # windows come one after the other
    for name in ("uvw", "frequency", "vis", "weight"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name)[order], rtol=1e-6, err_msg=name)
    assert (found.telescope, found.phase_centre) == ("MeerKAT", pytest.approx(CENTRE))
    main = tables.table(str(path), ack=False)
    assert main.nrows() == len(s.time) and main.getcol("TIME").tolist() == s.time.tolist()
    assert main.getcol("ANTENNA1").tolist() == s.one.tolist() and main.getcol("ANTENNA2").tolist() == s.two.tolist()
    np.testing.assert_allclose(main.getcol("DATA")[~obs.flag][:, 0, 1], np.conj(obs.vis[~obs.flag]), rtol=1e-6)
    np.testing.assert_allclose(main.getcol("SIGMA")[~obs.flag] ** -2, main.getcol("WEIGHT")[~obs.flag], rtol=1e-5)
    rows = {"ANTENNA": 6, "FEED": 6, "FIELD": 1, "SPECTRAL_WINDOW": 3, "POLARIZATION": 1, "DATA_DESCRIPTION": 3,
            "OBSERVATION": 1}  # fmt: skip
    for name, count in rows.items():
        assert tables.table(main.getkeyword(name), ack=False).nrows() == count, name
    np.testing.assert_allclose(tables.table(str(path / "ANTENNA"), ack=False).getcol("POSITION"), s.positions)
    described = tables.table(str(path / "DATA_DESCRIPTION"), ack=False).getcol("SPECTRAL_WINDOW_ID")
    centres = tables.table(str(path / "SPECTRAL_WINDOW"), ack=False).getcol("CHAN_FREQ")[:, 0]
    np.testing.assert_allclose(centres[described[main.getcol("DATA_DESC_ID")]], obs.frequency)


def test_channels_are_one_window(tmp_path):
    """Flags and weights of each channel; the rows' antennas by name."""
    s = seen(4, auto=False)
    rows, rng = len(s.time), np.random.default_rng(0)
    each = (rng.uniform(1, 2, 3 * rows), rng.random(3 * rows) < 0.1)
    obs = Observation(s.uvw.repeat(3, 0), np.tile(FREQUENCIES, rows), np.conj(s.vis).ravel(), *each, CELL, CENTRE)
    of_rows = {"time": s.time.repeat(3), "antennas": (s.one.repeat(3), s.two.repeat(3)), "positions": s.positions}
    path = tmp_path / "out.ms"
    write_measurement_set(path, obs, **of_rows, names=list("PQRSTU"), diameter=12.0, channels=3)
    found, expected = open_visibilities(path).observation(CELL), obs.good()
    for name in ("uvw", "frequency", "vis", "weight"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-6, err_msg=name)
    main, place, window = (tables.table(str(path / name), ack=False) for name in ("", "ANTENNA", "SPECTRAL_WINDOW"))
    assert main.nrows() == rows and main.getcol("ANTENNA2").tolist() == s.two.tolist()
    assert "".join(place.getcol("NAME")) == "PQRSTU" and set(place.getcol("DISH_DIAMETER")) == {12.0}
    np.testing.assert_allclose(window.getcol("CHAN_FREQ"), [FREQUENCIES])
    obs.uvw[1] += 1
    for options, message in (
        ({"channels": 3}, "of the channels of a row differ"),
        ({"channels": 7}, "180 visibilities are no rows of channels=7"),
        ({"channels": 2}, "the frequencies of the rows differ"),
        ({"names": ("A",)}, "a name for each of 6 antennas, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            write_measurement_set(tmp_path / "b.ms", obs, **of_rows, **options)


def test_nothing_is_overwritten_unasked(tmp_path):
    obs, _ = observed()
    path = tmp_path / "out.ms"
    write_measurement_set(path, obs)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_measurement_set(path, obs)
    obs.vis = 2 * obs.vis
    write_measurement_set(path, obs, overwrite=True)
    assert os.listdir(tmp_path) == ["out.ms"]
    assert np.abs(open_visibilities(path).observation().vis).max() == pytest.approx(np.nanmax(np.abs(obs.vis)))
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="if it is a MeasurementSet"):
        write_measurement_set(tmp_path / "mine", obs, overwrite=True)


def test_an_error_on_the_way_leaves_nothing(tmp_path, monkeypatch):
    obs, _ = observed()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("pnp_lofi.measurement_set._write_subtables", full)
    with pytest.raises(OSError, match="disk full"):
        write_measurement_set(tmp_path / "out.ms", obs)
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_written(tmp_path):
    obs, s = observed()
    with pytest.raises(ValueError, match=r"time and antennas must be \(60,\), got \(3,\)"):
        write_measurement_set(tmp_path / "a.ms", obs, time=np.zeros(3))
    with pytest.raises(FileNotFoundError, match="make it first"):
        write_measurement_set(tmp_path / "none" / "a.ms", obs)
    obs.uvw = s.uvw[:, :2]
    with pytest.raises(ValueError, match=r"needs uvw \(M, 3\), got \(60, 2\)"):
        write_measurement_set(tmp_path / "a.ms", obs)


# ---- bad input -------------------------------------------------------------------------------------------


def changed(column: str, value: object):
    def change(path: Path) -> None:
        main = tables.table(str(path), readonly=False, ack=False)
        main.putcol(column, np.full_like(main.getcol(column), value))

    return change


def without(*columns: str):
    def change(path: Path) -> None:
        tables.table(str(path), readonly=False, ack=False).removecols(list(columns))

    return change


def no_centre(path: Path) -> None:
    tables.table(str(path / "FIELD"), readonly=False, ack=False).putcell("PHASE_DIR", 1, np.full((1, 2), np.nan))


def galactic(path: Path) -> None:
    measure = {"Ref": "GALACTIC", "type": "direction"}
    tables.table(str(path / "FIELD"), readonly=False, ack=False).putcolkeyword("PHASE_DIR", "MEASINFO", measure)


BAD = [
    (without("DATA"), r"has no data: expected a column CORRECTED_DATA or DATA that is not empty.*choose with column="),
    (without("WEIGHT", "SIGMA"), "has no weights: expected a column WEIGHT_SPECTRUM or WEIGHT or .*SIGMA"),
    (without("UVW"), "is a casacore table, but no MeasurementSet: it lacks UVW"),
    (changed("FLAG", True), "every visibility is flagged or of weight zero; nothing is left to image"),
    (changed("WEIGHT", 0), "every visibility is flagged or of weight zero"),
    (changed("DATA", np.nan), "unflagged values of vis are NaN or inf; flag those rows"),
    (changed("ANTENNA1", 0), None),
    (no_centre, r"PHASE_DIR of field 1 is .*give phase_centre=\(RA, Dec\)"),
    (galactic, "in GALACTIC, expected RA and Dec in J2000 or ICRS"),
    (lambda path: (path / "table.f0").unlink(), "cannot be read; is it whole"),
    (lambda path: (path / "table.dat").write_bytes(b"junk"), "cannot be read; is it whole"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=range(len(BAD)))
def test_bad_sets(tmp_path, change, message):
    s = seen(2, antennas=3)
    path = by_hand(tmp_path / "a.ms", s, **target(s))
    change(path)
    if message is None:
        changed("ANTENNA2", 0)(path)
        message = "holds autocorrelations only; imaging needs two antennas"
    with pytest.raises(ValueError, match=message):
        open_visibilities(path).observation()


def test_a_given_phase_centre_mends_a_missing_one(tmp_path):
    s = seen(2, antennas=3)
    path = by_hand(tmp_path / "a.ms", s, **target(s))
    no_centre(path)
    assert open_visibilities(path, phase_centre=(1.0, 2.0)).observation().phase_centre == (1.0, 2.0)


def test_without_casacore(tmp_path, monkeypatch):
    (tmp_path / "a.ms").mkdir()
    (tmp_path / "a.ms" / "table.dat").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "casacore", None)
    with pytest.raises(ImportError, match=r"pip install 'pnp_lofi\[ms\]'"):
        open_visibilities(tmp_path / "a.ms")
