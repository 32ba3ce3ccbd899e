"""The networks that LoFi is compared with, by name, at the paper's sizes and at one for 2 cores."""

from typing import Any, Literal

import deepinv
import torch
from torch import Tensor, nn

Size = Literal["paper", "small"]
# facts: arXiv 2411.04995, its experiments; "small" has about 0.2 million parameters, as our LoFi of size S
SIZES: dict[str, dict[Size, dict[str, Any]]] = {
    "DnCNN": {"paper": {"depth": 15, "nf": 160}, "small": {"depth": 9, "nf": 56}},
    "IRCNN": {"paper": {"depth": 13, "nf": 256}, "small": {"depth": 7, "nf": 68}},
    "U-Net": {"paper": {"channels": [32, 64, 128, 256]}, "small": {"channels": [16, 32, 64]}},
    "DRU-Net": {"paper": {"nc": [19, 38, 76, 152]}, "small": {"nc": [8, 16, 24, 32]}},
    "Restormer": {
        "paper": {"dim": 16, "num_blocks": [4, 6, 6, 8], "heads": [1, 2, 4, 8]},
        "small": {"dim": 8, "num_blocks": [1, 2, 2, 2], "heads": [1, 2, 4, 8]},
    },
    "SwinIR": {
        "paper": {"embed_dim": 120, "depths": [6, 6, 6], "num_heads": [6, 6, 6]},
        "small": {"embed_dim": 48, "depths": [4, 4], "num_heads": [4, 4]},
    },
}


class Baseline(nn.Module):
    """A network of the literature, called as ``net(q)`` or ``net(q, sigma)``.

    DRU-Net gets the noise level as a channel (zero without), the others do not see it.

    :param str name: one of ``SIZES``; str size: "paper" or "small".
    :param int in_channels, out_channels: of q and of the answer.
    :raises ValueError: for another name or size.
    Source: DnCNN, DRU-Net, U-Net, Restormer and SwinIR are deepinv's; IRCNN is Zhang et al. 2017's, with more dilations
    where it has more layers.
    """

    def __init__(self, name: str, in_channels: int = 1, out_channels: int = 1, size: Size = "small") -> None:
        super().__init__()
        if name not in SIZES or size not in SIZES[name]:
            raise ValueError(f"baselines are {', '.join(SIZES)} in sizes paper and small, got {name!r}, {size!r}")
        self.config: dict[str, Any] = {
            "name": name, "in_channels": in_channels, "out_channels": out_channels, "size": size,
        }  # fmt: skip
        self.in_channels, self.out_channels, self.name = in_channels, out_channels, name
        options = dict(SIZES[name][size])
        adds = name in ("DnCNN", "Restormer", "SwinIR") and in_channels != out_channels  # q, in deepinv, to the answer
        ends = {"in_channels": in_channels, "out_channels": in_channels if adds else out_channels}
        if name == "DnCNN":
            self.net: nn.Module = deepinv.models.DnCNN(**ends, **options, pretrained=None)
        elif name == "IRCNN":
            self.net = IRCNN(**ends, **options)
        elif name == "U-Net":
            self.net = deepinv.models.UNet(
                **ends, residual=in_channels == out_channels, batch_norm=False, channels_per_scale=options["channels"]
            )
        elif name == "DRU-Net":
            self.net = deepinv.models.DRUNet(**ends, **options, pretrained=None)
        elif name == "Restormer":
            self.net = deepinv.models.Restormer(**ends, **options, num_refinement_blocks=2, pretrained=None)
        else:
            self.net = deepinv.models.SwinIR(
                in_chans=in_channels, img_size=64, window_size=8, mlp_ratio=2.0, upscale=1, upsampler="",
                resi_connection="1conv", pretrained=None, **options,
            )  # fmt: skip
        self.last = nn.Conv2d(in_channels, out_channels, 1) if adds else nn.Identity()

    def forward(self, q: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """:param torch.Tensor q: (B, C, H, W). :param sigma: a number or (B,). :returns: (B, C_out, H, W)."""
        if self.name == "DRU-Net":
            return self.net(q, torch.zeros(len(q), device=q.device) if sigma is None else sigma)
        return self.last(self.net(q))


class IRCNN(nn.Module):
    """Dilated convolutions 3 x 3 whose dilation rises to the middle and falls again; the answer is q minus its output.

    :param int depth: layers, odd; int nf: features.
    Source: Zhang et al. 2017, Figure 2 (7 layers, without its batch normalisation).
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int = 7, nf: int = 64) -> None:
        super().__init__()
        widths = [in_channels, *[nf] * (depth - 1), out_channels]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=d, dilation=d)
            for a, b, d in zip(widths[:-1], widths[1:], (min(k, depth - 1 - k) + 1 for k in range(depth)), strict=True)
        )
        self.residual = in_channels == out_channels

    def forward(self, q: Tensor) -> Tensor:
        x = q
        for k, layer in enumerate(self.layers):
            x = layer(x) if k == len(self.layers) - 1 else torch.relu(layer(x))
        return q - x if self.residual else x
