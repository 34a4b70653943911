"""Where a run goes on after it was stopped: one file per rank and saved step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from . import ranks

_NAME = re.compile(r"step_(\d+)_rank_(\d+)_of_(\d+)\.pt")


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """This rank's state before a step; older ones go when all ranks have this one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step}_rank_{ranks.rank()}_of_{ranks.count()}.pt"
    hidden = folder / f".{path.name}"
    torch.save(state, hidden)
    hidden.replace(path)
    ranks.barrier()
    for other in folder.glob("step_*.pt"):
        match = _NAME.fullmatch(other.name)
        if match and int(match[1]) < step and int(match[2]) == ranks.rank():
            other.unlink(missing_ok=True)


def last(folder: Path) -> int | None:
    """The latest step that every rank has saved.

    Raises:
        ValueError: another number of ranks saved it.
    """
    steps: dict[int, set[int]] = {}
    for path in folder.glob("step_*.pt"):
        match = _NAME.fullmatch(path.name)
        if match:
            if int(match[3]) != ranks.count():
                raise ValueError(
                    f"{path} is of {match[3]} ranks, and this run has {ranks.count()}: resume with "
                    "as many, or give another --output"
                )
            steps.setdefault(int(match[1]), set()).add(int(match[2]))
    whole = [step for step, found in steps.items() if len(found) == ranks.count()]
    return max(whole, default=None)


def load(folder: Path, step: int) -> dict[str, Any]:
    path = folder / f"step_{step}_rank_{ranks.rank()}_of_{ranks.count()}.pt"
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
