"""The three-line program over all operators, beside other priors; LoFi-ADMM as published at 128 to 1024; stability.

TV and wavelets go through the same ADMM, BM3D through HQS. LoFi and BM3D take the noise level that the solver chooses;
TV and wavelets have a strength, which is searched for each operator on an image of its own that is not scored.
"""

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepinv.models import BM3D, TVDenoiser, WaveletDenoiser
from deepinv.physics.functional import gaussian_blur
from torch import Tensor

from benchmarks.common import ROOT, mean, need, parser, report, set12, start
from benchmarks.ct import attenuation
from pnp_lofi import ADMM, HQS, PGD, RED, LoFiPrior, Solver
from pnp_lofi.leaves import dead_leaves
from pnp_lofi.metrics import psnr
from pnp_lofi.operators import (
    NUFFT,
    Blur,
    Downsample,
    FanBeam,
    Fourier,
    KaiserSquires,
    Mask,
    Operator,
    Radon,
    meerkat_uv,
    radial_lines,
    random_mask,
)
from pnp_lofi.priors import Averaged
from pnp_lofi.skies import radio_sky
from pnp_lofi.stability import lipschitz

SIDE = 256
STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of TV and wavelets, times what ADMM chooses for sigma_d
TV_INNER = 20  # iterations of the TV denoiser in each of ADMM's, warm-started
SLOW = ("BM3D",)  # one image an operator, in HQS, which calls it half as often
PUBLISHED = {"sigma_n": 0.0, "sigma_d": 0.15, "alpha": 0.05, "max_iter": 90, "tol": 0.0}  # arXiv 2411.04995
KEEP, SIDES = 0.3, (128, 256, 512, 1024)


@dataclass(frozen=True)
class Problem:
    """:param Callable build: image -> operator with its noise level; list images: the first is for tuning only."""

    name: str
    build: Callable[[Tensor], Operator]
    images: list[Tensor]
    prior: str = "natural"
    sigma_n: float | None = None  # None: as the operator says


class Strength(torch.nn.Module):
    """A denoiser of deepinv's called at a multiple of sigma; one for each image where it remembers the last."""

    def __init__(self, denoiser: torch.nn.Module, strength: float) -> None:
        super().__init__()
        self.denoiser, self.strength = denoiser, strength

    def forward(self, x: Tensor, sigma: float) -> Tensor:
        return self.denoiser(x, self.strength * sigma)


def with_noise(make: Callable[..., Operator], decibel: float) -> Callable[[Tensor], Operator]:
    """An operator whose noise is so many dB below its data."""

    def build(x: Tensor) -> Operator:
        data = make().A(x)
        part = 2 if data.is_complex() else 1
        return make(sigma=float(data.abs().square().mean() / part) ** 0.5 * 10 ** (-decibel / 20))

    return build


def problems(data: Path) -> Iterator[Problem]:
    """Held-out images: Set12, chest slices (tuned on a head), kappaTNG, procedural skies of seeds not trained on."""
    S = (SIDE, SIDE)
    photos = [x for x in set12(data).values() if x.shape[-2:] == S][:3]
    slices = [data / "ct" / "head" / "12.dcm", *sorted((data / "ct" / "chest").glob("*.dcm"))[:2]]
    chest = [x / x.max() for x in (attenuation(path, SIDE)[0] for path in slices)]
    skies = [radio_sky(1, SIDE, seed=seed) for seed in (20_030, 20_031, 20_032)]
    soft, wide = gaussian_blur(sigma=(1.6, 1.6)), gaussian_blur(sigma=(3.0, 3.0))
    yield Problem("Mask, 30 % of the pixels, exact", lambda x: Mask(random_mask(S, KEEP)), photos, sigma_n=0.0)
    yield Problem("Mask, 30 %, noise .05", lambda x: Mask(random_mask(S, KEEP), sigma=0.05), photos)
    yield Problem("Blur 1.6 px, noise .01", lambda x: Blur(S, soft, sigma=0.01), photos)
    yield Problem("Blur 3 px, noise .03", lambda x: Blur(S, wide, boundary="reflect", sigma=0.03), photos)
    yield Problem("Downsample 2 x 2, noise .01", lambda x: Downsample(S, 2, "bicubic", sigma=0.01), photos)
    yield Problem("Downsample 4 x 4, noise .02", lambda x: Downsample(S, 4, "box", sigma=0.02), photos)
    yield Problem("Fourier, 40 spokes, noise .01", lambda x: Fourier(radial_lines(S, 40), sigma=0.01), photos)
    yield Problem("Radon, 180 views, 40 dB", with_noise(lambda **s: Radon(S, 180, **s), 40), chest)
    yield Problem("Radon, 60 views, 40 dB", with_noise(lambda **s: Radon(S, 60, **s), 40), chest)
    fan = {"source_origin": 2.0 * SIDE, "source_detector": 3.0 * SIDE}
    yield Problem("FanBeam, 180 views, 40 dB", with_noise(lambda **s: FanBeam(S, 180, **fan, **s), 40), chest)
    yield Problem("KaiserSquires, masked, noise .05", masked_shear, kappas(data))
    uv = meerkat_uv(hours=2)
    yield Problem("NUFFT, MeerKAT 2 h, 30 dB", with_noise(lambda **s: NUFFT(S, uv, **s), 30), skies, "radio")


