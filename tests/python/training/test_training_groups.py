"""gkd.group and gkd.adaptive_group_size with the scale and the margin of gkd.training_loss."""

import pytest
import torch

import gkd
from cases import targets
from gkd._reference_terms import primary_group
from made import Made
from oracle import error, same_bits
from test_training_values import cosines

ROWS, CLASSES = 5, 700
GROUPS = [{}, {"threshold": 0.6, "group_temperature": 2.0}, {"group_size": 40}]


def batch(device, dtype=torch.float64):
    return *cosines((ROWS, CLASSES), 64.0, dtype, device), targets((ROWS, CLASSES), device)


def lowered(logits, target, margin, scale=64.0):
    """Logits as training_loss makes them of cosines, in float64."""
    onehot = torch.nn.functional.one_hot(target.long().clamp(min=0), logits.shape[1]).double()
    onehot *= (target >= 0).unsqueeze(1)
    return scale * (
        logits.double() - torch.as_tensor(margin, dtype=torch.float64).reshape(-1, 1) * onehot
    )


@pytest.mark.parametrize("margin", [0.0, 0.05, "per row"], ids=str)
@pytest.mark.parametrize("both", [False, True], ids=["distill", "distill_margin"])
@pytest.mark.parametrize("rank_by", ["teacher", "student"])
@pytest.mark.parametrize("how", GROUPS, ids=str)
def test_equals_the_group_of_prepared_logits(device, how, rank_by, both, margin):
    student, teacher, target = batch(device)
    target[2] = -100
    m = torch.linspace(-0.02, 0.1, ROWS, device=device) if margin == "per row" else margin
    head = {"scale": 64.0, "margin": m, "distill_margin": both, "cross_entropy_weight": 0.5}
    found = gkd.group(student, teacher, target, return_mask=True, rank_by=rank_by, **how, **head)
    prepared = [lowered(x, target, m if both else 0.0) for x in (student, teacher)]
    wanted = gkd.group(*prepared, target, return_mask=True, rank_by=rank_by, **how)
    assert same_bits(found.mask, wanted.mask) and same_bits(found.size, wanted.size)
    counted = target != -100
    for name in ("mass_teacher", "mass_student", "cut", "primary", "binary", "secondary"):
        one, other = getattr(found, name), getattr(wanted, name)
        assert one[2].isnan() and other[2].isnan()
        assert error(one[counted], other[counted]) <= 1e-11, name
    if "group_size" not in how:  # and the definition, which has no part of the library in it
        rank = prepared[int(rank_by == "teacher")].cpu()
        temperature = how.get("group_temperature", 4.0)
        mask = primary_group(rank, how.get("threshold"), None, temperature)
        mask |= torch.arange(CLASSES) == target.cpu().unsqueeze(1)
        assert same_bits(found.mask[counted].cpu(), mask[counted.cpu()])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_margin_is_not_rounded_to_the_logits_dtype(device, dtype):
    student, teacher, _ = batch(device, dtype)
    target = teacher.argmax(1)
    head = {"scale": 64.0, "margin": 0.0371, "distill_margin": True, "threshold": 0.6}
    found = gkd.group(student, teacher, target, **head)
    wanted = gkd.group(
        *(lowered(x, target, 0.0371) for x in (student, teacher)), target, threshold=0.6
    )
    assert same_bits(found.size, wanted.size)
    assert error(found.primary, wanted.primary) <= 2e-6


def test_equals_the_terms_of_training_loss(device):
    student, teacher, target = batch(device)
    head = {"scale": 64.0, "margin": 0.05, "distill_margin": True, "rank_by": "student"}
    value = gkd.training_loss(student, teacher, target, reduction="none", **head)
    found = gkd.group(student, teacher, target, reduction="none", **head)
    assert error(value.distillation, 16 * (found.binary + 8 * found.primary)) <= 1e-11


def test_a_scale_takes_no_copy(device):
    """Nor does a margin that the distillation does not see, or of 0."""
    student, teacher, target = batch(device, torch.float32)
    for head in ({"margin": 0.4}, {"distill_margin": True}):
        with Made() as seen:
            gkd.group(student, teacher, target, scale=64.0, **head)
        assert (ROWS, CLASSES) not in {shape for _, shape in seen.made}
    with Made() as seen:
        gkd.group(student, teacher, target, scale=64.0, margin=0.4, distill_margin=True)
    assert (ROWS, CLASSES) in {shape for _, shape in seen.made}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_margins_that_are_no_number(device, bad):
    student, teacher, target = batch(device)
    margin = torch.full((ROWS,), 0.1, device=device)
    margin[1] = bad
    found = gkd.group(student, teacher, target, scale=64.0, margin=margin, distill_margin=True)
    assert found.primary.isnan().tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("margin", [0.0, 0.05, "per row"], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_adaptive_size_of_cosines(device, dtype, margin):
    student, _, target = batch(device, dtype)
    target[2] = -100  # a row without a class counts too, as it is: here, sure of class 0
    student[2, 0] = student[2].max() + 0.06
    m = torch.linspace(0.0, 0.1, ROWS, device=device) if margin == "per row" else margin
    before = student.clone()
    for rate, step in ((0.93, 7), (0.5, 1)):
        size = gkd.adaptive_group_size(student, rate, step, target=target, scale=64.0, margin=m)
        wanted = gkd.adaptive_group_size(lowered(student, target, m), rate, step)
        assert size.device == student.device and abs(int(size) - int(wanted)) <= (
            0 if dtype == torch.float64 else step
        )
    assert same_bits(student, before)
    plain = gkd.adaptive_group_size(student, 0.5, 1, scale=64.0)
    assert int(plain) == int(gkd.adaptive_group_size(lowered(student, target, 0.0), 0.5, 1))


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"scale": 0.0}, ValueError, "scale"),
        ({"scale": "64"}, TypeError, "scale must be a number"),
        ({"margin": 0.4}, ValueError, "need a target"),
        ({"margin": torch.zeros(3)}, ValueError, "target|margin must be"),
        ({"margin": torch.zeros(ROWS, dtype=torch.int64)}, (TypeError, ValueError), "margin"),
    ],
    ids=str,
)
@pytest.mark.parametrize("function", ["group", "adaptive_group_size"])
def test_settings_that_do_not_fit(function, settings, kind, words):
    student, teacher, _ = batch("cpu", torch.float32)
    pair = (student, teacher) if function == "group" else (student,)
    with pytest.raises(kind, match=f"gkd.{function}: .*({words})"):
        getattr(gkd, function)(*pair, **settings)


def test_compiles():
    student, teacher, target = batch("cpu", torch.float32)
    margin = torch.full((ROWS,), 0.05)

    def sizes(student, teacher, target, margin):
        head = {"scale": 64.0, "margin": margin}
        both = gkd.group(student, teacher, target, distill_margin=True, **head).size
        return both, gkd.adaptive_group_size(student, 0.5, 1, target=target, **head)

    args = (student, teacher, target, margin)
    compiled = torch.compile(sizes, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(*args), sizes(*args), strict=True):
        assert same_bits(one, other)
