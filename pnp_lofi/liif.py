"""LIIF-EDSR, the peer of continuous super-resolution: features of the whole image, an MLP for each point."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnp_lofi.interpolation import Interpolator, checked_footprint
from pnp_lofi.sampling import positions
from pnp_lofi.units import check_coords, check_image, pixels_at_once

# blocks and features of the encoder, hidden layers of the MLP; for RGB 138,531 and 1,567,299 parameters
SIZES: dict[str, dict[str, Any]] = {
    "small": {"blocks": 4, "features": 32, "hidden": (128, 128)},
    "paper": {"blocks": 16, "features": 64, "hidden": (256, 256, 256, 256)},
}
CHUNK, CHUNK_GPU = 4096, 1 << 16
TINY = 1e-9  # of an area, which may be 0
MIDDLE = 0.5  # of the images' range, taken off before the encoder


class LIIF(nn.Module):
    """f(x) = sum over the 4 pixels t around x of a_t MLP(z_t, x - x_t, footprint), z the EDSR encoder's features.

    a_t is the area of the rectangle between x and the pixel opposite of t, over the sum of all four (local ensemble);
    z_t holds the 3 x 3 features around t (unfolding); the MLP is told the size of the output's pixel (cell decoding).
    The MLP's first layer is linear in z, so it is done once a pixel, as a convolution 3 x 3: same numbers, less work.

    :param int channels: of the image and of the answer.
    :param str size: "small" (0.14 million parameters) or "paper" (1.6 million: EDSR-baseline).
    :param bool residual: add the bilinear interpolation, so that a short training need not learn it.
    :raises ValueError: for another size.
    Source: Chen, Liu and Wang 2021, arXiv 2012.09161; EDSR: Lim et al. 2017. Differs: the residual, of later work.
    """

    def __init__(self, channels: int = 1, size: str = "small", *, residual: bool = True) -> None:
        super().__init__()
        if size not in SIZES or channels < 1:
            raise ValueError(f"LIIF expects channels >= 1 and a size of {', '.join(SIZES)}, got {channels}, {size!r}")
        self.config: dict[str, Any] = {"channels": channels, "size": size, "residual": residual}
        self.channels = self.in_channels = self.out_channels = channels
        self.footprint = True
        self.base = Interpolator("bilinear", channels) if residual else None
        features, hidden = SIZES[size]["features"], SIZES[size]["hidden"]
        self.head = nn.Conv2d(channels, features, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(features) for _ in range(SIZES[size]["blocks"]))
        self.tail = nn.Conv2d(features, features, 3, padding=1)
        self.first = nn.Conv2d(features, hidden[0], 3, padding=1)
        self.place = nn.Linear(4, hidden[0], bias=False)
        widths = [*hidden, channels]
        self.mlp = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def encode(self, q: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, hidden, H, W): the first layer of the MLP for each pixel, without place and cell."""
        h = self.head((q - MIDDLE) / MIDDLE)
        z = h
        for block in self.blocks:
            z = block(z)
        return self.first(self.tail(z) + h)

    def at(
        self,
        q: Tensor,
        coords: Tensor,
        footprint: float | tuple[float, float] = 0.0,
        *,
        chunk: int | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Any coordinates of the unit square.

        :param torch.Tensor q: (B, C, H, W).
        :param torch.Tensor coords: (P, 2) or (B, P, 2), (row, column) in [0, 1]; pixel i of N is (i + 1/2)/N.
        :param footprint: size of an output pixel [pixel of q], LIIF's cell.
        :param int chunk: points the MLP works on at once; the encoder works on the whole image.
        :param torch.dtype compute_dtype: of the networks, by autocast; default that of q.
        :returns: (B, P, C).
        """
        check_image(q, self.channels)
        check_coords(coords, len(q))
        pixel = checked_footprint(footprint)
        chunk = pixels_at_once(q.device, chunk or (CHUNK if q.device.type == "cpu" else CHUNK_GPU), None, 1)
        points = positions(coords, (q.shape[-2], q.shape[-1])).expand(len(q), -1, 2)
        low = compute_dtype is not None and compute_dtype != q.dtype
        with torch.autocast(q.device.type, compute_dtype or torch.bfloat16, enabled=low):
            z = self.encode(q).permute(0, 2, 3, 1)
            parts = points.split(max(1, chunk // len(q)), 1)
            out = torch.cat([self._points(z, part, pixel, q.dtype) for part in parts], 1)
        return out if self.base is None else out + self.base.at(q, coords)

    def _points(self, z: Tensor, points: Tensor, pixel: tuple[float, float], dtype: torch.dtype) -> Tensor:
        """(B, P, C) at places (B, P, 2) [pixel] from the pixels' first layer (B, H, W, hidden)."""
        size = points.new_tensor(z.shape[1:3])
        # as LIIF does, a place in the outer half of an edge pixel has that pixel twice, or four times
        base = points.detach().floor()
        item = torch.arange(len(z), device=z.device)[:, None]
        cell = points.new_tensor(pixel).expand_as(points)
        answers, areas = [], []
        for i in (0, 1):
            for j in (0, 1):
                at = torch.minimum((base + base.new_tensor([i, j])).clamp_min(0), size - 1)
                away = points - at
                told = 2 * torch.cat([away, cell], -1).to(dtype)  # in units of LIIF's, whose pixel is 2 wide
                h = z[item, at[..., 0].long(), at[..., 1].long()] + self.place(told)
                for layer in self.mlp:
                    h = layer(F.relu(h))
                answers.append(h.to(dtype))
                areas.append((away[..., 0] * away[..., 1]).abs().to(dtype) + TINY)
        total = sum(areas)
        return sum(h * (a / total)[..., None] for h, a in zip(answers, reversed(areas), strict=True))


class _Block(nn.Module):
    """EDSR's residual block."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(features, features, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(F.relu(self.one(x)))
