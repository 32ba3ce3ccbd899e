"""A run that is interrupted, however, goes on to the same bits as one that was not."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from deepinv.models import Denoiser
from deepinv.utils import TensorList
from solver_pieces import SHAPE, SOLVERS, Explode, Shrink, Smooth, operator, rand, solver, tamed

from pnp_lofi import ADMM, HQS, Consensus, LoFiPrior, save_checkpoint
from pnp_lofi.checkpoint import read_tensors
from pnp_lofi.operators import Stacked

EVERY = [*SOLVERS, "Consensus"]
ITERATIONS = 12
CASES = ["mask", "nufft", "nufft-complex", "stacked", "batch", "single"]


class Fussy(Denoiser):
    """Tells when it is called, and may refuse to go on."""

    def __init__(self, inner, at: int | None = None, pause: float = 0.0) -> None:
        super().__init__()
        self.inner, self.at, self.pause, self.calls = inner, at, pause, 0

    def forward(self, x, sigma, **kwargs):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        time.sleep(self.pause)
        return self.inner(x, sigma)


def problem(case):
    """Operator, data."""
    if case == "stacked":
        op = Stacked(operator("nufft"), operator("blur"), weights=[1.0, 4.0])
        return op, op.A(rand(1, 1, *SHAPE))
    op = operator("mask" if case in ("batch", "single") else case)
    x = rand(3, 1, *SHAPE) * torch.tensor([1.0, 5.0, 0.1]).double().view(3, 1, 1, 1)
    x = x if case == "batch" else x[:1]
    if case == "single":
        return op, op.A(x.float())
    return op, op.A(x + 1j * rand(1, 1, *SHAPE, seed=1) if op.complex_images else x)


def build(name, op, prior, **options):
    given = {"turns": True, "max_iter": ITERATIONS, "tol": 0}
    return solver(name, op, prior, **given | {"sigma_n": [0.1] if name == "Consensus" else 0.1} | options)


def same(a, b):
    """Nothing but the time may differ."""
    assert torch.equal(a.x, b.x) and a.x.dtype == b.x.dtype
    assert (a.status, a.iterations, a.residuals) == (b.status, b.iterations, b.residuals)
    clock = {"seconds", "peak_memory_mb"}
    assert {k: v for k, v in a.metrics.items() if k not in clock} == {
        k: v for k, v in b.metrics.items() if k not in clock
    }


# ---- ways to be interrupted ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", EVERY)
def test_stopped_by_the_callback(tmp_path, name, case):
    op, y = problem(case)
    parts = list(op.operators) if case == "stacked" else [op]
    data = y if name != "Consensus" else list(y) if case == "stacked" else [y]

    def made(**options):
        if name != "Consensus":
            return build(name, op, Smooth(), **options)
        levels = [0.1] * len(parts)
        return Consensus(parts, [Smooth(), Shrink(1.0)], sigma_n=levels, max_iter=ITERATIONS, tol=0, **options)

    whole, path = made().solve(data), tmp_path / "run"
    for stop in (1, ITERATIONS - 1):
        first = made(callback=lambda at, stop=stop: at.iteration == stop).solve(data, save=path, every=0)
        assert (first.status, first.iterations) == ("stopped", stop)
        same(made().resume(path), whole)
        path.unlink()


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("every", [0, 1e9])
def test_control_c(tmp_path, tiny, name, every):
    """Raised inside of the denoiser: the run goes into the file, whatever the time between savings, and says so."""
    op, y = problem("nufft")
    prior, path = tamed(tiny), tmp_path / "run"
    whole = build(name, op, Fussy(prior)).solve(y)
    for at in (1, 7):
        begun = pytest.warns(
            UserWarning, match=f"interrupted after iteration {at - 1}; the run is in .*run, resume goes on"
        )
        with begun, pytest.raises(KeyboardInterrupt):
            build(name, op, Fussy(prior, at=at)).solve(y, save=path, every=every)
        with pytest.warns(UserWarning, match=f"interrupted after iteration {at}; "), pytest.raises(KeyboardInterrupt):
            build(name, op, Fussy(prior, at=2)).resume(path)  # and again
        again = Fussy(prior)
        same(build(name, op, again).resume(path), whole)
        assert again.calls == ITERATIONS - at
        path.unlink()


def test_control_c_without_a_file(tmp_path):
    op, y = problem("mask")
    with warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        warnings.simplefilter("error")
        build("ADMM", op, Fussy(Smooth(), at=3)).solve(y)


def solve_slowly(path):
    op, y = problem("batch")
    build("ADMM", op, Fussy(Smooth(), pause=0.003), max_iter=40).solve(y, save=path, every=0)


def kill_and_resume(tmp_path, seed):
    """SIGKILL of another process at a random moment after the first saving; many of them hit a file being written."""
    path, op, y = tmp_path / f"run{seed}", *problem("batch")
    child = multiprocessing.get_context("fork").Process(target=solve_slowly, args=(path,))
    child.start()
    while not path.exists() and child.is_alive():
        time.sleep(0.001)
    time.sleep(random.Random(seed).uniform(0, 0.12))
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    again = Fussy(Smooth())
    found = build("ADMM", op, again, max_iter=40).resume(path)
    same(found, build("ADMM", op, Smooth(), max_iter=40).solve(y))
    return again.calls


def test_killed(tmp_path):
    assert max(kill_and_resume(tmp_path, seed) for seed in range(3)) > 0  # at least one was killed on the way


@pytest.mark.slow
def test_killed_often(tmp_path):
    assert sum(kill_and_resume(tmp_path, seed) > 0 for seed in range(3, 13)) >= 5


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    """A file is written whole or not at all."""
    op, y = problem("mask")
    replace, count = os.replace, [0]

    def full(part, path):
        count[0] += 1
        if count[0] == 5:
            Path(part).write_bytes(Path(part).read_bytes()[:200])
            raise OSError("no space left on device")
        replace(part, path)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(os, "replace", full)
        build("ADMM", op, Fussy(Smooth())).solve(y, save=tmp_path / "run", every=0)
    again = Fussy(Smooth())
    same(build("ADMM", op, again).resume(tmp_path / "run"), build("ADMM", op, Smooth()).solve(y))
    assert again.calls == ITERATIONS - 4


SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
from pnp_lofi import LoFiPrior
from test_resume import build, problem
op, y = problem("nufft")
name, path, prior = sys.argv[1:]
stop = lambda at: at.iteration == 5
build(name, op, LoFiPrior(prior), callback=stop, nonneg=True).solve(y.to(torch.complex64), save=path)
"""


