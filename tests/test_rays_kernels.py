"""The Triton projectors against Joseph's weights in float64: run by Triton's interpreter here, on CUDA with -m gpu."""

import importlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from pnp_lofi import kernels
from pnp_lofi.operators.fan_beam import FanBeam
from pnp_lofi.operators.radon import Radon

triton = pytest.importorskip("triton")
from triton.runtime import interpreter, jit  # noqa: E402

MODULE = "pnp_lofi.triton_rays"
TOLERANCE = 5e-7  # relative; sums of some hundred float32 products


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(int(os.environ.get("PNP_LOFI_SEED", "0")))


@pytest.fixture
def interpret(monkeypatch):
    """Kernels that run on the CPU, for one test: Triton decides when a function is decorated."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(kernels, "_failure", None)
    for library in (triton.language, triton.language.standard):  # decorated for a GPU when torch imported them
        for name, value in list(vars(library).items()):
            if isinstance(value, jit.JITFunction):
                monkeypatch.setattr(library, name, interpreter.InterpretedFunction(value.fn))
    compiled = sys.modules.pop(MODULE, None)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="a Triton kernel failed")  # no silent fallback
        yield
    sys.modules.pop(MODULE, None)
    if compiled is not None:
        sys.modules[MODULE] = compiled


def even(count, arc):
    return torch.arange(count, dtype=torch.float64) * (arc / count)


FAN = {"source_origin": 40.0, "source_detector": 80.0}
GEOMETRIES = {
    "parallel": lambda **o: Radon((20, 20), 12, **o),
    "half a turn of random views": lambda **o: Radon((15, 16), 7 * torch.rand(6, dtype=torch.float64), **o),
    "rectangle, offset, centre": lambda **o: Radon((20, 17), 7, 31, offset=0.3, centre=(8.2, 7), spacing=0.7, **o),
    "off the image": lambda **o: Radon((9, 11), 5, 12, offset=14.0, **o),
    "far off the image": lambda **o: Radon((9, 11), 3, 12, offset=1e9, **o),
    "wide detectors": lambda **o: Radon((11, 20), 9, 9, spacing=2.3, **o),
    "fine detectors": lambda **o: Radon((9, 12), 5, 80, spacing=0.11, **o),
    "one detector": lambda **o: Radon((9, 9), 5, 1, spacing=0.4, **o),
    "one pixel": lambda **o: Radon((1, 1), 3, 4, **o),
    "pixel size": lambda **o: Radon((16, 16), 8, pixel_size=0.3, **o),
    "fan": lambda **o: FanBeam((20, 20), 9, **FAN, **o),
    "part of a fan": lambda **o: FanBeam((13, 20), 7, detectors=15, offset=2.7, centre=(4, 9), **FAN, **o),
    "fan, fine detectors": lambda **o: FanBeam((13, 20), 5, detectors=70, spacing=0.3, **FAN, **o),
    "fan of two rays": lambda **o: FanBeam((8, 8), 5, detectors=2, **FAN, **o),
    "source near the image": lambda **o: FanBeam((9, 12), 5, source_origin=8.1, source_detector=17, **o),
    "pixels behind the source": lambda **o: FanBeam(
        (9, 12), 4, source_origin=9, source_detector=14, detectors=21, centre=(-4, 9), **o
    ),
}


def data(op, batch, device="cpu"):
    x = torch.randn(batch, 1, *op.shape, dtype=torch.float64, device=device)
    return x, torch.randn(batch, 1, len(op.angles), op.detectors, dtype=torch.float64, device=device)


def relative(got, expected):
    return float((got.double() - expected).norm() / expected.norm().clamp(min=1e-30))


def check(make, batch, tolerance, device="cpu"):
    torch.manual_seed(1)
    exact = make(backend="free").to(device)
    torch.manual_seed(1)
    op = make(backend="triton").to(device)
    x, y = data(exact, batch, device)
    Ax, Ay = op.A(x.float()), op.A_adjoint(y.float())
    assert Ax.dtype == Ay.dtype == torch.float32
    assert relative(Ax, exact.A(x)) < tolerance
    assert relative(Ay, exact.A_adjoint(y)) < tolerance
    left, right = (Ax.double() * y).sum(), (x * Ay.double()).sum()
    assert abs(float(left - right)) <= tolerance * float(Ax.double().norm() * y.norm())
    return op


@pytest.mark.parametrize("name", GEOMETRIES)
def test_same_as_in_float64(interpret, name):
    check(GEOMETRIES[name], 1, TOLERANCE)


@pytest.mark.parametrize("batch", [3, 5, 33])
@pytest.mark.parametrize("name", ["one pixel", "rectangle, offset, centre", "fan of two rays"])
def test_batches(interpret, name, batch):
    check(GEOMETRIES[name], batch, TOLERANCE)


def test_several_programs(interpret):
    check(lambda **o: Radon((41, 35), 9, **o), 1, TOLERANCE)


def test_a_column_of_the_transpose_is_a_row_of_the_matrix(interpret):
    """Weight by weight, not only on average."""
    for make in (lambda: Radon((5, 4), 6, spacing=0.8), lambda: FanBeam((5, 4), 6, **FAN)):
        op = make()
        rays = importlib.import_module(MODULE).RayKernels(*op.lines(op.angles), op.shape, op.centre)
        matrix = rays.forward(torch.eye(20).view(20, 5, 4)).T
        transposed = rays.backward(torch.eye(len(matrix))).flatten(1)
        torch.testing.assert_close(transposed, matrix, rtol=0, atol=3e-7)
        expected = op.A(torch.eye(20, dtype=torch.float64).view(20, 1, 5, 4)).flatten(1).T
        torch.testing.assert_close(matrix.double(), expected, rtol=0, atol=3e-7)


def test_irregular_rays_are_projected_as_well(interpret):
    """No detector of even spacing: every ray of a view is a candidate."""
    theta, s = 3 * torch.rand(2, 9, dtype=torch.float64), 4 * torch.randn(2, 9, dtype=torch.float64)
    rays = importlib.import_module(MODULE).RayKernels(theta, s, (7, 6), (3.0, 2.5))
    matrix = rays.forward(torch.eye(42).view(42, 7, 6)).T
    torch.testing.assert_close(rays.backward(torch.eye(18)).flatten(1), matrix, rtol=0, atol=3e-7)
    expected = [ray_by_hand(float(t), float(r)) for t, r in zip(theta.flatten(), s.flatten(), strict=True)]
    torch.testing.assert_close(matrix.double(), torch.stack(expected), rtol=0, atol=3e-7)


def ray_by_hand(theta, s):
    """Joseph's weights as the distance of each pixel from the ray along its row or column."""
    theta = torch.tensor(theta, dtype=torch.float64)
    y, x = 3.0 - torch.arange(7.0, dtype=torch.float64)[:, None], torch.arange(6.0, dtype=torch.float64) - 2.5
    steepest = torch.maximum(theta.cos().abs(), theta.sin().abs())
    away = (x * theta.cos() + y * theta.sin() - s).abs() / steepest
    return ((1 - away).clamp(min=0) / steepest).flatten()


