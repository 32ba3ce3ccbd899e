"""One network on its way: its steps, and all that the next one needs."""

import hashlib
import json
import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pnp_lofi.checkpoint import read_tensors, write_tensors
from pnp_lofi.examples import Example, Source
from pnp_lofi.funknn import FunkNN
from pnp_lofi.liif import LIIF
from pnp_lofi.lofi import LoFi
from pnp_lofi.sampling import coordinates
from pnp_lofi.shared import SharedLoFi

if TYPE_CHECKING:
    from pnp_lofi.train import TrainSettings

BETAS = (0.9, 0.99)
FORMAT = 3


def seeded(seed: int, what: str, number: int) -> torch.Generator:
    """The random generator of one thing of one step."""
    digest = hashlib.blake2b(f"{seed} {what} {number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class Batches:
    """The batches of a source by number; the one asked for last is kept.

    :param bool ahead: draw the next one in a thread meanwhile, into pinned memory, for a GPU that should not wait.
    """

    def __init__(self, source: Source, seed: int, *, ahead: bool = False) -> None:
        self.source, self.seed = source, seed
        self.thread = ThreadPoolExecutor(1) if ahead else None
        self.coming: dict[int, Future[Example]] = {}
        self.kept: tuple[int, Example] | None = None

    def __getitem__(self, number: int) -> Example:
        if self.kept is None or self.kept[0] != number:
            if self.thread is None:
                example = self._draw(number)
            else:
                example = self._begin(number).result()
                self.coming = {number + 1: self._begin(number + 1)}
            self.kept = (number, example)
        return self.kept[1]

    def _begin(self, number: int) -> "Future[Example]":
        assert self.thread is not None
        return self.coming.get(number) or self.thread.submit(self._draw, number)

    def _draw(self, number: int) -> Example:
        example = self.source(seeded(self.seed, "batch", number))
        return example.pinned() if self.thread and torch.cuda.is_available() else example


class Learner:
    """Weights, their running mean, Adam's moments and the step.

    What is random follows from the seed and the number of the step alone, so that batches can be drawn ahead of time,
    and a run goes on from any step as if it had never stopped.

    Several processes of torch.distributed share the objects of a step: all draw the same batch, each works on every
    n-th object, and gradients are summed, so that the run is that of one process with the same batch.

    :param nn.Module model: called as ``model(q)`` or, where examples have a sigma, ``model(q, sigma)``.
    :param dict identity: what else makes the run what it is; resuming refuses another one.
    """

    def __init__(self, model: nn.Module, source: Source, settings: "TrainSettings", identity: dict[str, Any]) -> None:
        self.model, self.source, self.settings, self.identity = model, source, settings, identity
        self.device = next(model.parameters()).device
        self.optimiser = torch.optim.Adam(model.parameters(), lr=settings.lr, betas=BETAS)
        self.mean = {k: v.detach().clone() for k, v in model.state_dict().items()} if settings.ema else {}
        self.step, self.best, self.seconds = 0, -math.inf, 0.0
        self.pixels = 0  # of a step
        self.batches = Batches(source, settings.seed, ahead=self.device.type == "cuda")
        shared = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)

    def advance(self) -> tuple[Tensor, Tensor]:
        """One optimiser step; returns loss and PSNR (range 1) over all objects.

        :raises FloatingPointError: if the loss is not finite.
        """
        s = self.settings
        example = self.batches[self.step // s.draws]
        objects, pixels = len(example.x), example.x[0, 0].numel()
        if objects < self.world * s.accumulate:
            raise ValueError(
                f"{objects} objects a step do not go round {self.world} processes in {s.accumulate} parts each; take "
                "more objects"
            )
        index = torch.randint(pixels, (objects, s.pixels), generator=seeded(s.seed, "pixels", self.step))
        for group in self.optimiser.param_groups:
            decay = 0.5 * (1 + math.cos(math.pi * self.step / s.steps)) if s.schedule == "cosine" else 1.0
            group["lr"] = s.lr * decay
        self.optimiser.zero_grad()
        found = torch.zeros(4, dtype=torch.float64)  # sums of loss, of squares; values, pixels
        for k in range(s.accumulate):
            mine = slice(self.rank + k * self.world, None, self.world * s.accumulate)
            found += self._part(example.part(mine).to(self.device), index[mine].to(self.device), objects)
        self._share(found)
        loss = found[0]
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.step}; lower lr (now {s.lr})")
        self.optimiser.step()
        self.step += 1
        if self.mean:
            now = self.model.state_dict()
            for name, value in self.mean.items():
                if value.is_floating_point():
                    value.lerp_(now[name], 1 - min(s.ema, self.step / (self.step + 10)))
                else:
                    value.copy_(now[name])
        self.pixels = int(found[3])
        return loss, -10 * torch.log10(found[1] / found[2])

    def _part(self, example: Example, index: Tensor, objects: int) -> Tensor:
        """Adds the gradients of some objects."""
        from pnp_lofi.train import LOSSES

        s = self.settings
        low = torch.bfloat16 if self.step < s.low_precision * s.steps else None
        error = answer_error(self.model, example, index, low)
        each = LOSSES[s.loss](error).flatten(1).mean(1)
        if example.sigma is not None:
            each = each / example.sigma**s.weight
        loss = each.sum() / objects
        loss.backward()
        square = error.detach().double().square().sum()
        channels = example.x.shape[1]
        values = [float(loss.detach()), float(square), error.numel(), error.numel() // channels]
        return torch.tensor(values, dtype=torch.float64)

    def _share(self, found: Tensor) -> None:
        """Sum gradients and figures over the processes."""
        if self.world == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.model.parameters()]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for p, part in zip(self.model.parameters(), flat.split([g.numel() for g in gradients]), strict=True):
            p.grad = part.reshape(p.shape)
        moved = found.to(self.device)
        dist.all_reduce(moved)
        found.copy_(moved)

    # ---- keeping -----------------------------------------------------------------------------------------

    def weights(self) -> dict[str, Tensor]:
        """What the checkpoint holds: the running mean, or the weights."""
        return self.mean or self.model.state_dict()

    def save(self, path: Path) -> None:
        """Write the whole state to a safetensors file."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"mean.{k}": v for k, v in self.mean.items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": value for name, value in moments.items()}
        header = {"state": FORMAT, "step": self.step, "best": self.best, "seconds": self.seconds} | self._about()
        write_tensors(path, tensors, header)

    def load(self, path: Path) -> None:
        """Take up where ``save`` left off.

        :raises FileNotFoundError: if there is no state; ValueError: if it belongs to another run.
        """
        if not path.is_file():
            raise FileNotFoundError(f"nothing to resume: {path} does not exist; start without --resume")
        tensors, header = read_tensors(path)
        if header.get("state") != FORMAT:
            raise ValueError(f"{path} is not a training state of format {FORMAT}; start anew without --resume")
        for what, asked in self._about().items():
            kept, wanted = header.get(what), json.loads(json.dumps(asked))
            if kept != wanted:
                if isinstance(kept, dict) and isinstance(wanted, dict):
                    names = [name for name in kept.keys() | wanted.keys() if kept.get(name) != wanted.get(name)]
                    kept, wanted = ({name: d.get(name) for name in sorted(names)} for d in (kept, wanted))
                raise ValueError(
                    f"{path} belongs to a run with other {what}: {kept}, asked for {wanted}; resume with the same "
                    "options, or start anew without --resume"
                )
        groups: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            groups.setdefault(kind, {})[name] = value
        self.model.load_state_dict(groups["model"])
        for name, value in groups.get("mean", {}).items():
            self.mean[name].copy_(value)
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in groups.get("adam", {}).items():
            k, name = key.split(".")
            state.setdefault(int(k), {})[name] = value
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": state})
        self.step, self.seconds = header["step"], header["seconds"]
        self.best = -math.inf if header["best"] is None else header["best"]

    def _about(self) -> dict[str, Any]:
        config = getattr(self.model, "config", type(self.model).__name__)
        return {"settings": asdict(self.settings), "config": config, "identity": self.identity}


def answer_error(model: nn.Module, example: Example, index: Tensor, low: torch.dtype | None) -> Tensor:
    """The network's answer minus what it should be, where the loss looks: (B, ...).

    A SharedLoFi is asked for all pixels that are ``reach`` from the border, a LoFi for those of ``index``, (B, P), any
    other network for all. Where q has another size than x, a FunkNN, LIIF or LoFi is asked at the places of x's pixels.

    :raises ValueError: if sizes differ and the network has one grid.
    """
    q, x, sigma = example
    if isinstance(model, FunkNN | LIIF) or (isinstance(model, LoFi) and q.shape[-2:] != x.shape[-2:]):
        height, width = x.shape[-2:]
        target = x.flatten(2).gather(2, index[:, None].expand(-1, x.shape[1], -1)).transpose(1, 2)
        places = coordinates(torch.stack([index // width, index % width], -1).double(), (height, width))
        told: dict[str, Any] = {"compute_dtype": low}
        if isinstance(model, LoFi):
            told["sigma"] = sigma if model.equivariant else None
        elif model.footprint:
            told["footprint"] = (q.shape[-2] / height, q.shape[-1] / width)
        return model.at(q, places, **told) - target
    if q.shape[-2:] != x.shape[-2:]:
        raise ValueError(
            f"{type(model).__name__} answers on the grid that it sees, {tuple(q.shape[-2:])}, not on "
            f"{tuple(x.shape[-2:])}; bring q to that size first"
        )
    if isinstance(model, SharedLoFi):
        if sigma is None:
            raise ValueError("a SharedLoFi works in units of the noise: its examples need a sigma")
        reach, (height, width) = model.reach, x.shape[-2:]
        target = x[..., reach : height - reach, reach : width - reach]
        return model.interior(q, sigma[:, None, None, None], compute_dtype=low) - target
    if isinstance(model, LoFi):
        target = x.flatten(2).gather(2, index[:, None].expand(-1, x.shape[1], -1)).transpose(1, 2)
        return model.at_pixels(q, index, sigma if model.equivariant else None, compute_dtype=low) - target
    with torch.autocast(q.device.type, torch.bfloat16, enabled=low is not None):
        out = model(q) if sigma is None else model(q, sigma)
    return out.to(x.dtype) - x
