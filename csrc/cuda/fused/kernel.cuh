// A row in one kernel: both inputs are copied into shared memory once, and every pass reads them
// there. Device memory sees each input read once and the gradient written once, the least possible.
// A group of blocks (block_group.cuh) processes the row; each block copies one segment.
//
// float32 and 16-bit rows are read as vectors (vector_passes.cuh), float64 rows by class.
#pragma once

#include <atomic>

#include "cuda/fused/find_cut.cuh"
#include "cuda/fused/plan.h"

namespace gkd::cuda {

/// One segment of a counted row, by one block: cut, moments, coefficients, gradient. One block
/// writes the row's report.
template <class T, class Elem, class BlockGroup>
__device__ __forceinline__ void process_row(const FusedCall<T>& c, std::int64_t row,
                                            std::int64_t begin,
                                            const ContiguousLoader<T, Elem>& loader, int classes,
                                            FusedStorage<T, BlockGroup>& shared,
                                            BlockGroup& group) {
  constexpr bool kVectors = std::is_same_v<T, float>;
  const Problem& p = c.p;
  const Segment segment{0, classes};
  const std::int64_t offset = row * p.classes + begin;
  // A target outside the segment matches none of its classes.
  const std::int64_t target = c.w.state[row].target - begin;
  bool vectors = false;
  RowMaxima maxima;
  if constexpr (kVectors) {
    const RowMaxima mine{vector_max(loader.teacher, classes), vector_max(loader.student, classes)};
    maxima = cub::BlockReduce<RowMaxima, kFusedThreads>(shared.temp.maxima).Reduce(mine, Merge{});
    maxima = all_reduce(group, maxima);  // its barriers also free the reduction's storage
    vectors = VectorRow(maxima, c.inv_temperature, 0).is_accurate();
  }
  T cut = c.w.state[row].cut;
  if (!c.constant_cut) {
    cut = find_cut(p, loader, segment, p.template inv_group_temperature<T>(), vectors, maxima,
                   shared, group);
    __syncthreads();  // every thread has left the search before its storage is reused
  }
  const VectorRow vector_row(maxima, static_cast<float>(c.inv_temperature),
                             static_cast<float>(cut));
  const VectorRange range = VectorRange::of<Elem>(classes, target);
  for (bool done = false; !done;) {  // again by class if the vectors' sums are not accurate
    SegmentMoments moments;
    if constexpr (kVectors) {
      if (vectors) moments = vector_moments(loader, classes, vector_row, range, shared.temp.sums);
    }
    if (!vectors) {
      moments =
          accumulate_moments(loader, segment, cut, target, c.inv_temperature, shared.temp.moments);
    }
    const auto gathered = group.all_gather(moments);
    if (threadIdx.x == 0) {
      shared.row.kind = RowKind::kCounted;
      shared.row.cut = cut;
      shared.row.target = target;
    }
    __syncthreads();  // the row is in place for the warp that completes it
    if (threadIdx.x < kWarp) {
      const RowReport report = merge_into_row(
          p, [&](std::int64_t r) { return gathered[static_cast<int>(r)]; }, group.size(),
          static_cast<double>(*c.w.weight), &shared.row, shared.temp.merge);
      if (threadIdx.x == 0) {
        shared.report = report;
        shared.done = !vectors;
        if constexpr (kVectors) {
          shared.done |= shared.row.kind == RowKind::kCounted &&
                         sums_are_accurate(shared.row.coef, report.size, p.classes);
        }
      }
    }
    __syncthreads();  // the row's coefficients are known
    done = shared.done;
    vectors &= done;
  }
  SegmentKl kl{};
  if (shared.row.kind != RowKind::kCounted) {
    fill_gradient<T, kFusedThreads>(loader, segment, RowKind::kInvalid, c.gradient, offset);
  } else if (!vectors) {
    kl = write_gradient<T, kFusedThreads>(loader, segment, shared.row, c.inv_temperature, c.all_kl,
                                          c.gradient, offset, shared.temp.kl);
  } else if constexpr (kVectors) {
    Elem* gradient = c.gradient == nullptr ? nullptr : static_cast<Elem*>(c.gradient) + offset;
    kl = vector_gradient(loader, classes, vector_row, range, shared.row, c.all_kl, gradient,
                         shared.temp.kl);
  }
  if (group.reduce_to_one(&kl) && threadIdx.x == 0) {
    RowReport report = shared.report;
    finalize_row(p, shared.row.kind, kl, &report);
    c.w.report[row] = report;
    c.w.state[row].kind = shared.row.kind;
    c.w.state[row].cut = cut;
  }
  __syncthreads();  // the row is finished before the next one's copy overwrites it
}

template <class Elem, class BlockGroup>
__global__ void __launch_bounds__(kFusedThreads, kFusedBlocks<Arithmetic<Elem>>)
    fused_kernel(const FusedCall<Arithmetic<Elem>> c) {
  using T = Arithmetic<Elem>;
  using Layout = FusedLayout<Elem, BlockGroup>;
  extern __shared__ __align__(16) char memory[];
  auto& shared = *reinterpret_cast<typename Layout::Storage*>(memory);
  char* segments = memory + Layout::kSegmentOffset;
  Elem* student_segment = reinterpret_cast<Elem*>(segments);
  Elem* teacher_segment =
      reinterpret_cast<Elem*>(segments + Layout::segment_bytes(c.plan.segment_classes));
  BlockGroup group{shared.group};
  group.start(c.w.selection, c.plan.blocks_per_row);
  const std::int64_t begin = min(group.rank() * c.plan.segment_classes, c.p.classes);
  const int classes = static_cast<int>(min(c.plan.segment_classes, c.p.classes - begin));
  for (std::int64_t row = group.group(); row < c.p.rows; row += group.num_groups()) {
    ContiguousLoader<T, Elem> loader(c.p, row);
    const RowKind kind = c.w.state[row].kind;
    if (kind != RowKind::kCounted) {
      fill_gradient<T, kFusedThreads>(loader, Segment{0, classes}, kind, c.gradient,
                                      row * c.p.classes + begin);
      if (group.rank() == 0 && threadIdx.x == 0) {
        RowReport report;
        finalize_row(c.p, kind, SegmentKl{}, &report);
        c.w.report[row] = report;
      }
      continue;
    }
    copy_segment(student_segment, loader.student + begin, classes);
    copy_segment(teacher_segment, loader.teacher + begin, classes);
    loader.student = student_segment;
    loader.teacher = teacher_segment;
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();  // the copies of all threads have landed
    process_row(c, row, begin, loader, classes, shared, group);
  }
}

/// Allows a kernel all shared memory of the current device, once: a smaller limit, set for one
/// call, would fail another thread's call between its limit and its launch.
template <class Elem, class BlockGroup>
cudaError_t prepare_kernel() {
  constexpr int kDevices = 64;  // more are prepared in every call
  static std::atomic<bool> prepared[kDevices];
  int device = 0, bytes = 0;
  GKD_TRY(cudaGetDevice(&device));
  if (device < kDevices && prepared[device]) return cudaSuccess;
  const auto kernel = &fused_kernel<Elem, BlockGroup>;
  GKD_TRY(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  GKD_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  GKD_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                               cudaSharedmemCarveoutMaxShared));
  if (std::is_same_v<BlockGroup, ClusterGroup>) {
    GKD_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  }
  if (device < kDevices) prepared[device] = true;
  return cudaSuccess;
}

