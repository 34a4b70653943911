"""Laws that hold for any input, tried on generated ones."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gkd

# Deterministic, so that a failure is the change's and not the day's.
LAW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# Halves and small integers among them: ties at the cut are frequent.
LOGIT = st.one_of(
    st.integers(-6, 6).map(lambda n: n / 2),
    st.floats(-40, 40, allow_subnormal=False),
)


@st.composite
def batches(draw):
    """(student, teacher, target) in float64: up to 4 rows of up to 20 classes."""
    rows, classes = draw(st.integers(1, 4)), draw(st.integers(1, 20))
    flat = draw(st.lists(LOGIT, min_size=2 * rows * classes, max_size=2 * rows * classes))
    both = torch.tensor(flat, dtype=torch.float64).view(2, rows, classes)
    target = draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    return both[0], both[1], torch.tensor(target)


@st.composite
def groupings(draw):
    """A way to choose the group, and a temperature."""
    how = draw(
        st.one_of(
            st.floats(0.01, 1.0).map(lambda t: {"threshold": t}),
            st.integers(0, 25).map(lambda k: {"group_size": k}),
        )
    )
    how["rank_by"] = draw(st.sampled_from(["teacher", "student"]))
    how["temperature"] = draw(st.sampled_from([1.0, 4.0]))
    return how


def rows_of(student, teacher, target=None, **settings):
    return gkd.loss(student, teacher, target, reduction="none", **settings)


@LAW
@given(batches(), groupings())
def test_loss_is_never_negative_and_its_gradient_sums_to_zero(device, batch, how):
    student, teacher, target = (x.to(device) for x in batch)
    leaf = student.requires_grad_()
    rows = rows_of(leaf, teacher, target, secondary_weight=1.0, **how)
    (gradient,) = torch.autograd.grad(rows.sum(), leaf)
    assert (rows >= 0).all()
    assert (gradient.sum(1).abs() <= 1e-12 * (1 + gradient.abs().sum(1))).all()


@LAW
@given(batches(), groupings(), st.randoms(use_true_random=False))
def test_the_order_of_the_classes_does_not_matter(device, batch, how, random):
    student, teacher, _ = (x.to(device) for x in batch)
    order = list(range(student.shape[1]))
    random.shuffle(order)
    mask = gkd.group(student, teacher, return_mask=True, **how).mask
    shuffled = gkd.group(student[:, order], teacher[:, order], return_mask=True, **how).mask
    assert torch.equal(mask[:, order], shuffled)
    torch.testing.assert_close(
        rows_of(student[:, order], teacher[:, order], **how),
        rows_of(student, teacher, **how),
        rtol=1e-12,
        atol=1e-13,
    )


@LAW
@given(batches(), st.floats(0.01, 0.999))
def test_the_group_is_the_smallest_that_reaches_the_threshold(device, batch, threshold):
    student, teacher, _ = (x.to(device) for x in batch)
    group = gkd.group(student, teacher, threshold=threshold, return_mask=True)
    p = (teacher / 4).softmax(1)
    assert (group.mass_teacher >= threshold - 1e-12).all()
    lowest = group.mask & (teacher == group.cut[:, None])
    assert lowest.any(1).all() and torch.equal(group.mask, teacher >= group.cut[:, None])
    assert (group.mass_teacher - (p * lowest).sum(1) < threshold + 1e-12).all()


@LAW
@given(batches(), groupings())
def test_the_loss_is_linear_in_its_weights(device, batch, how):
    student, teacher, target = (x.to(device) for x in batch)
    names = ("primary_weight", "binary_weight", "secondary_weight")
    parts = []
    for name in names:
        only = {other: float(other == name) for other in names}
        parts.append(rows_of(student, teacher, target, **only, **how))
    weights = dict(zip(names, (3.0, -0.5, 2.0), strict=True))
    whole = rows_of(student, teacher, target, **weights, **how)
    expected = 3.0 * parts[0] - 0.5 * parts[1] + 2.0 * parts[2]
    torch.testing.assert_close(whole, expected, rtol=1e-12, atol=1e-12)


@LAW
@given(batches(), groupings(), st.sampled_from([-1024.0, 0.5, 4096.0]))
def test_a_shift_of_a_row_changes_nothing(device, batch, how, shift):
    student, teacher, target = (x.to(device) for x in batch)
    expected = rows_of(student, teacher, target, **how)
    mask = gkd.group(student, teacher, return_mask=True, **how).mask
    moved = gkd.group(student + shift, teacher + shift, return_mask=True, **how).mask
    if torch.equal(mask, moved):  # the sum rounds: a tie may open
        got = rows_of(student + shift, teacher + shift, target, **how)
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)
