"""Visibilities of a file as normal equations: weights, noise, field of view, and the w-term against direct sums."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from astropy.io import fits
from typer.testing import CliRunner

from pnp_lofi import radio_gridding, w_gridder
from pnp_lofi.__main__ import app
from pnp_lofi.beam import Beam
from pnp_lofi.field_of_view import check_field, half_power_width, of_telescope
from pnp_lofi.fits import read_grid, sky_header, write_fits
from pnp_lofi.observation import Observation, write_observation
from pnp_lofi.operators import NUFFT, default_cell, imaging_weights, noise_increase, taper, uv_radians
from pnp_lofi.options import angle, numbers, two
from pnp_lofi.primary_beam import gaussian
from pnp_lofi.radio_chunks import View, Weighting, measurement_chunks
from pnp_lofi.radio_file import image_file
from pnp_lofi.radio_gridding import grid, major_cycles
from pnp_lofi.skies import radio_sky
from pnp_lofi.visibilities import convert, open_visibilities

C, FREQUENCY = 299792458.0, 1.4e9
SHAPE, CELL = (24, 30), 20.0
WEIGHTINGS = [Weighting(), Weighting("uniform"), Weighting("briggs", 0.5), Weighting("briggs", -1, 90.0),
              Weighting(taper=60.0)]  # fmt: skip


def observation(m: int = 500, *, absolute: bool = True, seed: int = 0, **changes) -> Observation:
    """Noise alone, of uneven weights, more of it in the middle of the Fourier plane."""
    rng = np.random.default_rng(seed)
    sigma = rng.uniform(0.5, 2, m)
    uvw = rng.normal(size=(m, 3)) * [300, 300, 50]
    vis = sigma * (rng.normal(size=m) + 1j * rng.normal(size=m))
    columns = {"uvw": uvw, "frequency": np.asarray(FREQUENCY), "vis": vis, "weight": sigma**-2}
    return Observation(**columns, flag=np.zeros(m, bool), cell=CELL, absolute_weights=absolute, **changes)


def opened(path, obs: Observation):
    write_observation(path / "obs.h5", obs, overwrite=True)
    return open_visibilities(path / "obs.h5")


def weights_of(obs: Observation, weighting: Weighting) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """uv, natural weights and those to image with, of the whole at once."""
    uv = uv_radians(obs.uvw, FREQUENCY, CELL)
    natural = torch.as_tensor(obs.weight, dtype=torch.float64)
    natural = natural * math.prod(SHAPE) if obs.absolute_weights else natural / natural.mean()
    v = imaging_weights(SHAPE, uv, natural, scheme=weighting.scheme, robust=weighting.robust)
    return uv, natural, v * taper(uv, weighting.taper / CELL) if weighting.taper else v


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
def test_gridded_is_the_operator_on_the_whole(tmp_path, weighting, absolute):
    obs = observation(absolute=absolute)
    uv, natural, v = weights_of(obs, weighting)
    gridded = grid(View(opened(tmp_path, obs), SHAPE, weighting=weighting))
    op = NUFFT(SHAPE, uv, v)
    y = op.whiten(torch.as_tensor(obs.vis.astype(np.complex64)) / math.prod(SHAPE) ** 0.5)[None, None]
    torch.testing.assert_close(gridded.op.dirty(gridded.y), op.dirty(y), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gridded.op.psf(), op.psf(), atol=1e-6, rtol=0)
    assert gridded.count == 500 and gridded.frequency == FREQUENCY
    assert gridded.op.sigma == (pytest.approx(gridded.level) if absolute else None)
    noise = gridded.op.dirty_noise(gridded.level) * gridded.spread
    assert noise == pytest.approx(NUFFT(SHAPE, uv, natural).dirty_noise(1.0) * noise_increase(natural, v))
    chunks = measurement_chunks(tmp_path / "obs.h5", SHAPE, weighting=weighting, rows=77)
    torch.testing.assert_close(torch.cat([w for _, _, w in chunks]), v)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
def test_noise_is_that_of_many_draws(tmp_path, weighting):
    """Of the data, and of the dirty image."""
    levels, noises = [], []
    for seed in range(40):
        obs = observation()
        rng = np.random.default_rng(100 + seed)
        obs.vis = obs.weight**-0.5 * (rng.normal(size=500) + 1j * rng.normal(size=500))
        gridded = grid(View(opened(tmp_path, obs), SHAPE, weighting=weighting))
        levels.append(gridded.op.residual_level(gridded.y, None))
        noises.append(float(gridded.op.dirty(gridded.y).square().mean()))
    assert np.mean(np.square(levels)) == pytest.approx(gridded.level**2, rel=0.03)
    assert np.mean(noises) ** 0.5 == pytest.approx(gridded.op.dirty_noise() * gridded.spread, rel=0.05)


def test_taper_widens_the_beam_by_a_gaussian():
    """The Fourier transform of a Gaussian, by a sum over its pixels."""
    uv, fwhm = torch.rand(2, 9, dtype=torch.float64) * 2 - 1, 7.0
    d = torch.arange(-40, 41, dtype=torch.float64)
    one = torch.exp(-4 * math.log(2) * d**2 / fwhm**2)
    expected = (torch.cos(uv[0, :, None] * d) @ one) * (torch.cos(uv[1, :, None] * d) @ one) / one.sum() ** 2
    torch.testing.assert_close(taper(uv, fwhm), expected, atol=1e-9, rtol=0)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="the taper's width must be finite and > 0"):
            taper(uv, bad)


# ---- the w-term ------------------------------------------------------------------------------------------

WIDE, WIDE_CELL = (32, 48), 500.0  # 6.7 degrees
FAR = {(3, 42): 1.0, (16, 24): 0.5, (28, 5): 0.7}  # row, column: [Jy]


def dense(obs: Observation) -> np.ndarray:
    """exp(-2 pi i (u l + v m + w (n - 1))), (M, HW)."""
    rad = math.radians(WIDE_CELL / 3600)
    m = ((np.arange(WIDE[0]) - WIDE[0] // 2) * rad)[:, None]
    l = -((np.arange(WIDE[1]) - WIDE[1] // 2) * rad)[None]
    u, v, w = (obs.uvw * FREQUENCY / C).T[:, :, None, None]
    phase = u * l + v * m + w * (np.sqrt(1 - l**2 - m**2) - 1)
    return np.exp(-2j * np.pi * phase).reshape(len(obs.vis), -1)


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    """Points at the edge of a wide field, by direct sums."""
    pytest.importorskip("ducc0", reason="ducc0 is not installed: pip install 'pnp_lofi[wide]'")
    rng = np.random.default_rng(1)
    uvw = rng.normal(size=(2500, 3)) * 12.0
    uvw = uvw[np.hypot(*uvw[:, :2].T) * FREQUENCY / C * WIDE_CELL / 206264.8 < 0.5]
    obs = Observation(uvw, FREQUENCY, np.zeros(len(uvw), complex), rng.uniform(0.5, 1.5, len(uvw)),
                      np.zeros(len(uvw), bool), WIDE_CELL)  # fmt: skip
    sky = np.zeros(WIDE)
    for place, flux in FAR.items():
        sky[place] = flux
    obs.vis = dense(obs) @ sky.ravel()
    path = tmp_path_factory.mktemp("far") / "far.h5"
    write_observation(path, obs)
    return path, obs


def test_w_gridder_is_the_direct_sum(far):
    path, obs = far
    view = View(open_visibilities(path), WIDE)
    (piece,) = view.pieces()
    assert view.w_phase[0] > 2
    A = dense(obs) / math.prod(WIDE) ** 0.5
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=WIDE), rng.normal(size=len(A)) + 1j * rng.normal(size=len(A))
    np.testing.assert_allclose(w_gridder.forward(torch.as_tensor(x), piece.uvw, WIDE_CELL), A @ x.ravel(), atol=1e-5)
    back = (A.conj().T @ (piece.weight.numpy() * y)).real.reshape(WIDE)
    found = w_gridder.adjoint(torch.as_tensor(y), piece.weight, piece.uvw, WIDE, WIDE_CELL).numpy()
    np.testing.assert_allclose(found, back, atol=1e-6 * np.abs(back).max())


def test_major_cycles_end_at_the_solution_of_the_dense_matrix(far, monkeypatch):
    path, obs = far
    monkeypatch.setattr(radio_gridding, "SETTLED", 0.0)  # on to the end
    view = View(open_visibilities(path), WIDE)
    gridded = grid(view, wide_field=True)
    alpha = 0.1 * gridded.op.norm

    def solve(g):
        return g.op.solve_normal(g.y, alpha, tol=1e-7, max_iter=500)[0]

    with pytest.warns(UserWarning, match="7 major cycles are used up"):
        found, last, cycles = major_cycles(view, gridded, solve, lambda x: x, most=7)
    weight = obs.weight / obs.weight.mean()
    A = np.sqrt(weight)[:, None] * dense(obs) / math.prod(WIDE) ** 0.5
    y = np.sqrt(weight) * obs.vis / math.prod(WIDE) ** 0.5
    exact = np.linalg.solve((A.conj().T @ A).real + alpha * np.eye(A.shape[1]), (A.conj().T @ y).real)
    scale = np.abs(exact).max()
    assert cycles == 7 and np.abs(found.numpy().ravel() - exact).max() < 1e-5 * scale
    assert np.abs(solve(gridded).numpy().ravel() - exact).max() > 0.02 * scale  # of the first cycle
    x = found.numpy().astype(float).ravel()  # misfit and residual of the last data are the true ones there
    misfit = np.sqrt(np.mean(np.abs(A @ x - y) ** 2) / 2)
    assert last.op.residual_level(last.y, found) == pytest.approx(misfit, rel=1e-3)
    residual = (A.conj().T @ (y - A @ x)).real.reshape(WIDE)
    np.testing.assert_allclose((last.y - last.op.A(found))[0, 0], residual, atol=2e-4 * np.abs(residual).max())


def test_wide_field_of_the_command_line(far, tmp_path):
    path, _ = far
    line = f"solve radio {path} --size 48 --clean --sigma 0.0048 --beam 1250,1250,0"
    for extra, name in (("--wide-field", "wide"), ("", "flat")):
        result = CliRunner().invoke(app, [*line.split(), *extra.split(), "-o", f"{tmp_path}/{name}.fits"])
        assert result.exit_code == 0, (result.output, result.exception)
    wide, flat = (fits.getdata(tmp_path / f"{name}_restored.fits")[0, 0] for name in ("wide", "flat"))
    for (r, c), flux in FAR.items():  # the image is 48 x 48, theirs 32 x 48
        assert wide[r + 8, c] == pytest.approx(flux, rel=0.01)
    assert flat[11, 42] < 0.9 * FAR[3, 42]
    report = json.loads((tmp_path / "wide.json").read_text())
    assert report["major_cycles"] > 1
    residual = fits.getdata(tmp_path / "wide_residual.fits")
    assert residual.std() < 0.02 * fits.getdata(tmp_path / "flat_residual.fits").std()


def test_major_cycles_that_do_not_settle(far):
    path, _ = far
    view = View(open_visibilities(path), WIDE)
    tries = []

    def worse(g):
        tries.append(0)
        return torch.full((1, 1, *WIDE), 10.0 ** len(tries))

    with pytest.warns(UserWarning, match="the major cycles do not settle"):
        found, _, cycles = major_cycles(view, grid(view, wide_field=True), worse, lambda x: x)
    assert cycles == len(tries) == 2 and float(found.max()) == 10  # the one before it grew


def test_wide_field_by_lofi_admm(tmp_path):
    """A nebula on a field of sixteen degrees, where the phase that a plain run neglects reaches some radians."""
    pytest.importorskip("ducc0", reason="ducc0 is not installed: pip install 'pnp_lofi[wide]'")
    rng, side, cell = np.random.default_rng(0), 64, 900.0
    sky = radio_sky(1, side, seed=5)[0, 0].double()
    limit = C / FREQUENCY * 206264.806 / (2 * cell)  # [m]
    uvw = 0.4 * limit * rng.normal(size=(5000, 3)) * rng.uniform(size=(5000, 1))
    uvw = uvw[np.abs(uvw[:, :2]).max(1) < 0.95 * limit]
    vis = w_gridder.forward(sky, torch.as_tensor(uvw) * FREQUENCY / C, cell).numpy() * side
    sigma = 0.05 * np.abs(vis).std()
    vis = vis + sigma * (rng.normal(size=len(vis)) + 1j * rng.normal(size=len(vis)))
    obs = Observation(uvw, FREQUENCY, vis, np.full(len(vis), sigma**-2), np.zeros(len(vis), bool), cell,
                      truth=sky.numpy(), absolute_weights=True)  # fmt: skip
    write_observation(tmp_path / "obs.h5", obs)
    options = {"iterations": 40, "beam": Beam(2700, 2700)}
    wide = image_file(tmp_path / "obs.h5", tmp_path / "wide.fits", wide_field=True, **options)
    with pytest.warns(UserWarning, match="the w-term is neglected"):
        flat = image_file(tmp_path / "obs.h5", tmp_path / "flat.fits", **options)
    assert wide["snr"] > flat["snr"] + 3 and wide["major_cycles"] >= 2
    assert (
        wide["misfit"] == pytest.approx(1, abs=0.05)
        and wide["residual_rms_jy_per_beam"] < 1.2 * wide["noise_jy_per_beam"]
    )
    assert flat["misfit"] > 1.2


def test_wide_field_bad_input(far, tmp_path, monkeypatch):
    path, obs = far
    with pytest.raises(ValueError, match="even sizes of at least 32 pixels, got \\(33, 33\\)"):
        image_file(path, tmp_path / "a.fits", size=33, clean=True, wide_field=True)
    flat = Observation(obs.uvw[:, :2], FREQUENCY, obs.vis, obs.weight, obs.flag, WIDE_CELL)
    write_observation(tmp_path / "flat.h5", flat)
    with pytest.raises(ValueError, match="has u and v but no w"):
        image_file(tmp_path / "flat.h5", tmp_path / "a.fits", size=32, clean=True, wide_field=True)
    with pytest.raises(ValueError, match="keep no run to resume"):
        image_file(path, tmp_path / "a.fits", size=32, wide_field=True, resume=True)
    monkeypatch.setitem(sys.modules, "ducc0", None)
    with pytest.raises(ImportError, match=r"pip install 'pnp_lofi\[wide\]'"):
        image_file(path, tmp_path / "a.fits", size=32, clean=True, wide_field=True)
    assert [p.name for p in tmp_path.iterdir()] == ["flat.h5"]


# ---- field of view, cells, options -----------------------------------------------------------------------


def test_width_of_primary_beams():
    assert half_power_width(lambda angle: gaussian(angle, 0.5)) == pytest.approx(30, rel=1e-5)
    assert half_power_width(of_telescope("MeerKAT", 1.5e9)) == pytest.approx(57.5, rel=1e-5)
    for name in ("VLA", "EVLA", "VLA D"):
        assert half_power_width(of_telescope(name, 1.5e9)) == pytest.approx(43 / 1.5, rel=0.03)
    assert of_telescope("", 1e9) is None and of_telescope("VLASS", 1e9) is None


def test_field_of_view(tmp_path):
    source = opened(tmp_path, observation())
    source.telescope = "MeerKAT"
    with pytest.warns(UserWarning, match="24 x 30 arcmin, MeerKAT's primary beam 61.6"):
        told = check_field(source, (24, 30), 60.0, FREQUENCY)
    assert told["field_of_view_arcmin"] == [24, 30] and told["primary_beam_fwhm_arcmin"] == pytest.approx(61.6, abs=0.1)
    with pytest.warns(UserWarning, match="most of it sees no more than noise"):
        check_field(source, (300, 300), 60.0, FREQUENCY)
    assert source.longest > 0  # before: these files tell no times
    source.time_average, source.channel_average, source.width = 300.0, 4, 1e5
    with pytest.warns(UserWarning, match="by --time-average") as caught:
        told = check_field(source, (150, 150), 60.0, FREQUENCY)
    assert [str(w.message) for w in caught if "channel" in str(w.message)] == []
    assert told["smearing_time_rad"] > 0.5 > told["smearing_channel_rad"] > 0
    source.truth, source.time_average = np.zeros((24, 30)), 0.0
    check_field(source, (24, 30), 1.0, FREQUENCY)  # a simulation


def test_cell_of_the_longest_baseline(tmp_path):
    obs = observation()
    write_observation(tmp_path / "obs.h5", obs)
    report = image_file(tmp_path / "obs.h5", tmp_path / "a.fits", size=16, clean=True, super_resolution=1.5,
                        beam=None)  # fmt: skip
    assert report["cell_arcsec"] == pytest.approx(default_cell(obs.uvw, FREQUENCY, super_resolution=1.5))
    for options, message in (({"super_resolution": 0.9}, "must be at least 1"),
                             ({"super_resolution": 2.0, "cell": 3.0}, "not both")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            image_file(tmp_path / "obs.h5", tmp_path / "b.fits", size=16, clean=True, **options)
    with pytest.raises(ValueError, match="the longest baselines alias; use at most"):
        image_file(tmp_path / "obs.h5", tmp_path / "b.fits", size=16, clean=True, cell=200.0)


def test_weights_of_the_command_line(tmp_path):
    obs = observation()
    obs.vis = obs.vis * 0.01 + 1  # a point of 1 Jy in the middle
    write_observation(tmp_path / "obs.h5", obs)
    line = f"solve radio {tmp_path}/obs.h5 --size 24 --clean --weight briggs --robust 0.5 --taper 0.5arcmin --cell 20"
    result = CliRunner().invoke(app, [*line.split(), "-o", f"{tmp_path}/a.fits"])
    assert result.exit_code == 0, (result.output, result.exception)
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["weights"] == "briggs, robust 0.5, taper 30 arcsec"
    uv = uv_radians(obs.uvw, FREQUENCY, CELL)
    natural = torch.as_tensor(obs.weight, dtype=torch.float64)
    v = imaging_weights((24, 24), uv, natural, robust=0.5) * taper(uv, 1.5)
    expected = noise_increase(natural, v) / float(natural.sum()) ** 0.5
    assert report["noise_jy_per_beam"] == pytest.approx(expected, rel=1e-5)
    assert fits.getdata(tmp_path / "a_dirty.fits")[0, 0][12, 12] == pytest.approx(1, abs=5 * 0.01 * expected)
    for bad in ({"scheme": "robust"}, {"taper": -1.0}):
        with pytest.raises(ValueError, match="must be"):
            Weighting(**bad)


def test_angles():
    pairs = {"2.5": 2.5, "2uas": 2e-6, "2µas": 2e-6, "5 mas": 5e-3, "0.1arcmin": 6.0, "1deg": 3600.0, "3as": 3.0,
             "4arcsec": 4.0, "1e-3": 1e-3}  # fmt: skip
    for text, expected in pairs.items():
        assert angle(text, "--cell") == pytest.approx(expected)
    for text in ("", "x", "0", "-1", "2 rad", "nan", "inf"):
        with pytest.raises(ValueError, match="--cell takes arcsec"):
            angle(text, "--cell")
    assert two("4, 60", "--channels", int) == (4, 60)
    for text in ("4", "4,5,6", "a,b", ""):
        with pytest.raises(ValueError, match="--channels: expected two numbers"):
            two(text, "--channels", int)


# ---- the grid of another image ---------------------------------------------------------------------------


def test_grid_of_another_image(tmp_path):
    write_observation(tmp_path / "obs.h5", observation(phase_centre=(83.0, -30.0)))
    header = sky_header((20, 28), 12.0, (83.0, -30.0), "Jy/beam", frequency=1e9)
    write_fits(tmp_path / "like.fits", np.zeros((20, 28)), header)
    line = f"solve radio {tmp_path}/obs.h5 --like {tmp_path}/like.fits --clean -o {tmp_path}/a.fits"
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 0, (result.output, result.exception)
    found = fits.getheader(tmp_path / "a.fits")
    for card in ("NAXIS1", "NAXIS2", "CDELT1", "CDELT2", "CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2", "CTYPE1"):
        assert found[card] == fits.getheader(tmp_path / "like.fits")[card]
    assert read_grid(tmp_path / "a.fits").shape == (20, 28)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"size": 64}, r"has \(20, 28\) pixels, --size is 64"),
        ({}, {"cell": 3.0}, "--like tells the cell"),
        ({"CRVAL1": 84.0}, {}, "images are made about the phase centre"),
        ({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}, {}, "expected an image with axes RA---SIN and DEC--SIN"),
        ({"CDELT1": 12.0 / 3600}, {}, "North up and East left"),
        ({"CDELT1": -13.0 / 3600}, {}, "expected square pixels"),
        ({"CRPIX1": 14.5}, {}, r"expected the reference pixel \(15.0, 11.0\)"),
    ],
)
def test_another_image_that_does_not_fit(tmp_path, change, options, message):
    write_observation(tmp_path / "obs.h5", observation(phase_centre=(83.0, -30.0)))
    header = sky_header((20, 28), 12.0, (83.0, -30.0), "Jy/beam") | change
    write_fits(tmp_path / "like.fits", np.zeros((20, 28)), header)
    with pytest.raises(ValueError, match=message):
        image_file(tmp_path / "obs.h5", tmp_path / "a.fits", clean=True, like=tmp_path / "like.fits", **options)
    (tmp_path / "text.fits").write_text("no FITS")
    with pytest.raises(ValueError, match="is no FITS image"):
        read_grid(tmp_path / "text.fits")
    with pytest.raises(FileNotFoundError, match=r"none.fits does not exist"):
        read_grid(tmp_path / "none.fits")


# ---- what a review found ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 1_000_000}, r"--size 1000000 needs some \d+ GB, this machine has"),
        ({"iterations": -1}, "--iterations must be at least 0"),
        (
            {"size": 16, "weighting": Weighting(taper=1000.0)},
            "a taper of 1000 arcsec is wider than the image, 320 arcsec",
        ),
    ],
)
def test_refused_at_once(tmp_path, options, message):
    write_observation(tmp_path / "obs.h5", observation())
    with pytest.raises(ValueError, match=message):
        image_file(tmp_path / "obs.h5", tmp_path / "a.fits", clean=True, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["obs.h5"]
    with pytest.raises(ValueError, match="robust belongs to Briggs weights"):
        Weighting("uniform", 1.0)


def test_the_noise_told_in_jansky(tmp_path):
    """Of a visibility of mean weight, whatever the image's size and whether weights are absolute."""
    noises = []
    for absolute in (True, False):
        write_observation(tmp_path / "obs.h5", observation(absolute=absolute), overwrite=True)
        for size in (16, 24):
            options = {"clean": True, "sigma": 3.0, "beam": Beam(300, 300), "overwrite": True}
            noises.append(
                image_file(tmp_path / "obs.h5", tmp_path / "a.fits", size=size, **options)["noise_jy_per_beam"]
            )
    assert noises == pytest.approx([3.0 / 500**0.5] * 4)


