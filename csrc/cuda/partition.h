// How rows are divided over the blocks of a launch. Everything follows from shapes and the device
// alone, so the same call gives the same bits.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/problem.h"
#include "cuda/tuning.h"

namespace gkd::cuda {

GKD_HD constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

GKD_HD constexpr std::size_t align_up(std::size_t bytes, std::size_t alignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

/// Classes [begin, end) of a row.
struct Segment {
  std::int64_t begin, end;
};

/// Every row of `classes` is cut into `segments` of `segment_classes`, the last one shorter. Block
/// b of a launch serves one segment of one row.
struct RowPartition {
  std::int64_t classes, segment_classes, segments;

  GKD_HD std::int64_t row(std::int64_t block) const { return block / segments; }
  GKD_HD Segment segment(std::int64_t block) const {
    const std::int64_t begin = block % segments * segment_classes;
    const std::int64_t end = begin + segment_classes;
    return {begin, end < classes ? end : classes};
  }
};

/// At least 1, so that an empty shard still launches a block that writes neutral results.
inline std::int64_t num_tiles(std::int64_t classes) {
  return std::max<std::int64_t>(1, ceil_div(classes, kTileClasses));
}

/// Blocks that fill the device.
inline std::int64_t target_blocks(const Device& device) {
  return std::int64_t(device.multiprocessors) * kBlocksPerMultiprocessor;
}

/// Enough segments to fill the device, none shorter than a tile.
inline RowPartition partition_rows(std::int64_t rows, std::int64_t classes, const Device& device) {
  const std::int64_t tiles = num_tiles(classes);
  const std::int64_t segments =
      std::clamp<std::int64_t>(ceil_div(target_blocks(device), rows), 1, tiles);
  const std::int64_t tiles_per_segment = ceil_div(tiles, segments);
  return {classes, tiles_per_segment * kTileClasses, ceil_div(tiles, tiles_per_segment)};
}

/// An upper bound of rows * segments for any number of rows up to `rows`.
inline std::int64_t max_segments(std::int64_t rows, std::int64_t classes, const Device& device) {
  return std::min(rows * num_tiles(classes), target_blocks(device) + rows);
}

/// Rows that go through the kernels together.
struct Chunk {
  std::int64_t first_row, rows;
  RowPartition partition;

  /// Of a launch with one block per segment: their number, and what block b serves.
  unsigned blocks() const { return static_cast<unsigned>(rows * partition.segments); }
  GKD_HD std::int64_t row(std::int64_t b) const { return first_row + partition.row(b); }
  GKD_HD Segment segment(std::int64_t b) const { return partition.segment(b); }
};

inline Chunk chunk_of(std::int64_t first_row, std::int64_t rows, const Problem& p,
                      const Device& device) {
  return {first_row, rows, partition_rows(rows, p.classes, device)};
}

}  // namespace gkd::cuda
