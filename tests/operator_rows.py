"""The table of operators that tests go through, each with its matrix written out term by term."""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from deepinv.physics import LinearPhysics
from dense_rays import fan, joseph_matrix, parallel
from torch import Tensor

from pnp_lofi.operators import (
    NUFFT,
    Blur,
    Derivatives,
    Downsample,
    FanBeam,
    Fourier,
    KaiserSquires,
    Mask,
    Radon,
    Weighted,
    random_mask,
)
from pnp_lofi.sampling import keys_cubic

M = 25


def uv_of(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(2, n, dtype=torch.float64, generator=generator) - 1) * math.pi


def weights_of(n: int) -> Tensor:
    w = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    w[3] = 0
    return w


def dft(shape: tuple[int, int], uv: Tensor, weights: Tensor | None = None) -> Tensor:
    """(M, HW): the definition of the visibilities, term by term."""
    r = torch.arange(shape[0], dtype=torch.float64) - shape[0] // 2
    c = torch.arange(shape[1], dtype=torch.float64) - shape[1] // 2
    phase = uv[0, :, None, None] * r[:, None] + uv[1, :, None, None] * c
    A = torch.exp(-1j * phase).flatten(1) / math.sqrt(shape[0] * shape[1])
    return A if weights is None else weights.sqrt()[:, None] * A


@dataclass(frozen=True)
class Row:
    name: str
    shape: tuple[int, int]
    build: Callable[..., LinearPhysics]  # takes sigma=
    matrix: Callable[[], Tensor]  # acts on one channel's pixels, or on all channels together where channels == 1
    complex_image: bool = False
    accuracy: float = 1e-11  # against the definition, float64
    slow: bool = False
    channels: int = 3  # of the images that it is tried with
    noisy: Callable[[Tensor], Tensor] = lambda y: y  # the data that get noise


def nufft(
    name: str, shape: tuple[int, int], *, weighted: bool = True, accuracy: float = 1e-11, **options: object
) -> Row:
    w = weights_of(M) if weighted else None
    return Row(
        name, shape, lambda **noise: NUFFT(shape, uv_of(M), w, **options, **noise), lambda: dft(shape, uv_of(M), w),
        not options.get("real", True), accuracy,
    )  # fmt: skip


def random_kernel(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) - 0.2


def folded(n: int, size: int, boundary: str) -> int | None:
    """The pixel that a position beyond the image stands for."""
    if boundary == "circular":
        return n % size
    if boundary == "replicate":
        return min(max(n, 0), size - 1)
    if boundary == "reflect":
        return int(np.pad(np.arange(size), 20, mode="reflect")[n + 20])
    return n if 0 <= n < size else None


