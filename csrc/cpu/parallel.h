// Dynamic scheduling on torch's threads. Results do not depend on which thread runs an index.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "cpu/kernels.h"

#if AT_PARALLEL_OPENMP && !defined(_OPENMP)
#error "at::parallel_for runs on one thread when compiled without OpenMP"
#endif

namespace gkd::cpu {

/// Calls run(next) on every thread; next() returns each index in [0, n) to exactly one thread, then
/// n. Indices are taken one at a time, so a thread whose core is busy does not delay the others.
template <class Run>
void parallel_for_dynamic(std::int64_t n, Run run) {
  std::atomic<std::int64_t> taken{0};
  const auto next = [&] { return std::min(taken.fetch_add(1, std::memory_order_relaxed), n); };
  at::parallel_for(0, std::min<std::int64_t>(n, at::get_num_threads()), 1,
                   [&](std::int64_t, std::int64_t) { run(next); });
}

/// An Executor on the calling thread.
inline void run_serial(std::int64_t n, const std::function<void(std::int64_t)>& body) {
  for (std::int64_t k = 0; k < n; ++k) body(k);
}
/// An Executor on all threads.
inline void run_parallel(std::int64_t n, const std::function<void(std::int64_t)>& body) {
  parallel_for_dynamic(n, [&](auto next) {
    for (std::int64_t k = next(); k < n; k = next()) body(k);
  });
}

/// Calls body(row, executor, scratch) for every row.
template <class Body>
void for_each_row(std::int64_t rows, std::int64_t classes, Body body) {
  const std::int64_t threads = at::get_num_threads();
  // All threads work on one row at a time where the rows cannot be dealt out evenly.
  if (threads > 1 && classes > 2 * kSegment && rows < 4 * threads && rows % threads != 0) {
    const Executor executor = run_parallel;
    Scratch scratch;
    for (std::int64_t row = 0; row < rows; ++row) body(row, executor, &scratch);
    return;
  }
  parallel_for_dynamic(rows, [&](auto next) {
    const Executor executor = run_serial;
    Scratch scratch;
    for (std::int64_t row = next(); row < rows; row = next()) body(row, executor, &scratch);
  });
}

}  // namespace gkd::cpu
