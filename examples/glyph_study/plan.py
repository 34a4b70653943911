"""The study's plan: which recipes, how each is tuned, and in what order. Nothing runs here.

Every main recipe is tuned by the same number of tries, on the validation characters of one seed:
four for the weight and one for the warm-up. Cross-entropy has no weight; its tries go to the
learning rate and the margin, which the other recipes then take over. The ablation has one weight
for all its recipes, which is the one tuned for GKD ranked by the student.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from examples.glyphs.losses import Recipe
from examples.glyphs.train import Settings

# At a scale of 32 or with ReLU, a few channels of a small student die, or its embeddings fall into
# one point and leave it after some hundred steps or never, by luck of the seed.
SETTINGS = Settings(
    teacher_epochs=12,
    epochs=6,
    views=5,
    stem=4,
    activation="PReLU",
    scale=16.0,
    fused=True,
    log_points=20,
)
LEAST_FACES, IDENTITIES = 8, 2000
TEST_DRAW = 100  # more than any seed
TIMED_STEPS, TIMED_ROUNDS = 8, 15

BY_STUDENT: dict[str, Any] = {"rank_by": "student"}


def _terms(primary: float, binary: float, secondary: float, **more: Any) -> dict[str, Any]:
    return {
        "primary_weight": primary,
        "binary_weight": binary,
        "secondary_weight": secondary,
        **more,
    }


# Recipe.weight is the middle of the ladder of weights; the uncoupled terms weigh about ten times
# KD's in size, and theirs starts lower accordingly.
RECIPES = {
    "ce": Recipe("cross-entropy"),
    "kd": Recipe("KD", 1.0, _terms(1, 1, 1, coupled=True)),
    # DKD's own weights, alpha 1 on the target against the rest and beta 8 within the rest.
    "dkd": Recipe("DKD", 0.1, _terms(0, 1, 8, group_size=0)),
    "gkd-teacher": Recipe("GKD, ranked by teacher", 0.1),
    "gkd-student": Recipe("GKD, ranked by student", 0.3, BY_STUDENT),
    # The authors' script: 10,000 of 85,742 classes, by the student.
    "fixed": Recipe("GKD, 12% of the classes, by student", 0.3, BY_STUDENT, share=10_000 / 85_742),
    # The authors' step of 100 of 85,742 classes would be one of 2.
    "adaptive": Recipe("GKD, batch-adaptive size, by student", 0.3, BY_STUDENT, adaptive=2),
}
KINDS = {"P": (8, 0, 0), "B": (0, 1, 0), "S": (0, 0, 1), "PB": (8, 1, 0), "PBS": (8, 1, 1)}
NAMES = {"P": "Primary", "B": "Binary", "S": "Secondary"}
for _rank in ("student", "teacher"):
    for _kind, _weights in KINDS.items():
        _label = " + ".join(NAMES[letter] for letter in _kind)
        RECIPES[f"{_kind}-{_rank}"] = Recipe(
            f"{_label}, by {_rank}", arguments=_terms(*_weights, rank_by=_rank)
        )

MAIN = ("ce", "kd", "dkd", "gkd-teacher", "gkd-student", "fixed", "adaptive")
SIZED = ("ce", "kd", "gkd-teacher", "gkd-student")
TEACHER = {"width": 24, "depth": 1, "embedding": 128}
# Width and embedding of students with about 1/20, 1/50 and 1/100 of the teacher's parameters.
SHAPES = {"20x": (7, 32), "50x": (4, 32), "100x": (3, 16)}
TUNED_SHAPE = "50x"
LONGER = 4


def ablation(rank: str) -> tuple[str, ...]:
    """The terms alone and together, all with `gkd-student`'s weight and warm-up.

    Primary + Binary ranked by the student is `gkd-student` itself.
    """
    return tuple(f"{kind}-{rank}" for kind in KINDS if (kind, rank) != ("PB", "student"))


def tuned_as(recipe: str) -> str:
    """Whose tries decide the recipe's weight and warm-up."""
    return recipe if recipe in MAIN else "gkd-student"


@dataclass(frozen=True)
class Stage:
    """Recipes that are tested on every seed, the main ones after tuning on the first."""

    recipes: tuple[str, ...]
    shape: str = TUNED_SHAPE
    longer: int = 1  #: times the epochs


# The first are the most wanted: a sweep that is stopped early has whole stages to show. Tuning is
# for the middle size and the usual epochs; the other sizes and lengths take its settings over.
STAGES = (
    Stage(MAIN),
    Stage(ablation("student")),
    Stage(SIZED, "100x"),
    Stage(ablation("teacher")),
    Stage(SIZED, "20x"),
    Stage(SIZED, longer=LONGER),
)


@dataclass(frozen=True)
class Try:
    """A rung of the ladder (of weights, or of learning rates) and a warm-up (or margin)."""

    rung: float
    second: float


@dataclass(frozen=True)
class Ladder:
    """What a recipe's tries mean."""

    middle: float
    factor: float
    seconds: tuple[float, float]  #: the usual one, and the one tried at the best rung

    def value(self, rung: float) -> float:
        return float(f"{self.middle * self.factor**rung:.2g}")


LEARNING_RATE = Ladder(0.02, 2.0, (0.1, 0.0))  # and the margin
RUNGS = 4
TRIES = RUNGS + 1


def ladder(recipe: str) -> Ladder:
    """Half decades of weight; the paper's warm-up is half the training, the other try is none."""
    if recipe == "ce":
        return LEARNING_RATE
    return Ladder(RECIPES[recipe].weight, 10**0.5, (0.5, 0.0))


def best(done: Sequence[tuple[Try, float]]) -> Try:
    """The try with the highest score; the earliest of equals."""
    return max(done, key=lambda item: item[1])[0]


def next_try(done: Sequence[tuple[Try, float]], seconds: tuple[float, float]) -> Try | None:
    """What to try after these (with their scores), None after the last.

    Three rungs; then a step beyond the best where it is at an end, or else half a step towards its
    better neighbour; then the other warm-up at the best rung.
    """
    count = len(done)
    if count < 3:
        return Try((0.0, -1.0, 1.0)[count], seconds[0])
    if count >= TRIES:
        return None
    if count == RUNGS:
        return Try(best(done).rung, seconds[1])
    score = {entry.rung: value for entry, value in done}
    rungs, top = sorted(score), best(done)
    at = rungs.index(top.rung)
    if at in (0, len(rungs) - 1):
        return Try(top.rung + (1 if at else -1), seconds[0])
    side = max((rungs[at - 1], rungs[at + 1]), key=score.__getitem__)
    return Try((top.rung + side) / 2, seconds[0])


def is_bracketed(done: Sequence[tuple[Try, float]]) -> bool:
    """Whether lower and higher rungs than the best were tried."""
    rungs = [entry.rung for entry, _ in done]
    return min(rungs) < best(done).rung < max(rungs)
