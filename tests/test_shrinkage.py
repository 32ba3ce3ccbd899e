"""Shrinkage of patches: its basis, its two limits, its adjoint, and that large contrasts are left alone."""

import pytest
import torch
from scipy.fft import dctn
from torch.nn.functional import conv2d

from pnp_lofi.shared import SharedLoFi
from pnp_lofi.shrinkage import BAND, Shrinkage, _OverlapAdd, cosines


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shrinkage(channels=1, side=5, bias=None):
    torch.manual_seed(0)
    made = Shrinkage(channels, side, 3).double()
    if bias is not None:
        with torch.no_grad():
            made.gates.zero_()
            made.gates_bias.fill_(bias)
            made.steepness_bias.zero_()
    return made


def features(q, side):
    return rand(len(q), 3, q.shape[-2] - side + 1, q.shape[-1] - side + 1, seed=5).abs()


@pytest.mark.parametrize(("channels", "side"), [(1, 5), (3, 3)])
def test_atoms_are_orthonormal_and_blind_to_constants(channels, side):
    atoms = cosines(channels, side).double()
    count = channels * (side**2 - 1)
    flat = atoms.reshape(count, -1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-6)
    assert float(atoms.sum((-2, -1)).abs().max()) < 1e-6
    patch = rand(channels, side, side)  # scipy's cosines, along rows, columns and channels
    expected = torch.from_numpy(dctn(patch.numpy(), norm="ortho"))[:, 0, 1]
    torch.testing.assert_close(torch.einsum("acij,cij->a", atoms, patch)[:channels], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("channels", [1, 2])
def test_all_noise_leaves_the_mean_of_means_and_no_noise_leaves_all(channels, grad):
    """Also where rows are worked on in bands, without gradients."""
    q, side = rand(2, channels, 2 * BAND + 9, 16), 5
    sigma = torch.tensor(0.3, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        everything = shrinkage(channels, side, bias=60.0)(q, sigma, features(q, side))
    box = torch.full((1, 1, side, side), 1 / side**2, dtype=torch.float64)
    means = torch.cat([conv2d(conv2d(q[:, c : c + 1], box), box) for c in range(channels)], 1)
    torch.testing.assert_close(q[..., 4:-4, 4:-4] - everything, means, rtol=0, atol=1e-6)
    nothing = shrinkage(channels, side, bias=-60.0)(q, sigma, features(q, side))
    assert float(nothing.abs().max()) < 1e-12


@pytest.mark.parametrize("rows", [13, BAND + 13])
def test_maps_of_levels_and_numbers_agree(rows):
    q, m = rand(2, 1, rows, 12), shrinkage()
    level = torch.tensor([0.2, 0.7], dtype=torch.float64).reshape(2, 1, 1, 1)
    whole = m(q, level, features(q, 5))
    maps = level.expand(2, 1, rows - 4, 8).contiguous()
    torch.testing.assert_close(m(q, maps, features(q, 5)), whole, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(m(q, maps, features(q, 5)), whole, rtol=0, atol=1e-12)
    one = m(q[1:], level[1, 0, 0, 0], features(q, 5)[1:])
    torch.testing.assert_close(one, whole[1:], rtol=0, atol=1e-12)


def test_overlap_add_has_its_adjoint():
    patches = rand(2, 3, 3, 2, 7, 6).requires_grad_()
    assert torch.autograd.gradcheck(_OverlapAdd.apply, patches, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(_OverlapAdd.apply, patches)


def test_what_stands_out_is_left_alone():
    torch.manual_seed(0)
    small = {"window": 5, "filters": 7, "features": 4, "points": 1, "raw": 0, "hidden": (8,)}
    m = SharedLoFi(**small, stages=((3, 1, 5),), patch=5).double()
    q, sigma = rand(1, 1, 40, 40), 0.1
    faint, strong, stronger = (float((m(a * q, sigma) - a * q).abs().max()) / sigma for a in (1, 1e4, 1e6))
    assert faint < 30 and strong < 30 and stronger < 30  # a network without patches changes them in proportion
    torch.manual_seed(0)
    plain = SharedLoFi(**small, stages=((3, 1, 5),)).double()
    assert float((plain(1e6 * q, sigma) - 1e6 * q).abs().max()) / sigma > 1e4
