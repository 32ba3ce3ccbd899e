"""Tomography: analytic sinograms, other geometries, gradients in the angles, low dose, bad input."""

import math
import warnings

import numpy as np
import pytest
import torch
from dense_rays import fan, joseph_matrix, parallel
from torch import Tensor

from pnp_lofi import ADMM, LoFiPrior
from pnp_lofi.cg import damped_solve
from pnp_lofi.operators import FanBeam, LowDose, Radon, Weighted
from pnp_lofi.operators.projector import Projector
from pnp_lofi.phantoms import draw, line_integrals, shepp_logan
from pnp_lofi.rays import MIRRORS, _reduce, crossings, orbits

PI = math.pi


def views(n: int, arc: float = PI, start: float = 0.0) -> Tensor:
    return start + torch.arange(n, dtype=torch.float64) * arc / n


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def psnr(x: Tensor, truth: Tensor) -> float:
    return float(20 * torch.log10((truth.max() - truth.min()) / (x - truth).square().mean().sqrt()))


# ---- rays --------------------------------------------------------------------------------------


GEOMETRIES = {
    "even": (views(12), 9, 0.0),
    "uneven": (torch.tensor([0.1, 0.7, 2.9]), 8, 0.0),
    "shifted": (views(8), 10, 0.25),
    "both-ends": (torch.linspace(0, PI, 9, dtype=torch.float64), 9, 0.0),
    "turn": (views(16, 2 * PI, -1.0), 7, 0.5),
    "twice": (views(4).repeat(2), 9, 0.0),
    "half-step": (views(10, start=PI / 20), 9, 0.0),
}


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("shape", [(6, 6), (7, 7), (5, 8)])
@pytest.mark.parametrize("backend", ["sparse", "free"])
def test_symmetry_never_changes_a_ray(name: str, shape: tuple[int, int], backend: str) -> None:
    angles, detectors, offset = GEOMETRIES[name]
    A = joseph_matrix(shape, *parallel(angles, detectors, offset=offset))
    op = Radon(shape, angles, detectors, offset=offset, backend=backend)
    x = torch.randn(3, 2, *shape, dtype=torch.float64)
    assert relative(op.A(x).flatten(2), x.flatten(2) @ A.T) < 1e-12
    y = torch.randn(3, 2, len(angles), detectors, dtype=torch.float64)
    assert relative(op.A_adjoint(y).flatten(2), y.flatten(2) @ A) < 1e-12


def test_every_mirror_takes_rays_where_it_says() -> None:
    x = torch.rand(6, 6, dtype=torch.float64)
    theta, s = parallel(torch.tensor([0.3, 1.2, 2.0]), 7, offset=0.3)
    expected = joseph_matrix((6, 6), theta, s) @ x.flatten()
    for mirror in MIRRORS:
        moved = joseph_matrix((6, 6), mirror.sign * theta + mirror.turn * PI, s)
        torch.testing.assert_close(moved @ mirror.apply(x).flatten(), expected)
        torch.testing.assert_close(mirror.undo(mirror.apply(x)), x)


def test_symmetry_pays() -> None:
    """An eighth of the rays for even views of a square; no more work than without where there is no symmetry."""
    theta, s = parallel(views(180), 181)
    found = orbits(theta, s, (128, 128), True)
    assert len(found.mirrors) == 8 and len(found.theta) < len(theta) / 7.5
    assert len(orbits(theta, s, (128, 100), True).mirrors) == 4
    assert len(orbits(theta, s, (128, 128), False).mirrors) == 1
    turn, u = parallel(views(60, 2 * PI), 91, offset=0.3)
    assert len(orbits(turn - 0.001 * u, u, (64, 64), True).mirrors) == 4  # a fan with a shifted detector
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(50, generator=generator, dtype=torch.float64) * PI
    theta, s = parallel(rough, 181, offset=0.2)
    assert len(orbits(theta, s, (128, 128), True).theta) == len(theta)


def test_single_precision_angles_are_recognised() -> None:
    angles = torch.linspace(0, PI, 181)[:-1]
    op = Radon((16, 16), angles)
    assert float((op.angles - views(180)).abs().max()) < 1e-15
    assert len(op._orbits().mirrors) == 8
    uneven = torch.tensor([0.0, 0.1, 0.3])
    torch.testing.assert_close(Radon((16, 16), uneven).angles, uneven.double(), rtol=0, atol=0)


