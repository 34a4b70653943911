// The collectives of a fused kernel's group of blocks, one after the other for several rounds, with
// values that tell rounds, ranks and places apart.
#include "cuda/fused/cluster_group.cuh"
#include "cuda/fused/grid_group.cuh"
#include "cuda/workspace.h"
#include "device_test.h"

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
  double total = 0, rounds = 0;
  __device__ void merge(const Sum& y) {
    total += y.total;
    rounds += y.rounds;
  }
};

/// A sum of bins, after others of their own have been read.
template <class V, class BlockGroup>
__device__ void check_sum(BlockGroup& group, V* bins, int count, int round, int* errors) {
  const int blocks = group.size();
  for (int b = threadIdx.x; b < kBins; b += kFusedThreads) bins[b] = b * round + group.rank();
  group.all_reduce_sum(bins, count);
  for (int b = threadIdx.x; b < count; b += kFusedThreads) {
    *errors += bins[b] != static_cast<V>(b * round * blocks + blocks * (blocks - 1) / 2);
  }
  group.sync();  // all peers have read the bins
}

/// Counts in *wrong what a collective got wrong. In round `overflow` the lists exceed the capacity.
template <class BlockGroup>
__global__ void __launch_bounds__(kFusedThreads)
    collectives_kernel(int blocks, int overflow, void* scratch, int* wrong) {
  __shared__ typename BlockGroup::Storage storage;
  __shared__ alignas(16) int bins[2 * kBins];
  constexpr int kCapacity = kFusedListBytes / int(sizeof(Item)) / 2;
  __shared__ Item list[2 * kCapacity];
  BlockGroup group{storage};
  group.start(scratch, blocks);
  int errors = group.size() != blocks, results = 0;
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
    check_sum(group, bins, kBins, round, &errors);
    auto* wide_bins = reinterpret_cast<unsigned long long*>(bins);
    if (round % 2) check_sum(group, wide_bins, round == 1 ? kFusedThreads : kBins, round, &errors);
    const int count = length(group.rank(), round);
    for (int k = threadIdx.x; k < count; k += kFusedThreads) {
      list[k] = {unsigned(k) * 3, group.rank(), k, round};
    }
    Sum of_all{2.0 + group.rank()};
    const int total = group.all_gather_list(list, count, kCapacity, &of_all);
    errors += of_all.total != (blocks == 1 ? 2 : blocks * (blocks + 3) / 2);
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
    Sum sum{1.0 + group.rank(), 1.0 * round};
    if (group.reduce_to_one(&sum) && threadIdx.x == 0) {
      ++results;
      errors += sum.total != blocks * (blocks + 1) / 2 || sum.rounds != blocks * round;
    }
    if (round == overflow) {
      for (int k = threadIdx.x; k < count; k += kFusedThreads) {
        errors += list[k].rank != group.rank() || list[k].place != k;
      }
    }
  }
  if (errors != 0) atomicAdd(wrong, errors);
  // Each round of each group has one result.
  if (results != 0) atomicAdd(wrong, -results);
  if (threadIdx.x == 0 && group.rank() == 0) atomicAdd(wrong, kRounds);
}

class BlockGroups : public test::DeviceTest {
 protected:
  /// Launches `groups` groups of `blocks` blocks and expects no error.
  template <class BlockGroup>
  void run(cudaLaunchAttributeID id, int blocks, int groups, int overflow) {
    SCOPED_TRACE(testing::Message() << blocks << " blocks, " << groups << " groups");
    void* scratch = nullptr;
    int* wrong = nullptr;
    ASSERT_EQ(cudaMalloc(&scratch, GridGroup::scratch_bytes(groups, blocks)), cudaSuccess);
    ASSERT_EQ(cudaMemset(scratch, 0, GridGroup::zero_bytes(groups)), cudaSuccess);
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
