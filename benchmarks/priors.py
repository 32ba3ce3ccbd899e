"""The priors' cards: denoising, reconstruction, speed and a picture of each, in five parts.

`denoise`: Set12, and a matrix of every prior on held-out images of every kind, procedural ones of other seeds and real
ones. `recon`: six inverse problems by ADMM with default parameters. `steady`: 300 iterations of it. `speed`: one
512 x 512 image. `cards`: what each checkpoint says of itself, its picture, and the crop on which it gains least. Priors
are those that are shipped and those in --work; a DRU-Net there (`pnp-lofi train KIND --network DRU-Net`) is put in the
same slot. Each part has a JSON of its own, in which rows of priors that are not measured anew are kept.
"""

import copy
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepinv.models import Denoiser, DnCNN, DRUNet
from deepinv.physics.functional import gaussian_blur
from torch import Tensor

from benchmarks.common import RESULTS, ROOT, mean, need, parser, report, set12, start, timed
from benchmarks.ct import attenuation
from benchmarks.radio_m31 import quantifai_case
from benchmarks.sharing import HELD_OUT
from benchmarks.solvers import Problem, kappas, masked_shear, solve, with_noise
from pnp_lofi import ADMM, LoFiPrior
from pnp_lofi.baselines import Baseline
from pnp_lofi.checkpoint import find_checkpoint, load_checkpoint, read_tensors, rounded, shipped
from pnp_lofi.figures import Panel, save_figure
from pnp_lofi.hounsfield import WATER
from pnp_lofi.images import load_image
from pnp_lofi.metrics import psnr, snr
from pnp_lofi.operators import Blur, Downsample, Mask, Radon, random_mask
from pnp_lofi.sources import KINDS, Kind
from pnp_lofi.supervised import answer

LEVELS = {"15/255": 15 / 255, "25/255": 25 / 255, "50/255": 50 / 255}  # of Set12
MATRIX = {"0.01": 0.01, "0.1": 0.1}
SEED = 20_000  # of held-out procedural images; training has seeds below, their validation 10,000
COUNT, SIDE, QUICK_SIDE = 4, 256, 64
TIMED_SIDE = 512  # of the image that is timed [pixel]
CROP, CROPS = 96, 8  # of each kind, among which the worst is looked for
STORED = (1e-4, 1e-2)  # levels at which the cost of storing float16 is measured
SHOWN = {"radio": (0.01, 0.1)}  # middle and high level of a picture
SHOWN_ELSE = (0.1, 0.3)
SHOWN_PART = slice(64, 192)  # of its sides [pixel]
STRETCH = {"radio": 100.0}  # of a picture: brightness is shown as asinh(stretch x)
PARTS = ("denoise", "recon", "steady", "speed", "cards")
STEADY, LONG = ("deblurring", "CT", "mass map"), 300  # problems, by the beginnings of their names, and iterations
RADIO = "M31, MeerKAT 1 h, SNR"
Priors = dict[str, Denoiser]
# Set12 means [dB]
REFERENCE: dict[str, dict[str, Any]] = {
    "BM3D": {"15/255": 32.37, "25/255": 29.97, "50/255": 26.72, "source": "published Set12 means"},
    "DnCNN": {"15/255": 32.86, "25/255": 30.44, "50/255": 27.18, "source": "published Set12 means, a network a level"},
    "FFDNet": {"15/255": 32.75, "25/255": 30.43, "50/255": 27.32, "source": "published Set12 means"},
    "DRUNet": {"15/255": 33.25, "25/255": 30.94, "50/255": 27.90, "source": "published Set12 means"},
}


class Network(Denoiser):
    """A network of the literature, trained as the priors are, in their slot."""

    def __init__(self, model: Baseline, header: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.header = model, header

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: Any) -> Tensor:
        """:param torch.Tensor x: (B, C, H, W); one channel after the other where the network has one."""
        folded = x if self.model.in_channels == x.shape[1] else x.reshape(-1, 1, *x.shape[-2:])
        return answer(self.model, folded, sigma).reshape(x.shape)


