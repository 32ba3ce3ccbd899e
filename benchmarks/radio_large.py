"""Ten million visibilities of a MeasurementSet on disk to FITS, in slices: time of each stage, and memory.

MeerKAT simulated by `pnp_lofi simulate radio` (2016 baselines, channels and dumps), some sources, noise. Beside it the
dirty image by ducc0 with all visibilities in memory, from the same MeasurementSet. Each has a process of its own.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import parser, peak_memory_of, report, start

SIZE, CELL, FREQUENCY, BANDWIDTH = 1024, 2.5, 1.28e9, 1e8
BASELINES, INTEGRATION = 2016, 60.0
SOURCES = 40
ITERATIONS = 10  # of ADMM


def simulate(folder: str, channels: int, dumps: int) -> int:
    """Write obs.ms; its number of visibilities."""
    from pnp_lofi.antennas import meerkat
    from pnp_lofi.radio_simulation import simulate as observe
    from pnp_lofi.radio_simulation import write_simulation

    rng, sky = np.random.default_rng(0), np.zeros((SIZE, SIZE), np.float32)
    sky[tuple(rng.integers(SIZE // 4, 3 * SIZE // 4, (2, SOURCES)))] = rng.uniform(0.01, 0.1, SOURCES)
    track: dict[str, Any] = {"hours": dumps * INTEGRATION / 3600, "integration": INTEGRATION}
    obs = observe(sky, cell=CELL, frequency=FREQUENCY, channels=channels, bandwidth=BANDWIDTH, snr=10.0, **track)
    write_simulation(Path(folder) / "obs.ms", obs, meerkat(), **track)
    return len(obs.vis)


def image(folder: str, method: str) -> dict[str, Any]:
    """`pnp-lofi solve radio`; its report."""
    from pnp_lofi.radio_chunks import Weighting
    from pnp_lofi.radio_file import image_file

    options: dict[str, Any] = {
        "dirty": {"clean": True, "iterations": 0}, "CLEAN": {"clean": True},
        "CLEAN, Briggs": {"clean": True, "weighting": Weighting("briggs", 0.0)},
        "LoFi-ADMM": {"iterations": ITERATIONS},
    }[method]  # fmt: skip
    out = Path(folder) / f"{method.split(',')[0]}.fits"
    found = image_file(Path(folder) / "obs.ms", out, size=SIZE, cell=CELL, overwrite=True,
                       selection={"absolute_weights": True}, **options)  # fmt: skip
    return {key: value for key, value in found.items() if key.startswith("seconds") or key in ("iterations", "misfit")}


def in_memory(folder: str) -> dict[str, Any]:
    """The dirty image by ducc0's gridder, as other imagers hold visibilities; its seconds and what it differs by."""
    import ducc0
    from astropy.io import fits
    from casacore import tables

    begin = time.perf_counter()
    ms = tables.table(f"{folder}/obs.ms", ack=False)
    vis, uvw = ms.getcol("DATA").mean(-1), ms.getcol("UVW")
    frequency = tables.table(f"{folder}/obs.ms/SPECTRAL_WINDOW", ack=False).getcol("CHAN_FREQ")[0]
    read = time.perf_counter() - begin
    pixel = np.radians(CELL / 3600)
    turned = np.ascontiguousarray(uvw[:, [1, 0, 2]] * [1, -1, 1])
    dirty = ducc0.wgridder.vis2dirty(
        uvw=turned, freq=frequency, vis=np.conj(vis), npix_x=SIZE, npix_y=SIZE, pixsize_x=pixel, pixsize_y=pixel,
        epsilon=1e-5, do_wgridding=False, divide_by_n=False, nthreads=1,
    ) / vis.size  # fmt: skip
    seconds = time.perf_counter() - begin
    ours = fits.getdata(f"{folder}/dirty_dirty.fits")[0, 0]
    return {"seconds": seconds, "seconds_read": read, "difference": float(np.abs(dirty - ours).max() / dirty.max())}


def main() -> None:
    made = parser(__doc__, "radio_large")
    made.add_argument("--channels", type=int, default=32)
    made.add_argument("--dumps", type=int, default=158)
    args = start(made)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        count, _ = peak_memory_of(simulate, folder, args.channels, args.dumps)
        megabytes = sum(p.stat().st_size for p in (Path(folder) / "obs.ms").rglob("*") if p.is_file()) / 2**20
        print(f"{count} visibilities, {megabytes:.0f} MB on disk", flush=True)
        for method in ("dirty", "CLEAN", "CLEAN, Briggs", "LoFi-ADMM"):
            value, peak = peak_memory_of(image, folder, method)
            rows.append({"method": method, "peak_memory_mb": peak} | value)
            print(method, {k: round(v, 2) for k, v in rows[-1].items() if k != "method"}, flush=True)
        reference, peak = peak_memory_of(in_memory, folder)
    payload: dict[str, Any] = {"visibilities": count, "disk_mb": megabytes, "size": SIZE, "rows": rows}
    report("radio_large", payload | {"in_memory": reference | {"peak_memory_mb": peak}}, args.results)


if __name__ == "__main__":
    main()