def kappas(data: Path) -> list[Tensor]:
    """Two parts of the kappaTNG map that do not overlap, of mean zero."""
    from astropy.io import fits

    path = data / "lensing" / "ktng" / "ktng_cosmos_kappa360.fits"
    need(path)
    kappa = torch.from_numpy(fits.getdata(path).astype("float32"))[None, None]
    parts = [kappa[..., 180:, 180:], kappa[..., :180, :180]]
    return [(x - x.mean()).contiguous() for x in parts]


def masked_shear(x: Tensor) -> Operator:
    shape = (x.shape[-2], x.shape[-1])
    mask = torch.ones(shape, dtype=torch.bool)
    for row, column, side in ((30, 100, 24), (120, 40, 30), (90, 140, 12)):
        mask[row : row + side, column : column + side] = False
    return KaiserSquires(shape, mask, sigma=0.05)


def deepinv_priors() -> dict[str, Callable[[float], torch.nn.Module]]:
    """deepinv's denoisers that need no download, by name; TV and wavelets take a strength."""
    return {
        "TV": lambda strength: Strength(TVDenoiser(n_it_max=TV_INNER), strength),
        "wavelets": lambda strength: Strength(WaveletDenoiser(level=3, wv="db4"), strength),
        "BM3D": lambda strength: BM3D(),
    }


def solve(
    problem: Problem, x: Tensor, prior: Callable[[], torch.nn.Module], solver: type[Solver] = ADMM
) -> dict[str, float]:
    """PSNR [dB], range max - min of the truth, and seconds without what is built once for an operator."""
    op = problem.build(x)
    torch.manual_seed(0)
    y = op(x)
    op.A_adjoint_A(torch.zeros_like(x))
    begin = time.perf_counter()
    found = solver(op, prior(), nonneg=problem.prior == "radio", sigma_n=problem.sigma_n).solve(y)
    return {"psnr": psnr(found.x, x), "seconds": time.perf_counter() - begin}


def over_operators(data: Path, *, slow: bool) -> list[dict[str, Any]]:
    """Every method on every operator, mean over its images."""
    rows: list[dict[str, Any]] = []
    lofi = {name: LoFiPrior(name, precision="auto") for name in ("natural", "radio")}
    for problem in problems(data):
        tuning, *images = problem.images
        ours = functools.partial(lofi.get, problem.prior)
        methods = {f"LoFi, {kind.__name__}": _mean([solve(problem, x, ours, kind) for x in images])
                   for kind in (ADMM, HQS, PGD, RED)}  # fmt: skip
        for name, make in deepinv_priors().items():
            if name in SLOW and not slow:
                continue
            strength, few = 1.0, images[:1] if name in SLOW else images
            if name not in SLOW:
                scores = {s: solve(problem, tuning, functools.partial(make, s))["psnr"] for s in STRENGTHS}
                strength = max(scores, key=lambda s: scores[s])
            kind = HQS if name in SLOW else ADMM
            found = _mean([solve(problem, x, functools.partial(make, strength), kind) for x in few])
            first = methods["LoFi, ADMM"]["each"][: len(few)]
            methods[name] = found | {"strength": strength, "count": len(few), "gain": mean(first) - found["psnr"]}
        rows.append({"operator": problem.name, "images": len(images), "methods": methods})
        figures = ", ".join(f"{k} {v['psnr']:.2f} ({v['seconds']:.1f} s)" for k, v in methods.items())
        print(f"{problem.name}: {figures}", flush=True)
    return rows


def _mean(found: list[dict[str, float]]) -> dict[str, Any]:
    each = [f["psnr"] for f in found]
    return {"psnr": mean(each), "seconds": mean([f["seconds"] for f in found]), "each": each}


