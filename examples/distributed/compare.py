"""Whether two runs had the same losses: `python -m examples.distributed.compare A.json B.json`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

TOLERANCE = 1e-5


def differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[float, int]]:
    """The worst relative difference of each loss, and its step.

    Raises:
        ValueError: the runs are of different settings.
    """
    if a["settings"] != b["settings"] or a["identities"] != b["identities"]:
        raise ValueError(
            f"different runs: {a['settings']}, {a['identities']} identities, and "
            f"{b['settings']}, {b['identities']} identities"
        )
    worst = {}
    for name, first in a["losses"].items():
        pairs = zip(first, b["losses"][name], strict=True)
        # Not max() of the numbers alone: it may pass over a NaN.
        each = [(abs(x - y) / abs(x), step) for step, (x, y) in enumerate(pairs)]
        strange = [pair for pair in each if pair[0] != pair[0]]
        worst[name] = strange[0] if strange else max(each)
    return worst


def report(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Prints the differences; whether all are within the tolerance."""
    worst = differences(a, b)
    steps = len(a["losses"]["total"])
    for name, (value, step) in worst.items():
        print(f"{name}: worst relative difference {value:.1e}, at step {step} of {steps}")
    good = all(value <= TOLERANCE for value, _ in worst.values())
    print(f"{'within' if good else 'BEYOND'} the tolerance of {TOLERANCE:.0e}")
    return good


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.distributed.compare", description=__doc__
    )
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    options = parser.parse_args(arguments)
    try:
        return 0 if report(*(json.loads(p.read_text()) for p in (options.a, options.b))) else 1
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    raise SystemExit(main())
