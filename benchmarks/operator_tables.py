"""The tables of `python -m benchmarks.operators`."""

from collections.abc import Callable
from typing import Any

from benchmarks.sheet import Sheet, number, times


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else number(1e3 * seconds, 1)


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}"


def operators(found: dict[str, Any]) -> list[Sheet]:
    columns = ("operator", "adjoint, float64", "adjoint, float32", "A^H A against A, then A^H", "prox against CG",
               "steps of CG", "A [ms]", "A^H [ms]", "A^H A [ms]", "prox [ms]")  # fmt: skip
    rows = [
        (row["operator"], _small(row["adjoint_float64"]), _small(row["adjoint_float32"]), _small(row["normal"]),
         _small(row["prox"]), "closed form" if not row["steps"] else str(row["steps"]), _ms(row["A"]),
         _ms(row["A_adjoint"]), _ms(row["A_adjoint_A"]), _ms(row["prox_l2"]))
        for row in found["rows"]
    ]  # fmt: skip
    side = found["side"]
    return [Sheet(f"Exactness at 48 x 40 (relative errors), speed at {side} x {side} in float32", columns, rows)]


def ct(found: dict[str, Any]) -> list[Sheet]:
    columns = ("projector", "image", "error, lines", "error, means over a detector")
    rows = [(r["projector"], f"{r['size']}^2", f"{r['point']:.4f}", f"{r['bin']:.4f}") for r in found["accuracy"]]
    title = f"Shepp-Logan sinogram of {found['views']} views against the analytic one, relative L2"
    sheets = [Sheet(title, columns, rows)]
    columns = ("projector", "image, batch", "A [ms]", "A^H [ms]", "A + A^H [ms]", "over ours", "first FBP [ms]",
               "FBP [ms]", "over ours")  # fmt: skip
    rows = [
        (r["projector"], f"{r['size']}^2, {r['batch']}", _ms(r.get("forward")), _ms(r.get("adjoint")), _ms(r["pair"]),
         times(r["over_ours"]), _ms(r.get("fbp_first")), _ms(r["fbp"]), times(r["fbp_over_ours"]))
        for r in found["speed"]
    ]  # fmt: skip
    sheets.append(Sheet(f"{found['views']} views, per image", columns, rows))
    rows = [(r["projector"], f"{r['size']}^2, {r['batch']}", number(r["mb"], 0)) for r in found["memory"]]
    sheets.append(Sheet("", ("projector", "image, batch", "peak memory of A, A^H beyond imports [MB]"), rows))
    if found["gpu"]:
        names = tuple(found["gpu"][0])
        rows = [tuple(f"{v:.3g}" if isinstance(v, float) else str(v) for v in r.values()) for r in found["gpu"]]
        sheets.append(Sheet("256 x 256, 256 views, batch 128, on a GPU", names, rows))
    if "slices" in found:
        rows = [(r["fbp"], f"{r['slices']} ({r['count']})", number(r["psnr"], 2)) for r in found["slices"]]
        title = "FBP of real slices at 128 x 128, 180 views, noise of 30 dB (the paper's set-up)"
        sheets.append(Sheet(title, ("backprojection", "slices", "PSNR [dB]"), rows))
    if "low_dose" in found:
        low = found["low_dose"]
        rows = [(r["method"], number(r["psnr"], 2), number(r["seconds"], 2)) for r in low["rows"]]
        title = f"Chest slices at {low['size']} x {low['size']}, {found['views']} views, {low['photons']:g} photons"
        sheets.append(Sheet(title, ("method", "PSNR [dB]", "seconds"), rows))
    return sheets


