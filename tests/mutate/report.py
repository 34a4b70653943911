"""The results, mutant by mutant: a CSV that later runs add to, and a Markdown table of it."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .mutant import Mutant

KILLED, SURVIVED = "killed", "survived"
NO_DEVICE, BROKEN, NOT_RUN = "needs a device", "not tested", "not run"


@dataclass(frozen=True)
class Row:
    name: str
    status: str
    by: str  #: the test that failed first, or what is wrong
    seconds: str  #: build and tests


def read(path: Path) -> dict[str, Row]:
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {line["name"]: Row(**line) for line in csv.DictReader(file)}


def add(path: Path, row: Row) -> None:
    """At once, so that a run that is cut short leaves what it knows; read first, so that runs on
    two trees may share the file."""
    rows = {**read(path), row.name: row}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(r) for r in rows.values())


def count(rows: Iterable[Row]) -> str:
    statuses = [row.status for row in rows]
    text = f"{statuses.count(KILLED)} of {len(statuses)} mutants killed"
    for status in (SURVIVED, NO_DEVICE, BROKEN, NOT_RUN):
        if status in statuses:
            text += f", {statuses.count(status)} {status}"
    return text


def markdown(mutants: Iterable[Mutant], rows: dict[str, Row]) -> str:
    """A table of all mutants, those without a result among them."""
    table = [(m, rows.get(m.name, Row(m.name, NOT_RUN, "", ""))) for m in mutants]
    lines = [
        "# Mutation testing",
        "",
        "`make mutate` puts one bug at a time into a copy of the sources and runs the tests of",
        '`make test` that ought to notice. Written by `make mutate MUTATE="--output FILE"`.',
        "",
        f"**{count(row for _, row in table)}.**",
        "",
        "| mutant | file | fault | outcome | by | s |",
        "| ------ | ---- | ----- | ------- | -- | -: |",
    ]
    for m, row in table:
        by = f"`{row.by}`" if row.by else ""
        cells = [m.name, f"`{m.file}`", m.fault, row.status, by, row.seconds]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
