"""Bugs in csrc/cuda/sparse."""

from .mutant import Mutant

SPARSE_KERNELS = [
    Mutant(
        name="sparse-class-twice",
        fault="a class that a group has twice is summed twice",
        file="csrc/cuda/sparse/loss.cu",
        old="(k == begin || group.indices[k - 1] < j)",
        new="(k == begin || group.indices[k - 1] <= j)",
        by=("gkd_kernel_test SparseKernels.BadRows*",),
    ),
    Mutant(
        name="sparse-target-anywhere",
        fault="a target outside its row's group is taken",
        file="csrc/cuda/sparse/loss.cu",
        old="found |= j == target;",
        new="found = true;",
        by=("gkd_kernel_test SparseKernels.BadRows*",),
    ),
    Mutant(
        name="sparse-window-unmarked",
        fault="the marks of a window's last group class are lost, so the rest has it too",
        file="csrc/cuda/sparse/group.cuh",
        old="k = part.begin + threadIdx.x; k < part.end; k += kThreads) {\n    const auto j",
        new="k = part.begin + threadIdx.x; k + 1 < part.end; k += kThreads) {\n    const auto j",
        by=("gkd_kernel_test SparseKernels.GroupsOfEveryKind",),
    ),
    Mutant(
        name="sparse-chip-unmarked",
        fault="the group's classes stay in the segment on chip, and in the rest's sum",
        file="csrc/cuda/sparse/kernel.cuh",
        old="    store_as(kNone, segment + (c.group.indices[k] - begin));\n",
        new="",
        by=("gkd_kernel_test SparseKernels.GroupsOfEveryKind",),
    ),
    Mutant(
        name="sparse-rest-at-one",
        fault="the number of the teacher's rest is taken as a logit at T = 1",
        file="csrc/cuda/sparse/rest.cuh",
        old="has_mass ? teacher_rest / inv_temperature : 0",
        new="has_mass ? teacher_rest : 0",
        by=("gkd_kernel_test SparseKernels.GroupsOfEveryKind",),
    ),
]
