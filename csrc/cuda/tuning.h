// Every constant of the kernels, with its reason.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gkd::cuda {

constexpr int kWarp = 32;

/// Threads of a block that sweeps part of a row: eight warps give every scheduler two to switch
/// between, and leave 255 registers to none.
constexpr int kSweepThreads = 256;

/// Classes a thread holds at once: 16 loads in flight per thread cover the memory's latency, and a
/// float sum of 8 terms is exact to half an ulp of the promised error before it goes to double.
constexpr int kItems = 8;

constexpr std::int64_t kTile = std::int64_t(kSweepThreads) * kItems;

/// Blocks per multiprocessor that a launch over parts of rows aims at: enough for a tail of under
/// a tenth of the launch.
constexpr int kBlocksPerMultiprocessor = 8;

/// Threads of a one-block kernel over all rows.
constexpr int kRowsThreads = 512;

/// Threads and keys per thread of the scan over a sorted row.
constexpr int kScanThreads = 256;
constexpr int kScanItems = 8;

/// Bound on the sort path's scratch (keys, sorted keys, CUB's own), one row at least.
constexpr std::size_t kSortScratch = std::size_t(256) << 20;

/// DeviceSegmentedSort copies segment counts to the host beyond this many segments, which would
/// synchronise and cannot be captured (CUB's partitioning threshold).
constexpr std::int64_t kSortSegments = 500;

/// Rows this long are sorted one after the other by the whole device: a segmented sort gives a row
/// one block, and the scratch bound leaves fewer such rows at a time than a device has
/// multiprocessors.
constexpr std::int64_t kDeviceSortClasses = std::int64_t(1) << 18;

/// Rows of a chunk of the split select path, in bytes of both inputs: half an H100's L2 cache, so
/// that later sweeps find the chunk there beside what other kernels hold.
constexpr std::int64_t kCacheBytes = std::int64_t(24) << 20;

/// Keys of a row's window that are listed: a flat row's window holds 1 to 3% of its classes; a
/// fuller one (ties) is swept again instead. The limit keeps positions in an int.
constexpr std::int64_t kListShare = 16, kListLeast = 1024, kListLimit = std::int64_t(1) << 30;

/// Threads of a fused block: its slices take a multiprocessor's shared memory, so one block has to
/// keep it busy; 512 threads leave 128 registers each.
constexpr int kFusedThreads = 512;

/// Listed keys of a window in shared memory: 2% of the longest slice, four times what a normal
/// row's window holds.
constexpr int kFusedList = 2048;

/// The cluster size every device with clusters grants; more has to be asked for.
constexpr int kPortableCluster = 8;

/// A slice shorter than one sweep of its block leaves threads idle and costs as many barriers.
constexpr std::int64_t kLeastSlice = std::int64_t(kFusedThreads) * kItems;

/// Blocks of a cooperative team at most: enough for a float row of two million classes, while the
/// team's mail takes 16 KiB of shared memory in each.
constexpr int kGridMembers = 128;

}  // namespace gkd::cuda
