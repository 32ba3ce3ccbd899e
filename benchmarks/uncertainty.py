"""Error bars of simulated skies seen by MeerKAT: how many pixels lie within their 90 % intervals, before and after
conformal calibration on other skies.

Skies are procedural, of seeds that no training has; each is scaled to visibilities of rms 1, so that all of them have
the same noise. Nothing is tuned on them.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import parser, report, start
from pnp_lofi.admm import ADMM
from pnp_lofi.calibration import calibrate, coverage
from pnp_lofi.files import check_writable
from pnp_lofi.operators import NUFFT, meerkat_uv
from pnp_lofi.posterior import Posterior
from pnp_lofi.priors import LoFiPrior
from pnp_lofi.skies import radio_sky

TEST_SEED, CALIBRATION_SEED = 910_000, 920_000  # training has 0 and 1, held-out skies 10,000 and 20,000
SNR, HOURS, SIDE = 30.0, 2.0, 64  # of the data [dB], of the track, of the image [pixel]
LEVEL, GAUSSIAN = 0.9, 1.6448536  # of the intervals; factor for it if errors were Gaussian
BRIGHT = 0.01  # of a sky's peak: pixels with a source
BATCH = 5  # skies at once
SPLITS = 200  # random divisions of all skies
CENTRES = {"mean": "posterior mean", "admm": "LoFi-ADMM"}


def draw(count: int, seed: int, prior: LoFiPrior, samples: int) -> dict[str, Tensor]:
    """Truth, ADMM's image, posterior mean and std, (count, 1, SIDE, SIDE); ess, rhat and seconds, (count,)."""
    uv = meerkat_uv(HOURS)
    sigma = 10 ** (-SNR / 20) / 2**0.5
    op, skies = NUFFT((SIDE, SIDE), uv, sigma=sigma), radio_sky(count, SIDE, seed=seed)
    skies = skies / op.A(skies).abs().square().mean((1, 2)).sqrt().reshape(-1, 1, 1, 1)
    found: dict[str, list[Tensor]] = {}
    for k in range(0, count, BATCH):
        truth = skies[k : k + BATCH]
        clean = op.A(truth)
        noise = torch.randn((2, *clean.shape), generator=torch.Generator().manual_seed(seed + k))
        y = clean + sigma * torch.complex(*noise)
        solution = ADMM(op, prior, nonneg=True, progress=False).solve(y)
        begin = time.perf_counter()
        bars = Posterior(op, prior, nonneg=True, samples=samples, progress=False).sample(
            y, x0=solution.x, seed=seed + k
        )
        seconds = torch.full((len(truth),), (time.perf_counter() - begin) / len(truth))
        parts = {"truth": truth, "admm": solution.x, "mean": bars.mean, "std": bars.std, "ess": bars.ess}
        parts |= {"rhat": bars.rhat, "rhat_std": bars.rhat_std, "seconds": seconds}
        for name, part in parts.items():
            found.setdefault(name, []).append(part)
        print(f"seed {seed}: {k + len(truth)} of {count} skies, {float(seconds[0]):.1f} s each", flush=True)
    return {name: torch.cat(parts) for name, parts in found.items()}


def measured(test: dict[str, Tensor], other: dict[str, Tensor], centre: str) -> dict[str, Any]:
    """Coverage about one centre."""
    factor = calibrate(other[centre], other["std"], other["truth"], LEVEL)
    bright = test["truth"] > BRIGHT * test["truth"].amax((1, 2, 3), keepdim=True)
    row: dict[str, Any] = {"centre": CENTRES[centre], "factor": factor}
    for name, used in (("raw", GAUSSIAN), ("calibrated", factor)):
        about = test[centre], test["std"], test["truth"], used
        whole, source = coverage(*about), coverage(*about, where=bright)
        row[name] = {"factor": used, "mean": whole.mean, "spread": whole.spread, "lowest": float(whole.each.min()),
                     "bright": source.mean, "each": whole.each.tolist()}  # fmt: skip
    error = (test["truth"] - test[centre]).abs().flatten(1)
    bars = test["std"].flatten(1)
    row["correlation"] = mean_of([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(error, bars, strict=True)])
    ranks = zip(error.argsort(1).argsort(1).float(), bars.argsort(1).argsort(1).float(), strict=True)
    row["rank_correlation"] = mean_of([torch.corrcoef(torch.stack(pair))[0, 1] for pair in ranks])
    row["snr"] = mean_of(20 * (test["truth"].flatten(1).norm(dim=1) / error.norm(dim=1)).log10())
    return row


