"""Any image at any size, as a field, and from the command line."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.wcs import WCS
from torch.nn.functional import interpolate
from typer.testing import CliRunner

from pnp_lofi import LoFi
from pnp_lofi.__main__ import app
from pnp_lofi.checkpoint import save_checkpoint
from pnp_lofi.examples import Example
from pnp_lofi.funknn import FunkNN
from pnp_lofi.images import load_image, save_image
from pnp_lofi.learner import answer_error
from pnp_lofi.leaves import dead_leaves
from pnp_lofi.liif import LIIF
from pnp_lofi.metrics import snr
from pnp_lofi.operators import Derivatives
from pnp_lofi.sampling import grid_coords
from pnp_lofi.scales import Scales, resized
from pnp_lofi.zoom import Field, field, network, target_shape, zoom
from pnp_lofi.zoom_file import zoom_file, zoomed_header

SMALL = {"rays": 3, "rings": 3, "radius": 2.0, "hidden": (8,), "features": 4, "mixer": (6,), "equivariant": False}


def image(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def funknn(channels=1, **config):
    torch.manual_seed(3)
    model = FunkNN(channels, width=4, **config).double()
    with torch.no_grad():
        model.dense[-1].weight.normal_(0, 0.1)
    return model


NETWORKS = {
    "FunkNN": funknn,
    "FunkNN, footprint": lambda: funknn(footprint=True, degree=2),
    "LIIF": lambda: LIIF(residual=False).double(),
    "LoFi": lambda: LoFi(1, **SMALL).double(),
    "bicubic": lambda: "bicubic",
}
EVERY = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


# --- sizes


def test_layers_in_bfloat16_are_near():
    model, x = funknn().float(), image(1, 1, 12, 10).float()
    full, low = zoom(model, x, 1.7), zoom(model, x, 1.7, compute_dtype=torch.bfloat16)
    correction = (full - zoom("bicubic", x, 1.7)).norm()
    assert low.dtype == torch.float32 and 1e-4 < float((low - full).norm() / correction) < 0.03


@EVERY
def test_any_shape(make):
    model, x = make(), image(2, 1, 9, 12)
    for scale, shape in ((2, (18, 24)), (3.7, (33, 44)), ((1.5, 3.25), (14, 39)), ((0.5, 2), (4, 24)), (0.3, (3, 4))):
        out = zoom(model, x, scale)
        assert out.shape == (2, 1, *shape) and out.dtype == x.dtype and bool(out.isfinite().all())
        torch.testing.assert_close(out, zoom(model, x, shape=shape), rtol=0, atol=0)
    torch.testing.assert_close(zoom(model, x, 2.2, chunk=7), zoom(model, x, 2.2), rtol=0, atol=1e-12)
    torch.testing.assert_close(zoom(model, x[1:], 2.2)[0], zoom(model, x, 2.2)[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic", "smooth"])
def test_kernels_reproduce_a_constant_and_a_ramp(kernel):
    r, c = torch.meshgrid(*(torch.arange(16, dtype=torch.float64) for _ in "rc"), indexing="ij")
    for q, at in (
        (torch.full((16, 16), 0.7, dtype=torch.float64), lambda r, c: 0.7 + 0 * r),
        (2 * r - c, lambda r, c: 2 * r - c),
    ):
        out = zoom(kernel, q[None, None], (3, 2.5))[0, 0]
        place = grid_coords((48, 40), dtype=torch.float64) * 16 - 0.5
        inside = ((place >= 2) & (place <= 13)).all(-1)
        expected = at(*place.unbind(-1))
        torch.testing.assert_close(out.flatten()[inside], expected[inside], rtol=0, atol=1e-12)


def test_kernels_are_torchs():
    """torch's bilinear everywhere; its antialiased bicubic (a = -1/2) where it enlarges, away from the border."""
    x = image(1, 2, 20, 17)
    expected = interpolate(x, (50, 51), mode="bilinear", align_corners=False)
    inside = (slice(None), slice(None), slice(9, -9), slice(9, -9))
    torch.testing.assert_close(zoom("bilinear", x, shape=(50, 51))[inside], expected[inside], rtol=0, atol=1e-12)
    expected = interpolate(x, (50, 51), mode="bicubic", antialias=True)
    torch.testing.assert_close(zoom("bicubic", x, shape=(50, 51))[inside], expected[inside], rtol=0, atol=1e-10)
    expected = interpolate(x, (8, 9), mode="bicubic", antialias=True)
    out = zoom("bicubic", x, shape=(8, 9))
    torch.testing.assert_close(out[..., 3:-3, 3:-3], expected[..., 3:-3, 3:-3], rtol=0, atol=1e-10)


