"""Forks, data loaders, copies of the package and long lives of one process.

Forks: a child has none of its parent's threads. GNU OpenMP does not notice: once the parent has run
anything on several threads, the child's first parallel region waits for ever. That is so of torch's
own operators (x.exp() of 800 numbers hangs in such a child, and torch registers nothing that would
help), and gkd's run on the same pool: a fork before the first parallel work is safe, and so is one
whose child says torch.set_num_threads(1), as torch's data loaders do.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import gkd
from cases import logits, targets
from oracle import same_bits
from processes import PACKAGE, python

LONG_RUN = Path(__file__).parents[1] / "support" / "long_run.py"


# What the child computes goes through a pipe. Its parent computes last: that starts the threads.
FORK_AFTER_IMPORT = """
import os, torch, gkd
torch.set_num_threads(2)
x = torch.randn(2, 8, 5000)
def work():
    leaf = x[0].detach().requires_grad_()
    value = gkd.loss(leaf, x[1], reduction="none")
    return torch.cat([value.detach()[:, None], *torch.autograd.grad(value.sum(), leaf)], 1).numpy()
read, write = os.pipe()
if os.fork() == 0:
    os.close(read)
    assert torch.get_num_threads() == 2
    with os.fdopen(write, "wb") as to:
        to.write(work().tobytes())
    os._exit(0)
os.close(write)
with os.fdopen(read, "rb") as back:
    assert back.read() == work().tobytes()
assert os.wait()[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_fork_after_import():
    python("-c", FORK_AFTER_IMPORT)


# The child's torch first: where its threads are lost, gkd's are too, and nothing is compared.
FORK_AFTER_CALLS = """
import os, signal, time, torch, gkd
torch.set_num_threads(2)
x = torch.randn(2, 8, 40_000)
def child_ends(work, seconds):
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False
torch_work, gkd_work = (lambda: x[0].softmax(1)), (lambda: gkd.loss(*x))
torch_work(), gkd_work()
if child_ends(torch_work, 5):
    assert child_ends(gkd_work, 60), "torch's threads come back in a forked child, and gkd's do not"
else:
    print("lost")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_fork_after_threads_were_started_is_no_worse_than_torch():
    if python("-c", FORK_AFTER_CALLS)[0]:
        pytest.skip("torch's own operators hang in such a child here: GNU OpenMP")


def collate(rows):
    """What a worker makes of its samples: the loss and the group of every row."""
    student, teacher, target = (torch.stack(column) for column in zip(*rows, strict=True))
    group = gkd.group(student, teacher, target)
    return gkd.loss(student, teacher, target, reduction="none"), group.size, group.cut


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_data_loader_workers_give_the_parents_bits(start, workers):
    """Wide enough for the parent's own threads, which are running by the time of the fork."""
    student, teacher = logits((6, 20_000))
    samples = list(zip(student, teacher, targets((6, 20_000)), strict=True))
    expected = [collate(samples[:3]), collate(samples[3:])]
    loader = DataLoader(
        samples,
        batch_size=3,
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context=start,
        timeout=100,
    )
    seen = list(loader)
    assert len(seen) == len(expected)
    for got, wanted in zip(seen, expected, strict=True):
        assert all(same_bits(a, b) for a, b in zip(got, wanted, strict=True))


LOAD_TWICE = """
import importlib, sys, torch, gkd, gkd.info
x = torch.randn(2, 3, 50)
value = gkd.loss(*x)
torch.ops.load_library(str(gkd.info.library_path()))
assert gkd.loss(*x).equal(value)
assert importlib.reload(gkd).loss(*x).equal(value)
for name in [name for name in sys.modules if name.partition(".")[0] == "gkd"]:
    del sys.modules[name]
import gkd as again
assert again is not gkd and again.loss(*x).equal(value) and gkd.loss(*x).equal(value)
"""


def test_loading_twice_is_loading_once():
    assert "registered" not in python("-c", LOAD_TWICE)[1]


SECOND_COPY = """
import sys, torch, gkd
x = torch.randn(2, 3, 50)
first, value = gkd, gkd.loss(*x)
for folder in sys.argv[1:]:
    for name in [name for name in sys.modules if name.partition(".")[0] == "gkd"]:
        del sys.modules[name]
    sys.path.insert(0, folder)
    try:
        import gkd
        assert gkd.__file__.startswith(folder) and gkd.loss(*x).equal(value)
        print("loaded")
    except ImportError as error:
        print(error)
assert first.loss(*x).equal(value)
"""


def test_a_second_copy_is_refused_in_one_sentence(tmp_path):
    """Torch would end the process: a namespace of operators is registered once. A link to the
    first copy is no second one."""
    link, copy = tmp_path / "link", tmp_path / "copy"
    link.mkdir()
    (link / "gkd").symlink_to(PACKAGE)
    shutil.copytree(PACKAGE, copy / "gkd", ignore=shutil.ignore_patterns("__pycache__"))
    out, errors = python("-c", SECOND_COPY, str(link), str(copy))
    assert "registered" not in errors
    assert out.splitlines() == [
        "loaded",
        f"gkd is loaded already, from {PACKAGE / 'libgkd.so'}, and a process holds one copy; the "
        f"second is {copy / 'gkd' / 'libgkd.so'}: uninstall one, or take it off sys.path",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("calls", "warm_up", "leak"),
    [(3000, 1000, 0), (1000, 250, 16384)],
    ids=["as it is", "with a planted leak"],
)
def test_memory_stays_flat(calls, warm_up, leak):
    """2,000 calls after the warm-up, on one thread: a test has no time for barriers. 1% is some
    5 MiB; the leak, 16 KiB a call, keeps 12 MiB."""
    arguments = {"calls": calls, "warm-up": warm_up, "every": calls, "leak": leak}
    options = [f"--{name}={value}" for name, value in arguments.items()]
    out, _ = python(str(LONG_RUN), *options, exits=1 if leak else 0, OMP_NUM_THREADS="1")
    growth = float(re.search(r"growth ([+-][\d.]+)%, bound \+1%", out)[1])
    assert growth > 1 if leak else growth <= 1
