// The pass that makes a row's moments where the arithmetic is in float: a thread owns whole vectors
// (vectors.cuh), and both groups have one pair of shifts, the row's (vector_row.cuh), so that sums
// of threads and blocks are added as they are.
//
// A group far under the row's largest logit has no digits relative to that shift:
// sums_are_accurate() decides, and such a row is summed again with a shift per group
// (block/moments.cuh).
//
// Which thread reads a class does not depend on whether it is the target. The loops leave out the
// target's vector and the segment's last one if it is not whole; their classes are visited after
// the loops, one by each of the first threads.
#pragma once

#include "cuda/block/cross_entropy.cuh"
#include "cuda/block/moments.cuh"
#include "cuda/fused/block_group.cuh"
#include "cuda/fused/vector_select.cuh"

namespace gkd::cuda {

/// The least sum that a group may have relative to the row's shift, 2^-31: the exponents of the
/// classes that matter are then above -32, where a float rounds them to 2^-20.
constexpr float kLeastSum = 5e-10f;

/// Whether each group that has classes has sums of at least kLeastSum. NaN sums are not accurate.
__device__ __forceinline__ bool sums_are_accurate(const GroupCoef<float> (&coef)[2],
                                                  std::int64_t size, std::int64_t classes) {
  // Without branches: these would take longer than to read everything.
  const auto accurate = [](float inverse) { return (inverse > 0) & (inverse <= 1 / kLeastSum); };
  const auto group = [&](const GroupCoef<float>& c) {
    return accurate(c.inv_sum_teacher) & accurate(c.inv_sum_student);
  };
  return ((size == 0) | group(coef[0])) & ((size == classes) | group(coef[1]));
}

/// A thread's part of the row's extremes; kOthers: with those of all classes but the target.
template <bool kOthers, class Loader>
__device__ RowExtremes thread_row_extremes(const Loader& loader, int classes,
                                           const VectorRange& range) {
  Extremes<float> r = vector_extremes<true, kOthers>(ranking(loader), classes, range);
  float other = other_high<kOthers>(loader, classes, range);
  const float others = loader.by_student ? r.high : other;
  if (kOthers && range.target_class >= 0) {
    const float x = load_as<float>(ranking(loader)[range.target_class]);
    r = {fmaxf(r.high, x), fminf(r.low, x)};
    other = fmaxf(other, load_as<float>(not_ranking(loader)[range.target_class]));
  }
  return {loader.by_student ? other : r.high, loader.by_student ? r.high : other, r.low, others};
}

/// Sums of both groups.
struct VectorSums {
  float teacher[2] = {0, 0}, student[2] = {0, 0}, diff[2] = {0, 0};
  float count = 0;   ///< of the primary group
  float others = 0;  ///< cross-entropy's, of all classes but the target

  __device__ __forceinline__ void merge(const VectorSums& y) {
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      teacher[g] += y.teacher[g];
      student[g] += y.student[g];
      diff[g] += y.diff[g];
    }
    count += y.count;
    others += y.others;
  }

