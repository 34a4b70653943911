"""Bugs in csrc/cuda, in files that few others include: each costs a build."""

from .mutant import Mutant

KERNELS = [
    Mutant(
        name="barrier-dropped",
        fault="counting starts before every bin of the block is 0",
        file="csrc/cuda/multi_kernel/select_kernels.cuh",
        old="counts[b] = 0;\n  __syncthreads();  // all bins are zero before the first count\n",
        new="counts[b] = 0;\n",
        by=("gkd_kernel_test Kernels.TiesStayTogether Kernels.RowsShorter*",),
    ),
    Mutant(
        name="histogram-not-cleared",
        fault="a row's search starts from whatever lay in the workspace",
        file="csrc/cuda/multi_kernel/select.cu",
        old="GKD_TRY(cudaMemsetAsync(scratch.row, 0, chunk.rows * sizeof(*scratch.row), stream));",
        new="",
        by=("gkd_kernel_test Kernels.RowsShorter*",),
    ),
    Mutant(
        name="cut-one-key-up",
        fault="off by one at the cut: the class that closes the group is left out",
        file="csrc/cuda/multi_kernel/select.cu",
        old="found = Keys<T>(c.p.ranking().dtype).logit(search.high);",
        new="found = Keys<T>(c.p.ranking().dtype).logit(search.high + 1);",
        by=("gkd_kernel_test Kernels.RowsShorter*",),
    ),
    Mutant(
        name="target-not-exempt",
        fault="the mask leaves out a target that ranks under the cut",
        file="csrc/cuda/row_ops.cu",
        old="r.kind == RowKind::kCounted && in_primary(rank, r.cut, j, r.target);",
        new="r.kind == RowKind::kCounted && rank >= r.cut;",
        by=("gkd_kernel_test Kernels.SettingsOfTheFamily",),
    ),
    Mutant(
        name="last-segment-lost",
        fault="the KL of a row's last segment is not added",
        file="csrc/cuda/multi_kernel/loss.cu",
        old="for (std::int64_t segment = lane; segment < segments; segment += kWarp) {",
        new="for (std::int64_t segment = lane; segment + 1 < segments; segment += kWarp) {",
        by=("gkd_kernel_test Kernels.RowsShorter*",),
    ),
    Mutant(
        name="uneven-tail-skipped",
        fault="what follows the last whole word is not copied on chip (pytorch#56325)",
        file="csrc/cuda/fused/vectors.cuh",
        old="k < count; k += kFusedThreads) shared[k] = global[k];",
        new="k < copied; k += kFusedThreads) shared[k] = global[k];",
        by=("gkd_kernel_test Kernels.Unaligned*",),
    ),
    Mutant(
        name="row-shift-trusted",
        fault="a group without digits relative to the row's shift is not summed again",
        file="csrc/cuda/fused/vector_passes.cuh",
        old="return inverse > 0 && inverse <= 1 / kLeastSum; };",
        new="return inverse >= 0; };",
        by=("gkd_kernel_test Kernels.GroupsFarApart*",),
    ),
    Mutant(
        name="last-block-lost",
        fault="a cluster's sum of bins misses its last block",
        file="csrc/cuda/fused/block_group.cuh",
        old="for (int r = 0; r < blocks; ++r) sum += cluster().map_shared_rank(bins, r)[b];",
        new="for (int r = 0; r + 1 < blocks; ++r) sum += cluster().map_shared_rank(bins, r)[b];",
        by=("gkd_kernel_test Kernels.RowsShorter*",),
    ),
]
