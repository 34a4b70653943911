"""What may be given for a setting, in every function that takes settings."""

import inspect

import numpy as np
import pytest
import torch
import torch.distributed as dist

import gkd
from cases import logits
from gkd._settings import DEFAULTS, LossSettings
from oracle import DTYPES, error, same_bits

CLASSES = 40


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def calls():
    """Every function by name: a call with these settings, as a tensor."""
    student, teacher = logits((3, CLASSES))
    heads = [torch.randn(shape) for shape in ((3, 8), (CLASSES, 8), (3, 6), (CLASSES, 6))]
    shard = {"class_start": 0, "num_classes": CLASSES}
    return {
        "loss": lambda **s: gkd.loss(student, teacher, **s),
        "group": lambda **s: gkd.group(student, teacher, **s).cut,
        "GKDLoss": lambda **s: gkd.GKDLoss(**s)(student, teacher),
        "reference": lambda **s: gkd.reference.loss(student, teacher, **s),
        "linear_loss": lambda **s: gkd.linear_loss(*heads, **s),
        "distributed.loss": lambda **s: gkd.distributed.loss(student, teacher, **shard, **s),
        "distributed.linear_loss": lambda **s: gkd.distributed.linear_loss(*heads, **shard, **s),
    }


@pytest.fixture(params=calls())
def call(request, process_group):
    return calls()[request.param]


#: (setting, what is given, the plain value that it stands for).
TAKEN = [
    ("temperature", torch.tensor(2.0), 2.0),
    ("temperature", torch.tensor([2], dtype=torch.int32), 2.0),
    ("temperature", np.float32(2.0), 2.0),
    ("temperature", np.int64(2), 2.0),
    ("primary_weight", torch.tensor([[0.5]], dtype=torch.bfloat16), 0.5),
    ("threshold", np.float64(0.5), 0.5),
    ("group_temperature", np.float32(1.5), 1.5),
    ("group_size", torch.tensor(5), 5),
    ("group_size", np.uint8(5), 5),
    ("coupled", np.True_, True),
    ("ignore_index", np.int32(3), 3),
    ("rank_by", np.str_("student"), "student"),
]


@pytest.mark.parametrize(("name", "given", "plain"), TAKEN, ids=lambda x: f"{x!r}"[:30])
def test_is_taken_as_its_plain_value(call, name, given, plain):
    torch.manual_seed(1)
    assert same_bits(call(**{name: given}), call(**{name: plain}))


#: (setting, what is given, what the message says came).
REFUSED = [
    ("temperature", "4.0", "must be a number, got '4.0' of type str"),
    ("temperature", None, "must be a number, got None"),
    ("temperature", True, "must be a number, got True of type bool"),
    ("temperature", torch.ones(2), r"must be a number, got a Tensor of shape \[2\]"),
    ("primary_weight", "1e-3", "must be a number, got '1e-3' of type str"),
    ("secondary_weight", 1j, "must be a number, got 1j of type complex"),
    ("threshold", [0.5], r"must be a number, got \[0.5\] of type list"),
    ("group_size", 5.0, "must be an integer, got 5.0 of type float"),
    ("group_size", torch.tensor(5.0), "must be an integer, got a Tensor"),
    ("ignore_index", "-100", "must be an integer, got '-100' of type str"),
    ("coupled", "false", "must be True or False, got 'false' of type str"),
    ("coupled", 1, "must be True or False, got 1 of type int"),
    ("rank_by", 3, "must be a string, got 3 of type int"),
    ("reduction", None, "must be a string, got None"),
    ("temprature", 4.0, "unexpected keyword argument 'temprature'"),
]


@pytest.mark.parametrize(("name", "given", "message"), REFUSED, ids=lambda x: f"{x!r}"[:30])
def test_is_refused_by_name(call, name, given, message):
    expected = f"{name}.*{message}" if "unexpected" not in message else message
    with pytest.raises(TypeError, match=expected):
        call(**{name: given})


@pytest.mark.parametrize("name", ["temperature", "primary_weight", "threshold", "group_size"])
def test_a_tensor_that_requires_grad_is_refused(call, name, request):
    given = torch.nn.Parameter(torch.tensor(0.5))
    if "reference" in request.node.callspec.id and name != "threshold" and name != "group_size":
        assert call(**{name: given}).requires_grad
        return
    with pytest.raises(TypeError, match=rf"{name}.*requires grad.*gkd\.reference\.loss"):
        call(**{name: given})


