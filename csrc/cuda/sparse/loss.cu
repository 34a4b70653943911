// sparse_loss by several kernels: any row length, strides, dtypes and groups, any architecture. One
// block per row checks its group. One block per segment sums the student's moments, once with the
// group's classes left out and once over them alone; one warp per row merges them into the row's
// coefficients; one block per segment writes the gradient, and the group's over it.
#include "cuda/block/moments.cuh"
#include "cuda/block/row_coefficients.cuh"
#include "cuda/launch_kernel.cuh"
#include "cuda/multi_kernel/stages.h"
#include "cuda/sparse/group.cuh"
#include "cuda/sparse/rest.cuh"

namespace gkd::cuda {
namespace {

/// One block per row.
template <class T>
__global__ void __launch_bounds__(kPassThreads) check_kernel(SparseRows<T> c) {
  const std::int64_t row = blockIdx.x;
  RowState<T>& r = c.w.state[row];
  if (r.kind != RowKind::kCounted) return;  // the whole block
  const SparseGroup& group = c.group;
  const std::int64_t begin = group.begin(row), end = group.end(row), target = r.target;
  const double rest = group.rest_of(row);
  bool valid = begin >= 0 && begin <= end && end <= group.count;
  valid &= group.is_part || row > 0 || begin == 0;
  valid &= group.is_part || row + 1 < c.p.rows || end == group.count;
  const bool is_shard = c.p.all_classes > 0;
  bool found = target < 0 || target >= c.p.classes;  // not of this shard
  if (valid) {                                       // the same for all threads
    valid = rest < std::numeric_limits<double>::infinity();
    valid &=
        is_shard || end - begin < c.p.classes || rest == -std::numeric_limits<double>::infinity();
    for (std::int64_t k = begin + threadIdx.x; k < end; k += kPassThreads) {
      const std::int64_t j = group.indices[k];
      valid &= j >= 0 && j < c.p.classes && (k == begin || group.indices[k - 1] < j);
      found |= j == target;
    }
  }
  valid = __syncthreads_and(valid);
  found = __syncthreads_or(found);
  if (threadIdx.x == 0 && !(valid && found)) r.kind = RowKind::kInvalid;
}

template <class T, class Student>
__device__ GroupLoader<T, Student> group_loader(const SparseRows<T>& c, std::int64_t row) {
  return {Student(c.p, row), &c.p, c.group.indices, 0, row * c.p.classes};
}

template <class Student, class T, bool kCrossEntropy>
__global__ void __launch_bounds__(kPassThreads) moments_kernel(SparseRows<T> c, Chunk chunk) {
  __shared__ union {
    unsigned marks[kMarkedClasses / kWarp];
    RestStorage<T, kPassThreads> rest;
    MomentsStorage<T, kPassThreads> moments;
    OthersStorage<T, kPassThreads> others;
  } storage;
  constexpr T kNone = -std::numeric_limits<T>::infinity();
  const std::int64_t row = chunk.row(blockIdx.x);
  const RowState<T>& r = c.w.state[row];
  if (r.kind != RowKind::kCounted) return;  // the whole block: no barrier is left waiting
  const Segment segment = chunk.segment(blockIdx.x),
                part = group_of(c.group, row, c.p.classes, segment);
  const T scale = static_cast<T>(c.p.weights.scale);
  ThreadRest<T, kCrossEntropy> thread_rest{c.inv_temperature, scale};
  for (std::int64_t begin = segment.begin; begin < segment.end; begin += kMarkedClasses) {
    const std::int64_t end = begin + kMarkedClasses;
    const Segment window{begin, end < segment.end ? end : segment.end};
    __syncthreads();  // the last window's marks have been read
    mark_group<kPassThreads>(c.group, group_of(c.group, row, c.p.classes, window), begin,
                             storage.marks);
    __syncthreads();  // the window is marked
    const RestLoader<T, Student> loader{Student(c.p, row), storage.marks, begin};
    for_each_tile<T, kPassThreads>(
        loader, window, [&](std::int64_t, const Tile<T>& tile) { thread_rest.add(tile.s); });
  }
  __syncthreads();  // the marks' memory is free
  const SegmentRest rest = reduce_rest<T, kPassThreads>(thread_rest, storage.rest);
  __syncthreads();  // and that of the reduction
  const auto loader = group_loader<T, Student>(c, row);
  SegmentMoments sums = accumulate_moments<T, kPassThreads>(loader, part, kNone, -1,
                                                            c.inv_temperature, storage.moments);
  sums.invalid |= rest.invalid;
  OtherSum others = rest.others;
  if constexpr (kCrossEntropy) {
    others.merge(sum_others<T, kPassThreads>(loader, part, target_place(c.group, part, r.target),
                                             scale, storage.others),
                 c.p.weights.scale);
  }
  if (threadIdx.x != 0) return;
  c.w.moments[blockIdx.x] = sums;
  rest_of(c.w.selection)[blockIdx.x] = rest.student;
  if constexpr (kCrossEntropy) c.w.others[blockIdx.x] = others;
}

/// One warp per row.
template <class T>
__global__ void coefficients_kernel(SparseRows<T> c, Chunk chunk) {
  __shared__ struct {
    MergeStorage moments;
    OthersReduce::TempStorage others;
  } warps[kWarpsPerBlock];
  auto& storage = warps[threadIdx.x / kWarp];
  const std::int64_t chunk_row = warp_row(), segments = chunk.partition.segments;
  if (chunk_row >= chunk.rows) return;
  const std::int64_t row = chunk.first_row + chunk_row, first = chunk_row * segments;
  RowReport result;
  if (c.w.state[row].kind == RowKind::kCounted) {
    const auto weight = static_cast<double>(*c.w.weight);
    const OtherSum* rest = rest_of(c.w.selection) + first;
    SegmentMoments moments = merge_moments(
        c.p, [&](std::int64_t k) { return c.w.moments[first + k]; }, segments, storage.moments);
    moments.group[1] =
        merge_rest([&](std::int64_t k) { return rest[k]; }, segments, c.group.rest_of(row),
                   1 / c.p.weights.exponent_temperature(), storage.others);
    moments.group[1].count = c.p.classes - (c.group.end(row) - c.group.begin(row));
    if (threadIdx.x % kWarp == 0) storage.moments.row = moments;
    __syncwarp();  // every lane reads the moments, and the reduction's memory is free
    result = set_row(c.p, storage.moments.row, weight, &c.w.state[row]);
    if (c.p.weights.cross_entropy != 0) {
      const double scale = c.p.weights.scale;
      const OtherSum others = merge_others([&](std::int64_t k) { return c.w.others[first + k]; },
                                           segments, scale, storage.others);
      const double target = load_any<double>(c.p.student, row, c.w.state[row].target);
      if (threadIdx.x % kWarp == 0) {
        set_head(c.p, cross_entropy(others, target - c.p.margin(row), scale), others.high, weight,
                 &c.w.head[row]);
      }
    }
  }
  if (threadIdx.x % kWarp == 0) c.w.report[row] = result;
}

template <class Student, class T, bool kCrossEntropy>
__global__ void __launch_bounds__(kPassThreads) gradient_kernel(SparseRows<T> c, Chunk chunk) {
  __shared__ KlStorage<kPassThreads> storage;
  const std::int64_t row = chunk.row(blockIdx.x), offset = row * c.p.classes;
  const Segment segment = chunk.segment(blockIdx.x);
  RowState<T> r = c.w.state[row];
  const auto loader = group_loader<T, Student>(c, row);
  SegmentKl sum{};
  if (r.kind == RowKind::kCounted) {
    const T scale = static_cast<T>(c.p.weights.scale);
    const auto head = kCrossEntropy ? c.w.head[row].coef : CrossEntropyCoef<T>{};
    if (c.gradient != nullptr) {
      // As if every class were in the rest: the group's are written over.
      const Student student(c.p, row);
      const RestGradient<T, kCrossEntropy> gradient(r.coef[1], c.inv_temperature, head,
                                                    c.p.weights.scale);
      for (std::int64_t first = segment.begin + threadIdx.x; first < segment.end;
           first += kTileClasses) {
        T s[kItems];  // every load before the first store: kItems of them are in flight
#pragma unroll
        for (int k = 0; k < kItems; ++k) {
          const std::int64_t j = first + k * kPassThreads;
          if (j < segment.end) s[k] = student.rank(j);
        }
#pragma unroll
        for (int k = 0; k < kItems; ++k) {
          const std::int64_t j = first + k * kPassThreads;
          if (j < segment.end) student.store(c.gradient, offset + j, gradient(s[k]));
        }
      }
      __syncthreads();  // other threads' values of the group's classes lie before this thread's
    }
    const Segment part = group_of(c.group, row, c.p.classes, segment);
    r.cut = -std::numeric_limits<T>::infinity();
    r.target = target_place(c.group, part, r.target);
    const bool all_kl = c.p.head.is_on && c.p.all_weights().distillation == 0;
    sum = write_gradient<T, kPassThreads, kCrossEntropy>(loader, part, r, c.inv_temperature, all_kl,
                                                         c.gradient, 0, storage, head, scale);
  } else {
    fill_gradient<T, kPassThreads>(loader.student, segment, r.kind, c.gradient, offset);
  }
  if (threadIdx.x == 0) c.w.kl[blockIdx.x] = sum;
}

}  // namespace

std::int64_t sparse_chunk_rows(const Problem& p) {
  const std::int64_t row_bytes = p.classes * element_size(p.student.dtype);
  return std::clamp<std::int64_t>(kCacheBytes / row_bytes, 1, p.rows);
}

std::size_t sparse_scratch_bytes(const Problem& p, const Device& device, std::int64_t chunk_rows) {
  const std::int64_t segments = max_segments(chunk_rows, p.classes, device);
  return static_cast<std::size_t>(segments) * sizeof(OtherSum);
}

template <class T>
cudaError_t check_groups(const SparseRows<T>& c, cudaStream_t stream) {
  return launch(check_kernel<T>, c.p.rows, kPassThreads, stream, c);
}
GKD_INSTANTIATE(check_groups)

template <class T>
cudaError_t sparse_moments(const SparseRows<T>& c, const Chunk& chunk, cudaStream_t stream) {
  const bool has_head = c.p.weights.cross_entropy != 0;
  return with_student<T>(c.p, [&](auto student) {
    using Student = decltype(student);
    const auto kernel =
        has_head ? &moments_kernel<Student, T, true> : &moments_kernel<Student, T, false>;
    return launch_segments(kernel, chunk, stream, c, chunk);
  });
}
GKD_INSTANTIATE(sparse_moments)

template <class T>
cudaError_t sparse_gradients(const SparseRows<T>& c, const Chunk& chunk, cudaStream_t stream) {
  const bool has_head = c.p.weights.cross_entropy != 0;
  GKD_TRY(with_student<T>(c.p, [&](auto student) {
    using Student = decltype(student);
    const auto kernel =
        has_head ? &gradient_kernel<Student, T, true> : &gradient_kernel<Student, T, false>;
    return launch_segments(kernel, chunk, stream, c, chunk);
  }));
  return finalize_rows<T>(c, chunk, stream);
}
GKD_INSTANTIATE(sparse_gradients)

template <class T>
cudaError_t run_sparse_loss(const SparseRows<T>& c, const Chunk& chunk, cudaStream_t stream) {
  GKD_TRY(sparse_moments(c, chunk, stream));
  GKD_TRY(launch_warps(coefficients_kernel<T>, chunk.rows, stream, c, chunk));
  return sparse_gradients(c, chunk, stream);
}
GKD_INSTANTIATE(run_sparse_loss)

}  // namespace gkd::cuda
