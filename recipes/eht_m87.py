"""Self-calibrate the EHT's M87 and image it: dirty, CLEAN, TV, LoFi-ADMM.

Command:   python -m pnp_lofi.recipes.eht_m87 FILE.uvfits -o OUTDIR
Data:      SR1_M87_2017_101_lo_hops_netcal_StokesI.uvfits (EHT data release 2019-D01-01, 11 April 2017, low band): seven
           stations, 10 s, amplitudes calibrated a priori and by network, phases by fringe fitting only.
Hardware:  1 CPU core, 1 GB of memory; 1 minute.
Expect:    1119 means, 70 of them without gains (an antenna with one baseline only). On images restored with 20 uas:

           |       | diameter | bright side | closure chi^2, phases / log amplitudes | chi^2 | flux    |
           |-------|----------|-------------|----------------------------------------|-------|---------|
           | CLEAN | 42.5 uas | 175 deg     | 1.05 / 1.37                            | 1.07  | 0.38 Jy |
           | TV    | 40.8 uas | 168 deg     | 0.84 / 1.68                            | 1.03  | 0.54 Jy |
           | LoFi  | 41.8 uas | 176 deg     | 0.83 / 1.43                            | 1.01  | 0.52 Jy |

           Published: 42 +- 3 uas, 150 to 200 deg. The starts named below end in one image: correlation at least 0.995,
           41 to 42.5 uas, 175 to 176 deg. Six of them (disks of 50 and 70, Gaussians of 40 and 60, rings of 45 and 60):
           0.986; the Gaussian of 40 is slowest, with closure phases at 1.6 and no closed ring after 100 rounds.
           chi^2 is of the corrected visibilities; with the gains counted it is 1.29 to 1.36. The dirty image shows no
           ring, calibrated or not. The rms of its residual is 0.18, 0.06 and 0.03 mJy/beam beside a noise of 0.16;
           TV and LoFi are below it, as the field holds few beams and the gains fit too. No baseline
           that is used measures the flux.

Method, after the DIFMAP pipeline of EHT 2019 paper IV (ApJ 875, L4), whose loop it follows:
1. Means of 60 s; baselines below 0.1 giga-wavelengths (ALMA-APEX, JCMT-SMA) are left out: they see 0.6 Jy of extended
   flux, and as lengths of zero they lift the dirty beam everywhere. 2 % of each amplitude is added to the noise.
2. Phases of the stations from a round first model; then, again and again, CLEAN in a disk of 60 uas, moved to the
   model's centroid, and new phases. After 15 rounds amplitudes too, by the scan: 10 %, LMT 100 %.
3. The last calibration is imaged by all methods. The position on the sky is lost, as in all self-calibration.

The first model is round by choice, not by knowledge. What may be believed is what does not depend on it: all starts are
run, and the lowest normalised cross-correlation between the restored CLEAN images is reported. After 30 rounds it is
0.95 and the bright side of TV and LoFi lies at 152 deg: the angle is known to some 20 deg at best. The mask is the same
for all; a source outside it would be missed.
"""

import argparse
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepinv.models import TVDenoiser
from torch import Tensor

from pnp_lofi import ADMM, LoFiPrior
from pnp_lofi.baseline_data import Baselines, read_baselines
from pnp_lofi.beam import Beam, fit_beam, restore
from pnp_lofi.clean import hogbom
from pnp_lofi.closures import closure_misfit, misfit
from pnp_lofi.files import check_writable, write_json, written_whole
from pnp_lofi.fits import sky_header, write_fits
from pnp_lofi.observation import Observation
from pnp_lofi.operators import NUFFT, uv_radians
from pnp_lofi.radio_measurement import measurement
from pnp_lofi.ring import correlation, ring
from pnp_lofi.selfcal import Round, self_calibrate
from pnp_lofi.visibilities import open_visibilities

UAS = 1e-6  # [arcsec]
PHASE_ROUNDS = 15
SPREAD, LOOSE = 0.1, 1.0  # of amplitudes: all stations, those whose calibration is known to be poor
GAIN, COMPONENTS, POWER = 0.05, 3000, 0.5  # of CLEAN in the loop; weights to this power, as DIFMAP's uvweight 0,-1
SHORTEST, FLOOR = 1e8, 0.02  # baselines that are used [wavelengths]; error of each visibility that gains do not mend
STARTS = ("disk:50", "gaussian:60", "ring:45")


