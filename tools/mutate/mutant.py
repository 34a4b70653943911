"""A seeded bug, and how it is put into a source file."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

KERNEL_PROGRAM = "gkd_kernel_test"
PYTEST = "tests/python"


@dataclass(frozen=True)
class Killer:
    """Tests that ought to fail: a GoogleTest program and filter, or what pytest is given."""

    text: str

    @property
    def program(self) -> str | None:
        """The GoogleTest program; None: pytest."""
        first = self.text.split()[0]
        return None if first.startswith(PYTEST) else first

    @property
    def arguments(self) -> list[str]:
        words = shlex.split(self.text)
        return words if self.program is None else [f"--gtest_filter={':'.join(words[1:])}"]


@dataclass(frozen=True)
class Mutant:
    """`old` occurs once in `file` and is replaced by `new`."""

    name: str
    fault: str  #: what goes wrong, and where it once did
    file: str
    old: str
    new: str
    by: tuple[str, ...]  #: killers, the quickest first

    @property
    def killers(self) -> list[Killer]:
        return [Killer(text) for text in self.by]

    @property
    def needs_device(self) -> bool:
        return any(killer.program == KERNEL_PROGRAM for killer in self.killers)

    def mutated(self, root: Path) -> str:
        """The file's text with the bug in it; ValueError where `old` is not there just once."""
        text = (root / self.file).read_text()
        found = text.count(self.old)
        if found != 1:
            raise ValueError(
                f"{self.name}: its text occurs {found} times in {self.file}, not once: the source "
                "has changed, so write the mutant anew"
            )
        return text.replace(self.old, self.new)
