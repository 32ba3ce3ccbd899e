"""The normal operator of radio imaging: one convolution (Toeplitz) against A, then A^H, at 512 x 512.

The difference is relative to ||A^H A x||. In float64 it is taken at eps 1e-9 and at the default 1e-12, in float32 at
the default 1e-6. The errors of both ways are against A, then A^H, in float64 at eps 1e-13.
"""

import math
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import parser, report, start, timed
from pnp_lofi.operators import NUFFT, meerkat_uv

SIDE = 512
ALLOWED = 1e-5  # relative difference in float64 at eps 1e-9
CASES = (("float64", 1e-9), ("float64", None), ("float32", None))  # dtype, eps
BEST_EPS = 1e-13
HOURS = 4.0  # of MeerKAT's track
REFERENCE = {
    "Quoted": {
        "rows": [
            {"visibilities": 100_000, "nufft_ms": 9.3 + 10.6, "toeplitz_ms": 6.3},
            {"visibilities": 1_000_000, "nufft_ms": 73 + 66, "toeplitz_ms": 6.3},
        ],
        "source": "one thread, finufft at upsampling 1.25, this project's first measurement",
    },
}


def coverages(counts: list[int]) -> dict[str, Tensor]:
    """(2, M) [rad/pixel]: uniformly random ones, and MeerKAT's."""
    generator = torch.Generator().manual_seed(0)
    made = {
        f"uniform, M = {count:.0e}".replace("e+0", "e"): math.pi
        * (2 * torch.rand((2, count), dtype=torch.float64, generator=generator) - 1)
        for count in counts
    }
    tracks = meerkat_uv(HOURS)
    return made | {f"MeerKAT {HOURS:g} h, M = {tracks.shape[1]}": tracks}


@torch.no_grad()
def compare(name: str, uv: Tensor, dtype: str, eps: float | None, repeats: int) -> dict[str, Any]:
    op = NUFFT((SIDE, SIDE), uv, eps=eps)
    exact = torch.randn((1, 1, SIDE, SIDE), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = exact.to(getattr(torch, dtype))
    best = NUFFT((SIDE, SIDE), uv, eps=BEST_EPS)
    truth = best.A_adjoint(best.A(exact))
    begin = time.perf_counter()
    fast = op.A_adjoint_A(x)  # builds the kernel
    build = time.perf_counter() - begin
    seconds = timed(lambda: op.A_adjoint_A(x), repeats=10 * repeats)
    slow_seconds = timed(lambda: op.A_adjoint(op.A(x)), repeats=repeats)
    slow = op.A_adjoint(op.A(x))
    row = {"coverage": name, "visibilities": uv.shape[1], "dtype": dtype, "eps": eps}
    row |= {"difference": _relative(fast, slow), "error_toeplitz": _relative(fast, truth)}
    row |= {"error_nufft": _relative(slow, truth), "nufft_seconds": slow_seconds, "toeplitz_seconds": seconds}
    return row | {"kernel_seconds": max(build - seconds, 0.0), "speed_up": slow_seconds / seconds}


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def main() -> None:
    made = parser(__doc__, "toeplitz")
    made.add_argument("--visibilities", type=int, nargs="+", default=[100_000, 1_000_000])
    made.add_argument("--repeats", type=int, default=3, help="timed calls; the fastest counts")
    args = start(made)
    rows = [
        compare(name, uv, dtype, eps, args.repeats)
        for name, uv in coverages(args.visibilities).items()
        for dtype, eps in CASES
    ]
    passes = all(row["difference"] <= ALLOWED for row in rows if row["eps"] == 1e-9)
    payload = {"side": SIDE, "allowed": ALLOWED, "passes": passes, "rows": rows, "reference": REFERENCE}
    report("toeplitz", payload, args.results)


if __name__ == "__main__":
    main()
