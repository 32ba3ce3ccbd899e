"""Imaging weights against brute force: a dictionary of cells, the conjugates added by hand."""

import math
from collections import defaultdict

import pytest
import torch
from torch import Tensor

from pnp_lofi.operators import NUFFT, WeightGrid, imaging_weights, meerkat_uv, noise_increase

SHAPE = (9, 12)


def case(m: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """More visibilities in the middle than outside, uneven weights, some zero, some on the edges."""
    generator = torch.Generator().manual_seed(seed)
    uv = (torch.randn(2, m, dtype=torch.float64, generator=generator)).clamp(-math.pi, math.pi)
    w = torch.rand(m, dtype=torch.float64, generator=generator) + 0.1
    w[::17] = 0
    return uv, w


def brute(uv: Tensor, w: Tensor, shape: tuple[int, int], robust: float | None, real: bool) -> Tensor:
    points = [(float(u), float(v), float(k)) for (u, v), k in zip(uv.T, w, strict=True)]
    both = points + [(-u, -v, k) for u, v, k in points] if real else points

    def cell(u: float, v: float) -> tuple[int, int]:
        return tuple(round(a * n / (2 * math.pi)) % n for a, n in zip((u, v), shape, strict=True))  # type: ignore

    W: dict[tuple[int, int], float] = defaultdict(float)
    for u, v, k in both:
        W[cell(u, v)] += k
    if robust is None:
        return torch.tensor([k / W[cell(u, v)] if k else 0 for u, v, k in points], dtype=torch.float64)
    f2 = (5 * 10**-robust) ** 2 / (sum(a * a for a in W.values()) / sum(k for _, _, k in both))
    return torch.tensor([k / (1 + f2 * W[cell(u, v)]) for u, v, k in points], dtype=torch.float64)


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("shape", [SHAPE, (1, 8), (7, 7)])
def test_equals_the_formula(shape: tuple[int, int], real: bool) -> None:
    uv, w = case()
    for robust in (-2.0, -0.5, 0.0, 1.3, 2.0):
        found = imaging_weights(shape, uv, w, robust=robust, real=real)
        torch.testing.assert_close(found, brute(uv, w, shape, robust, real), rtol=1e-12, atol=1e-14)
    found = imaging_weights(shape, uv, w, scheme="uniform", real=real)
    torch.testing.assert_close(found, brute(uv, w, shape, None, real), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(imaging_weights(shape, uv, w, scheme="natural", real=real), w)
    ones = torch.ones_like(w)
    torch.testing.assert_close(imaging_weights(shape, uv), imaging_weights(shape, uv, ones))
    torch.testing.assert_close(imaging_weights(shape, uv, scheme="natural"), ones)


def test_two_passes_in_chunks_and_parts() -> None:
    uv, w = case(1000)
    chunks = [(uv[:, k : k + 130], w[k : k + 130]) for k in range(0, 1000, 130)]
    parts = [WeightGrid(SHAPE), WeightGrid(SHAPE)]
    for number, chunk in enumerate(chunks):
        parts[number % 2].add(*chunk)
    grid = parts[0] + parts[1]
    assert grid.add(uv[:, :0], w[:0]).uniform(uv[:, :0]).shape == (0,)
    found = torch.cat([grid.briggs(*chunk, robust=0.4) for chunk in chunks])
    torch.testing.assert_close(found, imaging_weights(SHAPE, uv, w, robust=0.4), rtol=1e-12, atol=0)
    found = torch.cat([grid.uniform(*chunk) for chunk in chunks])
    torch.testing.assert_close(found, imaging_weights(SHAPE, uv, w, scheme="uniform"), rtol=1e-12, atol=0)


def test_uniform_gives_every_cell_the_same() -> None:
    uv, w = case()
    v = imaging_weights(SHAPE, uv, w, scheme="uniform", real=False)
    filled = WeightGrid(SHAPE, real=False).add(uv, v).sums
    assert bool(((filled == 0) | ((filled - 1).abs() < 1e-12)).all())


def half_width(beam: Tensor) -> float:
    """Radius at which the beam has fallen to one half, along the row through the peak [pixel]."""
    H, W = beam.shape
    profile = beam[H // 2, W // 2 :]
    k = int((profile < 0.5).nonzero()[0])
    return k - 1 + float((profile[k - 1] - 0.5) / (profile[k - 1] - profile[k]))


def test_from_natural_to_uniform() -> None:
    """On MeerKAT's coverage: the noise falls and the beam widens with R; the ends are natural and uniform."""
    shape = (64, 64)
    uv = meerkat_uv(0.5) * 0.5
    w = torch.ones(uv.shape[1], dtype=torch.float64)
    levels = [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]
    weights = [imaging_weights(shape, uv, w, robust=R) for R in levels]
    noise = [noise_increase(w, v) for v in weights]
    width = [half_width(NUFFT(shape, uv, v).psf(dtype=torch.float64)) for v in weights]
    assert noise == sorted(noise, reverse=True) and width == sorted(width)
    uniform = imaging_weights(shape, uv, w, scheme="uniform")
    normal = [v / v.sum() for v in (weights[0], uniform, weights[-1], w)]
    assert float((normal[0] - normal[1]).abs().sum()) < 1e-3  # a part of the whole, 1
    assert float((normal[2] - normal[3]).abs().sum()) < 1e-2
    near = [v / v.sum() for v in (weights[1], weights[-2])]
    assert float((near[0] - normal[1]).abs().sum()) < 0.05 and float((near[1] - normal[3]).abs().sum()) < 0.1
    assert noise_increase(w, w) == pytest.approx(1) and noise[-1] == pytest.approx(1, abs=1e-3)
    assert noise[0] == pytest.approx(noise_increase(w, uniform), rel=1e-3) and noise[0] > 1.5
    natural_width, uniform_width = (half_width(NUFFT(shape, uv, v).psf(dtype=torch.float64)) for v in (w, uniform))
    assert width[0] == pytest.approx(uniform_width, rel=1e-2) and width[-1] == pytest.approx(natural_width, rel=1e-2)
    assert uniform_width < 0.8 * natural_width


def test_noise_increase_is_that_of_the_dirty_image() -> None:
    shape = (12, 12)
    uv, w = case(300)
    w = w + 0.2
    v = imaging_weights(shape, uv, w, robust=-1.0)
    natural, op = NUFFT(shape, uv, w), NUFFT(shape, uv, v)
    generator = torch.Generator().manual_seed(3)
    vis = torch.randn(3000, 1, 300, dtype=torch.complex128, generator=generator) * 2**0.5 / w.sqrt()
    expected = natural.dirty_noise(1.0) * noise_increase(w, v)
    assert float(op.dirty(op.whiten(vis)).std()) == pytest.approx(expected, rel=0.01)
    assert float(natural.dirty(natural.whiten(vis)).std()) == pytest.approx(natural.dirty_noise(1.0), rel=0.01)


def test_scale_of_weights_does_not_matter() -> None:
    uv, w = case()
    for options in ({"robust": 0.3}, {"scheme": "uniform"}):
        a, b = (imaging_weights(SHAPE, uv, s * w, **options) for s in (1.0, 1e6))
        torch.testing.assert_close(a / a.sum(), b / b.sum())


UV, W = case(20)
EMPTY = torch.full_like(W, math.nan)
BAD = [
    (lambda: imaging_weights(SHAPE, UV, W, scheme="robust"), "scheme must be one of natural, uniform, briggs, got"),
    (lambda: imaging_weights(SHAPE, UV, W, robust=math.nan), "robust must be finite"),
    (lambda: imaging_weights(SHAPE, UV.T, W), r"\(2, M\) in radians.*transpose"),
    (lambda: imaging_weights(SHAPE, UV, W[1:]), r"weights must be \(20,\), one per column of uv, got \(19,\)"),
    (lambda: imaging_weights(SHAPE, UV, EMPTY), "weights must be finite and >= 0"),
    (lambda: imaging_weights(SHAPE, UV, -W - 1, scheme="natural"), "weights must be finite and >= 0"),
    (lambda: imaging_weights((0, 4), UV, W), "two positive integers"),
    (lambda: WeightGrid(SHAPE).uniform(UV, W), "cells that nothing was added to; add all of them before"),
    (lambda: WeightGrid(SHAPE).briggs(UV, W), "cells that nothing was added to"),
    (lambda: WeightGrid(SHAPE) + WeightGrid((9, 11)), "grids must be of one kind"),
    (lambda: noise_increase(W, W[1:]), "must be of one length"),
    (lambda: noise_increase(W, W + 1), "where the natural ones are zero"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_no_process_group() -> None:
    with pytest.raises(RuntimeError, match="there is no process group"):
        WeightGrid(SHAPE).all_reduce()
