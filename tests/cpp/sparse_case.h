// A call of the sparse kernels on random rows with groups of every kind, and what it gives.
#pragma once

#include "cuda/sparse/fused_plan.h"
#include "kernel_check.h"

namespace gkd::cuda::test {

/// Inputs of one call. The teacher's logits outside the groups exist for the oracle alone.
struct SparseCase {
  Case c;
  std::vector<char> mask;  ///< [rows, classes]: in the group
  /// What is sent, unless a test changes it.
  std::vector<std::int64_t> indptr;
  std::vector<std::int32_t> indices;
  std::vector<double> rest;

  /// Row i has the group of kind i % kKinds, and its target's class beside it.
  static constexpr int kKinds = 6;
  explicit SparseCase(Case given) : c(std::move(given)) {
    const std::int64_t classes = c.p.classes;
    c.p.reduction = Reduction::kNone;
    c.p.selection.by_student = true;
    mask.assign(c.student.size(), 0);
    for (std::int64_t i = 0; i < c.p.rows; ++i) {
      char* in = mask.data() + i * classes;
      const double* u = c.teacher.data() + i * classes;
      for (std::int64_t j = 0; j < classes; ++j) {
        const bool kinds[kKinds] = {u[j] >= 9,   // the largest, here and there
                                    false,       // nothing
                                    true,        // everything
                                    j % 2 == 0,  // half of each slice
                                    j == 0 || j == classes - 1,
                                    j >= classes / 3 && j < 2 * classes / 3};
        in[j] = kinds[i % kKinds];
      }
      if (!c.target.empty()) in[c.target[i]] = 1;
    }
    fill();
  }

  /// The group's arrays from the mask.
  void fill() {
    const std::int64_t classes = c.p.classes;
    indptr.assign(1, 0);
    indices.clear();
    rest.clear();
    for (std::int64_t i = 0; i < c.p.rows; ++i) {
      long double sum = 0, high = -kInfinity;
      for (int pass = 0; pass < 2; ++pass) {
        for (std::int64_t j = 0; j < classes; ++j) {
          if (mask[i * classes + j]) continue;
          const long double y =
              c.teacher[i * classes + j] / (long double)c.p.weights.exponent_temperature();
          if (pass == 0) high = std::max(high, y);
          if (pass == 1 && y > -kInfinity) sum += std::exp(y - high);
        }
      }
      for (std::int64_t j = 0; j < classes; ++j) {
        if (mask[i * classes + j]) indices.push_back(static_cast<std::int32_t>(j));
      }
      indptr.push_back(static_cast<std::int64_t>(indices.size()));
      rest.push_back(static_cast<double>(sum > 0 ? high + std::log(sum) : -kInfinity));
    }
  }
};

/// The split kernels, and each fused kernel at the least and the most shared memory that leads to
/// it, so at its most and fewest blocks.
std::vector<Way> sparse_ways(const Problem& problem);

/// Copies the inputs over, runs the loss, and reads it and its gradient back. Rounds c's logits.
Outcome run_sparse(SparseCase& c, const Way& way);

}  // namespace gkd::cuda::test
