// The kernels alone: CUDA events, cold L2 cache, against a device copy of as many bytes in the same
// run.
//
// One line of CSV per problem and way: median, 20th and 80th percentile of the time in
// microseconds, GB/s of the least traffic there is (both inputs read, the gradient written, once
// each), and that as a percentage of the copy's. Usage: gkd_bench_cuda [--parts] [REPEATS | --tiny]
// --parts: instead of whole calls what tells where their time goes: without finding the cut
// (constant_cut), without a gradient, and each strategy that the planner has for the rows.
// --tiny runs every way once, on few and short rows, and prints nan for every time: a rehearsal.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "benchmarks/cpp/rows.cuh"
#include "cuda/fused/plan.h"
#include "cuda/launch.h"

namespace {

using namespace gkd::cuda;
using gkd::Dtype;
using gkd::benchmark::Logits;

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(bytes) {
    require(cudaMalloc(&data_, std::max<std::size_t>(bytes, 1)), "cudaMalloc");
  }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* get() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

struct Times {
  double median, p20, p80;  ///< microseconds
};

/// Times of `run`, each with a cold L2 cache: `flush` is larger than it. 0 repeats: runs it once
/// and says nothing of the time.
Times measure(const std::function<void()>& run, const Memory& flush, int repeats) {
  if (repeats == 0) {
    run();
    require(cudaDeviceSynchronize(), "run");
    return {NAN, NAN, NAN};
  }
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "event");
  require(cudaEventCreate(&end), "event");
  std::vector<double> times;
  for (int k = -3; k < repeats; ++k) {  // three to warm up
    require(cudaMemsetAsync(flush.get(), k & 1, flush.bytes()), "flush");
    require(cudaEventRecord(begin), "record");
    run();
    require(cudaEventRecord(end), "record");
    require(cudaEventSynchronize(end), "run");
    float ms = 0;
    require(cudaEventElapsedTime(&ms, begin, end), "elapsed");
    if (k >= 0) times.push_back(1e3 * ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  auto at = [&](double q) { return times[static_cast<std::size_t>(q * (times.size() - 1))]; };
  return {at(0.5), at(0.2), at(0.8)};
}

const char* name_of(const Problem& p, const Device& device) {
  if (p.selection.sort) return "sort";
  const char* names[] = {"multi_kernel", "block", "cluster", "grid"};
  return names[static_cast<int>(plan_fused(p, device).strategy)];
}

/// One call among those that are timed on the same logits.
struct Way {
  std::string name;
  Problem p;
  Device device;
  bool gradient = true;
};

/// A device's limits for one strategy: whole rows do not fit a block where that is to be left out.
/// The planner may still have none for it.
Device limited(Device device, const std::string& strategy, std::size_t row_bytes) {
  if (strategy == "multi_kernel") return {device.multiprocessors};
  if (strategy != "cluster") device.cluster = 0;
  if (strategy != "grid") device.cooperative = false;
  if (strategy != "block") {
    const std::size_t fixed = 56 << 10;  // at least what a block needs besides its segment
    device.shared_bytes = std::min(device.shared_bytes, row_bytes / 2 + fixed);
    device.paired_bytes = std::min(device.paired_bytes, device.shared_bytes);
  }
  return device;
}

/// What a user runs: the library's own choice, the multi-kernel strategy, the sort.
std::vector<Way> whole_calls(const Problem& p, const Device& device) {
  std::vector<Way> ways = {{name_of(p, device), p, device},
                           {"multi_kernel", p, limited(device, "multi_kernel", 0)},
                           {"sort", p, device}};
  ways.back().p.selection.sort = true;
  return ways;
}

/// What tells where the time goes: without finding the cut, without a gradient, each strategy.
std::vector<Way> parts(const Problem& p, const Device& device, std::size_t row_bytes) {
  std::vector<Way> ways(3, {name_of(p, device), p, device});
  ways[1].name += " constant_cut";
  ways[1].p.selection.threshold = 1;
  ways[2].name += " no_gradient";
  ways[2].gradient = false;
  for (const char* strategy : {"block", "cluster", "grid", "multi_kernel"}) {
    const Device limits = limited(device, strategy, row_bytes);
    if (name_of(p, limits) == std::string(strategy)) {
      ways.push_back({std::string("forced ") + strategy, p, limits});
    }
  }
  return ways;
}

struct Options {
  bool tiny, parts;
  int repeats;
};

template <class Elem>
void bench(const char* dtype_name, Dtype dtype, std::int64_t rows, std::int64_t classes,
           Logits logits, const Device& device, const Memory& flush, const Options& options) {
  const auto count = static_cast<std::size_t>(rows * classes);
  const Memory student(count * sizeof(Elem)), teacher(count * sizeof(Elem));
  const Memory gradient(count * sizeof(Elem)), loss(8), grad_scale(8);
  gkd::benchmark::fill_inputs<Elem>(student.get(), teacher.get(), rows, classes, logits);
  require(cudaGetLastError(), "fill");
  Problem p;
  p.rows = rows;
  p.classes = classes;
  p.student = {student.get(), classes, 1, dtype};
  p.teacher = {teacher.get(), classes, 1, dtype};
  const double bytes = 3.0 * static_cast<double>(count * sizeof(Elem));

  // Half the bytes read and half written: the traffic of 1.5 matrices copied.
  const Times copy = measure(
      [&] {
        const std::size_t half = count * sizeof(Elem) / 2;
        cudaMemcpyAsync(gradient.get(), teacher.get(), 2 * half, cudaMemcpyDeviceToDevice);
        cudaMemcpyAsync(gradient.get(), student.get(), half, cudaMemcpyDeviceToDevice);
      },
      flush, options.repeats);
  auto report = [&](const char* way, const Times& t) {
    std::printf("%s,%lld,%lld,%s,%s,%.2f,%.2f,%.2f,%.1f,%.1f\n", dtype_name,
                static_cast<long long>(rows), static_cast<long long>(classes),
                gkd::benchmark::kLogitNames[static_cast<int>(logits)], way, t.median, t.p20, t.p80,
                bytes / t.median / 1e3, 100 * copy.median / t.median);
    std::fflush(stdout);
  };
  report("copy", copy);
  const std::size_t row_bytes = 2 * static_cast<std::size_t>(classes) * sizeof(Elem);
  for (const Way& way : options.parts ? parts(p, device, row_bytes) : whole_calls(p, device)) {
    const Memory workspace(workspace_bytes(way.p, way.device));
    const Results results{loss.get(), grad_scale.get(), way.gradient ? gradient.get() : nullptr};
    const Times t = measure(
        [&] {
          require(forward({way.p, way.device}, results, workspace.get()), "forward");
        },
        flush, way.p.selection.sort ? std::min(options.repeats, 5) : options.repeats);
    report(way.name.c_str(), t);
  }
}

/// False where the arguments are wrong.
bool read_options(int argc, char** argv, Options* options) {
  for (int k = 1; k < argc; ++k) {
    const std::string argument = argv[k];
    if (argument == "--tiny") {
      options->tiny = true;
    } else if (argument == "--parts") {
      options->parts = true;
    } else if ((options->repeats = std::atoi(argv[k])) < 1) {
      return false;
    }
  }
  if (options->tiny) options->repeats = 0;
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  Options options{false, false, 21};
  if (!read_options(argc, argv, &options)) {
    std::fprintf(stderr, "usage: gkd_bench_cuda [--parts] [REPEATS | --tiny]\n");
    return 2;
  }
  int index = 0;
  require(cudaGetDevice(&index), "no CUDA device");
  cudaDeviceProp properties;
  require(cudaGetDeviceProperties(&properties, index), "properties");
  Device device;
  require(query_device(index, &device), "limits");
  std::printf("# %s, %d multiprocessors, L2 %d MiB, %d repeats\n", properties.name,
              properties.multiProcessorCount, properties.l2CacheSize >> 20, options.repeats);
  if (options.tiny) std::printf("# --tiny: a rehearsal, nothing is measured\n");
  std::printf("dtype,rows,classes,logits,way,median_us,p20_us,p80_us,GB_per_s,percent_of_copy\n");
  const auto cache = static_cast<std::size_t>(properties.l2CacheSize);
  const Memory flush(options.tiny ? 0 : std::max<std::size_t>(4 * cache, std::size_t(64) << 20));
  struct Shape {
    std::int64_t rows, classes;
  };
  // 2^26 classes of small heads, of the faces' heads and of two million; a vocabulary; few rows.
  const std::vector<Shape> measured = {{65536, 1000}, {6711, 10000}, {783, 85742}, {4096, 131072},
                                       {187, 360232}, {33, 2059906}, {64, 10000},  {128, 85742}};
  const std::vector<Shape> rehearsed = {{3, 50}, {1, 20000}};
  for (const Shape& s : options.tiny ? rehearsed : measured) {
    for (const Logits logits : {Logits::kFlat, Logits::kSmall}) {
      bench<float>("float32", Dtype::kFloat, s.rows, s.classes, logits, device, flush, options);
      bench<__nv_bfloat16>("bfloat16", Dtype::kBFloat16, s.rows, s.classes, logits, device, flush,
                           options);
    }
  }
  return 0;
}
