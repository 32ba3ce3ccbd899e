"""Radio interferometry with visibilities that do not fit memory: the operator from the normal equations alone."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pnp_lofi.checks import checked_shape
from pnp_lofi.nonuniform import Shape
from pnp_lofi.operators.interferometer import Interferometer


class DirtyImages(Interferometer):
    """The dirty image of an image, A x = G x with G = A0^H W A0 of :class:`NUFFT`.

    The data are y = A0^H W vis, which is sufficient: nothing about x is lost. Their noise has the covariance
    sigma^2 G, so the space of data carries the inner product <a, b> = a^T G^-1 b, in which that noise is white. In it
    A^H is the identity and A^H A = G, and therefore ``prox_l2``, ``solve_normal``, ``A_dagger``, the norm and every
    solver of ours give what NUFFT gives for the visibilities. What knows nothing of this inner product differs:
    derivatives are those of x -> G x and y -> y, and deepinv's L2 has the right gradient and prox, but not the value.

    Abstract: beside what :class:`Interferometer` needs, a model brings ``power``, (C,) sum_k w_k |vis_k|^2 of the data
    of each channel, and ``count``, the visibilities of weight > 0.
    """

    mend_nan: ClassVar[str] = "NormalEquations refuses them in visibilities: was this image built from it?"
    power: Tensor
    count: int

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """G x."""
        return self.A_adjoint_A(x, **kwargs)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """y itself: the adjoint in the inner product <a, b> = a^T G^-1 b."""
        self._refuse(kwargs)
        return self._checked(y).clone()

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """A x, where no noise is set.

        :raises ValueError: if the operator has a noise level: noise of covariance G cannot be drawn from G alone.
        """
        if self.sigma is not None:
            raise ValueError(
                f"{type(self).__name__} cannot draw noise; simulate visibilities with NUFFT, or use op.A(x)"
            )
        return self.A(x, **kwargs)

    def residual_level(self, y: Tensor, x: Tensor | None) -> float:
        """rms per real component of W^1/2 (vis - A0 x), whose square sums to <x, G x> - 2 <x, y> + power.

        :param torch.Tensor y: the data that the operator was built with, or a batch of them.
        :param torch.Tensor x: image; None is zero.
        """
        square = len(y) * float(self.power.sum())
        if x is not None:  # in double precision, because what remains is small
            x = x.detach().to(torch.promote_types(x.dtype, torch.float64))
            difference = self.A_adjoint_A(x) - 2 * y.detach()
            square += float(self.reduce((x.conj() * difference).real.sum()))
        return math.sqrt(max(square, 0.0) / (2 * self.count * len(self.power) * len(y)))

    def working_memory(self, like: Tensor) -> int:
        """Bytes, see :class:`Operator`: of a step, or of the misfit at the end, in double precision."""
        double = torch.empty(like.shape, dtype=torch.promote_types(like.dtype, torch.float64), device="meta")
        return max(super().working_memory(like), super().working_memory(double) + self._eigenvalues(like))

    def adjointness_test(
        self,
        u: Tensor | None = None,
        img_size: tuple[int, ...] | None = None,
        num_samples: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """deepinv's test in the data's own inner product, where it asks whether G is self-adjoint.

        :returns: |<v, G u> - <G v, u>| relative to |<v, G u>|, root mean square over the samples.
        """
        size = tuple(u.shape[1:]) if u is not None else img_size or (len(self.power), *self.img_size[1:])
        dtype = dtype or (u.dtype if u is not None else torch.float32 if self.real else torch.complex64)
        device = device or self._device_holder.device
        u, v = (torch.randn((num_samples, *size), dtype=dtype, device=device) for _ in range(2))
        left = self.reduce((v.conj() * self.A(u)).real.flatten(1).sum(1))
        right = self.reduce((self.A(v).conj() * u).real.flatten(1).sum(1))
        return (left - right).square().mean().sqrt() / left.square().mean().sqrt()


class StreamedNUFFT(DirtyImages):
    """:class:`NUFFT` from its normal equations alone, built by :class:`NormalEquations`; see :class:`DirtyImages` for
    what its data are.

    :param tuple img_size: (H, W).
    :param torch.Tensor kernel: sum_k w_k exp(i uv_k . d), d in (2 H, 2 W) with zero at (H, W); float64 if real, else
        complex128.
    :param torch.Tensor power: (C,) sum_k w_k |vis_k|^2 of the data of each channel.
    :param int count: visibilities of weight > 0.
    :param float sigma: noise per real component of the whitened visibilities W^1/2 vis; None: unknown.
    :param bool real: images are real (the sky); False: complex.
    :param bool precondition: see :class:`NUFFT`.
    :param int max_iter, float tol: of ``A_dagger`` and ``prox_l2`` by conjugate gradients.
    :raises ValueError: for a kernel of another shape, or without weight.
    """

    geometry: ClassVar[tuple[str, ...]] = ("kernel", "power")

    def __init__(
        self,
        img_size: Sequence[int],
        kernel: Tensor,
        power: Tensor,
        count: int,
        *,
        sigma: float | None = None,
        real: bool = True,
        precondition: bool = False,
        max_iter: int = 100,
        tol: float = 1e-5,
    ) -> None:
        shape = checked_shape(img_size)
        expected = (2 * shape[0], 2 * shape[1])
        if kernel.shape != expected or kernel.is_complex() == real:
            kind = "real" if real else "complex"
            raise ValueError(f"kernel must be {expected} and {kind}, got {tuple(kernel.shape)}, {kernel.dtype}")
        if not count > 0 or not float(kernel[shape].real) > 0:
            raise ValueError("no visibility of weight > 0 was added; nothing is left to image")
        super().__init__(
            shape,
            ("batch", len(power), *shape),
            real=real,
            precondition=precondition,
            complex_data=not real,
            sigma=sigma,
            max_iter=max_iter,
            tol=tol,
            device=kernel.device,
        )
        self.count = count
        # complex geometry as real pairs: .to(float64) would drop the imaginary part
        self.register_buffer(
            "kernel", kernel.detach().double() if real else torch.view_as_real(kernel.detach().to(torch.complex128))
        )
        self.register_buffer("power", power.detach().double())

    def _kernel(self, shape: Shape, *, real: bool = True) -> Tensor:
        """The part of the kernel that a grid of this shape sees."""
        kernel = self.kernel if self.real else torch.view_as_complex(self.kernel)
        first = tuple(n - m // 2 for n, m in zip(self.shape, shape, strict=True))
        if any(a < 0 or a + m > 2 * n for a, m, n in zip(first, shape, self.shape, strict=True)):
            raise ValueError(f"the kernel reaches to {(2 * self.shape[0], 2 * self.shape[1])} pixels, got {shape}")
        part = kernel[first[0] : first[0] + shape[0], first[1] : first[1] + shape[1]]
        return part.real if real else part

    def _total_weight(self) -> float:
        return float(self._kernel((1, 1)))
