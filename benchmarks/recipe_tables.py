"""The tables of benchmarks.ldct, benchmarks.denoising and benchmarks.growth."""

from typing import Any

from benchmarks.sheet import Sheet, number


def ldct(found: dict[str, Any]) -> list[Sheet]:
    quality, about = found["quality"], {row["network"]: row for row in found["rows"]}
    names = list(next(iter(quality.values())))
    columns = (
        "method",
        "parameters",
        "steps",
        "processor [s]",
        *(f"{kind} ({found['count'][kind]})" for kind in quality),
    )
    rows = []
    for name in names:
        figures = [row[name] for row in quality.values()]
        cells = (
            f"{number(f['psnr']['mean'], 2)} ({number(f['psnr']['std'], 1)}), {number(f['ssim']['mean'], 3)}"
            for f in figures
        )
        known = about.get(name)
        cost = (
            (
                f"{known['parameters']:,}",
                str(known["steps"]),
                "-" if known["seconds"] is None else number(known["seconds"], 0),
            )
            if known
            else ("-",) * 3
        )
        rows.append((name, *cost, *cells))
    title = (
        f"PSNR [dB] (spread over images), SSIM; trained for about {found['seconds']:g} s of one processor "
        f"each on {found['training_images']} procedural chests"
    )
    quoted = found["reference"]["Quoted"]
    paper = [
        (f"{name} (quoted)", *(f"{number(quoted[kind][name][0], 1)}, {number(quoted[kind][name][1], 2)}"
                               for kind in ("chest", "brain")))
        for name in quoted["chest"]
    ]  # fmt: skip
    sharp = [
        (name, number(row["mtf50"], 3), number(row["mtf10"], 3), number(row["noise"], 1))
        for name, row in found["sharpness"].items()
    ]
    return [
        Sheet(title, columns, rows),
        Sheet("The paper's", ("method", "chest", "brain, out of distribution"), paper),
        Sheet(
            "Edge of an insert of 300 HU in water, and noise in water, 3 mm pixels",
            ("method", "MTF 50 % [1/mm]", "MTF 10 % [1/mm]", "noise [HU]"),
            sharp,
        ),
    ]


def denoising(found: dict[str, Any]) -> list[Sheet]:
    tiny, large = found["tiny"], found["large"]
    rows = []
    for name, curve in tiny["curves"].items():
        best = max(curve["psnr"])
        at = curve["steps"][curve["psnr"].index(best)]
        rows.append((name, f"{curve['parameters']:,}", f"{curve['steps'][-1]:.0f}", f"{number(best, 2)} ({at:.0f})",
                     number(curve["psnr"][-1], 2), number(curve["psnr"][-1] - best, 2),
                     number(curve["seen"][-1], 2)))  # fmt: skip
    title = f"Nine photographs of {tiny['side']} x {tiny['side']}, one draw of noise of {tiny['sigma']:g}; PSNR [dB]"
    columns = (
        "network",
        "parameters",
        "steps",
        "held out: best (at step)",
        "held out: last",
        "last - best",
        "trained on: last",
    )
    sheets = [Sheet(title, columns, rows)]
    kinds = list(large["noisy"])
    names = [f"{kind} ({'in' if k == 0 else 'out'})" for k, kind in enumerate(kinds)]
    rows = [("what is seen", "-", "-", *(number(large["noisy"][kind], 2) for kind in kinds))]
    rows += [(name, f"{row['parameters']:,}", str(row["steps"]), *(number(row["psnr"][kind], 2) for kind in kinds))
             for name, row in large["networks"].items()]  # fmt: skip
    title = (
        f"{large['side']} x {large['side']}, sigma {large['sigma']:g}; trained for {large['minutes']:g} minutes of one "
        "core each on crops of photographs; PSNR [dB], in and out of distribution"
    )
    return [*sheets, Sheet(title, ("network", "parameters", "steps", *names), rows)]


def growth(found: dict[str, Any]) -> list[Sheet]:
    sheets = []
    for kind, title in (("training", "A training step"), ("answering", "An answer")):
        if kind not in found:
            continue
        sides = sorted({row["side"] for rows in found[kind].values() for row in rows})
        rows = []
        for name, measured in found[kind].items():
            by = {row["side"]: row for row in measured}
            cells = []
            for side in sides:
                row = by.get(side)
                if row is None:
                    cells.append("-")
                elif row["seconds"] is None:
                    cells.append("too slow" if row["why"] == "time" else f"> {found['gigabytes']:g} GB")
                else:
                    cells.append(f"{row['mb'] - found['imports_mb']:.0f} MB, {number(row['seconds'], 3)} s")
            rows.append((name, *cells))
        images = f"{found['batch']} image{'s' * (found['batch'] > 1)}"
        drawn = f"; LoFi draws {found['pixels']} pixels, the others see all" if kind == "training" else ""
        images += f", {found['growth_threads']} threads"
        head = f"{title}, {images}, float32: memory above the imports' {found['imports_mb']:.0f} MB, time{drawn}"
        sheets.append(Sheet(head, ("network", *(f"{side} x {side}" for side in sides)), rows))
    rows = [(f"{row['size']}, {row['parameters']:,} parameters, {row['precision']}", f"{row['pixels_per_s'] / 1e3:.1f}",
             number(row["flops"] / row["seconds"] / 1e9, 0), number(row["matmul_rate"] / 1e9, 0),
             f"{100 * row['share']:.0f} %") for row in found.get("throughput", [])]  # fmt: skip
    columns = ("LoFi", "thousand pixels/s", "GFLOP/s", "matrix product, GFLOP/s", "share")
    title = f"Training LoFi, 64 images x 512 pixels a step, {found.get('throughput_threads')} threads"
    return [*sheets, *([Sheet(title, columns, rows)] if rows else [])]


TABLES = {"ldct": ldct, "denoising": denoising, "growth": growth}
