"""Latent optimisation: against least squares by numpy, kept and resumed to the bit, and what it refuses."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from pnp_lofi.descent import Descent, Stage
from pnp_lofi.latent import LatentSolver, total_variation
from pnp_lofi.operators import Derivatives, Mask, random_mask
from pnp_lofi.sampling import grid_coords

LATENT, SIDE = 5, 8


class Line(nn.Module):
    """f(z) = W z + b, an image of 8 x 8."""

    def __init__(self, seed: int = 0, *, bias: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(LATENT, SIDE**2, bias=bias)
        self.latent = LATENT

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.linear(z).reshape(len(z), 1, SIDE, SIDE)


def problem(seed: int = 0, items: int = 1, dtype: torch.dtype = torch.float64):
    f = Line().to(dtype)
    op = Mask(random_mask((SIDE, SIDE), 0.5, seed))
    truth = torch.randn(items, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return op, f, op.A(truth)


def test_the_optimum_of_a_linear_generator_is_least_squares():
    op, f, y = problem(items=2)
    found = LatentSolver(op, f, steps=1500, lr=0.1, weight_steps=0, progress=False).solve(y)
    keep = op.mask.flatten().numpy()
    w = f.linear.weight.detach().numpy()
    for k in range(2):
        z = np.linalg.lstsq(w[keep], y[k].flatten().numpy()[keep], rcond=None)[0]
        np.testing.assert_allclose(found.z[k].numpy(), z, atol=1e-5)
        np.testing.assert_allclose(found.x[k].flatten().numpy(), w @ z, atol=1e-5)
    assert found.status == "limit" and found.iterations == 1500 and len(found.residuals) == 1500


def test_the_penalty_on_z_is_ridge_regression():
    op, f, y = problem()
    weight = 0.3
    found = LatentSolver(op, f, steps=1500, lr=0.1, weight_steps=0, prior=weight, progress=False).solve(y)
    keep = op.mask.flatten().numpy()
    w, data = f.linear.weight.detach().numpy()[keep], y.flatten().numpy()[keep]
    normal = w.T @ w / (data @ data) + 0.5 * weight / LATENT * np.eye(LATENT)
    np.testing.assert_allclose(found.z[0].numpy(), np.linalg.solve(normal, w.T @ data / (data @ data)), atol=1e-5)


def test_total_variation():
    ramp = 0.5 * torch.arange(6.0).expand(1, 1, 4, 6) + 0.2 * torch.arange(4.0)[:, None]
    assert float(total_variation(ramp)) == pytest.approx(np.hypot(0.5, 0.2), rel=1e-6)
    op, f, y = problem()
    options = {"steps": 300, "weight_steps": 0, "lr": 0.1, "progress": False}
    rough, smooth = (LatentSolver(op, f, tv=tv, **options).solve(y).x for tv in (0.0, 10.0))
    assert float(total_variation(smooth)) < 0.2 * float(total_variation(rough))


def test_the_weights_explain_what_z_cannot_and_the_users_stay():
    op, f, y = problem()
    before = {k: v.clone() for k, v in f.state_dict().items()}
    options = {"steps": 300, "lr": 0.1, "progress": False}
    z_only = LatentSolver(op, f, weight_steps=0, **options).solve(y)
    both = LatentSolver(op, f, weight_steps=300, weight_lr=0.5, **options).solve(y)
    assert both.metrics["relative_misfit"] < 0.1 * z_only.metrics["relative_misfit"]
    assert torch.equal(both.z, z_only.z) and both.iterations == 600
    torch.testing.assert_close(both.generator(both.z), both.x)
    assert all(torch.equal(v, before[k]) for k, v in f.state_dict().items())
    assert all(p.requires_grad for p in f.parameters())


def test_derivatives_are_explained():
    f = Line().double()
    op = Derivatives((SIDE, SIDE), grid_coords((SIDE, SIDE), dtype=torch.float64))
    z = torch.randn(1, LATENT, dtype=torch.float64)
    truth = f(z).detach()
    found = LatentSolver(op, f, steps=1500, lr=0.1, weight_steps=0, progress=False).solve(op(truth), truth=truth)
    torch.testing.assert_close(found.z, z, atol=1e-4, rtol=0)
    assert found.metrics["snr"] > 60


@pytest.mark.parametrize("at", [30, 70, 110])
def test_a_run_resumes_to_the_same_bits(tmp_path, at):
    """Broken off in the stage of z, and in that of the weights, after savings at each step."""
    op, f, y = problem(dtype=torch.float32)
    options = {"steps": 60, "weight_steps": 60, "weight_lr": 0.1, "progress": False}
    whole = LatentSolver(op, f, **options).solve(y)
    path = tmp_path / "z.run"

    class Breaks(Line):
        calls = 0

        def forward(self, z):
            type(self).calls += 1
            if self.calls == at:
                raise MemoryError
            return super().forward(z)

    broken = Breaks()
    broken.load_state_dict(f.state_dict())
    with pytest.raises(MemoryError):
        LatentSolver(op, broken, **options).solve(y, save=path, every=0)
    found = LatentSolver(op, f, **options).solve(y, save=path, resume=True)
    assert torch.equal(found.x, whole.x) and torch.equal(found.z, whole.z) and found.residuals == whole.residuals
    again = LatentSolver(op, f, **options).solve(y, save=path, resume=True)  # it was finished
    assert torch.equal(again.x, whole.x)


SCRIPT = """
import sys, torch
from tests.test_latent import Line, problem
from pnp_lofi.latent import LatentSolver
torch.set_num_threads(1)
op, f, y = problem(dtype=torch.float32)
def told(step):
    print(step.iteration, flush=True)
