"""MLP: the plain ReLU network behind one patch, one coordinate or one set of offsets."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pnp_lofi.dense import Layers, Network, dense, prepared, uniform


class MLP(nn.Module):
    """Dense layers with ReLU between them, in (pixels, features) layout.

    :param Sequence[int] widths: inputs, hidden layers, outputs.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(uniform((i, o), i) for i, o in pairwise(widths))
        self.biases = nn.ParameterList(uniform((o,), i) for i, o in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """:param torch.Tensor x: (P, inputs), in the dtype to compute in.
        :returns: (P, outputs).
        """
        return dense(x, self._layers())

    def prepared(self, dtype: torch.dtype) -> Network:
        """``forward`` for many chunks of pixels without gradients."""
        return prepared(self._layers(), dtype)

    def widest(self) -> int:
        """Numbers a pixel needs for two neighbouring layers."""
        return max(w.shape[0] + w.shape[1] for w in self.weights)

    def _layers(self) -> Layers:
        return list(zip(self.weights, self.biases, strict=True))