class Sky:
    """The grid of the images and the visibilities of what is on it.

    :param Baselines data: whose rows are imaged; int size: side [pixel]; float cell: [arcsec].
    """

    def __init__(self, data: Baselines, size: int, cell: float) -> None:
        self.shape, self.cell = (size, size), cell
        self.uv = uv_radians(data.uvw, data.frequency, cell)
        self.op = NUFFT(self.shape, self.uv)
        self.north, west = np.mgrid[:size, :size] - size // 2
        self.east = -west
        self.radius = np.hypot(self.north, self.east) * cell / UAS  # [uas]

    def visibilities(self, model: Tensor) -> np.ndarray:
        """(M,) of an image (H, W) [Jy/pixel]."""
        return self.op.A(model.double()[None, None])[0, 0].numpy() * self.shape[0]

    def centred(self, model: Tensor, vis: np.ndarray) -> np.ndarray:
        """Visibilities of the model moved so that its centroid lies at the middle."""
        share = model.numpy() / max(float(model.sum()), 1e-30)
        row, column = (share * self.north).sum(), -(share * self.east).sum()
        return vis * np.exp(1j * (self.uv[0] * row + self.uv[1] * column).numpy())

    def start(self, kind: str, flux: float) -> Tensor:
        """disk:DIAMETER, gaussian:WIDTH or ring:DIAMETER (10 uas wide) [uas], of that flux [Jy]."""
        name, _, width = kind.partition(":")
        if name not in ("disk", "gaussian", "ring") or not width or not float(width) > 0:
            raise ValueError(f"a start is disk:DIAMETER, gaussian:WIDTH or ring:DIAMETER in uas, got {kind!r}")
        d = float(width)
        shapes = {"disk": self.radius <= d / 2, "gaussian": 2.0 ** -((2 * self.radius / d) ** 2),
                  "ring": 2.0 ** -((2 * (self.radius - d / 2) / 10) ** 2)}  # fmt: skip
        return torch.as_tensor(flux * shapes[name] / shapes[name].sum())

    def clean(self, data: Baselines, mask: Tensor) -> Tensor:
        """CLEAN components (H, W) [Jy/pixel] within a mask."""
        used = torch.as_tensor(data.weight > 0)
        op = NUFFT(self.shape, self.uv[:, used], torch.as_tensor(data.weight)[used] ** POWER)
        dirty = op.dirty(op.whiten(torch.as_tensor(data.vis)[used][None, None] / self.shape[0]))[0, 0]
        psf = op.psf((2 * self.shape[0], 2 * self.shape[1]), dtype=dirty.dtype)
        return hogbom(dirty, psf, n_sigma=0, gain=GAIN, max_iter=COMPONENTS, mask=mask, nonneg=True).model


def calibrate(
    sky: Sky, data: Baselines, start: Tensor, steps: list[dict[str, Any]], rounds: int, mask: Tensor
) -> Round:
    """The last round: corrected data, and the visibilities of their CLEAN model. The first rounds take steps[:1]."""

    def image(corrected: Baselines) -> np.ndarray:
        model = sky.clean(corrected, mask)
        return sky.centred(model, sky.visibilities(model))

    few = min(PHASE_ROUNDS, rounds)
    last = self_calibrate(data, sky.visibilities(start), image, rounds=few, steps=steps[:1])[-1]
    return self_calibrate(data, last.model, image, rounds=rounds - few, steps=steps)[-1] if rounds > few else last


def stations(path: Path) -> dict[str, int]:
    """Numbers of the stations by their names in the file."""
    from astropy.io import fits

    with fits.open(path) as file:
        table = file["AIPS AN"].data if "AIPS AN" in file else {"ANNAME": [], "NOSTA": []}
        return {str(name).strip(): int(number) for name, number in zip(table["ANNAME"], table["NOSTA"], strict=True)}


