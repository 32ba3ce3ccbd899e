"""OBS.h5: what is written comes back, also as plain HDF5, and what cannot be imaged is refused."""

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pnp_lofi.observation import Observation, read_observation, write_observation

ROWS = 7


def parts(**changes: Any) -> dict[str, Any]:
    """The arguments of a valid observation, some of them replaced."""
    rng = np.random.default_rng(0)
    vis = rng.normal(size=ROWS) + 1j * rng.normal(size=ROWS)
    return {
        "uvw": rng.normal(size=(ROWS, 3)), "frequency": 1.4e9, "vis": vis.astype(np.complex64),
        "weight": rng.uniform(1, 2, ROWS).astype(np.float32), "flag": np.arange(ROWS) == 2, "cell": 2.5,
        "phase_centre": (282.3, -0.93), "telescope": "VLA D", "description": "a test", "absolute_weights": True,
        "truth": rng.uniform(size=(4, 5)).astype(np.float32),
    } | changes  # fmt: skip


def replaced(name: str, row: int, value: float) -> np.ndarray:
    array = np.array(parts()[name])
    array[row] = value
    return array


def same(a: Observation, b: Observation) -> None:
    for field in fields(Observation):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


def by_hand(path: Path, without: tuple[str, ...] = (), **changes: Any) -> Path:
    """The documented layout written by h5py alone."""
    given = parts()
    sets = {k: given[k] for k in ("uvw", "frequency", "vis", "weight", "flag", "truth")} | changes
    attributes = {
        "format": "pnp_lofi observation", "version": 1, "cell_arcsec": 2.5, "phase_centre_deg": (282.3, -0.93),
        "telescope": "VLA D", "description": "a test", "absolute_weights": True,
    }  # fmt: skip
    attributes |= {k: sets.pop(k) for k in list(sets) if k in attributes}
    with h5py.File(path, "w") as f:
        for name, value in sets.items():
            if name not in without:
                f[name] = value
        f.attrs.update({k: v for k, v in attributes.items() if k not in without})
    return path


@pytest.mark.parametrize("changes", [{}, {"uvw": np.ones((ROWS, 2))}, {"frequency": np.linspace(1e9, 2e9, ROWS)},
                                     {"truth": None}, {"absolute_weights": False}])  # fmt: skip
def test_round_trip(tmp_path, changes):
    obs = Observation(**parts(**changes))
    write_observation(tmp_path / "obs.h5", obs)
    same(read_observation(tmp_path / "obs.h5"), obs)
    assert os.listdir(tmp_path) == ["obs.h5"]


def test_the_file_is_the_documented_layout(tmp_path):
    write_observation(tmp_path / "obs.h5", Observation(**parts()))
    with h5py.File(tmp_path / "obs.h5") as f:
        assert set(f) == {"uvw", "frequency", "vis", "weight", "flag", "truth"}
        assert f["vis"].dtype == np.complex64 and f["uvw"].dtype == np.float64 and f["flag"].dtype == bool
        assert f.attrs["format"] == "pnp_lofi observation" and f.attrs["version"] == 1
        assert f.attrs["cell_arcsec"] == 2.5 and f.attrs["phase_centre_deg"].tolist() == [282.3, -0.93]
        assert {name: f[name].attrs["unit"] for name in ("uvw", "frequency", "vis")} == {
            "uvw": "m", "frequency": "Hz", "vis": "Jy"
        }  # fmt: skip


def test_files_of_other_programs(tmp_path):
    """Written without our code: uv instead of uvw, optional things left out, texts as bytes."""
    same(read_observation(by_hand(tmp_path / "a.h5")), Observation(**parts()))
    optional = ("weight", "flag", "truth", "phase_centre_deg", "absolute_weights", "format", "version")
    path = by_hand(tmp_path / "b.h5", ("uvw", *optional), uv=np.ones((ROWS, 2)), telescope=np.bytes_("VLA"))
    obs = read_observation(path)
    assert obs.uvw.shape == (ROWS, 2)
    assert obs.weight.tolist() == [1] * ROWS and not obs.flag.any()
    assert (obs.phase_centre, obs.absolute_weights, obs.truth, obs.telescope) == ((0, 0), False, None, "VLA")


def test_good_leaves_out_flags_and_zero_weights():
    frequency = np.linspace(1e9, 2e9, ROWS)
    obs = Observation(**parts(weight=replaced("weight", 4, 0), frequency=frequency))
    kept = [0, 1, 3, 5, 6]
    good = obs.good()
    np.testing.assert_array_equal(good.vis, obs.vis[kept])
    np.testing.assert_array_equal(good.uvw, obs.uvw[kept])
    np.testing.assert_array_equal(good.frequency, frequency[kept])
    assert not good.flag.any() and (good.weight > 0).all()
    assert good.absolute_weights and good.telescope == "VLA D"


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["vis", "uvw", "weight"])
def test_nan_is_refused_unless_flagged(name, value):
    with pytest.raises(ValueError, match=rf"unflagged values of {name} are NaN or inf; flag those rows"):
        Observation(**parts(**{name: replaced(name, 3, value)}))
    good = Observation(**parts(**{name: replaced(name, 2, value)})).good()
    assert np.isfinite(getattr(good, name)).all()


