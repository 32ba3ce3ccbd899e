"""Antenna tables and what an array of them samples, against astropy's Earth and vectors in space."""

import math
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import EarthLocation
from astropy.io import fits
from astropy.time import Time

from pnp_lofi.antennas import (
    Antennas,
    find_array,
    from_enu,
    from_itrf,
    geodetic,
    meerkat,
    parse_antennas,
    read_antennas,
)
from pnp_lofi.operators import NUFFT, meerkat_uv, meerkat_uvw
from pnp_lofi.operators.uv import array_uv, array_uvw

LATITUDE, LONGITUDE, HEIGHT = -30.7110555556, 21.4438888889, 1086.6
TABLE = Path(__file__).parents[1] / "pnp_lofi/data/meerkat.csv"


def enu() -> np.ndarray:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("m0")]
    return np.array([[float(v) for v in line.split(",")[1:]] for line in lines])


def place(latitude: float, longitude: float, height: float) -> np.ndarray:
    here = EarthLocation.from_geodetic(longitude * u.deg, latitude * u.deg, height * u.m)
    return np.array([here.x.value, here.y.value, here.z.value])


def itrf() -> np.ndarray:
    """MeerKAT's antennas, Earth-centred: axes from finite differences of astropy's ellipsoid."""
    step = 1e-3
    directions = [(0, step, 0), (step, 0, 0), (0, 0, 100.0)]  # latitude, longitude, height: east, north, up
    axes = []
    for dp, dl, dh in directions:
        ahead, behind = (place(LATITUDE + s * dp, LONGITUDE + s * dl, HEIGHT + s * dh) for s in (1, -1))
        axes.append((ahead - behind) / np.linalg.norm(ahead - behind))
    return place(LATITUDE, LONGITUDE, HEIGHT) + enu() @ np.array(axes)


def written(path: Path, xyz: np.ndarray, header: str = "", line: str = "{:.6f} {:.6f} {:.6f} 13.5 A{}") -> Path:
    path.write_text(header + "".join(line.format(*row, k) + "\n" for k, row in enumerate(xyz)))
    return path


def test_meerkats_table_through_the_new_path():
    for found in (meerkat(), read_antennas(TABLE)):
        expected = from_enu(enu(), LATITUDE)
        np.testing.assert_array_equal(found.xyz, expected.xyz)
        assert (found.latitude, found.longitude) == (LATITUDE, LONGITUDE)
        assert found.observatory == "MeerKAT" and found.names[:2] == ("m000", "m001") and len(found.names) == 64
    assert (array_uvw(read_antennas(TABLE), 1.0) == meerkat_uvw(1.0)).all()
    for mapping in ("physical", "quantifai"):
        assert (array_uv(meerkat(), 0.5, mapping=mapping) == meerkat_uv(0.5, mapping=mapping)).all()


@pytest.mark.parametrize("header", ["", "# observatory=MEERKAT\n# coordsys=XYZ\n# x y z diam pad\n"])
def test_earth_centred_equals_local(tmp_path, header):
    path = written(tmp_path / "m.cfg", itrf(), header)
    found = read_antennas(path, latitude=LATITUDE, longitude=LONGITUDE)
    assert found.names[3] == "A3"
    np.testing.assert_allclose(found.baselines(), meerkat().baselines(), atol=1e-4)
    mean = read_antennas(path)  # of its own mean: some km away, so that transit comes a little earlier
    assert (mean.latitude, mean.longitude) == pytest.approx((LATITUDE, LONGITUDE), abs=0.02)
    np.testing.assert_allclose(*(np.linalg.norm(a.baselines(), axis=1) for a in (mean, meerkat())), atol=1e-4)


def test_back_to_the_earth():
    """Where the antennas stand, however the table had them."""
    np.testing.assert_allclose(meerkat().itrf(), itrf(), atol=1e-3)
    for array in (from_itrf(itrf()), from_itrf(itrf(), 10.0, -77.0)):
        np.testing.assert_allclose(array.itrf(), itrf(), atol=1e-6)
    np.testing.assert_allclose(from_enu([[0, 0, 0], [0, 0, 50]], -70.0, 150.0, height=30.0).itrf(),
                               [place(-70, 150, 30), place(-70, 150, 80)], atol=1e-6)  # fmt: skip
    assert (meerkat().diameter, parse_antennas("# diameter=6 m\n0 0 0\n1 1 0\n", latitude=3.0).diameter) == (13.5, 6)


