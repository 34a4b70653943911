"""gkd.sparse_linear_loss and gkd.training_sparse_linear_loss against the losses of logits that
exist."""

import pytest
import torch
import torch.nn.functional as F

import gkd
from cases import targets
from linear_reference import SCALE, B, C, gradients, networks
from made import Made
from oracle import BOUND, error, same_bits
from sparse import GROUPINGS, edited

pytestmark = pytest.mark.products


def logits_of(net, normalize=True):
    """The student's cosines, or products, of [B, C]."""
    unit = F.normalize if normalize else (lambda x: x)
    return F.linear(unit(net[0]), unit(net[1]))


def group_of(device, target=None, dtype=torch.float64, **grouping):
    teacher = torch.randn(B, C, dtype=torch.float64).mul(4).to(dtype).to(device)
    return gkd.teacher_group(teacher, target, **(grouping or {"group_size": 5}))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("normalize", [True, False], ids=["cosine", "plain"])
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_equals_the_steps(device, grouping, normalize, reduction):
    target = targets((B, C), device)
    target[1] = -100
    for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        net = networks(device, dtype)[:2]
        group = group_of(device, target, dtype, **GROUPINGS[grouping])
        factor = torch.linspace(0.5, 1.5, B, device=device)
        factor = factor if reduction == "none" else factor[0]
        scale = SCALE if normalize else 0.5
        margin = torch.linspace(0.1, 0.4, B, device=device, dtype=dtype)
        head = {"margin": margin, "distillation_weight": 0.5, "reduction": reduction}
        cosines = logits_of(net, normalize)
        wanted = gkd.training_sparse_loss(cosines, group, target, scale=scale, **head)
        alone = gkd.sparse_loss(scale * cosines, group, coupled=True, reduction=reduction)
        truth = [
            torch.autograd.grad(x, net, factor.to(x), retain_graph=True)
            for x in (wanted.total, alone)
        ]
        for chunk_rows in (3, None):
            how = {"scale": scale, "normalize": normalize, "chunk_rows": chunk_rows}
            value = gkd.training_sparse_linear_loss(*net, group, target, **how, **head)
            for a, b in zip(value, wanted, strict=True):
                assert a.dtype == b.dtype and error(a, b) <= bound
            found = [gradients(value.total, net, factor)]
            value = gkd.sparse_linear_loss(*net, group, coupled=True, reduction=reduction, **how)
            assert error(value, alone) <= bound
            found.append(gradients(value, net, factor))
            for a, b in zip(sum(found, ()), sum(truth, ()), strict=True):
                assert error(a, b) <= bound, chunk_rows


def test_any_leading_dimensions(device):
    net, target = networks(device)[:2], targets((B, C), device)
    group = group_of(device, target)
    how = {"reduction": "none", "chunk_rows": 2}
    wanted = gkd.training_sparse_linear_loss(*net, group, target, **how).total
    shaped = (net[0].reshape(1, B, 1, -1), net[1])
    shaped_target = target.reshape(1, B, 1)
    found = gkd.training_sparse_linear_loss(*shaped, group, shaped_target, **how).total
    assert found.shape == (1, B, 1) and same_bits(found.flatten(), wanted)


def test_no_rows(device):
    net = networks(device, rows=0)[:2]
    group = gkd.teacher_group(torch.zeros(0, C, device=device))
    value = gkd.sparse_linear_loss(*net, group)
    value.backward()
    assert value == 0 and net[1].grad.abs().max() == 0


def test_no_matrix_of_logits(device):
    net, target = networks(device, torch.float32)[:2], targets((B, C), device)
    group = group_of(device, target)
    with Made() as seen:
        gkd.training_sparse_linear_loss(*net, group, target, chunk_rows=2).total.backward()
    assert (B, C) not in {shape for _, shape in seen.made}
    assert (2, C) in {shape for _, shape in seen.made}


def test_under_autocast(device):
    net, target = networks(device, torch.float32)[:2], targets((B, C), device)
    group = group_of(device, target)
    with torch.autocast(device, torch.bfloat16):
        value = gkd.training_sparse_linear_loss(*net, group, target, margin=0.4)
        wanted = gkd.training_sparse_loss(logits_of(net), group, target, scale=64.0, margin=0.4)
    assert value.total.dtype == wanted.total.dtype
    assert error(value.total, wanted.total) <= 2e-2


def test_compiles(device):
    net, target = networks(device, torch.float32)[:2], targets((B, C), device)
    group = group_of(device, target)
    weight = torch.full((), 0.5, device=device)

    def step(*tensors):
        return gkd.training_sparse_linear_loss(
            *tensors[:2], group, target, distillation_weight=tensors[2], chunk_rows=3
        ).total

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for k in range(3):
        weight.fill_(k / 2)
        assert error(compiled(*net, weight), step(*net, weight)) <= BOUND[torch.float32]


def test_a_rows_number_is_the_batchs():
    """Not the chunk's."""
    net, target = networks("cpu")[:2], targets((B, C))
    group = group_of("cpu", target)
    for change in ({"indices": {-1: C}}, {"indices": {-1: 0}}):
        with pytest.raises((IndexError, ValueError), match=rf"\(row {B - 1}\)"):
            gkd.sparse_linear_loss(*net, edited(group, **change), chunk_rows=2)
    other = (target + 1) % C
    alone = gkd.teacher_group(torch.randn(B, C), other, group_size=0)
    other[-1] = target[-1]
    with pytest.raises(IndexError, match=rf"target {target[-1]} is not in .*\(row {B - 1}\)"):
        gkd.training_sparse_linear_loss(*net, alone, other, chunk_rows=2)


def test_errors_name_the_function():
    net, target = networks("cpu")[:2], targets((B, C))
    group = group_of("cpu", target)
    longer = group._replace(
        indices=torch.cat([group.indices, group.indices[-1:]]),
        logits=torch.cat([group.logits, group.logits[-1:]]),
    )
    needs_grad = group._replace(logits=group.logits.clone().requires_grad_())
    for other, settings, kind, words in (
        (group, {"scale": 0.0}, ValueError, "scale must be finite and > 0"),
        (group, {"chunk_rows": 0}, ValueError, "chunk_rows must be >= 1"),
        (group, {"secondary_weight": 1.0}, ValueError, "secondary_weight must be 0"),
        (group, {"group_size": 3}, ValueError, "are settings of gkd.teacher_group"),
        (tuple(group[:3]), {}, TypeError, "teacher_group must be a gkd.TeacherGroup"),
        (longer, {}, ValueError, "indptr must lead from 0 to"),
        (group._replace(rest=group.rest[1:]), {}, ValueError, "teacher_group.rest must be"),
        (needs_grad, {}, ValueError, "teacher_group.logits.detach"),
    ):
        for call, of_target in (
            (gkd.sparse_linear_loss, None),
            (gkd.training_sparse_linear_loss, target),
        ):
            with pytest.raises(kind, match=words) as raised:
                call(*net, other, of_target, **settings)
            assert call.__name__ in str(raised.value)
