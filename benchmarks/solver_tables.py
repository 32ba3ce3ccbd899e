"""The tables of benchmarks.solvers."""

from typing import Any

from benchmarks.sheet import Sheet, number


def solvers(found: dict[str, Any]) -> list[Sheet]:
    rows = []
    for row in found["operators"]:
        methods = row["methods"]
        best = max(method["psnr"] for name, method in methods.items() if name.startswith("LoFi"))
        cells = [row["operator"], str(row["images"])]
        for name, method in methods.items():
            text = f"{number(method['psnr'], 2)} ({number(method['seconds'], 1)} s)"
            if "gain" in method:
                text += f", {-method['gain']:+.2f}"
            cells.append(f"**{text}**" if name.startswith("LoFi") and method["psnr"] == best else text)
        rows.append(tuple(cells))
    names = ("operator", "images", *(_named(name, found) for name in found["operators"][0]["methods"]))
    title = f"Mean PSNR [dB] of the three-line program, {found['side']} x {found['side']}, and seconds an image"
    curves = [
        (row["image"], str(row["side"]),
         *(f"{number(row[m]['psnr'], 2)} ({number(row[m]['seconds'], 1)} s)" for m in ("as published", "untuned")))
        for row in found["resolution"]
    ]  # fmt: skip
    keep = f"{100 * found['keep']:g} % of the pixels"
    published = "as published: sigma .15, alpha .05, 90 iterations"
    return [
        Sheet(title, names, rows),
        Sheet(f"PSNR [dB] from {keep}, one prior", ("image", "side", published, "untuned"), curves),
    ]


def stability(found: dict[str, Any]) -> list[Sheet]:
    rows = [
        ("none" if row["theta"] == 1 else f"theta {row['theta']:g}", f"{row['residual']:.1e}", number(row["psnr"], 2),
         number(row["default_psnr"], 2), number(row["lipschitz"], 2), number(row["lipschitz_residual"], 2))
        for row in found["stability"]
    ]  # fmt: skip
    columns = ("averaging", "residual after 200", "PSNR then", "PSNR after 50", "||J||", "||d(x - D)||")
    return [Sheet("ADMM on 40 spokes of Fourier space, and the prior's derivative where it ended", columns, rows)]


def _named(name: str, found: dict[str, Any]) -> str:
    method = found["operators"][0]["methods"][name]
    if "strength" not in method:
        return name
    how = "HQS (deepinv's, 1 image" if name == "BM3D" else "ADMM (deepinv's, strength searched"
    return f"{name} in {how}), against LoFi's ADMM"


TABLES = {"solvers": solvers, "stability": stability}
