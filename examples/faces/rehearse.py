"""The rehearsal's recipe, and its data: glyphs, or a folder of images per identity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from . import data, ranks, synthetic
from .recipe import Recipe
from .train import Place

#: The authors' loss with a tenth of the classes, on networks that a core trains in seconds.
RECIPE: dict[str, Any] = {
    "student": "small:8",
    "teacher": "small:16",
    "embedding": 64,
    "teacher_epochs": 4,
    "workers": 0,
    "batch": 64,
    "epochs": 5,
    "learning_rate": 0.02,
    "warmup_epochs": 1,
    "margin_size": 0.2,
    "scale": 16.0,
    "distillation_weight": 0.1,
    "distillation_warmup": 2,
    "log_every": 1,
    "save_every": 1000,
    "gkd": {"rank_by": "student", "group_size": 14},
}


def prepare(recipe: Recipe, folder: Path | None, place: Place) -> Recipe:
    """The recipe with the data in it, which rank 0 writes into the output's folder."""
    root = place.output / "data"
    done = root / "written"
    if folder is None:
        if ranks.rank() == 0 and not done.exists():
            synthetic.write(root, synthetic.Sizes(seed=recipe.seed), place.progress)
            done.touch()
        sets: dict[str, Any] = {"ijb": (str(root / "ijb-glyphs"),)}
        pairs, train = root / "glyphs.bin", root / "train.rec"
    else:
        folders = data.folders_of(folder.resolve())
        order = torch.randperm(len(folders), generator=torch.Generator().manual_seed(recipe.seed))
        tests = set(order[: max(2, len(folders) // 4)].tolist())
        pairs, train = root / "pairs.bin", root / "train.txt"
        if ranks.rank() == 0 and not done.exists():
            root.mkdir(parents=True, exist_ok=True)
            known = [f"{path}\n" for k, path in enumerate(folders) if k not in tests]
            train.write_text("".join(known))
            test = data.Folders([path for k, path in enumerate(folders) if k in tests])
            labels = torch.tensor([test.label(k) for k in range(len(test))])
            files = [test[k][1] for k in range(len(test))]
            synthetic.write_pairs(pairs, files, labels, synthetic.Sizes(seed=recipe.seed))
            done.touch()
        sets = {}
    ranks.barrier()
    return replace(recipe, data=str(train), pairs=(str(pairs),), **sets)
