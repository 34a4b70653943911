// A row in one kernel: both inputs are copied into shared memory once, and every pass reads them
// there. Device memory sees each input read once and the gradient written once, the least possible.
// A group of blocks (block_group.cuh) processes the row; each block copies one segment. Of a
// streamed row only the ranking input is copied (streamed.cuh).
//
// float32 and 16-bit rows are read as vectors (vector_moments.cuh, vector_gradient.cuh), float64
// rows by class.
#pragma once

#include "cuda/dependent_launch.cuh"
#include "cuda/fused/find_cut.cuh"

namespace gkd::cuda {

/// One thread writes what is reported of a row.
template <class T>
__device__ void report_row(const FusedCall<T>& c, std::int64_t row, RowKind kind, SegmentKl kl,
                           RowReport report, RowHead<T> head) {
  finalize_row(c.p, kind, kl, &report);
  if (c.p.head.is_on) {
    finish_head(c.p, kind, &report, &head);
    c.w.head[row] = head;
  }
  c.w.report[row] = report;
}

/// One segment of a counted row, by one block: cut, moments, coefficients, gradient. One block
/// writes the row's report.
template <bool kCrossEntropy, class T, class Loader, class BlockGroup>
__device__ __forceinline__ void process_row(const FusedCall<T>& c, std::int64_t row,
                                            std::int64_t row_target, T cut, double weight,
                                            bool all_kl, std::int64_t begin, const Loader& loader,
                                            int classes, const VectorRange& range,
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
  VectorHead head;
  if constexpr (kVectors) {
    extremes = thread_row_extremes<kCrossEntropy>(loader, classes, range);
    extremes = reduce_block(extremes, shared.extremes);
    if (group.size() > 1) extremes = all_reduce(group, extremes);
    const ClassMass<T> mass(loader.by_student ? extremes.student : extremes.teacher,
                            c.inv_group_temperature);
    vectors = mass.is_plain() && VectorRow(extremes, c.inv_temperature, 0).is_accurate();
    if constexpr (kCrossEntropy) {
      head = VectorHead(static_cast<float>(p.weights.scale), extremes);
      vectors &= head.is_accurate();
    }
  }
  VectorRow vector_row(extremes, static_cast<float>(c.inv_temperature), static_cast<float>(cut));
  if (!vectors && !c.constant_cut) {
    cut = find_cut(p, for_ranking(loader), segment, c.inv_group_temperature, shared, group);
    __syncthreads();  // every thread has left the search before its storage is reused
  }
  for (bool done = false; !done;) {  // again by class if the vectors' sums are not accurate
    // The first warp sets the row's coefficients, the second one those of its cross-entropy.
    const auto complete = [&](auto set, auto others) {
      if (kCrossEntropy && threadIdx.x / kWarp == 1) {
        const OtherSum sum = others();
        if (threadIdx.x % kWarp == 0) {
          set_head(p, cross_entropy(sum, shared.target_logit, p.weights.scale), sum.high, weight,
                   &shared.head);
          shared.head_done = !vectors || sum.sum > 0;  // no NaN
        }
      }
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
        const auto sums = group.all_gather(vector_moments<kCrossEntropy>(
            c, loader, classes, extremes, range, head, &vector_row, shared, group));
        cut = vector_row.cut;
        complete(
            [&] {
              add_sums(sums, group.size(), extremes, p.classes, &shared.temp.merge.row);
              return set_row(p, shared.temp.merge.row, weight, &shared.row);
            },
            [&] { return add_others(sums, group.size(), head); });
      }
    } else {
      OtherSum others;  // of the row, in the second warp
      if constexpr (kCrossEntropy) {
        const auto parts = group.all_gather(sum_others(
            loader, segment, target, static_cast<T>(p.weights.scale), shared.temp.others));
        if (threadIdx.x / kWarp == 1) {
          others = merge_others([&](std::int64_t r) { return parts[static_cast<int>(r)]; },
                                group.size(), p.weights.scale, shared.merge_others);
        }
      }
      const auto segments = group.all_gather(
          accumulate_moments(loader, segment, cut, target, c.inv_temperature, shared.temp.moments));
      complete(
          [&] {
            return merge_into_row(
                p, [&](std::int64_t r) { return segments[static_cast<int>(r)]; }, group.size(),
                weight, &shared.row, shared.temp.merge);
          },
          [&] { return others; });
    }
    __syncthreads();  // the row's coefficients are known
    done = shared.done && (!kCrossEntropy || shared.head_done);
    vectors &= done;
  }
  SegmentKl kl{};
  if (shared.row.kind != RowKind::kCounted) {
    fill_gradient<T, kFusedThreads>(loader, segment, RowKind::kInvalid, c.gradient, offset);
  } else if (!vectors) {
    kl = write_gradient<T, kFusedThreads, kCrossEntropy>(
        loader, segment, shared.row, c.inv_temperature, all_kl, c.gradient, offset, shared.temp.kl,
        shared.head.coef, static_cast<T>(p.weights.scale));
  } else if constexpr (kVectors) {
    Elem* gradient = c.gradient == nullptr ? nullptr : static_cast<Elem*>(c.gradient) + offset;
    const std::int64_t size = shared.report.size;
    if constexpr (kCrossEntropy) {
      head.factor = shared.head.coef.factor;
      head.target = shared.head.coef.target;
    }
    kl = vector_gradient<kCrossEntropy>(loader, classes, vector_row, range, shared.row,
                                        {size, p.classes - size}, all_kl, head, gradient,
                                        shared.temp.vector_kl);
  }
  if (group.reduce_to_one(&kl) && threadIdx.x == 0) {
    report_row(c, row, shared.row.kind, kl, shared.report,
               kCrossEntropy ? shared.head : RowHead<T>{});
    c.w.state[row].kind = shared.row.kind;
    c.w.state[row].cut = shared.row.cut;
  }
  __syncthreads();  // the row is finished before the next one's copy overwrites it
}

