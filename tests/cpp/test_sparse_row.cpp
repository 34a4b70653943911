// The kernels of a row whose teacher is known in its group alone, of every instruction set that
// this processor runs.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "row_case.h"

namespace {

using namespace gkd::test;

// A case whose group are its `size` largest teacher logits, and what a kernel makes of it.
struct Sparse {
  std::vector<float> logits;
  std::vector<std::int32_t> indices;
  gkd::cpu::SparseTask task;

  Sparse(const Case& c, int size) {
    std::vector<std::int32_t> order(c.teacher.size());
    for (std::size_t j = 0; j < order.size(); ++j) order[j] = static_cast<std::int32_t>(j);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return c.teacher[a] > c.teacher[b]; });
    size = std::min(size, static_cast<int>(order.size()));
    indices.assign(order.begin(), order.begin() + size);
    std::sort(indices.begin(), indices.end());
    for (std::int32_t j : indices) logits.push_back(c.teacher[j]);
    double sum = 0;
    for (std::size_t k = size; k < order.size(); ++k) sum += std::exp(c.teacher[order[k]] / 4.0);
    task.row.student.data = c.student.data();
    task.row.teacher.data = logits.data();
    task.row.classes = static_cast<std::int64_t>(order.size());
    task.indices = indices.data();
    task.size = size;
    task.rest = std::log(sum);
  }

  RowResult run(const Kernels& set, std::vector<float>* gradient) {
    gradient->assign(task.row.classes, std::numeric_limits<float>::quiet_NaN());
    task.row.gradient.data = gradient->data();
    gkd::cpu::Scratch scratch;
    return set.f32.sparse.row(
        task,
        [](std::int64_t n, const std::function<void(std::int64_t)>& body) {
          for (std::int64_t k = n; k-- > 0;) body(k);  // any order serves
        },
        &scratch);
  }
};

TEST(SparseRow, IsTheRowOfTheWholeTeacher) {
  for (const Kernels& set : supported_kernels()) {
    for (int kind = 0; kind < 2; ++kind) {  // without ties, which would be in the group together
      for (int classes : {1, 15, 17, 513, 40000}) {
        const Case c = make(kind, classes);
        for (int size : {0, 1, 7, 40000}) {
          SCOPED_TRACE(std::string(set.name) + " kind " + std::to_string(kind) + " C " +
                       std::to_string(classes) + " size " + std::to_string(size));
          gkd::Selection selection;
          selection.group_size = size;
          std::vector<float> wanted, got;
          const RowResult dense = run(set, c, selection, &wanted);
          const RowResult sparse = Sparse(c, size).run(set, &got);
          EXPECT_EQ(sparse.size, dense.size);
          EXPECT_NEAR(sparse.loss, dense.loss, 4e-6 * std::abs(dense.loss) + 1e-12);
          float largest = 0, error = 0;
          for (int j = 0; j < classes; ++j) {
            largest = std::max(largest, std::abs(wanted[j]));
            error = std::max(error, std::isnan(got[j]) ? 1e30f : std::abs(wanted[j] - got[j]));
          }
          EXPECT_LE(error, 4e-6f * largest + 1e-12f);
        }
      }
    }
  }
}

TEST(SparseRow, AnInvalidRowIsNaNThroughout) {
  for (const Kernels& set : supported_kernels()) {
    for (int at : {0, 14, 600, 39999}) {
      Case c = make(0, 40000);
      c.student[at] = std::numeric_limits<float>::quiet_NaN();
      std::vector<float> gradient;
      EXPECT_TRUE(std::isnan(Sparse(c, 7).run(set, &gradient).loss)) << set.name << at;
      for (float g : gradient) ASSERT_TRUE(std::isnan(g));
    }
  }
}

}  // namespace
