// A sparse row in one kernel: the student's logits are copied into shared memory once, and both
// passes over them read them there. The group's logits are read from device memory, twice.
//
// A group of blocks (block_group.cuh) processes the row; each block copies one segment. After the
// group's moments have been summed, its classes become -inf in the segment, so that the sum of the
// rest is one over its own classes, never a difference.
#pragma once

#include "cuda/dependent_launch.cuh"
#include "cuda/sparse/fused_plan.h"
#include "cuda/sparse/group.cuh"
#include "cuda/sparse/shared_memory.cuh"

namespace gkd::cuda {

/// What a block knows of its segment of a row.
struct SparsePart {
  GroupMoments<double> group;
  OtherSum rest, others;
  long long invalid;
};

/// The block's part of a row, valid in thread 0. Leaves the group's classes as -inf in `segment`.
template <bool kCrossEntropy, class Elem, class BlockGroup>
__device__ SparsePart sum_segment(const SparseFusedCall& c, Segment part, std::int64_t place,
                                  std::int64_t begin, int classes, Elem* segment,
                                  SparseStorage<BlockGroup>& shared) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  const auto scale = static_cast<float>(c.p.weights.scale);
  ContiguousLoader<float, Elem> on_chip;
  on_chip.student = segment;
  on_chip.by_student = true;
  const GroupLoader<float, decltype(on_chip)> loader{on_chip, &c.p, c.group.indices, begin, 0};
  const SegmentMoments moments = accumulate_moments<float, kFusedThreads>(
      loader, part, kNone, -1, c.inv_temperature, shared.temp.moments);
  OtherSum others;
  if constexpr (kCrossEntropy) {
    others = sum_others<float, kFusedThreads>(loader, part, place, scale, shared.temp.others);
  }
  __syncthreads();  // every thread has read the group's logits, and thread 0 the last reduction's
  for (std::int64_t k = part.begin + threadIdx.x; k < part.end; k += kFusedThreads) {
    store_as(kNone, segment + (c.group.indices[k] - begin));
  }
  __syncthreads();  // the group's classes are marked
  ThreadRest<float, kCrossEntropy> thread_rest{c.inv_temperature, scale};
  for (int v = threadIdx.x; v < num_vectors<Elem>(classes); v += kFusedThreads) {
    float s[kPerVector<Elem>];
    load_vector(segment, v, s);
    thread_rest.add(s);
  }
  const SegmentRest rest = reduce_rest<float, kFusedThreads>(thread_rest, shared.temp.rest);
  if constexpr (kCrossEntropy) others.merge(rest.others, c.p.weights.scale);
  return {moments.group[0], rest.student, others, moments.invalid | rest.invalid};
}

/// The row's coefficients from all blocks' parts: the first warp sets those of the terms, the
/// second one those of cross-entropy.
template <bool kCrossEntropy, class BlockGroup, class Parts>
__device__ void set_sparse_row(const SparseFusedCall& c, std::int64_t row, double weight,
                               const Parts& parts, int count, SparseStorage<BlockGroup>& shared) {
  if (kCrossEntropy && threadIdx.x / kWarp == 1) {
    const double scale = c.p.weights.scale;
    const OtherSum sum =
        merge_others([&](std::int64_t r) { return parts[static_cast<int>(r)].others; }, count,
                     scale, shared.merge_others);
    if (threadIdx.x % kWarp == 0) {
      set_head(c.p, cross_entropy(sum, shared.target_logit, scale), sum.high, weight, &shared.head);
    }
  }
  if (threadIdx.x >= kWarp) return;
  SegmentMoments moments = merge_moments(
      c.p,
      [&](std::int64_t r) {
        const SparsePart part = parts[static_cast<int>(r)];
        return SegmentMoments{{part.group, {}}, static_cast<std::int32_t>(part.invalid)};
      },
      count, shared.temp.merge);
  moments.group[1] =
      merge_rest([&](std::int64_t r) { return parts[static_cast<int>(r)].rest; }, count,
                 c.group.rest_of(row), 1 / c.p.weights.exponent_temperature(), shared.merge_rest);
  moments.group[1].count = c.p.classes - (c.group.end(row) - c.group.begin(row));
  if (threadIdx.x == 0) {
    shared.temp.merge.row = moments;
    shared.row.kind = RowKind::kCounted;
  }
  __syncwarp();  // every lane reads the moments, and set_row() may change the kind
  const RowReport report = set_row(c.p, shared.temp.merge.row, weight, &shared.row);
  if (threadIdx.x == 0) shared.report = report;
}