def test_a_loud_residual_is_told_and_old_pictures_go(tmp_path):
    obs = observation(phase_centre=(10.0, 20.0))
    obs.vis = obs.vis * 0.01 + 5
    write_observation(tmp_path / "obs.h5", obs)
    options = {"size": 24, "clean": True, "beam": Beam(300, 300)}
    with pytest.warns(UserWarning, match=r"times the noise \(more --iterations would help\): do not trust fluxes"):
        image_file(tmp_path / "obs.h5", tmp_path / "a.fits", iterations=1, primary_beam=1.0, **options)
    assert (tmp_path / "a_pbcor.fits").is_file()
    image_file(tmp_path / "obs.h5", tmp_path / "a.fits", overwrite=True, **options)
    assert not (tmp_path / "a_pbcor.fits").exists() and (tmp_path / "a_restored.fits").is_file()


def test_a_truth_stays_with_its_cell(tmp_path):
    write_observation(tmp_path / "obs.h5", observation(truth=np.ones((8, 8), np.float32)))
    for cell, there in ((None, True), (CELL, True), (CELL / 2, False)):
        convert(tmp_path / "obs.h5", tmp_path / "b.h5", cell=cell, overwrite=True)
        assert (open_visibilities(tmp_path / "b.h5").truth is not None) == there


def test_whole_numbers():
    assert numbers("0, 3", "--spw") == (0, 3)
    with pytest.raises(ValueError, match="--spw takes whole numbers with commas between, such as 0,3; got 'x'"):
        numbers("x", "--spw")
