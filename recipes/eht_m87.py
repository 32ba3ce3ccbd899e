"""Self-calibrate the EHT's M87 and image it: dirty, CLEAN, TV, LoFi-ADMM.

Command:   python -m pnp_lofi.recipes.eht_m87 FILE.uvfits -o OUTDIR
Data:      SR1_M87_2017_101_lo_hops_netcal_StokesI.uvfits (EHT data release 2019-D01-01, 11 April 2017, low band): seven
           stations, 10 s, amplitudes calibrated a priori and by network, phases by fringe fitting only.
HEADER_LATER

Method, after the DIFMAP pipeline of EHT 2019 paper IV (ApJ 875, L4), whose loop it follows:
1. Means of 60 s; baselines below 0.1 giga-wavelengths (ALMA-APEX, JCMT-SMA) are left out: they see 0.6 Jy of extended
   flux, and as lengths of zero they lift the dirty beam everywhere. 2 % of each amplitude is added to the noise.
2. Phases of the stations from a round first model; then, again and again, CLEAN in a disk of 60 uas, moved to the
   model's centroid, and new phases. After 15 rounds amplitudes too, by the scan: 10 %, LMT 100 %.
3. The last calibration is imaged by all methods. The position on the sky is lost, as in all self-calibration.

The first model is round by choice, not by knowledge. What may be believed is what does not depend on it: all starts are
run, and the lowest normalised cross-correlation between the restored CLEAN images is reported.
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
from pnp_lofi.beam import Beam, fit_beam, restore
from pnp_lofi.clean import hogbom
from pnp_lofi.closures import closure_misfit, misfit
from pnp_lofi.files import check_writable, write_json, written_whole
from pnp_lofi.fits import sky_header, write_fits
from pnp_lofi.observation import Observation
from pnp_lofi.operators import NUFFT, uv_radians
from pnp_lofi.radio import measurement
from pnp_lofi.selfcal import Baselines, Round, read_baselines, self_calibrate
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


def ring(image: Tensor, cell: float, beam: float) -> dict[str, float]:
    """Diameter [uas] and position angle of the brighter side [deg, North through East] of a ring, as restored.

    Peaks of radial profiles about the centre from which their radii differ least; a beam of width a draws them in by
    a^2 / (8 ln 2 r), which is undone. The angle is that of the first harmonic, within 10 uas of the ring.
    Without a closed ring there is nothing.

    :param torch.Tensor image: (H, W); float cell, beam: [arcsec].
    Source: EHT 2019, paper IV, section 9.
    """
    pixels, angles, radii = image.double().numpy(), np.radians(np.arange(0, 360, 5)), np.arange(8, 40, 0.5)

    def profiles(north: float, east: float) -> np.ndarray:
        reach = radii * UAS / cell
        rows = np.clip(pixels.shape[0] // 2 + north + np.cos(angles)[:, None] * reach, 0, pixels.shape[0] - 2)
        columns = np.clip(pixels.shape[1] // 2 - east - np.sin(angles)[:, None] * reach, 0, pixels.shape[1] - 2)
        r, c = rows.astype(int), columns.astype(int)
        y, x = rows - r, columns - c
        upper, lower = (pixels[k, c] * (1 - x) + pixels[k, c + 1] * x for k in (r + 1, r))
        return upper * y + lower * (1 - y)

    def uneven(place: tuple[float, float]) -> float:
        peaks = profiles(*place).argmax(1)
        inner = (peaks > 0) & (peaks < len(radii) - 1)
        return float(radii[peaks].std() / radii[peaks].mean()) if inner.all() else np.inf

    weight = np.maximum(pixels, 0) ** 2  # the ring, not the faint field
    middle = ((weight.sum(1) * np.arange(len(weight))).sum() / weight.sum() - pixels.shape[0] // 2,
              pixels.shape[1] // 2 - (weight.sum(0) * np.arange(weight.shape[1])).sum() / weight.sum())  # fmt: skip
    steps = np.arange(-7, 7.5, 0.5) * 2 * UAS / cell
    places = [(middle[0] + n, middle[1] + e) for n, e in itertools.product(steps, steps)]
    best = min(places, key=uneven)
    if np.isinf(uneven(best)):  # seen from everywhere it has a gap
        return {}
    found = radii[profiles(*best).argmax(1)]
    seen = 2 * float(found.mean())
    near = np.abs(radii - seen / 2) <= 10
    first = (profiles(*best)[:, near].sum(1) * np.exp(1j * angles)).sum()
    return {
        "diameter_uas": float(seen + (seen**2 + (beam / UAS) ** 2 / np.log(2)) ** 0.5) / 2,
        "diameter_spread_uas": 2 * float(found.std()),
        "bright_side_deg": float(np.degrees(np.angle(first)) % 360),
    }


def correlation(one: Tensor, two: Tensor) -> float:
    """Largest normalised cross-correlation of two images (H, W) over all shifts."""
    a, b = (torch.fft.fft2(image.double() - image.double().mean()) for image in (one, two))
    return float(torch.fft.ifft2(a * b.conj()).real.max() * one.numel() / (a.norm() * b.norm()))


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
    overwrite: bool = False,
) -> dict[str, Any]:
    """Everything; writes OUT/eht_m87_*.fits, OUT/eht_m87.png and OUT/eht_m87.json, and gives what is in the last.

    :param str prior: of LoFi-ADMM; float cell: [arcsec]; int size: [pixel]; float seconds: averages and phases [s].
    :param int rounds: of self-calibration; float flux: of the first model [Jy]; float mask: diameter [uas].
    :param float beam: circular, to restore with [arcsec]; tuple starts: first models, the first one's is imaged.
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
    options: dict[str, Any] = {"nonneg": True, "max_iter": 100, "progress": False}
    found = {"clean": models[0], "tv": ADMM(op, TVDenoiser(n_it_max=50), **options).solve(y).x[0, 0],
             "lofi": ADMM(op, network, **options).solve(y).x[0, 0]}  # fmt: skip
    second = [(f"CLEAN from {kind}", look) for kind, look in zip(starts, looks, strict=True)][:3]
    for name, x in found.items():
        x = x.double()
        residual = op.dirty(y - op.A(x.to(y.real.dtype)[None, None]))[0, 0]
        look = restore(x, None, circle, cell)
        report[name] = _told(data, Round(final, sky.visibilities(x), ()), x, look, cell, beam, seconds) | {
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
    return {"reduced_chi2": misfit(end.data, end.model), "closure_phases_chi2": phase,
            "log_closure_amplitudes_chi2": amplitude, "flux_jy": float(model.sum())} | ring(look, cell, beam)  # fmt: skip


def draw(path: Path, rows: list[list[tuple[str, Tensor]]], field: float, *, overwrite: bool = False) -> None:
    """Rows of pictures, North up, East left, axes in uas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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
            shown = axis.imshow(image, cmap="inferno", origin="lower", extent=(half, -half, -half, half), vmin=low)
            axis.set_title(title, fontsize=9)
            axis.tick_params(labelsize=7)
            figure.colorbar(shown, ax=axis, orientation="horizontal", fraction=0.05).ax.tick_params(labelsize=7)
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
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    given = vars(parser.parse_args())
    given["output"].mkdir(parents=True, exist_ok=True)
    report = image_m87(given.pop("file"), given.pop("output"), **given)
    for name, value in report.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