def lensing(found: dict[str, Any]) -> list[Sheet]:
    simulated = [r for r in found["rows"] if "rmse" in r]
    columns = ("map", "shear", "RMSE", "Pearson r", "r, quoted", "seconds")
    rows = [
        (r["method"], r["case"], f"{r['rmse']:.5f}", number(r["r"], 3), number(r["published_r"], 2),
         number(r["seconds"], 2))
        for r in simulated
    ]  # fmt: skip
    quoted = [r for r in found["rows"] if r["case"] == "published"]
    rows += [(r["method"], "published", "-", "-", number(r["published_r"], 2), "-") for r in quoted]
    sheets = [Sheet("kappaTNG behind the COSMOS mask, 360 x 360, inside the mask, mean removed", columns, rows)]
    rows = [
        (r["method"], f"{r['correlation']:.9f}", f"{r['largest_difference']:.1g}" if "largest_difference" in r else "-",
         number(r["seconds"], 2))
        for r in found["rows"] if r["case"] == "real COSMOS"
    ]  # fmt: skip
    columns = ("real COSMOS", "correlation with the published map", "largest difference", "seconds")
    return [*sheets, Sheet("", columns, rows)]


def radio(found: dict[str, Any]) -> list[Sheet]:
    side = found["side"]
    rows = [
        (r["operator"], r["dtype"], f"{r['forward']:.1e}", f"{r['adjoint']:.1e}", f"{r['normal']:.1e}")
        for r in found["accuracy"]
    ]  # fmt: skip
    count = found["accuracy"][0]["visibilities"]
    title = f"Errors against the direct DFT, {side} x {side}, {count:,} visibilities"
    sheets = [Sheet(title, ("operator", "dtype", "A", "A^H", "A^H A"), rows)]
    rows = [
        (f"{r['visibilities']:,}", _ms(r["normal_seconds"]), _ms(r["prox_12_steps_seconds"]),
         f"{_ms(r['prox_seconds'])} ({r['steps']})", number(r["kernel_seconds"], 2))
        for r in found["prox"]
    ]  # fmt: skip
    columns = ("visibilities", "A^H A [ms]", "prox, 12 steps [ms]", "prox to 1e-4 [ms] (steps)", "kernel, once [s]")
    sheets.append(Sheet("A prox step does not depend on the number of visibilities", columns, rows))
    rows = [
        (r["operator"], _ms(r["normal_seconds"]), times(r["normal_ratio"]), _ms(r["prox_seconds"]),
         times(r["prox_ratio"]), _ms(r["prox_l2_seconds"]), times(r["prox_l2_ratio"]), str(r["steps"]),
         f"{r['error']:.1e}")
        for r in found["deepinv"]
    ]  # fmt: skip
    columns = ("operator", "A^H A [ms]", "deepinv's over it", "prox step [ms]", "deepinv's over it", "prox_l2 [ms]",
               "deepinv's over it", "steps", "error")  # fmt: skip
    sheets.append(
        Sheet(f"{side} x {side}, {found['deepinv'][0]['visibilities']:,} visibilities, float32", columns, rows)
    )
    rows = [
        (r["source"], f"{r['visibilities']:,}" if "visibilities" in r else "-",
         number(r["seconds"], 2) if "seconds" in r else "-", number(r["peak_mb"], 0))
        for r in found["streamed"]
    ]  # fmt: skip
    sheets.append(Sheet("Streamed", ("from", "visibilities", "seconds", "peak memory [MB]"), rows))
    dampings = list(dict.fromkeys(r["L_over_alpha"] for r in found["preconditioner"]))
    steps = {(r["coverage"], r["L_over_alpha"]): r for r in found["preconditioner"]}
    rows = [
        (name, *(f"{steps[name, d]['plain_steps']} -> {steps[name, d]['preconditioned_steps']}" for d in dampings))
        for name in dict.fromkeys(r["coverage"] for r in found["preconditioner"])
    ]
    columns = ("steps to 1e-4, plain -> preconditioned", *(f"L/alpha = {d:g}" for d in dampings))
    sheets.append(Sheet("", columns, rows))
    rows = [
        (r["weighting"], number(r["noise"], 2), number(r["fwhm_pixels"], 2), number(r["side_lobe"], 3))
        for r in found["weighting"]
    ]
    columns = ("MeerKAT, 4 h", "noise over natural", "beam [pixel]", "largest far side lobe")
    return [*sheets, Sheet("", columns, rows)]


TABLES: dict[str, Callable[[dict[str, Any]], list[Sheet]]] = {
    "ct": ct,
    "lensing": lensing,
    "operators": operators,
    "radio": radio,
}
