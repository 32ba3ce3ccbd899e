"""What a network is trained on: crops of images, noisy images, pairs."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

CACHED = 0.5  # part of a GPU's free memory that images may take
Batch = Callable[[torch.Generator], Tensor]  # draws (objects, C, size, size) clean crops


class Example(NamedTuple):
    """One batch.

    :param torch.Tensor q: (B, C, H, W) what the network sees; x: (B, C_out, H, W) what it should answer. For networks
        that answer at any place x may have another size than q, over the same square.
    :param torch.Tensor sigma: (B,) noise level [units of q], for networks that are told it; else None.
    """

    q: Tensor
    x: Tensor
    sigma: Tensor | None = None

    def part(self, which: slice) -> "Example":
        """Some of the objects."""
        return Example(self.q[which], self.x[which], None if self.sigma is None else self.sigma[which])

    def to(self, device: torch.device | str) -> "Example":
        return Example(*(None if t is None else t.to(device, non_blocking=True) for t in self))  # type: ignore[arg-type]

    def pinned(self) -> "Example":
        """In memory that a GPU copies from while it computes."""
        parts = (t if t is None or t.is_cuda else t.pin_memory() for t in self)
        return Example(*parts)  # type: ignore[arg-type]


Source = Callable[[torch.Generator], Example]


def cached(images: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The images on a GPU, if they take less than half of what is free there; else as they are."""
    if device.type != "cuda":
        return list(images)
    wanted = sum(x.numel() * x.element_size() for x in images)
    fits = wanted < CACHED * torch.cuda.mem_get_info(device)[0]
    return [x.to(device) for x in images] if fits else list(images)


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers where a tensor is; a GPU makes its own, seeded by the generator of the processor."""
    if like.device.type == "cpu":
        return torch.randn(like.shape, generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    g = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape, device=like.device, generator=g)


class Crops:
    """Random square crops of a list of images, flipped and turned.

    :param Sequence images: (C, H, W) tensors, at least ``size`` on each side; smaller ones are left out.
    :param int size: side of a crop [pixel]; None: whole images, which then have one size, neither cut nor turned.
    :param int count: crops of a batch.
    :param int tries: of so many candidates the brightest is taken: fewer empty crops of sparse images.
    :raises ValueError: if no image is large enough, or channels differ.
    """

    def __init__(self, images: Sequence[Tensor], size: int | None, count: int, *, tries: int = 1) -> None:
        self.images = [x for x in images if size is None or min(x.shape[-2:]) >= size]
        if not self.images:
            raise ValueError(f"no image is at least {size} x {size}; pass a smaller --size or larger images")
        channels = {x.shape[0] for x in self.images}
        if len(channels) > 1:
            raise ValueError(f"images of one set have one number of channels, got {sorted(channels)}; make them grey")
        if size is None and len({x.shape for x in self.images}) > 1:
            raise ValueError("whole images have to be of one size; pass the size of crops")
        self.size, self.count, self.tries = size, count, tries
        self.areas = torch.tensor([float(x.shape[-1] * x.shape[-2]) for x in self.images])

    def __call__(self, generator: torch.Generator) -> Tensor:
        if self.size is None:
            chosen = torch.randint(len(self.images), (self.count,), generator=generator).tolist()
            return torch.stack([self.images[k] for k in chosen])
        turns = torch.randint(8, (self.count,), generator=generator).tolist()
        crops = [max((self._draw(generator) for _ in range(self.tries)), key=lambda x: float(x.mean())) for _ in turns]
        return torch.stack([x.rot90(t % 4, (-2, -1)).flip(-1) if t >= 4 else x.rot90(t, (-2, -1))
                            for x, t in zip(crops, turns, strict=True)])  # fmt: skip

    def _draw(self, generator: torch.Generator) -> Tensor:
        image = self.images[int(torch.multinomial(self.areas, 1, generator=generator))]
        at = torch.rand(2, generator=generator).tolist()
        assert self.size is not None
        r, c = (int(a * (n - self.size + 1)) for a, n in zip(at, image.shape[-2:], strict=True))
        return image[:, r : r + self.size, c : c + self.size]


class Mixture:
    """Each batch from one of several sources, drawn by weight."""

    def __init__(self, sources: Sequence[Batch], weights: Sequence[float]) -> None:
        self.sources, self.weights = list(sources), torch.tensor(weights, dtype=torch.float32)

    def __call__(self, generator: torch.Generator) -> Tensor:
        k = int(torch.multinomial(self.weights, 1, generator=generator))
        return self.sources[k](generator)


class Noisy:
    """Denoising: q = x + sigma n, sigma log-uniform, or so on both sides of a knee.

    :param Batch clean: draws x.
    :param float sigma_min, sigma_max: noise levels [units of x]; equal for one level.
    :param float knee: a level between them; default: none, ``below`` is then not used.
    :param float below: the part of the crops whose level lies below the knee.
    :raises ValueError: unless 0 < sigma_min <= knee <= sigma_max and 0 < below < 1.
    """

    def __init__(
        self, clean: Batch, sigma_min: float, sigma_max: float, *, knee: float | None = None, below: float = 0.5
    ) -> None:
        if knee is None:
            knee, below = math.sqrt(max(sigma_min * sigma_max, 0.0)), 0.5
        if not 0 < sigma_min <= knee <= sigma_max < float("inf") or not 0 < below < 1:
            raise ValueError(
                f"expected 0 < sigma_min <= knee <= sigma_max and 0 < below < 1, got {sigma_min}, {knee}, {sigma_max} "
                f"and {below}"
            )
        self.clean, self.levels = clean, [math.log(s) for s in (sigma_min, knee, sigma_max)]
        self.below = below

    def __call__(self, generator: torch.Generator) -> Example:
        x = self.clean(generator)
        low, middle, high = self.levels
        at = torch.rand(len(x), generator=generator) / self.below - 1  # 0 at the knee
        rest = 1 / self.below - 1
        sigma = torch.exp(middle + torch.where(at < 0, at * (middle - low), at / rest * (high - middle))).to(x.device)
        return Example(x + sigma[:, None, None, None] * normal(x, generator), x, sigma)


class PairCrops:
    """Crops of images that lie on each other, what is seen and what should be answered.

    :param Sequence pairs: (q, x), (C, H, W) and (C_out, H, W), of one size each; sizes may differ from pair to pair.
    :param int size, count: as :class:`Crops`.
    :raises ValueError: if a pair's sizes differ.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]], size: int | None, count: int) -> None:
        for k, (q, x) in enumerate(pairs):
            if q.shape[-2:] != x.shape[-2:]:
                raise ValueError(f"pair {k}: {tuple(q.shape)} is seen and {tuple(x.shape)} asked for; sizes must agree")
        self.seen = pairs[0][0].shape[0] if pairs else 0
        self.crops = Crops([torch.cat(pair) for pair in pairs], size, count)

    def __call__(self, generator: torch.Generator) -> Example:
        both = self.crops(generator)
        return Example(both[:, : self.seen].contiguous(), both[:, self.seen :].contiguous())
