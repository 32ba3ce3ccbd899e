"""Computed tomography with parallel rays."""

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pnp_lofi.checks import Shape, checked_shape
from pnp_lofi.fbp import displaced, ramp_filter, view_arc
from pnp_lofi.operators.low_dose import LowDose
from pnp_lofi.operators.projector import Projector, check_length, warn_of_arc
from pnp_lofi.rays import footprint


class Radon(Projector):
    """Parallel-beam projection: y(t, s) = integral of x along the line x cos t + y sin t = s.

    :param tuple shape: (H, W).
    :param angles: (A,) [rad], any order; an integer: so many even ones in [0, pi).
    :param int detectors: D; default as many as cover the image's diagonal, even or odd as W is: vertical rays then run
        through the middle of pixels.
    :param float spacing: of the detectors; default ``pixel_size``. float offset: of the middle of the detector.
    :param tuple centre: row and column of the axis of rotation [pixel]; default ((H - 1)/2, (W - 1)/2).
    :param float pixel_size: in your unit of length, in which line integrals and detectors are then as well.
    :param float sigma: noise [units of y] that ``op(x)`` adds; or ``noise_model``, for instance :class:`LowDose`.
    :param str backend: "auto", "sparse", "free" or "triton"; float max_memory: of the sparse matrices [MB]; int
        max_iter, float tol: of conjugate gradients; see :class:`pnp_lofi.operators.projector.Projector`.
    :raises ValueError: for angles that are empty or not finite, lengths that are not positive.
    Data are (B, C, angles, detectors); deepinv's Tomography has (detectors, angles): ``y.mT`` converts.
    Source: Joseph 1982; the weights equal ASTRA's "linear" projector.
    """

    arc: ClassVar[float] = math.pi

    def __init__(
        self,
        shape: Sequence[int],
        angles: Tensor | Sequence[float] | int,
        detectors: int | None = None,
        *,
        spacing: float | None = None,
        pixel_size: float = 1.0,
        **options: Any,
    ) -> None:
        shape = checked_shape(shape)
        check_length(pixel_size, "pixel_size")
        spacing = pixel_size if spacing is None else spacing
        check_length(spacing, "the detector spacing")
        if detectors is None:
            detectors = math.ceil(math.hypot(*shape) * pixel_size / spacing - 1e-9)
            detectors += (detectors - shape[1]) % 2
        super().__init__(shape, angles, detectors, spacing=spacing, pixel_size=pixel_size, **options)

    @classmethod
    def like_skimage(cls, size: int, angles: Tensor | Sequence[float] | int, **options: Any) -> "Radon":
        """The geometry of ``skimage.transform.radon(image, theta, circle=False)``: the axis runs through the pixel
        (size // 2, size // 2) and meets the detector D // 2 of D.

        Sinograms are the transpose of theirs. They turn the image with a bilinear interpolation, here the weights are
        Joseph's: the same sinogram to about 1 %. ``fbp`` equals their ``iradon`` but for pixels at the rim, for which a
        ray passes beyond the last detector: it counts by its distance there, theirs not at all.
        """
        detectors = _padded(size)
        offset = (detectors - 1) / 2 - detectors // 2
        return cls((size, size), angles, detectors, offset=offset, centre=(size // 2, size // 2), **options)

    @classmethod
    def like_deepinv(cls, size: int, angles: Tensor | Sequence[float] | int, **options: Any) -> "Radon":
        """The geometry of ``deepinv.physics.Tomography(angles, size, circle=False, normalize=False)``, for its data.

        Its sinograms are (B, C, detectors, angles), its angles in degrees: ``y.mT`` and ``torch.deg2rad(angles)``
        convert. It pads the image to D pixels, and turns it about a point half a pixel off where D - size is odd.
        """
        detectors = _padded(size)
        middle = (detectors - 1) / 2 - detectors // 2 + size // 2
        return cls((size, size), angles, detectors, centre=(middle, middle), **options)

    @classmethod
    def lodopab(cls, **options: Any) -> "Radon":
        """LoDoPaB-CT, geometry and noise: 362 x 362 pixels on (0.26 m)^2, 1000 views, 513 detectors, 4096 photons.

        Images are as in its files, [x, y], in units of mu_max = 81.35858 / m; y is as in its files. Lengths in metres.
        Source: Leuschner et al. 2021, doi:10.1038/s41597-021-00893-z.
        """
        noise = LowDose(4096, mu=81.35858) if "sigma" not in options else None
        views = (torch.arange(1000, dtype=torch.float64) + 0.5) * (math.pi / 1000)
        half = 0.13 * math.sqrt(2)
        chosen = {"noise_model": noise, "pixel_size": 0.26 / 362, "spacing": 2 * half / 513} | options
        return cls((362, 362), views - math.pi / 2, 513, **chosen)  # a quarter turn: axis 0 of its files is x

    def lines(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """theta [rad] and s [pixel], (A, D) each."""
        s = self.positions(angles.device) / self.pixel_size
        return angles[:, None].expand(-1, len(s)), s.expand(len(angles), -1)

    def fbp(self, y: Tensor, *, filter: str = "ramp", cutoff: float = 1.0) -> Tensor:
        """Filtered backprojection, linear in y.

        :param torch.Tensor y: (B, C, A, D).
        :param str filter: "ramp", "shepp-logan", "cosine", "hamming" or "hann".
        :param float cutoff: where the filter ends, as a fraction of the Nyquist frequency.
        :returns: (B, C, H, W).
        :raises ValueError: for an unknown filter or a cut-off out of range.
        Warns if less than half a turn is covered, or the projections go on beyond the detector. A detector that is
        displaced to one side takes a whole turn of views.
        Source: Kak and Slaney, Principles of Computerized Tomographic Imaging, section 3.3; Wang 2002.
        """
        self._check_data(y)
        weights = self._view_weights(y)
        q = ramp_filter(y * weights.to(y.dtype), self.spacing, filter, cutoff)
        reach = math.ceil(self.at_centre * math.sqrt(2))
        weigh = functools.partial(
            _interpolate, shape=self.shape, centre=self.centre, spacing=self.at_centre, reach=reach
        )
        return self._smear(q, weigh, reach)

    def _view_weights(self, y: Tensor) -> Tensor:
        """(A, 1), or (A, D) if the detector is displaced and the views go round a whole turn."""
        places = self.positions()
        one_sided = displaced(places, self.reach)
        turn = view_arc(self.angles, 2 * math.pi)
        if one_sided is not None and turn.length == 2 * math.pi:
            self._warn_if_cut(y, (-1,) if float(places[-1] + places[0]) > 0 else (0,))
            return turn.weights[:, None] * one_sided
        self._warn_if_cut(y, (0, -1))
        half = view_arc(self.angles, math.pi)
        if half.length < math.pi:
            warn_of_arc(half.length, math.pi)
        return half.weights[:, None]


def _padded(size: int) -> int:
    """What scikit-image and deepinv pad a square to, so that its diagonal is seen."""
    return size + math.ceil(math.sqrt(2) * size - size)


def _interpolate(
    theta: Tensor, s: Tensor, rows: bool, *, shape: Shape, centre: tuple[float, float], spacing: float, reach: int
) -> tuple[Tensor, Tensor]:
    """Linear interpolation between detectors at each pixel."""

    def weigh(theta: Tensor, s: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return (1 - (x * theta.cos() + y * theta.sin() - s).abs() / spacing).clamp(min=0)

    return footprint(theta, s, shape, centre, rows, reach=reach, weigh=weigh)