/// The segment's gradient, the group's classes last; returns the group's KL, valid in thread 0.
template <bool kCrossEntropy, class Elem, class BlockGroup>
__device__ SegmentKl write_segment(const SparseFusedCall& c, std::int64_t row, Segment part,
                                   std::int64_t place, std::int64_t begin, int classes,
                                   const Elem* segment, SparseStorage<BlockGroup>& shared) {
  constexpr int kN = kPerVector<Elem>;
  const auto head = kCrossEntropy ? shared.head.coef : CrossEntropyCoef<float>{};
  const double scale = c.p.weights.scale;
  RowState<float> state = shared.row;
  if (c.gradient != nullptr) {
    Elem* out = static_cast<Elem*>(c.gradient) + row * c.p.classes + begin;
    const RestGradient<float, kCrossEntropy> gradient(state.coef[1], c.inv_temperature, head,
                                                      scale);
    const VectorStore<Elem> store(out);
    const int whole = classes / kN;
    for (int v = threadIdx.x; v < whole; v += kFusedThreads) {
      float x[kN];
      load_vector(segment, v, x);
#pragma unroll
      for (int i = 0; i < kN; ++i) x[i] = gradient(x[i]);
      store(x, v);
    }
    if (const int j = whole * kN + static_cast<int>(threadIdx.x); j < classes) {
      store_as(gradient(load_as<float>(segment[j])), out + j);
    }
    __syncthreads();  // other threads' values of the group's classes lie before this thread's
  }
  // The student's logits of the group again from device memory: its classes are -inf on chip.
  ContiguousLoader<float, Elem> in_memory(c.p, row);
  const GroupLoader<float, decltype(in_memory)> loader{in_memory, &c.p, c.group.indices, 0,
                                                       row * c.p.classes};
  state.cut = -std::numeric_limits<float>::infinity();
  state.target = place;
  // A distillation of weight 0 has coefficients of 0, and is reported.
  const bool all_kl = c.p.head.is_on && c.p.all_weights().distillation == 0;
  return write_gradient<float, kFusedThreads, kCrossEntropy>(loader, part, state, c.inv_temperature,
                                                             all_kl, c.gradient, 0, shared.temp.kl,
                                                             head, static_cast<float>(scale));
}

template <class Elem, class BlockGroup, bool kCrossEntropy>
__global__ void __launch_bounds__(kFusedThreads, kFusedBlocks<float>)
    sparse_kernel(const SparseFusedCall c) {
  using Layout = SparseLayout<Elem, BlockGroup>;
  extern __shared__ __align__(16) char memory[];
  auto& shared = *reinterpret_cast<typename Layout::Storage*>(memory);
  Elem* segment = reinterpret_cast<Elem*>(memory + Layout::kSegmentOffset);
  BlockGroup group{shared.group};
  let_next_kernel_start();
  group.start(c.w.selection, c.plan.blocks_per_row);
  const std::int64_t begin = min(group.rank() * c.plan.segment_classes, c.p.classes);
  const int classes = static_cast<int>(min(c.plan.segment_classes, c.p.classes - begin));
  for (std::int64_t row = group.group(); row < c.p.rows; row += group.num_groups()) {
    const ContiguousLoader<float, Elem> in_memory(c.p, row);
    copy_segment(segment, in_memory.student + begin, classes);
    __pipeline_commit();
    if (row == group.group()) wait_for_kernel_before();  // it checks the groups, not the logits
    const auto weight = static_cast<double>(*c.w.weight);
    // Found while the copy is under way: the loads of a search wait for each other.
    const RowKind kind = c.w.state[row].kind;
    Segment part{0, 0};
    std::int64_t place = -1;
    if (kind == RowKind::kCounted) {
      const std::int64_t target = c.w.state[row].target;
      part = group_of(c.group, row, c.p.classes, {begin, begin + classes});
      if (kCrossEntropy) place = target_place(c.group, part, target);
      if (kCrossEntropy && threadIdx.x == 0) {
        const auto logit = static_cast<double>(load_as<float>(in_memory.student[target]));
        shared.target_logit = logit - c.p.margin(row);
      }
    }
    __pipeline_wait_prior(0);
    __syncthreads();  // the copies of all threads have landed
    RowReport report;
    RowHead<float> head{};
    SegmentKl kl{};
    RowKind result = kind;
    bool reports = group.rank() == 0;
    if (kind == RowKind::kCounted) {
      const auto parts = group.all_gather(
          sum_segment<kCrossEntropy>(c, part, place, begin, classes, segment, shared));
      set_sparse_row<kCrossEntropy>(c, row, weight, parts, group.size(), shared);
      __syncthreads();  // the row's coefficients are known
      result = shared.row.kind;
      if (result == RowKind::kCounted) {
        kl = write_segment<kCrossEntropy>(c, row, part, place, begin, classes, segment, shared);
      }
      reports = group.reduce_to_one(&kl);
      report = shared.report;
      if constexpr (kCrossEntropy) head = shared.head;
    }
    if (result != RowKind::kCounted) {
      fill_gradient<float, kFusedThreads>(in_memory, Segment{0, classes}, result, c.gradient,
                                          row * c.p.classes + begin);
    }
    if (reports && threadIdx.x == 0) {
      finalize_row(c.p, result, kl, &report);
      if (c.p.head.is_on) {
        finish_head(c.p, result, &report, &head);
        c.w.head[row] = head;
      }
      c.w.report[row] = report;
    }
    __syncthreads();  // the row is finished before the next one's copy overwrites it
  }
}

}  // namespace gkd::cuda
