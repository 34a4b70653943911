// The row kernels without torch: any row, any strides, any settings that the checks let through.
#include <algorithm>
#include <memory>
#include <vector>

#include "bytes.h"
#include "cpu/isa.h"
#include "cpu/row.h"

namespace {

using gkd::Dtype;
using gkd::cpu::Kernels;
using gkd::cpu::RowResult;
using gkd::cpu::RowTask;
using gkd::fuzz::Bytes;
using gkd::fuzz::require;

std::vector<Kernels> sets() {
  std::vector<Kernels> found = {gkd::cpu::DEFAULT::kernels()};
#if defined(__x86_64__)
  if (gkd::cpu::has_avx2()) found.push_back(gkd::cpu::AVX2::kernels());
  if (gkd::cpu::has_avx512()) found.push_back(gkd::cpu::AVX512::kernels());
#endif
  return found;
}

std::size_t size_of(Dtype dtype) {
  return dtype == Dtype::kDouble ? 8 : dtype == Dtype::kFloat ? 4 : 2;
}

/// Elements `stride` apart, in memory that ends with the last of them.
struct Elements {
  Dtype dtype;
  std::int64_t stride;
  std::unique_ptr<char[]> data;

  Elements(Dtype dtype, std::int64_t stride, std::int64_t count)
      : dtype(dtype), stride(stride), data(new char[size_of(dtype) * (stride * (count - 1) + 1)]) {
    std::fill_n(data.get(), size_of(dtype) * (stride * (count - 1) + 1), '\x7f');
  }
  char* at(std::int64_t j) const { return data.get() + size_of(dtype) * stride * j; }
  gkd::cpu::Source source() const { return {data.get(), stride, dtype}; }

  void set(std::int64_t j, double x) {
    if (dtype == Dtype::kDouble) {
      std::memcpy(at(j), &x, 8);
    } else {
      // Any number cut to 16 bits is as good as any other here: nothing is compared with it.
      const float narrow = std::abs(x) <= std::numeric_limits<float>::max() || !std::isfinite(x)
                               ? static_cast<float>(x)
                               : std::copysign(std::numeric_limits<float>::max(), x);
      std::uint32_t bits;
      std::memcpy(&bits, &narrow, 4);
      if (dtype == Dtype::kFloat) {
        std::memcpy(at(j), &bits, 4);
      } else {
        const std::uint16_t high = static_cast<std::uint16_t>(bits >> 16);
        std::memcpy(at(j), &high, 2);
      }
    }
  }
  double get(std::int64_t j) const {
    if (dtype == Dtype::kDouble) {
      double x;
      std::memcpy(&x, at(j), 8);
      return x;
    }
    if (dtype == Dtype::kFloat) {
      float x;
      std::memcpy(&x, at(j), 4);
      return x;
    }
    std::uint16_t bits;
    std::memcpy(&bits, at(j), 2);
    if (dtype == Dtype::kBFloat16) {
      const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
      float x;
      std::memcpy(&x, &wide, 4);
      return x;
    }
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double sign = bits & 0x8000 ? -1 : 1;
    if (exponent == 31) return sign * (fraction ? std::nan("") : HUGE_VAL);
    return sign * std::ldexp(exponent ? 1024 + fraction : fraction, std::max(exponent, 1) - 25);
  }
};

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

RowTask settings(Bytes* bytes, std::int64_t classes) {
  RowTask task;
  task.classes = classes;
  task.target = bytes->flag() ? bytes->pick(classes) : -1;
  task.gradient_scale = bytes->of({1.0, 0.25, 1.0 / 3, 1024.0});
  task.how.threshold = bytes->of({0.93, 1.0, 0.5, 1e-300, 1 - 0x1p-53, 0.999});
  task.how.group_size = bytes->flag() ? -1 : bytes->pick(classes + 2);
  task.how.by_student = bytes->flag();
  task.how.sort = bytes->byte() % 8 == 0;
  task.weights.temperature = bytes->of({4.0, 1.0, 0.1, 1e-6, 1e6, 2.7});
  task.weights.primary = bytes->of({8.0, 0.0, -1.0, 1e30});
  task.weights.binary = bytes->of({1.0, 0.0, -3.0, 1e30});
  task.weights.secondary = bytes->of({0.0, 1.0, -2.0, 1e-30});
  task.weights.coupled = bytes->flag();
  return task;
}

/// The group that the result tells of is the least that the settings ask for.
void check_group(const RowTask& task, const Elements& rank, const RowResult& r) {
  std::int64_t above = 0, reached = 0, members = 0;
  for (std::int64_t j = 0; j < task.classes; ++j) {
    const double x = rank.get(j);
    above += x > r.cut;
    reached += x >= r.cut;
    members += x >= r.cut || j == task.target;
  }
  require(r.size == members, "size is the number of classes from the cut up, and the target");
  const std::int64_t wanted = task.how.group_size;
  if (wanted > 0 && wanted < task.classes) {
    require(reached >= wanted && above < wanted, "the cut is the group_size-th largest logit");
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
  static const std::vector<Kernels> all = sets();
  constexpr Dtype kDtypes[] = {Dtype::kFloat, Dtype::kHalf, Dtype::kBFloat16, Dtype::kDouble};
  Bytes bytes(data, size);
  const Kernels& kernels = all[bytes.byte() % all.size()];
  const std::int64_t classes = bytes.classes();
  Elements student(bytes.of(kDtypes), bytes.of({1, 1, 2, 7, 0}), classes);
  Elements teacher(bytes.of(kDtypes), bytes.of({1, 1, 2, 7, 0}), classes);
  RowTask task = settings(&bytes, classes);
  bool bad = false;
  for (Elements* row : {&student, &teacher}) {
    gkd::fuzz::Logits logits(&bytes);
    for (std::int64_t j = 0; j < classes; ++j) row->set(j, logits.next());
    double high = -HUGE_VAL;
    for (std::int64_t j = 0; j < classes; ++j) {
      const double x = row->get(j);
      bad |= !(x < HUGE_VAL);
      high = std::max(high, x);
    }
    bad |= !std::isfinite(high);
  }

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
