"""Convert the public VLA visibilities of the supernova remnant 3C391 to an OBS.h5.

Command:   python -m pnp_lofi.recipes.vla_3c391 DATA_DIR -o 3c391.h5
Data:      data.mat and msSpecs.mat (data/3c391/ch1 of github.com/basp-group/SARA-CALIB-realdata):
           VLA D array, 24 April 2010, one 2 MHz channel, the mosaic pointing C3 of NRAO's tutorial
           "VLA Continuum Tutorial 3C391", calibrated but not self-calibrated, 10 s integrations.
Hardware:  1 CPU core, 0.1 GB of memory; 1 second.
Expect:    110331 rows, 71497 of them usable; the printed noise is 0.076 Jy per real component of a
           full-weight row, so that naturally weighted imaging reaches 0.28 mJy/beam at best. Beam
           22" x 17" (natural weights). Gain errors of about 5 % per antenna remain: on the shortest
           baselines (3.6 Jy) they exceed the noise, and the data authors' own model image leaves a
           reduced chi^2 of 1.26. Do not drive an image without self-calibration to 1.

The remnant spans 6' and lies up to 5' from the pointing centre, inside a primary beam of about 9.5' (FWHM).
The image is therefore the apparent sky. 512 pixels of 2.5" are the data authors' choice; 256 pixels of
4" hold the remnant too.
"""

import argparse
from pathlib import Path

import numpy as np

from pnp_lofi.observation import Observation, write_observation

# The 64 channels are listed, the data are of one. The files lie in the authors' folder "ch1", their
# script images them with ms_freqId = 1, and their model image (2.5" pixels) fits the data best at
# 4.536(5) GHz. A wrong choice would only rescale the sky: by 2.8 % at worst (channel 63).
CHANNEL = 0
# 3C391 C3, J2000: not C1. The first scan (number 7, 08:34:43 UTC) is C3 in NRAO's listing, where C3 is
# field 2 of the seven target fields; and the rotation of the uvw in time gives Dec -0d57m48s within 7".
PHASE_CENTRE_DEG = (15 * (18 + 49 / 60 + 19.339 / 3600), -(57 / 60 + 48.0 / 3600))
INTEGRATION_S = 10.0
MAD_TO_SIGMA = 1.4826  # of a Gaussian


