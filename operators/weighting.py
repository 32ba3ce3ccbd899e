"""Natural, uniform and Briggs weighting of visibilities.

Natural weights are 1/sigma^2: with them A = W^1/2 A0 whitens the noise, ||A x - y||^2 is the likelihood, and a point
source is seen best. They are what a reconstruction wants. Uniform and Briggs weights v_i trade that for a sharper beam:
they make better dirty images and beams for CLEAN. In ``NUFFT(shape, uv, v)`` and ``op.whiten(vis)`` they may be used
alike, but the noise of W^1/2 vis is then no longer white (its variance goes as v_i / w_i), and a solver minimises a
misfit that is not the likelihood. :func:`noise_increase` tells what it costs.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pnp_lofi.checks import checked_shape
from pnp_lofi.distributed import sum_over_processes
from pnp_lofi.operators.interferometer import checked_uv, checked_weights

SCHEMES = ("natural", "uniform", "briggs")


def imaging_weights(
    img_size: Sequence[int],
    uv: Tensor,
    weights: Tensor | None = None,
    *,
    scheme: str = "briggs",
    robust: float = 0.0,
    real: bool = True,
) -> Tensor:
    """Weights for :class:`NUFFT` from natural ones; for visibilities that do not fit memory see :class:`WeightGrid`.

    :param tuple img_size: (H, W) of the image, whose field of view sets the cells.
    :param torch.Tensor uv: (2, M) [rad/pixel].
    :param torch.Tensor weights: (M,) natural ones, 1/sigma^2; default ones.
    :param str scheme: "natural", "uniform" or "briggs".
    :param float robust: Briggs' R: 2 is near natural, -2 near uniform.
    :param bool real: images are real, each visibility counts at -uv as well.
    :returns: (M,) float64. Only "natural" keeps the scale of the weights; images in Jy/beam do not depend on it.
    :raises ValueError: for an unknown scheme, bad uv or weights, R that is not finite.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    if scheme == "natural":
        uv = checked_uv(uv)
        checked = checked_weights(weights, uv)
        return torch.ones_like(uv[0]) if checked is None else checked
    grid = WeightGrid(img_size, real=real, device=torch.as_tensor(uv).device).add(uv, weights)
    return grid.uniform(uv, weights) if scheme == "uniform" else grid.briggs(uv, weights, robust=robust)


def taper(uv: Tensor, fwhm: float) -> Tensor:
    """Factors of weights that widen the beam, exp(-(fwhm |uv|)^2 / (16 ln 2)): the Fourier transform of a Gaussian.

    :param torch.Tensor uv: (2, M) [rad/pixel]; float fwhm: of the Gaussian in the image [pixel].
    :returns: (M,) float64.
    :raises ValueError: unless fwhm is finite and > 0.
    """
    if not 0 < fwhm < math.inf:
        raise ValueError(f"the taper's width must be finite and > 0, got {fwhm}")
    return torch.exp(checked_uv(uv, empty=True).square().sum(0) * (-(fwhm**2) / (16 * math.log(2))))


def noise_increase(weights: Tensor, imaging: Tensor) -> float:
    """Noise of the dirty image with imaging weights v over that with natural ones w, at least 1:

        sqrt(sum v^2 / w  sum w) / sum v

    :param torch.Tensor weights, imaging: w = 1/sigma^2 and v, (M,).
    :raises ValueError: if the lengths differ, or v > 0 where w = 0.
    """
    w, v = weights.to(torch.float64), imaging.to(torch.float64)
    if w.shape != v.shape:
        raise ValueError(f"weights and imaging must be of one length, got {tuple(w.shape)} and {tuple(v.shape)}")
    if bool(((v > 0) & (w <= 0)).any()):
        raise ValueError("imaging weights are > 0 where the natural ones are zero: that noise is unbounded")
    variance = torch.where(v > 0, v.square() / w, 0).sum()
    return float((variance * w.sum()).sqrt() / v.sum())


