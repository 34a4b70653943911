"""gkd.distributed.loss in subgroups of the ranks, and in a group that ends and starts again."""

import functools
import os
import tempfile

import torch
import torch.distributed as dist

import gkd
import ranks
from oracle import error
from test_collectives import batch, fault_of, loss_of_slice, slices


def in_a_subgroup(rank, world_size):
    """Two pairs of ranks with a head each, and ranks in another order than their classes."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    group = pairs[rank // 2]
    classes = 507 + rank // 2
    whole = batch(classes, torch.float64, True)
    where = slices(classes, 2, "uneven")[1 - rank % 2]
    return error(loss_of_slice(*whole, where, process_group=group), gkd.loss(*whole)) <= 1e-13


def test_subgroups_and_any_order_of_slices():
    assert ranks.run(4, in_a_subgroup) == [True] * 4


def restarted(rank, world_size):
    """The group ends and starts again under its old name, with another process as rank 1."""
    whole = batch(507, torch.float64, True)
    call = functools.partial(loss_of_slice, *whole, slices(507, world_size, "even")[rank])
    first = call()
    dist.destroy_process_group()
    if rank == 1:  # a new process knows nobody
        gkd._agreement._agreed.clear()
    meet = os.path.join(tempfile.gettempdir(), f"gkd-restarted-{os.getppid()}")
    dist.init_process_group(
        "gloo", f"file://{meet}", rank=rank, world_size=world_size, timeout=ranks.TIMEOUT
    )
    fault = fault_of(lambda: call(temperature=1.0 + rank))
    return fault, error(call(), first) == 0


def test_a_group_that_starts_again_compares_again():
    for fault, same in ranks.run(2, restarted):
        assert fault == (
            "ValueError",
            "gkd.distributed.loss: ranks 0 and 1 disagree on temperature",
        )
        assert same
