"""Grouped Knowledge Distillation (arXiv 2304.04462) as a PyTorch operator."""

from ._load import load as _load

_load()

from .functional import Group, group, loss  # noqa: E402
from .module import GKDLoss  # noqa: E402

__all__ = ["GKDLoss", "Group", "group", "loss"]
