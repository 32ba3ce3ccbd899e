"""Inverse problems by a generator: its z is sought first, then its weights are fitted."""

import copy
import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from deepinv.physics import LinearPhysics
from deepinv.utils import TensorList
from torch import Tensor, nn

from pnp_lofi.checks import check_is_tensor
from pnp_lofi.dense import finite
from pnp_lofi.descent import EVERY, Descent, Stage
from pnp_lofi.memory import peak_memory_mb
from pnp_lofi.noise import misfit_level
from pnp_lofi.solution import Iterate, Solution, Status
from pnp_lofi.solver import errors

TV_FLOOR = 1e-4  # below such differences total variation is smooth [units of x per pixel]
LOOK = 50  # steps between two looks of the callback


@dataclass(frozen=True)
class LatentSolution(Solution):
    """A solution, the z that it came from, and the generator with the weights that were fitted.

    Its residuals are (loss, 0) of each step.
    """

    z: Tensor = field(repr=False)
    generator: nn.Module = field(repr=False)


class LatentSolver:
    """Looks for an image of a generator f that explains the data:

        min_z ||A f(z) - y||^2 / ||y||^2 + tv TV(f(z)) + prior ||z||^2 / (2 latent)     Adam, from z = 0
        then the same over the generator's weights, z held                              SGD

    TV(x) is the mean length of the differences between neighbours [units of x per pixel].

    :param LinearPhysics op: forward operator A.
    :param nn.Module generator: f, called as f(z), (B, latent) -> (B, C, H, W). It is copied: its weights stay.
    :param int latent: numbers of a z; default ``generator.latent``.
    :param int steps: of Adam on z; float lr: its step at the start, which falls to zero as a cosine.
    :param int weight_steps: of SGD on the weights, 0 for none; float weight_lr: likewise. The weights are
        ``generator.tuned_parameters()`` where it has that, else all.
    :param float tv, prior: as in the formula.
    :param callback: called with an :class:`~pnp_lofi.solution.Iterate` every 50 steps and after the last, whose primal
        is the loss; returning True stops.
    :param bool progress: progress bar on stderr; default: where stderr is a terminal.
    :raises ValueError: for parameters that cannot be.
    Source: arXiv 2212.14042, section 4.3: 2500 steps of Adam (CT: 5000), then 1000 of SGD. Differs: the misfit is
    relative, so that step sizes do not depend on the units of y; the steps fall; the SGD has a momentum of 0.9
    and gradients of length 1 at most.
    """

    def __init__(
        self,
        op: LinearPhysics,
        generator: nn.Module,
        *,
        latent: int | None = None,
        steps: int = 2500,
        lr: float = 0.05,
        weight_steps: int = 1000,
        weight_lr: float = 0.03,
        tv: float = 0.0,
        prior: float = 0.0,
        callback: Callable[[Iterate], bool | None] | None = None,
        progress: bool | None = None,
    ) -> None:
        latent = latent if latent is not None else getattr(generator, "latent", None)
        if not isinstance(latent, int) or latent < 1:
            raise ValueError(f"{type(generator).__name__} does not say how long its z are; pass latent=")
        if not all(math.isfinite(w) and w >= 0 for w in (tv, prior)):
            raise ValueError(f"tv and prior must be finite and >= 0, got {tv}, {prior}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        Stage((), weight_steps, weight_lr, "sgd")
        Stage((), steps, lr)
        self.op, self.generator, self.latent = op, generator, latent
        self.steps, self.lr, self.weight_steps, self.weight_lr = steps, lr, weight_steps, weight_lr
        self.tv, self.prior, self.callback, self.progress = tv, prior, callback, progress

    def __call__(self, y: Tensor) -> Tensor:
        """:returns: the image, (B, C, H, W); see :meth:`solve`."""
        return self.solve(y).x

    def solve(
        self,
        y: Tensor,
        *,
        z0: Tensor | None = None,
        truth: Tensor | None = None,
        save: str | os.PathLike[str] | None = None,
        resume: bool = False,
        every: float = EVERY,
    ) -> LatentSolution:
        """Reconstruct.

        :param torch.Tensor y: data, a batch; a batch of more than one only without ``weight_steps``, since the weights
            are those of one image.
        :param torch.Tensor z0: start, (B, latent); default zero.
        :param torch.Tensor truth: to measure against.
        :param save: file that keeps the run on the way; resume: go on from it, to the same bits as if it had never
            stopped; a finished one gives its result at once.
        :param float every: time between two savings [s].
        :raises ValueError: if y holds NaN or inf or is all zero, if z0 has another shape or the batch is too large, or
            if the file holds a run of other data, weights or settings; FloatingPointError: if the loss becomes NaN.
        """
        y = self._checked(y)
        truth = None if truth is None else truth.detach()
        f = copy.deepcopy(self.generator).eval()
        for weight in f.parameters():
            weight.requires_grad_(False)
        weights = self._weights(f)
        like: Tensor = next(f.parameters(), y)
        z = (
            torch.zeros(len(y), self.latent, dtype=like.dtype, device=like.device)
            if z0 is None
            else z0.detach().clone()
        )
        if z.shape != (len(y), self.latent):
            raise ValueError(f"z0 must be {(len(y), self.latent)}, got {tuple(z.shape)}")
        scale = y.abs().square().flatten(1).sum(1)
        if not bool((scale > 0).all()):
            raise ValueError("the data of an item are all zero: there is nothing to reconstruct")

        def loss(step: int) -> Tensor:
            x = f(z)
            if not finite(x):
                return x.new_tensor(torch.nan)  # which the descent tells of
            misfit = (self.op.A(x) - y).abs().square().flatten(1).sum(1) / scale
            value = misfit + 0.5 * self.prior * z.square().mean(1)
            return (value + self.tv * total_variation(x) if self.tv else value).sum()

        stages = [Stage(("z",), self.steps, self.lr), Stage(tuple(weights), self.weight_steps, self.weight_lr, "sgd")]
        run = Descent({"z": z} | weights, loss, stages, about=self._about(f, z, y), name=type(self).__name__)

        def look(step: int, value: float) -> bool | None:
            if self.callback is None or (step % LOOK and step != run.total):
                return None
            with torch.no_grad():
                x = f(z)
            snr = None if truth is None else errors(self.op, x, truth)["snr"]
            return self.callback(Iterate(step, x, value, 0.0, seconds=run.seconds, snr=snr))

        done = run.run(save=save, resume=resume, every=every, progress=self.progress, callback=look)
        for parameter in [z, *weights.values()]:
            parameter.requires_grad_(False)
        with torch.no_grad():
            x = f(z)
        status: Status = "limit" if done else "stopped"
        metrics = self._metrics(x, y, scale, run) | ({} if truth is None else errors(self.op, x, truth))
        return LatentSolution(x, status, run.step, [(value, 0.0) for value in run.losses], metrics, z, f)

    def _checked(self, y: Tensor) -> Tensor:
        check_is_tensor(type(self).__name__, y, "y")
        if isinstance(y, TensorList):
            raise ValueError("LatentSolver takes one tensor of data, not those of stacked operators")
        if not finite(y):
            raise ValueError("y holds NaN or inf; flag such data (weight 0) or leave them out")
        if self.weight_steps and len(y) > 1:
            raise ValueError(
                f"weights are fitted to one image at a time, got {len(y)}; pass weight_steps=0 or one item"
            )
        return y.detach()

    def _weights(self, f: nn.Module) -> dict[str, Tensor]:
        if not self.weight_steps:
            return {}
        own = getattr(f, "tuned_parameters", None)
        found = own() if own is not None else list(f.parameters())
        if not found:
            raise ValueError(f"{type(f).__name__} has no weights to fit; pass weight_steps=0")
        return {f"weight{k}": p for k, p in enumerate(found)}

    def _about(self, f: nn.Module, z: Tensor, y: Tensor) -> dict[str, Any]:
        """What makes the run what it is."""
        state = [t for t in f.state_dict().values()]
        return {"tv": self.tv, "prior": self.prior, "data": _hash(y), "generator": _hash(*state), "z0": _hash(z),
                "operator": float(self.op.A_adjoint(y).double().norm())}  # fmt: skip

    def _metrics(self, x: Tensor, y: Tensor, scale: Tensor, run: Descent) -> dict[str, Any]:
        with torch.no_grad():
            relative = float(((self.op.A(x) - y).abs().square().flatten(1).sum(1) / scale).mean().sqrt())
        return {"loss": run.losses[-1], "relative_misfit": relative, "residual": misfit_level(self.op, y, x),
                "seconds": run.seconds, "peak_memory_mb": peak_memory_mb(x.device)}  # fmt: skip


def total_variation(x: Tensor) -> Tensor:
    """Mean length of the differences between neighbours, (B, C, H, W) -> (B,) [units of x per pixel]."""
    down, across = x[..., 1:, :-1] - x[..., :-1, :-1], x[..., :-1, 1:] - x[..., :-1, :-1]
    return (down.square() + across.square() + TV_FLOOR**2).sqrt().flatten(1).mean(1)


def _hash(*tensors: Tensor) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for t in tensors:
        parts = torch.view_as_real(t.detach()) if t.is_complex() else t.detach()
        digest.update(parts.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
