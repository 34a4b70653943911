"""The passes over a segment in the machine code of a fused kernel, and what a class costs in them.

A pass is a loop that loads whole vectors, from shared memory (`LDS.128`) or, of a streamed row's
other input, from device memory (`LDG.128`). Passes are told apart by what they do: only the
gradient's loops store to device memory, only the count's add to shared memory once per class, and
so on. All costs are warp instructions per 32 classes, which are a thread's instructions per class,
on the path that a whole vector of an aligned row takes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from benchmarks.control_flow import Block, Count, Loop, loops, paths

VECTOR_BYTES = 16
#: No pass has more instructions; loops around passes have.
MOST_INSTRUCTIONS = 2000
#: The passes for the maxima read 2 to so many vectors at a time, unlike loops over gathered values.
MOST_AT_A_TIME = 4
#: At least so many multiply-adds per class: the path has a polynomial.
POLYNOMIAL = 5


@dataclass(frozen=True)
class Cost:
    """Of one path through a pass."""

    loop: str
    path: str
    classes: int  # that a thread visits in one pass through the loop
    counts: Counter[str]

    def __getitem__(self, kind: str) -> float:
        """Per 32 classes."""
        return self.counts[kind] / self.classes


#: Which paths are told apart.
KINDS = ("load_128", "stream_128", "stream", "mufu", "vote", "store_128", "store")


def _features(path: Counter[str]) -> Count:
    return tuple((kind, path[kind]) for kind in KINDS)


def _vectors(path: Counter[str]) -> int:
    """Of one input, that a path reads whole."""
    return max(path["load_128"], path["stream_128"])


def _longest(blocks: list[Block], loop: Loop) -> Counter[str]:
    """Of the paths that read most: those that leave a vector out are shorter."""
    return max(
        paths(blocks, loop, _features),
        key=lambda p: (p["load_128"], p["stream_128"] - p["stream"], p["stream"], p["total"]),
    )


def _body(blocks: list[Block], loop: Loop) -> Counter[str]:
    return sum((blocks[b].count() for b in loop.body), Counter[str]())


def _gradient(blocks: list[Block], loop: Loop, name: str, per_vector: int) -> list[Cost]:
    """The paths that store as many vectors as can be, and nothing else."""
    found = [p for p in paths(blocks, loop, _features) if p["stream"] == p["stream_128"]]
    most = max(path["store_128"] for path in found)
    whole = [path for path in found if path["store_128"] == path["store"] == most]
    result = []
    for path in sorted(whole, key=lambda p: p["total"]):
        classes = most * per_vector
        if path["mufu"] > classes:
            kind = "any"
        else:
            kind = "near" if path["fma"] >= POLYNOMIAL * classes else "outside"
        result.append(Cost(name, kind, classes, path))
    return result


def _by_word(
    blocks: list[Block], around: Loop, visits: list[Loop], name: str, vector: Cost
) -> list[Cost]:
    """A loop over 32 classes of a thread has one over vectors, and one over the window's keys, of
    which there may be forms."""
    once = max(paths(blocks, around, _features), key=lambda p: p["total"])
    keys = [path for visit in visits for path in paths(blocks, visit, _features)]
    key = max(keys, key=lambda p: p["total"])
    return [
        Cost(name, "vector", vector.classes, vector.counts + _scaled(once, vector.classes)),
        Cost(name, "visit", 1, key),
    ]


def _scaled(once: Counter[str], classes: int) -> Counter[str]:
    """Of what comes once per 32 classes of a thread, the part of some, rounded up."""
    return Counter({kind: -(-number * classes // 32) for kind, number in once.items()})


def costs(blocks: list[Block], element_bytes: int) -> list[Cost]:
    """Of every pass of a kernel, in the order of the code. Of a pass that there is in several forms
    the name has a number. The path "visit" is one visit of a key in the window: "moments" lists it,
    "window" adds its class to the group that it turned out to be in."""
    per_vector = VECTOR_BYTES // element_bytes
    every = loops(blocks)
    outer = {inner.head: loop for loop in every for inner in loop.inner}
    result: list[Cost] = []
    numbers: Counter[str] = Counter()

    def numbered(name: str) -> str:
        numbers[name] += 1
        return f"{name} {numbers[name]}"

    for loop in sorted(every, key=lambda loop: loop.head):
        body = _body(blocks, loop)
        if body["find"] and body["mufu"] == 2 and not _vectors(body) and not loop.inner:
            path = max(paths(blocks, loop, _features), key=lambda p: p["total"])
            result.append(Cost(numbered("window"), "visit", 1, path))
            continue
        if not _vectors(body) or loop.inner or body["total"] > MOST_INSTRUCTIONS:
            continue
        if body["store"]:
            result += _gradient(blocks, loop, numbered("gradient"), per_vector)
            continue
        path = _longest(blocks, loop)
        cost = Cost("", "vector", _vectors(path) * per_vector, path)
        around = outer.get(loop.head, loop)
        visits = [i for i in around.inner if _body(blocks, i)["find"] and not i.inner]
        if path["atomic"]:
            result.append(replace(cost, loop="count"))
        elif path["minmax"] and 1 < _vectors(path) <= MOST_AT_A_TIME and not path["fma"]:
            result.append(replace(cost, loop=numbered("maxima")))
        elif visits and len(around.inner) == 1 + len(visits):
            name = "weigh by mass"
            if path["fma"] > POLYNOMIAL * path["mufu"] // 2:  # two exponentials a class
                name, cost = numbered("moments"), replace(cost, classes=path["mufu"] // 2)
            result += _by_word(blocks, around, visits, name, cost)
    return result