def test_crossings_bound_the_weights() -> None:
    for shape in ((9, 9), (6, 11)):
        theta, s = parallel(torch.cat([views(24), torch.rand(20, dtype=torch.float64) * PI]), 17, spacing=0.9)
        A = joseph_matrix(shape, theta, s)
        assert bool(((A > 1e-14).sum(1) <= crossings(theta, s, shape, ((shape[0] - 1) / 2, (shape[1] - 1) / 2))).all())


# ---- physics -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "error"), [(128, 0.028), (256, 0.014)])
def test_analytic_sinogram(size: int, error: float) -> None:
    phantom = shepp_logan()
    x = draw(phantom, size, samples=8)[None, None]
    op = Radon((size, size), 60)
    assert relative(op.A(x)[0, 0], line_integrals(phantom, *op.lines(op.angles), size)) < error
    wide = FanBeam((size, size), 60, source_origin=1.5 * size, source_detector=2.0 * size)
    assert relative(wide.A(x)[0, 0], line_integrals(phantom, *wide.lines(wide.angles), size)) < 1.1 * error


def test_phantom_is_what_scikit_image_draws() -> None:
    from skimage.data import shepp_logan_phantom

    theirs = torch.from_numpy(shepp_logan_phantom())
    ours = draw(shepp_logan(), 400, samples=1)
    assert float(((ours - theirs).abs() > 0.01).double().mean()) < 0.01


def test_fan_rays_join_source_and_detector() -> None:
    angles = torch.tensor([0.0, 0.4, 2.2, 5.0])
    op = FanBeam((6, 7), angles, source_origin=20.0, source_detector=31.0, detectors=9, spacing=1.7, offset=0.6)
    A = joseph_matrix((6, 7), *fan(angles, 9, 20.0, 31.0, 1.7, 0.6))
    x = torch.randn(1, 1, 6, 7, dtype=torch.float64)
    assert relative(op.A(x).flatten(2), x.flatten(2) @ A.T) < 1e-6  # float32 angles
    far = FanBeam((6, 7), angles, source_origin=1e7, source_detector=1e7, detectors=9)
    assert relative(far.A(x), Radon((6, 7), angles, 9).A(x)) < 1e-5


def test_lengths_scale() -> None:
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    y = Radon((8, 8), 5, 12, offset=0.3).A(x)
    torch.testing.assert_close(Radon((8, 8), 5, 12, offset=0.6, pixel_size=2.0).A(x), 2 * y)
    a = FanBeam((8, 8), 5, source_origin=10, source_detector=15, detectors=9, spacing=1.5).A(x)
    options = {"source_origin": 30, "source_detector": 45, "detectors": 9, "spacing": 4.5, "pixel_size": 3.0}
    torch.testing.assert_close(FanBeam((8, 8), 5, **options).A(x), 3 * a)


def test_memory_bound_takes_the_other_way() -> None:
    x = torch.rand(9, 1, 32, 32)
    small, large = Radon((32, 32), 20, max_memory=0.01), Radon((32, 32), 20)
    with pytest.warns(UserWarning, match="more than max_memory = 0.01 MB: they are computed anew"):
        y = small.A(x)
    torch.testing.assert_close(y, large.A(x))
    torch.testing.assert_close(small.A_adjoint(y), large.A_adjoint(y), rtol=1e-5, atol=1e-3)
    assert small._matrix(torch.float32).memory == 0 < large._matrix(torch.float32).memory < large.max_memory


