"""What the commands share: options, words as numbers, and what is told at the end."""

import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pnp_lofi.files import write_json
from pnp_lofi.version import __version__

console = Console()
Out = Annotated[Path, typer.Option("-o", "--out", help="Where to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Prior = Annotated[str, typer.Option(help="A shipped prior's name, or the path of a checkpoint.")]
Precision = Annotated[
    Literal["float32", "bfloat16", "auto"], typer.Option(help="Of the prior; auto: bfloat16 where it costs nothing.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that ctrl-C or a crash leaves beside OUT.")]
Iterations = Annotated[int, typer.Option(help="Iterations at most.")]


def example(text: str) -> str:
    """The help's last paragraph."""
    return f"[bold]Example[/bold]: {text}"


UNITS = {  # [arcsec]; the longest ending that fits counts
    "": 1.0, "as": 1.0, "arcsec": 1.0, "mas": 1e-3, "uas": 1e-6, "arcmin": 60.0, "deg": 3600.0,
}  # fmt: skip
N = TypeVar("N", int, float)


def angle(text: str, name: str) -> float:
    """An angle > 0 in arcsec, from a number and, if wanted, a unit: 2.5, 2uas, 5mas, 0.1arcmin, 1deg.

    :param str name: of the option, for the error.
    :raises ValueError: for anything else.
    """
    number = text.strip().lower().replace("µ", "u").replace("μ", "u")
    unit = max((u for u in UNITS if number.endswith(u)), key=len)
    try:
        value = float(number.removesuffix(unit)) * UNITS[unit]
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{name} takes arcsec, or a number and one of {', '.join(filter(None, UNITS))}; got {text!r}")
    return value


def two(text: str, what: str, kind: Callable[[str], N]) -> tuple[N, N]:
    """Two numbers with a comma between.

    :param str what: the option and what it takes, for the error.
    :raises ValueError: for anything else.
    """
    try:
        first, second = (kind(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"{what}: expected two numbers with a comma between, got {text!r}") from None
    return first, second


def numbers(text: str, name: str) -> tuple[int, ...]:
    """Whole numbers with commas between.

    :raises ValueError: for anything else.
    """
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"{name} takes whole numbers with commas between, such as 0,3; got {text!r}") from None


def finish(out: Path, report: dict[str, Any], overwrite: bool) -> None:
    """Write the JSON beside the picture and print the figures."""
    about = {"pnp_lofi": __version__, "command": shlex.join(["pnp-lofi", *sys.argv[1:]])}
    write_json(out.with_suffix(".json"), about | report, overwrite=overwrite)
    table = Table(show_header=False)
    for key, value in report.items():
        if value not in (None, {}):
            table.add_row(key, f"{value:.4g}" if isinstance(value, float) else escape(str(value)))
    console.print(table)
