"""Procedural chests and heads: seeded, in range, and made of what bodies are made of."""

import time

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from pnp_lofi.dicom import DicomSlices
from pnp_lofi.organs import CHEST_FIELD, HEAD_FIELD, chest, head

BODIES = pytest.mark.parametrize("draw", [chest, head])


@pytest.fixture(scope="module")
def chests() -> torch.Tensor:
    return chest(16, 128, seed=1)


@pytest.fixture(scope="module")
def heads() -> torch.Tensor:
    return head(16, 128, seed=1)


def part(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Of each image, between two values [HU]."""
    return ((x >= low) & (x < high)).float().mean((1, 2, 3))


@BODIES
@pytest.mark.parametrize("size", [16, 33, 200])
def test_shape_and_range(draw, size):
    x = draw(3, size, seed=5)
    assert x.shape == (3, 1, size, size) and x.dtype == torch.float32
    assert torch.isfinite(x).all() and x.min() >= -1000 and x.max() <= 2000
    assert (x[..., 0, :] < -900).all()  # air above


@BODIES
def test_same_seed_same_images_whatever_the_count(draw):
    x = draw(3, 48, seed=7)
    assert torch.equal(x[:2], draw(2, 48, seed=7))
    assert not torch.equal(x[0], x[1]) and not torch.equal(x[0], draw(1, 48, seed=8)[0])


@BODIES
@pytest.mark.parametrize(
    ("count", "size", "seed", "came"), [(0, 64, 0, "count 0"), (1, 15, 0, "15"), (1, 64, -1, "-1")]
)
def test_errors_say_what_came(draw, count, size, seed, came):
    with pytest.raises(ValueError, match=f"expected.*{came}"):
        draw(count, size, seed=seed)


def test_chests_hold_lungs_fat_flesh_and_bone(chests):
    area = (CHEST_FIELD / 10) ** 2  # [cm^2]
    body = (1 - part(chests, -2000, -950)) * area
    assert body.min() > 300 and body.max() < 1000  # a trunk of 30 x 20 cm has about 500
    for low, high, least, most in (
        (-980, -600, 60, 450),
        (-150, -50, 20, 450),
        (0, 150, 60, 400),
        (200, 2000, 15, 100),
    ):
        found = part(chests, low, high) * area
        assert least < found.median() < most, (low, high, found)
    assert part(chests, -2000, -950).std() > 0.02 and part(chests, -150, -50).std() > 0.01  # they differ


def test_chests_have_two_lungs(chests):
    for x in chests[:, 0].numpy():
        _, columns = np.nonzero((x > -980) & (x < -500) & inside(x))
        assert np.mean(columns < 64) > 0.2 and np.mean(columns >= 64) > 0.2


def inside(x: np.ndarray) -> np.ndarray:
    """Without what hangs together with the air outside."""
    parts, _ = label(x < -300)
    return parts != parts[0, 0]


def test_heads_hold_skull_and_brain(heads):
    area = (HEAD_FIELD / 10) ** 2
    whole = (1 - part(heads, -2000, -900)) * area
    assert whole.min() > 140 and whole.max() < 330  # 15 x 18 cm has about 210
    brain, bone = part(heads, 0, 60) * area, part(heads, 400, 3000) * area
    assert 80 < brain.median() < 180 and 20 < bone.median() < 70
    closed = 0  # the skull, unless it is cut through the eyes: what is outside does not reach the middle
    for x in heads[:, 0].numpy():
        parts, _ = label(x < 300)
        closed += bool(parts[64, 64] != parts[0, 0])
    assert closed >= len(heads) / 2


@BODIES
def test_edges_are_sharp_and_rare(draw):
    x = draw(4, 128, seed=2)[:, 0].double().numpy()
    d = np.diff(x, axis=-1)
    assert np.mean(d**4) / np.mean(d**2) ** 2 > 10  # Gaussian: 3; real slices about 27


@pytest.mark.parametrize(("draw", "name"), [(chest, "chest"), (head, "head")])
def test_parts_are_about_those_of_real_slices(shared_data, draw, name):
    pytest.importorskip("pydicom")
    data = DicomSlices(shared_data / "ct" / name, units="HU", size=128)
    real = torch.stack([data[k] for k in range(len(data))])
    x = draw(16, 128, seed=3)
    for low, high in ((-2000, -950), (-950, -300), (-300, -30), (-30, 100), (100, 3000)):
        ours, theirs = float(part(x, low, high).mean()), float(part(real, low, high).mean())
        assert abs(ours - theirs) < 0.15, (low, high, ours, theirs)


@BODIES
def test_an_image_takes_a_fraction_of_a_second(draw):
    start = time.process_time()
    draw(4, 256, seed=1)
    assert (time.process_time() - start) / 4 < 0.6  # measured .04 s
