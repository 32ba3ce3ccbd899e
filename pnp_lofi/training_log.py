"""What a training run told, in a CSV file and for TensorBoard."""

import csv
import os
from pathlib import Path
from typing import Any


class Log:
    """OUT.csv, a line for each report: step, seconds and figures. Lines after the step that a run resumes from go.

    :param out: path of the checkpoint; int step: to go on from.
    :param bool tensorboard: also write the folder OUT.tb.
    :raises ImportError: if that is asked for and tensorboard is not installed.
    """

    def __init__(self, out: str | os.PathLike[str], step: int, *, tensorboard: bool = False) -> None:
        self.path = Path(f"{out}.csv")
        self.rows = [row for row in read_log(self.path) if row["step"] <= step] if step and self.path.is_file() else []
        self.columns: list[str] = []
        if self.rows:
            self._rewrite()
        else:
            self.path.unlink(missing_ok=True)
        self.board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError("--tensorboard needs it: pip install tensorboard") from error
            self.board = SummaryWriter(f"{out}.tb", purge_step=step or None)

    def write(self, step: int, figures: dict[str, float], seconds: float) -> None:
        row = {"step": float(step), "seconds": round(seconds, 3)} | figures
        self.rows.append(row)
        if set(row) - set(self.columns):
            self._rewrite()
        else:
            with self.path.open("a", newline="") as f:
                csv.DictWriter(f, self.columns).writerow(row)
        if self.board is not None:
            for name, value in figures.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()

    def _rewrite(self) -> None:
        """A column that comes later, such as a validation's, makes the file anew."""
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with self.path.open("w", newline="") as f:
            writer = csv.DictWriter(f, self.columns)
            if self.columns:
                writer.writeheader()
            writer.writerows(self.rows)


def read_log(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The rows of OUT.csv; figures that a row does not have are left out."""
    with Path(path).open(newline="") as f:
        return [{k: float(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(f)]
