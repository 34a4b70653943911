"""A whole run: teacher, student, verification, table and figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import networks, ranks, verify
from .data import Photographs, count_classes, open_source
from .recipe import Recipe
from .teacher import Teacher, centers, fill_cache
from .train import Place, train


def run(recipe: Recipe, place: Place) -> dict[str, Any]:
    """Trains what has to be trained and verifies both networks; returns the report."""
    recipe = with_files(recipe)
    source = open_source(Path(recipe.data))
    photographs = Photographs(source, recipe.classes or count_classes(source))
    is_first, progress = ranks.rank() == 0, place.progress and ranks.rank() == 0
    if is_first:
        print(f"{len(photographs)} images of {photographs.classes} identities")
    torch.manual_seed(recipe.seed)
    # Before the teacher is at work, which may take hours: a wrong name is noticed at once.
    student = _build(recipe.student, recipe, place)
    teacher = _teacher(recipe, photographs, place)
    student_head = train(
        "student", student, teacher, photographs, recipe, place, epochs=recipe.epochs
    ).whole()
    if not is_first:
        return {}
    keep(place.output / "student.pt", student, student_head)
    results = []
    named = {"teacher": teacher.network, "student": student}
    for name, network in named.items():
        for path in recipe.pairs:
            results.append(verify.on_pairs(name, network, Path(path), place.device, progress))
        for path in recipe.ijb:
            results.append(verify.on_templates(name, network, Path(path), place.device, progress))
    report: dict[str, Any] = {
        "recipe": recipe.plain(),
        "ranks": ranks.count(),
        "images": len(photographs),
        "identities": photographs.classes,
        "parameters": {n: sum(p.numel() for p in x.parameters()) for n, x in named.items()},
        "results": [result.plain() for result in results],
    }
    if results:
        text = verify.table(results)
        print(text)
        (place.output / "table.md").write_text(text + "\n")
        verify.draw_roc(results, place.output / "roc.png")
    curves = [p for n in named if (p := place.output / f"{n}.csv").exists()]
    verify.draw_training(curves, place.output / "training.png")
    return report


def with_files(recipe: Recipe) -> Recipe:
    """The recipe with its sets' paths, of files that are all there: a set that is missing would be
    noticed after the training.

    Raises:
        ValueError: one is not.
    """
    data = Path(recipe.data)
    folder = data.parent if data.is_file() else data
    beside = (str(folder / p) if not Path(p).exists() else p for p in recipe.pairs)
    recipe = replace(recipe, pairs=tuple(beside))
    needed = {
        "pairs": recipe.pairs,
        "ijb": recipe.ijb,
        "teacher_backbone": (recipe.teacher_backbone,),
        "teacher_head": (recipe.teacher_head,),
    }
    for name, paths in needed.items():
        for path in paths:
            if path and not Path(path).exists():
                raise ValueError(f"{name}: there is no {path}")
    return recipe


def keep(path: Path, network: nn.Module, head: torch.Tensor) -> None:
    """Backbone and head, as `teacher_backbone` and `teacher_head` take them."""
    torch.save({k: v.cpu() for k, v in network.state_dict().items()}, path)
    torch.save({"weight": head}, path.with_name(f"{path.stem}_head.pt"))


def _build(name: str, recipe: Recipe, place: Place) -> nn.Module:
    if place.device.type == "cuda" and networks.has_autocast(name):
        always = name.startswith("vit")
        if recipe.amp == "bfloat16" or (always and not recipe.amp):
            raise ValueError(
                f"{name} with amp = {recipe.amp!r}: on CUDA this network of arcface_torch computes "
                f"in float16{'' if always else ' or float32'}"
            )
    half = recipe.amp == "float16"
    return networks.build(name, recipe.embedding, 112, recipe.arcface_torch, half)


def _teacher(recipe: Recipe, photographs: Photographs, place: Place) -> Teacher:
    """On its device, with the head's rows of this rank."""
    torch.manual_seed(recipe.seed + 2)
    network = _build(recipe.teacher, recipe, place)
    dtype = getattr(torch, recipe.dtype)
    head: torch.Tensor | None = None
    if recipe.teacher_backbone:
        if recipe.teacher_head:
            head = networks.load_head(Path(recipe.teacher_head), photographs.classes)
        networks.load_backbone(network, Path(recipe.teacher_backbone))
        network.to(place.device, dtype)
    elif recipe.teacher_epochs > 0:
        trained = train(
            "teacher", network, None, photographs, recipe, place, epochs=recipe.teacher_epochs
        )
        head = trained.whole()
        if ranks.rank() == 0:
            keep(place.output / "teacher.pt", network, head)
    else:
        raise ValueError("no teacher: set teacher_backbone to a file, or teacher_epochs")
    network.requires_grad_(False)
    teacher = Teacher(network)
    progress = place.progress and ranks.rank() == 0
    if recipe.teacher_cache:
        teacher.cache = fill_cache(
            Path(recipe.teacher_cache), network, photographs, place.device, recipe.embedding,
            recipe.workers, progress,
        )  # fmt: skip
    if head is None:
        head = centers(teacher, photographs, place.device, recipe.workers, progress)
    if recipe.sharded and ranks.count() > 1:
        start, end = ranks.shard(photographs.classes)
        head = head[start:end].clone()
    teacher.weight = head.to(place.device, dtype)
    return teacher
