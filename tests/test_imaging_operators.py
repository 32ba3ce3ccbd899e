"""Blur, Downsample, Fourier and Derivatives against what is not ours: torch, deepinv, NUFFT's sum, calculus."""

import math

import deepinv.physics as dinv
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from pnp_lofi.cg import damped_solve
from pnp_lofi.leaves import dead_leaves
from pnp_lofi.operators import (
    NUFFT,
    Blur,
    Derivatives,
    Downsample,
    Fourier,
    cartesian_lines,
    radial_lines,
    random_frequencies,
    random_mask,
)
from pnp_lofi.sampling import grid_coords


def image(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("size", [(3, 3), (4, 5), (12, 13)])
@pytest.mark.parametrize("boundary", ["circular", "reflect", "replicate", "zero", "valid"])
def test_blur_is_deepinvs(boundary: str, size: tuple[int, int]) -> None:
    """The large kernel takes the way through FFT, deepinv's the direct one."""
    kernel, x = image(3, *size).abs(), image(2, 3, 17, 14, seed=1)
    other = dinv.Blur(filter=kernel[None], padding={"zero": "constant"}.get(boundary, boundary))
    op = Blur((17, 14), kernel, boundary=boundary)
    y = op.A(x)
    assert relative(y, other.A(x)) < 1e-13
    assert relative(op.A_adjoint(y), other.A_adjoint(y)) < 1e-13
    assert relative(op.A(x.float()).double(), y) < 1e-6


@pytest.mark.parametrize("boundary", ["zero", "valid"])
def test_circular_preconditioner(boundary: str) -> None:
    offset = torch.arange(9, dtype=torch.float64) - 4
    line = torch.exp(-(offset**2) / (2 * 1.5**2))
    op = Blur((64, 48), line[:, None] * line / line.sum() ** 2, boundary=boundary)
    b = op.A_adjoint(op.A(image(1, 1, 64, 48)))
    x, _ = op.solve_normal(b, 1e-2, tol=1e-8, max_iter=500)
    plain, _ = damped_solve(op.A_adjoint_A, b, 1e-2, tol=1e-8, max_iter=500)
    assert relative(x, plain) < 1e-5
    _, fast = op.solve_normal(b, 1e-2, tol=1e-4)
    _, slow = damped_solve(op.A_adjoint_A, b, 1e-2, tol=1e-4)
    assert fast.converged and 3 * fast.iterations < 2 * slow.iterations


def test_blur_dagger_has_the_smallest_norm() -> None:
    kernel = torch.tensor([[1.0, 2.0, 1.0]]) / 4  # blind to the finest stripes
    x = image(1, 1, 8, 8)
    stripes = (-1.0) ** torch.arange(8, dtype=torch.float64).expand(1, 1, 8, 8)
    found = Blur((8, 8), kernel).A_dagger(Blur((8, 8), kernel).A(x))
    parts = (x * stripes).mean(-1, keepdim=True) * stripes
    torch.testing.assert_close(found, x - parts)


@pytest.mark.parametrize("factor", [2, 3, 4, 5])
def test_downsample_is_what_torch_has(factor: int) -> None:
    N = 12 * factor
    x = image(2, 3, N, N)
    op = Downsample((N, N), factor, "box")
    torch.testing.assert_close(op.A(x), avg_pool2d(x, factor))
    torch.testing.assert_close(
        op.A_dagger(op.A(x)), avg_pool2d(x, factor).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    )
    assert op.norm == pytest.approx(1 / factor**2)
    inner = (..., slice(3, 9), slice(3, 9))
    expected = interpolate(x, (12, 12), mode="bicubic", antialias=True)
    torch.testing.assert_close(Downsample((N, N), factor).A(x)[inner], expected[inner])


def test_downsample_is_deepinvs() -> None:
    kernel, x = image(1, 3, 4, 5).abs(), image(2, 3, 12, 18, seed=1)
    for boundary in ("circular", "reflect", "replicate"):
        op = Downsample((12, 18), 3, kernel, phase=0, boundary=boundary)
        other = dinv.Downsampling((3, 12, 18), filter=kernel, factor=3, padding=boundary)
        y = op.A(x)
        assert relative(y, other.A(x)) < 1e-13
        assert relative(op.A_adjoint(y), other.A_adjoint(y)) < 1e-13
        if boundary == "circular":
            z = image(2, 3, 12, 18, seed=2)
            assert relative(op.prox_l2(z, y, 5.0), other.prox_l2(z, y, 5.0)) < 1e-12


@pytest.mark.parametrize("shape", [(8, 8), (7, 10)])
def test_fourier_is_mri_and_a_nufft_on_the_grid(shape: tuple[int, int]) -> None:
    mask, x = random_mask(shape, 0.5), image(2, 1, *shape)
    frequencies = torch.cartesian_prod(*(2 * math.pi * (torch.arange(n).double() - n // 2) / n for n in shape)).T
    y = Fourier(mask).A(x)
    assert relative(y.flatten(2)[..., mask.flatten()], NUFFT(shape, frequencies[:, mask.flatten()]).A(x)) < 1e-11
    z = torch.complex(x, image(2, 1, *shape, seed=3))
    other = dinv.MRI(mask=mask.double(), img_size=(2, *shape))
    found = torch.view_as_complex(other.A(torch.view_as_real(z)[:, 0].movedim(-1, 1)).movedim(1, -1).contiguous())
    assert relative(Fourier(mask, real=False).A(z)[:, 0], found) < 1e-12
    plain = torch.fft.fft2(z, norm="ortho") * mask
    torch.testing.assert_close(Fourier(mask, real=False, centred=False).A(z), plain)


def test_fourier_never_looks_outside() -> None:
    mask = random_mask((6, 7), 0.5)
    op = Fourier(mask)
    y = op.A(image(1, 1, 6, 7))
    blotted = torch.where(mask, y, torch.nan)
    torch.testing.assert_close(op.A_adjoint(blotted), op.A_adjoint(y))
    assert bool(torch.isfinite(op.prox_l2(0.0, blotted, 2.0)).all())


def test_masks_of_frequencies() -> None:
    shape = (40, 51)
    mask = random_frequencies(shape, 4.0, seed=1)
    assert mask.shape == shape and mask.dtype == torch.bool and int(mask.sum()) == 510
    assert bool(mask[20, 25]) and bool((mask == random_frequencies(shape, 4.0, seed=1)).all())
    assert bool((mask != random_frequencies(shape, 4.0, seed=2)).any())
    middle = mask[10:30, 13:38]
    assert float(middle.double().mean()) > 2 * float(mask.double().mean())  # denser where the energy is
    flat = random_frequencies((200, 200), 4.0, power=0.0, centre=0.0)
    assert float(flat[50:150, 50:150].double().mean()) == pytest.approx(0.25, abs=0.02)
    assert bool(random_frequencies(shape, 1.0).all())
    lines = cartesian_lines(shape, 3.0)
    assert int(lines[0].sum()) == 17 and bool((lines == lines[0]).all()) and bool(lines[0, 25])
    rows = cartesian_lines(shape, 4.0, axis=0)
    assert int(rows[:, 0].sum()) == 10 and bool((rows == rows[:, :1]).all())
    for golden in (False, True):
        spokes = radial_lines((41, 41), 6, golden=golden)
        assert bool(spokes[20, 20]) and bool((spokes == spokes.flip(0, 1)).all())  # through the middle
        assert 150 < int(spokes.sum()) < 6 * 41
    cross = radial_lines((9, 9), 2)
    assert bool(cross[4].all()) and bool(cross[:, 4].all()) and int(cross.sum()) == 17


def plane_wave(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """sin(2 pi r) cos(pi c) at the centres of the pixels, and places away from the borders."""
    r, c = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in shape)
    coords = 0.1 + 0.8 * torch.rand(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return (torch.sin(2 * math.pi * r)[:, None] * torch.cos(math.pi * c))[None, None], coords


def test_derivatives_of_a_wave() -> None:
    """At two resolutions: the same numbers, nearer to the truth on the finer grid."""
    errors = []
    for shape in ((48, 56), (96, 112)):
        x, coords = plane_wave(shape)
        r, c = 2 * math.pi * coords[:, 0], math.pi * coords[:, 1]
        gradient = torch.stack([2 * math.pi * r.cos() * c.cos(), -math.pi * r.sin() * c.sin()])
        laplacian = -5 * math.pi**2 * r.sin() * c.cos()
        first, finer = (Derivatives(shape, coords, taps=taps).A(x)[0, 0] for taps in (4, 6))
        second = Derivatives(shape, coords, order=2).A(x)[0, 0]
        errors.append(
            torch.tensor(
                [relative(first, gradient), relative(finer, gradient), relative(second[0] + second[2], laplacian)]
            )
        )
    assert bool((errors[0] < torch.tensor([2e-3, 3e-5, 1e-3])).all())
    assert bool((errors[0] / errors[1] > torch.tensor([3.5, 7.0, 3.5])).all())


def test_derivatives_of_polynomials_are_exact() -> None:
    r, c = (torch.arange(n, dtype=torch.float64) for n in (20, 24))
    coords = 0.25 + 0.5 * torch.rand(50, 2, dtype=torch.float64)
    at = coords * torch.tensor([20, 24]) - 0.5
    x = (r[:, None] ** 2 + 3 * r[:, None] * c - 2 * c**2)[None, None]
    first = Derivatives((20, 24), coords).A(x)[0, 0] / torch.tensor([[20.0], [24.0]])
    torch.testing.assert_close(first, torch.stack([2 * at[:, 0] + 3 * at[:, 1], 3 * at[:, 0] - 4 * at[:, 1]]))
    second = Derivatives((20, 24), coords, order=2).A(x)[0, 0] / torch.tensor([[400.0], [480.0], [576.0]])
    expected = torch.tensor([[2.0], [3.0], [-4.0]], dtype=torch.float64)
    torch.testing.assert_close(second, expected.expand(3, 50))
    centres = grid_coords((20, 24), dtype=torch.float64).unflatten(0, (20, 24))[4:-4, 4:-4].flatten(0, 1)
    centred = Derivatives((20, 24), centres, order=2).A(x)[0, 0] / torch.tensor([[400.0], [480.0], [576.0]])
    torch.testing.assert_close(centred, expected.expand(3, len(centres)))


def test_derivatives_in_chunks() -> None:
    coords = torch.rand(101, 2, generator=torch.Generator().manual_seed(6))
    x, y = image(2, 3, 9, 8), image(2, 3, 2, 101)
    whole, parts = Derivatives((9, 8), coords), Derivatives((9, 8), coords, chunk=7)
    torch.testing.assert_close(parts.A(x), whole.A(x))
    torch.testing.assert_close(parts.A_adjoint(y), whole.A_adjoint(y))


def test_an_image_from_its_gradient() -> None:
    """All first derivatives determine it up to a constant."""
    x, _ = plane_wave((16, 16))
    coords = torch.rand(1500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    op = Derivatives((16, 16), coords, max_iter=500, tol=1e-9)
    found = op.A_dagger(op.A(x))
    assert relative(found - found.mean(), x - x.mean()) < 1e-6


def test_a_loaded_kernel_is_the_one_used() -> None:
    """What was computed from the old one is forgotten."""
    old, new = (Blur((6, 6), image(3, 3, seed=seed)) for seed in (1, 2))
    x = image(1, 1, 6, 6)
    assert old.norm != new.norm and relative(old.A(x), new.A(x)) > 0.1
    old.load_state_dict(new.state_dict())
    torch.testing.assert_close(old.A(x), new.A(x))
    torch.testing.assert_close(old.solve_normal(x, 0.1)[0], new.solve_normal(x, 0.1)[0])
    assert old.norm == new.norm


@pytest.mark.parametrize("sigma", [0.1, 0.3])
def test_noise_of_photographs_is_found(sigma: float) -> None:
    """Within 10 % on average, and hardly ever too low: detail counts as noise."""
    x = dead_leaves(6, 128, seed=1).reshape(6, 1, 128, 128)
    shape = (128, 128)
    line = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    torch.manual_seed(0)
    for op in (
        Blur(shape, line[:, None] * line, sigma=sigma),
        Downsample(shape, 2, sigma=sigma),
        Fourier(random_frequencies(shape, 4.0), sigma=sigma),
        Fourier(cartesian_lines(shape, 3.0), centred=False, sigma=sigma),
    ):
        found = torch.tensor([op.estimate_noise(op(image[None])) for image in x]) / sigma
        assert 0.97 < float(found.median()) < 1.1 and float(found.min()) > 0.9


def test_one_alpha_for_each_item() -> None:
    """And none at all for some of them: the pseudo-inverse."""
    alpha = torch.tensor([0.0, 0.3], dtype=torch.float64).reshape(2, 1, 1, 1)
    for op in (Blur((6, 6), image(3, 3)), Downsample((6, 6), 2), Fourier(random_mask((6, 6), 0.5))):
        b = op.A_adjoint_A(image(2, 1, 6, 6))
        x, _ = op.solve_normal(b, alpha)
        for item, a in enumerate((0.0, 0.3)):
            torch.testing.assert_close(x[item], op.solve_normal(b[item : item + 1], a)[0][0])


def test_the_kernel_is_a_copy() -> None:
    kernel = image(3, 3).requires_grad_()
    op, x = Blur((6, 6), kernel), image(1, 1, 6, 6)
    y = op.A(x)
    with torch.no_grad():
        kernel.zero_()
    torch.testing.assert_close(op.clone().A(x), y)
    assert not y.requires_grad


def test_inference_mode_leaves_nothing_behind() -> None:
    """What is kept between calls was made in it and is used outside of it."""
    for op in (Blur((6, 6), image(3, 3)), Downsample((6, 6), 2, "box"), Derivatives((6, 6), torch.rand(9, 2))):
        with torch.inference_mode():
            op.prox_l2(0.0, op.A(image(1, 1, 6, 6)), 1.0)
        x = image(1, 1, 6, 6).requires_grad_()
        op.prox_l2(x, op.A(x), 1.0).square().sum().backward()
        assert bool(torch.isfinite(x.grad).all())


def test_a_start_lies_where_the_kernel_says() -> None:
    """The margins of docs/operators.md, for a kernel of even size: a kernel of one pixel, off its centre, shows x."""
    x = image(1, 1, 12, 13)
    kernel = torch.zeros(4, 3)
    kernel[2, 1] = 1
    y = Blur((12, 13), kernel, boundary="valid").A(x)
    torch.testing.assert_close(pad(y, (1, 1, 1, 2))[..., 1:-2, 1:-1], x[..., 1:-2, 1:-1])
