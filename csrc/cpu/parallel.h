// Work shared among torch's threads piece by piece. Which thread does a piece changes no bit of it.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#if AT_PARALLEL_OPENMP && !defined(_OPENMP)
#error "at::parallel_for runs on one thread when compiled without OpenMP"
#endif

namespace gkd {

/// Calls run(next) on every thread; next() gives 0, 1, ..., n - 1 once each, then n. Whoever is
/// free takes the next piece: a thread whose core is busy elsewhere does not hold up the rest.
template <class Run>
void parallel_for_dynamic(std::int64_t n, Run run) {
  std::atomic<std::int64_t> taken{0};
  const auto next = [&] { return std::min(taken.fetch_add(1, std::memory_order_relaxed), n); };
  at::parallel_for(0, std::min<std::int64_t>(n, at::get_num_threads()), 1,
                   [&](std::int64_t, std::int64_t) { run(next); });
}

}  // namespace gkd
