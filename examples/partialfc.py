"""arcface_torch's PartialFC_V2 with GKD; docs/partialfc.md explains it.

Needs a checkout of deepinsight/insightface with recognition/arcface_torch on PYTHONPATH.
"""

from __future__ import annotations

import math

import torch
from partial_fc_v2 import PartialFC_V2
from torch import distributed
from torch.nn.functional import normalize

import gkd


class GKDPartialFC(PartialFC_V2):
    """teacher_weight: [num_local, D_t], of this rank; settings: those of gkd.training_loss."""

    def __init__(self, margin_loss, embedding_size, num_classes, sample_rate=1.0, fp16=False, *,
                 teacher_weight, scale=64.0, correct_sampling=False, **settings):  # fmt: skip
        super().__init__(self._distil, embedding_size, num_classes, sample_rate, fp16)
        if len(teacher_weight) != self.num_local:
            raise ValueError(f"teacher_weight has {len(teacher_weight)} rows, not {self.num_local}")
        self.margin, self.num_classes, self.scale = margin_loss, num_classes, scale
        self.correct_sampling, self.settings = correct_sampling, {"temperature": 4.0, **settings}
        self.register_buffer("teacher_weight", normalize(teacher_weight), persistent=False)

    def forward(self, local_embeddings, local_labels, local_teacher_embeddings):
        gathered = [torch.empty_like(local_teacher_embeddings) for _ in range(self.world_size)]
        distributed.all_gather(gathered, local_teacher_embeddings.contiguous())
        self.teacher = normalize(torch.cat(gathered))
        cross_entropy = super().forward(local_embeddings, local_labels)  # which calls _distil
        total, _, distillation = self.distilled
        return gkd.TrainingLoss(cross_entropy + total, cross_entropy.detach(), distillation)

    def _distil(self, student, labels):
        """Stands where the margin does: the cosines are whole and nobody has written over them."""
        weight, start, classes = self.teacher_weight, self.class_start, self.num_classes
        if self.sample_rate < 1:  # the student's sample, whose size differs by rank and step
            weight = weight[self.weight_index]
            sizes = [torch.zeros_like(labels[0]) for _ in range(self.world_size)]
            distributed.all_gather(sizes, torch.full_like(labels[0], len(weight)))
            start, classes = int(sum(sizes[: self.rank])), int(sum(sizes))
        offset = torch.zeros_like(weight[:, 0])
        positive = labels[labels >= 0].unique()
        if self.correct_sampling and len(weight) > len(positive):
            rate = (len(weight) - len(positive)) / (self.num_local - len(positive))
            offset += self.settings["temperature"] / self.scale * math.log(1 / rate)
            offset[positive] = 0.0
        self.distilled = gkd.distributed.training_loss(
            student + offset, self.teacher @ weight.T + offset, labels.squeeze(1),
            class_start=start, num_classes=classes, local_target=True, scale=self.scale,
            cross_entropy_weight=0.0, **self.settings)  # fmt: skip
        return self.margin(student, labels)
