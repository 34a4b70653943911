// One call of the loss on one row, for a tool that counts its instructions
// (benchmarks/count_cuda.py): T = 4, threshold 0.93, with a gradient.
// Usage: gkd_count_cuda float32|bfloat16|float16 STRATEGY flat|small CLASSES [training] [sparse]
// STRATEGY: multi_kernel, block, cluster, "streamed cluster" or grid.
// training: with cross-entropy, as gkd.training_loss.
// sparse: the loss of a teacher's group, as gkd.sparse_loss; 200 classes, evenly spread.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "benchmarks/cpp/rows.cuh"
#include "cuda/fused/plan.h"
#include "cuda/launch.h"
#include "cuda/sparse/fused_plan.h"

namespace {

using namespace gkd::cuda;
using gkd::Dtype;
using gkd::benchmark::Logits;

constexpr std::size_t kSharedBytes = 227 << 10;  // of a block on an H100
constexpr int kBlocks = 8;                       // of a cluster, and of a grid
constexpr int kGroupClasses = 200;               // of a sparse row

/// Limits under which the planner has no choice but this strategy.
Device device_for(const std::string& strategy, std::int64_t classes, std::size_t element_bytes,
                  bool sparse) {
  if (strategy == "multi_kernel") return {1, 0, 0, false};
  if (strategy == "block") return {1, kSharedBytes, 0, false};
  // An eighth of the row, and what a block needs besides: less than all of the row.
  const std::size_t segment = (sparse ? 1 : 2) * classes * element_bytes / kBlocks;
  const std::size_t other = std::size_t(sparse ? 12 : 56) << 10;
  const std::size_t bytes = std::min(kSharedBytes, segment + other);
  // An eighth of one input, which is too little for an eighth of both.
  if (strategy == "streamed cluster") {
    return {kBlocks, segment / 2 + (std::size_t(24) << 10), kBlocks, false};
  }
  if (strategy == "cluster") return {kBlocks, bytes, kBlocks, false};
  return {kBlocks, bytes, 0, true};
}

template <class V>
const V* on_device(const std::vector<V>& values) {
  void* data = nullptr;
  cudaMalloc(&data, values.size() * sizeof(V));
  cudaMemcpy(data, values.data(), values.size() * sizeof(V), cudaMemcpyHostToDevice);
  return static_cast<const V*>(data);
}

/// The group of a row whose teacher's logits lie in `p`; class 0 is in it.
SparseGroup group_of(std::int64_t classes) {
  std::vector<std::int32_t> indices;
  for (int k = 0; k < kGroupClasses; ++k) {
    indices.push_back(static_cast<std::int32_t>(k * classes / kGroupClasses));
  }
  SparseGroup group;
  group.indptr = on_device(std::vector<std::int64_t>{0, kGroupClasses});
  group.indices = on_device(indices);
  group.count = kGroupClasses;
  group.rest = on_device(std::vector<float>{8});
  return group;
}

template <class Elem>
int run(Dtype dtype, const std::string& strategy, Logits kind, std::int64_t classes, bool training,
        bool sparse) {
  Problem p;
  p.rows = 1;
  p.classes = classes;
  void* pointers[7];
  const std::size_t bytes = static_cast<std::size_t>(classes) * sizeof(Elem);
  for (int k = 0; k < 3; ++k) cudaMalloc(&pointers[k], bytes);
  cudaMalloc(&pointers[3], 8);
  cudaMalloc(&pointers[4], 8);
  gkd::benchmark::fill_inputs<Elem>(pointers[0], pointers[1], 1, classes, kind);
  p.student = {pointers[0], classes, 1, dtype};
  p.teacher = {pointers[1], classes, 1, dtype};
  if (training) {
    p.head.is_on = true;
    p.weights.cross_entropy = 1;
    cudaMalloc(&pointers[6], sizeof(std::int64_t));
    cudaMemset(pointers[6], 0, sizeof(std::int64_t));
    p.target.data = pointers[6];
  }
  p.selection.by_student = sparse;
  const Device device = device_for(strategy, classes, sizeof(Elem), sparse);
  const char* names[] = {"multi_kernel", "block", "cluster", "grid"};
  const FusedPlan plan = sparse ? plan_sparse(p, device) : plan_fused(p, device);
  const std::string name = names[static_cast<int>(plan.strategy)];
  const std::string planned = plan.streamed ? "streamed " + name : name;
  const bool has_team = strategy != "multi_kernel" && strategy != "block";
  if (planned != strategy || plan.blocks_per_row != (has_team ? kBlocks : 1)) {
    std::fprintf(stderr, "the plan is %s of %d blocks\n", planned.c_str(), plan.blocks_per_row);
    return 1;
  }
  cudaMalloc(&pointers[5], sparse ? sparse_workspace_bytes(p, device) : workspace_bytes(p, device));
  const Results results{pointers[3], pointers[4], pointers[2]};
  const cudaError_t error =
      sparse ? sparse_forward({{p, device}, group_of(classes)}, results, pointers[5])
             : forward({p, device}, results, pointers[5]);
  return error != cudaSuccess || cudaDeviceSynchronize() != cudaSuccess;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5 || argc > 7) return 2;
  const std::string dtype = argv[1], strategy = argv[2];
  const Logits kind = argv[3] == std::string("small") ? Logits::kSmall : Logits::kFlat;
  const auto classes = std::atoll(argv[4]);
  bool training = false, sparse = false;
  for (int k = 5; k < argc; ++k) {
    training |= argv[k] == std::string("training");
    sparse |= argv[k] == std::string("sparse");
  }
  if (dtype == "float32")
    return run<float>(Dtype::kFloat, strategy, kind, classes, training, sparse);
  if (dtype == "float16")
    return run<__half>(Dtype::kHalf, strategy, kind, classes, training, sparse);
  return run<__nv_bfloat16>(Dtype::kBFloat16, strategy, kind, classes, training, sparse);
}
