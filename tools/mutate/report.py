"""The results, mutant by mutant: a CSV that later runs add to."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

KILLED, SURVIVED = "killed", "survived"
NO_DEVICE, BROKEN = "needs a device", "not tested"


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
    for status in (SURVIVED, NO_DEVICE, BROKEN):
        if status in statuses:
            text += f", {statuses.count(status)} {status}"
    return text
