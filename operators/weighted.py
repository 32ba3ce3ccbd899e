"""Data that are not equally noisy."""

import torch
from torch import Tensor

from pnp_lofi.cg import Linear
from pnp_lofi.checks import only
from pnp_lofi.operators.base import Operator


class Weighted(Operator):
    """W^1/2 A for an operator A and weights of its data: with 1/variance for weights, the noise of ``whiten(y)`` is
    white and of level 1, as solvers assume.

        op = Radon((512, 512), 360, noise_model=LowDose(4000))
        weighted = Weighted(op, op.noise_model.weights(y), sigma=1.0)
        x = ADMM(weighted, prior)(weighted.whiten(y))

    :param Operator op: A.
    :param torch.Tensor weights: >= 0, of the data's shape or broadcastable to it; zero leaves data out.
    :param float sigma: noise [units of W^1/2 y]; None: unknown. ``weighted(x)`` adds it.
    :raises ValueError: if the weights are of another shape, negative, not finite or all zero, or on another device.
    """

    def __init__(self, op: Operator, weights: Tensor, *, sigma: float | None = None) -> None:
        weights = torch.as_tensor(weights).detach()
        shape = op.data_shape
        fits = weights.ndim <= len(shape) and all(
            m == 1 or isinstance(n, str) or n == m
            for n, m in zip(reversed(shape), reversed(weights.shape), strict=False)
        )
        if not fits:
            expected = ", ".join(str(n) for n in shape)
            raise ValueError(f"weights must broadcast to data of shape ({expected}), got {tuple(weights.shape)}")
        if not bool((torch.isfinite(weights) & (weights >= 0)).all()) or not bool((weights > 0).any()):
            raise ValueError("weights must be finite and >= 0, some > 0; give data that are not to be used weight zero")
        here = op._device_holder.device
        if weights.device != here:
            raise ValueError(f"weights are on {weights.device}, the operator on {here}; move one with .to()")
        super().__init__(
            op.image_shape,
            shape,
            sigma=sigma,
            complex_images=op.complex_images,
            complex_data=op.complex_data,
            max_iter=op.max_iter,
            tol=op.tol,
            device=here,
            strips=op.strips,
        )
        self.op = op
        self.register_buffer("root", weights.double().sqrt())

    geometry = ("root",)

    def whiten(self, y: Tensor) -> Tensor:
        """W^1/2 y; zero where the weight is, whatever y holds there.

        :param torch.Tensor y: data of the operator that was wrapped.
        """
        return torch.where(self.root > 0, y * self.root.to(y.real.dtype), 0)

    def _seen(self, y: Tensor) -> Tensor:
        return only(y, self.root > 0)

    def _forward(self, x: Tensor) -> Tensor:
        return self.op.A(x) * self.root.to(x.real.dtype)

    def _backward(self, y: Tensor) -> Tensor:
        return self.op.A_adjoint(y * self.root.to(y.real.dtype))

    def _preconditioner(self, alpha: float | Tensor) -> Linear | None:
        """The wrapped operator's, as if all data had the mean weight w: (w N + alpha)^-1 = (N + alpha / w)^-1 / w."""
        mean = float(self.root.square().mean())
        inner = self.op._preconditioner(alpha / mean)
        return None if inner is None else lambda r: inner(r) / mean
