"""Where deepinv's physics and ours differ: each test shows what deepinv 0.5 does and what ours does instead.

The first half of such a test failing means that deepinv has changed: take the item out of the documents.
"""

import math
import warnings

import deepinv.physics as dinv
import pytest
import torch
from deepinv.optim import L2
from deepinv.physics.functional import conv2d_fft, conv_transpose2d_fft
from torch import Tensor

from pnp_lofi.operators import NUFFT, Blur, Composed, Downsample, Fourier, Mask, Radon, Stacked, random_mask

SHAPE = (12, 12)
KERNEL = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
X = torch.randn(2, 1, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def uv_of(n: int) -> Tensor:
    return (2 * torch.rand(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) - 1) * math.pi


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def deepinvs(op: torch.nn.Module) -> dinv.LinearPhysics:
    """The same operator behind deepinv's own methods."""
    return dinv.LinearPhysics(A=op.A, A_adjoint=op.A_adjoint, img_size=(1, *SHAPE), noise_model=dinv.ZeroNoise())


def test_adjointness_of_complex_data() -> None:
    op = NUFFT(SHAPE, uv_of(100))
    torch.manual_seed(0)
    assert float(deepinvs(op).adjointness_test(X, num_samples=20)) > 0.5  # a correct operator
    assert float(op.adjointness_test(X, num_samples=20)) < 1e-12


def test_prox_leaves_the_operator_as_it_was() -> None:
    op = Blur(SHAPE, KERNEL, boundary="reflect", max_iter=40, tol=1e-6)
    other = deepinvs(op)
    for physics in (other, op):
        before = (physics.max_iter, physics.tol, physics.solver)
        physics.prox_l2(X, op.A(X), 0.5, max_iter=23, tol=1e-2, solver="lsqr")
        after = (physics.max_iter, physics.tol, physics.solver)
        assert (after == before) == (physics is op)
        if physics is other:
            assert after == (23, 1e-2, "lsqr")


def test_solver_set_is_the_solver_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """deepinv's prox ignores ``set_ls_solver``; of ours there is one solver, and its numbers are honoured."""
    used = []
    other = deepinvs(Blur(SHAPE, KERNEL, boundary="reflect"))
    monkeypatch.setattr(
        "deepinv.physics.forward.least_squares_implicit_backward", lambda *a, **options: used.append(options["solver"])
    )
    other.set_ls_solver("lsqr")
    other.prox_l2(X, X, 0.5)
    assert used == ["CG"] and other.solver == "CG"

    op = Blur(SHAPE, KERNEL, boundary="reflect")
    y, z = op.A(X), torch.zeros_like(X)
    op.set_ls_solver("CG", max_iter=200, tol=1e-12)
    exact = op.prox_l2(z, y, 5.0)
    gradient = 5.0 * op.A_adjoint(op.A(exact) - y) + exact - z
    assert float(gradient.norm()) < 1e-10 * float(op.A_adjoint(y).norm())
    op.set_ls_solver("CG", max_iter=20, tol=0.3)
    assert relative(op.prox_l2(z, y, 5.0), exact) > 1e-6


def test_noise_models_are_not_shared() -> None:
    assert dinv.Blur(filter=KERNEL[None, None]).noise_model is dinv.Downsampling(filter=None).noise_model
    ours = [Blur(SHAPE, KERNEL), Blur(SHAPE, KERNEL), Downsample(SHAPE, 2), Mask(random_mask(SHAPE, 0.5))]
    assert len({id(op.noise_model) for op in ours}) == len(ours)


def test_noise_of_complex_data_is_per_component() -> None:
    zeros = torch.zeros(200, 1, *SHAPE)
    torch.manual_seed(0)
    noisy = dinv.GaussianNoise(0.4)(zeros + 0j)
    assert float(noisy.real.std()) == pytest.approx(0.4 / math.sqrt(2), rel=0.02)
    for op in (NUFFT(SHAPE, uv_of(100), sigma=0.4), Fourier(torch.ones(SHAPE), sigma=0.4)):
        noise = op(zeros)
        assert (
            float(noise.real.std()) == pytest.approx(0.4, rel=0.02) == pytest.approx(float(noise.imag.std()), rel=0.02)
        )


def test_radio_interferometry() -> None:
    """Half the unitary scale, single precision only, and an interpreter's trace for coordinates (N, 2)."""
    frequencies = torch.cartesian_prod(*(2 * math.pi * (torch.arange(n) - n // 2) / n for n in SHAPE)).T
    x = X.float()
    other = dinv.RadioInterferometry(img_size=SHAPE, samples_loc=frequencies, real_projection=True)
    assert float(other.A(x).norm() / x.norm()) == pytest.approx(0.5, rel=1e-3)
    y = NUFFT(SHAPE, frequencies).A(x)
    assert float(y.norm() / x.norm()) == pytest.approx(1, rel=1e-5)
    assert relative(2 * other.A(x), y) < 3e-3
    assert other.A(X).dtype == torch.complex64  # double precision is lost without a word
    assert NUFFT(SHAPE, frequencies).A(X).dtype == torch.complex128
    with pytest.raises(RuntimeError, match="TorchScript"):
        dinv.RadioInterferometry(img_size=SHAPE, samples_loc=frequencies.T, real_projection=True).A(x)
    with pytest.raises(ValueError, match="transpose it"):
        NUFFT(SHAPE, frequencies.T)


@pytest.mark.parametrize("size", [30, 31])
def test_tomography_turns_about_the_middle(size: int) -> None:
    """Where its padding is odd, deepinv's axis stands half a pixel off: a centred disc does not stay centred."""
    r = torch.arange(size) - (size - 1) / 2
    disc = (torch.hypot(r[:, None], r) < size / 4).float()[None, None]

    def middle(y: Tensor) -> Tensor:
        """Of each view, (A, D) -> (A,) [pixels from the middle of the detector]."""
        s = torch.arange(y.shape[1]) - (y.shape[1] - 1) / 2
        return (y * s).sum(1) / y.sum(1)

    degrees = torch.tensor([0.0, 90.0])
    other = dinv.Tomography(angles=degrees, img_width=size, circle=False, normalize=False)
    torch.testing.assert_close(middle(other.A(disc)[0, 0].T).abs(), torch.tensor([0.5, 0.5]), rtol=0, atol=1e-4)
    assert float(middle(Radon((size, size), torch.deg2rad(degrees)).A(disc)[0, 0]).abs().max()) < 1e-5


def test_blur_in_double_precision() -> None:
    """BlurFFT keeps the phase of the filter in a complex buffer, of which ``.to(float64)`` drops the imaginary part."""
    exact = dinv.Blur(filter=KERNEL[None, None], padding="circular").A(X)
    other = dinv.BlurFFT((1, *SHAPE), filter=KERNEL.float()[None, None])
    assert relative(other.A(X), exact) < 1e-6
    assert relative(other.to(torch.float64).A(X), exact) > 0.05
    assert relative(Blur(SHAPE, KERNEL.float()).to(torch.float64).A(X), exact) < 1e-6
    assert relative(Blur(SHAPE, KERNEL).float().A(X), exact) < 1e-14
    with pytest.raises(RuntimeError, match="expected scalar type"):
        dinv.Blur(filter=KERNEL.float()[None, None], padding="circular").A(X)


def test_blur_refuses_another_size_and_keeps_its_kernel() -> None:
    other = dinv.BlurFFT((1, *SHAPE), filter=KERNEL[None, None])
    wider = torch.randn(1, 1, 12, 13, dtype=torch.float64)
    assert other.A(wider).shape[-2:] == SHAPE  # without a word
    op = Blur(SHAPE, KERNEL)
    with pytest.raises(ValueError, match=r"got \(1, 1, 12, 13\)"):
        op.A(wider)
    other.A(X, filter=torch.ones(1, 1, 2, 2, dtype=torch.float64))
    with pytest.raises(TypeError, match="Blur takes no filter= in a call"):
        op.A(X, filter=torch.ones(1, 1, 2, 2, dtype=torch.float64))
    assert other.filter.shape[-2:] == (2, 2) and op.kernel.shape[-2:] == (3, 4)


def test_kernels_one_pixel_wide_have_an_adjoint() -> None:
    """deepinv's by FFT is wrong for "replicate" and fails for "reflect"."""
    kernel = KERNEL[:1]
    v = torch.randn(2, 1, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def mismatch(Ax: Tensor, Av: Tensor) -> float:
        return abs(float((Ax * v).sum() - (X * Av).sum())) / float(Ax.norm() * v.norm())

    Ax = conv2d_fft(X, kernel[None, None], padding="replicate")
    assert mismatch(Ax, conv_transpose2d_fft(v, kernel[None, None], padding="replicate")) > 1e-3
    with pytest.raises(RuntimeError):
        conv_transpose2d_fft(v, kernel[None, None], padding="reflect")
    for boundary in ("replicate", "reflect"):
        op = Blur(SHAPE, kernel, boundary=boundary)
        assert mismatch(op.A(X), op.A_adjoint(v)) < 1e-14


def test_blur_has_its_closed_form() -> None:
    """deepinv's Blur solves by conjugate gradients what its BlurFFT has in closed form; ours needs no choice."""
    y = dinv.Blur(filter=KERNEL[None, None], padding="circular").A(X)
    z = torch.zeros_like(X)
    exact = dinv.BlurFFT((1, *SHAPE), filter=KERNEL[None, None]).prox_l2(z, y, 100.0)
    assert relative(Blur(SHAPE, KERNEL).prox_l2(z, y, 100.0), exact) < 1e-12
    assert relative(dinv.Blur(filter=KERNEL[None, None], padding="circular").prox_l2(z, y, 100.0), exact) > 1e-7


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_downsampling_does_not_shift(factor: int) -> None:
    """A ramp in the unit square: the coarse pixels hold its value at their centres."""
    N = 48
    ramp = ((torch.arange(N, dtype=torch.float64) + 0.5) / N).expand(1, 1, N, N)
    centres = (torch.arange(N // factor, dtype=torch.float64) + 0.5) / (N // factor)
    inner = slice(3, N // factor - 3)
    for kernel in ("box", "bicubic"):
        found = Downsample((N, N), factor, kernel, boundary="reflect").A(ramp)[0, 0, N // factor // 2]
        torch.testing.assert_close(found[inner], centres[inner], rtol=0, atol=1e-12)
    other = dinv.Downsampling((1, N, N), filter="bicubic", factor=factor, padding="reflect").to(torch.float64)
    shift = (other.A(ramp)[0, 0, N // factor // 2] - centres)[inner] * N  # [fine pixels]
    assert shift.mean() == pytest.approx(1 - factor / 2, abs=1e-3)


def test_downsampling_says_why_the_size_is_wrong() -> None:
    other = dinv.Downsampling((1, 13, 12), filter="bicubic", factor=2)
    x = torch.rand(1, 1, 13, 12)
    with pytest.raises(RuntimeError, match="stack expects"):
        other.prox_l2(x, other.A(x), 1.0)
    with pytest.raises(ValueError, match=r"must be a multiple of the factor 2; crop it to \(12, 12\)"):
        Downsample((13, 12), 2)


def test_composition_keeps_what_the_parts_are() -> None:
    mask = random_mask(SHAPE, 0.5)
    inner, outer = Blur(SHAPE, KERNEL), Mask(mask, sigma=0.1)
    other, ours = dinv.ComposedLinearPhysics(inner, outer), outer * inner
    assert isinstance(ours, Composed) and torch.equal(ours.A(X), other.A(X))
    assert float(other(X * 0)[..., ~mask].abs().max()) > 0  # noise where nothing was measured
    assert float(ours(X * 0)[..., ~mask].abs().max()) == 0
    chosen = Blur(SHAPE, KERNEL, max_iter=33, tol=1e-7)
    assert (outer * chosen).max_iter == 100 and (outer * chosen).tol == 1e-7
    assert dinv.compose(chosen, outer, max_iter=33, tol=1e-7).max_iter == 50  # its arguments are dropped


def test_composition_is_as_cheap_as_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A^H A of a NUFFT is one convolution; deepinv's composition runs the transform forth and back instead."""
    inner, outer = Blur(SHAPE, KERNEL), NUFFT(SHAPE, uv_of(50))
    ours, other = outer * inner, dinv.ComposedLinearPhysics(inner, outer)
    expected = other.A_adjoint_A(X)
    ours.A_adjoint_A(X)  # computes the kernel of the convolution, once
    calls = []
    monkeypatch.setattr(NUFFT, "_forward", lambda self, x: calls.append(self))
    torch.testing.assert_close(ours.A_adjoint_A(X), expected)
    assert not calls


def test_stack_moves_and_saves() -> None:
    a, b = Blur(SHAPE, KERNEL), Mask(random_mask(SHAPE, 0.5))
    other, ours = dinv.StackedLinearPhysics([a, b]), a.stack(b)
    assert isinstance(ours, Stacked) and not other.state_dict()
    assert {"physics_list.0.kernel", "physics_list.1.mask"} <= ours.state_dict().keys()
    assert other.to("meta")[0].kernel.device.type == "cpu"
    assert a.stack(b).to("meta")[0].kernel.device.type == "meta"


def test_clone_does_not_search_the_whole_interpreter() -> None:
    rng = torch.Generator().manual_seed(3)
    op = Blur(SHAPE, KERNEL)
    op.noise_model = dinv.GaussianNoise(0.1, rng=rng)
    copy = op.clone()
    assert copy.noise_model.rng is not rng
    assert copy.kernel.data_ptr() != op.kernel.data_ptr()
    torch.testing.assert_close(copy(X), op(X))  # the generators stand at the same number


def test_checks_are_what_deepinv_lacks() -> None:
    assert bool(dinv.BlurFFT((1, *SHAPE), filter=KERNEL[None, None]).A(X * math.nan).isnan().all())
    with pytest.raises(ValueError, match="NaN or inf"):
        Blur(SHAPE, KERNEL).A(X * math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # and no warning where all is well
        fidelity = L2()
        fidelity.prox(X, Blur(SHAPE, KERNEL).A(X), Blur(SHAPE, KERNEL), gamma=0.7)
