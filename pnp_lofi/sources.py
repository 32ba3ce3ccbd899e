"""What the priors are trained on: procedural images and permissive photographs."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pnp_lofi.convergence import convergence
from pnp_lofi.examples import Batch, Crops, Mixture
from pnp_lofi.fabrics import fabrics
from pnp_lofi.hounsfield import RANGE, window
from pnp_lofi.images import permissive_photographs
from pnp_lofi.leaves import colour_leaves, dead_leaves
from pnp_lofi.organs import chest, head
from pnp_lofi.skies import radio_sky

COUNT = 600  # procedural images of a set
CLOTHS = 400  # fabrics
MIX = (0.4, 0.4, 0.2)  # of natural images: dead leaves, photographs, fabrics
QUARTER = 200  # where natural images are a quarter only
SIDE = 256  # their side [pixel]
FIELD = 128  # side of a sky that is small as a whole [pixel]
SCALES = (1.0, 0.7, 0.5)  # photographs are also shown shrunk
SLICES = {128: 300, 256: 200, 512: 60}  # of chests and of heads, of a side [pixel]: pixels of 0.5 to 3 mm
CELLS = (0.3, 0.6, 1.2)  # pixels of convergence maps [arcmin]
LEVELS = (1e-4, 0.5)  # noise levels, of range 1
FOLDER_LEVELS = (2e-3, 0.25)  # of a user's images, which often have 8 bits

PHOTOGRAPHS = (
    "photographs of scikit-image (chelsea, rocket, moon, hubble_deep_field, retina, brick, grass, gravel, coins, ihc, "
    "motorcycle pair), scikit-learn (china, flower) and matplotlib (grace_hopper); their licences: "
    "pnp_lofi/weights/README.md"
)


class Kind(NamedTuple):
    """What a kind of prior is trained and measured on.

    :param Callable batches: (size of a crop, crops, seed) -> what draws batches.
    :param Callable images: (count, size, seed) -> procedural images (count, C, size, size) of range 1.
    :param tuple probes: noise levels of the held-out figures; the first decides.
    """

    batches: Callable[[int, int, int], Batch]
    images: Callable[[int, int, int], Tensor]
    probes: tuple[float, ...]
    trained_on: str
    channels: int = 1


def natural_batches(
    size: int, objects: int, seed: int, count: int | None = None, *, parts: Sequence[float] = MIX
) -> Batch:
    """Dead leaves, photographs at several scales, and fabrics, in these parts."""
    leaves = dead_leaves(count or COUNT, max(SIDE, size), seed=seed)
    cloth = fabrics(count or CLOTHS, max(SIDE, size), seed=seed)
    return _mixed(size, objects, [leaves, photographs(), cloth], parts)


def colour_batches(size: int, objects: int, seed: int) -> Batch:
    """Dead leaves and fabrics in colour, and the photographs that have it."""
    leaves = colour_leaves(COUNT, max(SIDE, size), seed=seed)
    cloth = fabrics(CLOTHS, max(SIDE, size), seed=seed, coloured=True)
    return _mixed(size, objects, [leaves, photographs(grey=False), cloth], MIX)


def radio_batches(size: int, objects: int, seed: int) -> Batch:
    """Three quarters radio skies, of few and of many pixels, one quarter natural images."""
    whole = list(radio_sky(3 * COUNT, max(FIELD, size), seed=seed))
    parts = list(radio_sky(2 * COUNT, max(SIDE, size), seed=seed + 1))
    sources: list[Batch] = [
        Crops(whole, size, objects, tries=3),
        Crops(parts, size, objects, tries=3),
        natural_batches(size, objects, seed, QUARTER),
    ]
    return Mixture(sources, [0.35, 0.4, 0.25])


def ct_batches(size: int, objects: int, seed: int) -> Batch:
    """Three quarters slices of chests and heads at several scales, one quarter natural images."""
    sources: list[Batch] = [
        Crops(list(window(draw(count, max(side, size), seed=seed), RANGE)), size, objects, tries=2)
        for draw in (chest, head)
        for side, count in SLICES.items()
    ]
    natural = natural_batches(size, objects, seed, QUARTER)
    return Mixture([*sources, natural], [*[0.75 / len(sources)] * len(sources), 0.25])


def kappa_batches(size: int, objects: int, seed: int) -> Batch:
    """Three quarters convergence maps of several pixel sizes, one quarter natural images."""
    sources: list[Batch] = [
        Crops(list(_maps(COUNT // len(CELLS), max(SIDE, size), cell, seed + k)), size, objects)
        for k, cell in enumerate(CELLS)
    ]
    natural = natural_batches(size, objects, seed, QUARTER)
    return Mixture([*sources, natural], [*[0.75 / len(sources)] * len(sources), 0.25])


def photographs(scales: Sequence[float] = SCALES, *, grey: bool = True) -> list[Tensor]:
    """Those of :func:`~pnp_lofi.images.permissive_photographs`, (C, H, W), each also shrunk by every scale below 1."""
    return [
        x if scale == 1 else interpolate(x[None], scale_factor=scale, mode="bicubic", antialias=True)[0].clamp(0, 1)
        for x in permissive_photographs(grey=grey)
        for scale in scales
    ]


def _mixed(size: int, objects: int, images: Sequence[Iterable[Tensor]], parts: Sequence[float]) -> Batch:
    return Mixture([Crops(list(each), size, objects) for each in images], parts)


def _bodies(count: int, size: int, seed: int) -> Tensor:
    """Chests, and as many heads or one less."""
    parts = [chest(count - count // 2, size, seed=seed)] + ([head(count // 2, size, seed=seed)] if count > 1 else [])
    return window(torch.cat(parts), RANGE)


def _maps(count: int, size: int, cell: float, seed: int) -> Tensor:
    """Convergence maps from 0 to 1 each: the network sees neither offset nor scale."""
    kappa = convergence(count, size, cell, seed=seed)
    low, high = kappa.amin((1, 2, 3), keepdim=True), kappa.amax((1, 2, 3), keepdim=True)
    return (kappa - low) / (high - low)


PHOTOGRAPH_LEVELS = (15 / 255, 25 / 255, 50 / 255, 1e-4)
KINDS = {
    "natural": Kind(
        natural_batches,
        lambda count, size, seed: dead_leaves(count, size, seed=seed),
        PHOTOGRAPH_LEVELS,
        f"procedural dead leaves and fabrics; {PHOTOGRAPHS}",
    ),
    "natural-rgb": Kind(
        colour_batches,
        lambda count, size, seed: colour_leaves(count, size, seed=seed),
        PHOTOGRAPH_LEVELS,
        f"procedural dead leaves and fabrics in colour; those that have colour of the {PHOTOGRAPHS}",
        channels=3,
    ),
    "radio": Kind(
        radio_batches,
        lambda count, size, seed: radio_sky(count, size, seed=seed),
        (1e-3, 3e-3, 1e-2, 1e-4),
        "procedural radio skies (galaxies, doubles, point sources, filaments, remnants, diffuse emission), with a "
        "quarter of the images of 'natural'",
    ),
    "ct": Kind(
        ct_batches,
        _bodies,
        (5e-3, 2e-2, 1e-1, 1e-4),
        "procedural slices of chests and heads, (HU + 1000) / 2000 clipped to [0, 1], with a quarter of the images of "
        "'natural'",
    ),
    "kappa": Kind(
        kappa_batches,
        lambda count, size, seed: _maps(count, size, CELLS[0], seed),
        (2e-2, 1e-1, 3e-1, 1e-4),
        "procedural convergence maps of weak lensing, each scaled to [0, 1], with a quarter of the images of 'natural'",
    ),
}
