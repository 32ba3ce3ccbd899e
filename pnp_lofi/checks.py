"""Whether tensors are what an operator takes; each error says what was expected, what came, how to mend it."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from deepinv.optim import Prior
from deepinv.utils import TensorList
from torch import Tensor

from pnp_lofi.dense import finite

Shape = tuple[int, int]
REAL_TO_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def check_is_tensor(what: str, t: Any, name: str) -> None:
    """:raises TypeError: unless t is a tensor, or a list of them as stacked operators have."""
    if not isinstance(t, Tensor | TensorList):
        kind = type(t).__name__
        mend = f"torch.from_numpy({name})" if kind == "ndarray" else f"torch.as_tensor({name})"
        raise TypeError(f"{what} expects {name} as a torch tensor, got {kind}; use {mend}")


def check_tensor(
    what: str,
    t: Tensor,
    name: str,
    shape: tuple[int | str, ...],
    complex_valued: bool,
    device: torch.device,
    mend_nan: str,
) -> None:
    """Shape, precision, device and values.

    :param str what: who asks, and name: what t is called in its errors.
    :param tuple shape: numbers are required, names match any number but zero.
    :param str mend_nan: what to do about NaN and inf.
    :raises ValueError, TypeError: unless t is what was expected.
    """
    check_is_tensor(what, t, name)
    if t.ndim != len(shape) or any(isinstance(n, int) and n != m for n, m in zip(shape, t.shape, strict=True)):
        expected = ", ".join(str(n) for n in shape)
        mend = _mend(t, name, shape)
        raise ValueError(f"{what} expects {name} of shape ({expected}), got {tuple(t.shape)}; {mend}")
    if t.numel() == 0:
        raise ValueError(f"{what} expects at least one item, got {name} of shape {tuple(t.shape)}; skip the batch")
    allowed = tuple(REAL_TO_COMPLEX.values() if complex_valued else REAL_TO_COMPLEX)
    if t.dtype not in allowed:
        names = " or ".join(str(d).removeprefix("torch.") for d in allowed)
        mend = f"use {name}.to({str(allowed[0]).removeprefix('torch.')})" if complex_valued else f"use {name}.float()"
        mend = f"pass {name}.real" if t.is_complex() and not complex_valued else mend
        raise TypeError(f"{what} expects {name} of dtype {names}, got {t.dtype}; {mend}")
    if t.device != device:
        raise ValueError(f"{name} is on {t.device}, the operator on {device}; move one with .to()")
    if not finite(t.detach()):
        raise ValueError(f"{name} holds NaN or inf; {mend_nan}")


def _mend(t: Tensor, name: str, shape: tuple[int | str, ...]) -> str:
    missing = len(shape) - t.ndim
    if missing in (1, 2) and _fits(t.shape, shape[missing:]):
        return (
            f"add the leading axes with {name}[None, None]" if missing == 2 else f"add the batch axis with {name}[None]"
        )
    if t.ndim >= 2 and missing >= 0 and _fits((*t.shape[:-2], t.shape[-1], t.shape[-2]), shape[missing:]):
        return f"its last two axes look exchanged, try {name}.mT"
    return "build the operator for this size, or resample"


def _fits(sizes: Sequence[int], shape: Sequence[int | str]) -> bool:
    return all(isinstance(n, str) or n == m for n, m in zip(shape, sizes, strict=True))


def only(y: Tensor, kept: Tensor) -> Tensor:
    """y where a mask is True, zero elsewhere; y as it is where the two do not fit: the checks will say what is wrong.

    :param torch.Tensor kept: bool, broadcastable to y.
    """
    sizes = zip(reversed(y.shape), reversed(kept.shape), strict=False)
    fits = y.device == kept.device and y.ndim >= kept.ndim and all(m in (1, n) for n, m in sizes)
    return torch.where(kept, y, 0) if fits else y


def checked_shape(size: Sequence[int]) -> Shape:
    """:raises ValueError: unless size is (rows, columns), two positive integers."""
    if not isinstance(size, Sequence) or len(size) != 2 or any(int(n) != n or n < 1 for n in size):
        raise ValueError(f"the image size must be (rows, columns), two positive integers, got {size}")
    return int(size[0]), int(size[1])


def check_prior(prior: Any) -> None:
    """:raises TypeError: unless ``prior(x, sigma)`` is a call that can be."""
    if isinstance(prior, str):
        raise TypeError(f"prior must be a denoiser, got the name {prior!r}; use LoFiPrior({prior!r})")
    if isinstance(prior, Prior):
        raise TypeError(f"prior must be a denoiser, got deepinv's {type(prior).__name__}; pass the denoiser inside it")
    name = prior.__name__ if isinstance(prior, type) else type(prior).__name__
    if not callable(prior) or isinstance(prior, type):
        raise TypeError(f"prior must be a denoiser such as LoFiPrior('natural'), got {name}")
    try:
        signature = inspect.signature(prior.forward if isinstance(prior, torch.nn.Module) else prior)
    except (TypeError, ValueError):  # compiled: nothing is known of it
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise TypeError(
            f"prior must be a denoiser that is called as prior(x, sigma), {name} is called as {name}{signature}"
        ) from error
