"""A LoFi prior on images that no process holds as a whole."""

from typing import Any

import torch
from deepinv.models import Denoiser
from torch import Tensor

from pnp_lofi.lofi import LoFi
from pnp_lofi.priors.lofi import LoFiPrior
from pnp_lofi.strips import Strips


class ShardedPrior(Denoiser):
    """D_sigma of the whole image, strip by strip: each process has its neighbours' rows sent as far as the network
    reaches, denoises its own with them, and keeps its own. The answer is that of one process, at the borders as well.

    Not differentiated. What works on an image that every process holds is ``deepinv.distributed.distribute(prior,
    context, patch_size=..., overlap=...)``, for any denoiser, with an overlap that the user has to know.

    :param LoFiPrior prior: D; its network must look at the same points around every pixel.
    :param Strips strips: the rows held here.
    :raises TypeError: if the prior is not a LoFiPrior.
    :raises ValueError: if its network reaches everywhere, or farther than a strip is wide.
    """

    def __init__(self, prior: LoFiPrior, strips: Strips) -> None:
        super().__init__()
        if not isinstance(prior, LoFiPrior):
            raise TypeError(
                f"ShardedPrior knows how far a LoFiPrior reaches, got {type(prior).__name__}; other denoisers tile an "
                "image that every process holds: deepinv.distributed.distribute(denoiser, context, overlap=...)"
            )
        self.prior, self.strips = prior, strips
        strips.check_reach(self.reach)

    @property
    def header(self) -> dict[str, Any]:
        """What the prior was trained on."""
        return self.prior.header

    @property
    def reach(self) -> int:
        """Rows beyond its own on which a pixel of the answer depends.

        :raises ValueError: if there is no such number.
        """
        model = self.prior.model
        if not isinstance(model, LoFi):
            return model.reach
        what = {
            "its spectral filter is a Fourier transform of the whole image": model.filter is not None
            and model.filter.margin is None,
            "CCPG moves its patches": model.ccpg is not None,
            "it changes coordinates (inr)": model.inr is not None,
            "official=True scales patches with the image": model.official,
        }
        for reason, found in what.items():
            if found:
                raise ValueError(f"this network cannot work on strips: {reason}; use one process, or a SharedLoFi")
        margin = 0 if model.filter is None else int(model.filter.margin or 0)
        return margin + model.geometry.margin(self.strips.shape)

    def working_memory(self, x: Tensor) -> int:
        """Bytes that a call needs beyond x, with its result: :meth:`LoFiPrior.working_memory` of the strip with its
        neighbours' rows, and that strip."""
        h = x.shape[-2] + (2 * self.reach if self.strips.world > 1 else 0)
        wide = torch.empty((*x.shape[:-2], h, x.shape[-1]), dtype=x.dtype, device="meta")
        return self.prior.working_memory(wide) + 2 * wide.numel() * wide.element_size()

    @torch.no_grad()
    def forward(self, x: Tensor, sigma: float | Tensor | None = None, **kwargs: Any) -> Tensor:
        """Denoise; called by all processes.

        :param torch.Tensor x: (B, C, h, W), the rows held here.
        :param sigma: as for :class:`LoFiPrior`; of a map the rows held here, (B, 1, h, W).
        :param kwargs: of :class:`LoFiPrior`.
        :returns: (B, C, h, W).
        :raises ValueError: for another shape.
        """
        reach, h = self.reach, x.shape[-2]
        wide = self.strips.halo(x, reach)
        if isinstance(sigma, Tensor) and sigma.ndim >= 2 and sigma.shape[-2] > 1:
            sigma = self.strips.halo(sigma.expand(*sigma.shape[:-1], x.shape[-1]), reach)
        above = self.strips.above(reach)
        return self.prior(wide, sigma, reduce=self.strips.total, **kwargs)[..., above : above + h, :].contiguous()
