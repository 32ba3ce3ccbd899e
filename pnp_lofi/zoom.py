"""Any image at any size, and as a field: value, gradient and Laplacian at any coordinates."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from pnp_lofi.checkpoint import load_checkpoint
from pnp_lofi.interpolation import KERNELS, Interpolator
from pnp_lofi.sampling import grid_coords
from pnp_lofi.scales import resized

STRIP = 1 << 16  # points of the answer between two steps of the progress bar
POINTS = 4096  # of a field whose derivatives are taken at once
Unit = Literal["side", "pixel"]


def network(model: Any) -> tuple[Any, bool]:
    """A network by name, path or itself, and whether it was trained to be applied again and again.

    :param model: "bilinear", "bicubic" or "smooth" for the kernel alone; a shipped name; a path; a module with ``at``.
    """
    if isinstance(model, str) and model in KERNELS:
        return Interpolator(model), False
    if isinstance(model, str) or hasattr(model, "__fspath__"):
        found, header = load_checkpoint(model)
        _asked(found)
        return found, header.get("mode") == "factor"
    return _asked(model), False


def _asked(model: Any) -> Any:
    """:raises ValueError: for a network that cannot be asked at coordinates, or needs a noise level."""
    if not hasattr(model, "at") or getattr(model, "equivariant", False):
        raise ValueError(f"expected a network of super-resolution (FunkNN, LIIF or LoFi), got {type(model).__name__}")
    return model


def target_shape(shape: tuple[int, int], scale: float | tuple[float, float]) -> tuple[int, int]:
    """Pixels of an image that is enlarged by one factor, or by one along each axis; rounded, at least 1.

    :raises ValueError: unless the factors are finite and > 0.
    """
    pair = (scale, scale) if isinstance(scale, int | float) else tuple(scale)
    if len(pair) != 2 or not all(0 < s < math.inf for s in pair):
        raise ValueError(f"scale is one or two factors > 0, got {scale}")
    return max(1, round(shape[0] * pair[0])), max(1, round(shape[1] * pair[1]))


@torch.no_grad()
def zoom(
    model: Any,
    image: Tensor,
    scale: float | tuple[float, float] | None = None,
    *,
    shape: tuple[int, int] | None = None,
    recursive: bool | None = None,
    chunk: int | None = None,
    compute_dtype: torch.dtype | None = None,
    progress: bool = False,
) -> Tensor:
    """The image on a grid of another size over the same square; without gradients, see ``at`` of the networks.

    Networks that are told the footprint shrink without aliasing by themselves; for the others, axes that shrink are
    first averaged by :func:`~pnp_lofi.scales.resized`.

    :param model: FunkNN, LIIF, a LoFi that takes no sigma, their name or path, or "bilinear", "bicubic", "smooth".
    :param torch.Tensor image: (B, C, H, W); a network of one channel takes any number, one by one.
    :param scale: factor of both axes, or one each, of any size; or instead
    :param tuple shape: (H', W') asked for.
    :param bool recursive: steps of at most 2, each on the last one's answer; default: as the checkpoint was trained.
    :param int chunk: points worked on at once; default the network's.
    :param torch.dtype compute_dtype: of the network's layers; bfloat16 is up to three times as fast where the processor
        has it.
    :returns: (B, C, H', W') on the image's device.
    :raises ValueError: for both or none of scale and shape, an empty shape, channels the network does not take.
    """
    found, again = network(model)
    if (scale is None) == (shape is None):
        raise ValueError("give either scale or shape")
    if image.ndim != 4 or not image.is_floating_point() or image.numel() == 0:
        raise ValueError(f"zoom expects a real image (batch, channel, height, width), got {tuple(image.shape)}")
    size = (image.shape[-2], image.shape[-1])
    target = target_shape(size, scale) if shape is None else (int(shape[0]), int(shape[1]))  # type: ignore[arg-type]
    if min(target) < 1 or (shape is not None and len(shape) != 2):
        raise ValueError(f"shape is (height, width), both at least 1, got {shape}")
    channels = found.config.get("channels", found.config.get("in_channels"))
    if channels not in (1, image.shape[1]):
        raise ValueError(f"this network takes {channels} channels, got an image {tuple(image.shape)}")
    weight = next(found.parameters(), None) if isinstance(found, torch.nn.Module) else None
    q = (image if weight is None else image.to(weight)).reshape(-1, channels, *size)
    if not getattr(found, "footprint", False):
        q = resized(q, (min(size[0], target[0]), min(size[1], target[1])))
    for step in _steps((q.shape[-2], q.shape[-1]), target, again if recursive is None else recursive):
        q = _grid(found, q, step, progress, chunk=chunk, compute_dtype=compute_dtype)
    return q.reshape(*image.shape[:2], *target).to(image)


def _steps(size: tuple[int, int], target: tuple[int, int], recursive: bool) -> Iterator[tuple[int, int]]:
    """Shapes on the way: each at most twice the last, where that is asked for."""
    while recursive and any(2 * n < m for n, m in zip(size, target, strict=True)):
        size = (min(2 * size[0], target[0]), min(2 * size[1], target[1]))
        yield size
    if size != target or not recursive:
        yield target


def _grid(model: Any, q: Tensor, shape: tuple[int, int], progress: bool, **options: Any) -> Tensor:
    """One pass of the network over a grid, in strips of points."""
    footprint = (q.shape[-2] / shape[0], q.shape[-1] / shape[1])
    if getattr(model, "footprint", False):
        options["footprint"] = footprint
    out = q.new_empty(len(q), q.shape[1], shape[0] * shape[1])
    # float64 carries the places of large grids exactly
    coords = grid_coords(shape, dtype=torch.float64, device=q.device).split(max(1, STRIP // len(q)))
    at = 0
    with tqdm(total=shape[0] * shape[1], disable=not progress, unit="pixel", unit_scale=True) as bar:
        for part in coords:
            out[:, :, at : at + len(part)] = model.at(q, part, **options).transpose(1, 2)
            at += len(part)
            bar.update(len(part))
    return out.reshape(len(q), q.shape[1], *shape)


class Field:
    """An image as a function of the place, and its exact derivatives by autograd.

    Derivatives are with respect to coordinates of the unit square [units of the image per side], as those of
    :class:`pnp_lofi.operators.Derivatives`: they do not change with the resolution. With ``unit="pixel"`` they are per
    pixel of the image, H and W times (for seconds H^2 and W^2 times) smaller; then the Laplacian of an image that is
    not square is that of square pixels.

    :param model: as for :func:`zoom`; "smooth" kernels have the better second derivatives.
    :param torch.Tensor image: (B, C, H, W), with the network's channels.
    :param str unit: "side" or "pixel".
    :param int points: places at once, which bounds the memory.
    :raises ValueError: for another unit.
    """

    def __init__(self, model: Any, image: Tensor, *, unit: Unit = "side", points: int = POINTS) -> None:
        if unit not in ("side", "pixel") or points < 1:
            raise ValueError(f'unit is "side" or "pixel", points >= 1; got {unit!r}, {points}')
        self.model, self.image, self.points = network(model)[0], image, points
        size = (1.0, 1.0) if unit == "side" else (float(image.shape[-2]), float(image.shape[-1]))
        self.length = torch.tensor(size, dtype=image.dtype, device=image.device)

    def value(self, coords: Tensor) -> Tensor:
        """:param torch.Tensor coords: (P, 2) or (B, P, 2), (row, column) in [0, 1]. :returns: (B, P, C)."""
        return self.model.at(self.image, coords)

    def gradient(self, coords: Tensor, *, create_graph: bool = False) -> Tensor:
        """:param bool create_graph: whether what is returned can be differentiated, for a loss on it.
        :returns: (B, P, C, 2): along rows' and columns' axes.
        """
        return torch.cat([self._gradient(part, create_graph)[0] for part in self._parts(coords, create_graph)], 1)

    def hessian(self, coords: Tensor, *, create_graph: bool = False) -> Tensor:
        """:returns: (B, P, C, 2, 2)."""
        return torch.cat([self._hessian(part, create_graph) for part in self._parts(coords, create_graph)], 1)

    def laplacian(self, coords: Tensor, *, create_graph: bool = False) -> Tensor:
        """:returns: (B, P, C): the sum of the second derivatives along both axes."""
        return self.hessian(coords, create_graph=create_graph).diagonal(dim1=-2, dim2=-1).sum(-1)

    def _parts(self, coords: Tensor, graph: bool) -> Iterator[Tensor]:
        """Chunks of places (B, P, 2), of each image its own."""
        where = coords if coords.ndim == 3 else coords[None]
        for part in where.split(max(1, self.points // len(self.image)), 1):
            whole = part.expand(len(self.image), -1, 2)
            yield whole if graph and coords.requires_grad else whole.detach().clone().requires_grad_()

    @torch.enable_grad()
    def _gradient(self, coords: Tensor, graph: bool) -> tuple[Tensor, Tensor]:
        """Gradients (B, P, C, 2) and the places they are taken at."""
        out = self.model.at(self.image, coords)
        found = [torch.autograd.grad(out[..., c].sum(), coords, create_graph=graph, retain_graph=True)[0]
                 for c in range(out.shape[-1])]  # fmt: skip
        return torch.stack(found, 2) / self.length, coords

    @torch.enable_grad()
    def _hessian(self, coords: Tensor, graph: bool) -> Tensor:
        slope, coords = self._gradient(coords, True)
        rows = []
        for c in range(slope.shape[2]):
            for k in (0, 1):
                if not slope.requires_grad:
                    rows.append(torch.zeros_like(coords))
                    continue
                found = torch.autograd.grad(
                    slope[:, :, c, k].sum(), coords, create_graph=graph, retain_graph=True, allow_unused=True
                )[0]
                rows.append(torch.zeros_like(coords) if found is None else found)
        return torch.stack(rows, 2).unflatten(2, (slope.shape[2], 2)) / self.length


def field(model: Any, image: Tensor, *, unit: Unit = "side") -> Field:
    """``field(model, image).gradient(coords)``: see :class:`Field`."""
    return Field(model, image, unit=unit)
