"""Training on mini-batches of objects and pixels."""

import copy
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from pnp_lofi.checkpoint import rounded, save_checkpoint
from pnp_lofi.examples import Source
from pnp_lofi.files import check_writable
from pnp_lofi.learner import Learner
from pnp_lofi.training_log import Log

BESIDE = (".best", ".csv", ".png")  # what a run writes besides OUT and OUT.state
REPORT = 20  # steps between two reports
IDENTITY = ("recipe", "trained_on", "start", "crop", "objects", "sigma_range")  # of what a checkpoint tells
Figures = dict[str, float]
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {"l1": torch.abs, "l2": torch.square}


@dataclass(frozen=True)
class TrainSettings:
    """What a training run is, besides its network and its data.

    :param int steps: optimiser steps.
    :param int pixels: pixels drawn from each object for a LoFi; a SharedLoFi uses all that are ``reach`` from the
        border, networks of convolutions all.
    :param int draws: steps made on the same objects with other pixels, as the paper does.
    :param float lr: Adam's step at the start; str schedule: "cosine" decay to zero, or "constant".
    :param str loss: "l1" or "l2"; float weight: that of an object is divided by sigma**weight, where there is a sigma.
    :param float ema: of the weights that are kept, w <- ema w + (1 - ema) now; 0 keeps the last ones.
    :param int accumulate: parts in which the objects go through the network, for the sake of memory.
    :param float low_precision: this leading part of the steps computes its matrix products in bfloat16 (about
        twice as fast where the processor has it).
    :param int seed: of everything random.
    :raises ValueError: for what cannot be.
    """

    steps: int = 20_000
    pixels: int = 512
    draws: int = 1
    lr: float = 2e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    loss: Literal["l1", "l2"] = "l1"
    weight: float = 0.7
    ema: float = 0.0
    accumulate: int = 1
    low_precision: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.pixels, self.draws, self.accumulate) < 1 or not self.lr > 0:
            raise ValueError(f"steps, pixels, draws, accumulate and lr must be positive, got {self}")
        if self.loss not in LOSSES or self.schedule not in ("cosine", "constant") or not 0 <= self.ema < 1:
            raise ValueError(f"loss is l1 or l2, schedule cosine or constant, 0 <= ema < 1; got {self}")


def check_run(out: str | os.PathLike[str], *, resume: bool, overwrite: bool) -> None:
    """Before the work of making data: whether OUT can be written, and what a broken-off run left.

    :raises FileExistsError: if OUT or OUT.state exists and neither resume nor overwrite is asked for.
    :raises FileNotFoundError: if there is nothing to resume.
    """
    check_writable(out, overwrite=overwrite or resume)
    state = Path(f"{out}.state")
    if state.exists() and not (resume or overwrite):
        raise FileExistsError(f"{state} holds a broken-off run; pass --resume to go on or --overwrite to start anew")
    for kept in (Path(f"{out}{ending}") for ending in BESIDE):
        if kept.exists() and not (resume or overwrite):
            raise FileExistsError(f"{kept} exists, of another run; pass --overwrite to replace it")
    if resume and not state.exists() and Path(out).exists():
        raise FileExistsError(f"nothing to resume: {out} is finished; pass --overwrite to train it anew")
    if resume and not state.exists():
        raise FileNotFoundError(f"nothing to resume: {state} does not exist; start without --resume")


