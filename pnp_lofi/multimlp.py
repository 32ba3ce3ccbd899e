"""MultiMLP: one small MLP per ray over its rings, and one MLP that mixes their features."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pnp_lofi.dense import Network, prepared, uniform
from pnp_lofi.kernels import multimlp


class MultiMLP(nn.Module):
    """ReLU MLPs in (pixels, features) layout.

    :param int rays: number of ray MLPs.
    :param int ray_inputs: numbers each of them reads.
    :param Sequence[int] hidden: widths of a ray's hidden layers.
    :param int features: outputs of a ray.
    :param Sequence[int] mixer: widths of the mixing MLP's hidden layers.
    :param int outputs: channels of the result.
    Source: arXiv 2411.04995, section III-B (there 9 rays, 3 hidden layers of 370, 100 features).
    """

    def __init__(
        self,
        rays: int,
        ray_inputs: int,
        hidden: Sequence[int],
        features: int,
        mixer: Sequence[int],
        outputs: int,
    ) -> None:
        super().__init__()
        widths = [ray_inputs, *hidden, features]
        self.ray_weights = nn.ParameterList(uniform((rays, i, o), i) for i, o in pairwise(widths))
        self.ray_biases = nn.ParameterList(uniform((rays, 1, o), i) for i, o in pairwise(widths))
        widths = [rays * features, *mixer, outputs]
        self.mixer_weights = nn.ParameterList(uniform((i, o), i) for i, o in pairwise(widths))
        self.mixer_biases = nn.ParameterList(uniform((o,), i) for i, o in pairwise(widths))

    def forward(self, patches: Tensor) -> Tensor:
        """:param torch.Tensor patches: (rays, P, ray_inputs), in the dtype to compute in.
        :returns: (P, outputs).
        """
        return multimlp(patches, *self._lists())

    def prepared(self, dtype: torch.dtype) -> Network:
        """``forward`` for many chunks of pixels without gradients.

        On a CPU ray after ray, so that the activations of one stay in the cache.
        """
        if self.ray_weights[0].device.type != "cpu":
            one, two, three, four = ([p.detach().to(dtype) for p in group] for group in self._lists())
            return lambda patches: multimlp(patches, one, two, three, four)
        count = len(self.ray_weights[0])
        rays = [
            prepared([(w[m], b[m, 0]) for w, b in zip(self.ray_weights, self.ray_biases, strict=True)], dtype)
            for m in range(count)
        ]
        mixer = prepared(list(zip(self.mixer_weights, self.mixer_biases, strict=True)), dtype)
        return lambda patches: mixer(torch.cat([ray(patch) for ray, patch in zip(rays, patches, strict=True)], 1))

    def widest(self) -> int:
        """Numbers a pixel needs for two neighbouring layers."""
        rays = len(self.ray_weights[0])
        each = [rays * (w.shape[1] + w.shape[2]) for w in self.ray_weights]
        return max(each + [w.shape[0] + w.shape[1] for w in self.mixer_weights])

    def _lists(self) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        groups = (self.ray_weights, self.ray_biases, self.mixer_weights, self.mixer_biases)
        return tuple(list(group) for group in groups)  # type: ignore[return-value]
