"""Runs of examples/faces on few glyphs: their options, their curves, and two ranks."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

from examples.faces import rehearse, synthetic
from few_letters import limited
from processes import PACKAGE

ROOT = Path(__file__).resolve().parents[3]
TINY = [
    *("--set", "epochs=1", "--set", "teacher_epochs=0.5", "--set", "batch=32"),
    *("--set", "student=small:4", "--set", "teacher=small:4", "--set", "embedding=16"),
    *("--set", "distillation_warmup=0", "--set", "warmup_epochs=0.2", "--set", "gkd.group_size=5"),
    *("--quiet", "--device", "cpu"),
]


def write(root, patch):
    """A data set of 28 identities, as the rehearsal writes it."""
    patch.setattr("examples.glyphs.data.FT2Font", limited(range(0x41, 0x7B)))
    synthetic.write(root, synthetic.Sizes(identities=40, copies=1, pairs=60), False)
    return root


def options(files, out, *more):
    values = {
        **rehearse.RECIPE,
        "data": str(files / "train.rec"),
        "pairs": [str(files / "glyphs.bin")],
        "ijb": [str(files / "ijb-glyphs")],
    }
    path = out.parent / "recipe.json"
    path.write_text(json.dumps(values))
    return ["--config", str(path), "--output", str(out), *TINY, *more]


def curve(out, name="student"):
    with (out / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def gap(one, other):
    """The worst relative difference of two curves."""
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        for column in ("total", "cross_entropy", "distillation"):
            x, y = float(a[column]), float(b[column])
            worst = max(worst, abs(x - y) / max(abs(x), 1e-3))
    return worst


def torchrun(arguments):
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE.parent), str(ROOT)])
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *words, "-m", "examples.faces", *arguments],
        capture_output=True, text=True, timeout=115, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
