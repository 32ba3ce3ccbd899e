"""Operators of operators: one after the other, and several of one image."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from deepinv.physics import NoiseModel
from deepinv.utils import TensorList
from torch import Tensor, nn

from pnp_lofi.operators.base import Operator

SAME = 1e-9  # relative difference of noise levels that is only rounding


class Composed(Operator):
    """A x = A_k ... A_2 A_1 x, which ``outer * inner`` makes of operators of ours.

    As deepinv's ComposedLinearPhysics, of which it differs in four things: A^H A is A_1^H ... (A_k^H A_k) ... A_1, so
    that the outermost operator's short cut is used; noise is that operator's own (none outside of a mask); the solvers
    are those of every :class:`Operator`, hence nothing is left behind by a call; operators that do not fit are refused.

    :param Operator operators: the first to act first.
    :raises ValueError: if the data of one are not the images of the next.
    """

    def __init__(self, *operators: Operator) -> None:
        flat = [part for op in operators for part in (op.operators if isinstance(op, Composed) else [op])]
        _check_any(operators, "Composed")
        for inner, outer in pairwise(flat):
            _check_fit(inner, outer)
        first, last = flat[0], flat[-1]
        super().__init__(first.image_shape, last.data_shape, noise_model=last.noise_model, **_shared(flat))
        self.complex_data = last.complex_data
        self.physics_list = nn.ModuleList(flat)

    @property
    def operators(self) -> list[Operator]:
        return cast(list[Operator], list(self.physics_list))

    def __getitem__(self, index: int) -> Operator:
        return self.operators[index]

    @property
    def sigma(self) -> float | None:
        return self.operators[-1].sigma

    def A(self, x: Tensor, **kwargs: Any) -> Any:
        self._refuse(kwargs)
        for op in self.operators:
            x = op.A(x)
        return x

    def A_adjoint(self, y: Any, **kwargs: Any) -> Tensor:
        self._refuse(kwargs)
        for op in reversed(self.operators):
            y = op.A_adjoint(y)
        return y

    def A_adjoint_A(self, x: Tensor, **kwargs: Any) -> Tensor:
        self._refuse(kwargs)
        *inner, last = self.operators
        for op in inner:
            x = op.A(x)
        x = last.A_adjoint_A(x)
        for op in reversed(inner):
            x = op.A_adjoint(x)
        return x

    def noise(self, x: Any, **kwargs: Any) -> Any:
        """The noise of the operator that acts last."""
        return self.operators[-1].noise(x, **kwargs)

    def set_noise_model(self, noise_model: NoiseModel, **kwargs: Any) -> None:
        """Of the operator that acts last."""
        super().set_noise_model(noise_model)
        self.operators[-1].set_noise_model(noise_model, **kwargs)

    def _noise_arguments(self) -> set[str]:
        return self.operators[-1]._noise_arguments()

    def __getattr__(self, name: str) -> Any:
        # what a solver looks for in an operator is here if the one that acts last has it: the data are its data
        if name in ("estimate_noise", "residual_level"):
            last = self.operators[-1]
            if hasattr(last, name):
                return last.estimate_noise if name == "estimate_noise" else self._residual_level
        return super().__getattr__(name)

    def _residual_level(self, y: Any, x: Tensor | None) -> float:
        if x is not None:
            for op in self.operators[:-1]:
                x = op.A(x)
        return float(self.operators[-1].residual_level(y, x))


class Stacked(Operator):
    """A x = (r_1 A_1 x, ..., r_n A_n x), r_i = weights_i^1/2, which ``op.stack(other)`` makes of operators of ours.

    Data are a deepinv TensorList, as with deepinv's StackedLinearPhysics, of which it differs in four things:
    ``.to()`` and ``state_dict`` reach the operators; A^H A is the sum of theirs, each in its own short cut; the solvers
    are those of every :class:`Operator`; and data of unequal noise can be whitened: with weights 1 / sigma_i^2 and
    ``op.whiten(y)`` the noise is 1 everywhere, which is what a least-squares fit assumes.

    :param Operator operators: of images of one shape.
    :param weights: one number > 0 for each; default ones.
    :raises ValueError: if the images differ; if weights are too few or not > 0.
    """

    roots: list[float]

    def __init__(self, *operators: Operator, weights: Sequence[float] | None = None) -> None:
        flat: list[Operator] = []
        roots: list[float] = []
        weights = [1.0] * len(operators) if weights is None else [float(w) for w in weights]
        if len(weights) != len(operators) or not all(0 < w < float("inf") for w in weights):
            raise ValueError(
                f"weights must be {len(operators)} finite numbers > 0, one for each operator, got {weights}"
            )
        for op, weight in zip(operators, weights, strict=True):
            parts = zip(op.operators, op.roots, strict=True) if isinstance(op, Stacked) else [(op, 1.0)]
            for part, root in parts:
                flat.append(part)
                roots.append(root * weight**0.5)
        _check_any(operators, "Stacked")
        first = flat[0]
        for op in flat[1:]:
            _check_same_images(first, op)
        super().__init__(first.image_shape, (), **_shared(flat))
        self.roots = roots
        self.physics_list = nn.ModuleList(flat)

    @property
    def operators(self) -> list[Operator]:
        return cast(list[Operator], list(self.physics_list))

    def __getitem__(self, index: int) -> Operator:
        return self.operators[index]

    def __len__(self) -> int:
        return len(self.operators)

    @property
    def sigma(self) -> float | None:
        """Noise per real component, where it is the same in all parts."""
        levels = [op.sigma for op in self.operators]
        first = levels[0]
        if first is None:
            return None
        first *= self.roots[0]
        parts = zip(levels, self.roots, strict=True)
        same = all(n is not None and math.isclose(n * root, first, rel_tol=SAME) for n, root in parts)
        return first if same else None

    def whiten(self, y: TensorList | Sequence[Tensor]) -> TensorList:
        """The data of each operator times r_i.

        :param y: data in the units of the operators.
        """
        return TensorList([root * part for root, part in zip(self.roots, self._parts(y), strict=True)])

    def A(self, x: Tensor, **kwargs: Any) -> TensorList:
        self._refuse(kwargs)
        return self.whiten([op.A(x) for op in self.operators])

    def A_adjoint(self, y: TensorList, **kwargs: Any) -> Tensor:
        self._refuse(kwargs)
        parts = self.whiten(y)
        found = [op.A_adjoint(part) for op, part in zip(self.operators, parts, strict=True)]
        return torch.stack(found).sum(0)

    def A_adjoint_A(self, x: Tensor, **kwargs: Any) -> Tensor:
        self._refuse(kwargs)
        found = [root**2 * op.A_adjoint_A(x) for op, root in zip(self.operators, self.roots, strict=True)]
        return torch.stack(found).sum(0)

    def noise(self, x: TensorList, **kwargs: Any) -> TensorList:
        """The noise of each operator, times r_i."""
        parts = zip(self.operators, self.roots, self._parts(x), strict=True)
        return TensorList([root * op.noise(part / root, **kwargs) for op, root, part in parts])

    def set_noise_model(self, noise_model: NoiseModel, item: int = 0, **kwargs: Any) -> None:
        """Of one of the operators, as deepinv's StackedPhysics has it."""
        self.operators[item].set_noise_model(noise_model, **kwargs)

    def _noise_arguments(self) -> set[str]:
        return set().union(*(op._noise_arguments() for op in self.operators))

    def _parts(self, y: TensorList | Sequence[Tensor]) -> list[Tensor]:
        if isinstance(y, Tensor) or len(y) != len(self.operators):
            what = f"a tensor of shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"{len(y)} parts"
            raise ValueError(f"Stacked expects a TensorList of {len(self.operators)} parts, got {what}")
        return list(y)


