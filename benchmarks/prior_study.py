"""How the priors are trained, and what else might make them better: one change at a time, from the same seed.

Size S of "natural" as it was before is trained for few steps with one thing changed: network, crops, loss, noise
levels, images, precision. What was taken over since is larger patches and crops, squares and fabrics.
Then what can be done with a finished prior: the mean of its answers to 8 turned images; and matches from elsewhere,
means of the noisy image's pixels over places whose surroundings look alike in the prior's own answer (non-local means,
guided), which a second small network reads beside that answer, and beside it the same network without the matches. More
shapes are compared by benchmarks.sharing. Runs from other seeds differ by up to 0.1 dB. --only measures some rows anew.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from benchmarks.common import parser, report, set12, start, write_result
from benchmarks.sharing import LEVELS, SEED, held_out, quality
from pnp_lofi.examples import Example, Noisy
from pnp_lofi.prior_training import BELOW, KNEE, SIZES
from pnp_lofi.priors import LoFiPrior
from pnp_lofi.shared import SharedLoFi
from pnp_lofi.sources import LEVELS as RANGE
from pnp_lofi.sources import MIX, natural_batches
from pnp_lofi.train import TrainSettings, train

TILE, OBJECTS = 32, 8  # side of what is learned from a crop [pixel], crops a step
LARGE = {"tile": 56, "objects": 4}
FORMER: dict[str, Any] = SIZES["S"] | {"patch": 9}
PRIOR = "natural"  # whose answers are turned and matched
REACH, ALIKE = 10, 3  # how far matches are looked for, half a window that is compared [pixel]
WIDTHS = (0.03, 0.12)  # of a match: mean squared difference, in units of the noise's
SIDE, COUNT = 128, 768  # of the images that the second network learns from [pixel]
SECOND: dict[str, Any] = {"window": 7, "filters": 64, "features": 24, "points": 5, "raw": 7, "hidden": (96, 64)}

# what is changed: of the settings, of noise and crops, the parts that are leaves, photographs and fabrics
HALVES = (0.5, 0.5, 0.0)
CHANGES: dict[str, tuple[str, dict[str, Any], dict[str, Any], Sequence[float]]] = {
    "none": ("as it was trained", {}, {}, HALVES),
    "crops": ("4 crops of 56 x 56 learned pixels, not 8 of 32 x 32", {}, LARGE, HALVES),
    "fabrics": ("a fifth of the images fabrics", {}, {}, MIX),
    "l2": ("squares instead of magnitudes", {"loss": "l2", "weight": 1.4}, {}, HALVES),
    "weight-0": ("loss not divided by sigma^0.7", {"weight": 0.0}, {}, HALVES),
    "weight-1": ("loss divided by sigma", {"weight": 1.0}, {}, HALVES),
    "slow": ("half the step of Adam", {"lr": 1e-3}, {}, HALVES),
    "fast": ("twice the step of Adam", {"lr": 4e-3}, {}, HALVES),
    "ema": ("running mean of the weights, 0.998", {"ema": 0.998}, {}, HALVES),
    "float32": ("no step in bfloat16", {"low_precision": 0.0}, {}, HALVES),
    "even": ("levels log-uniform over all of the range", {}, {"knee": None}, HALVES),
    "narrow": ("levels from 0.002 to 0.25", {}, {"knee": None, "levels": (2e-3, 0.25)}, HALVES),
    "leaves": ("dead leaves alone", {}, {}, (1.0, 0.0, 0.0)),
    "photographs": ("photographs alone", {}, {}, (0.0, 1.0, 0.0)),
}
SMALL: dict[str, Any] = {"window": 5, "filters": 16, "features": 8, "points": 1, "raw": 0, "hidden": (8,)}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "former": ("no stages, a raw window, no patches", {}),
    "stages": ("without its patches", FORMER | {"patch": 0}),
    "patches": ("shrunk patches of 9 x 9 and little else", SMALL | {"patch": 9}),
    "one-stage": ("with one stage of three", FORMER | {"stages": FORMER["stages"][:1]}),
    "larger": ("with patches of 13 x 13", SIZES["S"]),
}
AFTER = {"turns": "mean over 8 turns", "again": "a second network", "matches": "a second network that sees matches"}
Denoiser = Callable[[Tensor, float], Tensor]


def trained(model: nn.Module, source: Any, steps: int, **settings: Any) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        chosen = TrainSettings(steps=steps, seed=SEED, **({"low_precision": 0.95} | settings))
        train(model, source, chosen, Path(folder) / "a.safetensors", progress=False)
    return model.eval()


def changed(name: str, steps: int) -> nn.Module:
    """Size S, trained with one thing changed; or another shape, trained as it is."""
    _, settings, noise, parts = CHANGES.get(name, CHANGES["none"])
    torch.manual_seed(SEED)
    model = SharedLoFi(**(SHAPES[name][1] if name in SHAPES else FORMER))
    crop = noise.get("tile", TILE) + 2 * model.reach
    batches = natural_batches(crop, noise.get("objects", OBJECTS), SEED, parts=parts)
    low, high = noise.get("levels", RANGE)
    return trained(model, Noisy(batches, low, high, knee=noise.get("knee", KNEE), below=BELOW), steps, **settings)


def turned(prior: Denoiser, x: Tensor, sigma: float) -> Tensor:
    """Mean of the answers to the 8 turned and flipped images."""
    total = torch.zeros_like(x)
    for k in range(8):
        turn = x.rot90(k % 4, (-2, -1))
        out = prior(turn.flip(-1), sigma).flip(-1) if k >= 4 else prior(turn, sigma)
        total += out.rot90(-(k % 4), (-2, -1)) / 8
    return total


def matches(y: Tensor, pilot: Tensor, sigma: Tensor) -> list[Tensor]:
    """For each width, the mean of y over places that look alike in the pilot, the pilot itself counted as one.

    Images are (B, 1, H, W), sigma (B, 1, 1, 1). Source: non-local means, Buades, Coll, Morel 2005 (CVPR).
    """
    height, width = y.shape[-2:]
    sums, weights = [pilot.clone() for _ in WIDTHS], [torch.ones_like(pilot) for _ in WIDTHS]
    for down in range(REACH + 1):
        for right in range(-REACH, REACH + 1):
            if down == 0 and right <= 0:
                continue
            rows, others = slice(0, height - down), slice(down, height)
            columns, beside = (slice(max(0, s), width + min(0, s)) for s in (-right, right))
            here, there = (..., rows, columns), (..., others, beside)
            unlike = ((pilot[here] - pilot[there]) / sigma).square()
            unlike = avg_pool2d(unlike, 2 * ALIKE + 1, 1, ALIKE, count_include_pad=False)
            for total, weight, scale in zip(sums, weights, WIDTHS, strict=True):
                w = torch.exp(-unlike / scale)
                total[here] += w * y[there]
                total[there] += w * y[here]
                weight[here] += w
                weight[there] += w
    return [total / weight for total, weight in zip(sums, weights, strict=True)]


def seen(y: Tensor, pilot: Tensor, sigma: Tensor, *, matched: bool) -> Tensor:
    return torch.cat([pilot, y, *(matches(y, pilot, sigma) if matched else [])], 1)


@torch.no_grad()
def second_set(prior: Denoiser) -> tuple[Tensor, Tensor, Tensor]:
    """(N, 4, H, W) pilot, noisy, matches; (N, 1, H, W) clean; (N,) levels."""
    batches, g = natural_batches(SIDE, 16, SEED), torch.Generator().manual_seed(SEED)
    parts = []
    for _ in range(COUNT // 16):
        example = Noisy(batches, 8e-3, 0.25)(g)
        assert example.sigma is not None
        level = example.sigma[:, None, None, None]
        parts.append((seen(example.q, prior(example.q, example.sigma), level, matched=True), example.x, example.sigma))
    q, x, sigma = (torch.cat(each) for each in zip(*parts, strict=True))
    return q, x, sigma


def second(data: tuple[Tensor, Tensor, Tensor], steps: int, *, matched: bool) -> nn.Module:
    """A network that answers, in each of its channels, with the clean image."""
    q, x, sigma = data
    channels = q.shape[1] if matched else 2
    torch.manual_seed(SEED)
    model = SharedLoFi(channels, **SECOND)
    size = TILE + 2 * model.reach

    def source(g: torch.Generator) -> Example:
        chosen = torch.randint(len(q), (OBJECTS,), generator=g)
        top, left = torch.randint(REACH, SIDE - size - REACH + 1, (2,), generator=g).tolist()
        part = (..., slice(top, top + size), slice(left, left + size))
        clean = x[chosen][part].expand(-1, channels, -1, -1)
        return Example(q[chosen][part][:, :channels].contiguous(), clean, sigma[chosen])

    return trained(model, source, steps)


def after(name: str, steps: int, data: Callable[[], tuple[Tensor, Tensor, Tensor]]) -> Denoiser:
    prior = LoFiPrior(PRIOR, precision="auto")
    if name == "turns":
        return partial(turned, prior)
    matched = name == "matches"
    model = second(data(), steps, matched=matched)

    def answer(y: Tensor, sigma: float) -> Tensor:
        level = torch.full((len(y), 1, 1, 1), sigma)
        out: Tensor = model(seen(y, prior(y, sigma), level, matched=matched), sigma)
        return out[:, :1]

    return answer


def main() -> None:
    made = parser(__doc__, "prior_study", data=True)
    names = [*CHANGES, *SHAPES, "prior", *AFTER]
    made.add_argument("--steps", type=int, default=700, help="of training, each network")
    made.add_argument("--only", nargs="+", choices=names, default=names, help="which rows")
    args = start(made)
    titles = {name: row[0] for name, row in [*CHANGES.items(), *SHAPES.items()]}
    titles |= AFTER | {"prior": f"the shipped {PRIOR}"}
    photographs, test = held_out(), set12(args.data)
    payload: dict[str, Any] = {"steps": args.steps, "levels": LEVELS}
    before = args.results / "prior_study.json"
    found = json.loads(before.read_text()) if before.is_file() else {}
    kept = {
        row["name"]: row | {"title": titles[row["name"]]}
        for row in found.get("rows", [])
        if found.get("steps") == args.steps
    }
    made_once: list[tuple[Tensor, Tensor, Tensor]] = []

    def data() -> tuple[Tensor, Tensor, Tensor]:
        if not made_once:
            made_once.append(second_set(LoFiPrior(PRIOR, precision="auto")))
        return made_once[0]

    for name in args.only:
        model: Any
        if name in AFTER:
            model = after(name, args.steps, data)
        else:
            model = LoFiPrior(PRIOR if name == "prior" else changed(name, args.steps), precision="auto")
        part = "training" if name in CHANGES else "network" if name in SHAPES else "afterwards"
        row = {"name": name, "title": titles[name], "part": part}
        if part == "network":
            row["parameters"] = sum(p.numel() for p in model.parameters())
        kept[name] = row | {"held_out": quality(model, photographs), "set12": quality(model, test)}
        print(kept[name], flush=True)
        write_result("prior_study", payload | {"rows": [kept[n] for n in names if n in kept]}, args.results)
    report("prior_study", payload | {"rows": [kept[n] for n in names if n in kept]}, args.results)


if __name__ == "__main__":
    main()
