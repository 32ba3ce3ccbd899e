"""LoFi: a neural local field. Each pixel of the answer comes from a learned patch around it, by MLPs."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from pnp_lofi.ccpg import CCPG
from pnp_lofi.dense import Network, finite
from pnp_lofi.filters import make_filter
from pnp_lofi.geometry import Layout, PatchGeometry
from pnp_lofi.kernels import available, gather
from pnp_lofi.mlp import MLP
from pnp_lofi.multimlp import MultiMLP
from pnp_lofi.sampling import (
    KEYS_A,
    OFFICIAL_A,
    coordinates,
    padded_tile,
    positions,
    reflect_pad,
    sample,
    sample_level,
    stencil,
    windows,
    windows_at,
)
from pnp_lofi.tiles import Tile, join, tiles
from pnp_lofi.units import (
    CHUNK,
    GATHERED,
    TAP_BYTES,
    check_coords,
    check_image,
    divisor,
    noise_unit,
    pixel_numbers,
    pixels_at_once,
)

INR_WIDTH = 256
MIDDLE = 4  # ring and ray of what the authors' code takes for the centre of a square patch
FILTER_COPIES = 6  # of one channel of the image that a filter holds at once, for each channel it gives
Head = Literal["multi", "single"]


class LoFi(nn.Module):
    """f(x) = sigma MLP((p(x) - mean p(x)) / sigma) + q(x), with the patch p_k(x) = q~(x + d_k) of q~ = [q, filtered q].

    Three ways in give one result: ``lofi(q, sigma)`` for every pixel, ``lofi.at(q, coords, sigma)`` for
    any coordinates, ``lofi.at_pixels(q, index, sigma)`` for some pixels of the grid. Memory is set by
    ``chunk`` (pixels), not by the image. Borders are reflected about the edge pixel's centre.

    :param int in_channels: channels of q.
    :param int out_channels: channels of f; default: as many.
    :param int rays, rings: the patch has K = rays x rings points.
    :param float radius: reach of the patch at the start [pixel].
    :param str layout: "circular", "square" or "random" start of the points.
    :param bool learned: whether training moves the points; learned_scale: whether it stretches all of them together.
    :param str head: "multi", one MLP a ray and one that mixes their features; "single", one MLP for the whole patch.
    :param Sequence[int] hidden: widths of the hidden layers, of each ray's or of the single MLP.
    :param int features: outputs of a ray.
    :param Sequence[int] mixer: widths of the mixing MLP's hidden layers.
    :param bool residual: add the first ``out_channels`` observed channels to the output.
    :param bool centred: subtract the patch's mean (over its points, per channel) first.
    :param bool equivariant: work in units of sigma, so that D(a q, a sigma) = a D(q, sigma) and one network
        serves all noise levels and brightness scales; otherwise a plain network that takes no sigma.
    :param dict filter: arguments of a filter and its ``kind``: "spectral" (:class:`~pnp_lofi.filters.SpectralFilter`)
        or "spatial" (:class:`~pnp_lofi.filters.SpatialFilter`); default: none.
    :param int ccpg: iterations in which each pixel's patch decides where it looks next (:class:`~pnp_lofi.ccpg.CCPG`).
    :param bool inr: INR-LoFi, f(x) = LoFi(INR(x), q) with a learned change of coordinates, an MLP 2 -> 256 x 3 -> 2.
    :param bool official: the conventions of the authors' code: kernel with a = -0.75, pixel i of N at i/(N - 1),
        offsets shrunk by (N - 1)/N, their filter, and a residual that subtracts from the patch's centre point.
    :raises ValueError: if residual is asked for with more outputs than inputs, or official with centred or equivariant.
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
        learned_scale: bool = False,
        head: Head = "multi",
        hidden: Sequence[int] = (48, 48),
        features: int = 24,
        mixer: Sequence[int] = (128, 128),
        residual: bool = True,
        centred: bool = True,
        equivariant: bool = True,
        filter: dict[str, Any] | None = None,
        ccpg: int = 0,
        inr: bool = False,
        official: bool = False,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        self.config: dict[str, Any] = {
            "in_channels": in_channels, "out_channels": out_channels, "rays": rays, "rings": rings,
            "radius": radius, "layout": layout, "learned": learned, "learned_scale": learned_scale, "head": head,
            "hidden": list(hidden), "features": features, "mixer": list(mixer), "residual": residual,
            "centred": centred, "equivariant": equivariant, "filter": filter, "ccpg": ccpg, "inr": inr,
            "official": official,
        }  # fmt: skip
        if residual and in_channels < out_channels:
            raise ValueError(
                f"a residual LoFi adds to observed channels, got {in_channels} of them for {out_channels} outputs; "
                "pass residual=False"
            )
        if official and (centred or equivariant):
            raise ValueError("official=True is the authors' plain network; pass centred=False, equivariant=False")
        if official and residual and layout == "square" and min(rays, rings) <= MIDDLE:
            raise ValueError(
                f"the authors take point {MIDDLE}, {MIDDLE} of a square as its centre, got {rings} x {rays}"
            )
        if min(in_channels, out_channels, features, *hidden, *mixer, 1) < 1:
            raise ValueError(f"LoFi expects positive channels, widths and features, got {self.config}")
        if head not in ("multi", "single"):
            raise ValueError(f"head must be 'multi' or 'single', got {head!r}")
        self.in_channels, self.out_channels, self.rays, self.rings = in_channels, out_channels, rays, rings
        self.residual, self.centred, self.equivariant, self.official = residual, centred, equivariant, official
        self.kernel_a = OFFICIAL_A if official else KEYS_A
        self.geometry = PatchGeometry(
            rays, rings, radius, layout=layout, learned=learned, learned_scale=learned_scale, official=official
        )
        self.filter = None if filter is None else make_filter(in_channels, official=official, **filter)
        self.seen_channels = in_channels if self.filter is None else self.filter.out_channels
        inputs = self.seen_channels * rays * rings
        self.ccpg = CCPG(inputs, self.geometry.offsets, ccpg) if ccpg else None
        self.inr = MLP([2, INR_WIDTH, INR_WIDTH, INR_WIDTH, 2]) if inr else None
        self.mlp: MultiMLP | MLP = (
            MultiMLP(rays, self.seen_channels * rings, hidden, features, mixer, out_channels)
            if head == "multi"
            else MLP([inputs, *hidden, out_channels])
        )

    def forward(
        self,
        q: Tensor,
        sigma: float | Tensor | None = None,
        *,
        shape: tuple[int, int] | None = None,
        chunk: int | None = None,
        max_memory: float | None = None,
        compute_dtype: torch.dtype | None = None,
        most: float | None = None,
    ) -> Tensor:
        """Every pixel of the grid.

        :param torch.Tensor q: (B, C, H, W).
        :param sigma: noise standard deviation in the units of q: a number, (B,), or a map broadcastable to
            (B, 1, H, W), >= 0. Only for an equivariant network, which needs it; where it is 0 a residual one answers q.
        :param tuple shape: (H', W') of another grid over the same square to evaluate on; default: that of q.
        :param int chunk: pixels worked on at once; default 4096, on a GPU 131072.
        :param float max_memory: sets chunk instead: working memory beyond q and the result [MB]; what torch
            compiles and packs takes some 30 MB besides, once.
        :param torch.dtype compute_dtype: precision of the matrix products; default that of q. The result
            has the dtype of q.
        :param float most: an equivariant, residual network changes q by at most so many sigma; default: no limit.
        :returns: (B, C_out, H, W).
        """
        check_image(q, self.in_channels)
        dtype = compute_dtype or q.dtype
        gathered = self._moves or (shape is not None and tuple(shape) != tuple(q.shape[-2:]))
        chunk = self._chunk(q, dtype, chunk, max_memory, gathered=gathered)
        if gathered:
            height, width = shape or (q.shape[-2], q.shape[-1])
            where = torch.cartesian_prod(*(torch.arange(n, device=q.device) for n in (height, width)))
            pixels = self._chunked(q, where[None], (height, width), sigma, dtype, chunk, most)
            return pixels.transpose(1, 2).reshape(len(q), self.out_channels, height, width)
        noise, seen = self._noise(sigma, q), self._see(q)
        margin, matrix = self._stencil(seen, dtype)
        mlp = self._mlp(dtype, seen)
        batch, _, height, width = q.shape
        out = q.new_empty(batch, height, width, self.out_channels)
        parts: list[Tensor] = []
        for b, rows, columns in tiles(batch, height, width, chunk):
            sigmas = noise if noise.ndim == 0 else noise[b, 0, rows, columns].reshape(-1, 1)
            patch = self._tile_patch(seen, (b, rows, columns), margin, matrix)
            pixels = self._network(patch, sigmas, mlp, most)
            if torch.is_grad_enabled():
                parts.append(pixels)
            else:
                out[b, rows, columns] = pixels.reshape(out[b, rows, columns].shape).to(out.dtype)
        if parts:
            out = join(parts, batch, height, width, chunk).to(q.dtype)
        out = out.permute(0, 3, 1, 2)
        return self._finish(q, seen, out)

    def at(
        self,
        q: Tensor,
        coords: Tensor,
        sigma: float | Tensor | None = None,
        *,
        chunk: int | None = None,
        max_memory: float | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Any coordinates of the unit square; twice differentiable in them.

        :param torch.Tensor q: (B, C, H, W).
        :param torch.Tensor coords: (P, 2) or (B, P, 2), (row, column) in [0, 1]; pixel i of N is (i + 1/2)/N
            (official: i/(N - 1)).
        :param sigma, chunk, max_memory, compute_dtype: as in ``forward``.
        :returns: (B, P, C_out).
        """
        check_image(q, self.in_channels)
        check_coords(coords, len(q))
        dtype = compute_dtype or q.dtype
        chunk = self._chunk(q, dtype, chunk, max_memory, gathered=True)
        return self._chunked(q, coords if coords.ndim == 3 else coords[None], None, sigma, dtype, chunk)

    def at_pixels(
        self,
        q: Tensor,
        index: Tensor,
        sigma: float | Tensor | None = None,
        *,
        compute_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Some pixels of the grid: the training path, in memory that the image does not set (without a filter).

        :param torch.Tensor q: (B, C, H, W).
        :param torch.Tensor index: (P,) or (B, P) flat pixel numbers, row W + column.
        :param sigma: as in ``forward``.
        :returns: (B, P, C_out).
        """
        check_image(q, self.in_channels)
        batch, _, height, width = q.shape
        index = pixel_numbers(index, batch, (height, width))
        if not index.numel():
            return q.new_zeros(*index.shape, self.out_channels)
        dtype = compute_dtype or q.dtype
        row, column = index // width, index % width
        if self._moves:
            where = torch.stack([row, column], -1)
            return self._chunked(q, where, (height, width), sigma, dtype, index.numel())
        item = torch.arange(batch, device=q.device)[:, None].expand_as(index).flatten()
        noise, seen, row, column = self._noise(sigma, q), self._see(q), row.flatten(), column.flatten()
        sigmas = noise if noise.ndim == 0 else noise[item, 0, row, column][:, None]
        margin, matrix = self._stencil(seen, dtype)
        view = windows_at(seen, item, row, column, margin)
        view = self._reduced(view, view[..., margin : margin + 1, margin : margin + 1], dtype)
        pixels = self._network(self._interpolated(view, matrix), sigmas, self._mlp(dtype, seen)).to(q.dtype)
        pixels = pixels.reshape(*index.shape, self.out_channels)
        if not self.residual:
            return pixels
        if self.official:
            points = torch.stack([row, column], -1).to(exact(q)).reshape(*index.shape, 2)
            return self._finish_at(q, seen, points, self.geometry.points((height, width)), pixels)
        return pixels + q[item, : self.out_channels, row, column].reshape(pixels.shape)

    def looks_at(self, q: Tensor, coords: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """Where the patch of each coordinate reads the image, after INR and CCPG: the paper's Figures 7 and 9.

        :param q, coords, sigma: as in ``at``.
        :returns: (B, P, K, 2) positions (row, column) [pixel of q], rays outermost.
        """
        check_image(q, self.in_channels)
        check_coords(coords, len(q))
        noise, seen, found = self._noise(sigma, q), self._see(q), []
        for part in (coords if coords.ndim == 3 else coords[None]).split(CHUNK, 1):
            points = self._locate(q, part)
            sigmas = noise if noise.ndim == 0 else sample_level(noise, points).reshape(-1, 1)
            found.append(points[:, :, None] + self._offsets(seen, points, sigmas))
        return torch.cat(found, 1)

    @property
    def _moves(self) -> bool:
        """Whether the points differ from pixel to pixel, so that no stencil can stand for them."""
        return self.ccpg is not None or self.inr is not None

    def _see(self, q: Tensor) -> Tensor:
        return q if self.filter is None else self.filter(q)

    def _chunked(
        self,
        q: Tensor,
        where: Tensor,
        grid: tuple[int, int] | None,
        sigma: float | Tensor | None,
        dtype: torch.dtype,
        chunk: int,
        most: float | None = None,
    ) -> Tensor:
        """(B, P, C_out) at ``where``, (1 or B, P, 2): coordinates, or pixels of a grid of this shape."""
        noise, seen = self._noise(sigma, q), self._see(q)
        mlp, done, at = self._mlp(dtype, seen, where), [q.new_zeros(len(q), 0, self.out_channels)], 0
        out = None if torch.is_grad_enabled() else q.new_empty(len(q), where.shape[1], self.out_channels)
        for part in where.split(max(1, chunk // max(1, len(q))), 1) if where.numel() else ():
            points = self._locate(q, part, grid)
            sigmas = noise if noise.ndim == 0 else sample_level(noise, points).reshape(-1, 1)
            offsets = self._offsets(seen, points, sigmas)
            patch = self._centre(gather(seen, points, offsets, self.kernel_a).flatten(0, 1))
            pixels = self._network(patch.to(dtype), sigmas, mlp, most).reshape(len(q), -1, self.out_channels)
            answer = self._finish_at(q, seen, points, offsets, pixels.to(q.dtype))
            if out is None:
                done.append(answer)
            else:
                out[:, at : at + part.shape[1]] = answer
                at += part.shape[1]
        return torch.cat(done, 1) if out is None else out

    def _locate(self, q: Tensor, where: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Coordinates, or pixels of a grid, -> positions (B, P, 2) [pixel of q].

        On its own grid a pixel is its position; elsewhere float64 carries the position exactly.
        """
        shape = (q.shape[-2], q.shape[-1])
        if grid == shape and self.inr is None:
            return where.to(exact(q)).expand(len(q), -1, 2)
        if grid is not None:
            where = coordinates(where.double(), grid, corners=self.official)
        where = where.to(torch.promote_types(where.dtype, exact(q)))
        if self.inr is not None:
            where = (self.inr(where.to(exact(q)).reshape(-1, 2) - 0.5) + 0.5).reshape(where.shape)
        return positions(where, shape, corners=self.official).expand(len(q), -1, 2)

    def _offsets(self, seen: Tensor, points: Tensor, noise: Tensor) -> Tensor:
        """The points of a patch relative to its centre: (K, 2), or with CCPG (B, P, K, 2) [pixel]."""
        shape = (seen.shape[-2], seen.shape[-1])
        offsets = self.geometry.points(shape).to(exact(seen))
        if self.ccpg is not None:
            for k in range(len(self.ccpg.networks)):
                patch = gather(seen, points, offsets, self.kernel_a).flatten(0, 1)
                patch = self._centre(patch)
                found = self.ccpg.offsets(k, patch / divisor(noise)[..., None] if self.equivariant else patch)
                offsets = self.geometry.stretch(found.reshape(*points.shape[:2], -1, 2), shape)
        return offsets

    def _stencil(self, seen: Tensor, dtype: torch.dtype) -> tuple[int, Tensor]:
        """The reach of the windows and the matrix (S^2, K) that interpolates patches out of them."""
        shape = (seen.shape[-2], seen.shape[-1])
        margin = self.geometry.margin(shape)
        points = self.geometry.points(shape).to(torch.promote_types(seen.dtype, torch.float32))
        matrix = stencil(points, margin, self.kernel_a)
        if self.centred:
            matrix = matrix - matrix.mean(1, keepdim=True)
        return margin, matrix.to(dtype)

    def _tile_patch(self, seen: Tensor, tile: Tile, margin: int, matrix: Tensor) -> Tensor:
        """(P, C, K) patches of a tile of the grid."""
        if available(seen):
            b, rows, columns = tile
            axes = [torch.arange(s.start, s.stop, device=seen.device, dtype=exact(seen)) for s in (rows, columns)]
            offsets = self.geometry.points((seen.shape[-2], seen.shape[-1])).to(exact(seen))
            patch = gather(seen[b : b + 1], torch.cartesian_prod(*axes)[None], offsets, self.kernel_a)[0]
            return self._centre(patch).to(matrix.dtype)
        padded = padded_tile(seen, tile, margin)
        padded = self._reduced(padded, padded.mean((-2, -1), keepdim=True), matrix.dtype)
        return self._interpolated(windows(padded[None], margin)[0].flatten(0, 1), matrix)

    def _reduced(self, x: Tensor, level: Tensor, dtype: torch.dtype) -> Tensor:
        """In the dtype to compute in; what is centred later is brought near zero first, for the sake of rounding."""
        return x if dtype == x.dtype else (x - level if self.centred else x).to(dtype)

    def _interpolated(self, view: Tensor, matrix: Tensor) -> Tensor:
        """(P, C, S, S) windows -> (P, C, K) patches."""
        patch = view.reshape(-1, matrix.shape[0]) @ matrix
        return patch.reshape(-1, self.seen_channels, matrix.shape[1])

    def _centre(self, patch: Tensor) -> Tensor:
        """(P, C, K) patches without their mean, if this network wants that."""
        return patch - patch.mean(2, keepdim=True) if self.centred else patch

    def _mlp(self, dtype: torch.dtype, *inputs: Tensor) -> Network:
        """Packed layers do not pass NaN on, so they are for finite inputs without gradients."""
        return self.mlp if torch.is_grad_enabled() or not all(map(finite, inputs)) else self.mlp.prepared(dtype)

    def _network(self, patch: Tensor, noise: Tensor, mlp: Network, most: float | None = None) -> Tensor:
        """(P, C, K) centred patches -> (P, C_out), without the residual."""
        if self.equivariant:
            noise = noise.to(patch.dtype)
            patch = patch / divisor(noise)[..., None]
        if isinstance(self.mlp, MultiMLP):  # a ray's inputs are ordered channel first, then ring
            patch = patch.reshape(len(patch), self.seen_channels, self.rays, self.rings)
            pixels = mlp(patch.permute(2, 0, 1, 3).reshape(self.rays, len(patch), -1))
        else:
            pixels = mlp(patch.flatten(1))
        if not self.equivariant:
            return pixels
        return (pixels if most is None or not self.residual else pixels.clamp(-most, most)) * noise

    def _finish(self, q: Tensor, seen: Tensor, out: Tensor) -> Tensor:
        """The answer on the grid of q from the network's (B, C_out, H, W)."""
        if not self.residual:
            return out.contiguous()
        if not self.official:
            return out + q[:, : self.out_channels]
        shape = (q.shape[-2], q.shape[-1])
        margin = self.geometry.margin(shape)
        kernel = stencil(self._middle(self.geometry.points(shape))[None].to(q.dtype), margin, self.kernel_a)
        kernel = kernel.reshape(1, 1, 2 * margin + 1, -1).expand(self.out_channels, 1, -1, -1)
        return conv2d(reflect_pad(seen[:, : self.out_channels], margin), kernel, groups=self.out_channels) - out

    def _finish_at(self, q: Tensor, seen: Tensor, points: Tensor, offsets: Tensor, pixels: Tensor) -> Tensor:
        """The answer at pixel positions (B, P, 2) from the network's (B, P, C_out)."""
        if not self.residual:
            return pixels
        if not self.official:
            return pixels + sample(q[:, : self.out_channels], points)
        return sample(seen[:, : self.out_channels], points + self._middle(offsets), self.kernel_a) - pixels

    def _middle(self, offsets: Tensor) -> Tensor:
        """The point that the authors' code calls the patch's centre, of (..., K, 2)."""
        ring = ray = MIDDLE if self.geometry.layout == "square" else 0
        return offsets[..., ray * self.rings + ring, :]

    def _chunk(
        self, q: Tensor, dtype: torch.dtype, chunk: int | None, max_memory: float | None, *, gathered: bool
    ) -> int:
        """Pixels worked on at once."""
        fixed = FILTER_COPIES * self.seen_channels * q[:, :1].nbytes if self.filter is not None else 0
        each = self.bytes_per_pixel(q, dtype, gathered=gathered)
        default = GATHERED if gathered else CHUNK
        return pixels_at_once(q.device, chunk, max_memory, each, fixed=fixed, default=default)

    def bytes_per_pixel(self, q: Tensor, dtype: torch.dtype, *, gathered: bool = False) -> int:
        """Working memory for each pixel of a chunk, without gradients."""
        size, points = dtype.itemsize, self.rays * self.rings * self.seen_channels
        if gathered:
            look = 16 * (TAP_BYTES * self.rays * self.rings + 6 * points * q.dtype.itemsize)
        else:
            margin = self.geometry.margin((q.shape[-2], q.shape[-1]))
            look = self.seen_channels * (2 * margin + 1) ** 2 * size
        return look + 4 * points * size + self.mlp.widest() * size

    def _noise(self, sigma: float | Tensor | None, q: Tensor) -> Tensor:
        """The unit the network works in: () or (B, 1, H, W)."""
        if self.equivariant:
            return noise_unit(sigma, q)
        if sigma is not None:
            raise ValueError("this LoFi takes no sigma (equivariant=False); call it as lofi(q)")
        return q.new_ones(())


def exact(x: Tensor) -> torch.dtype:
    """What positions in an image are computed in: float32 or better."""
    return torch.promote_types(x.dtype, torch.float32)
