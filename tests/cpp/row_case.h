// Rows for the tests of the CPU kernels, and one call of a kernel.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "cpu/kernels.h"

namespace gkd::test {

using gkd::Dtype;
using gkd::cpu::Kernels;
using gkd::cpu::RowResult;
using gkd::cpu::supported_kernels;

struct Case {
  std::vector<float> student, teacher;
};

inline Case make(int kind, int classes) {
  std::mt19937 random(kind * 1000 + classes);
  std::normal_distribution<float> normal;
  Case c{std::vector<float>(classes), std::vector<float>(classes)};
  for (int j = 0; j < classes; ++j) {
    const float x = normal(random), y = normal(random);
    c.teacher[j] = kind == 0 ? x : kind == 1 ? 8 * x : std::round(2 * x);
    if (kind == 3 && j % 3) c.teacher[j] = -std::numeric_limits<float>::infinity();
    c.student[j] = y;
  }
  return c;
}

inline RowResult run(const Kernels& kernels, const gkd::cpu::RowTask& task) {
  gkd::cpu::Scratch scratch;
  return kernels.f32.row(
      task,
      [](std::int64_t n, const std::function<void(std::int64_t)>& body) {
        for (std::int64_t k = n; k-- > 0;) body(k);  // any order serves
      },
      &scratch);
}

inline RowResult run(const Kernels& kernels, const Case& c, const gkd::Selection& selection,
                     std::vector<float>* gradient = nullptr) {
  gkd::cpu::RowTask task;
  task.student.data = c.student.data();
  task.teacher.data = c.teacher.data();
  task.classes = static_cast<std::int64_t>(c.student.size());
  task.selection = selection;
  if (gradient) {
    gradient->resize(c.student.size());
    task.gradient.data = gradient->data();
  }
  return run(kernels, task);
}

}  // namespace gkd::test
