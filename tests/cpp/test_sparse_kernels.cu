// The kernels of sparse_loss, in every way that a call can take, against the formulas in long
// double of the whole teacher.
#include "sparse_case.h"

namespace gkd::cuda::test {
namespace {

class SparseKernels : public DeviceTest {};

void check_sparse(const SparseCase& given, const char* what) {
  for (const Way& way : sparse_ways(given.c.p)) {
    SparseCase s = given;
    const Case& c = s.c;
    SCOPED_TRACE(testing::Message()
                 << way.name << ": " << what << " rows " << c.p.rows << " classes " << c.p.classes);
    const Outcome actual = run_sparse(s, way);
    const Outcome right = expect(c, actual);
    const double scale = std::max(largest(right.loss), 1e-30);
    for (std::size_t i = 0; i < right.loss.size(); ++i) {
      EXPECT_NEAR(actual.loss[i], right.loss[i], bound(c.p) * scale) << "loss of row " << i;
    }
    const double high = std::max(largest(right.gradient), 1e-30);
    const auto classes = static_cast<std::size_t>(c.p.classes);
    for (std::size_t k = 0; k < right.gradient.size(); ++k) {
      ASSERT_NEAR(actual.gradient[k], right.gradient[k], (bound(c.p) + rounding(c.p)) * high)
          << "row " << k / classes << " class " << k % classes;
    }
  }
}

TEST_F(SparseKernels, EveryRegimeIsReached) {
  std::vector<std::string> names;
  for (const Way& way : sparse_ways(Case(3, 6150).p)) names.push_back(way.name);
  for (const char* name : {"split", "block", "cluster", "grid"}) {
    EXPECT_NE(std::find(names.begin(), names.end(), name), names.end()) << name;
  }
}

// 1, 2: degenerate groups; 33: over a warp; 2047, 2049: around a tile; 6150: several parts.
TEST_F(SparseKernels, GroupsOfEveryKind) {
  for (std::int64_t classes : {1, 2, 33, 2047, 2049, 6150}) {
    check_sparse(SparseCase(Case(6, classes)), "float");
  }
}

TEST_F(SparseKernels, EveryPairOfDtypes) {
  const Dtype all[] = {Dtype::kHalf, Dtype::kBFloat16, Dtype::kFloat, Dtype::kDouble};
  for (Dtype s : all) {
    for (Dtype t : all) check_sparse(SparseCase(Case(6, 301, s, t)), "dtypes");
  }
}

// A sure row, whose target is the largest by far; and masked classes.
TEST_F(SparseKernels, CrossEntropyAndMargins) {
  for (Dtype d : {Dtype::kHalf, Dtype::kBFloat16, Dtype::kFloat, Dtype::kDouble}) {
    for (double temperature : {1.0, 4.0}) {
      if (temperature == 1 && d != Dtype::kFloat) continue;
      Case c(6, 615, d, d);
      c.target = {614, 0, 307, 5, 300, 1};
      c.student[614] += 60;
      for (std::size_t j = 2 * 615; j < 2 * 615 + 40; ++j) {
        c.student[j] = c.teacher[j] = -kInfinity;
      }
      c.p.weights.scale = 1.5;
      c.p.weights.temperature = temperature;
      c.p.weights.distillation = 0.5;
      c.p.weights.cross_entropy = 2;
      c.p.head.is_on = true;
      c.p.head.margin = 0.75;
      check_sparse(SparseCase(c), "cross-entropy");
    }
  }
}

TEST_F(SparseKernels, CoupledTermsTiesAndSpread) {
  Case coupled(6, 2500);
  coupled.p.weights.coupled = true;
  coupled.p.weights.primary = 1;
  coupled.p.weights.temperature = 1;
  check_sparse(SparseCase(coupled), "coupled");
  Case tied(6, 2500);
  for (double& u : tied.teacher) u = std::round(u / 4) * 4;
  check_sparse(SparseCase(tied), "tied");
  Case wide(6, 2500);  // a group far above or far under the rest
  for (std::size_t k = 0; k < wide.student.size(); ++k) {
    if (wide.teacher[k] >= 9) wide.student[k] += k / 2500 % 2 == 0 ? 300 : -300;
  }
  check_sparse(SparseCase(wide), "spread");
}

TEST_F(SparseKernels, RowsOfAnyAlignmentAndStride) {
  for (Dtype d : {Dtype::kHalf, Dtype::kFloat}) {
    for (std::int64_t offset : {1, 2, 3, 4}) {
      Case c(6, 2055, d, d);
      c.offset = offset;
      check_sparse(SparseCase(c), "unaligned");
    }
    Case strided(6, 2055, d, d);
    strided.p.student.col_stride = 3;
    strided.p.student.row_stride = 3 * 2055 + 2;
    check_sparse(SparseCase(strided), "strided");
    Case broadcast(1, 300, d, d);
    broadcast.p.student.row_stride = 0;
    check_sparse(SparseCase(broadcast), "broadcast");
  }
}

// More rows than groups of blocks: shared memory is used again.
TEST_F(SparseKernels, ManyRowsTheSameBitsEachTime) {
  Case c(67, 1001);
  check_sparse(SparseCase(c), "many rows");
  for (const Way& way : sparse_ways(c.p)) {
    SparseCase s(c);
    const Outcome first = run_sparse(s, way), second = run_sparse(s, way);
    EXPECT_EQ(first.loss, second.loss) << way.name;
    EXPECT_EQ(first.gradient, second.gradient) << way.name;
  }
}

/// A bad row is NaN, and the others as they are without it.
class Bad {
 public:
  Bad() : c_(6, 2100) {
    c_.target = {7, 8, 9, 10, 11, 12};
    for (const Way& way : sparse_ways(c_.p)) {
      SparseCase good(c_);
      ways_.push_back(way);
      wanted_.push_back(run_sparse(good, way));
    }
  }
  template <class Spoil>
  void check(const char* what, std::size_t bad, Spoil spoil, bool neighbours = true) const {
    for (std::size_t w = 0; w < ways_.size(); ++w) {
      SCOPED_TRACE(testing::Message() << ways_[w].name << ": " << what);
      SparseCase spoilt(c_);
      spoil(spoilt);
      const Outcome o = run_sparse(spoilt, ways_[w]);
      for (std::size_t k = 0; k < o.gradient.size(); ++k) {
        if (k / 2100 == bad) {
          ASSERT_TRUE(std::isnan(o.gradient[k]) && std::isnan(o.loss[bad]));
        } else if (neighbours) {
          ASSERT_EQ(o.loss[k / 2100], wanted_[w].loss[k / 2100]);
          ASSERT_EQ(o.gradient[k], wanted_[w].gradient[k]) << k;
        }
      }
    }
  }

