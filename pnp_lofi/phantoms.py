"""Phantoms whose projections are known exactly."""

import math

import torch
from torch import Tensor

# value, semi-axes a (along x before turning) and b, centre x0 and y0, angle [deg]; the image is [-1, 1]^2, y up
SHEPP_LOGAN = (
    (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18.0),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0.0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0.0),
    (0.1, 0.023, 0.023, 0.0, -0.606, 0.0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
)  # Toft's variant with visible contrast, as in scikit-image and MATLAB

Ellipses = Tensor  # (E, 6): value, a, b, x0, y0, angle [deg]


def shepp_logan() -> Ellipses:
    """The modified Shepp-Logan phantom, (10, 6) float64."""
    return torch.tensor(SHEPP_LOGAN, dtype=torch.float64)


def draw(ellipses: Ellipses, size: int, *, samples: int = 4) -> Tensor:
    """The image of ellipses, each pixel the mean of samples^2 points.

    :param torch.Tensor ellipses: (E, 6). int size: rows and columns.
    :returns: (size, size) float64.
    """
    fine = size * samples
    t = (torch.arange(fine, dtype=torch.float64) - (fine - 1) / 2) * (2 / fine)
    x, y = t[None, :], -t[:, None]
    image = torch.zeros(fine, fine, dtype=torch.float64)
    for value, a, b, x0, y0, degrees in ellipses.tolist():
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        across, along = (x - x0) * cos + (y - y0) * sin, (y - y0) * cos - (x - x0) * sin
        image += value * ((across / a) ** 2 + (along / b) ** 2 <= 1)
    return image.reshape(size, samples, size, samples).mean((1, 3))


def line_integrals(ellipses: Ellipses, theta: Tensor, s: Tensor, size: int) -> Tensor:
    """Exact integrals along x cos t + y sin t = s through the image that :func:`draw` shows, in pixels.

    :param torch.Tensor theta: [rad], and s: [pixel], of any one shape.
    :returns: of that shape.
    Source: Kak and Slaney, equation 3.5.
    """
    half = size / 2
    total = torch.zeros_like(s)
    for value, a, b, x0, y0, degrees in ellipses.tolist():
        turned = theta - math.radians(degrees)
        square = (a * turned.cos()) ** 2 + (b * turned.sin()) ** 2
        distance = s / half - x0 * theta.cos() - y0 * theta.sin()
        total += value * 2 * a * b * (square - distance**2).clamp(min=0).sqrt() / square * half
    return total