def _check_any(operators: Sequence[Operator], name: str) -> None:
    if not operators:
        raise ValueError(f"{name} needs at least one operator")


def _shared(operators: Sequence[Operator]) -> dict[str, Any]:
    """Settings of a combination: the strictest of its operators'.

    :raises ValueError: if some work on strips of an image and others do not, or on other strips.
    """
    held = {None if op.strips is None else (op.strips.shape, op.strips.group) for op in operators}
    if len(held) > 1:
        raise ValueError(
            "some of the operators hold a strip of the image, others do not; build all for the same strips"
        )
    return {
        "strips": operators[0].strips,
        "complex_images": operators[0].complex_images,
        "max_iter": max(op.max_iter for op in operators),
        "tol": min(op.tol for op in operators),
        "device": operators[0]._device_holder.device,
    }


def _same(a: tuple[int | str, ...], b: tuple[int | str, ...]) -> bool:
    pairs = zip(a, b, strict=False)
    return len(a) == len(b) and all(n == m for n, m in pairs if not isinstance(n, str) and not isinstance(m, str))


def _check_fit(inner: Operator, outer: Operator) -> None:
    names = f"{type(outer).__name__} * {type(inner).__name__}"
    if not _same(inner.data_shape, outer.image_shape):
        raise ValueError(
            f"{names}: the inner operator gives {inner.data_shape}, the outer one takes {outer.image_shape}"
        )
    if inner.complex_data != outer.complex_images:
        gives, takes = ("complex" if c else "real" for c in (inner.complex_data, outer.complex_images))
        raise ValueError(f"{names}: the inner operator gives {gives} data, the outer one takes {takes} images")


def _check_same_images(a: Operator, b: Operator) -> None:
    if not _same(a.image_shape, b.image_shape) or a.complex_images != b.complex_images:
        kinds = " and ".join(f"{op.image_shape}{' complex' if op.complex_images else ''}" for op in (a, b))
        raise ValueError(f"stacked operators see one image, these take {kinds}")
