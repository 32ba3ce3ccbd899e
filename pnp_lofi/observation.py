"""OBS.h5: one radio observation in one HDF5 file (docs/obs_h5.md)."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pnp_lofi.files import written_whole

FORMAT = "pnp_lofi observation"
VERSION = 1
UNITS = {"uvw": "m", "frequency": "Hz", "vis": "Jy", "weight": "1/Jy^2", "flag": "", "truth": "Jy/pixel"}


@dataclass
class Observation:
    """Visibilities and what is needed to image them.

    V(u, v) = sum I(l, m) exp(-2 pi i (u l + v m)), l positive East, m positive North.

    :param numpy.ndarray uvw: (M, 3) or (M, 2) baselines [m].
    :param frequency: scalar or (M,) [Hz].
    :param numpy.ndarray vis: (M,) complex [Jy].
    :param numpy.ndarray weight: (M,), 1/sigma^2 per real component [1/Jy^2].
    :param bool absolute_weights: whether they are that, or hold only up to a common factor; then the noise is
        estimated.
    :param numpy.ndarray flag: (M,) bool, True = not used.
    :param float cell: pixel size [arcsec].
    :param tuple phase_centre: RA, Dec [deg, ICRS].
    :param str telescope, description: free text.
    :param numpy.ndarray truth: (H, W) the simulated sky [Jy/pixel], where there is one.
    :raises ValueError: for lengths that differ, NaN, negative or all-zero weights, nothing left unflagged.
    """

    uvw: np.ndarray
    frequency: np.ndarray | float
    vis: np.ndarray
    weight: np.ndarray
    flag: np.ndarray
    cell: float
    phase_centre: tuple[float, float] = (0.0, 0.0)
    telescope: str = ""
    description: str = ""
    truth: np.ndarray | None = None
    absolute_weights: bool = False

    def __post_init__(self) -> None:
        self.uvw = np.asarray(self.uvw, np.float64)
        self.frequency = frequency = np.asarray(self.frequency, np.float64)
        self.vis = np.asarray(self.vis)
        self.weight = np.asarray(self.weight, np.float32)
        self.flag = np.asarray(self.flag, bool)
        if self.uvw.ndim != 2 or self.uvw.shape[1] not in (2, 3):
            raise ValueError(f"uvw must be (M, 3) or (M, 2) in metres, got {self.uvw.shape}")
        shapes = {name: getattr(self, name).shape for name in ("vis", "weight", "flag")}
        if frequency.ndim:
            shapes["frequency"] = frequency.shape
        rows = self.uvw.shape[:1]
        if any(shape != rows for shape in shapes.values()):
            got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise ValueError(
                f"uvw, vis, weight, flag and frequency must be of one length, got uvw {self.uvw.shape}, {got}; flatten "
                "(time, baseline, channel) into rows"
            )
        if not np.iscomplexobj(self.vis):
            raise TypeError(f"vis must be complex, got {self.vis.dtype}")
        if not 0 < self.cell < np.inf:
            raise ValueError(f"cell must be finite and > 0 arcsec, got {self.cell}")
        if len(self.phase_centre) != 2 or not np.all(np.isfinite(self.phase_centre)) or abs(self.phase_centre[1]) > 90:
            raise ValueError(
                f"phase_centre must be finite RA and Dec [deg], |Dec| <= 90, got {tuple(map(float, self.phase_centre))}"
            )
        if not np.all(np.isfinite(frequency) & (frequency > 0)):
            raise ValueError("frequency must be finite and > 0 Hz")
        if self.truth is not None and np.ndim(self.truth) != 2:
            raise ValueError(f"truth must be (H, W), got {np.shape(self.truth)}")
        good = ~self.flag
        if not good.any():
            raise ValueError("every visibility is flagged; nothing is left to image")
        for name in ("uvw", "vis", "weight"):
            bad = ~np.isfinite(getattr(self, name)[good])
            if bad.any():
                raise ValueError(f"{int(bad.sum())} unflagged values of {name} are NaN or inf; flag those rows")
        if (self.weight[good] < 0).any():
            raise ValueError("weights must be >= 0; flag the rows that are not to be used")
        if not (self.weight[good] > 0).any():
            raise ValueError("all weights are zero; nothing is left to image")

    def good(self) -> "Observation":
        """Only what is neither flagged nor of weight zero."""
        keep = ~self.flag & (self.weight > 0)
        kept = {name: getattr(self, name)[keep] for name in ("uvw", "vis", "weight", "flag")}
        frequency = np.asarray(self.frequency)
        return replace(self, frequency=frequency[keep] if frequency.ndim else frequency, **kept)


def write_observation(path: str | os.PathLike[str], obs: Observation, *, overwrite: bool = False) -> None:
    """Write OBS.h5, whole or not at all.

    :raises FileExistsError: if the path exists and overwrite is not asked for.
    """
    with written_whole(path, overwrite=overwrite) as part, h5py.File(part, "w") as f:
        write_header(f, obs)
        for name, unit in UNITS.items():
            value = getattr(obs, name)
            if value is not None:
                f[name] = value.astype(np.complex64) if name == "vis" else value
                f[name].attrs["unit"] = unit


def write_header(f: h5py.File, obs: Observation) -> None:
    """The attributes of OBS.h5."""
    f.attrs.update({
        "format": FORMAT, "version": VERSION, "cell_arcsec": obs.cell, "phase_centre_deg": obs.phase_centre,
        "telescope": obs.telescope, "description": obs.description, "absolute_weights": obs.absolute_weights,
    })  # fmt: skip


def read_observation(path: str | os.PathLike[str], **selection: Any) -> Observation:
    """Read OBS.h5, or any other format of docs/visibilities.md. Where OBS.h5 has no weight they are one; where it has
    no flag nothing is flagged.

    :param selection: see :func:`pnp_lofi.visibilities.open_visibilities`: field, spw, column ...
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is not of the layout; says what is missing.
    :raises TypeError: for a selection that the format does not have.
    """
    path = Path(path)
    if selection or not path.is_file() or not h5py.is_hdf5(path) or _is_matlab(path):
        from pnp_lofi.visibilities import open_visibilities

        return open_visibilities(path, **selection).observation()
    try:
        with h5py.File(path) as f:
            return _read(f, path)
    except (OSError, KeyError, RuntimeError) as error:  # h5py raises all three for broken files
        raise ValueError(f"{path} is not a whole HDF5 file (truncated?): {error}") from error


def _is_matlab(path: Path) -> bool:
    with path.open("rb") as f:  # MATLAB 7.3 is HDF5 behind a text
        return f.read(6) == b"MATLAB"


def check_layout(f: h5py.File, path: Path) -> str:
    """The name of the baselines' data set.

    :raises ValueError: if the file is not of the layout; says what is missing.
    """
    version = f.attrs.get("version", VERSION)
    if version != VERSION:
        raise ValueError(f"{path} has version {version} of the layout, this pnp_lofi reads {VERSION}; update pnp_lofi")
    baselines = "uvw" if "uvw" in f else "uv"
    missing = [name for name in (baselines, "frequency", "vis") if name not in f]
    if missing or "cell_arcsec" not in f.attrs:
        lacks = missing + ([] if "cell_arcsec" in f.attrs else ["attribute cell_arcsec"])
        raise ValueError(f"{path} lacks {', '.join(lacks)}; docs/obs_h5.md tells the layout")
    groups = [name for name in (baselines, "frequency", "vis", "weight", "flag") if isinstance(f.get(name), h5py.Group)]
    if groups:
        raise ValueError(f"{path}: {', '.join(groups)} should be data sets, not groups; see docs/obs_h5.md")
    return baselines


def _read(f: h5py.File, path: Path) -> Observation:
    baselines = check_layout(f, path)
    rows = f["vis"].shape
    centre = np.ravel(f.attrs.get("phase_centre_deg", (0.0, 0.0)))
    if len(centre) != 2:
        raise ValueError(f"{path}: phase_centre_deg must be RA and Dec [deg], got {centre}")
    return Observation(
        f[baselines][()],
        f["frequency"][()],
        f["vis"][()],
        f["weight"][()] if "weight" in f else np.ones(rows, np.float32),
        f["flag"][()] if "flag" in f else np.zeros(rows, bool),
        float(f.attrs["cell_arcsec"]),
        (float(centre[0]), float(centre[1])),
        text(f.attrs.get("telescope", "")),
        text(f.attrs.get("description", "")),
        read_truth(f),
        bool(f.attrs.get("absolute_weights", False)),
    )


def read_truth(f: h5py.File) -> np.ndarray | None:
    """The simulated sky [Jy/pixel], where there is one."""
    return f["truth"][()] if "truth" in f else None


def text(value: str | bytes) -> str:
    """Text of HDF5, which may come as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
