"""The table of benchmarks.ldct."""

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
        cost = (f"{known['parameters']:,}", str(known["steps"]), number(known["seconds"], 0)) if known else ("-",) * 3
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


TABLES = {"ldct": ldct}
