"""Image files in and out, and the photographs that may be trained on."""

import io
import os
import pickle
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pnp_lofi.images import (
    image_folder,
    load_image,
    permissive_photographs,
    photograph_files,
    save_image,
    save_png,
    to_grey,
)


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (3, 5, 7), (1, 1, 5, 7), (1, 3, 5, 7)])
def test_png_round_trip(tmp_path, shape):
    x = noise(*shape)
    save_png(tmp_path / "x.png", x)
    back = load_image(tmp_path / "x.png")
    channels = 3 if 3 in shape else 1
    assert back.shape == (1, channels, 5, 7) and back.dtype == torch.float32
    assert (back - x.reshape(back.shape)).abs().max() <= 0.5 / 255 + 1e-6


def test_save_png_clips(tmp_path):
    save_png(tmp_path / "x.png", torch.tensor([[-1.0, 0.5, 2.0]], requires_grad=True))
    assert np.asarray(Image.open(tmp_path / "x.png")).tolist() == [[0, 128, 255]]


def test_save_png_refuses_to_overwrite(tmp_path):
    save_png(tmp_path / "x.png", torch.zeros(4, 4))
    with pytest.raises(FileExistsError, match="--overwrite"):
        save_png(tmp_path / "x.png", torch.ones(4, 4))
    assert load_image(tmp_path / "x.png").max() == 0
    save_png(tmp_path / "x.png", torch.ones(4, 4), overwrite=True)
    assert load_image(tmp_path / "x.png").min() == 1


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 1, 4, 4), (4,), (0, 4)])
def test_save_png_says_which_shapes_it_takes(tmp_path, shape):
    with pytest.raises(ValueError, match=r"expects \(H, W\)"):
        save_png(tmp_path / "x.png", torch.zeros(shape))


def test_save_png_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; make it first"):
        save_png(tmp_path / "none" / "x.png", torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"\.png"):
        save_png(tmp_path / "x.jpg", torch.zeros(4, 4))
    x = torch.zeros(4, 4)
    x[1, 2] = torch.nan
    with pytest.raises(ValueError, match="1 NaN or infinite of 16, the first at row 1, column 2"):
        save_png(tmp_path / "x.png", x)
    with pytest.raises(ValueError, match="complex"):
        save_png(tmp_path / "x.png", torch.zeros(4, 4, dtype=torch.complex64))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_save_png_into_a_locked_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="is not writable"):
        save_png(tmp_path / "x.png", torch.zeros(4, 4))


def test_save_png_passes_on_a_refused_permission(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image.Image, "save", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        save_png(tmp_path / "x.png", torch.zeros(4, 4))
    assert not list(tmp_path.iterdir())


def test_sixteen_bits(tmp_path):
    values = np.array([[0, 1000], [30000, 65535]], dtype=np.uint16)
    for name in ("x.png", "x.tif"):
        Image.fromarray(values).save(tmp_path / name)
        got = load_image(tmp_path / name)[0, 0].numpy()
        assert np.allclose(got, values / 65535, atol=1e-7)


def test_32_bits_and_signs_are_refused(tmp_path):
    for values in (np.array([[0, 65536]], np.int32), np.array([[-1, 5]], np.int32)):
        Image.fromarray(values).save(tmp_path / "x.tif")
        with pytest.raises(ValueError, match=r"x\.tif: expected 8 or 16 bits without sign, got (0 to 65536|-1 to 5)"):
            load_image(tmp_path / "x.tif")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("1", 1)])
def test_modes_and_alpha(tmp_path, mode, channels):
    Image.fromarray((noise(6, 5, 3).numpy() * 255).astype(np.uint8)).convert(mode).save(tmp_path / "x.png")
    x = load_image(tmp_path / "x.png")
    assert x.shape == (1, channels, 6, 5) and x.min() >= 0 and 0.5 < x.max() <= 1


def test_jpeg_keeps_rows_and_columns(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 32, dtype=np.uint8), (16, 1))
    Image.fromarray(ramp).save(tmp_path / "x.JPG", quality=95)
    x = load_image(tmp_path / "x.JPG")
    assert x.shape == (1, 1, 16, 32) and np.abs(x[0, 0].numpy() - ramp / 255).max() < 0.02


