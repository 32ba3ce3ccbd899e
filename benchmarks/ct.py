"""Tomography: errors against analytic sinograms, speed and memory beside deepinv, scikit-image and ASTRA.

180 views, detectors as many as the diagonal needs; the exact adjoint of each where it has one.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.common import mean, peak_memory_of, timed
from pnp_lofi import ADMM, LoFiPrior
from pnp_lofi.fbp import ramp_filter
from pnp_lofi.operators import LowDose, Radon, Weighted
from pnp_lofi.phantoms import draw, line_integrals, shepp_logan

VIEWS = 180
WATER = 0.02  # attenuation of water [1/mm]
BINS = 16  # points over which a detector's width is averaged
# facts of this project's preparation: one thread of a loaded machine, forward + adjoint, FBP [ms]
QUOTED = {"ASTRA linear (quoted, one thread)": {128: (41, 17), 256: (189, 108), 512: (1055, 377)}}


def theirs(size: int) -> Any:
    """deepinv's projector with the adjoint of its own forward."""
    from deepinv.physics import Tomography

    return Tomography(angles=VIEWS, img_width=size, circle=False, normalize=False, adjoint_via_backprop=True)


@torch.no_grad()
def accuracy(size: int) -> list[dict[str, Any]]:
    """Relative L2 errors of the Shepp-Logan sinogram, as line integrals and as means over each detector."""
    phantom = shepp_logan()
    x = draw(phantom, size, samples=8)[None, None].float()

    def exact(op: Radon) -> tuple[Tensor, Tensor]:
        theta, s = op.lines(op.angles)
        (cy, cx), middle = op.centre, (size - 1) / 2
        s = s + (cx - middle) * theta.cos() - (cy - middle) * theta.sin()  # the phantom's zero is the image's middle
        shifts = (torch.arange(BINS, dtype=torch.float64) - (BINS - 1) / 2) / BINS
        means = torch.stack([line_integrals(phantom, theta, s + shift, size) for shift in shifts]).mean(0)
        return line_integrals(phantom, theta, s, size), means

    found = []
    op = Radon((size, size), VIEWS)
    found.append(("pnp_lofi", op.A(x)[0, 0], exact(op)))
    found.append(("deepinv Tomography", theirs(size).A(x)[0, 0].mT, exact(Radon.like_deepinv(size, VIEWS))))
    skimage = _skimage(x[0, 0], VIEWS)
    found.append(("scikit-image", skimage, exact(Radon.like_skimage(size, VIEWS))))
    return [
        {"size": size, "projector": name, "point": _relative(y, point), "bin": _relative(y, means)}
        for name, y, (point, means) in found
    ]


@torch.no_grad()
def speed(size: int, batch: int, repeats: int) -> list[dict[str, Any]]:
    """Seconds per image."""
    x = draw(shepp_logan(), size)[None, None].float().expand(batch, -1, -1, -1).contiguous()
    op, other = Radon((size, size), VIEWS), theirs(size)
    rows = []
    for name, physics in (("pnp_lofi", op), ("deepinv Tomography", other)):
        few = repeats if physics is op else 1
        with torch.enable_grad():
            y = physics.A(x).detach()
            calls: dict[str, Callable[[], Any]] = {"forward": lambda p=physics: p.A(x)}  # type: ignore[misc]
            calls["adjoint"] = lambda p=physics, y=y: p.A_adjoint(y)  # type: ignore[misc]
            calls["fbp"] = lambda p=physics, y=y: p.fbp(y)  # type: ignore[misc]
            begin = time.perf_counter()
            calls["fbp"]()  # ours has no matrix yet
            first = (time.perf_counter() - begin) / batch
            seconds = {key: timed(call, repeats=few) / batch for key, call in calls.items()} | {"fbp_first": first}
        rows.append({"size": size, "batch": batch, "projector": name} | seconds)
    for row in rows:
        row["pair"] = row["forward"] + row["adjoint"]
        row["over_ours"], row["fbp_over_ours"] = row["pair"] / rows[0]["pair"], row["fbp"] / rows[0]["fbp"]
    for name, quoted in QUOTED.items():
        if size in quoted:
            pair, fbp = (ms / 1000 for ms in quoted[size])
            quoted_row = {"size": size, "batch": batch, "projector": name, "pair": pair, "fbp": fbp}
            quoted_row |= {"over_ours": pair / rows[0]["pair"], "fbp_over_ours": fbp / rows[0]["fbp"]}
            rows.append(quoted_row)
    return rows


@torch.no_grad()
def round_trip(kind: str, size: int, batch: int) -> float:
    """Forward and adjoint once; called in a process of its own for its memory."""
    x = torch.rand(batch, 1, size, size)
    if kind == "import":
        return 0.0
    op = theirs(size) if kind == "deepinv" else Radon((size, size), VIEWS, backend="free" if kind == "free" else "auto")
    with torch.enable_grad():
        return float(op.A_adjoint(op.A(x).detach()).sum())


