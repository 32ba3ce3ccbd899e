"""Filtered backprojection: scikit-image, discs of value one, arcs of every kind, with and without its matrix."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from pnp_lofi.fbp import view_arc
from pnp_lofi.operators import FanBeam, Radon
from pnp_lofi.operators.projector import Projector
from pnp_lofi.phantoms import draw, line_integrals, shepp_logan

PI = math.pi


def views(n: int, arc: float = PI, start: float = 0.0) -> Tensor:
    return start + torch.arange(n, dtype=torch.float64) * arc / n


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def psnr(x: Tensor, truth: Tensor) -> float:
    return float(20 * torch.log10((truth.max() - truth.min()) / (x - truth).square().mean().sqrt()))


@pytest.mark.parametrize("name", ["ramp", "shepp-logan", "cosine", "hamming", "hann"])
def test_fbp_equals_scikit_image(name: str) -> None:
    from skimage.transform import iradon, radon

    x = draw(shepp_logan(), 64).numpy()
    theta = np.arange(0, 180, 4.0)
    sinogram = radon(x, theta, circle=False)
    op = Radon.like_skimage(64, torch.from_numpy(np.radians(theta)))
    y = torch.from_numpy(sinogram.T.copy())[None, None]
    assert relative(op.A(torch.from_numpy(x)[None, None]), y) < 0.02
    theirs = torch.from_numpy(iradon(sinogram, theta, filter_name=name, circle=False))
    inside = (slice(1, None), slice(1, None))  # their corner pixel lies outside of the detector
    error = relative(op.fbp(y, filter=name)[0, 0][inside], theirs[inside])
    assert error < (2e-3 if name in ("hamming", "hann") else 1e-12)  # theirs are not quite symmetric


def test_fbp_of_exact_data() -> None:
    phantom, size = shepp_logan(), 128
    x = draw(phantom, size)
    for op, least in (
        (Radon((size, size), 180), 31.0),
        (Radon((size, size), 360, spacing=0.5), 31.0),
        (Radon((size, size), views(180, 2 * PI)), 28.0),
        (FanBeam((size, size), 360, source_origin=200.0, source_detector=300.0), 29.9),
        (FanBeam((size, size), views(250, 250 * PI / 180, 0.7), source_origin=200.0, source_detector=300.0), 29.5),
        (Radon((size, size), 180, pixel_size=0.01), 31.0),
        (FanBeam((size, size), 360, source_origin=2.0, source_detector=3.0, pixel_size=0.01), 29.9),
    ):
        y = line_integrals(phantom, *op.lines(op.angles), size) * op.pixel_size
        assert psnr(op.fbp(y[None, None])[0, 0], x) > least


def test_fbp_cutoff_and_errors() -> None:
    op = Radon((64, 64), 90)
    y = op.A(draw(shepp_logan(), 64)[None, None])
    noise = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))
    half, quarter = (op.fbp(noise, filter="hann", cutoff=cutoff).std() for cutoff in (0.4, 0.2))
    assert float(quarter / half) == pytest.approx(0.5**1.5, rel=0.1)  # the power of the ramp grows as f^2
    assert float(op.fbp(y, cutoff=0.6).mean()) == pytest.approx(float(op.fbp(y).mean()), rel=1e-2)
    with pytest.raises(ValueError, match="filter must be one of ramp, shepp-logan"):
        op.fbp(y, filter="ram-lak")
    with pytest.raises(ValueError, match="0 < cutoff <= 1, got 2"):
        op.fbp(y, cutoff=2)


def test_view_arc() -> None:
    torch.testing.assert_close(view_arc(views(6), PI).weights, torch.full((6,), PI / 6, dtype=torch.float64))
    both = view_arc(torch.linspace(0, PI, 7, dtype=torch.float64), PI).weights
    assert float(both.sum()) == pytest.approx(PI) and float(both[0]) == pytest.approx(float(both[-1]))
    uneven = view_arc(torch.tensor([2.0, 0.0, 1.0]), PI)
    assert float(uneven.weights.sum()) == pytest.approx(PI) == pytest.approx(uneven.length)
    wedge = view_arc(views(60, PI / 3, 0.4), PI)
    assert float(wedge.weights.sum()) == pytest.approx(PI / 3) == pytest.approx(wedge.length)
    assert wedge.start == pytest.approx(0.4 - PI / 360)
    thrice = view_arc(torch.cat([views(8), views(8) + 1e-6, views(8)]), PI).weights
    torch.testing.assert_close(thrice, torch.full((24,), PI / 24, dtype=torch.float64))
    assert view_arc(torch.tensor([0.3]), PI).weights.tolist() == pytest.approx([PI])


def disc_scale(op: Projector) -> float:
    """fbp of the exact projections of a disc of value 1, in its middle."""
    size = op.shape[0]
    theta, s = op.lines(op.angles)
    y = line_integrals(torch.tensor([[1.0, 0.6, 0.6, 0, 0, 0]], dtype=torch.float64), theta, s, size) * op.pixel_size
    middle = slice(size * 3 // 8, size * 5 // 8)
    return float(op.fbp(y[None, None])[0, 0, middle, middle].mean())


def jitter(n: int, size: float) -> Tensor:
    return size * torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


TURN_IN_DEGREES = torch.deg2rad(torch.arange(0, 360, 1.0))
MOVED = TURN_IN_DEGREES + 1e-5 * (torch.arange(360) == 100)
RANDOM = torch.rand(300, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * PI
SHIFTED = {"source_origin": 100.0, "source_detector": 200.0}
ARCS = {
    "turn in single precision": lambda: Radon((64, 64), torch.arange(360) * (2 * PI / 360) + 0.3),
    "turn in degrees": lambda: Radon((64, 64), TURN_IN_DEGREES.double()),
    "turn, shuffled": lambda: Radon((64, 64), TURN_IN_DEGREES[torch.randperm(360)]),
    "turn, both ends": lambda: Radon((64, 64), torch.linspace(0, 2 * PI, 361, dtype=torch.float64)),
    "turn, one moved": lambda: Radon((64, 64), MOVED),
    "turn, jitter 1e-5": lambda: Radon((64, 64), views(360, 2 * PI) + jitter(360, 1e-5)),
    "turn, jitter 1e-3": lambda: Radon((64, 64), views(360, 2 * PI) + jitter(360, 1e-3)),
    "two turns, jitter": lambda: FanBeam((64, 64), views(720, 4 * PI) + jitter(720, 1e-4), **SHIFTED),
    "random": lambda: Radon((64, 64), RANDOM),
    "random fan": lambda: FanBeam((64, 64), 2 * RANDOM, **SHIFTED),
    "dense and sparse": lambda: Radon((64, 64), torch.cat([views(500, 1.0), 1.05 + views(40, 2.05)])),
    "negative": lambda: Radon((64, 64), -views(180)),
    "golden": lambda: Radon((64, 64), torch.arange(200, dtype=torch.float64) * 1.9416 % PI),
    "half a turn and the fan": lambda: FanBeam((64, 64), views(240, 240 * PI / 180, 1.0), **SHIFTED),
    "nearly a turn": lambda: FanBeam((64, 64), views(354, 354 * PI / 180), **SHIFTED),
    "displaced fan": lambda: FanBeam((64, 64), 720, detectors=88, offset=34.0, **SHIFTED),
    "displaced the other way": lambda: FanBeam((64, 64), 720, detectors=88, offset=-34.0, **SHIFTED),
    "displaced": lambda: Radon((64, 64), views(360, 2 * PI), detectors=54, offset=17.0),
}


@pytest.mark.parametrize("name", ARCS)
def test_fbp_of_a_disc_is_one(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert disc_scale(ARCS[name]()) == pytest.approx(1.0, abs=0.015 if "random" in name else 0.006)


def test_too_short_an_arc_is_not_twice_as_bright() -> None:
    op = FanBeam((64, 64), views(200, 200 * PI / 180), **SHIFTED)
    with pytest.warns(UserWarning, match="the views cover 200 degrees, a whole image needs"):
        assert disc_scale(op) == pytest.approx(1.0, abs=0.05)
    with pytest.warns(UserWarning, match="the views cover 120 degrees, a whole image needs 180"):
        disc_scale(Radon((64, 64), views(120, 2 * PI / 3)))


def test_a_cut_projection_is_noticed() -> None:
    with pytest.warns(UserWarning, match="do not fall to zero where the detector ends"):
        disc_scale(Radon((64, 64), 180, 27))
    with pytest.warns(UserWarning, match="do not fall to zero where the detector ends"):
        disc_scale(Radon((64, 64), 180, 54, offset=17.0))  # half a turn: one side is never seen


def test_short_of_a_short_scan() -> None:
    op = FanBeam((16, 16), views(90, PI / 2), source_origin=50.0, source_detector=80.0)
    with pytest.warns(UserWarning, match="the views cover 90 degrees, a whole image needs"):
        op.fbp(op.A(torch.rand(1, 1, 16, 16)))


FBP = {
    "even": lambda **o: Radon((33, 33), 20, **o),
    "shifted": lambda **o: Radon((20, 33), [0.1, 0.9, 2.0], spacing=0.7, offset=0.4, centre=(3.0, 18.0), **o),
    "coarse": lambda **o: Radon((32, 32), 20, 9, spacing=5.0, **o),
    "fan": lambda **o: FanBeam((24, 33), 20, source_origin=40.0, source_detector=100.0, offset=1.5, **o),
    "near fan": lambda **o: FanBeam((24, 24), 31, source_origin=18.0, source_detector=90.0, pixel_size=0.9, **o),
}


@pytest.mark.parametrize("name", FBP)
def test_fbp_is_the_same_with_and_without_its_matrix(name: str) -> None:
    """Until it pays to make the matrix, views are added one after the other."""
    op, never = FBP[name](), FBP[name](max_memory=0.0)
    y = torch.rand(5, 1, *op.data_shape[2:], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, all_ = op.fbp(y[:1]), op.fbp(y)
        assert torch.float64 in op._smearing
        torch.testing.assert_close(all_[:1], first, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(never.fbp(y), all_, rtol=1e-10, atol=1e-12)
        assert relative(op.fbp(y[:1].float()), first.float()) < 1e-4


@pytest.mark.parametrize("name", ["even", "fan"])
def test_fbp_is_differentiable(name: str) -> None:
    op = FBP[name]()
    y = torch.rand(1, 1, *op.data_shape[2:], dtype=torch.float64).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):  # view by view, then by the matrix
            assert torch.autograd.gradcheck(op.fbp, y, fast_mode=True)
            op.fbp(y.detach().expand(5, -1, -1, -1))
    assert torch.float64 in op._smearing
