"""The settings that every loss takes: their types, and what may be given for a number.

Settings come from configuration files, numpy and tensors. Each is turned into the plain value that
the operators take, or refused by name.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


class LossSettings(TypedDict, total=False):
    """The keywords of `gkd.loss` that every other loss takes too, with the same meaning."""

    threshold: float | None
    group_size: int | None
    group_temperature: float | None
    temperature: float
    primary_weight: float
    binary_weight: float
    secondary_weight: float
    coupled: bool
    rank_by: Literal["teacher", "student"]
    reduction: Literal["mean", "sum", "none"]
    ignore_index: int


class AllSettings(LossSettings, total=False):
    """Every keyword of `gkd.loss`."""

    method: Literal["auto", "sort", "select"]
    check_target: bool


#: The threshold where neither it nor a group size is given: kDefaultThreshold in gkd/options.h.
DEFAULT_THRESHOLD = 0.93


def takes_settings_of(
    source: Callable[..., Any], settings: type = LossSettings
) -> Callable[[F], F]:
    """Shows these keywords of ``source`` in help() and inspect.signature() of a function that ends
    in ``**settings``, and refuses any other keyword as Python would."""

    def wrap(function: F) -> F:
        own = inspect.signature(function)
        kept = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        more = [
            p
            for p in inspect.signature(source).parameters.values()
            if p.name in settings.__annotations__ and p.name not in own.parameters
        ]
        function.__signature__ = own.replace(parameters=[*kept, *more])  # type: ignore[attr-defined]
        return function

    return wrap


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a Tensor of shape {list(value.shape)}"
    return "None" if value is None else f"{value!r} of type {type(value).__name__}"


def _item(value: object) -> object:
    """The number in a tensor of one element; anything else as it is."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    return value


def _number(value: object) -> float | None:
    if isinstance(value, (float, int, torch.SymInt, torch.SymFloat)):
        return None if isinstance(value, bool) else value  # type: ignore[return-value]
    return float(value) if isinstance(value, numbers.Real) else None


def _integer(value: object) -> int | None:
    if isinstance(value, (int, torch.SymInt)):
        return None if isinstance(value, bool) else value  # type: ignore[return-value]
    return int(value) if isinstance(value, numbers.Integral) else None


def _flag(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    return bool(value) if type(value).__name__ in ("bool_", "bool") else None  # numpy's


def _text(value: object) -> str | None:
    return str.__str__(value) if isinstance(value, str) else None


_Kind = tuple[Callable[[object], Any], str]
NUMBER: _Kind = (_number, "a number")
INTEGER: _Kind = (_integer, "an integer")
FLAG: _Kind = (_flag, "True or False")
TEXT: _Kind = (_text, "a string")

_KINDS = {"float": NUMBER, "int": INTEGER, "bool": FLAG, "str": TEXT}
_SCHEMA = [x for x in torch.ops.gkd.loss.default._schema.arguments if x.kwarg_only]
#: What the operators take where a setting is not given.
DEFAULTS: dict[str, Any] = {x.name: x.default_value for x in _SCHEMA}
_KIND_OF = {x.name: _KINDS[str(x.type).removeprefix("Optional[").rstrip("]")] for x in _SCHEMA}


def plain(name: str, argument: str, value: object, kind: _Kind) -> Any:
    """``value`` as the plain number, flag or string that it stands for.

    Raises:
        TypeError: it stands for none, or it is a tensor that requires grad.
    """
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(
            f"{name}: {argument} must be {kind[1]}, got a Tensor that requires grad: the operator "
            "has no gradient for its settings; gkd.reference.loss has for temperature and weights"
        )
    found = kind[0](_item(value))
    if found is None:
        raise TypeError(f"{name}: {argument} must be {kind[1]}, got {_described(value)}")
    return found


def plain_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not the default, as the operators take them.

    Raises:
        TypeError: naming the first setting that does not fit, or that no loss has.
    """
    found = {}
    for argument, value in settings.items():
        if argument not in DEFAULTS:
            raise TypeError(f"{name}: unexpected keyword argument {argument!r}")
        default = DEFAULTS[argument]
        if type(value) is not type(default) or value != default:
            found[argument] = plain(name, argument, value, _KIND_OF[argument])
    return found


def all_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same with every default."""
    return {**DEFAULTS, **plain_settings(name, settings)}


def call_op(name: str, op: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """An operator, whose errors then name the Python function that was called."""
    if torch.compiler.is_compiling():
        return op(*args, **settings)
    try:
        return op(*args, **settings)
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        text = str(error)
        if not text.startswith("gkd::"):
            raise
        raise type(error)(f"{name}: {text.split(': ', 1)[-1]}") from None


def is_dtensor(value: object) -> bool:
    """Without importing torch.distributed.tensor where nobody has."""
    return isinstance(value, Tensor) and type(value).__name__ == "DTensor"
