"""A normalising flow between latents and standard normal numbers."""

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pnp_lofi.descent import EVERY, Descent, Stage
from pnp_lofi.learner import seeded

HELD_OUT, LOOK = 0.1, 20  # part of the latents; steps between two looks at them
LEAST = 0.01  # of the largest standard deviation: directions below it are taken to be that wide


class LatentFlow(nn.Module):
    """z = flow(W (w - mean)) of latents w: whitened, then coupled affine maps (RealNVP), the identity at the start.

    :param int latent: numbers of a latent, at least 2.
    :param int blocks: couplings; each changes every second number by what the others say.
    :param Sequence[int] hidden: widths of the networks that say so.
    :raises ImportError: if zuko is not installed.
    Source: Dinh et al. 2017, arXiv 1605.08803, by zuko; sizes of arXiv 2212.14042. Differs: there act-norm before each
    coupling, here one whitening of all, computed from the latents.
    """

    mean: Tensor
    whiten: Tensor
    unwhiten: Tensor

    def __init__(self, latent: int, *, blocks: int = 5, hidden: Sequence[int] = (1024, 512)) -> None:
        super().__init__()
        if latent < 2 or blocks < 1 or min(hidden, default=1) < 1:
            raise ValueError(f"expected latent >= 2, blocks >= 1 and positive widths, got {latent}, {blocks}, {hidden}")
        try:
            from zuko.flows import NICE  # with its affine couplings it is RealNVP, which newer versions also call so
        except ImportError as error:
            raise ImportError("flows on latents need zuko: pip install 'pnp_lofi[generative]'") from error
        self.config: dict[str, Any] = {"latent": latent, "blocks": blocks, "hidden": list(hidden)}
        self.latent = latent
        self.flow = NICE(latent, transforms=blocks, hidden_features=list(hidden))
        for coupling in self.flow.transform.transforms:
            nn.init.zeros_(coupling.hyper[-1].weight)
            nn.init.zeros_(coupling.hyper[-1].bias)
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("whiten", torch.eye(latent))
        self.register_buffer("unwhiten", torch.eye(latent))

    def set_scale(self, latents: Tensor) -> None:
        """Whiten by the mean and the covariance of some latents.

        :param torch.Tensor latents: (N, latent), N >= 2.
        :raises ValueError: for another shape, NaN or inf.
        """
        self._check(latents)
        if len(latents) < 2 or not bool(torch.isfinite(latents).all()):
            raise ValueError(f"expected two or more finite latents, got {tuple(latents.shape)}")
        w = latents.detach().double()
        values, vectors = torch.linalg.eigh(torch.cov(w.T))
        width = values.clamp_min(0).sqrt()
        width = width.clamp_min(LEAST * float(width.max())).clamp_min(torch.finfo(torch.float32).tiny)
        self.mean.copy_(w.mean(0))
        self.whiten.copy_((vectors / width).T)
        self.unwhiten.copy_(vectors * width)

    def forward(self, latents: Tensor) -> Tensor:
        """:param torch.Tensor latents: (B, latent). :returns: z, (B, latent)."""
        self._check(latents)
        return self.flow().transform((latents - self.mean) @ self.whiten.T)

    def inverse(self, z: Tensor) -> Tensor:
        """:param torch.Tensor z: (B, latent). :returns: latents, (B, latent)."""
        self._check(z)
        return self.mean + self.flow().transform.inv(z) @ self.unwhiten.T

    def log_prob(self, latents: Tensor) -> Tensor:
        """log of the density of latents, (B, latent) -> (B,)."""
        self._check(latents)
        white = (latents - self.mean) @ self.whiten.T
        z, log_det = self.flow().transform.call_and_ladj(white)
        stretch = torch.linalg.slogdet(self.whiten.double()).logabsdet.to(z)
        return log_det + stretch - 0.5 * z.square().sum(1) - 0.5 * self.latent * math.log(2 * math.pi)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.latent:
            raise ValueError(f"expected (batch, {self.latent}), got {tuple(x.shape)}")


class Fit(NamedTuple):
    """How a flow was fitted.

    :param list losses: -log p of each step's batch, per number of a latent [nat].
    :param float held_out: that of the latents held out, the lowest, whose weights are kept; int step: where it was.
    """

    losses: list[float]
    held_out: float
    step: int


def fit_flow(
    flow: LatentFlow,
    latents: Tensor,
    *,
    steps: int = 2000,
    batch: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
    save: str | os.PathLike[str] | None = None,
    resume: bool = False,
    every: float = EVERY,
    progress: bool | None = None,
) -> Fit:
    """Whiten, then raise the likelihood of latents with Adam.

    The last tenth of the latents is held out: a flow soon knows the others by heart, so the weights that are kept are
    those with which the held-out ones were likeliest. The trainer of the package compares images; a likelihood has
    nothing to compare, hence a loop of its own.

    :param torch.Tensor latents: (N, latent), N >= 3, in random order.
    :param save: file that keeps the run; resume: go on from it, exactly.
    :raises ValueError: for too few latents, NaN, steps or batch < 1.
    """
    if batch < 1 or steps < 1 or len(latents) < 3:
        raise ValueError(
            f"expected batch and steps >= 1 and three latents or more, got {batch}, {steps}, {len(latents)}"
        )
    latents = latents.detach()
    count = len(latents) - max(1, round(HELD_OUT * len(latents)))
    kept, held = latents[:count], latents[count:]
    flow.set_scale(kept)

    def loss(step: int) -> Tensor:
        chosen = torch.randint(count, (batch,), generator=seeded(seed, "latents", step))
        return -flow.log_prob(kept[chosen.to(kept.device)]).mean() / flow.latent

    def unseen() -> Tensor:
        with torch.no_grad():
            return -flow.log_prob(held).double().mean() / flow.latent

    own: dict[str, Tensor] = dict(flow.named_parameters())
    best = {f"best.{name}": p.detach().clone() for name, p in own.items()}
    found = torch.stack([unseen().cpu(), torch.tensor(0.0, dtype=torch.float64)])  # the lowest, and its step

    def look(step: int, value: float) -> None:
        if step % LOOK == 0 or step == steps:
            now = float(unseen())
            if now < float(found[0]):
                found[0], found[1] = now, step
                for name, p in own.items():
                    best[f"best.{name}"].copy_(p.detach())

    about = flow.config | {"batch": batch, "seed": seed, "latents": [len(latents), float(latents.double().norm())]}
    # what is in no stage is not changed by the descent, but kept in its file
    run = Descent(own | best | {"found": found}, loss, [Stage(tuple(own), steps, lr)], about=about, name="flow")
    run.run(save=save, resume=resume, every=every, progress=progress, callback=look)
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(best[f"best.{name}"])
            p.requires_grad_(True)
    return Fit(run.losses, float(found[0]), int(found[1]))
