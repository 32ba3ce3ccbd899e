"""CCPG, coordinate-conditioned patch geometry: a pixel's own patch decides where it looks next."""

import torch
from torch import Tensor, nn

from pnp_lofi.mlp import MLP


class CCPG(nn.Module):
    """T networks that turn a patch into the offsets of the next one: d^(t) = MLP_t(p^(t-1)).

    :param int inputs: numbers of a patch, channels x K.
    :param Tensor start: (K, 2) [pixel], near which the points of an untrained network lie.
    :param int iterations: T.
    :param int width: of the three hidden layers.
    :raises ValueError: if a size is not positive.
    Source: arXiv 2411.04995, section III-E (width 128). Differs: the last bias starts at ``start`` instead of
    near zero, so that training sets out from a patch of the asked reach.
    """

    def __init__(self, inputs: int, start: Tensor, iterations: int, width: int = 128) -> None:
        super().__init__()
        if iterations < 1 or width < 1:
            raise ValueError(f"CCPG expects at least one iteration and one hidden unit, got {iterations} and {width}")
        points = start.numel() // 2
        networks = [MLP([inputs, width, width, width, 2 * points]) for _ in range(iterations)]
        for network in networks:
            with torch.no_grad():
                network.weights[-1].mul_(0.1)
                network.biases[-1].copy_(start.detach().flatten())
        self.networks = nn.ModuleList(networks)

    def offsets(self, iteration: int, patch: Tensor) -> Tensor:
        """:param torch.Tensor patch: (P, C, K), channel first.
        :returns: (P, K, 2) [pixel].
        """
        return self.networks[iteration](patch.flatten(1)).reshape(len(patch), -1, 2)
