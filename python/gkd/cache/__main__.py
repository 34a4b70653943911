"""``python -m gkd.cache info DIR`` and ``python -m gkd.cache verify DIR``."""

from __future__ import annotations

import argparse
import sys

from . import info, verify


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 where something is wrong with the cache, or 2 where it is none."""
    parser = argparse.ArgumentParser(prog="python -m gkd.cache", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, text in (
        ("info", "settings, rows, files and bytes"),
        ("verify", "reads all of it; names every fault and exits with 1 where there are any"),
    ):
        commands.add_parser(command, help=text).add_argument("directory", metavar="DIR")
    given = parser.parse_args(arguments)
    try:
        if given.command == "info":
            for name, fact in info(given.directory).items():
                print(f"{name:18} {fact}")
            return 0
        faults = verify(given.directory)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults" if faults else "no faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
