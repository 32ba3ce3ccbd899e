"""The tables of benchmarks.massmap and benchmarks.transpose."""

from typing import Any

from benchmarks.sheet import Sheet, number


def massmap(found: dict[str, Any]) -> list[Sheet]:
    columns = ("sky and noise", "map", "RMSE", "Pearson r")
    rows = [(r["case"], r["map"], f"{r['rmse']:.5f}", number(r["r"], 3)) for r in found["rows"]]
    rows += [("quoted", name, "-", number(r, 2)) for name, r in found["quoted"]["r"].items()]
    sheets = [Sheet("Inside the mask, means removed; the mean over the maps of a case", columns, rows)]
    if (modes := found.get("cosmos")) is not None:
        names = {"": "LoFi", " Wiener": "Wiener", " smoothed 6": "KS + Gaussian 6 pixels"}
        rows = [
            (
                title,
                f"{modes['E' + key]:.5f}",
                f"{modes['B' + key]:.5f}",
                number(modes["E" + key] / modes["B" + key], 2),
            )
            for key, title in names.items()
        ]
        sheets.append(Sheet("", ("real COSMOS, rms on the mask", "E mode", "B mode", "E / B"), rows))
    rows = [(name, f"{n['parameters']:,}", str(n["steps"]), f"`{n['command']}`")
            for name, n in found["networks"].items()]  # fmt: skip
    return [*sheets, Sheet("", ("network", "parameters", "steps", "trained with"), rows)]


def transpose(found: dict[str, Any]) -> list[Sheet]:
    kinds = list(next(iter(found["psnr"].values())))
    names = [f"{kind} ({'in' if k == 0 else 'out of'} distribution)" for k, kind in enumerate(kinds)]
    rows = []
    for name, row in found["psnr"].items():
        network, beside = found["networks"][name], found["misplaced"].get(name)
        cells = (number(row[kind], 2) for kind in kinds)
        rows.append((name, f"{network['parameters']:,}", f"{network['steps']} x {network['objects']}", *cells,
                     number(beside, 2)))  # fmt: skip
    side = f"PSNR [dB] of the transposed image, {found['side']} x {found['side']}"
    columns = ("network", "parameters", "steps x images", *names, "looks beside [pixel]")
    return [Sheet(side, columns, rows)]


TABLES = {"massmap": massmap, "transpose": transpose}
