"""Training of what a NonLocalLoFi mixes: its local part stays as it is, so what there is to mix is gathered once."""

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pnp_lofi.examples import Example, Source
from pnp_lofi.learner import seeded
from pnp_lofi.matching import Matching, NonLocalLoFi

OBJECTS = 16  # that the pixels of a step are handed out as: processes share objects


class Mixing(nn.Module):
    """M of a :class:`~pnp_lofi.matching.Matching`, whose weights it is made of, for pixels that were gathered.

    :param int channels: of an image.
    """

    def __init__(self, matching: Matching, channels: int) -> None:
        super().__init__()
        self.mixer, self.channels = matching.mixer, channels

    def forward(self, q: Tensor) -> Tensor:
        """:param torch.Tensor q: (B, E + M C, 1, P), e and d of pixels; returns sum_k M_k(e) d_k, (B, C, 1, P)."""
        pixels = q.permute(0, 2, 3, 1).flatten(0, 2)
        seen = len(self.mixer.weights[0])
        units = pixels[:, seen:].reshape(len(pixels), -1, self.channels)
        mixed = (self.mixer(pixels[:, :seen])[:, :, None] * units).sum(1)
        return mixed.reshape(len(q), 1, q.shape[-1], -1).permute(0, 3, 1, 2)


class Evidence:
    """A source of pixels of noisy images: e and d as they are seen there, and what should be answered, over sigma.

    Neighbouring pixels say much the same. Steps on pixels of all images at once gain more than steps on whole crops.
    They are held in float16, 60 bytes a grey pixel.

    :param Source source: draws the noisy images.
    :param int batches: that are gathered, on every process; int pixels: of a step.
    :param bool progress: a bar on stderr; default: where stderr is a terminal.
    """

    def __init__(
        self,
        model: NonLocalLoFi,
        source: Source,
        batches: int,
        pixels: int,
        *,
        seed: int = 0,
        progress: bool | None = None,
    ) -> None:
        device, self.pixels = next(model.parameters()).device, pixels
        self.seen, self.wanted = torch.empty(0), torch.empty(0)
        bar = tqdm(range(batches), "gathering", disable=None if progress is None else not progress, unit="batch")
        for number in bar:
            example = source(seeded(seed, "evidence", number)).to(device)
            assert example.sigma is not None
            for item, (q, x, sigma) in enumerate(zip(example.q, example.x, example.sigma.tolist(), strict=True)):
                units, logarithms, pilot = model.evidence(q[None], sigma)
                both = torch.cat([logarithms.flatten(1), units.permute(0, 2, 1, 3, 4).reshape(-1, q[0].numel())])
                wanted = ((x - pilot[0]) / sigma).flatten(1)
                if not len(self.seen):  # all crops are of one size
                    count = batches * len(example.q) * both.shape[1]
                    self.seen, self.wanted = (torch.empty(count, len(t), dtype=torch.float16) for t in (both, wanted))
                start = (number * len(example.q) + item) * both.shape[1]
                self.seen[start : start + both.shape[1]] = both.T
                self.wanted[start : start + both.shape[1]] = wanted.T

    def __call__(self, generator: torch.Generator) -> Example:
        chosen = torch.randint(len(self.seen), (OBJECTS, self.pixels // OBJECTS), generator=generator)
        return Example(*(held[chosen].float().transpose(1, 2)[:, :, None] for held in (self.seen, self.wanted)))
