"""Processes that talk over gloo: ``run(world_size, work)`` calls ``work(rank, world_size)`` in each
and returns what every rank returned, in rank order."""

import datetime
import os
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

#: How long a rank waits for another that is gone.
TIMEOUT = datetime.timedelta(seconds=20)


def _enter(rank, world_size, work, folder, timeout):
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group(
        "gloo", f"file://{folder}/meet", rank=rank, world_size=world_size, timeout=timeout
    )
    torch.save(work(rank, world_size), f"{folder}/{rank}")
    dist.destroy_process_group()
    # On the interpreter's own way out, torch's threads of closed connections sometimes abort.
    os._exit(0)


def run(world_size, work, timeout=TIMEOUT, lost=()):
    """`lost`: ranks that end without a result, as `work` makes them."""
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("spawn")
        arguments = (world_size, work, folder, timeout)
        ranks = [context.Process(target=_enter, args=(r, *arguments)) for r in range(world_size)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(180)
        stuck = [r for r, process in enumerate(ranks) if process.is_alive()]
        for process in ranks:
            process.kill()
        assert not stuck, f"ranks {stuck} never ended"
        failed = [r for r, process in enumerate(ranks) if process.exitcode and r not in lost]
        assert not failed, f"ranks {failed} failed"
        return [
            torch.load(f"{folder}/{r}") if os.path.exists(f"{folder}/{r}") else None
            for r in range(world_size)
        ]


def slices(classes, world_size, layout):
    """Where each rank's classes begin and end: layouts even, uneven and empty."""
    if layout == "even":
        ends = [classes * k // world_size for k in range(world_size + 1)]
    elif layout == "uneven":
        ends = [0, *[classes - 7 * (world_size - k) for k in range(1, world_size)], classes]
    else:  # the first rank's slice is empty
        ends = [0, 0, *[classes * k // world_size for k in range(2, world_size)], classes]
        ends = ends if world_size > 1 else [0, classes]
    return list(zip(ends[:-1], ends[1:], strict=True))
