"""MeerKAT's coverage and the conversion of metres, against the published files, astronomy and direct sums."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from pnp_lofi.operators import NUFFT, default_cell, meerkat_uv, meerkat_uvw, uv_radians, w_phase

QUANTIFAI_DECLINATION = -(15 + 36 / 60 + 4.25 / 3600)


def published(shared: Path, hours: int) -> torch.Tensor:
    content = np.load(shared / "radio" / f"meerkat_simulation_{hours}h_uv_only.npy", allow_pickle=True).item()
    return torch.from_numpy(np.stack([content["uu"], content["vv"]]).astype(np.float64))


def density(uv: torch.Tensor) -> np.ndarray:
    return np.histogram2d(*uv.numpy(), bins=64, range=[[-math.pi, math.pi]] * 2)[0].ravel()


def test_array_is_meerkat() -> None:
    # at the pole, at any time: w = Z, and (u, v) is the equatorial plane; lengths do not depend on the direction
    lengths = meerkat_uvw(0.05, declination=-45.0).norm(dim=1).numpy()
    assert len(lengths) == 2016
    found = (lengths.min(), lengths.max(), np.median(lengths))
    assert found == pytest.approx((29.26, 7697.6, 957.5), abs=0.05)


def test_geometry_at_the_zenith() -> None:
    """A source at the zenith sees the array from above: u, v, w are east, north, up."""
    text = (Path(__file__).parents[1] / "pnp_lofi/data/meerkat.csv").read_text().splitlines()
    enu = np.array([[float(v) for v in line.split(",")[1:]] for line in text if line.startswith("m0")])
    uvw = meerkat_uvw(0.01, declination=-30.7110555556, min_elevation=89.0).numpy()
    np.testing.assert_allclose(uvw, np.concatenate([enu[i] - enu[i + 1 :] for i in range(63)]), atol=1e-6)


def test_order_time_then_baseline_and_rotation() -> None:
    uvw = meerkat_uvw(1.0, declination=-90.0, integration=600.0).reshape(6, 2016, 3)
    radius = uvw[..., :2].norm(dim=-1)
    torch.testing.assert_close(radius, radius[:1].expand(6, -1))  # circles about the pole, constant w
    angle = torch.atan2(uvw[..., 1], uvw[..., 0])
    turn = torch.remainder(angle[1:] - angle[:-1], 2 * math.pi)
    expected = 2 * math.pi * 600 / 86164.09
    assert float((torch.minimum(turn, 2 * math.pi - turn) - expected).abs().max()) < 1e-9


def test_elevation_limit() -> None:
    everything = len(meerkat_uvw(10.0, min_elevation=-90.0))
    assert everything == 150 * 2016
    assert 0 < len(meerkat_uvw(10.0, min_elevation=40.0)) < everything
    with pytest.raises(ValueError, match=r"rises to 9\.3 deg .* below min_elevation = 15"):
        meerkat_uvw(1.0, declination=50.0)


@pytest.mark.parametrize("hours", [1, 2])
def test_quantifai_matches_the_published_coverage(shared_data: Path, hours: int) -> None:
    theirs = published(shared_data, hours)
    ours = meerkat_uv(hours, declination=QUANTIFAI_DECLINATION, mapping="quantifai")
    assert ours.shape == theirs.shape == (2, hours * 15 * 2016)
    assert np.corrcoef(density(ours), density(theirs))[0, 1] >= 0.999
    # the same baselines in the same order, but for a few antennas that stand elsewhere in their table
    assert float((ours - theirs).abs().median()) < 2e-3
    torch.testing.assert_close(ours.aminmax(dim=1).max, torch.full((2,), math.pi, dtype=torch.float64))


@pytest.mark.slow
def test_published_norms(shared_data: Path) -> None:
    """L of QuantifAI's operator, which is half of ours: 13.26 at 1 h, 26.37 at 2 h, at 256 x 256."""
    for hours, norm in ((1, 13.26), (2, 26.37)):
        assert NUFFT((256, 256), published(shared_data, hours)).norm / 4 == pytest.approx(norm, rel=1e-3)


