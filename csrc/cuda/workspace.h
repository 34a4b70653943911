// The layout of a call's scratch. It follows from the problem alone: it is computed once with a
// null base for its size, and once with the memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/buffers.h"
#include "cuda/partition.h"

namespace gkd::cuda {

/// Hands out aligned arrays from one block of memory.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class V>
  V* take(std::size_t count) {
    V* array = reinterpret_cast<V*>(base_ + used_);
    used_ += align_up(count * sizeof(V), kArrayAlignment);
    return base_ == nullptr ? nullptr : array;
  }
  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

/// Scratch of a call. T is the arithmetic's type.
template <class T>
struct Workspace {
  std::int64_t chunk_rows;
  RowState<T>* state;       ///< [rows]
  RowReport* report;        ///< [rows]
  T* weight;                ///< [], the reduction's factor
  SegmentMoments* moments;  ///< [chunk_rows, segments]
  SegmentKl* kl;            ///< [chunk_rows, segments]
  RowHead<T>* head;         ///< [rows], of training_loss alone
  OtherSum* others;         ///< [chunk_rows, segments], where there is cross-entropy
  void* selection;          ///< scratch for finding the cuts
  std::size_t bytes;
};

/// chunk_rows 0: the kernels need no buffers for segments.
template <class T>
Workspace<T> lay_out(const Problem& p, const Device& device, std::int64_t chunk_rows,
                     std::size_t selection_bytes, void* base) {
  Workspace<T> w{};
  Arena arena(base);
  const auto rows = static_cast<std::size_t>(p.rows);
  const auto segments = static_cast<std::size_t>(max_segments(chunk_rows, p.classes, device));
  w.chunk_rows = chunk_rows;
  w.state = arena.take<RowState<T>>(rows);
  w.report = arena.take<RowReport>(rows);
  w.weight = arena.take<T>(1);
  w.moments = arena.take<SegmentMoments>(segments);
  w.kl = arena.take<SegmentKl>(segments);
  w.head = arena.take<RowHead<T>>(p.head.is_on ? rows : 0);
  w.others = arena.take<OtherSum>(p.weights.cross_entropy != 0 ? segments : 0);
  w.selection = arena.take<char>(selection_bytes);
  w.bytes = arena.used();
  return w;
}

/// A call's rows on their way to reports and gradients.
template <class T>
struct RowsCall {
  Problem p;
  void* gradient;  ///< as in Results
  bool all_kl;     ///< also the KL of a group without weight
  Workspace<T> w;
  T inv_temperature = static_cast<T>(1 / p.weights.exponent_temperature());
  T inv_group_temperature = p.template inv_group_temperature<T>();
};

}  // namespace gkd::cuda

/// Returns from the function with the first error.
#define GKD_TRY(call)                                          \
  do {                                                         \
    if (const cudaError_t error = (call); error) return error; \
  } while (0)

/// Defines a function template for both types of arithmetic. By its address: nvcc 13.2 ends with an
/// internal error where an explicit instantiation takes its type from decltype.
#define GKD_INSTANTIATE(function)                                      \
  [[gnu::used]] static const auto function##_float = &function<float>; \
  [[gnu::used]] static const auto function##_double = &function<double>;
