// A row whose teacher is known in its group alone: any group, any settings. Then the same row cut
// into shards, whose messages are merged here by hand.
#include <algorithm>
#include <vector>

#include "cpu/kernels.h"
#include "row_input.h"

namespace {

using gkd::Dtype;
using gkd::GroupMoments;
using gkd::cpu::Kernels;
using gkd::cpu::RowResult;
using gkd::cpu::SparseKernels;
using gkd::cpu::SparseTask;
using namespace gkd::fuzz;

constexpr double kInf = std::numeric_limits<double>::infinity();

void run_backwards(std::int64_t n, const std::function<void(std::int64_t)>& body) {
  for (std::int64_t k = n; k-- > 0;) body(k);  // any order serves
}

/// Classes in memory of their own, which ends with the last of them.
struct Indices {
  std::unique_ptr<std::int32_t[]> data;
  std::int64_t size;

  explicit Indices(const std::vector<std::int32_t>& from)
      : data(new std::int32_t[from.size()]), size(static_cast<std::int64_t>(from.size())) {
    std::copy(from.begin(), from.end(), data.get());
  }
};

/// Any classes, in runs; the target is among them.
std::vector<std::int32_t> choose(Bytes* bytes, std::int64_t classes, std::int64_t target) {
  const int share = bytes->of({0, 2, 40, 255, 256});  // of 256
  std::vector<std::int32_t> chosen;
  for (std::int64_t j = 0; j < classes; ++j) {
    if (bytes->byte() < share || j == target) chosen.push_back(static_cast<std::int32_t>(j));
  }
  return chosen;
}

double draw_rest(Bytes* bytes, bool is_empty) {
  if (is_empty) return -kInf;
  if (bytes->byte() < 4) return bytes->of({std::nan(""), kInf});
  return bytes->flag() ? -kInf : bytes->bits<std::int16_t>() / 1024.0;
}

bool same(double x, double y) { return std::memcmp(&x, &y, sizeof(x)) == 0; }
bool same(const RowResult& x, const RowResult& y) {
  return same(x.loss, y.loss) && same(x.primary, y.primary) &&
         same(x.cross_entropy, y.cross_entropy) && same(x.distillation, y.distillation) &&
         same(x.summary.p, y.summary.p) && same(x.summary.q, y.summary.q) && x.size == y.size;
}

/// A row's classes `begin` to `end` - 1, and the group's among them.
struct Part {
  SparseTask task;
  Indices indices;

  static std::vector<std::int32_t> within(const SparseTask& row, std::int64_t begin,
                                          std::int64_t end) {
    std::vector<std::int32_t> found;
    for (std::int64_t k = 0; k < row.size; ++k) {
      const std::int32_t j = row.indices[k];
      if (j >= begin && j < end) found.push_back(static_cast<std::int32_t>(j - begin));
    }
    return found;
  }

