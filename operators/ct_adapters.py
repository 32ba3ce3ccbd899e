"""The projectors of ASTRA and torch-radon with the geometry, the checks and the solvers of ours.

Neither package is a dependency (both are under the GPL): they are imported when an adapter is made. The adapters have
been tested against stand-ins that follow the published signatures and conventions, not yet against the real packages.
"""

import importlib
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.cg import Linear
from pnp_lofi.operators.base import Operator
from pnp_lofi.operators.radon import Radon


class _Adapter(Operator):
    """Another package's projector in the geometry of a Radon. Abstract.

    ``matched`` says whether ``A_adjoint`` is the transpose of ``A``. Where it is not, conjugate gradients and gradients
    of data misfits are those of a nearby problem, and ``adjointness_test`` shows how far away it is.
    """

    matched: bool

    def __init__(self, radon: Radon, *, matched: bool) -> None:
        super().__init__(
            radon.image_shape,
            radon.data_shape,
            noise_model=radon.noise_model,
            max_iter=radon.max_iter,
            tol=radon.tol,
            device=radon.angles.device,
        )
        self.radon, self.matched = radon, matched
        self.shape = radon.shape

    @property
    def sigma(self) -> float | None:
        return self.radon.sigma

    def fbp(self, y: Tensor, **options: Any) -> Tensor:
        """Filtered backprojection by :meth:`pnp_lofi.operators.radon.Radon.fbp`."""
        return self.radon.fbp(y, **options)

    def estimate_noise(self, y: Tensor) -> float:
        """See :meth:`pnp_lofi.operators.projector.Projector.estimate_noise`."""
        return self.radon.estimate_noise(y)

    def _preconditioner(self, alpha: float | Tensor) -> Linear | None:
        return self.radon._preconditioner(alpha)


class AstraRadon(_Adapter):
    """The ASTRA toolbox (``pip install astra-toolbox``) in the geometry of a Radon, image by image through the host.

    :param Radon radon: the geometry.
    :param str projector: "linear", whose weights are those of Radon, "line", "strip", or "cuda", which is not matched:
        its backprojection interpolates between detectors at each pixel.
    :raises ImportError: if the package is not here.
    ASTRA's angles, x to the right, y up and rows from the top are ours. It computes in float32, whatever the dtype.
    """

    MATCHED: ClassVar[tuple[str, ...]] = ("linear", "line", "strip")  # all projectors for a CPU are

    def __init__(self, radon: Radon, projector: str = "linear") -> None:
        super().__init__(radon, matched=projector in self.MATCHED)
        self.projector = projector
        self._astra = _Astra(radon, projector)

    def _forward(self, x: Tensor) -> Tensor:
        y = self._each(x, self._astra.operator.FP)
        return y.view(*x.shape[:2], *self.data_shape[2:])

    def _backward(self, y: Tensor) -> Tensor:
        return self._each(y, self._astra.operator.BP).view(*y.shape[:2], *self.shape)

    def _each(self, t: Tensor, function: Any) -> Tensor:
        arrays = t.detach().flatten(0, 1).to("cpu", torch.float32).contiguous().numpy()
        made = np.stack([function(array) for array in arrays])
        return torch.from_numpy(made).to(t.device, t.dtype) * self.radon.pixel_size


class _Held:
    """Something of another package that a copy of the adapter shares, because it cannot be copied."""

    operator: Any

    def __init__(self, operator: Any = None) -> None:
        self.operator = operator

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Held":
        return self


class _Astra(_Held):
    """A projector in ASTRA's own memory, in units of pixels; it lives as long as this object."""

    def __init__(self, radon: Radon, projector: str) -> None:
        self._package = _need("astra", "the ASTRA toolbox: pip install astra-toolbox")
        (height, width), (cy, cx) = radon.shape, radon.centre
        window = (-cx - 0.5, width - cx - 0.5, cy + 0.5 - height, cy + 0.5)  # min x, max x, min y, max y
        volume = self._package.create_vol_geom(height, width, *window)
        angles, spacing = radon.angles.cpu().numpy(), radon.at_centre
        if radon.offset:
            cos, sin = np.cos(angles), np.sin(angles)
            middle = radon.offset / radon.pixel_size
            vectors = np.stack([sin, -cos, middle * cos, middle * sin, spacing * cos, spacing * sin], 1)
            geometry = self._package.create_proj_geom("parallel_vec", radon.detectors, vectors)
        else:
            geometry = self._package.create_proj_geom("parallel", spacing, radon.detectors, angles)
        self._number = self._package.create_projector(projector, geometry, volume)
        super().__init__(self._package.OpTomo(self._number))

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            self._package.projector.delete(self._number)


class TorchRadon(_Adapter):
    """torch-radon, version 1 (``Radon``) or 2 (``ParallelBeam``), in the geometry of a Radon; on CUDA devices only.

    Not matched: its backprojection interpolates between detectors at each pixel, within 15 % of the transpose on rough
    images, nearer on smooth ones.

    :param Radon radon: the geometry, with the axis in the middle of the image and of the detector.
    :raises ImportError: if the package is not here.
    :raises ValueError: for what torch-radon does not have: another centre, an offset; in version 1 also images that
        are not square, or not a multiple of 16 wide.
    Both versions take angles in our sense (version 1 negates them inside, where y points down).
    """

    def __init__(self, radon: Radon) -> None:
        super().__init__(radon, matched=False)
        package = _need("torch_radon", "torch-radon: https://github.com/matteo-ronchetti/torch-radon")
        height, width = radon.shape
        if radon.offset or radon.centre != ((height - 1) / 2, (width - 1) / 2):
            raise ValueError(
                f"torch-radon has its axis in the middle of image and detector, got centre {radon.centre} and offset "
                f"{radon.offset:g}; use Radon itself, or AstraRadon"
            )
        angles, spacing = radon.angles.float().cpu(), radon.at_centre
        if hasattr(package, "ParallelBeam"):
            operator = package.ParallelBeam(radon.detectors, angles, spacing, (height, width))
        elif height != width or height % 16:
            raise ValueError(
                f"torch-radon 1 needs square images with a multiple of 16 pixels a side, got {height} x {width}"
            )
        else:
            operator = package.Radon(height, angles, det_count=radon.detectors, det_spacing=spacing)
        self._held = _Held(operator)

    def _forward(self, x: Tensor) -> Tensor:
        return self._held.operator.forward(x.detach().float()).to(x.dtype) * self.radon.pixel_size

    def _backward(self, y: Tensor) -> Tensor:
        return self._held.operator.backprojection(y.detach().float()).to(y.dtype) * self.radon.pixel_size


def _need(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"this adapter needs {what}") from error
