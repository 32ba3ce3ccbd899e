"""From a catalogue of galaxies to maps of the shear, and between shear and reduced shear.

On the sky x points East and y North. Maps have rows that grow to the North and columns that grow to the West
(``east="left"``, as on the sky and in FITS) or to the East. e1 > 0 is along the columns' axis in either case; e2 > 0 is
along the diagonal on which column and row grow together, hence its sign turns with the columns'.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pnp_lofi.lensing_power import ARCMIN

SMALL = 0.01  # of the grid: a catalogue that covers less is in other units than the grid

Column = Any  # whatever numpy.asarray makes (N,) numbers of: an array, a tensor, a column of an astropy table
Array = np.ndarray


@dataclass(frozen=True)
class ShearMaps:
    """Shear on a grid, ready for ``KaiserSquires(maps.shape, maps.mask, maps.sigma)``.

    :param torch.Tensor gamma: (1, 2, H, W) float32, weighted mean of the ellipticities; zero outside of the mask.
    :param torch.Tensor mask: (H, W) bool, True where there is a galaxy.
    :param torch.Tensor sigma: (2, H, W) float32, noise sigma_e sqrt(sum w^2) / sum w; zero outside of the mask.
    :param torch.Tensor count: (H, W) int32, galaxies.
    :param float pixel: pixel size [arcmin].
    :param tuple sigma_e: noise of one galaxy's e1 and e2.
    :param int used, outside, invalid, unweighted: rows of the catalogue: in the maps; beyond the field; with NaN or inf
        in some column; of weight zero.
    """

    gamma: Tensor
    mask: Tensor
    sigma: Tensor
    count: Tensor
    pixel: float
    sigma_e: tuple[float, float]
    used: int
    outside: int
    invalid: int
    unweighted: int

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.mask.shape[0]), int(self.mask.shape[1])


class Plane(NamedTuple):
    """Places in a tangent plane, arrays (N,).

    :param x: East of the centre [arcmin]; y: North of it [arcmin]; inf where a place is 90 degrees away or more.
    :param turn: angle from the plane's y axis to the direction of North at the place, positive to the East [rad].
    """

    x: Array
    y: Array
    turn: Array


def tangent_plane(ra: Column, dec: Column, centre: tuple[float, float]) -> Plane:
    """Gnomonic projection.

    :param ra, dec: (N,) [deg]; NaN stays NaN.
    :param tuple centre: RA and Dec of the point where the plane touches the sphere [deg].
    :raises ValueError: if the centre is not a place on the sky.
    Source: Calabretta and Greisen 2002, section 5.1.3 (TAN).
    """
    if len(centre) != 2 or not np.isfinite(centre).all() or abs(centre[1]) > 90:
        raise ValueError(f"centre must be RA and Dec in degrees, |Dec| <= 90, got {tuple(centre)}")
    a = np.radians(np.asarray(ra, float) - centre[0])
    d, d0 = np.radians(np.asarray(dec, float)), np.radians(centre[1])
    depth = np.sin(d0) * np.sin(d) + np.cos(d0) * np.cos(d) * np.cos(a)  # cosine of the distance
    far = depth <= 0
    depth = np.where(far, 1, depth) * ARCMIN
    x = np.cos(d) * np.sin(a) / depth
    y = (np.cos(d0) * np.sin(d) - np.sin(d0) * np.cos(d) * np.cos(a)) / depth
    return Plane(np.where(far, np.inf, x), np.where(far, np.inf, y), np.arctan2(-np.sin(a) * np.sin(d0), np.cos(a)))


def grid_catalogue(
    ra: Column,
    dec: Column,
    e1: Column,
    e2: Column,
    weight: Column | None = None,
    *,
    shape: Sequence[int],
    pixel: float,
    centre: tuple[float, float] | None = None,
    east: Literal["left", "right"] = "left",
    positive_e2: Literal["NW", "NE"] = "NW",
    sigma_e: float | None = None,
) -> ShearMaps:
    """Shear, mask and noise on a grid in the tangent plane.

    Ellipticities are turned from the North at each galaxy to the plane's. A wrong ``positive_e2`` moves the signal
    from the E mode into the B mode: look at ``op.eb``.

    :param ra, dec: (N,) [deg]; e1, e2: (N,) ellipticities, calibrated to shear; weight: (N,) >= 0, default ones.
    :param tuple shape: (H, W); float pixel: its size [arcmin]; tuple centre: RA and Dec of the middle of the grid
        [deg], default the mean direction of the catalogue.
    :param str east: "left", columns grow to the West; "right", to the East.
    :param str positive_e2: where a galaxy with e1 = 0, e2 > 0 points to: "NW", e2 belongs to axes (West, North), as in
        the pixels of an image of the sky (COSMOS), or "NE", to axes (East, North).
    :param float sigma_e: noise of one galaxy per component; default, the rms of each column, weighted by weight^2.
    :raises ValueError: if the columns differ in length, a weight is negative, or no galaxy is in the field. Warns if
        the places look like radians, or the galaxies cover less than 1 % of the grid.
    """
    if positive_e2 not in ("NW", "NE"):
        raise ValueError(f'positive_e2 must be "NW" (axes West, North) or "NE" (axes East, North), got {positive_e2!r}')
    ra, dec, e1, e2, weight = _columns(ra=ra, dec=dec, e1=e1, e2=e2, weight=weight)
    x, y, turn = _on_the_grid(ra, dec, centre, east)
    e = (e1 + 1j * e2 if positive_e2 == "NE" else e1 - 1j * e2) * np.exp(-2j * turn)  # axes East, North
    if east == "left":
        e = e.conj()
    maps = _maps(_places([x, y, e.real, e.imag, weight], shape, pixel), pixel, sigma_e)
    if _like_radians(ra, dec) and (centre is None or _covered(maps.mask) < SMALL):
        warnings.warn(
            "ra and dec look like radians (|ra| <= 2 pi and |dec| <= pi/2) but are taken as degrees: pass "
            "numpy.degrees(ra), numpy.degrees(dec); if they are degrees, pass centre",
            stacklevel=2,
        )
    elif _covered(maps.mask) < SMALL:
        _warn_of_units(maps, "ra and dec in degrees")
    return maps


def grid_shear(
    x: Column,
    y: Column,
    e1: Column,
    e2: Column,
    weight: Column | None = None,
    *,
    shape: Sequence[int],
    pixel: float,
    sigma_e: float | None = None,
) -> ShearMaps:
    """Shear, mask and noise of galaxies on a flat sky.

    Column floor(x / pixel + W / 2), row floor(y / pixel + H / 2), for either parity of W and H.

    :param x, y: (N,) along the columns and the rows, from the middle of the grid [arcmin].
    :param e1, e2: (N,) with respect to those axes. The others as for :func:`grid_catalogue`.
    """
    columns = _columns(x=x, y=y, e1=e1, e2=e2, weight=weight)
    maps = _maps(_places(columns, shape, pixel), pixel, sigma_e)
    if _covered(maps.mask) < SMALL:
        _warn_of_units(maps, "x and y in arcmin")
    return maps


def rotated_catalogue(
    ra: Column,
    dec: Column,
    e1: Column,
    e2: Column,
    weight: Column | None = None,
    *,
    shape: Sequence[int],
    pixel: float,
    centre: tuple[float, float] | None = None,
    east: Literal["left", "right"] = "left",
    count: int = 200,
    seed: int = 0,
) -> Tensor:
    """Maps of the galaxies of a catalogue, each turned by a random angle: shape noise as it is, without a signal.

    Beside a formula it has what the shapes themselves have: ellipticities that depend on the weight, and tails. For
    ``b_mode_test(op, y, noise=op.whiten(maps))``.

    :param ra, dec, e1, e2, weight, shape, pixel, centre, east: as for :func:`grid_catalogue`.
    :param int count: maps; each is of another draw of all angles.
    :returns: (count, 2, H, W) float32 shear, not whitened; zero where there is no galaxy.
    :raises ValueError: as :func:`grid_catalogue`; if count < 1.
    """
    ra, dec, e1, e2, weight = _columns(ra=ra, dec=dec, e1=e1, e2=e2, weight=weight)
    x, y, _ = _on_the_grid(ra, dec, centre, east)  # a random angle makes up for the turn and the sign of e2
    return rotated_shear(x, y, e1, e2, weight, shape=shape, pixel=pixel, count=count, seed=seed)


def rotated_shear(
    x: Column,
    y: Column,
    e1: Column,
    e2: Column,
    weight: Column | None = None,
    *,
    shape: Sequence[int],
    pixel: float,
    count: int = 200,
    seed: int = 0,
) -> Tensor:
    """:func:`rotated_catalogue` for galaxies on a flat sky, as for :func:`grid_shear`."""
    if count < 1:
        raise ValueError(f"count must be at least 1 map, got {count}")
    kept = _places(_columns(x=x, y=y, e1=e1, e2=e2, weight=weight), shape, pixel)
    sum_w = kept.total(kept.w)
    weighted = kept.w * (kept.e[0] + 1j * kept.e[1]) / sum_w.ravel()[kept.pixel]
    rng, maps = np.random.default_rng(seed), torch.empty((count, 2, *sum_w.shape))
    for drawn in tqdm(maps, "rotations", leave=False, delay=2, disable=None):
        turned = weighted * np.exp(2j * np.pi * rng.random(len(weighted)))
        drawn[0], drawn[1] = (torch.from_numpy(kept.total(part)) for part in (turned.real, turned.imag))
    return maps


def reduced_shear(gamma: Tensor, kappa: Tensor) -> Tensor:
    """g = gamma / (1 - kappa), what the shapes of galaxies measure.

    :param torch.Tensor gamma: (B, 2, H, W); Tensor kappa: (B, 1, H, W).
    :raises ValueError: where kappa >= 1: strong lensing.
    """
    if not bool((kappa < 1).all()):
        raise ValueError(f"reduced shear needs kappa < 1 (weak lensing), got NaN or up to {float(kappa.max()):.3g}")
    return gamma / (1 - kappa)


def invert_reduced(
    op: Any,
    g: Tensor,
    invert: Callable[[Tensor], Tensor] | None = None,
    *,
    mean: float | None = None,
    max_iter: int = 20,
    tol: float = 1e-5,
) -> Tensor:
    """kappa from reduced shear: kappa <- invert(g (1 - kappa)), from kappa = 0.

    g does not tell kappa from 1 - s (1 - kappa), the mass-sheet degeneracy: the mean has to come from elsewhere.

    :param KaiserSquires op: linear operator of the shear.
    :param torch.Tensor g: (B, 2, H, W) reduced shear, whitened: ``op.whiten(g)``.
    :param Callable invert: y -> kappa for linear shear, such as ``op.wiener`` or a solver; default ``op.ks``.
    :param float mean: of kappa, set in each step; default: what ``invert`` gives.
    :param int max_iter: inversions at most; float tol: stop when kappa changes by less, relative to its norm.
    :returns: (B, 1, rows, columns). Warns if the tolerance is not reached.
    Source: Seitz and Schneider 1995.
    """
    from pnp_lofi.operators.base import ConvergenceWarning

    invert = op.ks if invert is None else invert
    kappa, change = None, float("inf")
    for _ in range(max_iter):
        y = g if kappa is None else g * (1 - op.crop(kappa))
        new = invert(y)
        if mean is not None:
            new = new + (mean - new.mean((-2, -1), keepdim=True))
        if kappa is not None:
            change = float((new - kappa).norm()) / max(float(new.norm()), torch.finfo(new.dtype).tiny)
        kappa = new
        if change <= tol:
            return kappa
    if kappa is None:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")
    warnings.warn(
        f"reduced shear: kappa still changed by {change:.1e} in the last of {max_iter} steps, wanted {tol:.1e}",
        ConvergenceWarning,
        stacklevel=2,
    )
    return kappa


class _Places(NamedTuple):
    """The galaxies of a catalogue that are on a grid: pixel (N,), e (2, N), w (N,); numbers of rows that are not."""

    pixel: Array
    e: Array
    w: Array
    shape: tuple[int, int]
    outside: int
    invalid: int
    unweighted: int

    def total(self, values: Array | None = None) -> Array:
        """(H, W), the sum of values in each pixel; default, their number."""
        height, width = self.shape
        return np.bincount(self.pixel, values, height * width).reshape(height, width)


def _places(columns: list[Array], shape: Sequence[int], pixel: float) -> _Places:
    """:param list columns: x, y, e1, e2, weight."""
    x, y, e1, e2, weight = columns
    height, width = (int(n) for n in shape)
    if min(height, width) < 1 or not 0 < pixel < np.inf:
        raise ValueError(f"expected a shape of positive integers and a pixel > 0 arcmin, got {tuple(shape)}, {pixel}")
    valid = np.isfinite(e1) & np.isfinite(e2) & np.isfinite(weight) & ~np.isnan(x) & ~np.isnan(y)
    if bool((weight[valid] < 0).any()):
        raise ValueError(f"{int((weight[valid] < 0).sum())} weights are negative; drop those rows or set them to zero")
    column, row = np.floor(x / pixel + width / 2), np.floor(y / pixel + height / 2)
    inside = valid & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    kept = inside & (weight > 0)
    if not kept.any():
        raise ValueError(
            f"no galaxy is in the field of {height} x {width} pixels of {pixel} arcmin: of {len(x)} rows "
            f"{int((~valid).sum())} are NaN or inf, {int((valid & ~inside).sum())} outside; check centre and units"
        )
    return _Places(
        (row[kept] * width + column[kept]).astype(np.int64),
        np.stack([e1, e2])[:, kept],
        weight[kept],
        (height, width),
        outside=int((valid & ~inside).sum()),
        invalid=int((~valid).sum()),
        unweighted=int((inside & ~kept).sum()),
    )


def _maps(kept: _Places, pixel: float, sigma_e: float | None) -> ShearMaps:
    total, e, w = kept.total, kept.e, kept.w
    count, sum_w = total(), total(w)
    mask = count > 0
    safe = np.where(mask, sum_w, 1)
    level = _shape_noise(e, w) if sigma_e is None else (float(sigma_e),) * 2
    if not all(0 < s < np.inf for s in level):
        raise ValueError(f"the noise of one galaxy must be finite and > 0, got {level}; pass sigma_e")
    sigma = np.sqrt(total(w * w)) / safe
    return ShearMaps(
        gamma=torch.from_numpy(np.stack([total(w * part) / safe for part in e])[None]).float(),
        mask=torch.from_numpy(mask),
        sigma=torch.from_numpy(np.stack([s * sigma for s in level])).float(),
        count=torch.from_numpy(count).int(),
        pixel=float(pixel),
        sigma_e=level,
        used=len(w),
        outside=kept.outside,
        invalid=kept.invalid,
        unweighted=kept.unweighted,
    )


def _on_the_grid(ra: Array, dec: Array, centre: tuple[float, float] | None, east: str) -> Plane:
    """The tangent plane, x along the columns."""
    if east not in ("left", "right"):
        raise ValueError(f'east must be "left" (as on the sky) or "right", got {east!r}')
    plane = tangent_plane(ra, dec, _middle(ra, dec) if centre is None else centre)
    return plane._replace(x=-plane.x) if east == "left" else plane


def _like_radians(ra: Array, dec: Array) -> bool:
    """Whether no finite place is beyond |ra| = 2 pi or |dec| = pi/2."""
    a, d = np.abs(ra[np.isfinite(ra)]), np.abs(dec[np.isfinite(dec)])
    return bool(a.max(initial=0) <= 2 * np.pi and d.max(initial=0) <= np.pi / 2)


def _covered(mask: Tensor) -> float:
    """Part of the grid that the rectangle about the galaxies takes."""
    rows, columns = (mask.any(axis).nonzero() for axis in (1, 0))
    return float((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)) / mask.numel()


def _warn_of_units(maps: ShearMaps, places: str) -> None:
    warnings.warn(
        f"the galaxies lie in {100 * _covered(maps.mask):.2g} % of the grid of {maps.shape[0]} x {maps.shape[1]} "
        f"pixels of {maps.pixel:g} arcmin: pass pixel in arcmin (arcsec / 60) and {places}",
        stacklevel=3,
    )


def _columns(**columns: Column) -> list[Array]:
    """Each as float64, a missing weight as ones."""
    given = {
        name: np.ma.filled(np.ma.asarray(values).astype(np.float64), np.nan)  # masked rows of a table are NaN
        for name, values in columns.items()
        if values is not None
    }
    shapes = {name: values.shape for name, values in given.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 1:
        raise ValueError(f"the columns of a catalogue must be of one length, (N,), got {shapes}")
    return [given.get(name, np.ones(next(iter(shapes.values())))) for name in columns]


def _middle(ra: Array, dec: Array) -> tuple[float, float]:
    """RA and Dec of the mean of the unit vectors [deg]."""
    good = np.isfinite(ra) & np.isfinite(dec)
    if not good.any():
        raise ValueError("no row of the catalogue has a finite ra and dec")
    a, d = np.radians(ra[good]), np.radians(dec[good])
    x, y, z = (np.cos(d) * np.cos(a)).mean(), (np.cos(d) * np.sin(a)).mean(), np.sin(d).mean()
    return float(np.degrees(np.arctan2(y, x))) % 360, float(np.degrees(np.arctan2(z, np.hypot(x, y))))


def _shape_noise(e: Array, w: Array) -> tuple[float, float]:
    """rms of e1 and e2 about their means, weighted by w^2, as the variance of a weighted mean is."""
    mean = (w * e).sum(1, keepdims=True) / w.sum()
    first, second = np.sqrt((w**2 * (e - mean) ** 2).sum(1) / (w**2).sum())
    return float(first), float(second)
