// One row at a time through the kernels of each instruction set, without torch: gkd_bench_cpu.
//
// Arguments: classes, and the logits' spread (1: flat, 8: peaked). Items are classes.
#include <benchmark/benchmark.h>

#include <random>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace {

using gkd::Dtype;
using gkd::cpu::Kernels;

void run_serial(std::int64_t n, const std::function<void(std::int64_t)>& body) {
  for (std::int64_t k = 0; k < n; ++k) body(k);
}

std::vector<float> logits(std::int64_t classes, double spread, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, static_cast<float>(spread));
  std::vector<float> row(classes);
  for (float& x : row) x = normal(random);
  return row;
}

void row(benchmark::State& state, const Kernels& kernels, bool with_gradient, bool sort) {
  const std::int64_t classes = state.range(0);
  const auto student = logits(classes, state.range(1), 1),
             teacher = logits(classes, state.range(1), 2);
  std::vector<float> gradient(classes);
  gkd::cpu::RowTask task;
  task.student.data = student.data();
  task.teacher.data = teacher.data();
  if (with_gradient) task.gradient.data = gradient.data();
  task.classes = classes;
  task.selection.sort = sort;
  gkd::cpu::Scratch scratch;
  const gkd::cpu::Executor executor = run_serial;
  for (auto _ : state) {
    benchmark::DoNotOptimize(kernels.f32.row(task, executor, &scratch));
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * classes);
}

void scale(benchmark::State& state, const Kernels& kernels, Dtype dtype) {
  const std::int64_t classes = state.range(0);
  std::vector<float> in = logits(classes, 1, 3), out(classes);
  for (auto _ : state) {
    kernels.scale(in.data(), out.data(), dtype, classes, 0.5);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * classes);
}

void grid(benchmark::internal::Benchmark* b) {
  b->ArgsProduct({{1000, 85742, 2059906}, {1, 8}})->Unit(benchmark::kMicrosecond);
}

void add(const Kernels& kernels) {
  const std::string name = kernels.name;
  benchmark::RegisterBenchmark((name + "/loss").c_str(), row, kernels, false, false)->Apply(grid);
  benchmark::RegisterBenchmark((name + "/gradient").c_str(), row, kernels, true, false)
      ->Apply(grid);
  benchmark::RegisterBenchmark((name + "/sort").c_str(), row, kernels, true, true)->Apply(grid);
  benchmark::RegisterBenchmark((name + "/scale_float").c_str(), scale, kernels, Dtype::kFloat)
      ->Arg(85742);
  benchmark::RegisterBenchmark((name + "/scale_bfloat16").c_str(), scale, kernels, Dtype::kBFloat16)
      ->Arg(85742);
}

}  // namespace

int main(int argc, char** argv) {
  for (const Kernels& kernels : gkd::cpu::supported_kernels()) add(kernels);
  benchmark::Initialize(&argc, argv);
  const bool some = benchmark::RunSpecifiedBenchmarks() > 0;
  benchmark::Shutdown();
  return some ? 0 : 1;
}
