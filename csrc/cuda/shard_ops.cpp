// The CUDA backend of the sharded stages: converts tensors to a cuda::Call and launches on the
// current stream of their device.
#include <torch/library.h>

#include "cuda/sharded/launch.h"
#include "cuda/tensors.h"
#include "shard_call.h"

namespace gkd {
namespace {

struct Stage : cuda::TensorCall {
  explicit Stage(const ShardCall& c) : TensorCall(c.student, c.teacher, c.target, c.options) {
    p.all_classes = c.num_classes;
    p.class_start = c.class_start;
  }
  at::Tensor workspace() const { return TensorCall::workspace(cuda::shard_workspace_bytes(*this)); }
};

/// One message per row.
at::Tensor empty_messages(const ShardCall& c, std::int64_t width, at::ScalarType dtype) {
  return at::empty({c.rows(), width}, c.student.options().dtype(dtype));
}

// torch's int64 and the kernels' long long are one type in memory.
long long* int64_data(const at::Tensor& t) {
  return reinterpret_cast<long long*>(t.mutable_data_ptr<std::int64_t>());
}
/// The search so far; null before the first radix pass.
const long long* search_or_null(const at::Tensor& search) {
  return search.dim() == 1 ? nullptr : int64_data(search);
}

at::Tensor extremes(const ShardCall& c) {
  at::Tensor out = empty_messages(c, kMsgExtremes, at::kLong);
  if (c.rows() == 0) return out;
  const Stage s(c);
  C10_CUDA_CHECK(cuda::shard_extremes(s, int64_data(out)));
  return out;
}

at::Tensor counts(const ShardCall& c, Ref extremes) {
  at::Tensor out = empty_messages(c, kBins, at::kInt);
  if (c.rows() == 0) return out;
  const Stage s(c);
  C10_CUDA_CHECK(cuda::shard_counts(s, int64_data(extremes), out.mutable_data_ptr<std::int32_t>()));
  return out;
}

at::Tensor histogram(const ShardCall& c, Ref extremes, Ref counts, Ref search) {
  at::Tensor out = empty_messages(c, kMsgHistogram, at::kLong);
  if (c.rows() == 0) return out;
  const Stage s(c);
  C10_CUDA_CHECK(cuda::shard_histogram(s, int64_data(extremes),
                                       counts.const_data_ptr<std::int32_t>(),
                                       search_or_null(search), int64_data(out)));
  return out;
}

TensorPair refine(const ShardCall& c, Ref extremes, Ref histogram, Ref search) {
  at::Tensor next = empty_messages(c, kSearchFields, at::kLong);
  at::Tensor cut = at::empty({c.rows()}, c.student.options().dtype(at::kDouble));
  if (c.rows() == 0) return {next, cut};
  const Stage s(c);
  C10_CUDA_CHECK(cuda::shard_refine(s, int64_data(extremes), int64_data(histogram),
                                    search_or_null(search), int64_data(next),
                                    cut.mutable_data_ptr<double>()));
  return {next, cut};
}

at::Tensor moments(const ShardCall& c, Ref cut) {
  at::Tensor out = empty_messages(c, kMsgMoments, at::kDouble);
  if (c.rows() == 0) return out;
  const Stage s(c);
  C10_CUDA_CHECK(cuda::shard_moments(s, cut.const_data_ptr<double>(),
                                     out.mutable_data_ptr<double>(),
                                     s.workspace().mutable_data_ptr()));
  return out;
}

TensorPair write_gradient(const ShardCall& c, Ref cut, Ref moments, bool need_grad) {
  const auto options = c.student.options();
  at::Tensor gradient =
      need_grad ? at::empty({c.rows(), c.classes()}, options) : at::empty({0}, options);
  at::Tensor kl = empty_messages(c, 2, at::kDouble);
  if (c.rows() == 0) return {gradient, kl};
  const Stage s(c);
  C10_CUDA_CHECK(
      cuda::shard_gradient(s, cut.const_data_ptr<double>(), moments.const_data_ptr<double>(),
                           moments.size(0), need_grad ? gradient.mutable_data_ptr() : nullptr,
                           kl.mutable_data_ptr<double>(), s.workspace().mutable_data_ptr()));
  return {gradient, kl};
}

TensorPair loss(const ShardCall& c, Ref moments, Ref kl) {
  const auto options = c.student.options().dtype(compute_dtype(c.student, c.teacher));
  at::Tensor value =
      c.options.reduction == "none" ? at::empty({c.rows()}, options) : at::empty({}, options);
  at::Tensor grad_scale = at::empty({}, options);
  if (c.rows() == 0) return {value.zero_(), grad_scale.fill_(1)};
  const Stage s(c);
  const cuda::Results results{value.mutable_data_ptr(), grad_scale.mutable_data_ptr(), nullptr};
  C10_CUDA_CHECK(cuda::shard_loss(s, moments.const_data_ptr<double>(), kl.const_data_ptr<double>(),
                                  moments.size(0), results, s.workspace().mutable_data_ptr()));
  return {value, grad_scale};
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CUDA, m) {
  register_stages<extremes, counts, histogram, refine, moments, write_gradient, loss>(m);
}

}  // namespace gkd
