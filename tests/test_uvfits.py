"""UVFITS that astropy wrote: what is read, where its sources lie, what is refused; and the EHT's M87."""

import sys
import tracemalloc
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from visibility_files import CELL, CENTRE, FREQUENCIES, OFFSETS, SHIFT, C, Seen, peaks, seen

from pnp_lofi.operators import NormalEquations
from pnp_lofi.radio_chunks import measurement_chunks
from pnp_lofi.visibilities import open_visibilities

fits = pytest.importorskip("astropy.io.fits")

SHAPE = (48, 40)
HANDS = 4  # RR, LL, RL, LR
IFS = 2
M87 = "radio/eht_m87/SR1_M87_2017_101_lo_hops_netcal_StokesI.uvfits"


def by_hand(path: Path, s: Seen, *, source=None, tables=True, axes=None, names=None, weight=None) -> Path:
    """(DEC, RA, IF, FREQ, STOKES, COMPLEX); the second IF is the first times 3; V_RR = 1.2 V, V_LL = 0.8 V."""
    rows, F = len(s.time), len(FREQUENCIES)
    data = np.zeros((rows, 1, 1, IFS, F, HANDS, 3), np.float32)
    for k in range(IFS):
        for h, factor in enumerate((1.2, 0.8, 50, 50)):
            vis = factor * s.vis * (1, 3)[k]
            data[:, 0, 0, k, :, h, 0], data[:, 0, 0, k, :, h, 1] = vis.real, vis.imag
    data[..., 2] = np.linspace(1, 2, HANDS) if weight is None else weight
    whole = np.floor(s.time / 86400)
    columns = {
        "UU---SIN": s.uvw[:, 0] / C, "VV---SIN": s.uvw[:, 1] / C, "WW---SIN": s.uvw[:, 2] / C,
        "BASELINE": 256.0 * (s.one + 1) + s.two + 1, "DATE": whole, "_DATE": s.time / 86400 - whole,
    } | ({} if source is None else {"SOURCE": source})  # fmt: skip
    columns = {(names or {}).get(k, k): v for k, v in columns.items()}
    parnames = [name.lstrip("_") for name in columns]
    groups = fits.GroupData(data, parnames=parnames, pardata=[v.astype(">f4") for v in columns.values()], bitpix=-32)
    hdu = fits.GroupsHDU(groups)
    step = FREQUENCIES[1] - FREQUENCIES[0]
    described = axes or [
        ("COMPLEX", 1, 1), ("STOKES", -1, -1), ("FREQ", FREQUENCIES[0], step), ("IF", 1, 1), ("RA", CENTRE[0], 1),
        ("DEC", CENTRE[1], 1),
    ]  # fmt: skip
    for k, (name, value, delta) in enumerate(described, start=2):
        hdu.header.update({f"CTYPE{k}": name, f"CRVAL{k}": value, f"CDELT{k}": delta, f"CRPIX{k}": 1})
    hdu.header.update({"TELESCOP": "VLA", "OBJECT": "two"})
    others = []
    if tables:
        others.append(fits.BinTableHDU.from_columns(
            [fits.Column("FRQSEL", "1J", array=[1]), fits.Column("IF FREQ", "2D", array=[[0, SHIFT]]),
             fits.Column("CH WIDTH", "2E", array=[[step, step]])], name="AIPS FQ"))  # fmt: skip
    if source is not None:
        others.append(fits.BinTableHDU.from_columns(
            [fits.Column("ID. NO.", "1J", array=[1, 2]), fits.Column("SOURCE", "16A", array=["3C286", "two"]),
             fits.Column("RAEPO", "1D", array=[0, CENTRE[0]]), fits.Column("DECEPO", "1D", array=[0, CENTRE[1]]),
             fits.Column("EPOCH", "1D", array=[2000, 2000])], name="AIPS SU"))  # fmt: skip
    fits.HDUList([hdu, *others]).writeto(path)
    return path


def test_sources_lie_where_they_are(tmp_path):
    """Antenna 1 minus 2, from positions and delays."""
    path = by_hand(tmp_path / "a.uvfits", seen(), tables=False)
    with pytest.raises(ValueError, match="AIPS FQ"):
        open_visibilities(path)  # two IFs: where?
    path = by_hand(tmp_path / "b.uvfits", seen())
    chunks = measurement_chunks(path, SHAPE, cell=CELL, rows=100, channels=(0, 3))
    op, b = NormalEquations.from_chunks(SHAPE, chunks).measurement()
    assert peaks(op.dirty(b)[0, 0].numpy(), op.psf((96, 80)).numpy()) == [o[:2] for o in OFFSETS]


