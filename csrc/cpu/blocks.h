// Rows in blocks of a few hundred classes: float or double logits in the first-level cache,
// whatever the tensors' dtype and stride, so that no row is ever converted as a whole.
//
// A template header, because row.cpp compiles it once per instruction set.
#pragma once

#include <algorithm>

#include "cpu/pack.h"

namespace gkd::cpu::GKD_CPU_CAPABILITY {
namespace {

/// Float sums run over this many classes, then go to double.
inline constexpr std::int64_t kBlock = 512;
template <class T>
constexpr int kWidth = VecTraits<VecOf<T>>::kWidth;
template <class T>
constexpr Dtype kDtype = std::is_same_v<T, float> ? Dtype::kFloat : Dtype::kDouble;

/// `count` rounded up to whole packs.
template <class T>
std::int64_t padded(std::int64_t count) {
  return (count + kWidth<T> - 1) / kWidth<T> * kWidth<T>;
}

template <class T>
T widen_one(std::uint16_t bits, Dtype dtype) {
  VecU16 v{};
  v[0] = bits;
  return static_cast<T>(widen(v, dtype)[0]);
}

/// One logit.
template <class T>
T read_one(const LogitsRow& from, std::int64_t j) {
  const std::int64_t at = j * from.stride;
  switch (from.dtype) {
    case Dtype::kFloat:
      return static_cast<T>(static_cast<const float*>(from.data)[at]);
    case Dtype::kDouble:
      return static_cast<T>(static_cast<const double*>(from.data)[at]);
    default:
      return widen_one<T>(static_cast<const std::uint16_t*>(from.data)[at], from.dtype);
  }
}

/// Whether 16-bit logits lie side by side.
inline bool is_half_row(const LogitsRow& from) {
  return from.stride == 1 && (from.dtype == Dtype::kHalf || from.dtype == Dtype::kBFloat16);
}

/// Logits [begin, begin + count), count <= kBlock, followed by -inf up to a whole pack: classes of
/// probability 0, which add nothing to any sum. Points into the tensor where it can.
template <class T>
const T* read(const LogitsRow& from, std::int64_t begin, std::int64_t count, T* buffer) {
  const std::int64_t whole = padded<T>(count);
  if (from.stride == 1 && from.dtype == kDtype<T>) {
    const T* direct = static_cast<const T*>(from.data) + begin;
    if (whole == count) return direct;
    std::copy(direct, direct + count, buffer);
    std::fill(buffer + count, buffer + whole, -kInfinity<T>);
    return buffer;
  }
  if constexpr (std::is_same_v<T, float>) {
    if (is_half_row(from)) {
      widen_row(static_cast<const std::uint16_t*>(from.data) + begin, from.dtype, count, buffer);
      std::fill(buffer + count, buffer + whole, -kInfinity<T>);
      return buffer;
    }
  }
  for (std::int64_t k = 0; k < count; ++k) buffer[k] = read_one<T>(from, begin + k);
  std::fill(buffer + count, buffer + whole, -kInfinity<T>);
  return buffer;
}

/// Where a block of the gradient is computed: in the tensor, or in a buffer that write() converts.
template <class T>
T* writable(const GradientRow& to, std::int64_t begin, std::int64_t count, T* buffer) {
  const bool direct = to.dtype == kDtype<T> && padded<T>(count) == count;
  return direct ? static_cast<T*>(to.data) + begin : buffer;
}
template <class T>
void write(const GradientRow& to, std::int64_t begin, std::int64_t count, const T* from) {
  if (to.dtype == kDtype<T>) {
    T* out = static_cast<T*>(to.data) + begin;
    if (from != out) std::copy(from, from + count, out);
    return;
  }
  if constexpr (std::is_same_v<T, float>) {
    narrow_row(from, to.dtype, count, static_cast<std::uint16_t*>(to.data) + begin);
  } else {
    // Double arithmetic for a narrower student, because the teacher is double.
    if (to.dtype == Dtype::kFloat) {
      std::copy(from, from + count, static_cast<float*>(to.data) + begin);
      return;
    }
    for (std::int64_t k = 0; k < count; ++k) {
      const VecU16 v = narrow(splat<VecF32>(static_cast<float>(from[k])), to.dtype);
      static_cast<std::uint16_t*>(to.data)[begin + k] = v[0];
    }
  }
}

/// A block of logits: [k] is the pack that starts at its class k.
template <class T>
struct Block {
  const T* at;
  VecOf<T> operator[](std::int64_t k) const { return load<VecOf<T>>(at + k); }
};

/// The same of 16-bit logits, widened where they lie: a buffer in between costs more than the
/// widening.
template <Dtype kHere>
struct HalfBlock {
  const std::uint16_t* at;
  VecF32 operator[](std::int64_t k) const { return widen(load_half(at + k), kHere); }
};

/// Calls visit with one HalfBlock per source, from class `begin` on. All are half rows of one
/// dtype.
template <class Visit, class... Sources>
void visit_halves(std::int64_t begin, Visit visit, const LogitsRow& first,
                  const Sources&... others) {
  const auto at = [begin](const LogitsRow& from) {
    return static_cast<const std::uint16_t*>(from.data) + begin;
  };
  if (first.dtype == Dtype::kHalf) {
    visit(HalfBlock<Dtype::kHalf>{at(first)}, HalfBlock<Dtype::kHalf>{at(others)}...);
  } else {
    visit(HalfBlock<Dtype::kBFloat16>{at(first)}, HalfBlock<Dtype::kBFloat16>{at(others)}...);
  }
}

/// Calls visit(begin, count, values) on each block of [from, to).
template <class T, class Visit>
void each_of(const LogitsRow& source, std::int64_t from, std::int64_t to, Visit visit) {
  alignas(64) T buffer[kBlock];
  for (std::int64_t j = from; j < to; j += kBlock) {
    const std::int64_t count = std::min(kBlock, to - j);
    visit(j, count, read(source, j, count, buffer));
  }
}

/// One row under sweep.
template <class T>
struct Row {
  LogitsRow s, u, rank;
  std::int64_t classes, target;

