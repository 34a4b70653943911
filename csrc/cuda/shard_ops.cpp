// The CUDA backend of the sharded stages: converts tensors to a cuda::Problem and launches on the
// current stream of their device.
#include <torch/library.h>

#include "cuda/sharded/launch.h"
#include "cuda/tensors.h"
#include "shard_call.h"

namespace gkd {
namespace {

/// run(problem, device, stream), where the call has rows.
template <class Run>
void launch(const ShardCall& c, Run run) {
  if (c.rows() == 0) return;
  const c10::cuda::CUDAGuard guard(c.student.device());
  cuda::Problem p = cuda::problem_of(c.student, c.teacher, c.target, c.options);
  p.all_classes = c.num_classes;
  p.class_start = c.class_start;
  C10_CUDA_CHECK(run(p, cuda::this_device(), at::cuda::getCurrentCUDAStream()));
}

at::Tensor workspace(const ShardCall& c, const cuda::Problem& p, const cuda::Device& device) {
  const auto bytes = static_cast<std::int64_t>(cuda::shard_workspace_bytes(p, device));
  return at::empty({bytes}, c.student.options().dtype(at::kByte));
}

void extremes(const ShardCall& c, Ref out) {
  launch(c, [&](const auto& p, const auto& device, auto stream) {
    return cuda::shard_extremes(p, device, int64_row(out), stream);
  });
}

void counts(const ShardCall& c, Ref extremes, Ref out) {
  launch(c, [&](const auto& p, const auto& device, auto stream) {
    return cuda::shard_counts(p, device, int64_row(extremes), out.mutable_data_ptr<std::int32_t>(),
                              stream);
  });
}

void histogram(const ShardCall& c, Ref extremes, Ref counts, Ref search, Ref out) {
  launch(c, [&](const auto& p, const auto& device, auto stream) {
    return cuda::shard_histogram(p, device, int64_row(extremes),
                                 counts.const_data_ptr<std::int32_t>(), int64_row(search),
                                 int64_row(out), stream);
  });
}

void refine(const ShardCall& c, Ref extremes, Ref histogram, Ref search, const TensorPair& out) {
  launch(c, [&](const auto& p, const auto&, auto stream) {
    const auto& [next, cut] = out;
    return cuda::shard_refine(p, int64_row(extremes), int64_row(histogram), int64_row(search),
                              int64_row(next), cut.template mutable_data_ptr<double>(), stream);
  });
}

void moments(const ShardCall& c, Ref cut, Ref out) {
  launch(c, [&](const auto& p, const auto& device, auto stream) {
    return cuda::shard_moments(p, device, cut.const_data_ptr<double>(),
                               out.mutable_data_ptr<double>(),
                               workspace(c, p, device).mutable_data_ptr(), stream);
  });
}

void write_gradient(const ShardCall& c, Ref cut, Ref moments, bool /*need_grad*/,
                    const TensorPair& out) {
  launch(c, [&](const auto& p, const auto& device, auto stream) {
    const auto& [gradient, kl] = out;
    return cuda::shard_gradient(
        p, device, cut.const_data_ptr<double>(), moments.const_data_ptr<double>(), moments.size(0),
        cuda::data_or_null(gradient), kl.template mutable_data_ptr<double>(),
        workspace(c, p, device).mutable_data_ptr(), stream);
  });
}

void loss(const ShardCall& c, Ref moments, Ref kl, const TensorPair& out) {
  const auto& [value, grad_scale] = out;
  const cuda::Results results = cuda::results_of(c.rows(), value, grad_scale, {});
  launch(c, [&](const auto& p, const auto& device, auto stream) {
    return cuda::shard_loss(p, device, moments.const_data_ptr<double>(),
                            kl.const_data_ptr<double>(), moments.size(0), results,
                            workspace(c, p, device).mutable_data_ptr(), stream);
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CUDA, m) {
  register_stages<extremes, counts, histogram, refine, moments, write_gradient, loss>(m);
}

}  // namespace gkd
