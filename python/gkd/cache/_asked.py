"""What a reader of groups is asked for, as fields of a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from .._settings import all_settings
from ..teacher import grouping_of
from ._dtypes import named as dtype_named
from ._manifest import Manifest


class Asked(NamedTuple):
    """None: not asked for."""

    num_classes: int | None
    dtype: torch.dtype | None
    teacher: str | None


def asked_of(name: str, asked: Asked, settings: Mapping[str, Any]) -> Manifest:
    """The fields that have to be as given, from settings as `gkd.loss` reads them.

    Raises:
        ValueError: a setting that no cache of groups serves, or that does not fit.
        TypeError: a keyword that no loss has.
    """
    plain = all_settings(name, settings)
    if plain["rank_by"] != "teacher":
        raise ValueError(f'{name}: groups were chosen by the teacher: rank_by must be "teacher"')
    if plain["secondary_weight"] != 0:
        raise ValueError(
            f"{name}: of the classes outside the groups one sum is kept: secondary_weight must be "
            f"0, got {plain['secondary_weight']}"
        )
    grouping = grouping_of(
        name,
        plain["threshold"],
        plain["group_size"],
        plain["temperature"],
        plain["group_temperature"],
    )
    fields = set()
    if "threshold" in settings or "group_size" in settings:
        fields |= {"threshold", "group_size"}
    if "temperature" in settings:
        fields |= {"temperature", "group_temperature"}
    if settings.get("group_temperature") is not None:
        fields.add("group_temperature")
    found: Manifest = {k: v for k, v in grouping._asdict().items() if k in fields}
    if asked.num_classes is not None:
        found["num_classes"] = int(asked.num_classes)
    if asked.dtype is not None:
        found["dtype"] = dtype_named(name, asked.dtype).name
    if asked.teacher is not None:
        found["teacher"] = asked.teacher
    return found
