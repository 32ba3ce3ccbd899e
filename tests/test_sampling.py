"""Interpolation, borders and windows against scipy, numpy and closed forms."""

import numpy as np
import pytest
import torch
from scipy import interpolate

from pnp_lofi.sampling import (
    grid_coords,
    keys_cubic,
    positions,
    reflect_index,
    reflect_pad,
    sample,
    stencil,
    windows,
)


def test_keys_kernel_is_the_published_piecewise_cubic():
    t = torch.linspace(-2.5, 2.5, 501, dtype=torch.float64)
    knots = np.array([0.0, 0.25, 0.5, 1.0, 1.25, 1.5, 2.0])
    # Keys 1981 eq. 4 at a = -1/2, evaluated by hand
    values = np.array([1.0, 0.8671875, 0.5625, 0.0, -0.0703125, -0.0625, 0.0])
    got = keys_cubic(torch.tensor(knots))
    np.testing.assert_allclose(got.numpy(), values, atol=1e-15)
    spline = interpolate.CubicHermiteSpline([-2, -1, 0, 1, 2], [0, 0, 1, 0, 0], [0, 0.5, 0, -0.5, 0])
    inside = t.abs() <= 2
    np.testing.assert_allclose(keys_cubic(t)[inside].numpy(), spline(t[inside].numpy()), atol=1e-14)
    assert not keys_cubic(t)[~inside].any()


def test_second_derivatives_at_pixel_centres_are_those_of_the_growing_side():
    """Where the kernel's pieces meet: a limit of differences, and what a constant and a parabola have there."""
    t = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(keys_cubic(t).sum(), t, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), t)
    step = 1e-4
    values = [keys_cubic(t.detach() + k * step) for k in range(4)]
    limit = (2 * values[0] - 5 * values[1] + 4 * values[2] - values[3]) / step**2
    torch.testing.assert_close(second, limit, rtol=0, atol=1e-6)
    pixels = torch.arange(9.0, dtype=torch.float64)
    for x, expected in ((torch.ones_like(pixels), 0.0), (pixels**2, 2.0)):
        place = torch.tensor([[[4.0, 4.0]]], dtype=torch.float64, requires_grad=True)
        image = x[:, None].expand(9, 9)[None, None]
        (slope,) = torch.autograd.grad(sample(image, place).sum(), place, create_graph=True)
        (bend,) = torch.autograd.grad(slope[..., 0].sum(), place)
        assert float(bend[..., 0]) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_reflection_is_numpys(size):
    margin = 11
    expected = np.pad(np.arange(size), margin, mode="reflect" if size > 1 else "edge")
    got = reflect_index(torch.arange(-margin, size + margin), size)
    np.testing.assert_array_equal(got.numpy(), expected)


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (5, 4), (30, 31)])
def test_reflect_pad_is_numpys(shape):
    x = np.random.default_rng(0).normal(size=shape)
    expected = np.pad(x, 6, mode="reflect") if min(shape) > 1 else np.pad(x, 6, mode="edge")
    np.testing.assert_array_equal(reflect_pad(torch.tensor(x)[None, None], 6)[0, 0].numpy(), expected)


def test_ramps_are_reproduced_exactly():
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(15.0), indexing="ij")
    x = (2 * rows - 3 * columns + 1).double()[None, None]
    points = torch.rand(1, 200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points = 2 + points * torch.tensor([7.0, 10.0])
    expected = 2 * points[..., 0] - 3 * points[..., 1] + 1
    torch.testing.assert_close(sample(x, points)[..., 0], expected, rtol=0, atol=1e-12)


def test_stencil_and_windows_equal_pointwise_sampling():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, 9, dtype=torch.float64, generator=g)
    offsets = torch.tensor([[0.0, 0.0], [2.0, -2.0], [1.3, 0.4], [-1.7, 1.99]], dtype=torch.float64)
    view = windows(reflect_pad(x, 3), 3)
    patches = view.reshape(2, 54, 3, 49) @ stencil(offsets, 3)
    points = positions(grid_coords((6, 9), dtype=torch.float64), (6, 9))
    expected = sample(x, (points[:, None] + offsets).reshape(1, -1, 2).expand(2, -1, -1))
    torch.testing.assert_close(patches.transpose(2, 3).reshape(2, -1, 3), expected, rtol=0, atol=1e-12)


def test_sampling_is_twice_differentiable_in_the_positions():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 7, 7, dtype=torch.float64, generator=g, requires_grad=True)
    points = (1.2 + 0.6 * torch.rand(1, 5, 2, dtype=torch.float64, generator=g)).requires_grad_()
    assert torch.autograd.gradcheck(sample, (x, points))
    assert torch.autograd.gradgradcheck(sample, (x, points))
