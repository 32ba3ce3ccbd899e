"""UVFITS (random groups) in slices, by astropy alone."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pnp_lofi.operators.uv import C
from pnp_lofi.visibilities import Block, Centre, Visibilities, hands, slices, stokes_i

STOKES = {
    1: "I",
    2: "Q",
    3: "U",
    4: "V",
    -1: "RR",
    -2: "LL",
    -3: "RL",
    -4: "LR",
    -5: "XX",
    -6: "YY",
    -7: "XY",
    -8: "YX",
}
DAY = 86400.0
AXES = ("COMPLEX", "STOKES", "FREQ", "IF")


class UVFITS(Visibilities):
    """Visibilities of a UVFITS file: random groups (AIPS Memo 117), baselines in seconds of light.

    Its u, v, w are antenna 1 minus antenna 2 and V = sum I exp(+2 pi i (u l + v m)): conjugated here. Both signs are
    those of the EHT's files of M87, whose antenna table gives the first and whose bright southern rim the second.
    A weight <= 0 is a flag.

    :param source: number or name, where the file has several.
    :param tuple channels: (first, stop) of each window (IF); default all.
    :param str stokes: "I", or one hand.
    :param bool absolute_weights: True: weights are 1/sigma^2 per real component, as the EHT's; AIPS's need not be.
    :param tuple phase_centre: RA, Dec [deg], where the file does not tell it.
    :param float time_average: [s]; int channel_average: within a window.
    :raises ValueError: for a file that is cut short, no random groups, or a selection that does not fit.
    """

    def __init__(
        self,
        path: Path,
        *,
        source: int | str | None = None,
        channels: tuple[int, int] | None = None,
        stokes: str = "I",
        absolute_weights: bool = False,
        phase_centre: Centre | None = None,
        time_average: float = 0.0,
        channel_average: int = 1,
    ) -> None:
        try:
            from astropy.io import fits
        except ImportError as error:
            raise ImportError("UVFITS files need astropy: pip install 'pnp_lofi[radio]'") from error
        size = path.stat().st_size
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "File may have been truncated")  # told below
            file = fits.open(path, memmap=True)
        with file as f:
            header = f[0].header
            if not header.get("GROUPS") or header.get("NAXIS1") != 0:
                raise ValueError(
                    f"{path} holds no random groups, so no UVFITS; if it is FITS-IDI or in AIPS's tables, write it "
                    "again with AIPS FITTP or CASA exportuvfits"
                )
            self._layout(path, header, f[0].fileinfo()["datLoc"], size)
            tables = {name: f[name].data for name in ("AIPS FQ", "AIPS SU") if name in f}
        places = {header.get(f"CTYPE{k}", f"axis {k}").strip(): k for k in range(2, header["NAXIS"] + 1)}
        self._axes(path, header, places, stokes)
        low, stop = channels or (0, self._shape["FREQ"])
        if not 0 <= low < stop <= self._shape["FREQ"]:
            raise ValueError(
                f"{path}: expected channels (first, stop) within 0 to {self._shape['FREQ']}, got {channels}"
            )
        self._channels = slice(low, stop)
        windows = self._windows(path, header, places, tables.get("AIPS FQ"))
        self._frequency = windows[:, self._channels]  # (IF, F)
        told = self._source(path, header, places, tables.get("AIPS SU"), source)
        centre = told if phase_centre is None else phase_centre
        if centre is None:
            raise ValueError(
                f"{path} tells no phase centre (axes RA and DEC, OBSRA, AIPS SU); give phase_centre=(RA, Dec)"
            )
        super().__init__(
            path, centre, absolute_weights=absolute_weights, time_average=time_average, channel_average=channel_average
        )
        self.telescope = str(header.get("TELESCOP", "")).strip()
        self.description = f"{path.name}, {str(header.get('OBJECT', '')).strip()}"
        self.rows = len(self._data) * self._frequency.size

    @property
    def frequencies(self) -> np.ndarray:
        return np.unique(self._frequency)

    def _layout(self, path: Path, header: Any, start: int, size: int) -> None:
        """Map the groups; the names, scales and zeros of their parameters."""
        groups, parameters = header["GCOUNT"], header["PCOUNT"]
        lengths = [header[f"NAXIS{k}"] for k in range(header["NAXIS"], 1, -1)]
        kind = {-32: ">f4", -64: ">f8", 16: ">i2", 32: ">i4"}[header["BITPIX"]]
        each = parameters + int(np.prod(lengths))
        need = start + groups * each * np.dtype(kind).itemsize
        if size < need:
            raise ValueError(
                f"{path} is cut short: {groups} groups need {need} bytes, the file has {size}; copy it again"
            )
        self._data = np.memmap(path, kind, "r", start, (groups, each))
        self._lengths, self._count = lengths, parameters
        self._scale = (header.get("BSCALE", 1.0), header.get("BZERO", 0.0))
        self._names = [header[f"PTYPE{k}"].strip() for k in range(1, parameters + 1)]
        self._scales = [(header.get(f"PSCAL{k}", 1.0), header.get(f"PZERO{k}", 0.0)) for k in range(1, parameters + 1)]
        missing = [x for x in ("UU", "VV", "WW") if not any(name.startswith(x) for name in self._names)]
        if missing:
            raise ValueError(f"{path}: expected parameters UU, VV and WW, the groups have {self._names}")

    def _axes(self, path: Path, header: Any, places: dict[str, int], stokes: str) -> None:
        """Where the axes are; those but AXES must have length one."""
        missing = [name for name in AXES[:3] if name not in places]
        extra = [name for name, k in places.items() if name not in AXES and header[f"NAXIS{k}"] > 1]
        if missing or extra:
            raise ValueError(f"{path}: expected axes COMPLEX, STOKES, FREQ (and IF), got {list(places)}; {extra} vary")
        self._order = [header["NAXIS"] - places[name] for name in AXES if name in places]
        self._shape = {name: header[f"NAXIS{places[name]}"] if name in places else 1 for name in AXES}
        k = places["STOKES"]
        codes = header[f"CRVAL{k}"] + (np.arange(self._shape["STOKES"]) + 1 - header[f"CRPIX{k}"]) * header[f"CDELT{k}"]
        self._hands = hands([STOKES.get(round(code), "?") for code in codes], stokes)

    def _windows(self, path: Path, header: Any, places: dict[str, int], table: Any) -> np.ndarray:
        """(IF, channels) [Hz]."""
        k = places["FREQ"]
        reference, step = float(header[f"CRVAL{k}"]), float(header[f"CDELT{k}"])
        in_wavelengths = any(name.startswith("UU-L") for name in self._names)
        self._unit = C / reference if in_wavelengths else C  # [m]
        offsets, steps = np.zeros(self._shape["IF"]), np.full(self._shape["IF"], step)
        if table is None and self._shape["IF"] > 1:
            raise ValueError(
                f"{path} has {self._shape['IF']} windows (IF), but no table AIPS FQ with their frequencies"
            )
        if table is not None:
            if len(table) > 1:
                raise ValueError(f"{path} has {len(table)} frequency setups (FREQSEL); split them, one to a file")
            offsets = np.ravel(table["IF FREQ"][0])
            steps = np.ravel(table["CH WIDTH"][0]) if self._shape["FREQ"] > 1 else steps
        channel = np.arange(self._shape["FREQ"]) + 1 - header[f"CRPIX{k}"]
        self.width = float(np.abs(steps).max())
        return reference + offsets[:, None] + channel * np.broadcast_to(steps, offsets.shape)[:, None]

    def _source(
        self, path: Path, header: Any, places: dict[str, int], table: Any, source: int | str | None
    ) -> Centre | None:
        """RA, Dec [deg] of the source, J2000."""
        self._wanted: int | None = None
        if table is None or "SOURCE" not in self._names:
            if source is not None:
                raise ValueError(f"{path} holds one source; leave source out")
            found = [
                header.get(f"CRVAL{places[axis]}" if axis in places else name, header.get(name))
                for name, axis in (("OBSRA", "RA"), ("OBSDEC", "DEC"))
            ]
            return None if None in found else (float(found[0]), float(found[1]))
        names = {int(row["ID. NO."]): str(row["SOURCE"]).strip() for row in table}
        chosen = [k for k, name in names.items() if source in (k, name) or (source is None and len(names) == 1)]
        if len(chosen) != 1:
            raise ValueError(f"{path} holds several sources, choose one, source= (--field): {names}; got {source!r}")
        self._wanted = chosen[0]
        row = next(row for row in table if row["ID. NO."] == self._wanted)
        if not np.isclose(row["EPOCH"], 2000):
            raise ValueError(f"{path}: its position is of epoch {row['EPOCH']}; give phase_centre=(RA, Dec) in J2000")
        return float(row["RAEPO"]), float(row["DECEPO"])

    def _parameter(self, groups: np.ndarray, *starts: str) -> np.ndarray:
        """A group parameter, the sum of those of one name (AIPS splits the date)."""
        found = [k for k, name in enumerate(self._names) if name.startswith(starts)]
        total = np.zeros(len(groups))
        for k in found:
            total += groups[:, k] * self._scales[k][0] + self._scales[k][1]
        return total

    def _blocks(self, rows: int, part: tuple[int, int], data: bool) -> Iterator[Block]:
        for start, stop in slices(len(self._data), rows // self._frequency.size, part):
            groups = np.asarray(self._data[start:stop])
            if self._wanted is not None:
                groups = groups[self._parameter(groups, "SOURCE") == self._wanted]
            uvw = np.stack([self._parameter(groups, x) for x in ("UU", "VV", "WW")], axis=1) * self._unit
            cube = groups[:, self._count :].reshape(len(groups), *self._lengths)
            cube = np.moveaxis(cube, [k + 1 for k in self._order], range(1, len(self._order) + 1))
            cube = cube.reshape(len(groups), *self._shape.values())[:, :, self._hands, self._channels]
            cube = cube.astype(np.float64) * self._scale[0] + self._scale[1]
            vis = cube[:, 0] - 1j * cube[:, 1]
            weight = cube[:, 2] if self._shape["COMPLEX"] > 2 else np.ones(vis.shape)
            flag = np.zeros(vis.shape, bool)
            vis, weight, flag = stokes_i(*(np.moveaxis(x, 1, -1) for x in (vis, weight, flag)))  # (R, F, IF)
            first, second = self._antennas(groups)
            cross, time, pair = first != second, self._parameter(groups, "DATE", "_DATE") * DAY, first * 2**16 + second
            for k, frequency in enumerate(self._frequency):
                at, weighed, off = (x[cross, :, k] for x in (vis, weight, flag))
                yield Block(uvw[cross], frequency, at, weighed, off, time[cross], pair[cross])

    def _antennas(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if "ANTENNA1" in self._names:
            first, second = (self._parameter(groups, name).astype(np.int64) for name in ("ANTENNA1", "ANTENNA2"))
            return first, second
        code = self._parameter(groups, "BASELINE").astype(np.int64)  # 256 a + b, or 65536 + 2048 a + b
        large = code > 65536
        return (
            np.where(large, (code - 65536) // 2048, code // 256),
            np.where(large, (code - 65536) % 2048, code % 256),
        )
