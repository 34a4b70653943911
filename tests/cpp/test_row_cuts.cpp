// How the CPU kernels find the cut of a row, and how accurate its terms are, whatever the order of
// the classes and the distance of student and teacher.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "row_case.h"

namespace {

using namespace gkd::test;

/// A row of 40,000 classes in an order that a sample from every 78th place misjudges.
Case hide_from_sample(int kind) {
  constexpr int kClasses = 40000, kRuns = 512, kRun = 16;
  Case c = make(1, kClasses);
  std::sort(c.teacher.begin(), c.teacher.end());
  if (kind == 0) return c;  // sorted: neighbours are alike
  if (kind == 1) {
    std::reverse(c.teacher.begin(), c.teacher.end());
    return c;
  }
  std::vector<float> sampled, others;
  std::vector<bool> in_sample(kClasses);
  for (std::int64_t k = 0; k < kRuns; ++k) {
    const std::int64_t begin = (kClasses - kRun) * k / (kRuns - 1);
    for (int l = 0; l < kRun; ++l) in_sample[begin + l] = true;
  }
  // The sample sees the largest classes only, the smallest only, or none of a few heavy ones.
  const auto count = std::count(in_sample.begin(), in_sample.end(), true);
  std::size_t next[2] = {0, 0};
  for (int j = 0; j < kClasses; ++j) {
    std::size_t& n = next[in_sample[j]];
    const std::size_t place = in_sample[j] == (kind == 2) ? kClasses - 1 - n : n;
    (in_sample[j] ? sampled : others).push_back(c.teacher[place]);
    ++n;
  }
  EXPECT_EQ(sampled.size(), static_cast<std::size_t>(count));
  next[0] = next[1] = 0;
  for (int j = 0; j < kClasses; ++j) {
    c.teacher[j] = in_sample[j] ? sampled[next[1]++] : others[next[0]++];
    if (kind == 4) c.teacher[j] = in_sample[j] ? 0 : c.teacher[j];
  }
  return c;
}

TEST(Row, NoOrderOfTheClassesMisleadsTheSample) {
  for (const Kernels& set : supported_kernels()) {
    for (int kind = 0; kind < 5; ++kind) {
      const Case c = hide_from_sample(kind);
      for (double threshold : {0.1, 0.93}) {
        for (std::int64_t size : {-1, 3, 5000}) {
          gkd::Selection selection;
          selection.threshold = threshold;
          selection.group_size = size;
          const RowResult selected = run(set, c, selection);
          selection.sort = true;
          EXPECT_EQ(selected.cut, run(set, c, selection).cut)
              << set.name << " kind " << kind << " threshold " << threshold << " size " << size;
        }
      }
    }
  }
}

TEST(Row, AThresholdOnAClassesBoundaryDecidesAsTheIntegersDo) {
  for (const Kernels& set : supported_kernels()) {
    int boundaries = 0;
    for (int kind : {0, 1, 2}) {
      for (int classes : {700, 20000}) {         // counted as a whole, and from a sample
        for (double temperature : {4.0, 1.0}) {  // at 1, fixed point truncates many masses
          const Case c = make(kind, classes);
          gkd::Selection selection;
          selection.temperature = temperature;
          const auto cut = [&](double threshold, bool sort) {
            selection.threshold = threshold;
            selection.sort = sort;
            return run(set, c, selection).cut;
          };
          for (double start : {0.3, 0.7, 0.93}) {
            // Two neighbouring doubles with different cuts.
            double low = start, high = 1 - (1 - start) / 10;
            const double first = cut(low, true);
            if (cut(high, true) == first) continue;
            ++boundaries;
            while (std::nextafter(low, 1.0) < high) {
              const double middle = low + (high - low) / 2;
              (cut(middle, true) == first ? low : high) = middle;
            }
            for (double threshold :
                 {std::nextafter(low, 0.0), low, high, std::nextafter(high, 1.0)}) {
              EXPECT_EQ(cut(threshold, false), cut(threshold, true))
                  << set.name << kind << " " << classes << " " << start << " " << temperature;
            }
          }
        }
      }
    }
    EXPECT_GE(boundaries, 30);
  }
}

TEST(Row, ATargetBelowTheCutDoesNotMoveIt) {
  for (const Kernels& set : supported_kernels()) {
    for (int classes : {700, 20000}) {
      const Case c = make(0, classes);
      for (double threshold : {0.1, 0.5, 0.93}) {
        for (std::int64_t size : {-1, 50}) {
          for (std::int64_t target = 0; target < classes; target += classes / 20) {
            gkd::cpu::RowTask task;
            task.student.data = c.student.data();
            task.teacher.data = c.teacher.data();
            task.classes = classes;
            task.selection.threshold = threshold;
            task.selection.group_size = size;
            const double cut = run(set, task).cut;
            task.target = target;
            EXPECT_EQ(run(set, task).cut, cut) << set.name << " " << classes << " " << threshold
                                               << " size " << size << " target " << target;
          }
        }
      }
    }
  }
}

/// Loss and gradient in float against the same row in double, with the same cut.
void expect_accurate(const Kernels& set, const Case& c, gkd::cpu::RowTask task,
                     const std::string& name) {
  SCOPED_TRACE(std::string(set.name) + " " + name);
  const std::size_t classes = c.student.size();
  const std::vector<double> s(c.student.begin(), c.student.end());
  const std::vector<double> u(c.teacher.begin(), c.teacher.end());
  std::vector<float> gradient(classes);
  task.classes = static_cast<std::int64_t>(classes);
  task.student.data = c.student.data();
  task.teacher.data = c.teacher.data();
  task.gradient.data = gradient.data();
  const RowResult got = run(set, task);
  gkd::cpu::RowTask exact = task;
  std::vector<double> exact_gradient(classes);
  exact.student = {s.data(), 1, Dtype::kDouble};
  exact.teacher = {u.data(), 1, Dtype::kDouble};
  exact.gradient = {exact_gradient.data(), Dtype::kDouble};
  exact.selection.group_size = got.size;
  gkd::cpu::Scratch scratch;
  const RowResult expected = set.f64.row(
      exact,
      [](std::int64_t n, const std::function<void(std::int64_t)>& body) {
        for (std::int64_t k = 0; k < n; ++k) body(k);
      },
      &scratch);
  ASSERT_EQ(got.size, expected.size);
  EXPECT_NEAR(got.loss, expected.loss, 2e-6 * expected.loss);
  double largest = 0, error = 0;
  for (std::size_t j = 0; j < classes; ++j) {
    largest = std::max(largest, std::abs(exact_gradient[j]));
    error = std::max(error, std::abs(gradient[j] - exact_gradient[j]));
  }
  EXPECT_LE(error, 2e-6 * largest);
}

TEST(Row, NearAndFarLogitsAreAccurate) {
  for (const Kernels& set : supported_kernels()) {
    for (float spread : {1e-4f, 0.1f, 1.0f, 3.0f, 12.0f, 400.0f}) {
      for (float offset : {0.0f, 11.0f, -55.0f, 100.0f}) {
        for (double secondary : {0.0, 1.0}) {
          Case c = make(0, 20000);
          for (std::size_t j = 0; j < c.student.size(); ++j) {
            c.student[j] = c.teacher[j] + spread * c.student[j] + offset;
            if (spread > 100) c.student[j] = std::round(c.student[j]);  // no float rounds s - r
          }
          gkd::cpu::RowTask task;
          task.weights.secondary = secondary;
          if (spread < 0.01f && offset != 0) continue;  // lost in the logits' own rounding
          expect_accurate(set, c, task,
                          "spread " + std::to_string(spread) + " offset " + std::to_string(offset));
        }
      }
    }
  }
}

TEST(Row, AGroupFarBelowTheOtherKeepsItsDigits) {
  for (const Kernels& set : supported_kernels()) {
    Case c = make(0, 20000);
    c.teacher[123] += 90;  // the rest's terms relative to it: 1e-10
    c.student[123] += 85;
    gkd::cpu::RowTask task;
    task.weights.secondary = 1;
    expect_accurate(set, c, task, "one class has all the mass");
  }
}

}  // namespace
