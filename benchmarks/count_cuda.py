"""Instructions of the fused CUDA kernels per class, counted on an emulated device.

    python benchmarks/count_cuda.py EMULATOR gkd_count_cuda > counts.csv

`benchmarks/cpp/count_cuda.cu` says how to build the program.

These are counts of PTX, not measurements: machine code has about 1/1.2 as many instructions. The
unit is warp instructions per 32 classes, without moves and parameters, and it includes the work
that a row costs whatever its length. "no_selection" is a call whose cut is constant: the copy, the
maxima, the moments and the gradient.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FREE = ("move", "param", "predicate", "total")


def count(emulator: str, program: str, arguments: tuple[str, ...]) -> float:
    """Warp instructions per 32 classes of one call."""
    rows, classes = (int(a) for a in arguments[2:4])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts"
        environment = {**os.environ, "PTXEMU_COUNT": str(path)}
        subprocess.run([emulator, program, *arguments], check=True, env=environment)
        launches = [json.loads(line) for line in path.read_text().splitlines()]
    return sum(
        32 / (rows * classes) * number
        for launch in launches
        if "fused_kernel" in launch["kernel"]
        for kind, number in launch["warp_instructions"].items()
        if kind not in FREE
    )


def main() -> None:
    emulator, program = sys.argv[1:3]
    print("dtype,strategy,rows,classes,spread,passes,instructions_per_class", flush=True)
    for dtype in ("float32", "bfloat16"):
        for strategy, classes in (("block", 20_000), ("cluster", 85_742), ("grid", 85_742)):
            for spread in (1, 12):  # flat, and a small group at temperature 4
                for passes in ("all", "no_selection"):
                    call = (dtype, strategy, "1", str(classes), str(spread), passes)
                    print(*call, f"{count(emulator, program, call):.1f}", sep=",", flush=True)


if __name__ == "__main__":
    main()
