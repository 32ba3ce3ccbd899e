"""The Triton kernels against torch in float64: run by Triton's interpreter here, on CUDA with ``-m gpu``."""

import importlib
import os
import sys
import warnings

import pytest
import torch

from pnp_lofi import kernels
from pnp_lofi.multimlp import MultiMLP
from pnp_lofi.sampling import sample

triton = pytest.importorskip("triton")
from triton.runtime import interpreter, jit  # noqa: E402

MODULES = ("pnp_lofi.triton_gather", "pnp_lofi.triton_mlp")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(int(os.environ.get("PNP_LOFI_SEED", "0")))


@pytest.fixture
def interpret(monkeypatch):
    """Kernels that run on the CPU, for one test: Triton decides when a function is decorated."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(kernels, "_failure", None)
    # triton's own library was decorated for a GPU when torch imported it
    for library in (triton.language, triton.language.standard):
        for name, value in list(vars(library).items()):
            if isinstance(value, jit.JITFunction):
                monkeypatch.setattr(library, name, interpreter.InterpretedFunction(value.fn))
    compiled = {name: sys.modules.pop(name, None) for name in MODULES}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="a Triton kernel failed")  # no silent fallback
        yield
    for name, module in compiled.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def load(name):
    return importlib.import_module(f"pnp_lofi.{name}")


def relative(got, expected):
    return float((got.detach().double().cpu() - expected.detach()).norm() / expected.detach().norm())


def gradients(out, inputs, weights):
    return torch.autograd.grad(out, inputs, weights.to(out))


def patch_inputs(shape, pixels, count, shared, dtype=torch.float32, reach=2.0, device="cpu"):
    """Image, points up to a whole image outside, offsets; all with a gradient."""
    batch, _, height, width = shape
    place = torch.promote_types(dtype, torch.float32)
    size = torch.tensor([height, width], dtype=place)
    values = (
        torch.randn(shape, dtype=place).to(dtype),
        torch.rand(batch, pixels, 2, dtype=place) * 3 * size - size,
        reach * torch.randn((count, 2) if shared else (batch, pixels, count, 2), dtype=place),
    )
    return [value.to(device).requires_grad_() for value in values]


def sampled(image, points, offsets, a=-0.5):
    """The definition, in float64 on the CPU."""
    at = points[:, :, None] + offsets
    return sample(image, at.flatten(1, 2), a).unflatten(1, at.shape[1:3]).transpose(2, 3)


def doubles(tensors):
    return [tensor.detach().double().cpu().requires_grad_() for tensor in tensors]


def check_patches(gather, inputs, a, tolerance, place_tolerance=1e-5):
    exact = doubles(inputs)
    got, expected = gather(*inputs, a), sampled(*exact, a)
    assert got.dtype == inputs[0].dtype
    weights = torch.randn(expected.shape, dtype=torch.float64).to(got.dtype).double()
    assert relative(got, expected) < tolerance
    for k, (ours, theirs) in enumerate(
        zip(gradients(got, inputs, weights), gradients(expected, exact, weights), strict=True)
    ):
        assert ours.dtype == inputs[k].dtype
        assert relative(ours, theirs) < (place_tolerance if k else tolerance)


@pytest.mark.parametrize(
    ("shape", "pixels", "count", "shared", "reach"),
    [
        ((1, 1, 20, 21), 100, 81, True, 3.0),
        ((2, 3, 9, 7), 70, 5, True, 2.0),
        ((2, 3, 9, 7), 70, 5, False, 2.0),
        ((1, 3, 12, 5), 64, 17, True, 60.0),
        ((1, 2, 1, 5), 33, 6, False, 2.0),
        ((1, 1, 6, 1), 33, 6, True, 2.0),
        ((2, 1, 3, 2), 40, 7, True, 2.0),
    ],
)
def test_patches_and_gradients(interpret, shape, pixels, count, shared, reach):
    inputs = patch_inputs(shape, pixels, count, shared, reach=reach)
    check_patches(load("triton_gather").gather_patches, inputs, -0.5, 1e-5 if reach < 10 else 1e-4, 1e-4)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 6e-3), (torch.float16, 8e-4)]
)
@pytest.mark.parametrize(("a", "shared"), [(-0.75, True), (-0.6, False)])
def test_patches_in_other_dtypes(interpret, dtype, tolerance, a, shared):
    inputs = patch_inputs((1, 3, 12, 11), 66, 9, shared, dtype)
    place = 1e-12 if dtype == torch.float64 else 1e-5
    check_patches(load("triton_gather").gather_patches, inputs, a, tolerance, place)


def test_patches_of_one_pixel_are_that_pixel(interpret):
    image, points, offsets = patch_inputs((2, 2, 1, 1), 3, 4, True, torch.float64, reach=9.0)
    patches = load("triton_gather").gather_patches(image, points, offsets)
    torch.testing.assert_close(patches, image[:, None, :, 0].expand(2, 3, 2, 4), rtol=0, atol=1e-13)


def test_patches_far_from_zero_keep_the_fraction(interpret):
    """The kernel, unlike the float32 sum of point and offset, sees 1/1000 pixel at pixel 30000."""
    image = torch.randn(1, 1, 1, 32768)
    points, offsets = torch.tensor([[[0.0, 30000.0]]]), 0.001 * torch.randn(5, 2)
    got = load("triton_gather").gather_patches(image, points, offsets)
    expected = sampled(image.double(), points.double(), offsets.double())
    assert float((got - expected).abs().max()) < 1e-6 * float(image.abs().max())


@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_only_needed_gradients(interpret, needed):
    inputs = patch_inputs((1, 1, 8, 9), 20, 18, True, torch.float64)
    inputs = [x.detach().requires_grad_(bool(need)) for x, need in zip(inputs, needed, strict=True)]
    load("triton_gather").gather_patches(*inputs).square().sum().backward()
    exact = doubles(inputs)
    sampled(*exact).square().sum().backward()
    for x, y, need in zip(inputs, exact, needed, strict=True):
        assert (x.grad is None) == (not need)
        if need:
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shared", [True, False])
def test_second_derivatives_of_patches(interpret, shared):
    inputs = patch_inputs((1, 2, 4, 5), 3, 2, shared, torch.float64, reach=0.7)
    assert torch.autograd.gradgradcheck(load("triton_gather").gather_patches, inputs)


def test_patches_refuse_other_shapes(interpret):
    gather = load("triton_gather").gather_patches
    with pytest.raises(ValueError, match=r"\(B, P, 2\)"):
        gather(torch.rand(1, 1, 4, 4), torch.rand(5, 2), torch.rand(3, 2))
    with pytest.raises(ValueError, match="offsets must be"):
        gather(torch.rand(1, 1, 4, 4), torch.rand(1, 5, 2), torch.rand(5, 3, 2))


NETWORKS = {  # rays, inputs, hidden, features, mixer, outputs
    "odd": (3, 9, (37, 37), 10, (20,), 10),
    "linear": (2, 9, (), 10, (), 3),
    "one ray": (1, 5, (20,), 4, (130, 17), 1),
    "several blocks": (2, 16, (150, 140, 130), 100, (200, 130), 2),
    "wide features": (2, 3, (8, 8), 140, (300,), 129),
}


def mlp_inputs(network, pixels, device="cpu"):
    """Patches and the four lists of parameters, all with a gradient."""
    model = MultiMLP(*NETWORKS[network]) if isinstance(network, str) else MultiMLP(*network)
    patches = torch.randn(len(model.ray_weights[0]), pixels, model.ray_weights[0].shape[1])
    lists = (model.ray_weights, model.ray_biases, model.mixer_weights, model.mixer_biases)
    return [patches.to(device).requires_grad_(), *([t.detach().to(device).requires_grad_() for t in x] for x in lists)]


def flatten(patches, *lists):
    return [patches, *(tensor for group in lists for tensor in group)]


def exact_mlp(inputs):
    patches, *lists = inputs
    exact = [doubles([patches])[0], *(doubles(group) for group in lists)]
    h = exact[0]
    for k, (weight, bias) in enumerate(zip(*exact[1:3], strict=True)):
        h = (h.relu() if k else h) @ weight + bias
    h = h.transpose(0, 1).flatten(1)
    for k, (weight, bias) in enumerate(zip(*exact[3:], strict=True)):
        h = (h.relu() if k else h) @ weight + bias
    return flatten(*exact), h


def check_mlp(inputs, dtype, tolerance):
    got = load("triton_mlp").fused_multimlp(*inputs, dtype)
    exact, expected = exact_mlp(inputs)
    assert got.dtype == dtype
    assert relative(got, expected) < tolerance
    weights = torch.randn(expected.shape, dtype=torch.float64)
    theirs = gradients(expected, exact, weights)
    return gradients(got, flatten(*inputs), weights), theirs, weights


def check_low_precision(inputs, dtype, tolerance):
    """ReLUs that flip near zero set the error of the gradients: torch's own, in the same dtype, is the measure."""
    ours, theirs, weights = check_mlp(inputs, dtype, tolerance)
    torchs = gradients(kernels.multimlp_reference(*inputs, dtype), flatten(*inputs), weights)
    worst = max(relative(z, y) for y, z in zip(theirs, torchs, strict=True))
    for x, y in zip(ours, theirs, strict=True):
        assert x.dtype == torch.float32
        assert relative(x, y) < 1.5 * worst + tolerance


