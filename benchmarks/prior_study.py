"""How the priors are trained, and what else might make them better: one change at a time, from the same seed.

Size S of "natural" as it was before is trained for few steps with one thing changed: network, loss, noise levels,
images, precision. What was taken over since is larger patches and crops, squares and fabrics.
Then what can be done with a finished prior: the mean of its answers to 8 turned images; and a non-local part learned
beside it, which looks for matches near or far, of one size of patch or two: a radius of one pixel is the control. More
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

from benchmarks.common import parser, report, set12, start, write_result
from benchmarks.sharing import LEVELS, SEED, held_out, quality
from pnp_lofi import prior_training
from pnp_lofi.checkpoint import load_checkpoint
from pnp_lofi.examples import Noisy
from pnp_lofi.matching import NonLocalLoFi
from pnp_lofi.matching_training import Evidence, Mixing
from pnp_lofi.prior_training import BELOW, KNEE
from pnp_lofi.priors import LoFiPrior
from pnp_lofi.shared import SharedLoFi
from pnp_lofi.sources import LEVELS as RANGE
from pnp_lofi.sources import MIX, natural_batches
from pnp_lofi.train import TrainSettings, train

TILE, OBJECTS = 32, 8  # side of what is learned from a crop [pixel], crops a step
FORMER: dict[str, Any] = prior_training.SMALL | {"patch": 9}
PRIOR = "natural"  # whose answers are turned, and beside which matching is learned
# what is changed: of the settings, of the noise, the parts that are leaves, photographs and fabrics
HALVES = (0.5, 0.5, 0.0)
CHANGES: dict[str, tuple[str, dict[str, Any], dict[str, Any], Sequence[float]]] = {
    "none": ("as it was trained", {}, {}, HALVES),
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
BARE: dict[str, Any] = {"window": 5, "filters": 16, "features": 8, "points": 1, "raw": 0, "hidden": (8,)}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "former": ("no stages, a raw window, no patches", {}),
    "stages": ("without its patches", FORMER | {"patch": 0}),
    "patches": ("shrunk patches of 9 x 9 and little else", BARE | {"patch": 9}),
    "one-stage": ("with one stage of three", FORMER | {"stages": FORMER["stages"][:1]}),
    "larger": ("with patches of 13 x 13", prior_training.SMALL),
}
MIXING = 12_000  # steps of a non-local part
BESIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "radius-1": ("with matching, up to 1 pixel away", {"radius": 1}),
    "one-size": ("with matching, patches of 7 x 7 alone", {"alike": (3,)}),
    "smaller": ("with matching, patches of 3 x 3 and 15 x 15", {"alike": (1, 7)}),
    "matching": ("with matching as in size L, patches of 7 x 7 and 15 x 15", {}),
}
AFTER = {"turns": "mean over 8 turns"} | {name: title for name, (title, _) in BESIDE.items()}
Denoiser = Callable[[Tensor, float], Tensor]


def trained(model: nn.Module, source: Any, steps: int, whole: nn.Module | None = None, **settings: Any) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        chosen = TrainSettings(steps=steps, seed=SEED, **({"low_precision": 0.95} | settings))
        train(model, source, chosen, Path(folder) / "a.safetensors", progress=False, whole=whole)
    return model.eval()


def changed(name: str, steps: int) -> nn.Module:
    """Size S, trained with one thing changed; or another shape, trained as it is."""
    _, settings, noise, parts = CHANGES.get(name, CHANGES["none"])
    torch.manual_seed(SEED)
    model = SharedLoFi(**(SHAPES[name][1] if name in SHAPES else FORMER))
    batches = natural_batches(TILE + 2 * model.reach, OBJECTS, SEED, parts=parts)
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


def matched(shape: dict[str, Any]) -> nn.Module:
    """The prior, and a non-local part learned beside it as that of a size L."""
    torch.manual_seed(SEED)
    model = NonLocalLoFi(**load_checkpoint(PRIOR)[0].config | shape)
    prior_training.start_from(model, PRIOR)
    batches = natural_batches(prior_training.SEEN, prior_training.OBJECTS, SEED)
    noisy = Noisy(batches, *RANGE, knee=KNEE, below=BELOW)
    source = Evidence(model, noisy, prior_training.GATHERED, prior_training.MIXED, seed=SEED, progress=False)
    trained(Mixing(model.matching, 1), source, MIXING, loss="l2", weight=0.0, lr=5e-3, low_precision=0.0, whole=model)
    return model


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
    rows = found.get("rows", []) if found.get("steps") == args.steps else []
    kept = {row["name"]: row | {"title": titles[row["name"]]} for row in rows if row["name"] in titles}
    for name in args.only:
        model: Any
        if name == "turns":
            model = partial(turned, LoFiPrior(PRIOR, precision="auto"))
        elif name in BESIDE:
            model = LoFiPrior(matched(BESIDE[name][1]), precision="auto")
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