def test_another_process_gives_the_same_bits(tmp_path, tiny):
    """A fresh interpreter begins the run, this one ends it: in single precision, with a network."""
    with torch.no_grad():
        tiny.mlp.mixer_weights[-1].mul_(0.02)
    save_checkpoint(tmp_path / "prior.safetensors", tiny)
    path, op, y = tmp_path / "run", *problem("nufft")
    subprocess.run(
        [sys.executable, "-c", SCRIPT, "ADMM", path, tmp_path / "prior.safetensors"],
        check=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )  # fmt: skip
    one = build("ADMM", op, LoFiPrior(tmp_path / "prior.safetensors"), nonneg=True)
    same(one.resume(path), one.solve(y.to(torch.complex64)))


# ---- what is in the file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["limit", "converged", "diverged"])
@pytest.mark.parametrize("name", ["ADMM", "HQS", "FISTA", "RED", "Consensus"])
@pytest.mark.filterwarnings("ignore:.*diverged at iteration")
def test_a_run_that_is_over_is_over(tmp_path, name, how):
    op, y = problem("mask")
    data, calls = [y] if name == "Consensus" else y, []
    prior = Explode() if how == "diverged" else Smooth()
    options = {"sigma_d": 0.5, "alpha": 20.0, "max_iter": ITERATIONS if how == "limit" else 400}
    options |= {"tol": 1e-2 if how == "converged" else 0, "turns": how != "converged"}
    first = build(name, op, prior, **options).solve(data, save=tmp_path / "run")
    assert first.status == how
    found = build(name, op, prior, callback=calls.append, **options).resume(tmp_path / "run")
    same(found, first)
    assert not calls
    assert found.metrics["seconds"] > read_tensors(tmp_path / "run")[1]["seconds"] > 0  # the time of both


