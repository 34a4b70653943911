// What is done once per row or once per call: targets before the sweeps; the reduced loss, the
// diagnostics and the backward's scaling after them.
#include <cub/block/block_reduce.cuh>

#include "cuda/cub.h"
#include "cuda/row.cuh"
#include "cuda/stages.h"
#include "math/cut.h"

namespace gkd::cuda {
namespace {

/// One block for all rows, so that the count needs no second kernel and no atomics.
template <class T>
__global__ void targets_kernel(Problem p, RowState<T>* state, T* weight, T* grad_scale) {
  using Reduce = cub::BlockReduce<long long, kRowsThreads>;
  __shared__ typename Reduce::TempStorage storage;
  long long counted = 0;
  for (std::int64_t row = threadIdx.x; row < p.rows; row += kRowsThreads) {
    RowKind kind = RowKind::kCounted;
    std::int64_t target = -1;  // of another shard: no class here
    if (p.target.data != nullptr) {
      const std::int64_t at = row * p.target.stride;
      const std::int64_t value = p.target.is_int32
                                     ? static_cast<const std::int32_t*>(p.target.data)[at]
                                     : static_cast<const std::int64_t*>(p.target.data)[at];
      if (value == p.target.ignore_index) {
        kind = RowKind::kIgnored;
      } else if (value < 0 || value >= p.row_classes()) {
        kind = RowKind::kInvalid;  // reported as NaN; never used as an index
      } else {
        target = value - p.class_start;
      }
    }
    state[row].kind = kind;
    state[row].target = target;
    counted += kind != RowKind::kIgnored;
  }
  counted = Reduce(storage).Sum(counted);
  if (threadIdx.x != 0) return;
  const bool mean = p.reduction == Reduction::kMean;
  *weight = mean ? T(1) / static_cast<T>(counted > 0 ? counted : 1) : T(1);
  if (grad_scale != nullptr) *grad_scale = static_cast<T>(p.grad_scale(*weight).backward);
}

template <class T>
__global__ void row_losses_kernel(std::int64_t rows, const RowReport* report, T* loss) {
  const std::int64_t row = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row < rows) loss[row] = static_cast<T>(report[row].loss);
}

/// One block: the sum's order depends on the number of rows alone.
template <class T>
__global__ void total_loss_kernel(std::int64_t rows, const RowReport* report, const T* weight,
                                  T* loss) {
  using Reduce = cub::BlockReduce<double, kRowsThreads>;
  __shared__ typename Reduce::TempStorage storage;
  double sum = 0;
  for (std::int64_t row = threadIdx.x; row < rows; row += kRowsThreads) sum += report[row].loss;
  sum = Reduce(storage).Sum(sum);
  if (threadIdx.x == 0) *loss = static_cast<T>(sum * static_cast<double>(*weight));
}

template <class T>
__global__ void columns_kernel(std::int64_t rows, const RowState<T>* state, const RowReport* report,
                               GroupColumns c) {
  const std::int64_t row = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const RowReport r = report[row];
  const bool counted = state[row].kind == RowKind::kCounted;
  auto put = [&](void* column, double value) {
    static_cast<T*>(column)[row] =
        counted ? static_cast<T>(value) : std::numeric_limits<T>::quiet_NaN();
  };
  c.size[row] = counted ? r.size : 0;
  put(c.mass_teacher, r.summary.p);
  put(c.mass_student, r.summary.q);
  put(c.cut, static_cast<double>(state[row].cut));
  put(c.primary, r.primary);
  put(c.binary, r.summary.binary);
  put(c.secondary, r.secondary);
}

template <class T>
__global__ void mask_kernel(Problem p, Split split, std::int64_t first_row,
                            const RowState<T>* state, bool* mask) {
  const std::int64_t row = first_row + blockIdx.x / split.parts, part = blockIdx.x % split.parts;
  const RowState<T>& r = state[row];
  const Matrix ranking = p.ranking();
  const std::int64_t begin = part * split.part_classes;
  const std::int64_t end = min(begin + split.part_classes, p.classes);
  for (std::int64_t j = begin + threadIdx.x; j < end; j += blockDim.x) {
    const T rank = load_any<T>(ranking, row * ranking.row_stride + j * ranking.col_stride);
    mask[row * p.classes + j] = r.kind == RowKind::kCounted && in_primary(rank, r.cut, j, r.target);
  }
}

/// T: the type of grad_output and of the product.
template <class T, class Elem>
__global__ void scale_kernel(const Elem* gradient, const T* grad_output, std::int64_t grad_stride,
                             const T* grad_scale, Split split, std::int64_t first_row,
                             std::int64_t classes, Elem* out) {
  const std::int64_t row = first_row + blockIdx.x / split.parts, part = blockIdx.x % split.parts;
  const T by = static_cast<T>(static_cast<double>(grad_output[row * grad_stride]) *
                              static_cast<double>(*grad_scale));
  if (out == gradient && by == T(1)) return;  // it is there already
  const std::int64_t begin = part * split.part_classes;
  const std::int64_t end = min(begin + split.part_classes, classes);
  for (std::int64_t first = begin + threadIdx.x; first < end; first += kItems * kSweepThreads) {
    T value[kItems];  // every load before the first store: kItems of them are in flight
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const std::int64_t j = first + k * kSweepThreads;
      if (j < end) value[k] = widen<T>(gradient[row * classes + j]);
    }
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const std::int64_t j = first + k * kSweepThreads;
      if (j < end) narrow(value[k] * by, out + row * classes + j);
    }
  }
}