def test_grey_is_pillows_luma(tmp_path):
    pixels = (noise(9, 8, 3).numpy() * 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    x = load_image(tmp_path / "x.png", grey=True)
    want = np.asarray(Image.fromarray(pixels).convert("L"))
    assert x.shape == (1, 1, 9, 8) and np.abs(x[0, 0].numpy() * 255 - want).max() <= 0.51
    with pytest.raises(ValueError, match="1 or 3 channels"):
        to_grey(torch.zeros(2, 4, 4))


@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (3, 4, 6), (4, 6, 3), (1, 3, 4, 6)])
def test_npy_keeps_its_units(tmp_path, shape):
    values = np.arange(np.prod(shape), dtype=np.float64).reshape(shape) - 5
    np.save(tmp_path / "x.npy", values)
    x = load_image(tmp_path / "x.npy")
    assert x.dtype == torch.float32 and x.shape[-2:] == (4, 6)
    assert x.min() == -5 and x.max() == values.max()


def test_npy_errors(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps([1, 2]))
    for name in ("objects.npy", "pickle.npy"):
        with pytest.raises(ValueError, match="pickled"):
            load_image(tmp_path / name)
    np.save(tmp_path / "complex.npy", np.zeros((4, 4), complex))
    with pytest.raises(ValueError, match="real numbers, got complex128"):
        load_image(tmp_path / "complex.npy")
    np.save(tmp_path / "line.npy", np.zeros(4))
    with pytest.raises(ValueError, match=r"got shape \(4,\)"):
        load_image(tmp_path / "line.npy")
    holes = np.zeros((4, 5))
    holes[2, 3] = holes[3, 1] = np.nan
    np.save(tmp_path / "holes.npy", holes)
    with pytest.raises(ValueError, match="2 NaN or infinite of 20, the first at row 2, column 3"):
        load_image(tmp_path / "holes.npy")
    np.save(tmp_path / "large.npy", np.array([[0, 1e300]]))  # infinite in float32
    with pytest.raises(ValueError, match="1 NaN or infinite of 2, the first at row 0, column 1"):
        load_image(tmp_path / "large.npy")


def huge_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def huge_npy() -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**6)})
    return file.getvalue()


@pytest.mark.parametrize(("name", "content"), [("x.png", huge_png()), ("x.npy", huge_npy())], ids=["png", "npy"])
def test_a_header_that_promises_too_much_is_one_broken_file(tmp_path, name, content):
    save_png(tmp_path / "a.png", torch.zeros(4, 4))
    (tmp_path / name).write_bytes(content)
    with pytest.warns(UserWarning, match=rf"skipped 1 of 2 files: .*{name}"):
        assert len(image_folder(tmp_path)) == 1


@pytest.mark.parametrize("ending", [".npy", ".fits"])
def test_save_image(tmp_path, ending):
    path, x = tmp_path / f"x{ending}", noise(1, 1, 4, 5).requires_grad_()
    if ending == ".fits":
        pytest.importorskip("astropy")
    save_image(path, x)
    assert torch.equal(load_image(path), x)
    with pytest.raises(ValueError, match=r"expected finite real numbers of image.*20 NaN"):
        save_image(path, x * torch.nan, overwrite=True)
    assert torch.equal(load_image(path), x)


def test_fits(tmp_path):
    fits = pytest.importorskip("astropy.io.fits")
    values = np.arange(12, dtype=">f4").reshape(3, 4) * 1e3
    fits.PrimaryHDU(values[None, None]).writeto(tmp_path / "x.fits")  # Stokes and frequency axes
    x = load_image(tmp_path / "x.fits")
    assert x.shape == (1, 1, 3, 4) and np.array_equal(x[0, 0].numpy(), values)
    fits.PrimaryHDU().writeto(tmp_path / "empty.fits")
    with pytest.raises(ValueError, match="only headers"):
        load_image(tmp_path / "empty.fits")


