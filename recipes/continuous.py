"""An image from its derivatives, from the largest fifth of them, and from tomography with a limited view: by a
generator, by LoFi and by older ways (arXiv 2212.14042 had the first alone).

Command:   python -m pnp_lofi.recipes.continuous heads.safetensors -o compared
           python -m pnp_lofi.recipes.continuous heads.safetensors -o photo --image photo.png
           (heads.safetensors is what `python -m pnp_lofi.recipes.generative train` wrote; --quick: whether it works;
           after ctrl-C or kill -9 the same with --resume)
Data:      a procedural head that the generator was not trained on, at the generator's resolution or any --side; another
           family by --family, or a file by --image. Nothing is downloaded.
Hardware:  1 CPU core, 1 GB: 4 minutes at 64 x 64 pixels, 8 at 128 x 128.
Expect:    docs/generative.md has the table that benchmarks/continuous.py measures.

Noise: SNR of --snr dB in every problem. Derivatives do not see a constant: of every answer to them the median of the
outermost pixels is set to --border. A generator's z would tell the constant, but its weights, fitted last, lose it.
"shifted" SNR is that with the best constant.
"""

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from deepinv.models import TVDenoiser
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import interpolate

from pnp_lofi.admm import ADMM
from pnp_lofi.checkpoint import read_tensors, write_tensors
from pnp_lofi.entry import start
from pnp_lofi.figures import Panel, save_figure
from pnp_lofi.files import check_writable, write_json
from pnp_lofi.hqs import HQS
from pnp_lofi.images import load_image
from pnp_lofi.latent import LatentSolver
from pnp_lofi.metrics import snr
from pnp_lofi.operators import Derivatives, Operator, Radon
from pnp_lofi.parameters import mean_eigenvalue
from pnp_lofi.priors import ContinuousGenerator, LoFiPrior, load_generator
from pnp_lofi.recipes.generative import FAMILIES, images
from pnp_lofi.sampling import grid_coords
from pnp_lofi.solution import Iterate
from pnp_lofi.zoom import network

LARGEST = 0.2  # part of the derivatives that "sparse" keeps
VIEW, VIEWS = 70.0, 141  # tomography: angles to either side [deg], and their number
TV = 1.0  # what total variation weighs in "sparse" against the relative misfit; the paper's 1e-2 is in its own units
TV_WEIGHTS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)  # alpha ths / L, of which the truth picks the best
TV_INNER, TV_ALPHA = 30, 0.02  # iterations of deepinv's TV; ADMM's alpha / L
TESTED = 20_000  # seed of what is reconstructed
PICTURE = 500  # steps between two pictures of a generator's progress
PROBLEMS = {"derivatives": "all derivatives", "sparse": "largest 20 %", "ct": "CT, 140 degrees"}
STEPS = {"derivatives": (2500, 1000), "sparse": (2500, 1000), "ct": (5000, 1000)}  # on z, on weights
app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)
Method = Callable[[], Tensor]


@dataclass
class Problem:
    """One inverse problem: operator, data, and the classical answer that iterations start from."""

    name: str
    op: Operator
    y: Tensor
    classical: str
    first: Method
    shifts: bool  # whether the data say nothing of the mean
    steps: tuple[int, int] = (0, 0)  # of the generator, on z and on weights


def make_problem(name: str, x: Tensor, level: float, seed: int) -> Problem:
    """Data of an image, noise included.

    :param torch.Tensor x: (1, 1, H, W); float level: SNR of the data [dB].
    """
    shape, generator = (x.shape[-2], x.shape[-1]), torch.Generator().manual_seed(seed)

    def noisy(y: Tensor) -> tuple[Tensor, float]:
        sigma = float(y.square().mean().sqrt()) * 10 ** (-level / 20)
        return y + sigma * torch.randn(y.shape, generator=generator), sigma

    if name == "ct":
        angles = torch.linspace(-VIEW, VIEW, VIEWS, dtype=torch.float64) * (math.pi / 180)
        y, sigma = noisy(Radon(shape, angles).A(x))
        view = Radon(shape, angles, sigma=sigma)
        return Problem(name, view, y, "FBP", lambda: view.fbp(y), False)
    moved = (torch.rand(shape[0] * shape[1], 2, generator=generator) - 0.5) / torch.tensor(shape)
    coords = (grid_coords(shape) + moved).clamp(
        0, 1
    )  # one place in each pixel: on their centres a chequerboard is unseen
    y, sigma = noisy(Derivatives(shape, coords).A(x))
    whole = Derivatives(shape, coords, sigma=sigma, max_iter=400, tol=1e-4)
    if name == "derivatives":
        return Problem(name, whole, y, "Poisson", lambda: whole.A_dagger(y), True)
    length = y.norm(dim=2).flatten()
    kept = length >= length.quantile(1 - LARGEST)
    zeros = torch.where(kept, y, 0)
    largest = Derivatives(shape, coords[kept], sigma=sigma)
    return Problem(name, largest, y[..., kept], "Poisson (others 0)", lambda: whole.A_dagger(zeros), True)