def test_arrays_by_name(tmp_path):
    path = written(tmp_path / "mine.csv", enu()[:5], "name,e,n,u\n", "A{3},{0},{1},{2}\n")
    np.testing.assert_array_equal(find_array(path, latitude=LATITUDE).xyz, meerkat().xyz[:5])
    assert find_array("MeerKAT").names == meerkat().names
    with pytest.raises(ValueError, match="need the latitude"):
        find_array(str(path))
    with pytest.raises(FileNotFoundError, match=r"alma is no array and no file; arrays are meerkat, vla, vla-a"):
        find_array("alma")
    with pytest.raises(ValueError, match="meerkat has its own latitude"):
        find_array("meerkat", latitude=3.0)


def test_geodetic_against_astropy():
    for latitude in (-89.0, -30.7, 0.0, 34.08, 67.0):
        for longitude in (-150.0, 21.4, 179.0):
            found = geodetic(place(latitude, longitude, 2000.0))
            assert found == pytest.approx((latitude, longitude), abs=1e-8)


@pytest.mark.parametrize("declination", [-60.0, -5.0, 20.0])
def test_uvw_are_projections_on_the_sky(declination):
    """East, North and the source's direction in the Earth's frame, whose longitude there is the array's minus H."""
    array = from_itrf(itrf(), LATITUDE, LONGITUDE)
    found = array_uvw(array, 6.0, declination=declination, integration=3600.0, min_elevation=-90).reshape(6, 2016, 3)
    xyz = itrf()
    i, j = np.triu_indices(64, 1)
    d = math.radians(declination)
    for k in range(6):
        H = 2 * math.pi * (k - 2.5) * 3600 / 86164.09
        a = math.radians(LONGITUDE) - H
        east = np.array([-math.sin(a), math.cos(a), 0])
        north = np.array([-math.sin(d) * math.cos(a), -math.sin(d) * math.sin(a), math.cos(d)])
        source = np.array([math.cos(d) * math.cos(a), math.cos(d) * math.sin(a), math.sin(d)])
        expected = (xyz[i] - xyz[j]) @ np.stack([east, north, source], axis=1)
        np.testing.assert_allclose(found[k], expected, atol=1e-5)