  /// Student and teacher change places.
  __device__ __forceinline__ void swap() {
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      const float x = teacher[g];
      teacher[g] = student[g];
      student[g] = x;
      diff[g] = -diff[g];
    }
  }
  /// A class above the window is in the primary group, one below it in the rest; their a_j are
  /// added to teacher_sum. One in the window sets `bit`. As predicated instructions: branches would
  /// keep the classes of a vector from overlapping.
  template <bool kFromGap>
  __device__ __forceinline__ void add(const VectorRow& row, float s, float u, WindowEdges edges,
                                      float (&teacher_sum)[2], unsigned bit, unsigned* bits) {
    const float x = row.teacher_exponent(u), y = row.student_exponent(s);
    const float a = exp2_approx(x), b = exp2_approx(y);
    const float e = row.log_ratio<kFromGap>(s, u, y, x, 0);
    // NaN (-inf in both) has the plain difference, which is 0.
    const float d = if_within(e, 0.375f, a * short_expm1(e), b - a);
    asm("{\n.reg .pred above, below, inside;\n"
        "setp.gtu.f32 above, %8, %9;\nsetp.le.f32 below, %8, %10;\n"
        "setp.gtu.and.f32 inside, %8, %10, !above;\n"
        "@above add.f32 %0, %0, %11;\n@below add.f32 %1, %1, %11;\n"
        "@above add.f32 %2, %2, %12;\n@below add.f32 %3, %3, %12;\n"
        "@above add.f32 %4, %4, %13;\n@below add.f32 %5, %5, %13;\n"
        "@above add.f32 %6, %6, 0f3F800000;\n@inside or.b32 %7, %7, %14;\n}"
        : "+f"(teacher_sum[0]), "+f"(teacher_sum[1]), "+f"(student[0]), "+f"(student[1]),
          "+f"(diff[0]), "+f"(diff[1]), "+f"(count), "+r"(*bits)
        : "f"(x), "f"(edges.above), "f"(edges.below), "f"(a), "f"(b), "f"(d), "r"(bit));
  }
  /// A class of a known group.
  template <bool kFromGap>
  __device__ __forceinline__ void add(const VectorRow& row, float s, float u, bool in) {
    const float edge = in ? nanf("") : std::numeric_limits<float>::infinity();
    unsigned unused = 0;
    add<kFromGap>(row, s, u, {edge, edge}, teacher, 0, &unused);
  }
};

/// What a thread's pass over its classes leaves.
struct VectorPass {
  VectorSums sums;  ///< without the window's classes
  float above = 0;  ///< of classes above the window, the target too: their masses or their number
  float below = 0;  ///< masses
};

/// Where the student ranks, the two change places: `row` is swapped() then, and so are the sums.
/// Calls visit(r, place) for the ranking logits in the window, with places from reserve(count) on;
/// `masks` has room for a bit of each class, those in the window.
template <bool kFromGap, bool kCrossEntropy, class Loader, class Reserve, class Visit>
__device__ VectorPass pass_over_vectors(const Loader& loader, int classes, const VectorRow& row,
                                        const VectorRange& range, const VectorHead& head,
                                        WindowEdges edges, bool by_mass, unsigned* masks,
                                        Reserve reserve, Visit visit) {
  using Elem = typename Loader::Element;
  constexpr int kN = kPerVector<Elem>;
  const Elem* rank = ranking(loader);
  auto others = other_vectors(loader, range.whole);
  VectorPass pass;
  VectorSums& sums = pass.sums;
  unsigned* mask = masks + threadIdx.x;
  for (int start = threadIdx.x; start < range.whole; start += 32 / kN * kFusedThreads) {
    unsigned in_window = 0;   // a bit for each class
    float block[2] = {0, 0};  // a_j are summed in blocks: sum_error() counts the additions
#pragma unroll(8 / kN)
    for (int k = 0; k < 32; k += kN) {
      const int v = start + k / kN * kFusedThreads;
      if (v >= range.whole) break;
      float r[kN], o[kN];
      unpack<Elem>(others.take(v), o);
      if (v == range.target) continue;
      load_vector(rank, v, r);
      unsigned bits = 0;
      float vector[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        sums.add<kFromGap>(row, o[i], r[i], edges, vector, 1u << i, &bits);
        if constexpr (kCrossEntropy) {
          sums.others += head.exponential(loader.by_student ? r[i] : o[i]);
        }
      }
      in_window |= bits << k;
      block[0] += vector[0];
      block[1] += vector[1];
    }
    sums.teacher[0] += block[0];
    sums.teacher[1] += block[1];
    *mask = in_window;
    mask += kFusedThreads;
    int place = in_window != 0 ? reserve(__popc(in_window)) : 0;
    for_each_bit(in_window, [&](int bit) {
      visit(load_as<float>(rank[(start + bit / kN * kFusedThreads) * kN + bit % kN]), place++);
    });
  }
  pass.above = by_mass ? sums.teacher[0] : sums.count;
  pass.below = by_mass ? sums.teacher[1] : 0;
  if (const int j = range.left_out<Elem>(classes); j >= 0) {
    const float r = load_as<float>(rank[j]), x = row.teacher_exponent(r);
    const float weight = by_mass ? exp2_approx(x) : 1;
    if (edges.is_above(x)) {
      pass.above += weight;
    } else if (edges.is_below(x)) {
      pass.below += weight;
    } else {
      visit(r, reserve(1));
    }
    if (kCrossEntropy && j != range.target_class) {
      sums.others +=
          head.exponential(loader.by_student ? r : load_as<float>(not_ranking(loader)[j]));
    }
  }
  return pass;
}

