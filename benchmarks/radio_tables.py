"""The tables of benchmarks.radio_m31 and benchmarks.radio_resolution."""

from collections.abc import Callable
from typing import Any

from benchmarks.sheet import Sheet, number

DEFAULT_ITERATIONS = 50  # of ADMM


def radio_m31(found: dict[str, Any]) -> list[Sheet]:
    columns = ("method", "hours", "SNR [dB]", "over QuantifAI [dB]", "logSNR [dB]", "PSNR [dB]", "misfit",
               "iterations", "seconds", "peak memory [MB]")  # fmt: skip
    rows = []
    for hours in dict.fromkeys(str(row["hours"]) for row in found["rows"]):
        published = found["reference"]["QuantifAI"][hours]
        rows.append(("QuantifAI (quoted)", hours, number(published, 2), "+0.00", *("-" for _ in columns[4:])))
        for row in (row for row in found["rows"] if str(row["hours"]) == hours):
            stopped = f"{row['iterations']} ({row['status']})" if "status" in row else "-"
            rows.append((
                _named(row), hours, number(row["snr"], 2), f"{row['snr'] - published:+.2f}",
                number(row["log_snr"], 2), number(row["psnr"], 2), number(row["misfit"], 2), stopped,
                number(row["seconds"], 1), number(row["peak_memory_mb"], 0),
            ))  # fmt: skip
    title = f"M31, 256 x 256, QuantifAI's coverage, {found['data_snr']:g} dB; logSNR with a = {found['a']:.0f}"
    return [Sheet(title, columns, rows)]


def _named(row: dict[str, Any]) -> str:
    """The method, and what an oracle chose for it."""
    choice = row.get("choice")
    if choice is None:
        error = row.get("noise_error")
        return row["method"] if error is None else f"{row['method']} ({error:+.1%})"
    if "strength" in choice:
        return f"{row['method']}: strength {choice['strength']:g}"
    weights = "natural" if choice["robust"] is None else f"Briggs {choice['robust']:g}"
    return f"{row['method']}: {weights}, {choice['n_sigma']:g} sigma, beam x {choice['width']:g}"


def radio_resolution(found: dict[str, Any]) -> list[Sheet]:
    columns = ("pixels a side", "SNR [dB]", "right to [cycles]", "correlation beyond the baselines", "iterations",
               "seconds", "an iteration [s]", "peak memory [MB]")  # fmt: skip
    finer = [row for row in found["rows"] if row["side"] == row["n"]]
    sheets = [
        Sheet(
            f"Finer observations: baselines to half as many cycles as pixels, against the sky at {found['sky']}^2",
            columns,
            [_resolved(row, str(row["side"])) for row in finer],
        )
    ]
    for n in dict.fromkeys(row["n"] for row in found["rows"] if row["side"] > row["n"]):
        same = sorted((row for row in found["rows"] if row["n"] == n), key=lambda row: row["side"])
        title = f"The same observation, baselines to {n // 2} cycles, on finer cells"
        sheets.append(Sheet(title, columns, [_resolved(row, str(row["side"])) for row in same]))
    return sheets


def _resolved(row: dict[str, Any], name: str) -> tuple[str, ...]:
    cut = row["status"] == "limit" and row["most_iterations"] < DEFAULT_ITERATIONS
    stopped = f"{row['iterations']} ({'cut short' if cut else row['status']})"
    beyond = row["correlation_beyond"] if row["side"] > row["n"] else None  # else the grid cannot hold any
    return (name, number(row["snr"], 2), number(row["cycles"], 0), number(beyond, 2), stopped,
            number(row["seconds"], 1), number(row["seconds_an_iteration"], 2),
            number(row["peak_memory_mb"], 0))  # fmt: skip


TABLES: dict[str, Callable[[dict[str, Any]], list[Sheet]]] = {
    "radio_m31": radio_m31,
    "radio_resolution": radio_resolution,
}
