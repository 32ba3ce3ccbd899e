"""Mass maps of a kappaTNG convergence behind the COSMOS mask, and of real COSMOS shear against the published map.

360 x 360 pixels of 5 degrees / 1024. Figures are taken inside the mask with the mean removed. The shear of the file has
noise of 0.148 in every pixel (so have the authors' notebooks, CosmoStat/jax-lensing), although the maps std1 and std2
beside it vary. Cases: that noise; the maps taken for its noise, which is wrong; and noise drawn as the maps say.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.lensing import grid_shear
from pnp_lofi.lensing_power import power_grid, smooth
from pnp_lofi.operators import KaiserSquires

SHAPE = (360, 360)
PIXEL = 300 / 1024  # of kappaTNG [arcmin]
PIXEL_COSMOS = 0.29  # of the published maps [arcmin]
GAUSSIAN = 3.0  # [pixel]
FILE_NOISE = 0.148  # rms of the file's shear minus that of the truth, the same to 1 % whatever std1 says
SEEDS = 5  # draws of the noise
# Pearson r, for noise of 0.148, as this project noted them down
PUBLISHED = {"KS + Gaussian": 0.57, "Wiener": 0.61}
PUBLISHED_OTHERS = {"GLIMPSE": 0.42, "MCALens": 0.67, "DeepMass": 0.68, "DLPosterior": 0.68}
SOURCE = "Remy et al. 2023 (A&A 672, A51), as noted in facts/lensing.md; not checked against the paper"


@torch.no_grad()
def rows(data: Path) -> list[dict[str, Any]]:
    """One row for each case and method, then the real maps; none if the data are not here.

    :param Path data: folder of the real data.
    :returns: dicts of case, method, rmse, r, seconds, published_r (or None); the real maps have correlation instead.
    """
    folder = data / "lensing"
    if not folder.is_dir():
        return []
    return [*_simulated(folder), *_real(folder)]


def _read(path: Path) -> Tensor:
    from astropy.io import fits

    return torch.as_tensor(fits.getdata(path).astype(np.float64))


def _maps(folder: Path) -> tuple[Tensor, Tensor]:
    """Mask and noise of COSMOS."""
    mask = _read(folder / "cosmos" / "cosmos_full_mask_0.29arcmin360.fits")
    return mask, torch.stack([_read(folder / "cosmos" / f"std{i}.fits") for i in (1, 2)])


def _simulated(folder: Path) -> list[dict[str, Any]]:
    mask, sigma = _maps(folder)
    truth = _read(folder / "ktng" / "ktng_cosmos_kappa360.fits")[None, None].float()
    shear = _read(folder / "ktng" / "ktng_cosmos_e360.fits").movedim(-1, 0)[None].float()
    power = power_grid(SHAPE, PIXEL, *torch.as_tensor(np.load(folder / "ktng" / "ktng_PS_theory.npy")))
    level, varied = KaiserSquires(SHAPE, mask, FILE_NOISE), KaiserSquires(SHAPE, mask, sigma)
    torch.manual_seed(0)
    cases = {
        "file, noise 0.148": (level, [level.whiten(shear)]),
        "file, noise taken as std1, std2": (varied, [varied.whiten(shear)]),
        "noise drawn from std1, std2": (varied, [varied(truth) for _ in range(SEEDS)]),
    }
    found = []
    for case, (op, draws) in cases.items():
        for method, invert in _methods(op, power).items():
            figures, begin = [], time.perf_counter()
            for y in draws:
                figures.append(_figures(invert(y), truth, mask))
            seconds = (time.perf_counter() - begin) / len(draws)
            rmse, r = np.mean(figures, 0).tolist()
            row = {"case": case, "method": method, "rmse": rmse, "r": r, "draws": len(draws), "seconds": seconds}
            row["r_spread"] = float(np.std(figures, 0)[1])
            published = PUBLISHED.get(method) if op is level else None
            found.append(row | {"published_r": published})
    for method, r in PUBLISHED_OTHERS.items():
        found.append({"case": "published", "method": method, "published_r": r, "source": SOURCE})
    return found


def _methods(op: KaiserSquires, power: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "KS": op.ks,
        "KS + Gaussian": lambda y: smooth(op.ks(y), GAUSSIAN),
        "Wiener": lambda y: op.wiener(y, power),
        "Wiener, power of the data": lambda y: op.wiener(y),
    }


def _figures(x: Tensor, truth: Tensor, mask: Tensor) -> tuple[float, float]:
    """rmse and Pearson's r inside the mask, means removed."""
    seen = mask > 0
    a, b = x[0, 0][seen].double(), truth[0, 0][seen].double()
    a, b = a - a.mean(), b - b.mean()
    return float((a - b).square().mean().sqrt()), float((a * b).sum() / (a.norm() * b.norm()))


def _real(folder: Path) -> list[dict[str, Any]]:
    """The published E-mode map from the published shear, and the published shear from the catalogue."""
    mask, _ = _maps(folder)
    cosmos = folder / "cosmos"
    shear = torch.stack([_read(cosmos / f"cosmos_full_e{i}_0.29arcmin360.fits") for i in (1, 2)])[None]
    op = KaiserSquires(SHAPE, mask)
    begin = time.perf_counter()
    e, b = op.eb(op.whiten(shear.float()))
    kappa = smooth(e, 2.0).flip(-1)[0, 0]
    seconds = time.perf_counter() - begin
    published = _read(cosmos / "ks_e_0.29arcmin360.fits")
    seen = mask > 0
    row = {"case": "real COSMOS", "method": "KS + Gaussian 2 pixels", "seconds": seconds}
    row["correlation"] = float(torch.corrcoef(torch.stack([kappa.double().flatten(), published.flatten()]))[0, 1])
    row |= {"e_rms": float(e[0, 0][seen].std()), "b_rms": float(b[0, 0][seen].std())}
    ra, dec, e1, e2, w = (_read(cosmos / f"{name}.fits").numpy() for name in ("ra", "dec", "e1", "e2", "nhweight_int"))
    begin = time.perf_counter()
    x, y = ((place - np.median(place)) * 60 for place in (ra, dec))
    maps = grid_shear(x, y, e1, -e2, w, shape=SHAPE, pixel=PIXEL_COSMOS)
    gridded = {"case": "real COSMOS", "method": "catalogue to maps", "seconds": time.perf_counter() - begin}
    gridded |= {"galaxies": maps.used, "largest_difference": float((maps.gamma - shear).abs().max())}
    gridded |= {
        "correlation": float(torch.corrcoef(torch.stack([maps.gamma.double().flatten(), shear.flatten()]))[0, 1])
    }
    return [row, gridded]
