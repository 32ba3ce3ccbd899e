"""The tables of benchmarks.priors, and the cards of docs/priors.md."""

from typing import Any

from benchmarks.sheet import Sheet, number


def denoise(found: dict[str, Any]) -> list[Sheet]:
    levels, rows = found["levels"], found["rows"]
    quoted = [(f"{name} (quoted)", "-", *(number(at[level], 2) for level in levels))
              for name, at in found["reference"].items()]  # fmt: skip
    ours = [(row["prior"], _count(row), *(number(row["set12"][level], 2) for level in levels))
            for row in rows if row["set12"]]  # fmt: skip
    title = f"PSNR [dB], mean of {found['images']} images of Set12; of ours one model for all levels"
    sheets = [Sheet(title, ("prior", "parameters", *levels), ours + quoted)]
    kinds = list(rows[0]["sets"])
    for level in found["matrix"]:
        cells = [(row["prior"], *(number(row["sets"].get(kind, {}).get(level), 2) for kind in kinds)) for row in rows]
        sheets.append(Sheet(f"PSNR [dB] at sigma {level} of the range, on held-out images", ("prior", *kinds), cells))
    return sheets


def study(found: dict[str, Any]) -> list[Sheet]:
    levels = [f"{round(255 * level)}/255" for level in found["levels"]]
    columns = ("what", *(f"held out, {n}" for n in levels), *(f"Set12, {n}" for n in levels))
    titles = {
        "training": f"PSNR [dB] of the former size S after {found['steps']} steps, one thing changed",
        "network": f"PSNR [dB] of other networks after {found['steps']} steps, trained as the first above",
        "afterwards": "PSNR [dB] with a finished prior",
    }
    return [
        Sheet(title, columns, [(_title(row), *(number(x, 2) for x in (*row["held_out"], *row["set12"])))
                               for row in found["rows"] if row["part"] == part])
        for part, title in titles.items()
    ]  # fmt: skip


def _title(row: dict[str, Any]) -> str:
    return row["title"] + (f"; {_count(row)} parameters" if "parameters" in row else "")


def recon(found: dict[str, Any]) -> list[Sheet]:
    names = found["problems"]
    best = {
        name: max((row["problems"][name]["psnr"] for row in found["rows"] if name in row["problems"]), default=None)
        for name in names
    }

    def cell(at: dict[str, float] | None, name: str) -> str:
        if at is None:
            return "-"
        text = f"{number(at['psnr'], 2)} ({number(at['seconds'], 1)} s)"
        return f"**{text}**" if at["psnr"] == best[name] else text

    rows = [(row["prior"], *(cell(row["problems"].get(name), name) for name in names)) for row in found["rows"]]
    side = found["side"]
    return [
        Sheet(
            f"ADMM with default parameters: mean PSNR or SNR [dB] at {side} x {side}, seconds", ("prior", *names), rows
        )
    ]


def steady(found: dict[str, Any]) -> list[Sheet]:
    def cell(at: dict[str, float] | None) -> str:
        if at is None:
            return "-"
        return f"{number(at['best'], 2)} at {at['at']}, {number(at['last'], 2)}, {at['change']:.0e}"

    names = found["problems"]
    rows = [(row["prior"], *(cell(row["problems"].get(name)) for name in names)) for row in found["rows"]]
    title = (
        f"{found['iterations']} iterations of ADMM: best PSNR or SNR [dB] and when, last, relative change of the last"
    )
    return [Sheet(title, ("prior", *names), rows)]


def speed(found: dict[str, Any]) -> list[Sheet]:
    rows = [(row["prior"], str(row["channels"]), _count(row), number(row["float32"], 3), number(row.get("bfloat16"), 3))
            for row in found["rows"]]  # fmt: skip
    title = f"Seconds for one image of {found['side']} x {found['side']}"
    return [Sheet(title, ("network", "channels", "parameters", "float32", "bfloat16"), rows)]


def cards(found: dict[str, Any]) -> list[Sheet]:
    return [Sheet("", (f"`{row['prior']}`", ""), _card(row)) for row in found["rows"]]


def _card(row: dict[str, Any]) -> list[tuple[str, str]]:
    header, worst = row["header"], row["failure"]
    settings, (low, high) = header.get("settings", {}), header["sigma_range"]
    measured = {name.removeprefix("held-out PSNR at "): value for name, value in header.get("metrics", {}).items()}
    metrics = ", ".join(f"{name}: {value:.2f} dB" for name, value in measured.items() if name.startswith("sigma"))
    rounding = ", ".join(f"{100 * rms:.2f} % of sigma at {sigma}" for sigma, rms in row["rounding"].items())
    failure = (
        f"of held-out crops of every kind, number {worst['number']} of {worst['kind']}: "
        f"{worst['gain']:+.1f} dB at sigma {worst['sigma']:g}"
    )
    return [
        ("network", f"{row['architecture']}, {_count(row)} parameters"),
        ("file", f"{row['bytes'] / 1e6:.2f} MB, {row['stored']}"),
        ("float16 changes the answer by", rounding),
        ("trained on", header.get("trained_on", "-")),
        ("command", f"`{header['command']}`" if header.get("command") else "-"),
        ("seed, steps", f"{settings.get('seed', '-')}, {settings.get('steps', '-')}"),
        ("noise range", f"{low:g} to {high:g}"),
        ("value range", " to ".join(f"{x:g}" for x in header.get("value_range", ("-",)))),
        ("held-out PSNR", metrics or "-"),
        ("gains least", failure),
        ("picture", f"![clean, noisy and denoised](images/{row['picture']})"),
    ]


def _count(row: dict[str, Any]) -> str:
    return f"{row['parameters']:,}" if "parameters" in row else "-"


TABLES = {
    "prior_study": study,
    "priors_denoise": denoise,
    "priors_recon": recon,
    "priors_steady": steady,
    "priors_speed": speed,
    "priors_cards": cards,
}
