"""What `pnp-lofi simulate radio` writes, against astropy's Earth, sums over sources, and what the VLA has recorded."""

import math
from pathlib import Path

import erfa
import numpy as np
import pytest
import torch
from astropy.coordinates import EarthLocation
from astropy.io import fits
from astropy.time import Time
from astropy.utils import iers
from scipy.io import loadmat

from pnp_lofi.antennas import find_array, from_enu, vla
from pnp_lofi.fits import sky_header, write_fits
from pnp_lofi.observation import read_observation
from pnp_lofi.operators import meerkat_uv, uv_radians
from pnp_lofi.radio_simulation import channel_frequencies, simulate, simulate_file, write_simulation
from pnp_lofi.visibilities import open_visibilities

C = 299792458.0
ARCSEC = math.pi / 648000
POINTS = {(20, 24): 1.0, (46, 50): 0.4, (9, 33): 0.7}  # row, column: [Jy/pixel]
CENTRE, CELL = (83.6, 22.0), 2.0
# pads of antennas 0 to 25 in the run on 3C391, 24 April 2010: the only ones at which all 325 lengths fit
RUN = "W09 E02 E09 W01 W08 N06 N01 E06 E04 E08 N07 E05 W06 W02 W07 N09 W04 N05 E01 N04 E07 W05 N02 W03 E03 N08"
# x, y, z of the antennas on 10 April 2011, B configuration, as recorded; from CASA's manual, "UV Data Import"
LOGGED = """
W36 -1606841.96  -5042279.689 3551913.017  E20 -1599340.8   -5043150.965 3554065.219
E36 -1596127.728 -5045193.751 3552652.421  W28 -1604865.649 -5042190.04  3552962.365
W08 -1601614.091 -5042001.653 3554652.509  N24 -1600930.06  -5040316.397 3557330.397
E32 -1597053.116 -5044604.687 3553058.987  N28 -1600863.684 -5039885.318 3557965.319
E24 -1598663.09  -5043581.392 3553767.029  N32 -1600781.039 -5039347.456 3558761.542
E04 -1601068.79  -5042051.91  3554824.835  E08 -1600801.926 -5042219.366 3554706.448
W12 -1602044.903 -5042025.824 3554427.832  W24 -1604008.742 -5042135.828 3553403.707
N12 -1601110.052 -5041488.079 3555597.439  W32 -1605808.656 -5042230.082 3552459.202
N16 -1601061.961 -5041175.88  3556058.022  W04 -1601315.893 -5041985.32  3554808.305
N36 -1600690.606 -5038758.734 3559632.061  E12 -1600416.51  -5042462.45  3554536.041
N04 -1601173.979 -5041902.658 3554987.518  E16 -1599926.104 -5042772.967 3554319.789
W16 -1602592.854 -5042054.997 3554140.7    N20 -1601004.709 -5040802.809 3556610.133
W20 -1603249.685 -5042091.404 3553797.803  E28 -1597899.903 -5044068.676 3553432.445
N08 -1601147.94  -5041733.837 3555235.956
"""


@pytest.fixture(autouse=True)
def offline():
    with iers.conf.set_temp("auto_download", False):
        yield


@pytest.fixture
def sky(tmp_path) -> Path:
    """A FITS file that tells its place."""
    image = np.zeros((64, 64), np.float32)
    for place, flux in POINTS.items():
        image[place] = flux
    write_fits(tmp_path / "sky.fits", image, sky_header((64, 64), CELL, CENTRE, "Jy/pixel"))
    return tmp_path / "sky.fits"


def uvw_j2000(xyz: np.ndarray, time: float, ra: float, dec: float) -> np.ndarray:
    """Earth-centred vectors (N, 3) seen from (RA, Dec) [rad], J2000, at a UTC [s, MJD]: IAU 2006/2000A by erfa."""
    t = Time(time / 86400, format="mjd", scale="utc")
    turned = xyz @ erfa.c2t06a(t.tt.jd1, t.tt.jd2, t.ut1.jd1, t.ut1.jd2, 0.0, 0.0)
    east = [-math.sin(ra), math.cos(ra), 0]
    north = [-math.sin(dec) * math.cos(ra), -math.sin(dec) * math.sin(ra), math.cos(dec)]
    source = [math.cos(dec) * math.cos(ra), math.cos(dec) * math.sin(ra), math.sin(dec)]
    return turned @ np.array([east, north, source]).T


