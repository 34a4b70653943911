"""What a class may cost in the machine code of a fused kernel, and what it does cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.sweeps import Cost

#: For 256 threads twice on a multiprocessor.
MOST_REGISTERS = 128
#: Warp instructions per 32 classes, by bytes of an element and kind of row.
MOST_INSTRUCTIONS = {(4, "flat"): 100, (4, "small"): 75, (2, "flat"): 90, (2, "small"): 70}
#: So many more of a streamed row: its other input is loaded by its alignment, a vector ahead.
MORE_STREAMED = 2
#: Instructions of fences and of emptied caches in the loop over rows: those of seven cluster
#: barriers. Three are for searches that the window's list does not serve, by class and by vectors,
#: and one for rows that are weighed after their moments.
MOST_FENCES = {"block": 0, "cluster": 28, "streamed cluster": 28}
#: The budget is sm_90's; these architectures and later ones may have so many times as much. By
#: dtype, constants that the gradient's loop reads from local memory there.
LATER, ROOM, MOST_LOCAL = 100, 1.05, {"bfloat16": 1}
#: From here on a kernel starts while the one before it runs (csrc/cuda/dependent_launch.cuh).
DEPENDENT = 90
ROWS = ("flat", "small")
#: The forms of each pass that a kernel has, and the gradient's paths in each form.
FORMS = {"maxima": 2, "count": 1, "weigh by mass": 1, "moments": 2}
GRADIENTS = ["near any", "near any", "outside near any", "outside near any"]
#: What the name of a strategy starts with whose rows are streamed. Their gradient has each form
#: twice, for either input that ranks.
STREAMED = "streamed "
KINDS = ("total", "mufu", "convert", "branch", "double", "local")
COLUMNS = ("architecture", "strategy", "dtype", "loop", "path", "instructions", *KINDS[1:])

#: Visits of a key in the window per 32 classes, by strategy, dtype and kind of row.
Visits = Mapping[tuple[str, str, str], float]


@dataclass
class Kernel:
    architecture: int
    strategy: str
    dtype: str
    element_bytes: int
    registers: int
    stack: int
    spills: int  # bytes stored and loaded
    fences: int  # in the loop over rows
    waits: int  # for the kernel before
    costs: list[Cost]

    @property
    def name(self) -> str:
        return f"sm_{self.architecture} {self.strategy} {self.dtype}"

    def missing(self) -> list[str]:
        """Passes that were not found as expected: then there are no totals."""
        loops = [c.loop.rstrip(" 1234") for c in self.costs if c.path == "vector"]
        wrong = [
            f"{loops.count(loop)} loops for {loop}, {expected} expected"
            for loop, expected in FORMS.items()
            if loops.count(loop) != expected
        ]
        forms = {c.loop: "" for c in self.costs if c.loop.startswith("gradient")}
        paths = sorted(" ".join(c.path for c in self.costs if c.loop == form) for form in forms)
        expected = sorted(GRADIENTS * (2 if self.strategy.startswith(STREAMED) else 1))
        return wrong + ([f"the gradient's paths are {paths}"] if paths != expected else [])

    def total(self, row: str, visits: Visits) -> float:
        """Per 32 classes of a row whose cut is found by mass and whose rest has no weight; the
        longest form of each pass."""

        def every(loop: str, path: str = "vector") -> list[float]:
            return [c["total"] for c in self.costs if c.loop.startswith(loop) and c.path == path]

        # The forms that leave the rest's KL out have a path outside the group.
        without_rest = {c.loop for c in self.costs if c.path == "outside"}
        path = "near" if row == "flat" else "outside"
        gradient = max(c["total"] for c in self.costs if c.loop in without_rest and c.path == path)
        often = visits[self.strategy.removeprefix(STREAMED), self.dtype, row]
        visit = max(every("moments", "visit")) + max(every("window", "visit"))
        moments = max(every("moments")) + often * visit
        # Of both inputs; the ranking one's smallest logit is found too.
        maxima = sum(every("maxima"))
        return maxima + max(every("count")) + moments + gradient

    def faults(self, visits: Visits) -> Iterator[str]:
        """What is above the budget, or was not found."""
        if missing := self.missing():
            yield from missing
            return
        if self.registers > MOST_REGISTERS:
            yield f"{self.registers} registers, {MOST_REGISTERS} allowed"
        for cost in self.costs:
            for kind in ("local", "double"):
                is_later = self.architecture >= LATER and cost.loop.startswith("gradient")
                local = MOST_LOCAL.get(self.dtype, 0) if is_later and kind == "local" else 0
                if cost.counts[kind] > local:
                    yield f"{cost.counts[kind]} {kind} instructions in {cost.loop}, {cost.path}"
        if self.architecture >= DEPENDENT and self.waits == 0:
            yield "no wait for the kernel before, which may still run"
        if self.fences > (most := MOST_FENCES.get(self.strategy, self.fences)):
            yield f"{self.fences} fences between the passes of a row, {most} allowed"
        for row in ROWS:
            total, most = self.total(row, visits), float(MOST_INSTRUCTIONS[self.element_bytes, row])
            most += MORE_STREAMED if self.strategy.startswith(STREAMED) else 0
            if self.architecture >= LATER:
                most *= ROOM
            if total > most:
                yield f"{total:.1f} instructions per class of a {row} row, {most:g} allowed"

    def lines(self, visits: Visits) -> Iterator[list[object]]:
        """The kernel's lines of a CSV with these columns."""
        name = [self.architecture, self.strategy, self.dtype]
        for what in ("registers", "stack", "spills", "fences"):
            yield [*name, "kernel", what, getattr(self, what)]
        for cost in self.costs:
            yield [*name, cost.loop, cost.path, *(f"{cost[kind]:.2f}" for kind in KINDS)]
        for row in ROWS if not self.missing() else ():
            yield [*name, "total", row, f"{self.total(row, visits):.2f}"]
