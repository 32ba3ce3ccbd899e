"""What parallel and fan beams share: rays, their matrices, gradients in the angles, the noise of low dose."""

import functools
import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from deepinv.physics import NoiseModel
from torch import Tensor

from pnp_lofi import kernels
from pnp_lofi.cg import Linear
from pnp_lofi.checks import Shape, checked_shape
from pnp_lofi.fbp import smear
from pnp_lofi.noise import estimate_image_noise
from pnp_lofi.operators.base import Operator
from pnp_lofi.operators.low_dose import LowDose
from pnp_lofi.ray_matrix import RayMatrix, Weigh, backproject, project
from pnp_lofi.rays import Orbits, crossings, joseph, orbits

if TYPE_CHECKING:  # it needs triton
    from pnp_lofi.triton_rays import RayKernels

BACKENDS = ("auto", "sparse", "free", "triton")
SMALLEST = 0.28  # of 1/N: the frequency that stands for DC in the spectrum 1/|k| of backprojection after projection
PATIENCE = 4  # images that are backprojected without a matrix: making one takes as long as some eight of them
CUT = 0.1  # of the mean profile's maximum: more at an end of the detector means that the object goes on there
GRID = 1e-6  # views in single precision that differ by less from an even spacing [rad] were meant to be even


class Projector(Operator):
    """Line integrals of an image along straight rays, with Joseph's weights and their exact adjoint. Abstract.

    x to the right, y up, both zero at ``centre``; lengths are in the unit of ``pixel_size``. On a CPU two sparse
    matrices, made when they are first needed, are applied ("sparse"); where they would take more than ``max_memory``
    the same weights are computed anew in each call ("free"), with a warning. On a GPU they are computed in Triton
    ("triton").

    :param tuple shape: (H, W).
    :param angles: (A,) [rad] in any order; an integer: so many even ones from 0, over the whole arc.
    :param int detectors: D. float spacing: of the detectors; float offset: of the middle of the detector.
    :param tuple centre: row and column of the axis of rotation [pixel]; default ((H - 1)/2, (W - 1)/2).
    :param float pixel_size: in the user's unit of length, which the result is in as well.
    :param float max_memory: of all matrices that are kept [MB]; making one takes about three times its size.
    :raises ValueError: if angles are empty, NaN or inf, lengths are not positive, the backend is unknown.
    """

    geometry: ClassVar[tuple[str, ...]] = ("angles",)
    matched: ClassVar[bool] = True  # A_adjoint is the transpose of A; the adapters of other packages may say no
    arc: ClassVar[float]  # that even views are spread over [rad]
    directed: ClassVar[bool] = False  # whether it matters from which end a line was measured

    def __init__(
        self,
        shape: Sequence[int],
        angles: Tensor | Sequence[float] | int,
        detectors: int,
        *,
        spacing: float,
        offset: float = 0.0,
        centre: tuple[float, float] | None = None,
        pixel_size: float = 1.0,
        sigma: float | None = None,
        noise_model: NoiseModel | None = None,
        backend: str = "auto",
        max_memory: float = 4000.0,
        max_iter: int = 100,
        tol: float = 1e-5,
    ) -> None:
        H, W = checked_shape(shape)
        angles = checked_angles(angles, self.arc)
        if detectors != int(detectors) or detectors < 1:
            raise ValueError(f"detectors must be a positive integer, got {detectors}")
        if not all(math.isfinite(value) for value in (offset, *(centre or ()))):
            raise ValueError(f"the detector offset and the centre must be finite, got {offset} and {centre}")
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        super().__init__(
            ("batch", "channel", H, W),
            ("batch", "channel", len(angles), int(detectors)),
            sigma=sigma,
            noise_model=noise_model,
            max_iter=max_iter,
            tol=tol,
            device=angles.device,
        )
        self.shape: Shape = (H, W)
        self.detectors, self.spacing, self.offset = int(detectors), float(spacing), float(offset)
        middle = ((H - 1) / 2, (W - 1) / 2)
        if centre is not None and max(abs(a - m) - m for a, m in zip(centre, middle, strict=True)) > max(H, W):
            raise ValueError(
                f"the axis of rotation lies far outside of the image: centre is {centre} [pixel] of {shape}"
            )
        self.centre = middle if centre is None else (float(centre[0]), float(centre[1]))
        self.pixel_size, self.backend, self.max_memory = float(pixel_size), backend, float(max_memory)
        self.register_buffer("angles", angles)
        self._matrices: dict[torch.dtype, RayMatrix] = {}
        self._smearing: dict[torch.dtype, RayMatrix] = {}
        self._smeared = 0
        self._compiled: RayKernels | None = None
        self._found: Orbits | None = None

    # ---- what a geometry brings --------------------------------------------------------------------------

    @abstractmethod
    def lines(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """theta [rad] and s [pixel] of every ray, (A, D) each, differentiable in the angles."""

    @property
    def at_centre(self) -> float:
        """Spacing of the rays at the axis of rotation [pixel]."""
        return self.spacing / self.pixel_size

    @property
    def reach(self) -> float:
        """How far the image's corners project [the unit of length, at the detector]."""
        (H, W), (cy, cx) = self.shape, self.centre
        return math.hypot(max(cy, H - 1 - cy) + 0.5, max(cx, W - 1 - cx) + 0.5) * self.pixel_size

    def positions(self, device: torch.device | None = None) -> Tensor:
        """(D,) places of the detectors [the unit of length], float64."""
        count = torch.arange(self.detectors, dtype=torch.float64, device=device or self.angles.device)
        return (count - (self.detectors - 1) / 2) * self.spacing + self.offset

    # ---- the operator ------------------------------------------------------------------------------------

    def A(self, x: Tensor, *, angles: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Line integrals.

        :param torch.Tensor x: (B, C, H, W).
        :param torch.Tensor angles: (A,) instead of the operator's, the result is differentiable in them; slower.
        :returns: (B, C, A, D) [unit of x times unit of length].
        """
        if angles is None:
            return super().A(x, **kwargs)
        self._check_image(x)
        y = project(x.flatten(0, 1), *self._rays(self._instead(angles)), self._joseph) * self.pixel_size
        return y.view(*x.shape[:2], *self.data_shape[2:])

    def A_adjoint(self, y: Tensor, *, angles: Tensor | None = None, **kwargs: Any) -> Tensor:
        """The exact adjoint of A, with the same ``angles``.

        :param torch.Tensor y: (B, C, A, D).
        :returns: (B, C, H, W).
        """
        if angles is None:
            return super().A_adjoint(y, **kwargs)
        self._check_data(y)
        rays = y.flatten(0, 1).flatten(1)
        x = backproject(rays, *self._rays(self._instead(angles)), self._joseph, self.shape) * self.pixel_size
        return x.view(*y.shape[:2], *self.shape)

    def _instead(self, angles: Tensor) -> Tensor:
        if angles.shape != self.angles.shape or not bool(torch.isfinite(angles.detach()).all()):
            raise ValueError(
                f"expected {len(self.angles)} finite angles, got shape {tuple(angles.shape)}, or NaN or inf"
            )
        return angles.double()

    def _forward(self, x: Tensor) -> Tensor:
        images = x.detach().flatten(0, 1)
        if self._on_gpu(x):
            y = kernels.attempt(lambda: self._kernels().forward(images), lambda: self._matrix(x.dtype).forward(images))
        else:
            y = self._matrix(x.dtype).forward(images)
        return (y * self.pixel_size).view(*x.shape[:2], *self.data_shape[2:])

    def _backward(self, y: Tensor) -> Tensor:
        rays = y.detach().flatten(0, 1).flatten(1)
        if self._on_gpu(y):
            x = kernels.attempt(lambda: self._kernels().backward(rays), lambda: self._matrix(y.dtype).backward(rays))
        else:
            x = self._matrix(y.dtype).backward(rays)
        return (x * self.pixel_size).view(*y.shape[:2], *self.shape)

    def _preconditioner(self, alpha: float | Tensor) -> Linear | None:
        """The inverse of the spectrum c/|k| of A^H A in the middle of a large image, c = A / (pi d)."""
        H, W = self.shape
        ky = torch.fft.fftfreq(H, device=self.angles.device)[:, None]
        kx = torch.fft.rfftfreq(W, device=self.angles.device)
        k = torch.sqrt(ky**2 + kx**2 + (SMALLEST / math.sqrt(H * W)) ** 2)
        spectrum = self.pixel_size**2 * len(self.angles) / (math.pi * self.at_centre) / k

        def apply(r: Tensor) -> Tensor:
            return torch.fft.irfft2(torch.fft.rfft2(r) / (spectrum + alpha).to(r.dtype), (H, W))

        return apply

    def estimate_noise(self, y: Tensor) -> float:
        """Noise of a sinogram [units of y]: from the photon counts where they are known, otherwise from the finest
        differences of the sinogram, an upper bound; see :func:`pnp_lofi.noise.estimate_image_noise`."""
        self._check_data(y)
        if isinstance(self.noise_model, LowDose):
            return self.noise_model.level(y)
        return estimate_image_noise(y)

    # ---- filtered backprojection -------------------------------------------------------------------------

    def _smear(self, q: Tensor, weigh: Weigh, reach: int, *, source: float | None = None) -> Tensor:
        """Backprojection for pictures: filtered data are interpolated at each pixel. That is not the adjoint of
        Joseph's weights, but less of the noise is left.

        View after view to begin with; after some images by a matrix of the same weights, if it fits.

        :param torch.Tensor q: (B, C, A, D).
        :param Weigh weigh: the weights of the matrix; int reach: pixels to either side that they extend to.
        :param float source: see :func:`pnp_lofi.fbp.smear`.
        """
        images = q.flatten(0, 1)
        self._smeared += len(images)
        if self._smeared > PATIENCE and q.dtype not in self._smearing and not q.is_cuda:  # a GPU gathers fast
            made = self._made(weigh, q.dtype, reach=reach, both=False)
            if made is not None:
                self._smearing[q.dtype] = made
        if q.dtype in self._smearing:
            found = self._smearing[q.dtype].backward(images.flatten(1))
        else:
            first = float(self.positions()[0]) / self.spacing * self.at_centre
            found = smear(
                images, self.angles, self.shape, self.centre, spacing=self.at_centre, first=first, source=source
            )
        return found.view(*q.shape[:2], *self.shape)

    def _warn_if_cut(self, y: Tensor, ends: tuple[int, ...]) -> None:
        """Warn if projections do not come down to nothing at the detector's ends, 0 and -1."""
        profile = y.detach().abs().mean((0, 1, 2))
        if any(float(profile[end]) > CUT * float(profile.max()) for end in ends):
            warnings.warn(
                "the projections do not fall to zero where the detector ends: what lies outside of it will brighten "
                "the rim of the picture; an iterative solver on a larger image does better",
                UserWarning,
                stacklevel=4,
            )

    # ---- bookkeeping -------------------------------------------------------------------------------------

    @property
    def _joseph(self) -> Weigh:
        return functools.partial(_weigh_joseph, shape=self.shape, centre=self.centre)

    def _rays(self, angles: Tensor | None = None) -> tuple[Tensor, Tensor]:
        theta, s = self.lines(self.angles if angles is None else angles)
        return theta.flatten(), s.flatten()

    def _orbits(self) -> Orbits:
        if self._found is None:
            centred = self.centre == ((self.shape[0] - 1) / 2, (self.shape[1] - 1) / 2)
            self._found = orbits(*self._rays(), self.shape, centred, directed=self.directed)
        return self._found

    def _matrix(self, dtype: torch.dtype) -> RayMatrix:
        if dtype not in self._matrices:
            made = self._made(self._joseph, dtype, reach=1, both=True)
            if made is None:
                if self.backend != "free":
                    warnings.warn(
                        f"the weights of the rays take more than max_memory = {self.max_memory:g} MB: they are "
                        "computed anew at each call, which is slow",
                        UserWarning,
                        stacklevel=2,
                    )
                made = RayMatrix(self._orbits(), self._joseph, self.shape, dtype, keep=False)
            self._matrices[dtype] = made
        return self._matrices[dtype]

    def _made(self, weigh: Weigh, dtype: torch.dtype, *, reach: int, both: bool) -> RayMatrix | None:
        """A matrix, if it fits ``max_memory`` together with those there are."""
        rays = self._orbits()
        count = reach * int(crossings(rays.theta, rays.s, self.shape, self.centre).sum())  # at most
        needed = count * (4 + dtype.itemsize) * (2 if both else 1) / 2**20
        there = sum(matrix.memory for matrix in (*self._matrices.values(), *self._smearing.values()))
        if self.backend == "free" or needed + there > self.max_memory or count >= 2**31:
            return None
        return RayMatrix(rays, weigh, self.shape, dtype, both=both)

    def _kernels(self) -> "RayKernels":
        if self._compiled is None:
            from pnp_lofi.triton_rays import RayKernels

            self._compiled = RayKernels(*self.lines(self.angles), self.shape, self.centre)
        return self._compiled

    def _on_gpu(self, data: Tensor) -> bool:
        """Whether the kernels are to be used."""
        if self.backend == "triton" or (self.backend == "auto" and data.is_cuda):
            if data.dtype == torch.float32 and kernels.available(data):
                return True
            if self.backend == "triton":
                raise RuntimeError('backend="triton" needs float32 data on a CUDA device and the package triton')
        return False

    def _forget(self) -> None:
        self._matrices, self._smearing, self._smeared, self._found, self._compiled = {}, {}, 0, None, None


def _weigh_joseph(
    theta: Tensor, s: Tensor, rows: bool, *, shape: Shape, centre: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    return joseph(theta, s, shape, centre, rows)


def warn_of_arc(length: float, needed: float) -> None:
    """Warn that views do not cover what filtered backprojection needs [rad]."""
    warnings.warn(
        f"the views cover {math.degrees(length):.0f} degrees, a whole image needs {math.degrees(needed):.0f}: filtered "
        "backprojection will lack edges and brightness, an iterative solver may not",
        UserWarning,
        stacklevel=4,
    )


def check_length(value: float, name: str) -> None:
    """:raises ValueError: unless the value is one number, finite and > 0."""
    if not isinstance(value, Real):
        raise ValueError(f"{name} must be one number, got {value!r}; pixels and detectors are evenly spaced")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and > 0, got {value}")


def checked_angles(angles: Tensor | Sequence[float] | int, arc: float) -> Tensor:
    """(A,) float64, with a warning if they look like degrees."""
    if isinstance(angles, Integral):
        angles = int(angles)
        if angles < 1:
            raise ValueError(f"the number of angles must be at least 1, got {angles}")
        return torch.arange(angles, dtype=torch.float64) * (arc / angles)
    given = torch.as_tensor(angles)
    if given.ndim != 1 or not len(given):
        raise ValueError(
            f"angles must be (A,) in radians, A >= 1, or an integer for that many even views, got shape "
            f"{tuple(given.shape)}"
        )
    result = given.detach().double()
    if not bool(torch.isfinite(result).all()):
        raise ValueError("angles hold NaN or inf; leave those views out")
    largest = float(result.abs().max())
    if largest > 4 * math.pi:
        warnings.warn(
            f"the largest angle is {largest:g} rad, {largest / math.pi / 2:.0f} turns: are they degrees? Convert them "
            "with torch.deg2rad",
            UserWarning,
            stacklevel=4,
        )
    return _even(result) if given.dtype == torch.float32 else result


def _even(angles: Tensor) -> Tensor:
    """Views that were rounded to single precision, put back on the even spacing pi / n they come from, if any: mirror
    images are recognised by their angles."""
    if len(angles) < 2:
        return angles
    step = float(angles[-1] - angles[0]) / (len(angles) - 1)
    if step == 0 or round(2 * math.pi / abs(step)) == 0:
        return angles
    unit = math.pi / round(2 * math.pi / abs(step)) * math.copysign(1, step)  # half a step
    start = round(float(angles[0]) / unit) * unit
    even = start + 2 * unit * torch.arange(len(angles), dtype=torch.float64, device=angles.device)
    return even if float((even - angles).abs().max()) < GRID else angles
