// A call of the kernels on random rows, and what it must give: the formulas written out in long
// double from the group alone, apart from the library's maths.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "cuda/fused/plan.h"
#include "cuda/launch.h"

namespace gkd::cuda::test {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Device memory of exactly this size, so that an access outside it is seen by a memory checker.
class Buffer {
 public:
  explicit Buffer(std::size_t bytes) : bytes_(bytes) {
    if (cudaMalloc(&data_, std::max<std::size_t>(bytes, 1)) != cudaSuccess) std::abort();
    cudaMemset(data_, 0xff, bytes);  // NaN in every dtype: what is not written shows
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* get() const { return data_; }
  void write(const void* from) { cudaMemcpy(data_, from, bytes_, cudaMemcpyHostToDevice); }
  template <class V>
  std::vector<V> read(std::size_t count) const {
    std::vector<V> host(count);
    cudaMemcpy(host.data(), data_, count * sizeof(V), cudaMemcpyDeviceToHost);
    return host;
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

inline std::size_t bytes_of(Dtype d) {
  return d == Dtype::kDouble ? 8 : d == Dtype::kFloat ? 4 : 2;
}

/// Stores `x` rounded to the dtype and returns what was stored.
inline double put(Dtype d, double x, char* at) {
  auto store = [&](auto value, double back) {
    std::memcpy(at, &value, sizeof(value));
    return back;
  };
  switch (d) {
    case Dtype::kHalf: {
      const __half h = __double2half(x);
      return store(h, __half2float(h));
    }
    case Dtype::kBFloat16: {
      const __nv_bfloat16 h = __double2bfloat16(x);
      return store(h, __bfloat162float(h));
    }
    case Dtype::kFloat:
      return store(static_cast<float>(x), static_cast<float>(x));
    default:
      return store(x, x);
  }
}

inline double get(Dtype d, const char* at) {
  auto load = [&](auto value) {
    std::memcpy(&value, at, sizeof(value));
    return value;
  };
  switch (d) {
    case Dtype::kHalf:
      return __half2float(load(__half{}));
    case Dtype::kBFloat16:
      return __bfloat162float(load(__nv_bfloat16{}));
    case Dtype::kFloat:
      return load(float{});
    default:
      return load(double{});
  }
}

/// Inputs of one call, in host memory as the dtypes round them.
struct Case {
  Problem p;
  std::int64_t offset = 0;  ///< elements before the first one
  std::vector<double> student, teacher;
  std::vector<std::int64_t> target;

  Case(std::int64_t rows, std::int64_t classes, Dtype s = Dtype::kFloat, Dtype t = Dtype::kFloat) {
    p.rows = rows;
    p.classes = classes;
    p.student = {nullptr, classes, 1, s};
    p.teacher = {nullptr, classes, 1, t};
    std::mt19937 random(static_cast<unsigned>(rows * 7919 + classes));
    std::normal_distribution<double> normal;
    for (std::int64_t k = 0; k < rows * classes; ++k) {
      teacher.push_back(6 * normal(random));
      student.push_back(0.5 * teacher.back() + 2 * normal(random));
    }
  }
};

struct Outcome {
  std::vector<double> loss, gradient;  ///< gradient of the row losses: scales are taken off
  std::vector<double> columns[6];  ///< mass_teacher, mass_student, cut, primary, binary, secondary
  std::vector<std::int64_t> size;
  std::vector<char> mask;
};

/// One way through the kernels.
struct Way {
  const char* name;
  bool sort;
  Device device;
};

/// Every way that the problem can take: the sort path, the split kernels, and each fused kernel at
/// the least and the most shared memory that leads to it, so at its most and fewest members.
std::vector<Way> ways_of(const Problem& problem);

/// Copies the inputs over, runs loss and group, and reads everything back. Rounds c's logits.
Outcome run(Case& c, const Way& way);

/// The same without the loss and its gradient.
Outcome run_group(Case& c, const Way& way);

/// The same by formula, for the group that `actual` reports.
Outcome expect(const Case& c, const Outcome& actual);

/// The cut of a row, as the definition has it.
double cut_of(const Case& c, std::int64_t row);

}  // namespace gkd::cuda::test