def methods(
    problem: Problem, f: ContinuousGenerator, truth: Tensor, out: Path, scale: float, told: Any
) -> dict[str, Method]:
    """Who reconstructs, by name; ``scale`` shortens everything for --quick; ``told`` takes figures."""
    op, y, name = problem.op, problem.y, problem.name
    positive: dict[str, Any] = {"nonneg": True} if name == "ct" else {}
    count = max(2, round(60 * scale))
    level = op.sigma / mean_eigenvalue(op, truth) ** 0.5 if op.sigma else None  # that where ADMM's levels end
    fixed = {"sigma_d": level} if name == "derivatives" else {}  # nothing is missing that a high level has to fill

    def lofi(solver: type[ADMM] | type[HQS], count: int, **options: Any) -> Tensor:
        prior = LoFiPrior("natural", precision="auto")
        return solver(op, prior, max_iter=count, **positive, **options).solve(y, x0=problem.first()).x

    def tv() -> Tensor:
        """The weight that is best for this image by its truth."""
        found: list[tuple[float, float, Tensor]] = []
        for weight in TV_WEIGHTS if scale == 1 else TV_WEIGHTS[:2]:
            alpha = TV_ALPHA * op.norm
            prior = TVDenoiser(n_it_max=TV_INNER)
            solver = ADMM(op, prior, sigma_d=weight / TV_ALPHA, alpha=alpha, max_iter=count, tol=1e-4, **positive)
            x = solver.solve(y, x0=problem.first()).x
            found.append((shifted_snr(x, truth) if problem.shifts else snr(x, truth), weight, x))
        best = max(found, key=lambda one: one[0])
        told["TV"] = {"weight": best[1]}
        return best[2]

    def generated() -> Tensor:
        steps, weight_steps = problem.steps

        def look(step: Iterate) -> None:
            if step.iteration == steps:
                told["generator"] = {"snr of z alone": snr(step.x, truth)}
            if step.iteration % PICTURE == 0:
                panels = [Panel(f"step {step.iteration}: {step.snr:.1f} dB", step.x[0]), Panel("truth", truth[0])]
                save_figure(out / f"{name}.progress.png", panels, overwrite=True)

        path = out / f"{name}.run"
        solver = LatentSolver(
            op, f, steps=steps, weight_steps=weight_steps, tv=TV if name == "sparse" else 0.0, callback=look
        )
        x = solver.solve(y, truth=truth, save=path, resume=path.exists()).x
        path.unlink()
        return x

    return {problem.classical: problem.first, "TV": tv, "LoFi-ADMM": lambda: lofi(ADMM, count, tol=1e-4, **fixed),
            "LoFi-HQS": lambda: lofi(HQS, max(2, round(24 * scale))), "generator": generated}  # fmt: skip


def shifted_snr(x: Tensor, truth: Tensor) -> float:
    """SNR [dB] with the constant that is best."""
    return snr(x - x.mean() + truth.mean(), truth)


def anchored(x: Tensor, border: float) -> Tensor:
    """x and the constant that makes the median of its outermost pixels ``border``."""
    rim = torch.cat([x[..., 0, :], x[..., -1, :], x[..., 1:-1, 0], x[..., 1:-1, -1]], -1)
    return x + (border - rim.median())


