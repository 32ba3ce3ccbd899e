"""Low-dose CT as a supervised problem: images are scanned, noise is added, filtered backprojection is what is seen.

Everything is in units of water's attenuation: air is 0, water 1, x = 1 + HU/1000.
"""

import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pnp_lofi.datasets import Cached, FileSet, Subset
from pnp_lofi.dicom import dicom_series, read_slice
from pnp_lofi.examples import Example
from pnp_lofi.hounsfield import WATER
from pnp_lofi.lodopab import MU_MAX, LoDoPaB, lodopab_operator
from pnp_lofi.noise import estimate_image_noise
from pnp_lofi.operators.low_dose import LowDose
from pnp_lofi.operators.radon import Radon
from pnp_lofi.organs import CHEST_FIELD, HEAD_FIELD, chest, head
from pnp_lofi.pairs_file import HDF5, Pairs, authors_pairs

PHANTOMS = {"phantoms": (chest, CHEST_FIELD), "chest": (chest, CHEST_FIELD), "head": (head, HEAD_FIELD)}
SEEDS = {"train": 0, "validation": 10_000, "test": 20_000}  # of phantoms: sets that share no image
SIDE = 128  # of images that are scanned here, unless told otherwise [pixel]
LODOPAB_WATER = 20 / MU_MAX  # water in LoDoPaB's units
LEAST = 1e-5  # noise level that is taken where none is found, of the image's range
FLAT = 0.02  # part of the pixels that differ from a neighbour below which an image is taken for free of noise
MEMORY = 2000.0  # for decoded images and sinograms [MB]


def from_hu(hu: Tensor) -> Tensor:
    """Attenuation in units of that of water, not below zero."""
    return (1 + hu / 1000).clamp(min=0)


def to_hu(x: Tensor) -> Tensor:
    """Hounsfield units of an image in units of water's attenuation."""
    return 1000 * (x - 1)


def noise_levels(q: Tensor) -> Tensor:
    """(B,) the level of each image's noise, estimated from its finest differences in quiet places.

    Noise of filtered backprojection is no white noise: the number says how strong it is, up to a factor that depends
    on the filter. It is measured alike in training and in use, so that no network needs to be told the dose.
    """
    found = torch.tensor([_level(image[None]) for image in q.detach().cpu()]).to(q)
    return torch.maximum(found, LEAST * (q.amax((1, 2, 3)) - q.amin((1, 2, 3)))).clamp(min=torch.finfo(q.dtype).tiny)


def _level(image: Tensor) -> float:
    """Without padding, where every pixel is as its neighbours."""
    measured = (image != image.roll(1, -1)) | (image != image.roll(1, -2))
    return estimate_image_noise(image, measured) if float(measured.float().mean()) > FLAT else 0.0


