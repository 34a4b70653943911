#include "kernel_case.h"
#include "math/cut.h"

namespace gkd::cuda::test {
namespace {

/// A matrix laid out with the strides of `m`, and the rounded values put back into `values`.
std::vector<char> lay_out(const Matrix& m, std::int64_t offset, std::int64_t rows,
                          std::int64_t classes, std::vector<double>* values) {
  const std::size_t size = bytes_of(m.dtype);
  const std::int64_t last = (rows - 1) * m.row_stride + (classes - 1) * m.col_stride;
  std::vector<char> bytes(static_cast<std::size_t>(offset + last + 1) * size);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < classes; ++j) {
      double& v = (*values)[i * classes + j];
      v = put(m.dtype, v, bytes.data() + (offset + i * m.row_stride + j * m.col_stride) * size);
    }
  }
  return bytes;
}

std::vector<double> read_column(const Buffer& b, bool wide, std::size_t count) {
  if (wide) return b.read<double>(count);
  const auto narrow = b.read<float>(count);
  return {narrow.begin(), narrow.end()};
}

const void* at(const Buffer& b, std::int64_t elements, Dtype d) {
  return static_cast<const char*>(b.get()) + elements * static_cast<std::int64_t>(bytes_of(d));
}

}  // namespace

std::vector<Way> ways_of(const Problem& p) {
  std::vector<Way> ways = {{"split", false, {4}}};
  // Its keys are the logits as they are given: calls with a margin in them do not sort.
  if (!p.head.distill_margin) ways.push_back({"sort", true, {4}});
  struct Limits {
    const char* name;
    LaunchStrategy strategy;
    int multiprocessors, cluster;
    bool cooperative;
  };
  const Limits all[] = {{"block", LaunchStrategy::kBlock, 1, 0, false},
                        {"cluster", LaunchStrategy::kCluster, 16, 16, false},
                        {"grid", LaunchStrategy::kGrid, 12, 0, true}};
  for (const Limits& l : all) {
    std::vector<Way> found;
    for (std::size_t kib = 16; kib <= 220; ++kib) {
      const Device device{l.multiprocessors, kib << 10, l.cluster, l.cooperative};
      const FusedPlan plan = plan_fused(p, device);
      if (plan.strategy == l.strategy && !plan.streamed) found.push_back({l.name, false, device});
    }
    if (!found.empty()) ways.push_back(found.front());
    if (found.size() > 1) ways.push_back(found.back());
  }
  // Streamed rows need the least shared memory of all: just that.
  const Limits streamed[] = {{"streamed cluster", LaunchStrategy::kCluster, 16, 16, false},
                             {"streamed cluster", LaunchStrategy::kCluster, 2, 2, false},
                             {"streamed grid", LaunchStrategy::kGrid, 12, 0, true}};
  for (const Limits& l : streamed) {
    Device device{l.multiprocessors, 0, l.cluster, l.cooperative};
    FusedPlan plan;
    while (plan.strategy == LaunchStrategy::kMultiKernel && device.shared_bytes < 220 << 10) {
      device.shared_bytes += kVectorBytes;
      plan = plan_fused(p, device);
    }
    if (plan.strategy == l.strategy && plan.streamed) ways.push_back({l.name, false, device});
  }
  return ways;
}

namespace {

Outcome run_either(Case& c, const Way& way, bool with_loss) {
  Problem& p = c.p;
  p.selection.sort = way.sort;
  const auto rows = static_cast<std::size_t>(p.rows), classes = static_cast<std::size_t>(p.classes);
  const auto s = lay_out(p.student, c.offset, p.rows, p.classes, &c.student);
  const auto t = lay_out(p.teacher, c.offset, p.rows, p.classes, &c.teacher);
  Buffer student(s.size()), teacher(t.size()), target(rows * 8);
  student.write(s.data());
  teacher.write(t.data());
  p.student.data = at(student, c.offset, p.student.dtype);
  p.teacher.data = at(teacher, c.offset, p.teacher.dtype);
  if (!c.target.empty()) {
    target.write(c.target.data());
    p.target.data = target.get();
  }
  const std::size_t wide = p.compute_in_double() ? 8 : 4, grad_bytes = bytes_of(p.student.dtype);
  Buffer loss(rows * wide), grad_scale(wide), gradient(rows * classes * grad_bytes);
  Buffer size(rows * 8), mask(rows * classes);
  Buffer column[6] = {Buffer(rows * wide), Buffer(rows * wide), Buffer(rows * wide),
                      Buffer(rows * wide), Buffer(rows * wide), Buffer(rows * wide)};
  Buffer workspace(workspace_bytes(p, way.device));
  const Results results{loss.get(), grad_scale.get(), gradient.get()};
  const Call call{p, way.device};
  if (with_loss) EXPECT_EQ(forward(call, results, workspace.get()), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const GroupColumns columns{static_cast<std::int64_t*>(size.get()),
                             column[0].get(),
                             column[1].get(),
                             column[2].get(),
                             column[3].get(),
                             column[4].get(),
                             column[5].get(),
                             static_cast<bool*>(mask.get())};
  EXPECT_EQ(group(call, columns, workspace.get()), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);

  Outcome o;
  o.loss = read_column(loss, p.compute_in_double(), p.reduction == Reduction::kNone ? rows : 1);
  const double scale = read_column(grad_scale, p.compute_in_double(), 1)[0];
  // Of each row's loss, whatever the reduction.
  double counted = 1;
  if (p.reduction == Reduction::kMean) {
    const auto ignored = std::count(c.target.begin(), c.target.end(), p.target.ignore_index);
    counted = std::max<double>(1, static_cast<double>(p.rows - ignored));
  }
  const auto raw = gradient.read<char>(rows * classes * grad_bytes);
  for (std::size_t k = 0; k < rows * classes; ++k) {
    const double stored = get(p.student.dtype, raw.data() + k * grad_bytes);
    o.gradient.push_back(stored * scale * counted);
  }
  for (int k = 0; k < 6; ++k) o.columns[k] = read_column(column[k], p.compute_in_double(), rows);
  o.size = size.read<std::int64_t>(rows);
  o.mask = mask.read<char>(rows * classes);
  return o;
}

}  // namespace

Outcome run(Case& c, const Way& way) { return run_either(c, way, true); }
Outcome run_group(Case& c, const Way& way) { return run_either(c, way, false); }

}  // namespace gkd::cuda::test
