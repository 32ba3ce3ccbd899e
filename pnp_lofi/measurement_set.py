"""CASA MeasurementSets (version 2): read in slices, and written."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pnp_lofi.observation import Observation
from pnp_lofi.visibilities import ROWS, Block, Centre, Visibilities, hands, slices, stokes_i

STOKES = dict(enumerate(("?", "I", "Q", "U", "V", "RR", "RL", "LR", "LL", "XX", "XY", "YX", "YY")))
WEIGHTS = ("WEIGHT_SPECTRUM", "WEIGHT", "SIGMA_SPECTRUM", "SIGMA")
FRAMES = ("J2000", "ICRS")
J2000 = 51544.5 * 86400.0  # [s], where no times are known
EARTH = 6378137.0  # [m], where no positions are known
MOST_WINDOWS = 4096


def casacore_tables() -> ModuleType:
    """:raises ImportError: that says what to install."""
    try:
        from casacore import tables
    except ImportError as error:
        raise ImportError("MeasurementSets need python-casacore: pip install 'pnp_lofi[ms]'") from error
    return tables


@dataclass
class _Window:
    """Rows of one data description."""

    rows: Any  # casacore table
    first: int  # channel
    frequency: np.ndarray  # (F,) [Hz]
    hands: list[int]


class MeasurementSet(Visibilities):
    """Visibilities of one field of a MeasurementSet.

    Its phases are V = sum I exp(+2 pi i (u l + v m)) for the UVW it holds, whether antenna 1 minus 2 or 2 minus 1
    (CASA's imager negates u and v before its transform, FTMachine::negateUV): conjugated here. Autocorrelations are
    left out. FLAG, FLAG_ROW and weights <= 0 flag.

    :param str column: of data; "auto": CORRECTED_DATA if it is there, else DATA.
    :param field: FIELD_ID or name; needed where there are several.
    :param spw: SPECTRAL_WINDOW_ID, or several; default all.
    :param tuple channels: (first, stop) of each window; default all.
    :param str stokes: "I", or one hand ("XX").
    :param str weights: a column; "auto": WEIGHT_SPECTRUM, else WEIGHT, else SIGMA_SPECTRUM, SIGMA as 1/sigma^2.
    :param bool absolute_weights: no column says whether it is. After CASA's statwt, or in simulations, True: 1/sigma^2
        per real component; as correlators write them they hold up to a factor.
    :param tuple phase_centre: RA, Dec [deg], in place of FIELD's PHASE_DIR.
    :param float time_average: [s]; int channel_average: within a window.
    :raises ValueError: for what is missing, and selections that do not fit.
    Source: casacore notes 229; CASA's guide to data weights.
    """

    def __init__(
        self,
        path: Path,
        *,
        column: str = "auto",
        field: int | str | None = None,
        spw: int | tuple[int, ...] | None = None,
        channels: tuple[int, int] | None = None,
        stokes: str = "I",
        weights: str = "auto",
        absolute_weights: bool = False,
        phase_centre: Centre | None = None,
        time_average: float = 0.0,
        channel_average: int = 1,
    ) -> None:
        main = _table(path)
        lacks = [x for x in ("UVW", "FLAG", "DATA_DESC_ID", "FIELD_ID") if x not in main.colnames()]
        lacks += [x for x in ("FIELD", "SPECTRAL_WINDOW", "POLARIZATION") if x not in main.keywordnames()]
        if lacks:
            raise ValueError(f"{path} is a casacore table, but no MeasurementSet: it lacks {', '.join(lacks)}")
        number, name = _field(path, main, field)
        told = _phase_centre(path, number) if phase_centre is None else phase_centre
        super().__init__(
            path, told, absolute_weights=absolute_weights, time_average=time_average, channel_average=channel_average
        )
        self._windows = self._select(main, number, spw, channels, stokes)
        self._column = self._chosen(column, "data", ("CORRECTED_DATA", "DATA"))
        self._weights = self._chosen(weights, "weights", WEIGHTS)
        observations = _table(path, "OBSERVATION")
        self.telescope = observations.getcell("TELESCOPE_NAME", 0) if observations.nrows() else ""
        self.description = f"{path.name}, field {number} {name}, {self._column}"
        self.rows = sum(w.rows.nrows() * len(w.frequency) for w in self._windows)

    @property
    def frequencies(self) -> np.ndarray:
        return np.unique(np.concatenate([w.frequency for w in self._windows]))

    def _select(
        self, main: Any, field: int, spw: int | tuple[int, ...] | None, channels: tuple[int, int] | None, stokes: str
    ) -> list[_Window]:
        described, spectra, polar = (
            _table(self.path, name) for name in ("DATA_DESCRIPTION", "SPECTRAL_WINDOW", "POLARIZATION")
        )
        spw_of, polar_of = (described.getcol(x) for x in ("SPECTRAL_WINDOW_ID", "POLARIZATION_ID"))
        there = np.unique(main.query(f"FIELD_ID=={field}", columns="DATA_DESC_ID").getcol("DATA_DESC_ID"))
        wanted = set(np.atleast_1d(spw_of[there] if spw is None else np.asarray(spw)).tolist())
        if not wanted <= set(spw_of[there].tolist()):
            raise ValueError(f"{self.path}: field {field} has spectral windows {spw_of[there].tolist()}, got spw={spw}")
        windows = []
        for k in there:
            if spw_of[k] not in wanted:
                continue
            frequency = np.ravel(spectra.getcell("CHAN_FREQ", int(spw_of[k])))
            first, stop = channels or (0, len(frequency))
            if not 0 <= first < stop <= len(frequency):
                raise ValueError(
                    f"{self.path}: spectral window {spw_of[k]} has {len(frequency)} channels, got channels={channels}; "
                    "they are (first, stop)"
                )
            width = spectra.getcell("CHAN_WIDTH", int(spw_of[k]))
            self.width = max(self.width, float(np.abs(width).max()))
            names = [STOKES.get(code, "?") for code in polar.getcell("CORR_TYPE", int(polar_of[k]))]
            rows = main.query(f"FIELD_ID=={field} && DATA_DESC_ID=={k} && ANTENNA1!=ANTENNA2")
            if rows.nrows():
                windows.append(_Window(rows, first, frequency[first:stop], hands(names, stokes)))
        if not windows:
            raise ValueError(f"{self.path}: field {field} holds autocorrelations only; imaging needs two antennas")
        return windows

    def _chosen(self, asked: str, what: str, order: tuple[str, ...]) -> str:
        """The first column of the order that holds something."""
        order = order if asked == "auto" else (asked,)
        rows = self._windows[0].rows
        for name in order:
            if name in rows.colnames() and rows.iscelldefined(name, 0):
                return name
        option = "column= (--column)" if what == "data" else "weights= (--weight-column)"
        raise ValueError(
            f"{self.path} has no {what}: expected a column {' or '.join(order)} that is not empty, it has "
            f"{', '.join(sorted(rows.colnames()))}; choose with {option}"
        )

    def _blocks(self, rows: int, part: tuple[int, int], data: bool) -> Iterator[Block]:
        for window in self._windows:
            table = window.rows
            for start, stop in slices(table.nrows(), rows // len(window.frequency), part):
                yield self._block(window, start, stop - start, data)

    def _block(self, window: _Window, start: int, count: int, data: bool) -> Block:
        table, which, last = window.rows, window.hands, window.first + len(window.frequency) - 1
        step = which[-1] - which[0] or 1

        def cube(column: str) -> np.ndarray:
            corners = ([window.first, which[0]], [last, which[-1]], [1, step])
            return np.asarray(table.getcolslice(column, *corners, start, count))

        flag = cube("FLAG")
        if "FLAG_ROW" in table.colnames():
            flag = flag | table.getcol("FLAG_ROW", start, count)[:, None, None]
        weight = (
            cube(self._weights)
            if self._weights.endswith("SPECTRUM")
            else table.getcol(self._weights, start, count)[:, None, which]
        )
        if self._weights.startswith("SIGMA"):
            weight = np.divide(1.0, np.square(weight), out=np.zeros(weight.shape), where=weight > 0)
        weight = np.broadcast_to(weight, flag.shape)
        vis = cube(self._column) if data else np.broadcast_to(np.complex64(0), flag.shape)
        first, second = (table.getcol(name, start, count).astype(np.int64) for name in ("ANTENNA1", "ANTENNA2"))
        uvw, time = table.getcol("UVW", start, count), table.getcol("TIME", start, count)
        vis, weight, flag = stokes_i(vis, weight, flag)
        return Block(uvw, window.frequency, np.conj(vis), weight, flag, time, first * 2**16 + second)


def _table(path: Path, subtable: str = "") -> Any:
    return casacore_tables().table(str(path / subtable), ack=False, lockoptions="autonoread")


def _field(path: Path, main: Any, field: int | str | None) -> tuple[int, str]:
    """The chosen field's number and name."""
    if main.nrows() == 0:
        raise ValueError(f"{path} has no rows")
    names = _table(path, "FIELD").getcol("NAME")
    there = {int(k): names[k] if k < len(names) else "" for k in np.unique(main.getcol("FIELD_ID"))}
    chosen = [k for k, name in there.items() if field in (k, name) or (field is None and len(there) == 1)]
    if len(chosen) != 1:
        listed = ", ".join(f"{k} {name}" for k, name in there.items())
        raise ValueError(f"{path} holds the fields {listed}; choose one, field= (--field); got {field!r}")
    return chosen[0], there[chosen[0]]


def _phase_centre(path: Path, field: int) -> Centre:
    table = _table(path, "FIELD")
    known = field < table.nrows() and table.iscelldefined("PHASE_DIR", field)
    centre = np.degrees(np.reshape(table.getcell("PHASE_DIR", field), (-1, 2))[0]) if known else np.full(2, np.nan)
    frame = table.getcolkeywords("PHASE_DIR").get("MEASINFO", {}).get("Ref", "J2000")
    if not np.isfinite(centre).all() or frame not in FRAMES:
        raise ValueError(
            f"{path}: PHASE_DIR of field {field} is {tuple(centre)} in {frame}, expected RA and Dec in J2000 or ICRS; "
            "give phase_centre=(RA, Dec) [deg]"
        )
    return float(centre[0] % 360), float(centre[1])


def write_measurement_set(
    path: str | os.PathLike[str],
    obs: Observation,
    *,
    time: np.ndarray | None = None,
    antennas: tuple[np.ndarray, np.ndarray] | None = None,
    positions: np.ndarray | None = None,
    names: Sequence[str] = (),
    diameter: float = 25.0,
    integration: float = 1.0,
    channels: int = 1,
    seed: int | list[int] | None = None,
    overwrite: bool = False,
) -> None:
    """Write an observation as a MeasurementSet, whole or not at all.

    Stokes I is written as XX = YY = I, each of half its weight, in DATA; WEIGHT is 1/sigma^2, and SIGMA is sigma. Each
    frequency becomes a spectral window of one channel; with ``channels`` there is one window of so many.

    :param numpy.ndarray time: (M,) UTC [s, MJD]; where it is not known all have the same.
    :param tuple antennas: two (M,) int, the antennas of each row; where they are not known all are of 0 and 1.
    :param numpy.ndarray positions: (A, 3) ITRF [m]; where they are not known they are placeholders.
    :param names: A of them, of the antennas; default A0, A1 ...; float diameter: of a dish [m].
    :param float integration: [s].
    :param int channels: visibilities that follow one another, of the same frequencies each time, and make one row.
    :param seed: of what XX and YY differ by, noise of the observation's level, so that each has noise of its own as its
        weight says and their mean is I; default: they are equal.
    :param bool overwrite: replace a MeasurementSet; nothing else is ever replaced.
    :raises FileExistsError: if the path exists and overwrite is not asked for, or is no MeasurementSet.
    :raises ValueError: for lengths that differ, no w, too many frequencies, channels that are not the same in all rows.
    """
    path, rows = check_replaceable(path, overwrite=overwrite), len(obs.vis)
    if obs.uvw.shape[1] != 3:
        raise ValueError(f"a MeasurementSet needs uvw (M, 3), got {obs.uvw.shape}; append w, or zeros")
    time = np.full(rows, J2000) if time is None else np.asarray(time, np.float64)
    one, two = (np.zeros(rows), np.ones(rows)) if antennas is None else antennas
    if any(np.shape(x) != (rows,) for x in (time, one, two)):
        raise ValueError(f"time and antennas must be ({rows},), got {np.shape(time)}, {np.shape(one)}, {np.shape(two)}")
    windows, window = _windows(np.broadcast_to(obs.frequency, rows), channels)
    if not np.array_equal(obs.uvw, obs.uvw[::channels].repeat(channels, 0), equal_nan=True):
        raise ValueError(f"channels={channels}: uvw [m] of the channels of a row differ; order the visibilities by row")
    count = int(max(np.max(one), np.max(two))) + 1 if positions is None else len(positions)
    if positions is None:
        positions = np.array([[EARTH, 100.0 * k, 0.0] for k in range(count)])
    if names and len(names) != count:
        raise ValueError(f"expected a name for each of {count} antennas, got {len(names)}")
    names = names or [f"A{k}" for k in range(count)]
    ids = {name: np.asarray(x)[::channels] for name, x in (("TIME", time), ("ANTENNA1", one), ("ANTENNA2", two))}
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _write_main(part, obs, ids | {"DATA_DESC_ID": window}, integration, seed)
        _write_subtables(part, obs, windows, time)
        _write_antennas(part, np.asarray(positions, np.float64), names, diameter, float(time.mean()))
        old = path.with_name(path.name + ".old")
        if path.exists():
            path.rename(old)
        part.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_replaceable(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Refuse a path at which no MeasurementSet may be written, before the work is done.

    :raises FileExistsError: if it exists and overwrite is not asked for, or is no MeasurementSet.
    :raises FileNotFoundError: if its folder does not exist.
    """
    path = Path(path)
    if path.exists() and not (overwrite and (path / "table.dat").is_file()):
        raise FileExistsError(
            f"{path} exists; pass --overwrite (overwrite=True) to replace it, if it is a MeasurementSet"
        )
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder {path.absolute().parent} does not exist; make it first")
    return path


def _windows(frequency: np.ndarray, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (W, channels) of the spectral windows, and the window of each row."""
    if channels < 1 or len(frequency) % channels:
        raise ValueError(f"{len(frequency)} visibilities are no rows of channels={channels}")
    rows = frequency.reshape(-1, channels)
    if channels > 1:
        if (rows != rows[0]).any():
            raise ValueError(f"channels={channels}: the frequencies of the rows differ; order them row by row")
        return rows[:1], np.zeros(len(rows), int)
    windows, window = np.unique(frequency, return_inverse=True)
    if len(windows) > MOST_WINDOWS:
        raise ValueError(f"{len(windows)} frequencies would be as many spectral windows; {MOST_WINDOWS} at most")
    return windows[:, None], window


def _write_main(
    path: Path, obs: Observation, ids: dict[str, np.ndarray], integration: float, seed: int | list[int] | None
) -> None:
    tables, rng = casacore_tables(), None if seed is None else np.random.default_rng(seed)
    rows = len(ids["TIME"])
    channels = len(obs.vis) // rows
    described = [tables.makearrcoldesc("DATA", 0j, ndim=2, shape=[channels, 2], valuetype="complex",
                                       datamanagertype="TiledColumnStMan")]  # fmt: skip
    if channels > 1:
        described.append(tables.makearrcoldesc("WEIGHT_SPECTRUM", 0.0, ndim=2, shape=[channels, 2], valuetype="float"))
    main = tables.default_ms(str(path), tables.maketabdesc(described))
    try:
        main.addrows(rows)
        vis = np.conj(np.where(np.isfinite(obs.vis), obs.vis, 0)).astype(np.complex64).reshape(rows, channels)
        weight = np.where(np.isfinite(obs.weight), obs.weight, 0).astype(np.float64).reshape(rows, channels) / 2
        flag = obs.flag.reshape(rows, channels) | ~(weight > 0)
        mean = weight.mean(1)
        sigma = 1 / np.sqrt(np.where(mean > 0, mean, 1.0))
        uvw = obs.uvw[::channels]
        step = max(1, ROWS // channels)
        for start in range(0, rows, step):
            k = slice(start, min(start + step, rows))

            def put(name: str, value: np.ndarray, k: slice = k) -> None:
                main.putcol(name, value, k.start, k.stop - k.start)

            def both(value: np.ndarray, k: slice = k) -> np.ndarray:
                return np.repeat(value[k][..., None], 2, axis=-1)

            put("UVW", np.where(np.isfinite(uvw[k]), uvw[k], 0))
            data = both(vis)
            if rng is not None:  # of I the variance is 1 / (2 weight), as of half the difference
                level = np.where(flag[k], 0, 1 / np.sqrt(2 * np.where(flag[k], 1, weight[k])))
                half = level * (rng.normal(size=level.shape) + 1j * rng.normal(size=level.shape))
                data = data + np.stack([half, -half], axis=-1)
            put("DATA", data.astype(np.complex64))
            put("FLAG", both(flag))
            put("FLAG_ROW", np.asarray(flag[k].all(1)))
            put("WEIGHT", both(mean).astype(np.float32))
            put("SIGMA", both(sigma).astype(np.float32))
            if channels > 1:
                put("WEIGHT_SPECTRUM", both(weight).astype(np.float32))
            put("TIME_CENTROID", ids["TIME"][k])
            put("TIME", ids["TIME"][k])
            for name in ("ANTENNA1", "ANTENNA2", "DATA_DESC_ID"):
                put(name, np.asarray(ids[name][k], np.int32))
            for name in ("INTERVAL", "EXPOSURE"):
                put(name, np.full(k.stop - k.start, float(integration)))
            for name in ("FIELD_ID", "FEED1", "FEED2", "ARRAY_ID", "OBSERVATION_ID", "SCAN_NUMBER"):
                put(name, np.full(k.stop - k.start, int(name == "SCAN_NUMBER"), np.int32))
            for name in ("PROCESSOR_ID", "STATE_ID"):
                put(name, np.full(k.stop - k.start, -1, np.int32))
    finally:
        main.close()


def _write_subtables(path: Path, obs: Observation, windows: np.ndarray, time: np.ndarray) -> None:
    span = np.array([time.min(), time.max()])
    centre = np.radians(obs.phase_centre)[None]
    telescope = obs.telescope or "UNKNOWN"
    _fill(path, "FIELD", [
        {"NAME": obs.description.split(",")[0][:60] or "sky", "CODE": "", "TIME": span[0], "NUM_POLY": 0,
         "SOURCE_ID": -1, "DELAY_DIR": centre, "PHASE_DIR": centre, "REFERENCE_DIR": centre}
    ])  # fmt: skip
    _fill(path, "OBSERVATION", [
        {"TELESCOPE_NAME": telescope, "TIME_RANGE": span, "OBSERVER": "", "PROJECT": "", "RELEASE_DATE": 0.0,
         "SCHEDULE_TYPE": "", "LOG": [""], "SCHEDULE": [""]}
    ])  # fmt: skip
    _fill(path, "POLARIZATION", [
        {"NUM_CORR": 2, "CORR_TYPE": np.array([9, 12], np.int32), "CORR_PRODUCT": np.array([[0, 0], [1, 1]], np.int32)}
    ])  # fmt: skip
    distinct = np.unique(windows)
    width = np.full(windows.shape[1], float(np.diff(distinct).min()) if len(distinct) > 1 else 1e6)
    _fill(path, "SPECTRAL_WINDOW", [
        {"NAME": f"{f[0] / 1e6:.6f} MHz", "NUM_CHAN": len(f), "REF_FREQUENCY": float(f[0]), "CHAN_FREQ": f,
         "CHAN_WIDTH": width, "EFFECTIVE_BW": width, "RESOLUTION": width, "TOTAL_BANDWIDTH": float(width.sum()),
         "MEAS_FREQ_REF": 5, "NET_SIDEBAND": 1, "FREQ_GROUP": 0, "IF_CONV_CHAIN": 0}
        for f in windows
    ])  # fmt: skip
    _fill(path, "DATA_DESCRIPTION", [{"SPECTRAL_WINDOW_ID": k, "POLARIZATION_ID": 0} for k in range(len(windows))])


def _write_antennas(path: Path, positions: np.ndarray, names: Sequence[str], diameter: float, time: float) -> None:
    _fill(path, "ANTENNA", [
        {"NAME": name, "STATION": name, "TYPE": "GROUND-BASED", "MOUNT": "ALT-AZ", "POSITION": position,
         "OFFSET": np.zeros(3), "DISH_DIAMETER": diameter} for name, position in zip(names, positions, strict=True)
    ])  # fmt: skip
    _fill(path, "FEED", [
        {"ANTENNA_ID": k, "FEED_ID": 0, "SPECTRAL_WINDOW_ID": -1, "TIME": time, "INTERVAL": 0.0,
         "NUM_RECEPTORS": 2, "BEAM_ID": -1, "BEAM_OFFSET": np.zeros((2, 2)), "POLARIZATION_TYPE": ["X", "Y"],
         "POL_RESPONSE": np.eye(2, dtype=np.complex64), "POSITION": np.zeros(3), "RECEPTOR_ANGLE": np.zeros(2)}
        for k in range(len(positions))
    ])  # fmt: skip


def _fill(path: Path, name: str, rows: list[dict[str, Any]]) -> None:
    table = casacore_tables().table(str(path / name), readonly=False, ack=False)
    try:
        table.addrows(len(rows))
        for k, row in enumerate(rows):
            for column, value in row.items():
                table.putcell(column, k, value)
    finally:
        table.close()
