// The row kernels on eight threads, each with a row or all with one, against one thread's bits.
// Meant for ThreadSanitizer; without it the bits are still compared.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace {

using gkd::cpu::Kernels;
using gkd::cpu::RowResult;

constexpr std::int64_t kRows = 24;
constexpr std::int64_t kClasses = 3 * gkd::cpu::kSegment + 100;  // more segments than one, one odd

struct Batch {
  std::int64_t classes;
  std::vector<float> student, teacher;

  Batch(std::int64_t rows, std::int64_t classes) : classes(classes) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (std::int64_t k = 0; k < rows * classes; ++k) {
      student.push_back(normal(random));
      teacher.push_back(std::round(16 * normal(random)) / 8);  // ties too
    }
  }
};

struct Outcome {
  std::vector<float> gradient;
  std::vector<double> losses;
  bool operator==(const Outcome& o) const {
    return std::memcmp(gradient.data(), o.gradient.data(), 4 * gradient.size()) == 0 &&
           std::memcmp(losses.data(), o.losses.data(), 8 * losses.size()) == 0;
  }
};

const gkd::cpu::Executor kSerial = gkd::cpu::run_serial;
const gkd::cpu::Executor kParallel = gkd::cpu::run_parallel;

void run_row(const Kernels& kernels, const Batch& batch, const gkd::Selection& selection,
             std::int64_t row, const gkd::cpu::Executor& executor, gkd::cpu::Scratch* scratch,
             Outcome* out) {
  gkd::cpu::RowTask task;
  task.classes = batch.classes;
  task.student.data = batch.student.data() + row * batch.classes;
  task.teacher.data = batch.teacher.data() + row * batch.classes;
  task.gradient.data = out->gradient.data() + row * batch.classes;
  task.target = row;
  task.selection = selection;
  out->losses[row] = kernels.f32.row(task, executor, scratch).loss;
}

std::vector<gkd::Selection> selections() {
  std::vector<gkd::Selection> list(4);
  list[1].group_size = 100;
  list[2].by_student = true;
  list[3].sort = true;
  return list;
}

TEST(Threads, TakeRowsApart) {
  const Batch batch(kRows, 1000);
  for (const Kernels& kernels : gkd::cpu::supported_kernels()) {
    for (const auto& selection : selections()) {
      Outcome serial{std::vector<float>(batch.student.size()), std::vector<double>(kRows)};
      Outcome parallel = serial;
      gkd::cpu::Scratch scratch;
      for (std::int64_t row = 0; row < kRows; ++row) {
        run_row(kernels, batch, selection, row, kSerial, &scratch, &serial);
      }
      gkd::cpu::parallel_for_dynamic(kRows, [&](auto next) {
        gkd::cpu::Scratch thread_scratch;
        for (std::int64_t row = next(); row < kRows; row = next()) {
          run_row(kernels, batch, selection, row, kSerial, &thread_scratch, &parallel);
        }
      });
      EXPECT_TRUE(serial == parallel);
    }
  }
}

TEST(Threads, ShareOneRow) {
  const Batch batch(1, kClasses);
  for (const Kernels& kernels : gkd::cpu::supported_kernels()) {
    for (const auto& selection : selections()) {
      Outcome serial{std::vector<float>(kClasses), std::vector<double>(1)};
      Outcome parallel = serial;
      gkd::cpu::Scratch scratch;
      run_row(kernels, batch, selection, 0, kSerial, &scratch, &serial);
      run_row(kernels, batch, selection, 0, kParallel, &scratch, &parallel);
      EXPECT_TRUE(serial == parallel);
    }
  }
}

}  // namespace