def summed(uvw: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """V = sum I exp(-2 pi i (u l + v m))."""
    u, v = (uvw[:, :2] * np.reshape(frequency, (-1, 1)) / C).T
    vis = np.zeros(len(uvw), complex)
    for (row, column), flux in POINTS.items():
        l, m = (32 - column) * CELL * ARCSEC, (row - 32) * CELL * ARCSEC
        vis += flux * np.exp(-2j * np.pi * (u * l + v * m))
    return vis


# ---- the VLA ---------------------------------------------------------------------------------------------


def test_longest_baselines_of_the_vla():
    """As NRAO's "Observational Status Summary" lists them, in km; those are projected."""
    for name, length in {"a": 36.4, "b": 11.1, "c": 3.4, "d": 1.03}.items():
        found = find_array(f"VLA-{name.upper()}")
        assert (len(found.xyz), found.observatory, found.diameter) == (27, "VLA", 25)
        assert np.linalg.norm(found.baselines(), axis=1).max() / 1e3 == pytest.approx(length, rel=0.01)
    assert find_array("vla").names == vla("b").names
    at = EarthLocation.from_geocentric(-1601185.365, -5041977.547, 3554875.870, unit="m")  # CASA's VLA
    assert (found.latitude, found.longitude) == pytest.approx((at.lat.deg, at.lon.deg), abs=1e-8)


@pytest.mark.parametrize(("arm", "bearing", "moved"), [("N", -5, 24), ("E", 115, 72), ("W", -124, None)])
def test_arms_of_the_vla(arm, bearing, moved):
    """Straight, with distances as pad^1.716; N24 and E72 stand elsewhere, in SCHED's catalogue as well."""
    where = {}
    for name in "abcd":
        found = vla(name)
        phi = math.radians(found.latitude)
        north = found.xyz @ [-math.sin(phi), 0, math.cos(phi)]
        where |= {n: (e, k) for n, e, k in zip(found.names, found.xyz[:, 1], north, strict=True) if n[0] == arm}
    assert len(where) == 24
    pads = np.array([p for p in range(6, 73) if f"{arm}{p:02d}" in where and p != moved])
    away = np.array([where[f"{arm}{p:02d}"] for p in pads]) - where[f"{arm}05"]
    angles = np.degrees(np.arctan2(*away.T))
    np.testing.assert_allclose(angles, bearing, atol=0.05)
    scale = np.linalg.norm(away, axis=1) / (pads**1.716 - 5**1.716)
    np.testing.assert_allclose(scale, scale.mean(), rtol=2e-3)


def test_vla_b_against_a_log():
    words = LOGGED.split()
    logged = {words[k]: np.array(words[k + 1 : k + 4], float) for k in range(0, len(words), 4)}
    found = vla("b")
    assert sorted(logged) == sorted(found.names)
    difference = np.array([logged[name] for name in found.names]) - found.itrf()
    difference = np.abs(difference - np.median(difference, axis=0)).max(1)
    assert difference.max() < 0.35 and np.sort(difference)[-3] < 0.13  # E12 and N36 have been surveyed anew


def test_vla_d_against_real_data(shared_data):
    """Lengths of all baselines, and u, v, w with their signs: i - j, of J2000."""
    specs = loadmat(shared_data / "radio/vla_3c391/msSpecs.mat")
    one, two, time = (specs[name].ravel().astype(float) for name in ("ant1", "ant2", "time"))
    one, two, uvw = one.astype(int), two.astype(int), specs["uvw"]
    d = vla("d")
    xyz = d.itrf()[[d.names.index(pad) for pad in RUN.split()]]
    assert len(set(zip(one, two, strict=True))) == 325
    lengths = np.linalg.norm(xyz[one] - xyz[two], axis=1)
    assert np.abs(lengths - np.linalg.norm(uvw, axis=1)).max() < 0.1
    ra, dec = math.radians(15 * (18 + 49 / 60 + 19.339 / 3600)), -math.radians(57 / 60 + 48 / 3600)
    for k in range(0, len(time), 9973):
        expected = uvw_j2000(xyz[[one[k]]] - xyz[[two[k]]], time[k], ra, dec)[0]
        np.testing.assert_allclose(uvw[k], expected, atol=0.2)


# ---- MeasurementSets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("array", ["meerkat", "vla-c", "mine.csv"])
def test_a_measurement_set_holds_what_was_simulated(sky, tmp_path, monkeypatch, array):
    """Visibilities are sums over the sources, with the uvw read back; those are seen from the antennas at the times."""
    tables = pytest.importorskip("casacore.tables")
    monkeypatch.chdir(tmp_path)
    header = "# latitude=-30\n# longitude=20\n# height=1000\n# diameter=6\n"
    Path("mine.csv").write_text(f"{header}name,e,n,u\nA,0,0,0\nB,120,40,1\nC,-310,90,0\nD,55,-420,2\n")
    obs = simulate_file(sky, "a.ms", array=array, hours=1.0, snr=150.0, frequency=1e9, integration=600.0,
                        min_elevation=10.0, spectral_index=-0.7, channels=3, bandwidth=3e8)  # fmt: skip
    source = open_visibilities("a.ms", absolute_weights=True)
    read = source.observation(CELL)
    assert source.phase_centre == pytest.approx(CENTRE)
    np.testing.assert_allclose(source.frequencies, [0.9e9, 1e9, 1.1e9])
    expected = summed(read.uvw, read.frequency) * (read.frequency / 1e9) ** -0.7
    assert np.abs(read.vis - expected).max() < 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(read.uvw, obs.uvw)
    np.testing.assert_allclose(read.weight, obs.weight, rtol=1e-5)
    antennas = find_array(array)
    main, place = (tables.table(name, ack=False) for name in ("a.ms", "a.ms/ANTENNA"))
    pairs = len(antennas.xyz) * (len(antennas.xyz) - 1) // 2
    assert main.nrows() == 6 * pairs and main.getcell("DATA", 0).shape == (3, 2)
    for name, count in (("SPECTRAL_WINDOW", 1), ("ANTENNA", len(antennas.xyz)), ("FEED", len(antennas.xyz))):
        assert tables.table(f"a.ms/{name}", ack=False).nrows() == count
    assert tuple(place.getcol("NAME")) == antennas.names and set(place.getcol("DISH_DIAMETER")) == {antennas.diameter}
    assert set(main.getcol("INTERVAL")) == {600.0}
    time, xyz = main.getcol("TIME"), place.getcol("POSITION")
    assert np.linalg.norm(xyz, axis=1) == pytest.approx(6.37e6, rel=2e-3)
    np.testing.assert_allclose(np.diff(np.unique(time)), 600.0, atol=1e-5)
    sidereal = Time(np.unique(time).mean() / 86400, format="mjd", scale="utc").sidereal_time("mean", "greenwich").deg
    assert (sidereal + antennas.longitude - CENTRE[0] + 180) % 360 - 180 == pytest.approx(0, abs=3e-3)  # [deg]: transit
    uvw, one, two = (main.getcol(name) for name in ("UVW", "ANTENNA1", "ANTENNA2"))
    for t in np.unique(time):
        k = time == t
        seen = uvw_j2000(xyz[one[k]] - xyz[two[k]], t, *np.radians(CENTRE))
        np.testing.assert_allclose(uvw[k], seen, atol=1e-4 * np.linalg.norm(uvw, axis=1).max())


def test_imaged_as_any_file_is(sky, tmp_path):
    """The points stand where they were, in Jy, from either file."""
    pytest.importorskip("casacore")
    from pnp_lofi.operators import NormalEquations
    from pnp_lofi.radio_chunks import measurement_chunks

    for name in ("a.ms", "a.h5"):
        simulate_file(sky, tmp_path / name, array="vla-b", hours=4.0, snr=40.0, frequency=1e9)
        source = open_visibilities(tmp_path / name)
        op, b = NormalEquations.from_chunks((64, 64), measurement_chunks(source, (64, 64), cell=CELL)).measurement()
        dirty = op.dirty(b)[0, 0]
        assert divmod(int(dirty.argmax()), 64) == (20, 24) and float(dirty[20, 24]) == pytest.approx(1, abs=0.1)


def test_the_truth_is_in_hdf5_only(sky, tmp_path):
    simulate_file(sky, tmp_path / "a.HDF5", hours=0.1)
    obs = read_observation(tmp_path / "a.HDF5")
    np.testing.assert_array_equal(obs.truth, fits.getdata(sky))
    assert obs.phase_centre == pytest.approx(CENTRE) and obs.cell == pytest.approx(CELL)


# ---- channels, mapping -----------------------------------------------------------------------------------


def test_channels_lie_side_by_side():
    np.testing.assert_allclose(channel_frequencies(1e9, 4, 4e8), [0.85e9, 0.95e9, 1.05e9, 1.15e9])
    image = np.ones((8, 8))
    many = simulate(image, hours=0.1, integration=180.0, frequency=1e9, channels=4, bandwidth=4e8, cell=1.0, snr=120.0)
    for k, f in enumerate([0.85e9, 0.95e9, 1.05e9, 1.15e9]):
        alone = simulate(image, hours=0.1, integration=180.0, frequency=f, cell=1.0, snr=120.0)
        np.testing.assert_allclose(many.vis[k::4], alone.vis, atol=1e-4 * np.abs(alone.vis).max())
        np.testing.assert_array_equal(many.uvw[k::4], alone.uvw)
    assert (many.frequency[:4] == many.frequency[-4:]).all()


def test_quantifai_mapping_is_written_as_metres():
    """Metres, frequency and cell give the uv of `meerkat_uv`, whatever the cell; as do the visibilities."""
    image = np.zeros((16, 16))
    image[5, 9] = 2.0
    expected = meerkat_uv(0.2, declination=-15.0, mapping="quantifai")
    for cell in (None, 7.0):
        obs = simulate(image, hours=0.2, declination=-15.0, mapping="quantifai", cell=cell, snr=120.0)
        uv = uv_radians(obs.uvw, torch.as_tensor(obs.frequency), obs.cell)
        torch.testing.assert_close(uv, expected, rtol=1e-12, atol=1e-12)
        assert not obs.uvw[:, 2].any()
        phase = expected[0] * (5 - 8) + expected[1] * (9 - 8)
        np.testing.assert_allclose(obs.vis, 2 * np.exp(-1j * phase.numpy()), atol=1e-4)


# ---- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "several channels and their bandwidth, or neither; got 0"),
        ({"channels": 3}, "several channels and their bandwidth, or neither; got 3 and None"),
        ({"bandwidth": 1e6}, "several channels and their bandwidth, or neither; got 1"),
        ({"channels": 2, "bandwidth": 2.8e9}, "below twice the frequency, 1.4e\\+09 Hz, got 2.8e\\+09"),
        ({"channels": 2, "bandwidth": -1.0}, "bandwidth must be > 0"),
        ({"frequency": 0.0}, "frequency must be finite and > 0 Hz"),
        ({"mapping": "other"}, '"physical" or "quantifai"'),
        ({"mapping": "quantifai", "channels": 2, "bandwidth": 1e6}, "knows no frequencies"),
        ({"mapping": "quantifai", "antennas": from_enu([[0, 0, 0], [100, 50, 0]], -30.0), "hours": 0.01},
         "the 1 baselines do not differ in both; observe longer or with more antennas"),
    ],
)  # fmt: skip
def test_what_cannot_be_simulated(options, message):
    with pytest.raises(ValueError, match=message):
        simulate(np.ones((8, 8)), **{"hours": 0.1} | options)