@pytest.mark.filterwarnings("ignore:.*diverged at iteration")
def test_saved_between_divergence_and_the_end(tmp_path, monkeypatch):
    """Control-C in the moment between: the best iterate is found all the same."""
    op, y = problem("mask")
    options = {"sigma_d": 0.5, "alpha": 20.0, "max_iter": 400}
    whole = build("ADMM", op, Explode(), **options).solve(y)
    with monkeypatch.context() as patch:
        patch.setattr("pnp_lofi.run.Run.give_best", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.warns(UserWarning, match="resume goes on with it") as told, pytest.raises(KeyboardInterrupt):
            build("ADMM", op, Explode(), **options).solve(y, save=tmp_path / "run")
        assert told[-1].filename == __file__  # the line that the user wrote
    same(build("ADMM", op, Explode(), **options).resume(tmp_path / "run"), whole)


def test_callback_and_metrics_go_on(tmp_path):
    op, y = problem("mask")
    truth, seen = rand(1, 1, *SHAPE), []
    build("ADMM", op, Smooth(), callback=lambda at: at.iteration == 4).solve(y, save=tmp_path / "run", truth=truth)
    found = build("ADMM", op, Smooth(), callback=seen.append).resume(tmp_path / "run", truth=truth)
    assert [at.iteration for at in seen] == list(range(5, ITERATIONS + 1))
    same(found, build("ADMM", op, Smooth()).solve(y, truth=truth))
    assert seen[-1].snr == pytest.approx(found.metrics["snr"])


def test_estimated_noise_is_remembered(tmp_path):
    op, y = problem("batch")
    y = op.A(y + 0.1 * rand(3, 1, *SHAPE, seed=7))
    one = ADMM(op, Smooth(), max_iter=ITERATIONS, tol=0)
    ADMM(op, Smooth(), max_iter=ITERATIONS, tol=0, callback=lambda at: at.iteration == 4).solve(y, save=tmp_path / "r")
    found = one.resume(tmp_path / "r")
    assert len(set(found.metrics["sigma_n"])) == 3
    same(found, one.solve(y))


def test_memory_that_is_shared(tmp_path):
    """Starts that are views of the data, denoisers that give their image back, lazy conjugates."""
    op, y = problem("mask")
    for name in SOLVERS:
        made = build(name, op, lambda x, sigma: x.view_as(x), turns=False)
        stop = build(name, op, lambda x, sigma: x.view_as(x), turns=False, callback=lambda at: at.iteration == 1)
        stop.solve(y, x0=y[:], save=tmp_path / name)
        same(made.resume(tmp_path / name), made.solve(y, x0=y))
    op, y = problem("nufft")
    build("ADMM", op, Smooth(), callback=lambda at: True).solve(y.conj(), save=tmp_path / "conj")
    same(build("ADMM", op, Smooth()).resume(tmp_path / "conj"), build("ADMM", op, Smooth()).solve(y.conj()))


@pytest.mark.parametrize(
    "given",
    [
        {"sigma_d": np.float32(0.1)}, {"alpha": np.float64(2)}, {"max_iter": np.int64(ITERATIONS)},
        {"box": (np.float32(0), torch.tensor(2.0))}, {"sigma_d": np.array([0.1, 0.2, 0.3])},
        {"sigma_n": torch.tensor([0.1, 0.2, 0.3]), "alpha": torch.tensor([1.0, 2.0, 3.0])},
        {"sigma_d": lambda k: 1.0 / (1 + k)}, {"tol": 1e-3},
    ],
    ids=lambda given: "-".join(given),
)  # fmt: skip
def test_settings_of_any_kind(tmp_path, given):
    op, y = problem("batch")
    build("ADMM", op, Smooth(), callback=lambda at: at.iteration == 2, **given).solve(y, save=tmp_path / "run")
    same(build("ADMM", op, Smooth(), **given).resume(tmp_path / "run"), build("ADMM", op, Smooth(), **given).solve(y))


def test_how_often_it_is_written(tmp_path, monkeypatch):
    """At once with every=0, else at the end only: a run of milliseconds."""
    import pnp_lofi.solver as module

    write, op, y = module.write_run, *problem("mask")
    for every, count in ((0, ITERATIONS + 1), (60, 1)):
        written: list[int] = []

        def noted(path, run, written=written):
            written.append(run.point.iteration)
            write(path, run)

        monkeypatch.setattr(module, "write_run", noted)
        build("ADMM", op, Smooth()).solve(y, save=tmp_path / f"run{every}", every=every)
        assert len(written) == count and written[-1] == ITERATIONS


def test_the_file_is_what_the_page_says(tmp_path):
    """safetensors with a JSON header; the data of stacked operators come back as a TensorList."""
    op, y = problem("stacked")
    build("ADMM", op, Smooth()).solve(y, save=tmp_path / "run")
    tensors, about = read_tensors(tmp_path / "run")
    assert about["kind"] == "solver run" and about["iteration"] == ITERATIONS and len(about["residuals"]) == ITERATIONS
    assert {"state.x", "state.v", "state.u", "data.0", "data.1"} <= tensors.keys()
    assert isinstance(y, TensorList) and torch.equal(torch.view_as_complex(tensors["data.0"]), y[0])
    assert not list(tmp_path.glob("*.part"))


# ---- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sigma_d": 0.2}, r"sigma_d 0\.1 there, 0\.2 here"),
        ({"sigma_n": 0.2}, r"sigma_n 0\.1 there, 0\.2 here"),
        ({"alpha": 3.0}, r"alpha None there, 3\.0 here"),
        ({"sigma_d": lambda k: 0.1}, r"sigma_d 0\.1 there, a function here"),
        ({"nonneg": True}, r"low None there, 0\.0 here"),
        ({"turns": False}, "turns True there, False here"),
        ({"max_iter": 20}, "max_iter 12 there, 20 here"),
        ({"cg_tol": 1e-9}, "cg_tol"),
    ],
)
def test_other_settings(tmp_path, given, message):
    op, y = problem("mask")
    build("ADMM", op, Smooth(), sigma_d=0.1).solve(y, save=tmp_path / "run")
    with pytest.raises(ValueError, match=f"run is a run with other settings: .*{message}"):
        build("ADMM", op, Smooth(), **{"sigma_d": 0.1} | given).resume(tmp_path / "run")


