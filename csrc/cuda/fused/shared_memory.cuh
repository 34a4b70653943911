// The shared memory of a fused block: fixed storage, then the block's segment of the student row
// and of the teacher row; of a streamed row the ranking input's alone.
#pragma once

#include "cuda/block/row_coefficients.cuh"
#include "cuda/fused/cluster_group.cuh"
#include "cuda/fused/grid_group.cuh"
#include "cuda/fused/search_list.cuh"
#include "cuda/fused/vector_gradient.cuh"

namespace gkd::cuda {

/// All shared memory but the segments.
template <class T, class BlockGroup>
struct FusedStorage {
  union {
    int counts[BlockGroup::kCountsRoom];
    /// After the counts have been read: the search among the window's keys.
    struct {
      unsigned long long bins[kFusedThreads];
      KeyOf<T> list[kFusedListedKeys];
    } search;
  };
  union {
    typename cub::BlockReduce<Extremes<T>, kFusedThreads>::TempStorage extremes;
    WeightSums<T> weights[kFusedThreads / kWarp];
    WindowStorage<kFusedThreads> window;
    ListStorage<T> list;
    MomentsStorage<T, kFusedThreads> moments;
    VectorSums vector_sums[kFusedThreads / kWarp];
    SegmentKl vector_kl[kFusedThreads / kWarp];
    MergeStorage merge;
    KlStorage<kFusedThreads> kl;
    OthersStorage<T, kFusedThreads> others;
  } temp;
  OthersReduce::TempStorage merge_others;
  typename BlockGroup::Storage group;
  RowExtremes extremes[kFusedThreads / kWarp];  ///< of the warps
  RowState<T> row;
  RowReport report;
  RowHead<T> head;
  double target_logit;  ///< the student's, less its margin
  int num_listed;
  bool in_doubt;   ///< the sums leave open which key is the cut
  bool done;       ///< the row's moments are accurate
  bool head_done;  ///< so is its cross-entropy
};

/// Sizes of a fused block's shared memory.
template <class Elem, class BlockGroup>
struct FusedLayout {
  using Storage = FusedStorage<Arithmetic<Elem>, BlockGroup>;
  /// Whether there are kernels of streamed rows.
  static constexpr bool kStreams = std::is_same_v<Arithmetic<Elem>, float>;
  /// Where the segments begin.
  static constexpr std::size_t kSegmentOffset = align_up(sizeof(Storage), kVectorBytes);

  /// Bytes of one input's segment: whole vectors, and room for one more.
  GKD_HD static constexpr std::size_t segment_bytes(std::int64_t classes) {
    return align_up(static_cast<std::size_t>(classes) * sizeof(Elem) + kVectorBytes, kVectorBytes);
  }
  /// Bits of a segment's classes, whole words for each thread.
  static constexpr std::int64_t kMaskBits = std::is_same_v<Arithmetic<Elem>, float> ? 1 : 0;
  static std::size_t mask_bytes(std::int64_t classes) {
    constexpr std::int64_t kClasses = 32 * kFusedThreads;
    return (classes + kClasses - 1) / kClasses * kClasses / 8 * kMaskBits;
  }
  static std::size_t shared_bytes(std::int64_t classes, bool streamed) {
    return kSegmentOffset + (streamed ? 1 : 2) * segment_bytes(classes) + mask_bytes(classes);
  }
  /// The longest segment that fits `bytes` of shared memory; negative: none.
  static std::int64_t max_segment_classes(std::size_t bytes, bool streamed) {
    const auto room = static_cast<std::int64_t>(bytes) - static_cast<std::int64_t>(kSegmentOffset);
    const std::int64_t inputs = streamed ? 1 : 2;
    const std::int64_t other_bytes = inputs * 2 * kVectorBytes + 4 * kFusedThreads * kMaskBits;
    return (room - other_bytes) * 8 /
           (inputs * 8 * static_cast<std::int64_t>(sizeof(Elem)) + kMaskBits);
  }
};

/// Room for a bit of each of a segment's classes, behind the copies of a loader's inputs. Found
/// anew for each row: kept, it would take a register from the gradient's loops.
template <class Loader, class BlockGroup>
__device__ __forceinline__ unsigned* class_masks(std::int64_t segment_classes) {
  using Elem = typename Loader::Element;
  using Layout = FusedLayout<Elem, BlockGroup>;
  constexpr int kInputs = std::is_same_v<Loader, ContiguousLoader<Arithmetic<Elem>, Elem>> ? 2 : 1;
  extern __shared__ __align__(16) char memory[];
  std::int64_t classes;
  asm volatile("mov.s64 %0, %1;" : "=l"(classes) : "l"(segment_classes));
  const std::size_t offset = Layout::kSegmentOffset + kInputs * Layout::segment_bytes(classes);
  return reinterpret_cast<unsigned*>(memory + offset);
}

}  // namespace gkd::cuda