@pytest.mark.parametrize("network", NETWORKS)
def test_multimlp_and_gradients(interpret, network):
    inputs = mlp_inputs(network, 150)
    ours, theirs, _ = check_mlp(inputs, torch.float32, 1e-5)
    for x, y in zip(ours, theirs, strict=True):
        assert relative(x, y) < 1e-5


# the interpreter cuts float32 off to bfloat16 where a GPU rounds: twice the error per layer
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("network", ["odd", "several blocks"])
def test_multimlp_in_low_precision_is_as_close_as_torch(interpret, network, dtype, tolerance):
    inputs = mlp_inputs(network, 150)
    check_low_precision(inputs, dtype, tolerance)


def test_multimlp_takes_pixels_in_blocks(interpret, monkeypatch):
    module = load("triton_mlp")
    inputs = mlp_inputs("odd", 300)
    whole = module.fused_multimlp(*inputs)
    weights = torch.randn_like(whole)
    expected = gradients(whole, flatten(*inputs), weights)
    monkeypatch.setattr(module, "PIXELS", 128)
    parts = module.fused_multimlp(*inputs)
    torch.testing.assert_close(parts, whole)
    for x, y in zip(gradients(parts, flatten(*inputs), weights), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_multimlp_gradients_where_needed(interpret):
    inputs = mlp_inputs("odd", 60)
    patches, *lists = inputs
    frozen = [[tensor.detach() for tensor in group] for group in lists]
    fused = load("triton_mlp").fused_multimlp
    (only,) = torch.autograd.grad(fused(patches, *frozen).sum(), patches)
    together = torch.autograd.grad(fused(*inputs).sum(), flatten(*inputs))
    torch.testing.assert_close(only, together[0])
    (bias,) = torch.autograd.grad(fused(patches.detach(), *frozen[:3], lists[3]).sum(), lists[3][-1:])
    torch.testing.assert_close(bias, together[-1])


def test_second_derivatives_of_multimlp(interpret):
    """The gradient's gradient, as a penalty on the patches' gradient uses it."""
    inputs = mlp_inputs("odd", 40)

    def penalty(out, patches, wanted):
        (slope,) = torch.autograd.grad(out.square().sum(), patches, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), wanted, allow_unused=True)

    ours = penalty(load("triton_mlp").fused_multimlp(*inputs), inputs[0], flatten(*inputs))
    exact, out = exact_mlp(inputs)
    theirs = penalty(out, exact[0], exact)
    for x, y in zip(ours, theirs, strict=True):
        assert relative(x, y) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_multimlp_of_paper_size(interpret, dtype, tolerance):
    inputs = mlp_inputs((9, 9, (370,) * 3, 100, (370,) * 3, 1), 200)
    check_mlp(inputs, dtype, tolerance)


