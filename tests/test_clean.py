"""CLEAN against one that is written out, known fluxes, and the residual that its model leaves."""

import math

import numpy as np
import pytest
import torch

from pnp_lofi.clean import clean, hogbom
from pnp_lofi.operators import NUFFT, NormalEquations, default_cell, meerkat_uvw, uv_radians

SHAPE = (48, 60)
SOURCES = {(10, 12): 1.0, (30, 45): 0.5, (33, 20): 0.25}  # [Jy]


def operator(**options) -> NUFFT:
    uvw = meerkat_uvw(0.5)
    return NUFFT(SHAPE, uv_radians(uvw, 1.4e9, default_cell(uvw, 1.4e9)), **options)


def sky(dtype=torch.float64) -> torch.Tensor:
    x = torch.zeros(1, 1, *SHAPE, dtype=dtype)
    for place, flux in SOURCES.items():
        x[0, 0][place] = flux
    return x


def by_hand(dirty: np.ndarray, psf: np.ndarray, gain: float, iterations: int, mask: np.ndarray, nonneg: bool):
    """Hogbom 1974, pixel by pixel."""
    residual, model = dirty.copy(), np.zeros_like(dirty)
    H, W = dirty.shape
    for _ in range(iterations):
        seen = np.where(mask, residual if nonneg else np.abs(residual), -np.inf)
        r, c = np.unravel_index(np.argmax(seen), seen.shape)
        taken = gain * residual[r, c]
        model[r, c] += taken
        for i in range(H):
            for j in range(W):
                residual[i, j] -= taken * psf[i - r + psf.shape[0] // 2, j - c + psf.shape[1] // 2]
    return model, residual


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("masked", ["all", "box", "mask"])
def test_against_one_written_out(nonneg, masked):
    rng = np.random.default_rng(1)
    dirty, psf = rng.normal(size=(12, 15)), 0.3 * rng.normal(size=(25, 31))
    psf[12, 15] = 1
    mask = np.ones((12, 15), bool)
    given = None
    if masked == "box":
        mask[:] = False
        mask[2:9, 4:11] = True
        given = (2, 9, 4, 11)
    elif masked == "mask":
        mask = rng.uniform(size=(12, 15)) < 0.4
        given = torch.from_numpy(mask)
    model, residual = by_hand(dirty, psf, 0.2, 12, mask, nonneg)
    found = hogbom(torch.from_numpy(dirty), torch.from_numpy(psf), gain=0.2, max_iter=12, n_sigma=0, mask=given,
                   nonneg=nonneg)  # fmt: skip
    assert found.iterations == 12 and found.status == "limit" and found.noise is None
    torch.testing.assert_close(found.model, torch.from_numpy(model))
    torch.testing.assert_close(found.residual, torch.from_numpy(residual))
    assert not found.model[~torch.from_numpy(mask)].any()
    assert not nonneg or bool((found.model >= 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_known_fluxes_come_back_and_the_residual_is_the_models(dtype):
    op = operator()
    y = op.A(sky(dtype))
    found = clean(op, y, n_sigma=0, relative=1e-3, max_iter=2000)
    assert found.status == "relative" and found.peak <= found.threshold == pytest.approx(1e-3, rel=0.1)
    for (r, c), flux in SOURCES.items():
        assert float(found.model[r - 1 : r + 2, c - 1 : c + 2].sum()) == pytest.approx(flux, rel=0.01)
    expected = op.dirty(y - op.A(found.model[None, None]))[0, 0]
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]
    assert found.model.dtype == dtype
    torch.testing.assert_close(found.residual, expected, atol=tolerance, rtol=0)


def test_stops_at_the_noise():
    sigma = 0.02 / math.sqrt(SHAPE[0] * SHAPE[1])
    op = operator(sigma=sigma)
    torch.manual_seed(0)
    y = op(sky())
    found = clean(op, y, n_sigma=5)
    assert found.noise == op.dirty_noise() and found.threshold == 5 * found.noise
    assert found.status == "noise" and found.peak <= found.threshold
    assert float(found.residual.std()) == pytest.approx(found.noise, rel=0.2)
    assert "below the noise's threshold" in found.reason
    told = clean(op, y, n_sigma=5, noise=4 * found.noise)
    assert told.threshold == pytest.approx(4 * found.threshold) and told.iterations < found.iterations


def test_unknown_noise_is_estimated():
    op = operator()
    generator = torch.Generator().manual_seed(3)
    y = op.A(sky())
    level = 1e-3
    y = y + level * torch.complex(*torch.randn(2, *y.shape, generator=generator, dtype=torch.float64))
    found = clean(op, y, n_sigma=4)
    assert found.status == "noise"
    assert found.noise == pytest.approx(op.dirty_noise(level), rel=0.02)
    one = clean(op, y, n_sigma=4, noise=found.noise)  # in one go
    assert found.iterations == pytest.approx(one.iterations, rel=0.05)
    expected = op.dirty(y - op.A(found.model[None, None].to(y.real.dtype)))[0, 0]
    torch.testing.assert_close(found.residual, expected, atol=1e-9, rtol=0)
    assert clean(op, y, relative=0.1).status == "relative" and clean(op, y, max_iter=7).iterations == 7


def test_noise_beside_a_wide_source():
    """Where the dirty image's own spread would be the source's."""
    op = operator()
    r, c = torch.meshgrid(*(torch.arange(n) - n // 2 for n in SHAPE), indexing="ij")
    x = torch.exp(-((r / 6.0) ** 2 + (c / 8.0) ** 2)).double()[None, None]
    generator, level = torch.Generator().manual_seed(4), 0.02
    y = op.A(x) + level * torch.complex(*torch.randn(2, 1, 1, op.uv.shape[1], generator=generator, dtype=torch.float64))
    assert float(op.dirty(y).std()) > 500 * op.dirty_noise(level)
    found = clean(op, y)
    assert found.status == "noise" and found.noise == pytest.approx(op.dirty_noise(level), rel=0.2)
    wide = clean(op, y, spread=3.0)
    assert wide.noise > 2.9 * found.noise and wide.iterations < found.iterations


def test_normal_equations_give_the_same():
    op = operator()
    y = op.A(sky())
    equations = NormalEquations(SHAPE).add(op.uv, y[0, 0])
    streamed, b = equations.measurement(dtype=torch.float64)
    one, other = clean(op, y, max_iter=50, n_sigma=0), clean(streamed, b, max_iter=50, n_sigma=0)
    torch.testing.assert_close(one.model, other.model, atol=1e-9, rtol=0)


def test_nothing_to_do_and_divergence():
    op = operator()
    psf = op.psf((96, 120))
    empty = hogbom(torch.zeros(SHAPE), psf, noise=0.0)
    assert empty.status == "noise" and empty.iterations == 0 and not empty.model.any()
    negative = hogbom(-torch.ones(SHAPE), psf, noise=0.0, nonneg=True)
    assert negative.iterations == 0 and not negative.model.any()
    wrong = torch.zeros(96, 120)
    wrong[48:52, 60:64] = -3.0
    wrong[48, 60] = 1.0
    dirty = sky(torch.float32)[0, 0]
    found = hogbom(dirty, wrong, n_sigma=0, gain=0.5)
    assert found.status == "diverged" and found.iterations < 100 and "psf" in found.reason
    assert float(dirty.sum()) == 1.75  # what was given is left alone


PSF = torch.zeros(24, 24)
PSF[12, 12] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dirty": torch.zeros(1, 12, 12)}, r"dirty must be \(H, W\)"),
        ({"dirty": torch.full((12, 12), math.nan)}, "finite"),
        ({"psf": PSF[:23]}, r"at least \(24, 24\), got \(23, 24\)"),
        ({"psf": torch.zeros(24, 24)}, "peak of 1"),
        ({"gain": 0.0}, "0 < gain <= 1"),
        ({"relative": 1.0}, "relative < 1"),
        ({"n_sigma": math.nan}, "n_sigma >= 0"),
        ({"noise": -1.0}, "noise must be finite"),
        ({"noise": None}, "the noise is not known"),
        ({"mask": torch.ones(12, 12)}, "mask must be bool"),
        ({"mask": torch.zeros(12, 12, dtype=torch.bool)}, "the mask is empty"),
        ({"mask": (0, 13, 0, 5)}, "a box is"),
    ],
)
def test_bad_input(change, message):
    arguments = {"dirty": torch.zeros(12, 12), "psf": PSF, "noise": 1.0} | change
    with pytest.raises(ValueError, match=message):
        hogbom(arguments.pop("dirty"), arguments.pop("psf"), **arguments)


def test_a_batch_is_refused():
    op = operator()
    with pytest.raises(ValueError, match="clean takes one image"):
        clean(op, op.A(sky().expand(2, -1, -1, -1)))
