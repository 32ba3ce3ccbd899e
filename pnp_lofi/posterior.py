"""Error bars: the posterior over images, drawn from by Langevin steps with a denoiser as the prior's score."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from deepinv.models import Denoiser, Reconstructor
from deepinv.physics import LinearPhysics
from deepinv.utils import TensorList
from torch import Tensor
from tqdm import tqdm

from pnp_lofi.admm import ADMM
from pnp_lofi.checks import check_is_tensor
from pnp_lofi.langevin import ULA_PART, skrock_step, stages_for, ula_step
from pnp_lofi.parameters import choose, each, noise_level
from pnp_lofi.schedules import Level
from pnp_lofi.uncertainty import Blocks, Uncertainty, warn_of_few

STRIDE = 0.5  # time from draw to draw over sigma_d^2, in which what only the prior holds forgets a factor of e^-0.5
BURN_IN = 0.25  # of the draws, made before and thrown away
PROBE = 0.1  # of sigma_d: length of the differences that tell the denoiser's derivative
LAST = 49  # iteration whose sigma_d is taken, of the 50 that ADMM makes
FEWEST = 8  # draws


class Posterior(Reconstructor):
    """Mean and standard deviation of the image x given y, with a denoiser D as the prior.

    A chain of Langevin steps draws z = x + sigma_d n, the image blurred by white noise, from

        p(z | y) ~ exp(-||A z - y||^2 / (2 sigma_n^2)) p_sigma_d(z),    grad log p_sigma_d = (D(z) - z) / sigma_d^2

    which is Tweedie's formula for the prior p blurred by that noise. What is told is the image behind it, of which
    E[x | z] = D(z) and Cov[x | z] = sigma_d^2 dD/dz:

        mean = E D(z),    std^2 = Var D(z) + sigma_d^2 E diag dD/dz

    Nothing has to be tuned: sigma_d is what :class:`~pnp_lofi.ADMM` ends at, the step follows from
    1 / (L / sigma_n^2 + 1 / sigma_d^2), and from draw to draw the chain moves on by the time sigma_d^2 / 2.

    :param LinearPhysics op: forward operator A; images are real.
    :param Denoiser prior: D, called as ``prior(x, sigma)``.
    :param str sampler: "skrock", or "ula": simpler, and slower by about sqrt(L) sigma_d / sigma_n.
    :param sigma_n: noise per real component [units of y], or (B,); default: the operator's, else ADMM's estimate.
    :param sigma_d: level given to the denoiser [units of x], or (B,); default: the last one of ADMM.
    :param int samples: draws that count, at least 8; int burn_in: draws before them, default a quarter as many.
    :param bool nonneg: clip the denoiser's result at zero; tuple box: (low, high), clip there, either may be None.
    :param bool blurred: tell of z instead of x. Its std is near sigma_d where x is known exactly.
    :param int keep: draws of z (blurred) or D(z) to return, evenly spaced. Memory: some 40 images and these.
    :param bool progress: progress bar on stderr; default: where stderr is a terminal.
    :raises ValueError: for parameters out of range. TypeError: if the prior is no denoiser.
    Source: Laumont et al. 2022 (PnP-ULA); Pereyra et al. 2020 (SK-ROCK); Vono et al. 2019 (x behind z: the posterior
    of x for noise of covariance sigma_n^2 + sigma_d^2 A A^H). The loop is our own: deepinv's seeds the global
    generator, counts the start as a draw and applies A, then A^H; its iterators are what the steps are tested by.
    """

    def __init__(
        self,
        op: LinearPhysics,
        prior: Denoiser,
        *,
        sampler: Literal["skrock", "ula"] = "skrock",
        sigma_n: Level | None = None,
        sigma_d: Level | None = None,
        samples: int = 200,
        burn_in: int | None = None,
        nonneg: bool = False,
        box: tuple[float | None, float | None] | None = None,
        blurred: bool = False,
        keep: int = 0,
        progress: bool | None = None,
    ) -> None:
        super().__init__()
        if sampler not in ("skrock", "ula"):
            raise ValueError(f'sampler must be "skrock" or "ula", got {sampler!r}')
        if samples < FEWEST:
            raise ValueError(f"samples must be at least {FEWEST}, got {samples}; some 200 are good")
        if burn_in is not None and burn_in < 0:
            raise ValueError(f"burn_in must be >= 0, got {burn_in}")
        if not 0 <= keep <= samples:
            raise ValueError(f"keep must lie between 0 and samples = {samples}, got {keep}")
        # checks the rest, and starts the chain
        self.solver = ADMM(
            op, prior, sigma_n=sigma_n, sigma_d=sigma_d, nonneg=nonneg, box=box, progress=progress, max_iter=LAST + 1
        )
        self.op, self.prior, self.sampler = op, prior, sampler
        self.sigma_n, self.sigma_d, self.blurred = sigma_n, sigma_d, blurred
        self.low, self.high = self.solver.low, self.solver.high
        self.samples, self.keep, self.progress = samples, keep, progress
        self.burn_in = round(BURN_IN * samples) if burn_in is None else burn_in

    def forward(self, y: Tensor, physics: LinearPhysics | None = None, **kwargs: Any) -> Tensor:
        """:returns: the posterior's mean, (B, C, H, W); see :meth:`sample`."""
        return self.sample(y, physics, **kwargs).mean

    @torch.no_grad()
    def sample(
        self,
        y: Tensor,
        physics: LinearPhysics | None = None,
        *,
        x0: Tensor | None = None,
        seed: int | Sequence[int] = 0,
    ) -> Uncertainty:
        """Mean and standard deviation of each pixel.

        :param torch.Tensor y: data in the operator's shape; a TensorList for stacked operators.
        :param LinearPhysics physics: operator to use in place of the sampler's own.
        :param torch.Tensor x0: start, (B, C, H, W); default ADMM's reconstruction, which is made here.
        :param seed: item k of a batch is drawn with seed + k, or the k-th of a list: its draws are those that it has
            alone with that seed. The global generator is left as it is.
        :returns: what was drawn; warns if that is too little.
        :raises ValueError: if y holds NaN or inf, x0 is of another shape, or the data are exact (sigma_n = 0).
        :raises TypeError: if the operator's images are complex.
        :raises FloatingPointError: if the chain runs away.
        """
        begin, op = time.perf_counter(), self.op if physics is None else physics
        check_is_tensor("Posterior", y, "y")
        if not all(bool(torch.isfinite(part).all()) for part in (y if isinstance(y, TensorList) else [y])):
            raise ValueError("y holds NaN or inf; flag such data (weight 0) or leave them out")
        backprojection = op.A_adjoint(y)
        if backprojection.is_complex():
            raise TypeError(
                f"Posterior is for real images, those of {type(op).__name__} are complex ({backprojection.dtype}): "
                "build the operator with real=True"
            )
        x, sigma_n = self._start(op, y, backprojection, x0)
        chain = _Chain(self, op, backprojection, x, sigma_n, _generators(seed, x))
        blocks, kept, slope = Blocks(x, self.samples), [], torch.zeros_like(x)
        wanted = {round((k + 1) * self.samples / self.keep) - 1 for k in range(self.keep)}
        with tqdm(total=self.burn_in + self.samples, disable=self._quiet, desc="error bars", unit="draw") as bar:
            for k in range(-self.burn_in, self.samples):
                chain.advance()
                bar.update()
                if k < 0:
                    continue
                draw, derivative = (chain.z, slope) if self.blurred else chain.behind()
                blocks.add(draw)
                slope = slope + (derivative - slope) / (k + 1)
                if k in wanted:
                    kept.append(draw)
        extra = slope.clamp_min(0) * chain.sigma_d**2  # a mean over random signs: it may fall below a small truth
        found = chain.told() | {"seconds": time.perf_counter() - begin}
        bounds = (None, None) if self.blurred else (self.low, self.high)
        result = blocks.result(extra, torch.stack(kept) if kept else None, bounds, found)
        warn_of_few(result, stacklevel=4)
        return result

    @property
    def _quiet(self) -> bool | None:
        return None if self.progress is None else not self.progress  # None: tqdm looks whether there is a terminal

    def _start(self, op: LinearPhysics, y: Tensor, like: Tensor, x0: Tensor | None) -> tuple[Tensor, Tensor]:
        """Where the chain starts, and the noise level, (B,)."""
        sigma_n: Level | None = self.sigma_n if self.sigma_n is not None else noise_level(op, y)
        if x0 is None or sigma_n is None:
            solution = self.solver.solve(y, op, x0=x0)
            x0, sigma_n = solution.x if x0 is None else x0, torch.as_tensor(solution.metrics["sigma_n"])
        level = each(sigma_n, len(like))
        if not bool((level > 0).all()):
            raise ValueError("data without noise have no posterior to draw from; pass sigma_n > 0")
        if x0.shape != like.shape:
            raise ValueError(f"x0 must have shape {tuple(like.shape)}, got {tuple(x0.shape)}")
        if not bool(torch.isfinite(x0).all()):
            raise ValueError("x0 holds NaN or inf")
        return x0.to(like), level


