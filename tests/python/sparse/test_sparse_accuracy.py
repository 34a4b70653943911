"""gkd.sparse_loss below float64: section by section what docs/numerics.md promises."""

import math

import pytest
import torch

import gkd
from cases import targets
from oracle import BOUND, error, gradient_bound, same_bits
from sparse import GROUPINGS, KINDS, on, pair, with_gradient

LOW = (torch.float32, torch.float16, torch.bfloat16)


def widened(group):
    return group._replace(logits=group.logits.double())


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("how", GROUPINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_table_given_the_same_group(device, kind, how, dtype):
    """The same rounded numbers in float64: the bounds of gkd.loss."""
    shapes = ((4, 3), (5, 33), (3, 256), (2, 1025), (1, 20_000))
    for shape in shapes if device == "cpu" else shapes[1:4:2]:
        student, teacher = pair(kind, shape, dtype)
        for target in (None, targets(shape) % 2) if device == "cpu" else (targets(shape) % 2,):
            kept = gkd.teacher_group(teacher, target, **GROUPINGS[how])
            wide = widened(kept)
            assert kept.logits.dtype == dtype and kept.rest.dtype == torch.float64
            for coupled in (False, True):
                settings = {"coupled": coupled, "reduction": "none"}
                there = on(device, kept, target)
                got, gradient = with_gradient(
                    lambda s, x=there, o=settings: gkd.sparse_loss(s, *x, **o), student.to(device)
                )
                wanted, slope = with_gradient(
                    lambda s, k=wide, t=target, o=settings: gkd.sparse_loss(s, k, t, **o),
                    student.double(),
                )
                assert got.dtype == torch.float32 and gradient.dtype == dtype
                assert error(got, wanted) <= BOUND[dtype], shape
                tiny = 2.0**-24 if dtype == torch.float16 else 0.0  # half its least number
                off = gradient_bound(dtype, 1.02) * slope.abs().max() + tiny
                assert (gradient - slope).abs().max() <= off, shape


@pytest.mark.parametrize("temperature", [1.0, 3.0, 4.0, 8.0])
@pytest.mark.parametrize("how", GROUPINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_the_loss_of_the_whole_teacher(kind, how, temperature):
    for shape in ((5, 33), (3, 256), (2, 1025), (1, 20_000)):
        student, teacher = pair(kind, shape, torch.float32)
        settings = {"temperature": temperature, "reduction": "none"}
        kept = gkd.teacher_group(teacher, temperature=temperature, **GROUPINGS[how])
        got, gradient = with_gradient(
            lambda s, k=kept, o=settings: gkd.sparse_loss(s, k, **o), student
        )
        full = unrounded(teacher, kept, temperature)
        wanted, slope = with_gradient(
            lambda s, k=full, o=settings: gkd.sparse_loss(s, k, **o), student.double()
        )
        assert error(got, wanted) <= 2e-6, shape
        assert error(gradient, slope) <= 2e-6, shape


def unrounded(teacher, kept, temperature=4.0):
    """The same group with the rest's number from the teacher's logits in float64: the loss of the
    whole teacher, as test_sparse_values.py has it."""
    wide = teacher.double() / temperature
    row = torch.repeat_interleave(torch.arange(len(wide)), kept.indptr.diff())
    wide[row, kept.indices.long()] = -math.inf
    return kept._replace(logits=kept.logits.double(), rest=wide.logsumexp(1))


def test_near_agreement_of_a_language_model():
    """Relative spread 1e-5: the table holds against the whole teacher. A float32 `rest` is off by
    more than student and teacher differ."""
    shape, spread = (2, 151_936), 1e-5
    teacher = torch.randn(shape) * 4
    student = teacher * (1 + spread * torch.randn(shape))
    kept = gkd.teacher_group(teacher, group_size=64)
    wanted, slope = with_gradient(
        lambda s: gkd.loss(s, teacher.double(), group_size=64, reduction="none"), student.double()
    )

    def errors(group):
        got, gradient = with_gradient(
            lambda s: gkd.sparse_loss(s, group, reduction="none"), student
        )
        return error(got, wanted), error(gradient, slope)

    assert max(errors(kept)) <= BOUND[torch.float32]
    assert min(errors(kept._replace(rest=kept.rest.float()))) > BOUND[torch.float32]


@pytest.mark.parametrize("spread", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
def test_near_agreement_has_the_digits_of_the_students_sum(spread):
    """Binary-KD is about P P' w^2/2, w the difference of the log odds: what the student's float32
    sum is off by changes it by P P' |w| times that."""
    teacher = torch.randn(4, 5000) * 4
    student = teacher + spread * torch.randn(4, 5000)
    kept = gkd.teacher_group(teacher, group_size=300)
    found = gkd.group(student.double(), teacher.double(), group_size=300)
    p, q = found.mass_teacher, found.mass_student
    w = ((p / (1 - p)).log() - (q / (1 - q)).log()).abs()
    dense = gkd.loss(student.double(), teacher.double(), group_size=300, reduction="none")
    got = gkd.sparse_loss(student, kept, reduction="none").double()
    off = 2e-7
    assert ((got - dense).abs() <= 2e-6 * dense + 16 * p * (1 - p) * (w + off) * off).all()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("kind", ["flat", "peaked", "padded"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_what_storing_16_bits_costs(dtype, kind, coupled, temperature):
    """With x = 2^-11 (bfloat16: 2^-8) of the group's largest |u|, over T: the bound of the docs."""
    t = temperature
    for shape in ((6, 40), (4, 300), (2, 5000)):
        student, teacher = pair(kind, shape)
        own = {"group_size": 12, "temperature": t}
        kept = gkd.teacher_group(teacher, **own)
        stored = gkd.teacher_group(teacher, dtype=dtype, **own)
        assert stored.indices.equal(kept.indices) and stored.indptr.equal(kept.indptr)
        settings = {"temperature": t, "coupled": coupled, "reduction": "none"}
        wanted, slope = with_gradient(
            lambda s, k=kept, o=settings: gkd.sparse_loss(s, k, **o), student
        )
        got, gradient = with_gradient(
            lambda s, k=stored, o=settings: gkd.sparse_loss(s, k, **o), student
        )
        unit = 2.0**-11 if dtype == torch.float16 else 2.0**-8
        found = gkd.group(student, teacher, **own)
        for row in range(shape[0]):
            mine = slice(*kept.indptr[row : row + 2].tolist())
            u, s = kept.logits[mine], student[row, kept.indices[mine].long()]
            finite = u > -math.inf
            x = unit * u[finite].abs().max() / t
            apart = ((u - s)[finite].max() - (u - s)[finite].min()) / t
            p, q = found.mass_teacher[row], found.mass_student[row]
            odds = (p.logit() - q.logit()).abs() if 0 < p < 1 else p * 0
            bound = 8 * x * (apart / 2 + x) + x * (odds + x) / 4
            bound += 8 * found.primary[row] * x / 4 if coupled else 0
            assert (got[row] - wanted[row]).abs() <= t**2 * bound * (1 + 1e-9) + 1e-12
            slopes = t * (x / 4 + 16 * x * math.exp(2 * x) + (8 * x / 4) * coupled)
            assert (gradient[row] - slope[row]).abs().max() <= 1.5 * slopes + 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, *LOW], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0, 4.0])
def test_training_in_low_precision(device, dtype, temperature):
    student, teacher = pair("flat", (5, 3001), dtype)
    target = targets((5, 3001))
    settings = {"temperature": temperature, "reduction": "none"}
    kept = gkd.teacher_group(teacher, target, group_size=40, temperature=temperature)
    given = {"margin": 0.3, "distillation_weight": 0.5}
    there = on(device, kept, target)
    got, gradient = with_gradient(
        lambda s: gkd.training_sparse_loss(s, *there, **given, **settings), student.to(device)
    )
    wide = widened(kept)
    wanted, slope = with_gradient(
        lambda s: gkd.training_sparse_loss(s, wide, target, **given, **settings), student.double()
    )
    for a, b in zip(got, wanted, strict=True):
        assert error(a, b) <= BOUND[dtype]
    assert error(gradient, slope) <= gradient_bound(dtype, 1.02)


@pytest.mark.parametrize("dtype", [torch.float64, *LOW], ids=str)
def test_any_strides_any_threads_the_same_bits(dtype):
    student, teacher = pair("flat", (3, 70_001), dtype)
    target = targets((3, 70_001))
    kept = gkd.teacher_group(teacher, target, group_size=500)

    def run(x, group=kept):
        return with_gradient(lambda s: gkd.training_sparse_loss(s, group, target), x)

    (wanted, *_), slope = run(student)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            (got, *_), gradient = run(student)
            assert same_bits(got, wanted) and same_bits(gradient, slope)
    finally:
        torch.set_num_threads(threads)
    spread = torch.empty(3, 140_002, dtype=dtype)[:, ::2].copy_(student)
    strided = gkd.TeacherGroup(*(torch.stack([x, x], -1)[..., 0] for x in kept))
    for x, group in ((spread, kept), (student.t().contiguous().t(), kept), (student, strided)):
        leaf = x.detach().requires_grad_()
        value = gkd.training_sparse_loss(leaf, group, target).total
        (gradient,) = torch.autograd.grad(value, leaf, torch.tensor(0.5, dtype=value.dtype))
        assert same_bits(value.detach(), wanted.detach()) and same_bits(gradient, slope)