def test_values_are_those_that_astropy_reads(tmp_path):
    s = seen(3)
    weight = np.random.default_rng(0).uniform(-0.2, 2, (len(s.time), 1, 1, IFS, 3, HANDS))
    path = by_hand(tmp_path / "a.uvfits", s, weight=weight)
    source = open_visibilities(path, channels=(1, 3))
    found = [p for k in range(2) for p in source.chunks(20, (k, 2), cell=CELL)]
    expected = []
    with fits.open(path) as f:
        for group in f[0].data:
            code = int(group.par("BASELINE"))
            for i in range(IFS):
                for c in (1, 2):
                    (a, b, w), (d, e, x) = group.data[0, 0, i, c, :2].astype(float)
                    if w > 0 and x > 0 and code // 256 != code % 256:
                        uvw = [C * group.par(name) for name in ("UU---SIN", "VV---SIN", "WW---SIN")]
                        expected.append(
                            [*uvw, FREQUENCIES[c] + SHIFT * i, (a + d - 1j * (b + e)) / 2, 4 * w * x / (w + x)]
                        )
    joined = {n: np.concatenate([getattr(p, n) for p in found]) for n in ("uvw", "frequency", "vis", "weight")}
    expected, table = np.array(expected), np.column_stack([*joined.values()])
    expected, table = (t[np.lexsort((t[:, 5].real, t[:, 3].real))] for t in (expected, table))
    np.testing.assert_allclose(table, expected, rtol=1e-6)
    assert source.rows == len(s.time) * 4 and source.phase_centre == CENTRE
    assert (source.telescope, source.description) == ("VLA", "a.uvfits, two")
    np.testing.assert_allclose(source.frequencies, sorted([*FREQUENCIES[1:], *(FREQUENCIES[1:] + SHIFT)]))


def test_scales_and_zeros_of_parameters(tmp_path):
    path = by_hand(tmp_path / "a.uvfits", seen(3, auto=False))
    for card in ("PSCAL1", "PZERO2", "PZERO5"):
        fits.setval(path, card, value=2.5)
    block = next(open_visibilities(path)._blocks(10**6, (0, 1), True))
    with fits.open(path) as f:
        u, v, date = (f[0].data.par(name).astype(float) for name in ("UU---SIN", "VV---SIN", "DATE"))
    assert u.max() > 1e-6 and v.min() > 2.4 and date.min() > 2.5
    np.testing.assert_allclose(block.uvw[:, :2], C * np.stack([u, v], axis=1), rtol=1e-6)
    np.testing.assert_allclose(block.time, 86400 * date, rtol=1e-9)


def test_several_sources_and_hands(tmp_path):
    s = seen(3, auto=False)
    which = 1 + np.arange(len(s.time)) % 2
    path = by_hand(tmp_path / "a.uvfits", s, source=which)
    listed = r"several sources, choose one, source= \(--field\): \{1: '3C286', 2: 'two'\}; got None"
    with pytest.raises(ValueError, match=listed):
        open_visibilities(path)
    two = open_visibilities(path, source="two", stokes="LL")
    assert two.phase_centre == CENTRE and open_visibilities(path, source=1).phase_centre == (0, 0)
    first = two.observation().vis[: 3 * (which == 2).sum()]
    np.testing.assert_allclose(first, 0.8 * np.conj(s.vis[which == 2]).ravel(), rtol=1e-5)


def test_averages(tmp_path):
    s = seen(4, auto=False)
    s.time = 43200 + np.round((s.time - 5e9) / 30) * 600.0  # float32 dates: half a minute would be lost
    path = by_hand(tmp_path / "a.uvfits", s)
    obs = open_visibilities(path, channel_average=3, time_average=1200.0).observation()
    assert len(obs.vis) == 15 * 2 * IFS
    mean = np.conj(s.vis[:15] + s.vis[15:30]).mean(1) / 2  # the weights are all alike
    assert np.abs(obs.vis[:, None] - mean).min(0).max() < 1e-5


def test_reading_stays_small(tmp_path):
    s = seen(2, auto=False)
    many = Seen(*(np.tile(x, (400, *[1] * (x.ndim - 1))) for x in (s.uvw, s.time, s.one, s.two, s.vis)), s.positions)
    source = open_visibilities(by_hand(tmp_path / "a.uvfits", many))  # 3.7 MB
    tracemalloc.start()
    assert sum(len(p.vis) for p in source.chunks(1000, cell=CELL)) == source.rows == 72_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


AXES = [("COMPLEX", 1, 1), ("STOKES", -1, -1), ("FREQ", 1.4e9, 1e6), ("IF", 1, 1), ("BEAM", 0, 1), ("TIME", 0, 1)]


