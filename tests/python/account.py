"""Counts the inputs and regressions of rows.py that a test answers for.

    python tests/python/account.py [--list] [--gtest BUILD_FOLDER]

Fails where a number has neither a test nor a reason, where it has both, and where a test names
what rows.py does not know. With --gtest the GoogleTest programs of a build are read too: names
there hold Row12 or Regression11.
"""

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from rows import INPUTS, REGRESSIONS

NUMBER_OF = {source: n for n, row in REGRESSIONS.items() for source in row.sources}


class Collected:
    """A pytest plugin that keeps what was collected."""

    items: list = []

    def pytest_collection_finish(self, session):
        self.items = session.items


def python_tests():
    """Every test of this folder."""
    seen = Collected()
    code = pytest.main(["--collect-only", "-p", "no:terminal", str(Path(__file__).parent)], [seen])
    if code != 0:
        sys.exit(f"the tests could not be collected: pytest ended with {code}")
    return seen.items


def named(items, marker):
    """Argument of the marker: the tests that carry it."""
    found = defaultdict(list)
    for item in items:
        for mark in item.iter_markers(marker):
            for argument in mark.args:
                found[argument].append(item)
    return found


def only_on(tests, marker):
    return all(test.get_closest_marker(marker) for test in tests)


def account(what, table, tests):
    """Prints one line; returns what is wrong with it."""
    faults = [f"no such {what[:-1]}: {name!r}" for name in tests if name not in table]
    on_device, large, reasons = [], [], []
    for number, row in table.items():
        have = tests.get(number, [])
        if row.reason and have:
            faults.append(f"{what} {number} has a reason, yet {have[0].nodeid} tests it")
        elif not row.reason and not have:
            faults.append(f"{what} {number} has neither a test nor a reason")
        if row.reason:
            reasons.append(number)
        elif have and only_on(have, "cuda"):
            on_device.append(number)
        elif have and only_on(have, "large"):
            large.append(number)
    answered = sum(bool(row.reason or tests.get(number)) for number, row in table.items())
    print(f"{answered} of {len(table)} {what}")
    for title, numbers in (
        ("by tests that need a CUDA device", on_device),
        ("by tests of the nightly run", large),
        ("by a reason", reasons),
    ):
        if numbers:
            print(f"  {title}: {', '.join(map(str, numbers))}")
    return faults


def googletests(build):
    """Full names of the tests in a build folder's programs."""
    programs = [p for p in sorted(Path(build).glob("gkd_*_test")) if p.is_file()]
    if not programs:
        sys.exit(f"no GoogleTest program in {build}: build first")
    names = []
    for program in programs:
        listed = subprocess.run(
            [program, "--gtest_list_tests"], capture_output=True, text=True, check=True
        ).stdout
        suite = ""
        for line in listed.splitlines():
            if line.startswith(" "):
                names.append(suite + line.split("#")[0].strip())
            elif line.endswith(".") or ".  #" in line:
                suite = line.split()[0]
    return names


def account_cpp(names):
    """The same for GoogleTest, whose share of the inputs is fixed in rows.py."""
    faults = []
    have = {int(n) for name in names for n in re.findall(r"(?:Row|And)(\d+)", name)}
    promised = {n for n, row in INPUTS.items() if row.cpp}
    faults += [f"GoogleTest has no test of input {n}" for n in sorted(promised - have)]
    faults += [f"rows.py knows of no GoogleTest of input {n}" for n in sorted(have - promised)]
    past = {int(n) for name in names for n in re.findall(r"Regression(\d+)", name)}
    faults += [f"GoogleTest names regression {n}, which is none" for n in past - REGRESSIONS.keys()]
    print(f"  in GoogleTest too: {len(have)} inputs, {len(past)} regressions")
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="the tests of every number")
    parser.add_argument("--gtest", metavar="BUILD_FOLDER", help="read its GoogleTest programs too")
    options = parser.parse_args()
    items = python_tests()
    inputs = named(items, "input")
    regressions = defaultdict(list)
    for source, tests in named(items, "regression").items():
        regressions[NUMBER_OF.get(source, source)] += tests
    faults = account("inputs", INPUTS, inputs) + account("regressions", REGRESSIONS, regressions)
    if options.gtest:
        faults += account_cpp(googletests(options.gtest))
    if options.list:
        for table, tests in ((INPUTS, inputs), (REGRESSIONS, regressions)):
            for number, row in table.items():
                print(f"{number:3} {row[0] if table is INPUTS else ', '.join(row.sources)}")
                functions = {t.nodeid.split("[")[0].split("/")[-1] for t in tests[number]}
                print(*(f"      {name}" for name in sorted(functions)), sep="\n")
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
