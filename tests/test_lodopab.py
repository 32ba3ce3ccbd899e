"""LoDoPaB-CT's files: layout, geometry, lengths, data loading, broken sets."""

import math
import pickle
import shutil

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pnp_lofi.datasets import Cached, split
from pnp_lofi.lodopab import LENGTHS, MU_MAX, LoDoPaB, from_hu, lodopab_operator, write_lodopab
from pnp_lofi.operators import Radon


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lodopab")
    write_lodopab(folder, {"train": 6, "test": 2}, shape=(24, 30, 35), items=4)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy to break."""
    return shutil.copytree(written, tmp_path / "set")


def test_layout(written):
    names = sorted(f.name for f in written.iterdir())
    assert names[:3] == ["ground_truth_test_000.hdf5", "ground_truth_train_000.hdf5", "ground_truth_train_001.hdf5"]
    assert names[-2:] == ["patient_ids_rand_test.csv", "patient_ids_rand_train.csv"] and len(names) == 8
    with h5py.File(written / "ground_truth_train_001.hdf5") as file:  # the last one is padded
        assert file["data"].shape == (4, 24, 24) and file["data"].dtype == np.float32 and not file["data"][2:].any()
    with h5py.File(written / "observation_train_001.hdf5") as file:
        assert file["data"].shape == (2, 30, 35)


def test_items_are_those_of_the_files(written):
    data = LoDoPaB(written)
    assert len(data) == 6 and data.counts == [4, 2] and len(LoDoPaB(written, "test")) == 2
    for k, (y, x) in enumerate(data):
        assert y.shape == (1, 30, 35) and x.shape == (1, 24, 24) and y.dtype == x.dtype == torch.float32
        with h5py.File(written / f"observation_train_00{k // 4}.hdf5") as file:
            assert np.array_equal(file["data"][k % 4], y[0].numpy())
    assert k == 5 and torch.equal(data[-1][1], x)
    with pytest.raises(IndexError):
        data[6]


def test_same_seed_same_files(written, tmp_path):
    write_lodopab(tmp_path / "again", {"train": 6, "test": 2}, shape=(24, 30, 35), items=4)
    write_lodopab(tmp_path / "other", {"test": 2}, shape=(24, 30, 35), items=4, seed=5)
    first = LoDoPaB(written, "test")[1]
    assert all(map(torch.equal, first, LoDoPaB(tmp_path / "again", "test")[1]))
    assert not any(map(torch.equal, first, LoDoPaB(tmp_path / "other", "test")[1]))


def test_geometry_is_that_of_the_published_set():
    ours, published = lodopab_operator(max_memory=1.0), Radon.lodopab(max_memory=1.0)
    assert ours.shape == published.shape and ours.pixel_size == published.pixel_size
    assert ours.spacing == pytest.approx(published.spacing, rel=1e-14)
    assert torch.equal(ours.angles, published.angles) and torch.equal(ours.positions(), published.positions())
    assert ours.noise_model.photons == published.noise_model.photons and ours.noise_model.mu == published.noise_model.mu


def test_geometry_against_a_blob_in_closed_form():
    """Axis 0 is x, axis 1 is y, s = x cos t + y sin t on +-0.26 / sqrt(2) m, t = (k + 1/2) pi / views."""
    N, views, detectors, width, x0, y0 = 121, 50, 171, 0.012, 0.05, -0.03
    side = (torch.arange(N, dtype=torch.float64) + 0.5) * (0.26 / N) - 0.13
    x = torch.exp(-((side[:, None] - x0) ** 2 + (side - y0) ** 2) / (2 * width**2))
    t = ((torch.arange(views, dtype=torch.float64) + 0.5) * math.pi / views)[:, None]
    s = ((torch.arange(detectors, dtype=torch.float64) + 0.5) / detectors * 2 - 1) * 0.26 / math.sqrt(2)
    y = math.sqrt(2 * math.pi) * width * torch.exp(-((s - x0 * t.cos() - y0 * t.sin()) ** 2) / (2 * width**2))
    found = lodopab_operator(N, views, detectors).A(x.float()[None, None])[0, 0]
    assert float((found - y).norm() / y.norm()) < 0.01


def test_sinograms_are_those_of_the_images(written):
    data = LoDoPaB(written)
    op = data.operator()
    for y, x in data:
        clean = op.A(x[None])[0]
        scale = (1 / op.noise_model.weights(clean)).sqrt()  # standard deviation of the noise
        assert 0.7 < float(((y - clean) / scale).std()) < 1.3 and x.min() >= 0 and 0.1 < x.max() <= 1
    # attenuation of water 20 / m, of air 0.02 / m
    torch.testing.assert_close(from_hu(torch.tensor([-1000.0, 0, 1000])) * MU_MAX, torch.tensor([0.02, 20, 39.98]))


def test_readers_go_to_other_processes(written):
    data = LoDoPaB(written)
    first = data[0]  # opens files in this process
    loaded = list(DataLoader(data, batch_size=2, num_workers=2))
    assert torch.equal(torch.cat([x for _, x in loaded]), torch.stack([x for _, x in data]))
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again[0][0], first[0])


def test_patients_stay_on_one_side(written):
    data = LoDoPaB(written)
    patients = data.patients()
    assert len(patients) == 6 and len(set(patients)) == 3
    parts = split(data, (2, 1), groups=patients, seed=3)
    sides = [{patients[k] for k in part.places} for part in parts]
    assert not sides[0] & sides[1] and sorted(len(p) for p in parts) == [2, 4]
    assert torch.equal(parts[0][0][0], data[parts[0].places[0]][0])


def test_split():
    items = list(range(10))
    parts = split(items, (0.8, 0.1, 0.1), seed=1)
    assert [len(p) for p in parts] == [8, 1, 1] and sorted(k for p in parts for k in p) == items
    assert [p.places for p in parts] == [p.places for p in split(items, (8, 1, 1), seed=1)]
    assert parts[0].places != split(items, (0.8, 0.1, 0.1), seed=2)[0].places
    assert [len(p) for p in split(items[:2], (0.99, 0.01))] == [1, 1]
    for shares, text in (((1, 0), "positive shares"), ((1,) * 11, "cannot be divided into 11")):
        with pytest.raises(ValueError, match=text):
            split(items, shares)


def test_cache_reads_once_what_fits():
    class Counting:
        reads = 0

        def __len__(self):
            return 3

        def __getitem__(self, k):
            self.reads += 1
            return torch.full((1, 5, 5), float(k))  # 100 bytes

    items = Counting()
    cached = Cached(items, 250e-6)
    for _ in range(3):
        assert [float(x.mean()) for x in cached] == [0, 1, 2]
    assert items.reads == 2 + 3  # two fit, the third is read each time


def test_length_of_a_whole_part_that_is_padded(folder, monkeypatch):
    monkeypatch.setitem(LENGTHS, "train", 7)
    monkeypatch.setattr("pnp_lofi.lodopab.ITEMS", 4)
    assert len(LoDoPaB(folder)) == 6  # the sinograms say how many there are
    with h5py.File(folder / "observation_train_001.hdf5", "w") as file:
        file["data"] = np.zeros((4, 30, 35), np.float32)
    assert len(LoDoPaB(folder)) == 7  # unless they are padded as well: then it is the published number


def test_broken_sets(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        LoDoPaB(tmp_path / "none")
    with pytest.raises(ValueError, match="expected a part of train"):
        LoDoPaB(folder, "val")
    with pytest.raises(FileNotFoundError, match="observation_validation_000"):
        LoDoPaB(folder, "validation")
    whole = (folder / "ground_truth_train_000.hdf5").read_bytes()
    (folder / "ground_truth_train_000.hdf5").write_bytes(whole[:-2000])
    with pytest.raises(ValueError, match=r"ground_truth_train_000\.hdf5: it is cut short"):
        LoDoPaB(folder)
    (folder / "ground_truth_train_000.hdf5").write_text("words")
    with pytest.raises(ValueError, match="broken, or not HDF5"):
        LoDoPaB(folder)
    with h5py.File(folder / "ground_truth_train_000.hdf5", "w") as file:
        file["images"] = np.zeros((4, 24, 24))
    with pytest.raises(ValueError, match=r"expected numbers under 'data', got \['images'\]"):
        LoDoPaB(folder)
    for shape, text in (((3, 24, 24), "expected 4 items as in observation"), ((4, 24, 23), "N, N"),
                        ((0, 0, 0), "N, N"), ((4, 20, 20), "as in the first file")):  # fmt: skip
        with h5py.File(folder / "ground_truth_train_000.hdf5", "w") as file:
            file["data"] = np.zeros(shape, np.float32)
        with pytest.raises(ValueError, match=text):
            LoDoPaB(folder)
    (folder / "ground_truth_train_000.hdf5").unlink()
    with pytest.raises(FileNotFoundError, match=r"ground_truth_train_000\.hdf5 is missing of 000 to 001"):
        LoDoPaB(folder)


def test_damaged_inside(folder):
    """h5py raises RuntimeError and KeyError as well."""
    path = folder / "observation_test_000.hdf5"
    whole, errors = path.read_bytes(), 0
    for k in range(96, 1200, 8):
        path.write_bytes(whole[:k] + bytes([whole[k] ^ 0x55]) + whole[k + 1 :])
        try:
            LoDoPaB(folder, "test")[0]
        except ValueError as error:
            assert path.name in str(error)
            errors += 1
    assert errors > 5


def test_broken_items(folder):
    with h5py.File(folder / "observation_test_000.hdf5", "r+") as file:
        file["data"][1, 3, 3] = np.nan
    data = LoDoPaB(folder, "test")
    data[0]
    with pytest.raises(ValueError, match=r"observation_test_000\.hdf5.*NaN"):
        data[1]
    (folder / "patient_ids_rand_test.csv").write_text("1\n2\n3\n")
    with pytest.raises(ValueError, match="expected 2 patients, one an item, got 3"):
        data.patients()
    (folder / "patient_ids_rand_test.csv").write_text("a\nb\n")
    with pytest.raises(ValueError, match="whole number"):
        data.patients()


def test_nothing_is_overwritten_unasked(folder):
    with pytest.raises(FileExistsError):
        write_lodopab(folder, {"test": 2}, shape=(24, 30, 35))
    write_lodopab(folder, {"test": 1}, shape=(24, 30, 35), overwrite=True)
    assert len(LoDoPaB(folder, "test")) == 1
    with pytest.raises(ValueError, match="at least one item"):
        write_lodopab(folder, {"dev": 1})
    with pytest.raises(ValueError, match="views and detectors >= 1, got 24, 0 and 35"):
        write_lodopab(folder, {"test": 1}, shape=(24, 0, 35), overwrite=True)
