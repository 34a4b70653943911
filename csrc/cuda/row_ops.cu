// Targets before the passes over the rows; the reduced loss, the diagnostics and the backward's
// scaling after them.
#include <cub/block/block_reduce.cuh>

#include "cuda/block/load_store.cuh"
#include "cuda/cub.h"
#include "cuda/launch_kernel.cuh"
#include "cuda/row_ops.h"
#include "math/cut.h"

namespace gkd::cuda {
namespace {

/// One block for all rows, so that the count needs no second kernel and no atomics.
template <class T>
__global__ void targets_kernel(Problem p, Workspace<T> w, T* grad_scale) {
  using Reduce = cub::BlockReduce<long long, kRowsThreads>;
  __shared__ typename Reduce::TempStorage storage;
  let_next_kernel_start();
  long long counted = 0;
  for (std::int64_t row = threadIdx.x; row < p.rows; row += kRowsThreads) {
    RowKind kind = RowKind::kCounted;
    std::int64_t target = -1;  // no target, or the target belongs to another shard
    if (p.target.data != nullptr) {
      const std::int64_t value = p.target_of(row);
      if (value == p.target.ignore_index) {
        kind = RowKind::kIgnored;
      } else if (value < 0 || value >= p.row_classes() || !isfinite(p.margin(row))) {
        kind = RowKind::kInvalid;  // reported as NaN; never used as an index
      } else {
        target = value - p.class_start;
      }
    }
    w.state[row].kind = kind;
    w.state[row].target = target;
    counted += kind != RowKind::kIgnored;
  }
  counted = Reduce(storage).Sum(counted);
  if (threadIdx.x != 0) return;
  const bool mean = p.reduction == Reduction::kMean;
  *w.weight = mean ? T(1) / static_cast<T>(counted > 0 ? counted : 1) : T(1);
  if (grad_scale != nullptr) *grad_scale = static_cast<T>(p.grad_scale(*w.weight).backward);
}

template <class T>
__global__ void constant_cut_kernel(std::int64_t rows, RowState<T>* state, T cut) {
  const std::int64_t row = thread_row();
  if (row < rows) state[row].cut = cut;
}

/// A value of every row: its loss, or a part of it.
struct LossOf {
  const RowReport* report;
  __device__ double operator()(std::int64_t row) const { return report[row].loss; }
};
template <class T>
struct CrossEntropyOf {
  const RowHead<T>* head;
  __device__ double operator()(std::int64_t row) const { return head[row].cross_entropy; }
};
template <class T>
struct DistillationOf {
  const RowHead<T>* head;
  __device__ double operator()(std::int64_t row) const { return head[row].distillation; }
};

template <class T, class Value>
__global__ void row_losses_kernel(std::int64_t rows, Value value, T* loss) {
  wait_for_kernel_before();
  const std::int64_t row = thread_row();
  if (row < rows) loss[row] = static_cast<T>(value(row));
}

/// One block: the order of the sum depends on the number of rows alone.
template <class T, class Value>
__global__ void total_loss_kernel(std::int64_t rows, Value value, const T* weight, T* loss) {
  using Reduce = cub::BlockReduce<double, kRowsThreads>;
  __shared__ typename Reduce::TempStorage storage;
  wait_for_kernel_before();
  double sum = 0;
  for (std::int64_t row = threadIdx.x; row < rows; row += kRowsThreads) sum += value(row);
  sum = Reduce(storage).Sum(sum);
  if (threadIdx.x == 0) *loss = static_cast<T>(sum * static_cast<double>(*weight));
}

template <class T, class Value>
cudaError_t reduce_values(const Problem& p, const T* weight, Value value, void* result,
                          const Device& device, cudaStream_t stream) {
  T* out = static_cast<T*>(result);
  if (out == nullptr) return cudaSuccess;
  if (p.reduction == Reduction::kNone) {
    return launch_early(row_losses_kernel<T, Value>, ceil_div(p.rows, kPassThreads), kPassThreads,
                        device, stream, p.rows, value, out);
  }
  return launch_early(total_loss_kernel<T, Value>, 1, kRowsThreads, device, stream, p.rows, value,
                      weight, out);
}

template <class T>
__global__ void columns_kernel(std::int64_t rows, const RowState<T>* state, const RowReport* report,
                               GroupColumns c) {
  const std::int64_t row = thread_row();
  if (row >= rows) return;
  const RowReport r = report[row];
  const bool counted = state[row].kind == RowKind::kCounted;
  auto write = [&](void* column, double value) {
    static_cast<T*>(column)[row] =
        counted ? static_cast<T>(value) : std::numeric_limits<T>::quiet_NaN();
  };
  c.size[row] = counted ? r.size : 0;
  write(c.mass_teacher, r.summary.p);
  write(c.mass_student, r.summary.q);
  write(c.cut, static_cast<double>(state[row].cut));
  write(c.primary, r.primary);
  write(c.binary, r.summary.binary);
  write(c.secondary, r.secondary);
}

template <class T>
__global__ void mask_kernel(Problem p, Chunk chunk, const RowState<T>* state, bool* mask) {
  const std::int64_t row = chunk.row(blockIdx.x);
  const Segment segment = chunk.segment(blockIdx.x);
  const RowState<T>& r = state[row];
  const Matrix ranking = p.ranking();
  for (std::int64_t j = segment.begin + threadIdx.x; j < segment.end; j += kPassThreads) {
    const T rank = load_any<T>(ranking, row, j);
    mask[row * p.classes + j] = r.kind == RowKind::kCounted && in_primary(rank, r.cut, j, r.target);
  }
}

/// T: the type of grad_output, grad_scale and the product.
template <class T, class Elem>
__global__ void scale_kernel(ScaleCall c, Chunk chunk) {
  const std::int64_t row = chunk.row(blockIdx.x);
  const Segment segment = chunk.segment(blockIdx.x);
  const T* grad_output = static_cast<const T*>(c.grad_output);
  const T factor = static_cast<T>(static_cast<double>(grad_output[row * c.grad_output_stride]) *
                                  static_cast<double>(*static_cast<const T*>(c.grad_scale)));
  const Elem* gradient = static_cast<const Elem*>(c.gradient) + row * c.classes;
  Elem* out = static_cast<Elem*>(c.out) + row * c.classes;
  if (out == gradient && factor == T(1)) return;  // nothing changes
  for (std::int64_t first = segment.begin + threadIdx.x; first < segment.end;
       first += kItems * kPassThreads) {
    T value[kItems];  // every load before the first store: kItems of them are in flight
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const std::int64_t j = first + k * kPassThreads;
      if (j < segment.end) value[k] = load_as<T>(gradient[j]);
    }
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const std::int64_t j = first + k * kPassThreads;
      if (j < segment.end) store_as(value[k] * factor, out + j);
    }
  }
}

