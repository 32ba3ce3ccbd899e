"""The restoring beam: a Gaussian fitted to the dirty beam's main lobe, and the image restored with it [Jy/beam]."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.nonuniform import fft_size

CUTOFF = 0.35  # of the dirty beam's peak: what lies above it is fitted, as in CASA
TAIL = 1e-10  # of the restoring beam's peak: what lies below it is left out
COARSE = 1.5  # pixels across the beam (FWHM) from which on its sum is its integral within 0.2 %
STEPS = 100  # at most, of the fit; five to ten are usual
CONVERGED = 1e-12  # relative change of the fit


@dataclass(frozen=True)
class Beam:
    """An elliptical Gaussian of peak 1.

    :param float major, minor: full widths at half maximum [arcsec].
    :param float position_angle: of the major axis from North through East [deg]; kept in (-90, 90].
    :raises ValueError: unless 0 < minor <= major < inf and the angle is finite.
    """

    major: float
    minor: float
    position_angle: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.minor <= self.major < math.inf and math.isfinite(self.position_angle)):
            raise ValueError(
                f"a beam has 0 < minor <= major [arcsec] and a finite position angle [deg], got {self.major}, "
                f"{self.minor}, {self.position_angle}"
            )
        object.__setattr__(self, "position_angle", 90.0 - (90.0 - self.position_angle) % 180.0)

    def cards(self) -> dict[str, float]:
        """BMAJ, BMIN and BPA of a FITS header [deg]."""
        return {"BMAJ": self.major / 3600, "BMIN": self.minor / 3600, "BPA": self.position_angle}

    def pixels(self, cell: float) -> float:
        """Its integral in pixels of cell [arcsec]: [Jy/beam] summed over this is [Jy]."""
        return math.pi / (4 * math.log(2)) * self.major * self.minor / cell**2

    def image(self, shape: Sequence[int], cell: float) -> Tensor:
        """(H, W) float64, its peak of 1 at the pixel (H//2, W//2); rows grow to the North, columns to the West.

        :raises ValueError: if it is finer than a pixel of cell [arcsec]. Warns below 1.5 pixels, where its sum differs
            from its integral.
        """
        if not 0 < cell < math.inf:
            raise ValueError(f"cell must be finite and > 0 arcsec, got {cell}")
        if self.minor < cell:
            raise ValueError(
                f"the beam ({self.minor:.4g} arcsec across) is finer than the pixel ({cell:.4g} arcsec); use a cell of "
                f"at most {self.minor / 2:.4g} arcsec, or a wider beam"
            )
        if self.minor < COARSE * cell:
            warnings.warn(
                f"the beam is only {self.minor / cell:.2f} pixels across: fluxes summed over the restored image are "
                f"wrong by some per cent; use a cell of at most {self.minor / 2:.4g} arcsec",
                stacklevel=2,
            )
        rows, columns = (cell * (torch.arange(n, dtype=torch.float64) - n // 2) for n in shape)
        north, east = rows[:, None], -columns[None]
        angle = math.radians(self.position_angle)
        along = north * math.cos(angle) + east * math.sin(angle)
        across = east * math.cos(angle) - north * math.sin(angle)
        return torch.exp(-4 * math.log(2) * ((along / self.major) ** 2 + (across / self.minor) ** 2))


def fit_beam(psf: Tensor, cell: float, *, cutoff: float = CUTOFF) -> Beam:
    """The Gaussian of peak 1 nearest, in least squares, to a dirty beam's main lobe: min sum (psf - exp(-d^T Q d))^2.

    The lobe is what hangs together with the peak above the cutoff, and at least the eight neighbours of the peak.

    :param torch.Tensor psf: (H, W), its peak of 1 at the pixel (H//2, W//2), from ``op.psf()``.
    :param float cell: pixel size [arcsec].
    :param float cutoff: of the peak, in (0, 1).
    :raises ValueError: for another shape or peak, a lobe that reaches the edge, a beam finer than a pixel.
    Source: Gauss-Newton with a step that is halved until the misfit falls; the cutoff is that of CASA's tclean.
    """
    values = psf.detach().double().cpu().numpy()
    if values.ndim != 2 or min(values.shape) < 5:
        raise ValueError(f"psf must be (H, W), at least 5 x 5, got {tuple(psf.shape)}; use op.psf()")
    if not 0 < cutoff < 1:
        raise ValueError(f"cutoff must lie between 0 and 1, got {cutoff}")
    middle = (values.shape[0] // 2, values.shape[1] // 2)
    if not abs(values[middle] - 1) < 1e-3 or values.max() > values[middle] + 1e-3:
        raise ValueError(f"psf must have its peak of 1 at the pixel {middle}, got {values[middle]:.4g} there")
    lobe = _lobe(values > cutoff, middle)
    rows, columns = np.nonzero(lobe)
    north, east = rows - middle[0], middle[1] - columns
    if np.linalg.eigvalsh(_as_matrix(q := _fitted(values[lobe], north, east)))[0] <= 0:
        raise ValueError("the dirty beam's main lobe is no peak; is the cell far too fine, or the coverage a line?")
    (narrow, wide), axes = np.linalg.eigh(_as_matrix(q))  # ascending: the first is the major axis
    major, minor = (2 * math.sqrt(math.log(2) / value) * cell for value in (narrow, wide))
    if minor < cell:
        raise ValueError(
            f"the dirty beam is finer than the pixel ({minor:.4g} against {cell:.4g} arcsec); use a cell of at most "
            f"{minor / 2:.4g} arcsec"
        )
    return Beam(major, minor, math.degrees(math.atan2(axes[1, 0], axes[0, 0])))


def restore(model: Tensor, residual: Tensor | None, beam: Beam, cell: float) -> Tensor:
    """model convolved with the beam, plus the residual. A point of 1 Jy peaks at 1 Jy/beam.

    The residual keeps the unit of its dirty beam, whose area is another: fluxes summed over what was not modelled are
    not to be trusted.

    :param torch.Tensor model: (..., H, W) [Jy/pixel]; torch.Tensor residual: the same shape [Jy/beam], or None.
    :param float cell: pixel size [arcsec].
    :returns: (..., H, W) [Jy/beam], of the model's dtype.
    :raises ValueError: if the shapes differ, or the beam is finer than the pixel.
    """
    if model.ndim < 2 or (residual is not None and residual.shape != model.shape):
        got = "none" if residual is None else tuple(residual.shape)
        raise ValueError(f"model and residual must be (..., H, W) alike, got {tuple(model.shape)} and {got}")
    reach = math.ceil(math.sqrt(math.log2(1 / TAIL)) / 2 * beam.major / cell)
    sizes = model.shape[-2:]
    half = [min(n - 1, reach) for n in sizes]
    kernel = beam.image([2 * h + 1 for h in half], cell).to(model.device)
    grid = [fft_size(n + h) for n, h in zip(sizes, half, strict=True)]
    padded = kernel.new_zeros(grid)
    padded[: kernel.shape[0], : kernel.shape[1]] = kernel
    spectrum = torch.fft.rfft2(padded.roll([-h for h in half], (0, 1)))
    restored = torch.fft.irfft2(torch.fft.rfft2(model.double(), s=grid) * spectrum, s=grid)
    restored = restored[..., : sizes[0], : sizes[1]]
    return (restored if residual is None else restored + residual).to(model.dtype)


def _lobe(above: np.ndarray, middle: tuple[int, int]) -> np.ndarray:
    """The part of a bool image that hangs together with its middle, and the eight neighbours of that."""
    lobe = np.zeros_like(above)
    lobe[middle] = True
    lobe = _dilated(lobe)
    above = above | lobe
    while True:
        if lobe[[0, -1]].any() or lobe[:, [0, -1]].any():
            raise ValueError("the dirty beam's main lobe reaches the edge of its image; use op.psf() of a larger size")
        grown = _dilated(lobe) & above
        if (grown == lobe).all():
            return lobe
        lobe = grown


def _dilated(image: np.ndarray) -> np.ndarray:
    padded = np.pad(image, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def _as_matrix(q: np.ndarray) -> np.ndarray:
    return np.array([[q[0], q[1]], [q[1], q[2]]])


def _fitted(values: np.ndarray, north: np.ndarray, east: np.ndarray) -> np.ndarray:
    """Q = [[q0, q1], [q1, q2]] [1/pixel^2] over (north, east); starts from the logarithm's weighted fit."""
    terms = np.stack([north**2, 2 * north * east, east**2], axis=-1).astype(np.float64)
    positive = np.maximum(values, 0.05)
    q = np.linalg.lstsq(terms * positive[:, None], -np.log(positive) * positive, rcond=None)[0]
    misfit = np.inf
    for _ in range(STEPS):
        with np.errstate(over="ignore"):
            model = np.exp(-terms @ q)
        now = np.square(values - model).sum()
        if now < misfit:
            misfit, kept = now, q
            step = np.linalg.lstsq(-terms * model[:, None], values - model, rcond=None)[0]
        else:
            step = step / 2
        q = kept + step
        if np.abs(step).max() <= CONVERGED * np.abs(q).max():
            break
    return kept
