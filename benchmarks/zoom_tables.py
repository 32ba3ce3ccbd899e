"""Tables of super-resolution and derivatives."""

from typing import Any

from benchmarks.sheet import Sheet, number


def superres(found: dict[str, Any]) -> list[Sheet]:
    counts, rows = found["counts"], []
    columns = [("Set12", f"x{f}") for f in (2, 4, 8)] + [("photographs", "x4"), ("out of distribution", "x2")]
    for name, row in found["rows"].items():
        about = ("-", "-", "-")
        if "parameters" in row:
            about = (row["mode"], f"{row['parameters']:,}", f"{row['steps']}")
        pairs = (row[kind][factor] for kind, factor in columns)
        cells = (f"{number(p['snr'], 2)} ({number(p['scale_invariant'], 2)})" for p in pairs)
        rows.append((name, *about, *cells, number(row["seconds_100"], 1)))
    names = tuple(f"{kind} ({counts[kind]}), {factor}" for kind, factor in columns)
    title = (
        f"SNR [dB] (scale-invariant SNR), images of up to {found['seen']} x {found['seen']}; networks but the "
        f"shipped one trained for about {found['minutes']:g} minutes of one processor each"
    )
    head = ("method", "mode", "parameters", "steps", *names, "100 images 64^2 -> 128^2 [processor s]")
    return [Sheet(title, head, rows)]


def derivatives(found: dict[str, Any]) -> list[Sheet]:
    keys = ("value", "gradient", "laplacian")
    sides = list(next(iter(found["rows"].values())))
    rows = [(name, *(number(row[side][key], 1) for side in sides for key in keys))
            for name, row in found["rows"].items()]  # fmt: skip
    published = found["reference"]["FunkNN (published)"]
    rows.append(
        ("FunkNN (published)", *("-" for _ in keys for _ in sides[1:]), *(number(published[k], 1) for k in keys))
    )
    title = f"SNR [dB] of {found['count']} random Gaussians on n x n pixels, {found['places']} places each"
    head = tuple(f"{key}, n = {side}" for side in sides for key in keys)
    return [Sheet(title, ("method", *head), rows)]


TABLES = {"derivatives": derivatives, "superres": superres}
