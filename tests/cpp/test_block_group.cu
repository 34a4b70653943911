// The collectives of a fused kernel's group of blocks, one after the other for several rounds, with
// values that tell rounds, ranks and places apart.
#include <gtest/gtest.h>

#include "cuda/fused/block_group.cuh"
#include "cuda/workspace.h"

namespace gkd::cuda {
namespace {

constexpr int kRounds = 5;

struct Value {
  int rank, round;
};
struct Item {
  unsigned key;
  int rank, place, round;
};
struct Sum {
  double total = 0;
  __device__ void merge(const Sum& y) { total += y.total; }
};

/// Counts in *wrong what a collective got wrong. In round `overflow` the lists exceed the capacity.
template <class BlockGroup>
__global__ void __launch_bounds__(kFusedThreads)
    collectives_kernel(int blocks, int overflow, GridScratch* scratch, int* wrong) {
  __shared__ GroupStorage<BlockGroup::kMaxBlocks> storage;
  __shared__ unsigned long long bins[kBins];
  constexpr int kCapacity = kFusedListBytes / int(sizeof(Item)) / 2;
  __shared__ Item list[2 * kCapacity];
  BlockGroup group{storage};
  if constexpr (std::is_same_v<BlockGroup, GridGroup>) {
    group.blocks = blocks;
    group.scratch = scratch + blockIdx.x / blocks;
  }
  int errors = group.size() != blocks;
  const auto length = [&](int rank, int round) {
    return round == overflow ? kCapacity / blocks + 1 : (rank * 7 + round * 5) % 23;
  };
  for (int round = 0; round < kRounds; ++round) {
    const auto values = group.all_gather(Value{group.rank(), round});
    for (int r = 0; r < blocks; ++r) {
      const Value v = values[r];
      errors += v.rank != r || v.round != round;
    }
    errors += all_reduce(group, Sum{1.0 + group.rank()}).total != blocks * (blocks + 1) / 2;

    for (int b = threadIdx.x; b < kBins; b += kFusedThreads) bins[b] = b * round + group.rank();
    group.all_reduce_sum(bins);
    for (int b = threadIdx.x; b < kBins; b += kFusedThreads) {
      errors += bins[b] !=
                static_cast<unsigned long long>(b * round * blocks + blocks * (blocks - 1) / 2);
    }

    const int count = length(group.rank(), round);
    for (int k = threadIdx.x; k < count; k += kFusedThreads) {
      list[k] = {unsigned(k) * 3, group.rank(), k, round};
    }
    const int total = group.all_gather_list(list, count, kCapacity);
    int expected = 0;
    for (int r = 0; r < blocks; ++r) {
      for (int k = 0; k < length(r, round); ++k, ++expected) {
        if (expected % kFusedThreads != threadIdx.x || round == overflow) continue;
        const Item& item = list[expected];
        errors +=
            item.key != unsigned(k) * 3 || item.rank != r || item.place != k || item.round != round;
      }
    }
    errors += total != expected;
    if (round == overflow) {
      for (int k = threadIdx.x; k < count; k += kFusedThreads) {
        errors += list[k].rank != group.rank() || list[k].place != k;
      }
    }
  }
  if (errors != 0) atomicAdd(wrong, errors);
  group.exit_barrier();
}

class BlockGroups : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "no CUDA device";
    }
  }
  /// Launches `groups` groups of `blocks` blocks and expects no error.
  template <class BlockGroup>
  void run(cudaLaunchAttributeID id, int blocks, int groups, int overflow) {
    SCOPED_TRACE(testing::Message() << blocks << " blocks, " << groups << " groups");
    GridScratch* scratch = nullptr;
    int* wrong = nullptr;
    ASSERT_EQ(cudaMalloc(&scratch, groups * sizeof(GridScratch)), cudaSuccess);
    ASSERT_EQ(cudaMemset(scratch, 0, groups * sizeof(GridScratch)), cudaSuccess);
    ASSERT_EQ(cudaMalloc(&wrong, sizeof(int)), cudaSuccess);
    ASSERT_EQ(cudaMemset(wrong, 0, sizeof(int)), cudaSuccess);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks * groups);
    config.blockDim = dim3(kFusedThreads);
    cudaLaunchAttribute attribute{};
    attribute.id = id;
    if (id == cudaLaunchAttributeClusterDimension) {
      ASSERT_EQ(cudaFuncSetAttribute(collectives_kernel<BlockGroup>,
                                     cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
                cudaSuccess);
      attribute.val.clusterDim.x = blocks;
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    } else {
      attribute.val.cooperative = 1;
    }
    config.attrs = &attribute;
    config.numAttrs = 1;
    ASSERT_EQ(cudaLaunchKernelEx(&config, collectives_kernel<BlockGroup>, blocks, overflow, scratch,
                                 wrong),
              cudaSuccess);
    int errors = -1;
    ASSERT_EQ(cudaMemcpy(&errors, wrong, sizeof(int), cudaMemcpyDeviceToHost), cudaSuccess);
    EXPECT_EQ(errors, 0);
    cudaFree(scratch);
    cudaFree(wrong);
  }
};

TEST_F(BlockGroups, OneBlock) { run<SingleBlock>(cudaLaunchAttributeCooperative, 1, 3, 2); }

TEST_F(BlockGroups, Clusters) {
  for (int blocks : {2, 8, 16}) {
    for (int overflow : {-1, 2}) {
      run<ClusterGroup>(cudaLaunchAttributeClusterDimension, blocks, 2, overflow);
    }
  }
}

TEST_F(BlockGroups, Grids) {
  for (int blocks : {2, 13, 38}) {
    for (int overflow : {-1, 2}) {
      run<GridGroup>(cudaLaunchAttributeCooperative, blocks, blocks < 38 ? 3 : 1, overflow);
    }
  }
}

}  // namespace
}  // namespace gkd::cuda
