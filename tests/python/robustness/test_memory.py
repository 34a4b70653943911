"""Sizes past 32 bits, memory that is not there or not written, and forks.

The tensors here are large in addresses and small in memory: pages that nobody touches take none.
"""

import sys

import pytest
import torch

import gkd
from cases import MODES, logits, settings_of, targets
from devices import EMULATED
from oracle import rows_and_gradient, same_bits
from processes import PACKAGE, python

GIB = 2**30


def reserved(count, dtype, device):
    """Memory that is not written, or a skip where its addresses are too many."""
    if EMULATED and torch.device(device).type == "cuda":
        pytest.skip("the emulated device's memory is the host's, and all of it is touched")
    try:
        return torch.empty(count, dtype=dtype, device=device)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        pytest.skip(f"{count * dtype.itemsize / GIB:.0f} GiB cannot be reserved: {error}")


def spread_out(x, strides):
    """A copy of x with these strides."""
    span = sum((n - 1) * s for n, s in zip(x.shape, strides, strict=True)) + 1
    return reserved(span, x.dtype, x.device).as_strided(x.shape, strides).copy_(x)


#: Past 2^31 the last row's offset is negative in an int; at 2^32 every row's is 0 in 32 bits.
FAR = {
    "rows past 2^31": (2**30 + 1, 1),
    "rows at 2^32": (2**32, 1),
    "columns past 2^31": (1, 2**25 + 1),
    "columns past 2^32": (80, 2**26),
}


@pytest.mark.parametrize("strides", FAR.values(), ids=FAR)
def test_offsets_past_32_bits(device, strides):
    student, teacher = logits((3, 77), torch.float16, device)
    target = targets((3, 77), device)
    far = [spread_out(x, strides) for x in (student, teacher)]
    got, wanted = (
        [*rows_and_gradient(*pair, target), *gkd.group(*pair, target, return_mask=True)]
        for pair in (far, (student, teacher))
    )
    assert all(same_bits(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("total", [2**31, 2**32], ids=["2^31", "2^32"])
def test_many_rows_to_the_last(device, total):
    """Ignored but for the last three, which lie past 2^31 or 2^32 elements."""
    rows, classes = total // 4096 + 3, 4096
    student, teacher = (reserved(rows * classes, torch.float16, device) for _ in range(2))
    student, teacher = (x.view(rows, classes) for x in (student, teacher))
    last = logits((3, classes), torch.float16, device)
    student[-3:], teacher[-3:] = last
    target = torch.full((rows,), -100, device=device)
    target[-3:] = targets((3, classes), device)
    got = gkd.loss(student, teacher, target, reduction="none")
    assert got.shape == (rows,) and not got[:-3].any()
    assert same_bits(got[-3:], gkd.loss(*last, target[-3:], reduction="none"))
    assert same_bits(gkd.loss(student, teacher, target), gkd.loss(*last, target[-3:]))


@pytest.mark.cuda
def test_rows_that_a_device_cannot_count():
    row = torch.zeros(1, 1, device="cuda").expand(1, 2**31)
    for call, name in ((gkd.loss, "loss"), (gkd.group, "group")):
        text = f"^gkd.{name}: on CUDA a row has at most 2147483647 classes, got 2147483648"
        with pytest.raises(ValueError, match=text):
            call(row, row)


# Bytes that int64 does not count, and more than any machine has. (torch makes no tensor whose
# elements int64 does not count.) A device's rows end at 2^31 - 1 classes.
TOO_LARGE = {
    "cpu": {"bytes": (8, 2**59), "memory": (2, 2**45)},
    "cuda": {"bytes": (2**32, 2**31 - 1), "memory": (2**20, 2**31 - 1)},
}


@pytest.mark.parametrize("what", ["bytes", "memory"])
def test_out_of_memory(device, what):
    if EMULATED and device == "cuda" and what == "memory":
        pytest.skip("the emulated device has no limit of its memory to run into")
    student, teacher = logits((3, 50), device=device)
    expected = rows_and_gradient(student, teacher)
    wide = torch.zeros(1, 1, device=device).expand(TOO_LARGE[device][what])
    kind, text = RuntimeError, "Storage size calculation overflowed|Stride calculation overflowed"
    if what == "memory":
        kind, text = {
            "cpu": (RuntimeError, "can't allocate memory"),
            "cuda": (torch.OutOfMemoryError, "CUDA out of memory"),
        }[device]
    with pytest.raises(kind, match=text):
        gkd.loss(wide.detach().requires_grad_(), wide)
    for got, wanted in zip(rows_and_gradient(student, teacher), expected, strict=True):
        assert same_bits(got, wanted)


FORK = """
import os, sys, torch, gkd
torch.manual_seed(0)
logits = torch.randn(2, 8, 40_000)
device = sys.argv[1]
value = gkd.loss(*logits)  # on several threads, which no child inherits
on_device = gkd.loss(*logits.to(device))
child = os.fork()
if child == 0:
    code = 0
    if device == "cuda":
        try:
            torch.zeros(1, device="cuda")
            code |= 1
        except RuntimeError as error:
            code |= 0 if "Cannot re-initialize CUDA in forked subprocess" in str(error) else 2
    torch.set_num_threads(1)  # as torch's data loaders do: GNU OpenMP does not survive a fork
    code |= 0 if gkd.loss(*logits).equal(value) else 4
    os._exit(code)
assert os.waitpid(child, 0)[1] == 0
assert gkd.loss(*logits.to(device)).cpu().equal(on_device.cpu())
"""


def test_forked_process(device):
    python("-c", FORK, device)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ignored", [(), (1,), (0, 1, 2)], ids=["none", "one", "all"])
def test_every_output_is_written(device, filled_with_nan, mode, ignored):
    assert torch.empty(3, device=device).isnan().all()  # the fixture's own check
    settings, _ = settings_of(mode)
    student, teacher = logits((3, 130), device=device)
    target = targets((3, 130), device)
    target[list(ignored)] = -100
    counted = [row for row in range(3) if row not in ignored]
    for reduction in ("none", "mean", "sum"):
        leaf = student.detach().requires_grad_()
        value = gkd.loss(leaf, teacher, target, reduction=reduction, **settings)
        # Kept, so that the gradient is scaled into memory of its own; then in place.
        for keep in (True, False):
            (gradient,) = torch.autograd.grad(value.sum(), leaf, retain_graph=keep)
            assert value.isfinite().all() and gradient.isfinite().all()
            assert not gradient[list(ignored)].any()
    group = gkd.group(student, teacher, target, return_mask=True, **settings)
    assert not any(column[counted].isnan().any() for column in group)
    assert not group.size[list(ignored)].any() and not group.mask[list(ignored)].any()
    assert group.mask.sum(1).equal(group.size)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_library_comes_from_beside_the_package(tmp_path):
    """No search path and no variable leads elsewhere: not the library of another folder first."""
    fake = tmp_path / "libgkd.so"
    fake.write_bytes(b"not a library")
    code = "import gkd; print([l.split()[-1] for l in open('/proc/self/maps') if 'libgkd' in l][0])"
    names = ("LD_LIBRARY_PATH", "GKD_LIBRARY", "GKD_LIBRARY_PATH", "TORCH_LIBRARY_PATH")
    out, _ = python("-c", code, cwd=tmp_path, **dict.fromkeys(names, str(tmp_path)))
    assert out.strip() == str(PACKAGE / "libgkd.so")
    loader = (PACKAGE / "_load.py").read_text()
    assert "environ" not in loader and "getenv" not in loader
