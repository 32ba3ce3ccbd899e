"""Gradient descent in stages, kept in a file so that a run that was killed goes on to the same result."""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from pnp_lofi.checkpoint import read_tensors, write_tensors
from pnp_lofi.files import check_writable

KIND, FORMAT = "descent", 1
EVERY = 30.0  # seconds between two savings
MOMENTUM, LONGEST = 0.9, 1.0  # of SGD; a gradient that is longer is shortened to it
SAME = 1e-5  # relative difference of two numbers that is only rounding


@dataclass(frozen=True)
class Stage:
    """Steps of one optimiser on some of the parameters; its step falls to zero as a cosine.

    :param Sequence[str] names: of the parameters.
    :param int steps: 0 leaves the stage out; float lr: the step at the start.
    :param str method: "adam", or "sgd" with a momentum of 0.9 and gradients of length 1 at most.
    :raises ValueError: for what cannot be.
    """

    names: Sequence[str]
    steps: int
    lr: float
    method: Literal["adam", "sgd"] = "adam"

    def __post_init__(self) -> None:
        if self.steps < 0 or not 0 < self.lr < math.inf or self.method not in ("adam", "sgd"):
            raise ValueError(f"a stage has steps >= 0, lr > 0 and method adam or sgd, got {self}")


class Descent:
    """Lower ``loss(step)`` by the stages, one after the other.

    What is random in the loss should follow from the number of the step alone: then a run that goes on from its file
    ends at the same bits as one that never stopped, also after kill -9, which loses the steps since the last saving.

    :param dict parameters: leaf tensors by name; they are changed in place.
    :param Callable loss: of the number of the step, from 0 over all stages, to a scalar.
    :param dict about: JSON values that make the run what it is; resuming refuses others.
    :param str name: in front of the progress bar and in errors.
    """

    def __init__(
        self,
        parameters: dict[str, Tensor],
        loss: Callable[[int], Tensor],
        stages: Sequence[Stage],
        *,
        about: dict[str, Any] | None = None,
        name: str = "descent",
    ) -> None:
        self.parameters, self.loss, self.stages, self.name = parameters, loss, list(stages), name
        self.about = {"name": name, "stages": [[len(s.names), s.steps, s.lr, s.method] for s in stages]} | (about or {})
        self.total = sum(stage.steps for stage in stages)
        self.step, self.seconds, self.losses = 0, 0.0, []  # type: int, float, list[float]
        self.optimiser: torch.optim.Optimizer | None = None
        self.open = -1  # the stage whose optimiser it is

    def run(
        self,
        *,
        save: str | os.PathLike[str] | None = None,
        resume: bool = False,
        every: float = EVERY,
        progress: bool | None = None,
        callback: Callable[[int, float], bool | None] | None = None,
    ) -> bool:
        """All steps that are left.

        :param save: file to keep the run in, every so many seconds and at the end; resume: go on from it.
        :param bool progress: a bar on stderr; default: where stderr is a terminal.
        :param callback: called with the steps done and the loss before the last; returning True stops.
        :returns: whether all steps were done.
        :raises FloatingPointError: if the loss is not finite.
        :raises FileExistsError: if the file is there and resume is not asked for; FileNotFoundError: if it is not
            there and resume is; ValueError: if it belongs to another run.
        """
        if save is not None:
            self._open(Path(save), resume)
        begin, before, kept = time.perf_counter(), self.seconds, time.perf_counter()
        quiet = None if progress is None else not progress
        with tqdm(total=self.total, initial=self.step, disable=quiet, desc=self.name, unit="step") as bar:
            while self.step < self.total:
                value = self._advance()
                self.seconds = before + time.perf_counter() - begin
                bar.update()
                bar.set_postfix_str(f"loss {value:.3e}", refresh=False)
                stopped = callback is not None and bool(callback(self.step, value))
                if save is not None and (stopped or time.perf_counter() - kept >= every):
                    self.save(save)
                    kept = time.perf_counter()
                if stopped:
                    return self.step == self.total
        if save is not None:
            self.save(save)
        return True

    def stage(self) -> tuple[int, int]:
        """Number of the stage that the next step belongs to, and the step's number within."""
        left = self.step
        for k, stage in enumerate(self.stages):
            if left < stage.steps:
                return k, left
            left -= stage.steps
        return len(self.stages) - 1, left

    def _advance(self) -> float:
        number, done = self.stage()
        stage, optimiser = self.stages[number], self._optimiser(number)
        chosen = set(stage.names)
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in chosen)
        for group in optimiser.param_groups:
            group["lr"] = stage.lr * 0.5 * (1 + math.cos(math.pi * done / stage.steps))
        optimiser.zero_grad()
        with torch.enable_grad():
            loss = self.loss(self.step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"{self.name}: the loss is {value} at step {self.step}; lower lr (now {stage.lr})")
        loss.backward()
        if stage.method == "sgd":
            torch.nn.utils.clip_grad_norm_([self.parameters[name] for name in stage.names], LONGEST)
        optimiser.step()
        self.step += 1
        self.losses.append(value)
        return value

    def _optimiser(self, number: int) -> torch.optim.Optimizer:
        if self.open != number or self.optimiser is None:
            stage = self.stages[number]
            chosen = [self.parameters[name] for name in stage.names]
            adam = stage.method == "adam"
            self.optimiser = (
                torch.optim.Adam(chosen, lr=stage.lr) if adam else torch.optim.SGD(chosen, stage.lr, momentum=MOMENTUM)
            )
            self.open = number
        return self.optimiser

    # ---- keeping -----------------------------------------------------------------------------------------

    def _open(self, path: Path, resume: bool) -> None:
        if not resume:
            if path.exists():
                raise FileExistsError(f"{path} holds a run; go on with resume, or remove it to start anew")
            check_writable(path)
            return
        if not path.is_file():
            raise FileNotFoundError(f"nothing to resume: {path} does not exist; start without resume")
        self.load(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the whole state, or nothing."""
        tensors = {f"parameter.{name}": t.detach().clone() for name, t in self.parameters.items()}
        if self.optimiser is not None:
            for number, moments in self.optimiser.state_dict()["state"].items():
                tensors |= {f"moment.{number}.{name}": v for name, v in moments.items() if isinstance(v, Tensor)}
        about = {"kind": KIND, "format": FORMAT, "about": self.about, "step": self.step, "open": self.open}
        write_tensors(path, tensors, about | {"seconds": self.seconds, "losses": self.losses})

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take up where ``save`` left off. :raises ValueError: if the file belongs to another run."""
        tensors, header = read_tensors(path)
        if header.get("kind") != KIND or header.get("format") != FORMAT:
            raise ValueError(f"{path} is not the run of a descent, format {FORMAT}")
        there = header["about"]
        differ = [k for k in sorted({*there, *self.about}) if not _same(there.get(k), self.about.get(k))]
        if differ:
            told = "; ".join(f"{k} {there.get(k)} there, {self.about.get(k)} here" for k in differ)
            raise ValueError(f"{path} is another run: {told}")
        # clones, because products of matrices may depend on how their memory is aligned
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameter.{name}"])
        self.step, self.seconds, self.losses = header["step"], header["seconds"], header["losses"]
        if header["open"] >= 0:
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                kind, _, rest = key.partition(".")
                if kind == "moment":
                    number, name = rest.split(".")
                    state.setdefault(int(number), {})[name] = value.clone()
            optimiser = self._optimiser(header["open"])
            optimiser.load_state_dict(optimiser.state_dict() | {"state": state})


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= SAME * max(abs(a), abs(b))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same(p, q) for p, q in zip(a, b, strict=True))
    return bool(a == b)
