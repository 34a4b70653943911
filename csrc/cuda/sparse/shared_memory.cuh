// The shared memory of a fused block of a sparse row: fixed storage, then the block's segment of
// the student row.
#pragma once

#include "cuda/block/moments.cuh"
#include "cuda/block/row_coefficients.cuh"
#include "cuda/fused/cluster_group.cuh"
#include "cuda/fused/grid_group.cuh"
#include "cuda/fused/vectors.cuh"
#include "cuda/sparse/rest.cuh"

namespace gkd::cuda {

/// All shared memory but the segment.
template <class BlockGroup>
struct SparseStorage {
  union {
    MomentsStorage<float, kFusedThreads> moments;
    OthersStorage<float, kFusedThreads> others;
    RestStorage<float, kFusedThreads> rest;
    MergeStorage merge;
    KlStorage<kFusedThreads> kl;
  } temp;
  OthersReduce::TempStorage merge_rest, merge_others;  ///< of two warps at a time
  typename BlockGroup::Storage group;
  RowState<float> row;
  RowReport report;
  RowHead<float> head;
  double target_logit;  ///< the student's, less its margin
};

/// Sizes of a fused block's shared memory.
template <class Elem, class BlockGroup>
struct SparseLayout {
  using Storage = SparseStorage<BlockGroup>;
  static constexpr bool kStreams = false;
  /// Where the segment begins.
  static constexpr std::size_t kSegmentOffset = align_up(sizeof(Storage), kVectorBytes);

  static std::size_t shared_bytes(std::int64_t classes, bool /*streamed*/) {
    return kSegmentOffset +
           align_up(static_cast<std::size_t>(classes) * sizeof(Elem), kVectorBytes);
  }
  /// The longest segment that fits `bytes` of shared memory; negative: none.
  static std::int64_t max_segment_classes(std::size_t bytes, bool /*streamed*/) {
    const auto room = static_cast<std::int64_t>(bytes) - static_cast<std::int64_t>(kSegmentOffset);
    return (room - kVectorBytes) / static_cast<std::int64_t>(sizeof(Elem));
  }
};

}  // namespace gkd::cuda
