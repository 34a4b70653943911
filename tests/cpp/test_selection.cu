// The cut by selection is the cut by sorting, on rows made to mislead it: every kernel regime,
// every dtype, by mass and by size, ranked by either side.
#include <algorithm>
#include <string>

#include "kernel_case.h"

namespace gkd::cuda::test {
namespace {

struct Shape {
  const char* name;
  double (*logit)(std::int64_t j, std::mt19937& random);
};

double uniform(std::mt19937& random) { return random() / 4294967296.0; }

const Shape kShapes[] = {
    {"flat", [](std::int64_t, std::mt19937& r) { return uniform(r); }},
    {"peaked", [](std::int64_t, std::mt19937& r) { return 60 * std::pow(uniform(r), 8); }},
    {"one bin", [](std::int64_t, std::mt19937& r) { return 1e-6 * uniform(r); }},
    {"two values", [](std::int64_t, std::mt19937& r) { return r() % 2 ? 3.0 : -3.0; }},
    {"ties far up", [](std::int64_t, std::mt19937& r) { return 60 + 0.25 * (r() % 3); }},
    {"geometric", [](std::int64_t j, std::mt19937&) { return -0.7 * static_cast<double>(j); }},
    {"slowly geometric",
     [](std::int64_t j, std::mt19937&) { return -0.002 * static_cast<double>(j); }},
    {"denormal", [](std::int64_t, std::mt19937& r) { return 1e-40 * uniform(r); }},
    {"padded", [](std::int64_t j, std::mt19937& r) { return j % 7 ? -kInfinity : 8 * uniform(r); }},
    {"huge", [](std::int64_t, std::mt19937& r) { return (uniform(r) - 0.5) * 6e4; }},
    {"around zero", [](std::int64_t, std::mt19937& r) { return (uniform(r) - 0.5) * 1e-3; }},
};

/// The teacher's share of mass in the largest half of row 0: no sum in float can tell on which side
/// of the threshold the cut's class lies.
double share_of_half(const Case& c) {
  std::vector<double> u(c.teacher.begin(), c.teacher.begin() + c.p.classes);
  std::sort(u.rbegin(), u.rend());
  double sum = 0, half = 0;
  for (std::size_t j = 0; j < u.size(); ++j) {
    sum += std::exp((u[j] - u[0]) / c.p.weights.temperature);
    if (j < u.size() / 2) half = sum;
  }
  return std::min(half / sum, 0.999);
}

class Selection : public testing::TestWithParam<Dtype> {};

// 2,100 classes: several slices of a cluster, and a list that
// ties overflow. Two rows: what one leaves behind must not reach the other.
TEST_P(Selection, EqualsSorting) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no CUDA device";
  std::int64_t rows = 0;
  for (const Shape& shape : kShapes) {
    Case c(2, 2100, GetParam(), GetParam());
    std::mt19937 random(11);
    for (std::int64_t k = 0; k < 2 * 2100; ++k) {
      c.teacher[static_cast<std::size_t>(k)] = shape.logit(k % 2100, random);
      c.student[static_cast<std::size_t>(k)] = shape.logit(k % 2100, random);
    }
    struct Setting {
      double threshold;
      std::int64_t size;
      bool by_student;
    };
    for (const Setting& s : {Setting{0.93, -1, false}, Setting{0.5, -1, true},
                             Setting{0.93, 1200, false}, Setting{share_of_half(c), -1, false}}) {
      c.p.selection.threshold = s.threshold;
      c.p.selection.group_size = s.size;
      c.p.selection.by_student = s.by_student;
      std::vector<Way> ways;  // each kernel once
      for (const Way& way : ways_of(c.p)) {
        if (ways.empty() || std::string(ways.back().name) != way.name) ways.push_back(way);
      }
      const Outcome sorted = run_group(c, ways[0]);
      for (std::size_t k = 1; k < ways.size(); ++k) {
        const Outcome selected = run_group(c, ways[k]);
        SCOPED_TRACE(testing::Message() << shape.name << " " << ways[k].name << " threshold "
                                        << s.threshold << " size " << s.size);
        EXPECT_EQ(selected.columns[2], sorted.columns[2]);
        EXPECT_EQ(selected.size, sorted.size);
        EXPECT_EQ(selected.mask, sorted.mask);
        rows += 2;
      }
    }
  }
  std::printf("%lld rows, every cut equal\n", static_cast<long long>(rows));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Selection,
                         testing::Values(Dtype::kHalf, Dtype::kBFloat16, Dtype::kFloat,
                                         Dtype::kDouble));

}  // namespace
}  // namespace gkd::cuda::test
