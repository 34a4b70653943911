// What the launchers count on the host: rows of nearly 2^31 classes, and calls of more than 2^31
// and 2^32 elements. No device: nothing is launched.
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "cuda/fused/plan.h"
#include "cuda/launch.h"
#include "cuda/multi_kernel/stages.h"
#include "math/histogram.h"

namespace gkd::cuda {
namespace {

constexpr std::int64_t kInt = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kTwo32 = std::int64_t(1) << 32;

Device device_of(int multiprocessors) {
  Device d;
  d.multiprocessors = multiprocessors;
  d.shared_bytes = 227 << 10;
  d.cooperative = true;  // no clusters: a large one is asked for at the device
  return d;
}

Problem problem_of(std::int64_t rows, std::int64_t classes, Dtype dtype = Dtype::kHalf) {
  Problem p;
  p.rows = rows;
  p.classes = classes;
  p.student.dtype = p.teacher.dtype = dtype;
  p.student.row_stride = p.teacher.row_stride = classes;
  return p;
}

/// Classes of a row around the ends of a tile, of int and of 32 bits.
std::vector<std::int64_t> long_rows() {
  return {kInt - kTileClasses, kInt - 1, kInt,       kInt + 1,
          kTwo32 - 1,          kTwo32,   kTwo32 + 1, 3 * kTwo32 + 7};
}

void expect_every_class_once(std::int64_t rows, std::int64_t classes, const Device& d) {
  const RowPartition s = partition_rows(rows, classes, d);
  SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(classes));
  EXPECT_GE(s.segments, 1);
  EXPECT_EQ(s.segment_classes % kTileClasses, 0);
  EXPECT_GE(s.segments * s.segment_classes, classes);        // the last class is somebody's
  EXPECT_LT((s.segments - 1) * s.segment_classes, classes);  // and nobody has none
}

TEST(Index, SegmentsCoverRowsOfAlmost31Bits) {
  for (int m : {1, 4, 132, 1000}) {
    for (std::int64_t classes : long_rows()) {
      for (std::int64_t rows : {1, 3, 1000}) expect_every_class_once(rows, classes, device_of(m));
    }
  }
}

TEST(Index, SegmentsCoverManyShortRows) {
  for (std::int64_t rows : {kInt / 7, kInt, kTwo32 + 1}) {
    for (std::int64_t classes : {1, 2048, 2049}) {
      expect_every_class_once(rows, classes, device_of(132));
    }
  }
}

TEST(Index, TilesOfLongRows) {
  EXPECT_EQ(num_tiles(0), 1);
  for (std::int64_t classes : long_rows()) {
    EXPECT_GE(num_tiles(classes) * kTileClasses, classes);
    EXPECT_LT((num_tiles(classes) - 1) * kTileClasses, classes);
  }
}

TEST(Index, OffsetsDoNotWrap) {
  // The last segment of the last row.
  for (std::int64_t classes : long_rows()) {
    const RowPartition s = partition_rows(3, classes, device_of(132));
    const std::int64_t block = 3 * s.segments - 1;
    const std::int64_t row = s.row(block), begin = s.segment(block).begin;
    EXPECT_EQ(s.segment(block).end, classes);
    EXPECT_EQ(row, 2);
    EXPECT_GT(row * classes + begin, row * classes - 1);
    EXPECT_LT(row * classes + begin, 3 * classes);
  }
}

TEST(Index, GridsOfManyRowsFit) {
  // A chunk's blocks are an unsigned: none may be lost.
  const Device d = device_of(132);
  for (std::int64_t classes : {std::int64_t(1), std::int64_t(4096), kInt}) {
    const Problem p = problem_of(kInt, classes);
    const std::int64_t rows = select_chunk_rows(p);
    const Chunk chunk{0, rows, partition_rows(rows, classes, d)};
    EXPECT_EQ(std::int64_t(chunk.blocks()), rows * chunk.partition.segments);
    EXPECT_LE(rows * chunk.partition.segments, kMaxGridBlocks);
  }
}

TEST(Index, SegmentsOfAnyChunkAreBounded) {
  for (int m : {1, 132}) {
    for (std::int64_t classes : {std::int64_t(1), std::int64_t(100000), kInt, kTwo32}) {
      for (std::int64_t most : {std::int64_t(1), std::int64_t(500), kInt}) {
        for (std::int64_t rows : {std::int64_t(1), most / 2 + 1, most}) {
          const std::int64_t segments = rows * partition_rows(rows, classes, device_of(m)).segments;
          EXPECT_LE(segments, max_segments(most, classes, device_of(m)))
              << rows << " x " << classes;
        }
      }
    }
  }
}

TEST(Index, ArenaPast4GiB) {
  Arena arena(nullptr);
  EXPECT_EQ(arena.take<double>(static_cast<std::size_t>(kInt)), nullptr);
  EXPECT_EQ(arena.used(), std::size_t(8) * kInt + 8);  // up to a multiple of 256
  arena.take<char>(1);
  EXPECT_EQ(arena.used(), std::size_t(1) * 8 * kInt + 8 + 256);
}

TEST(Index, ListOfALongRowKeepsItsPlacesInAnInt) {
  const std::size_t before = select_scratch_bytes<float>(problem_of(1, 16 * kMaxListedKeys), 1);
  EXPECT_EQ(select_scratch_bytes<float>(problem_of(1, 64 * kMaxListedKeys), 1), before);
  EXPECT_GE(before, std::size_t(4) * kMaxListedKeys);
  EXPECT_LT(kMaxListedKeys, kInt);
}

TEST(Index, WorkspaceGrowsWithRowsAlone) {
  const Device d = device_of(132);
  const std::size_t one = workspace_bytes(problem_of(1, kInt), d);
  const std::size_t many = workspace_bytes(problem_of(1 << 20, kInt), d);
  const std::size_t states = (1 << 20) * (sizeof(RowState<float>) + sizeof(RowReport));
  EXPECT_GE(many, states);
  EXPECT_LE(many - one, states + (std::size_t(1) << 20));  // no [B, C] scratch
}

TEST(Index, LongRowsAreNoFusedKernels) {
  for (std::int64_t classes : long_rows()) {
    const FusedPlan plan = plan_fused(problem_of(3, classes), device_of(132));
    EXPECT_EQ(plan.strategy, LaunchStrategy::kMultiKernel) << classes;
  }
  const FusedPlan plan = plan_fused(problem_of(kInt, 1000), device_of(132));
  EXPECT_EQ(plan.strategy, LaunchStrategy::kBlock);
  EXPECT_EQ(plan.groups, kInt);  // one block a row: the largest grid there is
}

/// An H100: 132 multiprocessors of 228 KiB.
Device h100() {
  Device d = device_of(132);
  d.paired_bytes = (114 << 10) - 1024;
  d.cluster = kMaxCluster;
  return d;
}

TEST(Plan, BlocksShareAMultiprocessorWhereARowFitsSo) {
  const FusedPlan plan = plan_fused(problem_of(783, 85742, Dtype::kFloat), h100());
  EXPECT_EQ(plan.strategy, LaunchStrategy::kCluster);
  EXPECT_LE(plan.shared_bytes, h100().paired_bytes);
  // Half as many blocks have half as many serial parts: that is worth the reads from the L2 cache.
  EXPECT_EQ(plan.blocks_per_row, 4);
  EXPECT_TRUE(plan.streamed);
  EXPECT_EQ(plan_fused(problem_of(783, 85742, Dtype::kDouble), h100()).blocks_per_row, 8);
}

TEST(Plan, LongRowsAreStreamedSoThatBlocksShareAMultiprocessor) {
  Device d = h100();
  for (std::int64_t classes : {200000, 360232}) {
    const FusedPlan plan = plan_fused(problem_of(187, classes, Dtype::kFloat), d);
    EXPECT_EQ(plan.strategy, LaunchStrategy::kCluster);
    EXPECT_TRUE(plan.streamed) << classes;
    EXPECT_LE(plan.shared_bytes, d.paired_bytes);
  }
  // Where both inputs fit as many blocks, they are not.
  EXPECT_FALSE(plan_fused(problem_of(187, 20000, Dtype::kFloat), d).streamed);
  EXPECT_FALSE(plan_fused(problem_of(187, 40000, Dtype::kHalf), d).streamed);
  EXPECT_FALSE(plan_fused(problem_of(187, 180000, Dtype::kDouble), d).streamed);
  d.cooperative = true;
  const FusedPlan grid = plan_fused(problem_of(33, 2059906, Dtype::kFloat), d);
  EXPECT_EQ(grid.strategy, LaunchStrategy::kGrid);
  EXPECT_TRUE(grid.streamed);
  EXPECT_GE(grid.groups, 2);
  EXPECT_LE(grid.shared_bytes, d.paired_bytes);
  EXPECT_LE(grid.groups * grid.blocks_per_row, 2 * d.multiprocessors);
  // A cluster would take this one with a multiprocessor for each block.
  EXPECT_EQ(plan_fused(problem_of(100, 600000, Dtype::kFloat), d).strategy, LaunchStrategy::kGrid);
}

// Two on each multiprocessor fill it.
TEST(Plan, RowsThatFillTheDeviceAreNotSplit) {
  for (std::int64_t rows : {264, 1000, 4096}) {
    EXPECT_EQ(plan_fused(problem_of(rows, 10000, Dtype::kFloat), h100()).blocks_per_row, 1) << rows;
  }
  EXPECT_GT(plan_fused(problem_of(8, 10000, Dtype::kFloat), h100()).blocks_per_row, 1);
  EXPECT_EQ(plan_fused(problem_of(8, 1000, Dtype::kFloat), h100()).blocks_per_row, 1);
}

TEST(Plan, APartOfADeviceTakesWhatItHolds) {
  const Problem large = problem_of(4, 360232, Dtype::kFloat);
  Device d = h100();
  EXPECT_EQ(plan_fused(large, d).strategy, LaunchStrategy::kCluster);
  d.residency = [](Dtype, const FusedPlan& plan) -> std::int64_t {
    return plan.strategy == LaunchStrategy::kCluster ? 0 : 132;
  };
  EXPECT_EQ(plan_fused(large, d).strategy, LaunchStrategy::kGrid);
  // Clusters of 8 are asked for too.
  d.residency = [](Dtype, const FusedPlan& plan) -> std::int64_t {
    return plan.strategy != LaunchStrategy::kCluster ? 6 : plan.blocks_per_row > 4 ? 0 : 2;
  };
  EXPECT_EQ(plan_fused(large, d).strategy, LaunchStrategy::kMultiKernel);
  EXPECT_EQ(plan_fused(problem_of(783, 85742, Dtype::kFloat), d).blocks_per_row, 4);
  d.residency = [](Dtype, const FusedPlan&) -> std::int64_t { return 0; };
  EXPECT_EQ(plan_fused(problem_of(2, 10, Dtype::kFloat), d).strategy, LaunchStrategy::kMultiKernel);
}

TEST(Plan, ASegmentIsWholeVectorsAndEveryClassHasABlock) {
  for (Dtype dtype : {Dtype::kHalf, Dtype::kFloat, Dtype::kDouble}) {
    for (std::int64_t classes : {1, 33, 10001, 85742, 360232}) {
      const FusedPlan plan = plan_fused(problem_of(3, classes, dtype), h100());
      EXPECT_EQ(plan.segment_classes * element_size(dtype) % kVectorBytes, 0);
      EXPECT_GE(plan.segment_classes * plan.blocks_per_row, classes);
    }
  }
}

TEST(Plan, AGridKeepsToTheLargestLaunch) {
  const FusedPlan plan = plan_fused(problem_of(kInt, 40000, Dtype::kFloat), h100());
  EXPECT_GT(plan.blocks_per_row, 1);
  EXPECT_LE(plan.groups * plan.blocks_per_row, kMaxGridBlocks);
}

TEST(Index, BinsOfLongRows) {
  for (std::int64_t classes : long_rows()) {
    const StopRule goal{true, 0.93, 0};
    const float reach = bin_reach(goal, classes, 0.f, -10.f, 1.f);
    const Bins<float> bins{0.f, 1.f, reach};
    EXPECT_EQ(bins.of(0.f), 0);
    EXPECT_EQ(bins.of(-1e30f), kBins - 1);
    EXPECT_LE(mass_scale(classes) * static_cast<double>(classes), std::exp2(62.0));
  }
}

}  // namespace
}  // namespace gkd::cuda
