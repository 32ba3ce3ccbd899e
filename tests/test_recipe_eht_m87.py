"""The recipe on a ring that a simulated EHT sees with random phases; and, where they are, on the real data."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from deepinv.models import TVDenoiser

from pnp_lofi.recipes import eht_m87

fits = pytest.importorskip("astropy.io.fits")
pytest.importorskip("matplotlib")

C, FREQUENCY = 299792458.0, 227e9
NAMES = ("AA", "AP", "AZ", "JC", "LM", "PV", "SM")
PLACES = 1e6 * np.array(  # about where the stations stand, Earth-fixed [m]
    [(2.225, -5.440, -2.481), (2.226, -5.440, -2.479), (-1.829, -5.054, 3.428), (-5.464, -2.493, 2.151),
     (-0.769, -5.988, 2.064), (5.089, -0.302, 3.825), (-5.465, -2.492, 2.151)]
)  # fmt: skip
DIAMETER, BRIGHT = 44.0, 200.0  # of the true ring [uas], [deg]
UAS = np.pi / 180 / 3600e6  # [rad]
M87 = "radio/eht_m87/SR1_M87_2017_101_lo_hops_netcal_StokesI.uvfits"


def true_ring(size: int = 80, cell: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """East, north [uas], flux [Jy]: 0.6 Jy, 10 uas wide, three times brighter on one side."""
    east, north = (x.ravel() * cell for x in np.meshgrid(*[np.arange(size) - size / 2 + 0.5] * 2))
    angle = np.arctan2(east, north) - np.radians(BRIGHT)
    flux = np.exp(-4 * np.log(2) * ((np.hypot(east, north) - DIAMETER / 2) / 10) ** 2) * (1 + 0.5 * np.cos(angle))
    return east, north, 0.6 * flux / flux.sum()


def write_eht(path: Path, *, scans: int = 12, dumps: int = 3, sigma: float = 0.004, seed: int = 0) -> Path:
    """Random groups in AIPS's convention: antenna 1 minus 2 [s], V = sum I exp(+2 pi i (u l + v m)), RR = LL = I."""
    rng = np.random.default_rng(seed)
    dec, (east, north, flux) = np.radians(12.39), true_ring()
    rows = []
    for k in range(scans):
        phases = np.exp(2j * np.pi * rng.uniform(size=len(NAMES)))
        for dump in range(dumps):
            t = 2100.0 * k + 10.0 * dump
            H = 2 * np.pi * t / 86164 - 0.9
            x, y, z = PLACES.T
            u, v = np.sin(H) * x + np.cos(H) * y, -np.sin(dec) * (np.cos(H) * x - np.sin(H) * y) + np.cos(dec) * z
            for a in range(len(NAMES)):
                for b in range(a + 1, len(NAMES)):
                    du, dv = u[a] - u[b], v[a] - v[b]
                    turn = 2 * np.pi * FREQUENCY / C * UAS * (du * east + dv * north)
                    vis = (flux * np.exp(1j * turn)).sum() * phases[a] * np.conj(phases[b])
                    vis += sigma * (rng.normal() + 1j * rng.normal())
                    rows.append((du / C, dv / C, 0.0, 256 * (a + 1) + b + 1, 0.1 + t / 86400, vis))
    uu, vv, ww, pair, day, vis = (np.array(column) for column in zip(*rows, strict=True))
    data = np.zeros((len(vis), 1, 1, 1, 2, 3), np.float32)
    data[:, 0, 0, 0, :, 0], data[:, 0, 0, 0, :, 1] = vis.real[:, None], vis.imag[:, None]
    data[..., 2] = 0.5 / sigma**2  # of a hand: Stokes I is their mean
    columns = [uu, vv, ww, pair, np.full(len(vis), 2457854.0), day]
    groups = fits.GroupData(data, parnames=["UU---SIN", "VV---SIN", "WW---SIN", "BASELINE", "DATE", "DATE"],
                            pardata=[c.astype(">f8") for c in columns], bitpix=-64)  # fmt: skip
    hdu = fits.GroupsHDU(groups)
    axes = (("COMPLEX", 1, 1), ("STOKES", -1, -1), ("FREQ", FREQUENCY, 2e9), ("RA", 187.7, 1), ("DEC", 12.39, 1))
    for k, (name, value, delta) in enumerate(axes, start=2):
        hdu.header.update({f"CTYPE{k}": name, f"CRVAL{k}": value, f"CDELT{k}": delta, f"CRPIX{k}": 1})
    table = fits.BinTableHDU.from_columns(
        [fits.Column("ANNAME", "8A", array=NAMES), fits.Column("NOSTA", "1J", array=np.arange(len(NAMES)) + 1)],
        name="AIPS AN",
    )
    fits.HDUList([hdu, table]).writeto(path)
    return path


