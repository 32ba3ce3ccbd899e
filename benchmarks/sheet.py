"""Tables of text, and how their numbers are written."""

from collections.abc import Sequence
from typing import NamedTuple


class Sheet(NamedTuple):
    """A table of text."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        lines = [f"**{self.title}**", ""] if self.title else []
        lines += [_line(self.columns), _line(("---", *("---:" for _ in self.columns[1:])))]
        return "\n".join(lines + [_line(row) for row in self.rows])


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def times(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"
