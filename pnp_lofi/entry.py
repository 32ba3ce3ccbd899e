"""How a command line starts: an error of the user's is one line, not a traceback."""

import sys
import warnings
from collections.abc import Callable
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape


def start(app: Callable[[], Any]) -> None:
    """Call a typer application. Exit codes: 2 for an error, 130 for ctrl-C."""
    warnings.showwarning = _show_warning
    try:
        app()
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError, RuntimeError) as error:
        text = escape(" ".join(str(error).split()))
        Console(stderr=True).print(f"[red]error[/red]: {text}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:  # typer makes the latter of the former
        if isinstance(stop, SystemExit) and stop.code != 130:
            raise
        Console(stderr=True).print("interrupted; where a state was kept, the same command with --resume goes on")
        sys.exit(130)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning without the source line that it came from."""
    Console(stderr=True).print(f"[yellow]warning[/yellow]: {escape(str(message))}", highlight=False, soft_wrap=True)