def test_simulated_ring(tmp_path, monkeypatch, capsys):
    """Noise, random phases: the ring is found with its diameter and bright side, in files that say so."""
    monkeypatch.setattr(eht_m87, "LoFiPrior", lambda name: TVDenoiser(n_it_max=10))  # the network is tested elsewhere
    path = write_eht(tmp_path / "a.uvfits")
    words = [
        "eht_m87",
        str(path),
        "-o",
        str(tmp_path / "out"),
        "--size",
        "48",
        "--rounds",
        "18",
        "--iterations",
        "30",
        "--starts",
        "disk:50",
    ]
    monkeypatch.setattr(sys, "argv", [*words, "gaussian:50"])
    eht_m87.main()
    report = json.loads((tmp_path / "out" / "eht_m87.json").read_text())
    assert "diameter_uas" in capsys.readouterr().out
    assert 200 < report["rows"] <= 19 * 12 and set(report["gain_amplitudes"]) == {
        *NAMES
    }  # ALMA-APEX, JCMT-SMA are left out
    assert report["correlation_of_starts"] > 0.9
    for method in ("clean", "tv", "lofi"):
        found = report[method]
        assert found["diameter_uas"] == pytest.approx(DIAMETER, abs=4), method
        assert found["bright_side_deg"] == pytest.approx(BRIGHT, abs=25), method
        assert found["closure_phases_chi2"] < 2 and found["reduced_chi2"] < 1.5, method
        with fits.open(tmp_path / "out" / f"eht_m87_{method}_restored.fits") as file:
            header, image = file[0].header, file[0].data
        assert header["CDELT2"] * 3600 == pytest.approx(2e-6) and header["BMAJ"] * 3600 == pytest.approx(20e-6)
        assert header["BUNIT"] == "Jy/beam" and image.shape == (1, 1, 48, 48)
    assert (tmp_path / "out" / "eht_m87.png").stat().st_size > 20_000
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(FileExistsError, match="overwrite"):
        eht_m87.main()


@pytest.mark.parametrize("bright", [30.0, 200.0])
def test_a_ring_is_measured(bright):
    """Off the middle, restored with 20 uas; and a blob is no ring."""
    north, east = np.mgrid[:64, :64] - 32.0
    north, east = 2 * north - 7, -2 * east + 4  # [uas]
    angle = np.arctan2(east, north) - np.radians(bright)
    image = np.exp(-(((np.hypot(north, east) - 21) / 4) ** 2)) * (1 + 0.5 * np.cos(angle))
    seen = eht_m87.restore(torch.as_tensor(image), None, eht_m87.Beam(20e-6, 20e-6), 2e-6)
    found = eht_m87.ring(seen, 2e-6, 20e-6)
    assert found["diameter_uas"] == pytest.approx(42, abs=1.5)
    assert found["bright_side_deg"] == pytest.approx(bright, abs=5)
    assert eht_m87.ring(torch.as_tensor(np.exp(-((north**2 + east**2) / 200))), 2e-6, 20e-6) == {}


def test_starts():
    data = eht_m87.Baselines(
        np.ones((1, 3)), np.full(1, 1e11), np.ones(1), np.ones(1), np.ones(1), np.ones(1), np.zeros(1)
    )
    sky = eht_m87.Sky(data, 32, 2e-6)
    for kind in ("disk:40", "gaussian:40", "ring:40"):
        assert float(sky.start(kind, 0.6).sum()) == pytest.approx(0.6)
    for kind in ("disk", "disk:0", "square:3"):
        with pytest.raises(ValueError, match="a start is disk:DIAMETER"):
            sky.start(kind, 0.6)


@pytest.mark.slow
def test_m87(shared_data, tmp_path):
    """EHT 2019, paper IV: 42 +- 3 uas, bright in the south, 150 to 200 deg; whatever round model one starts from."""
    report = eht_m87.image_m87(shared_data / M87, tmp_path)
    assert report["correlation_of_starts"] > 0.98
    for method in ("clean", "tv", "lofi"):
        found = report[method]
        assert found["diameter_uas"] == pytest.approx(42, abs=3), method
        assert 150 <= found["bright_side_deg"] <= 200, method
        assert found["closure_phases_chi2"] < 1.3 and found["log_closure_amplitudes_chi2"] < 2, method
        assert found["reduced_chi2"] < 1.3, method