/// Calls use(kernel, config) with the configuration of a plan's launch.
template <class Elem, class BlockGroup, class Use>
cudaError_t with_config(const FusedPlan& plan, cudaStream_t stream, Use use) {
  GKD_TRY((prepare_kernel<Elem, BlockGroup>()));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(plan.groups * plan.blocks_per_row));
  config.blockDim = dim3(kFusedThreads);
  config.dynamicSmemBytes = plan.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  if (plan.strategy == LaunchStrategy::kCluster) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(plan.blocks_per_row);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  } else if (plan.strategy == LaunchStrategy::kGrid) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  config.attrs = &attribute;
  config.numAttrs = plan.strategy == LaunchStrategy::kBlock ? 0 : 1;
  return use(&fused_kernel<Elem, BlockGroup>, config);
}

template <class BlockGroup, class T>
cudaError_t launch_fused(const FusedCall<T>& call, cudaStream_t stream) {
  return with_element<T>(call.p.student.dtype, [&](auto elem) {
    return with_config<decltype(elem), BlockGroup>(
        call.plan, stream, [&](auto kernel, const cudaLaunchConfig_t& config) {
          return cudaLaunchKernelEx(&config, kernel, call);
        });
  });
}

template <class BlockGroup>
std::int64_t ask_residency(Dtype dtype, const FusedPlan& plan) {
  int groups = 0;
  const auto ask = [&](auto kernel, const cudaLaunchConfig_t& config) -> cudaError_t {
    if constexpr (std::is_same_v<BlockGroup, ClusterGroup>) {
      return cudaOccupancyMaxActiveClusters(&groups, kernel, &config);
    }
    int device = 0, multiprocessors = 0;
    GKD_TRY(cudaGetDevice(&device));
    GKD_TRY(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
    GKD_TRY(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&groups, kernel, kFusedThreads,
                                                          config.dynamicSmemBytes));
    groups *= multiprocessors;
    return cudaSuccess;
  };
  const cudaError_t error = with_dtype(dtype, [&](auto elem) {
    return with_config<decltype(elem), BlockGroup>(plan, nullptr, ask);
  });
  if (error != cudaSuccess) (void)cudaGetLastError();  // a refusal is an answer, not an error
  return error == cudaSuccess ? groups : 0;
}

}  // namespace gkd::cuda
