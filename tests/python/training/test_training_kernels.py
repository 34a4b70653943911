"""Which way the CUDA kernels take, by the counters of an emulated device."""

import json
import os
import subprocess
import sys

import pytest

from conftest import EMULATED

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not EMULATED, reason="counters are the emulated device's"),
]

#: One row, whose target is the largest logit by a gap. At the interpreter's own way out, threads of
#: autograd may abort.
ROW = """
import os
import sys
import ptxemu_torch
import torch
import gkd
gap, temperature = map(float, sys.argv[1:])
torch.manual_seed(0)
student = torch.randn(1, 3001)
teacher = student + 0.1 * torch.randn(1, 3001)
student[0, 5] = teacher[0, 5] = gap
leaf = student.cuda().requires_grad_()
value = gkd.training_loss(
    leaf, teacher.cuda(), torch.tensor([5]).cuda(), temperature=temperature, group_size=20
)
torch.autograd.grad(value.total, leaf)
torch.cuda.synchronize()
os._exit(0)
"""
#: PTX that names registers; "total" is their sum.
FREE = {"move", "param", "predicate", "total"}


def instructions(folder, gap, temperature=4.0):
    """Warp instructions of the fused kernel, in a process whose kernels count."""
    counts = folder / f"{gap}-{temperature}"
    # The flags are those of benchmarks/count_cuda.py, which has then translated the kernels.
    variables = {"PTXEMU_COUNT": str(counts), "PTXEMU_CXXFLAGS": "-O0 -DPTX_COUNT"}
    subprocess.run(
        [sys.executable, "-c", ROW, str(gap), str(temperature)],
        env={**os.environ, **variables},
        check=True,
    )
    launches = [json.loads(line) for line in counts.read_text().splitlines()]
    (fused,) = [x for x in launches if "fused_kernel" in x["kernel"]]
    return sum(n for kind, n in fused["warp_instructions"].items() if kind not in FREE)


def test_a_sure_row_keeps_the_vector_path(tmp_path):
    """Cross-entropy's sum leaves the target out: relative to the target, 110 above all others, it
    would be 0 in float32, and the row would be summed a second time, class by class."""
    usual = instructions(tmp_path, gap=3.0)
    assert instructions(tmp_path, gap=110.0) <= 1.05 * usual
    # The counter shows the other way: here the terms' own sums have no digits.
    assert instructions(tmp_path, gap=110.0, temperature=1.0) >= 1.5 * usual
