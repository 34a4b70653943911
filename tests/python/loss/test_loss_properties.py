"""Laws of the loss that hold for any input, tried on drawn ones."""

import torch
from hypothesis import strategies as st
from torch.nn.functional import kl_div

import gkd
from oracle import BOUND, error, gradient_bound, rows_and_gradient, same_bits, same_sums
from strategies import (
    WEIGHTS,
    batches,
    close,
    groupings,
    law,
    mask_of,
    on,
    rows_of,
)
from virtual_ranks import sharded


@law(batches(), groupings(), WEIGHTS)
def test_loss_is_never_negative(device, batch, how, weights):
    assert (rows_of(*on(device, batch), **how, **weights) >= 0).all()


@law(batches(), groupings(), WEIGHTS, st.booleans())
def test_gradient_rows_sum_to_zero(device, batch, how, weights, coupled):
    _, gradient = rows_and_gradient(*on(device, batch), coupled=coupled, **how, **weights)
    assert (gradient.sum(1).abs() <= 1e-12 * (1e-3 + gradient.abs().sum(1))).all()


@law(batches(), groupings(), WEIGHTS, st.integers(0, 2**31))
def test_row_permutation_permutes_the_bits(device, batch, how, weights, seed):
    rows = len(batch[0])
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).to(device)
    args = on(device, batch)
    weight = torch.linspace(0.5, 1.5, rows, dtype=torch.float64, device=device)
    leaf, turned = args[0].clone().requires_grad_(), args[0][order].requires_grad_()
    value = rows_of(leaf, *args[1:], **how, **weights)
    moved = rows_of(turned, *(x[order] for x in args[1:]), **how, **weights)
    assert same_bits(value[order], moved)
    (gradient,) = torch.autograd.grad(value, leaf, weight)
    assert same_bits(gradient[order], torch.autograd.grad(moved, turned, weight[order])[0])


@law(batches(), groupings(), WEIGHTS, st.integers(2, 4))
def test_row_duplication_repeats_the_bits(device, batch, how, weights, times):
    args = on(device, batch)
    many = [torch.cat([x] * times) for x in args]
    rows = rows_of(*args, **how, **weights)
    assert same_bits(rows_of(*many, **how, **weights), torch.cat([rows] * times))
    once = gkd.loss(*args, **how, **weights)
    assert close(gkd.loss(*many, **how, **weights), once)
    assert close(gkd.loss(*many, reduction="sum", **how, **weights), once * len(many[0]))


@law(batches(), groupings(), WEIGHTS, st.integers(0, 6))
def test_batch_split_keeps_the_bits(device, batch, how, weights, at):
    args = on(device, batch)
    whole = rows_and_gradient(*args, **how, **weights)
    weight = torch.linspace(0.5, 1.5, len(args[0]), dtype=torch.float64, device=device)
    for part in (slice(0, at), slice(at, None)):
        leaf = args[0][part].clone().requires_grad_()
        rows = rows_of(leaf, *(x[part] for x in args[1:]), **how, **weights)
        assert same_bits(rows, whole[0][part])
        assert same_bits(torch.autograd.grad(rows, leaf, weight[part])[0], whole[1][part])


@law(batches(grid=True), groupings(), st.tuples(*[st.integers(-3, 12)] * 2), st.booleans())
def test_logit_shift_by_powers_of_two_changes_nothing(device, batch, how, powers, single):
    """Sums of multiples of 1/64 with such numbers are exact, and only differences are used; but a
    CUDA device rounds the exponents of float32 once, after the shift."""
    student, teacher, target = on(device, batch)
    if single:
        student, teacher = student.float(), teacher.float()
    moved = [x + 2.0**k for x, k in zip((student, teacher), powers, strict=True)]
    assert mask_of(*moved, target, **how).equal(mask_of(student, teacher, target, **how))
    expected = rows_and_gradient(student, teacher, target, secondary_weight=1.0, **how)
    got = rows_and_gradient(*moved, target, secondary_weight=1.0, **how)
    assert same_sums(got[0], expected[0]) and same_sums(got[1], expected[1])


@law(batches(), groupings(), st.booleans())
def test_coupled_unit_weights_are_t_squared_kl(device, batch, how, with_target):
    student, teacher, target = on(device, batch)
    units = {"primary_weight": 1.0, "binary_weight": 1.0, "secondary_weight": 1.0}
    own = target if with_target else None
    got = rows_and_gradient(student, teacher, own, coupled=True, **units, **how)
    leaf, t = student.cpu().requires_grad_(), how["temperature"]
    log_q, log_p = (leaf / t).log_softmax(1), (teacher.cpu() / t).log_softmax(1)
    expected = t**2 * kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)
    weight = torch.linspace(0.5, 1.5, len(expected), dtype=torch.float64)
    (slope,) = torch.autograd.grad(expected, leaf, weight)
    # The plain sum cancels: what is left of it is off by an ulp of its terms, not of itself.
    assert close(got[0].cpu(), expected.detach(), 1e-11) and close(got[1].cpu(), slope, 1e-11)


