"""What the priors are trained on: procedural images, permissive photographs, a user's folder."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pnp_lofi.examples import Batch, Crops, Mixture, Noisy
from pnp_lofi.images import image_folder, permissive_photographs
from pnp_lofi.launch import working_device
from pnp_lofi.leaves import dead_leaves
from pnp_lofi.metrics import psnr
from pnp_lofi.shared import SharedLoFi
from pnp_lofi.skies import radio_sky
from pnp_lofi.supervised import answer
from pnp_lofi.train import TrainSettings, check_run, train

COUNT = 600  # procedural images of a set
SIDE = 256  # their side [pixel]
FIELD = 128  # side of a sky that is small as a whole [pixel]
SCALES = (1.0, 0.7, 0.5)  # photographs are also shown shrunk
OBJECTS = 32  # crops of a step
TILE = 16  # side of what is learned from a crop [pixel]
HELD_OUT = 10_000  # seed of the images that only measure

# Size S, made for 2 cores: 0.22 million multiply-adds a pixel, the best of what benchmarks/sharing.py tried up to 0.25.
ARCHITECTURE: dict[str, Any] = {
    "window": 9, "filters": 96, "features": 24, "points": 7, "spacing": 2, "raw": 11, "hidden": (144, 128),
}  # fmt: skip
LEVELS = {"natural": (2e-3, 0.25), "radio": (1e-4, 0.3)}  # noise levels, of range 1
PROBES = {"natural": (15 / 255, 25 / 255, 50 / 255), "radio": (1e-3, 3e-3, 1e-2)}
TRAINED_ON = {
    "natural": "procedural dead leaves; photographs of scikit-image (chelsea, rocket, moon, hubble_deep_field, "
    "retina, brick, grass, gravel, coins, ihc, motorcycle pair), scikit-learn (china, flower) and matplotlib "
    "(grace_hopper); their licences: pnp_lofi/weights/README.md",
    "radio": "procedural radio skies (galaxies, doubles, point sources, filaments, remnants, diffuse emission), with a "
    "quarter of the images of 'natural'",
}


def natural_batches(size: int, objects: int, seed: int) -> Batch:
    """Half dead leaves, half photographs at several scales."""
    photographs = [
        x if scale == 1 else interpolate(x[None], scale_factor=scale, mode="bicubic", antialias=True)[0].clamp(0, 1)
        for x in permissive_photographs()
        for scale in SCALES
    ]
    leaves = list(dead_leaves(COUNT, max(SIDE, size), seed=seed))
    return Mixture([Crops(leaves, size, objects), Crops(photographs, size, objects)], [0.5, 0.5])


def radio_batches(size: int, objects: int, seed: int) -> Batch:
    """Three quarters radio skies, of few and of many pixels, one quarter natural images."""
    whole = list(radio_sky(3 * COUNT, max(FIELD, size), seed=seed))
    parts = list(radio_sky(2 * COUNT, max(SIDE, size), seed=seed + 1))
    sources: list[Batch] = [
        Crops(whole, size, objects, tries=3),
        Crops(parts, size, objects, tries=3),
        natural_batches(size, objects, seed),
    ]
    return Mixture(sources, [0.35, 0.4, 0.25])


def folder_batches(folder: str | os.PathLike[str], size: int, objects: int) -> Batch:
    """Crops of the images of a user's folder, grey."""
    return Crops(image_folder(folder), size, objects)


def held_out_figures(kind: str, size: int = 256) -> Callable[[SharedLoFi], dict[str, float]]:
    """Measures a denoiser on procedural images that training never sees: PSNR [dB], range 1, mean over 8."""
    images = {"natural": dead_leaves, "radio": radio_sky}[kind](8, size, seed=HELD_OUT)

    def figures(model: SharedLoFi) -> dict[str, float]:
        found = {}
        for sigma in PROBES[kind]:
            noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(HELD_OUT))
            out: Tensor = answer(model, images + sigma * noise, sigma)
            each = [psnr(a, b, 1.0) for a, b in zip(out, images, strict=True)]
            found[f"held-out PSNR at sigma {sigma:.4f}"] = sum(each) / len(each)
        return found

    return figures


def train_prior(
    images: str,
    out: str | os.PathLike[str],
    *,
    size: int | None = None,
    device: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
    **settings: Any,
) -> dict[str, float]:
    """Train a denoiser of the shipped priors' architecture: what `pnp-lofi train` does.

    :param str images: "natural", "radio", or a folder of images.
    :param out: checkpoint to write; the state of a broken-off run is OUT.state.
    :param int size: side of the crops [pixel]; default: ``TILE`` and the network's reach on each side.
    :param str device: see :func:`~pnp_lofi.launch.working_device`.
    :param bool resume: go on from OUT.state.
    :param settings: fields of :class:`TrainSettings`; objects, the crops of a step; sigma_min and sigma_max, which
        default to those of the kind of images.
    :raises FileExistsError: if OUT or OUT.state exists and neither resume nor overwrite is asked for.
    """
    check_run(out, resume=resume, overwrite=overwrite)
    kind = images if images in LEVELS else "natural"
    low, high = LEVELS[kind]
    low, high = settings.pop("sigma_min", low), settings.pop("sigma_max", high)
    objects = settings.pop("objects", OBJECTS)
    chosen = TrainSettings(**settings)
    torch.manual_seed(chosen.seed)
    model = SharedLoFi(**ARCHITECTURE).to(working_device(device))
    size = TILE + 2 * model.reach if size is None else size
    if size <= 2 * model.reach:
        raise ValueError(
            f"the network reaches {model.reach} pixels: crops need more than {2 * model.reach}, got {size}"
        )
    if images in LEVELS:
        make = {"natural": natural_batches, "radio": radio_batches}[kind]
        batches, trained_on = make(size, objects, chosen.seed), TRAINED_ON[kind]
    else:
        batches, trained_on = folder_batches(images, size, objects), f"folder {Path(images).name}"
    about = {"trained_on": trained_on, "crop": size, "command": command, "objects": objects}
    about |= {"sigma_range": [low, high], "value_range": [0.0, 1.0], "recipe": "prior"}
    source = Noisy(batches, low, high)
    return train(model, source, chosen, out, about=about, validate=held_out_figures(kind), resume=resume)
