"""Sums over the processes of torch.distributed."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_processes(tensors: Sequence[Tensor], *, about: Any) -> None:
    """Replace tensors by their sums over all processes, in place.

    :param tensors: of the same shapes and dtypes everywhere.
    :param about: what must be equal in all processes, a picklable value; without it a difference would hang them.
    :raises RuntimeError: if torch.distributed was not initialised.
    :raises ValueError: if the processes differ in ``about``, in all of them.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            'there is no process group; call torch.distributed.init_process_group("gloo") and start the script with '
            "torchrun"
        )
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, about)
    if any(other != everywhere[0] for other in everywhere):
        raise ValueError(f"the processes hold parts of different kinds: {everywhere}")
    for tensor in tensors:
        dist.all_reduce(torch.view_as_real(tensor) if tensor.is_complex() else tensor)
