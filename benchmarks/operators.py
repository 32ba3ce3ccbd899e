"""All operators: exactness and speed of each; then tomography, lensing and radio beside their peers.

Writes operators.json, ct.json, lensing.json and radio.json. What needs real data is left out without them.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import ct, lensing, radio
from benchmarks.common import parser, report, start, timed
from pnp_lofi.cg import damped_solve
from pnp_lofi.operators import (
    NUFFT,
    Blur,
    Derivatives,
    Downsample,
    FanBeam,
    Fourier,
    KaiserSquires,
    Mask,
    Operator,
    Radon,
    cartesian_lines,
    random_mask,
)

PARTS = ("operators", "ct", "lensing", "radio")
SMALL = (48, 40)
SIDE = 512
DAMPING = 100  # L / alpha
TOL = 1e-10


def builders() -> dict[str, Callable[[tuple[int, int]], Operator]]:
    """Every operator as a function of the image's size."""
    generator = torch.Generator().manual_seed(0)
    kernel = torch.outer(torch.hann_window(9, periodic=False), torch.hann_window(9, periodic=False))
    kernel = kernel / kernel.sum()
    uv = math.pi * (2 * torch.rand((2, 100_000), dtype=torch.float64, generator=generator) - 1)
    coords = torch.rand((10_000, 2), dtype=torch.float64, generator=generator)
    return {
        "Mask, 30 %": lambda shape: Mask(random_mask(shape, 0.3)),
        "Blur, circular": lambda shape: Blur(shape, kernel),
        "Blur, reflect": lambda shape: Blur(shape, kernel, boundary="reflect"),
        "Downsample, 4": lambda shape: Downsample(shape, 4),
        "Fourier, a quarter of the lines": lambda shape: Fourier(cartesian_lines(shape, 4)),
        "KaiserSquires": KaiserSquires,
        "KaiserSquires, masked": lambda shape: KaiserSquires(shape, random_mask(shape, 0.8)),
        "Radon, 180 views": lambda shape: Radon(shape, 180),
        "FanBeam, 360 views": lambda shape: FanBeam(
            shape, 360, source_origin=2.0 * max(shape), source_detector=3.0 * max(shape)
        ),
        "NUFFT, 100,000 visibilities": lambda shape: NUFFT(shape, uv),
        "Derivatives, 10,000 places": lambda shape: Derivatives(shape, coords),
    }


def exactness(build: Callable[[tuple[int, int]], Operator]) -> dict[str, Any]:
    """Errors in float64 (and of the adjoint in float32) with zero-mean random images."""
    op, found = build(SMALL), {}
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(0)
        error = op.adjointness_test(num_samples=10, img_size=(1, *SMALL), dtype=_dtype(op, dtype))
        found[f"adjoint_{str(dtype).removeprefix('torch.')}"] = float(error)
    x = torch.randn((1, 1, *SMALL), dtype=_dtype(op, torch.float64))
    both = op.A_adjoint(op.A(x))
    found["normal"] = _relative(op.A_adjoint_A(x), both)
    alpha = op.norm / DAMPING
    y, z = op.A(torch.randn_like(x)), torch.randn_like(x)
    rhs = op.A_adjoint(y) + alpha * z
    exact, _ = damped_solve(lambda v: op.A_adjoint(op.A(v)), rhs, alpha, tol=1e-14, max_iter=3000)
    found["prox"] = _relative(op.prox_l2(z, y, 1 / alpha, tol=TOL, max_iter=3000), exact)
    return found


def speed(build: Callable[[tuple[int, int]], Operator], side: int, repeats: int) -> dict[str, Any]:
    """Seconds of one image in float32, and the steps that a prox from zero takes to 1e-4."""
    op = build((side, side))
    generator = torch.Generator().manual_seed(1)
    x = torch.rand((1, 1, side, side), generator=generator).to(_dtype(op, torch.float32))
    y, alpha = op.A(x), op.norm / DAMPING
    calls: dict[str, Callable[[], Any]] = {
        "A": lambda: op.A(x),
        "A_adjoint": lambda: op.A_adjoint(y),
        "A_adjoint_A": lambda: op.A_adjoint_A(x),
        "prox_l2": lambda: op.prox_l2(0.0, y, 1 / alpha, tol=1e-4),
    }
    found: dict[str, Any] = {name: timed(call, repeats=repeats) for name, call in calls.items()}
    found["steps"] = op.solve_normal(op.A_adjoint(y), alpha, tol=1e-4)[1].iterations
    return found


def _dtype(op: Operator, dtype: torch.dtype) -> torch.dtype:
    return dtype.to_complex() if op.complex_images else dtype


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def main() -> None:
    made = parser(__doc__, "operators", data=True)
    made.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    made.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512], help="of the tomography")
    made.add_argument("--repeats", type=int, default=5, help="timed calls; the fastest counts")
    args = start(made)
    with torch.no_grad():
        if "operators" in args.only:
            rows = [
                {"operator": name} | exactness(build) | speed(build, SIDE, args.repeats)
                for name, build in builders().items()
            ]
            report("operators", {"side": SIDE, "rows": rows}, args.results)
        if "ct" in args.only:
            report("ct", ct.measure(args.sizes, args.repeats, args.data), args.results)
        if "lensing" in args.only and (args.data / "lensing").is_dir():
            report("lensing", {"rows": lensing.rows(args.data)}, args.results)
        if "radio" in args.only:
            report("radio", radio.measure(), args.results)


if __name__ == "__main__":
    main()
