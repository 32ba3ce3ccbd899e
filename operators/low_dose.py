"""The noise of X-rays: photons are counted, then the logarithm is taken."""

import math
import warnings
from typing import Any

import torch
from deepinv.physics import NoiseModel
from torch import Tensor

from pnp_lofi.noise import unchanged

DARK = 0.2  # part of the detectors without a photon above which the units are doubted


class LowDose(NoiseModel):
    """y = -log(max(N, zero) / N0) / mu with N ~ Poisson(N0 exp(-mu x)).

    deepinv's LogPoissonNoise is the same without ``zero``: a detector without a photon gives inf there.

    :param float photons: N0 that leave the source for each detector.
    :param float mu: [1 / units of y] what turns y into the exponent, for instance 81.35858 for LoDoPaB-CT.
    :param float zero: the count that stands for no photon at all.
    :param torch.Generator rng: for repeatable noise.
    :raises ValueError: if a number is not finite and > 0.
    Source: Leuschner et al. 2021, LoDoPaB-CT, equation 5.
    """

    def __init__(
        self, photons: float, mu: float = 1.0, *, zero: float = 0.1, rng: torch.Generator | None = None
    ) -> None:
        for name, value in (("photons", photons), ("mu", mu), ("zero", zero)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be finite and > 0, got {value}")
        super().__init__(noise_model=unchanged, rng=rng)
        self.photons, self.mu, self.zero = float(photons), float(mu), float(zero)

    def forward(self, x: Tensor, seed: int | None = None, **kwargs: Any) -> Tensor:
        """Line integrals with the noise of photon counting.

        :raises ValueError: if an expected count overflows, for x far below zero. Warns if more than 20 % of the
            detectors see no photon.
        """
        self.rng_manual_seed(seed)
        expected = self.photons * torch.exp(-self.mu * x.double())
        if not bool(torch.isfinite(expected).all()):
            raise ValueError(f"exp(-mu x) overflows for x = {float(x.min()):g} and mu = {self.mu:g}; check the units")
        counts = torch.poisson(expected, generator=self.rng)
        dark = float((counts == 0).double().mean())
        if dark > DARK:
            warnings.warn(
                f"{100 * dark:.0f} % of the detectors see no photon: of {self.photons:g} there are exp(-mu x) left, "
                f"and mu x is {self.mu * float(x.mean()):.3g} on average; choose mu [1 / units of x] such that mu x "
                "is an attenuation of about 1 to 5, or more photons",
                stacklevel=4,  # through Module.__call__
            )
        return (torch.log(self.photons / counts.clamp(min=self.zero)) / self.mu).to(x.dtype)

    def weights(self, y: Tensor) -> Tensor:
        """1 / variance of each datum [1 / units of y^2] to first order: that of -log(N) / mu is 1 / (N mu^2).

        For :class:`pnp_lofi.operators.Weighted`. Fewer than one photon count as one.
        """
        return ((self.photons * torch.exp(-self.mu * y.double())).clamp(min=1) * self.mu**2).to(y.dtype)

    def level(self, y: Tensor) -> float:
        """rms of the noise of y [units of y]."""
        return float((1 / self.weights(y)).mean().sqrt())
