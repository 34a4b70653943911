// The loss by several kernels: any row length, any architecture. A row's parts are summarised by as
// many blocks, one warp merges them into the row's constants, and as many blocks sweep again for
// the gradient. Two readings of both inputs, one writing.
#include <cub/warp/warp_reduce.cuh>

#include "cuda/cub.h"
#include "cuda/stages.h"
#include "cuda/sweeps.cuh"

namespace gkd::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;

__device__ __forceinline__ Slice slice_of(const Split& split, std::int64_t part,
                                          std::int64_t classes) {
  const std::int64_t begin = part * split.part_classes;
  const std::int64_t end = begin + split.part_classes;
  return {begin, end < classes ? end : classes};
}

template <class Source, class T>
__global__ void __launch_bounds__(kSweepThreads)
    moments_kernel(Problem p, Chunk chunk, const RowState<T>* state, PartMoments* moments,
                   T inv_temperature) {
  __shared__ MomentsStorage<T, kSweepThreads> storage;
  const std::int64_t row = chunk.first_row + blockIdx.x / chunk.split.parts;
  const std::int64_t part = blockIdx.x % chunk.split.parts;
  const RowState<T>& r = state[row];
  if (r.kind != RowKind::kCounted) return;  // the whole block: no barrier is left waiting
  const PartMoments sum =
      summarise_slice<T, kSweepThreads>(Source(p, row), slice_of(chunk.split, part, p.classes),
                                        r.cut, r.target, p.by_student, inv_temperature, storage);
  if (threadIdx.x == 0) moments[blockIdx.x] = sum;
}

struct MergeMoments {
  double inv_temperature;
  __device__ GroupMoments<double> operator()(GroupMoments<double> x,
                                             const GroupMoments<double>& y) const {
    x.merge(y, inv_temperature);
    return x;
  }
};

/// One warp a row: merges the parts in an order that the shape alone decides.
template <class T>
__global__ void finish_kernel(Problem p, Chunk chunk, RowState<T>* state,
                              const PartMoments* moments, RowReport* report, const T* weight) {
  using Reduce = cub::WarpReduce<GroupMoments<double>>;
  __shared__ typename Reduce::TempStorage storage[kWarpsPerBlock];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const std::int64_t local = std::int64_t(blockIdx.x) * kWarpsPerBlock + warp;
  if (local >= chunk.rows) return;
  const std::int64_t row = chunk.first_row + local, parts = chunk.split.parts;
  RowState<T>& r = state[row];
  if (r.kind != RowKind::kCounted) {
    if (lane == 0) report[row] = RowReport{};
    return;
  }
  const MergeMoments merge{1 / p.weights.temperature};
  GroupMoments<double> group[2];
  int bad = 0;
  for (std::int64_t part = lane; part < parts; part += kWarp) {
    const PartMoments m = moments[local * parts + part];
    bad |= m.bad;
    for (int g = 0; g < 2; ++g) group[g] = merge(group[g], m.group[g]);
  }
  for (int g = 0; g < 2; ++g) {
    group[g] = Reduce(storage[warp]).Reduce(group[g], merge);
    __syncwarp();  // the second reduction reuses the first one's memory
  }
  bad = __any_sync(~0u, bad);
  if (lane != 0) return;
  RowReport result;
  const bool no_teacher = group[0].a == 0 && group[1].a == 0;
  const bool no_student = group[0].b == 0 && group[1].b == 0;
  if (bad || no_teacher || no_student) {
    r.kind = RowKind::kInvalid;
  } else {
    result.summary = finish_row(group, p.weights, r.coef);
    result.size = group[0].count;
    const T scale = static_cast<T>(p.headroom * stored_scale(static_cast<double>(*weight)));
    for (int g = 0; g < 2; ++g) {
      r.coef[g].on_q *= scale;
      r.coef[g].on_gap *= scale;
    }
  }
  report[row] = result;
}

