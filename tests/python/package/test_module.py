"""GKDLoss, the package's surface and python -m gkd.info."""

import copy
import io
import pickle
import platform

import pytest
import torch

import gkd
from cases import logits, targets
from oracle import error, same_bits
from processes import python

SETTINGS = {"group_size": 3, "temperature": 2.0, "coupled": True, "rank_by": "student"}


def test_equals_the_function(device):
    student, teacher = logits((4, 20), device=device)
    target = targets((4, 20), device)
    assert same_bits(
        gkd.GKDLoss(**SETTINGS)(student, teacher, target),
        gkd.loss(student, teacher, target, **SETTINGS),
    )


def test_copies_keep_the_settings():
    module = gkd.GKDLoss(**SETTINGS, ignore_index=7)
    student, teacher = logits((4, 20))
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh = gkd.GKDLoss()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert module.state_dict() == {} and not list(module.parameters())
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(other) == repr(module)
        assert same_bits(other(student, teacher), module(student, teacher))


def test_repr_shows_the_settings():
    assert repr(gkd.GKDLoss()) == (
        "GKDLoss(threshold=0.93, temperature=4.0, primary_weight=8.0, binary_weight=1.0, "
        "secondary_weight=0.0, rank_by='teacher', reduction='mean')"
    )
    text = repr(gkd.GKDLoss(**SETTINGS))
    assert "group_size=3" in text and "coupled=True" in text and "threshold" not in text


def test_info_names_everything():
    text, _ = python("-m", "gkd.info")
    lines = dict(line.split(maxsplit=1) for line in text.splitlines() if " " in line)
    assert lines["gkd"] == gkd.__version__
    assert torch.__version__ in lines["torch"]
    assert "libgkd.so" in lines["library"]
    assert "CPU only" in text or "CUDA toolkit" in text
    assert platform.system() in lines["platform"] and lines["compiler"]
    assert any(name in text for name in ("AVX512", "AVX2", "DEFAULT"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([[1.0]], torch.ones(1, 1)), "student_logits must be a Tensor, got list"),
        ((torch.ones(1, 1), None), "teacher_logits must be a Tensor, got None"),
        (
            (torch.ones(1, 1), torch.ones(1, 1), 0.9),
            "target must be a Tensor or None, got float; "
            "settings are given by keyword, as in temperature=4.0",
        ),
    ],
)
def test_what_is_no_tensor_is_named_in_one_line(arguments, text):
    for name, function in (("loss", gkd.loss), ("group", gkd.group)):
        with pytest.raises(TypeError) as caught:
            function(*arguments)
        assert str(caught.value) == f"gkd.{name}: {text}"


def test_a_profile_shows_the_operators_by_name():
    student = torch.randn(2, 50, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        # By 0.5: the backward has something to scale.
        (0.5 * gkd.loss(student, torch.randn(2, 50))).backward()
    seen = {event.key for event in profile.key_averages()}
    assert {"gkd::loss", "gkd::_forward", "gkd::_scale_"} <= seen
    assert any(name.endswith("<gkd::Loss>") for name in seen)
    assert not any("anonymous" in name for name in seen if "gkd" in name)


def test_group_reports_what_the_loss_uses(device):
    student, teacher = logits((5, 40), torch.float64, device)
    target = targets((5, 40), device)
    group = gkd.group(student, teacher, target, return_mask=True)
    assert torch.equal(group.size, group.mask.sum(1))
    p, q = (teacher / 4).softmax(1), (student / 4).softmax(1)
    assert error(group.mass_teacher, (p * group.mask).sum(1)) <= 1e-13
    assert error(group.mass_student, (q * group.mask).sum(1)) <= 1e-13
    off = {f"{term}_weight": 0.0 for term in ("primary", "binary", "secondary")}
    group = gkd.group(student, teacher, target, **off)  # each term, whether the loss uses it or not
    for name in off:
        rows = gkd.loss(student, teacher, target, reduction="none", **off | {name: 1.0})
        term = 16 * getattr(group, name.removesuffix("_weight"))
        assert error(term, rows) <= 1e-13, name
    assert gkd.group(student, teacher).mask is None
    assert (gkd.group(student, teacher, group_size=0).cut == float("inf")).all()