def test_real_baselines(shared_data):
    """u, v that the EHT's file of M87 holds, from the antenna positions in it: both signs, and i - j."""
    path = shared_data / "radio/eht_m87/SR1_M87_2017_101_lo_hops_netcal_StokesI.uvfits"
    with fits.open(path) as units:
        rows, header, table = units[0].data, units[0].header, units["AIPS AN"].data
        numbers, xyz = list(table["NOSTA"]), np.array(table["STABXYZ"], float)
        uv = np.stack([rows.par(0), rows.par(1)], axis=1) * 299792458.0  # [m]
        time, pairs = np.array(rows.par("DATE"), float), np.array(rows.par("BASELINE"), int)
    i, j = np.triu_indices(len(xyz), 1)
    for k in range(0, len(uv), 200):
        sidereal = Time(time[k], format="jd", scale="utc").sidereal_time("mean", "greenwich").deg
        under = from_itrf(
            xyz + 1e-3 * np.arange(8)[:, None], 0.0, header["CRVAL6"] - sidereal
        )  # two stand at one place
        found = array_uvw(under, 0.01, declination=header["CRVAL7"], integration=36.0, min_elevation=-90)
        one, two = numbers.index(pairs[k] // 256), numbers.index(pairs[k] % 256)
        assert one < two
        row = int(np.nonzero((i == one) & (j == two))[0][0])
        np.testing.assert_allclose(found[row, :2], uv[k], atol=2e-5 * np.linalg.norm(uv[k]) + 0.2)  # [m]


def test_elevation_against_vectors():
    """A dump is kept where the source stands above the limit: the angle between it and the local vertical."""
    up = place(LATITUDE, LONGITUDE, 1000.0) - place(LATITUDE, LONGITUDE, 0.0)
    d, limit = math.radians(10.0), 35.0
    kept = 0
    for k in range(36):
        a = math.radians(LONGITUDE) - 2 * math.pi * (k - 17.5) * 1200 / 86164.09
        source = np.array([math.cos(d) * math.cos(a), math.cos(d) * math.sin(a), math.sin(d)])
        kept += math.degrees(math.asin(source @ up / 1000)) >= limit
    assert 0 < kept < 36
    found = array_uvw(meerkat(), 12.0, declination=10.0, integration=1200.0, min_elevation=limit)
    assert len(found) == kept * 2016


def test_a_users_array_is_imaged(tmp_path):
    path = written(tmp_path / "mine.csv", [[0, 0, 0], [120, 5, 0], [-40, 300, 2]], "name,x,y,z\n", "A{3},{0},{1},{2}")
    array = read_antennas(path, latitude=50.0)
    assert array.names == ("A0", "A1", "A2")
    NUFFT((16, 16), array_uv(array, 1.0, declination=60.0))
    with pytest.raises(ValueError, match=r"at the array, below min_elevation .* nearer to the latitude, 50\.0 deg"):
        array_uvw(array, 1.0, declination=-60.0)


@pytest.mark.parametrize(
    "text",
    [
        "0 0 0\n100 0 0\n0 50 0\n",
        "e,n,u\n0,0,0\n100,0,0\n0,50,0\n",
        "station north east up\nA 0 0 0\nB 0 100 0\nC 50 0 0\n",
        "# coordsys=LOC (local tangent plane)\n0\t0\t0\t12.\tP1\n100\t0\t0\t12.\tP2\n0\t50\t0\t12.\tP3\n",
        "\ufeff# latitude = 10 deg\n0; 0; 0 # the first\n\n100; 0; 0\n0; 50; 0\n",
        "A 0 0 0\nB 100 0 0\nC 0 50 0\n",
    ],
)
def test_layouts(text):
    found = parse_antennas(text, latitude=None if "latitude" in text else 10.0)
    np.testing.assert_array_equal(found.xyz, from_enu([[0, 0, 0], [100, 0, 0], [0, 50, 0]], 10.0).xyz)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("0 0 0\n1 1 0\n", {}, "the table: east, north, up need the latitude"),
        ("0 0 0\n", {"latitude": 1.0}, "at least two antennas, got 1"),
        ("0 0\n1 1\n", {"latitude": 1.0}, "line 1: expected three numbers"),
        ("0 0 0\n1 b 2\n", {"latitude": 1.0}, "line 2: expected three numbers"),
        ("a,b,c\n0,0,0\n1,1,1\n", {"latitude": 1.0}, "expected columns x,y,z or e,n,u, got a,b,c"),
        ("# coordsys=UTM\n1 2 3\n4 5 6\n", {}, "coordsys=UTM is not read"),
        ("0 0 0\n1 1 nan\n", {"latitude": 1.0}, "NaN or inf"),
        ("0 0 0\n1 1 0\n0 0 0\n", {"latitude": 1.0}, "two antennas stand at one place"),
        ("0 5 1 0\n1 9 1 0\n2 7 7 0\n", {"latitude": 1.0}, "the first column counts"),
        ("5e6 0 0\n5e6 1 0\n", {"coordinates": "itrf"}, "6300 to 6400 km from the centre"),
        ("6.37e6 0 0\n6.37e6 1 0\n", {"coordinates": "enu", "latitude": 1.0}, "Earth-centred"),
        ("0 0 0\n1 1 0\n", {"latitude": 91.0}, "latitude must lie"),
        ("0 0 0\n1 1 0\n", {"coordinates": "utm"}, '"enu" or "itrf"'),
        ("# latitude=south\n0 0 0\n1 1 0\n", {}, "`# latitude=` and a number"),
    ],
)
def test_bad_tables(text, options, message):
    with pytest.raises(ValueError, match=message):
        parse_antennas(text, **options)


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_antennas(tmp_path / "none.cfg")
    (tmp_path / "x.cfg").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match="is no text"):
        read_antennas(tmp_path / "x.cfg")
    with pytest.raises(ValueError, match=r"expected positions \(N, 3\)"):
        Antennas(np.zeros((3, 2)), 0.0)
