"""What training says while it runs: a CSV file, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COLUMNS = (
    "step",
    "epoch",
    "learning_rate",
    "total",
    "cross_entropy",
    "distillation",
    "distillation_weight",
    # Of one batch in a hundred, medians and means over its rows:
    "group_size",
    "mass_teacher",
    "mass_student",
    "primary",
    "binary",
    "secondary",
)


class Scalars:
    """Rows of COLUMNS, then the accuracy on each verification set; what is not measured in a step
    stays empty."""

    def __init__(self, path: Path, first_step: int, sets: Iterable[str] = ()) -> None:
        kept = [row for row in read(path) if int(row["step"]) < first_step]
        self._file = path.open("w", newline="")
        # A resumed run keeps the columns that it had.
        columns = dict.fromkeys([*COLUMNS, *sets, *(kept[0] if kept else ())])
        self._writer = csv.DictWriter(self._file, list(columns))
        self._writer.writeheader()
        self._writer.writerows(kept)
        try:
            board = importlib.import_module("torch.utils.tensorboard")
        except ImportError:  # it is a package of its own
            self._board: Any = None
        else:
            self._board = board.SummaryWriter(str(path.with_suffix("")), purge_step=first_step)

    def add(self, row: dict[str, Any]) -> None:
        self._writer.writerow(row)
        self._file.flush()
        if self._board is not None:
            for name in row.keys() - {"step"}:
                self._board.add_scalar(name, row[name], row["step"])

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read(path: Path) -> list[dict[str, str]]:
    """The rows of the file, none where there is none; a line that was cut off is left out."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]
