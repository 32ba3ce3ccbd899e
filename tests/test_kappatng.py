"""kappaTNG's two layouts: what is written comes back, crops, broken files."""

import struct

import h5py
import numpy as np
import pytest
import torch

from pnp_lofi.kappatng import KappaTNG, read_kappa, write_kappa, write_kappatng

KAPPA = np.random.default_rng(0).normal(0, 0.03, (32, 32))


@pytest.fixture
def binary(tmp_path):
    """Written here, not by us: an int32, rows of float64, an int32."""
    path = tmp_path / "LP001" / "run001" / "kappa20.dat"
    path.parent.mkdir(parents=True)
    path.write_bytes(struct.pack("<i", 32) + KAPPA.astype("<f8").tobytes() + struct.pack("<i", 32))
    return path


@pytest.fixture
def hdf5(tmp_path):
    path = tmp_path / "LP002" / "LP002_run001_maps.hdf5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file["z20/kappa"], file["z23/kappa"] = KAPPA, 2 * KAPPA
    return path


def test_both_layouts(binary, hdf5, tmp_path):
    want = torch.from_numpy(KAPPA).float()[None]
    assert torch.equal(read_kappa(binary), want) and torch.equal(read_kappa(hdf5), want)
    assert torch.equal(read_kappa(hdf5, 23), 2 * want)
    data = KappaTNG(tmp_path)
    assert len(data) == 2 and all(torch.equal(x, want) for x in data) and data.pixel == pytest.approx(300 / 32)
    assert len(KappaTNG(tmp_path / "LP002", 23)) == 1


def test_a_run_in_both_layouts_counts_once(binary, tmp_path):
    write_kappa(tmp_path / "LP001" / "LP001_run001_maps.hdf5", torch.ones(32, 32))
    data = KappaTNG(tmp_path)
    assert len(data) == 1 and data[0].mean() == 1


@pytest.mark.parametrize("name", ["x_maps.hdf5", "kappa07.dat"])
def test_round_trip(tmp_path, name):
    x = torch.rand(1, 20, 20)
    write_kappa(tmp_path / name, x, 7)
    assert torch.equal(read_kappa(tmp_path / name, 7), x)
    assert torch.equal(KappaTNG(tmp_path, 7)[0], x)
    with pytest.raises(FileExistsError):
        write_kappa(tmp_path / name, x, 7)


@pytest.mark.parametrize("source", ["binary", "hdf5"])
def test_crops(source, request):
    folder = request.getfixturevalue(source).parent
    middle = KappaTNG(folder, crop=10)
    assert len(middle) == 1 and np.array_equal(middle[0][0].numpy(), KAPPA[11:21, 11:21].astype("f4"))
    assert middle.pixel == pytest.approx(300 / 32)  # a crop's pixels are as large
    tiles = KappaTNG(folder, crop=10, tiles=True)
    assert len(tiles) == 9
    whole = torch.cat([torch.cat([tiles[3 * r + c] for c in range(3)], -1) for r in range(3)], -2)
    assert np.array_equal(whole[0].numpy(), KAPPA[1:31, 1:31].astype("f4"))
    with pytest.raises(ValueError, match="crops of 33 pixels do not fit into maps of 32"):
        KappaTNG(folder, crop=33)
    with pytest.raises(IndexError):
        tiles[9]


def test_broken_binary(binary):
    whole = binary.read_bytes()
    mark = struct.pack("<i", 32)
    for content, text in ((whole[:-8], "it says 32 x 32: cut short"), (b"", "got 0 bytes"), (mark * 2, "got 8 bytes"),
                          (struct.pack("<i", 31) + whole[4:], "the int32 32 before and after.*got 31, 32"),
                          (whole[:-4] + b"\0\0\0\0", "got 32, 0")):  # fmt: skip
        binary.write_bytes(content)
        with pytest.raises(ValueError, match=r"kappa20\.dat: .*" + text):
            KappaTNG(binary.parent)
    fortran = struct.pack("<i", 8 * 32 * 32)
    binary.write_bytes(fortran + whole[4:-4] + fortran)
    assert torch.equal(read_kappa(binary)[0].double(), torch.from_numpy(KAPPA).float().double())
    binary.write_bytes(mark + np.full((32, 32), np.nan).tobytes() + mark)
    with pytest.raises(ValueError, match=r"kappa20\.dat: expected finite real numbers of kappa.*1024 NaN"):
        KappaTNG(binary.parent)[0]