def test_positions_are_exact_far_from_the_corner(interpret):
    """One long row: float32 positions would be wrong by 2e-3 pixel at pixel 30000."""
    op = Radon((1, 32768), torch.tensor([0.3], dtype=torch.float64), 40, offset=12000.0, backend="triton")
    x, _ = data(op, 1)
    exact = Radon((1, 32768), torch.tensor([0.3], dtype=torch.float64), 40, offset=12000.0, backend="free")
    assert relative(op.A(x.float()), exact.A(x)) < 1e-5


def test_gradients_and_many_channels(interpret):
    op = Radon((8, 8), 5, backend="triton")
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    weights = torch.randn(2, 3, *op.data_shape[2:])
    (op.A(x) * weights).sum().backward()
    torch.testing.assert_close(x.grad, op.A_adjoint(weights))


def test_the_tables_follow_the_operator(interpret):
    op = Radon((8, 8), 5, backend="triton")
    op.A(torch.rand(1, 1, 8, 8))
    assert op.clone()._compiled is op._compiled is not None
    assert op.to("cpu")._compiled is None


def test_the_environment_is_obeyed(interpret, monkeypatch):
    op = Radon((8, 8), 5, backend="triton")
    monkeypatch.setenv("PNP_LOFI_KERNELS", "0")
    with pytest.raises(RuntimeError, match="triton"):
        op.A(torch.rand(1, 1, 8, 8))


