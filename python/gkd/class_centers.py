"""Class centres of a teacher's embeddings: the head of a teacher that comes without one."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ._center_rows import check_rows, gathered, lowest
from ._settings import INTEGER, plain

Empty = Literal["error", "zero", "nan"]
_EMPTY = ("error", "zero", "nan")


class ClassCenters:
    """Centres of embeddings that come in batches: memory is that of the centres alone.

    A class's centre is the mean of its embeddings, each divided by its norm, divided by its own
    norm again. As a head, with ``normalize=True``, it is the weight that
    `gkd.training_linear_loss` and ``F.linear`` of normalised features take.

    Args:
        num_classes: C, of the whole head.
        dimension: D.
        process_group: None: this process sees all embeddings and keeps all classes. A group: every
            rank adds embeddings of its own, and keeps the centres of its own classes, by partial
            FC's division: C // W classes a rank, and one more on each of the first C % W.
        device: where the sums are; ``add`` takes embeddings of this device.
        dtype: of the sums, float32 or float64; float32 has 24 bits for a class's mean too.

    Attributes:
        counts: int64 [C_r], how many embeddings each class has.
        class_start: the first class that this rank keeps; C_r of them.

    Raises:
        ValueError: fewer than one class or dimension, a dtype that is none of the two.

    Examples:
        >>> teacher = gkd.ClassCenters(3, 2)
        >>> for embeddings, labels in [([[2.0, 0.0], [0.0, 1.0]], [0, 2]), ([[0.0, -5.0]], [1])]:
        ...     teacher.add(torch.tensor(embeddings), torch.tensor(labels))
        >>> teacher.centers().tolist()
        [[1.0, 0.0], [0.0, -1.0], [0.0, 1.0]]
    """

    _name = "gkd.ClassCenters"

    def __init__(
        self,
        num_classes: int,
        dimension: int,
        *,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        for key, value in (("num_classes", num_classes), ("dimension", dimension)):
            if plain(self._name, key, value, INTEGER) < 1:
                raise ValueError(f"{self._name}: {key} must be >= 1, got {value}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{self._name}: dtype must be float32 or float64, got {dtype}")
        self.num_classes, self.dimension, self.group = num_classes, dimension, process_group
        self.class_start, classes = 0, num_classes
        if process_group is not None:
            rank, world_size = dist.get_rank(process_group), dist.get_world_size(process_group)
            each, more = divmod(num_classes, world_size)
            self.class_start = rank * each + min(rank, more)
            classes = each + (rank < more)
        self._sums = torch.zeros(classes, dimension, dtype=dtype, device=device)
        self.counts = torch.zeros(classes, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        """Counts a batch in; with a process group every rank's, so all call it equally often.

        Args:
            embeddings: [..., D], float16, bfloat16, float32 or float64, of any length. The mirror
                image of a photograph is one more embedding. One that is all 0 has no direction and
                adds none; a NaN or an infinity makes its class's centre NaN, and no other.
            labels: int64 or int32 [...], counted from class 0 of the whole head. With a group,
                ranks may have different numbers of rows, or none.

        Raises:
            ValueError: shapes that do not fit.
            TypeError: a dtype that is not supported.
            IndexError: a label out of bounds, naming its row.
            RuntimeError: tensors on another device than the sums.
        """
        fault = check_rows(self._name, embeddings, labels, self._sums, self.num_classes)
        if self.group is None:
            if fault is not None:
                raise fault
            rows, labels = embeddings.flatten(0, -2), labels.flatten().long()
        else:
            rows, labels = gathered(self._name, embeddings, labels, self._sums, fault, self.group)
        labels = labels - self.class_start
        mine = (labels >= 0) & (labels < len(self.counts))
        rows, labels = rows[mine].to(self._sums.dtype), labels[mine]
        self._sums.index_add_(0, labels, F.normalize(rows, dim=1))
        self.counts.index_add_(0, labels, torch.ones_like(labels))

    @torch.no_grad()
    def centers(self, *, empty: Empty = "error") -> Tensor:
        """The centres so far, [C_r, D] of the sums' dtype; more may be added afterwards.

        Args:
            empty: what a class without an embedding gets. "error"; "zero", a cosine of 0 with
                everything, which is a class among the likely ones of a head whose other cosines are
                mostly near 0; or "nan", which a loss would show at once.

        Raises:
            ValueError: with "error", naming the first class without an embedding, on every rank.
        """
        if empty not in _EMPTY:
            raise ValueError(f"{self._name}: empty must be one of {_EMPTY}, got {empty!r}")
        without = self.counts == 0
        if empty == "error":
            missing = self.class_start + without.nonzero().flatten()
            first, number = lowest(missing, self.num_classes, self.group)
            if number:
                raise ValueError(
                    f"{self._name}: {number} of {self.num_classes} classes have no embedding, the "
                    f'first of them class {first}; pass empty="zero" or empty="nan"'
                )
        made = F.normalize(self._sums, dim=1)
        return made.masked_fill_(without[:, None], float("nan")) if empty == "nan" else made


class _Named(ClassCenters):
    """The same under the name of the function that was called."""

    _name = "gkd.centers"


def centers(
    embeddings: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    process_group: dist.ProcessGroup | None = None,
    empty: Empty = "error",
) -> Tensor:
    """Class centres, a head for a teacher without one: [num_classes, D], of norm 1.

    The mean of a class's embeddings, each divided by its norm, divided by its own. Where the
    embeddings do not fit into memory, `gkd.ClassCenters` takes them in batches.

    Args:
        embeddings: [..., D], as in `gkd.ClassCenters.add`.
        labels: int64 or int32 [...], in [0, num_classes).
        num_classes: of the whole head.
        process_group: as in `gkd.ClassCenters`: embeddings of this rank, centres of its classes.
        empty: as in `gkd.ClassCenters.centers`.

    Returns:
        [num_classes, D], or this rank's [C_r, D], float32, or float64 where the embeddings are.

    Raises:
        ValueError: a class without an embedding, naming it; shapes that do not fit.
        TypeError: a dtype that is not supported.
        IndexError: a label out of bounds.

    Examples:
        >>> embeddings = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
        >>> gkd.centers(embeddings, torch.tensor([1, 0, 0]), 2)
        tensor([[0., 1.],
                [1., 0.]])
    """
    if not isinstance(embeddings, Tensor) or embeddings.dim() == 0:
        got = f"{embeddings.dim()}-D" if isinstance(embeddings, Tensor) else type(embeddings)
        raise ValueError(f"gkd.centers: expected embeddings of [..., D], got {got}")
    wide = embeddings.dtype == torch.float64
    made = _Named(
        num_classes,
        embeddings.shape[-1],
        process_group=process_group,
        device=embeddings.device,
        dtype=torch.float64 if wide else torch.float32,
    )
    made.add(embeddings, labels)
    return made.centers(empty=empty)
