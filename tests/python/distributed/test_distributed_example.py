"""The class-sharded example: its losses over 2 ranks are those of one process, step by step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from examples.distributed import compare
from processes import PACKAGE

ROOT = Path(__file__).resolve().parents[3]
RANKS = 2
#: 12 steps: a wrong gradient shows from the second on, its momentum a little later.
OPTIONS = ["--steps", "12", "--batch", "48", "--quiet"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """20 identities with 4 noisy images each; the split leaves 14, and 2 ranks 7 each."""
    root = tmp_path_factory.mktemp("photographs")
    generator = torch.Generator().manual_seed(0)
    for identity in range(20):
        folder = root / f"{identity:02}"
        folder.mkdir()
        face = torch.rand(8, 8, generator=generator).repeat_interleave(4, 0).repeat_interleave(4, 1)
        for shot in range(4):
            noisy = face + 0.2 * torch.rand(32, 32, generator=generator)
            pixels = (noisy / 1.2 * 255).to(torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / f"{shot}.png")
    return root


def run(launcher, photographs, out, *options):
    """Runs the example in processes of its own; the report and what rank 0 printed."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE.parent), str(ROOT)])
    words = [*launcher, "-m", "examples.distributed", "--data", str(photographs)]
    done = subprocess.run(
        [sys.executable, *words, "--output", str(out), *OPTIONS, *options],
        capture_output=True, text=True, timeout=120, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.json")
    return path, done.stdout


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]


def test_two_ranks_train_as_one_process_does(photographs, tmp_path, capsys):
    one, _ = run([], photographs, tmp_path / "one")
    two, printed = run(TORCHRUN, photographs, tmp_path / "two")
    assert (one.name, two.name) == ("one_process.json", f"ranks_{RANKS}.json")
    assert printed.count("wrote") == 1, "only rank 0 prints"
    assert compare.main([str(one), str(two)]) == 0, capsys.readouterr().out
    report = json.loads(two.read_text())
    assert report["ranks"] == RANKS and report["identities"] == 14
    losses = report["losses"]["total"]
    # It has to learn, or equal losses would say little.
    assert len(losses) == 12 and losses[-1] < 0.9 * losses[0]


def test_comparison_fails_where_it_should(tmp_path):
    report = {"settings": {"seed": 0}, "identities": 3, "losses": {"total": [2.0, 1.0]}}
    same = tmp_path / "same.json"
    same.write_text(json.dumps(report))

    def against(**changes):
        other = tmp_path / "other.json"
        other.write_text(json.dumps({**report, **changes}))
        return compare.main([str(same), str(other)])

    assert against() == 0
    assert against(losses={"total": [2.0, 1.00002]}) == 1
    assert against(losses={"total": [2.0, float("nan")]}) == 1
    for changes in ({"settings": {"seed": 1}}, {"losses": {"total": [2.0]}}):
        with pytest.raises(SystemExit):
            against(**changes)