def test_a_failing_kernel_warns_once_and_torch_goes_on(interpret, monkeypatch):
    monkeypatch.setattr(importlib.import_module(MODULE).RayKernels, "forward", None)
    op, x = Radon((8, 8), 5, backend="triton"), torch.rand(1, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.warns(RuntimeWarning, match="a Triton kernel failed"):
            y = op.A(x)
    torch.testing.assert_close(y, Radon((8, 8), 5).A(x))


KERNELS = {
    "_project": {"BITS": 30, "EDGE": 2},
    "_backproject_parallel": {"BITS": 30, "EDGE": 2, "CANDIDATES": 2, "UNROLL": 8, "COLUMNS": 16},
    "_backproject_fan": {"BITS": 30, "EDGE": 4, "ALL": False, "CANDIDATES": 4, "UNROLL": 8, "COLUMNS": 16},
}
POINTERS = {
    **dict.fromkeys(("upright", "turned", "source", "out", "inclination", "tops", "pitches", "maps"), "*fp32"),
    **dict.fromkeys(("start", "origin"), "*i64"),
    **dict.fromkeys(("order", "slope", "first", "last", "down", "right"), "*i32"),
}


def compiled_for_sm_90():
    """The PTX of each kernel for a whole block of images, and its shared memory [byte]."""
    module, found = importlib.import_module(MODULE), {}
    for kernel in KERNELS:
        function = getattr(module, kernel)
        constants, names = {"IMAGES": module.IMAGES, "TILE": module.TILE, **KERNELS[kernel]}, function.arg_names
        source = triton.compiler.ASTSource(
            fn=function,
            signature={n: "constexpr" if n in constants else POINTERS.get(n, "i32") for n in names},
            constexprs={(names.index(n),): value for n, value in constants.items()},
            attrs={(k,): [["tt.divisibility", 16]] for k, n in enumerate(names) if n in POINTERS},
        )
        target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
        made = triton.compile(source, target=target, options={"num_warps": module.WARPS})
        found[kernel] = made.asm["ptx"], made.metadata.shared
    return found


def test_kernels_compile_for_a_gpu_that_is_not_here():
    """Four images a load, and no exchange between threads on the way along a ray.

    In a process of its own: the interpreter leaves Triton's library changed.
    """
    code = "import json, test_rays_kernels as t; print(json.dumps(t.compiled_for_sm_90()))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == KERNELS.keys()
    for kernel, (text, shared) in found.items():
        assert "ld.global.v4.b32" in text
        # A x finds its first and last step with two reductions; there is nothing else to exchange
        assert shared <= 64 and text.count("bar.sync") <= (4 if kernel == "_project" else 0)


# on a GPU: the same comparisons, compiled


@pytest.mark.gpu
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("batch", [1, 5, 70])
def test_same_as_in_float64_on_cuda(name, batch):
    check(GEOMETRIES[name], batch, 1e-5, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 3, 128])
@pytest.mark.parametrize(
    "make",
    [
        lambda **o: Radon((256, 256), 256, **o),
        lambda **o: Radon((500, 391), 97, spacing=1.3, offset=0.4, **o),
        lambda **o: FanBeam((256, 200), 120, source_origin=400.0, source_detector=800.0, **o),
    ],
)
def test_large_sizes_on_cuda(make, batch):
    check(make, batch, 1e-5, "cuda")


@pytest.mark.gpu
def test_the_same_on_every_run_on_cuda():
    op = Radon((128, 128), 90, backend="triton").cuda()
    x, y = (t.float() for t in data(op, 16, "cuda"))
    assert torch.equal(op.A(x), op.A(x)) and torch.equal(op.A_adjoint(y), op.A_adjoint(y))


@pytest.mark.gpu
def test_kernels_are_chosen_on_cuda():
    op = Radon((64, 64), 30).cuda()
    op.A(torch.rand(2, 1, 64, 64, device="cuda"))
    assert op._compiled is not None
    op.A(torch.rand(2, 1, 64, 64, device="cuda", dtype=torch.float64))  # by torch
