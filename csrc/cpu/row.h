// One row on the CPU: selection, summary, loss and gradient.
//
// No torch here: the implementation is compiled once per instruction set and is_met through a
// table of function pointers. Rows are read and written in blocks of classes, in their own dtype.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "math/cut.h"
#include "math/dtype.h"
#include "math/loss.h"

namespace gkd::cpu {

/// One row of logits; `stride` in elements.
struct LogitsRow {
  const void* data = nullptr;
  std::int64_t stride = 1;
  Dtype dtype = Dtype::kFloat;
};

/// One contiguous row of the gradient; no data: none is wanted.
struct GradientRow {
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat;
};

/// `target` < 0: none. The gradient is multiplied by `gradient_scale`.
struct RowTask {
  LogitsRow student, teacher;
  GradientRow gradient;
  std::int64_t classes = 0, target = -1;
  double gradient_scale = 1;
  Selection how;
  Weights weights;
};

/// Sums over a run of classes: [0] the primary group, [1] the rest.
struct Sums {
  double sum_teacher[2] = {0, 0}, sum_student[2] = {0, 0}, sum_diff[2] = {0, 0};
  std::int64_t count[2] = {0, 0};
  std::uint64_t mass_in = 0, mass_total = 0;  ///< fixed-point ranking masses, where asked for

  void merge(const Sums& other) {
    for (int g = 0; g < 2; ++g) {
      sum_teacher[g] += other.sum_teacher[g];
      sum_student[g] += other.sum_student[g];
      sum_diff[g] += other.sum_diff[g];
      count[g] += other.count[g];
    }
    mass_in += other.mass_in;
    mass_total += other.mass_total;
  }
};

/// What a segment of a row yields. Segments are cut by class alone and merged in order, so that the
/// bits do not depend on how many threads share them.
struct Segment {
  double high = 0, low = 0;  ///< extremes of the ranking logits
  double teacher_high = 0;
  Sums sums;
  std::vector<std::uint32_t>
      window;  ///< classes between the window's edges, from the segment's 1st
  double kl[2] = {0, 0};
};

/// Working memory of one thread, grown once and reused from row to row.
struct Scratch {
  std::vector<Segment> segments;
  std::vector<std::int32_t> counts;
  std::vector<std::uint64_t> masses;
};

/// Runs body(0), ..., body(n - 1) in any order, perhaps at once.
using Executor = std::function<void(std::int64_t n, const std::function<void(std::int64_t)>& body)>;

/// What one row yields besides its gradient.
struct RowResult {
  double loss = 0, primary = 0, secondary = 0;
  RowSummary summary;
  double cut = 0;         ///< smallest ranking logit in the group, +inf when empty
  std::int64_t size = 0;  ///< classes in the primary group
};

using RowFunction = RowResult (*)(const RowTask&, const Executor&, Scratch*);
/// to[j] = from[j] * scale for `count` elements of `dtype`, rounded once; `to` may be `from`.
using ScaleFunction = void (*)(const void* from, void* to, Dtype dtype, std::int64_t count,
                               double scale);

/// The kernels of one instruction set: rows in float and in double arithmetic.
struct Kernels {
  RowFunction single, wide;
  ScaleFunction scale;
};

namespace DEFAULT {
Kernels kernels();
}
namespace AVX2 {
Kernels kernels();
}
namespace AVX512 {
Kernels kernels();
}

/// The best kernels that this processor runs.
const Kernels& kernels();

/// Classes per segment: small enough to share a row of 100K among threads, and large enough that
/// starting one costs nothing beside it.
constexpr std::int64_t kSegment = 16384;

}  // namespace gkd::cpu
