"""The loops of a kernel's machine code, and the paths through them.

Reads what `nvdisasm -c` prints. A loop is a natural loop of the control flow graph. A path goes
from a loop's head once around it. `BRA.DIV` is taken only by a warp whose lanes have parted, so
its target, which calls each lane's part one by one, is on no path. `BRA.CONV` goes both ways, and
so does a call within the kernel, by which sm_80 enters and leaves such parts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

FUNCTION = re.compile(r"^\.text\.(\S+):")
LABEL = re.compile(r"^(\.L_\S+):")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][^;]*?)\s*;")
TARGET = re.compile(r"`\((\.L_[^)]+)\)")

#: What may go on with the next instruction although nothing guards it.
BOTH_WAYS = ("BRA.DIV", "BRA.CONV", "CALL")

#: What is counted of an instruction, by the start of its name.
KINDS = {
    "branch": r"BRA|BRX|BSSY|BSYNC|BREAK|WARPSYNC",
    "mufu": r"MUFU",
    "double": r"D(ADD|MUL|FMA|SETP|MNMX)|F2F\S*64|[FI]2[IF]\S*F64",
    "convert": r"F2F(?!P)|F2I|I2F(?!P)",
    "local": r"LDL|STL",
    "fma": r"FFMA",
    "load_128": r"LDS\S*\.128",
    "load": r"LDS",
    "stream_128": r"LDG\.\S*128",
    "stream": r"LDG\.\S*(CONSTANT|128)",
    "store_128": r"STG\S*\.128",
    "store": r"STG",
    "atomic": r"ATOMS",
    "fence": r"MEMBAR|ERRBAR|CCTL",
    "wait": r"ACQBULK",
    "minmax": r"FMNMX|HMNMX2|VHMNMX|FMNMX3",
    "find": r"FLO|BREV",
    "vote": r"VOTE",
}
_KINDS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}
Count = tuple[tuple[str, int], ...]


@dataclass
class Block:
    """Instructions of which either all run or none."""

    text: list[str] = field(default_factory=list)
    after: list[int] = field(default_factory=list)  # the blocks that may follow

    def count(self) -> Counter[str]:
        counts = Counter(total=len(self.text))
        for text in self.text:
            counts.update(kind for kind, pattern in _KINDS.items() if pattern.match(text))
        return counts


@dataclass
class Loop:
    head: int
    body: set[int]
    inner: list[Loop] = field(default_factory=list)  # the loops directly inside


def functions(listing: str) -> dict[str, list[Block]]:
    """Name of each function in a listing, and its blocks."""
    lines: dict[str, list[str]] = {}
    current: list[str] = []
    for line in listing.splitlines():
        if match := FUNCTION.match(line):
            current = lines.setdefault(match[1], [])
        else:
            current.append(line)
    return {name: _blocks(part) for name, part in lines.items()}


def _blocks(lines: Iterable[str]) -> list[Block]:
    blocks, labels = [Block()], {}
    jumps: list[tuple[int, str]] = []
    falls = True  # whether the next block follows the last one
    start = True  # whether the next instruction begins a block
    for line in lines:
        if match := LABEL.match(line):
            labels[match[1]] = len(blocks)
            start = True
        elif match := INSTRUCTION.match(line):
            guard, text = match[1], match[2]
            if start:
                blocks.append(Block())
                if falls:
                    blocks[-2].after.append(len(blocks) - 1)
                for label, block in labels.items():
                    if block >= len(blocks):
                        labels[label] = len(blocks) - 1
            blocks[-1].text.append(text)
            target = TARGET.search(text)
            name = text.split()[0]
            start = name.startswith(("BRA", "BRX", "JMX", "EXIT", "RET"))
            start |= name.startswith("CALL") and target is not None  # into this function's own code
            always = guard in (None, "PT") and not re.match(r"\S+\s+!?U?P\d", text)
            falls = not (start and always) or name.startswith(BOTH_WAYS)
            if start and target and name != "BRA.DIV":
                jumps.append((len(blocks) - 1, target[1]))
    for block, label in jumps:
        if label in labels and labels[label] < len(blocks):
            blocks[block].after.append(labels[label])
    return blocks


def _dominators(blocks: list[Block]) -> tuple[dict[int, int], dict[int, int]]:
    """The immediate dominator of each reachable block, and its place in reverse postorder."""
    order: list[int] = []
    seen, stack = {0}, [(0, iter(blocks[0].after))]
    while stack:
        block, following = stack[-1]
        for after in following:
            if after not in seen:
                seen.add(after)
                stack.append((after, iter(blocks[after].after)))
                break
        else:
            order.append(block)
            stack.pop()
    place = {block: k for k, block in enumerate(reversed(order))}
    before: dict[int, list[int]] = {block: [] for block in place}
    for block in place:
        for after in blocks[block].after:
            before[after].append(block)
    dominator = {0: 0}
    changed = True
    while changed:
        changed = False
        for block in list(place)[1:]:
            known = [b for b in before[block] if b in dominator]
            best = known[0]
            for other in known[1:]:
                while best != other:
                    if place[best] > place[other]:
                        best = dominator[best]
                    else:
                        other = dominator[other]
            if dominator.get(block) != best:
                dominator[block] = best
                changed = True
    return dominator, place


def loops(blocks: list[Block]) -> list[Loop]:
    """All natural loops, the outer ones first."""
    dominator, place = _dominators(blocks)
    before: dict[int, list[int]] = {block: [] for block in place}
    for block in place:
        for after in blocks[block].after:
            before[after].append(block)
    bodies: dict[int, set[int]] = {}
    for tail in place:
        for head in blocks[tail].after:
            above = tail
            while place[above] > place[head]:
                above = dominator[above]
            if above != head:
                continue
            body, todo = bodies.setdefault(head, {head}), [tail]
            while todo:
                block = todo.pop()
                if block not in body:
                    body.add(block)
                    todo += before[block]
    found = [Loop(h, body) for h, body in sorted(bodies.items(), key=lambda x: -len(x[1]))]
    for k, loop in enumerate(found):
        outer = [o for o in found[:k] if loop.head in o.body and o is not loop]
        if outer:
            outer[-1].inner.append(loop)  # the smallest of them
    return found


def paths(
    blocks: list[Block], loop: Loop, of: Callable[[Counter[str]], Count]
) -> list[Counter[str]]:
    """What the paths once around a loop count: the longest of those that `of` does not tell apart.

    Inner loops are passed by: their bodies count nothing.
    """
    inside = {block: inner for inner in loop.inner for block in inner.body}
    kinds = [block.count() for block in blocks]

    def leave(block: int) -> set[int]:
        if block not in inside:
            return set(blocks[block].after)
        body = inside[block].body
        return {after for b in body for after in blocks[b].after if after not in body}

    # From the back: a block's paths are known once those of all that follow are.
    known: dict[int, dict[Count, Counter[str]]] = {}
    stack = [loop.head]
    while stack:
        block = stack[-1]
        following = [b for b in leave(block) if b in loop.body]
        todo = [b for b in following if b != loop.head and b not in known]
        if todo:
            stack += todo
            continue
        stack.pop()
        own = Counter() if block in inside else kinds[block]
        ends: dict[Count, Counter[str]] = {}
        for after in following:
            rest = {(): Counter[str]()} if after == loop.head else known[after]
            for path in rest.values():
                whole = own + path
                key = of(whole)
                if key not in ends or whole["total"] > ends[key]["total"]:
                    ends[key] = whole
        known[block] = ends
    return list(known[loop.head].values())