def memory(size: int, batch: int) -> list[dict[str, Any]]:
    """Peak memory of a process that projects and backprojects, over that of the imports."""
    base = peak_memory_of(round_trip, "import", 8, 1).peak_mb
    names = {"pnp_lofi": "sparse", "pnp_lofi without a matrix": "free", "deepinv Tomography": "deepinv"}
    return [
        {
            "size": size,
            "batch": batch,
            "projector": name,
            "mb": peak_memory_of(round_trip, kind, size, batch).peak_mb - base,
        }
        for name, kind in names.items()
    ]


def attenuation(path: Path, size: int) -> tuple[Tensor, float]:
    """A real slice as linear attenuation [1/mm], (1, 1, size, size), and its pixel size [mm]."""
    import numpy as np
    from pydicom import dcmread

    file = dcmread(path)
    hu = file.pixel_array * float(file.RescaleSlope) + float(file.RescaleIntercept)
    x = torch.from_numpy(np.where(hu < -1024, -1000.0, hu))[None, None].float()
    x = interpolate(x, (size, size), mode="bilinear", antialias=True)
    return (WATER * (1 + x / 1000)).clamp(min=0), float(file.PixelSpacing[0]) * x.shape[-1] / size


def slices(data: Path) -> list[dict[str, Any]]:
    """FBP of the paper's low-dose set-up (128^2, 180 views, noise of 30 dB) on real slices: PSNR [dB]."""
    import numpy as np
    from skimage.transform import iradon, radon

    theta, op, rng, rows = np.arange(180.0), Radon.like_skimage(128, 180), np.random.default_rng(0), []
    for folder in ("chest", "head"):
        scores: dict[str, list[float]] = {"pnp_lofi": [], "by the adjoint of A": [], "scikit-image": []}
        for path in sorted((data / "ct" / folder).glob("*.dcm")):
            x = attenuation(path, 128)[0][0, 0].double()
            x = (x - x.min()) / (x.max() - x.min())
            sinogram = radon(x.numpy(), theta, circle=False)
            sinogram += 10 ** (-30 / 20) * np.sqrt(np.mean(sinogram**2)) * rng.standard_normal(sinogram.shape)
            y = torch.from_numpy(sinogram.T.copy())[None, None]
            scores["pnp_lofi"].append(_psnr(op.fbp(y)[0, 0], x))
            scores["by the adjoint of A"].append(_psnr(op.A_adjoint(ramp_filter(y, 1.0))[0, 0] * math.pi / VIEWS, x))
            scores["scikit-image"].append(_psnr(torch.from_numpy(iradon(sinogram, theta, circle=False)), x))
        rows += [{"slices": folder, "count": len(v), "fbp": k, "psnr": mean(v)} for k, v in scores.items()]
    return rows


def methods(op: Radon, y: Tensor, prior: LoFiPrior) -> dict[str, Callable[[], Tensor]]:
    weighted = Weighted(op, op.noise_model.weights(y), sigma=1.0)
    return {
        "FBP, ramp": lambda: op.fbp(y),
        "FBP, Hann, cut-off 0.6": lambda: op.fbp(y, filter="hann", cutoff=0.6),
        "ADMM": lambda: ADMM(op, prior)(y),
        "ADMM, weighted": lambda: ADMM(weighted, prior)(weighted.whiten(y)),
    }


def low_dose(data: Path, size: int = 256, photons: float = 1e4) -> dict[str, Any]:
    """Chest slices with photon noise: the untuned solver with and without weights beside FBP, PSNR [dB] and seconds."""
    prior = LoFiPrior("natural")
    scores: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for path in sorted((data / "ct" / "chest").glob("*.dcm")):
        x, pixel = attenuation(path, size)
        op = Radon((size, size), VIEWS, pixel_size=pixel, noise_model=LowDose(photons))
        torch.manual_seed(0)
        y = op(x)
        op.fbp(y)  # builds its matrix
        for name, method in methods(op, y, prior).items():
            begin = time.perf_counter()
            found = method()
            seconds.setdefault(name, []).append(time.perf_counter() - begin)
            scores.setdefault(name, []).append(_psnr(found, x))
    rows = [{"method": name, "psnr": mean(scores[name]), "seconds": mean(seconds[name])} for name in scores]
    return {"size": size, "photons": photons, "rows": rows}


def _psnr(x: Tensor, truth: Tensor) -> float:
    return 20 * math.log10(float(truth.max() - truth.min()) / float((x - truth).square().mean().sqrt()))


def _skimage(x: Tensor, views: int) -> Tensor:
    import numpy as np
    from skimage.transform import radon

    sinogram = radon(x.double().numpy(), np.arange(views) * 180 / views, circle=False)
    return torch.from_numpy(sinogram.T.copy())


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


def measure(sizes: list[int], repeats: int, data: Path) -> dict[str, Any]:
    """Everything, as the JSON has it."""
    from benchmarks import ct_gpu

    found: dict[str, Any] = {"views": VIEWS, "accuracy": [row for size in sizes for row in accuracy(size)]}
    found["speed"] = [row for size in sizes for batch in (1, 8) for row in speed(size, batch, repeats)]
    found["memory"] = memory(max(sizes), 8)
    if (data / "ct").is_dir():
        found |= {"slices": slices(data), "low_dose": low_dose(data)}
    found["gpu"] = ct_gpu.rows()
    return found
