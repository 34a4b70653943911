// The order of a call's stages.
#include "cuda/launch.h"

#include "cuda/stages.h"

namespace gkd::cuda {
namespace {

/// Cuts, summaries and last sweeps of all rows, chunk by chunk.
template <class T>
cudaError_t run_rows(const Problem& p, const Device& device, Method method, const Workspace<T>& w,
                     const T* weight, bool all_kl, void* gradient, cudaStream_t stream) {
  T cut;
  const bool constant = constant_cut(p, &cut);
  if (constant) GKD_TRY(fill_cuts(p, w.state, cut, stream));
  for (std::int64_t row = 0; row < p.rows; row += w.chunk_rows) {
    const std::int64_t rows = std::min(w.chunk_rows, p.rows - row);
    const Chunk chunk{row, rows, split_rows(rows, p.classes, device)};
    if (!constant) {
      const auto find = method == Method::kSort ? &find_cuts_sort<T> : &find_cuts_select<T>;
      GKD_TRY(find(p, chunk, w.state, w.selection, stream));
    }
    GKD_TRY(run_split(p, chunk, w, weight, all_kl, gradient, stream));
  }
  return cudaSuccess;
}

template <class T>
cudaError_t forward(const Problem& p, const Results& results, const Device& device, Method method,
                    void* workspace, cudaStream_t stream) {
  const Workspace<T> w = lay_out<T>(p, device, method, workspace);
  T* weight = static_cast<T*>(results.weight);
  GKD_TRY(read_targets(p, w.state, weight, stream));
  GKD_TRY(run_rows<T>(p, device, method, w, weight, /*all_kl=*/false, results.gradient, stream));
  return reduce_loss(p, w.report, weight, static_cast<T*>(results.loss), stream);
}

template <class T>
cudaError_t group(const Problem& p, const GroupColumns& columns, const Device& device,
                  Method method, void* workspace, cudaStream_t stream) {
  const Workspace<T> w = lay_out<T>(p, device, method, workspace);
  GKD_TRY(read_targets(p, w.state, w.weight, stream));
  GKD_TRY(run_rows<T>(p, device, method, w, w.weight, /*all_kl=*/true, nullptr, stream));
  return write_group(p, w.state, w.report, device, columns, stream);
}

}  // namespace

std::size_t workspace_bytes(const Problem& p, const Device& device, Method method) {
  if (p.wide()) return lay_out<double>(p, device, method, nullptr).bytes;
  return lay_out<float>(p, device, method, nullptr).bytes;
}

cudaError_t forward(const Problem& p, const Results& results, const Device& device, Method method,
                    void* workspace, cudaStream_t stream) {
  if (p.wide()) return forward<double>(p, results, device, method, workspace, stream);
  return forward<float>(p, results, device, method, workspace, stream);
}

cudaError_t group(const Problem& p, const GroupColumns& columns, const Device& device,
                  Method method, void* workspace, cudaStream_t stream) {
  if (p.wide()) return group<double>(p, columns, device, method, workspace, stream);
  return group<float>(p, columns, device, method, workspace, stream);
}

}  // namespace gkd::cuda
