// The row kernels without torch: any row, any strides, any settings that the checks let through.
#include <algorithm>
#include <vector>

#include "cpu/capability.h"
#include "rows.h"

namespace {

using gkd::Dtype;
using gkd::cpu::Kernels;
using gkd::cpu::RowResult;
using gkd::cpu::RowTask;
using namespace gkd::fuzz;

Elements contiguous(const Elements& from, std::int64_t count) {
  Elements to(from.dtype, 1, count);
  for (std::int64_t j = 0; j < count; ++j) std::memcpy(to.at(j), from.at(j), size_of(from.dtype));
  return to;
}

RowResult run(const Kernels& kernels, const RowTask& task, gkd::cpu::Scratch* scratch) {
  const bool wide = task.student.dtype == Dtype::kDouble || task.teacher.dtype == Dtype::kDouble;
  return (wide ? kernels.wide : kernels.single)(
      task,
      [](std::int64_t n, const std::function<void(std::int64_t)>& body) {
        for (std::int64_t k = n; k-- > 0;) body(k);  // any order serves
      },
      scratch);
}

bool same(double x, double y) { return std::memcmp(&x, &y, sizeof(x)) == 0; }

bool same(const RowResult& x, const RowResult& y) {
  return same(x.loss, y.loss) && same(x.primary, y.primary) && same(x.secondary, y.secondary) &&
         same(x.summary.p, y.summary.p) && same(x.summary.q, y.summary.q) && same(x.cut, y.cut) &&
         x.size == y.size;
}

/// The group that the result tells of is the least that the settings ask for.
void check_group(const RowTask& task, const Elements& rank, const RowResult& r) {
  std::int64_t above = 0, is_met = 0, members = 0;
  for (std::int64_t j = 0; j < task.classes; ++j) {
    const double x = rank.get(j);
    above += x > r.cut;
    is_met += x >= r.cut;
    members += x >= r.cut || j == task.target;
  }
  require(r.size == members, "size is the number of classes from the cut up, and the target");
  const std::int64_t wanted = task.how.group_size;
  if (wanted > 0 && wanted < task.classes) {
    require(is_met >= wanted && above < wanted, "the cut is the group_size-th largest logit");
  }
}

void check_values(const RowTask& task, const Elements& gradient, const RowResult& r) {
  const gkd::Weights& w = task.weights;
  if (w.primary >= 0 && w.binary >= 0 && w.secondary >= 0) {
    require(r.loss >= 0, "no weight is negative, so the loss is not");
  }
  const double p = r.summary.p, q = r.summary.q;
  require(p >= 0 && p <= 1 && q >= 0 && q <= 1, "masses lie in [0, 1]");
  double sum = 0, magnitude = 0;
  for (std::int64_t j = 0; j < task.classes; ++j) {
    sum += gradient.get(j);
    magnitude += std::abs(gradient.get(j));
  }
  // A weight was larger than the dtype, or a student without mass where the teacher has some.
  if (!std::isfinite(magnitude) || !std::isfinite(r.loss)) return;
  const double bound = task.gradient_scale * w.temperature *
                       (std::abs(w.primary) + std::abs(w.binary) + std::abs(w.secondary));
  const bool narrow = size_of(gradient.dtype) == 2;
  const double step = narrow ? 0x1p-8 * magnitude + 6e-8 * static_cast<double>(task.classes) : 0;
  require(std::abs(sum) <= 2e-5 * bound + step + 1e-30, "a row's gradient sums to 0");
}

/// For whoever looks into a finding: GKD_FUZZ_SHOW=1 gkd_row_fuzzer FILE
void show(const RowTask& task, const Elements& student, const Elements& teacher,
          const RowResult& r) {
  const gkd::Weights& w = task.weights;
  std::fprintf(stderr, "C %lld, dtypes %d %d, target %lld, threshold %.17g, group_size %lld\n",
               static_cast<long long>(task.classes), static_cast<int>(student.dtype),
               static_cast<int>(teacher.dtype), static_cast<long long>(task.target),
               task.how.threshold, static_cast<long long>(task.how.group_size));
  std::fprintf(stderr, "by student %d, sort %d, T %g, weights %g %g %g, coupled %d, scale %g\n",
               task.how.by_student, task.how.sort, w.temperature, w.primary, w.binary, w.secondary,
               w.coupled, task.gradient_scale);
  std::fprintf(stderr, "loss %g = %g %g %g, P %.17g, Q %.17g, cut %.17g, size %lld\n", r.loss,
               r.primary, r.summary.binary, r.secondary, r.summary.p, r.summary.q, r.cut,
               static_cast<long long>(r.size));
  for (std::int64_t j = 0; j < std::min<std::int64_t>(task.classes, 40); ++j) {
    const double s = student.get(j), u = teacher.get(j);
    std::fprintf(stderr, "  %g %g\n", s, u);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto all = gkd::cpu::capabilities();
  constexpr Dtype kDtypes[] = {Dtype::kFloat, Dtype::kHalf, Dtype::kBFloat16, Dtype::kDouble};
  Bytes bytes(data, size);
  const Kernels& kernels = all[bytes.byte() % all.size()].kernels;
  const std::int64_t classes = bytes.classes();
  Elements student(bytes.of(kDtypes), bytes.of({1, 1, 2, 7, 0}), classes);
  Elements teacher(bytes.of(kDtypes), bytes.of({1, 1, 2, 7, 0}), classes);
  RowTask task = settings(&bytes, classes);
  const bool bad = draw(&bytes, classes, &student) | draw(&bytes, classes, &teacher);

  task.student = student.source();
  task.teacher = teacher.source();
  const Elements gradient(student.dtype, 1, classes), other(student.dtype, 1, classes);
  task.gradient = {gradient.data.get(), gradient.dtype};
  static gkd::cpu::Scratch used;  // by the inputs before this one
  const RowResult result = run(kernels, task, &used);

  if (std::getenv("GKD_FUZZ_SHOW")) show(task, student, teacher, result);

  const Elements s = contiguous(student, classes), u = contiguous(teacher, classes);
  RowTask again = task;
  again.student = s.source();
  again.teacher = u.source();
  again.gradient = {other.data.get(), other.dtype};
  gkd::cpu::Scratch scratch;
  require(same(result, run(kernels, again, &scratch)), "strides and memory change no bit");
  require(std::equal(gradient.at(0), gradient.at(classes), other.at(0)),
          "strides and memory change no bit of the gradient");
  again.gradient = {};
  require(same(result, run(kernels, again, &scratch)), "the gradient changes no bit of the loss");

  // Either row's may be what is missing: see docs/numerics.md for what makes a row NaN.
  if (bad) {
    require(std::isnan(result.loss), "a bad row's loss is NaN");
    for (std::int64_t j = 0; j < classes; ++j) {
      require(std::isnan(gradient.get(j)), "a bad row's gradient is NaN");
    }
    return 0;
  }
  check_group(task, task.how.by_student ? student : teacher, result);
  check_values(task, gradient, result);
  again.how.sort = !task.how.sort;
  require(same(result.cut, run(kernels, again, &scratch).cut), "select and sort find one cut");
  return 0;
}
