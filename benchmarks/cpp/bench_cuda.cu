// The kernels alone: CUDA events, cold L2 cache, against a device copy of as many bytes in the same
// run.
//
// One line of CSV per problem and way: median, 20th and 80th percentile of the time in
// microseconds, GB/s of the least traffic there is (both inputs read, the gradient written, once
// each), and that as a percentage of the copy's. Usage: gkd_bench_cuda [REPEATS | --tiny]
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

#include "cuda/fused/plan.h"
#include "cuda/launch.h"

namespace {

using namespace gkd::cuda;
using gkd::Dtype;

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

/// Normal logits of this spread from a hash of their place: no library, no host copy.
template <class Elem>
__global__ void fill(Elem* to, long long count, float spread, unsigned seed) {
  for (long long k = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x; k < count;
       k += static_cast<long long>(gridDim.x) * blockDim.x) {
    unsigned long long x = (k + 1) * 0x9e3779b97f4a7c15ull + seed;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    const float u = (static_cast<unsigned>(x >> 40) + 1) * (1.0f / 16777217.0f);
    const float v = static_cast<unsigned>(x & 0xffffff) * (1.0f / 16777216.0f);
    to[k] = static_cast<Elem>(spread * sqrtf(-2 * logf(u)) * cosf(6.2831853f * v));
  }
}

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
  switch (plan_fused(p, device).strategy) {
    case LaunchStrategy::kBlock:
      return "block";
    case LaunchStrategy::kCluster:
      return "cluster";
    case LaunchStrategy::kGrid:
      return "grid";
    default:
      return "split";
  }
}

template <class Elem>
void bench(const char* dtype_name, Dtype dtype, std::int64_t rows, std::int64_t classes,
           float spread, const Device& device, const Memory& flush, int repeats) {
  const auto count = static_cast<std::size_t>(rows * classes);
  const Memory student(count * sizeof(Elem)), teacher(count * sizeof(Elem));
  const Memory gradient(count * sizeof(Elem)), loss(8), grad_scale(8);
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(1024, rows * classes / 256 + 1));
  fill<<<blocks, 256>>>(static_cast<Elem*>(student.get()), rows * classes, spread, 1u);
  fill<<<blocks, 256>>>(static_cast<Elem*>(teacher.get()), rows * classes, spread, 2u);
  require(cudaGetLastError(), "fill");
  Problem p;
  p.rows = rows;
  p.classes = classes;
  p.student = {student.get(), classes, 1, dtype};
  p.teacher = {teacher.get(), classes, 1, dtype};
  const Results results{loss.get(), grad_scale.get(), gradient.get()};
  const double bytes = 3.0 * static_cast<double>(count * sizeof(Elem));

  // Half the bytes read and half written: the traffic of 1.5 matrices copied.
  const Times copy = measure(
      [&] {
        const std::size_t half = count * sizeof(Elem) / 2;
        cudaMemcpyAsync(gradient.get(), teacher.get(), 2 * half, cudaMemcpyDeviceToDevice);
        cudaMemcpyAsync(gradient.get(), student.get(), half, cudaMemcpyDeviceToDevice);
      },
      flush, repeats);
  auto report = [&](const char* way, const Times& t) {
    std::printf("%s,%lld,%lld,%g,%s,%.2f,%.2f,%.2f,%.1f,%.1f\n", dtype_name,
                static_cast<long long>(rows), static_cast<long long>(classes), spread, way,
                t.median, t.p20, t.p80, bytes / t.median / 1e3, 100 * copy.median / t.median);
    std::fflush(stdout);
  };
  report("copy", copy);
  const Device split{device.multiprocessors};  // no on-chip limits: the kernels of every device
  struct Way {
    bool sort;
    Device device;
  };
  for (const Way& way : {Way{false, device}, Way{false, split}, Way{true, device}}) {
    p.selection.sort = way.sort;
    const Memory workspace(workspace_bytes(p, way.device));
    const Times t = measure(
        [&] {
          require(forward({p, way.device}, results, workspace.get()), "forward");
        },
        flush, way.sort ? std::min(repeats, 5) : repeats);
    report(name_of(p, way.device), t);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool tiny = argc > 1 && std::string(argv[1]) == "--tiny";
  const int repeats = tiny ? 0 : argc > 1 ? std::atoi(argv[1]) : 21;
  if (argc > 2 || (!tiny && repeats < 1)) {
    std::fprintf(stderr, "usage: gkd_bench_cuda [REPEATS | --tiny]\n");
    return 2;
  }
  int index = 0;
  require(cudaGetDevice(&index), "no CUDA device");
  cudaDeviceProp properties;
  require(cudaGetDeviceProperties(&properties, index), "properties");
  Device device;
  require(query_device(index, &device), "limits");
  std::printf("# %s, %d multiprocessors, L2 %d MiB, %d repeats\n", properties.name,
              properties.multiProcessorCount, properties.l2CacheSize >> 20, repeats);
  if (tiny) std::printf("# --tiny: a rehearsal, nothing is measured\n");
  std::printf("dtype,rows,classes,spread,way,median_us,p20_us,p80_us,GB_per_s,percent_of_copy\n");
  const auto cache = static_cast<std::size_t>(properties.l2CacheSize);
  const Memory flush(tiny ? 0 : std::max<std::size_t>(4 * cache, std::size_t(64) << 20));
  struct Shape {
    std::int64_t rows, classes;
  };
  // 1,000: small heads; 10,000 launch-bound and not; the faces' heads; a vocabulary; two millions.
  const std::vector<Shape> measured = {{4096, 1000},   {64, 10000},   {1024, 10000}, {128, 85742},
                                       {1024, 131072}, {128, 360232}, {64, 1000000}, {32, 2059906}};
  const std::vector<Shape> rehearsed = {{3, 50}, {2, 3000}};
  for (const Shape& s : tiny ? rehearsed : measured) {
    for (float spread : {1.0f, 12.0f}) {  // flat and peaked at temperature 4
      bench<float>("float32", Dtype::kFloat, s.rows, s.classes, spread, device, flush, repeats);
      bench<__nv_bfloat16>("bfloat16", Dtype::kBFloat16, s.rows, s.classes, spread, device, flush,
                           repeats);
    }
  }
  return 0;
}
