// Every constant of the kernels, with its reason.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gkd::cuda {

constexpr int kWarp = 32;

/// Bytes of the widest asynchronous copy of one thread.
constexpr int kVectorBytes = 16;

/// Alignment of the arrays in a workspace: what cudaMalloc guarantees.
constexpr std::size_t kArrayAlignment = 256;

/// The largest grid that CUDA takes in x.
constexpr std::int64_t kMaxGridBlocks = (std::int64_t(1) << 31) - 1;

/// Threads of a block that passes over a segment of a row: eight warps, two per scheduler.
constexpr int kPassThreads = 256;

/// Classes that a thread loads at once: 8 of both inputs are 16 loads in flight per thread, which
/// hide the memory's latency; at most 8 terms are summed in float before they go to a double.
constexpr int kItems = 8;

/// Classes that a block of kPassThreads loads at once.
constexpr std::int64_t kTileClasses = std::int64_t(kPassThreads) * kItems;

/// Blocks per multiprocessor that a launch over segments aims at: 8 blocks of 256 threads fill a
/// multiprocessor of 2,048 threads.
constexpr int kBlocksPerMultiprocessor = 8;

/// Warps of a block that gives each row one warp: one per scheduler. Larger blocks would leave
/// multiprocessors idle where rows are few.
constexpr int kWarpsPerBlock = 4;

/// Threads of a one-block kernel over all rows: its loads are latency-bound, so a large block; 512
/// threads leave 128 registers each.
constexpr int kRowsThreads = 512;

/// Threads of the scan over a sorted row, one block per row, and keys per thread: 8 amortise the
/// scan's two barriers over 2,048 keys.
constexpr int kScanThreads = 256;
constexpr int kScanItems = 8;

/// Bound on the sort path's scratch (keys, sorted keys, CUB's own) unless one row needs more: 1/320
/// of an H100's 80 GiB.
constexpr std::size_t kSortScratch = std::size_t(256) << 20;

/// DeviceSegmentedSort copies segment counts to the host beyond this many segments, which would
/// synchronise and cannot be captured (CUB's partitioning threshold).
constexpr std::int64_t kSortSegments = 500;

/// Rows of at least this length are sorted one after the other by the whole device: a segmented
/// sort gives a row one block, and the scratch bound leaves fewer such rows at a time than a device
/// has multiprocessors.
constexpr std::int64_t kDeviceSortClasses = std::int64_t(1) << 18;

/// Bytes of both inputs in a chunk of the multi-kernel selection: half an H100's L2 cache, so that
/// later passes hit the cache although other kernels use it too.
constexpr std::int64_t kCacheBytes = std::int64_t(24) << 20;

/// Keys of a row's window that are listed: 1/16 of the classes, at least 1,024. A flat row's window
/// holds 1 to 3% of its classes; a fuller window (ties) is read again instead. The maximum keeps
/// positions in an int.
constexpr std::int64_t kClassesPerListedKey = 16, kMinListedKeys = 1024,
                       kMaxListedKeys = std::int64_t(1) << 30;

/// Threads of a fused block, and blocks on a multiprocessor at a time: while one is in the serial
/// part of a row, the other one's passes keep the multiprocessor busy. 2 blocks of 256 threads
/// leave 128 registers each; double arithmetic takes 255 of one block.
constexpr int kFusedThreads = 256;
template <class T>
constexpr int kFusedBlocks = sizeof(T) == sizeof(float) ? 2 : 1;

/// Keys of a row's window that a fused block lists in shared memory, 8 KiB of them for 32-bit keys:
/// at least 4% of its segment, where a flat row's window holds 1 to 3% of the classes.
constexpr int kFusedListedKeys = 2048;
constexpr int kFusedListBytes = kFusedListedKeys * 8;

/// Longer float32 rows are weighed before their moments are summed: the error of sums in float
/// would leave most of their cuts open. 16-bit logits have more ties than such an error splits.
constexpr std::int64_t kMaxSummedClasses = std::int64_t(1) << 20;

/// What decides how many blocks share a row: a multiprocessor's cycles for the passes over one
/// class by a block alone and by one of two, and for the serial part of a row by one block and by a
/// cluster: the latencies of sm_90 along the chain of dependent instructions, added up on an
/// emulated device for flat rows of several lengths, of which this is what does not grow with them
/// (5,950, and 8,500 for 4 and for 8 blocks). Only their ratios matter.
constexpr double kClassCycles = 1.15, kSharedClassCycles = 0.75;
constexpr double kBlockRowCycles = 6000, kClusterRowCycles = 8500;
/// As kClusterRowCycles, by a cooperative grid: it has four barriers of 2,000 cycles more.
constexpr double kGridRowCycles = 16500;
/// By this factor the passes over a streamed row take longer: 6% more instructions, and waits for
/// the L2 cache.
constexpr double kStreamedCost = 1.15;

/// The largest cluster that exists. Those of more than 8 blocks are not portable: a kernel has to
/// allow them.
constexpr int kMaxCluster = 16;

/// Blocks per row of a cooperative launch at most: enough for a float row of 6.8 million classes
/// (227 KiB of shared memory per block).
constexpr int kMaxGridGroup = 128;

/// Bytes of one block's value in an all-gather: the largest, a segment's moments, has 104.
constexpr int kSlotBytes = 112;

}  // namespace gkd::cuda
