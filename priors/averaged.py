"""A denoiser that goes only part of the way."""

from typing import Any

from deepinv.models import Denoiser
from torch import Tensor

from pnp_lofi.checks import check_prior


class Averaged(Denoiser):
    """(1 - theta) x + theta D(x): steadier than D, and weaker.

    Where the derivative of x - D(x) is symmetric with eigenvalues in [0, r], that of the average has its eigenvalues in
    [1 - theta r, 1]: for theta <= 1 / r it is firmly non-expansive, and every solver converges. r is
    ``lipschitz(prior, x, sigma, residual=True)``.

    :param Denoiser prior: D, called as ``prior(x, sigma)``.
    :param float theta: in (0, 1]; 1 is D itself.
    :raises ValueError: for a theta that is not; TypeError: for a prior that cannot be called.
    Source: Krasnoselskii-Mann averaging; Bauschke and Combettes 2017, section 5.2.
    """

    def __init__(self, prior: Denoiser, theta: float = 0.5) -> None:
        super().__init__()
        check_prior(prior)
        if not 0 < theta <= 1:
            raise ValueError(f"theta must lie in (0, 1], 1 being the denoiser itself, got {theta}")
        self.prior, self.theta = prior, theta

    @property
    def header(self) -> dict[str, Any]:
        """What the denoiser was trained on, where it says so."""
        return getattr(self.prior, "header", {})

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: Any) -> Tensor:
        """:param torch.Tensor x: (B, C, H, W). :param sigma: level [units of x]. :returns: (B, C, H, W)."""
        return x.lerp(self.prior(x, sigma), self.theta)