def image_m87(
    path: Path,
    out: Path,
    *,
    prior: str = "radio",
    cell: float = 2e-6,
    size: int = 64,
    seconds: float = 60.0,
    rounds: int = 100,
    flux: float = 0.6,
    mask: float = 60.0,
    beam: float = 20e-6,
    starts: tuple[str, ...] = STARTS,
    iterations: int = 100,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Everything; writes OUT/eht_m87_*.fits, OUT/eht_m87.png and OUT/eht_m87.json, and gives what is in the last.

    :param str prior: of LoFi-ADMM; float cell: [arcsec]; int size: [pixel]; float seconds: averages and phases [s].
    :param int rounds: of self-calibration; float flux: of the first model [Jy]; float mask: diameter [uas].
    :param float beam: circular, to restore with [arcsec]; tuple starts: first models, the first one's is imaged.
    :param int iterations: of ADMM, at most.
    """
    for name in ("eht_m87.json", "eht_m87.png"):
        check_writable(out / name, overwrite=overwrite)
    source = open_visibilities(path, absolute_weights=True)
    data = read_baselines(source).averaged(seconds)
    data = data.rows(data.length >= SHORTEST).floored(FLOOR)
    names, network = stations(path), LoFiPrior(prior)
    sky = Sky(data, size, cell)
    spread = {int(a): LOOSE if a == names.get("LM") else SPREAD for a in np.unique([data.one, data.two])}
    steps: list[dict[str, Any]] = [{"seconds": seconds}, {"spread": spread}]
    inside = torch.as_tensor(sky.radius <= mask / 2)
    ends = [calibrate(sky, data, sky.start(kind, flux), steps, rounds, inside) for kind in starts]
    circle = Beam(beam, beam)
    models = [sky.clean(end.data, inside) for end in ends]
    looks = [restore(model, None, circle, cell) for model in models]
    report: dict[str, Any] = {"file": str(path), "rows": len(data.vis), "seconds": seconds, "rounds": rounds,
        "starts": {kind: _told(data, end, model, look, cell, beam, seconds) for kind, end, model, look in
                   zip(starts, ends, models, looks, strict=True)}}  # fmt: skip
    pairs = [correlation(a, b) for a, b in itertools.combinations(looks, 2)]
    report["correlation_of_starts"] = min(pairs) if pairs else None
    final, last = ends[0].data, ends[0].gains[-1]
    report["gain_amplitudes"] = {name: float(np.median(np.abs(last.gain[last.solved[:, k], k])))
        for name, a in names.items() for k in np.flatnonzero(last.antennas == a)}  # fmt: skip
    report["rows_without_gains"] = int((final.weight == 0).sum())
    pictures, panels = {}, []
    for title, seen in (("as read", data), ("self-calibrated", final)):
        op, y = measurement(_observation(seen, source.phase_centre, cell), sky.shape)
        pictures["dirty_" + title.replace("-", "_").replace(" ", "_")] = op.dirty(y)[0, 0]
        panels.append((f"dirty, {title} [Jy/beam]", op.dirty(y)[0, 0]))
    report["fitted_beam"] = _fitted(op, cell)
    options: dict[str, Any] = {"nonneg": True, "max_iter": iterations, "progress": False}
    found = {"clean": models[0], "tv": ADMM(op, TVDenoiser(n_it_max=50), **options).solve(y).x[0, 0],
             "lofi": ADMM(op, network, **options).solve(y).x[0, 0]}  # fmt: skip
    second = [(f"CLEAN from {kind}", look) for kind, look in zip(starts, looks, strict=True)][:3]
    for name, x in found.items():
        x = x.double()
        residual = op.dirty(y - op.A(x.to(y.real.dtype)[None, None]))[0, 0]
        look = restore(x, None, circle, cell)
        report[name] = _told(data, Round(final, sky.visibilities(x), ends[0].gains), x, look, cell, beam, seconds) | {
            "residual_rms_jy_per_beam": float(residual.square().mean().sqrt()),
            "noise_jy_per_beam": op.dirty_noise(),
        }
        pictures |= {name: x, name + "_restored": look, name + "_residual": residual}
        panels.append((f"{name} [Jy/pixel]", x))
        second += [(f"{name}, restored [Jy/beam]", look)] if name != "clean" else []
    header = partial(sky_header, sky.shape, cell, source.phase_centre, frequency=float(data.frequency.mean()),
                     OBJECT="M87", TELESCOP="EHT")  # fmt: skip
    for name, picture in pictures.items():
        per_beam = name.split("_")[-1] in ("read", "calibrated", "restored", "residual")
        cards = header(unit="Jy/beam" if per_beam else "Jy/pixel", beam=circle if "restored" in name else None)
        write_fits(out / f"eht_m87_{name}.fits", picture.numpy(), cards, overwrite=overwrite)
    draw(out / "eht_m87.png", [panels, second], size * cell / UAS, overwrite=overwrite)
    write_json(out / "eht_m87.json", report, overwrite=overwrite)
    return report


def _observation(data: Baselines, centre: tuple[float, float], cell: float) -> Observation:
    off = data.weight == 0
    return Observation(data.uvw, data.frequency, data.vis, data.weight, off, cell, centre, absolute_weights=True)


def _fitted(op: NUFFT, cell: float) -> dict[str, float] | str:
    """The dirty beam's main lobe, or why there is none."""
    try:
        return fit_beam(op.psf((2 * op.shape[0], 2 * op.shape[1])), cell).cards()
    except ValueError as error:
        return str(error)


def _told(
    data: Baselines, end: Round, model: Tensor, look: Tensor, cell: float, beam: float, seconds: float
) -> dict[str, float]:
    """Figures of an image: misfits of the corrected data and of the closures of those as read, flux, ring."""
    phase, amplitude = closure_misfit(data, end.model, seconds=seconds)
    chi2, values = misfit(end.data, end.model), 2 * int((end.data.weight > 0).sum())
    free = sum(int(np.maximum(step.solved.sum(1) - 1, 0).sum()) for step in end.gains)  # phases; as many amplitudes
    told = {"reduced_chi2": chi2, "reduced_chi2_less_gains": chi2 * values / (values - free),
            "closure_phases_chi2": phase, "log_closure_amplitudes_chi2": amplitude,
            "flux_jy": float(model.sum())}  # fmt: skip
    return told | ring(look, cell, beam)


def draw(path: Path, rows: list[list[tuple[str, Tensor]]], field: float, *, overwrite: bool = False) -> None:
    """Rows of pictures, North up, East left, axes in uas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(3.3 * columns, 3.6 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, row in zip(axes, rows, strict=True):
        for axis, (title, image) in zip(line, row, strict=False):
            axis.set_axis_on()
            half, low = field / 2, min(0.0, float(image.min()))
            shown = axis.imshow(
                image.numpy(), cmap="inferno", origin="lower", extent=(half, -half, -half, half), vmin=low
            )
            axis.set_title(title, fontsize=9)
            axis.tick_params(labelsize=7)
            bar = figure.colorbar(shown, ax=axis, orientation="horizontal", fraction=0.05, ticks=MaxNLocator(4))
            bar.ax.tick_params(labelsize=7)
    axes[-1][0].set_xlabel("to the East [uas]", fontsize=8)
    axes[-1][0].set_ylabel("to the North [uas]", fontsize=8)
    with written_whole(path, overwrite=overwrite) as part:
        figure.savefig(part, format="png", dpi=110)


def main() -> None:
    """Run, and print the figures."""
    parser = argparse.ArgumentParser(description="Self-calibrate and image the EHT's M87.")
    parser.add_argument("file", type=Path, help="the UVFITS file")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--prior", default="radio", help="of LoFi: a shipped name, or a .safetensors")
    parser.add_argument("--cell", type=float, default=2e-6, help="pixel size [arcsec]")
    parser.add_argument("--size", type=int, default=64, help="side of the images [pixel]")
    parser.add_argument("--seconds", type=float, default=60.0, help="of averages and of phase solutions")
    parser.add_argument("--rounds", type=int, default=100, help="of self-calibration")
    parser.add_argument("--starts", nargs="+", default=STARTS, help="first models; the first one is imaged")
    parser.add_argument("--iterations", type=int, default=100, help="of ADMM, at most")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    given = vars(parser.parse_args())
    given["output"].mkdir(parents=True, exist_ok=True)
    report = image_m87(given.pop("file"), given.pop("output"), **given)
    for name, value in report.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
