"""How much memory a reconstruction works in, and what a budget leaves for its prior and its operator."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from deepinv.utils import TensorList
from torch import Tensor

MB = 2**20
FIXED = 64 * MB  # what libraries allocate once: packed weights, plans, compiled primitives
UNKNOWN = 8  # images that operators and priors of others are taken to need
LEAST = 8 * MB  # for the chunk of pixels or visibilities that is worked on
PART = 4  # of what is left, goes to a chunk of visibilities


@contextmanager
def within(op: Any, y: Tensor | TensorList, max_memory: float | None) -> Iterator[None]:
    """Inside, the operator, and all that it is made of, works in chunks that suit a budget.

    :param torch.Tensor y: the data of a batch.
    :param float max_memory: [MB]; None changes nothing.
    """
    with ExitStack() as stack:
        items = len(y[0]) if isinstance(y, TensorList) else len(y)
        for part in op.modules() if isinstance(op, torch.nn.Module) else [op]:
            chunked: Any = getattr(part, "chunked", None)
            if chunked is not None and max_memory is not None:
                stack.enter_context(chunked(max(LEAST, max_memory * MB / PART), items))
        yield


def prior_memory(
    op: Any, prior: Any, like: Tensor, max_memory: float | None, *, held: int, working: int
) -> float | None:
    """What is left for the prior's chunk of pixels [MB]; None without a budget.

    :param torch.Tensor like: the batch of images, whose values are not looked at.
    :param int held: images that are kept while the operator is at work; int working: while the prior is.
    :raises ValueError: if the whole does not fit the budget; it says what would.
    """
    if max_memory is None:
        return None
    size = _bytes(like)
    step = held * size + _need(op, like)
    denoising = working * size + _need(prior, like)
    need = FIXED + LEAST + max(step, denoising)
    if need > max_memory * MB:
        shape = " x ".join(map(str, like.shape))
        raise ValueError(
            f"max_memory = {max_memory:g} MB is too little: this reconstruction of {shape} pixels works in "
            f"{need / MB:.0f} MB beyond what the process holds. {_advice(op, like)}; see docs/scaling.md"
        )
    return max_memory - (FIXED + denoising) / MB


def _need(part: Any, like: Tensor) -> int:
    """Bytes beyond the images it is given: what an operator or a prior says itself, else a guess."""
    known = getattr(part, "working_memory", None)
    return int(known(like)) if callable(known) else UNKNOWN * _bytes(like)


def _bytes(x: Tensor | TensorList) -> int:
    return sum(map(_bytes, x)) if isinstance(x, TensorList) else x.numel() * x.element_size()


def _advice(op: Any, like: Tensor) -> str:
    ways = ["Give it fewer items at a time"] if len(like) > 1 else []
    if hasattr(op, "chunked"):
        ways.append("Build a StreamedNUFFT by NormalEquations")
    ways.append("Let several processes share the image (Strips)")
    return ", or ".join([ways[0]] + [way[0].lower() + way[1:] for way in ways[1:]])