def test_sky_convention() -> None:
    """V = sum I exp(-2 pi i (u l + v m)) of a source East and North: at smaller columns, larger rows."""
    H, W, cell, frequency = 12, 10, 3.0, 1.4e9
    uv = torch.tensor([[900.0, 300.0, 17.0], [-200.0, 1500.0, 3.0], [0.0, 0.0, 9.0]], dtype=torch.float64)
    east, north = 3, 2  # pixels
    x = torch.zeros(1, 1, H, W, dtype=torch.float64)
    x[..., H // 2 + north, W // 2 - east] = 1
    vis = NUFFT((H, W), uv_radians(uv, frequency, cell)).A(x)[0, 0] * math.sqrt(H * W)
    wavelength = 299792458.0 / frequency
    l, m = (n * cell * math.pi / 648000 for n in (east, north))
    expected = torch.exp(-2j * math.pi * (uv[:, 0] * l + uv[:, 1] * m) / wavelength)
    torch.testing.assert_close(vis, expected)


def test_default_cell_is_nyquist() -> None:
    uvw = meerkat_uvw(0.05, declination=-30.7110555556)
    # facts: 2.87" where the longest baseline is seen in full
    assert default_cell(uvw, 1.4e9) == pytest.approx(2.87, abs=0.01)
    assert default_cell(uvw, 1.4e9, super_resolution=2.0) == pytest.approx(default_cell(uvw, 1.4e9) / 2)
    longest = uv_radians(uvw, 1.4e9, default_cell(uvw, 1.4e9)).norm(dim=0).max()
    assert float(longest) == pytest.approx(math.pi, rel=1e-12)
    two = torch.tensor([[100.0, 0.0], [50.0, 0.0]])
    assert default_cell(two, torch.tensor([1e9, 4e9])) == pytest.approx(default_cell(two, 2e9))


def test_a_cell_that_is_too_coarse_is_refused() -> None:
    uvw = meerkat_uvw(0.05)
    cell = default_cell(uvw, 1.4e9)
    for factor in (1.0, 1.5, 2.5):
        finer = default_cell(uvw, 1.4e9, super_resolution=factor)
        assert finer == pytest.approx(
            180 * 3600 / math.pi / (2 * factor * float(uvw[:, :2].norm(dim=1).max()) / 0.214137), rel=1e-5
        )
        NUFFT((8, 8), uv_radians(uvw, 1.4e9, finer))
    with pytest.raises(ValueError, match=r"with cells at least 1\.[0-9]+ times smaller"):
        NUFFT((8, 8), uv_radians(uvw, 1.4e9, 2 * cell))


def test_frequency_per_row() -> None:
    uv = torch.tensor([[100.0, 20.0], [100.0, 20.0]])
    found = uv_radians(uv, torch.tensor([1e9, 2e9]), 2.0)
    torch.testing.assert_close(found[:, 1], 2 * found[:, 0])
    torch.testing.assert_close(found[:, :1], uv_radians(uv[:1], 1e9, 2.0))


def test_arrays_of_numpy() -> None:
    """Of either order of bytes, read-only, and of integers."""
    uvw = meerkat_uvw(0.05)
    frequency = np.linspace(1e9, 2e9, len(uvw))
    expected = uv_radians(uvw, torch.from_numpy(frequency), 2.0)
    for kind in (">f8", "<f8"):
        array = uvw.numpy().astype(kind)
        array.flags.writeable = False
        torch.testing.assert_close(uv_radians(array, frequency.astype(kind), 2.0), expected, rtol=0, atol=0)
        assert default_cell(array, 1.4e9) == default_cell(uvw, 1.4e9)
        assert w_phase(array, 1.4e9, 2.0, (64, 64)) == w_phase(uvw, 1.4e9, 2.0, (64, 64))
    torch.testing.assert_close(
        uv_radians(np.array([[100, 20]]), 1.4e9, 2.0), uv_radians(torch.tensor([[100.0, 20.0]]), 1.4e9, 2.0)
    )
    with pytest.raises(ValueError, match=r"got \(2, 7\); transpose it"):
        uv_radians(np.zeros((2, 7)), 1e9, 1.0)


@pytest.mark.parametrize("frequency", [1400.0, 1.4, np.array([1.4e9, 1400.0])], ids=["MHz", "GHz", "array"])
def test_unit_of_the_frequency(frequency) -> None:
    uv = torch.tensor([[100.0, 20.0], [50.0, 20.0]])
    for call in (lambda: uv_radians(uv, frequency, 2.0), lambda: default_cell(uv, frequency)):
        with pytest.warns(UserWarning, match="if it is in MHz, multiply by 1e6, if in GHz, by 1e9") as seen:
            call()
        assert len(seen) == 1 and seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        uv_radians(uv, 30e6, 2.0)


def test_physical_mapping_keeps_the_shape_and_fits_the_operator() -> None:
    uv = meerkat_uv(0.2)
    uvw = meerkat_uvw(0.2)
    torch.testing.assert_close(uv[0] / uv[1], -uvw[:, 1] / uvw[:, 0])
    NUFFT((16, 16), uv)


def test_w_phase() -> None:
    uvw = torch.tensor([[0.0, 0.0, -1000.0], [1.0, 1.0, 10.0]], dtype=torch.float64)
    cell, wavelength = 3.0, 299792458.0 / 1.4e9
    edge, corner = w_phase(uvw, 1.4e9, cell, (100, 256))
    l, m = 128 * cell * math.pi / 648000, 50 * cell * math.pi / 648000
    expected = [2 * math.pi * 1000 / wavelength * (1 - math.sqrt(1 - s)) for s in (l**2, l**2 + m**2)]
    assert (edge, corner) == pytest.approx(expected, rel=1e-8)
    # QuantifAI's field: 0.18 / 0.37 rad at 256 with 2.87", four times that at 512
    uvw = meerkat_uvw(4.0, declination=QUANTIFAI_DECLINATION)
    assert w_phase(uvw, 1.4e9, 2.87, (256, 256)) == pytest.approx((0.18, 0.37), rel=0.15)
    assert w_phase(uvw, 1.4e9, 2.87, (512, 512)) == pytest.approx((0.74, 1.47), rel=0.15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: meerkat_uvw(0.0), "0 < hours <= 24"),
        (lambda: meerkat_uvw(math.nan), "0 < hours <= 24"),
        (lambda: meerkat_uvw(1.0, integration=-1.0), "integration > 0"),
        (lambda: meerkat_uvw(1.0, declination=91.0), r"declination must lie in \[-90, 90\]"),
        (lambda: meerkat_uv(1.0, mapping="other"), 'mapping must be "physical" or "quantifai"'),
        (lambda: meerkat_uv(1.0, mapping="quantifai", cell=2.0), "has no pixel size"),
        (lambda: uv_radians(torch.zeros(2, 7), 1e9, 1.0), r"got \(2, 7\); transpose it"),
        (lambda: uv_radians(torch.full((3, 2), math.nan), 1e9, 1.0), "NaN or inf"),
        (lambda: uv_radians(torch.ones(3, 2), 1e9 * torch.ones(4), 1.0), r"one per row \(3\), got shape \(4,\)"),
        (lambda: uv_radians(torch.ones(3, 2), 0.0, 1.0), "frequency must be finite and > 0 Hz"),
        (lambda: uv_radians(torch.ones(3, 2), 1e9, 0.0), "cell must be finite and > 0 arcsec"),
        (lambda: default_cell(torch.zeros(3, 2), 1e9), "length zero"),
        (lambda: default_cell(torch.ones(3, 2), 1e9, super_resolution=0.0), "super_resolution must be"),
        (lambda: default_cell(torch.ones(3, 2), 1e9, super_resolution=0.9), "at least 1, .* longest baselines alias"),
        (lambda: w_phase(torch.ones(3, 2), 1e9, 1.0, (8, 8)), r"needs uvw of shape \(M, 3\)"),
        (lambda: w_phase(torch.ones(3, 3), 1e9, 3600.0, (256, 256)), "beyond the horizon"),
    ],
)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
