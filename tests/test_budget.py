"""max_memory: kept to, without another answer, or refused with what would do."""

import subprocess
import sys

import pytest
import torch

from pnp_lofi import ADMM, HQS, LoFiPrior
from pnp_lofi.budget import FIXED, LEAST, MB
from pnp_lofi.operators import NUFFT, Mask, NormalEquations, Radon, Stacked, random_mask

SHAPE = (96, 80)


def uv(count: int = 30_000) -> torch.Tensor:
    return 6 * torch.rand(2, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 3


def problems() -> dict[str, tuple]:
    x = torch.rand(2, 1, *SHAPE, generator=torch.Generator().manual_seed(1))
    mask, nufft = Mask(random_mask(SHAPE, 0.5), sigma=0.05), NUFFT(SHAPE, uv(), sigma=0.05)
    streamed, b = NormalEquations(SHAPE).add(uv(), nufft.A(x)[0]).measurement(sigma=0.05)
    radon = Radon((80, 80), 20, sigma=0.5)
    found = {"mask": (mask, mask(x)), "nufft": (nufft, nufft(x)), "streamed": (streamed, b)}
    found["stacked"] = (Stacked(mask, mask), Stacked(mask, mask).A(x))
    return found | {"radon": (radon, radon(x[..., :80, :]))}


@pytest.mark.parametrize("name", ["mask", "nufft", "streamed", "stacked", "radon"])
@pytest.mark.parametrize("solver", [ADMM, HQS])
def test_same_result(name, solver, monkeypatch):
    """At the least that is accepted, where the prior works on small tiles."""
    op, y = problems()[name]
    chunks, prior = [], LoFiPrior("natural")
    forward = prior.model.forward
    monkeypatch.setattr(prior.model, "forward", lambda *a, **k: chunks.append(k["max_memory"]) or forward(*a, **k))
    options = {"max_iter": 2, "progress": False, "sigma_n": 0.05}
    expected = solver(op, prior, **options).solve(y).x
    with pytest.raises(ValueError, match="is too little") as error:
        solver(op, prior, max_memory=1.0, **options).solve(y)
    least = float(str(error.value).split("works in ")[1].split(" MB")[0]) + 1
    assert FIXED + LEAST < least * MB < FIXED + LEAST + 60 * MB
    found = solver(op, prior, max_memory=least, **options).solve(y).x
    assert chunks[:2] == [None, None] and all(LEAST <= c * MB <= 64 * MB for c in chunks[2:])
    assert float((found - expected).norm() / expected.norm()) < 1e-6


def test_visibilities_in_chunks():
    """Smaller ones while a solver with a budget is at work, the operator's own before and after."""
    op, y = problems()["nufft"]
    seen: list[int] = []
    both = Stacked(op, op)
    for A, data in ((op, y), (both, both.A(torch.ones(1, 1, *SHAPE)))):
        solver = ADMM(A, LoFiPrior("natural"), max_iter=1, progress=False, sigma_n=0.05, max_memory=200.0)
        solver.callback = lambda at: seen.append(op.chunk)
        solver.solve(data)
        assert op.chunk == 2**21
    assert all(2**14 <= c < 2**21 for c in seen) and len(seen) == 2


def test_says_what_to_do():
    mask, y = problems()["mask"]
    with pytest.raises(ValueError, match=r"2 x 1 x 96 x 80 pixels works in \d+ MB .* fewer items at a time, or let"):
        ADMM(mask, LoFiPrior("natural"), max_memory=10).solve(y)
    nufft, y = problems()["nufft"]
    with pytest.raises(ValueError, match=r"holds\. Build a StreamedNUFFT by NormalEquations.*docs/scaling\.md"):
        ADMM(nufft, LoFiPrior("natural"), max_memory=10).solve(y[:1])
    for bad in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="max_memory must be finite and > 0"):
            ADMM(mask, LoFiPrior("natural"), max_memory=bad)


def test_a_chunk_of_the_user_stays():
    prior, x = LoFiPrior("natural", chunk=500), torch.zeros(1, 1, 8, 8)
    assert prior._memory(9.0, x) == {"chunk": 500, "max_memory": None}
    assert LoFiPrior("natural", max_memory=5.0)._memory(9.0, x)["max_memory"] == 5.0
    assert LoFiPrior("natural")._memory(900.0, x) == {"chunk": None, "max_memory": None}


@pytest.mark.parametrize("name", ["natural", "natural-rgb", "natural-l", "natural-rgb-l"])
def test_a_budget_that_the_usual_chunk_exceeds_is_told(name):
    prior = LoFiPrior(name)
    plenty = prior.model.plenty(torch.zeros(1))
    assert prior._memory(0.99 * plenty, torch.zeros(1, 1, 8, 8))["max_memory"] == 0.99 * plenty
    assert prior._memory(1.01 * plenty, torch.zeros(1, 1, 8, 8))["max_memory"] is None


def test_priors_and_operators_of_others():
    """They are given no budget, and taken to need some images."""
    op, y = problems()["mask"]
    found = ADMM(op, lambda x, sigma: x, max_iter=1, progress=False, max_memory=200).solve(y)
    assert found.x.shape == y.shape


SCRIPT = """
import sys, torch
from pnp_lofi import ADMM, LoFiPrior
from pnp_lofi.memory import peak_memory_mb
from pnp_lofi.operators import Mask, NormalEquations
torch.set_num_threads(1)
what, n, budget = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
g = torch.Generator().manual_seed(0)
if what == "mask":
    op = Mask(torch.rand(n, n, generator=g) < 0.3, sigma=0.05)
    y = op.A(torch.rand(1, 1, n, n, generator=g))
else:
    uv = 6 * torch.rand(2, 20_000, dtype=torch.float64, generator=g) - 3
    op, y = NormalEquations((n, n), eps=1e-6).add(uv, torch.ones(20_000, dtype=torch.complex64)).measurement(sigma=9.0)
prior = LoFiPrior("natural", precision="auto", chunk=None if budget else 400_000)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = peak_memory_mb()
ADMM(op, prior, max_iter=1, progress=False, max_memory=budget or None).solve(y)
print(peak_memory_mb() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    "what, side, budget", [("mask", 768, 180.0), pytest.param("streamed", 1536, 310.0, marks=pytest.mark.slow)]
)
def test_peak_of_the_process(what, side, budget):
    """Kept to with a budget; a prior in large chunks takes more without one."""
    used = [
        float(subprocess.run([sys.executable, "-c", SCRIPT, what, str(side), str(b)], capture_output=True, text=True,
                             check=True).stdout)
        for b in (budget, 0.0)
    ]  # fmt: skip
    assert used[0] <= budget < used[1]
