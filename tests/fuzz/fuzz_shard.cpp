// A row cut into shards, through every stage of ShardKernels, compared with the same row unsharded.
// The messages of the ranks are reduced here by hand.
#include <vector>

#include "cpu/kernels.h"
#include "row_input.h"

namespace {

using gkd::Dtype;
using gkd::GroupMoments;
using gkd::cpu::RowResult;
using gkd::cpu::ShardTask;
using namespace gkd::fuzz;

void run_serial(std::int64_t n, const std::function<void(std::int64_t)>& body) {
  for (std::int64_t k = 0; k < n; ++k) body(k);
}

bool in_double(const RowTask& row) {
  return row.student.dtype == Dtype::kDouble || row.teacher.dtype == Dtype::kDouble;
}

/// `count` shards of any sizes, 0 among them.
std::vector<ShardTask> split(Bytes* bytes, const RowTask& row, const Elements& student,
                             const Elements& teacher, int count) {
  std::vector<std::int64_t> ends = {0, row.classes};
  for (int k = 1; k < count; ++k) ends.push_back(bytes->pick(row.classes + 1));
  std::sort(ends.begin(), ends.end());
  std::vector<ShardTask> shards;
  for (int k = 0; k < count; ++k) {
    ShardTask shard{row, row.classes};
    shard.row.student.data = student.at(ends[k]);
    shard.row.teacher.data = teacher.at(ends[k]);
    shard.row.gradient.data =
        static_cast<char*>(row.gradient.data) + ends[k] * element_size(row.gradient.dtype);
    shard.row.classes = ends[k + 1] - ends[k];
    shard.row.target = row.target >= ends[k] ? row.target - ends[k] : -1;
    shards.push_back(shard);
  }
  return shards;
}

bool needs_search(const RowTask& row) {
  const gkd::Selection& selection = row.selection;
  if (selection.group_size >= 0)
    return selection.group_size > 0 && selection.group_size < row.classes;
  return selection.threshold < 1;
}

/// The cut that every rank finds.
double find_cut(const gkd::cpu::ShardKernels& stage, const std::vector<ShardTask>& shards) {
  const RowTask& row = shards[0].row;
  gkd::cpu::Scratch scratch;
  std::vector<long long> extremes(gkd::kMsgExtremes, std::numeric_limits<long long>::min());
  std::vector<std::int32_t> counts(gkd::kBins);
  for (const ShardTask& shard : shards) {
    std::vector<long long> message(gkd::kMsgExtremes);
    stage.extremes(shard, run_serial, &scratch, message.data());
    for (int k = 0; k < gkd::kMsgExtremes; ++k) extremes[k] = std::max(extremes[k], message[k]);
  }
  for (const ShardTask& shard : shards) {
    std::vector<std::int32_t> message(gkd::kBins);
    stage.counts(shard, extremes.data(), message.data());
    for (int b = 0; b < gkd::kBins; ++b) counts[b] += message[b];
  }
  const Dtype ranking = row.selection.by_student ? row.student.dtype : row.teacher.dtype;
  const int num_passes = in_double(row) ? gkd::Keys<double>(ranking).num_passes()
                                        : gkd::Keys<float>(ranking).num_passes();
  std::vector<long long> search(gkd::kSearchFields);
  double cut = 0;
  for (int pass = 0; pass < num_passes; ++pass) {
    const long long* known = pass == 0 ? nullptr : search.data();
    std::vector<long long> histogram(gkd::kMsgHistogram), next(gkd::kSearchFields);
    for (const ShardTask& shard : shards) {
      std::vector<long long> message(gkd::kMsgHistogram);
      stage.histogram(shard, extremes.data(), counts.data(), known, message.data());
      for (int b = 0; b < gkd::kMsgHistogram; ++b) histogram[b] += message[b];
    }
    cut = stage.refine(shards[0], extremes.data(), histogram.data(), known, next.data());
    require(
        cut == stage.refine(shards.back(), extremes.data(), histogram.data(), known, next.data()) ||
            cut != cut,
        "every rank finds one cut");
    search = next;
  }
  return cut;
}

double size_of_sum(const RowTask& row, const RowResult& r) {
  const double shards = std::abs(row.weights.binary * r.summary.binary) +
                        std::abs(r.summary.kl_weight[0] * r.primary) +
                        std::abs(r.summary.kl_weight[1] * r.secondary);
  return row.weights.temperature * row.weights.temperature * shards;
}

/// Where a float's rounding of the logits themselves is small beside what is computed from them.
bool well_conditioned(const RowTask& row, const Elements& student, const Elements& teacher) {
  double most = 0;
  for (const Elements* from : {&student, &teacher}) {
    for (std::int64_t j = 0; j < row.classes; ++j) most = std::max(most, std::abs(from->get(j)));
  }
  return most <= 30 * row.weights.temperature;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto supported = gkd::cpu::supported_kernels();
  constexpr Dtype kDtypes[] = {Dtype::kFloat, Dtype::kHalf, Dtype::kBFloat16, Dtype::kDouble};
  Bytes bytes(data, size);
  const gkd::cpu::Kernels& kernels = supported[bytes.byte() % supported.size()];
  const int count = 1 + bytes.byte() % 4;
  const std::int64_t classes = bytes.classes();
  Elements student(bytes.of(kDtypes), bytes.of({1, 1, 2}), classes);
  Elements teacher(bytes.of(kDtypes), bytes.of({1, 1, 2}), classes);
  RowTask row = settings(&bytes, classes);
  row.selection.sort = false;
  const Elements gradient(student.dtype, 1, classes), sharded(student.dtype, 1, classes);
  row.student = student.logits_row();
  row.teacher = teacher.logits_row();
  row.gradient = {sharded.data.get(), sharded.dtype};
  const std::vector<ShardTask> shards = split(&bytes, row, student, teacher, count);
  const bool invalid = draw(&bytes, classes, &student) | draw(&bytes, classes, &teacher);

  gkd::cpu::Scratch scratch;
  const bool use_double = in_double(row);
  const gkd::cpu::ShardKernels& stage = kernels.of(use_double).shard;
  RowTask whole = row;
  whole.gradient.data = gradient.data.get();
  const RowResult expected = kernels.of(use_double).row(whole, run_serial, &scratch);

  double cut = expected.cut;
  if (needs_search(row)) {
    cut = find_cut(stage, shards);
    require(invalid || cut == expected.cut, "shards find the cut of the whole row");
  } else if (invalid) {
    cut = row.selection.group_size == 0 ? HUGE_VAL : -HUGE_VAL;
  }
  GroupMoments<double> group[2];
  bool message_invalid = false;
  for (const ShardTask& shard : shards) {
    std::vector<double> message(gkd::kMsgMoments);
    stage.moments(shard, run_serial, &scratch, cut, message.data());
    message_invalid |= message[gkd::kMsgInvalid] != 0;
    for (int g = 0; g < 2; ++g) {
      group[g].merge(gkd::moments_from_message(message.data(), g), 1 / row.weights.temperature);
    }
  }
  message_invalid |= (group[0].sum_teacher == 0 && group[1].sum_teacher == 0) ||
                     (group[0].sum_student == 0 && group[1].sum_student == 0);
  require(message_invalid == invalid, "the messages show that a row is invalid");
  if (invalid) return 0;
  require(group[0].count == expected.size, "the shards' groups make up the whole row's");

  double kl[2] = {0, 0};
  for (const ShardTask& shard : shards) {
    std::vector<double> message(2);
    stage.write_gradient(shard, run_serial, &scratch, cut, group, {}, message.data());
    for (int g = 0; g < 2; ++g) kl[g] += message[g];
  }
  gkd::GroupCoef<double> unused[2];
  const double loss =
      gkd::row_loss(gkd::row_coefficients(group, row.weights, unused), row.weights, kl[0], kl[1]);
  if (!std::isfinite(expected.loss) || !well_conditioned(row, student, teacher)) return 0;
  const double t = row.weights.temperature, scale = use_double ? 1e-12 : 1e-5;
  const double weights = std::abs(row.weights.primary) + std::abs(row.weights.binary) +
                         std::abs(row.weights.secondary);
  require(std::abs(loss - expected.loss) <=
              scale * size_of_sum(row, expected) + scale * scale * t * t * weights,
          "the shards' loss is the whole row's");
  double error = 0, largest = 0;
  for (std::int64_t j = 0; j < classes; ++j) {
    error = std::max(error, std::abs(gradient.get(j) - sharded.get(j)));
    largest = std::max(largest, std::abs(gradient.get(j)));
  }
  const double rounding = element_size(student.dtype) == 2 ? 0x1p-7 * largest + 1.2e-7 : 0;
  if (std::isfinite(largest)) {
    require(error <= scale * largest + rounding + scale * row.gradient_scale * t * weights,
            "the shards' gradient is the whole row's");
  }
  return 0;
}
