"""Training a LoFi denoiser on mini-batches of objects and pixels."""

import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pnp_lofi.checkpoint import read_tensors, save_checkpoint, write_tensors
from pnp_lofi.lofi import LoFi
from pnp_lofi.shared import SharedLoFi

Batch = Callable[[torch.Generator], Tensor]  # draws (objects, C, size, size) clean crops


@dataclass(frozen=True)
class TrainSettings:
    """What a training run is, besides its network and its images.

    :param int steps: optimiser steps.
    :param int objects: crops per step.
    :param int pixels: pixels drawn from each for a LoFi; a SharedLoFi uses all that are ``reach`` from the border.
    :param float lr: Adam's step at the start; cosine decay to zero.
    :param float sigma_min, sigma_max: noise levels, log-uniform [units of the images].
    :param float weight: the L1 loss of a crop is divided by sigma**weight.
    :param float low_precision: this leading part of the steps computes its matrix products in bfloat16 (about
        twice as fast where the processor has it).
    :param int seed: of everything random.
    """

    steps: int = 20_000
    objects: int = 16
    pixels: int = 512
    lr: float = 2e-3
    sigma_min: float = 5e-4
    sigma_max: float = 0.2
    weight: float = 0.7
    low_precision: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min <= self.sigma_max:
            raise ValueError(f"expected 0 < sigma_min <= sigma_max, got {self.sigma_min}, {self.sigma_max}")
        if min(self.steps, self.objects, self.pixels) < 1 or not self.lr > 0:
            raise ValueError(f"steps, objects, pixels and lr must be positive, got {self}")


class Crops:
    """Random square crops of a list of images, flipped and turned.

    :param Sequence images: (C, H, W) tensors, at least ``size`` on each side.
    :param int size: side of a crop [pixel].
    :param int count: crops of a batch.
    :param int tries: of so many candidates the brightest is taken: fewer empty crops of sparse images.
    :raises ValueError: if no image is large enough.
    """

    def __init__(self, images: Sequence[Tensor], size: int, count: int, *, tries: int = 1) -> None:
        self.images = [x for x in images if min(x.shape[-2:]) >= size]
        if not self.images:
            raise ValueError(f"no image is at least {size} x {size}; pass a smaller --size or larger images")
        self.size, self.count, self.tries = size, count, tries
        self.areas = torch.tensor([float(x.shape[-1] * x.shape[-2]) for x in self.images])

    def __call__(self, generator: torch.Generator) -> Tensor:
        turns = torch.randint(8, (self.count,), generator=generator).tolist()
        crops = [max((self._draw(generator) for _ in range(self.tries)), key=lambda x: float(x.mean())) for _ in turns]
        return torch.stack([x.rot90(t % 4, (-2, -1)).flip(-1) if t >= 4 else x.rot90(t, (-2, -1))
                            for x, t in zip(crops, turns, strict=True)])  # fmt: skip

    def _draw(self, generator: torch.Generator) -> Tensor:
        image = self.images[int(torch.multinomial(self.areas, 1, generator=generator))]
        at = torch.rand(2, generator=generator).tolist()
        r, c = (int(a * (n - self.size + 1)) for a, n in zip(at, image.shape[-2:], strict=True))
        return image[:, r : r + self.size, c : c + self.size]


class Mixture:
    """Each batch from one of several sources, drawn by weight."""

    def __init__(self, sources: Sequence[Batch], weights: Sequence[float]) -> None:
        self.sources, self.weights = list(sources), torch.tensor(weights, dtype=torch.float32)

    def __call__(self, generator: torch.Generator) -> Tensor:
        k = int(torch.multinomial(self.weights, 1, generator=generator))
        return self.sources[k](generator)