template <class Elem, class BlockGroup, bool kCrossEntropy, bool kStreamed>
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
  let_next_kernel_start();
  group.start(c.w.selection, c.plan.blocks_per_row);
  const std::int64_t begin = min(group.rank() * c.plan.segment_classes, c.p.classes);
  const int classes = static_cast<int>(min(c.plan.segment_classes, c.p.classes - begin));
  // A distillation of weight 0 has coefficients of 0, and is reported.
  const bool all_kl = c.all_kl || (c.p.head.is_on && c.p.all_weights().distillation == 0);
  for (std::int64_t row = group.group(); row < c.p.rows; row += group.num_groups()) {
    const ContiguousLoader<T, Elem> in_memory(c.p, row);
    if constexpr (kStreamed) {
      copy_segment(student_segment, ranking(in_memory) + begin, classes);
    } else {
      copy_segment(student_segment, in_memory.student + begin, classes);
      copy_segment(teacher_segment, in_memory.teacher + begin, classes);
    }
    __pipeline_commit();
    if (row == group.group()) wait_for_kernel_before();  // it reads the targets, not the logits
    const auto weight = static_cast<double>(*c.w.weight);
    // Read while the copies are under way: to wait first would leave the memory idle.
    const RowState<T>& state = c.w.state[row];
    const RowKind kind = state.kind;
    const std::int64_t target = state.target;
    const T cut = c.constant_cut ? state.cut : T(0);
    // A target outside the segment matches none of its classes.
    const VectorRange range = VectorRange::of<Elem>(classes, target - begin);
    double margin = 0;
    if (c.p.head.is_on && kind == RowKind::kCounted && threadIdx.x == 0) {
      margin = c.p.margin(row);
      shared.target_logit = static_cast<double>(load_as<T>(in_memory.student[target])) - margin;
    }
    std::conditional_t<kStreamed, StreamedLoader<Elem>, ContiguousLoader<T, Elem>> loader;
    loader.by_student = in_memory.by_student;
    if constexpr (kStreamed) {
      loader.rank_logits = student_segment;
      loader.other = StreamedSegment<Elem>(not_ranking(in_memory) + begin);
      // The passes over the ranking input need the copy; this one does not wait for it.
      loader.other_high = loader.other.with_words([&](const auto& words) {
        return vector_extremes<false, kCrossEntropy>(words, classes, range).high;
      });
    } else {
      loader.student = student_segment;
      loader.teacher = teacher_segment;
    }
    __pipeline_wait_prior(0);
    __syncthreads();  // the copies of all threads have landed
    if (!kStreamed && c.p.head.distill_margin) {
      if (const std::int64_t j = target - begin; threadIdx.x == 0 && j >= 0 && j < classes) {
        for (Elem* logits : {student_segment, teacher_segment}) {
          store_as(load_as<T>(logits[j]) - static_cast<T>(margin), logits + j);
        }
      }
      __syncthreads();  // the target's logits have their margin
    }
    if (kind == RowKind::kCounted) {
      process_row<kCrossEntropy>(c, row, target, cut, weight, all_kl, begin, loader, classes, range,
                                 shared, group);
      continue;
    }
    fill_gradient<T, kFusedThreads>(loader, Segment{0, classes}, kind, c.gradient,
                                    row * c.p.classes + begin);
    if (group.rank() == 0 && threadIdx.x == 0) {
      report_row(c, row, kind, SegmentKl{}, RowReport{}, RowHead<T>{});
    }
    __syncthreads();  // every thread has left the row before the next one's copy overwrites it
  }
}

}  // namespace gkd::cuda
