"""Antenna positions: of MeerKAT and the VLA, or from the tables that simulators use (x y z, csv, CASA's .cfg)."""

import importlib.resources
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

EQUATOR, POLE = 6378137.0, 6356752.314245  # WGS84, half axes [m]
CENTRED = (6.3e6, 6.4e6)  # distances from the Earth's centre [m] at which antennas stand
LOCAL = 2e6  # [m]: no local table reaches as far
COLUMNS = (("e", "n", "u"), ("east", "north", "up"), ("x", "y", "z"))
ARRAYS = ("meerkat", "vla", "vla-a", "vla-b", "vla-c", "vla-d")
VLA_STEP = {"a": 8, "b": 4, "c": 2, "d": 1}  # pads 1 to 9 times this, of each arm
KEY = re.compile(r"([A-Za-z]+)\s*=\s*(.+)")


@dataclass(frozen=True)
class Antennas:
    """Where an array's antennas stand.

    :param numpy.ndarray xyz: (N, 3) [m], equatorial and local: X in the meridian of ``longitude``, at the equator;
        Y East; Z to the North pole. Only differences matter.
    :param float latitude, longitude, height: geodetic, of the array's centre [deg, deg, m].
    :param tuple names: of the antennas; str observatory: name of the array, "" if none is known.
    :param float diameter: of a dish [m].
    :raises ValueError: for fewer than two antennas, positions that are not finite or occur twice, a latitude beyond 90.
    """

    xyz: np.ndarray
    latitude: float
    longitude: float = 0.0
    names: tuple[str, ...] = ()
    observatory: str = ""
    height: float = 0.0
    diameter: float = 25.0

    def __post_init__(self) -> None:
        if self.xyz.ndim != 2 or self.xyz.shape[1] != 3 or len(self.xyz) < 2:
            raise ValueError(f"expected positions (N, 3), N >= 2, got {self.xyz.shape}")
        if not np.isfinite(self.xyz).all():
            raise ValueError("a position is NaN or inf")
        if len(np.unique(self.xyz, axis=0)) < len(self.xyz):
            raise ValueError("two antennas stand at one place; list each once")
        if not abs(self.latitude) <= 90 or not math.isfinite(self.longitude):
            raise ValueError(f"expected |latitude| <= 90 and a finite longitude, got {self.latitude}, {self.longitude}")

    def baselines(self) -> np.ndarray:
        """(N (N - 1) / 2, 3) X, Y, Z [m]: antenna i minus j, i < j."""
        i, j = np.triu_indices(len(self.xyz), 1)
        return self.xyz[i] - self.xyz[j]

    def itrf(self) -> np.ndarray:
        """(N, 3) Earth-centred x, y, z [m]; local positions are put at the array's centre on WGS84."""
        x, y, z = self.xyz.T
        if np.abs(self.xyz).max() < LOCAL:
            s, c = math.sin(math.radians(self.latitude)), math.cos(math.radians(self.latitude))
            e2 = 1 - (POLE / EQUATOR) ** 2
            normal = EQUATOR / math.sqrt(1 - e2 * s**2)
            x, z = x + (normal + self.height) * c, z + (normal * (1 - e2) + self.height) * s
        s, c = math.sin(math.radians(self.longitude)), math.cos(math.radians(self.longitude))
        return np.stack([c * x - s * y, s * x + c * y, z], axis=-1)


def from_enu(enu: np.ndarray, latitude: float, longitude: float = 0.0, **about: object) -> Antennas:
    """Antennas at east, north, up (N, 3) [m] about a place of this latitude, longitude [deg]:

        X = -n sin(phi) + u cos(phi), Y = e, Z = n cos(phi) + u sin(phi).

    Source: Thompson, Moran and Swenson, Interferometry and Synthesis, section 4.1.
    """
    if not abs(latitude) <= 90:
        raise ValueError(f"latitude must lie in [-90, 90] deg, got {latitude}")
    east, north, up = np.asarray(enu, np.float64).T
    s, c = math.sin(math.radians(latitude)), math.cos(math.radians(latitude))
    xyz = np.stack([-north * s + up * c, east, north * c + up * s], axis=-1)
    return Antennas(xyz, latitude, longitude, **about)  # type: ignore[arg-type]


