#include "sparse_case.h"

namespace gkd::cuda::test {
namespace {

template <class V>
const V* send(Buffer& buffer, const std::vector<V>& values) {
  buffer.write(values.data());
  return static_cast<const V*>(buffer.get());
}

std::vector<double> read_column(const Buffer& b, bool wide, std::size_t count) {
  if (wide) return b.read<double>(count);
  const auto narrow = b.read<float>(count);
  return {narrow.begin(), narrow.end()};
}

}  // namespace

std::vector<Way> sparse_ways(const Problem& p) {
  std::vector<Way> ways = {{"split", false, {4}}};
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
    for (std::size_t bytes = 4 << 10; bytes <= 220 << 10; bytes += 512) {
      const Device device{l.multiprocessors, bytes, l.cluster, l.cooperative};
      if (plan_sparse(p, device).strategy == l.strategy) found.push_back({l.name, false, device});
    }
    if (!found.empty()) ways.push_back(found.front());
    if (found.size() > 1) ways.push_back(found.back());
  }
  return ways;
}

Outcome run_sparse(SparseCase& given, const Way& way) {
  Case& c = given.c;
  Problem p = c.p;
  const auto rows = static_cast<std::size_t>(p.rows), classes = static_cast<std::size_t>(p.classes);
  const std::size_t size = bytes_of(p.student.dtype);
  const std::int64_t last =
      (p.rows - 1) * p.student.row_stride + (p.classes - 1) * p.student.col_stride;
  std::vector<char> logits(static_cast<std::size_t>(c.offset + last + 1) * size);
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < classes; ++j) {
      double& v = c.student[i * classes + j];
      const std::int64_t at = c.offset + std::int64_t(i) * p.student.row_stride +
                              std::int64_t(j) * p.student.col_stride;
      v = put(p.student.dtype, v, logits.data() + at * std::int64_t(size));
    }
  }
  // The group's logits have the scale; the oracle takes them without.
  const std::size_t teacher_size = bytes_of(p.teacher.dtype);
  std::vector<char> teacher(given.indices.size() * teacher_size);
  for (std::size_t i = 0; i < rows; ++i) {
    if (given.indptr[i] < 0 || given.indptr[i + 1] > std::int64_t(given.indices.size())) continue;
    for (std::int64_t k = given.indptr[i]; k < given.indptr[i + 1]; ++k) {
      const std::int64_t j = given.indices[k];
      if (j < 0 || j >= p.classes) continue;
      double& u = c.teacher[i * classes + static_cast<std::size_t>(j)];
      u = put(p.teacher.dtype, u * p.weights.scale,
              teacher.data() + static_cast<std::size_t>(k) * teacher_size) /
          p.weights.scale;
    }
  }
  // Of exactly their sizes, so that an access outside is seen.
  Buffer student(logits.size()), of_group(teacher.size()), target(rows * 8);
  Buffer indptr((rows + 1) * 8), indices(given.indices.size() * 4), rest(rows * 8);
  student.write(logits.data());
  of_group.write(teacher.data());
  p.student.data = static_cast<const char*>(student.get()) + c.offset * std::int64_t(size);
  p.teacher = {of_group.get(), 0, 1, p.teacher.dtype};
  if (!c.target.empty()) p.target.data = send(target, c.target);
  const std::size_t wide = p.compute_in_double() ? 8 : 4;
  Buffer loss(rows * wide), grad_scale(wide), gradient(rows * classes * size);
  Buffer workspace(sparse_workspace_bytes(p, way.device));
  SparseCall call{{p, way.device}, {}};
  call.group = {send(indptr, given.indptr),
                send(indices, given.indices),
                static_cast<std::int64_t>(given.indices.size()),
                send(rest, given.rest),
                1,
                true};
  EXPECT_EQ(sparse_forward(call, {loss.get(), grad_scale.get(), gradient.get()}, workspace.get()),
            cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  Outcome o;
  o.loss = read_column(loss, wide == 8, p.reduction == Reduction::kNone ? rows : 1);
  const double scale = read_column(grad_scale, wide == 8, 1)[0];
  const auto raw = gradient.read<char>(rows * classes * size);
  for (std::size_t k = 0; k < rows * classes; ++k) {
    o.gradient.push_back(get(p.student.dtype, raw.data() + k * size) * scale);
  }
  o.mask = given.mask;
  return o;
}

}  // namespace gkd::cuda::test
