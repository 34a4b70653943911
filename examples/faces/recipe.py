"""A recipe: everything that decides a run, from a TOML or JSON file or from --set NAME=VALUE."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Names and defaults; a config file gives those that differ. Paths count from where you are."""

    # Data
    data: str = ""  #: a .rec file, a folder with train.rec, or a folder per identity
    classes: int = 0  #: of the head; 0: as many as the data say
    pairs: tuple[str, ...] = ()  #: .bin files; a name alone may be of one in the data's folder
    ijb: tuple[str, ...] = ()  #: folders with meta/ and aligned/, as `--synthetic` writes them
    workers: int = 4  #: of the loader, per rank

    # Networks: small:WIDTH, timm:NAME, or NAME of a checkout of arcface_torch
    student: str = "mbf"
    teacher: str = "r50"
    embedding: int = 512
    arcface_torch: str = ""  #: the checkout, insightface/recognition/arcface_torch
    teacher_backbone: str = ""  #: a state dict: .pt, .pth or .safetensors
    teacher_head: str = ""  #: [C, D]; "": the centres of the classes, from the teacher's embeddings
    teacher_epochs: float = 0.0  #: without a file: how long to train one here
    teacher_cache: str = ""  #: a folder for the teacher's embeddings, which then runs once only

    # Optimiser
    batch: int = 1024  #: of all ranks together
    epochs: float = 20.0
    learning_rate: float = 0.1
    least_rate: float = 2.5e-7
    warmup_epochs: float = 4.0
    schedule: str = "cosine"  #: or linear
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    clip: float = 0.0  #: the norm of the backbone's gradient; 0: not
    amp: str = ""  #: float16 or bfloat16: autocast in the backbones; the loss is float32 anyway

    # Loss
    margin: str = "cosface"  #: or arcface
    margin_size: float = 0.4
    distill_margin: bool = True
    scale: float = 64.0
    distillation_weight: float = 1.0
    distillation_warmup: float = 10.0  #: epochs, at whose beginnings the weight rises from 0
    gkd: Mapping[str, Any] = field(default_factory=dict)  #: keywords of gkd.loss
    logits: bool = False  #: make the logits [B, C], for gkd.training_loss, instead of a few rows'
    sharded: bool = False  #: heads split by class over the ranks

    # The run
    seed: int = 0
    dtype: str = "float32"
    log_every: int = 50
    group_every: int = 100
    save_every: int = 2000
    verify_every: int = 0  #: steps between verifications on `pairs` in training; 0: at the end only

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                found = getattr(self, name)
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {found!r}")

    def plain(self) -> dict[str, Any]:
        return asdict(self)


_CHOICES = {
    "margin": ("cosface", "arcface"),
    "schedule": ("cosine", "linear"),
    "amp": ("", "float16", "bfloat16"),
    "dtype": ("float32", "float64"),
}


def from_mapping(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Of names and values.

    Raises:
        ValueError: a name that a recipe has not, or a value of another type.
    """
    types = {f.name: f.default for f in fields(Recipe)}
    given: dict[str, Any] = {}
    for name, value in values.items():
        if name not in types:
            raise ValueError(f"{where}: there is no {name}; names are {', '.join(types)}")
        if name == "gkd":
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}: gkd must be a table of keywords of gkd.loss")
            given[name] = dict(value)
            continue
        kind = type(types[name])
        if kind is tuple and isinstance(value, (list, tuple)):
            value = tuple(str(x) for x in value)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ValueError(f"{where}: {name} must be {kind.__name__}, got {value!r}")
        given[name] = value
    try:
        return Recipe(**given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def read(path: Path) -> dict[str, Any]:
    """The values of a .toml or .json file.

    Raises:
        ValueError: not such a file, or TOML on Python 3.10 without the package tomli.
    """
    if path.suffix == ".json":
        parse = json.loads
    else:
        try:
            import tomllib
        except ImportError:  # Python 3.10
            try:
                import tomli as tomllib  # type: ignore[no-redef,import-not-found]
            except ImportError:
                raise ValueError(
                    f"{path}: Python 3.10 reads no TOML: pip install tomli, or write it as .json"
                ) from None
        parse = tomllib.loads
    try:
        found: dict[str, Any] = parse(path.read_text())
    except ValueError as error:  # what both parsers raise is one
        raise ValueError(f"{path}: {error}") from None
    return found


def with_settings(values: Mapping[str, Any], settings: list[str]) -> dict[str, Any]:
    """Values with those of NAME=VALUE; a value is JSON or else text, gkd.NAME one of its own.

    Raises:
        ValueError: no such form.
    """
    found = {**values, "gkd": dict(values.get("gkd", {}))}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting}: not NAME=VALUE")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if name.startswith("gkd."):
            found["gkd"][name[4:]] = value
        else:
            found[name] = value
    return found