def test_refused_before_any_work(sky, tmp_path, monkeypatch):
    pytest.importorskip("casacore")
    monkeypatch.setattr("pnp_lofi.radio_simulation.simulate", lambda *_, **__: pytest.fail("has begun"))
    (tmp_path / "mine.ms").mkdir()
    for out, options, error, message in (
        ("a.fits", {}, ValueError, r"name it \.h5 or \.hdf5 \(OBS\.h5\), or \.ms"),
        ("a", {}, ValueError, "the ending tells the format"),
        ("mine.ms", {}, FileExistsError, "pass --overwrite"),
        ("mine.ms", {"overwrite": True}, FileExistsError, "if it is a MeasurementSet"),
        ("none/a.ms", {}, FileNotFoundError, "make it first"),
        ("a.ms", {"mapping": "quantifai"}, ValueError, "no MeasurementSet; write it as .h5"),
        ("a.ms", {"array": "vla-e"}, FileNotFoundError, "arrays are meerkat, vla, vla-a, vla-b, vla-c, vla-d"),
        ("a.ms", {"array": "vla", "latitude": 3.0}, ValueError, "vla has its own latitude"),
    ):
        with pytest.raises(error, match=message):
            simulate_file(sky, tmp_path / out, **options)
    assert not list((tmp_path / "mine.ms").iterdir())


