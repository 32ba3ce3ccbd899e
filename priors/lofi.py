"""LoFiPrior: a trained LoFi network in a denoiser's slot."""

import os
from typing import Any, Literal

import torch
from deepinv.models import Denoiser
from torch import Tensor

from pnp_lofi.cg import Reduce, whole
from pnp_lofi.checkpoint import load_checkpoint
from pnp_lofi.dense import has_bfloat16
from pnp_lofi.lofi import FILTER_COPIES, LoFi
from pnp_lofi.matching import NonLocalLoFi
from pnp_lofi.shared import SharedLoFi

Precision = Literal["float32", "bfloat16", "auto"]
PLENTY, PLENTY_GPU = 64.0, 1024.0  # MB, with which a LoFi's own chunks work
MOST = 8.0  # sigma by which a pixel is changed at most; where a network was trained it is less than 5
BF16_FLOOR = 0.02  # sigma over the image's range above which bfloat16 costs < 0.01 dB (benchmarks/denoise.py)


class LoFiPrior(Denoiser):
    """D_sigma(x) by a LoFi network, at any image size, in memory set by ``chunk``.

    A network for one channel runs on each channel of a multi-channel image. A scale-equivariant one changes no pixel by
    more than 8 sigma, so that D_sigma(x) -> x as sigma -> 0, also below the levels that it was trained on.

    :param ckpt: a shipped name ("natural", "radio", ...; docs/priors.md), a path to a checkpoint, or a network.
    :param float sigma: noise level used where a call gives none [units of x].
    :param scale: units of x that correspond to 1 in training. "auto": nothing to do for a scale-equivariant
        network (all shipped ones), max |x| of each image for others.
    :param bool nonneg: clip the result at zero.
    :param str precision: "float32" computes in the dtype of x; "bfloat16" does the matrix products in
        bfloat16; "auto" does so where the processor has it and sigma is at least 2 % of the image's range.
    :param int chunk: pixels worked on at once.
    :param float max_memory: sets chunk instead: working memory beyond input and result [MB], and some 30 once.
    :raises FileNotFoundError, ValueError: as ``load_checkpoint``; for an unknown precision.
    Source: arXiv 2411.04995; scale equivariance and the noise input are ours.
    """

    def __init__(
        self,
        ckpt: str | os.PathLike[str] | LoFi | SharedLoFi,
        sigma: float | None = None,
        scale: float | Literal["auto"] = "auto",
        nonneg: bool = False,
        precision: Precision = "float32",
        *,
        chunk: int | None = None,
        max_memory: float | None = None,
    ) -> None:
        super().__init__()
        if precision not in ("float32", "bfloat16", "auto"):
            raise ValueError(f"precision must be 'float32', 'bfloat16' or 'auto', got {precision!r}")
        if sigma is not None and not 0 <= sigma < float("inf"):
            raise ValueError(f"sigma must be finite and >= 0, got {sigma}")
        if scale != "auto" and not 0 < scale < float("inf"):
            raise ValueError(f"scale must be 'auto' or a finite number > 0, got {scale}")
        self.header: dict[str, Any] = {}
        self.model: LoFi | SharedLoFi
        if isinstance(ckpt, LoFi | SharedLoFi):
            self.model = ckpt.eval()
        else:
            self.model, self.header = load_checkpoint(ckpt)
            self._check_denoises(ckpt)
        self.sigma, self.scale, self.nonneg, self.precision = sigma, scale, nonneg, precision
        self.memory: dict[str, Any] = {"chunk": chunk, "max_memory": max_memory}

    def _check_denoises(self, ckpt: Any) -> None:
        """:raises ValueError: for networks of recipes, whose input is not a noisy image of what they answer."""
        model, recipe = self.model, self.header.get("recipe", "prior")
        known = isinstance(model, LoFi | SharedLoFi) and model.in_channels == model.out_channels
        if known and recipe in ("prior", "denoise"):
            return
        raise ValueError(
            f"{ckpt} is not a denoiser that LoFiPrior could use but a {type(model).__name__} of the recipe {recipe!r}; "
            "priors are 'natural', 'radio' and others of docs/priors.md, and what `pnp-lofi train` makes of images"
        )

    def forward(
        self,
        x: Tensor,
        sigma: float | Tensor | None = None,
        *,
        reduce: Reduce = whole,
        max_memory: float | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Denoise.

        :param torch.Tensor x: (B, C, H, W).
        :param sigma: standard deviation of the noise [units of x], >= 0: number, (B,), or map (B, 1, H, W). Where it is
            0 the answer is x.
        :param float max_memory: working memory beyond x and :meth:`working_memory` [MB], in place of what was said when
            the prior was made, unless that was a chunk; a budget that does not make it faster is not used.
        :param Reduce reduce: where x is a part of an image, over whose parts extremes are taken.
        :returns: (B, C, H, W).
        :raises ValueError: for a wrong number of channels, sigma missing, negative or not finite.
        """
        sigma = self.sigma if sigma is None else sigma
        if sigma is None and self.model.equivariant:
            raise ValueError("LoFiPrior needs the noise level: prior(x, sigma), or LoFiPrior(ckpt, sigma=...)")
        need, channels = self.model.in_channels, x.shape[1] if x.ndim == 4 else 0
        if need != channels and need != 1:
            raise ValueError(
                f"this prior was trained on {need} channels, got an image of shape {tuple(x.shape)}; "
                "use a prior of as many channels or of one"
            )
        memory = self._memory(max_memory, x)
        if need == 1 and channels > 1:
            folded = x.reshape(-1, 1, *x.shape[-2:])
            return self._denoise(folded, _per_channel(sigma, x), reduce, memory).reshape(x.shape)
        return self._denoise(x, sigma, reduce, memory)

    def working_memory(self, x: Tensor) -> int:
        """Bytes that a call needs beyond x, with its result, whatever the chunk.

        :param torch.Tensor x: (B, C, H, W), whose values are not looked at.
        """
        one = isinstance(self.model, SharedLoFi) and not isinstance(self.model, NonLocalLoFi)
        images = 2 if self.nonneg or not one else 1
        return images * x.numel() * x.element_size() + self._filtered(x)

    def _filtered(self, x: Tensor) -> int:
        """Bytes of what a filter makes, which LoFi counts as a part of max_memory."""
        model = self.model
        if not isinstance(model, LoFi) or model.filter is None:
            return 0
        return FILTER_COPIES * model.seen_channels * x[:, :1].numel() * x.element_size()

    def _memory(self, max_memory: float | None, x: Tensor) -> dict[str, Any]:
        """What the network is told: a chunk, or a budget."""
        mine = self.memory
        if max_memory is None or mine["chunk"] is not None:
            return mine
        plenty = PLENTY if x.device.type == "cpu" else PLENTY_GPU
        if isinstance(self.model, SharedLoFi):
            plenty = self.model.plenty(x)
        if mine["max_memory"] is None and max_memory >= plenty:
            return mine
        given = max_memory + self._filtered(x) / 2**20
        return {"chunk": None, "max_memory": min(given, mine["max_memory"] or given)}

    def _denoise(self, x: Tensor, sigma: float | Tensor | None, reduce: Reduce, memory: dict[str, Any]) -> Tensor:
        if self.model.equivariant:
            out = self.model(x, sigma, compute_dtype=self._compute_dtype(x, sigma, reduce), most=MOST, **memory)
        else:
            scale: float | Tensor = (
                self.scale if self.scale != "auto" else reduce(x.abs().amax((1, 2, 3), keepdim=True), "max")
            )
            out = self.model(x / scale, **memory) * scale
        return out.clamp_min(0) if self.nonneg else out

    def _compute_dtype(self, x: Tensor, sigma: float | Tensor | None, reduce: Reduce) -> torch.dtype | None:
        if self.precision == "bfloat16":
            return torch.bfloat16
        if self.precision == "float32" or x.dtype != torch.float32 or not has_bfloat16(x.device):
            return None
        low, high = torch.aminmax(x.detach())
        quietest = torch.as_tensor(sigma).detach().min().to(x)
        below, high, below_sigma = reduce(torch.stack([-low, high, -quietest]), "max").tolist()
        loud = -below_sigma >= BF16_FLOOR * (high + below)
        return torch.bfloat16 if loud else None


def _per_channel(sigma: float | Tensor | None, x: Tensor) -> float | Tensor | None:
    """The noise level of (B, C, H, W) for its channels as images (B C, 1, H, W)."""
    if sigma is None or isinstance(sigma, int | float):
        return sigma
    sigma = torch.as_tensor(sigma)
    if sigma.ndim == 1 and len(sigma) > 1:
        return sigma.repeat_interleave(x.shape[1])
    if sigma.ndim != 4 or sigma.numel() == 1:
        return sigma
    if any(m not in (1, n) for n, m in zip(x.shape, sigma.shape, strict=True)):
        size = (len(x), 1, *x.shape[-2:])
        raise ValueError(f"sigma must be a number, ({len(x)},) or a map {size}, got shape {tuple(sigma.shape)}")
    return sigma.expand(x.shape).reshape(-1, 1, *x.shape[-2:])
