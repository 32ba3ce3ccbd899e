"""An auto-encoder, and the loss that it is trained with."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, l1_loss, pad, silu

from pnp_lofi.units import check_image

BLOCKS = 6
PAPER_WIDTHS = (32, 64, 128, 256, 512, 512)
BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


class AutoEncoder(nn.Module):
    """decode(encode(q)): six blocks that halve the image, a linear map to the latent, and the same way back.

    :param int size: side of the square image [pixel], a multiple of 64.
    :param int channels: of the image.
    :param int latent: numbers that an image becomes.
    :param Sequence[int] widths: channels after each of the six blocks.
    :raises ValueError: for sizes that do not fit.
    Source: arXiv 2212.14042, appendix (six blocks, latent 512). Differs: residual blocks.
    """

    def __init__(
        self, size: int = 128, channels: int = 1, latent: int = 512, *, widths: Sequence[int] = PAPER_WIDTHS
    ) -> None:
        super().__init__()
        if size < 2**BLOCKS or size % 2**BLOCKS:
            raise ValueError(f"the size must be a multiple of {2**BLOCKS} pixels, got {size}")
        if len(widths) != BLOCKS or min(channels, latent, *widths) < 1:
            raise ValueError(f"expected {BLOCKS} positive widths, got {tuple(widths)}, channels {channels}, {latent}")
        self.config: dict[str, Any] = {"size": size, "channels": channels, "latent": latent, "widths": list(widths)}
        self.size, self.channels, self.latent = size, channels, latent
        side = size // 2**BLOCKS
        self.inside = (widths[-1], side, side)
        ends = [channels, *widths]
        self.down = nn.Sequential(*(Block(a, b, down=True) for a, b in pairwise(ends)))
        self.to_latent = nn.Linear(widths[-1] * side**2, latent)
        self.from_latent = nn.Linear(latent, widths[-1] * side**2)
        ups = [*reversed(widths), widths[0]]
        self.up = nn.Sequential(*(Block(a, b, down=False) for a, b in pairwise(ups)))
        self.last = nn.Conv2d(widths[0], channels, 3, padding=1, padding_mode="reflect")

    def encode(self, q: Tensor) -> Tensor:
        """:param torch.Tensor q: (B, C, size, size). :returns: (B, latent)."""
        check_image(q, self.channels)
        if q.shape[-2:] != (self.size, self.size):
            raise ValueError(f"this auto-encoder takes {self.size} x {self.size} pixels, got {tuple(q.shape)}")
        return self.to_latent(self.down(q).flatten(1))

    def decode(self, latent: Tensor) -> Tensor:
        """:param torch.Tensor latent: (B, latent). :returns: (B, C, size, size)."""
        if latent.ndim != 2 or latent.shape[1] != self.latent:
            raise ValueError(f"latents are (batch, {self.latent}), got {tuple(latent.shape)}")
        return self.last(self.up(self.from_latent(latent).unflatten(1, self.inside)))

    def forward(self, q: Tensor) -> Tensor:
        """:param torch.Tensor q: (B, C, size, size). :returns: (B, C, size, size)."""
        return self.decode(self.encode(q))

    def decoder_parameters(self) -> list[nn.Parameter]:
        """The weights that ``decode`` uses."""
        return [p for part in (self.from_latent, self.up, self.last) for p in part.parameters()]


class Block(nn.Module):
    """Half or twice the pixels; two convolutions beside a short cut.

    Batch normalisation sets what differs between images to one: without it training stays at the mean image for long.
    """

    def __init__(self, inputs: int, outputs: int, *, down: bool) -> None:
        super().__init__()
        self.down = down
        self.first = nn.Conv2d(inputs, outputs, 3, stride=2 if down else 1, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.short = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.last_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        if not self.down:
            x = interpolate(x, scale_factor=2, mode="nearest")
        beside = self.short(nn.functional.avg_pool2d(x, 2) if self.down else x)
        return silu(self.last_norm(beside + self.second(silu(self.norm(self.first(x))))))


def laplacian_pyramid(x: Tensor, levels: int = 4) -> list[Tensor]:
    """What each halving of an image loses, and the smallest image; linear in x.

    :param torch.Tensor x: (B, C, H, W).
    :param int levels: of differences, at most as many as sides of at least 4 pixels allow.
    :returns: ``levels`` differences, from fine to coarse, and the rest.
    :raises ValueError: for levels < 1 or too many.
    Source: Burt and Adelson 1983; borders are reflected.
    """
    most = max((min(x.shape[-2:]) // 2).bit_length() - 1, 0)
    if not 1 <= levels <= most:
        raise ValueError(f"an image of {tuple(x.shape[-2:])} has 1 to {most} levels, got {levels}")
    found = []
    for _ in range(levels):
        small = _blurred(x)[..., ::2, ::2]
        large = torch.zeros_like(x)
        large[..., ::2, ::2] = 4 * small
        found.append(x - _blurred(large))
        x = small
    return [*found, x]


def pyramid_loss(error: Tensor, levels: int = 4) -> Tensor:
    """Mean square of an error plus the mean absolute values of its Laplacian pyramid, level by level.

    The pyramid is linear, hence this is the loss between an image and its reconstruction. The perceptual loss that it
    takes the place of would need downloaded weights.

    :param torch.Tensor error: (B, C, H, W), the reconstruction minus the image.
    :returns: (B, 1).
    Source: Bojanowski et al. 2018, arXiv 1707.05776, eq. 3, whose weights 4^level of sums are those of means here.
    """
    parts = [level.abs().flatten(1).mean(1) for level in laplacian_pyramid(error, levels)]
    return (error.square().flatten(1).mean(1) + torch.stack(parts).sum(0))[:, None]


def reconstruction_loss(
    found: Tensor, truth: Tensor, *, levels: int = 4, features: nn.Module | None = None, weight: float = 1.0
) -> Tensor:
    """:func:`pyramid_loss`, and with a network of the user's also the distance of what that sees.

    :param torch.Tensor found, truth: (B, C, H, W).
    :param nn.Module features: called with each; a tensor, or a sequence of tensors, whose mean absolute differences
        are added times ``weight``. For instance some layers of a VGG.
    :returns: a scalar, the mean over the batch.
    """
    loss = pyramid_loss(found - truth, levels).mean()
    if features is None:
        return loss
    with torch.no_grad():
        seen = features(truth)
    asked = features(found)
    pairs = [(asked, seen)] if isinstance(asked, Tensor) else list(zip(asked, seen, strict=True))
    return loss + weight * torch.stack([l1_loss(a, b) for a, b in pairs]).sum()


def _blurred(x: Tensor) -> Tensor:
    """By the binomial of five along both axes, reflected."""
    taps = torch.tensor(BINOMIAL, dtype=x.dtype, device=x.device)
    channels = x.shape[1]
    rows, columns = (taps.reshape(shape).expand(channels, 1, -1, -1) for shape in ((1, 1, 5, 1), (1, 1, 1, 5)))
    wide = pad(x, (2, 2, 2, 2), mode="reflect")
    return conv2d(conv2d(wide, rows, groups=channels), columns, groups=channels)
