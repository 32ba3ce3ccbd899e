"""Runs of solvers in files, for going on with them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from deepinv.utils import TensorList
from torch import Tensor

from pnp_lofi.checkpoint import read_tensors, write_tensors
from pnp_lofi.reduction import norms
from pnp_lofi.run import Point, Run
from pnp_lofi.version import __version__

if TYPE_CHECKING:
    from pnp_lofi.solver import Solver

KIND, FORMAT = "solver run", 1
SAME = 1e-5  # relative difference that is only rounding


class Saved(NamedTuple):
    """A run as it was read; ``data`` is y."""

    point: Point
    data: Any
    about: dict[str, Any]


def write_run(path: str | os.PathLike[str], run: Run) -> None:
    """Write a run, whole or not at all, over what the file held before."""
    at, solver, y = run.point, run.solver, run.data
    named = {f"state.{name}": t for name, t in at.state.items()} | {"best": at.best}
    named |= {f"data.{k}": t for k, t in enumerate(y if isinstance(y, TensorList) else [y])}
    aliases: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, t in named.items():  # some may be one and the same, or views of others, which safetensors refuses
        first = next((other for other in tensors if named[other] is t), None)
        if first is not None:
            aliases[name] = first
            continue
        tensors[name] = t.clone() if any(_share(t, other) for other in tensors.values()) else t
    about = {
        "kind": KIND,
        "format": FORMAT,
        "pnp_lofi": __version__,
        "settings": settings(solver),
        "prior": _prior_prints(solver),
        "operator": _operator_print(run),
        "sigma_n": run.chosen.sigma_n.tolist(),
        "iteration": at.iteration,
        "residuals": at.residuals,
        "best_residual": at.best_residual,
        "diverged": run.diverged,
        "seconds": run.clock(),
        "stacked": isinstance(y, TensorList),
        "aliases": aliases,
        "complex": [name for name, t in tensors.items() if t.is_complex()],
    }
    write_tensors(path, {n: _real(t) for n, t in tensors.items()}, about)


def read_run(path: str | os.PathLike[str]) -> Saved:
    """Read what :func:`write_run` wrote.

    :raises FileNotFoundError: if there is no such file; ValueError: if it is truncated or holds something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; solve(y, save=...) writes one")
    tensors, about = read_tensors(path)
    if about.get("kind") != KIND or about.get("format") != FORMAT:
        raise ValueError(f"{path} is not a solver's run of format {FORMAT}; solve(y, save=...) writes one")
    complex_ones = set(about["complex"])
    # clones, because products of matrices may depend on how their memory is aligned
    read = {n: (torch.view_as_complex(t) if n in complex_ones else t).clone() for n, t in tensors.items()}
    read |= {name: read[first] for name, first in about["aliases"].items()}
    state = {name.removeprefix("state."): t for name, t in read.items() if name.startswith("state.")}
    parts = [read[name] for name in sorted((n for n in read if n.startswith("data.")), key=lambda n: int(n[5:]))]
    residuals = tuple((p, d) for p, d in about["residuals"])
    point = Point(about["iteration"], state, read["best"], about["best_residual"], residuals)
    return Saved(point, TensorList(parts) if about["stacked"] else parts[0], about)


def check_same(path: str | os.PathLike[str], about: dict[str, Any], solver: "Solver", run: Run | None = None) -> None:
    """:raises ValueError: unless settings and prior, and with a run the operator, are those that a file tells of."""
    here, there = settings(solver), about["settings"]
    differ = [f"{k} {there.get(k)} there, {v} here" for k, v in here.items() if there.get(k) != v]
    prior, operator = _prior_prints(solver), None if run is None else _operator_print(run)
    if not _close(prior, about["prior"]):
        differ.append(f"prior {about['prior']} there, {prior} here")
    if operator is not None and not _close(operator, about["operator"]):
        differ.append("the operator is another one: A^H y or its norm differ")
    if differ:
        raise ValueError(f"{path} is a run with other settings: {'; '.join(differ)}")


def settings(solver: "Solver") -> dict[str, Any]:
    """What decides the iterations, as JSON keeps it."""
    names = ("sigma_n", "sigma_d", "alpha", "max_iter", "low", "high", "turns", "cg_tol", "cg_max_iter")
    found = {name: _named(getattr(solver, name)) for name in names}
    return {"solver": type(solver).__name__} | found | getattr(solver, "settings", {})


def fingerprint(prior: Any) -> list[Any]:
    """The name of a denoiser, and the absolute sum of its weights."""
    weights = prior.state_dict().values() if isinstance(prior, torch.nn.Module) else ()
    total = sum(float(t.detach().abs().double().sum()) for t in weights)
    return [getattr(prior, "__qualname__", type(prior).__name__), total]


def _prior_prints(solver: "Solver") -> list[Any]:
    return [part for prior in getattr(solver, "priors", [solver.prior]) for part in fingerprint(prior)]


def _operator_print(run: Run) -> list[Any]:
    return [*norms(run.op, run.backprojection)[0].tolist(), run.chosen.norm]


def _close(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        abs(p - q) <= SAME * abs(q) if isinstance(p, float) and isinstance(q, float) else p == q
        for p, q in zip(a, b, strict=True)
    )


def _named(value: Any) -> Any:
    if callable(value):
        return "a function"
    return value.tolist() if hasattr(value, "tolist") else value  # torch's and numpy's


def _share(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _real(t: Tensor) -> Tensor:
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