def load_mat(path: Path, *keys: str) -> dict[str, np.ndarray]:
    """Read arrays from a MATLAB 5 file.

    :param pathlib.Path path: the .mat file.
    :param str keys: variables to read.
    :returns: the variables by name, vectors as (M,).
    :raises FileNotFoundError: if there is no such file.
    :raises KeyError: if a variable is missing.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError("MATLAB files need scipy: pip install 'pnp-lofi[dev]'") from error
    if not path.is_file():
        raise FileNotFoundError(f"expected {path}; DATA_DIR is the folder with data.mat and msSpecs.mat")
    content = loadmat(path)
    if missing := [key for key in keys if key not in content]:
        have = [key for key in content if not key.startswith("_")]
        raise KeyError(f"{path} should hold {list(keys)}, lacks {missing}, has {have}; is it the 3C391 file?")
    return {key: np.squeeze(content[key]) for key in keys}


def noise_per_unit_weight(
    vis: np.ndarray, weight: np.ndarray, flag: np.ndarray, time: np.ndarray, baseline: np.ndarray
) -> float:
    """Estimate c of sigma = c / sqrt(weight), the noise of a real component, from the data alone.

    Three consecutive integrations of a baseline give y_1 - 2 y_2 + y_3, free of the sky (constant and
    linear in time), with variance c^2 (1/w_1 + 4/w_2 + 1/w_3). The spread is the median absolute
    deviation, which interference does not move.

    :param numpy.ndarray vis: (M,) complex [Jy].
    :param numpy.ndarray weight: (M,) relative weights, positive where not flagged.
    :param numpy.ndarray flag: (M,) bool, True = do not use.
    :param numpy.ndarray time: (M,) [s].
    :param numpy.ndarray baseline: (M,) an integer for each pair of antennas.
    :returns: c [Jy].
    :raises ValueError: if no baseline has three usable integrations in a row.
    """
    rows = np.lexsort((time, baseline))
    rows = rows[~flag[rows]]
    i, j, k = rows[:-2], rows[1:-1], rows[2:]
    step_s = 0.5 * (time[k] - time[i])
    keep = (baseline[i] == baseline[k]) & (np.abs(step_s - INTEGRATION_S) < 0.1 * INTEGRATION_S)
    if not keep.any():
        raise ValueError(
            f"expected three unflagged integrations {INTEGRATION_S} s apart on some baseline, found none "
            f"among {rows.size} unflagged rows; check `flag` and `time`"
        )
    i, j, k = i[keep], j[keep], k[keep]
    z = (vis[i] - 2 * vis[j] + vis[k]) / np.sqrt(1 / weight[i] + 4 / weight[j] + 1 / weight[k])
    parts = np.concatenate([z.real, z.imag])
    return float(MAD_TO_SIGMA * np.median(np.abs(parts - np.median(parts))))


def read_3c391(data_dir: Path, *, cell: float = 2.5) -> Observation:
    """Read the two .mat files as one observation.

    :param pathlib.Path data_dir: folder with data.mat and msSpecs.mat.
    :param float cell: pixel size to suggest [arcsec].
    :returns: the observation; flagged rows are kept, their data are raw or zero.
    """
    data = load_mat(data_dir / "data.mat", "y_I", "weights", "flag")
    specs = load_mat(data_dir / "msSpecs.mat", "uvw", "time", "ant1", "ant2", "freqsVect")
    rows = data["y_I"].size
    for name, value in {**data, "uvw": specs["uvw"], "time": specs["time"]}.items():
        if value.shape[0] != rows:
            raise ValueError(f"{name} should have {rows} rows like y_I, got {value.shape}; mixed-up files?")
    # y_I is the weighted mean of RR and LL [Jy]; weights = w_RR + w_LL, each the integration in seconds
    # (10 + 10 for a whole one), so relative: measured, sigma^2 is proportional to 1 / weights.
    relative = data["weights"].astype(np.float64)  # uint8 would overflow in sums
    flag = (data["flag"] != 0) | (relative <= 0)
    baseline = specs["ant1"].astype(np.int64) * 1000 + specs["ant2"].astype(np.int64)
    c = noise_per_unit_weight(data["y_I"], relative, flag, specs["time"], baseline)
    return Observation(
        uvw=specs["uvw"].astype(np.float64),
        frequency=np.asarray(specs["freqsVect"][CHANNEL], np.float64),
        # As stored, V = sum I exp(+2 pi i (u l + v m)), CASA's sign; ours is the opposite one. Evidence: only
        # the conjugate puts the bright rim to the north-west and the breakout to the south-east, and the
        # rim at 18h49m16s -0d55'00", where NRAO's images have the polarised peaks (within 20"). As stored,
        # the remnant would lie south of C3, while the mosaic is centred 2' north of it.
        vis=np.conj(data["y_I"]).astype(np.complex64),
        weight=(relative / c**2).astype(np.float32),
        flag=flag,
        cell=cell,
        phase_centre=PHASE_CENTRE_DEG,
        telescope="VLA D",
        description="3C391 C3, 24 April 2010, one 2 MHz channel, Stokes I, no primary beam correction",
        truth=None,
    )


def main() -> None:
    """Convert, and print what was found."""
    parser = argparse.ArgumentParser(description="Convert the VLA data of 3C391 to an OBS.h5.")
    parser.add_argument("data_dir", type=Path, help="folder with data.mat and msSpecs.mat")
    parser.add_argument("-o", "--output", type=Path, default=Path("3c391.h5"), help="file to write")
    parser.add_argument("--cell", type=float, default=2.5, help="pixel size to suggest [arcsec]")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    arguments = parser.parse_args()
    obs = read_3c391(arguments.data_dir, cell=arguments.cell)
    write_observation(arguments.output, obs, overwrite=arguments.overwrite)
    weight = obs.weight[~obs.flag]
    print(f"{arguments.output}: {obs.vis.size} rows, {weight.size} usable, {obs.frequency / 1e9:.3f} GHz")
    print(f"noise of a full-weight row: {weight.max() ** -0.5:.4f} Jy per real component")
    print(f"natural-weight sensitivity: {1e3 * weight.sum(dtype=np.float64) ** -0.5:.3f} mJy/beam")


if __name__ == "__main__":
    main()
