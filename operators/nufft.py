"""Radio interferometry: a non-uniform discrete Fourier transform."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.checks import REAL_TO_COMPLEX, checked_shape
from pnp_lofi.nonuniform import Shape, by_torchkbnufft, rows_from, transform
from pnp_lofi.operators.interferometer import Interferometer, checked_uv, checked_weights

KERNEL_EPS = 1e-12  # of the Toeplitz kernel, which is computed once
VISIBILITY, LEAST = 50, 2**14  # bytes of working memory for each; fewest in a chunk
EPS = {torch.complex64: 1e-6, torch.complex128: 1e-12}


class NUFFT(Interferometer):
    """Visibilities of an image, A = W^1/2 A0 with

        (A0 x)_k = (HW)^-1/2 sum x[r, c] exp(-i (uv[0, k] (r - H//2) + uv[1, k] (c - W//2))).

    A^H A is a convolution: ``A_adjoint_A``, and what is solved with it, cost one FFT of twice the size whatever M is.
    Inner products are Re<., .>: with real images the adjoint returns the real part. The dtype follows the image
    (complex64 data for float32); the geometry stays in float64, where single precision would lose 4.5e-5 at 512 x 512.

    :param tuple img_size: (H, W). The attribute of this name is deepinv's (1, H, W), the one here ``shape``.
    :param torch.Tensor uv: (2, M) [rad/pixel], uv[0] on rows, uv[1] on columns, see :func:`uv_radians`; 2 pi periodic.
    :param torch.Tensor weights: (M,) >= 0, the diagonal of W; default ones. Whiten the data alike, :meth:`whiten`.
    :param float sigma: noise per real component [units of y, whitened], added by ``op(x)``; None: none, or unknown.
    :param str backend: "finufft" (cufinufft on CUDA), or "kb": torchkbnufft's 6 x 6 Kaiser-Bessel gridding on a grid
        of twice the size, as in the paper; slow, with an error of 7e-4, and A^H A applied as A, then A^H.
    :param float eps: relative accuracy of finufft; default 1e-6 in single and 1e-12 in double precision.
    :param int chunk: visibilities transformed at a time; bounds the working memory at some 50 bytes each per image.
    :param bool real: images are real (the sky); False: complex.
    :param bool precondition: conjugate gradients with T. Chan's circulant preconditioner. With natural weights on a
        dense coverage it halves their steps at tolerances from 1e-4 on, each of which costs two more FFTs of the
        image's size; with uniform or Briggs weights it multiplies them.
    :param int max_iter, float tol: of ``A_dagger`` and ``prox_l2`` by conjugate gradients.
    :raises ValueError: for other shapes, lengths that differ, NaN or inf, |uv| > pi, negative or all-zero weights,
        sigma <= 0, an unknown backend.
    Source: Barnett et al. 2019 (finufft); Wajer and Pruessmann 2001 (the normal operator); arXiv 2411.04995.
    """

    geometry: ClassVar[tuple[str, ...]] = ("uv", "weights")

    def __init__(
        self,
        img_size: Sequence[int],
        uv: Tensor,
        weights: Tensor | None = None,
        *,
        sigma: float | None = None,
        backend: str = "finufft",
        eps: float | None = None,
        chunk: int = 2**21,
        real: bool = True,
        precondition: bool = False,
        max_iter: int = 100,
        tol: float = 1e-5,
    ) -> None:
        uv = checked_uv(uv)
        weights = checked_weights(weights, uv)
        if weights is not None and not bool((weights > 0).any()):
            raise ValueError("all weights are zero; nothing is left to image")
        _check_options(backend, eps, chunk)
        super().__init__(
            checked_shape(img_size),
            ("batch", "channel", uv.shape[1]),
            real=real,
            precondition=precondition,
            sigma=sigma,
            max_iter=max_iter,
            tol=tol,
            device=uv.device,
        )
        self.backend, self.eps, self.chunk = backend, eps, chunk
        self.register_buffer("uv", uv)
        self.register_buffer("weights", weights)

    def _normal(self, x: Tensor) -> Tensor:
        return self._backward(self._forward(x)) if self.backend == "kb" else super()._normal(x)

    def whiten(self, vis: Tensor | np.ndarray) -> Tensor:
        """W^1/2 vis; zero where the weight is, whatever vis holds there.

        :param vis: tensor or array (..., M) complex [the units of A0 x]; complex64 for images in float32.
        :returns: tensor of the same dtype; an array is brought to the operator's device.
        :raises ValueError: if the length differs.
        """
        if not isinstance(vis, Tensor):
            native = np.asarray(vis).dtype.newbyteorder("=")  # what is read from FITS is big-endian
            vis = torch.from_numpy(np.array(vis, native)).to(self.uv.device)
        self._check_length(vis)
        return vis if self.weights is None else torch.where(self.weights > 0, vis * self._root(vis.dtype), 0)

    # ---- the transforms ----------------------------------------------------------------------------------

    def _transform(self, kind: int, data: Tensor, uv: Tensor, shape: Shape, eps: float | None = None) -> Tensor:
        """Type 1, values (T, m) to modes (T, *shape) with e^{+i}, or type 2, modes to values with e^{-i}."""
        if self.backend == "kb" and eps is None:
            return by_torchkbnufft(kind, data, uv, shape)
        return transform(kind, data, uv, shape, eps or self.eps or EPS[data.dtype])

    def _root(self, dtype: torch.dtype) -> Tensor:
        return self.weights.sqrt().to(dtype)

    def _forward(self, x: Tensor) -> Tensor:
        modes = x.detach().reshape(-1, *self.shape)
        modes = modes.to(REAL_TO_COMPLEX.get(x.dtype, x.dtype))
        chunks = [self._transform(2, modes, uv, self.shape) for uv in self.uv.split(self.chunk, dim=1)]
        y = torch.cat(chunks, dim=1).mul_(math.prod(self.shape) ** -0.5)
        if self.weights is not None:
            y.mul_(self._root(y.dtype))
        return y.reshape(*x.shape[:2], -1)

    def _backward(self, y: Tensor) -> Tensor:
        values = y.detach().resolve_conj().flatten(0, 1)
        root = None if self.weights is None else self._root(y.dtype)
        modes = values.new_zeros((len(values), *self.shape))
        for start in range(0, values.shape[1], self.chunk):
            part = slice(start, start + self.chunk)
            chunk = values[:, part] if root is None else values[:, part] * root[part]
            modes += self._transform(1, chunk, self.uv[:, part], self.shape)
        modes = modes.mul_(math.prod(self.shape) ** -0.5).reshape(*y.shape[:2], *self.shape)
        return modes.real.contiguous() if self.real else modes

    def _kernel(self, shape: Shape, *, real: bool = True) -> Tensor:
        """sum_k w_k exp(i uv_k . d) over d in a grid with zero at N//2, float64 (complex128), in chunks."""
        return self._kernel_from(-(shape[0] // 2), shape, real)

    def _half_kernel(self) -> Tensor:
        return self._kernel_from(0, (self.shape[0], 2 * self.shape[1] - 1), self.real)

    def _kernel_from(self, first: int, shape: Shape, real: bool) -> Tensor:
        """Rows first, first + 1, ... of it."""
        total = torch.zeros(shape, dtype=torch.float64 if real else torch.complex128, device=self.uv.device)
        for start in range(0, self.uv.shape[1], self.chunk):
            uv = self.uv[:, start : start + self.chunk]
            w = torch.ones_like(uv[0]) if self.weights is None else self.weights[start : start + self.chunk]
            part = rows_from(first, w[None].to(torch.complex128), uv, shape, KERNEL_EPS)[0]
            total += part.real if real else part
        return total

    # ---- bookkeeping -------------------------------------------------------------------------------------

    @contextmanager
    def chunked(self, memory: float, items: int) -> Iterator[None]:
        """Inside, visibilities are transformed in chunks that need so many bytes."""
        kept, self.chunk = self.chunk, min(self.chunk, max(LEAST, int(memory / (VISIBILITY * items))))
        try:
            yield
        finally:
            self.chunk = kept

    def working_memory(self, like: Tensor) -> int:
        """Bytes, see :class:`Operator`: of the kernel, which is made once, of A and A^H, or of a step."""
        (H, W), items = self.shape, math.prod(like.shape[:2])
        fine = 2.0 if (self.eps or EPS[like.dtype.to_complex()]) < 1e-9 else 1.25  # the grid of finufft over the image
        kernel = 8 * 2 * H * W * 16  # finufft's grid for half of it, four times that half, and what is made of it
        transform = int((fine**2 + 2) * H * W * 16) * items
        data = 2 * items * self.uv.shape[1] * like.dtype.to_complex().itemsize
        return max(kernel, transform + data, super().working_memory(like))

    def _total_weight(self) -> float:
        return float(self.uv.shape[1] if self.weights is None else self.weights.sum())

    def _check_length(self, y: Tensor) -> None:
        M = self.uv.shape[1]
        if y.ndim == 0 or y.shape[-1] != M:
            raise ValueError(f"the operator has {M} visibilities, the data {tuple(y.shape)}; flag uv and data alike")

    def _check_data(self, y: Tensor) -> None:
        self._check_length(y)
        super()._check_data(y)


def _check_options(backend: str, eps: float | None, chunk: int) -> None:
    if backend not in ("finufft", "kb"):
        raise ValueError(f'backend must be "finufft" or "kb", got {backend!r}')
    if eps is not None and not 0 < eps < 1:
        raise ValueError(f"eps must lie between 0 and 1, for instance 1e-6, got {eps}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 visibility, got {chunk}")