/// Calls launch(chunk) for chunks of rows whose segments fit a grid.
template <class Launch>
cudaError_t for_each_chunk(std::int64_t rows, std::int64_t classes, const Device& device,
                           Launch launch) {
  const RowPartition partition = partition_rows(rows, classes, device);
  const std::int64_t chunk_rows = kMaxGridBlocks / partition.segments;
  for (std::int64_t row = 0; row < rows; row += chunk_rows) {
    GKD_TRY(launch(Chunk{row, std::min(chunk_rows, rows - row), partition}));
  }
  return cudaSuccess;
}

}  // namespace

template <class T>
cudaError_t read_targets(const Problem& p, const Workspace<T>& w, void* grad_scale,
                         cudaStream_t stream) {
  return launch(targets_kernel<T>, 1, kRowsThreads, stream, p, w, static_cast<T*>(grad_scale));
}
GKD_INSTANTIATE(read_targets)

template <class T>
cudaError_t fill_cuts(const Problem& p, const Workspace<T>& w, T cut, cudaStream_t stream) {
  return launch_threads(constant_cut_kernel<T>, p.rows, stream, p.rows, w.state, cut);
}
GKD_INSTANTIATE(fill_cuts)

template <class T>
cudaError_t reduce_loss(const Problem& p, const Workspace<T>& w, const Results& results,
                        const Device& device, cudaStream_t stream) {
  const auto reduce = [&](auto value, void* result) {
    return reduce_values(p, w.weight, value, result, device, stream);
  };
  GKD_TRY(reduce(LossOf{w.report}, results.loss));
  GKD_TRY(reduce(CrossEntropyOf<T>{w.head}, results.cross_entropy));
  return reduce(DistillationOf<T>{w.head}, results.distillation);
}
GKD_INSTANTIATE(reduce_loss)

template <class T>
cudaError_t write_group(const Call& c, const Workspace<T>& w, const GroupColumns& columns) {
  GKD_TRY(
      launch_threads(columns_kernel<T>, c.p.rows, c.stream, c.p.rows, w.state, w.report, columns));
  if (columns.mask == nullptr) return cudaSuccess;
  return for_each_chunk(c.p.rows, c.p.classes, c.device, [&](const Chunk& chunk) {
    return launch_segments(mask_kernel<T>, chunk, c.stream, c.p, chunk, w.state, columns.mask);
  });
}
GKD_INSTANTIATE(write_group)

cudaError_t scale(const ScaleCall& c, const Device& device, cudaStream_t stream) {
  auto run = [&](auto arithmetic) {
    using T = decltype(arithmetic);
    return with_dtype(c.dtype, [&](auto elem) -> cudaError_t {
      using Elem = decltype(elem);
      if constexpr (sizeof(Elem) > sizeof(T)) {
        return cudaErrorInvalidValue;  // a double gradient has double factors
      } else {
        return for_each_chunk(c.rows, c.classes, device, [&](const Chunk& chunk) {
          return launch_segments(scale_kernel<T, Elem>, chunk, stream, c, chunk);
        });
      }
    });
  };
  // A float gradient has double factors where the teacher is double.
  return c.factors_are_double ? run(double()) : run(float());
}

}  // namespace gkd::cuda