/// Adds the window's classes, and those that the loop leaves out, now that the cut is known: each
/// thread its own, so that the order of the list decides nothing.
template <bool kFromGap, class Loader>
__device__ void add_window(const Loader& loader, int classes, const VectorRow& row,
                           const VectorRange& range, const unsigned* masks, VectorSums* sums) {
  using Elem = typename Loader::Element;
  constexpr int kN = kPerVector<Elem>;
  const auto add = [&](int j) {
    const float r = load_as<float>(ranking(loader)[j]);
    const float o = load_as<float>(not_ranking(loader)[j]);
    sums->add<kFromGap>(row, o, r, in_primary(r, row.cut, j, range.target_class));
  };
  const unsigned* mask = masks + threadIdx.x;
  for (int start = threadIdx.x; start < range.whole; start += 32 / kN * kFusedThreads) {
    for_each_bit(*mask, [&](int bit) { add((start + bit / kN * kFusedThreads) * kN + bit % kN); });
    mask += kFusedThreads;
  }
  if (const int j = range.left_out<Elem>(classes); j >= 0) add(j);
  if (loader.by_student) sums->swap();
}

/// A segment's sums relative to the row's shift: A, B and X of both groups, the number of classes
/// in the primary one, and cross-entropy's sum.
struct PlainSums {
  static constexpr int kSums = 8, kOthers = 7;
  double sum[kSums];

  PlainSums() = default;
  __device__ explicit PlainSums(const VectorSums& s)
      : sum{s.teacher[0], s.teacher[1], s.student[0], s.student[1],
            s.diff[0],    s.diff[1],    s.count,      s.others} {}

  __device__ __forceinline__ void merge(const PlainSums& y) {
#pragma unroll
    for (int k = 0; k < kSums; ++k) sum[k] += y.sum[k];
  }
};

/// A warp adds the sums of a row's segments, in an order that their number alone decides.
template <bool kGlobal>
__device__ void add_sums(const Gathered<PlainSums, kGlobal>& segments, int count,
                         RowExtremes maxima, std::int64_t classes, SegmentMoments* row) {
  // 8 lanes for each of 4 subsets of the segments; lane l has sum l % 8.
  static_assert(PlainSums::kSums == 8);
  const int lane = threadIdx.x, index = lane % 8;
  double sum = 0;
  for (int r = lane / 8; r < count; r += kWarp / 8) {
    sum += segments.template part<double>(r, index);
  }
  sum += __shfl_xor_sync(~0u, sum, 8);
  sum += __shfl_xor_sync(~0u, sum, 16);
  GroupMoments<double>& group = row->group[index % 2];
  if (lane < 2) group.sum_teacher = sum, group.shift = {maxima.teacher, maxima.student};
  if (lane == 2 || lane == 3) group.sum_student = sum;
  if (lane == 4 || lane == 5) group.sum_diff = sum;
  if (lane == 6) {
    row->group[0].count = static_cast<long long>(sum);
    row->group[1].count = classes - static_cast<long long>(sum);
    row->invalid = 0;  // a NaN makes the sums NaN
  }
  __syncwarp();  // every lane reads the moments
}

/// A warp adds cross-entropy's sums of a row's segments, in an order that their number alone
/// decides. Valid in lane 0.
template <bool kGlobal>
__device__ OtherSum add_others(const Gathered<PlainSums, kGlobal>& segments, int count,
                               const VectorHead& head) {
  double sum = 0;
  for (int r = threadIdx.x % kWarp; r < count; r += kWarp) {
    sum += segments.template part<double>(r, PlainSums::kOthers);
  }
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  return {head.high(), sum};
}

}  // namespace gkd::cuda
