// The batch-adaptive group size, as the paper's authors train: one size for the whole batch.
//
// Built from ATen's own operators on whichever device the logits are on: it runs once a step on one
// vector of C sums, where a sort by the library costs less than reading the logits does.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>

#include "ops.h"

namespace gkd {
namespace {

/// Float32 copies of rows at a time, so that no [B, C] buffer exists.
constexpr std::int64_t kChunkBytes = std::int64_t(32) << 20;

at::Tensor adaptive_group_size(const at::Tensor& given, double rate, std::int64_t step) {
  check_adaptive("gkd::adaptive_group_size", given, rate, step);
  const at::Tensor logits = by_row(given);
  const std::int64_t rows = logits.size(0), classes = logits.size(1);
  const auto options = logits.options().dtype(at::kDouble);
  at::Tensor sums = at::zeros({classes}, options);
  const at::ScalarType sum_dtype = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const std::int64_t chunk = std::max<std::int64_t>(1, kChunkBytes / (classes * 4));
  for (std::int64_t row = 0; row < rows; row += chunk) {
    const at::Tensor part = logits.narrow(0, row, std::min(chunk, rows - row));
    sums += at::softmax(part, 1, sum_dtype).sum({0}, false, at::kDouble);
  }
  const at::Tensor mass = at::cumsum(std::get<0>(at::sort(sums, 0, /*descending=*/true)), 0);
  // Classes needed: those whose running mass falls short, and the one that closes the gap.
  const at::Tensor short_of = mass.lt(rate * static_cast<double>(rows)).sum() + 1;
  const at::Tensor stepped = at::floor_divide(short_of + (step - 1), step) * step;
  return stepped.clamp_max(classes);
}

at::Tensor adaptive_meta(const at::Tensor& logits, double rate, std::int64_t step) {
  check_adaptive("gkd::adaptive_group_size", logits, rate, step);
  return at::empty({}, logits.options().dtype(at::kLong));
}

}  // namespace

TORCH_LIBRARY_IMPL(gkd, CompositeExplicitAutograd, m) {
  m.impl("adaptive_group_size", &adaptive_group_size);
}
TORCH_LIBRARY_IMPL(gkd, Meta, m) { m.impl("adaptive_group_size", &adaptive_meta); }

}  // namespace gkd
