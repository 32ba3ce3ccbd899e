"""Training the denoisers that are shipped as priors, in the sizes that there are."""

import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pnp_lofi.baselines import Baseline
from pnp_lofi.checkpoint import find_checkpoint, load_checkpoint
from pnp_lofi.examples import Crops, Noisy, Source
from pnp_lofi.images import image_folder
from pnp_lofi.launch import working_device
from pnp_lofi.matching import NonLocalLoFi
from pnp_lofi.matching_training import Evidence, Mixing
from pnp_lofi.metrics import psnr
from pnp_lofi.shared import SharedLoFi
from pnp_lofi.sources import FOLDER_LEVELS, KINDS, LEVELS, SIDE
from pnp_lofi.supervised import answer
from pnp_lofi.train import TrainSettings, check_run, train

OBJECTS = 4  # crops of a step
TILE = 56  # side of what is learned from a crop [pixel]
LOSS, WEIGHT = "l2", 1.4  # of a LoFi, see TrainSettings; squares over so many levels spoil what has no unit of noise
CROP = 64  # of a network that is no local field [pixel]
SEEN, GATHERED, MIXED = 128, 120, 8192  # of an L: side of a crop [pixel], batches of crops, pixels of a step
KNEE, BELOW = 2e-3, 0.125  # noise level under which only this part of the crops is: there is little left to learn
HELD_OUT = 10_000  # seed of the images that only measure
# S is made for 2 cores: 0.25 million multiply-adds a pixel. In colour there are three times as many cosines of three
# times as many values in a patch, so patches are smaller. L is a trained S, which stays as it is, and matches.
SMALL: dict[str, Any] = {
    "window": 7, "filters": 48, "features": 32, "stages": ((5, 1, 64), (5, 2, 64), (5, 2, 64)), "points": 3,
    "spacing": 1, "raw": 0, "hidden": (64,), "patch": 13,
}  # fmt: skip
COLOUR: dict[str, Any] = {"patch": 9}


def held_out_figures(kind: str, size: int = 256) -> Callable[[nn.Module], dict[str, float]]:
    """Measures a denoiser on procedural images that training never sees: PSNR [dB], range 1, mean over 8."""
    images = KINDS[kind].images(8, size, HELD_OUT)

    def figures(model: nn.Module) -> dict[str, float]:
        found = {}
        for sigma in KINDS[kind].probes:
            noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(HELD_OUT))
            out: Tensor = answer(model, images + sigma * noise, sigma)
            each = [psnr(a, b, 1.0) for a, b in zip(out, images, strict=True)]
            found[f"held-out PSNR at sigma {sigma:.4f}"] = sum(each) / len(each)
        return found

    return figures


def build(network: str, channels: int, start: str | os.PathLike[str] | None = None) -> nn.Module:
    """A network of a size, or of the literature, with the weights of a checkpoint.

    :raises ValueError: for another name, an L without a checkpoint, or as :func:`start_from`.
    """
    model: nn.Module
    if network == "S":
        model = SharedLoFi(channels, **SMALL | (COLOUR if channels > 1 else {}))
    elif network == "L":
        if start is None:
            raise ValueError("an L is a trained S and what is learned beside it: pass its checkpoint as start")
        other, _ = load_checkpoint(start)
        if not isinstance(other, SharedLoFi):
            raise ValueError(f"an L begins with a trained S, {start} is a {type(other).__name__}")
        model = NonLocalLoFi(**other.config | {"in_channels": channels})
    elif network == "DRU-Net":
        model = Baseline("DRU-Net", channels, channels)
    else:
        raise ValueError(f"networks are S, L and, to compare with, DRU-Net; got {network!r}")
    if start is not None:
        start_from(model, start)
    return model


