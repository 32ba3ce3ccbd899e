"""Learned filters: what they are against explicit sums, and a LoFi that sees through them."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from pnp_lofi import LoFi
from pnp_lofi.checkpoint import load_checkpoint, save_checkpoint
from pnp_lofi.filters import SpatialFilter, SpectralFilter, make_filter
from pnp_lofi.sampling import grid_coords

FILTERS = {
    "spectral": {"kind": "spectral", "size": 8, "padding": 3},
    "spectral twice": {"kind": "spectral", "size": 6, "padding": 0, "count": 2},
    "spectral filtered": {"kind": "spectral", "size": 7, "padding": 5, "use": "filtered"},
    "spatial": {"kind": "spatial", "size": 5},
    "spatial twice": {"kind": "spatial", "size": 3, "count": 2},
    "spatial filtered": {"kind": "spatial", "size": 3, "use": "filtered"},
    "raw": {"kind": "spectral", "size": 4, "use": "raw"},
}


def image(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomised(module, seed=0):
    """Float64 with random weights."""
    module = module.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return module


def seeing(channels, options, **more):
    """A tiny LoFi with irregular offsets and a filter that is no identity."""
    torch.manual_seed(1)
    model = LoFi(channels, rays=3, rings=4, radius=2.7, hidden=(8,), features=5, mixer=(7,), filter=options, **more)
    with torch.no_grad():
        model.geometry.offsets.add_(0.1 * torch.randn(model.geometry.offsets.shape))
        for value in model.filter.parameters():
            value.add_(0.3 * torch.randn(value.shape))
    return model.double().eval()


def dft(n):
    """The unnormalised DFT matrix, row by row from its definition."""
    k = torch.arange(n, dtype=torch.float64)
    return torch.exp(-2j * math.pi * torch.outer(k, k) / n)


# --- SpectralFilter


@pytest.mark.parametrize("shape", [(16, 16), (16, 24), (15, 9), (1, 1), (2, 5), (40, 3), (33, 32)])
@pytest.mark.parametrize("padding", [0, 3, 16])
@pytest.mark.parametrize("size", [4, 7, 16])
def test_starts_as_the_identity(shape, padding, size):
    q = image(2, 3, *shape)
    seen = SpectralFilter(3, size=size, padding=padding).double()(q)
    expected = torch.cat([q, q, torch.zeros_like(q)], 1)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [4, 9, 12])
def test_equals_a_sum_over_frequencies_at_its_own_size(size):
    module, q, F = randomised(SpectralFilter(2, size=size, padding=0)), image(2, 2, size, size), dft(size)
    H = torch.complex(*module.response)
    spectrum = torch.einsum("kr,bcrs,ls->bckl", F, q.to(F.dtype), F)
    filtered = torch.einsum("kr,bckl,ls->bcrs", F.conj(), H * spectrum, F.conj()) / size**2
    torch.testing.assert_close(module(q), torch.cat([q, filtered.real, filtered.imag], 1), rtol=0, atol=1e-11)


def test_a_shift_by_its_phase():
    """exp(-2 pi i f) moves the image one pixel down: the sign and the axes of the frequencies."""
    size = 8
    module, q = SpectralFilter(1, size=size, padding=0, use="filtered").double(), image(1, 1, size, size)
    phase = torch.exp(-2j * math.pi * torch.fft.fftfreq(size, dtype=torch.float64))
    with torch.no_grad():
        module.response.copy_(torch.view_as_real(phase[:, None].expand(size, size)).movedim(-1, 0)[:, None])
    real, imaginary = module(q)[0]
    torch.testing.assert_close(real, q[0, 0].roll(1, 0), rtol=0, atol=1e-12)
    torch.testing.assert_close(imaginary, torch.zeros_like(imaginary), rtol=0, atol=1e-12)


def gaussian(rows, columns):
    """A smooth complex function of frequency [cycles/pixel], not symmetric, periodic for all practical purposes."""
    f, g = torch.meshgrid(torch.fft.fftfreq(rows), torch.fft.fftfreq(columns), indexing="ij")
    return torch.exp(-((f - 0.05) ** 2) / 0.02 - (g + 0.08) ** 2 / 0.015) * (1 + 0.5j)


@pytest.mark.parametrize("shape", [(64, 64), (48, 96), (37, 51), (128, 200), (20, 20)])
def test_a_smooth_response_is_the_same_function_of_frequency_at_any_size(shape):
    module = SpectralFilter(1, size=64)
    with torch.no_grad():
        module.response.copy_(torch.view_as_real(gaussian(64, 64)).movedim(-1, 0)[:, None])
        torch.testing.assert_close(module.at_size(shape)[0], gaussian(*shape), rtol=0, atol=2e-3)


def test_a_larger_image_is_filtered_alike():
    """Far from the borders an image and its crop agree: the filter belongs to pixels, not to the image."""
    module = SpectralFilter(1, size=64, use="filtered")
    with torch.no_grad():
        module.response.copy_(torch.view_as_real(gaussian(64, 64)).movedim(-1, 0)[:, None])
        q = image(1, 1, 140, 100).float()
        large, crop = module(q), module(q[..., 20:110, 10:90])
    inner = (..., slice(30, 60), slice(25, 55))
    torch.testing.assert_close(crop[inner], large[..., 20:110, 10:90][inner], rtol=0, atol=5e-3)


def test_borders_do_not_mix_within_the_padding():
    size = 16
    far = torch.zeros(1, 1, size, size, dtype=torch.float64)
    far[..., -4, 8] = 1  # 4 pixels above the lower border

    def moved(padding):  # 8 pixels down
        module = SpectralFilter(1, size=size + 2 * padding, padding=padding, use="filtered").double()
        phase = torch.exp(-2j * math.pi * 8 * torch.fft.fftfreq(size + 2 * padding, dtype=torch.float64))
        with torch.no_grad():
            module.response.copy_(torch.view_as_real(phase[:, None].expand(-1, len(phase))).movedim(-1, 0)[:, None])
        return module(far)[0, 0].detach()

    assert float(moved(0)[4, 8]) == pytest.approx(1)  # comes in again at the top
    assert float(moved(8).abs().max()) < 1e-12


@pytest.mark.parametrize("kind", [SpectralFilter, SpatialFilter])
@pytest.mark.parametrize("count", [1, 2])
def test_use_says_which_channels_are_seen(kind, count):
    q = image(1, 3, 10, 11)
    both, filtered, raw = (randomised(kind(3, count=count, size=5, use=use)) for use in ("both", "filtered", "raw"))
    each = 3 * count * (2 if kind is SpectralFilter else 1)
    assert (both.out_channels, filtered.out_channels, raw.out_channels) == (3 + each, each, 3)
    assert [m(q).shape[1] for m in (both, filtered, raw)] == [3 + each, each, 3]
    torch.testing.assert_close(both(q), torch.cat([q, filtered(q)], 1), rtol=0, atol=0)
    assert raw(q) is q


def test_two_responses_each_see_every_channel():
    module, q = randomised(SpectralFilter(2, count=2, size=6, use="filtered")), image(1, 2, 9, 8)
    found = module(q)
    for k in range(2):
        for c in range(2):
            one = SpectralFilter(1, size=6, use="filtered").double()
            with torch.no_grad():
                one.response.copy_(module.response[:, 2 * k + c, None])
            torch.testing.assert_close(found[:, [2 * k + c, 4 + 2 * k + c]], one(q[:, c, None]), rtol=0, atol=1e-13)


def test_complex_pair_is_one_complex_image():
    module, q = randomised(SpectralFilter(2, size=8, padding=0, complex_pair=True, count=2)), image(2, 2, 8, 8)
    field = torch.complex(q[:, 0], q[:, 1])[:, None]
    filtered = torch.fft.ifft2(torch.fft.fft2(field) * torch.complex(*module.response))
    assert module.out_channels == 6 and module.response.shape[1] == 2
    torch.testing.assert_close(module(q), torch.cat([q, filtered.real, filtered.imag], 1), rtol=0, atol=1e-12)
    start = SpectralFilter(2, size=8, complex_pair=True, use="filtered").double()
    torch.testing.assert_close(start(q), q, rtol=0, atol=1e-13)


def test_official_is_zero_padded_and_filtered_first():
    module, q = randomised(SpectralFilter(1, size=18, official=True)), image(1, 1, 8, 8)
    padded = torch.nn.functional.pad(q, (5,) * 4)
    filtered = torch.fft.ifft2(torch.fft.fft2(padded) * torch.complex(*module.response))[..., 5:-5, 5:-5]
    torch.testing.assert_close(module(q), torch.cat([filtered.real, filtered.imag, q], 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 4), (5, 6)])
def test_gradients_of_the_spectral_filter(shape):
    module, q = randomised(SpectralFilter(1, size=4, padding=2)), image(1, 1, *shape).requires_grad_()

    def filtered(q, response):
        return torch.func.functional_call(module, {"response": response}, (q,))

    assert torch.autograd.gradcheck(filtered, (q, module.response))
    assert torch.autograd.gradgradcheck(filtered, (q, module.response))


def test_a_change_of_dtype_keeps_the_imaginary_part():
    module = SpectralFilter(1, size=8)
    with torch.no_grad():
        module.response.normal_()
    q = image(1, 1, 8, 8).float()
    before = module(q).detach()
    after = module.to(torch.float64)(q.double())
    assert float(before[:, 2].abs().max()) > 0.1 and after.dtype == torch.float64
    torch.testing.assert_close(after, before.double(), rtol=0, atol=1e-5)


# --- SpatialFilter


@pytest.mark.parametrize("shape", [(12, 9), (2, 3), (1, 4)])
def test_spatial_equals_scipy(shape):
    module, q = randomised(SpatialFilter(2, count=2, size=5, use="filtered")), image(2, 2, *shape)
    found = module(q).detach()
    assert found.shape == (2, 4, *shape)
    for b in range(2):
        for k in range(4):  # the kernels of a channel stand together
            kernel = module.kernels[k, 0].detach().numpy()
            expected = scipy.ndimage.correlate(q[b, k // 2].numpy(), kernel, mode="mirror")
            np.testing.assert_allclose(found[b, k].numpy(), expected, rtol=0, atol=1e-12)


def test_spatial_starts_as_the_identity():
    q = image(1, 3, 6, 7)
    torch.testing.assert_close(SpatialFilter(3).double()(q), torch.cat([q, q], 1), rtol=0, atol=0)


def test_gradients_of_the_spatial_filter():
    module, q = randomised(SpatialFilter(2, size=3)), image(1, 2, 3, 4).requires_grad_()

    def filtered(q, kernels):
        return torch.func.functional_call(module, {"kernels": kernels}, (q,))

    assert torch.autograd.gradcheck(filtered, (q, module.kernels))
    assert torch.autograd.gradgradcheck(filtered, (q, module.kernels))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SpectralFilter(0), "channels, count and size >= 1"),
        (lambda: SpectralFilter(1, count=0), "channels, count and size >= 1"),
        (lambda: SpectralFilter(1, size=3), "4 x 4"),
        (lambda: SpectralFilter(1, padding=-1), "padding must be at least 0"),
        (lambda: SpectralFilter(3, complex_pair=True), "two channels.*got 3"),
        (lambda: SpectralFilter(1, use="none"), "'both', 'filtered' or 'raw', got 'none'"),
        (lambda: SpectralFilter(1, size=16, official=True)(torch.rand(1, 1, 8, 9)), "square"),
        (lambda: SpatialFilter(1, size=4), "odd size, got 4"),
        (lambda: SpatialFilter(1, size=0), ">= 1"),
        (lambda: SpatialFilter(1, use="none"), "'none'"),
        (lambda: make_filter(1, kind="wavelet"), "'spectral' or .*'spatial', got 'wavelet'"),
        (lambda: make_filter(1, kind="spatial", official=True), "not official"),
        (lambda: LoFi(filter={"kind": "wavelet"}), "wavelet"),
        (lambda: LoFi(3, filter={"kind": "spectral", "complex_pair": True}), "two channels"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- a LoFi that sees through a filter


@pytest.mark.parametrize("options", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("channels", [1, 2])
def test_three_ways_in_agree(options, channels):
    model, q = seeing(channels, options), image(2, channels, 13, 18)
    whole = model(q, 0.1).flatten(2).transpose(1, 2)
    drawn = torch.randperm(13 * 18, generator=torch.Generator().manual_seed(0))[:50]
    at = model.at(q, grid_coords((13, 18), dtype=q.dtype), 0.1)
    torch.testing.assert_close(at, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.at_pixels(q, drawn, 0.1), whole[:, drawn], rtol=0, atol=1e-12)
    for chunk in (1, 18, 100):
        torch.testing.assert_close(model(q, 0.1, chunk=chunk), model(q, 0.1), rtol=0, atol=1e-12)


def test_three_ways_in_agree_for_a_complex_pair():
    model, q = seeing(2, {"kind": "spectral", "size": 8, "complex_pair": True}), image(1, 2, 9, 8)
    assert model.seen_channels == 4
    whole = model(q, 0.1).flatten(2).transpose(1, 2)
    at = model.at(q, grid_coords((9, 8), dtype=q.dtype), 0.1)
    torch.testing.assert_close(at, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.at_pixels(q, torch.arange(72), 0.1), whole, rtol=0, atol=1e-12)


def test_the_network_sees_what_the_filter_says():
    """A LoFi with a filter equals a plain one that is given the filtered channels."""
    options = {"kind": "spectral", "size": 8, "padding": 3}
    model, q = seeing(1, options, equivariant=False, residual=False), image(1, 1, 11, 10)
    plain = LoFi(3, 1, rays=3, rings=4, radius=2.7, hidden=(8,), features=5, mixer=(7,), equivariant=False,
                 residual=False).double()  # fmt: skip
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("filter.")})
    torch.testing.assert_close(model(q), plain(model.filter(q)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("options", FILTERS.values(), ids=FILTERS)
def test_level_and_scale_equivariance(options):
    model, q = seeing(1, options), image(1, 1, 12, 10)
    torch.testing.assert_close(model(7e3 * q, 7e3 * 0.1), 7e3 * model(q, 0.1), rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(model(q + 5, 0.1), model(q, 0.1) + 5, rtol=0, atol=1e-10)


def test_a_spatial_filter_shifts_with_the_image():
    model, q = seeing(1, FILTERS["spatial"]), image(1, 1, 30, 30)
    m = model.geometry.margin((30, 30)) + model.filter.margin
    moved = model(q.roll((3, 2), (-2, -1)), 0.1)
    inner = (..., slice(m + 3, -m), slice(m + 3, -m))
    torch.testing.assert_close(moved[inner], model(q, 0.1).roll((3, 2), (-2, -1))[inner], rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", FILTERS.values(), ids=FILTERS)
def test_round_trip(options, tmp_path):
    model, q = seeing(2, options).float(), image(1, 2, 9, 9).float()
    save_checkpoint(tmp_path / "a.safetensors", model)
    again, header = load_checkpoint(tmp_path / "a.safetensors")
    assert header["config"]["filter"] == options
    torch.testing.assert_close(again(q, 0.1), model(q, 0.1), rtol=0, atol=0)


@pytest.mark.parametrize("options", [FILTERS["spectral"], FILTERS["spatial"]], ids=["spectral", "spatial"])
def test_every_parameter_learns(options):
    model, q = seeing(1, options), image(1, 1, 6, 6)
    for call in (lambda: model(q, 0.3, chunk=7), lambda: model.at_pixels(q, torch.arange(36), 0.3)):
        model.zero_grad()
        call().square().sum().backward()
        assert all(bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in model.parameters())


def test_max_memory_is_shared_with_the_filter():
    model, q = seeing(1, FILTERS["spectral"]).float(), image(1, 1, 64, 64).float()
    torch.testing.assert_close(model(q, 0.1, max_memory=2), model(q, 0.1), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="too little"):
        model(image(1, 1, 512, 512).float(), 0.1, max_memory=2)
