"""Bugs in csrc/cuda, in files that few others include: each costs a build."""

from .mutant import Mutant

KERNELS = [
    Mutant(
        name="barrier-dropped",
        fault="counting starts before every bin of the block is 0",
        file="csrc/cuda/select_split.cu",
        old="counts[b] = 0;\n  __syncthreads();  // all zero before the first count\n",
        new="counts[b] = 0;\n",
        by=("gkd_kernel_test Kernels.TiesStayTogether Kernels.RowsShorter*",),
    ),
    Mutant(
        name="histogram-not-cleared",
        fault="a row's search starts from whatever lay in the workspace",
        file="csrc/cuda/select_split.cu",
        old="  GKD_TRY(cudaMemsetAsync(scratch, 0, zero_bytes, stream));\n",
        new="",
        by=("gkd_kernel_test Kernels.RowsShorter*",),
    ),
    Mutant(
        name="cut-one-key-up",
        fault="off by one at the cut: the class that closes the group is left out",
        file="csrc/cuda/select_split.cu",
        old=".cut = Keys<T>(c.p.ranking().dtype).logit(search.high);",
        new=".cut = Keys<T>(c.p.ranking().dtype).logit(search.high + 1);",
        by=("gkd_kernel_test Kernels.RowsShorter*",),
    ),
    Mutant(
        name="target-not-exempt",
        fault="the mask leaves out a target that ranks under the cut",
        file="csrc/cuda/rows.cu",
        old="r.kind == RowKind::kCounted && in_primary(rank, r.cut, j, r.target);",
        new="r.kind == RowKind::kCounted && rank >= r.cut;",
        by=("gkd_kernel_test Kernels.SettingsOfTheFamily",),
    ),
    Mutant(
        name="last-part-lost",
        fault="the KL of a row's last part is not added",
        file="csrc/cuda/loss_split.cu",
        old="for (std::int64_t part = lane; part < parts; part += kWarp) {",
        new="for (std::int64_t part = lane; part + 1 < parts; part += kWarp) {",
        by=("gkd_kernel_test Kernels.RowsShorter*",),
    ),
    Mutant(
        name="unaligned-head-skipped",
        fault="what precedes the first whole vector is not copied on chip (pytorch#56325)",
        file="csrc/cuda/fused.cuh",
        old="for (int k = threadIdx.x; k < head; k += kThreads) first[k] = from[k];",
        new="",
        by=("gkd_kernel_test Kernels.Unaligned*",),
    ),
    Mutant(
        name="last-member-lost",
        fault="a cluster's sum of bins misses its last member",
        file="csrc/cuda/team.cuh",
        old="for (int m = 0; m < members; ++m) sum += cluster().map_shared_rank(bins, m)[b];",
        new="for (int m = 0; m + 1 < members; ++m) sum += cluster().map_shared_rank(bins, m)[b];",
        by=("gkd_kernel_test Kernels.RowsShorter*",),
    ),
]