BAD = [
    ({"vis": np.ones(6, complex)}, ValueError, r"must be of one length, got uvw \(7, 3\), vis \(6,\)"),
    ({"uvw": np.ones((8, 3))}, ValueError, r"must be of one length, got uvw \(8, 3\)"),
    ({"weight": np.ones(6)}, ValueError, r"weight \(6,\)"),
    ({"weight": np.ones((7, 4))}, ValueError, r"weight \(7, 4\).*flatten"),
    ({"flag": np.zeros(1, bool)}, ValueError, r"flag \(1,\)"),
    ({"frequency": np.full(6, 1e9)}, ValueError, r"frequency \(6,\)"),
    ({"vis": np.ones((7, 4), complex)}, ValueError, r"vis \(7, 4\).*flatten"),
    ({"vis": np.complex64(1)}, ValueError, r"vis \(\)"),
    ({"uvw": np.ones((3, 7))}, ValueError, r"uvw must be \(M, 3\) or \(M, 2\) in metres, got \(3, 7\)"),
    ({"uvw": np.ones(7)}, ValueError, r"got \(7,\)"),
    ({"vis": np.ones(7)}, TypeError, "vis must be complex, got float64"),
    ({"weight": replaced("weight", 0, -1)}, ValueError, "weights must be >= 0; flag the rows"),
    ({"weight": np.zeros(7)}, ValueError, "all weights are zero"),
    ({"weight": np.where(np.arange(7) == 2, 1.0, 0.0)}, ValueError, "all weights are zero"),  # row 2 is flagged
    ({"flag": np.ones(7, bool)}, ValueError, "every visibility is flagged"),
    ({"frequency": 0.0}, ValueError, "frequency must be finite and > 0 Hz"),
    ({"frequency": np.nan}, ValueError, "frequency must be finite and > 0 Hz"),
    ({"frequency": replaced("weight", 1, -1)}, ValueError, "frequency must be finite and > 0 Hz"),
    ({"cell": 0.0}, ValueError, "cell must be finite and > 0 arcsec, got 0.0"),
    ({"cell": np.nan}, ValueError, "cell must be finite"),
    ({"cell": np.inf}, ValueError, "cell must be finite"),
    ({"phase_centre": (1.0,)}, ValueError, "phase_centre must be finite RA and Dec"),
    ({"phase_centre": (1.0, np.nan)}, ValueError, "phase_centre must be finite RA and Dec"),
    ({"truth": np.ones((1, 4, 4))}, ValueError, r"truth must be \(H, W\), got \(1, 4, 4\)"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[b[2][:30] for b in BAD])
def test_error_says_what_is_wrong(changes, error, message):
    with pytest.raises(error, match=message):
        Observation(**parts(**changes))


def test_negative_weight_of_a_flagged_row_is_ignored():
    assert len(Observation(**parts(weight=replaced("weight", 2, -1))).good().vis) == ROWS - 1


@pytest.mark.parametrize(
    ("without", "changes", "message"),
    [
        (("vis",), {}, "lacks vis; docs/obs_h5.md"),
        (("uvw",), {}, "lacks uv;"),
        (("frequency", "vis"), {}, "lacks frequency, vis"),
        (("cell_arcsec",), {}, "lacks attribute cell_arcsec"),
        ((), {"vis": np.ones(6, np.complex64)}, "must be of one length"),
        ((), {"version": 2}, "version 2 of the layout, this pnp_lofi reads 1"),
        ((), {"phase_centre_deg": (1.0,)}, "phase_centre_deg must be RA and Dec"),
        (("vis",), {"vis/real": np.ones(7)}, "vis should be data sets, not groups"),
    ],
)
def test_files_of_another_layout(tmp_path, without, changes, message):
    with pytest.raises(ValueError, match=message):
        read_observation(by_hand(tmp_path / "a.h5", without, **changes))


def test_files_that_are_not_hdf5(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.h5 does not exist"):
        read_observation(tmp_path / "none.h5")
    with pytest.raises(FileNotFoundError):
        read_observation(tmp_path)
    np.save(tmp_path / "a.npy", np.array({"uu": np.ones(3)}, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"is not an HDF5 file.*npy pickles are refused"):
        read_observation(tmp_path / "a.npy")
    path = by_hand(tmp_path / "a.h5", vis=np.ones(1000, np.complex64), uvw=np.ones((1000, 3)))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"a\.h5 is not a whole HDF5 file \(truncated\?\)"):
        read_observation(path)


def test_nothing_is_overwritten_unasked(tmp_path):
    path = tmp_path / "obs.h5"
    write_observation(path, Observation(**parts()))
    other = Observation(**parts(cell=9.0))
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_observation(path, other)
    assert read_observation(path).cell == 2.5
    write_observation(path, other, overwrite=True)
    assert read_observation(path).cell == 9.0


class Broken(np.ndarray):
    def astype(self, *args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt


@pytest.mark.parametrize("exists", [False, True])
def test_interrupted_write_leaves_what_was_there(tmp_path, exists):
    path = tmp_path / "obs.h5"
    if exists:
        write_observation(path, Observation(**parts()))
    obs = Observation(**parts(cell=9.0))
    obs.vis = obs.vis.view(Broken)
    with pytest.raises(KeyboardInterrupt):
        write_observation(path, obs, overwrite=True)
    assert os.listdir(tmp_path) == (["obs.h5"] if exists else [])
    if exists:
        assert read_observation(path).cell == 2.5


def test_unwritable(tmp_path):
    with pytest.raises(FileNotFoundError, match="none does not exist; make it first"):
        write_observation(tmp_path / "none" / "obs.h5", Observation(**parts()))
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_observation(tmp_path, Observation(**parts()))