def test_written_only_as_simulated(sky, tmp_path):
    pytest.importorskip("casacore")
    d = vla("d")
    obs = simulate(np.ones((8, 8)), antennas=d, hours=0.1, cell=1.0)
    write_simulation(tmp_path / "a.ms", obs, d, hours=0.1)
    with pytest.raises(FileExistsError, match="overwrite"):
        write_simulation(tmp_path / "a.ms", obs, d, hours=0.1)
    write_simulation(tmp_path / "a.ms", obs, d, hours=0.1, overwrite=True)
    with pytest.raises(ValueError, match="expected 15 dumps x 351 baselines x 1 channels, got 702 visibilities"):
        write_simulation(tmp_path / "b.ms", obs, d, hours=1.0)


def test_each_hand_has_noise_of_its_own(tmp_path):
    """As its weight says, and I is what was simulated."""
    sky = np.zeros((16, 16), np.float32)
    sky[8, 8] = 1.0
    pytest.importorskip("casacore.tables", reason="python-casacore is not installed: pip install 'pnp_lofi[ms]'")
    track = {"hours": 1.0, "integration": 600.0}
    array = find_array("vla-d")
    obs = simulate(sky, antennas=array, cell=20.0, snr=20.0, channels=2, bandwidth=1e7, **track)
    write_simulation(tmp_path / "a.ms", obs, array, **track)
    table = pytest.importorskip("casacore.tables").table(str(tmp_path / "a.ms"), ack=False)
    data, sigma = table.getcol("DATA"), table.getcol("SIGMA")
    noise = data - np.conj(simulate(sky, antennas=array, cell=20.0, snr=300.0, channels=2, bandwidth=1e7, **track).vis
                           ).reshape(-1, 2, 1)  # fmt: skip
    for hand in (0, 1):
        assert noise[..., hand].real.std() == pytest.approx(sigma[0, hand], rel=0.05)
    assert abs(np.corrcoef(noise[..., 0].real.ravel(), noise[..., 1].real.ravel())[0, 1]) < 0.05
    np.testing.assert_allclose(data.mean(-1).ravel(), np.conj(obs.vis), atol=1e-5)