 private:
  Case c_;
  std::vector<Way> ways_;
  std::vector<Outcome> wanted_;
};

TEST_F(SparseKernels, BadRowsAreNaNAndReadNothingOutside) {
  const Bad rows;
  const auto first_of = [](SparseCase& s, std::size_t row) -> std::int32_t& {
    return s.indices[static_cast<std::size_t>(s.indptr[row])];
  };
  rows.check("below 0", 3, [&](SparseCase& s) { first_of(s, 3) = -1; });
  rows.check("far below 0", 3, [&](SparseCase& s) { first_of(s, 3) = -2147483647; });
  rows.check("past the last class", 3,
             [&](SparseCase& s) { s.indices[static_cast<std::size_t>(s.indptr[4]) - 1] = 2100; });
  rows.check("far past it", 5, [&](SparseCase& s) { s.indices.back() = 2147483647; });
  rows.check("twice", 3, [&](SparseCase& s) { (&first_of(s, 3))[1] = 0; });
  rows.check("descending", 3,
             [&](SparseCase& s) { std::swap(first_of(s, 3), (&first_of(s, 3))[1]); });
  rows.check("leads beyond", 5, [&](SparseCase& s) { s.indptr[6] += 1; });
  rows.check("leads far beyond", 5, [&](SparseCase& s) { s.indptr[6] = std::int64_t(1) << 60; });
  rows.check("below the first", 0, [&](SparseCase& s) { s.indptr[0] = -(std::int64_t(1) << 60); });
  rows.check("not at the first", 0, [&](SparseCase& s) { s.indptr[0] = 1; });
  rows.check("not at the last", 5, [&](SparseCase& s) { s.indptr[6] -= 1; });
  rows.check(
      "descends", 1,
      [&](SparseCase& s) {
        s.indptr[2] = 0;
        s.indptr[1] = 5;
      },
      false);
  rows.check("target outside", 4, [&](SparseCase& s) { s.c.target[4] = 13; });
  rows.check("no target", 4, [&](SparseCase& s) { s.c.target[4] = 2100; });
  rows.check("rest NaN", 0, [&](SparseCase& s) { s.rest[0] = kNaN; });
  rows.check("rest +inf", 0, [&](SparseCase& s) { s.rest[0] = kInfinity; });
  rows.check("a rest of nothing", 2, [&](SparseCase& s) { s.rest[2] = 1; });
  for (double x : {kNaN, -kNaN, kInfinity}) {
    rows.check("student", 3, [&](SparseCase& s) { s.c.student[3 * 2100 + 2099] = x; });
    rows.check("student in its group", 3, [&](SparseCase& s) { s.c.student[3 * 2100 + 10] = x; });
    rows.check("teacher", 3, [&](SparseCase& s) { s.c.teacher[3 * 2100 + 10] = x; });
  }
  rows.check("no student", 3,
             [&](SparseCase& s) { std::fill_n(s.c.student.begin() + 3 * 2100, 2100, -kInfinity); });
}

TEST_F(SparseKernels, IgnoredRowsAreZeroWhateverTheyHold) {
  Case c(6, 2100);
  c.target = {7, 8, 9, 10, 11, 12};
  for (const Way& way : sparse_ways(c.p)) {
    SparseCase s(c);
    s.c.target[3] = -100;
    s.c.student[3 * 2100] = kNaN;
    s.indices[static_cast<std::size_t>(s.indptr[3])] = -1;
    const Outcome o = run_sparse(s, way);
    EXPECT_EQ(o.loss[3], 0) << way.name;
    for (std::size_t j = 3 * 2100; j < 4 * 2100; ++j) ASSERT_EQ(o.gradient[j], 0);
    EXPECT_FALSE(std::isnan(o.loss[2]));
  }
}

TEST_F(SparseKernels, ARefusedLaunchTakesSeveralKernels) {
  // More blocks than the emulated device holds. A real one with 100 multiprocessors runs the grid.
  const Device device{100, 8 << 10, 0, true};
  SparseCase s(Case(1, 40000));
  ASSERT_EQ(plan_sparse(s.c.p, device).strategy, LaunchStrategy::kGrid);
  ASSERT_GT(plan_sparse(s.c.p, device).blocks_per_row, 64);
  const Outcome o = run_sparse(s, {"refused", false, device});
  EXPECT_NEAR(o.loss[0], expect(s.c, o).loss[0], 2e-6 * std::fabs(o.loss[0]));
}

}  // namespace
}  // namespace gkd::cuda::test