resume = sys.argv[2] == "resume"
LatentSolver(op, f, steps=int(sys.argv[3]), weight_steps=50, weight_lr=0.1, callback=told, progress=False).solve(
    y, save=sys.argv[1], resume=resume, every=0)
"""


def test_kill_9_loses_nothing(tmp_path):
    path, steps = tmp_path / "z.run", 1500
    words = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(path)]
    process = subprocess.Popen([*words, "start", str(steps)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "50\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    op, f, y = problem(dtype=torch.float32)
    options = {"steps": steps, "weight_steps": 50, "weight_lr": 0.1, "progress": False}
    found = LatentSolver(op, f, **options).solve(y, save=path, resume=True)
    whole = LatentSolver(op, f, **options).solve(y)
    assert torch.equal(found.x, whole.x)


def test_the_callback_sees_pictures_and_stops():
    op, f, y = problem()
    seen = []

    def look(step):
        seen.append((step.iteration, step.x.shape, step.snr))
        return step.iteration == 100

    solver = LatentSolver(op, f, steps=1000, weight_steps=0, callback=look, progress=False)
    found = solver.solve(y, truth=torch.zeros(1, 1, SIDE, SIDE, dtype=torch.float64) + 1)
    assert [s[0] for s in seen] == [50, 100] and seen[0][1] == (1, 1, SIDE, SIDE) and seen[0][2] is not None
    assert found.status == "stopped" and found.iterations == 100


def test_bad_input_is_one_clear_error(tmp_path):
    op, f, y = problem()
    solver = LatentSolver(op, f, steps=5, weight_steps=5, progress=False)
    broken = y.clone()
    broken[op.mask] = torch.nan
    with pytest.raises(ValueError, match="NaN or inf"):
        solver.solve(broken)
    with pytest.raises(ValueError, match="all zero"):
        solver.solve(torch.zeros_like(y))
    with pytest.raises(ValueError, match="one image at a time, got 2"):
        solver.solve(torch.cat([y, y]))
    with pytest.raises(ValueError, match="z0 must be"):
        solver.solve(y, z0=torch.zeros(1, 3))
    with pytest.raises(TypeError):
        solver.solve(y.numpy())
    for name, options in (("tv", {"tv": -1.0}), ("steps", {"steps": 0}), ("lr", {"lr": 0.0}),
                          ("steps", {"weight_steps": -1}), ("lr", {"weight_lr": float("nan")})):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            LatentSolver(op, f, **options)
    with pytest.raises(ValueError, match="pass latent="):
        LatentSolver(op, nn.Linear(3, 4))
    with pytest.raises(FloatingPointError, match=r"loss is (inf|nan) at step \d+; lower lr"):
        LatentSolver(op, f, steps=5, weight_steps=2000, weight_lr=1e300, progress=False).solve(y)
    path = tmp_path / "z.run"
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        solver.solve(y, save=path, resume=True)
    solver.solve(y, save=path)
    with pytest.raises(FileExistsError, match="resume"):
        solver.solve(y, save=path)
    with pytest.raises(ValueError, match=r"another run.*data"):
        solver.solve(2 * y, save=path, resume=True)
    with pytest.raises(ValueError, match=r"another run.*generator"):
        LatentSolver(op, Line(7).double(), steps=5, weight_steps=5).solve(y, save=path, resume=True)
    with pytest.raises(ValueError, match=r"another run.*stages"):
        LatentSolver(op, f, steps=6, weight_steps=5).solve(y, save=path, resume=True)


def test_stages_are_those_of_torch():
    """Adam by torch, by hand, with the same falling step."""
    a = torch.zeros(3)
    target = torch.tensor([1.0, -2.0, 3.0])
    run = Descent({"a": a}, lambda step: (a - target).square().sum(), [Stage(("a",), 20, 0.1)])
    assert run.run(progress=False)
    b = torch.zeros(3, requires_grad=True)
    adam = torch.optim.Adam([b], lr=0.1)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 20)
    for _ in range(20):
        adam.zero_grad()
        (b - target).square().sum().backward()
        adam.step()
        fall.step()
    torch.testing.assert_close(a.detach(), b.detach(), atol=1e-5, rtol=1e-5)


def test_data_with_a_graph_of_their_own_are_taken():
    op, f, _ = problem()
    truth = f(torch.ones(1, LATENT, dtype=torch.float64))
    assert truth.requires_grad
    solver = LatentSolver(op, f, steps=600, lr=0.1, weight_steps=0, progress=False)
    assert solver.solve(op.A(truth), truth=truth).metrics["snr"] > 40
