"""Runs of the command line, which ctrl-C or a crash does not lose."""

from pathlib import Path

from torch import Tensor

from pnp_lofi.solution import Solution
from pnp_lofi.solver import Solver


def run_file(out: Path, *, resume: bool = False, overwrite: bool = False) -> Path:
    """OUT.run, where a solver keeps what it needs to go on, checked before any work is done.

    :raises FileNotFoundError: if it should be resumed and is not there.
    :raises FileExistsError: if it is there and neither resume nor overwrite is asked for.
    """
    path = out.with_name(out.name + ".run")
    if resume and not path.is_file():
        raise FileNotFoundError(f"there is no interrupted run to resume: {path} does not exist")
    if path.exists() and not resume:
        if not overwrite:
            raise FileExistsError(f"{path} is an interrupted run; go on with --resume, or start anew with --overwrite")
        path.unlink()
    return path


def solve_resumably(solver: Solver, y: Tensor, path: Path | None, truth: Tensor | None = None) -> Solution:
    """Solve, or go on where the file of :func:`run_file` is there; the file is removed at the end."""
    if path is None:
        return solver.solve(y, truth=truth)
    solution = solver.resume(path, truth=truth) if path.is_file() else solver.solve(y, save=path, truth=truth)
    path.unlink(missing_ok=True)
    return solution