def convolution(shape: tuple[int, int], kernel: Tensor, boundary: str) -> Tensor:
    """(HW, HW) or, for "valid", fewer rows: y[n] = sum_k h[k] x[n - (k - c)], term by term."""
    (H, W), (h, w) = shape, kernel.shape
    A = torch.zeros(H, W, H, W, dtype=torch.float64)
    for r, c, i, j in itertools.product(range(H), range(W), range(h), range(w)):
        row, column = folded(r - (i - h // 2), H, boundary), folded(c - (j - w // 2), W, boundary)
        if row is not None and column is not None:
            A[r, c, row, column] += kernel[i, j]
    if boundary == "valid":
        top, left = h - 1 - h // 2, w - 1 - w // 2
        A = A[top : top + H - h + 1, left : left + W - w + 1]
    return A.flatten(2).flatten(0, 1)


def blur(shape: tuple[int, int], size: tuple[int, int], boundary: str = "circular") -> Row:
    kernel = random_kernel(*size)
    name = f"blur-{boundary}-{size[0]}x{size[1]}"
    return Row(
        name, shape, lambda **noise: Blur(shape, kernel, boundary=boundary, **noise),
        lambda: convolution(shape, kernel, boundary),
    )  # fmt: skip


def downsample(shape: tuple[int, int], factor: int, size: tuple[int, int], phase: int, boundary: str) -> Row:
    kernel = random_kernel(*size)

    def matrix() -> Tensor:
        A = convolution(shape, kernel, boundary).unflatten(0, shape)
        return A[phase::factor, phase::factor].flatten(0, 1)

    return Row(
        f"downsample-{factor}-{boundary}", shape,
        lambda **noise: Downsample(shape, factor, kernel, phase=phase, boundary=boundary, **noise), matrix,
    )  # fmt: skip


def fourier(shape: tuple[int, int], *, real: bool = True, centred: bool = True) -> Row:
    mask = random_mask(shape, 0.5, seed=8)

    def matrix() -> Tensor:
        k = [torch.arange(n, dtype=torch.float64) - n // 2 for n in shape]
        uv = torch.cartesian_prod(*(2 * math.pi * f / n for f, n in zip(k, shape, strict=True))).T
        A = dft(shape, uv)
        if not centred:  # the image's origin at the pixel (0, 0), and frequency zero as well
            A = A * torch.exp(-1j * (uv[0] * (shape[0] // 2) + uv[1] * (shape[1] // 2)))[:, None]
            A = torch.fft.ifftshift(A.unflatten(0, shape), (0, 1)).flatten(0, 1)
        return A * mask.flatten()[:, None]

    name = f"fourier-{'real' if real else 'complex'}-{'centred' if centred else 'plain'}-{shape[0]}x{shape[1]}"
    return Row(
        name, shape, lambda **noise: Fourier(mask, real=real, centred=centred, **noise), matrix, not real,
        noisy=lambda y: y[..., mask],
    )  # fmt: skip


def keys_six(t: Tensor) -> Tensor:
    """Keys 1981, eq. 20, as printed."""
    t = t.abs()
    near = 4 / 3 * t**3 - 7 / 3 * t**2 + 1
    middle = -7 / 12 * t**3 + 3 * t**2 - 59 / 12 * t + 15 / 6
    far = 1 / 12 * t**3 - 2 / 3 * t**2 + 21 / 12 * t - 3 / 2
    return torch.where(t < 1, near, torch.where(t < 2, middle, torch.where(t < 3, far, 0)))


def derivatives(shape: tuple[int, int], order: int, taps: int, **options: int) -> Row:
    coords = torch.rand(15, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def weights(at: Tensor, size: int) -> Tensor:
        n = torch.arange(-4, size + 4)
        w = (keys_cubic if taps == 4 else keys_six)(at * size - 0.5 - n)
        return torch.zeros(size, dtype=at.dtype).index_add(
            0, torch.tensor([folded(int(i), size, "reflect") for i in n]), w
        )

    def value(at: Tensor) -> Tensor:
        return (weights(at[0], shape[0])[:, None] * weights(at[1], shape[1])).flatten()

    @functools.cache
    def matrix() -> Tensor:
        if order == 1:
            return torch.stack([torch.func.jacfwd(value)(at).T for at in coords], 1).flatten(0, 1)
        second = torch.stack([torch.func.hessian(value)(at) for at in coords])  # (P, HW, 2, 2)
        return torch.cat([second[..., 0, 0], second[..., 0, 1], second[..., 1, 1]])

    return Row(
        f"derivatives-{order}-{taps}",
        shape,
        lambda **noise: Derivatives(shape, coords, order=order, taps=taps, **options, **noise),
        matrix,
    )


def composed(**noise: float) -> LinearPhysics:
    return NUFFT((6, 6), uv_of(M), weights_of(M), **noise) * Blur((6, 6), random_kernel(3, 3))


def tomography(name: str, shape: tuple[int, int], kind: Callable[..., LinearPhysics], lines: tuple) -> Row:
    return Row(name, shape, lambda **noise: kind(**noise), lambda: joseph_matrix(shape, *lines))


VIEWS = torch.arange(8, dtype=torch.float64) * math.pi / 8
FAN = {"source_origin": 12.0, "source_detector": 18.0, "detectors": 11, "spacing": 1.4}
TOMOGRAPHY = [
    tomography("radon", (6, 6), functools.partial(Radon, (6, 6), 8, 9), parallel(VIEWS, 9)),
    tomography(
        "radon-shifted-rectangle", (5, 8), functools.partial(Radon, (5, 8), VIEWS, 8, spacing=1.2, offset=0.3),
        parallel(VIEWS, 8, 1.2, 0.3),
    ),
    tomography("radon-free", (7, 6), functools.partial(Radon, (7, 6), 8, 9, backend="free"), parallel(VIEWS, 9)),
    tomography("fan", (6, 6), functools.partial(FanBeam, (6, 6), 2 * VIEWS, **FAN), fan(2 * VIEWS, 11, 12, 18, 1.4)),
]  # fmt: skip


def shear_weights(components: int, shape: tuple[int, int]) -> Tensor:
    w = torch.rand(components, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9)) + 0.1
    return w if components == 2 else w[0]


def shear(
    name: str, shape: tuple[int, int], *, mask: Tensor | None = None, weights: Tensor | None = None,
    pad: tuple[int, int] = (0, 0),
) -> Row:  # fmt: skip
    box = (shape[0] + 2 * pad[0], shape[1] + 2 * pad[1])
    seen = torch.ones(shape, dtype=torch.bool) if mask is None else mask

    def matrix() -> Tensor:
        """(2 HW, box): gamma1, then gamma2, by explicit discrete Fourier transforms of the box."""
        k = torch.cartesian_prod(*((torch.arange(n) + n // 2) % n - n // 2 for n in box)).double()
        p = torch.cartesian_prod(*(torch.arange(n) for n in box)).double()
        F = torch.exp(-2j * math.pi * (p / torch.tensor(box) @ k.T).T)
        k2, k1 = (k / torch.tensor(box)).T  # cycles a pixel, rows and columns
        D = torch.complex(k1**2 - k2**2, 2 * k1 * k2) / (k1**2 + k2**2).clamp_min(1e-30)
        gamma = (F.mH @ (D[:, None] * F) / len(p)).unflatten(0, box)
        gamma = gamma[pad[0] : pad[0] + shape[0], pad[1] : pad[1] + shape[1]]
        pair = torch.stack([gamma.real, gamma.imag]) * seen[..., None]
        return (pair if weights is None else pair * weights.sqrt()[..., None]).flatten(0, 2)

    return Row(
        f"shear-{name}", box, lambda **noise: KaiserSquires(shape, mask, weights=weights, pad=pad, **noise), matrix,
        channels=1, noisy=lambda y: y[..., seen],
    )  # fmt: skip


DOSE = weights_of(72).reshape(8, 9)
TOMOGRAPHY.append(
    Row(
        "radon-weighted", (6, 6), lambda **noise: Weighted(Radon((6, 6), 8, 9), DOSE, **noise),
        lambda: DOSE.flatten().sqrt()[:, None] * joseph_matrix((6, 6), *parallel(VIEWS, 9)),
        noisy=lambda y: y[..., DOSE > 0],
    )
)  # fmt: skip
MASK = random_mask((6, 6), 0.6, seed=2)
ROWS = [
    Row(
        "mask",
        (6, 6),
        lambda **noise: Mask(MASK, **noise),
        lambda: torch.diag(MASK.flatten().double()),
        noisy=lambda y: y[..., MASK],
    ),
    *TOMOGRAPHY,
    nufft("nufft", (6, 6)),
    nufft("nufft-odd-rectangle", (5, 8), weighted=False),
    nufft("nufft-one-row", (1, 7)),
    nufft("nufft-chunks", (6, 7), chunk=4),
    nufft("nufft-complex", (6, 6), real=False),
    nufft("nufft-preconditioned", (6, 7), precondition=True),
    nufft("nufft-preconditioned-complex", (5, 6), precondition=True, real=False),
    nufft("nufft-kb", (6, 6), backend="kb", accuracy=2e-3),
    replace(nufft("nufft-kb-odd-complex", (7, 6), backend="kb", real=False, accuracy=2e-3), slow=True),
    blur((6, 6), (3, 3)),
    blur((7, 6), (4, 5)),
    blur((4, 6), (7, 7)),  # larger than the image: it wraps
    blur((6, 7), (3, 4), "reflect"),
    blur((6, 6), (4, 3), "replicate"),
    blur((7, 6), (3, 3), "zero"),
    blur((6, 6), (3, 2), "valid"),
    *(blur((6, 7), size, edge) for size in ((1, 5), (2, 1), (1, 1)) for edge in ("reflect", "replicate")),
    blur((1, 7), (1, 4), "reflect"),
    downsample((6, 6), 2, (3, 4), 0, "circular"),
    downsample((6, 9), 3, (4, 5), 2, "circular"),
    downsample((6, 8), 2, (3, 3), 1, "reflect"),
    downsample((5, 6), 1, (1, 1), 0, "reflect"),
    *(fourier((6, 6), real=real, centred=centred) for real in (True, False) for centred in (True, False)),
    fourier((5, 7)),
    fourier((7, 6), centred=False),
    derivatives((6, 6), 1, 4),
    derivatives((5, 8), 1, 6),
    derivatives((5, 7), 2, 6, chunk=9),
    Row(
        "composed",
        (6, 6),
        composed,
        lambda: dft((6, 6), uv_of(M), weights_of(M)) @ convolution((6, 6), random_kernel(3, 3), "circular").cdouble(),
    ),
    shear("periodic", (6, 6)),
    shear("odd-rectangle", (5, 8)),
    shear("one-row", (1, 6)),
    shear("masked", (6, 6), mask=MASK),
    shear("weighted", (6, 5), weights=shear_weights(1, (6, 5))),
    shear("weighted-masked", (6, 6), mask=MASK, weights=shear_weights(2, (6, 6))),
    shear("padded", (3, 4), pad=(1, 2)),
]