@dataclass(frozen=True)
class Scan:
    """A parallel-beam scan, its noise, and filtered backprojection.

    :param int views: over half a turn.
    :param float snr: of Gaussian noise in the sinogram, 20 log10(|y|/|n|) [dB]; float spread: snr is drawn from
        [snr - spread, snr + spread] for each image.
    :param float photons: instead: counts that leave the source for each detector; low-dose noise of LoDoPaB's kind.
    :param str filter, float cutoff: see :meth:`~pnp_lofi.operators.Radon.fbp`.
    :raises ValueError: for numbers that cannot be.
    Defaults are those of arXiv 2411.04995, section IV-B.
    """

    views: int = 180
    snr: float = 30.0
    spread: float = 0.0
    photons: float | None = None
    filter: str = "ramp"
    cutoff: float = 1.0

    def __post_init__(self) -> None:
        if self.views < 1 or not math.isfinite(self.snr) or not 0 <= self.spread < math.inf:
            raise ValueError(f"expected views >= 1, a finite snr and spread >= 0, got {self}")
        if self.photons is not None and not 0 < self.photons < math.inf:
            raise ValueError(f"photons must be > 0, got {self.photons}")

    def with_noise(self, snr: float | None, photons: float | None) -> "Scan":
        """With other noise, of one level, if that is asked for."""
        scan = replace(self, spread=0.0)
        scan = scan if snr is None else replace(scan, snr=snr, photons=None)
        return scan if photons is None else replace(scan, photons=photons)

    def operator(self, side: int, device: torch.device | str = "cpu") -> Radon:
        """Lengths in pixels: sinograms are in pixels of water."""
        return _radon(side, self.views, str(device))

    def noisy(self, y: Tensor, generator: torch.Generator | None, pixels: Sequence[float]) -> Tensor:
        """Sinograms with noise.

        :param torch.Tensor y: (B, 1, A, D) [pixel of water]. Sequence pixels: their sides [mm], for photons.
        """
        if self.photons is not None:
            counted = [LowDose(self.photons, mu=WATER * p, rng=generator)(part[None].cpu()) for p, part in
                       zip(pixels, y, strict=True)]  # fmt: skip
            return torch.cat(counted).to(y)
        snr = self.snr + self.spread * (2 * torch.rand(len(y), 1, 1, 1, generator=generator) - 1)
        sigma = 10 ** (-snr / 20).to(y) * y.square().mean((1, 2, 3), keepdim=True).sqrt()
        return y + sigma * torch.randn(y.shape, generator=generator).to(y)

    def seen(self, y: Tensor, side: int) -> Tensor:
        """Filtered backprojection, (B, 1, side, side)."""
        return self.operator(side, y.device).fbp(y, filter=self.filter, cutoff=self.cutoff)


@functools.lru_cache(maxsize=4)
def _radon(side: int, views: int, device: str) -> Radon:
    return Radon((side, side), views).to(device)  # once: moving it throws its matrices away