def test_many_rays_are_told_apart() -> None:
    """More angles than 2^20: a key of angle and position must not overflow."""
    theta = torch.arange(2**21 + 5, dtype=torch.float64) * PI / 2**21
    assert len(_reduce(theta, torch.ones_like(theta), MIRRORS[:1]).theta) == len(theta)
    theta = torch.rand(1_500_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * PI
    s = torch.rand(1_500_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).round(decimals=2) - 0.5
    found = _reduce(theta, s, MIRRORS)
    mirror = [found.mirrors[k] for k in range(8)]
    base, which = found.source // 8, found.source % 8
    sign, turn = (torch.tensor([getattr(m, name) for m in mirror])[which] for name in ("sign", "turn"))
    x, y = found.theta[base].cos(), found.theta[base].sin()
    moved = sign * theta + turn * PI
    along = x * moved.cos() + y * moved.sin()  # +-1: the same line, seen from either side
    torch.testing.assert_close(along.abs(), torch.ones_like(along), rtol=0, atol=1e-12)
    torch.testing.assert_close(along * s, found.s[base], rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [64, 65, 66])  # D - size is odd, odd, even
def test_sinogram_of_deepinv_is_the_transpose(size: int) -> None:
    from deepinv.physics import Tomography

    x, degrees = draw(shepp_logan(), size)[None, None].float(), torch.arange(0, 180, 3.0)
    theirs = Tomography(angles=degrees, img_width=size, circle=False, normalize=False).A(x)
    ours = Radon.like_deepinv(size, torch.deg2rad(degrees)).A(x)
    assert relative(theirs.mT, ours) < 0.01
    assert relative(theirs.mT.flip(-1), ours) > 0.1


# ---- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Radon, FanBeam])
def test_gradient_in_the_angles(kind: type[Projector]) -> None:
    angles = torch.tensor([0.13, 0.9, 1.7, 2.6], dtype=torch.float64)
    options = {} if kind is Radon else {"source_origin": 20.0, "source_detector": 30.0}
    op = kind((5, 6), angles, detectors=7, offset=0.11, **options)
    x = torch.randn(1, 1, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(op.A(x, angles=angles), op.A(x))
    moving = angles.clone().requires_grad_()
    image = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t, q: op.A(q, angles=t), (moving, image), eps=1e-7, atol=1e-5)
    assert torch.autograd.gradgradcheck(lambda t, q: op.A(q, angles=t), (moving, image), eps=1e-7, atol=1e-4)
    y = torch.randn(1, 1, 4, 7, dtype=torch.float64)
    torch.testing.assert_close(op.A_adjoint(y, angles=angles), op.A_adjoint(y))
    assert torch.autograd.gradcheck(lambda t: op.A_adjoint(y, angles=t), moving, eps=1e-7, atol=1e-5)
    for wrong in (angles[:3], angles * math.nan):
        with pytest.raises(ValueError, match="expected 4 finite angles"):
            op.A(x, angles=wrong)


def test_angles_can_be_calibrated() -> None:
    truth = views(24) + 0.02 * torch.sin(torch.arange(24, dtype=torch.float64))
    op, x = Radon((48, 48), 24), draw(shepp_logan(), 48)[None, None]
    y = op.A(x, angles=truth)
    angles = views(24).clone().requires_grad_()
    optimiser = torch.optim.Adam([angles], lr=2e-3)
    for _ in range(60):
        optimiser.zero_grad()
        (op.A(x, angles=angles) - y).square().mean().backward()
        optimiser.step()
    assert float((angles.detach() - truth).abs().max()) < 0.25 * 0.02


# ---- noise, solvers ----------------------------------------------------------------------------


def test_low_dose_noise() -> None:
    torch.manual_seed(0)
    x = torch.full((200_000,), 2.0)
    y = LowDose(1000, 1.3)(x)
    N = 1000 * math.exp(-2.6)
    assert float(y.std()) == pytest.approx(N**-0.5 / 1.3, rel=0.02)
    assert float(y.mean()) == pytest.approx(2.0, abs=0.01)
    assert LowDose(1000, 1.3).level(y) == pytest.approx(float(y.std()), rel=0.03)
    dark = LowDose(10, zero=0.1)(torch.full((1000,), 20.0))
    torch.testing.assert_close(dark, torch.full((1000,), math.log(100.0)))  # no photon counts as 0.1
    with pytest.raises(ValueError, match="photons must be finite and > 0, got 0"):
        LowDose(0)
    with pytest.raises(ValueError, match="overflows for x = -1000"):
        LowDose(100)(torch.tensor([-1000.0]))


def test_low_dose_repeats() -> None:
    noise = LowDose(100, rng=torch.Generator())
    x = torch.rand(2, 1, 4, 5)
    assert bool((noise(x, seed=3) == noise(x, seed=3)).all())
    assert bool((noise(x, seed=3) != noise(x, seed=4)).any())


def test_noise_is_estimated() -> None:
    x = draw(shepp_logan(), 128)[None, None].float() * 0.02
    for op, least in (
        (Radon((128, 128), 90, noise_model=LowDose(3000)), 0.9),
        (Radon((128, 128), 90, sigma=0.05), 0.9),
    ):
        torch.manual_seed(1)
        y = op(x)
        true = float((y - op.A(x)).square().mean().sqrt())
        assert least * true < op.estimate_noise(y) < 1.12 * true


def test_the_preconditioner_pays() -> None:
    op = Radon((64, 64), 60)
    b = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    alpha = 1e-3 * op.norm
    _, plain = damped_solve(op.A_adjoint_A, b, alpha, tol=1e-4, max_iter=500)
    x, ramp = op.solve_normal(b, alpha, tol=1e-4, max_iter=500)
    assert ramp.converged and ramp.iterations <= 0.5 * plain.iterations
    assert relative(op.A_adjoint_A(x) + alpha * x, b) < 2e-4


def test_weights_of_low_dose() -> None:
    """Whitened photon counts have noise of level 1, and the weighted solution is the better one by far."""
    shoulders = torch.tensor([[0.1, 0.9, 0.25, 0, 0, 0], [-0.05, 0.2, 0.1, 0.4, 0, 0], [-0.05, 0.2, 0.1, -0.4, 0, 0]])
    x = draw(shoulders.double(), 64)[None, None].float()
    op = Radon((64, 64), 90, noise_model=LowDose(1000))
    torch.manual_seed(0)
    y = op(x)
    weighted = Weighted(op, op.noise_model.weights(y), sigma=1.0)
    white = weighted.whiten(y - op.A(x))
    assert float(white.std()) == pytest.approx(1, rel=0.05)
    solve = {"tol": 1e-3, "max_iter": 200}
    plain, _ = op.solve_normal(op.A_adjoint(y), 3e-3 * op.norm, **solve)
    better, info = weighted.solve_normal(weighted.A_adjoint(weighted.whiten(y)), 3e-3 * weighted.norm, **solve)
    assert info.converged and psnr(better, x) > psnr(plain, x) + 1
    y[..., 3, 5] = torch.nan
    gone = op.noise_model.weights(y).nan_to_num(0)
    assert float(Weighted(op, gone).whiten(y)[..., 3, 5].abs().max()) == 0


def test_three_lines() -> None:
    """The default program beats filtered backprojection clearly."""
    x = draw(shepp_logan(), 64)[None, None].float()
    op = Radon((64, 64), 60, sigma=0.3)
    torch.manual_seed(0)
    y = op(x)
    assert psnr(ADMM(op, LoFiPrior("natural"))(y), x) > psnr(op.fbp(y), x) + 5


def test_lodopab() -> None:
    """The published geometry, as its files are read: [x, y] with both axes growing, lengths in metres."""
    op = Radon.lodopab(max_memory=1.0)
    assert op.data_shape == ("batch", "channel", 1000, 513) and isinstance(op.noise_model, LowDose)
    x = torch.zeros(1, 1, 362, 362)
    i, j = 250, 90
    x[..., i, j] = 1
    views = [0, 333, 700]
    theta, s = op.lines(op.angles)
    small = Radon((362, 362), op.angles[views], 513, spacing=op.spacing, pixel_size=op.pixel_size, max_memory=1.0)
    y = small.A(x)[0, 0]
    phi = (torch.tensor(views, dtype=torch.float64) + 0.5) * PI / 1000
    place = ((i - 180.5) * phi.cos() + (j - 180.5) * phi.sin()) * 0.26 / 362
    centroid = (y.double() * op.positions()).sum(1) / y.double().sum(1)
    torch.testing.assert_close(centroid, place, rtol=0, atol=2e-4)
    assert float(op.positions()[-1] + op.spacing / 2) == pytest.approx(0.183848, abs=1e-6)
    assert float(s.abs().max()) * 0.26 / 362 < 0.183848 and theta.shape == (1000, 513)


@pytest.mark.parametrize("folder", ["chest", "head"])
def test_paper_on_real_slices(shared_data, folder: str) -> None:  # type: ignore[no-untyped-def]
    """FBP of the paper's set-up at 30 dB: 25.8 dB on chests, 25.5 dB on heads by scikit-image (facts)."""
    import pydicom
    from skimage.transform import iradon, radon, resize

    ours, theirs = [], []
    op, theta = Radon.like_skimage(128, 180), np.arange(180.0)
    rng = np.random.default_rng(0)
    for path in sorted((shared_data / "ct" / folder).glob("*.dcm")):
        slice_ = pydicom.dcmread(path)
        hu = slice_.pixel_array * float(slice_.RescaleSlope) + float(slice_.RescaleIntercept)
        hu = np.where(hu < -1024, -1000, hu)
        x = resize(hu.astype(float), (128, 128), order=1, anti_aliasing=True)
        x = (x - x.min()) / (x.max() - x.min())
        sinogram = radon(x, theta, circle=False)
        noise = 10 ** (-30 / 20) * np.sqrt(np.mean(sinogram**2)) * rng.standard_normal(sinogram.shape)
        truth = torch.from_numpy(x)
        theirs.append(psnr(torch.from_numpy(iradon(sinogram + noise, theta, circle=False)), truth))
        y = op.A(truth[None, None]) + torch.from_numpy(noise.T.copy())
        ours.append(psnr(op.fbp(y)[0, 0], truth))
    assert abs(np.mean(ours) - np.mean(theirs)) < 0.3


# ---- bad input ---------------------------------------------------------------------------------


def test_degrees_are_noticed() -> None:
    with pytest.warns(UserWarning, match="are they degrees"):
        Radon((8, 8), torch.arange(180.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Radon((8, 8), torch.arange(0, 12.5, 0.1))


CASES = [
    (lambda: Radon((8, 8), []), "or an integer for that many even views, got shape"),
    (lambda: Radon((8, 8), 0), "number of angles must be at least 1, got 0"),
    (lambda: Radon((8, 8), [0.1, math.nan]), "angles hold NaN or inf"),
    (lambda: Radon((8, 8), torch.zeros(2, 3)), r"angles must be \(A,\) in radians.*got shape \(2, 3\)"),
    (lambda: Radon((8, 8), 5, 0), "detectors must be a positive integer, got 0"),
    (lambda: Radon((8, 8), 5, spacing=-1.0), "the detector spacing must be finite and > 0, got -1"),
    (lambda: Radon((8, 8), 5, pixel_size=math.nan), "pixel_size must be finite and > 0, got nan"),
    (lambda: Radon((8, 8), 5, pixel_size=(0.7, 0.7)), "pixel_size must be one number, got"),
    (lambda: Radon((8, 8), 60.0), "or an integer for that many even views"),
    (lambda: Radon((8, 8), 5, centre=(500, 500)), "far outside of the image"),
    (lambda: Radon((8, 8), 5, offset=math.inf), "offset and the centre must be finite, got inf"),
    (lambda: Radon((8, 8), 5, centre=(math.nan, 1)), "the centre must be finite"),
    (lambda: Radon((8, 8), 5, backend="astra"), "backend must be one of auto, sparse, free, triton, got 'astra'"),
    (lambda: Radon((8,), 5), "the image size must be"),
    (lambda: Radon((8, 8), 5, sigma=0.1, noise_model=LowDose(10)), "pass sigma or noise_model, not both"),
    (lambda: Radon((8, 8), 5).A(torch.rand(1, 1, 8, 9)), r"Radon expects x of shape \(batch, channel, 8, 8\)"),
    (lambda: Radon((8, 8), 5, 9).A_adjoint(torch.rand(1, 1, 9, 5)), r"channel, 5, 9\), got \(1, 1, 9, 5\)"),
    (lambda: Radon((8, 8), 5, 9).fbp(torch.rand(1, 1, 5, 8)), r"y of shape \(batch, channel, 5, 9\)"),
    (lambda: Radon((8, 8), 5, 9).A_adjoint(torch.full((1, 1, 5, 9), math.nan)), "y holds NaN or inf"),
    (lambda: Weighted(Radon((8, 8), 5, 9), torch.ones(5, 8)), r"data of shape \(batch, channel, 5, 9\), got \(5, 8\)"),
    (lambda: Weighted(Radon((8, 8), 5, 9), -torch.ones(5, 9)), "weights must be finite and >= 0"),
    (lambda: Weighted(Radon((8, 8), 5, 9), torch.zeros(5, 9)), "some > 0"),
    (lambda: FanBeam((8, 8), 5, source_origin=4.0, source_detector=9.0), "image of radius 5.65685 < source_origin"),
    (lambda: FanBeam((8, 8), 5, source_origin=14.0, source_detector=9.0), "<= source_detector, got 14 and 9"),
    (lambda: FanBeam((8, 8), 5, source_origin=math.nan, source_detector=9.0), "source_origin must be finite and > 0"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), CASES, ids=[f"{i}-{c[1][:24]}" for i, c in enumerate(CASES)])
def test_error_says_what_to_do(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()


def test_half_precision_is_refused() -> None:
    with pytest.raises(TypeError, match=r"float32 or float64, got torch.float16; use x.float\(\)"):
        Radon((8, 8), 5).A(torch.rand(1, 1, 8, 8).half())
    with pytest.raises(TypeError, match=r"got torch\.int64"):
        Radon((8, 8), 5).A(torch.ones(1, 1, 8, 8, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="CUDA device and the package triton"):
        Radon((8, 8), 5, backend="triton").A(torch.rand(1, 1, 8, 8, dtype=torch.float64))
