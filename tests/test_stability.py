"""The spectral norm of a denoiser's derivative, averaging, and the mean that nobody sees."""

import deepinv
import pytest
import torch
from deepinv.models import Denoiser

from pnp_lofi import ADMM, HQS, PGD, RED, LoFiPrior, SharedLoFi
from pnp_lofi.operators import KaiserSquires, Mask, random_mask
from pnp_lofi.priors import Averaged
from pnp_lofi.stability import lipschitz


def rand(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shared():
    """Of every part a shipped prior has, with random weights."""
    model = SharedLoFi(window=3, filters=6, features=4, points=3, spacing=2, hidden=(8, 8), patch=3,
                       stages=((3, 1, 6),))  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("which", ["LoFi", "SharedLoFi", "DnCNN"])
def test_is_that_of_the_dense_jacobian(tiny, which, residual):
    torch.manual_seed(0)
    prior = {
        "LoFi": LoFiPrior(tiny.double()),
        "SharedLoFi": LoFiPrior(shared()).double(),
        "DnCNN": deepinv.models.DnCNN(1, 1, depth=3, nf=4, pretrained=None).double(),
    }[which]
    x, sigma = rand(1, 1, 9, 11), 0.1
    dense = torch.autograd.functional.jacobian(lambda q: prior(q, sigma), x).reshape(99, 99)
    dense = torch.eye(99, dtype=torch.float64) - dense if residual else dense
    expected = float(torch.linalg.matrix_norm(dense, 2))
    assert lipschitz(prior, x, sigma, residual=residual, iterations=400) == pytest.approx(expected, rel=0.01)


def test_wrong_images_are_refused(tiny):
    with pytest.raises(ValueError, match="NaN"):
        lipschitz(LoFiPrior(tiny), torch.full((1, 1, 5, 5), float("nan")), 0.1)
    with pytest.raises(ValueError, match="derivative is NaN or inf"):
        lipschitz(lambda x, sigma: x * float("inf"), torch.ones(1, 1, 5, 5), 0.1)


class Push(Denoiser):
    """A linear denoiser whose derivative has eigenvalues in [-1.2, 1]: with it alone nothing has to converge."""

    def forward(self, x, sigma, **kwargs):
        return x - 2.2 * (x - x.roll(1, -1) + (x - x.roll(-1, -1))) / 4


def test_averaging_settles_what_swings():
    op = Mask(random_mask((16, 16), 0.5), sigma=0.1)
    y = op.A(rand(1, 1, 16, 16))
    swing, x = Push(), rand(1, 1, 16, 16, seed=1)
    r = lipschitz(swing, x, 0.1, residual=True, iterations=2000)
    assert r == pytest.approx(2.2, rel=0.01)
    steady = ADMM(op, Averaged(swing, 1 / r), max_iter=1000, tol=1e-9).solve(y)
    assert steady.status == "converged"
    assert lipschitz(Averaged(swing, 1 / r), x, 0.1) <= 1 + 1e-6
    assert ADMM(op, swing, max_iter=1000, tol=1e-9).solve(y).status != "converged"


def test_averaged_is_part_of_the_way(tiny):
    x, prior = rand(2, 1, 8, 8).float(), LoFiPrior(tiny)
    torch.testing.assert_close(Averaged(prior, 0.3)(x, 0.1), 0.7 * x + 0.3 * prior(x, 0.1))
    assert Averaged(LoFiPrior("natural")).header["sigma_range"] == [1e-4, 0.5]
    with pytest.raises(ValueError, match=r"theta must lie in \(0, 1\]"):
        Averaged(prior, 1.5)
    with pytest.raises(TypeError, match="use LoFiPrior"):
        Averaged("natural")


@pytest.mark.parametrize("solver", [ADMM, HQS, PGD, RED])
def test_the_mean_of_kappa_does_not_drift(solver):
    """No datum and not the prior tells it, so the answer is that of mean zero."""
    shape = (24, 20)
    op = KaiserSquires(shape, random_mask(shape, 0.8), sigma=0.05)
    kappa = rand(1, 1, *shape).float()
    found = solver(op, LoFiPrior("natural"), max_iter=10, tol=0)(op(kappa))
    assert abs(float(found.mean())) < 1e-6 * float(found.abs().max())