def checkpoints(work: Path | None, names: list[str] | None) -> dict[str, Path]:
    """Denoisers that are shipped or lie in a folder, which comes first, by the names of their files."""
    paths = {name: find_checkpoint(name) for name in shipped()}
    paths |= {path.stem: path for path in sorted(work.glob("*.safetensors"))} if work else {}
    found = {name: path for name, path in paths.items() if read_tensors(path)[1].get("recipe", "prior") == "prior"}
    if unknown := set(names or ()) - found.keys():
        raise SystemExit(f"no prior named {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    return {name: path for name, path in found.items() if names is None or name in names}


def load(path: Path) -> Denoiser:
    model, header = load_checkpoint(path)
    return Network(model, header) if isinstance(model, Baseline) else LoFiPrior(path, precision="auto")


def fits(prior: Denoiser, x: Tensor) -> bool:
    """Whether a prior takes images of so many channels."""
    return prior.model.in_channels in (1, x.shape[1])


def noisy(x: Tensor, sigma: float) -> Tensor:
    return x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


# ---- images ----------------------------------------------------------------------------------------------------------


def held_out(data: Path | None, side: int, count: int) -> dict[str, list[Tensor]]:
    """(1, C, H, W) of range 1 by kind: procedural, and real ones where the data are here."""
    found = {f"{kind} (procedural)": list(about.images(count, side, SEED).split(1)) for kind, about in KINDS.items()}
    if data is None:
        return found
    found["M31"] = [unit(load_image(data / "radio" / "M31_256.fits"))]
    found["CT slices"] = [(x / (2 * WATER)).clamp(max=1) for x in slices(data)]
    return found | {"kappaTNG": [unit(x) for x in kappas(data)], "colour photographs": photographs(side)}


def slices(data: Path) -> list[Tensor]:
    """Two real chests and two heads, as attenuation [1/mm]."""
    paths = [path for part in ("chest", "head") for path in sorted((data / "ct" / part).glob("*.dcm"))[:2]]
    return [attenuation(path, SIDE)[0] for path in paths]


def photographs(side: int) -> list[Tensor]:
    """The corners of scikit-image's held-out photographs that have colour."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    return [x[..., :side, :side] for name in HELD_OUT if len((x := load_image(folder / f"{name}.png"))[0]) == 3]


def unit(x: Tensor) -> Tensor:
    return (x - x.min()) / (x.max() - x.min())


@torch.no_grad()
def quality(
    prior: Callable[[Tensor, float], Tensor], images: list[Tensor], levels: dict[str, float]
) -> dict[str, float]:
    """PSNR [dB] by level, range 1, mean over images."""
    return {
        label: mean([psnr(prior(noisy(x, sigma), sigma), x, 1.0) for x in images]) for label, sigma in levels.items()
    }


# ---- parts: (priors, data or None for a quick run) -> payload, whose rows each have a "prior" ------------------------


def denoise(priors: Priors, data: Path | None) -> dict[str, Any]:
    sets = held_out(data, *((SIDE, COUNT) if data else (QUICK_SIDE, 1)))
    photos = list(set12(data).values()) if data else sets["natural (procedural)"]
    rows = [{"prior": "noisy", "set12": quality(lambda x, sigma: x, photos, LEVELS),
             "sets": {kind: quality(lambda x, sigma: x, images, MATRIX) for kind, images in sets.items()}}]  # fmt: skip
    for name, prior in priors.items():
        row: dict[str, Any] = {"prior": name, "parameters": sum(p.numel() for p in prior.parameters())}
        row["set12"] = quality(prior, photos, LEVELS) if fits(prior, photos[0]) else {}
        row["sets"] = {kind: quality(prior, x, MATRIX) for kind, x in sets.items() if fits(prior, x[0])}
        rows.append(row)
        print(f"{name}: {row['set12'] or row['sets']}", flush=True)
    return {"rows": rows, "images": len(photos), "levels": list(LEVELS), "matrix": list(MATRIX), "reference": REFERENCE}


def problems(data: Path | None) -> list[Problem]:
    """The first image of a problem is not for tuning here."""
    side = SIDE if data else QUICK_SIDE
    S = (side, side)
    sets = held_out(None, side, 1)
    photos = [x for x in set12(data).values() if x.shape[-2:] == S][:2] if data else sets["natural (procedural)"]
    colour = photographs(side) if data else sets["natural-rgb (procedural)"]
    bodies = [x / x.max() for x in slices(data)[:2]] if data else sets["ct (procedural)"]
    mass = kappas(data) if data else [0.5 * x for x in sets["kappa (procedural)"]]
    soft = gaussian_blur(sigma=(1.6, 1.6))
    return [
        Problem("inpainting, 30 % kept", lambda x: Mask(random_mask(S, 0.3)), photos, sigma_n=0.0),
        Problem("the same, colour", lambda x: Mask(random_mask(S, 0.3)), colour, sigma_n=0.0),
        Problem("deblurring, 1.6 px, noise .01", lambda x: Blur(S, soft, sigma=0.01), photos),
        Problem("x2 super-resolution, noise .01", lambda x: Downsample(S, 2, "bicubic", sigma=0.01), photos),
        Problem("CT, 60 angles, 40 dB", with_noise(lambda **s: Radon(S, 60, **s), 40), bodies),
        Problem("mass map, masked, noise .05", masked_shear, mass),
    ]


def recon(priors: Priors, data: Path | None) -> dict[str, Any]:
    cases, rows = problems(data), []
    radio = quantifai_case(1, data) if data else None
    if radio is None:
        print(f"skipped: {RADIO}, whose data are not here", file=sys.stderr)
    for name, prior in priors.items():
        found: dict[str, dict[str, float]] = {}
        for case in cases:
            if fits(prior, case.images[0]):
                each = [solve(case, x, lambda prior=prior: prior) for x in case.images]  # type: ignore[misc]
                found[case.name] = {key: mean([e[key] for e in each]) for key in ("psnr", "seconds")}
        if radio is not None and fits(prior, radio.truth):
            begin = time.perf_counter()
            x = ADMM(radio.op, prior, nonneg=True)(radio.y)
            found[RADIO] = {"psnr": snr(x, radio.truth), "seconds": time.perf_counter() - begin}
        rows.append({"prior": name, "problems": found})
        print(f"{name}: {found}", flush=True)
    names = [case.name for case in cases] + [RADIO] * (radio is not None)
    return {"rows": rows, "problems": names, "side": SIDE if data else QUICK_SIDE}


def steady(priors: Priors, data: Path | None) -> dict[str, Any]:
    """ADMM for many iterations: the best PSNR on the way, the last, and how much the last iteration changes."""
    cases: list[tuple[str, Any, Tensor, Tensor, Any, dict[str, Any]]] = []
    for case in problems(data):
        if case.name.startswith(STEADY):
            x = case.images[0]
            op = case.build(x)
            torch.manual_seed(0)
            cases.append((case.name, op, op(x), x, psnr, {"sigma_n": case.sigma_n}))
    if data:
        radio = quantifai_case(1, data)
        cases.append((RADIO, radio.op, radio.y, radio.truth, snr, {"nonneg": True}))
    rows, count = [], LONG if data else 10
    for name, prior in priors.items():
        found: dict[str, dict[str, float]] = {}
        for problem, op, y, x, measure, options in cases:
            if fits(prior, x):
                curve: list[float] = []
                follow = partial(_follow, curve, measure, x)
                change = ADMM(op, prior, max_iter=count, tol=0.0, callback=follow, **options).solve(y).residuals[-1][1]
                best = max(range(len(curve)), key=curve.__getitem__)
                found[problem] = {"best": curve[best], "at": best + 1, "last": curve[-1], "change": change}
        rows.append({"prior": name, "problems": found})
        print(f"{name}: {found}", flush=True)
    return {"rows": rows, "problems": [name for name, *_ in cases], "iterations": count}


def _follow(curve: list[float], measure: Callable[[Tensor, Tensor], float], truth: Tensor, at: Any) -> None:
    curve.append(measure(at.x, truth))


@torch.no_grad()
def speed(priors: Priors, data: Path | None) -> dict[str, Any]:
    """DnCNN and DRUNet have random weights: only their seconds are measured."""
    side = TIMED_SIDE if data else QUICK_SIDE
    theirs = {"DnCNN (deepinv)": DnCNN(in_channels=1, out_channels=1, pretrained=None).eval(),
              "DRUNet (deepinv)": DRUNet(in_channels=1, out_channels=1, pretrained=None).eval()}  # fmt: skip
    rows = []
    for name, prior in (priors | theirs).items():
        channels = prior.model.in_channels if name in priors else 1
        x = torch.rand((1, channels, side, side), generator=torch.Generator().manual_seed(0))
        calls: dict[str, Denoiser] = {"float32": prior}
        if isinstance(prior, LoFiPrior):
            calls = {p: LoFiPrior(prior.model, precision=p) for p in ("float32", "bfloat16")}
        row: dict[str, Any] = {"prior": name, "channels": channels}
        row["parameters"] = sum(p.numel() for p in prior.parameters())
        row |= {p: timed(partial(call, x, 25 / 255), repeats=3 if data else 1) for p, call in calls.items()}
        rows.append(row)
        print(row, flush=True)
    return {"rows": rows, "side": side}


def cards(priors: Priors, data: Path | None, paths: dict[str, Path], figures: Path) -> dict[str, Any]:
    rows = []
    for name, prior in priors.items():
        stored = read_tensors(paths[name])[0].values()
        row: dict[str, Any] = {"prior": name, "architecture": type(prior.model).__name__, "header": prior.header}
        row |= {"parameters": sum(p.numel() for p in prior.parameters()), "bytes": paths[name].stat().st_size}
        row |= {"stored": " and ".join(sorted({str(w.dtype).removeprefix("torch.") for w in stored}))}
        row["rounding"] = {f"{sigma:g}": rounding(prior, KINDS[kind_of(name, prior)], sigma) for sigma in STORED}
        row["picture"] = f"prior_{name}.png"
        row["failure"] = draw(name, prior, figures / row["picture"], quick=data is None)
        rows.append(row)
    return {"rows": rows}


def kind_of(name: str, prior: Denoiser) -> str:
    """The kind of images that a prior is for: the longest that its name begins with."""
    known = [
        kind for kind in KINDS if name.startswith(kind) and fits(prior, torch.empty(1, KINDS[kind].channels, 1, 1))
    ]
    return max(known, key=len) if known else "natural-rgb" if prior.model.in_channels == 3 else "natural"


@torch.no_grad()
def rounding(prior: Denoiser, kind: Kind, sigma: float, seed: int = SEED) -> float:
    """What storing float16 changes: rms over sigma, on held-out images.

    Weights that are stored so already are first moved at random by up to half a unit in the last place: any of those
    may have been what was rounded.
    """
    whole, g = copy.deepcopy(prior), torch.Generator().manual_seed(seed)
    for w in whole.model.parameters():
        unit_of_last = torch.exp2((torch.frexp(w).exponent - 11).clamp_min(-24).float())
        w.add_(unit_of_last * (torch.rand(w.shape, generator=g) - 0.5))
    half = copy.deepcopy(whole)
    half.model.load_state_dict(rounded(whole.model.state_dict(), torch.float16))
    y = noisy(kind.images(2, CROP, seed), sigma)
    return float((half(y, sigma) - whole(y, sigma)).square().mean().sqrt() / sigma)


@torch.no_grad()
def draw(name: str, prior: Denoiser, path: Path, *, quick: bool) -> dict[str, Any]:
    """A held-out image at two levels, and of crops of all kinds the one that gains least; returns what that was."""
    kind, side = kind_of(name, prior), QUICK_SIDE if quick else CROP
    levels = SHOWN.get(kind, SHOWN_ELSE)
    image = KINDS[kind].images(1, SIDE, SEED)[..., SHOWN_PART, SHOWN_PART]
    worst: tuple[dict[str, Any], Tensor, Tensor, Tensor] | None = None
    for other, about in KINDS.items():
        crops = about.images(1 if quick else CROPS, side, SEED + 1).split(1)
        for number, x in enumerate(crops if fits(prior, crops[0]) else ()):
            y = noisy(x, levels[0])
            out = prior(y, levels[0])
            gain = psnr(out, x, 1.0) - psnr(y, x, 1.0)
            if worst is None or gain < worst[0]["gain"]:
                worst = ({"kind": other, "number": number, "sigma": levels[0], "gain": gain}, x, y, out)
    assert worst is not None
    panels = [(image, y, prior(y, sigma), f"sigma {sigma:g}") for sigma in levels for y in [noisy(image, sigma)]]
    panels.append((*worst[1:], f"gains least, sigma {levels[0]:g}"))
    shown = [
        Panel(title, x[0], (0, 1), stretch=STRETCH.get(kind, 0.0))
        for clean, y, out, told in panels
        for title, x in (("clean", clean), (f"{told}: {psnr(y, clean, 1.0):.1f} dB", y),
                         (f"denoised: {psnr(out, clean, 1.0):.1f} dB", out))
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(path, shown, columns=3, overwrite=True)
    return worst[0]


def merged(part: str, payload: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The payload with the rows of an earlier run, of priors that were not measured anew, before its own."""
    before = folder / f"priors_{part}.json"
    kept = json.loads(before.read_text())["rows"] if before.is_file() else []
    new = {row["prior"]: row for row in payload["rows"]}
    rows = [new.pop(row["prior"], row) for row in kept]
    return payload | {"rows": rows + list(new.values())}


def main() -> None:
    made = parser(__doc__, "priors", data=True)
    made.add_argument("--work", type=Path, help="folder with more checkpoints")
    made.add_argument("--priors", nargs="+", metavar="NAME", help="only these, by the names of their files")
    made.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="which parts")
    made.add_argument("--figures", type=Path, default=ROOT / "docs" / "images", help="folder of the pictures")
    made.add_argument("--quick", action="store_true", help="tiny procedural images only; give it --results of its own")
    args = start(made)
    if not args.quick:
        need(*(args.data / part for part in ("natural", "radio", "ct", "lensing")))
    if args.quick and args.results == RESULTS:
        made.error("--quick measures nothing that the docs should show: give it --results FOLDER")
    paths = checkpoints(args.work, args.priors)
    priors, data = {name: load(path) for name, path in paths.items()}, None if args.quick else args.data
    parts: dict[str, Callable[[Priors, Path | None], dict[str, Any]]] = {
        "denoise": denoise, "recon": recon, "steady": steady, "speed": speed,
        "cards": partial(cards, paths=paths, figures=args.figures),
    }  # fmt: skip
    for part in args.only:
        report(f"priors_{part}", merged(part, parts[part](priors, data), args.results), args.results)


if __name__ == "__main__":
    main()