def test_another_solver_prior_or_operator(tmp_path, tiny):
    op, y = problem("mask")
    path = tmp_path / "run"
    build("FISTA", op, LoFiPrior(tiny)).solve(y, save=path)
    same(build("FISTA", op, LoFiPrior(tiny)).resume(path), build("FISTA", op, LoFiPrior(tiny)).solve(y))
    for other, message in (
        (HQS(op, LoFiPrior(tiny)), "solver PGD there, HQS here"),
        (build("PGD", op, LoFiPrior(tiny)), "accelerated True there, False here"),
        (build("FISTA", op, Smooth()), r"prior \['LoFiPrior', .*\] there, \['Smooth', 0\] here"),
        (build("FISTA", operator("blur"), LoFiPrior(tiny)), "the operator is another one"),
    ):
        with pytest.raises(ValueError, match=message):
            other.resume(path)
    with torch.no_grad():
        tiny.mlp.mixer_biases[-1].add_(0.01)
    with pytest.raises(ValueError, match="prior"):
        build("FISTA", op, LoFiPrior(tiny)).resume(path)


def test_other_parts_of_a_consensus(tmp_path):
    op, y = problem("mask")

    def made(*priors, **options):
        return Consensus([op], priors, sigma_n=[0.1], max_iter=ITERATIONS, tol=0, **options)

    made(Smooth(), Shrink(1.0)).solve([y], save=tmp_path / "run")
    for other, message in (
        (made(Smooth(), Smooth()), "prior"),
        (made(Smooth(), Shrink(1.0), weights=[0.4, 0.6]), "weights"),
        (Consensus([op], [Smooth(), Shrink(1.0)], sigma_n=[0.2], max_iter=ITERATIONS), "the operator is another one"),
    ):
        with pytest.raises(ValueError, match=message):
            other.resume(tmp_path / "run")


def test_files_that_are_no_run(tmp_path, tiny):
    op, y = problem("mask")
    one, path = build("ADMM", op, Smooth()), tmp_path / "run"
    with pytest.raises(FileNotFoundError, match=r"does not exist; solve\(y, save=...\) writes one"):
        one.resume(path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder for .*; make it first"):
        one.solve(y, save=tmp_path / "none" / "run")
    one.solve(y, save=path)
    whole = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"exists; go on with that run by resume\('.*run'\), or remove it"):
        one.solve(y, save=path)
    assert path.read_bytes() == whole
    for size in (0, 5, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="truncated"):
            one.resume(path)
    torch.save({"a": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="is a pickle"):
        one.resume(path)
    save_checkpoint(path, tiny)
    with pytest.raises(ValueError, match="is not a solver's run of format 1"):
        one.resume(path)


def test_a_run_of_a_later_format(tmp_path):
    op, y = problem("mask")
    one, path = build("ADMM", op, Smooth()), tmp_path / "run"
    one.solve(y, save=path)
    raw = path.read_bytes()
    later = raw.replace(rb"\"format\": 1", rb"\"format\": 7")
    assert later != raw
    path.write_bytes(later)
    with pytest.raises(ValueError, match="format"):
        one.resume(path)
