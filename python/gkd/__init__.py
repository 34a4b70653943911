"""Grouped Knowledge Distillation (arXiv 2304.04462) as a PyTorch operator."""

from ._load import load as _load

_load()

from . import distributed, reference, utils
from ._build import version as __version__
from ._training import TrainingLoss
from .class_centers import ClassCenters, centers
from .functional import loss
from .groups import Group, adaptive_group_size, group
from .linear import linear_loss, training_linear_loss
from .module import GKDLoss, GKDTrainingLoss
from .sparse import sparse_loss, teacher_group, training_sparse_loss
from .sparse_linear import sparse_linear_loss, training_sparse_linear_loss
from .sparse_module import GKDSparseLoss
from .teacher import TeacherGroup
from .training import training_loss

__all__ = [
    "ClassCenters",
    "GKDLoss",
    "GKDSparseLoss",
    "GKDTrainingLoss",
    "Group",
    "TeacherGroup",
    "TrainingLoss",
    "__version__",
    "adaptive_group_size",
    "centers",
    "distributed",
    "group",
    "linear_loss",
    "loss",
    "reference",
    "sparse_linear_loss",
    "sparse_loss",
    "teacher_group",
    "training_linear_loss",
    "training_loss",
    "training_sparse_linear_loss",
    "training_sparse_loss",
    "utils",
]
