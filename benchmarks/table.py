"""Write the tables of README.md and of some pages of docs from benchmarks/results/*.json.

Replaces what stands between `<!-- table:NAME -->` and `<!-- end -->`. A table without results is left as it is.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    continuous_tables,
    massmap_tables,
    operator_tables,
    prior_tables,
    radio_data_tables,
    radio_tables,
    recipe_tables,
    scaling_tables,
    solver_tables,
    zoom_tables,
)
from benchmarks.common import RESULTS, ROOT, machine_line
from benchmarks.sheet import Sheet, number, times

PAGES = (
    "benchmarks",
    "denoise",
    "generative",
    "ldct",
    "massmap",
    "priors",
    "radio_results",
    "scaling",
    "solvers",
    "uncertainty",
    "zoom",
)
FILES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in PAGES))
BLOCK = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def denoise(found: dict[str, Any]) -> list[Sheet]:
    reference = list(found["reference"])
    quoted = (f"{name} (quoted)" for name in reference)
    columns = ("sigma", "LoFi float32", "LoFi bfloat16", "lost by bfloat16 (worst image)", *quoted)
    rows = []
    for row in found["quality"]:
        lost = f"{row['loss']:.4f} ({row['largest_loss']:.4f})"
        beside = (number(row[name], 2) for name in reference)
        rows.append((row["sigma"], number(row["float32"], 2), number(row["bfloat16"], 2), lost, *beside))
    quality = Sheet(f"PSNR [dB], mean of {found['images']} images of Set12", columns, rows)
    level = next(row for row in found["quality"] if row["sigma"] == "25/255")
    accuracy = {f"LoFi, {precision}": number(level[precision], 2) for precision in ("float32", "bfloat16")}
    accuracy["DnCNN (deepinv)"] = f"{number(level['DnCNN-S-25'], 2)} (DnCNN-S-25, quoted)"
    columns = ("network", "parameters", "seconds", "over LoFi float32", "over LoFi bfloat16", "PSNR at 25/255 [dB]")
    rows = [
        (row["network"], f"{row['parameters']:,}", number(row["seconds"], 3), times(row["over_float32"]),
         times(row["over_bfloat16"]), accuracy.get(row["network"], "-"))
        for row in found["speed"]
    ]  # fmt: skip
    sheets = [quality, Sheet(f"One image of {found['side']} x {found['side']}", columns, rows)]
    if (seen := found.get("symmetry")) is not None:
        turned = f"{seen['rotation_db']:+.3f} dB (worst image {seen['largest_rotation_db']:+.3f})"
        rows = [("PSNR of the image turned by 90 degrees", turned),
                (f"rms error within {seen['margin']} pixels of the border over the interior's",
                 times(seen["border_over_interior"]))]  # fmt: skip
        sheets.append(Sheet("", ("symmetry and borders, 25/255", "measured"), rows))
    return sheets


def inpaint(found: dict[str, Any]) -> list[Sheet]:
    tv = found["tv"]
    methods = {
        f"TV (deepinv), tuned for the set: ths {tv['ths']:g}, alpha {tv['alpha']:g}": tv,
        "LoFi-ADMM, untuned": found["lofi"],
        "LoFi-ADMM, untuned, noise level estimated": found["lofi_estimated"],
    }
    rows = [
        (name, number(row["psnr"], 2), f"{row['psnr'] - tv['psnr']:+.2f}", number(row["ssim"], 4),
         number(row["seconds"], 1), times(row["seconds"] / tv["seconds"]))
        for name, row in methods.items()
    ]  # fmt: skip
    columns = ("method", "PSNR [dB]", "over TV [dB]", "SSIM", "seconds an image", "time over TV's")
    title = f"Mean of {found['count']} images of Set12, {100 * found['keep']:g} % of the pixels kept"
    return [Sheet(title, columns, rows)]


def toeplitz(found: dict[str, Any]) -> list[Sheet]:
    columns = ("coverage", "dtype, eps", "relative difference", "error, convolution", "error, A then A^H",
               "A then A^H [ms]", "convolution [ms]", "speed-up", "kernel, once [s]")  # fmt: skip
    rows = [
        (row["coverage"], f"{row['dtype']}, {_eps(row['eps'])}", f"{row['difference']:.1e}",
         f"{row['error_toeplitz']:.1e}", f"{row['error_nufft']:.1e}", number(1e3 * row["nufft_seconds"], 1),
         number(1e3 * row["toeplitz_seconds"], 1), times(row["speed_up"]), number(row["kernel_seconds"], 2))
        for row in found["rows"]
    ]  # fmt: skip
    quoted = [
        (f"M = {row['visibilities']} (quoted)", "float32, default", "-", "-", "-", number(row["nufft_ms"], 1),
         number(row["toeplitz_ms"], 1), times(row["nufft_ms"] / row["toeplitz_ms"]), "-")
        for row in found["reference"]["Quoted"]["rows"]
    ]  # fmt: skip
    return [Sheet(f"{found['side']} x {found['side']}", columns, rows + quoted)]


def memory(found: dict[str, Any]) -> list[Sheet]:
    columns = ("task", "side [pixel]", "image [MB]", "peak memory [MB]", "beyond imports [MB]", "PSNR [dB]", "seconds")
    names = {"denoise": "denoising", "inpaint": "inpainting, {iterations} iterations"}
    runs = [(name.format(**row[task]), row["side"], row[task]) for task, name in names.items() for row in found["rows"]]
    full = found["full"]
    if full:
        runs.append((f"inpainting, whole ({full['iterations']} iterations)", full["side"], full))
    rows = [("imports and network", "-", "-", number(found["imports_mb"], 0), "0", "-", "-")]
    for name, side, run in runs:
        peak = run["peak_memory_mb"]
        whole = not name.startswith("inpainting,") or "whole" in name  # a few iterations say nothing of quality
        rows.append((
            name, str(side), number(4 * side**2 / 2**20, 1), number(peak, 0), number(peak - found["imports_mb"], 0),
            number(run["psnr"], 2) if whole else "-", number(run["seconds"], 1),
        ))  # fmt: skip
    return [Sheet(f'Prior "{found["prior"]}"', columns, rows)]


def lofi(found: dict[str, Any]) -> list[Sheet]:
    columns = ("paper size: 9 x 9 points, 3 x 370", "image", "seconds", "over float32", "over the same precision",
               "GFLOP/s", "of the GEMM rate",
               "largest difference")  # fmt: skip
    rows = [
        (row["name"], f"{row['side']}^2", number(row["seconds"], 2), times(row["speed_up"]),
         times(row["like_for_like"]),
         number(row["gflops"], 0), f"{row['share']:.0%} of {row['gemm_gflops']:.0f}", f"{row['difference']:.1e}")
        for row in found["paper"]
    ]  # fmt: skip
    sheets = [Sheet("", columns, rows)]
    columns = (f"one image of {found['s_side']}^2", "parameters", "seconds", "over S float32", "over S bfloat16")
    rows = [
        (row["name"], f"{row['parameters']:,}", number(row["seconds"], 3), times(row["over_float32"]),
         times(row["over_bfloat16"]))
        for row in found["size_s"]
    ]  # fmt: skip
    sheets.append(Sheet("", columns, rows))
    sides = sorted({row["side"] for row in found["memory"]})
    kinds = list(dict.fromkeys((row["network"], row["task"]) for row in found["memory"]))
    at = {(row["network"], row["task"], row["side"]): row["mb"] for row in found["memory"]}
    rows = [(f"{task}, {kind}", *(number(at[kind, task, side], 0) for side in sides)) for kind, task in kinds]
    sheets.append(Sheet("", ("peak memory beyond tensors [MB]", *(f"{side}^2" for side in sides)), rows))
    rows = [
        (row["check"], f"{row['float32']:.0e}" if "float32" in row else "-",
         f"{row['float64']:.0e}" if "float64" in row else "-", "yes" if row["passes"] else "NO")
        for row in found["equality"]
    ]  # fmt: skip
    sheets.append(Sheet("", ("check", "float32", "float64", "holds"), rows))
    if found["gpu"]:
        sheets.append(Sheet("", ("GPU", "value"), [(k, f"{v:.3g}" if isinstance(v, float) else v)
                                                   for k, v in found["gpu"].items()]))  # fmt: skip
    return sheets


def sharing(found: dict[str, Any]) -> list[Sheet]:
    levels = [f"{round(255 * level)}" for level in found["levels"]]
    columns = ("network", "multiply-adds a pixel", *(f"held out, {n}/255" for n in levels),
               *(f"Set12, {n}/255" for n in levels), "training [s]")  # fmt: skip
    rows = [
        (row["title"], f"{row['macs']:,}", *(number(x, 2) for x in row["held_out"]),
         *(number(x, 2) for x in row["set12"]), number(row["train_seconds"], 0))
        for row in sorted(found["rows"], key=lambda row: row["macs"])
    ]  # fmt: skip
    return [Sheet(f"PSNR [dB] after {found['steps']} steps of training", columns, rows)]


def demo(found: dict[str, Any]) -> list[Sheet]:
    columns = ("problem", "method", "PSNR [dB]", "SSIM", "seconds", "peak memory [MB]")
    rows = [
        (row["problem"], row["method"], number(row["psnr"], 2), number(row["ssim"], 4), number(row["seconds"], 1),
         number(row["peak_memory_mb"], 0))
        for row in found["rows"]
    ]  # fmt: skip
    return [Sheet("", columns, rows)]


def uncertainty(found: dict[str, Any]) -> list[Sheet]:
    columns = ("intervals about", "factor on std", "coverage", "spread of skies", "lowest sky", "pixels with a source",
               "correlation of std and error", "of ranks", "SNR [dB]")  # fmt: skip
    rows = []
    for row in found["rows"]:
        for kind, name in (("raw", "as they come"), ("calibrated", "calibrated")):
            part = row[kind]
            seen = (f"{part[key]:.1%}" for key in ("mean", "spread", "lowest", "bright"))
            beside = (number(row[key], 2) for key in ("correlation", "rank_correlation"))
            rows.append((f"{row['centre']}, {name}", number(part["factor"], 2), *seen, *beside, number(row["snr"], 1)))
    for row in found.get("apart", []):
        factors = " / ".join(number(row["factors"][key], 2) for key in ("sources", "sky"))
        seen = (f"{row[key]:.1%}" for key in ("mean", "spread", "lowest", "bright"))
        rows.append((f"{row['centre']}, calibrated, sources apart", factors, *seen, "-", "-", "-"))
    title = (
        f"{found['level']:.0%} intervals of {found['skies']} skies, {found['side']} x {found['side']}, calibrated on "
        f"{found['calibration']} others"
    )
    cost = (f"{found['samples']}", number(found["ess"], 1), number(found["smallest_ess"], 1), number(found["rhat"], 3),
            number(found["rhat_std"], 3), number(found["seconds"], 1))  # fmt: skip
    columns_of_cost = ("draws of a sky", "independent", "least of a sky", "split R-hat", "of std", "seconds a sky")
    again = [(centre, f"{part['mean']:.1%}", f"{part['spread']:.1%}") for centre, part in found["splits"].items()]
    divided = f"Calibrated coverage over {next(iter(found['splits'].values()))['count']} random divisions of all skies"
    return [
        Sheet(title, columns, rows),
        Sheet(divided, ("about", "mean", "spread of a test"), again),
        Sheet("", columns_of_cost, [cost]),
    ]


TABLES: dict[str, Callable[[dict[str, Any]], list[Sheet]]] = {
    "demo": demo,
    "denoise": denoise,
    "inpaint": inpaint,
    "lofi": lofi,
    "memory": memory,
    "sharing": sharing,
    "toeplitz": toeplitz,
    "uncertainty": uncertainty,
    **continuous_tables.TABLES,
    **massmap_tables.TABLES,
    **operator_tables.TABLES,
    **prior_tables.TABLES,
    **radio_data_tables.TABLES,
    **radio_tables.TABLES,
    **recipe_tables.TABLES,
    **scaling_tables.TABLES,
    **solver_tables.TABLES,
    **zoom_tables.TABLES,
}


def block(name: str, folder: Path) -> str | None:
    """The text between the markers, or None without results."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    parts = [sheet.markdown() for sheet in TABLES[name](found)]
    sources = [f"{key}: {value['source']}." for key, value in found.get("reference", {}).items() if "source" in value]
    if "machine" in found:
        sources.append(f"Measured on {machine_line(found['machine'])}.")
    return "\n\n".join(parts + ([" ".join(sources)] if sources else [])) + "\n"


