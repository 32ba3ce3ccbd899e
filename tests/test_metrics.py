"""Figures of merit against values computed by hand."""

import math

import pytest
import torch

from pnp_lofi.metrics import log_snr, psnr, snr


def test_snr_and_psnr_by_hand():
    truth, x = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.5])
    assert snr(x, truth) == pytest.approx(20.0)  # 5 / 0.5
    assert psnr(x, truth) == pytest.approx(20 * math.log10(1 / (0.5 / 2**0.5)))


def test_log_snr_by_hand():
    """rlog with a = 9 and peak 2: 2 -> 2 log_9(10), 4/9 -> 2 log_9(3) = 1, 0 -> 0."""
    truth, x = torch.tensor([2.0, 4 / 9, 0.0]), torch.tensor([2.0, 0.0, -1.0])
    peak = 2 * math.log(10) / math.log(9)
    assert log_snr(x, truth, 9.0) == pytest.approx(20 * math.log10(math.hypot(peak, 1.0)), abs=1e-5)


def test_log_snr_sees_faint_emission_and_no_unit():
    truth = torch.tensor([1.0, 0.01])
    x = torch.tensor([1.0, 0.0])
    assert log_snr(x, truth, 1e3) < snr(x, truth) - 20
    assert log_snr(50 * x, 50 * truth, 1e3) == pytest.approx(log_snr(x, truth, 1e3))
    assert log_snr(truth, truth, 1e3) == math.inf


@pytest.mark.parametrize(("truth", "a"), [([1.0, 0.5], 1.0), ([1.0, 0.5], math.inf), ([0.0, 0.0], 10.0)])
def test_log_snr_says_what_it_needs(truth, a):
    with pytest.raises(ValueError, match="a finite a > 1 and a truth with a peak > 0"):
        log_snr(torch.tensor([1.0, 0.5]), torch.tensor(truth), a)