  struct Buffers {
    alignas(64) T s[kBlock], u[kBlock], r[kBlock];
  };

  std::int64_t segments() const { return (classes + kSegment - 1) / kSegment; }
  bool by_student() const { return rank.data == s.data; }
  bool has_target(std::int64_t begin, std::int64_t count) const {
    return target >= begin && target < begin + count;
  }

  /// Calls visit(begin, count, ranking logits) on each block of [from, to).
  template <class Visit>
  void each_rank(std::int64_t from, std::int64_t to, Visit visit) const {
    each_of<T>(rank, from, to, visit);
  }

  /// Calls visit(count, r) on each block of [from, to), r a Block or a HalfBlock.
  template <class Visit>
  void each_rank_block(std::int64_t from, std::int64_t to, Visit visit) const {
    alignas(64) T buffer[kBlock];
    for (std::int64_t j = from; j < to; j += kBlock) {
      const std::int64_t count = std::min(kBlock, to - j);
      if constexpr (std::is_same_v<T, float>) {
        if (is_half_row(rank) && padded<T>(count) == count) {
          visit_halves(
              j, [&](auto r) { visit(count, r); }, rank);
          continue;
        }
      }
      visit(count, Block<T>{read(rank, j, count, buffer)});
    }
  }

  /// Calls visit(s, u, r) with Blocks; r ranks the target at +inf, so that it joins every group.
  template <class Visit>
  void visit_block(std::int64_t begin, std::int64_t count, Buffers* to, Visit visit) const {
    const T* student = read(s, begin, count, to->s);
    const T* teacher = read(u, begin, count, to->u);
    const T* r = by_student() ? student : teacher;
    if (has_target(begin, count)) {
      std::copy(r, r + padded<T>(count), to->r);
      to->r[target - begin] = kInfinity<T>;
      r = to->r;
    }
    visit(Block<T>{student}, Block<T>{teacher}, Block<T>{r});
  }

  /// Calls visit(begin, count, s, u, r) on each block of [from, to), with Blocks as visit_block()
  /// has them or with HalfBlocks.
  template <class Visit>
  void each_block(std::int64_t from, std::int64_t to, Visit visit) const {
    Buffers buffers;
    // Only where r is u, and plainly so: the compiler then widens it once.
    const bool halves = is_half_row(s) && is_half_row(u) && s.dtype == u.dtype && !by_student();
    for (std::int64_t j = from; j < to; j += kBlock) {
      const std::int64_t count = std::min(kBlock, to - j);
      if constexpr (std::is_same_v<T, float>) {
        if (halves && padded<T>(count) == count && !has_target(j, count)) {
          visit_halves(
              j, [&](auto student, auto teacher) { visit(j, count, student, teacher, teacher); }, s,
              u);
          continue;
        }
      }
      visit_block(j, count, &buffers, [&](auto student, auto teacher, auto r) {
        visit(j, count, student, teacher, r);
      });
    }
  }
};

}  // namespace
}  // namespace gkd::cpu::GKD_CPU_CAPABILITY