def truth_of(family: str, image: Path | None, side: int, seed: int) -> Tensor:
    """(1, 1, side, side) in [0, 1], or a file's middle at that size."""
    if image is not None:
        x = load_image(image, grey=True)
        n = min(x.shape[-2:])
        top, left = ((m - n) // 2 for m in x.shape[-2:])
        square = x[..., top : top + n, left : left + n]
        return interpolate(square, (side, side), mode="bicubic", antialias=True)
    return images(family, 1, side, seed + TESTED)


class Kept:
    """Images and figures of the methods that are done, OUT/kept.safetensors, for --resume."""

    def __init__(self, path: Path, about: dict[str, Any], resume: bool) -> None:
        self.path, self.about = path, json.loads(json.dumps(about))
        self.images: dict[str, Tensor] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        if resume and path.is_file():
            self.images, header = read_tensors(path)
            if header["about"] != self.about:
                raise ValueError(
                    f"{path} is of a run with {header['about']}, asked for {self.about}; take another folder"
                )
            self.rows = header["rows"]

    def add(self, name: str, x: Tensor, row: dict[str, Any]) -> None:
        self.images[name], self.rows[name] = x, row
        write_tensors(self.path, self.images, {"about": self.about, "rows": self.rows})


@app.command()
def compare(
    checkpoint: Annotated[Path, typer.Argument(help="A generator, of recipes.generative.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder: results.json, a picture for each problem.")],
    problems: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(PROBLEMS),
    only: Annotated[str | None, typer.Option(help="Methods, comma-separated, such as LoFi-ADMM,generator.")] = None,
    family: Annotated[str, typer.Option(help=f"Of the truth: {', '.join(FAMILIES)}.")] = "head",
    image: Annotated[Path | None, typer.Option(help="A truth of your own.")] = None,
    side: Annotated[int | None, typer.Option(help="Of the truth [pixel]; default the generator's.")] = None,
    effort: Annotated[float, typer.Option(help="The generator's steps over the paper's.")] = 1.0,
    field: Annotated[str, typer.Option(help="bilinear, bicubic, smooth, or the checkpoint of a FunkNN.")] = "bicubic",
    level: Annotated[float, typer.Option("--snr", help="Of the data [dB].")] = 30.0,
    border: Annotated[float, typer.Option(help="What the outermost pixels are known to be.")] = 0.0,
    seed: int = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Little of everything: whether it works.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run was broken off.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Reconstruct by classical methods, TV, LoFi and the generator; table, JSON and pictures."""
    names = problems.split(",")
    if not 0 < effort < math.inf:
        raise ValueError(f"effort must be > 0, got {effort}")
    if unknown := [name for name in names if name not in PROBLEMS]:
        raise ValueError(f"problems are {', '.join(PROBLEMS)}, got {', '.join(unknown)}")
    generator, header = load_generator(checkpoint)
    side = side or (24 if quick else generator.size)
    truth = truth_of(family, image, side, seed)
    f = ContinuousGenerator(network(field)[0], generator, shape=None if side == generator.size else (side, side))
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out / "results.json", overwrite=overwrite)
    about = {
        "checkpoint": checkpoint.name, "field": field, "snr": level, "side": side, "border": border, "seed": seed,
        "effort": effort, "family": family if image is None else image.name, "quick": quick,
    }  # fmt: skip
    kept = Kept(out / "kept.safetensors", about, resume)
    if not resume:
        for path in (kept.path, *(out / f"{name}.run" for name in PROBLEMS)):
            path.unlink(missing_ok=True)
    for name in names:
        problem, extra = make_problem(name, truth, level, seed), {}  # type: ignore[var-annotated]
        scale = 0.01 if quick else 1.0
        first, second = (max(2, round(n * scale * effort)) for n in STEPS[name])
        problem.steps = (first, second)
        known = methods(problem, f, truth, out, scale, extra)
        asked = list(known) if only is None else only.split(",")
        if strange := [method for method in asked if method not in known]:
            raise ValueError(f"methods are {', '.join(known)}, got {', '.join(strange)}")
        for method in asked:
            if f"{name}/{method}" in kept.rows:
                continue
            answer = known[method]
            begin = perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the view is limited, and iterations are on purpose
                x = answer()
            if problem.shifts:
                x = anchored(x, border)
            row = {"snr": snr(x, truth), "shifted snr": shifted_snr(x, truth), "seconds": perf_counter() - begin}
            kept.add(f"{name}/{method}", x, row | extra.get(method, {}))
        draw(out / f"{name}.png", name, truth, kept)
    parts = {
        name: {key.split("/")[1]: row for key, row in kept.rows.items() if key.startswith(f"{name}/")} for name in names
    }
    write_json(
        out / "results.json", about | {"trained_on": header["trained_on"], "problems": parts}, overwrite=overwrite
    )
    show(parts)


def draw(path: Path, name: str, truth: Tensor, kept: Kept) -> None:
    """The answers to one problem beside the truth."""
    limits = (float(truth.min()), float(truth.max()))
    panels = [Panel(f"truth; {PROBLEMS[name]}", truth[0], limits)]
    for key, x in kept.images.items():
        if key.startswith(f"{name}/"):
            panels.append(Panel(f"{key.split('/')[1]}: {kept.rows[key]['snr']:.1f} dB", x[0], limits))
    save_figure(path, panels, columns=3, overwrite=True)


def show(parts: dict[str, dict[str, dict[str, Any]]]) -> None:
    table = Table("problem", "method", "SNR [dB]", "shifted [dB]", "seconds")
    for name, rows in parts.items():
        for method, row in rows.items():
            figures = (row["snr"], row["shifted snr"], row["seconds"])
            table.add_row(PROBLEMS[name], method, *(f"{value:.1f}" for value in figures))
    Console().print(table)


if __name__ == "__main__":
    start(app)
