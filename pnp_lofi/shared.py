"""SharedLoFi: a local field whose pixels share their neighbours' features instead of computing them anew."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from pnp_lofi.dense import finite, prepared, uniform
from pnp_lofi.kernels import gather
from pnp_lofi.mlp import MLP
from pnp_lofi.sampling import coordinates, grid_coords, padded_tile, positions, sample, sample_level, windows
from pnp_lofi.shrinkage import Shrinkage
from pnp_lofi.tiles import Tile, over_tiles
from pnp_lofi.units import (
    GATHERED,
    TAP_BYTES,
    check_coords,
    check_image,
    divisor,
    noise_unit,
    pixel_numbers,
    pixels_at_once,
)

Run = Callable[[Tensor, Tensor], Tensor]  # a tile with its margin, and its noise level
SMALLEST_BOX = 1024  # pixels; below that splitting a group saves nothing, its margin is larger
LOW = (torch.bfloat16, torch.float16)
SMALL = 0.1  # of the mixer's last weights at the start, where patches are shrunk
CHUNK = 16_384  # pixels worked on at once; more than LoFi's because a tile has a margin


class Stage(nn.Module):
    """h(y) + D relu(sum_j C_j relu(h(y + e_j))), valid: features that see their neighbours' features.

    :param int features: of h; int points, spacing: the lattice e_j, as in :class:`SharedLoFi`; int width: of C_j.
    """

    def __init__(self, features: int, points: int, spacing: int, width: int) -> None:
        super().__init__()
        self.spacing, self.reach = spacing, (points // 2) * spacing
        self.gather = uniform((width, features, points, points), features * points**2)
        self.gather_bias = uniform((width,), features * points**2)
        self.mix, self.mix_bias = uniform((features, width), width), uniform((features,), width)

    def forward(self, h: Tensor) -> Tensor:
        """(B, F, H, W) -> (B, F, H - 2 reach, W - 2 reach), computed in the dtype of h."""
        weight = self.gather.to(h.dtype).contiguous(memory_format=torch.channels_last)
        seen = conv2d(h.relu(), weight, self.gather_bias.to(h.dtype), dilation=self.spacing)
        more = linear(seen.relu_().permute(0, 2, 3, 1), self.mix.to(h.dtype), self.mix_bias.to(h.dtype))
        return cropped(h, self.reach) + more.permute(0, 3, 1, 2)


class SharedLoFi(nn.Module):
    """f(x) = q(x) + sigma M(W p(x) / sigma + sum_j V_j g(x + e_j)) - n(x), p(x) a window, g an MLP of a window, and n,
    if there is a ``patch``, what :class:`~pnp_lofi.shrinkage.Shrinkage` takes for noise:

        g(y) = relu(h(y)),  h(y) = B relu(A w(y) / sigma(y)),

    and each stage, with a lattice of its own, adds to h: h(y) <- h(y) + D relu(sum_j C_j relu(h(y + e_j))). With a
    patch, h(y) = B log(1 + relu(A w(y) / sigma(y))).

    LoFi's patch of K points becomes a patch of features, each of which is computed once per pixel and read by all
    neighbours on a lattice e_j. Everything is in units of sigma and blind to a constant (A and W have zero mean), so
    D(a q + c, a sigma) = a D(q, sigma) + c, and D(q, 0) = q. Pixels depend on ``reach`` pixels around them and nothing
    else: tiles are exact, shifts too. Three ways in, as in :class:`~pnp_lofi.lofi.LoFi`, and ``interior`` for training.

    :param int in_channels: channels of q and of f.
    :param int window: side of the window w that a feature sees [pixel], odd.
    :param int filters: first layer of g; int features: its outputs.
    :param int points: the lattice has points x points positions, odd; int spacing: their distance [pixel].
    :param int raw: side of the window p [pixel], odd; 0: none is read.
    :param Sequence stages: (points, spacing, width) of each stage of features of features: its lattice, and how many
        sums C_j makes.
    :param int patch: side of the patches that are shrunk, odd [pixel]; 0: none are.
    :param Sequence[int] hidden: widths of the hidden layers of the mixing network M, the first reads p and g.
    :raises ValueError: if a side is even or a size is not positive.
    Source: the answer of this project to the open question of arXiv 2411.04995, "sharing computation across pixels";
    what else was tried: docs/benchmarks.md.
    """

    equivariant = True

    def __init__(
        self,
        in_channels: int = 1,
        *,
        window: int = 9,
        filters: int = 96,
        features: int = 24,
        points: int = 7,
        spacing: int = 2,
        raw: int = 11,
        hidden: Sequence[int] = (144, 128),
        stages: Sequence[Sequence[int]] = (),
        patch: int = 0,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "in_channels": in_channels, "window": window, "filters": filters, "features": features,
            "points": points, "spacing": spacing, "raw": raw, "hidden": list(hidden),
            "stages": [list(stage) for stage in stages], "patch": patch,
        }  # fmt: skip
        sides = (window, points, raw or 1, patch or 1, *(stage[0] for stage in stages))
        if any(side < 1 or side % 2 == 0 for side in sides):
            raise ValueError(f"window, points, raw and patch must be odd, got {self.config}")
        if (
            min(in_channels, filters, features, spacing, *hidden, *(n for stage in stages for n in stage)) < 1
            or not hidden
        ):
            raise ValueError(f"SharedLoFi expects positive sizes and a hidden layer, got {self.config}")
        self.in_channels = self.out_channels = in_channels
        self.spacing, self.points = spacing, points
        self.lattice = (points // 2) * spacing
        self.stages = cast("Sequence[Stage]", nn.ModuleList(Stage(features, *stage) for stage in stages))
        self.seen = max(self.lattice, patch // 2)  # how far features are read
        self.around = self.seen + sum(stage.reach for stage in self.stages)
        self.inner = self.reach = max(window // 2 + self.around, raw // 2, patch - 1)
        first = hidden[0]
        self.windows = uniform((filters, in_channels, window, window), in_channels * window**2)
        self.windows_bias = uniform((filters,), in_channels * window**2)
        self.summary, self.summary_bias = uniform((features, filters), filters), uniform((features,), filters)
        self.neighbours = uniform((first, features, points, points), features * points**2)
        self.neighbours_bias = uniform((first,), features * points**2)
        self.raw = uniform((first, in_channels, raw, raw), 4 * in_channels * raw**2) if raw else None
        self.mixer = MLP([*hidden, in_channels])
        self.shrinkage = Shrinkage(in_channels, patch, features) if patch else None
        if patch:  # it begins with what the patches say
            with torch.no_grad():
                self.mixer.weights[-1].mul_(SMALL)

    def forward(
        self,
        q: Tensor,
        sigma: float | Tensor,
        *,
        shape: tuple[int, int] | None = None,
        chunk: int | None = None,
        max_memory: float | None = None,
        compute_dtype: torch.dtype | None = None,
        most: float | None = None,
    ) -> Tensor:
        """Every pixel of the grid; arguments and result as :meth:`~pnp_lofi.lofi.LoFi.forward`."""
        check_image(q, self.in_channels)
        if shape is not None and tuple(shape) != tuple(q.shape[-2:]):
            coords = grid_coords(shape, dtype=torch.float64, device=q.device)
            budget: dict[str, Any] = {"chunk": chunk, "max_memory": max_memory}
            pixels = self.at(q, coords, sigma, compute_dtype=compute_dtype, most=most, **budget)
            return pixels.transpose(1, 2).reshape(len(q), self.out_channels, *shape)
        noise, dtype = noise_unit(sigma, q), compute_dtype or q.dtype
        chunk = pixels_at_once(q.device, chunk, max_memory, self.bytes_per_pixel(dtype), default=CHUNK)
        if max_memory is not None:  # the margin of a square tile is worked on too
            chunk = round(max(1.0, chunk**0.5 - 2 * self.around) ** 2)
        fast = q.device.type == "cpu" and not torch.is_grad_enabled() and finite(q)
        run = self._on_cpu(dtype, most) if fast else None
        return over_tiles(q, chunk, lambda tile: self._tile(q, noise, tile, dtype, most, run))

    def interior(
        self, q: Tensor, sigma: Tensor, *, compute_dtype: torch.dtype | None = None, most: float | None = None
    ) -> Tensor:
        """All pixels that are ``reach`` or more away from the border: the training path, differentiable.

        :param torch.Tensor q: (B, C, H, W).
        :param torch.Tensor sigma: (), (B, 1, 1, 1) or (B, 1, H, W).
        :returns: (B, C, H - 2 reach, W - 2 reach), in the dtype of q.
        :raises ValueError: if nothing is inside, or sigma has another shape.
        """
        self._check_interior(q, sigma)
        return self._interior(q, sigma, compute_dtype, most)

    def _interior(self, q: Tensor, sigma: Tensor, compute_dtype: torch.dtype | None, most: float | None) -> Tensor:
        sigma = sigma.to(q.dtype)
        dtype = compute_dtype or q.dtype
        unit = q - q.mean((-2, -1), keepdim=True) if dtype in LOW else q  # rounding sees what the answer does not
        unit = unit.to(dtype).contiguous(memory_format=torch.channels_last)
        seen = self.windows.shape[-1] // 2
        h = conv2d(cropped(unit, self.inner - seen - self.around), _zero_mean(self.windows).to(dtype))
        wide = divisor(level_inside(sigma, self.inner - self.around)).to(dtype)
        h = h / wide + self.windows_bias.to(dtype)[:, None, None]
        h = linear(self._compressed(h).permute(0, 2, 3, 1), self.summary.to(dtype), self.summary_bias.to(dtype))
        features = self._features_of(h.permute(0, 3, 1, 2))
        near = cropped(features, self.seen - self.lattice)
        mixed = conv2d(near, self.neighbours.to(dtype), self.neighbours_bias.to(dtype), dilation=self.spacing)
        if self.raw is not None:
            own = conv2d(cropped(unit, self.inner - self.raw.shape[-1] // 2), _zero_mean(self.raw).to(dtype))
            mixed = mixed + own / divisor(level_inside(sigma, self.inner)).to(dtype)
        mixed = mixed.relu_().permute(0, 2, 3, 1)
        out = self.mixer(mixed.flatten(0, 2)).reshape(*mixed.shape[:3], -1).permute(0, 3, 1, 2).to(q.dtype)
        noise = self._noise(unit, sigma, features)
        return cropped(q, self.inner) + _change(out, noise, level_inside(sigma, self.inner), most)

    def at(
        self,
        q: Tensor,
        coords: Tensor,
        sigma: float | Tensor,
        *,
        chunk: int | None = None,
        max_memory: float | None = None,
        compute_dtype: torch.dtype | None = None,
        most: float | None = None,
    ) -> Tensor:
        """Any coordinates of the unit square; arguments and result as :meth:`~pnp_lofi.lofi.LoFi.at`, and ``most``.

        Neighbouring coordinates are worked on together: features are computed on the grid inside their bounding box,
        the patches of raw pixels and of features are interpolated around the coordinate. Twice differentiable in the
        coordinates.

        :raises ValueError: if a coordinate is not finite.
        """
        check_image(q, self.in_channels)
        check_coords(coords, len(q))
        noise, size = noise_unit(sigma, q), (q.shape[-2], q.shape[-1])
        if not finite(coords):
            raise ValueError("coords must be finite, got NaN or inf among them")
        dtype = compute_dtype or q.dtype
        each = self.bytes_per_pixel(dtype, gathered=True)
        chunk = pixels_at_once(q.device, chunk, max_memory, each, default=GATHERED)
        points = positions(coords.to(torch.promote_types(coords.dtype, q.dtype)), size).expand(len(q), -1, 2)
        out, items = q.new_empty(len(q), points.shape[1], self.out_channels), []
        for b in range(len(q)):
            here, groups = noise if noise.ndim == 0 else noise[b : b + 1], near(points[b].detach(), chunk)
            answers = (self._at(q[b : b + 1], points[b, index], here, dtype, most) for index in groups)
            if torch.is_grad_enabled() and groups:  # autograd would copy the whole for each group written into it
                items.append(torch.cat(list(answers))[torch.cat(groups).argsort()])
            else:
                for index, answer in zip(groups, answers, strict=True):
                    out[b, index] = answer
        return torch.stack(items) if items else out

    def at_pixels(
        self, q: Tensor, index: Tensor, sigma: float | Tensor, *, compute_dtype: torch.dtype | None = None
    ) -> Tensor:
        """Some pixels of the grid; arguments and result as :meth:`~pnp_lofi.lofi.LoFi.at_pixels`.

        Neighbours share features, so scattered pixels cost more than a dense region: ``interior`` is made for training.
        """
        check_image(q, self.in_channels)
        shape = (q.shape[-2], q.shape[-1])
        index = pixel_numbers(index, len(q), shape)
        where = torch.stack([index // shape[1], index % shape[1]], -1).double()
        return self.at(q, coordinates(where, shape), sigma, compute_dtype=compute_dtype)

    def _check_interior(self, q: Tensor, sigma: Tensor) -> None:
        check_image(q, self.in_channels)
        batch, _, height, width = q.shape
        if min(height, width) <= 2 * self.reach:
            raise ValueError(
                f"this network reaches {self.reach} pixels: nothing is inside {height} x {width}; pass more than "
                f"{2 * self.reach} pixels a side"
            )
        if sigma.ndim and tuple(sigma.shape) not in ((batch, 1, 1, 1), (batch, 1, height, width)):
            raise ValueError(
                f"sigma must be a number, ({batch}, 1, 1, 1) or a map ({batch}, 1, {height}, {width}), got "
                f"{tuple(sigma.shape)}"
            )

    def _at(self, q: Tensor, points: Tensor, noise: Tensor, dtype: torch.dtype, most: float | None) -> Tensor:
        """(P, C_out) at pixel positions (P, 2) of one image."""
        low = points.detach().floor().amin(0).long() - self.around - 1
        high = points.detach().ceil().amax(0).long() + self.around + 2
        box = (0, slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
        seen = self.windows.shape[-1] // 2
        unit = padded_tile(q, box, seen)[None]
        level = noise if noise.ndim == 0 else padded_tile(noise, box, 0)[None]
        unit = (unit - unit.mean((-2, -1), keepdim=True) if dtype in LOW else unit).to(dtype)
        h = conv2d(unit, _zero_mean(self.windows).to(dtype)) / divisor(level).to(dtype)
        h = self._compressed(h + self.windows_bias.to(dtype)[:, None, None]).permute(0, 2, 3, 1)
        h = linear(h, self.summary.to(dtype), self.summary_bias.to(dtype)).permute(0, 3, 1, 2)
        h, inner = self._features_of(h), self.around - self.seen
        low = low + inner
        own = noise if noise.ndim == 0 else sample_level(noise, points[None]).T
        lattice = _square(self.points, self.spacing, points)
        patch = gather(h, points[None] - low, lattice)[0].flatten(1)
        mixed = linear(patch, self.neighbours.flatten(1).to(dtype), self.neighbours_bias.to(dtype))
        if self.raw is not None:
            raw = gather(q, points[None], _square(self.raw.shape[-1], 1, points))[0]
            raw = ((raw - raw.mean(-1, keepdim=True)).flatten(1) / divisor(own)).to(dtype)
            mixed = mixed + linear(raw, _zero_mean(self.raw).flatten(1).to(dtype))
        out, removed = self.mixer(mixed.relu()).to(q.dtype), None
        if self.shrinkage is not None:
            edge = self.shrinkage.side // 2
            image = padded_tile(q, _shrunk(box, inner), edge)[None]
            image = (image - image.mean((-2, -1), keepdim=True) if dtype in LOW else image).to(dtype)
            grid = self.shrinkage(image, cropped(level, inner) if level.ndim else level, h)
            removed = sample(grid, points[None] - low - edge)[0]
        return sample(q, points[None])[0] + _change(out, removed, own, most)

    def _tile(
        self, q: Tensor, noise: Tensor, tile: Tile, dtype: torch.dtype, most: float | None, run: Run | None = None
    ) -> Tensor:
        """(C_out, h, w): a tile of the grid."""
        padded = padded_tile(q, tile, self.inner)
        level = noise if noise.ndim == 0 else padded_tile(noise, tile, self.inner)
        if run is not None:
            return run(padded, level)
        level = level if level.ndim == 0 else level[None]
        return self._interior(padded[None], level, dtype, most)[0]

    def _on_cpu(self, dtype: torch.dtype, most: float | None) -> Run:
        """``interior`` of one tile without gradients, in (pixels, features) layout, weights packed once.

        oneDNN's convolution is slow where it reads one channel, so windows are copied and multiplied there; the
        convolution over many channels is its best case.
        """
        count, margin = self.in_channels, self.windows.shape[-1] // 2
        first = prepared([(_zero_mean(self.windows).flatten(1).T, self.windows_bias)], dtype)
        summary = prepared([(self.summary.T, self.summary_bias)], dtype)
        raw = 0 if self.raw is None else self.raw.shape[-1] // 2
        if self.raw is not None:
            none = torch.zeros(len(self.raw), device=self.raw.device)
            own = prepared([(_zero_mean(self.raw).flatten(1).T, none)], dtype)
        neighbours = self.neighbours.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        bias, mixer = self.neighbours_bias.detach().to(dtype), self.mixer.prepared(dtype)

        def run(padded: Tensor, level: Tensor) -> Tensor:
            unit = (padded - padded.mean((-2, -1), keepdim=True) if dtype in LOW else padded).to(dtype)
            around, wide = (
                level_inside(level, self.inner - self.around),
                unit.shape[-1] - 2 * (self.inner - self.around),
            )
            h = first(_windows(cropped(unit, self.inner - self.around - margin), margin, around))
            h = summary(self._compressed(h))
            h = self._features_of(h.reshape(1, -1, wide, h.shape[-1]).permute(0, 3, 1, 2))  # channels last
            near = cropped(h, self.seen - self.lattice)
            mixed = conv2d(near, neighbours, bias, dilation=self.spacing).permute(0, 2, 3, 1)
            here, size = level_inside(level, self.inner), mixed.shape[1:3]
            mixed = mixed.reshape(-1, mixed.shape[-1])
            if self.raw is not None:
                mixed = mixed.add_(own(_windows(cropped(unit, self.inner - raw), raw, here)))
            out = mixer(mixed.relu_()).reshape(*size, count).permute(2, 0, 1).to(padded.dtype)
            noise = self._noise(unit[None], level if level.ndim == 0 else level[None], h)
            return cropped(padded, self.inner) + _change(out, None if noise is None else noise[0], here, most)

        return run

    def _features_of(self, h: Tensor) -> Tensor:
        """(B, F, H, W) before their ReLU -> after it and all stages, as far as those see."""
        for stage in self.stages:
            h = stage(h)
        return h.relu()

    def _compressed(self, h: Tensor) -> Tensor:
        """What the windows respond: where patches are shrunk its logarithm, as those see to what stands out."""
        return h.relu_() if self.shrinkage is None else h.relu_().log1p()

    def _noise(self, unit: Tensor, sigma: Tensor, features: Tensor) -> Tensor | None:
        """What the patches take for noise, (B, C, H - 2 reach, W - 2 reach)."""
        if self.shrinkage is None:
            return None
        half = self.shrinkage.side // 2
        seen = cropped(unit, self.inner - 2 * half)
        return self.shrinkage(seen, level_inside(sigma, self.inner - half), cropped(features, self.seen - half))

    def plenty(self, q: Tensor) -> float:
        """Enough memory for the usual chunks of q without gradients [MB]."""
        chunk = pixels_at_once(q.device, None, None, 1, default=CHUNK)
        return (chunk**0.5 + 2 * self.around) ** 2 * self.bytes_per_pixel(q.dtype) / 2**20

    def bytes_per_pixel(self, dtype: torch.dtype, *, gathered: bool = False) -> int:
        """Working memory for each pixel of a chunk, without gradients."""
        raw = 0 if self.raw is None else self.raw[0, 0].numel()
        values = self.in_channels * (self.windows[0, 0].numel() + raw)
        values += len(self.windows) + 2 * len(self.summary) + 2 * self.mixer.widest()
        values += max((len(self.summary) + len(stage.gather) for stage in self.stages), default=0)
        if self.shrinkage is not None:
            values += 2 * self.shrinkage.analysis[0].numel() + 3 * len(self.shrinkage.analysis)
        if gathered:
            points = self.in_channels * raw + self.neighbours[0].numel()
            taps = TAP_BYTES * (self.points**2 + raw)
            return dtype.itemsize * (values + 6 * 16 * points) + 16 * taps
        return dtype.itemsize * values


def near(points: Tensor, limit: int) -> list[Tensor]:
    """Group positions so that no group holds, nor the bounding box of one spans, more than ``limit`` pixels.

    :param torch.Tensor points: (P, 2) [pixel].
    :returns: the numbers of each group's points; a lone point is a group whatever the limit.
    """
    groups: list[Tensor] = []
    waiting = [torch.arange(len(points), device=points.device)] if len(points) else []
    while waiting:
        index = waiting.pop()
        size = points[index].amax(0) - points[index].amin(0) + 1
        if len(index) == 1 or (len(index) <= limit and float(size.prod()) <= max(limit, SMALLEST_BOX)):
            groups.append(index)
        else:
            order = points[index, int(size.argmax())].argsort()
            waiting += [index[part] for part in order.tensor_split(2)]
    return groups


def _windows(x: Tensor, margin: int, level: Tensor) -> Tensor:
    """(C, h + 2 margin, w + 2 margin) -> (h w, C S^2) in units of level, () or (1, h, w)."""
    view = windows(x[None], margin)[0]
    flat = view.reshape(view.shape[0] * view.shape[1], -1)
    return flat / divisor(level).reshape(-1, 1).to(x.dtype)


def level_inside(sigma: Tensor, margin: int) -> Tensor:
    """The part of a noise map that lies ``margin`` inside; other levels as they are."""
    return cropped(sigma, margin) if sigma.ndim > 2 and sigma.shape[-1] > 1 else sigma


def _change(out: Tensor, noise: Tensor | None, level: Tensor, most: float | None) -> Tensor:
    """What is added to the image: at most ``most`` noise levels."""
    change = out * level if noise is None else torch.addcmul(-noise, out, level)
    if most is None:
        return change
    return bounded(change, level, most)


def bounded(change: Tensor, level: Tensor, most: float) -> Tensor:
    bound = most * level.clamp_min(0)
    return change.clamp(-bound, bound)


def _shrunk(box: Tile, margin: int) -> Tile:
    return box[0], *(slice(part.start + margin, part.stop - margin) for part in box[1:])  # type: ignore[return-value]


def cropped(x: Tensor, margin: int) -> Tensor:
    return x[..., margin : x.shape[-2] - margin, margin : x.shape[-1] - margin]


def _zero_mean(kernels: Tensor) -> Tensor:
    """Kernels that do not see a constant."""
    return kernels - kernels.mean((-2, -1), keepdim=True)


def _square(side: int, spacing: int, like: Tensor) -> Tensor:
    """(side^2, 2) offsets of a lattice, row by row [pixel]."""
    axis = spacing * (torch.arange(side, dtype=like.dtype, device=like.device) - side // 2)
    return torch.cartesian_prod(axis, axis)