def train(
    model: LoFi | SharedLoFi,
    batches: Batch,
    settings: TrainSettings,
    out: str | os.PathLike[str],
    *,
    about: dict[str, Any] | None = None,
    validate: Callable[[Any], dict[str, float]] | None = None,
    resume: bool = False,
    keep_every: int = 500,
    progress: bool = True,
) -> dict[str, float]:
    """Train a denoiser D(x + sigma n, sigma) = x with the L1 loss and write its checkpoint.

    The state (weights, Adam's moments, random generator, step) is kept in ``OUT.state`` every
    ``keep_every`` steps and at ctrl-C, so that ``resume=True`` goes on to the same result.

    :param model: an equivariant network.
    :param Batch batches: draws clean crops (objects, C, size, size) from a generator.
    :param out: path of the checkpoint.
    :param dict about: further header entries.
    :param validate: figures that go into the header at the end.
    :returns: the figures of the last step and of ``validate``.
    :raises KeyboardInterrupt: after keeping the state.
    :raises FloatingPointError: if the loss is not finite.
    Source: arXiv 2411.04995, section VII (objects x pixels; there Adam 1e-4, one sigma).
    """
    state = Path(f"{out}.state")
    run = _Run(model, batches, settings, about or {})
    if resume:
        run.load(state)
    figures: dict[str, float] = {}
    model.train()
    bar = tqdm(total=settings.steps, initial=run.step, disable=not progress, unit="step", smoothing=0.05)
    with bar, _deferred_interrupt() as interrupted:
        while run.step < settings.steps:
            loss, psnr = run.advance()
            bar.update()
            if run.step % 20 == 0 or run.step == settings.steps:
                figures = {"loss": float(loss), "psnr": float(psnr)}
                _report(bar, figures, run.pixels)
            if run.step % keep_every == 0 or run.step == settings.steps or interrupted():
                run.save(state)
            if interrupted():
                raise KeyboardInterrupt
    model.eval()
    if validate is not None:
        figures |= validate(model)
    save_checkpoint(
        out,
        model,
        sigma_range=[settings.sigma_min, settings.sigma_max],
        value_range=[0.0, 1.0],
        settings=asdict(settings),
        metrics=figures,
        **(about or {}),
    )
    state.unlink(missing_ok=True)
    return figures


class _Run:
    """What changes during training: weights, Adam's moments, random generator, step."""

    def __init__(
        self, model: LoFi | SharedLoFi, batches: Batch, settings: TrainSettings, about: dict[str, Any]
    ) -> None:
        self.model, self.batches, self.settings = model, batches, settings
        self.images = {key: about[key] for key in ("trained_on", "crop") if key in about}
        self.pixels = 0  # of a step
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.optimiser = torch.optim.Adam(model.parameters(), lr=settings.lr, betas=(0.9, 0.99))
        self.step = 0

    def advance(self) -> tuple[Tensor, Tensor]:
        """One optimiser step; returns loss and PSNR (range 1)."""
        s, g = self.settings, self.generator
        clean = self.batches(g)
        objects, channels, height, width = clean.shape
        span = math.log(s.sigma_max / s.sigma_min)
        sigma = s.sigma_min * torch.exp(span * torch.rand(objects, generator=g))
        noisy = clean + sigma[:, None, None, None] * torch.randn(clean.shape, generator=g)
        low = torch.bfloat16 if self.step < s.low_precision * s.steps else None
        if isinstance(self.model, SharedLoFi):
            reach = self.model.reach
            target = clean[..., reach : height - reach, reach : width - reach]
            error = self.model.interior(noisy, sigma[:, None, None, None], compute_dtype=low) - target
        else:
            index = torch.randint(height * width, (objects, s.pixels), generator=g)
            target = clean.flatten(2).gather(2, index[:, None].expand(-1, channels, -1)).transpose(1, 2)
            error = self.model.at_pixels(noisy, index, sigma, compute_dtype=low) - target
        self.pixels = error.numel() // channels
        loss = (error.abs().flatten(1).mean(1) / sigma**s.weight).mean()
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.step}; lower lr (now {s.lr})")
        for group in self.optimiser.param_groups:
            group["lr"] = s.lr * 0.5 * (1 + math.cos(math.pi * self.step / s.steps))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.step += 1
        return loss.detach(), -10 * torch.log10(error.detach().square().mean())

    def save(self, path: Path) -> None:
        """Write the whole state to a safetensors file."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": value for name, value in moments.items()}
        tensors["generator"] = self.generator.get_state()
        header = {"state": 1, "step": self.step, "settings": asdict(self.settings), "config": self.model.config}
        header["images"] = self.images
        write_tensors(path, tensors, header)

    def load(self, path: Path) -> None:
        """Take up where ``save`` left off.

        :raises FileNotFoundError: if there is no state; ValueError: if it belongs to another run.
        """
        if not path.is_file():
            raise FileNotFoundError(f"nothing to resume: {path} does not exist; start without --resume")
        tensors, header = read_tensors(path)
        mine = {"settings": asdict(self.settings), "config": self.model.config, "images": self.images}
        for what, asked in mine.items():
            if header.get(what) != json.loads(json.dumps(asked)):
                raise ValueError(
                    f"{path} belongs to a run with other {what}: {header.get(what)}, asked for {asked}; "
                    "resume with the same options, or start anew without --resume"
                )
        prefix = "model."
        self.model.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("adam."):
                _, k, name = key.split(".")
                state.setdefault(int(k), {})[name] = value
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": state})
        self.generator.set_state(tensors["generator"])
        self.step = header["step"]


def _report(bar: tqdm, figures: dict[str, float], pixels_a_step: int) -> None:
    pixels = (bar.format_dict["rate"] or 0) * pixels_a_step
    text = f"loss {figures['loss']:.4f}, PSNR {figures['psnr']:.2f} dB, {pixels / 1e3:.0f}k pixels/s"
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
