"""What the benchmarks share: the machine, clocks, memory, data, tables and JSON."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from pnp_lofi.files import write_json
from pnp_lofi.images import load_image

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATA = ROOT.parent / "shared" / "data"
PACKAGES = ("torch", "deepinv", "finufft", "numpy", "pnp_lofi")


class Measured(NamedTuple):
    """What a function returned in a process of its own, and that process's peak memory [MB]."""

    value: Any
    peak_mb: float


def parser(description: str | None, name: str, *, data: bool = False) -> argparse.ArgumentParser:
    """Options that every benchmark has; the help ends with an example."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        epilog=f"example: python -m benchmarks.{name} --threads 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--threads", type=int, help="of torch and finufft; default: torch's own choice")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON (benchmarks/results)")
    if data:
        made.add_argument("--data", type=Path, default=DATA, help="folder of the real data (../shared/data)")
    return made


def start(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line and set the number of threads."""
    args = made.parse_args()
    if args.threads is not None:
        if args.threads < 1:
            made.error(f"--threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    return args


def need(*paths: Path) -> None:
    """End with status 0 and a word if real data are not here."""
    for path in paths:
        if not path.exists():
            print(f"skipped: the data are not here ({path}); name their folder with --data", file=sys.stderr)
            raise SystemExit(0)


def machine() -> dict[str, Any]:
    """The device, processor, threads and versions that figures belong to."""
    return {
        "device": "cpu",
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bfloat16": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "date": datetime.now(UTC).date().isoformat(),
    }


def cpu_model() -> str:
    """Name of the processor, as /proc/cpuinfo has it on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine_line(found: dict[str, Any]) -> str:
    """One line for the foot of a table."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    processor = f"{found['device']}: {found['cpu']}, {found['threads']} threads on {found['cores']} cores"
    return f"{processor}; {versions}; {found['date']}"


def timed(call: Callable[[], Any], *, repeats: int = 5, warm_up: int = 1) -> float:
    """Wall clock of the fastest of n calls [s], after calls that are not counted."""
    for _ in range(warm_up):
        call()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def peak_memory_of(function: Callable[..., Any], *args: Any) -> Measured:
    """Call a function of a module in a fresh process and read that process's peak resident memory.

    :param Callable function: at the top level of its module; args and result are JSON values.
    :raises RuntimeError: if the process fails; its own message has gone to stderr.
    """
    module = function.__module__
    if module == "__main__":
        spec = sys.modules["__main__"].__spec__
        module = spec.name if spec else module
    code = (
        f"import json, sys, torch; torch.set_num_threads({torch.get_num_threads()}); "
        f"from {module} import {function.__name__} as call; from pnp_lofi.memory import peak_memory_mb; "
        "print(json.dumps([call(*json.loads(sys.argv[1])), peak_memory_mb()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(args)], stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{function.__name__}{args} ended with status {done.returncode} in a process of its own")
    return Measured(*json.loads(done.stdout.splitlines()[-1]))


def set12(data: Path, count: int | None = None) -> dict[str, Tensor]:
    """The grey test images of the denoising literature, (1, 1, H, W) in [0, 1], seven of 256^2 and five of 512^2."""
    need(data / "natural" / "set12")
    paths = sorted((data / "natural" / "set12").glob("*.png"))
    return {path.stem: load_image(path, grey=True) for path in paths[:count]}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def write_result(name: str, payload: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write FOLDER/NAME.json: the machine, then the payload."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    write_json(path, {"benchmark": name, "machine": machine()} | payload, overwrite=True)
    return path


def report(name: str, payload: dict[str, Any], folder: Path = RESULTS) -> None:
    """Print the tables that the docs show, and write the JSON they are made from."""
    from benchmarks.sheet import Sheet
    from benchmarks.table import TABLES

    path = write_result(name, payload, folder)
    console = Console(width=None if sys.stdout.isatty() else 180)
    sheets: list[Sheet] = TABLES[name](json.loads(path.read_text()))
    for sheet in sheets:
        table = Table(title=escape(sheet.title), title_justify="left", box=box.SIMPLE_HEAD)
        for k, column in enumerate(sheet.columns):
            table.add_column(escape(column), justify="right" if k else "left")
        for row in sheet.rows:
            table.add_row(*map(escape, row))
        console.print(table)
    print(machine_line(machine()))
    print(f"written: {path}")