def train(
    model: nn.Module,
    source: Source,
    settings: TrainSettings,
    out: str | os.PathLike[str],
    *,
    about: dict[str, Any] | None = None,
    validate: Callable[[Any], Figures] | None = None,
    validate_every: int | None = None,
    picture: Callable[[Any, Path], None] | None = None,
    tensorboard: bool = False,
    resume: bool = False,
    keep_every: int = 500,
    progress: bool | None = None,
    dtype: torch.dtype | None = None,
    whole: nn.Module | None = None,
) -> Figures:
    """Train a network and write its checkpoint.

    The state (weights, Adam's moments, random generator, step) is kept in ``OUT.state`` every ``keep_every`` steps and
    at ctrl-C, so that ``resume=True`` goes on to the same result. ``OUT.csv`` has a line for each 20 steps. Under
    torchrun the processes share the objects of a step; the first one writes.

    :param nn.Module model: a LoFi, a SharedLoFi, or any network called as ``model(q)`` or ``model(q, sigma)``.
    :param Source source: draws an :class:`~pnp_lofi.examples.Example` from a generator.
    :param out: path of the checkpoint.
    :param dict about: further header entries.
    :param validate: figures at the end and, with ``validate_every``, every so many steps: they go into the CSV and the
        header, and the weights with the highest first figure are written to ``OUT.best``.
    :param picture: draws a picture of what the network does to a path, OUT.png, whenever it is validated.
    :param bool tensorboard: also write OUT.tb for TensorBoard.
    :param bool progress: a bar on stderr; default: where stderr is a terminal.
    :param torch.dtype dtype: checkpoints store the weights so, and validation measures what they store.
    :param nn.Module whole: the network to keep and to validate, of which ``model`` is a part; default: ``model``.
    :returns: the figures of the last step and of ``validate``.
    :raises KeyboardInterrupt: after keeping the state.
    :raises FloatingPointError: if the loss is not finite.
    Source: arXiv 2411.04995, section VII (objects x pixels; there Adam 1e-4).
    """
    about, state = about or {}, Path(f"{out}.state")
    whole = model if whole is None else whole
    identity = {key: about[key] for key in IDENTITY if key in about}
    run = Learner(model, source, settings, identity)
    if resume:
        run.load(state)
    writes = run.rank == 0
    log = Log(out, run.step, tensorboard=tensorboard) if writes else None
    figures: Figures = {}
    begin, before = time.perf_counter(), run.seconds
    model.train()
    quiet = True if not writes else None if progress is None else not progress
    bar = tqdm(total=settings.steps, initial=run.step, disable=quiet, unit="step", smoothing=0.05)
    with bar, _deferred_interrupt() as interrupted:
        while run.step < settings.steps:
            loss, psnr = run.advance()
            run.seconds = before + time.perf_counter() - begin
            bar.update()
            last = run.step == settings.steps
            checks = last or (validate_every is not None and run.step % validate_every == 0)
            if run.step % REPORT == 0 or checks:
                figures = {"loss": float(loss)}
                if whole is model:  # what a part is given may have other units
                    figures["psnr"] = float(psnr)
                _report(bar, figures, run.pixels)
                if validate is not None and checks:
                    figures |= _validated(run, whole, validate, picture, out, about, dtype)
                if log is not None:
                    log.write(run.step, figures | {"pixels_per_s": run.pixels * run.step / run.seconds}, run.seconds)
            stop = _anyone(interrupted(), run)
            if writes and (run.step % keep_every == 0 or last or stop):
                run.save(state)
            if stop:
                raise KeyboardInterrupt
    if not figures and validate is not None:  # nothing was left to do but this
        figures = _validated(run, whole, validate, picture, out, about, dtype)
    model.load_state_dict(run.weights())
    whole.load_state_dict(rounded(whole.state_dict(), dtype))
    whole.eval()
    if writes:
        save_checkpoint(out, whole, dtype=dtype, settings=asdict(settings), metrics=figures, **about)
        state.unlink(missing_ok=True)
    return figures


def _validated(
    run: Learner,
    whole: nn.Module,
    validate: Callable[[Any], Figures],
    picture: Callable[[Any, Path], None] | None,
    out: str | os.PathLike[str],
    about: dict[str, Any],
    dtype: torch.dtype | None,
) -> Figures:
    """Figures of the weights that would be kept; the best so far are written."""
    part, kept = copy.deepcopy((run.model, whole))
    part.load_state_dict(run.weights())
    kept.load_state_dict(rounded(kept.state_dict(), dtype))
    kept.eval()
    figures = validate(kept)
    score = next(iter(figures.values()))
    if run.rank == 0:
        if picture is not None:
            picture(kept, Path(f"{out}.png"))
        if score > run.best:
            told = {"settings": asdict(run.settings), "metrics": figures | {"step": run.step}}
            save_checkpoint(f"{out}.best", kept, dtype=dtype, **told, **about)
    run.best = max(run.best, score)
    return figures


def _anyone(interrupted: bool, run: Learner) -> bool:
    """Whether a process was interrupted: all stop after the same step."""
    if run.world == 1:
        return interrupted
    flag = torch.tensor([float(interrupted)], device=run.device)
    dist.all_reduce(flag)
    return bool(flag)


def _report(bar: tqdm, figures: Figures, pixels_a_step: int) -> None:
    pixels = (bar.format_dict["rate"] or 0) * pixels_a_step
    quality = f", PSNR {figures['psnr']:.2f} dB" if "psnr" in figures else ""
    text = f"loss {figures['loss']:.4f}{quality}, {pixels / 1e3:.0f}k pixels/s"
    bar.set_postfix_str(text, refresh=False)


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold ctrl-C back until the step is whole; a second ctrl-C breaks off at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    caught: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(caught)
    finally:
        signal.signal(signal.SIGINT, before)
