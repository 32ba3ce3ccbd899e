"""What the recipes share: a network by name, checkpoints of theirs, the answer of any network at any size."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pnp_lofi.baselines import Baseline
from pnp_lofi.checkpoint import load_checkpoint
from pnp_lofi.files import check_writable
from pnp_lofi.lofi import LoFi
from pnp_lofi.shared import SharedLoFi

STRIDE = 16  # networks of convolutions take images of multiples of it
T = TypeVar("T")


def given(value: T | None, default: T) -> T:
    """An option, zero included, or what is taken without it."""
    return default if value is None else value


def check_outputs(paths: Sequence[Path], ending: str, *, overwrite: bool) -> None:
    """Refuse, before any work is done, what cannot be written: OUT, and what is written beside it.

    :raises ValueError: if OUT, the first, has another ending; OSError: as :func:`~pnp_lofi.files.check_writable`.
    """
    for path in paths:
        check_writable(path, overwrite=overwrite)
    if paths[0].suffix.lower() != ending:
        raise ValueError(f"{paths[0]}: expected an ending of {ending}")


def build_network(name: str, size: str, lofi: dict[str, dict[str, Any]], channels: int, **options: Any) -> nn.Module:
    """A LoFi of a recipe's size, or a baseline, that answers with one channel, or as many as it sees.

    :param dict lofi: what LoFi takes, for each size; options: more of that.
    :raises ValueError: for a name or size that is not known.
    """
    out = options.pop("out_channels", channels)
    if name != "LoFi":
        return Baseline(name, channels, out, size)  # type: ignore[arg-type]
    if size not in lofi:
        raise ValueError(f'size is "small" or "paper", got {size!r}')
    return LoFi(channels, out, **lofi[size], **options)


def load_network(
    path: str | os.PathLike[str], recipe: str, device: torch.device | str = "cpu"
) -> tuple[Any, dict[str, Any]]:
    """A recipe's network and its header.

    :param path: of a checkpoint, or the name of a shipped one.
    :raises ValueError: for a checkpoint of another recipe.
    """
    model, header = load_checkpoint(path)
    if header.get("recipe") != recipe:
        raise ValueError(f"{path} was made by the recipe {header.get('recipe')!r}, this one reads {recipe!r}")
    return model.to(device), header


def load_networks(
    paths: Sequence[str | os.PathLike[str]],
    recipe: str,
    device: torch.device | str = "cpu",
    *,
    taken: Sequence[str] = (),
) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Networks and headers by the names of their files, which are those of the rows of a table.

    :param taken: names that other rows have.
    :raises ValueError: for two of one name, or as :func:`load_network`.
    """
    names = [Path(path).stem for path in paths]
    if len({*names, *taken}) < len(names) + len(taken):
        raise ValueError(f"each checkpoint is shown by its name, got {', '.join([*taken, *names])}; rename one")
    return {name: load_network(path, recipe, device) for name, path in zip(names, paths, strict=True)}


def command(recipe: str) -> str:
    """The command line that trains a recipe's network, however it was started."""
    words = sys.argv[sys.argv.index("train") + 1 :] if "train" in sys.argv else sys.argv[1:]
    return shlex.join(["pnp-lofi", "train", recipe, *words[words[:1] == [recipe] :]])


@torch.no_grad()
def answer(model: Any, q: Tensor, sigma: float | Tensor | None = None) -> Tensor:
    """(B, C, H, W) -> (B, C_out, H, W) on q's device; networks with strides get the image reflected to a multiple.

    :param sigma: number or (B,), for networks that are told the level of the noise.
    """
    device, (height, width) = next(model.parameters()).device, q.shape[-2:]
    stride = 1 if isinstance(model, LoFi | SharedLoFi) else STRIDE
    wide = nn.functional.pad(q, (0, -width % stride, 0, -height % stride), mode="reflect").to(device)
    if sigma is None:
        return model(wide)[..., :height, :width].to(q.device)
    return model(wide, torch.as_tensor(sigma, dtype=q.dtype, device=device).expand(len(q)))[..., :height, :width].to(q)
