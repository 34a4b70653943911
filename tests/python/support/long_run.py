"""Many calls of random shapes, dtypes and settings: does the process's memory stay flat?

    python tests/python/support/long_run.py --calls 100000

prints the resident size after the warm-up, along the way and at the end, and exits with 1 where the
end lies more than 1% above the warm-up. Everything is on the CPU.

What is compared is VmRSS of the process as it stands, with the allocator's own defaults: no
malloc_trim, no MALLOC_ARENA_MAX. Two things that are no leaks are kept out of it: Python's cycles
are collected before a reading, and the first calls of the warm-up have the largest shape of every
kind of call, so that the allocator's high-water mark is reached before the first reading. Resident
pages include those of libraries read so far, which is why the errors too are raised in the warm-up.
"""

import argparse
import gc
import itertools
import random
import re
import sys
from pathlib import Path

import torch

import gkd
from cases import MODES, settings_of
from linear_reference import networks
from oracle import DTYPES

#: The largest call: [B, C]. Small, so that 10^5 calls take minutes.
LARGEST = (12, 2000)
KINDS = ("loss", "group", "linear_loss", "error")
#: How often each of them comes.
OFTEN = (80, 10, 8, 2)
BOUND = 0.01


def memory():
    """VmRSS and RssAnon, the part of it that no file backs, in KiB."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return [int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) for name in ("VmRSS", "RssAnon")]


def settings_from(draw):
    settings, with_target = settings_of(draw.choice(list(MODES)))
    settings["reduction"] = draw.choice(["mean", "sum", "none"])
    settings["method"] = draw.choice(["auto", "sort", "select"])
    return settings, with_target


def target_for(rows, classes, draw):
    """Every tenth row or so is ignored."""
    dtype = draw.choice([torch.int64, torch.int32])
    target = torch.randint(classes, (rows,), dtype=dtype)
    target[torch.rand(rows) < 0.1] = -100
    return target


def call(kind, shape, draw):
    """One call with its backward; what it made is gone when it returns."""
    rows, classes = shape
    settings, with_target = settings_from(draw)
    target = target_for(rows, classes, draw) if with_target else None
    if kind == "linear_loss":
        net = networks("cpu", draw.choice([torch.float32, torch.float64]), rows, classes)
        value = gkd.linear_loss(*net, target, chunk_rows=5, **settings)
        value.sum().backward()
        return
    student = torch.randn(shape, dtype=draw.choice(DTYPES), requires_grad=True)
    teacher = torch.randn(shape, dtype=draw.choice(DTYPES)) * 4
    if kind == "loss":
        value = gkd.loss(student, teacher, target, **settings)
        value.backward(torch.randn_like(value))
    elif kind == "group":
        gkd.group(student, teacher, target, return_mask=draw.random() < 0.5, **settings)
    else:
        beyond = torch.full((rows,), classes)
        try:
            gkd.loss(student, teacher, beyond, **settings)
        except IndexError:
            return
        raise AssertionError("a target out of bounds was accepted")


def calls(seed):
    """The largest of every kind first, then random ones for ever: (kind, shape)."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    for kind in KINDS * 50:
        yield kind, LARGEST, draw
    for _ in itertools.count():
        shape = [int(round(most ** draw.random())) for most in LARGEST]
        yield draw.choices(KINDS, OFTEN)[0], tuple(shape), draw


def run(count, warm_up, every, leak=0, seed=0, report=print):
    """VmRSS after the warm-up and after `count` calls; `leak`: bytes kept from every call."""
    kept = []
    for done, arguments in enumerate(itertools.islice(calls(seed), count), start=1):
        call(*arguments)
        if leak:
            kept.append(bytearray(b"x" * leak))
        if done in (warm_up, count) or done % every == 0:
            resident, anonymous = memory()
            report(f"{done:>8} calls: VmRSS {resident:,} KiB, RssAnon {anonymous:,} KiB")
            if done == warm_up:
                first = resident
    return first, resident


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--warm-up", type=int, default=1000, help="calls before the first reading")
    parser.add_argument("--every", type=int, default=10_000, help="calls between two readings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--leak", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.calls <= args.warm_up:
        parser.error("--calls must be more than --warm-up")
    report = lambda line: print(line, flush=True)  # noqa: E731
    first, last = run(args.calls, args.warm_up, args.every, args.leak, args.seed, report)
    growth = last / first - 1
    print(f"growth {growth:+.2%}, bound {BOUND:+.0%}")
    sys.exit(growth > BOUND)


if __name__ == "__main__":
    main()
