"""Dense matrices of tomography, from the definitions: independent of the package's own ray weights."""

import math

import torch
from torch import Tensor


def joseph_matrix(
    shape: tuple[int, int], theta: Tensor, s: Tensor, centre: tuple[float, float] | None = None
) -> Tensor:
    """(R, HW): the weight of a pixel is max(0, 1 - distance from the ray along the minor axis) over the inclination."""
    H, W = shape
    cy, cx = centre or ((H - 1) / 2, (W - 1) / 2)
    y, x = cy - torch.arange(H, dtype=torch.float64)[:, None], torch.arange(W, dtype=torch.float64)[None] - cx
    matrix = torch.zeros(len(theta), H, W, dtype=torch.float64)
    for k, (t, p) in enumerate(zip(theta.tolist(), s.tolist(), strict=True)):
        major = max(abs(math.cos(t)), abs(math.sin(t)))
        matrix[k] = (1 - (x * math.cos(t) + y * math.sin(t) - p).abs() / major).clamp(min=0) / major
    return matrix.flatten(1)


def parallel(angles: Tensor, detectors: int, spacing: float = 1.0, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """theta and s of every ray, angle by angle."""
    s = (torch.arange(detectors, dtype=torch.float64) - (detectors - 1) / 2) * spacing + offset
    return angles.double().repeat_interleave(detectors), s.repeat(len(angles))


def fan(
    angles: Tensor, detectors: int, source: float, detector: float, spacing: float, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The same from the two points that a ray joins: the source and an element of the detector."""
    theta, s = [], []
    for b in angles.tolist():
        e, d = (math.cos(b), math.sin(b)), (-math.sin(b), math.cos(b))
        for j in range(detectors):
            u = (j - (detectors - 1) / 2) * spacing + offset
            start = [-source * q for q in d]
            end = [(detector - source) * q + u * p for p, q in zip(e, d, strict=True)]
            dx, dy = end[0] - start[0], end[1] - start[1]
            t = math.atan2(-dx, dy)  # the normal (cos t, sin t) of the direction (-sin t, cos t)
            theta.append(t)
            s.append(start[0] * math.cos(t) + start[1] * math.sin(t))
    return torch.tensor(theta, dtype=torch.float64), torch.tensor(s, dtype=torch.float64)
