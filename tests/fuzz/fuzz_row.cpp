// The row kernels without torch: any row, any strides, any settings that the checks let through.
#include <algorithm>
#include <vector>

#include "cpu/kernels.h"
#include "row_input.h"

namespace {

using gkd::Dtype;
using gkd::cpu::Kernels;
using gkd::cpu::RowResult;
using gkd::cpu::RowTask;
using namespace gkd::fuzz;

Elements contiguous(const Elements& row, std::int64_t count) {
  Elements copy(row.dtype, 1, count);
  for (std::int64_t j = 0; j < count; ++j) {
    std::memcpy(copy.at(j), row.at(j), element_size(row.dtype));
  }
  return copy;
}

RowResult run(const Kernels& kernels, const RowTask& task, gkd::cpu::Scratch* scratch) {
  const bool in_double =
      task.student.dtype == Dtype::kDouble || task.teacher.dtype == Dtype::kDouble;
  return kernels.of(in_double).row(
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

/// The group is the smallest that the settings allow.
void check_group(const RowTask& task, const Elements& rank, const RowResult& r) {
  std::int64_t above = 0, from_cut = 0, members = 0;
  for (std::int64_t j = 0; j < task.classes; ++j) {
    const double x = rank.get(j);
    above += x > r.cut;
    from_cut += x >= r.cut;
    members += x >= r.cut || j == task.target;
  }
  require(r.size == members, "size is the number of classes from the cut up, and the target");
  const std::int64_t target_count = task.selection.group_size;
  if (target_count > 0 && target_count < task.classes) {
    require(from_cut >= target_count && above < target_count,
            "the cut is the group_size-th largest logit");
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
  const bool is_16_bit = gkd::element_size(gradient.dtype) == 2;
  const double step = is_16_bit ? 0x1p-8 * magnitude + 6e-8 * static_cast<double>(task.classes) : 0;
  require(std::abs(sum) <= 2e-5 * bound + step + 1e-30, "a row's gradient sums to 0");
}

/// To look into a finding: GKD_FUZZ_SHOW=1 gkd_row_fuzzer FILE
void show(const RowTask& task, const Elements& student, const Elements& teacher,
          const RowResult& r) {
  const gkd::Weights& w = task.weights;
  std::fprintf(stderr, "C %lld, dtypes %d %d, target %lld, threshold %.17g, group_size %lld\n",
               static_cast<long long>(task.classes), static_cast<int>(student.dtype),
               static_cast<int>(teacher.dtype), static_cast<long long>(task.target),
               task.selection.threshold, static_cast<long long>(task.selection.group_size));
  std::fprintf(stderr, "by student %d, sort %d, T %g, weights %g %g %g, coupled %d, scale %g\n",
               task.selection.by_student, task.selection.sort, w.temperature, w.primary, w.binary,
               w.secondary, w.coupled, task.gradient_scale);
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
  static const auto supported = gkd::cpu::supported_kernels();
  constexpr Dtype kDtypes[] = {Dtype::kFloat, Dtype::kHalf, Dtype::kBFloat16, Dtype::kDouble};
  Bytes bytes(data, size);
  const Kernels& kernels = supported[bytes.byte() % supported.size()];
  const std::int64_t classes = bytes.classes();
  Elements student(bytes.of(kDtypes), bytes.of({1, 1, 2, 7, 0}), classes);
  Elements teacher(bytes.of(kDtypes), bytes.of({1, 1, 2, 7, 0}), classes);
  RowTask task = settings(&bytes, classes);
  const bool invalid = draw(&bytes, classes, &student) | draw(&bytes, classes, &teacher);

  task.student = student.logits_row();
  task.teacher = teacher.logits_row();
  const Elements gradient(student.dtype, 1, classes), other(student.dtype, 1, classes);
  task.gradient = {gradient.data.get(), gradient.dtype};
  static gkd::cpu::Scratch used;  // by the inputs before this one
  const RowResult result = run(kernels, task, &used);

  if (std::getenv("GKD_FUZZ_SHOW")) show(task, student, teacher, result);

  const Elements s = contiguous(student, classes), u = contiguous(teacher, classes);
  RowTask again = task;
  again.student = s.logits_row();
  again.teacher = u.logits_row();
  again.gradient = {other.data.get(), other.dtype};
  gkd::cpu::Scratch scratch;
  require(same(result, run(kernels, again, &scratch)), "strides and memory change no bit");
  require(std::equal(gradient.at(0), gradient.at(classes), other.at(0)),
          "strides and memory change no bit of the gradient");
  again.gradient = {};
  require(same(result, run(kernels, again, &scratch)), "the gradient changes no bit of the loss");

  // Either row's may be what is missing: see docs/numerics.md for what makes a row NaN.
  if (invalid) {
    require(std::isnan(result.loss), "an invalid row's loss is NaN");
    for (std::int64_t j = 0; j < classes; ++j) {
      require(std::isnan(gradient.get(j)), "an invalid row's gradient is NaN");
    }
    return 0;
  }
  check_group(task, task.selection.by_student ? student : teacher, result);
  check_values(task, gradient, result);
  again.selection.sort = !task.selection.sort;
  require(same(result.cut, run(kernels, again, &scratch).cut), "select and sort find one cut");
  return 0;
}