template <class Source, class T>
__global__ void __launch_bounds__(kSweepThreads)
    emit_kernel(Problem p, Chunk chunk, const RowState<T>* state, PartKl* kl, bool all_kl,
                void* gradient, T inv_temperature) {
  __shared__ KlStorage<kSweepThreads> storage;
  const std::int64_t row = chunk.first_row + blockIdx.x / chunk.split.parts;
  const std::int64_t part = blockIdx.x % chunk.split.parts;
  const RowState<T>& r = state[row];
  const Slice slice = slice_of(chunk.split, part, p.classes);
  const Source source(p, row);
  PartKl sum{};
  if (r.kind == RowKind::kCounted) {
    sum = emit_slice<T, kSweepThreads>(source, slice, r, p.by_student, inv_temperature, all_kl,
                                       gradient, row * p.classes, storage);
  } else {
    const T value = r.kind == RowKind::kIgnored ? T(0) : std::numeric_limits<T>::quiet_NaN();
    fill_slice<T, kSweepThreads>(source, slice, value, gradient, row * p.classes);
  }
  if (threadIdx.x == 0) kl[blockIdx.x] = sum;
}

/// One warp a row: the KL sums of its parts, and the row's loss.
template <class T>
__global__ void rows_kernel(Problem p, Chunk chunk, const RowState<T>* state, const PartKl* kl,
                            RowReport* report) {
  using Reduce = cub::WarpReduce<PartKl>;
  __shared__ typename Reduce::TempStorage storage[kWarpsPerBlock];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const std::int64_t local = std::int64_t(blockIdx.x) * kWarpsPerBlock + warp;
  if (local >= chunk.rows) return;
  const std::int64_t row = chunk.first_row + local, parts = chunk.split.parts;
  PartKl sum{};
  for (std::int64_t part = lane; part < parts; part += kWarp) {
    sum = AddKl{}(sum, kl[local * parts + part]);
  }
  sum = Reduce(storage[warp]).Reduce(sum, AddKl{});
  if (lane != 0) return;
  RowReport& r = report[row];
  r.primary = sum.group[0];
  r.secondary = sum.group[1];
  r.loss = row_loss(r.summary, p.weights, r.primary, r.secondary);
  if (state[row].kind == RowKind::kIgnored) r.loss = 0;
  if (state[row].kind == RowKind::kInvalid) r.loss = std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

template <class T>
cudaError_t run_split(const Problem& p, const Chunk& chunk, const Workspace<T>& w, const T* weight,
                      bool all_kl, void* gradient, cudaStream_t stream) {
  const T inv_temperature = static_cast<T>(1 / p.weights.temperature);
  const auto row_blocks = static_cast<unsigned>((chunk.rows + kWarpsPerBlock - 1) / kWarpsPerBlock);
  constexpr int kRowThreads = kWarpsPerBlock * kWarp;
  return with_source_of<T>(p, [&](auto* tag) -> cudaError_t {
    using Source = std::remove_pointer_t<decltype(tag)>;
    moments_kernel<Source, T><<<chunk.blocks(), kSweepThreads, 0, stream>>>(
        p, chunk, w.state, w.moments, inv_temperature);
    GKD_TRY(cudaGetLastError());
    finish_kernel<T>
        <<<row_blocks, kRowThreads, 0, stream>>>(p, chunk, w.state, w.moments, w.report, weight);
    GKD_TRY(cudaGetLastError());
    emit_kernel<Source, T><<<chunk.blocks(), kSweepThreads, 0, stream>>>(
        p, chunk, w.state, w.kl, all_kl, gradient, inv_temperature);
    GKD_TRY(cudaGetLastError());
    rows_kernel<T><<<row_blocks, kRowThreads, 0, stream>>>(p, chunk, w.state, w.kl, w.report);
    return cudaGetLastError();
  });
}

template cudaError_t run_split<float>(const Problem&, const Chunk&, const Workspace<float>&,
                                      const float*, bool, void*, cudaStream_t);
template cudaError_t run_split<double>(const Problem&, const Chunk&, const Workspace<double>&,
                                       const double*, bool, void*, cudaStream_t);

}  // namespace gkd::cuda