def start_from(model: nn.Module, start: str | os.PathLike[str]) -> None:
    """Give a network the weights of a checkpoint of the same shape; a SharedLoFi may have more: stages, larger patches,
    matching, which change nothing at first.

    :raises ValueError: if the network of the checkpoint has another shape in anything else, or is no denoiser.
    """
    other, header = load_checkpoint(start)
    if header.get("recipe", "prior") not in ("prior", "denoise"):
        raise ValueError(f"{start} is of the recipe {header['recipe']!r}: begin with a prior")
    if isinstance(model, Baseline) and isinstance(other, Baseline) and model.config == other.config:
        model.load_state_dict(other.state_dict())
        return
    mine, given = model.state_dict(), other.state_dict()
    ours, theirs = (getattr(each, "shrinkage", None) for each in (model, other))
    if ours is not None and theirs is not None and ours.side > theirs.side:
        given |= {f"shrinkage.{key}": w for key, w in ours.enlarged(theirs).items()}
    strange = [key for key, w in given.items() if key not in mine or mine[key].shape != w.shape]
    strange += [key for key in mine if key not in given and not key.startswith(("stages.", "matching."))]
    if not (isinstance(model, SharedLoFi) and isinstance(other, SharedLoFi)) or strange:
        expected = getattr(model, "config", type(model).__name__)
        raise ValueError(
            f"{start} is a {type(other).__name__} of another shape, {other.config}; expected {expected}, or "
            "fewer stages or smaller patches: pass a checkpoint of the same --network"
        )
    model.load_state_dict(given, strict=False)
    for stage in model.stages[len(other.stages) :]:
        nn.init.zeros_(stage.mix)
        nn.init.zeros_(stage.mix_bias)


def train_prior(
    images: str,
    out: str | os.PathLike[str],
    *,
    network: str = "S",
    start: str | os.PathLike[str] | None = None,
    size: int | None = None,
    device: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
    **settings: Any,
) -> dict[str, float]:
    """Train a denoiser of the shipped priors' architecture: what `pnp-lofi train` does. Weights are stored as float16.

    :param str images: "natural", "natural-rgb", "radio", "ct", "kappa", or a folder of images, which are made grey.
    :param out: checkpoint to write; the state of a broken-off run is OUT.state.
    :param str network: "S" or "L"; "DRU-Net" is there to compare with and no prior.
    :param start: checkpoint whose weights to begin with: of the same network, of one with fewer stages or smaller
        patches, or, for an L, which needs one, of an S.
    :param int size: side of the crops [pixel]; default: ``TILE`` and the network's reach on each side, ``SEEN`` for an
        L, or less for a folder with smaller images.
    :param str device: see :func:`~pnp_lofi.launch.working_device`.
    :param bool resume: go on from OUT.state.
    :param settings: fields of :class:`TrainSettings`; of an L steps are made on ``MIXED`` pixels of ``GATHERED``
        batches, and the loss, of squares by default, is of errors in units of the noise. Also objects, the crops of a
        batch; sigma_min and sigma_max, which default to those of the kind of images.
    :raises FileExistsError: if OUT or OUT.state exists and neither resume nor overwrite is asked for.
    """
    check_run(out, resume=resume, overwrite=overwrite)
    known = images in KINDS
    kind = KINDS[images if known else "natural"]
    low, high = LEVELS if known else FOLDER_LEVELS
    low, high = settings.pop("sigma_min", low), settings.pop("sigma_max", high)
    objects = settings.pop("objects", OBJECTS)
    weight = 0.0 if network == "L" else WEIGHT  # it is in units of the noise as it is
    asked: dict[str, Any] = {} if network == "DRU-Net" else {"loss": LOSS, "weight": weight}
    chosen = TrainSettings(**(asked | settings))
    torch.manual_seed(chosen.seed)
    model = build(network, kind.channels, start).to(working_device(device))
    beside = isinstance(model, NonLocalLoFi)
    reach = model.reach if isinstance(model, SharedLoFi) and not beside else 0
    pictures = [] if known else image_folder(images)
    if size is None:
        smallest = min((min(x.shape[-2:]) for x in pictures), default=SIDE)
        side = TILE + 2 * reach if reach else SEEN if beside else CROP
        size = min(side, max(smallest, 2 * reach + 1))
    if size <= 2 * reach:
        raise ValueError(f"the network reaches {reach} pixels: crops need more than {2 * reach}, got {size}")
    batches = kind.batches(size, objects, chosen.seed) if known else Crops(pictures, size, objects)
    trained_on = kind.trained_on if known else f"folder {Path(images).name}"
    about = {"trained_on": trained_on, "crop": size, "command": command, "objects": objects}
    if start is not None:
        about["start"] = f"{start}, sha256 {sha256(find_checkpoint(start).read_bytes()).hexdigest()[:16]}"
    about |= {"sigma_range": [low, high], "value_range": [0.0, 1.0], "recipe": "prior"}
    source: Source = Noisy(batches, low, high, knee=KNEE if low < KNEE < high else None, below=BELOW)
    validate = held_out_figures(images if known else "natural")
    part = model
    if isinstance(model, NonLocalLoFi):
        part = Mixing(model.matching, kind.channels)
        source = Evidence(model, source, GATHERED, MIXED, seed=chosen.seed)
    return train(
        part, source, chosen, out, about=about, validate=validate, resume=resume, dtype=torch.float16, whole=model
    )
