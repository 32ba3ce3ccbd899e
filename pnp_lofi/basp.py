"""MATLAB files of the BASP group: the measurement file of AIRI, uSARA and R2D2, and their 3C391."""

from contextlib import nullcontext
from pathlib import Path

import h5py
import numpy as np

from pnp_lofi.operators.uv import C
from pnp_lofi.visibilities import Centre
from pnp_lofi.visibility_columns import Columns

NEEDED = ("y", "u", "v", "frequency")
SPECS = "msSpecs.mat"


def basp(
    path: Path, *, phase_centre: Centre | None = None, absolute_weights: bool = False, channel: int = 0
) -> Columns:
    """A measurement file y, u, v, w, nW, frequency, maxProjBaseline; or data.mat of 3C391 with msSpecs.mat beside it.

    Signs are those of the MeasurementSet they were made from, V = sum I exp(+2 pi i (u l + v m)): conjugated here, as
    the recipe vla_3c391 found for 3C391. u, v, w are in wavelengths or, of older files, in metres: maxProjBaseline
    tells. nW = sqrt(weight). Flags were applied before. 3C391 has baselines in metres, weights that are only relative,
    and the data of one of the 64 frequencies it lists: the first (the recipe tells why).

    :param tuple phase_centre: RA, Dec [deg]; the files do not tell it; default 0, 0.
    :param bool absolute_weights: whether nW is 1/sigma per real component.
    :param int channel: of 3C391's list of frequencies.
    :raises ValueError: for another layout; says what is missing.
    :raises FileNotFoundError: if msSpecs.mat is not beside 3C391's data.
    """
    content = load_mat(path)
    if "y_I" in content:
        columns, telescope = _sara_calib(path, content, channel), "VLA"
    else:
        columns, telescope = _measurement(path, content), ""
    attributes = {"description": path.name, "telescope": telescope}
    return Columns(
        path, lambda: nullcontext(columns), attributes, phase_centre=phase_centre, absolute_weights=absolute_weights
    )


def load_mat(path: Path) -> dict[str, np.ndarray]:
    """The variables of a MATLAB file of any version, without axes of length one.

    :raises ValueError: if it is broken.
    """
    with path.open("rb") as f:
        recent = f.read(10) == b"MATLAB 7.3"
    try:
        if recent:  # HDF5, axes reversed, complex as pairs
            with h5py.File(path) as f:
                found = {name: f[name][()] for name in f if isinstance(f[name], h5py.Dataset)}
            return {name: np.squeeze(_complex(value).T) for name, value in found.items()}
        from scipy.io import loadmat

        return {k: np.squeeze(v) for k, v in loadmat(path).items() if not k.startswith("_")}
    except ImportError as error:
        raise ImportError("MATLAB files need scipy: pip install scipy") from error
    except Exception as error:  # scipy and h5py raise a dozen kinds for a broken file
        raise ValueError(f"{path} is not a whole MATLAB file: {error}") from error


def _complex(value: np.ndarray) -> np.ndarray:
    return value["real"] + 1j * value["imag"] if value.dtype.names else value


def _measurement(path: Path, content: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    missing = [name for name in NEEDED if name not in content]
    if missing:
        raise ValueError(
            f"{path}: expected y, u, v, w, nW, frequency, maxProjBaseline; {missing} missing, has {[*content]}"
        )
    frequency = np.asarray(content["frequency"], np.float64)
    wavelength = C / frequency
    uvw = [np.atleast_1d(content[name]).astype(np.float64) for name in ("u", "v", "w") if name in content]
    if len({len(x) for x in uvw}) > 1:
        raise ValueError(f"{path}: u, v and w must be of one length, got {[len(x) for x in uvw]}")
    longest = float(np.hypot(uvw[0], uvw[1]).max())
    stated = float(content.get("maxProjBaseline", longest))  # [wavelengths]
    in_metres = bool(np.isclose(longest / wavelength.min(), stated, rtol=1e-3))
    if not in_metres and not np.isclose(longest, stated, rtol=1e-3):
        raise ValueError(
            f"{path}: maxProjBaseline is {stated:g}, but hypot(u, v) reaches {longest:g}, or, were it metres, "
            f"{longest / wavelength.min():g} wavelengths; correct one of them"
        )
    columns = {
        "uvw": np.stack(uvw, axis=1) * (1 if in_metres else wavelength.reshape(-1, 1)), "frequency": frequency,
        "vis": np.conj(np.atleast_1d(content["y"])),
    }  # fmt: skip
    if content.get("nW", np.empty(0)).size:
        weight = np.square(content["nW"].astype(np.float64))
        columns["weight"] = np.broadcast_to(weight, columns["vis"].shape)
    return columns


def _sara_calib(path: Path, data: dict[str, np.ndarray], channel: int) -> dict[str, np.ndarray]:
    if not (path.parent / SPECS).is_file():
        raise FileNotFoundError(f"{path} has its baselines in {SPECS}, which is not beside it; fetch it as well")
    specs = load_mat(path.parent / SPECS)
    missing = [x for x in ("weights", "flag") if x not in data] + [x for x in ("uvw", "freqsVect") if x not in specs]
    if missing:
        raise ValueError(f"{path} and {SPECS}: expected y_I, weights, flag, uvw, freqsVect; {missing} missing")
    frequencies = np.atleast_1d(specs["freqsVect"])
    if not 0 <= channel < len(frequencies):
        raise ValueError(f"{path}: expected channel 0 to {len(frequencies) - 1}, got {channel}")
    return {
        "uvw": specs["uvw"].astype(np.float64), "frequency": np.asarray(frequencies[channel], np.float64),
        "vis": np.conj(data["y_I"]), "weight": data["weights"].astype(np.float64), "flag": data["flag"] != 0,
    }  # fmt: skip
