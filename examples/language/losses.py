"""What a student learns from: labels, a live teacher, or one kept on disk, used in two ways.

Each is called with the student's logits, the batch's sequences by number, and its tokens, and
returns a scalar. All but the first are `share` times cross-entropy plus (1 - `share`) times a
Kullback-Leibler divergence at temperature 1, over:

* live: all V classes;
* cached: the teacher's k likeliest classes and the target, and all others together as one;
* renormalised: the k likeliest, as if the teacher gave nothing to others. The student's softmax is
  over all classes. This is what most training scripts do with a cached teacher, in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gkd
import gkd.cache

#: Of cross-entropy: what students are trained with.
SHARES = (0.5, 0.1)
#: Plain KD of the groups given: the terms with their natural weights.
KL: dict[str, Any] = {
    "temperature": 1.0,
    "coupled": True,
    "primary_weight": 1.0,
    "binary_weight": 1.0,
}

#: (student logits [B, L, V], sequences [B], inputs [B, L], targets [B, L]) -> a scalar.
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _weights(share: float) -> dict[str, float]:
    return {"cross_entropy_weight": share, "distillation_weight": 1 - share}


def labels(logits: Tensor, samples: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, without a teacher."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@dataclass(frozen=True)
class Live:
    """The teacher runs in every step."""

    teacher: nn.Module
    share: float

    def __call__(self, logits: Tensor, samples: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = self.teacher(inputs)
        # Every group gives the same loss here; the empty one needs no search.
        settings = {**KL, **_weights(self.share), "secondary_weight": 1.0, "group_size": 0}
        return gkd.training_loss(logits, teacher, targets, **settings).total


@dataclass(frozen=True)
class Cached:
    """The teacher's groups, read from disk."""

    reader: gkd.cache.GroupReader
    share: float

    def __call__(self, logits: Tensor, samples: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        group = self.reader.read(samples[:, None], parts=torch.arange(logits.shape[1]))
        settings = {**KL, **_weights(self.share)}
        return gkd.training_sparse_loss(logits, group, targets, **settings).total


@dataclass(frozen=True)
class Renormalised:
    """The same groups, of which the k likeliest classes are used, and the tail is not."""

    reader: gkd.cache.GroupReader
    share: float
    size: int  #: k

    def __call__(self, logits: Tensor, samples: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        group = self.reader.read(samples[:, None], parts=torch.arange(logits.shape[1]))
        teacher, classes = likeliest(group, self.size)
        student = logits.flatten(0, 1).log_softmax(1)
        share = teacher.log_softmax(1)
        divergence = (share.exp() * (share - student.gather(1, classes))).sum(1).mean()
        entropy = F.nll_loss(student, targets.flatten())
        return self.share * entropy + (1 - self.share) * divergence


def likeliest(group: gkd.TeacherGroup, size: int) -> tuple[Tensor, Tensor]:
    """float [B, k], the largest logits of every row; int64 [B, k], their classes. A group may hold
    one class more, the target."""
    sizes = group.indptr.diff()
    rows = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    places = torch.arange(len(group.indices)) - group.indptr[rows]
    widest = int(sizes.max())
    logits = torch.full((len(sizes), widest), -torch.inf)
    classes = torch.zeros((len(sizes), widest), dtype=torch.int64)
    logits[rows, places] = group.logits.float()
    classes[rows, places] = group.indices.long()
    top = logits.topk(min(size, widest), dim=1)
    return top.values, classes.gather(1, top.indices)
