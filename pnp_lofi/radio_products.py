"""The files of `pnp-lofi solve radio`: sky, dirty image, residual, dirty beam, restored image, primary beam."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pnp_lofi.beam import Beam, fit_beam, restore
from pnp_lofi.figures import quick_look
from pnp_lofi.files import check_writable
from pnp_lofi.fits import write_fits
from pnp_lofi.operators import Interferometer
from pnp_lofi.primary_beam import CUTOFF, correct, pattern, primary_beam

UNITS = {
    "": "Jy/pixel", "_dirty": "Jy/beam", "_residual": "Jy/beam", "_psf": "Jy/beam", "_restored": "Jy/beam",
    "_std": "Jy/pixel", "_pb": "", "_pbcor": "Jy/beam",
}  # fmt: skip


@dataclass(frozen=True)
class Beams:
    """What an image is restored with and corrected for, known before anything is solved.

    :param torch.Tensor psf: (H, W) dirty beam.
    :param Beam beam: restoring beam; None where none could be fitted.
    :param str origin: of the beam, "given", "fitted", or why there is none.
    :param torch.Tensor primary: (H, W) power of the antennas, or None.
    :param float cutoff: power below which the corrected image is blank.
    """

    psf: Tensor
    beam: Beam | None
    origin: str
    primary: Tensor | None = None
    cutoff: float = CUTOFF

    def told(self) -> dict[str, Any]:
        """For the JSON."""
        told: dict[str, Any] = {"beam": self.origin}
        if self.beam is not None:
            told |= {"beam_major_arcsec": self.beam.major, "beam_minor_arcsec": self.beam.minor,
                     "beam_position_angle_deg": self.beam.position_angle}  # fmt: skip
        if self.primary is not None:
            inside = float((self.primary >= self.cutoff).double().mean())
            told |= {"pb_cutoff": self.cutoff, "pb_part_of_image_inside": inside}
        return told

    def products(self, model: Tensor, residual: Tensor, cell: float) -> dict[str, Tensor]:
        """Pictures by the end of their file's name, those that there are.

        :param torch.Tensor model: (H, W) [Jy/pixel]; torch.Tensor residual: (H, W) [Jy/beam].
        :param float cell: pixel size [arcsec].
        """
        pictures = {"": model, "_residual": residual, "_psf": self.psf}
        if self.beam is not None:
            pictures["_restored"] = restore(model, residual, self.beam, cell)
        if self.primary is not None:
            pictures["_pb"] = self.primary
            if self.beam is not None:
                pictures["_pbcor"] = correct(pictures["_restored"], self.primary, cutoff=self.cutoff)
        return pictures


def beams_of(
    op: Interferometer,
    cell: float,
    frequency: float,
    *,
    beam: Beam | None = None,
    primary: str | float | None = None,
    cutoff: float = CUTOFF,
) -> Beams:
    """Dirty, restoring and primary beam of an observation. A beam that cannot be fitted is a warning.

    :param float cell: pixel size [arcsec]; float frequency: [Hz].
    :param Beam beam: to restore with; default: fitted to the dirty beam.
    :param primary: "meerkat", "vla", a file, or a Gaussian's width [deg], see :func:`pnp_lofi.primary_beam.pattern`.
    :raises ValueError: for a given beam finer than a pixel, a primary beam that is not known, a cutoff out of range.
    """
    power = None
    if primary is not None:
        power = primary_beam(op.shape, cell, pattern(_width(primary), frequency))
        correct(power, power, cutoff=cutoff)
    if beam is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a coarse beam is told when the image is restored
            beam.image((1, 1), cell)
    H, W = op.shape
    double = op.psf((2 * H, 2 * W))
    psf, origin = double[H - H // 2 :, W - W // 2 :][:H, :W], "given"
    if beam is None:
        try:
            beam, origin = fit_beam(double, cell), "fitted"
        except ValueError as error:
            origin = f"none: {error}"
            warnings.warn(f"no restored image: {error}; --beam gives one", stacklevel=2)
    return Beams(psf, beam, origin, power, cutoff)


def _width(primary: str | float) -> str | float:
    try:
        return float(primary)
    except ValueError:
        return primary


def parse_beam(text: str) -> Beam:
    """MAJ,MIN,PA [arcsec, arcsec, deg] of the command line.

    :raises ValueError: for anything else.
    """
    try:
        major, minor, angle = (float(word) for word in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"--beam takes MAJ,MIN,PA in arcsec, arcsec, degrees, such as 9,6,-20; got {text!r}"
        ) from error
    return Beam(major, minor, angle)


def output_paths(
    out: str | os.PathLike[str], leave_out: Sequence[str] = (), *, overwrite: bool = False
) -> dict[str, Path]:
    """Where each picture will lie, by the end of its name, and "png" and "restored_png"; OUT.json is checked too.

    :raises ValueError: unless OUT is named .fits or .fit.
    :raises FileExistsError: if one of them exists and overwrite is not asked for.
    """
    out = Path(out)
    if out.suffix.lower() not in (".fits", ".fit"):
        raise ValueError(f"the output is a FITS file, name it .fits; got {out}")
    paths = {kind: out.with_name(f"{out.stem}{kind}{out.suffix}") for kind in UNITS if kind not in leave_out}
    paths |= {"png": out.with_suffix(".png"), "restored_png": out.with_name(f"{out.stem}_restored.png")}
    for path in (*paths.values(), out.with_suffix(".json")):
        check_writable(path, overwrite=overwrite)
    return paths


def write_pictures(
    paths: dict[str, Path],
    pictures: dict[str, Tensor],
    header: Callable[..., dict[str, Any]],
    beam: Beam | None,
    *,
    fitted: bool,
    noise: float,
    title: str,
    overwrite: bool = False,
) -> None:
    """Write FITS files and the picture of the restored image; with overwrite, what there is no picture for is removed.

    :param dict paths: of :func:`output_paths`; dict pictures: of :meth:`Beams.products`.
    :param header: :func:`pnp_lofi.fits.sky_header` but for unit and beam.
    :param bool fitted: whether the beam is that of the dirty image too, whose header then tells it.
    :param float noise: [Jy/beam]; str title: of the picture.
    """
    for kind, picture in pictures.items():
        shown = beam if kind in ("_restored", "_pbcor") or (fitted and UNITS[kind] == "Jy/beam") else None
        cards = header(unit=UNITS[kind], beam=shown)
        write_fits(paths[kind], picture.numpy(), cards, overwrite=overwrite)
        if kind == "_restored":
            look: dict[str, Any] = {"noise": noise or None, "title": f"{title}: restored", "overwrite": overwrite}
            quick_look(paths["restored_png"], picture, cards, **look)
    for kind in UNITS.keys() - pictures.keys() if overwrite else ():  # of a run before, that was to be overwritten
        paths[""].with_name(f"{paths[''].stem}{kind}{paths[''].suffix}").unlink(missing_ok=True)
        if kind == "_restored":
            paths["restored_png"].unlink(missing_ok=True)