def test_bad_files(tmp_path):
    s = seen(2)
    good = by_hand(tmp_path / "good.uvfits", s)
    cut = tmp_path / "cut.uvfits"
    cut.write_bytes(good.read_bytes()[:8640])
    with pytest.raises(ValueError, match=r"cut short: 42 groups need \d+ bytes, the file has 8640; copy it again"):
        open_visibilities(cut)
    fits.writeto(tmp_path / "image.fits", np.ones((3, 3)))
    with pytest.raises(ValueError, match="holds no random groups, so no UVFITS"):
        open_visibilities(tmp_path / "image.fits")
    nowhere = by_hand(tmp_path / "a.uvfits", s, axes=AXES)
    with pytest.raises(ValueError, match=r"tells no phase centre.*give phase_centre=\(RA, Dec\)"):
        open_visibilities(nowhere)
    assert open_visibilities(nowhere, phase_centre=(1.0, 2.0)).phase_centre == (1.0, 2.0)
    with pytest.raises(ValueError, match="expected axes COMPLEX, STOKES, FREQ"):
        open_visibilities(by_hand(tmp_path / "b.uvfits", s, axes=[("X", 1, 1), *AXES[1:]]))
    with pytest.raises(ValueError, match=r"expected parameters UU, VV and WW, the groups have \['A', 'VV---SIN'"):
        open_visibilities(by_hand(tmp_path / "c.uvfits", s, names={"UU---SIN": "A"}))
    with pytest.raises(ValueError, match=r"channels \(first, stop\) within 0 to 3, got \(2, 7\)"):
        open_visibilities(good, channels=(2, 7))
    with pytest.raises(ValueError, match="holds one source; leave source out"):
        open_visibilities(good, source=1)
    with pytest.raises(ValueError, match="every visibility is flagged or of weight zero"):
        open_visibilities(by_hand(tmp_path / "d.uvfits", s, weight=-1.0)).observation()
    broken = seen(2)
    broken.vis[3] = np.nan
    with pytest.raises(ValueError, match="unflagged values of vis are NaN or inf"):
        open_visibilities(by_hand(tmp_path / "e.uvfits", broken)).observation()


def test_without_astropy(tmp_path, monkeypatch):
    path = by_hand(tmp_path / "a.uvfits", seen(2))
    monkeypatch.setitem(sys.modules, "astropy.io", None)
    with pytest.raises(ImportError, match=r"pip install 'pnp_lofi\[radio\]'"):
        open_visibilities(path)


# ---- real data -------------------------------------------------------------------------------------------


def m87(shared_data: Path) -> Path:
    return shared_data / M87


def test_m87_is_what_astropy_reads(shared_data):
    path = m87(shared_data)
    source = open_visibilities(path, absolute_weights=True)
    obs = source.observation()
    with fits.open(path) as f:
        data = f[0].data
        np.testing.assert_allclose(obs.uvw[:, 0], C * data.par("UU---SIN"), rtol=1e-6)
        np.testing.assert_allclose(
            np.conj(obs.vis), data.data[:, 0, 0, 0, 0, 0, 0] + 1j * data.data[:, 0, 0, 0, 0, 0, 1]
        )
        np.testing.assert_allclose(obs.weight, 2 * data.data[:, 0, 0, 0, 0, 0, 2], rtol=1e-6)  # RR = LL: half sigma^2
    assert len(obs.vis) == source.rows == 7447
    assert source.longest == pytest.approx(8.26e9, rel=0.01)
    assert source.phase_centre == pytest.approx((187.70593, 12.39112), abs=1e-5)
    assert source.frequencies == pytest.approx([227.0707e9], rel=1e-6)


def test_m87_is_bright_in_the_south(shared_data):
    """Closure phases of a ring of 42 uas (EHT 2019 paper IV): its brighter side lies at 150 to 220 deg, on 11 April."""
    path = m87(shared_data)
    plain = open_visibilities(path).observation()
    with fits.open(path) as f:
        code, time = f[0].data.par("BASELINE").astype(int), f[0].data.par("DATE") * 86400
    at = {}
    for k, (c, t) in enumerate(zip(code, np.round(time / 10), strict=True)):
        at.setdefault(t, {})[c // 256, c % 256] = k
    triangles = [
        (m[a, b], m[b, c], m[a, c])
        for m in at.values()
        for a, b, c in combinations(range(1, 9), 3)
        if {(a, b), (b, c), (a, c)} <= m.keys()
    ]
    one, two, three = np.array(triangles[::2]).T
    strong = (np.abs(plain.vis) * np.sqrt(plain.weight) > 7)[np.array(triangles[::2])].all(1)
    one, two, three = one[strong], two[strong], three[strong]
    u, v = plain.uvw[:, :2].T * plain.frequency / C
    uas = np.pi / 180 / 3600e6
    phi = np.arange(0, 2 * np.pi, 0.1)  # East of North

    def closure(vis):
        bispectrum = vis[one] * vis[two] * np.conj(vis[three])
        return bispectrum / np.abs(bispectrum)

    phase = np.exp(-2j * np.pi * 21 * uas * (np.outer(u, np.sin(phi)) + np.outer(v, np.cos(phi))))
    angles = np.arange(0, 360, 15)
    agreement = [
        (closure(plain.vis) * np.conj(closure(phase @ (1 + 0.7 * np.cos(phi - np.radians(a)))))).real.mean()
        for a in angles
    ]
    assert 150 <= angles[int(np.argmax(agreement))] <= 220
    assert max(agreement) > 0.9