def apart(test: dict[str, Tensor], other: dict[str, Tensor], centre: str) -> dict[str, Any]:
    """Coverage with a factor for sources and one for the rest, told apart by the reconstruction's brightness."""
    seen, source = (found[centre] > BRIGHT * found[centre].amax((1, 2, 3), keepdim=True) for found in (other, test))
    about = other[centre], other["std"], other["truth"], LEVEL
    factors = {"sources": calibrate(*about, seen), "sky": calibrate(*about, ~seen)}
    limit = torch.where(source, factors["sources"], factors["sky"])
    bright = test["truth"] > BRIGHT * test["truth"].amax((1, 2, 3), keepdim=True)
    here = test[centre], test["std"], test["truth"], limit
    whole = coverage(*here)
    return {"centre": CENTRES[centre], "factors": factors, "mean": whole.mean, "spread": whole.spread,
            "lowest": float(whole.each.min()), "bright": coverage(*here, where=bright).mean,
            "sources": coverage(*here, where=source).mean}  # fmt: skip


def splits(skies: dict[str, Tensor], test: int, centre: str) -> dict[str, float]:
    """Calibrated coverage over random divisions of all skies into test and calibration: mean and spread of the mean."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(SPLITS):
        order = torch.randperm(len(skies["truth"]), generator=generator)
        some, rest = ({k: v[index] for k, v in skies.items()} for index in (order[:test], order[test:]))
        factor = calibrate(rest[centre], rest["std"], rest["truth"], LEVEL)
        found.append(coverage(some[centre], some["std"], some["truth"], factor).mean)
    return {"mean": mean_of(found), "spread": float(torch.tensor(found).std()), "count": SPLITS}


def mean_of(values: Any) -> float:
    return float(torch.as_tensor([float(v) for v in values]).mean())


def figure(path: Path, found: dict[str, Tensor], k: int) -> None:
    """Truth, mean, std and |error| / std of sky k."""
    from pnp_lofi.figures import Panel, save_figure

    truth, mean, std = (found[name][k, 0] for name in ("truth", "mean", "std"))
    peak = float(truth.max())
    error = (truth - mean).abs()
    bars = (0.0, float(std.flatten().quantile(0.995)))
    panels = [
        Panel("truth (asinh)", truth, (0.0, peak), "inferno", 300 / peak, "sky units"),
        Panel("posterior mean (asinh)", mean, (0.0, peak), "inferno", 300 / peak, "sky units"),
        Panel("|error|", error, bars, "viridis", unit="sky units"),
        Panel("error bar (std)", std, bars, "viridis", unit="sky units"),
        Panel("|error| / std", error / std.clamp_min(0.1 * float(std.median())), (0.0, 4.0), "magma", unit="std"),
    ]
    title = f"simulated sky {k}: MeerKAT {HOURS:g} h, {SNR:g} dB"
    save_figure(path, panels, sky=True, title=title, overwrite=True)


def main() -> None:
    made = parser(__doc__, "uncertainty")
    made.add_argument("--prior", default="radio", help="shipped name or checkpoint")
    made.add_argument("--skies", type=int, default=20, help="test skies")
    made.add_argument("--calibration", type=int, default=60, help="other skies, to calibrate on; at least 9")
    made.add_argument("--samples", type=int, default=32, help="draws of a sky")
    made.add_argument("--figure", type=Path, metavar="PATH.png", help="picture of a test sky")
    made.add_argument("--shown", type=int, default=10, help="number of that sky")
    args = start(made)
    if not 0 <= args.shown < args.skies:
        made.error(f"--shown must be a test sky, 0 to {args.skies - 1}, got {args.shown}")
    path = check_writable(args.figure, overwrite=True) if args.figure else None
    prior, begin = LoFiPrior(args.prior, precision="auto"), time.perf_counter()
    test = draw(args.skies, TEST_SEED, prior, args.samples)
    if path is not None:
        figure(path, test, args.shown)
    other = draw(args.calibration, CALIBRATION_SEED, prior, args.samples)
    payload: dict[str, Any] = {"prior": Path(args.prior).name, "level": LEVEL, "data_snr": SNR, "hours": HOURS}
    payload |= {"side": SIDE, "skies": args.skies, "calibration": args.calibration, "samples": args.samples}
    payload |= {"rows": [measured(test, other, centre) for centre in CENTRES]}
    everything = {name: torch.cat([test[name], other[name]]) for name in ("truth", "mean", "admm", "std")}
    payload |= {"apart": [apart(test, other, centre) for centre in CENTRES]}
    payload |= {"splits": {CENTRES[centre]: splits(everything, args.skies, centre) for centre in CENTRES}}
    payload |= {"seconds": mean_of(test["seconds"]), "total_seconds": time.perf_counter() - begin}
    payload |= {name: mean_of(test[name]) for name in ("ess", "rhat", "rhat_std")}
    payload |= {"smallest_ess": float(test["ess"].min())}
    report("uncertainty", payload, args.results)


if __name__ == "__main__":
    main()
