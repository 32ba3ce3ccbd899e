"""LoFi: a neural local field. Each pixel of the answer comes from a learned patch around it, by MLPs."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pnp_lofi.geometry import Layout, PatchGeometry
from pnp_lofi.multimlp import MultiMLP
from pnp_lofi.sampling import positions, reflect_pad, sample, stencil, windows

CHUNK = 4096  # pixels worked on at once; sets the memory, not the result


class LoFi(nn.Module):
    """f(x) = sigma MultiMLP((p(x) - mean p(x)) / sigma) + q(x), with the patch p_k(x) = q(x + d_k).

    Three ways in give one result: ``lofi(q, sigma)`` for every pixel, ``lofi.at(q, coords, sigma)`` for
    any coordinates, ``lofi.at_pixels(q, index, sigma)`` for some pixels of the grid. Memory is set by
    ``chunk`` (pixels), not by the image. Borders are reflected about the edge pixel's centre.

    :param int in_channels: channels of q.
    :param int out_channels: channels of f; default: as many.
    :param int rays, rings: the patch has K = rays x rings points.
    :param float radius: reach of the patch at the start [pixel].
    :param str layout: "circular" or "square" start of the points.
    :param bool learned: whether training moves the points.
    :param Sequence[int] hidden: widths of each ray's hidden layers.
    :param int features: outputs of a ray.
    :param Sequence[int] mixer: widths of the mixing MLP's hidden layers.
    :param bool residual: add the observed pixel to the output (needs in_channels = out_channels).
    :param bool centred: subtract the patch's mean (over its points, per channel) first.
    :param bool equivariant: work in units of sigma, so that D(a q, a sigma) = a D(q, sigma) and one network
        serves all noise levels and brightness scales; otherwise a plain network that takes no sigma.
    :raises ValueError: if residual is asked for with different channel counts.
    Source: arXiv 2411.04995 (paper size: 9 x 9 points, hidden (370,) * 3, features 100, mixer (370,) * 3).
    Differs: centring, sigma, and offsets that are exact in pixels.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int | None = None,
        *,
        rays: int = 12,
        rings: int = 12,
        radius: float = 8.0,
        layout: Layout = "circular",
        learned: bool = True,
        hidden: Sequence[int] = (48, 48),
        features: int = 24,
        mixer: Sequence[int] = (128, 128),
        residual: bool = True,
        centred: bool = True,
        equivariant: bool = True,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        if residual and in_channels != out_channels:
            raise ValueError(
                f"a residual LoFi needs as many outputs as inputs, got {in_channels} and {out_channels}; "
                "pass residual=False"
            )
        self.config: dict[str, Any] = {
            "in_channels": in_channels, "out_channels": out_channels, "rays": rays, "rings": rings,
            "radius": radius, "layout": layout, "learned": learned, "hidden": list(hidden),
            "features": features, "mixer": list(mixer), "residual": residual, "centred": centred,
            "equivariant": equivariant,
        }  # fmt: skip
        self.in_channels, self.out_channels = in_channels, out_channels
        self.rays, self.residual, self.centred, self.equivariant = rays, residual, centred, equivariant
        self.geometry = PatchGeometry(rays, rings, radius, layout=layout, learned=learned)
        self.mlp = MultiMLP(rays, in_channels * rings, hidden, features, mixer, out_channels)

    def forward(
        self,
        q: Tensor,
        sigma: float | Tensor | None = None,
        *,
        chunk: int = CHUNK,
        compute_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Every pixel of the grid.

        :param torch.Tensor q: (B, C, H, W).
        :param sigma: noise standard deviation in the units of q: a number, (B,), or a map broadcastable to
            (B, 1, H, W). Only for an equivariant network, which needs it.
        :param int chunk: pixels worked on at once.
        :param torch.dtype compute_dtype: precision of the matrix products; default that of q. The result
            has the dtype of q.
        :returns: (B, C_out, H, W).
        """
        self._check(q)
        batch, _, height, width = q.shape
        noise = self._noise(sigma, q)
        view, matrix = self._windows(q, compute_dtype or q.dtype)
        out = q.new_empty(batch, height, width, self.out_channels)
        strips: list[Tensor] = []
        for b, rows, columns in _tiles(batch, height, width, chunk):
            tile = (b, rows, columns)
            sigmas = noise if noise.ndim == 0 else noise[b, 0, rows, columns].reshape(-1, 1)
            pixels = self._network(view[tile].flatten(0, 1), matrix, sigmas)
            if torch.is_grad_enabled():
                strips.append(pixels)
            else:
                out[tile] = pixels.reshape(out[tile].shape).to(out.dtype)
        if strips:
            out = self._join(strips, batch, height, width, chunk).to(q.dtype)
        out = out.permute(0, 3, 1, 2)
        return out + q if self.residual else out.contiguous()

    def at(self, q: Tensor, coords: Tensor, sigma: float | Tensor | None = None, *, chunk: int = CHUNK) -> Tensor:
        """Any coordinates of the unit square; twice differentiable in them.

        :param torch.Tensor q: (B, C, H, W).
        :param torch.Tensor coords: (P, 2) or (B, P, 2), (row, column) in [0, 1]; pixel i of N is (i + 1/2)/N.
        :param sigma: a number or (B,).
        :returns: (B, P, C_out).
        """
        self._check(q)
        if coords.ndim not in (2, 3) or coords.shape[-1] != 2:
            raise ValueError(f"coords must be (P, 2) or (batch, P, 2), got {tuple(coords.shape)}")
        points = positions(coords, (q.shape[-2], q.shape[-1])).to(q.dtype)
        points = points.expand(len(q), -1, 2)
        noise = self._noise(sigma, q)
        if noise.ndim and noise.shape[-2:] != (1, 1):
            noise_at = sample(noise.expand(len(q), 1, *q.shape[-2:]), points)
        else:
            noise_at = noise.reshape(-1, 1, 1).expand(len(q), points.shape[1], 1)
        offsets = self.geometry.points.to(q.dtype)
        done = []
        for start in range(0, points.shape[1], chunk):
            part = points[:, start : start + chunk]
            patch = sample(q, (part[:, :, None] + offsets).flatten(1, 2))
            patch = patch.reshape(-1, len(offsets), self.in_channels).transpose(1, 2)
            sigmas = noise_at[:, start : start + chunk].reshape(-1, 1)
            pixels = self._mix(patch, sigmas).reshape(len(q), -1, self.out_channels)
            done.append(pixels + sample(q, part) if self.residual else pixels)
        return torch.cat(done, 1)

    def at_pixels(
        self,
        q: Tensor,
        index: Tensor,
        sigma: float | Tensor | None = None,
        *,
        compute_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Some pixels of the grid: the training path (windows and stencil, no gather of points).

        :param torch.Tensor q: (B, C, H, W).
        :param torch.Tensor index: (P,) or (B, P) flat pixel numbers, row W + column.
        :param sigma: as in ``forward``.
        :returns: (B, P, C_out).
        """
        self._check(q)
        batch, _, height, width = q.shape
        index = index.expand(batch, -1) if index.ndim == 1 else index
        if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < height * width):
            raise ValueError(
                f"pixel numbers must lie in 0..{height * width - 1} for a {height} x {width} image, got "
                f"{int(index.min())}..{int(index.max())}"
            )
        item = torch.arange(batch, device=q.device)[:, None].expand_as(index)
        where = (item.flatten(), (index // width).flatten(), (index % width).flatten())
        noise = self._noise(sigma, q)
        if noise.ndim:
            noise = noise.expand(batch, 1, height, width)[where[0], 0, where[1], where[2]][:, None]
        view, matrix = self._windows(q, compute_dtype or q.dtype)
        pixels = self._network(view[where], matrix, noise)
        if self.residual:
            pixels = pixels + q.permute(0, 2, 3, 1)[where]
        return pixels.reshape(batch, -1, self.out_channels)

    def _windows(self, q: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The view of all windows and the stencil, both in the compute dtype."""
        margin = self.geometry.margin
        if self.centred and dtype != q.dtype:  # the answer does not see a constant; rounding does
            q = q - q.mean((-2, -1), keepdim=True)
        matrix = stencil(self.geometry.points.to(torch.promote_types(q.dtype, torch.float32)), margin)
        if self.centred:
            matrix = matrix - matrix.mean(1, keepdim=True)
        return windows(reflect_pad(q, margin).to(dtype), margin), matrix.to(dtype)

    def _network(self, view: Tensor, matrix: Tensor, noise: Tensor) -> Tensor:
        """(P, C, S, S) windows -> (P, C_out), without the residual."""
        patch = view.reshape(-1, matrix.shape[0]) @ matrix
        return self._rays(patch.reshape(-1, self.in_channels, matrix.shape[1]), noise)

    def _mix(self, patch: Tensor, noise: Tensor) -> Tensor:
        """(P, C, K) patches -> (P, C_out), without the residual."""
        if self.centred:
            patch = patch - patch.mean(2, keepdim=True)
        return self._rays(patch, noise)

    def _rays(self, patch: Tensor, noise: Tensor) -> Tensor:
        """A ray's inputs are ordered channel first, then ring."""
        noise = noise.to(patch.dtype)
        patch = (patch / noise[..., None]).reshape(len(patch), self.in_channels, self.rays, -1)
        patch = patch.permute(2, 0, 1, 3).reshape(self.rays, len(patch), -1)
        return self.mlp(patch) * noise

    def _noise(self, sigma: float | Tensor | None, q: Tensor) -> Tensor:
        """The unit the network works in: () or (B, 1, H, W)."""
        if not self.equivariant:
            if sigma is not None:
                raise ValueError("this LoFi takes no sigma (equivariant=False); call it as lofi(q)")
            return q.new_ones(())
        if sigma is None:
            raise ValueError("this LoFi needs the noise level: call it as lofi(q, sigma)")
        noise = torch.as_tensor(sigma, dtype=q.dtype, device=q.device)
        if not bool((torch.isfinite(noise) & (noise > 0)).all()):
            raise ValueError(f"sigma must be finite and > 0, got {sigma}")
        if noise.numel() == 1:
            return noise.reshape(())
        if noise.ndim == 1 and len(noise) == len(q):
            return noise.reshape(-1, 1, 1, 1).expand(len(q), 1, *q.shape[-2:])
        try:
            return noise.expand(len(q), 1, *q.shape[-2:])
        except RuntimeError:
            raise ValueError(
                f"sigma must be a number, ({len(q)},) or a map ({len(q)}, 1, {q.shape[2]}, {q.shape[3]}), "
                f"got shape {tuple(noise.shape)}"
            ) from None

    def _check(self, q: Tensor) -> None:
        if q.ndim != 4 or q.shape[1] != self.in_channels:
            raise ValueError(
                f"LoFi expects (batch, {self.in_channels}, height, width), got {tuple(q.shape)}"
                + ("; add the leading axes with x[None, None]" if q.ndim == 2 else "")
            )
        if not q.is_floating_point():
            raise TypeError(f"LoFi expects a real floating-point image, got {q.dtype}")

    def _join(self, strips: list[Tensor], batch: int, height: int, width: int, chunk: int) -> Tensor:
        """Put tiles back on the grid without writing in place, for autograd."""
        rows: list[Tensor] = []
        line: list[Tensor] = []
        for (_, r, c), strip in zip(_tiles(batch, height, width, chunk), strips, strict=True):
            line.append(strip.reshape(r.stop - r.start, c.stop - c.start, -1))
            if c.stop == width:
                rows.append(torch.cat(line, 1))
                line = []
        return torch.cat(rows).reshape(batch, height, width, -1)


def _tiles(batch: int, height: int, width: int, chunk: int) -> Iterator[tuple[int, slice, slice]]:
    """Tiles of at most ``chunk`` pixels: whole rows where a row fits."""
    if chunk < 1:
        raise ValueError(f"chunk must be at least one pixel, got {chunk}")
    columns = min(width, chunk)
    rows = max(1, chunk // width)
    for b in range(batch):
        for r in range(0, height, rows):
            for c in range(0, width, columns):
                yield b, slice(r, min(r + rows, height)), slice(c, min(c + columns, width))
