"""Files of pairs: the authors' folder and ours."""

import h5py
import numpy as np
import pytest
import torch

from pnp_lofi.pairs_file import Pairs, authors_pairs, write_authors_pairs, write_pairs

Y, X = torch.rand(3, 2, 5, 6), torch.rand(3, 1, 10, 12)


@pytest.mark.parametrize("name", ["pairs.npz", "pairs.h5", "pairs.hdf5"])
def test_round_trip(tmp_path, name):
    write_pairs(tmp_path / name, Y, X)
    data = Pairs(tmp_path / name)
    assert len(data) == 3 and data.shapes == ((2, 5, 6), (1, 10, 12))
    for k, (y, x) in enumerate(data):
        assert torch.equal(y, Y[k]) and torch.equal(x, X[k]) and y.dtype == torch.float32
    assert torch.equal(data[-1][0], Y[2])
    with pytest.raises(FileExistsError):
        write_pairs(tmp_path / name, Y, X)


def test_attributes(tmp_path):
    write_pairs(tmp_path / "x.h5", Y, X, unit="1/mm", pixel=0.7)
    with h5py.File(tmp_path / "x.h5") as file:
        assert dict(file.attrs) == {"unit": "1/mm", "pixel": 0.7} and file["y"].shape == (3, 2, 5, 6)
    with pytest.raises(ValueError, match="no attributes"):
        write_pairs(tmp_path / "x.npz", Y, X, unit="1/mm")


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        Pairs(tmp_path / "none.npz")
    with pytest.raises(FileNotFoundError):
        Pairs(tmp_path / "none.h5")
    with pytest.raises(ValueError, match=r"ending of \.npz"):
        Pairs(tmp_path / "x.mat")
    path = tmp_path / "x.npz"
    np.savez(path, x=X.numpy(), z=X.numpy())
    with pytest.raises(ValueError, match=r"x\.npz.*has no y but x, z"):
        Pairs(path)
    np.savez(path, x=X.numpy(), y=Y[:2].numpy())
    with pytest.raises(ValueError, match=r"one n, got \(2, 2, 5, 6\) and \(3, 1, 10, 12\)"):
        Pairs(path)
    np.savez(path, x=X.numpy(), y=np.full(Y.shape, np.inf))
    with pytest.raises(ValueError, match="expected finite real numbers of y"):
        Pairs(path)
    np.savez(path, x=np.array([{}], object), y=Y.numpy())
    with pytest.raises(ValueError, match=r"x\.npz"):
        Pairs(path)
    np.savez(path, x=X.numpy(), y=np.full(Y.shape, 1e300))  # infinite in float32
    with pytest.raises(ValueError, match=r"finite real numbers of y.*180 NaN or infinite"):
        Pairs(path)
    np.savez_compressed(path, x=X.numpy(), y=Y.numpy())
    whole = path.read_bytes()
    damaged = [whole[:k] + bytes([whole[k] ^ 0xFF]) + whole[k + 1 :] for k in range(100, 440, 10)]  # zlib raises
    for content in (b"words", b"", whole[:300], *damaged):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.npz: expected a \.npz with y and x"):
            Pairs(path)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = X.numpy()
    with pytest.raises(ValueError, match=r"expected numbers under 'y', got \['x'\]"):
        Pairs(tmp_path / "x.h5")


def test_writer_errors(tmp_path):
    with pytest.raises(ValueError, match="ending"):
        write_pairs(tmp_path / "x.npy", Y, X)
    with pytest.raises(ValueError, match=r"\(n, C, H, W\), got"):
        write_pairs(tmp_path / "x.npz", Y[0], X)
    with pytest.raises(ValueError, match=r"\(n, 1, H, W\)"):
        write_authors_pairs(tmp_path, Y, Y)
    for write in (write_pairs, lambda path, y, x: write_authors_pairs(tmp_path / "set", x, x)):
        for bad in (torch.nan * X, X[:0], X * 1j):
            with pytest.raises(ValueError, match="expected finite real numbers of"):
                write(tmp_path / "x.npz", Y[: len(bad)], bad)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["pairs.npz", "pairs.h5"])
def test_a_full_disk(tmp_path, name):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"too large|disk full"):
            write_pairs(tmp_path / name, torch.ones(1, 1, 200, 200), torch.ones(1, 1, 200, 200))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_the_authors_layout(tmp_path):
    for k in range(3):  # written here as their loader expects it: np.load(file)["image"], ["fbp"]
        np.savez(tmp_path / f"{k}.npz", image=X[k, 0].double().numpy(), fbp=-X[k, 0].numpy())
    data = authors_pairs(tmp_path)
    assert len(data) == 3
    for k, (fbp, image) in enumerate(data):
        assert torch.equal(image, X[k]) and torch.equal(fbp, -X[k])
    write_authors_pairs(tmp_path / "ours", -X, X)
    file = np.load(tmp_path / "ours" / "00002.npz")
    assert sorted(file) == ["fbp", "image"] and np.array_equal(file["image"], X[2, 0].numpy())
    small = authors_pairs(tmp_path / "ours", megabytes=1000e-6)  # one pair fits
    assert torch.equal(small[2][1], X[2]) and torch.equal(small[0][0], -X[0])


def test_one_broken_file_of_the_authors(tmp_path):
    write_authors_pairs(tmp_path, -X, X)
    np.savez(tmp_path / "00001.npz", image=X[0, 0].numpy(), fbp=Y[0, 0].numpy())
    with pytest.warns(UserWarning, match=r"skipped 1 of 3 files: .*00001\.npz: expected fbp and image of one shape"):
        assert len(authors_pairs(tmp_path)) == 2
    with pytest.raises(FileNotFoundError, match="no folder"):
        authors_pairs(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"expected \.npz files with fbp and image, got none"):
        authors_pairs(tmp_path / "empty")
