"""What the tests of the solvers share: small operators as matrices, denoisers with closed forms, loops by hand."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from deepinv.models import Denoiser
from torch import Tensor

from pnp_lofi import ADMM, HQS, PGD, RED, Consensus, LoFi, LoFiPrior
from pnp_lofi.operators import NUFFT, Blur, Fourier, Mask, random_frequencies, random_mask
from pnp_lofi.pgd import MOMENTUM

SHAPE = (6, 7)
KERNEL = torch.tensor([[1.0, 3, 1], [4, 9, 2], [0, 1, 1]]) / 22
CG = {"cg_tol": 1e-14, "cg_max_iter": 400}
# name of a loop of ``by_hand`` -> the solver that it is
SOLVERS: dict[str, Callable] = {
    "ADMM": ADMM,
    "HQS": HQS,
    "PGD": partial(PGD, accelerated=False),
    "FISTA": partial(PGD, accelerated=True),
    "RED": partial(RED, accelerated=False),
    "RED+": partial(RED, accelerated=True),
}


def solver(name: str, op, prior, **options):
    """Any of them, Consensus with one operator and one prior as well."""
    if name == "Consensus":
        return Consensus([op], [prior], **{"sigma_n": [0.1]} | options)
    return SOLVERS[name](op, prior, **options)


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def uv(count: int = 300, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return math.pi * (2 * torch.rand(2, count, dtype=torch.float64, generator=generator) - 1)


def operator(name: str, shape: tuple[int, int] = SHAPE, **options):
    """By name, with a solve that is exact to rounding."""
    if name == "mask":
        return Mask(random_mask(shape, 0.6, seed=1), **options)
    if name == "blur":
        return Blur(shape, KERNEL, **options)
    real = not name.endswith("complex")
    if name.startswith("fourier"):
        return Fourier(random_frequencies(shape, 2.0), real=real, **options)
    return NUFFT(shape, uv(60 if shape == SHAPE else 300), real=real, tol=1e-14, max_iter=500, **options)


def matrix(op, shape: tuple[int, int] = SHAPE) -> Tensor:
    """A as a real matrix on the pixels; complex images as (real parts, imaginary parts), complex data alike."""
    count = math.prod(shape)
    basis = torch.eye(count, dtype=torch.float64).reshape(-1, 1, *shape)
    parts = [basis + 0j, 1j * basis] if op.complex_images else [basis]
    return torch.cat([torch.stack([flat(op.A(e[None])) for e in part], 1) for part in parts], 1)


def flat(t: Tensor) -> Tensor:
    """One item as a real vector."""
    return torch.cat([t.real.flatten(), t.imag.flatten()]) if t.is_complex() else t.flatten()


class Shrink(Denoiser):
    """The proximal step of sigma^2 weight ||x||^2 / 2: x / (1 + weight sigma^2), a prior with a closed form."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x, sigma, **kwargs):
        sigma = sigma.view(-1, 1, 1, 1) if isinstance(sigma, Tensor) and sigma.ndim == 1 else sigma
        return x / (1 + self.weight * sigma**2)


class Smooth(Denoiser):
    """The proximal step of sigma^2 x^T K x / 2 with K = weight (1 + d^T d), d the differences along the rows:
    (1 + sigma^2 K)^-1 x, which turns with the image into another denoiser."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def K(self, shape: tuple[int, int], dtype: torch.dtype = torch.float64) -> Tensor:
        eye = torch.eye(math.prod(shape), dtype=dtype).reshape(-1, *shape)
        d = (eye.roll(1, -1) - eye).reshape(len(eye), -1).T
        return self.weight * (torch.eye(len(eye), dtype=dtype) + d.T @ d)

    def matrix(self, sigma: float, shape: tuple[int, int] = SHAPE) -> Tensor:
        """D_sigma."""
        K = self.K(shape)
        return torch.linalg.inv(torch.eye(len(K), dtype=K.dtype) + sigma**2 * K)

    def forward(self, x, sigma, **kwargs):
        levels = [float(s) for s in torch.as_tensor(sigma, dtype=torch.float64).flatten().expand(len(x))]
        found = [x[i].flatten(1) @ self.matrix(s, x.shape[-2:]).to(x).T for i, s in enumerate(levels)]
        return torch.stack(found).reshape(x.shape)


class Explode(Denoiser):
    def forward(self, x, sigma, **kwargs):
        return 10 * x


class Nan(Denoiser):
    """NaN from the fifth call on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x, sigma, **kwargs):
        self.calls += 1
        return x * float("nan") if self.calls > 4 else x * 0.9


def tamed(tiny: LoFi) -> LoFiPrior:
    """A network of random weights, small enough for hundreds of iterations, in double precision."""
    tiny = tiny.double()
    with torch.no_grad():
        tiny.mlp.mixer_weights[-1].mul_(0.02)
        tiny.mlp.mixer_biases[-1].zero_()
    return LoFiPrior(tiny)


def by_hand(
    name: str,
    A: Tensor,
    b: Tensor,
    denoise: Callable[[np.ndarray, int], np.ndarray],
    alpha: Callable[[int], float],
    iterations: int,
    clip: Callable[[np.ndarray], np.ndarray] = lambda x: x,
    norm: float | None = None,
) -> np.ndarray:
    """The algorithms in numpy, from zero, for one image as a real vector.

    :param Callable denoise: of a vector, in iteration k from 0; float norm: L, where RED shall not have it from A.
    """
    M, r = A.numpy(), b.numpy()
    normal, back, eye = M.T @ M, M.T @ r, np.eye(M.shape[1])
    norm = np.linalg.eigvalsh(normal)[-1] if norm is None else norm
    x = v = u = before = np.zeros(M.shape[1])
    for k in range(iterations):
        a = alpha(k)
        z = x + max(k - 1, 0) / (k - 1 + MOMENTUM) * (x - before) if name in ("FISTA", "RED+") else x
        if name == "ADMM":
            u = u * alpha(max(k - 1, 0)) / a
            x = np.linalg.solve(normal + a * eye, back + a * (v - u))
            v = clip(denoise(x + u, k))
            u = u + x - v
        elif name == "HQS":
            x = np.linalg.solve(normal + a * eye, back + a * v)
            v = clip(denoise(x, k))
        elif name in ("PGD", "FISTA"):
            before, x = x, clip(denoise(z - (normal @ z - back) / a, k))
        else:
            before, x = x, clip(z - (normal @ z - back + a * (z - denoise(z, k))) / (norm + a))
    return v if name in ("ADMM", "HQS") else x
