"""Puts one bug at a time into a copy of the sources, builds, and runs the tests that ought to fail.

Bugs in csrc/cuda run on a GPU, or under the commands of GKD_DEVICE_RUNNER: prefixes that run a
program on an emulated device, apart by ";", each tried in turn. GKD_CMAKE_ARGS goes to CMake, as in
`make test`. Exit status 0: every mutant killed, or left out for want of a device; 1: one survived,
or could not be tested; 2: the tests fail without any bug, so that nothing can be said.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

from . import report
from .mutant import KERNEL_PROGRAM, Killer, Mutant
from .mutants import MUTANTS
from .tree import Tree

SOURCE = Path(__file__).resolve().parents[2]
#: Test programs and suite of `make test` that need no CUDA, the quick ones first.
EVERYTHING = (
    "gkd_math_test *",
    "gkd_row_test *",
    "gkd_threads_test *",
    "gkd_ops_test *",
    "tests/python",
)
EVERY_KERNEL = (f"{KERNEL_PROGRAM} *",)
#: Of a killer's time without a bug; a machine may have other work meanwhile.
PATIENCE, LEAST_SECONDS = 10.0, 120.0


def runners() -> list[list[str]]:
    """Commands before a program that runs kernels; none where there is no device."""
    given = [shlex.split(text) for text in os.environ.get("GKD_DEVICE_RUNNER", "").split(";")]
    given = [words for words in given if words]
    if given:
        return given
    import torch  # slow, and needed here alone

    return [[]] if torch.cuda.is_available() else []


def killers_of(mutant: Mutant, everything: bool) -> list[Killer]:
    more = (EVERY_KERNEL if mutant.needs_device else EVERYTHING) if everything else ()
    return mutant.killers + [Killer(text) for text in more]


def limits_of(tree: Tree, killers: list[Killer]) -> dict[Killer, float]:
    """How long each may take, after a run without any bug; SystemExit where one fails."""
    limits = {}
    for killer in killers:
        fault = tree.build(killer)
        if fault:
            print(f"does not build: {killer.text}\n{fault}")
            raise SystemExit(2)
        outcome, seconds = tree.timed(killer, limit=3600.0)
        if outcome.killed or outcome.error:
            print(f"fails without any bug: {killer.text}: {outcome.test}{outcome.error}")
            raise SystemExit(2)
        print(f"  {seconds:6.1f} s  {killer.text}", flush=True)
        limits[killer] = max(LEAST_SECONDS, PATIENCE * seconds)
    return limits


def judge(
    tree: Tree, mutant: Mutant, killers: list[Killer], limits: dict[Killer, float]
) -> report.Row:
    begin = time.monotonic()

    def row(status: str, by: str) -> report.Row:
        return report.Row(mutant.name, status, by, f"{time.monotonic() - begin:.0f}")

    tree.sync()
    (tree.root / mutant.file).write_text(mutant.mutated(tree.root))
    for killer in killers:
        fault = tree.build(killer)
        if fault:
            print(fault)
            return row(report.BROKEN, "does not build")
        outcome = tree.run(killer, limits[killer])
        if outcome.error:
            print(outcome.error)
            return row(report.BROKEN, outcome.error.splitlines()[0])
        if outcome.killed:
            return row(report.KILLED, outcome.test)
    return row(report.SURVIVED, "")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        usage="tests/run.sh mutate [options] [names ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("names", nargs="*", default=["*"], help="mutants, as shell patterns")
    p.add_argument("--list", action="store_true", help="list them and stop")
    p.add_argument("--all", action="store_true", help="run every test, not the chosen ones alone")
    p.add_argument("--kind", choices=["cpu", "kernels"], help="of these mutants only")
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at once")
    p.add_argument("--scratch", type=Path, default=SOURCE / "build" / "mutate", help="their place")
    return p


def main() -> int:
    options = parser().parse_args()
    chosen = [m for m in MUTANTS if any(fnmatch(m.name, name) for name in options.names)]
    if options.kind:
        chosen = [m for m in chosen if m.needs_device == (options.kind == "kernels")]
    if not chosen:
        print(f"no mutant is named {' or '.join(options.names)}")
        return 2
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name:28} {mutant.file:28} {mutant.fault}")
        return 0
    results = options.scratch / "results.csv"
    rows = []

    def keep(row: report.Row) -> None:
        rows.append(row)
        report.add(results, row)
        print(f"{row.name:28} {row.status:14} {row.seconds:>5} s  {row.by}", flush=True)

    for kernels in (False, True):
        mutants = [m for m in chosen if m.needs_device == kernels]
        commands = runners() if mutants and kernels else [[]]
        if not mutants:
            continue
        root = options.scratch / ("kernels" if kernels else "cpu")
        root.mkdir(parents=True, exist_ok=True)
        if not commands:
            for mutant in mutants:
                keep(report.Row(mutant.name, report.NO_DEVICE, "", "0"))
            continue
        tree = Tree(SOURCE, root, kernels, options.jobs, commands)
        tree.sync()
        killers = {m.name: killers_of(m, options.all) for m in mutants}
        print("without any bug:", flush=True)
        limits = limits_of(tree, list(dict.fromkeys(k for ks in killers.values() for k in ks)))
        try:
            for mutant in mutants:
                keep(judge(tree, mutant, killers[mutant.name], limits))
        finally:
            tree.sync()
    print(report.count(rows))
    return int(any(row.status in (report.SURVIVED, report.BROKEN) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
