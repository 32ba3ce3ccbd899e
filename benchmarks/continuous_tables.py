"""The table of benchmarks.continuous."""

from typing import Any

from benchmarks.sheet import Sheet, number

NAMES = {"derivatives": "all derivatives", "sparse": "largest 20 % of them", "ct": "CT, angles within 70 degrees"}


def continuous(found: dict[str, Any]) -> list[Sheet]:
    results, made = found["results"], found["generator"]
    runs = list(results)
    columns = ["problem", "method", *(part for run in runs for part in (f"{run}: SNR", "shifted"))]
    rows = []
    for name in results[runs[0]]["problems"]:
        parts = {run: results[run]["problems"][name] for run in runs}
        for method in dict.fromkeys(method for part in parts.values() for method in part):
            there = [parts[run].get(method) for run in runs]
            cells = ["-" if one is None else number(one[key], 1) for one in there for key in ("snr", "shifted snr")]
            seconds = next(one["seconds"] for one in there if one is not None)
            rows.append((NAMES[name], method, *cells, number(seconds, 0)))
            if method == "generator":
                alone = [number(one["snr of z alone"], 1) for one in there if one is not None]
                rows.append((NAMES[name], "generator, z alone", *(c for one in alone for c in (one, "-")), "-"))
    title = f"Means of SNR [dB]; data of {found['snr']:g} dB"
    sheets = [Sheet(title, (*columns, f"seconds ({runs[0]}; last: 128)"), rows)]
    most = [(f"{run}: {field} from {made['size']} x {made['size']}, SNR [dB]", number(value, 1))
            for run in runs for field, value in (results[run]["ceiling"] or {}).items()]  # fmt: skip
    figures = made["metrics"]
    rows = [
        ("trained on", made["trained_on"]),
        ("pixels, numbers of a z", f"{made['size']} x {made['size']}, {made['latent']}"),
        ("parameters", ", ".join(f"{name} {count:,}" for name, count in made["parameters"].items())),
        ("auto-encoder", f"{made['steps']} steps, {number(made['seconds'], 0)} s"),
        ("held-out heads reconstructed, PSNR [dB]", number(figures["held-out PSNR"], 1)),
        ("steps over the paper's in the table above", f"{found['effort']:g}, with FunkNN {found['funknn_effort']:g}"),
        ("flow, -log p per number [nat]: trained on, held out",
         f"{number(figures['flow, nats per number'], 2)}, {number(figures['flow, held out'], 2)}"),
        *most,
    ]  # fmt: skip
    quoted = found["reference"]["Quoted"]
    paper = [
        (what, name, ", ".join(number(value, 1) for value in values))
        for what, named in quoted.items()
        if isinstance(named, dict)
        for name, values in named.items()
    ]
    return [
        *sheets,
        Sheet("The generator", ("", "measured"), rows),
        Sheet(
            "The paper's (quoted), other images: do not compare",
            ("problem", "method", "SNR [dB], an image each"),
            paper,
        ),
    ]


TABLES = {"continuous": continuous}
