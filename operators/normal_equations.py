"""The normal equations of radio imaging, in one pass over visibilities that need not fit memory."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pnp_lofi.checkpoint import read_tensors, write_tensors
from pnp_lofi.checks import checked_shape
from pnp_lofi.distributed import sum_over_processes
from pnp_lofi.files import check_writable
from pnp_lofi.nonuniform import Shape, rows_from, transform
from pnp_lofi.operators.interferometer import checked_uv, checked_weights
from pnp_lofi.operators.streamed import StreamedNUFFT

Chunk = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor | None]  # uv, vis, weights
Visibilities = tuple[Tensor, Tensor, Tensor]  # uv (2, m), vis (C, m), weights (m,), checked
FORMAT, KIND = 1, "normal equations"
NAMES = ("kernel", "backprojection", "power", "count")


class NormalEquations:
    """A^H A and A^H y of :class:`NUFFT`, summed over visibilities:

        t(d) = sum_k w_k exp(i uv_k . d),   b = A0^H W vis,   ||y||^2 = sum_k w_k |vis_k|^2,   M.

    The memory is that of the image and of one chunk. Parts, built by several processes or on several days, are summed
    with ``+``, by :meth:`all_reduce`, or as files.

        equations = NormalEquations((512, 512))
        for uv, vis, weights in chunks:
            equations.add(uv, vis, weights)
        op, y = equations.measurement()
        x = ADMM(op, prior)(y)

    :param tuple img_size: (H, W).
    :param int channels: C, images that share uv and weights.
    :param bool real: images are real (the sky); False: complex.
    :param float eps: relative accuracy of finufft.
    :param int chunk: visibilities transformed at a time; bounds the working memory at some 100 bytes each.
    :param device: where to compute and keep the sums.
    :raises ValueError: for a size, channels, eps or chunk that cannot be.
    """

    def __init__(
        self,
        img_size: Sequence[int],
        *,
        channels: int = 1,
        real: bool = True,
        eps: float = 1e-12,
        chunk: int = 2**20,
        device: torch.device | str = "cpu",
    ) -> None:
        if channels < 1 or chunk < 1 or not 0 < eps < 1:
            raise ValueError(f"expected channels >= 1, chunk >= 1, 0 < eps < 1, got {channels}, {chunk} and {eps}")
        self.shape: Shape = checked_shape(img_size)
        self.channels, self.real, self.eps, self.chunk = channels, real, eps, chunk
        (H, W), dtype = self.shape, torch.float64 if real else torch.complex128
        self.kernel = torch.zeros((2 * H, 2 * W), dtype=dtype, device=device)
        self.backprojection = torch.zeros((channels, H, W), dtype=dtype, device=device)
        self.power = torch.zeros(channels, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)  # exact to 2^53

    @classmethod
    def from_chunks(cls, img_size: Sequence[int], chunks: Iterable[Chunk], **options: Any) -> "NormalEquations":
        """One pass over an iterator of (uv, vis) or (uv, vis, weights), see :meth:`add`.

        Small chunks are put together, because each transform costs an FFT whatever it holds.

        :param options: keyword arguments of the class.
        """
        equations = cls(img_size, **options)
        for uv, vis, weights in gathered(chunks, equations.chunk, equations._checked):
            equations._add(uv, vis, weights)
        return equations

    def add(self, uv: Tensor, vis: Tensor, weights: Tensor | None = None) -> "NormalEquations":
        """Add visibilities.

        :param torch.Tensor uv: (2, m) [rad/pixel].
        :param torch.Tensor vis: (m,) or (C, m) complex [the units of A0 x], not whitened.
        :param torch.Tensor weights: (m,) >= 0; default ones. Where it is zero vis may be NaN.
        :returns: the equations themselves.
        :raises ValueError: for lengths that differ, NaN or inf, |uv| > pi, negative weights; TypeError if vis is real.
        """
        checked = self._checked(uv, vis, weights)
        if checked is not None:
            self._add(*checked)
        return self

    def measurement(
        self, *, sigma: float | None = None, dtype: torch.dtype = torch.float32, **options: Any
    ) -> tuple[StreamedNUFFT, Tensor]:
        """The operator and its data, for a solver.

        :param float sigma: noise per real component of W^1/2 vis; None: unknown, a solver estimates it.
        :param torch.dtype dtype: of the data, float32 or float64.
        :param options: of :class:`StreamedNUFFT`.
        :returns: op and y, (1, C, H, W).
        :raises ValueError: if no visibility of weight > 0 was added.
        """
        kernel, power = self.kernel.clone(), self.power.clone()  # what is added later does not change the operator
        op = StreamedNUFFT(self.shape, kernel, power, int(self.count), sigma=sigma, real=self.real, **options)
        return op, self.backprojection[None].to(dtype if self.real else dtype.to_complex(), copy=True)

    # ---- merging -----------------------------------------------------------------------------------------

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        if not isinstance(other, NormalEquations):
            return NotImplemented
        if self._about() != other._about():
            raise ValueError(f"parts must be of one kind to be added, got {self._about()} and {other._about()}")
        total = self._like(self)
        for name in NAMES:
            mine = getattr(self, name)
            setattr(total, name, mine + getattr(other, name).to(mine.device))
        return total

    def all_reduce(self) -> "NormalEquations":
        """Replace the sums of every process by those over all of torch.distributed's processes; once, at the end.

        :returns: the equations themselves.
        """
        sum_over_processes([getattr(self, name) for name in NAMES], about=self._about())
        return self

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a safetensors file, whole or not at all.

        :raises FileExistsError: if the path exists and overwrite is not asked for.
        """
        check_writable(path, overwrite=overwrite)
        tensors = {
            name: torch.view_as_real(t) if t.is_complex() else t for name in NAMES for t in (getattr(self, name),)
        }
        write_tensors(path, tensors, {"format": FORMAT, "kind": KIND, "eps": self.eps} | self._about())

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> "NormalEquations":
        """Read what :meth:`save` wrote.

        :raises FileNotFoundError: if there is no such file.
        :raises ValueError: if the file is truncated or holds something else.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist")
        tensors, header = read_tensors(path)
        if header.get("kind") != KIND or header.get("format") != FORMAT or set(tensors) != set(NAMES):
            raise ValueError(
                f"{path} does not hold normal equations of format {FORMAT}; NormalEquations.save writes them"
            )
        made = cls(header["shape"], channels=header["channels"], real=header["real"], eps=header["eps"], device=device)
        for name in NAMES:
            empty, read = getattr(made, name), tensors[name].to(device)
            read = torch.view_as_complex(read) if empty.is_complex() else read
            if read.shape != empty.shape or read.dtype != empty.dtype:
                raise ValueError(f"{path}: {name} is {tuple(read.shape)} {read.dtype}, expected {tuple(empty.shape)}")
            setattr(made, name, read)
        return made

    def _about(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "channels": self.channels, "real": self.real}

    @classmethod
    def _like(cls, other: "NormalEquations") -> "NormalEquations":
        made = cls.__new__(cls)
        made.__dict__.update(other.__dict__)
        return made

    # ---- one chunk ---------------------------------------------------------------------------------------

    def _checked(self, uv: Tensor, vis: Tensor, weights: Tensor | None = None) -> Visibilities | None:
        return checked_visibilities(uv, vis, weights, channels=self.channels)

    def _add(self, uv: Tensor, vis: Tensor, w: Tensor) -> None:
        (H, W), device = self.shape, self.kernel.device
        for start in range(0, len(w), self.chunk):
            part = slice(start, start + self.chunk)
            points, values, weight = uv[:, part].to(device), vis[:, part].to(device), w[part].to(device)
            b = transform(1, weight * values, points, (H, W), self.eps) / math.sqrt(H * W)
            self.backprojection += b.real if self.real else b
            self._add_to_kernel(points, weight)
            self.power += (weight * values.abs().square()).sum(1)
            self.count += len(weight)

    def _add_to_kernel(self, uv: Tensor, w: Tensor) -> None:
        """Half of it is transformed, d[0] in [-H, 0], for t(-d) = t(d)*."""
        H, W = self.shape
        t = rows_from(-H, w[None].to(torch.complex128), uv, (H + 1, 2 * W + 1), self.eps)[0]
        t = t.real if self.real else t
        self.kernel[: H + 1] += t[:, :-1]
        self.kernel[H + 1 :] += t[1:H, 1:].flip(0, 1).conj()


def checked_visibilities(
    uv: Tensor, vis: Tensor, weights: Tensor | None = None, *, channels: int = 1
) -> Visibilities | None:
    """uv (2, m), vis (C, m) complex128 and weights (m,) of the rows with weight > 0; None if there are none.

    :raises ValueError, TypeError: as :meth:`NormalEquations.add`.
    """
    vis = torch.as_tensor(vis).detach()
    if not vis.is_complex():
        raise TypeError(f"vis must be complex, got {vis.dtype}")
    uv = checked_uv(uv, empty=True)
    w = checked_weights(weights, uv)
    m = uv.shape[1]
    if vis.shape != (channels, m) and (channels > 1 or vis.shape != (m,)):
        expected = f"({m},) or (1, {m})" if channels == 1 else f"({channels}, {m})"
        raise ValueError(f"vis must be {expected}, one column per column of uv, got {tuple(vis.shape)}")
    vis, w = vis.reshape(channels, m), torch.ones_like(uv[0]) if w is None else w
    kept = w > 0
    if not bool(kept.all()):
        uv, vis, w = uv[:, kept], vis[:, kept], w[kept]
    if not bool(torch.isfinite(vis).all()):
        raise ValueError("vis holds NaN or inf; give those visibilities weight zero, or leave them out")
    return (uv, vis.to(torch.complex128), w) if len(w) else None


def gathered(chunks: Iterable[Chunk], size: int, check: Callable[..., Visibilities | None]) -> Iterator[Visibilities]:
    """Chunks of at least ``size`` visibilities, save the last."""
    waiting: list[Visibilities] = []
    held = 0
    for chunk in chunks:
        if not isinstance(chunk, tuple | list) or len(chunk) not in (2, 3):
            raise ValueError(f"a chunk is (uv, vis) or (uv, vis, weights), got {type(chunk).__name__}")
        checked = check(*chunk)
        if checked is None:
            continue
        waiting.append(checked)
        held += len(checked[2])
        if held >= size:
            yield tuple(torch.cat(parts, -1) for parts in zip(*waiting, strict=True))  # type: ignore[misc]
            waiting, held = [], 0
    if waiting:
        yield tuple(torch.cat(parts, -1) for parts in zip(*waiting, strict=True))  # type: ignore[misc]