def refresh(text: str, folder: Path) -> str:
    """The text with its tables made anew.

    :raises KeyError: for a marker of a name that no table has.
    """

    def replace(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise KeyError(f"no table named {match[2]!r}; there are {', '.join(TABLES)}")
        body = block(match[2], folder)
        if body is None:
            print(f"no results of {match[2]!r} in {folder}: its table stays", file=sys.stderr)
            return match[0]
        return f"{match[1]}{body}{match[3]}"

    return BLOCK.sub(replace, text)


def _eps(eps: float | None) -> str:
    return "default" if eps is None else f"{eps:g}"


def main() -> None:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.table", description=__doc__,
        epilog="example: python -m benchmarks.table --check", formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("--check", action="store_true", help="change nothing; status 1 if a file would change")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON (benchmarks/results)")
    args = made.parse_args()
    stale = False
    for path in (path for path in FILES if path.is_file()):
        before = path.read_text(encoding="utf-8")
        after = refresh(before, args.results)
        if after == before:
            continue
        stale = True
        if not args.check:
            path.write_text(after, encoding="utf-8")
        print(f"{path.relative_to(ROOT)} {'is out of date' if args.check else 'written'}")
    raise SystemExit(1 if args.check and stale else 0)


if __name__ == "__main__":
    main()
