"""Sharpness and noise of pictures against what is known of them in closed form."""

import math

import pytest
import torch

from pnp_lofi.ct_quality import edge_spread, mtf, nps


def blurred_disk(sigma: float, *, size: int = 160, radius: float = 50.3, centre=(79.3, 80.1), height: float = 300.0):
    """A disk under a Gaussian of sigma [pixel], to O(sigma / radius): its edge is that of a half plane."""
    rows = torch.arange(size, dtype=torch.float64)[:, None] - centre[0]
    columns = torch.arange(size, dtype=torch.float64) - centre[1]
    distance = torch.hypot(rows, columns) - radius
    return height * 0.5 * torch.erfc(distance / (sigma * math.sqrt(2))), centre, radius


@pytest.mark.parametrize("sigma", [0.8, 1.3])
@pytest.mark.parametrize("pixel", [1.0, 0.37])
def test_mtf_of_a_gaussian(sigma, pixel):
    image, centre, radius = blurred_disk(sigma)
    found = mtf(image + 40, centre, radius, pixel)
    exact = torch.exp(-2 * math.pi**2 * (sigma * pixel * found.frequency) ** 2)
    seen = exact > 0.05
    assert float((found.value - exact)[seen].abs().max()) < 0.01
    for level in (0.5, 0.1):
        expected = math.sqrt(-math.log(level) / 2) / (math.pi * sigma * pixel)
        assert found.at(level) == pytest.approx(expected, rel=0.015)
    darker = mtf(-image, centre, radius, pixel)
    torch.testing.assert_close(darker.value, found.value)


def test_mtf_of_averaged_pixels():
    """A disk drawn as the means over pixels has the sinc of a pixel, averaged over directions: at least along axes."""
    size, fine, radius, centre = 128, 8, 40.0, (63.5, 63.5)
    axis = (torch.arange(size * fine, dtype=torch.float64) + 0.5) / fine - 0.5
    inside = torch.hypot(axis[:, None] - centre[0], axis - centre[1]) < radius
    image = inside.double().reshape(size, fine, size, fine).mean((1, 3))
    found = mtf(image, centre, radius, 1.0)
    turn = torch.linspace(0, math.pi / 2, 200, dtype=torch.float64)[:, None]
    sinc = torch.sinc(found.frequency * turn.cos()) * torch.sinc(found.frequency * turn.sin())
    seen = found.frequency < 0.5
    assert float((found.value - sinc.mean(0))[seen].abs().max()) < 0.03


def test_mtf_bad_input():
    image, centre, radius = blurred_disk(1.0)
    with pytest.raises(ValueError, match="to either side of its edge"):
        mtf(image, centre, 78.0, 1.0)
    with pytest.raises(ValueError, match="no edge"):
        mtf(torch.full((160, 160), 3.0), centre, radius, 1.0)
    with pytest.raises(ValueError, match=r"expected a picture \(H, W\), got \(1, 160, 160\)"):
        mtf(image[None], centre, radius, 1.0)
    with pytest.raises(ValueError, match="finite real numbers of image"):
        mtf(image.where(image > 100, torch.nan), centre, radius, 1.0)
    with pytest.raises(ValueError, match="finite real numbers of images"):
        nps(torch.stack([image, image * torch.nan]), 1.0)
    assert math.isnan(mtf(image, centre, radius, 1.0).at(0.0))
    assert len(edge_spread(image, centre, radius)) == 80


@pytest.mark.parametrize(("shape", "pixel"), [((64, 64), 0.8), ((48, 80), 1.7)])
def test_nps_of_white_noise(shape, pixel):
    """Flat, sigma^2 dx dy; the same whatever lies beneath; its integral is the variance."""
    sigma, generator = 25.0, torch.Generator().manual_seed(0)
    object_ = 500 * torch.rand(shape, generator=generator, dtype=torch.float64)
    images = object_ + sigma * torch.randn(60, *shape, generator=generator, dtype=torch.float64)
    found = nps(images, pixel)
    flat = sigma**2 * pixel**2
    assert float(found.plane.mean()) == pytest.approx(flat, rel=0.01)
    torch.testing.assert_close(found.ring[3:], torch.full_like(found.ring[3:], flat), rtol=0.1, atol=0)
    cell = 1 / (shape[0] * pixel * shape[1] * pixel)  # of frequencies [1/mm^2]
    assert float(found.plane.sum() * cell) == pytest.approx(float(images.var(0).mean()), rel=1e-9)


def test_nps_of_blurred_noise_follows_the_mtf_squared():
    sigma, n, generator = 10.0, 64, torch.Generator().manual_seed(1)
    white = sigma * torch.randn(200, n, n, generator=generator, dtype=torch.float64)
    f = torch.fft.fftfreq(n, dtype=torch.float64)
    response = torch.exp(-2 * math.pi**2 * 0.9**2 * (f[:, None] ** 2 + f**2))
    found = nps(torch.fft.ifft2(torch.fft.fft2(white) * response).real, 0.5)
    exact = sigma**2 * 0.25 * torch.exp(-4 * math.pi**2 * 0.9**2 * (found.frequency * 0.5) ** 2)
    assert float((found.ring - exact)[2:].abs().max()) < 0.06 * sigma**2 * 0.25


def test_nps_of_two_is_half_that_of_their_difference():
    pair = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    difference = torch.fft.fft2(pair[0] - pair[1]).abs().square() / 2 / 16**2
    torch.testing.assert_close(nps(pair, 1.0).plane, difference)
    with pytest.raises(ValueError, match="two or more"):
        nps(pair[:1], 1.0)
