"""BASP's .mat files, of both kinds and all versions of MATLAB; 3C391 against the recipe that worked it out."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from visibility_files import CELL, CENTRE, FREQUENCIES, OFFSETS, C, peaks, seen

from pnp_lofi.operators import NormalEquations
from pnp_lofi.radio_chunks import measurement_chunks
from pnp_lofi.recipes.vla_3c391 import PHASE_CENTRE_DEG, read_3c391
from pnp_lofi.visibilities import open_visibilities

io = pytest.importorskip("scipy.io")

SHAPE = (48, 40)
FOLDER = "radio/vla_3c391"


def content(**changes: object) -> dict[str, object]:
    """What BASP's script makes of a MeasurementSet: its UVW in wavelengths, its data, the root of its weights."""
    s = seen(auto=False)
    u, v, w = s.uvw.T * FREQUENCIES[0] / C
    return {
        "y": s.vis[:, 0], "u": u, "v": v, "w": w, "nW": np.linspace(1, 2, len(u)), "frequency": FREQUENCIES[0],
        "maxProjBaseline": np.hypot(u, v).max(),
    } | changes  # fmt: skip


def write(path: Path, values: dict[str, object]) -> Path:
    io.savemat(path, {k: v for k, v in values.items() if v is not None}, oned_as="column")
    return path


def write_73(path: Path, values: dict[str, object]) -> Path:
    """As MATLAB: axes reversed, complex as pairs, HDF5 behind a text of 512 bytes."""
    with h5py.File(path, "w", userblock_size=512) as f:
        for name, value in values.items():
            value = np.atleast_2d(value)
            if np.iscomplexobj(value):
                pairs = np.zeros(value.shape, [("real", float), ("imag", float)])
                pairs["real"], pairs["imag"] = value.real, value.imag
                value = pairs
            f[name] = value
    with path.open("r+b") as f:
        f.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")
    return path


def test_measurement_file(tmp_path):
    s = seen(auto=False)
    given = content()
    metres = {"u": s.uvw[:, 0], "v": s.uvw[:, 1], "w": s.uvw[:, 2]}
    paths = [
        write(tmp_path / "a.mat", given),
        write_73(tmp_path / "b.mat", given),
        write(tmp_path / "metres.mat", given | metres),
    ]
    for path in paths:
        source = open_visibilities(path, phase_centre=CENTRE)
        obs = source.observation(CELL)
        np.testing.assert_allclose(obs.uvw, s.uvw, rtol=1e-9, err_msg=path.name)
        np.testing.assert_allclose(obs.vis, np.conj(s.vis[:, 0]))
        np.testing.assert_allclose(obs.weight, given["nW"] ** 2, rtol=1e-6)
        assert obs.frequency == FREQUENCIES[0] and obs.phase_centre == CENTRE and not obs.absolute_weights
        assert source.longest == pytest.approx(given["maxProjBaseline"])
        chunks = measurement_chunks(source, SHAPE, cell=CELL)
        op, b = NormalEquations.from_chunks(SHAPE, chunks).measurement()
        assert peaks(op.dirty(b)[0, 0].numpy(), op.psf((96, 80)).numpy()) == [o[:2] for o in OFFSETS]


def test_the_least(tmp_path):
    obs = open_visibilities(write(tmp_path / "a.mat", content(w=None, nW=None, maxProjBaseline=None))).observation()
    assert obs.uvw.shape[1] == 2 and (obs.weight == 1).all() and obs.phase_centre == (0, 0)


BAD = [
    ({"y": None}, r"\['y'\] missing"),
    ({"maxProjBaseline": 3.0}, "maxProjBaseline is 3, but hypot.u, v. reaches .*; correct one of them"),
    ({"u": np.ones(4)}, "must be of one length"),
    ({"y": np.full(180, np.nan + 0j)}, "unflagged values of vis are NaN or inf"),
    ({"nW": np.zeros(180)}, "every visibility is flagged or of weight zero"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=range(len(BAD)))
def test_bad_files(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        open_visibilities(write(tmp_path / "a.mat", content(**changes))).observation()


def test_broken_files(tmp_path):
    good = write(tmp_path / "a.mat", content()).read_bytes()
    (tmp_path / "cut.mat").write_bytes(good[:300])
    with pytest.raises(ValueError, match=r"cut\.mat is not a whole MATLAB file"):
        open_visibilities(tmp_path / "cut.mat")
    recent = write_73(tmp_path / "b.mat", content()).read_bytes()
    (tmp_path / "cut.mat").write_bytes(recent[:2000])
    with pytest.raises(ValueError, match=r"cut\.mat is not a whole MATLAB file"):
        open_visibilities(tmp_path / "cut.mat")
    with pytest.raises(FileNotFoundError, match=r"has its baselines in msSpecs\.mat, which is not beside it"):
        open_visibilities(write(tmp_path / "data.mat", {"y_I": np.ones(3, complex)}))


def test_layout_of_3c391(tmp_path):
    s = seen(2, auto=False)
    rows = len(s.time)
    data = {
        "y_I": s.vis[:, 0][None],
        "weights": np.full((1, rows), 20.0),
        "flag": (np.arange(rows) % 3 == 0)[None] * 1.0,
    }
    write(tmp_path / "data.mat", data)
    write(tmp_path / "msSpecs.mat", {"uvw": s.uvw, "freqsVect": FREQUENCIES[None]})
    obs = open_visibilities(tmp_path / "data.mat", channel=2).observation()
    used = np.arange(rows) % 3 != 0
    np.testing.assert_allclose(obs.vis, np.conj(s.vis[used, 0]))
    np.testing.assert_allclose(obs.uvw, s.uvw[used])
    assert obs.frequency == FREQUENCIES[2] and (obs.weight == 20).all()
    with pytest.raises(ValueError, match="expected channel 0 to 2, got 3"):
        open_visibilities(tmp_path / "data.mat", channel=3)


def test_3c391_is_what_the_recipe_makes_of_it(shared_data):
    folder = shared_data / FOLDER
    source = open_visibilities(folder / "data.mat", phase_centre=PHASE_CENTRE_DEG)
    found, expected = source.observation(2.5), read_3c391(folder).good()
    assert source.rows == 110331 and len(found.vis) == len(expected.vis) == 71497
    for name in ("uvw", "vis", "frequency", "phase_centre", "cell"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    np.testing.assert_allclose(found.weight / found.weight.mean(), expected.weight / expected.weight.mean(), rtol=1e-5)