  Part(const SparseTask& row, const Elements& student, const Elements& logits, std::int64_t begin,
       std::int64_t end)
      : task(row), indices(within(row, begin, end)) {
    const std::int32_t* last = row.indices + row.size;
    const std::int64_t first = std::lower_bound(row.indices, last, begin) - row.indices;
    task.row.student.data = student.at(begin);
    task.row.teacher.data = logits.at(first);
    task.row.gradient.data =
        static_cast<char*>(row.row.gradient.data) + begin * element_size(row.row.gradient.dtype);
    task.row.classes = end - begin;
    task.row.target = row.row.target >= begin ? row.row.target - begin : -1;
    task.indices = indices.data.get();
    task.size = indices.size;
  }
};

/// `count` shards of any sizes, 0 among them.
std::vector<Part> split(Bytes* bytes, const SparseTask& row, const Elements& student,
                        const Elements& logits, int count) {
  std::vector<std::int64_t> ends = {0, row.row.classes};
  for (int k = 1; k < count; ++k) ends.push_back(bytes->pick(row.row.classes + 1));
  std::sort(ends.begin(), ends.end());
  std::vector<Part> parts;
  for (int k = 0; k < count; ++k) {
    parts.emplace_back(row, student, logits, ends[k], ends[k + 1]);
  }
  return parts;
}

/// What the ranks would all compute.
struct Whole {
  gkd::MergedRow row;
  double rest_high = -kInf;
};

Whole merge(const SparseKernels& kernels, const std::vector<Part>& parts, const SparseTask& task) {
  const gkd::Weights& weights = task.row.weights;
  const int width = weights.cross_entropy != 0 ? gkd::kMsgWithHead : gkd::kMsgMoments;
  std::vector<double> messages((parts.size() + 1) * width);
  gkd::cpu::Scratch scratch;
  Whole whole;
  for (std::size_t rank = 0; rank < parts.size(); ++rank) {
    double* message = messages.data() + rank * width;
    kernels.moments(parts[rank].task, run_backwards, &scratch, message);
    whole.rest_high =
        std::max(whole.rest_high, gkd::moments_from_message(message, 1).shift.student);
  }
  // The teacher's other classes, as one that the student gives no mass.
  GroupMoments<double> rest;
  rest.count = task.rest > -kInf;
  rest.sum_teacher = static_cast<double>(rest.count);
  rest.sum_diff = -rest.sum_teacher;
  if (rest.count > 0) rest.shift.teacher = task.rest * weights.exponent_temperature();
  double* message = messages.data() + parts.size() * width;
  gkd::moments_to_message({}, 0, message);
  gkd::moments_to_message(rest, 1, message);
  if (weights.cross_entropy != 0) message[gkd::kMsgOthers] = message[gkd::kMsgTarget] = -kInf;
  whole.row = gkd::merge_messages(messages.data(), parts.size() + 1, width, weights);
  whole.row.group[1].change_shift({whole.row.group[1].shift.teacher, whole.rest_high},
                                  1 / weights.exponent_temperature());
  return whole;
}

void check_shards(Bytes* bytes, const SparseKernels& kernels, const SparseTask& task,
                  const Elements& student, const Elements& logits, const Elements& gradient,
                  const RowResult& expected, bool invalid) {
  const gkd::Weights& w = task.row.weights;
  const Elements sharded(gradient.dtype, 1, task.row.classes);
  SparseTask own = task;
  own.row.gradient.data = sharded.data.get();
  const auto parts = split(bytes, own, student, logits, 1 + bytes->byte() % 4);
  const Whole whole = merge(kernels, parts, task);
  require(whole.row.invalid == invalid, "the messages show that a row is invalid");
  if (invalid) return;
  require(whole.row.group[0].count == expected.size, "the shards' groups make up the whole row's");
  double kl = 0;
  gkd::cpu::Scratch scratch;
  for (const Part& part : parts) {
    kl += kernels.write_gradient(part.task, run_backwards, &scratch, whole.row.group,
                                 {whole.row.cross_entropy, whole.row.others.high});
  }
  gkd::GroupCoef<double> unused[2];
  const gkd::RowSummary summary = gkd::row_coefficients(whole.row.group, w, unused);
  const double distillation = gkd::row_loss(summary, w, kl, 0);
  if (!std::isfinite(expected.loss)) return;
  double most = 0;
  for (std::int64_t j = 0; j < task.row.classes; ++j) {
    most = std::max(most, std::abs(student.get(j)));
  }
  for (std::int64_t k = 0; k < task.size; ++k) most = std::max(most, std::abs(logits.get(k)));
  // Where a float's rounding of the logits themselves is small beside what is computed from them.
  if (!(most * w.scale <= 30 * w.temperature)) return;
  const bool in_double = student.dtype == Dtype::kDouble || logits.dtype == Dtype::kDouble;
  const double t = w.temperature, scale = in_double ? 1e-11 : 2e-5;
  const double terms = std::abs(w.binary * expected.summary.binary) +
                       std::abs(expected.summary.kl_weight[0] * expected.primary);
  const double weights = std::abs(w.primary) + std::abs(w.binary);
  require(std::abs(distillation - expected.distillation) <=
              scale * t * t * terms + scale * scale * t * t * weights,
          "the shards' distillation is the whole row's");
  if (w.cross_entropy != 0) {
    const double loss = whole.row.cross_entropy.loss;
    require(std::abs(loss - expected.cross_entropy) <= scale * (1 + expected.cross_entropy),
            "the shards' cross-entropy is the whole row's");
  }
  double error = 0, largest = 0;
  for (std::int64_t j = 0; j < task.row.classes; ++j) {
    error = std::max(error, std::abs(gradient.get(j) - sharded.get(j)));
    largest = std::max(largest, std::abs(gradient.get(j)));
  }
  const double rounding = element_size(student.dtype) == 2 ? 0x1p-7 * largest + 1.2e-7 : 0;
  const double slope = task.row.gradient_scale * w.scale *
                       (std::abs(w.distillation) * t * weights + std::abs(w.cross_entropy));
  if (std::isfinite(largest)) {
    require(error <= scale * largest + rounding + scale * slope,
            "the shards' gradient is the whole row's");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto supported = gkd::cpu::supported_kernels();
  constexpr Dtype kDtypes[] = {Dtype::kFloat, Dtype::kHalf, Dtype::kBFloat16, Dtype::kDouble};
  Bytes bytes(data, size);
  const Kernels& set = supported[bytes.byte() % supported.size()];
  const std::int64_t classes = bytes.classes();
  Elements student(bytes.of(kDtypes), bytes.of({1, 1, 2, 7, 0}), classes);
  const Dtype kept = bytes.of(kDtypes);
  SparseTask task;
  task.row = settings(&bytes, classes);
  task.row.weights.secondary = 0;
  if (task.row.target >= 0) {
    task.row.weights.cross_entropy = bytes.of({0.0, 1.0, -2.0});
    task.row.margin = bytes.of({0.0, 0.4, -1.0});
  }
  task.row.weights.scale = bytes.of({1.0, 64.0, 0.5});
  task.row.weights.distillation = bytes.of({1.0, 0.0, 0.25});
  const Indices indices(choose(&bytes, classes, task.row.target));
  Elements logits(kept, 1, std::max<std::int64_t>(indices.size, 1));
  task.indices = indices.data.get();
  task.size = indices.size;
  task.rest = draw_rest(&bytes, indices.size == classes);

  const bool in_double = student.dtype == Dtype::kDouble || kept == Dtype::kDouble;
  bool invalid = draw(&bytes, classes, &student) | !(task.rest < kInf);
  Logits drawn(&bytes);
  double high = task.rest;
  for (std::int64_t k = 0; k < task.size; ++k) {
    logits.set(k, drawn.next());
    // As the kernel divides it: a float's quotient may overflow.
    const double x = logits.get(k) / task.row.weights.scale;
    const double u = in_double ? x : static_cast<float>(x);
    invalid |= !(u < kInf);
    high = std::max(high, u);
  }
  invalid |= !(high > -kInf);

  const Elements gradient(student.dtype, 1, classes), other(student.dtype, 1, classes);
  task.row.student = student.logits_row();
  task.row.teacher = logits.logits_row();
  task.row.gradient = {gradient.data.get(), gradient.dtype};
  const SparseKernels& kernels = set.of(in_double).sparse;
  static gkd::cpu::Scratch used;  // by the inputs before this one
  const RowResult result = kernels.row(task, run_backwards, &used);

  Elements close(student.dtype, 1, classes);
  for (std::int64_t j = 0; j < classes; ++j) {
    std::memcpy(close.at(j), student.at(j), element_size(student.dtype));
  }
  SparseTask again = task;
  again.row.student = close.logits_row();
  again.row.gradient = {other.data.get(), other.dtype};
  gkd::cpu::Scratch scratch;
  require(same(result, kernels.row(again, run_backwards, &scratch)),
          "strides and memory change no bit");
  require(std::equal(gradient.at(0), gradient.at(classes), other.at(0)),
          "strides and memory change no bit of the gradient");
  again.row.gradient = {};
  require(same(result, kernels.row(again, run_backwards, &scratch)),
          "the gradient changes no bit of the loss");

  if (invalid) {
    require(std::isnan(result.loss), "an invalid row's loss is NaN");
    for (std::int64_t j = 0; j < classes; ++j) {
      require(std::isnan(gradient.get(j)), "an invalid row's gradient is NaN");
    }
  } else {
    require(result.size == task.size, "size is that of the group");
    const double p = result.summary.p, q = result.summary.q;
    require(p >= 0 && p <= 1 && q >= 0 && q <= 1, "masses lie in [0, 1]");
  }
  if (student.stride > 0) {  // split() starts in the middle of the row
    check_shards(&bytes, kernels, task, student, logits, gradient, result, invalid);
  }
  return 0;
}
