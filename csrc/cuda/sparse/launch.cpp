// The order of a sparse call's kernels.
#include "cuda/sparse/launch.h"

#include "cuda/multi_kernel/stages.h"
#include "cuda/row_ops.h"
#include "cuda/sparse/stages.h"

namespace gkd::cuda {
namespace {

template <class T>
Workspace<T> workspace_of(const Problem& p, const Device& device, void* base) {
  const std::int64_t chunk_rows = sparse_chunk_rows(p);
  return lay_out<T>(p, device, chunk_rows, sparse_scratch_bytes(p, device, chunk_rows), base);
}

}  // namespace

std::size_t sparse_workspace_bytes(const Problem& p, const Device& device) {
  return with_arithmetic(p, [&](auto arithmetic) {
    return workspace_of<decltype(arithmetic)>(p, device, nullptr).bytes;
  });
}

cudaError_t sparse_forward(const SparseCall& call, const Results& results, void* workspace) {
  return with_arithmetic(call.p, [&](auto arithmetic) -> cudaError_t {
    using T = decltype(arithmetic);
    const Workspace<T> w = workspace_of<T>(call.p, call.device, workspace);
    const SparseRows<T> rows{{call.p, results.gradient, /*all_kl=*/false, w}, call.group};
    GKD_TRY(read_targets(call.p, w, results.grad_scale, call.stream));
    GKD_TRY(check_groups(rows, call.stream));
    for (std::int64_t row = 0; row < call.p.rows; row += w.chunk_rows) {
      const Chunk chunk =
          chunk_of(row, std::min(w.chunk_rows, call.p.rows - row), call.p, call.device);
      GKD_TRY(run_sparse_loss(rows, chunk, call.stream));
    }
    return reduce_loss(call.p, w, results, call.stream);
  });
}

}  // namespace gkd::cuda
