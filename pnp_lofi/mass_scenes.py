"""Skies behind surveys: what networks for mass maps are trained and tested on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.convergence import convergence
from pnp_lofi.images import image_folder
from pnp_lofi.kappatng import KappaTNG
from pnp_lofi.mass_maps import Survey, random_survey, seen_maps, sky_power
from pnp_lofi.operators import KaiserSquires


class Scene(NamedTuple):
    """One sky behind one survey.

    :param KaiserSquires op: knows mask and noise; Tensor y: (1, 2, H, W) whitened shear.
    :param torch.Tensor seen: (1, 7, H, W), see :func:`pnp_lofi.mass_maps.seen_maps`; Tensor kappa: (1, 1, H, W).
    """

    op: KaiserSquires
    y: Tensor
    seen: Tensor
    kappa: Tensor

    @property
    def mask(self) -> Tensor:
        """(H, W) bool."""
        return torch.ones(self.op.shape, dtype=torch.bool) if self.op.mask is None else self.op.mask[0]


def skies(data: str, count: int, side: int, pixel: float, seed: int, *, apart: int = 0) -> tuple[Tensor, float]:
    """Convergence (count, 1, side, side), means removed, and its pixel [arcmin].

    :param str data: "lognormal", a folder of kappaTNG, or one of FITS or npy maps; turned at random if of a folder.
    :param float pixel: of lognormal and FITS maps; kappaTNG has its own.
    :param int apart: the first so many skies are of maps in the folder that none of the others is of.
    :raises ValueError: for count < 1, too few maps, or maps smaller than side.
    :raises FileNotFoundError: for no folder, or none with maps.
    """
    if data == "lognormal":
        return convergence(count, side, pixel, seed=seed), pixel
    if count < 1:
        raise ValueError(f"expected at least one map, got count {count}")
    folder = Path(data)
    if any(folder.rglob("*_maps.hdf5")) or any(folder.rglob("kappa*.dat")):
        maps: Any = KappaTNG(folder, crop=side, tiles=True)
        pixel = maps.pixel
    else:
        maps = image_folder(folder)
    rng = np.random.default_rng(seed)
    found = []
    order, own = rng.permutation(len(maps)), min(apart, len(maps) - 1)
    if apart and not own:
        raise ValueError(f"{data}: one map validates and others train, so that two are needed at least; got one")
    for k in range(count):
        part, j = (order[:own], k) if k < apart else (order[own:], k - apart)
        x = maps[int(part[j % len(part)])][:, :side, :side]
        if x.shape != (1, side, side):
            raise ValueError(f"{data}: expected maps of at least {side} x {side}, got {tuple(x.shape)}; pass --side")
        found.append(torch.rot90(x, int(rng.integers(4)), (-2, -1)))
    kappa = torch.stack(found)
    return kappa - kappa.mean((-2, -1), keepdim=True), pixel


def scenes(
    kappa: Tensor, pixel: float, level: tuple[float, float], survey: Survey | None = None, *, seed: int = 0
) -> Iterator[Scene]:
    """Each sky behind a survey, with noise.

    :param torch.Tensor kappa: (count, 1, H, W); float pixel: [arcmin].
    :param tuple level: least and most noise of random surveys.
    :param Survey survey: the same for all, of skies that are cut to its shape; default, a random one for each.
    :param int seed: sky k's survey and noise are made from (seed, k) alone.
    """
    shape = (kappa.shape[-2], kappa.shape[-1]) if survey is None else (survey.mask.shape[0], survey.mask.shape[1])
    kappa = kappa[..., : shape[0], : shape[1]]
    if tuple(kappa.shape[-2:]) != shape:
        raise ValueError(f"the survey has {shape} pixels, the skies only {tuple(kappa.shape[-2:])}")
    for k, x in enumerate(kappa[:, None]):
        rng, generator = np.random.default_rng([seed, 1, k]), torch.Generator().manual_seed(1_000_003 * seed + k)
        behind = survey or random_survey(shape, rng, *level)
        shear = KaiserSquires(shape).A(x)
        yield scene_of(behind, shear + behind.sigma * torch.randn(shear.shape, generator=generator), x, pixel)


def scene_of(survey: Survey, shear: Tensor, kappa: Tensor, pixel: float) -> Scene:
    """:param torch.Tensor shear: (1, 2, H, W) noisy; Tensor kappa: (1, 1, H, W) behind it."""
    op = survey.operator()
    y = op.whiten(shear)
    return Scene(op, y, seen_maps(op, y, sky_power(op.shape, pixel)), kappa)
