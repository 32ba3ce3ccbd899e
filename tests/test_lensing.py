"""Mass mapping: the shear of known lenses, the classical inversions, catalogues, spectra, and real COSMOS data."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pnp_lofi import ADMM
from pnp_lofi.lensing import (
    ShearMaps,
    grid_catalogue,
    grid_shear,
    invert_reduced,
    reduced_shear,
    rotated_catalogue,
    rotated_shear,
    tangent_plane,
)
from pnp_lofi.lensing_power import (
    ARCMIN,
    draw_field,
    fit_power,
    fourier_filter,
    frequency,
    power_grid,
    power_spectrum,
    smooth,
)
from pnp_lofi.lensing_statistics import _chi2, b_mode_test, find_peaks, peak_counts
from pnp_lofi.operators import KaiserSquires, random_mask
from pnp_lofi.operators.base import ConvergenceWarning


def pixels(n: int) -> tuple[Tensor, Tensor]:
    """Rows (up) and columns (right) from the pixel n // 2."""
    at = torch.arange(n, dtype=torch.float64) - n // 2
    return at[:, None], at[None, :]


def tangential(gamma: Tensor) -> tuple[Tensor, Tensor]:
    """gamma_t and gamma_x about the pixel n // 2 of (1, 2, n, n)."""
    row, column = pixels(gamma.shape[-1])
    turned = -torch.complex(gamma[0, 0], gamma[0, 1]) * torch.exp(-2j * torch.atan2(row, column))
    return turned.real, turned.imag