def from_itrf(
    xyz: np.ndarray, latitude: float | None = None, longitude: float | None = None, **about: object
) -> Antennas:
    """Antennas at Earth-centred x, y, z (N, 3) [m], turned about the pole by the longitude of the array's centre.

    :param float latitude, longitude: of the centre [deg], whose meridian counts hour angles; default that of the mean.
    :raises ValueError: if they do not stand on the Earth.
    """
    xyz = np.asarray(xyz, np.float64)
    radius = np.linalg.norm(xyz, axis=1)
    if not ((radius > CENTRED[0]) & (radius < CENTRED[1])).all():
        raise ValueError(
            f"Earth-centred positions lie {CENTRED[0] / 1e3:.0f} to {CENTRED[1] / 1e3:.0f} km from the centre, got "
            f'{radius.min() / 1e3:.3f} to {radius.max() / 1e3:.3f} km; metres? coordinates="enu"?'
        )
    at = geodetic(xyz.mean(0))
    latitude, longitude = at[0] if latitude is None else latitude, at[1] if longitude is None else longitude
    s, c = math.sin(math.radians(longitude)), math.cos(math.radians(longitude))
    x, y, z = xyz.T
    return Antennas(np.stack([c * x + s * y, c * y - s * x, z], axis=-1), latitude, longitude, **about)  # type: ignore[arg-type]


def geodetic(xyz: np.ndarray) -> tuple[float, float]:
    """Latitude and longitude [deg] on WGS84 of an Earth-centred position [m]; Bowring 1976, one step (1e-9 deg)."""
    x, y, z = (float(v) for v in xyz)
    across = math.hypot(x, y)
    e2, second = 1 - (POLE / EQUATOR) ** 2, (EQUATOR / POLE) ** 2 - 1
    t = math.atan2(z * EQUATOR, across * POLE)
    latitude = math.atan2(z + second * POLE * math.sin(t) ** 3, across - e2 * EQUATOR * math.cos(t) ** 3)
    return math.degrees(latitude), math.degrees(math.atan2(y, x))


def meerkat() -> Antennas:
    """MeerKAT's 64 antennas; the table tells its source."""
    return parse_antennas(_shipped("meerkat.csv"), "meerkat.csv")


def vla(configuration: str) -> Antennas:
    """The VLA's 27 antennas in configuration "a", "b", "c" or "d"; the table tells its source."""
    step = VLA_STEP[configuration]
    pads = {f"{arm}{step * k:02d}" for arm in "WEN" for k in range(1, 10)}
    lines = _shipped("vla.csv").splitlines()
    kept = [line for line in lines if line.startswith(("#", "name")) or line.split(",")[0] in pads]
    return parse_antennas("\n".join(kept), "vla.csv")


def _shipped(name: str) -> str:
    return importlib.resources.files("pnp_lofi").joinpath(f"data/{name}").read_text("utf-8")


def find_array(name: str | os.PathLike[str], *, latitude: float | None = None) -> Antennas:
    """An array by its name, or from a table.

    :param name: "meerkat", "vla-a" to "vla-d", "vla" (its B configuration); else a path for :func:`read_antennas`.
    :param float latitude: of a table of east, north, up that does not tell it [deg].
    :raises FileNotFoundError: for another name; it lists those that there are.
    :raises ValueError: for a latitude of an array that has its own, and as :func:`read_antennas`.
    """
    known = str(name).lower()
    if known not in ARRAYS:
        if not Path(name).is_file():
            raise FileNotFoundError(f"{name} is no array and no file; arrays are {', '.join(ARRAYS)}, or name a table")
        return read_antennas(name, latitude=latitude)
    if latitude is not None:
        raise ValueError(f"{known} has its own latitude; --latitude belongs to a table of e,n,u")
    return meerkat() if known == "meerkat" else vla(known.removeprefix("vla").removeprefix("-") or "b")


