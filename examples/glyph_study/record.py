"""The sweep's raw results: a JSON-lines file, one row per finished run, written as it finishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def load(path: Path) -> list[Row]:
    """The rows of a file that may not exist yet; a last line that was cut off does not count."""
    if not path.exists():
        return []
    rows = []
    lines = path.read_text().split("\n")
    for number, line in enumerate(lines):
        try:
            if line:
                rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines) - 1:
                raise
    return rows


class Record:
    """A file of rows that only grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = load(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Rewritten once, so that what follows a cut line starts on its own.
        path.write_text("".join(_line(row) for row in self.rows))

    def add(self, row: Row) -> Row:
        with self.path.open("a") as file:
            file.write(_line(row))
        self.rows.append(row)
        return row

    def find(self, **wanted: Any) -> Row | None:
        """The row with all these values, if there is one."""
        return next(iter(where(self.rows, **wanted)), None)


def where(rows: list[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row.get(k) == v for k, v in wanted.items())]


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"
