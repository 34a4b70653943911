// The CPU kernels of one row: what they take, what they return, and one table of function pointers
// per instruction set (kernels/README.md). No torch.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <tuple>
#include <vector>

#include "math/cross_entropy.h"
#include "math/cut.h"
#include "math/dtype.h"
#include "math/loss.h"
#include "math/messages.h"

namespace gkd::cpu {

/// One row of logits; `stride` in elements. Whatever reads it sees the class `lowered` (negative:
/// none) lowered by `lowered_by`: a margin.
struct LogitsRow {
  const void* data = nullptr;
  std::int64_t stride = 1;
  Dtype dtype = Dtype::kFloat;
  std::int64_t lowered = -1;
  double lowered_by = 0;

  bool lowers(std::int64_t begin, std::int64_t end) const {
    return lowered >= begin && lowered < end;
  }
};

/// One contiguous row of the gradient; without data no gradient is computed.
struct GradientRow {
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat;
};

/// `target` < 0: none. The gradient is multiplied by `gradient_scale`. `margin` is of the target's
/// logit in cross-entropy; that of the terms is in the rows of logits.
struct RowTask {
  LogitsRow student, teacher;
  GradientRow gradient;
  std::int64_t classes = 0, target = -1;
  double gradient_scale = 1, margin = 0;
  Selection selection;
  Weights weights;
};

/// `row.classes` are the shard's and may be 0; `row.target` counts from the shard's first class and
/// may lie outside it.
struct ShardTask {
  RowTask row;
  std::int64_t all_classes = 1;
  bool has_wide_keys = false;  ///< some rank's ranking logits are not all of their dtype
};

/// A row whose teacher is known in its group alone: `size` classes, ascending, whose logits are
/// row.teacher, contiguous and scaled already. row.target is one of them, or negative.
struct SparseTask {
  RowTask row;
  const std::int32_t* indices = nullptr;
  std::int64_t size = 0;
  double rest = 0;  ///< log sum exp(u_j/T) over all other classes, u_j scaled
};

/// Sums over the classes of a segment or a row: group[0] is the primary group, group[1] the rest.
struct RowSums {
  GroupMoments<double> group[2];
  double mass[2] = {0, 0};  ///< ranking masses, where asked for
  OtherSum others;          ///< where asked for

  /// Both have the same shifts; the others are left to OtherSum::merge(). Unlike
  /// GroupMoments::merge() this keeps the NaN of a group without classes.
  void add(const RowSums& other) {
    for (int g = 0; g < 2; ++g) {
      group[g].sum_teacher += other.group[g].sum_teacher;
      group[g].sum_student += other.group[g].sum_student;
      group[g].sum_diff += other.group[g].sum_diff;
      group[g].count += other.group[g].count;
      mass[g] += other.mass[g];
    }
  }
};

/// Classes per segment: few enough to split a row of 100K classes among threads, and so many that
/// the start of a segment costs nothing in comparison.
constexpr std::int64_t kSegment = 16384;

/// Student and teacher logits of some classes.
template <class T>
struct LogitPairs {
  std::vector<T> s, u;
};

/// The results of a segment of a row. Segments have fixed bounds and are merged in order, so that
/// results do not depend on the number of threads.
struct Segment {
  double high = 0, low = 0;  ///< extremes of the ranking logits
  double teacher_high = 0;
  RowSums sums;
  std::tuple<LogitPairs<float>, LogitPairs<double>> undecided;  ///< the window's, of either type
  double kl[2] = {0, 0};
};

/// The same of a SparseTask.
struct SparseSegment {
  std::int64_t first = 0, last = 0;  ///< places of its classes in the group
  OtherSum rest;                     ///< of exp((x_j - high)/T), outside the group
  OtherSum others;                   ///< cross-entropy's, where asked for
  bool is_valid = true;              ///< neither NaN nor +inf
  /// Of the group's classes: the largest teacher logit, the student's at it, the largest student's.
  double teacher_high = -std::numeric_limits<double>::infinity();
  double student_at_top = teacher_high, student_high = teacher_high;
  GroupMoments<double> moments;
  double kl = 0;
};

/// Cross-entropy of a whole row, and the reference of its sum.
struct HeadOfRow {
  CrossEntropy cross_entropy;
  double high = 0;  ///< OtherSum::high
};

/// Working memory of one thread, grown once and reused for every row.
struct Scratch {
  std::vector<Segment> segments;
  std::vector<SparseSegment> sparse;
  std::vector<std::int32_t> counts;
  std::vector<long long> histogram;
};

/// Runs body(0), ..., body(n - 1) in any order, perhaps in parallel.
using Executor = std::function<void(std::int64_t n, const std::function<void(std::int64_t)>& body)>;

/// What one row yields besides its gradient.
struct RowResult {
  double loss = 0, cross_entropy = 0, distillation = 0;
  double primary = 0, secondary = 0;
  RowSummary summary;
  double cut = 0;         ///< smallest ranking logit in the group, +inf when empty
  std::int64_t size = 0;  ///< classes in the primary group
};

/// The stages of a sharded row, in the order of a call; their messages are those of
/// math/messages.h.
struct ShardKernels {
  void (*extremes)(const ShardTask&, const Executor&, Scratch*, long long* extremes);
  void (*counts)(const ShardTask&, const long long* extremes, std::int32_t* counts);
  /// `counts` and `search` are the whole row's; `search` is null before the first pass.
  void (*histogram)(const ShardTask&, const long long* extremes, const std::int32_t* counts,
                    const long long* search, long long* histogram);
  /// The next search, from the whole row's histogram; returns the cut, once it is found.
  double (*refine)(const ShardTask&, const long long* extremes, const long long* histogram,
                   const long long* search, long long* next);
  void (*moments)(const ShardTask&, const Executor&, Scratch*, double cut, double* moments);
  /// The gradient of this shard, and its KL sums; `group` and `head`: the whole row's.
  void (*write_gradient)(const ShardTask&, const Executor&, Scratch*, double cut,
                         const GroupMoments<double>* group, const HeadOfRow& head, double* kl);
  void (*fill)(const ShardTask&, double value);
};

/// A row of a grouped teacher; and the stages of one whose classes are sharded, whose task has the
/// shard's classes, which may be 0, and whose target may lie outside it.
struct SparseKernels {
  RowResult (*row)(const SparseTask&, const Executor&, Scratch*);
  /// What the teacher has outside the group is not in the message.
  void (*moments)(const SparseTask&, const Executor&, Scratch*, double* message);
  /// The gradient of this shard; returns its part of the group's KL. `group` and `head`: the whole
  /// row's, where the student's shift of the rest is the largest logit of it on any rank.
  double (*write_gradient)(const SparseTask&, const Executor&, Scratch*,
                           const GroupMoments<double>* group, const HeadOfRow& head);
};

/// The kernels of one instruction set, in float and in double arithmetic.
struct Kernels {
  struct Arithmetic {
    RowResult (*row)(const RowTask&, const Executor&, Scratch*);
    SparseKernels sparse;
    ShardKernels shard;
  };
  const char* name;
  Arithmetic f32, f64;
  /// out[j] = in[j] * factor for `count` elements of `dtype`, rounded once; `out` may be `in`.
  void (*scale)(const void* in, void* out, Dtype dtype, std::int64_t count, double factor);

  const Arithmetic& of(bool in_double) const { return in_double ? f64 : f32; }
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

/// Those that this machine runs, the fastest last.
std::vector<Kernels> supported_kernels();

/// The fastest that this machine runs.
const Kernels& kernels();

}  // namespace gkd::cpu