def test_fits_without_astropy(tmp_path, monkeypatch):
    (tmp_path / "x.fits").write_bytes(b"SIMPLE")
    monkeypatch.setitem(sys.modules, "astropy.io", None)
    with pytest.raises(ImportError, match=r"pip install 'pnp_lofi\[radio\]'"):
        load_image(tmp_path / "x.fits")


def test_load_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image file"):
        load_image(tmp_path / "none.png")
    with pytest.raises(FileNotFoundError, match="it is a folder"):
        load_image(tmp_path)
    for name, text in (("x.txt", "expected an ending"), ("x", "got 'none'"), ("x.png", "Pillow")):
        (tmp_path / name).write_text("words")
        with pytest.raises(ValueError, match=text):
            load_image(tmp_path / name)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"cut\.png"):
        load_image(tmp_path / "cut.png")


def test_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    save_png(tmp_path / "b.png", torch.full((4, 4), 0.2))
    save_png(tmp_path / "deep" / "c.png", torch.full((3, 5, 6), 0.6))
    np.save(tmp_path / "a.npy", np.full((2, 3), 7.0))
    (tmp_path / ".hidden.png").write_text("no image")
    assert [tuple(x.shape) for x in image_folder(tmp_path)] == [(1, 2, 3), (1, 4, 4), (1, 5, 6)]
    (tmp_path / "notes.txt").write_text("words")
    with pytest.warns(UserWarning, match="skipped 1 of 4"):
        images = image_folder(tmp_path, megabytes=50e-6)  # 50 bytes: room for the first
    images = pickle.loads(pickle.dumps(images))  # for data-loading processes
    assert images[-1].shape == (1, 5, 6) and [x.mean().item() for x in images] == pytest.approx([7, 0.2, 0.6])


def test_folder_with_broken_files(tmp_path):
    for name in "abc":
        save_png(tmp_path / f"{name}.png", torch.full((4, 4), 0.2))
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    with pytest.warns(UserWarning, match=r"skipped 1 of 3 files: .*b\.png: ") as caught:
        assert len(image_folder(tmp_path)) == 2
    assert caught[0].filename == __file__
    for name in "ac":
        (tmp_path / f"{name}.png").write_text("words")
    with pytest.raises(ValueError, match=r"none of 3 files can be read: .*a\.png.*b\.png"):
        image_folder(tmp_path)


def test_folder_of_mixed_channels(tmp_path):
    save_png(tmp_path / "a.png", torch.full((4, 4), 0.2))
    save_png(tmp_path / "b.png", torch.full((3, 4, 4), 0.2))
    with pytest.raises(ValueError, match=r"a\.png has 1 and .*b\.png has 3; pass grey=True"):
        image_folder(tmp_path, grey=False)
    assert len(image_folder(tmp_path)) == 2


def test_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image folder"):
        image_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="got 0 files"):
        image_folder(tmp_path)


def test_photographs():
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    photographs = permissive_photographs()
    assert len(photographs) == len(photograph_files()) >= 10
    for x in photographs:
        assert x.ndim == 3 and x.shape[0] == 1 and x.dtype == torch.float32
        assert x.min() >= 0 and x.max() <= 1 and x.std() > 0.01
    coloured = permissive_photographs(grey=False)
    assert 0 < len(coloured) < len(photographs) and all(len(x) == 3 for x in coloured)
    large = permissive_photographs(min_size=400)
    assert 0 < len(large) < len(photographs) and min(min(x.shape[1:]) for x in large) >= 400
    with pytest.raises(ValueError, match="got none"):
        permissive_photographs(min_size=10_000)


def test_held_out_photographs_are_never_trained_on():
    """Neither by name nor by content."""
    skimage = pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    files = photograph_files()
    held_out = {"astronaut", "camera", "coffee"}
    assert not held_out & {f.stem for f in files}
    folder = Path(skimage.__file__).parent / "data"
    for grey in (True, False):
        forbidden = {load_image(folder / f"{name}.png", grey=grey).numpy().tobytes() for name in held_out}
        assert not forbidden & {x.numpy().tobytes() for x in permissive_photographs(grey=grey)}


def test_photographs_name_the_extra(monkeypatch):
    monkeypatch.setattr("pnp_lofi.images.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'pnp_lofi\[train\]'"):
        permissive_photographs()