def test_scale_one_with_zero_weights_returns_the_image():
    x = image(1, 1, 11, 8)
    model = FunkNN().double()
    with torch.no_grad():
        for p in model.dense.parameters():
            p.zero_()
    torch.testing.assert_close(zoom(model, x, 1), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(zoom(funknn(footprint=True), x, 1), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("footprint", [False, True])
def test_forward_is_zoom_with_gradients(footprint):
    model, x = funknn(footprint=footprint), image(2, 1, 6, 7).requires_grad_()
    out = model(x, (9, 15))
    torch.testing.assert_close(out, zoom(model, x, shape=(9, 15)), rtol=0, atol=1e-12)
    out.sum().backward()
    assert bool(x.grad.any())


def test_recursion_is_steps_of_two_and_a_rest():
    model, x = funknn(), image(1, 1, 6, 8)
    step = zoom(model, zoom(model, x, 2), 2)
    torch.testing.assert_close(zoom(model, x, 5, recursive=True), zoom(model, step, 1.25), rtol=0, atol=1e-12)
    torch.testing.assert_close(zoom(model, x, 4, recursive=True), step, rtol=0, atol=1e-12)
    uneven = zoom(model, zoom(model, x, shape=(9, 16)), shape=(9, 24))
    torch.testing.assert_close(zoom(model, x, shape=(9, 24), recursive=True), uneven, rtol=0, atol=1e-12)
    assert float((zoom(model, x, 4) - step).abs().max()) > 1e-3


def test_a_checkpoint_tells_whether_to_go_in_steps(tmp_path):
    x = image(1, 1, 6, 6).float()
    for mode in ("factor", "continuous"):
        path = tmp_path / f"{mode}.safetensors"
        save_checkpoint(path, funknn().float(), mode=mode)
        expected = zoom(funknn().float(), x, 4, recursive=mode == "factor")
        torch.testing.assert_close(zoom(path, x, 4), expected, rtol=0, atol=1e-6)


def test_colour():
    grey, rgb, x = funknn(), funknn(3), image(2, 3, 7, 7)
    each = torch.cat([zoom(grey, x[:, k : k + 1], 2) for k in range(3)], 1)
    torch.testing.assert_close(zoom(grey, x, 2), each, rtol=0, atol=1e-12)
    assert zoom(rgb, x, 2).shape == (2, 3, 14, 14)
    with pytest.raises(ValueError, match="takes 3 channels"):
        zoom(rgb, x[:, :1], 2)


def test_bad_input_is_told(tiny):
    x = image(1, 1, 8, 8)
    with pytest.raises(ValueError, match="either scale or shape"):
        zoom("bicubic", x)
    with pytest.raises(ValueError, match="either scale or shape"):
        zoom("bicubic", x, 2, shape=(3, 3))
    for scale in (0, -1.0, float("nan"), (2, 2, 2)):
        with pytest.raises(ValueError, match="one or two factors > 0"):
            zoom("bicubic", x, scale)
    for shape in ((0, 4), (4, -1), (4, 4, 4)):
        with pytest.raises(ValueError, match="shape is"):
            zoom("bicubic", x, shape=shape)
    with pytest.raises(ValueError, match="expects a real image"):
        zoom("bicubic", x[0, 0], 2)
    with pytest.raises(ValueError, match="expected a network of super-resolution"):
        zoom(tiny, x, 2)  # a denoiser
    with pytest.raises(FileNotFoundError, match="no network named 'lanczos'"):
        zoom("lanczos", x, 2)
    assert target_shape((10, 10), 0.01) == (1, 1) and network("smooth")[1] is False


# --- derivatives


def test_derivatives_of_a_kernel_are_those_of_the_operator():
    x, coords = image(2, 3, 12, 9), torch.cat([image(20, 2), grid_coords((12, 9), dtype=torch.float64)[30:50]])
    for taps, kernel in ((4, "bicubic"), (6, "smooth")):
        found = Field(kernel, x, points=16)
        expected = Derivatives((12, 9), coords, order=1, taps=taps).A(x)
        torch.testing.assert_close(found.gradient(coords).permute(0, 2, 3, 1), expected, rtol=0, atol=1e-9)
        expected = Derivatives((12, 9), coords, order=2, taps=taps).A(x)
        hessian = found.hessian(coords)
        torch.testing.assert_close(hessian[..., 0, 1].mT, expected[:, :, 1], rtol=0, atol=1e-8)
        torch.testing.assert_close(found.laplacian(coords).mT, expected[:, :, 0] + expected[:, :, 2], rtol=0, atol=1e-8)
    pixel = field("smooth", x, unit="pixel").gradient(coords)
    torch.testing.assert_close(pixel * torch.tensor([12.0, 9.0]), found.gradient(coords), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.value(coords), network("smooth")[0].at(x, coords))


@EVERY
def test_derivatives_of_networks_against_differences(make):
    found, coords = Field(make(), image(1, 1, 8, 10)), 0.15 + 0.7 * image(6, 2, seed=9)
    h, gradient = 1e-6, found.gradient(coords)[0, :, 0]
    for k, e in enumerate(h * torch.eye(2, dtype=torch.float64)):
        with torch.no_grad():
            first = (found.value(coords + e) - found.value(coords - e))[0, :, 0] / (2 * h)
        torch.testing.assert_close(gradient[:, k], first, rtol=1e-5, atol=1e-5)
        second = (found.gradient(coords + e) - found.gradient(coords - e))[0, :, 0] / (2 * h)
        torch.testing.assert_close(found.hessian(coords)[0, :, 0, k], second, rtol=1e-4, atol=1e-3)


def test_a_loss_on_the_gradient_trains():
    model = funknn(kernel="smooth")
    slope = Field(model, image(1, 1, 8, 8)).gradient(image(5, 2), create_graph=True)
    slope.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.convolutions.parameters())
    with pytest.raises(ValueError, match="unit is"):
        Field(model, image(1, 1, 8, 8), unit="cm")


def test_the_shipped_network_on_a_gaussian():
    """Value, norm of the gradient and Laplacian of a known formula, better than the paper's 72.1, 33.8, 18.1 dB."""
    axes = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    r, c = torch.meshgrid(axes, axes, indexing="ij")
    width, middle = 0.2, torch.tensor([0.45, 0.6], dtype=torch.float64)
    q = torch.exp(-((r - middle[0]) ** 2 + (c - middle[1]) ** 2) / (2 * width**2))[None, None]
    coords = 0.1 + 0.8 * image(200, 2, seed=8)
    square = (coords - middle).square().sum(-1)
    value = torch.exp(-square / (2 * width**2))
    f = Field(network("zoom")[0].double(), q)
    assert snr(f.value(coords)[0, :, 0].detach(), value) > 80
    assert snr(f.gradient(coords)[0, :, 0].norm(dim=-1), value * square.sqrt() / width**2) > 70
    assert snr(f.laplacian(coords)[0, :, 0], value * (square / width**2 - 2) / width**2) > 50


def test_the_shipped_network_beats_the_kernels():
    x = dead_leaves(2, 96, seed=10_000)
    for factor, more in ((2, 1.0), (4, 0.4)):
        low = resized(x, (96 // factor, 96 // factor))
        assert snr(zoom("zoom", low, factor), x) > snr(zoom("bicubic", low, factor), x) + more
    torch.testing.assert_close(zoom("zoom", x, 1), x, rtol=0, atol=1e-5)


# --- training at other sizes


@pytest.mark.parametrize(
    "mode, sides", [("single", {16}), ("continuous", set(range(8, 16))), ("any", set(range(4, 32)))]
)
def test_modes(mode, sides):
    x = image(2, 1, 32, 32).float()
    source, seen = Scales(lambda g: x, mode), set()
    for seed in range(200):
        q, target, _ = source(torch.Generator().manual_seed(seed))
        seen.add(q.shape[-1])
        assert torch.equal(target, x) and q.shape[-2] == q.shape[-1]
    assert seen <= sides and len(seen) > 0.9 * len(sides)
    torch.testing.assert_close(q, resized(x, q.shape[-2:]))
    assert Scales(lambda g: x, mode, enlarged=True)(torch.Generator().manual_seed(0)).q.shape == x.shape


def test_mode_factor():
    x = image(2, 1, 32, 32).float()
    for seed in range(20):
        q, target, _ = Scales(lambda g: x, "factor")(torch.Generator().manual_seed(seed))
        assert 4 <= q.shape[-1] < 16 and target.shape[-1] == 2 * q.shape[-1]
    with pytest.raises(ValueError, match="modes are single"):
        Scales(lambda g: x, "double")
    with pytest.raises(ValueError, match="squares"):
        Scales(lambda g: x[..., :8], "factor")(torch.Generator())


@EVERY
def test_the_trainer_asks_at_the_targets_pixels(make):
    model = make()
    if isinstance(model, str):
        return
    q, x = image(2, 1, 7, 6), image(2, 1, 13, 10)
    index = torch.randint(130, (2, 25), generator=torch.Generator().manual_seed(0))
    error = answer_error(model, Example(q, x), index, None)
    expected = (zoom(model, q, shape=(13, 10)) - x).flatten(2).mT
    torch.testing.assert_close(error, expected.gather(1, index[..., None]), rtol=0, atol=1e-12)


def test_a_network_of_one_grid_says_so():
    model = torch.nn.Conv2d(1, 1, 1).double()
    with pytest.raises(ValueError, match="bring q to that size first"):
        answer_error(model, Example(image(1, 1, 4, 4), image(1, 1, 8, 8)), torch.zeros(1, 2, dtype=torch.long), None)


# --- files


def test_command_line(tmp_path):
    save_image(tmp_path / "a.png", image(1, 3, 10, 12))
    save_checkpoint(tmp_path / "m.safetensors", funknn(footprint=True).float(), mode="any")

    def call(*words):
        return CliRunner().invoke(app, ["zoom", str(tmp_path / "a.png"), *map(str, words)], catch_exceptions=False)

    result = call("--scale", 3.7, "-o", tmp_path / "b.png", "--model", tmp_path / "m.safetensors")
    assert result.exit_code == 0 and load_image(tmp_path / "b.png").shape == (1, 3, 37, 44)
    call("--scale", "2,3.5", "-o", tmp_path / "c.npy", "--model", "bicubic")
    assert np.load(tmp_path / "c.npy").shape == (3, 20, 42)
    call("--shape", "5,7", "-o", tmp_path / "d.png", "--model", "smooth")
    assert load_image(tmp_path / "d.png").shape == (1, 3, 5, 7)
    with pytest.raises(FileExistsError, match="--overwrite"):
        call("--scale", 2, "-o", tmp_path / "b.png", "--model", "bicubic")
    with pytest.raises(ValueError, match="either --scale"):
        call("-o", tmp_path / "e.png")
    with pytest.raises(ValueError, match=r"--scale takes 3.7 or 2,3.5"):
        call("--scale", "two", "-o", tmp_path / "e.png")
    with pytest.raises(ValueError, match="factors > 0"):
        call("--scale", -2, "-o", tmp_path / "e.png")


def test_fits_keeps_its_place_and_its_flux(tmp_path):
    pixels = np.abs(np.random.default_rng(0).standard_normal((12, 16))).astype(np.float32)
    header = fits.Header({"CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN", "CRVAL1": 187.7, "CRVAL2": 12.4, "CRPIX1": 9.0,
                          "CRPIX2": 7.0, "CDELT1": -2 / 3600, "CDELT2": 2 / 3600, "BUNIT": "Jy/pixel",
                          "OBJECT": "M87"})  # fmt: skip
    fits.writeto(tmp_path / "a.fits", pixels, header)
    zoom_file(tmp_path / "a.fits", tmp_path / "b.fits", scale=(3.0, 2.0), model="bilinear", progress=False)
    found, after = fits.getdata(tmp_path / "b.fits", header=True)
    assert found.shape == (36, 32) and after["OBJECT"] == "M87"
    corners = np.array([[0.5, 0.5], [16.5, 12.5]]), np.array([[0.5, 0.5], [32.5, 36.5]])
    before = WCS(header).all_pix2world(corners[0], 1)
    np.testing.assert_allclose(WCS(after).all_pix2world(corners[1], 1), before, rtol=0, atol=1e-9)
    # per pixel six times fainter, at the first pixel's centre, which column 2 and row 2 (from 1) of the new one share
    assert float(found[1::3].mean()) == pytest.approx(float(pixels.mean()) / 6, rel=0.05)
    zoom_file(tmp_path / "a.fits", tmp_path / "c.npy", scale=2, model="bicubic", progress=False)
    assert np.load(tmp_path / "c.npy").shape == (1, 24, 32)


def test_headers_with_matrices():
    """CD and PC matrices, turned: the sky at the image's corners stays where it was."""
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    base = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 20.0, "CRPIX1": 3.0, "CRPIX2": 4.5}
    for kind in ("CD", "PC"):
        unit = np.diag([-1e-3, 1e-3]) if kind == "CD" else np.eye(2)
        matrix = unit @ turn
        cards = base | {f"{kind}{i + 1}_{k + 1}": matrix[i, k] for i in (0, 1) for k in (0, 1)}
        cards |= {"CDELT1": -1e-3, "CDELT2": 1e-3} if kind == "PC" else {}
        new = zoomed_header(cards | {"NAXIS": 2, "HISTORY": "x"}, (10, 8), (25, 32))
        before = WCS(fits.Header(cards)).all_pix2world([[0.5, 0.5], [8.5, 10.5]], 1)
        after = WCS(fits.Header(new)).all_pix2world([[0.5, 0.5], [32.5, 25.5]], 1)
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-9)
        assert "HISTORY" not in new and "NAXIS" not in new


def test_help_shows_an_example():
    shown = subprocess.run(
        [sys.executable, "-m", "pnp_lofi", "zoom", "--help"], capture_output=True, text=True, check=True
    )
    assert "--scale" in shown.stdout and "pnp-lofi zoom photo.png" in " ".join(shown.stdout.split())
