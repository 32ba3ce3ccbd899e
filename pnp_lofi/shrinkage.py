"""Shrinkage: noise told from signal in overlapping patches, in a learned basis and by a learned threshold."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from pnp_lofi.units import divisor

LEVEL = 5.0  # at the start: a coefficient of sqrt(5) sigma is half noise
GATES = 0.2  # of He's start of what the features add to it
BAND = 32  # rows of patches worked on at once without gradients: all five arrays of them stay small


class Shrinkage(nn.Module):
    """n(x) = sum_e S_e r(x - e), e over a patch: the noise that all patches see in a pixel, where

        r(y) = sigma(y) z(y) sigmoid(b + T g(y) - (a z(y))^2),    z(y) = A w(y) / sigma(y),

    with w(y) the patch around y, g(y) features of y and S_e the same for all y. Coefficients z that stand out of the
    noise are signal and stay, so n is of the size of sigma however large the contrast is; a constant is not seen. A
    starts as the discrete cosines without the constant, S as their transpose.

    :param int channels: C, of the image; int side: of a patch, odd [pixel]; int features: of g.
    Source: patches shrunk in cosines, Guleryuz 2007 (IEEE TIP 16, 3020); here basis and threshold are learned, and
    the threshold is told what lies around.
    """

    def __init__(self, channels: int, side: int, features: int) -> None:
        super().__init__()
        self.side = side
        atoms = cosines(channels, side)
        self.analysis, self.synthesis = nn.Parameter(atoms), nn.Parameter(atoms.clone())
        bound = GATES * math.sqrt(3 / features)
        self.gates = nn.Parameter(torch.empty(len(atoms), features).uniform_(-bound, bound))
        self.gates_bias = nn.Parameter(torch.full((len(atoms),), LEVEL))
        self.steepness_bias = nn.Parameter(torch.ones(len(atoms)))

    def forward(self, q: Tensor, sigma: Tensor, features: Tensor) -> Tensor:
        """Valid; computed in the dtype of q, which may be less the mean of each channel.

        :param torch.Tensor q: (B, C, H, W).
        :param torch.Tensor sigma: (), (B, 1, 1, 1) or (B, 1, H - n + 1, W - n + 1), n being the side.
        :param torch.Tensor features: (B, F, H - n + 1, W - n + 1).
        :returns: (B, C, H - 2 (n - 1), W - 2 (n - 1)) in the dtype of sigma.
        """
        n, dtype, level = self.side, q.dtype, divisor(sigma)
        view = q.unfold(-2, n, 1).unfold(-2, n, 1).permute(0, 2, 3, 1, 4, 5)  # (B, H, W, C, n, n) without a copy
        varies = sigma.ndim > 2 and sigma.shape[-1] > 1
        kernels = self.analysis - self.analysis.mean((-2, -1), keepdim=True)
        analysis = (kernels / level if sigma.numel() == 1 else kernels).flatten(1).to(dtype)
        synthesis = self.synthesis.flatten(1).T.to(dtype) / n**2

        def shrunk(rows: slice) -> Tensor:
            """What rows of patches say, (C, n, n, B, h, w)."""
            z = linear(view[:, rows].flatten(3), analysis)
            if sigma.numel() > 1:
                z = z / (level[..., rows, :] if varies else level).permute(0, 2, 3, 1).to(dtype)
            told = linear(features[..., rows, :].permute(0, 2, 3, 1), self.gates.to(dtype), self.gates_bias.to(dtype))
            scaled = self.steepness_bias.to(dtype) * z
            r = z * told.addcmul_(scaled, scaled, value=-1).sigmoid_()
            if varies:
                r = r * sigma[..., rows, :].permute(0, 2, 3, 1).to(dtype)
            return (synthesis @ r.flatten(0, 2).T).reshape(q.shape[1], n, n, *r.shape[:3])

        if torch.is_grad_enabled():
            total = _OverlapAdd.apply(shrunk(slice(None)))
        else:
            total = _zeros(q.shape, n - 1, q)
            for top in range(0, view.shape[1], BAND):
                _overlap_add(total, shrunk(slice(top, top + BAND)), top)
        total = total.to(sigma.dtype)
        return total if varies else total * sigma

    def enlarged(self, other: "Shrinkage") -> dict[str, Tensor]:
        """Weights of this size that answer as a smaller one does: its patches, framed, and the slowest cosines of
        this size, of which nothing is taken at first."""
        given, count, edge = other.state_dict(), len(other.analysis), (self.side - other.side) // 2
        channels, ticks = other.analysis.shape[1], torch.arange(self.side)
        order = (ticks[:, None] + ticks).flatten()[1:].repeat_interleave(channels).argsort(stable=True)
        slow = cosines(channels, self.side)[order[: len(self.analysis) - count]]
        seen = given["analysis"] - given["analysis"].mean((-2, -1), keepdim=True)
        said = given["synthesis"] * (self.side / other.side) ** 2
        found = {
            "analysis": torch.cat([pad(seen, (edge,) * 4), slow]),
            "synthesis": torch.cat([pad(said, (edge,) * 4), torch.zeros_like(slow)]),
        }
        return {key: torch.cat([given[key], w[count:]]) for key, w in self.state_dict().items() if w.ndim < 3} | found


def cosines(channels: int, side: int) -> Tensor:
    """(C (n^2 - 1), C, n, n): orthonormal cosines of channels, rows and columns but for the constants."""
    one, colour = _cosines(side), _cosines(channels)
    atoms = torch.einsum("kc,ai,bj->abkcij", colour, one, one).reshape(-1, channels, channels, side, side)
    return atoms[1:].flatten(0, 1).contiguous()


def _cosines(count: int) -> Tensor:
    """(N, N), orthonormal, the constant first."""
    ticks = (torch.arange(count) + 0.5) / count
    rows = torch.cos(math.pi * torch.arange(count)[:, None] * ticks) * math.sqrt(2 / count)
    rows[0] = 1 / math.sqrt(count)
    return rows


def _zeros(shape: Sequence[int], margin: int, like: Tensor) -> Tensor:
    """Zeros in which patches of (B, C, H, W) are summed, without the margin."""
    dtype, (height, width) = torch.promote_types(like.dtype, torch.float32), shape[2:]
    return like.new_zeros((*shape[:2], height - 2 * margin, width - 2 * margin), dtype=dtype)


def _overlap_add(total: Tensor, patches: Tensor, top: int) -> None:
    """Add what patches of the rows from ``top`` on say, (C, n, n, B, h, w)."""
    channels, n, _, batch, h, w = patches.shape
    for c in range(channels):
        for i in range(n):
            up = n - 1 - i
            first, last = max(top, up), min(top + h, total.shape[-2] + up)
            if first < last:  # one pixel to the left for each column of a patch: strides shear its n planes
                corner = patches[c, i, 0, :, first - top :, n - 1 :]
                sheared = corner.as_strided((n, batch, last - first, w - n + 1), (batch * h * w - 1, h * w, w, 1))
                total[:, c, first - up : last - up] += sheared.sum(0, dtype=total.dtype)


class _OverlapAdd(torch.autograd.Function):
    """(C, n, n, B, h, w) patches -> (B, C, h - n + 1, w - n + 1): their sums where all that cover a pixel are there."""

    @staticmethod
    def forward(patches: Tensor) -> Tensor:
        channels, n, _, batch, h, w = patches.shape
        total = _zeros((batch, channels, h + n - 1, w + n - 1), n - 1, patches)
        _overlap_add(total, patches.contiguous(), 0)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.dtype, ctx.side = inputs[0].dtype, inputs[0].shape[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        n = ctx.side
        wide = pad(gradient.to(ctx.dtype), (n - 1,) * 4)
        return wide.unfold(-2, n, 1).unfold(-2, n, 1).permute(1, 4, 5, 0, 2, 3)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _OverlapAdd.apply(tangent)