def read_antennas(
    path: str | os.PathLike[str],
    *,
    coordinates: str | None = None,
    latitude: float | None = None,
    longitude: float | None = None,
) -> Antennas:
    """An antenna table: lines of x y z [m] in the first three columns of numbers, blanks or commas between.

    What the columns are is taken from, in this order: the argument; ``# coordsys=`` (CASA: XYZ is Earth-centred, LOC is
    east, north, up; UTM is refused); a line of column names with e,n,u or east,north,up; the size of the numbers. Lines
    ``# latitude=``, ``# longitude=`` [deg], ``# height=``, ``# diameter=`` [m] and ``# observatory=`` are read as well.

    :param str coordinates: "enu" or "itrf".
    :param float latitude, longitude: of the array's centre [deg]; with "enu" the latitude is needed.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: for another layout, too few antennas, a latitude that is missing.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        text = Path(path).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text; expected lines of x y z") from error
    return parse_antennas(text, str(path), coordinates=coordinates, latitude=latitude, longitude=longitude)


def parse_antennas(
    text: str,
    name: str = "the table",
    *,
    coordinates: str | None = None,
    latitude: float | None = None,
    longitude: float | None = None,
) -> Antennas:
    """As :func:`read_antennas`, of a text; errors call it by its name."""
    if coordinates not in (None, "enu", "itrf"):
        raise ValueError(f'coordinates must be "enu" or "itrf", got {coordinates!r}')
    about, columns, rows, names = _lines(text, name)
    xyz = np.array(rows, np.float64)
    if len(xyz) < 2:
        raise ValueError(f"{name}: expected at least two antennas, got {len(xyz)}")
    latitude = _number(about, "latitude", name) if latitude is None else latitude
    longitude = _number(about, "longitude", name) if longitude is None else longitude
    kept: dict[str, object] = {"names": tuple(names), "observatory": about.get("observatory", "")}
    kept |= {key: value for key in ("height", "diameter") if (value := _number(about, key, name)) is not None}
    try:
        if (coordinates or _coordinates(about, columns, xyz, name)) == "itrf":
            return from_itrf(xyz, latitude, longitude, **kept)
        if latitude is None:
            raise ValueError(
                "east, north, up need the latitude of the array: pass it, or add a line `# latitude=-30.7`"
            )
        if np.abs(xyz).max() > LOCAL:
            raise ValueError(f'positions reach {np.abs(xyz).max():.3g} m; coordinates="itrf" if they are Earth-centred')
        return from_enu(xyz, latitude, longitude or 0.0, **kept)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(name) else f"{name}: {error}") from error


def _lines(text: str, name: str) -> tuple[dict[str, str], list[str], list[list[float]], list[str]]:
    """What the comments say, the names of the columns, three numbers a line, names of the antennas."""
    about: dict[str, str] = {}
    columns: list[str] = []
    rows: list[list[float]] = []
    names: list[str] = []
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), 1):
        content, _, comment = line.partition("#")
        if found := KEY.match(comment.strip()):
            about.setdefault(found[1].lower(), found[2].strip())
        words = content.replace(",", " ").replace(";", " ").split()
        if not words:
            continue
        values = [_float(word) for word in words]
        if not rows and not columns and all(value is None for value in values):
            columns = [word.lower() for word in words]
            continue
        rows.append(_three(words, values, columns, f"{name}, line {number}"))
        names.append(next((w for w, v in zip(words, values, strict=True) if v is None), str(len(rows) - 1)))
    counted = [row[0] for row in rows]
    if not columns and len(rows) > 2 and counted in ([float(k + first) for k in range(len(rows))] for first in (0, 1)):
        raise ValueError(f"{name}: the first column counts the antennas; name the columns, e.g. `name x y z`")
    return about, columns, rows, names


def _three(words: list[str], values: list[float | None], columns: list[str], place: str) -> list[float]:
    """The position in one line."""
    if columns:
        for triple in COLUMNS:
            if set(triple) <= set(columns) and len(words) >= max(columns.index(c) for c in triple) + 1:
                found = [values[columns.index(c)] for c in triple]
                break
        else:
            raise ValueError(
                f"{place}: expected columns x,y,z or e,n,u, got {','.join(columns)} and {len(words)} values"
            )
    else:
        first = next((k for k, v in enumerate(values) if v is not None), 0)
        found = values[first : first + 3]
    if len(found) < 3 or any(v is None for v in found):
        raise ValueError(f"{place}: expected three numbers x y z [m], got {' '.join(words)!r}")
    return [float(v) for v in found if v is not None]


def _coordinates(about: dict[str, str], columns: list[str], xyz: np.ndarray, name: str) -> str:
    system = about.get("coordsys", "").upper()
    if system.startswith(("LOC", "ENU")):
        return "enu"
    if system.startswith(("XYZ", "ITRF")):
        return "itrf"
    if system:
        raise ValueError(f"{name}: coordsys={system} is not read; convert it to XYZ (Earth-centred) or LOC")
    if set(columns) >= set(COLUMNS[0]) or set(columns) >= set(COLUMNS[1]):
        return "enu"
    return "itrf" if np.linalg.norm(xyz, axis=1).min() > LOCAL else "enu"


def _number(about: dict[str, str], key: str, name: str) -> float | None:
    if key not in about:
        return None
    value = _float(about[key].split()[0])
    if value is None:
        raise ValueError(f"{name}: expected `# {key}=` and a number, got {about[key]!r}")
    return value


def _float(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
