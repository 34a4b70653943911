"""The dispatcher's view: opcheck, torch.compile, and the texts of the errors."""

import pytest
import torch

import gkd

INF = float("inf")


@pytest.mark.parametrize("needs_grad", [False, True])
def test_opcheck(needs_grad):
    student = torch.randn(3, 20, requires_grad=needs_grad)
    teacher, target = torch.randn(3, 20), torch.tensor([1, -100, 4])
    torch.library.opcheck(torch.ops.gkd.loss.default, (student, teacher, target))
    torch.library.opcheck(torch.ops.gkd.loss.default, (student, teacher), {"reduction": "none"})


def test_opcheck_group():
    args = (torch.randn(3, 20), torch.randn(3, 20))
    torch.library.opcheck(torch.ops.gkd.group.default, args, {"return_mask": True})


def test_compiles_without_a_break():
    compiled = torch.compile(gkd.loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((3, 20), (5, 33)):
        student, teacher = torch.randn(shape).requires_grad_(), torch.randn(shape)
        compiled(student, teacher).backward()
        again = student.detach().clone().requires_grad_()
        gkd.loss(again, teacher).backward()
        assert torch.equal(student.grad, again.grad)


BAD = [
    ({"temperature": 0.0}, ValueError, "temperature must be finite and > 0, got 0"),
    ({"temperature": 1e8}, ValueError, r"temperature must be in \[1e-6, 1e6\]"),
    ({"threshold": float("nan")}, ValueError, r"threshold must be in \(0, 1\], got nan"),
    ({"threshold": 0.5, "group_size": 2}, ValueError, "give one of threshold and group_size"),
    ({"group_size": -1}, ValueError, "group_size must be >= 0, got -1"),
    ({"primary_weight": INF}, ValueError, "primary_weight must be finite, got inf"),
    ({"reduction": "max"}, ValueError, "reduction must be none, mean or sum"),
    ({"rank_by": "loss"}, ValueError, "rank_by must be teacher or student, got loss"),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("settings", "kind", "text"), BAD)
def test_bad_settings(settings, kind, text, device):
    logits = torch.randn(4, 10, device=device)
    with pytest.raises(kind, match="gkd::loss: " + text):
        gkd.loss(logits, logits, **settings)


def test_bad_tensors():
    x = torch.randn(4, 10)
    with pytest.raises(
        ValueError, match=r"student \[4, 10\] and teacher \[4, 9\] must have the same"
    ):
        gkd.loss(x, x[:, :9])
    with pytest.raises(TypeError, match="expected floating point student, got Int"):
        gkd.loss(x.int(), x)
    with pytest.raises(ValueError, match=r"target must be \[4\], got \[4, 1\]"):
        gkd.loss(x, x, torch.zeros(4, 1, dtype=torch.long))
    with pytest.raises(IndexError, match=r"target 17 is out of bounds for 10 classes \(row 3\)"):
        gkd.loss(x, x, torch.tensor([0, 1, 2, 17]))
    with pytest.raises(ValueError, match=r"teacher needs no gradient; pass teacher.detach\(\)"):
        gkd.loss(x, x.clone().requires_grad_())
