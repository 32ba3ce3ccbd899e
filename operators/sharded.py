"""Radio interferometry on images that no process holds as a whole."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pnp_lofi.convolution import along_rows, back_along_rows, filter_columns_, kernel_along_rows, spectrum_of
from pnp_lofi.nonuniform import rows_from
from pnp_lofi.operators.normal_equations import Chunk, Visibilities, checked_visibilities, gathered
from pnp_lofi.operators.streamed import DirtyImages
from pnp_lofi.strips import Strips

FAILED = -1  # where a number of visibilities is expected


class ShardedNUFFT(DirtyImages):
    """:class:`StreamedNUFFT` of an image whose rows several processes share, built by :class:`ShardedEquations`.

    Images and data are strips, (B, C, h, W). A^H A is the same convolution by FFTs, in which strips of rows become
    strips of columns before the transforms along the columns, and rows again after them: the answer is that of one
    process, in the memory of a strip. Norms and products that a solver takes go through ``reduce``. Whatever is called
    here has to be called by all processes.

    :param Strips strips: the rows held here.
    :param torch.Tensor kernel: (h, 2 W) t(d) for d[0] in [start, stop), d[1] in [-W, W); float64 if real, else
        complex128. The other half follows, t(-d) = t(d)*.
    :param float weight: t(0), the sum of the weights of all processes.
    :param torch.Tensor power, int count: as in :class:`StreamedNUFFT`, of all processes.
    :param float sigma: noise per real component of the whitened visibilities W^1/2 vis; None: unknown.
    :param bool real: images are real (the sky); False: complex.
    :param options: ``max_iter`` and ``tol`` of ``A_dagger`` and ``prox_l2``.
    :raises ValueError: for a kernel of another shape, or without weight.
    """

    geometry: ClassVar[tuple[str, ...]] = ("kernel", "power")

    def __init__(
        self,
        strips: Strips,
        kernel: Tensor,
        weight: float,
        power: Tensor,
        count: int,
        *,
        sigma: float | None = None,
        real: bool = True,
        **options: Any,
    ) -> None:
        (h, W), channels = strips.strip_shape, len(power)
        if kernel.shape != (h, 2 * W) or kernel.is_complex() == real:
            kind = "real" if real else "complex"
            raise ValueError(f"kernel must be {(h, 2 * W)} and {kind}, got {tuple(kernel.shape)}, {kernel.dtype}")
        if not (count > 0 and weight > 0):
            raise ValueError("no visibility of weight > 0 was added; nothing is left to image")
        super().__init__(
            strips.shape,
            ("batch", channels, h, W),
            real=real,
            complex_data=not real,
            sigma=sigma,
            device=kernel.device,
            strips=strips,
            **options,
        )
        self.held, self.weight, self.count = strips, weight, count
        # complex geometry as real pairs: .to(float64) would drop the imaginary part
        self.register_buffer(
            "kernel", kernel.detach().double() if real else torch.view_as_real(kernel.detach().to(torch.complex128))
        )
        self.register_buffer("power", power.detach().double())

    def psf(self, size: Sequence[int] | None = None, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows of the dirty beam that are held here, (h, W), see :meth:`Interferometer.psf`.

        :raises ValueError: if it is asked for at another size than the image's.
        """
        if size is not None and tuple(size) != self.shape:
            raise ValueError(f"on strips the dirty beam has the image's size, {self.shape}, got {tuple(size)}")
        (H, W), h = self.shape, self.held.strip_shape[0]
        point = torch.zeros((1, 1, h, W), dtype=dtype if self.real else dtype.to_complex(), device=self.kernel.device)
        if self.held.start <= H // 2 < self.held.stop:
            point[..., H // 2 - self.held.start, W // 2] = H * W / self.weight
        return self._normal(point)[0, 0].real.contiguous()

    def _normal(self, x: Tensor) -> Tensor:
        columns = self._padded()[1]
        along = along_rows(x, columns)
        n = along.shape[-1]
        across = self.held.to_columns(along).contiguous()
        del along
        filter_columns_(across, self._spectrum(x.real.dtype))
        along = self.held.to_rows(across, n)
        del across
        return back_along_rows(along, columns, self.shape[1], real=self.real)

    def _spectrum(self, dtype: torch.dtype) -> Tensor:
        """Columns of the eigenvalues."""
        key = (self._device_holder.device, dtype)
        if key not in self._spectra:
            (H, W), (rows, columns) = self.shape, self._padded()
            kernel = self.kernel if self.real else torch.view_as_complex(self.kernel)
            along = kernel_along_rows(kernel[:, 1:], columns).div_(H * W)
            self._spectra[key] = spectrum_of(self.held.to_columns(along), rows, dtype)
        return self._spectra[key]

    def _total_weight(self) -> float:
        return self.weight


class ShardedEquations:
    """:class:`NormalEquations` of an image whose rows, and of visibilities whose chunks, several processes share:

        t(d) = sum_k w_k exp(i uv_k . d),   b = A0^H W vis,   ||y||^2 = sum_k w_k |vis_k|^2,   M.

    Each process reads visibilities of its own; every chunk goes to all, and each adds what it is to its own strip, by
    a transform onto the strip's modes alone. The memory is that of a strip and a chunk, no image or kernel is ever put
    together. The price: every process spreads all visibilities onto its grid, so that more processes make the FFTs
    faster and not the spreading: 0.6 us a visibility and core at eps = 1e-12, 0.2 us at 1e-6, measured on a CPU.

        equations = ShardedEquations.from_chunks(strips, chunks)
        op, y = equations.measurement()
        x = ADMM(op, ShardedPrior(prior, strips))(y)

    :param Strips strips: the rows held here.
    :param options: keyword arguments of :class:`NormalEquations`.
    """

    def __init__(
        self,
        strips: Strips,
        *,
        channels: int = 1,
        real: bool = True,
        eps: float = 1e-12,
        chunk: int = 2**20,
        device: torch.device | str = "cpu",
    ) -> None:
        if channels < 1 or chunk < 1 or not 0 < eps < 1:
            raise ValueError(f"expected channels >= 1, chunk >= 1, 0 < eps < 1, got {channels}, {chunk} and {eps}")
        self.strips, self.channels, self.real, self.eps, self.chunk = strips, channels, real, eps, chunk
        (h, W), dtype = strips.strip_shape, torch.float64 if real else torch.complex128
        self.kernel = torch.zeros((h, 2 * W), dtype=dtype, device=device)
        self.backprojection = torch.zeros((channels, h, W), dtype=dtype, device=device)
        self.power = torch.zeros(channels, dtype=torch.float64, device=device)
        self.weight, self.count = 0.0, 0

    @classmethod
    def from_chunks(cls, strips: Strips, chunks: Iterable[Chunk], **options: Any) -> "ShardedEquations":
        """One pass over an iterator of (uv, vis) or (uv, vis, weights), see :meth:`NormalEquations.add`.

        Each process gives its own, as many as it has; none is fine.

        :param options: keyword arguments of the class.
        :raises RuntimeError: in all other processes if one cannot read its chunks.
        """
        equations = cls(strips, **options)
        pieces = equations._pieces(chunks)
        while equations._round(pieces):
            pass
        return equations

    def measurement(
        self, *, sigma: float | None = None, dtype: torch.dtype = torch.float32, **options: Any
    ) -> tuple[ShardedNUFFT, Tensor]:
        """The operator and its data, for a solver.

        :param float sigma: noise per real component of W^1/2 vis; None: unknown, a solver estimates it.
        :param torch.dtype dtype: of the data, float32 or float64.
        :param options: of :class:`ShardedNUFFT`.
        :returns: op and y, (1, C, h, W).
        :raises ValueError: if no visibility of weight > 0 was added.
        """
        about = (self.kernel.clone(), self.weight, self.power.clone(), self.count)
        op = ShardedNUFFT(self.strips, *about, sigma=sigma, real=self.real, **options)
        return op, self.backprojection[None].to(dtype if self.real else dtype.to_complex(), copy=True)

    def _pieces(self, chunks: Iterable[Chunk]) -> Iterator[Visibilities]:
        """Of ``chunk`` visibilities, save the last of each that were put together."""

        def check(*chunk: Tensor) -> Visibilities | None:
            return checked_visibilities(*chunk, channels=self.channels)

        for uv, vis, w in gathered(chunks, self.chunk, check):
            for k in range(0, len(w), self.chunk):
                part = slice(k, k + self.chunk)
                yield uv[:, part], vis[:, part], w[part]

    def _round(self, pieces: Iterator[Visibilities]) -> bool:
        """Add one piece of each process that has one; whether there was any."""
        device, error = self.kernel.device, None
        packed = torch.zeros((3 + 2 * self.channels, 0), dtype=torch.float64, device=device)
        try:
            for uv, vis, w in pieces:
                packed = torch.cat([uv, w[None], vis.real, vis.imag]).to(device)
                break
        except Exception as found:  # the others would wait for this process for ever
            error = found
        sizes = torch.zeros(self.strips.world, dtype=torch.int64, device=device)
        sizes[self.strips.rank] = packed.shape[1] if error is None else FAILED
        everyones = self.strips.total(sizes).tolist()
        if error is not None:
            raise error
        if FAILED in everyones:
            raise RuntimeError(f"process {everyones.index(FAILED)} could not read its visibilities; see what it says")
        for part in self.strips.everyones(packed, everyones):
            self._add(part)
        return any(everyones)

    def _add(self, packed: Tensor) -> None:
        """:param torch.Tensor packed: (3 + 2 C, m), uv, weights, vis.real, vis.imag."""
        uv, w = packed[:2], packed[2]
        vis = torch.complex(packed[3 : 3 + self.channels], packed[3 + self.channels :])
        (H, W), (h, _), first = self.strips.shape, self.strips.strip_shape, self.strips.start
        b = rows_from(first - H // 2, w * vis, uv, (h, W), self.eps) / math.sqrt(H * W)
        t = rows_from(first, w[None].to(vis.dtype), uv, (h, 2 * W), self.eps)[0]
        self.backprojection += b.real if self.real else b
        self.kernel += t.real if self.real else t
        self.power += (w * vis.abs().square()).sum(1)
        self.weight += float(w.sum())
        self.count += len(w)