unsigned blocks_of(std::int64_t count, int threads) {
  return static_cast<unsigned>((count + threads - 1) / threads);
}

/// Calls launch(first_row, blocks) for pieces that fit a grid.
template <class Launch>
cudaError_t over_rows(std::int64_t rows, const Split& split, Launch launch) {
  const std::int64_t rows_per_launch = kGridLimit / split.parts;
  for (std::int64_t row = 0; row < rows; row += rows_per_launch) {
    launch(row, static_cast<unsigned>(std::min(rows_per_launch, rows - row) * split.parts));
    GKD_TRY(cudaGetLastError());
  }
  return cudaSuccess;
}

template <class T, class Elem>
cudaError_t launch_scale(const void* gradient, const void* grad_output, std::int64_t grad_stride,
                         const void* grad_scale, std::int64_t rows, std::int64_t classes, void* out,
                         const Device& device, cudaStream_t stream) {
  const Split split = split_rows(rows, classes, device);
  return over_rows(rows, split, [&](std::int64_t row, unsigned blocks) {
    scale_kernel<T, Elem><<<blocks, kSweepThreads, 0, stream>>>(
        static_cast<const Elem*>(gradient), static_cast<const T*>(grad_output), grad_stride,
        static_cast<const T*>(grad_scale), split, row, classes, static_cast<Elem*>(out));
  });
}

}  // namespace

template <class T>
cudaError_t read_targets(const Problem& p, RowState<T>* state, T* weight, T* grad_scale,
                         cudaStream_t stream) {
  targets_kernel<T><<<1, kRowsThreads, 0, stream>>>(p, state, weight, grad_scale);
  return cudaGetLastError();
}

template <class T>
cudaError_t reduce_loss(const Problem& p, const RowReport* report, const T* weight, T* loss,
                        cudaStream_t stream) {
  if (p.reduction == Reduction::kNone) {
    row_losses_kernel<T>
        <<<blocks_of(p.rows, kSweepThreads), kSweepThreads, 0, stream>>>(p.rows, report, loss);
  } else {
    total_loss_kernel<T><<<1, kRowsThreads, 0, stream>>>(p.rows, report, weight, loss);
  }
  return cudaGetLastError();
}

template <class T>
cudaError_t write_group(const Problem& p, const RowState<T>* state, const RowReport* report,
                        const Device& device, const GroupColumns& columns, cudaStream_t stream) {
  columns_kernel<T><<<blocks_of(p.rows, kSweepThreads), kSweepThreads, 0, stream>>>(
      p.rows, state, report, columns);
  GKD_TRY(cudaGetLastError());
  if (columns.mask == nullptr) return cudaSuccess;
  const Split split = split_rows(p.rows, p.classes, device);
  return over_rows(p.rows, split, [&](std::int64_t row, unsigned blocks) {
    mask_kernel<T><<<blocks, kSweepThreads, 0, stream>>>(p, split, row, state, columns.mask);
  });
}

cudaError_t scale(const void* gradient, Dtype dtype, const void* grad_output,
                  std::int64_t grad_stride, const void* grad_scale, bool wide, std::int64_t rows,
                  std::int64_t classes, void* out, const Device& device, cudaStream_t stream) {
  auto run = [&](auto launch) {
    return launch(gradient, grad_output, grad_stride, grad_scale, rows, classes, out, device,
                  stream);
  };
  if (wide) {  // the teacher may be wider than the gradient
    switch (dtype) {
      case Dtype::kHalf:
        return run(&launch_scale<double, __half>);
      case Dtype::kBFloat16:
        return run(&launch_scale<double, __nv_bfloat16>);
      case Dtype::kFloat:
        return run(&launch_scale<double, float>);
      default:
        return run(&launch_scale<double, double>);
    }
  }
  switch (dtype) {
    case Dtype::kHalf:
      return run(&launch_scale<float, __half>);
    case Dtype::kBFloat16:
      return run(&launch_scale<float, __nv_bfloat16>);
    default:
      return run(&launch_scale<float, float>);
  }
}

#define GKD_INSTANTIATE(T)                                                                  \
  template cudaError_t read_targets<T>(const Problem&, RowState<T>*, T*, T*, cudaStream_t); \
  template cudaError_t reduce_loss<T>(const Problem&, const RowReport*, const T*, T*,       \
                                      cudaStream_t);                                        \
  template cudaError_t write_group<T>(const Problem&, const RowState<T>*, const RowReport*, \
                                      const Device&, const GroupColumns&, cudaStream_t);
GKD_INSTANTIATE(float)
GKD_INSTANTIATE(double)
#undef GKD_INSTANTIATE

}  // namespace gkd::cuda
