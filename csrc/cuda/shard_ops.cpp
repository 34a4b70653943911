// The CUDA backend of the sharded stages: converts tensors to a cuda::Call and launches on the
// current stream of their device.
#include <torch/library.h>

#include "cuda/sharded/launch.h"
#include "cuda/tensors.h"
#include "shard_call.h"

namespace gkd {
namespace {

/// run(call), where it has rows.
template <class Run>
void launch(const ShardCall& c, Run run) {
  if (c.rows() == 0) return;
  cuda::TensorCall call(c.student, c.teacher, c.target, c.options, /*is_training=*/true);
  call.p.all_classes = c.num_classes;
  call.p.class_start = c.class_start;
  C10_CUDA_CHECK(run(call));
}
/// run(call, workspace)
template <class Run>
void launch_with_workspace(const ShardCall& c, Run run) {
  launch(c, [&](const cuda::TensorCall& call) {
    const at::Tensor workspace = call.workspace(cuda::shard_workspace_bytes(call));
    return run(call, workspace.mutable_data_ptr());
  });
}

void extremes(const ShardCall& c, Ref out) {
  launch(c, [&](const cuda::Call& call) { return cuda::shard_extremes(call, int64_row(out)); });
}

void counts(const ShardCall& c, Ref extremes, Ref out) {
  launch(c, [&](const cuda::Call& call) {
    return cuda::shard_counts(call, int64_row(extremes), out.mutable_data_ptr<std::int32_t>());
  });
}

void histogram(const ShardCall& c, Ref extremes, Ref counts, Ref search, Ref out) {
  launch(c, [&](const cuda::Call& call) {
    return cuda::shard_histogram(call, int64_row(extremes), counts.const_data_ptr<std::int32_t>(),
                                 int64_row(search), int64_row(out));
  });
}

void refine(const ShardCall& c, Ref extremes, Ref histogram, Ref search, const TensorPair& out) {
  launch(c, [&](const cuda::Call& call) {
    return cuda::shard_refine(call, int64_row(extremes), int64_row(histogram), int64_row(search),
                              int64_row(std::get<0>(out)),
                              std::get<1>(out).mutable_data_ptr<double>());
  });
}

void moments(const ShardCall& c, Ref cut, Ref out) {
  launch_with_workspace(c, [&](const cuda::Call& call, void* workspace) {
    return cuda::shard_moments(call, cut.const_data_ptr<double>(), out.mutable_data_ptr<double>(),
                               workspace);
  });
}

void write_gradient(const ShardCall& c, Ref cut, Ref moments, bool /*need_grad*/,
                    const TensorPair& out) {
  launch_with_workspace(c, [&](const cuda::Call& call, void* workspace) {
    return cuda::shard_gradient(call, cut.const_data_ptr<double>(),
                                moments.const_data_ptr<double>(), moments.size(0),
                                cuda::data_or_null(std::get<0>(out)),
                                std::get<1>(out).mutable_data_ptr<double>(), workspace);
  });
}

void loss(const ShardCall& c, Ref moments, Ref kl, const LossTensors& out) {
  // The kernel reads both by one number of ranks.
  TORCH_CHECK_VALUE(kl.size(0) == moments.size(0), "gkd::_shard_loss: kl must be of ",
                    moments.size(0), " ranks as moments, got ", kl.size(0));
  const auto& [total, grad_scale, cross_entropy, distillation] = out;
  const cuda::Results results =
      cuda::results_of(c.rows(), total, grad_scale, {}, cross_entropy, distillation);
  launch_with_workspace(c, [&](const cuda::Call& call, void* workspace) {
    return cuda::shard_loss(call, moments.const_data_ptr<double>(), kl.const_data_ptr<double>(),
                            moments.size(0), results, workspace);
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CUDA, m) {
  register_stages<extremes, counts, histogram, refine, moments, write_gradient, loss>(m);
}

}  // namespace gkd
