// A call of the kernels, in every way that they can take, against what it must give.
#pragma once

#include <string>

#include "device_test.h"
#include "kernel_case.h"

namespace gkd::cuda::test {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

class Kernels : public DeviceTest {};

inline double bound(const Problem& p) { return p.compute_in_double() ? 1e-12 : 2e-6; }

/// Half an ulp of the gradient's dtype where it is narrower than the arithmetic, relative to the
/// largest entry.
inline double rounding(const Problem& p) {
  switch (p.student.dtype) {
    case Dtype::kHalf:
      return 0.51 / 1024;
    case Dtype::kBFloat16:
      return 0.51 / 128;
    case Dtype::kFloat:
      return p.compute_in_double() ? 0.51 / (1 << 23) : 0;
    default:
      return 0;
  }
}

inline double largest(const std::vector<double>& v) {
  double high = 0;
  for (double x : v) high = std::max(high, std::fabs(x));
  return high;
}

inline void check_with(const Way& way, Case c, const char* what) {
  SCOPED_TRACE(testing::Message() << way.name << ": " << what << " rows " << c.p.rows << " classes "
                                  << c.p.classes);
  c.p.reduction = Reduction::kNone;
  const Outcome actual = run(c, way);
  const Outcome right = expect(c, actual);
  const double scale = std::max(largest(right.loss), 1e-30);
  for (std::size_t i = 0; i < right.loss.size(); ++i) {
    EXPECT_NEAR(actual.loss[i], right.loss[i], bound(c.p) * scale) << "loss of row " << i;
    EXPECT_EQ(actual.columns[2][i], right.columns[2][i]) << "cut of row " << i;
    EXPECT_EQ(actual.size[i], right.size[i]) << "size of row " << i;
    for (int k : {0, 1, 3, 4, 5}) {
      EXPECT_NEAR(actual.columns[k][i], right.columns[k][i],
                  bound(c.p) * std::max(1.0, largest(right.columns[k])))
          << "column " << k << " of row " << i;
    }
    for (std::int64_t j = 0; j < c.p.classes; ++j) {
      const std::size_t k = i * static_cast<std::size_t>(c.p.classes) + static_cast<std::size_t>(j);
      const double rank = (c.p.selection.by_student ? c.student : c.teacher)[k];
      const bool inside = rank >= right.columns[2][i] || (!c.target.empty() && c.target[i] == j);
      ASSERT_EQ(actual.mask[k] != 0, inside) << "class " << j << " of row " << i;
    }
  }
  const double high = std::max(largest(right.gradient), 1e-30);
  for (std::size_t k = 0; k < right.gradient.size(); ++k) {
    EXPECT_NEAR(actual.gradient[k], right.gradient[k], (bound(c.p) + rounding(c.p)) * high)
        << "gradient " << k;
  }
}

inline void check(const Case& c, const char* what) {
  for (const Way& way : ways_of(c.p)) check_with(way, c, what);
}

}  // namespace gkd::cuda::test
