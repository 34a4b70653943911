// The rows of the CUDA benchmarks: on the device, without a library and without a host copy.
#pragma once

#include <cstdint>

namespace gkd::benchmark {

/// Of T = 4 and the default threshold: normal logits of spread 1 have a group of most classes, and
/// 8 teacher's logits that are 40 higher have nearly all mass.
enum class Logits { kFlat, kSmall };

constexpr const char* kLogitNames[] = {"flat", "small"};
constexpr int kRaised = 8;
constexpr float kRaise = 80;

/// Normal logits of spread 1 from a hash of their place; of small rows' teachers some are raised.
template <class Elem>
__global__ void fill_logits(Elem* to, long long rows, long long classes, bool raise,
                            unsigned seed) {
  for (long long k = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
       k < rows * classes; k += static_cast<long long>(gridDim.x) * blockDim.x) {
    unsigned long long x = (k + 1) * 0x9e3779b97f4a7c15ull + seed;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    const float u = (static_cast<unsigned>(x >> 40) + 1) * (1.0f / 16777217.0f);
    const float v = static_cast<unsigned>(x & 0xffffff) * (1.0f / 16777216.0f);
    const float normal = sqrtf(-2 * logf(u)) * cosf(6.2831853f * v);
    const long long every = (classes + kRaised - 1) / kRaised;
    to[k] = static_cast<Elem>(normal + (raise && k % classes % every == 0 ? kRaise : 0.0f));
  }
}

/// Both inputs of rows of a kind.
template <class Elem>
void fill_inputs(void* student, void* teacher, std::int64_t rows, std::int64_t classes,
                 Logits kind) {
  const std::int64_t blocks = rows * classes / 256 + 1;
  const auto grid = static_cast<unsigned>(blocks < 1024 ? blocks : 1024);
  fill_logits<<<grid, 256>>>(static_cast<Elem*>(student), rows, classes, false, 1u);
  fill_logits<<<grid, 256>>>(static_cast<Elem*>(teacher), rows, classes, kind == Logits::kSmall,
                             2u);
}

}  // namespace gkd::benchmark