def resolution(data: Path) -> list[dict[str, Any]]:
    """Inpainting as published, at four sizes: corners of one picture of dead leaves, and M31 averaged down to each."""
    from astropy.io import fits

    need(data / "radio" / "M31_1024.fits")
    sky = torch.from_numpy(fits.getdata(data / "radio" / "M31_1024.fits").astype("float32").squeeze())[None, None]
    sky = (sky.clamp_min(0) / sky.max()) ** 0.4  # as pictures of it are shown
    leaves, rows, prior = dead_leaves(1, SIDES[-1], seed=20_040)[:, :1], [], LoFiPrior("natural", precision="auto")
    for side in SIDES:
        ends = (slice(None, side), slice(-side, None))
        pictures = {
            "dead leaves, corners": leaves
            if side == SIDES[-1]
            else torch.cat([leaves[..., r, c] for r in ends for c in ends]),
            "M31, gamma 0.4": torch.nn.functional.interpolate(sky, (side, side), mode="area"),
        }
        for name, x in pictures.items():
            op = Mask(random_mask((side, side), KEEP))
            y = op.A(x)
            row: dict[str, Any] = {"image": name, "side": side}
            for method, options in {"as published": PUBLISHED, "untuned": {"sigma_n": 0.0}}.items():
                begin = time.perf_counter()
                found = ADMM(op, prior, **options)(y)  # type: ignore[arg-type]
                row[method] = {"psnr": psnr(found, x, 1.0), "seconds": (time.perf_counter() - begin) / len(x)}
                if method == "as published" and side in (SIDES[0], SIDES[-1]) and name.startswith("M31"):
                    row[method]["panels"] = (y, found, x)
            rows.append(row)
            print(row["image"], side, *(f"{m}: {row[m]['psnr']:.2f}" for m in ("as published", "untuned")), flush=True)
    draw(rows)
    return rows


def draw(rows: list[dict[str, Any]]) -> None:
    """docs/images/resolution.png: the curves, and the coarsest and finest picture."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(15, 7.5), constrained_layout=True)
    grid = axes[0, 0].get_gridspec()
    for ax in axes[:, 0]:
        ax.remove()
    curve = figure.add_subplot(grid[:, 0])
    for name in dict.fromkeys(row["image"] for row in rows):
        for method, line in {"as published": "o-", "untuned": "s--"}.items():
            points = [(row["side"], row[method]["psnr"]) for row in rows if row["image"] == name]
            curve.plot(*zip(*points, strict=True), line, label=f"{name}, {method}")
    curve.set(xscale="log", xticks=SIDES, xticklabels=SIDES, xlabel="side [pixel]", ylabel="PSNR [dB]",
              title=f"inpainting, {100 * KEEP:g} % of the pixels")  # fmt: skip
    curve.minorticks_off()
    curve.legend(fontsize=8)
    shown = [row for row in rows if "panels" in row["as published"]]
    for line, row in zip(axes, shown, strict=True):
        titles = ("measured", f"LoFi-ADMM {row['as published']['psnr']:.1f} dB", "truth")
        for ax, image, title in zip(line[1:], row["as published"].pop("panels"), titles, strict=True):
            ax.imshow(image[0, 0], cmap="inferno", vmin=0, vmax=1)
            ax.set_title(f"{row['side']} x {row['side']}: {title}", fontsize=9)
            ax.axis("off")
    figure.savefig(ROOT / "docs" / "images" / "resolution.png", dpi=70)


def stability(data: Path) -> list[dict[str, Any]]:
    """What averaging buys: the residual after many iterations at one level, PSNR, and the prior's derivative there."""
    x = next(iter(set12(data).values()))
    op = Fourier(radial_lines((x.shape[-2], x.shape[-1]), 40), sigma=0.01)
    torch.manual_seed(0)
    y, prior, rows = op(x), LoFiPrior("natural"), []
    for theta in (1.0, 0.7, 0.5):
        solver = ADMM(op, Averaged(prior, theta), max_iter=200, tol=0)
        found = solver.solve(y, truth=x)
        crop, level = found.x[..., 64:160, 64:160], found.metrics["sigma_d"]
        rows.append({"theta": theta, "residual": max(found.residuals[-1]), "psnr": found.metrics["psnr"],
                     "default_psnr": psnr(ADMM(op, Averaged(prior, theta))(y), x),
                     "lipschitz": lipschitz(solver.prior, crop, level),
                     "lipschitz_residual": lipschitz(solver.prior, crop, level, residual=True)})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    made = parser(__doc__, "solvers", data=True)
    made.add_argument("--without-bm3d", action="store_true", help="leave out BM3D, which takes minutes an image")
    args = start(made)
    need(args.data / "natural", args.data / "ct", args.data / "lensing", args.data / "radio")
    report("stability", {"stability": stability(args.data)}, args.results)
    payload: dict[str, Any] = {"side": SIDE, "keep": KEEP, "strengths": STRENGTHS}
    payload["resolution"] = resolution(args.data)
    payload["operators"] = over_operators(args.data, slow=not args.without_bm3d)
    report("solvers", payload, args.results)


if __name__ == "__main__":
    main()
