"""The table of benchmarks.continuous."""

from typing import Any

from benchmarks.sheet import Sheet, number

NAMES = {"derivatives": "all derivatives", "sparse": "largest 20 % of them", "ct": "CT, angles within 70 degrees"}


def continuous(found: dict[str, Any]) -> list[Sheet]:
    results, made = found["results"], found["generator"]
    runs = list(results)
    columns = ["problem", "method", *(part for run in runs for part in (f"{run}: SNR", "shifted"))]
    rows = []
    for name, first in results[runs[0]]["problems"].items():
        for method, row in first.items():
            cells = []
            for run in runs:
                one = results[run]["problems"][name][method]
                cells += [number(one["snr"], 1), number(one["shifted snr"], 1)]
            rows.append((NAMES[name], method, *cells, number(row["seconds"], 0)))
            if method == "generator":
                alone = [results[run]["problems"][name][method].get("snr of z alone") for run in runs]
                cells = [cell for value in alone for cell in (number(value, 1), "-")]
                rows.append((NAMES[name], "generator, z alone", *cells, "-"))
    title = f"One image of each, SNR [dB]; data of {results[runs[0]]['snr']:g} dB"
    sheets = [Sheet(title, (*columns, f"seconds ({runs[0]}; the machine was busy)"), rows)]
    most = [(f"{run}: bicubic from {made['size']} x {made['size']}, SNR [dB]", number(results[run]["ceiling"], 1))
            for run in runs if results[run]["ceiling"] is not None]  # fmt: skip
    figures = made["metrics"]
    rows = [
        ("trained on", made["trained_on"]),
        ("pixels, numbers of a z", f"{made['size']} x {made['size']}, {made['latent']}"),
        ("parameters", ", ".join(f"{name} {count:,}" for name, count in made["parameters"].items())),
        ("auto-encoder", f"{made['steps']} steps, {number(made['seconds'], 0)} s"),
        ("held-out heads reconstructed, PSNR [dB]", number(figures["held-out PSNR"], 1)),
        ("steps over the paper's in the table above", f"{results[runs[0]]['effort']:g}"),
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
