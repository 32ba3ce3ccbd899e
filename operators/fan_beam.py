"""Computed tomography with a fan of rays from a point onto a flat detector."""

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pnp_lofi.checks import Shape, checked_shape
from pnp_lofi.fbp import displaced, parker, ramp_filter, view_arc
from pnp_lofi.operators.projector import Projector, check_length, warn_of_arc
from pnp_lofi.rays import footprint


class FanBeam(Projector):
    """Fan-beam projection with a flat detector. At the angle b the source stands at -SO d, the detector's element u at
    (SD - SO) d + u e, with e = (cos b, sin b) and d = (-sin b, cos b): at u = 0 the ray of :class:`Radon`.

    :param tuple shape: (H, W).
    :param angles: (A,) [rad] of the views; an integer: so many even ones in [0, 2 pi).
    :param float source_origin: SO, source to axis of rotation. float source_detector: SD, source to detector.
    :param int detectors: D; default as many as see the whole image.
    :param float spacing: of the detectors on the detector; default ``pixel_size`` magnified by SD / SO.
    :param float offset: of the middle of the detector.
    :param tuple centre: row and column of the axis of rotation [pixel]; default ((H - 1)/2, (W - 1)/2).
    :param float pixel_size: in your unit of length, in which line integrals and detectors are then as well.
    :param float sigma: noise [units of y] that ``op(x)`` adds; or ``noise_model``, for instance :class:`LowDose`.
    :param str backend: "auto", "sparse", "free" or "triton"; float max_memory: of the sparse matrices [MB]; int
        max_iter, float tol: of conjugate gradients; see :class:`pnp_lofi.operators.projector.Projector`.
    :raises ValueError: if the source would stand inside the image, or nearer to the detector than to the axis.
    Source: Kak and Slaney, Principles of Computerized Tomographic Imaging, section 3.4.2.
    """

    arc: ClassVar[float] = 2 * math.pi
    directed: ClassVar[bool] = True

    def __init__(
        self,
        shape: Sequence[int],
        angles: Tensor | Sequence[float] | int,
        *,
        source_origin: float,
        source_detector: float,
        detectors: int | None = None,
        spacing: float | None = None,
        pixel_size: float = 1.0,
        **options: Any,
    ) -> None:
        check_length(source_origin, "source_origin")
        check_length(source_detector, "source_detector")
        shape = checked_shape(shape)
        check_length(pixel_size, "pixel_size")
        radius = math.hypot(*shape) / 2 * pixel_size
        if source_origin <= radius or source_detector < source_origin:
            raise ValueError(
                f"expected an image of radius {radius:g} < source_origin <= source_detector, got {source_origin:g} and "
                f"{source_detector:g}; are they in the unit of pixel_size ({pixel_size:g})?"
            )
        magnification = source_detector / source_origin
        spacing = pixel_size * magnification if spacing is None else spacing
        check_length(spacing, "the detector spacing")
        if detectors is None:
            half = source_detector * radius / math.sqrt(source_origin**2 - radius**2)
            detectors = math.ceil(2 * half / spacing - 1e-9)
        super().__init__(shape, angles, detectors, spacing=spacing, pixel_size=pixel_size, **options)
        self.source_origin, self.source_detector = float(source_origin), float(source_detector)

    @property
    def at_centre(self) -> float:
        """Spacing of the rays at the axis of rotation [pixel]."""
        return self.spacing * self.source_origin / self.source_detector / self.pixel_size

    @property
    def reach(self) -> float:
        """How far the image's corners project [the unit of length, at the detector]."""
        radius = super().reach
        return self.source_detector * radius / math.sqrt(self.source_origin**2 - radius**2)

    def lines(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """theta = b - g [rad] and s = SO sin g [pixel] with tan g = u / SD, (A, D) each."""
        gamma = self._fan(angles.device)
        s = self.source_origin / self.pixel_size * gamma.sin()
        return angles[:, None] - gamma, s.expand(len(angles), -1)

    def fbp(self, y: Tensor, *, filter: str = "ramp", cutoff: float = 1.0) -> Tensor:
        """Weighted filtered backprojection, linear in y. Scans shorter than a turn get Parker's weights.

        :param torch.Tensor y: (B, C, A, D).
        :param str filter: "ramp", "shepp-logan", "cosine", "hamming" or "hann".
        :param float cutoff: where the filter ends, as a fraction of the Nyquist frequency.
        :returns: (B, C, H, W).
        :raises ValueError: for an unknown filter or a cut-off out of range.
        Warns if less than half a turn and the fan is covered, or the projections go on beyond the detector. A detector
        that is displaced to one side takes a whole turn of views.
        Source: Kak and Slaney, equations 3.97 to 3.101; Parker 1982; Wang 2002.
        """
        self._check_data(y)
        gamma = self._fan(self.angles.device)
        spacing = self.spacing * self.source_origin / self.source_detector
        q = ramp_filter(y * (gamma.cos() * self._view_weights(y, gamma)).to(y.dtype), spacing, filter, cutoff)
        far = self.reach / self.source_detector  # tan of the fan angle of the image's rim
        widest = self.at_centre * (1 + far) * math.hypot(1, far)  # footprint of a ray on the far side
        reach = math.ceil(widest * math.sqrt(2))
        weigh = functools.partial(
            _interpolate,
            shape=self.shape,
            centre=self.centre,
            spacing=self.at_centre,
            source=self.source_origin / self.pixel_size,
            reach=reach,
        )
        return self._smear(q, weigh, reach, source=self.source_origin / self.pixel_size)

    def _fan(self, device: torch.device) -> Tensor:
        """(D,) angles of the rays in the fan [rad]."""
        return torch.atan(self.positions(device) / self.source_detector)

    def _view_weights(self, y: Tensor, gamma: Tensor) -> Tensor:
        """(A, D): of the arc what a view stands for, times what a ray stands for of the line's two measurements."""
        turn = 2 * math.pi
        arc = view_arc(self.angles, turn)
        one_sided = displaced(gamma, math.atan(self.reach / self.source_detector))
        if arc.length == turn:
            places = self.positions()
            ends = (0, -1) if one_sided is None else (-1,) if float(places[-1] + places[0]) > 0 else (0,)
            self._warn_if_cut(y, ends)
            return arc.weights[:, None] * (torch.full_like(gamma, 0.5) if one_sided is None else one_sided)
        self._warn_if_cut(y, (0, -1))
        needed = math.pi + 2 * min(float(gamma.abs().max()), math.atan(self.reach / self.source_detector))
        if arc.length < needed - arc.length / len(self.angles):
            warn_of_arc(arc.length, needed)
        if arc.length <= math.pi:
            return arc.weights[:, None].expand(-1, len(gamma))
        return arc.weights[:, None] * parker(((self.angles - arc.start) % turn)[:, None], gamma[None], arc.length)


def _interpolate(
    theta: Tensor,
    s: Tensor,
    rows: bool,
    *,
    shape: Shape,
    centre: tuple[float, float],
    spacing: float,
    source: float,
    reach: int,
) -> tuple[Tensor, Tensor]:
    """Linear interpolation between detectors at each pixel, over its squared distance from the source."""

    def weigh(theta: Tensor, s: Tensor, x: Tensor, y: Tensor) -> Tensor:
        gamma = torch.asin(s / source)
        cos, sin = torch.cos(theta + gamma), torch.sin(theta + gamma)
        depth = (source - x * sin + y * cos) / source
        u = (x * cos + y * sin) / depth
        hat = (1 - (u - source * gamma.tan()).abs() / spacing).clamp(min=0)
        return torch.where(depth > 0, hat / depth.clamp(min=1e-12) ** 2, 0)

    return footprint(theta, s, shape, centre, rows, reach=reach, weigh=weigh)
