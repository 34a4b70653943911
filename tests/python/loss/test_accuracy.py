"""A small part of the accuracy table, on every change; accuracy.py measures all of it."""

import pytest
import torch

from accuracy import SPREADS, TEMPERATURES, Group, measure, truth
from oracle import BOUND, DTYPES, gradient_bound, loss_rows

#: float16 has no numbers for the gradient of logits that are equal but for a few roundings.
SKIPPED = {(torch.float16, 1e-5)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_keeps_the_promise(device, dtype, temperature):
    for classes in (10, 1000):
        for spread in SPREADS:
            if (dtype, spread) in SKIPPED:
                continue
            for f in measure(dtype, classes, temperature, spread, device):
                assert f.loss <= BOUND[dtype], f
                # A row whose differences happen to cancel is worse conditioned than its batch.
                assert f.row_loss <= 10 * BOUND[dtype], f
                assert f.gradient <= gradient_bound(dtype, 0.51), f


def test_truth_agrees_with_plain_formulas_far_apart():
    student, teacher = torch.randn(1, 50).double() * 3, torch.randn(1, 50).double() * 6
    mask = teacher > 2
    value, gradient = truth(student[0].numpy(), teacher[0].numpy(), mask[0].numpy(), 2.0)(8, 1, 0.5)
    leaf = student.clone().requires_grad_()
    plain = loss_rows(leaf, teacher, mask, temperature=2.0, secondary_weight=0.5)
    plain.sum().backward()
    assert abs(float(value) / plain.item() - 1) <= 1e-13
    assert abs(gradient.astype(float) - leaf.grad[0].numpy()).max() <= 1e-13


def test_truth_forms_agree_where_both_hold():
    teacher = torch.randn(200).double().numpy().astype("longdouble")
    for spread in (0.4, 0.9):  # just below and above where the form changes
        student = teacher + spread * torch.rand(200).double().numpy()
        group = Group(student, teacher)
        log_p, log_q = (group.log_p, group.log_p + group.log_ratio)
        q = torch.from_numpy((student - log_q).astype(float)).exp()
        assert abs(q.sum().item() - 1) <= 1e-13
        assert abs(float(group.gap.sum())) <= 1e-15 and log_p == group.log_p
