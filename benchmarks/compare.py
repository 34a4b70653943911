"""Regression check: ``python -m benchmarks.compare OLD NEW`` exits with 1 beyond the tolerance.

By default gkd is judged by its ratio to the copy in the same rounds, which carries over between
machines of a kind better than nanoseconds do; ``--absolute`` compares nanoseconds.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

KEY = ("device", "rows", "classes", "dtype", "distribution", "stage")


def read(path: Path, absolute: bool) -> dict[tuple[str, ...], tuple[float, int]]:
    """Cost and peak bytes of gkd at each point of the grid."""
    times: dict[tuple[str, ...], dict[str, float]] = {}
    peaks: dict[tuple[str, ...], int] = {}
    with path.open() as file:
        for line in csv.DictReader(file):
            key = tuple(line[k] for k in KEY)
            times.setdefault(key, {})[line["contender"]] = float(line["ns_per_class_median"])
            if line["contender"] == "gkd":
                peaks[key] = int(line["peak_bytes"])
    return {
        key: (each["gkd"] / (1.0 if absolute else each["copy"]), peaks[key])
        for key, each in times.items()
        if "gkd" in each and (absolute or "copy" in each)
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.15, help="of time, relative")
    parser.add_argument("--memory-tolerance", type=float, default=0.05, help="of peak, relative")
    parser.add_argument(
        "--absolute", action="store_true", help="nanoseconds, not ratios to the copy"
    )
    options = parser.parse_args()
    old, new = read(options.old, options.absolute), read(options.new, options.absolute)
    shared = sorted(old.keys() & new.keys())
    if not shared:
        print("nothing to compare: the files share no point of the grid")
        return 2
    worse = 0
    for key in shared:
        (old_time, old_peak), (new_time, new_peak) = old[key], new[key]
        slower = new_time > old_time * (1 + options.tolerance)
        # A mebibyte either way is the allocator's business.
        larger = min(old_peak, new_peak) >= 0 and (
            new_peak > old_peak * (1 + options.memory_tolerance) + 2**20
        )
        worse += slower or larger
        verdict = " SLOWER" * slower + " LARGER" * larger or " ok"
        print(
            f"{' '.join(key)}: {old_time:.3f} -> {new_time:.3f}, "
            f"{old_peak} -> {new_peak} B{verdict}"
        )
    print(f"{worse} of {len(shared)} points are worse")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