def pearson(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def red(shape: tuple[int, int], level: float = 1e-3) -> Tensor:
    """A power that falls as f^-2, S = level at 0.1 cycles a pixel."""
    f = frequency(shape)
    return torch.where(f > 0, level * (0.1 / f.clamp_min(1e-9)) ** 2, 0)


# ---- the physics -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "q"), [(0, 3), (2, 0), (3, 4), (-2, 5), (7, 7)])
def test_shear_of_a_plane_wave(p: int, q: int) -> None:
    H, W = 24, 35
    k2, k1 = 2 * math.pi * p / H, 2 * math.pi * q / W
    phase = k2 * torch.arange(H, dtype=torch.float64)[:, None] + k1 * torch.arange(W, dtype=torch.float64) + 0.3
    angle = 2 * math.atan2(k2, k1)
    kappa = torch.cos(phase)
    expected = torch.stack([kappa * math.cos(angle), kappa * math.sin(angle)])[None]
    torch.testing.assert_close(KaiserSquires((H, W)).A(kappa[None, None]), expected, atol=1e-12, rtol=0)


def test_shear_of_a_gaussian_lens() -> None:
    """gamma_t = mean kappa inside r - kappa(r), gamma_x = 0; 4e-4 is what the periodic images do."""
    n, s = 256, 6.0
    row, column = pixels(n)
    r2 = row**2 + column**2
    kappa = torch.exp(-r2 / (2 * s**2))
    inside = 2 * s**2 / r2.clamp_min(1e-9) * (1 - kappa)
    gt, gx = tangential(KaiserSquires((n, n)).A(kappa[None, None]))
    ring = (r2 > 4) & (r2 < 40**2)
    assert float((gt - (inside - kappa))[ring].abs().max()) < 1e-3 and float(gx[ring].abs().max()) < 1e-3
    assert float(gt[ring].max()) > 0.2


def test_shear_of_an_isothermal_sphere() -> None:
    """kappa = theta_E / (2 sqrt(r^2 + a^2)), of which sqrt(r^2 + a^2) - a over r^2 is the mean inside r."""
    n, core = 384, 2.0
    row, column = pixels(n)
    r = torch.hypot(row, column)
    soft = torch.hypot(r, torch.tensor(core))
    kappa = 0.5 / soft
    gt, gx = tangential(KaiserSquires((n, n)).A(kappa[None, None]))
    for radius in (10, 20, 30):
        ring = (r > radius - 1) & (r < radius + 1)
        expected = float(((soft - core) / r**2 - kappa)[ring].mean())
        assert float(gt[ring].mean()) == pytest.approx(expected, rel=0.02) and abs(float(gx[ring].mean())) < 1e-6


@pytest.mark.parametrize("shape", [(16, 16), (15, 22)])
def test_kaiser_squires_undoes_the_shear_but_for_the_mean(shape: tuple[int, int]) -> None:
    op, x = KaiserSquires(shape), torch.randn(2, 1, *shape, dtype=torch.float64) + 3
    without = x - x.mean((-2, -1), keepdim=True)
    for found in (op.ks(op.A(x)), op.A_dagger(op.A(x))):
        torch.testing.assert_close(found, without)
    assert float(op.A(torch.full_like(x, 5.0)).abs().max()) < 1e-12
    e, b = op.eb(op.A(x)[:, [1, 0]] * torch.tensor([-1.0, 1.0])[:, None, None])  # turned by 45 degrees: E becomes B
    odd = [n - n % 2 for n in shape]  # the Nyquist frequencies of a real map have no partner to turn into
    keep = (frequency(shape) > 0).double()
    keep[odd[0] // 2 if shape[0] % 2 == 0 else slice(0, 0)] = 0
    keep[:, odd[1] // 2 if shape[1] % 2 == 0 else slice(0, 0)] = 0
    assert float(fourier_filter(e, keep).abs().max()) < 1e-12
    torch.testing.assert_close(fourier_filter(b, keep), fourier_filter(without, keep))


def test_a_constant_map_of_noise_is_a_number() -> None:
    mask, x = random_mask((6, 7), 0.6), torch.rand(1, 1, 6, 7)
    for where in (None, mask):
        number, constant = KaiserSquires((6, 7), where, 0.3), KaiserSquires((6, 7), where, torch.full((2, 6, 7), 0.3))
        assert number.sigma == pytest.approx(constant.sigma) and number.closed_form == constant.closed_form
        torch.testing.assert_close(number.A(x), constant.A(x))
    assert KaiserSquires((6, 7), torch.ones(6, 7), 0.3).closed_form


def test_noise_map_is_the_noise_of_the_shear() -> None:
    mask = random_mask((6, 7), 0.7)
    sigma = torch.where(mask, 0.1 + torch.rand(2, 6, 7), math.nan)
    op = KaiserSquires((6, 7), mask, sigma)
    torch.manual_seed(0)
    y = op(torch.zeros(4000, 1, 6, 7))
    assert float(y[:, :, mask].std()) == pytest.approx(op.sigma, rel=0.01)
    torch.testing.assert_close(op.shear(y).std(0)[:, mask], sigma[:, mask], rtol=0.08, atol=0)
    torch.testing.assert_close(op.whiten(op.shear(y)), y)
    shear = op.shear(y[:1])
    torch.testing.assert_close(op.whiten(torch.where(mask, shear, math.nan)), op.whiten(shear))
    torch.testing.assert_close(op.ks(torch.where(mask, y, math.nan)), op.ks(y))
    assert float(op.weights[mask.expand(2, -1, -1)].mean()) == pytest.approx(1)


def test_the_box_holds_the_mass_around_the_field() -> None:
    row, column = pixels(64)
    kappa = torch.exp(-((row - 10) ** 2 + (column + 4) ** 2) / 18)[None, None]
    whole, op = KaiserSquires((64, 64)), KaiserSquires((40, 48), pad=(12, 8))
    assert op.box == (64, 64)
    y = op.A(kappa)
    torch.testing.assert_close(y, whole.A(kappa)[..., 12:52, 8:56])
    seen = torch.zeros(64, 64)
    seen[12:52, 8:56] = 1
    masked = KaiserSquires((64, 64), seen)
    torch.testing.assert_close(op.A_adjoint(y), masked.A_adjoint(masked.A(kappa)))
    torch.testing.assert_close(op.crop(kappa), kappa[..., 12:52, 8:56])
    assert op.ks(y).shape == kappa.shape


# ---- the Wiener filter -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["periodic", "masked", "weighted", "padded"])
def test_wiener_is_the_gaussian_posterior_mean(case: str) -> None:
    shape, mask = (6, 7), random_mask((6, 7), 0.6)
    sigma = 0.1 + torch.rand(2, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    op = {
        "periodic": lambda: KaiserSquires(shape, sigma=0.2),
        "masked": lambda: KaiserSquires(shape, mask, 0.2),
        "weighted": lambda: KaiserSquires(shape, mask, sigma),
        "padded": lambda: KaiserSquires(shape, sigma=0.2, pad=2),
    }[case]()
    n, S = op.box[0] * op.box[1], red(op.box, 0.05)
    unit = torch.eye(n, dtype=torch.float64).reshape(n, 1, *op.box)
    A, prior = op.A(unit).flatten(1).T, fourier_filter(unit, S).flatten(1)
    y = op(torch.randn(2, 1, *op.box, dtype=torch.float64))
    gain = prior @ A.T @ torch.linalg.pinv(A @ prior @ A.T + op.sigma**2 * torch.eye(len(A), dtype=torch.float64))
    expected = (y.flatten(1) @ gain.T).reshape(2, 1, *op.box)
    assert relative(op.wiener(y, S, tol=1e-12, max_iter=300), expected) < 1e-9
    assert relative(op.wiener(y.float(), S), expected.float()) < 1e-3
    small = y[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: op.wiener(v, S, tol=1e-13, max_iter=300), small, fast_mode=True)


def test_samples_of_the_posterior() -> None:
    shape = (8, 8)
    mask = torch.ones(shape)
    mask[2:6, 2:5] = 0
    op, S = KaiserSquires(shape, mask, 0.1), red(shape, 0.02)
    torch.manual_seed(0)
    y = op(draw_field(S, seed=1))
    fields = draw_field(S, 4000, seed=2)
    samples = fields + op.wiener(y - op(fields), S)
    unit = torch.eye(64, dtype=torch.float64).reshape(64, 1, 8, 8)
    A, prior = op.A(unit).flatten(1).T, fourier_filter(unit, S).flatten(1)
    gain = prior @ A.T @ torch.linalg.inv(A @ prior @ A.T + 0.01 * torch.eye(128, dtype=torch.float64))
    expected = (prior - gain @ A @ prior).diagonal().sqrt().reshape(8, 8)
    torch.testing.assert_close(samples.std(0)[0], expected, rtol=0.06, atol=0)
    assert relative(samples.mean(0, keepdim=True), op.wiener(y, S)) < 0.05


def test_wiener_with_the_power_of_the_data() -> None:
    shape = (128, 128)
    mask = torch.ones(shape)
    mask[30:50, 20:90] = 0
    op = KaiserSquires(shape, mask, 0.1 + 0.1 * torch.rand(shape, generator=torch.Generator().manual_seed(0)))
    S = red(shape, 5e-3)
    kappa = draw_field(S, seed=4).float()
    torch.manual_seed(1)
    y = op(kappa)
    best, found = pearson(op.wiener(y, S), kappa), pearson(op.wiener(y), kappa)
    assert best > 0.6 and found > best - 0.01
    assert found > pearson(op.ks(y), kappa) + 0.2
    noise = op(torch.zeros_like(kappa))
    assert float(op.wiener(noise).std()) < 0.1 * float(op.wiener(y).std())  # no power is found where there is none


def test_wiener_warns_when_it_stops_early() -> None:
    op = KaiserSquires((16, 16), random_mask((16, 16), 0.5), 0.01)
    with pytest.warns(ConvergenceWarning, match="KaiserSquires: conjugate gradients stopped after 2 of 2 steps"):
        op.wiener(op(torch.rand(1, 1, 16, 16)), red((16, 16)), max_iter=2)


class Soft(torch.nn.Module):
    """A denoiser of a few lines: what is finer than its level allows is smoothed away."""

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        S = red(tuple(x.shape[-2:]), 0.02).to(x)
        return fourier_filter(x, S / (S + sigma**2))


@pytest.mark.parametrize("noise", ["number", "map", "unknown"])
def test_admm_untuned(noise: str) -> None:
    shape = (64, 64)
    mask = random_mask(shape, 0.7)
    kappa = draw_field(red(shape, 0.02), seed=2).float()
    sigma = torch.where(mask, 0.05 + 0.2 * torch.rand(shape, generator=torch.Generator().manual_seed(3)), 0)
    op = KaiserSquires(shape, mask, sigma if noise == "map" else 0.15)
    torch.manual_seed(0)
    y = op(kappa)
    asked = KaiserSquires(shape, mask) if noise == "unknown" else op
    solution = ADMM(asked, Soft(), progress=False).solve(y)
    assert solution.metrics["sigma_n"] == pytest.approx(op.sigma, rel=0.1)
    assert pearson(solution.x, kappa) > pearson(op.ks(y), kappa) + 0.1


# ---- reduced shear ---------------------------------------------------------------------------------------


def test_reduced_shear_round_trip() -> None:
    kappa = 0.4 * torch.exp(-(pixels(64)[0] ** 2 + pixels(64)[1] ** 2) / 50)[None, None]
    op = KaiserSquires((64, 64))
    g = reduced_shear(op.A(kappa), kappa)
    torch.testing.assert_close(g * (1 - kappa), op.A(kappa))
    mean = float(kappa.mean())
    assert relative(op.ks(g) + mean, kappa) > 0.05
    assert relative(invert_reduced(op, g, mean=mean, tol=1e-9, max_iter=60), kappa) < 1e-6
    sheet = invert_reduced(op, g, tol=1e-9, max_iter=60)  # mean 0: another member of the family, of the same g
    scale = (1 - sheet) / (1 - kappa)
    torch.testing.assert_close(scale, scale.mean().expand_as(scale))
    with pytest.warns(ConvergenceWarning, match="last of 2 steps"):
        invert_reduced(op, g, max_iter=2)


def test_reduced_shear_through_the_wiener_filter() -> None:
    row, column = pixels(64)
    kappa = (0.5 * torch.exp(-(row**2 + column**2) / 40))[None, None]
    op = KaiserSquires((48, 48), random_mask((48, 48), 0.9), 0.02, pad=8)
    torch.manual_seed(0)
    y = op(kappa)
    S = red(op.box, 0.02)
    wanted = op.wiener(y, S)
    observed = y / (1 - op.crop(kappa))
    found = invert_reduced(op, observed, lambda v: op.wiener(v, S), tol=1e-4)
    assert relative(found, wanted) < 0.3 * relative(op.wiener(observed, S), wanted)


# ---- catalogues ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [(150.1, 2.2), (0.0, 70.0), (10.0, -45.0), (200.0, 89.5)])
def test_tangent_plane_is_that_of_fits(centre: tuple[float, float]) -> None:
    wcs = pytest.importorskip("astropy.wcs")
    rng = np.random.default_rng(0)
    ra, dec = centre[0] + rng.uniform(-2, 2, 50), np.minimum(centre[1] + rng.uniform(-2, 2, 50), 89.9)
    tan = wcs.WCS(naxis=2)
    tan.wcs.ctype, tan.wcs.crval, tan.wcs.crpix, tan.wcs.cdelt = ["RA---TAN", "DEC--TAN"], centre, [0, 0], [1 / 60] * 2
    x, y, turn = tangent_plane(ra, dec, centre)
    np.testing.assert_allclose(np.stack([x, y]), tan.wcs_world2pix(ra, dec, 0) + np.ones((2, 1)), atol=1e-8)
    north = tangent_plane(ra, dec + 1e-5, centre)
    np.testing.assert_allclose(turn, np.arctan2(north.x - x, north.y - y), atol=1e-5)


def lens_catalogue(centre: tuple[float, float], positive_e2: str, n: int = 4000) -> dict[str, np.ndarray]:
    """Galaxies elongated tangentially about the centre, |e| = 0.2 exp(-r / 5 arcmin); angles by spherical trigonometry.

    The position angle of a galaxy (from North to East) is that of the great circle to the centre, plus 90 degrees.
    """
    rng = np.random.default_rng(1)
    r, bearing = np.radians(np.sqrt(rng.uniform(0.01, 15**2, n)) / 60), rng.uniform(0, 2 * np.pi, n)
    a0, d0 = np.radians(centre)
    d = np.arcsin(np.sin(d0) * np.cos(r) + np.cos(d0) * np.sin(r) * np.cos(bearing))
    a = a0 + np.arctan2(np.sin(bearing) * np.sin(r) * np.cos(d0), np.cos(r) - np.sin(d0) * np.sin(d))
    back = np.arctan2(np.sin(a0 - a) * np.cos(d0), np.cos(d) * np.sin(d0) - np.sin(d) * np.cos(d0) * np.cos(a0 - a))
    angle = back + np.pi / 2
    size = 0.2 * np.exp(-np.degrees(r) * 60 / 5)
    # along North e1 < 0, for it is across the columns' axis; towards NE the angle is 45 degrees
    e1, e2 = -size * np.cos(2 * angle), size * np.sin(2 * angle)
    return {"ra": np.degrees(a) % 360, "dec": np.degrees(d), "e1": e1, "e2": e2 if positive_e2 == "NE" else -e2}


@pytest.mark.parametrize("east", ["left", "right"])
@pytest.mark.parametrize("positive_e2", ["NW", "NE"])
@pytest.mark.parametrize("centre", [(150.0, 2.0), (0.0, 85.0), (359.99, -60.0)])
def test_a_lens_is_an_e_mode(east: str, positive_e2: str, centre: tuple[float, float]) -> None:
    table = lens_catalogue(centre, positive_e2)
    maps = grid_catalogue(**table, shape=(32, 32), pixel=1.0, centre=centre, east=east, positive_e2=positive_e2)
    op = KaiserSquires(maps.shape, maps.mask)
    e, b = (smooth(part, 1.5)[0, 0] for part in op.eb(op.whiten(maps.gamma)))
    assert float(e[15:17, 15:17].min()) > 0.1 and float(e.max()) > 8 * float(b.abs().max())
    other = "NE" if positive_e2 == "NW" else "NW"
    wrong = grid_catalogue(**table, shape=(32, 32), pixel=1.0, centre=centre, east=east, positive_e2=other)
    assert float(smooth(op.ks(op.whiten(wrong.gamma)), 1.5)[0, 0, 15:17, 15:17].max()) < 0.05
    where = lens_catalogue(centre, positive_e2, 200)
    moved = grid_catalogue(**where, shape=(32, 32), pixel=1.0, centre=(centre[0], centre[1] - 4 / 60), east=east)
    assert float((moved.count.sum(1) * torch.arange(32)).sum() / moved.count.sum()) > 18  # North is up


def test_east_is_left() -> None:
    table = {"ra": [150.05], "dec": [2.0], "e1": [0.1], "e2": [0.2]}
    for east, column, sign in (("left", 1, 1), ("right", 4, -1)):
        maps = grid_catalogue(**table, shape=(3, 6), pixel=2.0, centre=(150, 2), east=east, sigma_e=0.3)
        assert maps.mask.nonzero().tolist() == [[1, column]]
        torch.testing.assert_close(maps.gamma[0, :, 1, column], torch.tensor([0.1, sign * 0.2]), atol=1e-4, rtol=0)


def test_gridding_is_a_weighted_mean() -> None:
    rng = np.random.default_rng(2)
    x, y, w = rng.uniform(-4, 4, 200), rng.uniform(-3, 3, 200), rng.uniform(0.1, 2, 200)
    e1, e2 = rng.normal(size=(2, 200)) * 0.3
    w[5], e1[7], x[9], w[11], x[13] = 0, np.nan, np.nan, np.inf, 100
    maps = grid_shear(x, y, e1, e2, w, shape=(5, 8), pixel=1.0, sigma_e=0.25)
    good = [i for i in range(200) if i not in (5, 7, 9, 11, 13) and abs(y[i]) < 2.5]
    assert (maps.used, maps.invalid, maps.unweighted) == (len(good), 3, 1)
    assert maps.used + maps.outside + maps.invalid + maps.unweighted == 200
    for row in range(5):
        for column in range(8):
            here = [i for i in good if int(x[i] + 4) == column and int(y[i] + 2.5) == row]
            assert int(maps.count[row, column]) == len(here) and bool(maps.mask[row, column]) == bool(here)
            if here:
                weights = w[here] / w[here].sum()
                expected = [(weights * e[here]).sum() for e in (e1, e2)]
                np.testing.assert_allclose(maps.gamma[0, :, row, column], expected, rtol=1e-5, atol=1e-7)
                noise = 0.25 * np.sqrt((weights**2).sum())
                np.testing.assert_allclose(maps.sigma[:, row, column], [noise] * 2, rtol=1e-5)


def test_a_draw_is_judged_by_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    draws, data = (torch.randn(n, 3, dtype=torch.float64, generator=generator) for n in (12, 1))
    found, others = _chi2(data, draws)

    def distance(x: Tensor, sample: Tensor) -> Tensor:
        d, n = x - sample.mean(0), len(sample)
        return d @ torch.linalg.inv(sample.mT.cov()) @ d * (n - 5) / (n - 1)

    assert float(found) == pytest.approx(float(distance(data[0], draws)))
    rest = [distance(draws[i], torch.cat([draws[:i], draws[i + 1 :]])) for i in range(12)]
    torch.testing.assert_close(others, torch.stack(rest))


def test_a_table_may_have_masked_rows() -> None:
    e1 = np.ma.masked_array([0.1, 0.2, 9.0], [False, False, True])
    maps = grid_shear([0.0] * 3, torch.zeros(3), e1, [0.0] * 3, shape=(1, 1), pixel=1.0, sigma_e=0.3)
    assert (maps.used, maps.invalid) == (2, 1) and float(maps.gamma[0, 0, 0, 0]) == pytest.approx(0.15)


def test_noise_of_a_catalogue_is_measured() -> None:
    """Of galaxies whose noise depends on their weight: sqrt(sum w^2 sigma^2) / sum w in each pixel on average."""
    rng = np.random.default_rng(3)
    n = 200_000
    w = rng.choice([1.0, 4.0], n)
    e1, e2 = rng.normal(size=(2, n)) * 0.3 / np.sqrt(w)
    maps = grid_shear(rng.uniform(-50, 50, n), rng.uniform(-50, 50, n), e1, e2, w, shape=(100, 100), pixel=1.0)
    whitened = maps.gamma[0] / maps.sigma
    assert float(whitened.std()) == pytest.approx(1, rel=0.01)
    assert maps.used == n and isinstance(maps, ShearMaps)


def test_the_middle_of_a_catalogue_is_one_direction() -> None:
    """Beside a pole and across RA 0, where the medians of RA and Dec lie elsewhere: 12 pixels off at Dec 89.7."""
    rng = np.random.default_rng(0)
    r, t = 0.35 * np.sqrt(rng.random(20_000)), 2 * np.pi * rng.random(20_000)  # a disc [deg]
    x, y, zero = r * np.cos(t), r * np.sin(t), np.zeros(20_000)
    dec = 90 - np.hypot(x, 0.3 - y)
    ra = np.degrees(np.arctan2(x, 0.3 - y)) % 360  # around RA 0, Dec 89.7
    maps = grid_catalogue(ra, dec, zero, zero, shape=(64, 64), pixel=0.66, sigma_e=0.3)
    rows, columns = np.nonzero(maps.mask.numpy())
    assert rows.mean() == pytest.approx(31.5, abs=0.5) and columns.mean() == pytest.approx(31.5, abs=0.5)
    assert maps.outside < 100


def galaxies(n: int, seed: int) -> dict[str, np.ndarray]:
    """Of a square degree; faint ones, of low weight, are rounder."""
    rng = np.random.default_rng(seed)
    w = rng.choice([0.2, 1.0], n)
    e1, e2 = rng.normal(size=(2, n)) * np.where(w == 1, 0.4, 0.1)
    x, y = rng.uniform(-30, 30, (2, n))
    return {"x": x, "y": y, "e1": e1, "e2": e2, "weight": w}


def test_rotated_galaxies_are_the_noise() -> None:
    """Of each pixel: variance sum w^2 |e|^2 / 2 / (sum w)^2, no mean; the same for a catalogue's plane."""
    table = galaxies(3000, 0) | {"weight": np.where(np.arange(3000) % 10, galaxies(3000, 0)["weight"], 0)}
    table["e1"][5] = np.nan
    grid = {"shape": (8, 10), "pixel": 6.0}
    maps = grid_shear(**table, **grid)
    found = rotated_shear(**table, **grid, count=500, seed=1)
    assert found.shape == (500, 2, 8, 10) and found.dtype == torch.float32
    good = (table["weight"] > 0) & ~np.isnan(table["e1"])
    column, row = (np.floor(table[a][good] / 6 + n / 2).astype(int) for a, n in (("x", 10), ("y", 8)))
    w, size = table["weight"][good], np.hypot(table["e1"], table["e2"])[good]
    expected = np.zeros((8, 10))
    inside = (row >= 0) & (row < 8) & (column >= 0) & (column < 10)
    np.add.at(expected, (row[inside], column[inside]), (w * size)[inside] ** 2 / 2)
    total = np.zeros((8, 10))
    np.add.at(total, (row[inside], column[inside]), w[inside])
    expected /= total**2
    assert float(found.var(0).sum() / expected.sum() / 2) == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(found.var(0)[0], expected, rtol=0.3)
    assert float((found.mean(0).abs() / torch.from_numpy(expected**0.5)).max()) < 5 / 500**0.5 and bool(maps.mask.all())
    torch.testing.assert_close(found, rotated_shear(**table, **grid, count=500, seed=1), rtol=0, atol=0)
    assert not torch.equal(found[0], found[1])
    sky = {"ra": 200 + table["x"] / 60, "dec": table["y"] / 60} | {k: table[k] for k in ("e1", "e2", "weight")}
    for east in ("left", "right"):
        maps = grid_catalogue(**sky, **grid, centre=(200, 0), east=east)
        flat = rotated_catalogue(**sky, **grid, centre=(200, 0), east=east, count=20)
        assert torch.equal((flat != 0).all(0).all(0), maps.mask)
        turned = flat if east == "right" else flat.flip(-1)
        assert float((turned.std(0)[0] / torch.from_numpy(expected**0.5)).mean()) == pytest.approx(1, abs=0.06)


def test_units_are_warned_of() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-30, 30, (2, 500))  # [arcmin]
    e = {"e1": 0.1 * rng.normal(size=500), "e2": 0.1 * rng.normal(size=500)}
    ra, dec = 150 + x / 60, 2 + y / 60
    grid = {"shape": (100, 100), "pixel": 0.6}
    radians = {"ra": np.radians(ra), "dec": np.radians(dec)}
    with pytest.warns(UserWarning, match=r"look like radians .* pass numpy.degrees\(ra\)") as seen:
        grid_catalogue(**radians, **e, **grid)
    with pytest.warns(UserWarning, match="look like radians"):
        grid_catalogue(**radians, **e, **grid, centre=tuple(np.radians([150, 2])))
    assert seen[0].filename == __file__ and len(seen) == 1
    with pytest.warns(UserWarning, match=r"0.04 % of the grid .* of 36 arcmin: pass pixel in arcmin \(arcsec / 60\)"):
        grid_catalogue(ra, dec, **e, shape=(100, 100), pixel=36.0)
    with pytest.warns(UserWarning, match="and x and y in arcmin"):
        grid_shear(x / 60, y / 60, **e, **grid)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grid_catalogue(ra, dec, **e, **grid)
        grid_catalogue(ra - 150, dec - 2, **e, **grid, centre=(0, 0))
        grid_shear(x, y, **e, **grid)


# ---- spectra ---------------------------------------------------------------------------------------------


def test_power_of_white_noise() -> None:
    """C_ell = sigma^2 times the pixel's area."""
    x = 0.3 * torch.randn(8, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    found = power_spectrum(x, 2.0, 6)
    expected = 0.09 * (2 * ARCMIN) ** 2
    spread = expected * (2 / (8 * found.modes)).sqrt()  # half of the modes are independent
    assert float(((found.power.mean((0, 1)) - expected) / spread).abs().max()) < 3
    assert float(found.edges[0]) == pytest.approx(2 * math.pi / (96 * 2 * ARCMIN))
    assert int(found.modes.sum()) < 64 * 96 and bool((found.ell.diff() > 0).all())
    masked = power_spectrum(x, 2.0, 6, mask=random_mask((64, 96), 0.5))
    assert float(((masked.power.mean((0, 1)) - expected) / spread).abs().max()) < 3
    one = power_spectrum(x, 2.0, torch.tensor([200.0, 4000.0]), other=-x)
    assert one.power.shape == (8, 1, 1) and float(one.power.max()) < 0


def test_power_of_a_field_of_known_spectrum() -> None:
    shape, pixel = (128, 160), 0.5
    ell = torch.logspace(1.5, 5, 60, dtype=torch.float64)
    table = 1e-9 * (1000 / ell) ** 1.7
    S = power_grid(shape, pixel, ell, table)
    assert float(S[0, 0]) == 0 and float(S[3, 5]) == pytest.approx(
        1e-9 * (1000 / (2 * math.pi * math.hypot(3 / 128, 5 / 160) / (pixel * ARCMIN))) ** 1.7 / (pixel * ARCMIN) ** 2
    )
    fields = draw_field(S, 60, seed=1)
    found = power_spectrum(fields, pixel, 8)
    truth = power_spectrum(torch.fft.ifft2((S * S.numel()).sqrt()).real[None, None], pixel, 8).power[0, 0]
    torch.testing.assert_close(found.power.mean((0, 1)), truth, rtol=0.1, atol=0)
    # variance is the integral over the modes
    assert float(fields.square().mean()) == pytest.approx(float(S.mean()), rel=0.1)


def test_fitted_power() -> None:
    shape = (96, 96)
    f, S = frequency(shape), red(shape)
    fields = draw_field(S, 20, seed=2)[:, 0]
    for level in (1e-4, 1e-3):
        noise = level**0.5 * torch.randn(2, *fields.shape, generator=torch.Generator().manual_seed(5)).double()
        found = fit_power(torch.complex(0.5**0.5 * fields + noise[0], noise[1]), signal=0.5)
        strong = (f > 0.02) & (level < S)
        assert float((found / S)[strong].log().abs().max()) < 0.2


def test_smoothing_is_a_gaussian() -> None:
    x = torch.zeros(1, 1, 41, 50, dtype=torch.float64)
    x[..., 20, 25] = 1
    row, column = torch.arange(41.0)[:, None] - 20, torch.arange(50.0)[None] - 25
    expected = torch.exp(-(row**2 + column**2) / 18) / (18 * math.pi)
    torch.testing.assert_close(smooth(x, 3.0)[0, 0], expected.double(), atol=1e-7, rtol=0)
    mask = random_mask((41, 50), 0.5)
    torch.testing.assert_close(smooth(torch.ones_like(x), 2.0, mask)[0, 0], mask.double())
    torch.testing.assert_close(smooth(x, 0.0), x)


# ---- peaks and the B mode --------------------------------------------------------------------------------


def test_peaks() -> None:
    x = torch.zeros(2, 1, 9, 9)
    x[0, 0, 2, 3], x[0, 0, 5, 5], x[0, 0, 5, 6], x[1, 0, 4, 4], x[1, 0, 0, 0] = 1.0, 2.0, 1.5, 3.0, 9.0
    found = find_peaks(x, 0.5)
    assert found.place.tolist() == [[1, 4, 4], [0, 5, 5], [0, 2, 3]] and found.height.tolist() == [3.0, 2.0, 1.0]
    edges = torch.tensor([0.5, 2.0, 2.5, 4.0])
    assert peak_counts(x, edges).tolist() == [[1, 1, 0], [0, 0, 1]]
    mask = torch.ones(9, 9)
    mask[4:6] = 0
    assert peak_counts(x, edges, mask).tolist() == [[1, 0, 0], [0, 0, 0]]


def test_b_mode_null_test() -> None:
    shape = (48, 48)
    mask = torch.ones(shape)
    mask[10:20, 15:30] = 0
    op = KaiserSquires(shape, mask, 0.1 + 0.1 * torch.rand(shape, generator=torch.Generator().manual_seed(0)))
    chance = []
    for seed in range(20):
        torch.manual_seed(seed)
        found = b_mode_test(op, op(torch.zeros(1, 1, *shape)), pixel=1.0, bins=5, realisations=100, seed=seed + 50)
        chance.append(found.pte)
        assert found.amplitude == pytest.approx(1, abs=0.15)
    assert 0.3 < np.mean(chance) < 0.7
    wrong = op.whiten(op.shear(op(draw_field(red(shape, 0.05), seed=1)))[:, [1, 0]])
    assert b_mode_test(op, wrong, pixel=1.0, bins=5, realisations=100).pte == pytest.approx(1 / 101)


def test_b_mode_null_test_with_the_noise_of_the_galaxies() -> None:
    """Where bright galaxies are the less round ones, a formula with weight 1 for sigma_e is wrong; the galaxies are
    not."""
    shape = (48, 48)
    grid = {"shape": shape, "pixel": 1.25}
    formula, rotated = [], []
    for seed in range(10):
        table = galaxies(20_000, seed)
        rms = float(np.sqrt((table["e1"] ** 2 + table["e2"] ** 2).mean() / 2))
        maps = grid_shear(**table, **grid, sigma_e=rms)
        op = KaiserSquires(maps.shape, maps.mask, maps.sigma)
        y = op.whiten(maps.gamma)
        formula.append(b_mode_test(op, y, pixel=1.25, bins=5, realisations=100))
        noise = op.whiten(rotated_shear(**table, **grid, count=100, seed=seed + 50))
        rotated.append(b_mode_test(op, y, pixel=1.25, bins=5, noise=noise))
    assert max(test.pte for test in formula) < 0.05
    assert 0.25 < np.mean([test.pte for test in rotated]) < 0.75
    assert np.mean([test.amplitude for test in rotated]) == pytest.approx(1, abs=0.02)
    unknown = KaiserSquires(shape, weights=torch.ones(shape))
    assert b_mode_test(unknown, maps.gamma, pixel=1.25, bins=5, noise=maps.gamma + noise).pte > 0


def test_b_mode_null_test_knows_what_a_mask_makes() -> None:
    shape = (64, 64)
    mask = torch.zeros(shape)
    mask[8:56, 8:56] = 1
    mask[20:30, 15:40] = 0
    op, S = KaiserSquires(shape, mask, 0.02), red(shape, 0.01)
    torch.manual_seed(1)
    y = op(draw_field(S, seed=8))
    alone = b_mode_test(op, y, pixel=1.0, bins=5)
    told = b_mode_test(op, y, pixel=1.0, bins=5, kappa=draw_field(S, 200, seed=100))
    assert alone.pte < 0.01 and told.pte > 0.05


# ---- errors ----------------------------------------------------------------------------------------------

X, Y = torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 8, 8)
NOISY = KaiserSquires((8, 8), sigma=1.0)
ROW = {"ra": [1.0], "dec": [1.0], "e1": [0.1], "e2": [0.1]}
FLAT = {"x": [0.0], "y": [0.0], "e1": [0.1], "e2": [0.1]}
GRID = {"shape": (4, 4), "pixel": 1.0}
CASES = [
    (lambda: grid_catalogue(**ROW | {"e1": [0.1, 0.2]}, **GRID), "columns of a catalogue must be of one length"),
    (lambda: grid_catalogue(**ROW | {"ra": [math.nan]}, **GRID), "no row of the catalogue has a finite ra and dec"),
    (lambda: grid_catalogue(**ROW, **GRID, centre=(9, 1)), "no galaxy is in the field of 4 x 4 pixels .* 1 outside"),
    (lambda: grid_catalogue(**ROW, **GRID, centre=(9, 91)), r"\|Dec\| <= 90, got \(9, 91\)"),
    (lambda: grid_catalogue(**ROW, **GRID, east="up"), 'east must be "left"'),
    (lambda: grid_catalogue(**ROW, **GRID, positive_e2="N"), 'positive_e2 must be "NW"'),
    (lambda: grid_catalogue(**ROW, **GRID), r"noise of one galaxy must be finite and > 0, got \(0.0, 0.0\); pass"),
    (lambda: grid_shear(**FLAT, weight=[-1.0], **GRID), "1 weights are negative"),
    (lambda: grid_shear(**FLAT, shape=(4, 4), pixel=0.0), "a pixel > 0 arcmin"),
    (lambda: reduced_shear(X.expand(1, 2, 8, 8), X + 1), "needs kappa < 1"),
    (lambda: invert_reduced(KaiserSquires((8, 8)), X.expand(1, 2, 8, 8), max_iter=0), "max_iter must be at least 1"),
    (lambda: power_spectrum(X, 0.0), "pixel must be the pixel's size in arcmin"),
    (lambda: power_spectrum(X, 1.0, 0), "bins must be at least 1"),
    (lambda: power_spectrum(X, 1.0, 30), r"has no Fourier mode of a \(8, 8\) map; take fewer or wider bins"),
    (lambda: power_spectrum(X, 1.0, torch.tensor([3.0, 2.0])), "edges in ell that grow"),
    (lambda: power_grid((8, 8), 1.0, torch.tensor([10.0, 20.0]), torch.ones(2)), "extend the table"),
    (lambda: power_grid((8, 8), 1.0, torch.tensor([10.0, 1e5]), torch.zeros(2)), "growing and > 0, and C_ell > 0"),
    (lambda: fit_power(torch.zeros(1, 8, 8, dtype=torch.complex64)), "zero everywhere"),
    (lambda: draw_field(-torch.ones(8, 8)), "power must be finite and >= 0"),
    (lambda: smooth(X, -1.0), "sigma must be finite and >= 0"),
    (lambda: find_peaks(X[0]), r"shape \(batch, 1, H, W\), at least 3 x 3, got \(1, 8, 8\)"),
    (lambda: peak_counts(X, torch.tensor([1.0])), "two or more heights"),
    (lambda: b_mode_test(KaiserSquires((8, 8)), X, pixel=1.0), "the noise is not known"),
    (lambda: b_mode_test(NOISY, torch.zeros(2, 2, 8, 8), pixel=1.0, bins=2), "batch of 2"),
    (lambda: b_mode_test(NOISY, torch.zeros(1, 2, 8, 8), pixel=1.0, bins=2, realisations=4), "a covariance of"),
    (lambda: b_mode_test(NOISY, Y, pixel=1.0, bins=2, noise=Y[0]), r"noise must be \(n, 2, 8, 8\), whitened, got"),
    (lambda: b_mode_test(NOISY, Y, pixel=1.0, bins=2, noise=Y), "1 realisations cannot give a covariance of"),
    (lambda: b_mode_test(NOISY, Y, pixel=1.0, noise=Y, realisations=9), "pass noise or realisations, not both"),
    (lambda: rotated_shear(**FLAT, **GRID, count=0), "count must be at least 1 map, got 0"),
    (lambda: rotated_catalogue(**ROW, **GRID, centre=(9, 1)), "no galaxy is in the field"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), CASES, ids=[f"{i}-{c[1][:24]}" for i, c in enumerate(CASES)])
def test_error_says_what_to_do(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# ---- real data -------------------------------------------------------------------------------------------


@pytest.fixture
def cosmos(shared_data: Path):
    fits = pytest.importorskip("astropy.io.fits")

    def read(name: str) -> Tensor:
        return torch.as_tensor(fits.getdata(shared_data / "lensing" / name).astype(np.float64))

    return read


def test_real_cosmos_maps_give_the_published_one(cosmos) -> None:
    gamma = torch.stack([cosmos(f"cosmos/cosmos_full_e{i}_0.29arcmin360.fits") for i in (1, 2)])[None].float()
    op = KaiserSquires((360, 360), cosmos("cosmos/cosmos_full_mask_0.29arcmin360.fits"))
    found = smooth(op.ks(op.whiten(gamma)), 2.0).flip(-1)
    assert pearson(found, cosmos("cosmos/ks_e_0.29arcmin360.fits")) > 0.99999


def test_real_cosmos_catalogue_gives_the_published_maps(cosmos) -> None:
    """They are binned in RA and Dec as they stand, about the medians, East to the right, 0.29 arcmin a pixel."""
    ra, dec, e1, e2, w = (cosmos(f"cosmos/{name}.fits") for name in ("ra", "dec", "e1", "e2", "nhweight_int"))
    x, y = ((v.numpy() - np.median(v)) * 60 for v in (ra, dec))
    maps = grid_shear(x, y, e1, -e2, w, shape=(360, 360), pixel=0.29)
    assert maps.used == len(ra) == 417_117
    assert torch.equal(maps.mask.double(), cosmos("cosmos/cosmos_full_mask_0.29arcmin360.fits"))
    for i in (0, 1):
        published = cosmos(f"cosmos/cosmos_full_e{i + 1}_0.29arcmin360.fits")
        torch.testing.assert_close(maps.gamma[0, i].double(), published, atol=1e-6, rtol=0)
        std = torch.where(maps.mask, (e1, e2)[i].std(correction=0) / maps.count.clamp_min(1).double().sqrt(), 0)
        torch.testing.assert_close(std, cosmos(f"cosmos/std{i + 1}.fits"), atol=1e-6, rtol=0)
    op = KaiserSquires(maps.shape, maps.mask, maps.sigma)
    assert op.estimate_noise(op.whiten(maps.gamma)) == pytest.approx(op.sigma, rel=0.02)
    centre = float(np.median(ra)), float(np.median(dec))
    sky = grid_catalogue(ra, dec, e1, e2, w, shape=(360, 360), pixel=0.29, centre=centre, east="right")
    assert sky.used == maps.used and float((sky.mask == maps.mask).float().mean()) > 0.995
    kappa = [smooth(op.ks(op.whiten(part.gamma)), 6.0) for part in (maps, sky)]
    assert pearson(*kappa) > 0.97


def test_b_mode_of_real_cosmos(cosmos) -> None:
    """As docs/lensing.md says: Gaussian noise fails everywhere, rotations only on large scales, kappa mends that."""
    ra, dec, e1, e2, w = (cosmos(f"cosmos/{name}.fits") for name in ("ra", "dec", "e1", "e2", "nhweight_int"))
    grid = {"shape": (360, 360), "pixel": 0.29}
    maps = grid_catalogue(ra, dec, e1, e2, w, **grid)
    op = KaiserSquires(maps.shape, maps.mask, maps.sigma)
    y = op.whiten(maps.gamma)
    noise = op.whiten(rotated_catalogue(ra, dec, e1, e2, w, **grid, count=60))
    kappa = draw_field(op.fit_power(y), 60).float()

    def off(test) -> Tensor:
        return (test.power - test.expected) / test.spread

    gaussian, rotated = (b_mode_test(op, y, pixel=0.29, bins=6, noise=n) for n in (None, noise))
    both = b_mode_test(op, y, pixel=0.29, bins=6, noise=noise, kappa=kappa)
    assert gaussian.amplitude > 1.015 and abs(rotated.amplitude - 1) < 0.01
    assert rotated.pte < 0.02 < both.pte and both.chi2 < rotated.chi2 / 2
    assert int((off(gaussian) > 1.5).sum()) >= 5
    assert bool((off(rotated)[:2] > 3).all()) and abs(float(off(rotated)[-1])) < 2


def test_baselines(cosmos) -> None:
    """The table of the COSMOS-like kappaTNG case, in the mask, mean removed: rmse and Pearson's r."""
    mask = cosmos("cosmos/cosmos_full_mask_0.29arcmin360.fits")
    sigma = torch.stack([cosmos(f"cosmos/std{i}.fits") for i in (1, 2)])
    truth, gamma = cosmos("ktng/ktng_cosmos_kappa360.fits"), cosmos("ktng/ktng_cosmos_e360.fits")
    op = KaiserSquires((360, 360), mask, sigma)
    path = Path(__file__).resolve().parents[2] / "shared" / "data" / "lensing" / "ktng" / "ktng_PS_theory.npy"
    S = power_grid((360, 360), 300 / 1024, *torch.as_tensor(np.load(path)))
    seen = mask > 0

    def figures(x: Tensor) -> tuple[float, float]:
        a, b = x[0, 0][seen].double(), truth[seen]
        return float(((a - a.mean()) - (b - b.mean())).square().mean().sqrt()), pearson(a, b)

    y = op.whiten(gamma.movedim(-1, 0)[None].float())
    assert figures(op.ks(y)) == pytest.approx((0.146, 0.19), rel=0.02)
    assert figures(smooth(op.ks(y), 3.0)) == pytest.approx((0.0234, 0.571), rel=0.02)
    torch.manual_seed(0)  # noise drawn as the maps say; that of the file is 0.148 in every pixel
    drawn = [figures(op.wiener(op(truth[None, None].float()), S)) for _ in range(3)]
    assert np.mean(drawn, 0) == pytest.approx((0.0218, 0.624), rel=0.02)
    level = KaiserSquires((360, 360), mask, 0.148)
    residual = gamma.movedim(-1, 0) - level.A(truth[None, None])[0]
    assert float(residual[:, seen].std()) == pytest.approx(0.148, rel=0.01)
    y = level.whiten(gamma.movedim(-1, 0)[None].float())
    assert figures(level.wiener(y, S)) == pytest.approx((0.02246, 0.591), rel=0.02)  # by an independent numpy version
    assert figures(level.wiener(y))[1] > 0.585
