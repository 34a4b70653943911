"""gkd.teacher_group and gkd.sparse_loss: a teacher that is grouped once, and needed no more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor
from typing_extensions import Unpack

from ._settings import INTEGER, call_op, is_dtensor, plain, plain_settings, takes_settings_of
from ._training import TrainingLoss, training_of
from .functional import check_tensors, loss
from .teacher import TeacherGroup
from .training import check_target_is_given


class SparseSettings(TypedDict, total=False):
    """The keywords of `gkd.sparse_loss`: those of `gkd.loss` that do not choose the group."""

    temperature: float
    primary_weight: float
    binary_weight: float
    secondary_weight: float
    coupled: bool
    rank_by: Literal["teacher"]
    reduction: Literal["mean", "sum", "none"]
    ignore_index: int


class LinearSparseSettings(SparseSettings, total=False):
    """Those of `gkd.training_sparse_linear_loss`, which has a default of its own for the scale."""

    cross_entropy_weight: float
    distillation_weight: float | Tensor
    margin: float | Tensor


class SparseTrainingSettings(LinearSparseSettings, total=False):
    """The keywords of `gkd.training_sparse_loss`."""

    scale: float


def teacher_group(
    teacher_logits: Tensor,
    target: Tensor | None = None,
    *,
    threshold: float | None = None,
    group_size: int | None = None,
    temperature: float = 4.0,
    group_temperature: float | None = None,
    dtype: torch.dtype | None = None,
    max_classes: int | None = None,
) -> TeacherGroup:
    """What `gkd.sparse_loss` needs of a teacher: each row's group, and one number for the rest.

    The groups are those of `gkd.loss` with ``rank_by="teacher"``. The teacher's logits can be
    thrown away afterwards: of a row, 6 bytes per class of its group with float16, and 16, are left.
    Beside the result it allocates some 100 MiB at most (more where one row is longer than 2 million
    classes), whatever the number of rows; a device is waited for, as n depends on the logits.

    Args:
        teacher_logits: [..., C], float16, bfloat16, float32 or float64; the leading dimensions are
            rows, B in all. Finished logits: those of a cosine head times its scale.
        target: int64 or int32 [...], a class per row, which joins its row's group; -100 for a row
            without one. Targets of `gkd.sparse_loss` must be in their rows' groups.
        threshold: as in `gkd.loss`.
        group_size: as in `gkd.loss`.
        temperature: T of `gkd.sparse_loss`: ``rest`` serves no other.
        group_temperature: as in `gkd.loss`.
        dtype: of the logits that are kept; the teacher's own unless given. The groups and ``rest``
            are those of the logits before they are rounded.
        max_classes: the largest group, counting ties and the target, that is not an error.

    Returns:
        A `gkd.TeacherGroup` on the logits' device. Nothing of it is differentiable.

    Raises:
        ValueError: a shape or a setting that does not fit, or a group of more than ``max_classes``,
            with its row and size.
        TypeError: a dtype that is not supported.
        IndexError: a target that is neither a class nor -100.

    Examples:
        >>> teacher = torch.tensor([[8.0, 7.0, 0.0, -1.0]])
        >>> found = gkd.teacher_group(teacher, temperature=1.0, dtype=torch.float16)
        >>> found.indices.tolist(), found.logits.tolist(), round(found.rest.item(), 4)
        ([0, 1], [8.0, 7.0], 0.3133)
    """
    name = "gkd.teacher_group"
    check_tensors(name, teacher_logits, teacher_logits, target, first="teacher_logits")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name}: dtype must be a torch.dtype or None, got {dtype!r}")
    if max_classes is not None:
        max_classes = plain(name, "max_classes", max_classes, INTEGER)
    settings = plain_settings(
        name,
        {
            "threshold": threshold,
            "group_size": group_size,
            "temperature": temperature,
            "group_temperature": group_temperature,
        },
    )
    with torch.no_grad():
        parts = call_op(
            name,
            torch.ops.gkd.teacher_group,
            teacher_logits,
            target,
            dtype,
            max_classes,
            **settings,
        )
    return TeacherGroup(*parts)


# The override is for a second import into one process.
@torch.library.register_fake("gkd::teacher_group", allow_override=True)  # type: ignore[untyped-decorator]
def _(
    teacher_logits: Tensor,
    target: Tensor | None = None,
    dtype: torch.dtype | None = None,
    max_classes: int | None = None,
    **settings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.ops.gkd._check_teacher_group(teacher_logits, target, dtype, max_classes, **settings)
    rows = math.prod(teacher_logits.shape[:-1])
    classes = torch.library.get_ctx().new_dynamic_size()
    kept = teacher_logits.dtype if dtype is None else dtype
    new = teacher_logits.new_empty
    return (
        new((rows + 1,), dtype=torch.int64),
        new((classes,), dtype=torch.int32),
        new((classes,), dtype=kept),
        new((rows,), dtype=torch.float64),
    )


def check_group(name: str, group: object) -> None:
    """TypeError unless it is four tensors."""
    if not isinstance(group, tuple) or len(group) != len(TeacherGroup._fields):
        raise TypeError(
            f"{name}: teacher_group must be a gkd.TeacherGroup, got {type(group).__name__}; "
            "gkd.teacher_group makes one of a teacher's logits"
        )
    for field, value in zip(TeacherGroup._fields, group, strict=True):
        if not isinstance(value, Tensor) or is_dtensor(value):
            raise TypeError(
                f"{name}: teacher_group.{field} must be a Tensor, got {type(value).__name__}"
            )


@takes_settings_of(loss, SparseSettings)
def sparse_loss(
    student_logits: Tensor,
    teacher_group: TeacherGroup,
    target: Tensor | None = None,
    **settings: Unpack[SparseSettings],
) -> Tensor:
    """`gkd.loss` of a teacher that was grouped before: one read of the student, one write.

    With ``secondary_weight=0`` and the teacher's ranking, `gkd.loss` depends on the teacher through
    its groups alone; so this is ``gkd.loss(student_logits, teacher_logits, target)``, without the
    teacher's logits. With ``coupled=True``, all weights 1, T = 1 and groups of a size K it is the
    KL divergence over the K classes and one class for all others together.

    Args:
        student_logits: [..., C], as in `gkd.loss`.
        teacher_group: of as many rows, on the same device, made with the same ``temperature``; its
            logits may have another dtype than the student's. ``rest`` in float32 is taken too.
        target: int64 or int32 [...], each a class of its row's group, or ``ignore_index``.
        **settings: as in `gkd.loss`. What cannot be had: ``secondary_weight`` and
            ``rank_by="student"``, which need the teacher's other logits; another group or
            temperature than the group was made with.

    Returns:
        A scalar, or [...] with reduction "none"; float32, or float64 where the student or the
        group's logits are. A row whose ``rest`` is NaN has a loss and a gradient of NaN; on CUDA so
        has one whose classes, ``indptr`` or target would raise on the CPU, because an exception
        would wait for the device.

    Raises:
        ValueError: as in `gkd.loss`; a group whose ``indptr`` does not lead from 0 to n, or whose
            classes do not ascend within a row.
        TypeError: a dtype that is not supported.
        IndexError: a class of the group that the student does not have; a target that is not in
            its row's group.
        NotImplementedError: derivatives that do not exist, which `gkd.reference.sparse_loss` has.

    Examples:
        >>> teacher, student = torch.randn(4, 500), torch.randn(4, 500, requires_grad=True)
        >>> kept = gkd.teacher_group(teacher, group_size=20)
        >>> value = gkd.sparse_loss(student, kept)
        >>> value.backward()
        >>> torch.allclose(value, gkd.loss(student, teacher, group_size=20))
        True
    """
    return checked_sparse_loss("gkd.sparse_loss", student_logits, teacher_group, target, settings)


def checked_sparse_loss(
    name: str,
    student_logits: Tensor,
    teacher_group: TeacherGroup,
    target: Tensor | None,
    settings: Mapping[str, Any],
) -> Tensor:
    """`sparse_loss`, whose errors name the function ``name``."""
    check_tensors(name, student_logits, student_logits, target)
    check_group(name, teacher_group)
    given = plain_settings(name, settings)
    value: Tensor = call_op(
        name, torch.ops.gkd.sparse_loss, student_logits, *teacher_group, target, **given
    )
    return value


@takes_settings_of(loss, SparseSettings)
def training_sparse_loss(
    student_logits: Tensor,
    teacher_group: TeacherGroup,
    target: Tensor,
    *,
    cross_entropy_weight: float = 1.0,
    distillation_weight: float | Tensor = 1.0,
    scale: float = 1.0,
    margin: float | Tensor = 0.0,
    **settings: Unpack[SparseSettings],
) -> TrainingLoss:
    """`gkd.training_loss` of a teacher that was grouped before, in one pass over the student.

    Args:
        student_logits: as in `gkd.training_loss`.
        teacher_group: as in `gkd.sparse_loss`, made with the targets. Its logits are finished:
            ``scale`` multiplies the student's alone, so group a cosine teacher's as
            ``gkd.teacher_group(scale * teacher_cosines, target)``.
        target: int64 or int32 [...], each a class of its row's group, or ``ignore_index``.
        cross_entropy_weight: as in `gkd.training_loss`.
        distillation_weight: as in `gkd.training_loss`.
        scale: as in `gkd.training_loss`, of the student.
        margin: as in `gkd.training_loss`, of cross-entropy. The distillation has none
            (``distill_margin``): the groups were chosen without it.
        **settings: as in `gkd.sparse_loss`.

    Returns:
        A `gkd.TrainingLoss`.

    Raises:
        ValueError: as in `gkd.sparse_loss`, as are the other errors.

    Examples:
        >>> cosines = torch.rand(8, 100).mul(2).sub(1).requires_grad_()
        >>> teacher, target = torch.rand(8, 100), torch.randint(100, (8,))
        >>> kept = gkd.teacher_group(64.0 * teacher, target, group_size=10)
        >>> loss = gkd.training_sparse_loss(cosines, kept, target, scale=64.0, margin=0.4)
        >>> loss.total.backward()
    """
    name = "gkd.training_sparse_loss"
    check_tensors(name, student_logits, student_logits, target)
    check_target_is_given(name, target)
    check_group(name, teacher_group)
    training = training_of(
        name,
        target.shape,
        {
            "cross_entropy_weight": cross_entropy_weight,
            "distillation_weight": distillation_weight,
            "scale": scale,
            "margin": margin,
        },
    )
    given = {**plain_settings(name, settings), **training.arguments()}
    op = torch.ops.gkd.training_sparse_loss
    return TrainingLoss(*call_op(name, op, student_logits, *teacher_group, target, **given))
