// A row cut into shards, through every stage of cpu/shard.h, against the same row whole. What ranks
// tell one another is reduced here by hand.
#include <vector>

#include "cpu/capability.h"
#include "rows.h"

namespace {

using gkd::Dtype;
using gkd::GroupMoments;
using gkd::cpu::RowResult;
using gkd::cpu::ShardTask;
using namespace gkd::fuzz;

void each(std::int64_t n, const std::function<void(std::int64_t)>& body) {
  for (std::int64_t k = 0; k < n; ++k) body(k);
}

bool is_wide(const RowTask& row) {
  return row.student.dtype == Dtype::kDouble || row.teacher.dtype == Dtype::kDouble;
}

/// `count` shards of any sizes, 0 among them.
std::vector<ShardTask> split(Bytes* bytes, const RowTask& row, const Elements& student,
                             const Elements& teacher, int count) {
  std::vector<std::int64_t> ends = {0, row.classes};
  for (int k = 1; k < count; ++k) ends.push_back(bytes->pick(row.classes + 1));
  std::sort(ends.begin(), ends.end());
  std::vector<ShardTask> parts;
  for (int k = 0; k < count; ++k) {
    ShardTask part{row, row.classes};
    part.row.student.data = student.at(ends[k]);
    part.row.teacher.data = teacher.at(ends[k]);
    part.row.gradient.data = static_cast<char*>(row.gradient.data) +
                             ends[k] * static_cast<std::int64_t>(size_of(row.gradient.dtype));
    part.row.classes = ends[k + 1] - ends[k];
    part.row.target = row.target >= ends[k] ? row.target - ends[k] : -1;
    parts.push_back(part);
  }
  return parts;
}

bool needs_search(const RowTask& row) {
  const gkd::Selection& how = row.how;
  if (how.group_size >= 0) return how.group_size > 0 && how.group_size < row.classes;
  return how.threshold < 1;
}

/// The cut that every rank finds.
double find_cut(const gkd::cpu::ShardKernels& stage, const std::vector<ShardTask>& parts) {
  const RowTask& row = parts[0].row;
  gkd::cpu::Scratch scratch;
  std::vector<long long> extremes(gkd::kMsgExtremes, std::numeric_limits<long long>::min());
  std::vector<std::int32_t> counts(gkd::kBins);
  for (const ShardTask& part : parts) {
    std::vector<long long> own(gkd::kMsgExtremes);
    stage.extremes(part, each, &scratch, own.data());
    for (int k = 0; k < gkd::kMsgExtremes; ++k) extremes[k] = std::max(extremes[k], own[k]);
  }
  for (const ShardTask& part : parts) {
    std::vector<std::int32_t> own(gkd::kBins);
    stage.counts(part, extremes.data(), own.data());
    for (int b = 0; b < gkd::kBins; ++b) counts[b] += own[b];
  }
  const Dtype ranking = row.how.by_student ? row.student.dtype : row.teacher.dtype;
  const int num_passes = is_wide(row) ? gkd::Keys<double>(ranking).num_passes()
                                      : gkd::Keys<float>(ranking).num_passes();
  std::vector<long long> search(gkd::kSearchFields);
  double cut = 0;
  for (int spread = 0; spread < num_passes; ++spread) {
    const long long* known = spread == 0 ? nullptr : search.data();
    std::vector<long long> amounts(gkd::kMsgHistogram), next(gkd::kSearchFields);
    for (const ShardTask& part : parts) {
      std::vector<long long> own(gkd::kMsgHistogram);
      stage.amounts(part, extremes.data(), counts.data(), known, own.data());
      for (int b = 0; b < gkd::kMsgHistogram; ++b) amounts[b] += own[b];
    }
    cut = stage.narrow(parts[0], extremes.data(), amounts.data(), known, next.data());
    require(
        cut == stage.narrow(parts.back(), extremes.data(), amounts.data(), known, next.data()) ||
            cut != cut,
        "every rank finds one cut");
    search = next;
  }
  return cut;
}

double size_of_sum(const RowTask& row, const RowResult& r) {
  const double parts = std::abs(row.weights.binary * r.summary.binary) +
                       std::abs(r.summary.kl_weight[0] * r.primary) +
                       std::abs(r.summary.kl_weight[1] * r.secondary);
  return row.weights.temperature * row.weights.temperature * parts;
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
  static const auto all = gkd::cpu::capabilities();
  constexpr Dtype kDtypes[] = {Dtype::kFloat, Dtype::kHalf, Dtype::kBFloat16, Dtype::kDouble};
  Bytes bytes(data, size);
  const gkd::cpu::Capability& set = all[bytes.byte() % all.size()];
  const int count = 1 + bytes.byte() % 4;
  const std::int64_t classes = bytes.classes();
  Elements student(bytes.of(kDtypes), bytes.of({1, 1, 2}), classes);
  Elements teacher(bytes.of(kDtypes), bytes.of({1, 1, 2}), classes);
  RowTask row = settings(&bytes, classes);
  row.how.sort = false;
  const Elements gradient(student.dtype, 1, classes), pieces(student.dtype, 1, classes);
  row.student = student.source();
  row.teacher = teacher.source();
  row.gradient = {pieces.data.get(), pieces.dtype};
  const std::vector<ShardTask> parts = split(&bytes, row, student, teacher, count);
  const bool bad = draw(&bytes, classes, &student) | draw(&bytes, classes, &teacher);

  gkd::cpu::Scratch scratch;
  const bool wide = is_wide(row);
  const gkd::cpu::ShardKernels& stage = wide ? set.wide : set.narrow;
  RowTask whole = row;
  whole.gradient.data = gradient.data.get();
  const RowResult expected = (wide ? set.kernels.wide : set.kernels.single)(whole, each, &scratch);

  double cut = expected.cut;
  if (needs_search(row)) {
    cut = find_cut(stage, parts);
    require(bad || cut == expected.cut, "shards find the cut of the whole row");
  } else if (bad) {
    cut = row.how.group_size == 0 ? HUGE_VAL : -HUGE_VAL;
  }
  GroupMoments<double> group[2];
  bool told = false;
  for (const ShardTask& part : parts) {
    std::vector<double> wire(gkd::kMsgMoments);
    stage.moments(part, each, &scratch, cut, wire.data());
    told |= wire[gkd::kMsgInvalid] != 0;
    for (int g = 0; g < 2; ++g) {
      group[g].merge(gkd::moments_from_message(wire.data(), g), 1 / row.weights.temperature);
    }
  }
  told |= (group[0].sum_teacher == 0 && group[1].sum_teacher == 0) ||
          (group[0].sum_student == 0 && group[1].sum_student == 0);
  require(told == bad, "the ranks know together that a row is bad");
  if (bad) return 0;
  require(group[0].count == expected.size, "the shards' groups make up the whole row's");

  double kl[2] = {0, 0};
  for (const ShardTask& part : parts) {
    std::vector<double> own(2);
    stage.write_gradient(part, each, &scratch, cut, group, own.data());
    for (int g = 0; g < 2; ++g) kl[g] += own[g];
  }
  gkd::GroupCoef<double> unused[2];
  const double loss =
      gkd::row_loss(gkd::row_coefficients(group, row.weights, unused), row.weights, kl[0], kl[1]);
  if (!std::isfinite(expected.loss) || !well_conditioned(row, student, teacher)) return 0;
  const double t = row.weights.temperature, scale = wide ? 1e-12 : 1e-5;
  const double weights = std::abs(row.weights.primary) + std::abs(row.weights.binary) +
                         std::abs(row.weights.secondary);
  require(std::abs(loss - expected.loss) <=
              scale * size_of_sum(row, expected) + scale * scale * t * t * weights,
          "the shards' loss is the whole row's");
  double error = 0, largest = 0;
  for (std::int64_t j = 0; j < classes; ++j) {
    error = std::max(error, std::abs(gradient.get(j) - pieces.get(j)));
    largest = std::max(largest, std::abs(gradient.get(j)));
  }
  const double rounding = size_of(student.dtype) == 2 ? 0x1p-7 * largest + 1.2e-7 : 0;
  if (std::isfinite(largest)) {
    require(error <= scale * largest + rounding + scale * row.gradient_scale * t * weights,
            "the shards' gradient is the whole row's");
  }
  return 0;
}