class _Chain:
    """A chain for each item of a batch. Levels are (B, 1, 1, 1)."""

    def __init__(
        self,
        settings: Posterior,
        op: LinearPhysics,
        backprojection: Tensor,
        x: Tensor,
        sigma_n: Tensor,
        generators: list[torch.Generator],
    ) -> None:
        self.settings, self.op, self.backprojection, self.generators = settings, op, backprojection, generators
        chosen = choose(op, backprojection, sigma_n, LAST + 1, sigma_d=settings.sigma_d)
        sigma_d = chosen.sigma_d(LAST)
        stride = STRIDE * sigma_d**2
        reach = float((stride * (chosen.norm / sigma_n**2 + 1 / sigma_d**2)).max())  # of a draw, over ULA's step
        ula = settings.sampler == "ula"
        self.steps = max(1, math.ceil(reach / ULA_PART)) if ula else 1
        self.stages = 1 if ula else stages_for(reach)
        self.sigma_n, self.sigma_d, self.step = (
            t.to(x).reshape(-1, 1, 1, 1) for t in (sigma_n, sigma_d, stride / self.steps)
        )
        same = bool((sigma_d == sigma_d[0]).all())
        self.level: float | Tensor = float(sigma_d[0]) if same else sigma_d.to(x)
        self.z, self.gradients = x, 0
        self.z = x + self.sigma_d * self._draw(torch.randn)  # the image blurred

    def denoise(self, z: Tensor) -> Tensor:
        x = self.settings.prior(z, self.level)
        low, high = self.settings.low, self.settings.high
        return x if low is None and high is None else x.clamp(low, high)

    def gradient(self, z: Tensor) -> Tensor:
        """Of -log p(z | y). A^H A z - A^H y is right in any inner product of the data, StreamedNUFFT's too."""
        self.gradients += 1
        misfit = (self.op.A_adjoint_A(z) - self.backprojection) / self.sigma_n**2
        return misfit + (z - self.denoise(z)) / self.sigma_d**2

    def advance(self) -> None:
        """To the next draw."""
        for _ in range(self.steps):
            noise = self._draw(torch.randn)
            if self.settings.sampler == "ula":
                z = ula_step(self.z, self.gradient, self.step, noise)
            else:
                z = skrock_step(self.z, self.gradient, self.step, noise, self.stages)
            if not bool(torch.isfinite(z).all()):
                raise FloatingPointError(
                    f"the chain ran away after {self.gradients} gradients (sigma_d {self.level}): is the prior a "
                    "denoiser at this level? A larger sigma_d is steadier"
                )
            self.z = z

    def behind(self) -> tuple[Tensor, Tensor]:
        """D(z), and a number whose mean is the diagonal of dD/dz: s (dD/dz s) for random signs s."""
        signs = self._draw(lambda shape, **kw: torch.randint(0, 2, shape, **kw) * 2 - 1)
        length = PROBE * self.sigma_d
        x = self.denoise(self.z)
        return x, signs * (self.denoise(self.z + length * signs) - x) / length

    def told(self) -> dict[str, Any]:
        levels = {"sigma_n": self.sigma_n, "sigma_d": self.sigma_d, "step": self.step}
        found: dict[str, Any] = {}
        for name, t in levels.items():
            found[name] = float(t[0]) if bool((t == t[0]).all()) else t.flatten().tolist()
        return found | {"gradients": self.gradients}

    def _draw(self, random: Callable[..., Tensor]) -> Tensor:
        z = self.z
        return torch.stack([
            random(z.shape[1:], generator=g, dtype=z.dtype, device=z.device) for g in self.generators
        ])  # fmt: skip


def _generators(seed: int | Sequence[int], x: Tensor) -> list[torch.Generator]:
    seeds = [seed + k for k in range(len(x))] if isinstance(seed, int) else list(seed)
    if len(seeds) != len(x):
        raise ValueError(f"seed must be a number or a list of {len(x)}, one for each image, got {len(seeds)}")
    return [torch.Generator(x.device).manual_seed(s) for s in seeds]
