"""MultiMLP: one small MLP per ray over its rings, and one MLP that mixes their features."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


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
        self.ray_weights = nn.ParameterList(_uniform((rays, i, o), i) for i, o in pairwise(widths))
        self.ray_biases = nn.ParameterList(_uniform((rays, 1, o), i) for i, o in pairwise(widths))
        widths = [rays * features, *mixer, outputs]
        self.mixer_weights = nn.ParameterList(_uniform((i, o), i) for i, o in pairwise(widths))
        self.mixer_biases = nn.ParameterList(_uniform((o,), i) for i, o in pairwise(widths))

    def forward(self, patches: Tensor) -> Tensor:
        """:param torch.Tensor patches: (rays, P, ray_inputs), in the dtype to compute in.
        :returns: (P, outputs).
        """
        h, dtype = patches, patches.dtype
        last = len(self.ray_weights) - 1
        for k, (weight, bias) in enumerate(zip(self.ray_weights, self.ray_biases, strict=True)):
            h = torch.baddbmm(bias.to(dtype), h, weight.to(dtype))
            h = h.relu_() if k < last else h
        h = h.transpose(0, 1).reshape(h.shape[1], -1)
        last = len(self.mixer_weights) - 1
        for k, (weight, bias) in enumerate(zip(self.mixer_weights, self.mixer_biases, strict=True)):
            h = torch.addmm(bias.to(dtype), h, weight.to(dtype))
            h = h.relu_() if k < last else h
        return h


def _uniform(shape: tuple[int, ...], fan_in: int) -> nn.Parameter:
    """He's uniform start for ReLU, the same for weights and biases."""
    bound = math.sqrt(3 / fan_in)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
