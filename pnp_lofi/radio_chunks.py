"""Visibilities as an image sees them, in slices, for what does not fit memory."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.observation import Observation
from pnp_lofi.operators import WeightGrid, taper, uv_radians, w_phase
from pnp_lofi.operators.uv import C, within_nyquist
from pnp_lofi.operators.weighting import SCHEMES
from pnp_lofi.radio_measurement import warn_of_w
from pnp_lofi.visibilities import ROWS, Visibilities, check_part, open_visibilities


@dataclass(frozen=True)
class Weighting:
    """How visibilities are weighted, see :mod:`pnp_lofi.operators.weighting`.

    :param str scheme: "natural", "uniform" or "briggs".
    :param float robust: Briggs' R, 2 is near natural, -2 near uniform; of "briggs" alone.
    :param float taper: full width at half maximum [arcsec] of a Gaussian that widens the beam; 0: none.
    :raises ValueError: for an unknown scheme, a taper < 0.
    """

    scheme: str = "natural"
    robust: float = 0.0
    taper: float = 0.0

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(f"weights must be one of {', '.join(SCHEMES)}, got {self.scheme!r}")
        if self.robust and self.scheme != "briggs":
            raise ValueError(
                f"robust belongs to Briggs weights, got {self.robust} with {self.scheme} ones; --weight briggs"
            )
        if not 0 <= self.taper < np.inf:
            raise ValueError(f"the taper must be finite and >= 0 arcsec, got {self.taper}")

    def __str__(self) -> str:
        robust = f", robust {self.robust:g}" if self.scheme == "briggs" else ""
        return self.scheme + robust + (f", taper {self.taper:g} arcsec" if self.taper else "")


NATURAL = Weighting()


class Piece(NamedTuple):
    """A slice of m visibilities.

    :param torch.Tensor uv: (2, m) float64 [rad/pixel].
    :param torch.Tensor vis: (m,) complex128 [the units of A0 x], not whitened.
    :param torch.Tensor natural, weight: (m,) float64, 1/sigma^2 and what is imaged with.
    :param torch.Tensor uvw: (m, 3) or (m, 2) float64 [wavelengths]; float frequency: mean [Hz].
    """

    uv: Tensor
    vis: Tensor
    natural: Tensor
    weight: Tensor
    uvw: Tensor
    frequency: float


class View:
    """Visibilities as an image of a size, cell and weighting sees them.

    Flagged rows and those of weight zero are left out. Weights that are not absolute are scaled to a mean of one over
    the whole file, which takes a pass over them; uniform and Briggs weights take another.

    :param Visibilities source: from :func:`open_visibilities`.
    :param tuple shape: (H, W) of the image.
    :param float cell: pixel size [arcsec]; default the source's.
    :ivar tuple w_phase: largest phase [rad] seen so far that is lost without w, at the image's edge and corner.
    """

    def __init__(
        self, source: Visibilities, shape: tuple[int, int], *, cell: float | None = None, weighting: Weighting = NATURAL
    ) -> None:
        self.source, self.shape, self.weighting = source, shape, weighting
        self.cell = source.cell if cell is None else cell
        if weighting.taper > min(shape) * self.cell:
            raise ValueError(
                f"a taper of {weighting.taper:g} arcsec is wider than the image, {min(shape) * self.cell:g} arcsec"
            )
        self.w_phase = (0.0, 0.0)
        self._scale = shape[0] * shape[1] if source.absolute_weights else 1 / source.mean_weight
        self._grid: WeightGrid | None = None
        if weighting.scheme != "natural":
            self._grid = WeightGrid(shape)
            for obs in source.chunks(cell=self.cell, data=False):
                self._grid.add(self._uv(obs), self._natural(obs))

    def pieces(self, rows: int = ROWS, part: tuple[int, int] = (0, 1)) -> Iterator[Piece]:
        """:param int rows: visibilities read at a time; tuple part: (k, n), the k-th of n parts of them, from 0.
        :raises ValueError: for what cannot be imaged, and for cells so coarse that the longest baselines alias.
        """
        pixels = self.shape[0] * self.shape[1]
        for obs in self.source.chunks(rows, part, cell=self.cell):
            uvw, frequency = torch.as_tensor(obs.uvw), torch.as_tensor(obs.frequency)
            if uvw.shape[1] == 3:
                self.w_phase = max(self.w_phase, w_phase(uvw, float(frequency.max()), self.cell, self.shape))
            uv, natural = self._uv(obs), self._natural(obs)
            vis = torch.as_tensor(obs.vis.astype(np.complex128)) / pixels**0.5
            wavelengths = uvw.double() * (frequency / C).reshape(-1, 1)
            yield Piece(uv, vis, natural, self._weight(uv, natural), wavelengths, float(frequency.double().mean()))

    def _uv(self, obs: Observation) -> Tensor:
        uv = uv_radians(torch.as_tensor(obs.uvw), torch.as_tensor(obs.frequency), self.cell)
        return within_nyquist(uv, self.cell)

    def _natural(self, obs: Observation) -> Tensor:
        return torch.as_tensor(obs.weight, dtype=torch.float64) * self._scale

    def _weight(self, uv: Tensor, natural: Tensor) -> Tensor:
        weight = natural
        if self._grid is not None and self.weighting.scheme == "uniform":
            weight = self._grid.uniform(uv, natural)
        elif self._grid is not None:
            weight = self._grid.briggs(uv, natural, robust=self.weighting.robust)
        return weight * taper(uv, self.weighting.taper / self.cell) if self.weighting.taper else weight


def measurement_chunks(
    observation: str | os.PathLike[str] | Visibilities,
    shape: tuple[int, int],
    *,
    cell: float | None = None,
    weighting: Weighting = NATURAL,
    rows: int = ROWS,
    part: tuple[int, int] = (0, 1),
    **selection: Any,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What :func:`pnp_lofi.radio.measurement` images, a slice at a time, for :class:`NormalEquations`; see
    :class:`View`.

    :param observation: OBS.h5, MeasurementSet, UVFITS, .mat, npz, npy, or visibilities that were opened.
    :param tuple shape: (H, W) of the image.
    :param float cell: pixel size [arcsec]; default the observation's.
    :param int rows: visibilities read at a time.
    :param tuple part: (k, n), the k-th of n parts of the rows, from 0: one for each of n processes.
    :param selection: as for :func:`open_visibilities`.
    :returns: iterator of uv (2, m) [rad/pixel], vis (m,) complex128 not whitened, weights (m,) float64.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is not of the layout, holds what cannot be imaged, or part or rows cannot be.
    """
    check_part(rows, part)
    if not isinstance(observation, Visibilities):
        observation = open_visibilities(observation, **selection)
    elif selection:
        raise TypeError(f"{', '.join(selection)}: the visibilities are open already; choose in open_visibilities")
    return _chunks(observation, shape, cell, weighting, rows, part)


def _chunks(
    source: Visibilities,
    shape: tuple[int, int],
    cell: float | None,
    weighting: Weighting,
    rows: int,
    part: tuple[int, int],
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    view = View(source, shape, cell=cell, weighting=weighting)
    for piece in view.pieces(rows, part):
        yield piece.uv, piece.vis, piece.weight
    warn_of_w(*view.w_phase)
