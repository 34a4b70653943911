// A row in one kernel: both inputs are copied into shared memory once, and every pass reads them
// there. Device memory sees each input read once and the gradient written once, the least possible.
// A group of blocks (block_group.cuh) processes the row; each block copies one segment. Of a
// streamed row only the ranking input is copied (streamed.cuh).
//
// float32 and 16-bit rows are read as vectors (vector_passes.cuh), float64 rows by class.
#pragma once

#include "cuda/fused/find_cut.cuh"
#include "cuda/fused/plan.h"

namespace gkd::cuda {

/// A warp adds the sums of a row's segments, in an order that their number alone decides.
template <bool kGlobal>
__device__ void add_sums(const Gathered<PlainSums, kGlobal>& segments, int count,
                         RowExtremes maxima, std::int64_t classes, SegmentMoments* row) {
  // 8 lanes for each of 4 subsets of the segments; lane l has sum l % 8.
  const int lane = threadIdx.x, index = lane % 8;
  double sum = 0;
  for (int r = lane / 8; r < count && index < 7; r += kWarp / 8) {
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

/// One segment of a counted row, by one block: cut, moments, coefficients, gradient. One block
/// writes the row's report.
template <class T, class Loader, class BlockGroup>
__device__ __forceinline__ void process_row(const FusedCall<T>& c, std::int64_t row,
                                            std::int64_t row_target, T cut, double weight,
                                            std::int64_t begin, const Loader& loader, int classes,
                                            FusedStorage<T, BlockGroup>& shared,
                                            BlockGroup& group) {
  using Elem = typename Loader::Element;
  constexpr bool kVectors = std::is_same_v<T, float>;
  const Problem& p = c.p;
  const Segment segment{0, classes};
  const std::int64_t offset = row * p.classes + begin;
  // A target outside the segment matches none of its classes.
  const std::int64_t target = row_target - begin;
  bool vectors = false;
  RowExtremes extremes;
  if constexpr (kVectors) {
    const Extremes<float> r = vector_extremes<true>(ranking(loader), classes);
    const float other = other_high(loader, classes);
    const bool by_student = loader.by_student;
    extremes = {by_student ? other : r.high, by_student ? r.high : other, r.low};
    extremes = reduce_block(extremes, shared.extremes);
    if (group.size() > 1) extremes = all_reduce(group, extremes);
    vectors = VectorRow(extremes, c.inv_temperature, 0).is_accurate();
  }
  if (!c.constant_cut) {
    cut = find_cut(p, for_ranking(loader), segment, p.template inv_group_temperature<T>(), vectors,
                   extremes, shared, group);
    __syncthreads();  // every thread has left the search before its storage is reused
  }
  const VectorRow vector_row(extremes, static_cast<float>(c.inv_temperature),
                             static_cast<float>(cut));
  const VectorRange range = VectorRange::of<Elem>(classes, target);
  for (bool done = false; !done;) {        // again by class if the vectors' sums are not accurate
    const auto complete = [&](auto set) {  // by the first warp
      if (threadIdx.x >= kWarp) return;
      if (threadIdx.x == 0) {
        shared.row.kind = RowKind::kCounted;
        shared.row.cut = cut;
        shared.row.target = target;
      }
      const RowReport report = set();
      if (threadIdx.x == 0) {
        shared.report = report;
        shared.done = !vectors;
        if constexpr (kVectors) {
          shared.done |= shared.row.kind == RowKind::kCounted &&
                         sums_are_accurate(shared.row.coef, report.size, p.classes);
        }
      }
    };
    if (vectors) {
      if constexpr (kVectors) {
        const auto sums = group.all_gather(
            vector_moments(loader, classes, vector_row, range, shared.temp.vector_sums));
        complete([&] {
          add_sums(sums, group.size(), extremes, p.classes, &shared.temp.merge.row);
          return set_row(p, shared.temp.merge.row, weight, &shared.row);
        });
      }
    } else {
      const auto segments = group.all_gather(
          accumulate_moments(loader, segment, cut, target, c.inv_temperature, shared.temp.moments));
      complete([&] {
        return merge_into_row(
            p, [&](std::int64_t r) { return segments[static_cast<int>(r)]; }, group.size(), weight,
            &shared.row, shared.temp.merge);
      });
    }
    __syncthreads();  // the row's coefficients are known
    done = shared.done;
    vectors &= done;
  }
  SegmentKl kl{};
  if (shared.row.kind != RowKind::kCounted) {
    fill_gradient<T, kFusedThreads>(loader, segment, RowKind::kInvalid, c.gradient, offset);
  } else if (!vectors) {
    kl = write_gradient<T, kFusedThreads>(loader, segment, shared.row, c.inv_temperature, c.all_kl,
                                          c.gradient, offset, shared.temp.kl);
  } else if constexpr (kVectors) {
    Elem* gradient = c.gradient == nullptr ? nullptr : static_cast<Elem*>(c.gradient) + offset;
    const std::int64_t size = shared.report.size;
    kl = vector_gradient(loader, classes, vector_row, range, shared.row, {size, p.classes - size},
                         c.all_kl, gradient, shared.temp.vector_kl);
  }
  if (group.reduce_to_one(&kl) && threadIdx.x == 0) {
    RowReport report = shared.report;
    finalize_row(p, shared.row.kind, kl, &report);
    c.w.report[row] = report;
    c.w.state[row].kind = shared.row.kind;
    c.w.state[row].cut = cut;
  }
  __syncthreads();  // the row is finished before the next one's copy overwrites it
}

template <class Elem, class BlockGroup, bool kStreamed>
__global__ void __launch_bounds__(kFusedThreads, kFusedBlocks<Arithmetic<Elem>>)
    fused_kernel(const FusedCall<Arithmetic<Elem>> c) {
  using T = Arithmetic<Elem>;
  using Layout = FusedLayout<Elem, BlockGroup>;
  extern __shared__ __align__(16) char memory[];
  auto& shared = *reinterpret_cast<typename Layout::Storage*>(memory);
  char* segments = memory + Layout::kSegmentOffset;
  Elem* student_segment = reinterpret_cast<Elem*>(segments);  // of a streamed row the ranking one's
  Elem* teacher_segment =
      reinterpret_cast<Elem*>(segments + Layout::segment_bytes(c.plan.segment_classes));
  BlockGroup group{shared.group};
  group.start(c.w.selection, c.plan.blocks_per_row);
  const std::int64_t begin = min(group.rank() * c.plan.segment_classes, c.p.classes);
  const int classes = static_cast<int>(min(c.plan.segment_classes, c.p.classes - begin));
  const auto weight = static_cast<double>(*c.w.weight);
  for (std::int64_t row = group.group(); row < c.p.rows; row += group.num_groups()) {
    const ContiguousLoader<T, Elem> in_memory(c.p, row);
    if constexpr (kStreamed) {
      copy_segment(student_segment, ranking(in_memory) + begin, classes);
    } else {
      copy_segment(student_segment, in_memory.student + begin, classes);
      copy_segment(teacher_segment, in_memory.teacher + begin, classes);
    }
    __pipeline_commit();
    // Read while the copies are under way: to wait first would leave the memory idle.
    const RowState<T>& state = c.w.state[row];
    const RowKind kind = state.kind;
    const std::int64_t target = state.target;
    const T cut = c.constant_cut ? state.cut : T(0);
    std::conditional_t<kStreamed, StreamedLoader<Elem>, ContiguousLoader<T, Elem>> loader;
    loader.by_student = in_memory.by_student;
    if constexpr (kStreamed) {
      loader.rank_logits = student_segment;
      loader.other = StreamedSegment<Elem>(not_ranking(in_memory) + begin);
      loader.other_high = loader.other.thread_high(classes);
    } else {
      loader.student = student_segment;
      loader.teacher = teacher_segment;
    }
    __pipeline_wait_prior(0);
    __syncthreads();  // the copies of all threads have landed
    if (kind == RowKind::kCounted) {
      process_row(c, row, target, cut, weight, begin, loader, classes, shared, group);
      continue;
    }
    fill_gradient<T, kFusedThreads>(loader, Segment{0, classes}, kind, c.gradient,
                                    row * c.p.classes + begin);
    if (group.rank() == 0 && threadIdx.x == 0) {
      RowReport report;
      finalize_row(c.p, kind, SegmentKl{}, &report);
      c.w.report[row] = report;
    }
    __syncthreads();  // every thread has left the row before the next one's copy overwrites it
  }
}

}  // namespace gkd::cuda
