// The order of a call's stages.
#include "cuda/launch.h"

#include "cuda/stages.h"

namespace gkd::cuda {
namespace {

template <class T>
cudaError_t find_cuts(const Problem& p, const Device& device, const Workspace<T>& w,
                      cudaStream_t stream) {
  T cut;
  if (constant_cut(p, &cut)) return fill_cuts(p, w.state, cut, stream);
  return find_cuts_sort(p, device, w.state, w.sort, stream);
}

template <class T>
cudaError_t forward(const Problem& p, const Results& results, const Device& device, Method method,
                    void* workspace, cudaStream_t stream) {
  const Workspace<T> w = lay_out<T>(p, device, method, workspace);
  T* weight = static_cast<T*>(results.weight);
  GKD_TRY(read_targets(p, w.state, weight, stream));
  GKD_TRY(find_cuts(p, device, w, stream));
  GKD_TRY(run_split(p, w, weight, /*all_kl=*/false, results.gradient, stream));
  return reduce_loss(p, w.report, weight, static_cast<T*>(results.loss), stream);
}

template <class T>
cudaError_t group(const Problem& p, const GroupColumns& columns, const Device& device,
                  Method method, void* workspace, cudaStream_t stream) {
  const Workspace<T> w = lay_out<T>(p, device, method, workspace);
  GKD_TRY(read_targets(p, w.state, w.weight, stream));
  GKD_TRY(find_cuts(p, device, w, stream));
  GKD_TRY(run_split(p, w, static_cast<const T*>(w.weight), /*all_kl=*/true, nullptr, stream));
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
