// Rows as tiles of a few hundred classes: float or double logits in the first-level cache, whatever
// the tensors' dtype and stride, so that no row is ever converted as a whole.
#pragma once

#include <algorithm>

#include "cpu/kernels/simd-inl.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// Classes per tile: float sums run over a tile, then continue in double.
inline constexpr std::int64_t kTile = 512;
template <class T>
constexpr int kWidth = VecTraits<VecOf<T>>::kWidth;
template <class T>
constexpr Dtype kDtype = std::is_same_v<T, float> ? Dtype::kFloat : Dtype::kDouble;

/// `count` rounded up to whole vectors.
template <class T>
std::int64_t padded(std::int64_t count) {
  return (count + kWidth<T> - 1) / kWidth<T> * kWidth<T>;
}

/// Classes of the tile at `begin`. Those that fill no vector are a tile of their own, since they
/// need a padded copy.
template <class T>
std::int64_t tile_size(std::int64_t begin, std::int64_t end) {
  const std::int64_t left = std::min(kTile, end - begin);
  return left < kWidth<T> ? left : left / kWidth<T> * kWidth<T>;
}

template <class T>
T scalar_from_bits(std::uint16_t bits, Dtype dtype) {
  return static_cast<T>(to_float(VecU16{bits}, dtype)[0]);
}

/// One logit as it is stored.
template <class T>
T read_stored(const LogitsRow& row, std::int64_t j) {
  const std::int64_t offset = j * row.stride;
  switch (row.dtype) {
    case Dtype::kFloat:
      return static_cast<T>(static_cast<const float*>(row.data)[offset]);
    case Dtype::kDouble:
      return static_cast<T>(static_cast<const double*>(row.data)[offset]);
    default:
      return scalar_from_bits<T>(static_cast<const std::uint16_t*>(row.data)[offset], row.dtype);
  }
}

/// One logit.
template <class T>
T read_one(const LogitsRow& row, std::int64_t j) {
  const T stored = read_stored<T>(row, j);
  return j == row.lowered ? stored - static_cast<T>(row.lowered_by) : stored;
}

/// The dtype that holds every logit of the row.
template <class T>
Dtype values_dtype(const LogitsRow& row) {
  return row.lowered < 0 ? row.dtype : kDtype<T>;
}

/// Contiguous 16-bit logits.
inline bool is_half_row(const LogitsRow& row) {
  return row.stride == 1 && element_size(row.dtype) == 2;
}

template <class T>
void convert_tile(const LogitsRow& row, std::int64_t begin, std::int64_t count, T* buffer) {
  if (row.stride == 1 && row.dtype == kDtype<T>) {
    const T* direct = static_cast<const T*>(row.data) + begin;
    std::copy(direct, direct + count, buffer);
  } else if (is_half_row(row)) {
    read_u16(static_cast<const std::uint16_t*>(row.data) + begin, row.dtype, count, buffer);
  } else {
    for (std::int64_t k = 0; k < count; ++k) buffer[k] = read_stored<T>(row, begin + k);
  }
  if (row.lowers(begin, begin + count)) buffer[row.lowered - begin] = read_one<T>(row, row.lowered);
  std::fill(buffer + count, buffer + padded<T>(count), -kInfinity<T>);
}

/// Logits [begin, begin + count), count <= kTile, padded to whole vectors with -inf: classes of
/// probability 0, which add nothing to any sum. Points into the tensor where it can.
template <class T>
const T* read_tile(const LogitsRow& row, std::int64_t begin, std::int64_t count, T* buffer) {
  if (row.stride == 1 && row.dtype == kDtype<T> && padded<T>(count) == count &&
      !row.lowers(begin, begin + count)) {
    return static_cast<const T*>(row.data) + begin;
  }
  convert_tile(row, begin, count, buffer);
  return buffer;
}

/// Where a tile of the gradient is computed: in the tensor, or in a buffer that write_tile()
/// converts.
template <class T>
T* writable_tile(const GradientRow& row, std::int64_t begin, std::int64_t count, T* buffer) {
  const bool direct = row.dtype == kDtype<T> && padded<T>(count) == count;
  return direct ? static_cast<T*>(row.data) + begin : buffer;
}
template <class T>
void write_tile(const GradientRow& row, std::int64_t begin, std::int64_t count, const T* tile) {
  if (row.dtype == kDtype<T>) {
    T* out = static_cast<T*>(row.data) + begin;
    if (tile != out) std::copy(tile, tile + count, out);
  } else if (row.dtype == Dtype::kFloat) {
    // Arithmetic in double for a float or 16-bit student, because the teacher is double.
    std::copy(tile, tile + count, static_cast<float*>(row.data) + begin);
  } else {
    auto* out = static_cast<std::uint16_t*>(row.data) + begin;
    if constexpr (std::is_same_v<T, float>) {
      write_u16(tile, row.dtype, count, out);
    } else {
      for (std::int64_t k = 0; k < count; ++k) {
        out[k] = from_float(splat<VecF32>(static_cast<float>(tile[k])), row.dtype)[0];
      }
    }
  }
}

