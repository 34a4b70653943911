// How a call's scratch is laid out, and how its rows are split into parts. The layout is computed
// from the problem alone: once with a null base for its size, once with the memory.
#pragma once

#include <algorithm>
#include <cstddef>

#include "cuda/launch.h"
#include "cuda/state.h"
#include "cuda/tuning.h"

namespace gkd::cuda {

/// Hands out aligned pieces of one block of memory.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class V>
  V* take(std::size_t count) {
    V* piece = reinterpret_cast<V*>(base_ + used_);
    used_ += (count * sizeof(V) + 255) / 256 * 256;  // what cudaMalloc aligns to
    return base_ == nullptr ? nullptr : piece;
  }
  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

/// Every row is cut into `parts` slices of `part_classes`, the last one shorter; block b of a
/// launch sweeps part b % parts of row b / parts.
struct Split {
  std::int64_t part_classes;
  std::int64_t parts;
};

/// One even where a shard has no class: its block then has nothing to sweep, and says so.
inline std::int64_t tiles_of(std::int64_t classes) {
  return std::max<std::int64_t>(1, (classes + kTile - 1) / kTile);
}

/// Enough parts to fill the device, none shorter than a tile. It depends on shapes and the device
/// alone, so the same call gives the same bits.
inline Split split_rows(std::int64_t rows, std::int64_t classes, const Device& device) {
  const std::int64_t wanted = std::int64_t(device.multiprocessors) * kBlocksPerMultiprocessor;
  const std::int64_t tiles = tiles_of(classes);
  const std::int64_t parts = std::clamp<std::int64_t>((wanted + rows - 1) / rows, 1, tiles);
  const std::int64_t tiles_per_part = (tiles + parts - 1) / parts;
  return {tiles_per_part * kTile, (tiles + tiles_per_part - 1) / tiles_per_part};
}

/// A bound on rows * parts of any chunk of up to `rows` rows.
inline std::int64_t most_parts(std::int64_t rows, std::int64_t classes, const Device& device) {
  const std::int64_t wanted = std::int64_t(device.multiprocessors) * kBlocksPerMultiprocessor;
  return std::min(rows * tiles_of(classes), wanted + rows);
}

/// The largest grid CUDA takes in x.
constexpr std::int64_t kGridLimit = (std::int64_t(1) << 31) - 1;

/// Rows that go through the kernels together.
struct Chunk {
  std::int64_t first_row, rows;
  Split split;

  unsigned blocks() const { return static_cast<unsigned>(rows * split.parts); }
};

/// Rows of a chunk, and scratch for finding their cuts. T is the arithmetic's type.
std::int64_t sort_chunk_rows(const Problem& problem);
std::int64_t select_chunk_rows(const Problem& problem);
std::size_t sort_scratch_bytes(const Problem& problem, std::int64_t rows);
template <class T>
std::size_t select_scratch_bytes(const Problem& problem, std::int64_t rows);

/// Scratch of a call.
template <class T>
struct Workspace {
  std::int64_t chunk_rows;
  RowState<T>* state;    ///< [rows]
  RowReport* report;     ///< [rows]
  PartMoments* moments;  ///< [chunk_rows, parts]
  PartKl* kl;            ///< [chunk_rows, parts]
  T* weight;             ///< [], the reduction's factor
  void* selection;
  std::size_t bytes;
};

}  // namespace gkd::cuda