def test_simulated_with_the_w_term(tmp_path):
    """Against the direct sum over a few points."""
    pytest.importorskip("ducc0", reason="ducc0 is not installed: pip install 'pnp_lofi[wide]'")
    sky, array = np.zeros((96, 96), np.float32), find_array("vla-d")
    points = {(5, 90): 1.0, (60, 3): 0.5}
    for place, flux in points.items():
        sky[place] = flux
    track = {"hours": 2.0, "integration": 1200.0, "frequency": 3e8, "declination": 10.0, "cell": 95.0, "snr": 300.0}
    obs = simulate(sky, antennas=array, wide_field=True, **track)
    l, m = np.array([[48 - c, r - 48] for r, c in points]).T * 95.0 / 206264.806
    u, v, w = (obs.uvw * 3e8 / 299792458.0).T[..., None]
    phase = u * l + v * m + w * (np.sqrt(1 - l**2 - m**2) - 1)
    expected = (np.exp(-2j * np.pi * phase) * list(points.values())).sum(1)
    np.testing.assert_allclose(obs.vis, expected, atol=1e-5)
    with pytest.warns(UserWarning, match="simulated without the w-term, whose phase would reach"):
        plain = simulate(sky, antennas=array, **track)
    assert np.abs(plain.vis - expected).max() > 0.3
    with pytest.raises(ValueError, match="even sizes"):
        simulate(sky[:95], antennas=array, wide_field=True, **track)


def test_a_sky_on_another_grid_is_refused(tmp_path):
    cards = sky_header((16, 16), 5.0, (10.0, -30.0), "Jy/pixel")
    changes = (
        ({"CRPIX1": 1.0}, "expected the reference pixel"),
        ({"BUNIT": "Jy/beam"}, "expected Jy/pixel"),
        ({"CDELT1": 5.0 / 3600}, "East left"),
    )
    for change, message in changes:
        write_fits(tmp_path / "sky.fits", np.ones((16, 16)), cards | change, overwrite=True)
        with pytest.raises(ValueError, match=message):
            simulate_file(tmp_path / "sky.fits", tmp_path / "obs.h5")
