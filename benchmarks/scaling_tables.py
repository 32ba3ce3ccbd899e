"""The tables of `python -m benchmarks.scaling`."""

import math
from collections.abc import Callable
from typing import Any

from benchmarks.sheet import Sheet, number, times

SIDE, VISIBILITIES, STEPS = 32_768, 10**10, 12  # extrapolated to; of conjugate gradients in an iteration, at most
PROCESSES = (1, 16, 64, 256)
ALONE = 0.9  # share of a core that an undisturbed process of one thread gets
CAUTION = ". OTHER WORK WAS RUNNING: seconds are upper bounds, ratios are left out; memory and differences hold"


def scaling(found: dict[str, Any]) -> list[Sheet]:
    return [_large(found), _shared(found), _rates(found), _extrapolated(found)]


def _large(found: dict[str, Any]) -> Sheet:
    whole = found["whole"]
    columns = ("task", "image", "peak memory [MB]", "of it imports [MB]", "after the data [MB]", "data [s]",
               "seconds an iteration", f"{whole} iterations, extrapolated [min]")  # fmt: skip
    rows = [
        (_task(row, found), f"{row['side']}^2", number(row["peak_mb"], 0), number(row["imports_mb"], 0),
         number(row["build_peak_mb"], 0), number(row["build_seconds"], 0), number(row["seconds_per_iteration"], 1),
         number(row["whole_seconds"] / 60, 0))
        for row in found["large"]
    ]  # fmt: skip
    count = found["large"][0]["iterations"] - 1
    title = f"One process, max_memory = {found['budget_mb']:g} MB; the fastest of {count} iterations after the first"
    title += CAUTION * (not _undisturbed(found))
    return Sheet(title, columns, rows)


def _task(row: dict[str, Any], found: dict[str, Any]) -> str:
    if row["task"] == "inpainting":
        return f"inpainting, {found['keep']:.0%} kept"
    return f"radio, {row['visibilities']:,} visibilities, streamed"


def _shared(found: dict[str, Any]) -> Sheet:
    columns = ("task", "scaling", "processes", "image", "seconds an iteration", "speed-up", "efficiency",
               "peak memory of a process [MB]", "largest difference from one process")  # fmt: skip
    rows = []
    for row in found["shared"]:
        count = f"{row['processes']}" + (" (oversubscribed)" if row["processes"] > found["cores"] else "")
        apart, fair = row["difference"], _undisturbed(found)
        speed = times(row["speed_up"]) if row["kind"] == "strong" and fair else "-"
        efficiency = f"{row['efficiency']:.0%}" if fair else "-"
        rows.append((
            row["task"], row["kind"], count, " x ".join(map(str, row["shape"])),
            number(row["seconds_per_iteration"], 2), speed, efficiency,
            number(row["peak_mb"], 0), "-" if apart is None else f"{apart:.0e}",
        ))  # fmt: skip
    title = f"Processes of one thread on {found['cores']} cores, prior in float32; differences over the image's range"
    title += CAUTION * (not _undisturbed(found))
    return Sheet(title, columns, rows)


def _undisturbed(found: dict[str, Any]) -> bool:
    """Whether single processes had a core for themselves, without which their seconds and ratios mean nothing."""
    alone = [row for row in found["shared"] if row["processes"] == 1]
    return bool(alone) and all(row.get("cpu_share", 0.0) > ALONE for row in alone)


def rate(found: dict[str, Any]) -> dict[str, float]:
    """Seconds of one core: a pixel of the prior in each precision, of A^H A over log2 of the padded image's pixels, a
    visibility at each accuracy; bytes of a process for a pixel."""
    part = found["rates"]
    side = max(row["side"] for row in part["normal"])
    made = {row["precision"]: row["seconds"] / side**2 for row in part["prior"] if row["side"] == side}
    normal = next(row["seconds"] for row in part["normal"] if row["side"] == side)
    made["normal"] = normal / side**2 / math.log2(4 * side**2)
    made |= {f"eps {row['eps']:g}": row["seconds_per_visibility"] for row in part["build"]}
    for row in found["large"]:
        made[row["task"]] = (row["peak_mb"] - row["imports_mb"]) * 2**20 / row["side"] ** 2
    return made


def _rates(found: dict[str, Any]) -> Sheet:
    made, side = rate(found), max(row["side"] for row in found["rates"]["normal"])
    per_pixel = made["normal"] * math.log2(4 * side**2)
    rows = [
        ("prior, float32, a pixel", f"{1e6 * made['float32']:.2f} us"),
        ("prior, bfloat16, a pixel", f"{1e6 * made['bfloat16']:.2f} us"),
        ("A^H A, a pixel", f"{1e9 * per_pixel:.0f} ns at {side}^2, {1e9 * made['normal']:.2f} ns x log2(4 N)"),
        ("build, a visibility, eps = 1e-12", f"{1e6 * made['eps 1e-12']:.2f} us"),
        ("build, a visibility, eps = 1e-06", f"{1e6 * made['eps 1e-06']:.2f} us"),
        ("memory, a pixel, inpainting", f"{made['inpainting']:.0f} bytes"),
        ("memory, a pixel, radio, build included", f"{made['radio']:.0f} bytes"),
    ]
    title = "Rates" + CAUTION * (not _undisturbed(found))
    return Sheet(title, ("one core, N pixels", "measured"), rows)


def _extrapolated(found: dict[str, Any]) -> Sheet:
    made, pixels = rate(found), SIDE**2
    prior, normal = made["bfloat16"] * pixels, made["normal"] * pixels * math.log2(4 * pixels)
    columns = ("processes of one core", "memory of a process [GB]", "build, eps = 1e-12 [h]", "build, eps = 1e-06 [h]",
               "an iteration [min]", f"{found['whole']} iterations [h]")  # fmt: skip
    rows = []
    for n in PROCESSES:
        step = (prior + STEPS * normal) / n
        fft = 2 * normal / n
        builds = (f"{(VISIBILITIES * made[f'eps {eps}'] + fft) / 3600:.1f}" for eps in ("1e-12", "1e-06"))
        rows.append((str(n), number(made["radio"] * pixels / n / 2**30, 1), *builds, number(step / 60, 1),
                     number(found["whole"] * step / 3600, 1)))  # fmt: skip
    title = (f"Extrapolated, not measured: radio, {SIDE:,} x {SIDE:,} pixels, {VISIBILITIES:.0e} visibilities, "
             f"{STEPS} steps of CG an iteration, communication left out")  # fmt: skip
    title += ". From rates that other work disturbed" * (not _undisturbed(found))
    return Sheet(title, columns, rows)


TABLES: dict[str, Callable[[dict[str, Any]], list[Sheet]]] = {"scaling": scaling}
