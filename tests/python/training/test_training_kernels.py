"""Which way the CUDA kernels take, by the counters of an emulated device."""

import sys

import pytest

from benchmarks import count_cuda
from devices import EMULATED

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


def of_row(gap, temperature=4.0):
    """Warp instructions of the fused kernel, in a process whose kernels count."""
    # With these flags benchmarks/count_cuda.py has translated the kernels already.
    flags = f"{count_cuda.UNOPTIMIZED} -DPTX_COUNT"
    found = count_cuda.launches([sys.executable, "-c", ROW, str(gap), str(temperature)], flags)
    return count_cuda.instructions(count_cuda.fused(found))["all"]


def test_a_sure_row_keeps_the_vector_path():
    """Cross-entropy's sum leaves the target out: relative to the target, 110 above all others, it
    would be 0 in float32, and the row would be summed a second time, class by class."""
    usual = of_row(gap=3.0)
    assert of_row(gap=110.0) <= 1.05 * usual
    # The counter shows the other way: here the terms' own sums have no digits.
    assert of_row(gap=110.0, temperature=1.0) >= 1.5 * usual