def test_broken_sets(hdf5, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        KappaTNG(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no LPxxx_runyyy_maps.hdf5 and no kappa20.dat"):
        (tmp_path / "empty").mkdir()
        KappaTNG(tmp_path / "empty")
    with pytest.raises(ValueError, match="plane of 1 to 40, got 41"):
        KappaTNG(tmp_path, 41)
    with pytest.raises(ValueError, match="expected numbers under 'z21/kappa'"):
        KappaTNG(tmp_path, 21)
    write_kappa(tmp_path / "LP002" / "LP002_run002_maps.hdf5", torch.zeros(16, 16))
    with pytest.raises(ValueError, match=r"run002.*expected 32 pixels a side as before, got 16"):
        KappaTNG(tmp_path)
    hdf5.write_bytes(hdf5.read_bytes()[:-3000])
    with pytest.warns(UserWarning, match=r"skipped 1 of 2 files: .*LP002_run001_maps\.hdf5: it is cut short") as caught:
        assert [path.name for path in KappaTNG(tmp_path).files] == ["LP002_run002_maps.hdf5"]
    assert caught[0].filename == __file__
    (tmp_path / "LP002" / "LP002_run002_maps.hdf5").write_text("words")
    with pytest.raises(ValueError, match=r"none of 2 files can be read: .*cut short.*broken, or not HDF5"):
        KappaTNG(tmp_path)


@pytest.mark.parametrize("values", [np.zeros(16), np.zeros((1, 4, 4)), np.zeros((4, 5)), np.zeros((0, 0))])
def test_what_is_no_map(tmp_path, values):
    with h5py.File(tmp_path / "x_maps.hdf5", "w") as file:
        file["z20/kappa"] = values
    for read in (read_kappa, lambda path: KappaTNG(path.parent)):
        with pytest.raises(ValueError, match=r"x_maps\.hdf5: expected a square map under 'z20/kappa'"):
            read(tmp_path / "x_maps.hdf5")
    with pytest.raises(ValueError, match="plane of 1 to 40, got 41"):
        read_kappa(tmp_path / "x_maps.hdf5", 41)


def test_folders_and_hidden_files_are_no_maps(binary):
    (binary.parent / "y_maps.hdf5").mkdir()
    (binary.parent / "._x_maps.hdf5").write_text("of a Macintosh")
    assert len(KappaTNG(binary.parent)) == 1


def test_writer_errors(tmp_path):
    for path, shape in ((tmp_path / "x.npy", (4, 4)), (tmp_path / "x.dat", (4, 5)), (tmp_path / "x.dat", (2, 4, 4))):
        with pytest.raises(ValueError, match=r"\.hdf5 or \.dat and a map \(N, N\)"):
            write_kappa(path, torch.zeros(shape))
    for bad in (torch.full((4, 4), torch.nan), torch.zeros(4, 4, dtype=torch.complex64), torch.full((4, 4), torch.inf)):
        with pytest.raises(ValueError, match=r"x\.dat: expected finite real numbers of kappa"):
            write_kappa(tmp_path / "x.dat", bad)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("old", [True, False])
def test_small_set(tmp_path, old):
    write_kappatng(tmp_path / "set", 3, size=32, binary=old)
    data = KappaTNG(tmp_path / "set")
    assert len(data) == 3 and data[0].shape == (1, 32, 32) and 0.003 < data[0].std() < 0.05
    assert data.files[1].name == ("kappa20.dat" if old else "LP001_run002_maps.hdf5")
