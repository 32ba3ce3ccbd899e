"""Checkpoints: safetensors with one JSON header. Never pickle."""

import json
import os
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pnp_lofi.baselines import Baseline
from pnp_lofi.files import written_whole
from pnp_lofi.funknn import FunkNN
from pnp_lofi.liif import LIIF
from pnp_lofi.lofi import LoFi
from pnp_lofi.matching import NonLocalLoFi
from pnp_lofi.shared import SharedLoFi

FORMAT = 1
KEY = "pnp_lofi"
ARCHITECTURES: dict[str, type[Any]] = {
    "Baseline": Baseline, "FunkNN": FunkNN, "LIIF": LIIF, "LoFi": LoFi, "NonLocalLoFi": NonLocalLoFi,
    "SharedLoFi": SharedLoFi,
}  # fmt: skip


def shipped() -> list[str]:
    """Names of the priors that come with the package."""
    folder = files("pnp_lofi") / "weights"
    return sorted(f.name.removesuffix(".safetensors") for f in folder.iterdir() if f.name.endswith(".safetensors"))


def find_checkpoint(name: str | os.PathLike[str]) -> Path:
    """The file behind a shipped name or a path.

    :raises FileNotFoundError: naming what is shipped.
    """
    if str(name) in shipped():
        with as_file(files("pnp_lofi") / "weights" / f"{name}.safetensors") as path:
            return path
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"no network named {str(name)!r} and no file of that path; shipped: {', '.join(shipped())}"
        )
    return path


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    """Write a safetensors file with a JSON header, whole or not at all; what was there is replaced.

    :raises OSError: if it cannot be written, when the disk is full for instance.
    """
    with written_whole(path, overwrite=True) as part:
        part.touch()
        mode = part.stat().st_mode  # save_file writes without a copy in memory, but for the owner alone
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part, {KEY: json.dumps(header)})
        except SafetensorError as error:
            raise OSError(f"{path} was not written: {error}") from error
        part.chmod(mode)


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what ``write_tensors`` wrote.

    :raises ValueError: if the file is truncated, a pickle, or not ours.
    """
    path = Path(path)
    with path.open("rb") as f:
        start = f.read(9)
    # safetensors begins with a length of 8 bytes, any of which may look like a pickle's, and the brace of its header
    if start[8:] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80"):
        raise ValueError(
            f"{path} is a pickle (torch.save), which can run code when it is read; pnp_lofi reads safetensors only"
        )
    try:
        with safe_open(path, framework="pt") as f:
            meta = f.metadata() or {}
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file (truncated?): {error}") from error
    if KEY not in meta:
        raise ValueError(f"{path} has no pnp_lofi header; it was not written by save_checkpoint")
    header = json.loads(meta[KEY])
    if not isinstance(header, dict):
        raise ValueError(f"{path}: the pnp_lofi header must be a JSON object, got {type(header).__name__}")
    return tensors, header


def save_checkpoint(
    path: str | os.PathLike[str], model: Any, *, dtype: torch.dtype | None = None, **about: Any
) -> None:
    """Write a network, of a kind that :func:`load_checkpoint` reads.

    :param torch.dtype dtype: real weights are stored so; default: as they are. ``torch.float16`` takes half the bytes
        of float32 and changes a shipped denoiser's answer by less than a fiftieth of sigma.
    :param about: what the header tells besides the architecture: ``sigma_range`` [units of value_range],
        ``value_range``, ``trained_on``, ``command``, ``metrics``. JSON values only.
    :raises ValueError: if a finite weight is too large for the dtype.
    """
    header = {"format": FORMAT, "architecture": type(model).__name__, "config": model.config} | about
    write_tensors(path, rounded(model.state_dict(), dtype), header)


def rounded(weights: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Weights in the precision of a checkpoint; integers, complex ones and ``None`` are left alone.

    :raises ValueError: if a finite weight is too large for the dtype.
    """
    if dtype is None:
        return dict(weights)
    found = {key: w.to(dtype) if w.is_floating_point() else w for key, w in weights.items()}
    large = [key for key, w in weights.items() if bool((torch.isfinite(w) & ~torch.isfinite(found[key])).any())]
    if large:
        raise ValueError(f"weights too large for {dtype} in {large}; store them as torch.float32 or torch.bfloat16")
    return found


def convert_checkpoint(name: str | os.PathLike[str], out: str | os.PathLike[str], dtype: torch.dtype) -> None:
    """Write a checkpoint anew with its weights in another precision.

    :param name: a shipped name or a path.
    :raises FileNotFoundError, ValueError: as :func:`load_checkpoint` and :func:`save_checkpoint`.
    """
    model, header = load_checkpoint(name)
    save_checkpoint(out, model, dtype=dtype, **header)


def load_checkpoint(name: str | os.PathLike[str]) -> tuple[Any, dict[str, Any]]:
    """Read a network by shipped name or path.

    :returns: the network in eval mode and in float32, however it is stored, and the header.
    :raises FileNotFoundError: if there is no such name or file (lists the shipped names).
    :raises ValueError: if the file is truncated, a pickle, of another format or another architecture.
    """
    path = find_checkpoint(name)
    tensors, header = read_tensors(path)
    if header.get("format") != FORMAT or header.get("architecture") not in ARCHITECTURES:
        raise ValueError(
            f"{path} holds architecture {header.get('architecture')!r}, format {header.get('format')!r}; "
            f"this version reads {', '.join(ARCHITECTURES)}, format {FORMAT}"
        )
    try:
        model = ARCHITECTURES[header["architecture"]](**header["config"])
        model.load_state_dict(tensors)
    except (TypeError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path}: the weights do not fit the architecture that its header names: {error}") from error
    broken = [k for k, v in tensors.items() if not bool(torch.isfinite(v).all())]
    if broken:
        raise ValueError(f"{path}: NaN or inf in the weights {broken}")
    return model.eval(), header