def dkd_by_definition(student, teacher, target, alpha, beta, temperature):
    """Zhao et al., CVPR 2022: target against the rest, and the rest among themselves."""
    log_q, log_p = (x.div(temperature).log_softmax(1) for x in (student, teacher))
    rows = []
    for q, p, own in zip(log_q, log_p, target.tolist(), strict=True):
        rest = torch.arange(len(p)) != own
        if not rest.any():
            rows.append(p.new_zeros(()))
            continue
        p_rest, q_rest = p[rest].logsumexp(0), q[rest].logsumexp(0)
        tckd = p[own].exp() * (p[own] - q[own]) + p_rest.exp() * (p_rest - q_rest)
        a, b = p[rest] - p_rest, q[rest] - q_rest
        rows.append(temperature**2 * (alpha * tckd + beta * (a.exp() * (a - b)).sum()))
    return torch.stack(rows)


@law(batches(), st.sampled_from((1.0, 4.0)), st.sampled_from((0.5, 1.0, 8.0)))
def test_dkd_is_gdkd_of_the_largest_class(device, batch, temperature, beta):
    """DKD names the class, GDKD of one finds it; beside no other class its own KL is 0."""
    student, teacher, target = batch
    teacher = teacher.scatter(1, target[:, None], teacher.amax(1, keepdim=True) + 0.5)
    expected = dkd_by_definition(student, teacher, target, 1.5, beta, temperature)
    weights = {"binary_weight": 1.5, "secondary_weight": beta, "temperature": temperature}
    student, teacher, target = on(device, (student, teacher, target))
    dkd = rows_and_gradient(student, teacher, target, group_size=0, primary_weight=0.0, **weights)
    gdkd = rows_and_gradient(student, teacher, group_size=1, primary_weight=3.0, **weights)
    assert close(dkd[0].cpu(), expected, 1e-11)
    assert close(gdkd[0], dkd[0]) and close(gdkd[1], dkd[1])


@law(batches(), groupings(), WEIGHTS, st.sampled_from(list(BOUND)))
def test_student_that_is_the_teacher_has_no_loss(device, batch, how, weights, dtype):
    _, teacher, target = on(device, batch)
    teacher = teacher.to(dtype)
    for student in (teacher.clone(), teacher):
        rows, gradient = rows_and_gradient(student, teacher, target, **how, **weights)
        assert not rows.any() and not gradient.any()


DTYPE = st.sampled_from(list(BOUND))


@law(batches(), groupings(), WEIGHTS, st.tuples(DTYPE, DTYPE))
def test_dtypes_equal_their_upcast(device, batch, how, weights, dtypes):
    student, teacher, target = on(device, batch)
    student, teacher = student.to(dtypes[0]), teacher.to(dtypes[1])
    wide = torch.promote_types(torch.promote_types(*dtypes), torch.float32)
    upcast = student.to(wide), teacher.to(wide)
    got = rows_and_gradient(student, teacher, target, **how, **weights)
    expected = rows_and_gradient(*upcast, target, **how, **weights)
    assert same_sums(got[0], expected[0]) and got[1].dtype == dtypes[0]
    narrow = mask_of(student, teacher, target, **how)
    assert narrow.equal(mask_of(*upcast, target, **how))
    # Stored in the student's dtype, then scaled by grad_output: two roundings.
    if expected[1].abs().max() > 1e-3:  # float16 has no numbers far below
        assert error(got[1], expected[1].double()) <= gradient_bound(dtypes[0], 1.02)


@law(batches(), groupings(), st.lists(st.integers(0, 40), max_size=3))
def test_sharded_equals_unsharded(device, batch, how, cuts):
    student, teacher, target = on(device, batch)
    ends = sorted([0, *(min(c, student.shape[1]) for c in cuts), student.shape[1]])
    sizes = [b - a for a, b in zip(ends[:-1], ends[1:], strict=True)]
    settings = {**how, "secondary_weight": 0.5, "reduction": "none"}
    loss, stored, weight, cut = sharded(student, teacher, target, sizes, **settings)
    whole = gkd.group(student, teacher, target, **how)
    assert cut.equal(whole.cut)  # 0.0 is -0.0
    ones = torch.ones(len(student), dtype=torch.float64, device=device)
    leaf = student.clone().requires_grad_()
    rows = rows_of(leaf, teacher, target, secondary_weight=0.5, **how)
    (gradient,) = torch.autograd.grad(rows, leaf, ones)
    assert close(loss, rows.detach())
    assert close(stored, gradient) and weight == 1  # float64 stores it unscaled


@law(batches(), groupings(), WEIGHTS)
def test_loss_is_linear_in_its_weights(device, batch, how, weights):
    args = on(device, batch)
    whole = rows_of(*args, **how, **weights)
    total = torch.zeros_like(whole)
    for name, value in weights.items():
        only = {other: float(other == name) for other in weights}
        total = total + value * rows_of(*args, **only, **how)
    assert close(whole, total)
