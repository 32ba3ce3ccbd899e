"""What every operator of ours shares: checks, the normal equations, the norm, the geometry's precision."""

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from deepinv.physics import GaussianNoise, LinearPhysics, NoiseModel, ZeroNoise
from deepinv.utils.tensorlist import TensorList, randn_like
from torch import Tensor

from pnp_lofi.cg import (
    CGInfo,
    ConvergenceWarning,
    Linear,
    checked_alpha,
    damped_solve,
    linear_map,
    operator_norm,
    shortfall,
)
from pnp_lofi.checks import check_is_tensor, check_tensor
from pnp_lofi.noise import make_picklable, unchanged
from pnp_lofi.strips import Strips

CLOSED, ITERATED, DATA = 6, 8, 2  # images and data that are held at once with a closed form, by CG, on the way
# what operators of deepinv take in a call, and keep
PARAMETERS = frozenset({"angles", "coil_maps", "filter", "gain", "kernel", "mask", "sigma", "theta", "uv", "weights"})


class Operator(LinearPhysics):
    """A linear forward model y = A x with an exactly matched adjoint. Abstract: a model brings

    - ``_forward(x)`` and ``_backward(y)``, A and A^H, which may run outside of autograd;
    - optionally ``_normal(x)``, A^H A, and ``_inverse(b, alpha)``, (A^H A + alpha)^-1 b, where a closed form exists
      (for alpha = 0 the pseudo-inverse), or ``_preconditioner(alpha)`` for conjugate gradients;
    - with a closed form also ``_fit(y, alpha)``, where A^H y rounds off the range of A^H: 1 / alpha amplifies that;
    - ``_seen(y)``, y without the data that do not count, where there are such.

    Inner products are Re<., .>: with real images the adjoint of complex data is the real part. The dtype follows the
    image; the buffers named in ``geometry`` keep float64 when the operator is moved with ``.to(dtype)``.

    :param tuple image_shape, data_shape: of x and y; a number is required, a name matches any number.
    :param float sigma: noise per real component [units of y] that ``op(x)`` adds; None: none, or unknown.
    :param NoiseModel noise_model: instead of sigma, a model of deepinv or one of ours.
    :param bool complex_images, complex_data: what x and y are.
    :param int max_iter, float tol: of ``A_dagger`` and ``prox_l2`` where conjugate gradients are needed.
    :param Strips strips: where x and y are this process's rows of an image that several share; None: whole.
    :raises ValueError: if sigma is not finite and > 0.
    """

    geometry: ClassVar[tuple[str, ...]] = ()
    blind_to_constants: ClassVar[bool] = False  # A 1 = 0: solvers return images of mean zero
    closed_form: bool = False  # whether there is an _inverse; per instance where it depends on the geometry
    mend_nan: ClassVar[str] = "replace those values before"

    def __init__(
        self,
        image_shape: Sequence[int | str],
        data_shape: Sequence[int | str],
        *,
        sigma: float | None = None,
        noise_model: NoiseModel | None = None,
        complex_images: bool = False,
        complex_data: bool = False,
        max_iter: int = 100,
        tol: float = 1e-5,
        device: torch.device | str = "cpu",
        strips: Strips | None = None,
    ) -> None:
        if sigma is not None and not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma must be finite and > 0, got {sigma}; leave it out for no noise")
        if sigma is not None and noise_model is not None:
            raise ValueError("pass sigma or noise_model, not both")
        if noise_model is None:  # never deepinv's default, which all operators share
            per_component = 2**0.5 if complex_data else 1.0  # deepinv puts sigma / sqrt(2) on each part of complex data
            noise_model = ZeroNoise() if sigma is None else GaussianNoise(sigma=float(sigma) * per_component)
        size = tuple(1 if isinstance(n, str) else n for n in image_shape[1:])
        super().__init__(
            A=unchanged, img_size=size, noise_model=noise_model, sensor_model=unchanged,
            max_iter=max_iter, tol=tol, device=device,
        )  # fmt: skip
        self.image_shape, self.data_shape = tuple(image_shape), tuple(data_shape)
        self.complex_images, self.complex_data = complex_images, complex_data
        self._sigma = None if sigma is None else float(sigma)
        self.strips = strips
        self._loads = 0  # of state dicts
        self._norms: dict[int, float] = {}  # by the loads of all that is inside

    # ---- what a model brings -----------------------------------------------------------------------------

    def _forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _backward(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def _normal(self, x: Tensor) -> Tensor:
        return self._backward(self._forward(x))

    def _inverse(self, rhs: Tensor, alpha: float | Tensor) -> Tensor:
        raise NotImplementedError

    def _fit(self, y: Tensor, alpha: float | Tensor) -> Tensor:
        """argmin_x ||A x - y||^2 + alpha ||x||^2 = (A^H A + alpha)^-1 A^H y."""
        return self._inverse(linear_map(y, self._backward, self._forward), alpha)

    def _preconditioner(self, alpha: float | Tensor) -> Linear | None:
        return None

    def _seen(self, y: Tensor) -> Tensor:
        return y

    # ---- deepinv's LinearPhysics -------------------------------------------------------------------------

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """A x.

        :param torch.Tensor x: image.
        :raises ValueError: for another shape or device, NaN or inf; TypeError for another dtype, and for an argument
            that would change the operator, as ``mask=`` does deepinv's: build another one.
        """
        self._refuse(kwargs)
        self._check_image(x)
        return linear_map(x, self._forward, self._backward)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """A^H y, the exact adjoint. Data that do not count, as those outside of a mask, are not looked at.

        :param torch.Tensor y: data.
        :raises ValueError: for another shape or device, NaN or inf; TypeError for another dtype.
        """
        self._refuse(kwargs)
        return linear_map(self._checked(y), self._backward, self._forward)

    def A_adjoint_A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """A^H A x, in the cheapest exact way."""
        self._refuse(kwargs)
        self._check_image(x)
        return linear_map(x, self._normal, self._normal)

    def A_dagger(self, y: Tensor, *, max_iter: int | None = None, tol: float | None = None, **kwargs: Any) -> Tensor:
        """The least-squares image of smallest norm: in closed form, or by conjugate gradients on A^H A x = A^H y from
        zero, where the iteration count acts as the regularisation.

        Arguments of deepinv's solvers are ignored. Warns if the tolerance is not reached.
        """
        self._refuse(kwargs)
        if self.closed_form:
            return self._fit(self._checked(y), 0.0)
        return self.solve_normal(self.A_adjoint(y), 0.0, **self._options(max_iter, tol))[0]

    def prox_l2(
        self,
        z: Tensor | float | None,
        y: Tensor,
        gamma: float | Tensor,
        *,
        max_iter: int | None = None,
        tol: float | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """argmin_x gamma/2 ||A x - y||^2 + 1/2 ||x - z||^2: in closed form, or by conjugate gradients from z.

        The operator is not changed; arguments of deepinv's solvers are ignored. Warns if the tolerance is not reached.

        :param torch.Tensor z: image, or a number for a flat one; None is zero.
        :param float gamma: > 0, or a tensor with one number per item.
        :raises ValueError: if gamma is not > 0.
        """
        self._refuse(kwargs)
        backprojection: Tensor | None = None
        if not isinstance(z, Tensor):
            backprojection = self.A_adjoint(y)
            z = torch.full_like(backprojection, 0.0 if z is None else float(z))
        self._check_image(z)
        if isinstance(gamma, Tensor):
            gamma = gamma.to(z.device, z.real.dtype)
            gamma = gamma.reshape(-1, 1, 1, 1) if gamma.numel() > 1 else gamma
        if not bool(torch.as_tensor(gamma > 0).all()):
            raise ValueError(f"gamma must be > 0, got {gamma}")
        if self.closed_form:
            return z + self._fit(self._checked(y) - self.A(z), 1 / gamma)
        options = self._options(max_iter, tol)
        backprojection = self.A_adjoint(y) if backprojection is None else backprojection
        gradient = backprojection - self.A_adjoint_A(z)  # from z on, so that no large z / gamma is rounded
        step, info = self.solve_normal(gradient, 1 / gamma, **options)
        return self._report(z + step, info, **options)

    def solve_normal(
        self,
        rhs: Tensor,
        alpha: float | Tensor,
        init: Tensor | None = None,
        *,
        tol: float = 1e-5,
        max_iter: int = 50,
    ) -> tuple[Tensor, CGInfo]:
        """(A^H A + alpha)^-1 b: in closed form, or by conjugate gradients; differentiable in b and alpha.

        alpha = 0 gives the pseudo-inverse in closed form; conjugate gradients reach it for b in the range of A^H A, for
        any other b there is no solution and they warn that they did not converge.

        :param torch.Tensor rhs: b, an image.
        :param float alpha: >= 0, or a tensor (B, 1, 1, 1).
        :param torch.Tensor init: where conjugate gradients start.
        :raises ValueError: if alpha is negative or not finite.
        """
        alpha = checked_alpha(alpha, rhs)
        self._check_image(rhs)
        if self.closed_form:
            x = self._inverse(rhs, alpha)
            return x, CGInfo(0, torch.zeros(len(rhs), dtype=rhs.real.dtype, device=rhs.device), True)
        number = alpha.detach() if isinstance(alpha, Tensor) else alpha
        damped = bool(torch.as_tensor(number > 0).all())
        # with alpha = 0 it would lead to another least-squares image than that of smallest norm
        precondition = self._preconditioner(number) if damped else None
        x, info = damped_solve(
            self.A_adjoint_A,
            rhs,
            alpha,
            init,
            tol=tol,
            max_iter=max_iter,
            precondition=precondition,
            reduce=self.reduce,
        )
        return x if damped else self._report(x, info, max_iter=max_iter, tol=tol), info

    @property
    def norm(self) -> float:
        """L, the largest eigenvalue of A^H A; computed once."""
        loads = sum(op._loads for op in self.modules() if isinstance(op, Operator))
        if loads not in self._norms:
            dtype = torch.complex64 if self.complex_images else torch.float32
            like = torch.empty((1, *self.img_size), dtype=dtype, device=self._device_holder.device)
            self._norms = {loads: operator_norm(self, like)}
        return self._norms[loads]

    def reduce(self, t: Tensor, op: str = "sum") -> Tensor:
        """Values summed ("sum"), or the largest of them ("max"), over the processes that hold the other parts of the
        image: what a solver takes every norm, inner product and range through. Of a whole image the values themselves.

        :param torch.Tensor t: values of this process's part, any shape.
        """
        return t if self.strips is None else self.strips.total(t, op)

    def working_memory(self, like: Tensor) -> int:
        """Bytes that a step of a solver needs here beyond the images it is given, with its result: a solve with
        A^H A + alpha, A or A^H. An upper bound by counting; models that work in chunks know better.

        :param torch.Tensor like: a batch of images, whose values are not looked at.
        """
        item = math.prod(n for n in self.data_shape[1:] if not isinstance(n, str))
        named = math.prod(like.shape[k] for k, n in enumerate(self.data_shape) if isinstance(n, str) and k < like.ndim)
        data = item * named * (2 if self.complex_data else 1) * like.real.element_size()
        return (CLOSED if self.closed_form else ITERATED) * like.numel() * like.element_size() + DATA * data

    # ---- noise -------------------------------------------------------------------------------------------

    @property
    def sigma(self) -> float | None:
        """Noise per real component [units of y], that of the noise model now; None: none, or unknown."""
        model = self.noise_model
        if not isinstance(model, GaussianNoise) or model.sigma.numel() != 1:
            return None
        level = float(model.sigma) / (2**0.5 if self.complex_data else 1.0)
        rounding = 4 * torch.finfo(model.sigma.dtype).eps
        if self._sigma is not None and math.isclose(level, self._sigma, rel_tol=rounding):
            return self._sigma
        return level or None

    def forward(self, x: Tensor, **kwargs: Any) -> Any:
        """A x with noise. Arguments of the noise model, deepinv's ``sigma`` or ``seed``, go to it, others to ``A``."""
        noise = {name: kwargs.pop(name) for name in self._noise_arguments() & kwargs.keys()}
        return self.sensor(self.noise(self.A(x, **kwargs), **noise))

    def noise(self, x: Tensor, **kwargs: Any) -> Tensor:
        """x with noise where data count, zero elsewhere."""
        return self._seen(super().noise(x, **kwargs))

    def update_parameters(self, **kwargs: Any) -> None:
        """What deepinv changes operators with; ours have a noise model that can change.

        :raises TypeError: for anything else.
        """
        self._refuse({name: value for name, value in kwargs.items() if name not in self._noise_arguments()})

    def _noise_arguments(self) -> set[str]:
        model = self.noise_model
        return set(inspect.signature(model.forward if isinstance(model, NoiseModel) else model).parameters)

    # ---- more of LinearPhysics ---------------------------------------------------------------------------

    def adjointness_test(
        self,
        u: Tensor | None = None,
        img_size: tuple[int, ...] | None = None,
        num_samples: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """deepinv's test with the inner product Re<., .>, under which a real image has an adjoint.

        :returns: |Re<v, A u> - Re<A^H v, u>| relative to |Re<v, A u>|, root mean square over the samples.
        """
        size = tuple(u.shape[1:]) if u is not None else img_size or self.img_size
        dtype = dtype or (u.dtype if u is not None else torch.complex64 if self.complex_images else torch.float32)
        u = torch.randn((num_samples, *size), dtype=dtype, device=device or self._device_holder.device)
        Au = self.A(u)
        v = randn_like(Au)
        left, right = self.reduce(_inner(v, Au)), self.reduce(_inner(self.A_adjoint(v), u))
        return (left - right).square().mean().sqrt() / left.square().mean().sqrt()

    def __mul__(self, other: LinearPhysics, **kwargs: Any) -> LinearPhysics:
        """A B, first B, then A: :class:`Composed` of two of ours, deepinv's with one of deepinv's."""
        if not isinstance(other, Operator):
            return super().__mul__(other, **kwargs)
        from pnp_lofi.operators.combine import Composed

        return Composed(other, self)

    def stack(self, other: LinearPhysics) -> LinearPhysics:
        """(A x, B x): :class:`Stacked` of two of ours, deepinv's with one of deepinv's."""
        if not isinstance(other, Operator):
            return super().stack(other)
        from pnp_lofi.operators.combine import Stacked

        return Stacked(self, other)

    def clone(self) -> "Operator":
        """A copy that shares no memory. deepinv's walks through all that can be reached, which takes 0.2 s."""
        memo: dict[int, Any] = {}
        for module in self.modules():
            for value in vars(module).values():
                if isinstance(value, torch.Generator):  # the one thing that deepcopy cannot do
                    memo[id(value)] = torch.Generator(value.device).set_state(value.get_state())
        return copy.deepcopy(self, memo)

    # ---- bookkeeping -------------------------------------------------------------------------------------

    def _forget(self) -> None:
        """Drop what was computed from the geometry for one device; called when the operator moves."""

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: without what can be computed again."""
        if isinstance(self.noise_model, NoiseModel):
            make_picklable(self.noise_model)
        bare = object.__new__(type(self))
        bare.__dict__.update(self.__dict__)
        bare._forget()
        return bare.__dict__

    def __deepcopy__(self, memo: dict[int, Any]) -> "Operator":
        new = object.__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))  # with what was computed
        return new

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "Operator":
        kept = {name: self._buffers[name] for name in self.geometry if self._buffers.get(name) is not None}
        super()._apply(fn, recurse)
        for name, old in kept.items():
            moved = self._buffers[name]
            if old is not None and moved is not None and moved.dtype != old.dtype:
                self._buffers[name] = old.to(moved.device)  # .float() and .half() are for networks around us
        self._forget()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._loads += 1
        self._forget()

    def _options(self, max_iter: int | None, tol: float | None) -> dict[str, Any]:
        return {
            "max_iter": self.max_iter if max_iter is None else max_iter,
            "tol": self.tol if tol is None else tol,
        }

    def _refuse(self, arguments: dict[str, Any]) -> None:
        """:raises TypeError: for those that name a part of an operator and would be ignored."""
        given = {name for name, value in arguments.items() if value is not None}
        if given:
            parts = {name.rpartition(".")[2] for name, _ in self.named_buffers()}
            for name in sorted(given & (PARAMETERS | parts)):
                raise TypeError(
                    f"{type(self).__name__} takes no {name}= in a call; an operator of ours does not change, build "
                    f"another one with this {name}"
                )

    def _report(self, x: Tensor, info: CGInfo, *, max_iter: int, tol: float) -> Tensor:
        if not info.converged:
            what = f"{type(self).__name__}: conjugate gradients {shortfall(info, max_iter, tol)}"
            warnings.warn(what, ConvergenceWarning, stacklevel=3)
        return x

    def _checked(self, y: Tensor) -> Tensor:
        """The data that count."""
        check_is_tensor(type(self).__name__, y, "y")
        y = self._seen(y)
        self._check_data(y)
        return y

    def _check_image(self, x: Tensor) -> None:
        self._check(x, "x", self.image_shape, self.complex_images)

    def _check_data(self, y: Tensor) -> None:
        self._check(y, "y", self.data_shape, self.complex_data)

    def _check(self, t: Tensor, name: str, shape: tuple[int | str, ...], complex_valued: bool) -> None:
        here = self._device_holder.device
        check_tensor(type(self).__name__, t, name, shape, complex_valued, here, self.mend_nan)

    def extra_repr(self) -> str:
        image, data = (" x ".join(map(str, shape[1:])) for shape in (self.image_shape, self.data_shape))
        return f"{image} -> {data}"


def _inner(a: Tensor | TensorList, b: Tensor | TensorList) -> Tensor:
    """Re<a, b> of each item, (B,)."""
    if isinstance(a, TensorList):
        return torch.stack([_inner(*parts) for parts in zip(a, b, strict=True)]).sum(0)
    return (a.conj() * b).real.flatten(1).sum(1)