def test_dispatch_takes_the_kernels(interpret, monkeypatch):
    inputs = patch_inputs((1, 1, 8, 9), 20, 18, True)
    mlp = mlp_inputs("odd", 20)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "gather_reference", None)
        patch.setattr(kernels, "multimlp_reference", None)
        patches, out = kernels.gather(*inputs), kernels.multimlp(*mlp)
    assert "_Gather" in type(patches.grad_fn).__name__
    assert "_MultiMLP" in type(out.grad_fn).__name__
    torch.testing.assert_close(patches, kernels.gather_reference(*inputs), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out, MultiMLP.forward(as_module(mlp), mlp[0]), rtol=1e-4, atol=1e-5)
    monkeypatch.setenv("PNP_LOFI_KERNELS", "0")
    assert not kernels.available(inputs[0])
    assert "_Gather" not in type(kernels.gather(*inputs).grad_fn).__name__


def as_module(inputs):
    model = MultiMLP(*NETWORKS["odd"])
    names = ("ray_weights", "ray_biases", "mixer_weights", "mixer_biases")
    for name, group in zip(names, inputs[1:], strict=True):
        for parameter, value in zip(getattr(model, name), group, strict=True):
            parameter.data = value.detach()
    return model


def test_no_kernels_on_the_cpu_unless_asked(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    inputs, mlp = patch_inputs((1, 2, 8, 9), 20, 18, False), mlp_inputs("odd", 20)
    assert not kernels.available(inputs[0])
    assert "_Gather" not in type(kernels.gather(*inputs).grad_fn).__name__
    assert kernels.gather(*inputs).shape == (1, 20, 2, 18)
    torch.testing.assert_close(kernels.multimlp(*mlp), MultiMLP.forward(as_module(mlp), mlp[0]))


def test_no_kernels_without_triton(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(kernels, "_installed", lambda: False)
    inputs = patch_inputs((1, 1, 8, 9), 20, 18, True)
    torch.testing.assert_close(kernels.gather(*inputs), kernels.gather_reference(*inputs))


def test_a_failing_kernel_warns_once_and_torch_goes_on(interpret, monkeypatch):
    def broken(*_):
        raise RuntimeError("no such device function")

    monkeypatch.setattr(load("triton_gather"), "gather_patches", broken)
    inputs = patch_inputs((1, 1, 8, 9), 20, 18, True)
    with pytest.warns(RuntimeWarning, match="no such device function"):
        got = kernels.gather(*inputs)
    torch.testing.assert_close(got, kernels.gather_reference(*inputs))
    assert not kernels.available(inputs[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernels.gather(*inputs)


def test_bad_input_is_not_a_failing_kernel(interpret):
    image, points, _ = patch_inputs((1, 1, 8, 9), 20, 18, True)
    with pytest.raises(RuntimeError):
        kernels.gather(image, points, torch.rand(7, 3))
    assert kernels.available(image)


def test_running_out_of_memory_is_not_hidden(interpret):
    def full():
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        kernels.attempt(full, lambda: None)


# on a GPU: the same comparisons, compiled


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-3)])
@pytest.mark.parametrize("shared", [True, False])
def test_patches_on_cuda(dtype, tolerance, shared):
    inputs = patch_inputs((2, 3, 70, 61), 1000, 81, shared, dtype, device="cuda")
    check_patches(load("triton_gather").gather_patches, inputs, -0.5, tolerance, 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("network", [*NETWORKS, (9, 9, (370,) * 3, 100, (370,) * 3, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_multimlp_on_cuda(network, dtype, tolerance):
    check_low_precision(mlp_inputs(network, 20_000, device="cuda"), dtype, tolerance)


@pytest.mark.gpu
def test_dispatch_on_cuda():
    inputs = patch_inputs((1, 1, 64, 64), 4096, 81, True, device="cuda")
    assert "_Gather" in type(kernels.gather(*inputs).grad_fn).__name__
    out = kernels.multimlp(*mlp_inputs("odd", 4096, device="cuda"), torch.bfloat16)
    assert "_MultiMLP" in type(out.grad_fn).__name__
