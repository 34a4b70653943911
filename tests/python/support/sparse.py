"""Logits, groups and losses for gkd.sparse_loss, against gkd.loss of the whole teacher."""

import torch

import gkd

INF = float("inf")
#: How the groups are chosen.
GROUPINGS = {
    "threshold": {"threshold": 0.7},
    "size": {"group_size": 6},
    "both": {"threshold": 0.6, "group_size": 9, "group_temperature": 2.0},
    "nothing": {"group_size": 0},
    "everything": {"threshold": 1.0},
}
KINDS = ("flat", "peaked", "tied", "padded")


def pair(kind, shape, dtype=torch.float64):
    """A student and a teacher. "padded": the last third of both is -inf, but for the first class;
    ragged groups come of the tied and the peaked rows, whose peaks differ."""
    teacher = torch.randn(shape, dtype=torch.float64) * 3
    student = teacher + 2 * torch.randn(shape, dtype=torch.float64)
    if kind == "peaked":
        at = torch.randint(shape[1], (shape[0], 1))
        height = torch.linspace(0, 40, shape[0], dtype=torch.float64).unsqueeze(1)
        teacher.scatter_add_(1, at, height)
        student.scatter_add_(1, at, 0.7 * height)
    elif kind == "tied":
        teacher = (teacher / 2).round() * 2
    elif kind == "padded":
        for x in (student, teacher):
            x[:, max(1, shape[1] - shape[1] // 3) :] = -INF
    return student.to(dtype), teacher.to(dtype)


def on(device, *given):
    """Tensors, groups and None on a device."""
    moved = [
        type(x)(*on(device, *x)) if isinstance(x, tuple) else x if x is None else x.to(device)
        for x in given
    ]
    return moved[0] if len(moved) == 1 else moved


def with_gradient(function, student):
    """What it gives, and the gradient of a grad_output of its own in each row, on the CPU."""
    leaf = student.detach().clone().requires_grad_()
    value = function(leaf)
    total = value.total if isinstance(value, gkd.TrainingLoss) else value
    weight = torch.linspace(0.5, 1.5, total.numel()).reshape(total.shape)
    (gradient,) = torch.autograd.grad(total, leaf, weight.to(total))
    return on("cpu", value, gradient)


def edited(group, **changes):
    """A group with some of its numbers changed, by field and place."""
    fields = {name: field.clone() for name, field in group._asdict().items()}
    for name, places in changes.items():
        for place, value in places.items():
            fields[name][place] = value
    return gkd.TeacherGroup(**fields)
