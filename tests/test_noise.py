"""The noise level that nobody gave."""

import warnings

import pytest
import torch

from pnp_lofi import ADMM, LoFiPrior
from pnp_lofi.leaves import dead_leaves
from pnp_lofi.noise import estimate_image_noise
from pnp_lofi.operators import LowDose, Mask, random_mask
from pnp_lofi.radio_measurement import measurement
from pnp_lofi.radio_simulation import simulate
from pnp_lofi.skies import radio_sky


@pytest.mark.parametrize("snr", [20.0, pytest.param(30.0, marks=pytest.mark.slow)])
def test_visibilities(snr):
    sky = radio_sky(1, 96, seed=20_010)
    obs = simulate(sky[0, 0].numpy(), hours=1, snr=snr, integration=480.0)
    obs.absolute_weights, obs.weight = False, 5 * obs.weight  # relative weights: nothing tells the level
    op, y = measurement(obs, (96, 96))
    truth = float((y - op.A(sky)).abs().square().mean().sqrt()) / 2**0.5
    metrics = ADMM(op, LoFiPrior("radio"), nonneg=True, max_iter=12).solve(y).metrics
    assert metrics["sigma_n"] == pytest.approx(truth, rel=0.1)
    assert op.sigma is None


@pytest.mark.parametrize("keep", [0.3, 1.0])
@pytest.mark.parametrize("sigma", [0.05, 0.1])
def test_pixels(keep, sigma):
    x = dead_leaves(1, 512, seed=20_011)
    mask = random_mask((512, 512), keep)
    torch.manual_seed(0)
    y = Mask(mask, sigma=sigma)(x)
    found = Mask(mask).estimate_noise(y)
    assert 0.97 * sigma < found < (1.1 if sigma == 0.1 else 1.18) * sigma  # texture counts as noise


def test_white_noise_alone_and_few_pixels():
    x = 0.7 * torch.randn(1, 1, 300, 300, generator=torch.Generator().manual_seed(0))
    assert estimate_image_noise(x) == pytest.approx(0.7, rel=0.02)
    assert estimate_image_noise(x, random_mask((300, 300), 0.05)) == pytest.approx(0.7, rel=0.1)
    with pytest.raises(ValueError, match="pass sigma_n"):
        estimate_image_noise(x, random_mask((300, 300), 1e-5))


def test_photons_in_wrong_units_are_warned_of():
    """Line integrals in pixels with a mu per metre, say: everything is dark."""
    x = torch.linspace(0, 4, 1000)[None, None]
    noise = LowDose(4000, rng=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        noise(x)
        LowDose(30)(x)  # few photons alone are no error of units
    with pytest.warns(UserWarning, match=r"the detectors see no photon: of 4000 .* mu x is 200 on average") as seen:
        noise(100 * x)
    assert seen[0].filename == __file__
