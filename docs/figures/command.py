"""The command line of the programs that draw the documents' own figures."""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt


def run(draw: Callable[[Path], None], description: str) -> None:
    """Draws into the folder that --output names."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/figures"))
    options = parser.parse_args()
    plt.rcParams["font.size"] = 9
    draw(options.output)