/// One value for every class.
template <class T>
void fill_gradient(const GradientRow& row, std::int64_t classes, T value) {
  if (!row.data) return;
  alignas(64) T tile[kTile];
  std::fill(tile, tile + kTile, value);
  for (std::int64_t j = 0; j < classes; j += kTile) {
    write_tile(row, j, std::min(kTile, classes - j), tile);
  }
}

/// A tile of logits: [k] is the vector that starts at its class k.
template <class T>
struct Tile {
  const T* data;
  VecOf<T> operator[](std::int64_t k) const { return load<VecOf<T>>(data + k); }
};

/// The same for 16-bit logits, converted when they are loaded: a buffer would cost more than
/// converting twice.
template <Dtype kHalfDtype>
struct HalfTile {
  const std::uint16_t* data;
  VecF32 operator[](std::int64_t k) const { return to_float(load<VecU16>(data + k), kHalfDtype); }
};

/// Calls visit with one HalfTile per row, from class `begin` on. All are half rows of `dtype`.
template <class Visit, class... Rows>
void visit_half_tiles(Dtype dtype, std::int64_t begin, Visit visit, const Rows&... rows) {
  const auto data = [begin](const LogitsRow& row) {
    return static_cast<const std::uint16_t*>(row.data) + begin;
  };
  dtype == Dtype::kHalf ? visit(HalfTile<Dtype::kHalf>{data(rows)}...)
                        : visit(HalfTile<Dtype::kBFloat16>{data(rows)}...);
}

/// Calls visit(count, values) on each tile of classes [begin, end).
template <class T, class Visit>
void read_tiles(const LogitsRow& row, std::int64_t begin, std::int64_t end, Visit visit) {
  alignas(64) T buffer[kTile];
  for (std::int64_t j = begin, count; j < end; j += count) {
    count = tile_size<T>(j, end);
    visit(count, read_tile(row, j, count, buffer));
  }
}

/// The logits of one row of the batch.
template <class T>
struct Row {
  LogitsRow s, u, rank;  ///< student, teacher and whichever of the two ranks the classes
  std::int64_t classes, target;
  bool by_student;  ///< `rank` is `s`

  struct Buffers {
    alignas(64) T s[kTile], u[kTile], r[kTile], others[kTile];
  };

  std::int64_t segments() const { return (classes + kSegment - 1) / kSegment; }
  bool has_target(std::int64_t begin, std::int64_t count) const {
    return target >= begin && target < begin + count;
  }

  /// Calls visit(count, r) on each tile of [begin, end), r a Tile or a HalfTile.
  template <class Visit>
  void for_each_ranking_tile(std::int64_t begin, std::int64_t end, Visit visit) const {
    alignas(64) T buffer[kTile];
    for (std::int64_t j = begin, count; j < end; j += count) {
      count = tile_size<T>(j, end);
      if constexpr (std::is_same_v<T, float>) {
        if (is_half_row(rank) && padded<T>(count) == count && !rank.lowers(j, j + count)) {
          visit_half_tiles(
              rank.dtype, j, [&](auto r) { visit(count, r); }, rank);
          continue;
        }
      }
      visit(count, Tile<T>{read_tile(rank, j, count, buffer)});
    }
  }

  /// Calls visit(s, u, r, others) with Tiles; in r the target has +inf, so that it joins every
  /// group. `others` are the student's logits without the target: there it has -inf.
  template <class Visit>
  void visit_tile(std::int64_t begin, std::int64_t count, Buffers* buffers, Visit visit) const {
    const T* student = read_tile(s, begin, count, buffers->s);
    const T* teacher = read_tile(u, begin, count, buffers->u);
    const T* r = by_student ? student : teacher;
    const T* others = student;
    if (has_target(begin, count)) {
      std::copy(r, r + padded<T>(count), buffers->r);
      buffers->r[target - begin] = kInfinity<T>;
      r = buffers->r;
      std::copy(student, student + padded<T>(count), buffers->others);
      buffers->others[target - begin] = -kInfinity<T>;
      others = buffers->others;
    }
    visit(Tile<T>{student}, Tile<T>{teacher}, Tile<T>{r}, Tile<T>{others});
  }

  /// Calls visit(begin, count, s, u, r, others) on each tile of [begin, end), with Tiles as
  /// visit_tile() has them or with HalfTiles.
  template <class Visit>
  void for_each_tile(std::int64_t begin, std::int64_t end, Visit visit) const {
    Buffers buffers;
    // Only when ranking == teacher, so that the compiler converts it once.
    const bool halves = is_half_row(s) && is_half_row(u) && s.dtype == u.dtype && !by_student;
    for (std::int64_t j = begin, count; j < end; j += count) {
      count = tile_size<T>(j, end);
      if constexpr (std::is_same_v<T, float>) {
        if (halves && padded<T>(count) == count && !has_target(j, count)) {
          visit_half_tiles(
              s.dtype, j,
              [&](auto student, auto teacher) {
                visit(j, count, student, teacher, teacher, student);
              },
              s, u);
          continue;
        }
      }
      visit_tile(j, count, &buffers, [&](auto... tiles) { visit(j, count, tiles...); });
    }
  }
};

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
