"""gkd.sparse_linear_loss and gkd.training_sparse_linear_loss: a student's head whose chunks of
logits meet the groups of a teacher that is not there."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from ._linear_check import Call, check_call
from ._settings import takes_settings_of
from ._training import TrainingLoss, split_settings, training_of
from .functional import loss
from .linear import run_linear
from .sparse import LinearSparseSettings, SparseSettings, check_group, training_sparse_loss
from .teacher import TeacherGroup
from .training import check_target_is_given


@takes_settings_of(loss, SparseSettings)
def sparse_linear_loss(
    student_features: Tensor,
    student_weight: Tensor,
    teacher_group: TeacherGroup,
    target: Tensor | None = None,
    *,
    scale: float | None = None,
    normalize: bool = True,
    chunk_rows: int | None = None,
    **settings: Unpack[SparseSettings],
) -> Tensor:
    """`gkd.sparse_loss` of a head's logits, of which no [B, C] tensor is ever made.

    The same, but for memory, as ``gkd.sparse_loss(head(student_features, student_weight),
    teacher_group, target, ...)`` with the ``head`` of `gkd.linear_loss`. With ``normalize=False``
    that is the output layer of a language model. Rows go through in chunks, of which two
    [chunk_rows, C] matrices exist; beside them, memory is that of `gkd.linear_loss`.

    Args:
        student_features: [..., D], as in `gkd.linear_loss`.
        student_weight: [C, D], as in `gkd.linear_loss`.
        teacher_group: as in `gkd.sparse_loss`, of logits that are finished: ``scale`` is of the
            student's alone.
        target: as in `gkd.sparse_loss`.
        scale: as in `gkd.linear_loss`: 64 unless given, or 1 with ``normalize=False``.
        normalize: as in `gkd.linear_loss`.
        chunk_rows: as in `gkd.linear_loss`.
        **settings: as in `gkd.sparse_loss`.

    Returns:
        As `gkd.linear_loss`.

    Raises:
        ValueError: as in `gkd.linear_loss` and `gkd.sparse_loss`, as are the other errors.

    Examples:
        >>> features = torch.randn(8, 16, requires_grad=True)
        >>> weight = torch.randn(100, 16, requires_grad=True)
        >>> kept = gkd.teacher_group(torch.randn(8, 100), group_size=10)
        >>> gkd.sparse_linear_loss(features, weight, kept, normalize=False).backward()
        >>> weight.grad.shape
        torch.Size([100, 16])
    """
    name = "gkd.sparse_linear_loss"
    check_group(name, teacher_group)
    tensors = (student_features, student_weight, *teacher_group)
    call = Call.of(name, scale, normalize, chunk_rows, settings, is_sparse=True)
    check_call(call, tensors, target)
    return run_linear(tensors, target, call)[0]


@takes_settings_of(training_sparse_loss, LinearSparseSettings)
def training_sparse_linear_loss(
    student_features: Tensor,
    student_weight: Tensor,
    teacher_group: TeacherGroup,
    target: Tensor,
    *,
    scale: float | None = None,
    normalize: bool = True,
    chunk_rows: int | None = None,
    **settings: Unpack[LinearSparseSettings],
) -> TrainingLoss:
    """`gkd.training_sparse_loss` of a head's logits, of which no [B, C] tensor is ever made.

    A head that trains on a teacher that was kept: no logits of either network exist. Memory is that
    of `gkd.sparse_linear_loss`.

    Args:
        student_features: [..., D], as in `gkd.linear_loss`.
        student_weight: [C, D], as in `gkd.linear_loss`.
        teacher_group: as in `gkd.training_sparse_loss`, made with the targets.
        target: as in `gkd.training_sparse_loss`.
        scale: as in `gkd.linear_loss`: 64 unless given, or 1 with ``normalize=False``.
        normalize: as in `gkd.linear_loss`.
        chunk_rows: as in `gkd.linear_loss`.
        **settings: as in `gkd.training_sparse_loss`. The margin is of the cosines, before the
            scale.

    Returns:
        A `gkd.TrainingLoss`, whose total is differentiable once with respect to features and
        weight.

    Raises:
        ValueError: as in `gkd.sparse_linear_loss`, as are the other errors.

    Examples:
        >>> features = torch.randn(8, 16, requires_grad=True)
        >>> weight = torch.randn(100, 16, requires_grad=True)
        >>> target = torch.arange(8)
        >>> kept = gkd.teacher_group(torch.randn(8, 100), target, group_size=10)
        >>> loss = gkd.training_sparse_linear_loss(features, weight, kept, target, normalize=False)
        >>> loss.total.backward()
        >>> weight.grad.shape
        torch.Size([100, 16])
    """
    name = "gkd.training_sparse_linear_loss"
    check_target_is_given(name, target)
    check_group(name, teacher_group)
    given, head = split_settings(settings)
    training = training_of(name, target.shape, head)
    factors = (training.margins, training.distillation_factor)
    tensors = (student_features, student_weight, *teacher_group)
    call = Call.of(name, scale, normalize, chunk_rows, given, training.settings, is_sparse=True)
    check_call(call, tensors, target, factors=factors)
    return TrainingLoss(*run_linear(tensors, target, call, factors=factors))