class Data(Protocol):
    """Pairs of what is seen and the truth, (C, H, W) each."""

    def __len__(self) -> int: ...

    def draw(self, index: Sequence[int], generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
        """q and x of some items, with fresh noise where noise is made here."""


class Scanned:
    """Images that are scanned here, with fresh noise each time; their sinograms are computed once.

    :param Sequence images: (1, N, N) each [water], all of one size. Sequence pixels: their sides [mm].
    """

    def __init__(self, images: Sequence[Tensor], pixels: Sequence[float], scan: Scan, *, device: Any = "cpu") -> None:
        shapes = {tuple(x.shape) for x in images}
        if len(shapes) != 1 or images[0].shape[-1] != images[0].shape[-2]:
            raise ValueError(f"expected square images of one size and one channel, got {sorted(shapes)}; pass --side")
        self.images, self.pixels, self.scan = images, list(pixels), scan
        self.side, self.device = images[0].shape[-1], device
        size = self.scan.operator(self.side).data_shape
        fits = 4e-6 * len(images) * int(size[-1]) * int(size[-2]) < MEMORY
        self._clean = self._project(range(len(images))) if fits else None

    def __len__(self) -> int:
        return len(self.images)

    @torch.no_grad()
    def draw(self, index: Sequence[int], generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
        clean = self._project(index) if self._clean is None else self._clean[torch.as_tensor(index)]
        y = self.scan.noisy(clean, generator, [self.pixels[k] for k in index])
        return list(self.scan.seen(y, self.side)), [self.images[k].to(self.device) for k in index]

    @torch.no_grad()
    def _project(self, index: Sequence[int]) -> Tensor:
        op = self.scan.operator(self.side, self.device)
        parts = [torch.stack([self.images[k] for k in index[at : at + 32]]) for at in range(0, len(index), 32)]
        return torch.cat([op.A(part.to(self.device)) for part in parts])


class Measured:
    """Pairs whose noise is given.

    :param items: map-style set of (q, x), (1, H, W) each.
    """

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def draw(self, index: Sequence[int], generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
        pairs = [self.items[k] for k in index]
        return [q for q, _ in pairs], [x for _, x in pairs]


class Draws:
    """Random items, turned and flipped, whole or cropped: a :data:`~pnp_lofi.examples.Source`.

    :param int objects: of a batch. int crop: side of random crops [pixel]; None: whole images.
    """

    def __init__(self, data: Data, objects: int, crop: int | None = None) -> None:
        if objects < 1 or (crop is not None and crop < 8):
            raise ValueError(f"expected objects >= 1 and crops of 8 pixels or more, got {objects} and {crop}")
        self.data, self.objects, self.crop = data, objects, crop

    def __call__(self, generator: torch.Generator) -> Example:
        index = torch.randint(len(self.data), (self.objects,), generator=generator).tolist()
        turns = torch.randint(8, (self.objects,), generator=generator).tolist()
        at = torch.rand(self.objects, 2, generator=generator).tolist()
        seen, truth = self.data.draw(index, generator)
        sigma = torch.stack([noise_levels(q[None])[0] for q in seen])
        pairs = [
            self._cut(torch.cat(pair), *place) for pair, place in zip(zip(seen, truth, strict=True), at, strict=True)
        ]
        if len({pair.shape for pair in pairs}) > 1:
            raise ValueError(f"images of several sizes, such as {sorted({tuple(p.shape) for p in pairs})}: pass --crop")
        both = torch.stack([_turned(pair, t) for pair, t in zip(pairs, turns, strict=True)])
        return Example(both[:, :1].contiguous(), both[:, 1:].contiguous(), sigma)

    def _cut(self, pair: Tensor, row: float, column: float) -> Tensor:
        if self.crop is None:
            return pair
        if min(pair.shape[-2:]) < self.crop:
            raise ValueError(
                f"crops of {self.crop} pixels do not fit an image of {tuple(pair.shape[-2:])}; pass --crop"
            )
        r, c = (int(a * (n - self.crop + 1)) for a, n in zip((row, column), pair.shape[-2:], strict=True))
        return pair[:, r : r + self.crop, c : c + self.crop]


def _turned(x: Tensor, t: int) -> Tensor:
    return x.rot90(t % 4, (-2, -1)).flip(-1) if t >= 4 else x.rot90(t % 4, (-2, -1))


def resized(x: Tensor, side: int | None) -> Tensor:
    """(C, N, N) to (C, side, side), bilinear and antialiased as in the paper.

    :raises ValueError: for an image that is not square.
    """
    if side is None or tuple(x.shape[-2:]) == (side, side):
        return x
    if x.shape[-1] != x.shape[-2]:
        raise ValueError(f"expected a square image to make {side} x {side} of, got {tuple(x.shape[-2:])}")
    return interpolate(x[None], (side, side), mode="bilinear", antialias=True)[0]


def load_scans(
    data: str | os.PathLike[str],
    scan: Scan,
    *,
    part: str = "train",
    side: int | None = None,
    count: int | None = None,
    seed: int = 0,
    spacing: float | None = None,
    device: Any = "cpu",
) -> Data:
    """What a recipe is given as ``--data``.

    :param data: "phantoms" or "chest", "head"; or a folder of LoDoPaB-CT, of DICOM slices, of the LoFi authors' .npz;
        or a file of pairs, .npz or .h5.
    :param str part: "train", "validation" or "test": other phantoms, another part of LoDoPaB. Other folders are whole.
    :param int side: images are resized to; default 128 for what is scanned here, else as in the files.
    :param int count: phantoms (1000, for other parts 100), or the most that is taken of a folder.
    :param float spacing: of DICOM slices that do not say [mm].
    :raises FileNotFoundError, ValueError: if there is no such folder, or nothing in it that can be read.
    """
    if (side is not None and side < 16) or (count is not None and count < 1):
        raise ValueError(f"expected a side of 16 pixels or more and at least one image, got {side} and {count}")
    if part not in SEEDS:
        raise ValueError(f"expected a part of {', '.join(SEEDS)}, got {part!r}")
    if str(data) in PHANTOMS:
        draw, field = PHANTOMS[str(data)]
        side, number = side or SIDE, count or (1000 if part == "train" else 100)
        images = from_hu(draw(number, side, seed=seed + SEEDS[part]))
        return Scanned(list(images), [field / side] * number, scan, device=device)
    path = Path(data)
    if path.suffix in (".npz", *HDF5) and path.is_file():
        return _pairs(_alike(Pairs(path), path, side), side, count)
    if not path.is_dir():
        raise FileNotFoundError(
            f"no folder {str(data)!r}; data are a folder, a file of pairs, or {', '.join(PHANTOMS)}"
        )
    if any(path.glob("observation_*")):
        return _pairs(_lodopab(LoDoPaB(path, part), side, scan), None, count)
    if any(path.glob("*.npz")):
        return _pairs(authors_pairs(path, megabytes=MEMORY), side, count)
    return _slices(path, scan, side or SIDE, count, spacing, device)


def _slices(path: Path, scan: Scan, side: int, count: int | None, spacing: float | None, device: Any) -> Scanned:
    """DICOM slices that are scanned here; those that cannot be read are named and skipped."""
    files = [file for series in dicom_series(path).values() for file in series][:count]
    pixels: dict[Path, float] = {}

    def read(file: Path) -> Tensor:
        hu, pixel = read_slice(file, spacing=None if spacing is None else (spacing, spacing), resample=True)
        pixels[file] = pixel * hu.shape[-1] / side
        return from_hu(resized(hu, side))

    images = FileSet(files, read, megabytes=MEMORY)
    return Scanned(images, [pixels[file] for file in images.paths], scan, device=device)


def _lodopab(data: LoDoPaB, side: int | None, scan: Scan) -> Any:
    op = lodopab_operator(side or data.shape[0], *data.sinogram_shape)

    @torch.no_grad()
    def pair(item: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        q = op.fbp(item[0][None], filter=scan.filter, cutoff=scan.cutoff)[0]
        return q / LODOPAB_WATER, resized(item[1], side) / LODOPAB_WATER

    return _Mapped(data, pair)


def _alike(pairs: Pairs, path: Path, side: int | None) -> Pairs:
    y, x = pairs.shapes
    if y[0] != 1 or x[0] != 1:
        raise ValueError(f"{path}: expected one channel of y and x, got shapes {y} and {x}")
    if y != x and side is None:
        raise ValueError(f"{path}: expected y and x of one size, got {y} and {x}; pass --side")
    return pairs


def _pairs(items: Any, side: int | None, count: int | None) -> Measured:
    chosen = items if count is None else Subset(items, range(min(count, len(items))))
    mapped = _Mapped(chosen, lambda pair: (resized(pair[0], side), resized(pair[1], side)))
    return Measured(Cached(mapped, MEMORY))


class _Mapped:
    def __init__(self, items: Any, change: Callable[[Any], Any]) -> None:
        self.items, self.change = items, change

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, k: int) -> Any:
        return self.change(self.items[k])


class Part:
    """Some items of :class:`Data`."""

    def __init__(self, data: Data, places: Sequence[int]) -> None:
        self.data, self.places = data, list(places)

    def __len__(self) -> int:
        return len(self.places)

    def draw(self, index: Sequence[int], generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
        return self.data.draw([self.places[k] for k in index], generator)


def held_out(known: Data, data: str | os.PathLike[str], scan: Scan, **options: Any) -> tuple[Data, Data]:
    """What is trained on, and up to eight items to validate on: phantoms of other seeds, LoDoPaB's validation part, of
    other folders the last tenth, which is taken away.

    :param options: of :func:`load_scans`.
    :raises ValueError: if there is only one item.
    """
    if str(data) in PHANTOMS or any(Path(data).glob("observation_validation_*")):
        held = load_scans(data, scan, part="validation", **options | {"count": 8})
        return known, Part(held, range(min(8, len(held))))
    if len(known) < 2:
        raise ValueError(f"{data}: one image in ten is held out, so that at least two are needed; got {len(known)}")
    first = len(known) - max(1, len(known) // 10)
    return Part(known, range(first)), Part(known, range(first, min(len(known), first + 8)))


def fixed_pairs(data: Data, *, seed: int = 0, device: Any = "cpu") -> list[tuple[Tensor, Tensor]]:
    """(q, x), (1, 1, H, W) each; the noise of item k comes from (seed, k)."""
    found = [data.draw([k], torch.Generator().manual_seed(100_000 * seed + k)) for k in range(len(data))]
    return [(q[0][None].to(device), x[0][None].to(device)) for q, x in found]