class WeightGrid:
    """Weights summed in the cells of an image's uv plane, from which uniform and Briggs weights follow:

        W_k = sum of the w_i in cell k,   uniform w_i / W_k,   Briggs w_i / (1 + f^2 W_k),
        f^2 = (5 10^-R)^2 / (sum_k W_k^2 / sum_i w_i)

    A cell is a pixel of the image's FFT: 2 pi / N wide, centred on the multiples of that, periodic. With a real sky
    each visibility counts at -uv as well, in both sums over cells and visibilities. Visibilities that do not fit memory
    take two passes: ``add`` them all, then ask for the weights of each chunk. Grids of parts are merged with ``+``.

    :param tuple img_size: (H, W) of the image.
    :param bool real: images are real.
    Source: Briggs 1995, High fidelity deconvolution of moderately resolved sources (PhD thesis), chapter 3.
    """

    def __init__(self, img_size: Sequence[int], *, real: bool = True, device: torch.device | str = "cpu") -> None:
        self.shape, self.real = checked_shape(img_size), real
        self.sums = torch.zeros(self.shape, dtype=torch.float64, device=device)

    def add(self, uv: Tensor, weights: Tensor | None = None) -> "WeightGrid":
        """Add the natural weights of visibilities.

        :param torch.Tensor uv: (2, m) [rad/pixel]; torch.Tensor weights: (m,), default ones.
        :returns: the grid itself.
        """
        uv, w = self._checked(uv, weights)
        self.sums.view(-1).index_add_(0, self._cells(uv), w)
        return self

    def uniform(self, uv: Tensor, weights: Tensor | None = None) -> Tensor:
        """w_i / W_k, (m,) float64: every cell weighs the same.

        :raises ValueError: if a cell was never added to.
        """
        uv, w = self._checked(uv, weights)
        density = self._density().view(-1)[self._cells(uv)]
        _check_known(density, w)
        return torch.where(w > 0, w / density, 0)

    def briggs(self, uv: Tensor, weights: Tensor | None = None, *, robust: float = 0.0) -> Tensor:
        """w_i / (1 + f^2 W_k), (m,) float64.

        :param float robust: R.
        :raises ValueError: if a cell was never added to, or R is not finite.
        """
        if not math.isfinite(robust):
            raise ValueError(f"robust must be finite, usually from -2 (uniform) to 2 (natural), got {robust}")
        uv, w = self._checked(uv, weights)
        sums = self._density()
        density = sums.view(-1)[self._cells(uv)]
        _check_known(density, w)
        f2 = (5 * 10**-robust) ** 2 * sums.sum() / sums.square().sum()
        return torch.where(w > 0, w / (1 + f2 * density), 0)

    def __add__(self, other: "WeightGrid") -> "WeightGrid":
        if (self.shape, self.real) != (other.shape, other.real):
            raise ValueError(
                f"grids must be of one kind to be added, got shape {self.shape}, real={self.real} and {other.shape}, "
                f"real={other.real}"
            )
        total = WeightGrid(self.shape, real=self.real, device=self.sums.device)
        total.sums = self.sums + other.sums.to(self.sums.device)
        return total

    def all_reduce(self) -> "WeightGrid":
        """Replace the sums of every process by those over all of torch.distributed's processes.

        :returns: the grid itself.
        """
        sum_over_processes([self.sums], about={"shape": list(self.shape), "real": self.real})
        return self

    def _density(self) -> Tensor:
        """W_k, with the conjugates; its sum is that of all w_i, with the conjugates."""
        if not self.real:
            return self.sums
        return self.sums + self.sums.flip(0, 1).roll((1, 1), (0, 1))  # cell -k, modulo N

    def _cells(self, uv: Tensor) -> Tensor:
        """Flat index of each visibility's cell."""
        H, W = self.shape
        size = torch.tensor([[H], [W]], dtype=torch.float64, device=uv.device)
        # half to even: the cells of uv and -uv are each other's mirror image
        rows, columns = torch.round(uv * size / (2 * math.pi)).long().remainder(size.long())
        return rows * W + columns

    def _checked(self, uv: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        uv = checked_uv(uv, empty=True)
        w = checked_weights(weights, uv)
        return uv.to(self.sums.device), (torch.ones_like(uv[0]) if w is None else w).to(self.sums.device)


def _check_known(density: Tensor, w: Tensor) -> None:
    if bool(((density <= 0) & (w > 0)).any()):
        raise ValueError("some visibilities lie in cells that nothing was added to; add all of them before")
