"""FunkNN: continuous super-resolution. A small CNN makes each point of the answer from the patch around it."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnp_lofi.interpolation import checked_footprint, checked_kernel, patches
from pnp_lofi.sampling import grid_coords, positions
from pnp_lofi.units import check_coords, check_image, pixels_at_once

PATCH = 9  # samples along a side of the patch; its middle is sample 4
LAYERS, POOLED = 8, 3  # convolutions; those with k % 4 == 3 are followed by a pooling
CHUNK, CHUNK_GPU = 512, 1 << 14  # points at once: what fits into the caches of a processor is fastest
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "silu": F.silu,
}  # in place where its own result is all that autograd keeps
POOLS: dict[str, Callable[..., Tensor]] = {"max": F.max_pool2d, "mean": F.avg_pool2d}


class FunkNN(nn.Module):
    """f(x) = CNN(p(x)) + p_44(x), with p_ij(x) = q(x + (s_r (i - 4), s_c (j - 4))), 9 x 9 samples of the image.

    s_r and s_c are two learned scales [pixel], 1 at the start. The CNN: 8 convolutions 2 x 2 (zero padding after the
    last row and column), each followed by the activation and a skip, or by a pooling after the 4th and the 8th; three
    dense layers, skips after the second and third, and a last one. With a scale of one the patch is the window itself.

    :param int channels: of the image and of the answer.
    :param int width: channels of the convolutions and dense layers.
    :param str head: "cnn"; or "mlp", the dense layers alone, 4 width wide, on the patch: a thirtieth of the work, and
        far fewer steps to learn from.
    :param str kernel: that interpolates the patch: "bicubic" (Keys, a = -1/2), "bilinear", "smooth" (Keys' 6 taps).
    :param int degree: None, the paper's: the patch as it is, layers with biases. 0, 1 or 2: the best constant, plane
        or parabola is taken from the patch first and layers have no biases: where the image is that smooth the kernel
        alone answers, so that derivatives are the kernel's there, and f(q + b) = f(q) + b; with "relu" also
        f(a q) = a f(q), a > 0.
    :param bool footprint: the network is told the size of the output's pixel, f [pixel of q]: its dense layers are
        modulated by f, its correction is multiplied by 1 - f_r f_c, and beyond f = 1 the patch and its kernel are
        stretched by f. So a grid at its own scale is returned as it is, and an image that is shrunk does not alias.
    :param str activation: "relu", or "silu" for smoother derivatives; str pool: "max" or "mean", likewise.
    :raises ValueError: for a kernel, degree, activation, pool or size that is not known.
    Source: arXiv 2212.14042 and its code. Differs: skips between dense layers, which the paper has and its code has
    not; the last layer starts at zero, so that training starts at the kernel; scales in pixels, a = -1/2, borders that
    reflect about the edge pixel's centre. The degree, the footprint, "silu" (theirs: sine) and "mean" are ours.
    """

    def __init__(
        self,
        channels: int = 1,
        *,
        width: int = 64,
        head: Literal["cnn", "mlp"] = "cnn",
        kernel: str = "bicubic",
        degree: int | None = None,
        footprint: bool = False,
        activation: Literal["relu", "silu"] = "relu",
        pool: Literal["max", "mean"] = "max",
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "channels": channels, "width": width, "head": head, "kernel": checked_kernel(kernel), "degree": degree,
            "footprint": footprint, "activation": activation, "pool": pool,
        }  # fmt: skip
        if min(channels, width) < 1 or degree not in (None, 0, 1, 2):
            raise ValueError(f"FunkNN expects channels, width >= 1 and a degree of None, 0, 1 or 2, got {self.config}")
        if activation not in ACTIVATIONS or pool not in POOLS or head not in ("cnn", "mlp"):
            raise ValueError(
                f"activation is {', '.join(ACTIVATIONS)}, pool {', '.join(POOLS)}, head cnn, mlp; got {self.config}"
            )
        self.channels = self.in_channels = self.out_channels = channels
        self.kernel, self.footprint, self.width, bias = kernel, footprint, width, degree is None
        self.activation, self.pool = ACTIVATIONS[activation], POOLS[pool]
        self.scale = nn.Parameter(torch.ones(2))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width if k else channels, width, 2, bias=bias) for k in range(LAYERS if head == "cnn" else 0)
        ).to(memory_format=torch.channels_last)  # 1.5 to 3 times as fast on a processor
        wide = width if head == "cnn" else 4 * width
        sizes = [4 * width if head == "cnn" else channels * PATCH**2, wide, wide, wide, channels]
        self.dense = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in pairwise(sizes))
        self.modulation = nn.Linear(5, 3 * wide, bias=False) if footprint else None
        if head == "mlp":  # He's start learns faster; in the CNN it lets the first dense layer's ReLUs die
            for layer in self.dense:
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
        for last in [self.dense[-1], *([self.modulation] if self.modulation is not None else [])]:
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
        self.register_buffer("rest", _rest(degree) if degree is not None else None, persistent=False)

    def forward(self, q: Tensor, shape: tuple[int, int], **options: Any) -> Tensor:
        """The image on a grid of another size over the same square; :func:`pnp_lofi.zoom.zoom` bounds the memory.

        :param torch.Tensor q: (B, C, H, W). :param tuple shape: (H', W'). :param options: of ``at``.
        :returns: (B, C, H', W').
        """
        coords = grid_coords(shape, dtype=torch.float64, device=q.device)
        if self.footprint:
            options = {"footprint": (q.shape[-2] / shape[0], q.shape[-1] / shape[1])} | options
        return self.at(q, coords, **options).mT.reshape(len(q), self.channels, *shape)

    def at(
        self,
        q: Tensor,
        coords: Tensor,
        footprint: float | tuple[float, float] | None = None,
        *,
        chunk: int | None = None,
        max_memory: float | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Any coordinates of the unit square; twice differentiable in them.

        :param torch.Tensor q: (B, C, H, W).
        :param torch.Tensor coords: (P, 2) or (B, P, 2), (row, column) in [0, 1]; pixel i of N is (i + 1/2)/N.
        :param footprint: size of an output pixel [pixel of q], one or two numbers; default 0, a point. Networks without
            a footprint take none.
        :param int chunk: points worked on at once; default 512, on a GPU 16384.
        :param float max_memory: sets chunk instead [MB].
        :param torch.dtype compute_dtype: of the CNN; default that of q. The result has the dtype of q.
        :returns: (B, P, C).
        """
        check_image(q, self.channels)
        check_coords(coords, len(q))
        if footprint is not None and not self.footprint:
            raise ValueError("this FunkNN takes no footprint (footprint=False); call it as model.at(q, coords)")
        pixel = checked_footprint(0.0 if footprint is None else footprint)
        default = CHUNK if q.device.type == "cpu" else CHUNK_GPU
        each = self._bytes(pixel) * q.element_size()
        chunk = pixels_at_once(q.device, default if (chunk, max_memory) == (None, None) else chunk, max_memory, each)
        points = positions(coords, (q.shape[-2], q.shape[-1])).expand(len(q), -1, 2)
        out = [self._points(q, part, pixel, compute_dtype or q.dtype)
               for part in points.split(max(1, chunk // len(q)), 1)]  # fmt: skip
        return torch.cat(out, 1)

    def _points(self, q: Tensor, points: Tensor, pixel: tuple[float, float], dtype: torch.dtype) -> Tensor:
        """(B, P, C) at places (B, P, 2) [pixel]."""
        width = (max(1.0, pixel[0]), max(1.0, pixel[1]))
        patch = patches(q, points, self.scale, PATCH, self.kernel, width)
        middle = patch[:, :, PATCH // 2, PATCH // 2]
        gate = 1 - min(1.0, pixel[0]) * min(1.0, pixel[1])
        if gate == 0:
            return middle
        patch = patch.flatten(0, 1)
        if self.rest is not None:
            patch = torch.einsum("ts,psc->ptc", self.rest.to(patch.dtype), patch.flatten(1, 2)).reshape(patch.shape)
        found = self.network(patch.permute(0, 3, 1, 2).to(dtype), pixel).to(q.dtype).reshape(middle.shape)
        return middle + gate * found

    def network(self, h: Tensor, pixel: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """(P, C, 9, 9), channels last in memory -> (P, C); computed in the dtype of the input."""
        dtype = h.dtype
        for k, layer in enumerate(self.convolutions):
            # of 9 rows and columns the pooling takes 8: the last need no padding where it follows
            seen = h if k == POOLED else F.pad(h, (0, 1, 0, 1))
            found = self.activation(F.conv2d(seen, *self._cast(layer, dtype)))
            h = self.pool(found, 2) if k % 4 == POOLED else found + h if k else found
        h = h.flatten(1)
        factors = self._factors(pixel, dtype)
        for k, layer in enumerate(self.dense):
            found = F.linear(h, *self._cast(layer, dtype))
            if k < len(factors):
                found = self.activation(found) * factors[k]
            h = found + h if k in (1, 2) else found
        return h

    def _cast(self, layer: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        return layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype)

    def _factors(self, pixel: tuple[float, float], dtype: torch.dtype) -> list[Tensor | float]:
        """By what the hidden dense layers are multiplied for the output pixel's size."""
        if self.modulation is None:
            return [1.0, 1.0, 1.0]
        a, b = (min(1.0, f) for f in pixel)
        size = self.modulation.weight.new_tensor([a, b, a * a, b * b, a * b])
        return list((1 + self.modulation(size)).to(dtype).chunk(3))

    def _bytes(self, pixel: tuple[float, float]) -> int:
        """Numbers that a point needs at once, about."""
        side = [(PATCH - 1) * float(s) * max(1, f) + 7 * max(1, f)
                for s, f in zip(self.scale.detach().abs(), pixel, strict=True)]  # fmt: skip
        return int(side[0] * side[1] * (3 * self.channels + 4)) + 4 * PATCH**2 * self.width


def _rest(degree: int) -> Tensor:
    """(81, 81), symmetric: what is left of a patch when its best polynomial is taken away."""
    t = torch.arange(PATCH, dtype=torch.float64) / (PATCH // 2) - 1
    powers = [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]
    basis = torch.stack([(t[:, None] ** i * t[None, :] ** j).flatten() for i, j in powers], 1)
    basis = torch.linalg.qr(basis)[0]
    return torch.eye(PATCH**2, dtype=torch.float64) - basis @ basis.T