def test_other_numbers_follow_the_same_rule(process_group):
    heads = [torch.randn(shape) for shape in ((3, 8), (CLASSES, 8), (3, 6), (CLASSES, 6))]
    student, teacher = logits((3, CLASSES))
    taken = gkd.linear_loss(*heads, scale=np.float32(32), chunk_rows=np.int64(2))
    assert same_bits(taken, gkd.linear_loss(*heads, scale=32.0, chunk_rows=2))
    assert gkd.adaptive_group_size(student, np.float32(0.5), torch.tensor(10)) <= CLASSES
    refused = {
        "scale": lambda x: gkd.linear_loss(*heads, scale=x),
        "chunk_rows": lambda x: gkd.linear_loss(*heads, chunk_rows=x),
        "normalize": lambda x: gkd.linear_loss(*heads, normalize=x),
        "check_target": lambda x: gkd.loss(student, teacher, check_target=x),
        "return_mask": lambda x: gkd.group(student, teacher, return_mask=x),
        "rate": lambda x: gkd.adaptive_group_size(student, rate=x),
        "step": lambda x: gkd.adaptive_group_size(student, step=x),
        "class_start": lambda x: gkd.distributed.loss(
            student, teacher, class_start=x, num_classes=CLASSES
        ),
        "num_classes": lambda x: gkd.distributed.loss(
            student, teacher, class_start=0, num_classes=x
        ),
        "reduce_features_grad": lambda x: gkd.distributed.linear_loss(
            *heads, class_start=0, num_classes=CLASSES, reduce_features_grad=x
        ),
    }
    for name, function in refused.items():
        with pytest.raises(TypeError, match=f"{name} must be .* got '1' of type str"):
            function("1")


def test_reference_is_differentiable_by_temperature_and_weights():
    student, teacher = logits((3, 12), torch.float64)
    settings = [torch.tensor(x, dtype=torch.float64).requires_grad_() for x in (2.0, 3.0, 0.0, 1.5)]

    def function(temperature, primary_weight, binary_weight, secondary_weight):
        return gkd.reference.loss(
            student,
            teacher,
            temperature=temperature,
            primary_weight=primary_weight,
            binary_weight=binary_weight,
            secondary_weight=secondary_weight,
        )

    assert torch.autograd.gradcheck(function, settings)


def test_signatures_show_every_setting_with_its_default():
    shown = inspect.signature(gkd.loss).parameters
    assert [*LossSettings.__annotations__, "method"] == list(DEFAULTS)
    for function in (
        gkd.loss,
        gkd.GKDLoss,
        gkd.group,
        gkd.reference.loss,
        gkd.linear_loss,
        gkd.distributed.loss,
        gkd.distributed.linear_loss,
    ):
        parameters = inspect.signature(function).parameters
        for name in LossSettings.__annotations__:
            default = DEFAULTS[name]
            assert parameters[name].default == default == shown[name].default
            assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY


#: (threshold, size): each one the shorter, no classes, all classes, all probability.
BOTH = [(0.93, 2), (0.2, 30), (0.5, 0), (0.5, CLASSES), (1.0, 7), (1.0, CLASSES)]


@pytest.mark.parametrize("rank_by", ["teacher", "student"])
@pytest.mark.parametrize("method", ["select", "sort"])
@pytest.mark.parametrize(("threshold", "size"), BOTH)
def test_threshold_and_size_give_the_shorter_group(device, threshold, size, method, rank_by):
    student, teacher = logits((6, CLASSES), device=device)
    teacher[0, 3:] = student[0, 3:] = -float("inf")
    how = {"method": method, "rank_by": rank_by, "temperature": 1.0}
    found = gkd.group(student, teacher, threshold=threshold, group_size=size, **how)
    cuts = [
        gkd.group(student, teacher, threshold=threshold, **how).cut,
        gkd.group(student, teacher, group_size=size, **how).cut,
    ]
    assert same_bits(found.cut, torch.maximum(*cuts))
    ops = torch.ops.gkd.group(student, teacher, threshold=threshold, group_size=size, **how)
    assert same_bits(ops[3], found.cut)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("weight", [1e-35, 1e-30, 1.0, 1e30])
def test_gradients_are_finite_at_the_ends_of_the_settings(dtype, temperature, weight, device):
    student, teacher = (x * temperature for x in logits((2, CLASSES), torch.float64, device))
    limit = torch.finfo(dtype).max
    student, teacher = (x.clamp(-limit, limit).to(dtype) for x in (student, teacher))
    settings = {"temperature": temperature, "primary_weight": weight, "binary_weight": 0.0}
    leaf = student.requires_grad_()
    rows = gkd.loss(leaf, teacher, reduction="sum", **settings)
    (gradient,) = torch.autograd.grad(rows, leaf)
    wide = student.detach().double().requires_grad_()
    truth = torch.autograd.grad(
        gkd.loss(wide, teacher.double(), reduction="sum", **settings), wide
    )[0]
    if truth.abs().max() < limit:
        assert gradient.isfinite().all()
    if 1e-4 < truth.abs().max() < limit:
        assert error(gradient, truth) <= 1e-2
