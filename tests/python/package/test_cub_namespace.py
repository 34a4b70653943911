"""CUB and Thrust twice in one process: torch's copy and gkd's must not be taken for each other.

Both are templates, whose code every library carries for itself under weak names: of one name the
dynamic linker keeps the first that was loaded, and libtorch_cuda.so, which exports thrust:: as it
is, comes first. gkd's copy is therefore wrapped in a namespace of its own (CMakeLists.txt,
THRUST_CUB_WRAPPED_NAMESPACE).
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import gkd
from cases import logits, targets
from oracle import same_bits

LIBRARY = Path(gkd.__file__).with_name("libgkd.so")
#: cub:: or thrust:: that nothing of gkd's own stands before, anywhere in a name.
UNWRAPPED = re.compile(r"(?<!gkd_cub::)\b(?:cub|thrust)::")


def shared_names(names):
    return [name for name in names if UNWRAPPED.search(name)]


def test_what_counts_as_unwrapped():
    assert (
        shared_names(["void gkd_cub::cub::Sort<gkd_cub::thrust::counting_iterator<int>>()"]) == []
    )
    for name in (
        "cub::DeviceScan::Run()",
        "guard variable for thrust::system::name",
        "void at_cuda_detail::cub::Sort<int>()",
        "gkd_cub::cub::Sort<thrust::counting_iterator<int>>()",
    ):
        assert shared_names([name]) == [name]


@pytest.mark.skipif(not gkd._build.cuda_version, reason="this build has no CUDA, and so no CUB")
@pytest.mark.skipif(not shutil.which("nm"), reason="nm, of binutils, is not on PATH")
def test_no_name_of_cub_is_shared():
    """Exported, weak and unique names: all that the dynamic linker may bind elsewhere."""
    names = subprocess.run(
        ["nm", "--dynamic", "--demangle", "--defined-only", str(LIBRARY)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert any("gkd::loss" in name for name in names)  # what nm read is the library
    assert not shared_names(names)


def sorts_in_turn(student, teacher, target):
    """(what must agree to the bit, losses and gradients), torch's sorts and gkd's mixed."""
    exact, close = [], []
    for dtype in (torch.float32, torch.float64, torch.float16):
        s, t = student.to(dtype), teacher.to(dtype)
        exact += t.sort(dim=1, descending=True, stable=True)
        exact += [gkd.group(s, t, target, method="sort").size]
        exact += [(8 * t).round().long().cumsum(1)]
        exact += [gkd.group(s, t, group_size=5, method="sort").cut]
        exact += t.reshape(-1).sort(stable=True)
        leaf = s.requires_grad_()
        value = gkd.loss(leaf, t, target, method="sort")
        close += [value.detach(), *torch.autograd.grad(value, leaf)]
    return exact, close


@pytest.mark.cuda
@pytest.mark.parametrize("shape", [(40, 9), (3, 1500), (1, 2000)], ids=str)
def test_torchs_sorts_and_gkds_take_turns_on_cuda(shape):
    """Rows that each sorts in ways of its own: for warps, for blocks, and one row alone."""
    args = (*logits(shape), targets(shape))
    exact, close = sorts_in_turn(*(x.cuda() for x in args))
    wanted_exact, wanted_close = sorts_in_turn(*args)
    for got, wanted in zip(exact, wanted_exact, strict=True):
        assert same_bits(got, wanted)
    for got, wanted in zip(close, wanted_close, strict=True):
        bound = 4e-6 + (2.0**-10 if wanted.dtype == torch.float16 else 0.0)
        difference = (got.cpu().double() - wanted.double()).abs().max()
        assert difference <= bound * wanted.abs().max()
