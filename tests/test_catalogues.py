"""Catalogues of galaxies on a grid: signs, weights, noise, units."""

import warnings

import numpy as np
import pytest
import torch
from shear_fields import galaxies
from torch import Tensor

from pnp_lofi.lensing import (
    ShearMaps,
    grid_catalogue,
    grid_shear,
    rotated_catalogue,
    rotated_shear,
    tangent_plane,
)
from pnp_lofi.lensing_power import (
    smooth,
)
from pnp_lofi.lensing_statistics import _chi2
from pnp_lofi.operators import KaiserSquires


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
