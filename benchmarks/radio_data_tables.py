"""The tables of benchmarks.radio_real, benchmarks.radio_m87 and benchmarks.radio_large."""

from collections.abc import Callable
from typing import Any

from benchmarks.sheet import Sheet, number


def radio_real(found: dict[str, Any]) -> list[Sheet]:
    columns = ("method", "misfit, data seen", "misfit, baselines held out", "residual [mJy/beam]", "over the noise",
               "flux, remnant [Jy]", "flux, all [Jy]", "seconds")  # fmt: skip
    rows = [
        (
            row["method"], number(row["misfit"], 2), number(row["held_out"], 2), number(1e3 * row["residual_rms"], 2),
            number(row["residual_over_noise"], 1), number(row["flux_remnant_jy"], 1), number(row["flux_jy"], 1),
            number(row.get("seconds"), 1),
        ) for row in found["rows"]
    ]  # fmt: skip
    rows.append(("the data authors' model image", number(found["authors_misfit"], 2), *("-" for _ in columns[2:])))
    side, cell = found["shape"][0], found["cell"]
    title = (
        f"3C391, VLA D array, {found['visibilities']} visibilities at {found['frequency'] / 1e9:.3f} GHz, {side} x "
        f"{side} pixels of {cell:g} arcsec, thermal noise {1e3 * found['noise']:.2f} mJy/beam"
    )
    return [Sheet(title, columns, rows)]


M87 = {"clean": "CLEAN (Hogbom, in a disk of 60 uas)", "tv": "TV", "lofi": "LoFi-ADMM"}


def radio_m87(found: dict[str, Any]) -> list[Sheet]:
    columns = ("image", "diameter [uas]", "bright side [deg]", "chi^2 of closure phases", "of log closure amplitudes",
               "of corrected data", "with gains counted", "residual / noise [mJy/beam]", "flux [Jy]")  # fmt: skip
    rows = [("published by the EHT", "42 +- 3", "150 to 200", *("-" for _ in columns[3:]))]
    named = {key: (name, found[key]) for key, name in M87.items()}
    named |= {f"start {k}": (f"CLEAN, first model {k}", row) for k, row in found["starts"].items()}
    for name, row in named.values():
        rms, noise = (row.get(f"{key}_jy_per_beam") for key in ("residual_rms", "noise"))
        rows.append((
            name, number(row.get("diameter_uas"), 1), number(row.get("bright_side_deg"), 0),
            number(row["closure_phases_chi2"], 2), number(row["log_closure_amplitudes_chi2"], 2),
            number(row["reduced_chi2"], 2), number(row["reduced_chi2_less_gains"], 2),
            "-" if rms is None else f"{1e3 * rms:.2f} / {1e3 * noise:.2f}", number(row["flux_jy"], 2),
        ))  # fmt: skip
    title = (
        f"M87, EHT 2017 April 11: {found['rows']} means of {found['seconds']:g} s, {found['rounds']} rounds of "
        f"self-calibration; images from {len(found['starts'])} first models correlate at least "
        f"{found['correlation_of_starts']:.3f}"
    )
    return [Sheet(title, columns, rows)]


STAGES = {"look": "look", "grid": "read and grid", "beams": "beams", "solve": "solve", "write": "write"}


def radio_large(found: dict[str, Any]) -> list[Sheet]:
    columns = ("run", *(f"{name} [s]" for name in STAGES.values()), "all [s]", "peak memory [MB]")
    rows = []
    for row in found["rows"]:
        seconds = [row[f"seconds_{stage}"] for stage in STAGES]
        name = row["method"] + (f", {row['iterations']} iterations" if row["method"] == "LoFi-ADMM" else "")
        rows.append((name, *(number(s, 1) for s in seconds), number(sum(seconds), 1), number(row["peak_memory_mb"], 0)))
    reference = found["in_memory"]
    rows.append((
        f"dirty image, all in memory (ducc0, 1e-5; differs by {reference['difference']:.0e})", "-",
        number(reference["seconds"], 1), "-", "-", "-", number(reference["seconds"], 1),
        number(reference["peak_memory_mb"], 0),
    ))  # fmt: skip
    title = (
        f"{found['visibilities']:,} visibilities from a MeasurementSet of {found['disk_mb']:.0f} MB, "
        f"{found['size']} x {found['size']} pixels"
    )
    return [Sheet(title, columns, rows)]


TABLES: dict[str, Callable[[dict[str, Any]], list[Sheet]]] = {
    "radio_large": radio_large,
    "radio_m87": radio_m87,
    "radio_real": radio_real,
}
