// The C++ entry through LibTorch: any shapes, strides, dtypes, values, targets and settings. What
// is refused is refused by one of gkd's own messages; what is accepted obeys the documents.
#include <gkd/gkd.h>
#include <torch/torch.h>

#include <functional>
#include <string>
#include <vector>

#include "bytes.h"

namespace {

using gkd::fuzz::Bytes;
using gkd::fuzz::require;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// The same elements behind other strides.
at::Tensor restride(const at::Tensor& t, int kind) {
  const std::int64_t rows = t.size(0), classes = t.size(1);
  const at::Scalar between = at::isIntegralType(t.scalar_type(), true) ? at::Scalar(7) : kNaN;
  at::Tensor view;
  switch (kind) {
    case 1:  // transposed
      return t.t().contiguous().t();
    case 2:  // a step, and an offset in both directions
      view = at::full({rows + 1, 2 * classes + 3}, between, t.options())
                 .slice(0, 1)
                 .slice(1, 3, 2 * classes + 3, 2);
      return view.copy_(t);
    case 3:  // an odd offset, which no pack's alignment survives
      view = at::full({rows * classes + 1}, between, t.options()).slice(0, 1).view({rows, classes});
      return view.copy_(t);
    case 4:  // negated lazily: the bit that a conjugate's imaginary part carries
      return (-t)._neg_view();
    default:
      return t;
  }
}

at::Tensor logits(Bytes* bytes, std::int64_t rows, std::int64_t classes) {
  constexpr at::ScalarType kDtypes[] = {at::kFloat, at::kHalf, at::kBFloat16, at::kDouble};
  const at::ScalarType dtype = bytes->of(kDtypes);
  const int expanded = bytes->byte() % 16;  // one row, or one class, for all
  const std::int64_t stored_rows = expanded == 0 && rows > 0 ? 1 : rows;
  const std::int64_t stored_classes = expanded == 1 && classes > 0 ? 1 : classes;
  std::vector<double> values;
  for (std::int64_t row = 0; row < stored_rows; ++row) {
    gkd::fuzz::Logits draw(bytes);
    for (std::int64_t j = 0; j < stored_classes; ++j) values.push_back(draw.next());
  }
  return at::tensor(values, at::kDouble)
      .to(dtype)
      .view({stored_rows, stored_classes})
      .expand({rows, classes});
}

/// What the checks should stop, now and then.
at::Tensor spoilt(Bytes* bytes, const at::Tensor& t) {
  switch (bytes->byte()) {
    case 1:
      return t.to(at::kLong);
    case 2:
      return t.to(at::kComplexFloat);
    case 3:
      return t.unsqueeze(0);
    case 4:
      return t.slice(1, 1);
    case 5:
      return t.slice(0, 1);
    case 6:
      return t.to_sparse();
    case 7:
      return t.flatten();
    case 8:
      return at::empty_like(t, at::kMeta);
    default:
      return t;
  }
}

std::optional<at::Tensor> targets(Bytes* bytes, std::int64_t rows, std::int64_t classes,
                                  std::int64_t ignore_index) {
  if (bytes->flag()) return std::nullopt;
  std::vector<std::int64_t> values;
  for (std::int64_t row = 0; row < rows; ++row) {
    const int kind = bytes->byte() % 64;
    const std::int64_t odd[] = {-1, classes, std::int64_t{1} << 40, -ignore_index};
    values.push_back(kind == 0              ? bytes->of(odd)
                     : kind < 8 || !classes ? ignore_index
                                            : bytes->pick(classes));
  }
  const at::Tensor all = at::tensor(values, at::kLong);
  switch (bytes->byte() % 32) {
    case 0:
      return all.to(at::kFloat);
    case 1:
      return all.unsqueeze(1);
    case 2:
      return all.slice(0, 1);
    case 3:
      return all.slice(0, 0, 1).expand({rows > 0 ? rows : 0});
    case 4:
      return at::stack({all, all + 1}, 1).select(1, 0);  // a step of two
    case 5:
    case 6:
      return all.to(at::kInt);
    default:
      return all;
  }
}

gkd::LossOptions settings(Bytes* bytes, std::int64_t classes) {
  const double tame[] = {1.0, 8.0, 0.0, 0.25, 1e-12, 1e30, -1.0, -0.0};
  const double wild[] = {kNaN, HUGE_VAL, -HUGE_VAL, 0.0, -1.0, 1e300, 1e-300, 2.0};
  const auto number = [&] { return bytes->byte() < 4 ? bytes->of(wild) : bytes->of(tame); };
  gkd::LossOptions o;
  const std::int64_t size = bytes->pick(classes + 3) - 1;
  if (bytes->byte() % 3 == 0) {
    o.group_size = size;
  } else {
    o.threshold = bytes->byte() < 8 ? bytes->of(wild) : bytes->of({0.93, 1.0, 0.5, 1e-300, 0.999});
  }
  o.temperature = bytes->byte() < 4 ? bytes->of(wild) : bytes->of({4.0, 1.0, 1e-6, 1e6, 0.1});
  o.primary_weight = number();
  o.binary_weight = number();
  o.secondary_weight = number();
  o.coupled = bytes->flag();
  const int names = bytes->byte();
  o.rank_by = names == 1 ? "" : names % 2 ? "student" : "teacher";
  o.method = names == 2 ? "fast" : bytes->of({"auto", "sort", "select"});
  o.reduction = names == 3 ? "max" : bytes->of({"mean", "sum", "none"});
  if (bytes->byte() % 8 == 0) o.ignore_index = bytes->pick(classes + 2) - 1;
  o.check_target = bytes->flag();
  return o;
}

/// False where the call was refused, in the words of gkd and by an exception that it documents.
bool accepted(const std::function<void()>& call) {
  std::string text;
  try {
    call();
    return true;
  } catch (const c10::Error& e) {  // ValueError, TypeError, IndexError, NotImplementedError too
    text = e.what_without_backtrace();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    require(false, "no other exception leaves gkd");
  }
  // gkd's words begin so; the dispatcher's, for a backend that gkd does not have, name the
  // operator.
  if (text.find("gkd::") == std::string::npos) std::fprintf(stderr, "%s\n", text.c_str());
  require(text.find("gkd::") != std::string::npos, "an error names gkd's operator");
  return false;
}

bool same(const at::Tensor& x, const at::Tensor& y) {
  const at::Tensor a = x.detach().contiguous(), b = y.detach().contiguous();
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         (a.numel() == 0 || std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0);
}

struct Outcome {
  at::Tensor loss, gradient;
};

Outcome run(const at::Tensor& student, const at::Tensor& teacher,
            const std::optional<at::Tensor>& target, const gkd::LossOptions& options) {
  // A copy that keeps the strides: the leaf itself is what gkd reads.
  at::Tensor leaf = student.detach();
  leaf.requires_grad_();
  const at::Tensor loss = gkd::loss(leaf, teacher, target, options);
  const at::Tensor ones = at::ones_like(loss);
  const auto gradient = torch::autograd::grad({loss}, {leaf}, {ones});
  return {loss.detach(), gradient[0]};
}

bool same(const Outcome& x, const Outcome& y) {
  return same(x.loss, y.loss) && same(x.gradient, y.gradient);
}

at::Tensor invalid_rows(const at::Tensor& t) {
  const at::Tensor x = t.to(at::kDouble);
  return (x.isnan() | x.eq(HUGE_VAL)).any(1) | x.eq(-HUGE_VAL).all(1);
}

/// With no reduction: an invalid row is NaN and an ignored one 0, whatever the others are.
void check_rows(const at::Tensor& student, const at::Tensor& teacher,
                const std::optional<at::Tensor>& target, const gkd::LossOptions& o,
                const Outcome& got) {
  at::Tensor ignored = at::zeros({student.size(0)}, at::kBool);
  if (target) ignored = target->eq(o.ignore_index);
  const at::Tensor invalid = (invalid_rows(student) | invalid_rows(teacher)) & ~ignored;
  require(got.loss.masked_select(invalid).isnan().all().item<bool>(),
          "an invalid row's loss is NaN");
  require(got.gradient.isnan().all(1).masked_select(invalid).all().item<bool>(),
          "an invalid row's gradient is NaN");
  require(got.loss.masked_select(ignored).eq(0).all().item<bool>(), "an ignored row's loss is 0");
  require(got.gradient.eq(0).all(1).masked_select(ignored).all().item<bool>(),
          "an ignored row's gradient is 0");
  if (o.primary_weight >= 0 && o.binary_weight >= 0 && o.secondary_weight >= 0) {
    require(got.loss.masked_select(~invalid).ge(0).all().item<bool>(),
            "no weight is negative, so no loss is");
  }
}

/// A NaN in one row leaves the others' bits alone.
void check_neighbours(const at::Tensor& student, const at::Tensor& teacher,
                      const std::optional<at::Tensor>& target, const gkd::LossOptions& o,
                      const Outcome& got, std::int64_t row) {
  at::Tensor spoilt = student.detach().clone();
  spoilt.select(0, row).fill_(kNaN);
  const Outcome other = run(spoilt, teacher, target, o);
  for (std::int64_t k = 0; k < student.size(0); ++k) {
    require(
        k == row || (same(got.loss[k], other.loss[k]) && same(got.gradient[k], other.gradient[k])),
        "a row of NaN changes no other row");
  }
}

void check_group(const at::Tensor& student, const at::Tensor& teacher,
                 const std::optional<at::Tensor>& target, const gkd::LossOptions& o) {
  gkd::Group g;
  if (!accepted([&] { g = gkd::group(student, teacher, target, o, /*return_mask=*/true); })) return;
  require(same(g.size, g.mask.sum(1)), "size is the number of classes in the mask");
  for (const at::Tensor& mass : {g.mass_teacher, g.mass_student}) {
    require((mass.isnan() | (mass.ge(0) & mass.le(1))).all().item<bool>(), "masses are in [0, 1]");
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  at::set_num_threads(1);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes(data, size);
  const std::int64_t rows = bytes.byte() % 16 == 0 ? 0 : 1 + bytes.pick(4);
  const std::int64_t classes = bytes.byte() == 0 ? 0 : bytes.classes() % 1300;
  const gkd::LossOptions options = settings(&bytes, classes);
  const auto target = targets(&bytes, rows, classes, options.ignore_index);
  const int student_strides = bytes.byte() % 6, teacher_strides = bytes.byte() % 6;
  const at::Tensor student = spoilt(&bytes, logits(&bytes, rows, classes));
  const at::Tensor teacher = spoilt(&bytes, logits(&bytes, rows, classes));

  Outcome got;
  const bool whole = student.dim() == 2 && teacher.dim() == 2 && !student.is_sparse() &&
                     !teacher.is_sparse() && !student.is_meta() && !teacher.is_meta();
  if (!whole || !at::isFloatingType(student.scalar_type())) {
    const bool shapes_alone = student.is_meta() && teacher.is_meta();
    require(!accepted([&] { gkd::loss(student, teacher, target, options); }) || shapes_alone,
            "only dense real matrices are accepted");
    return 0;
  }
  const at::Tensor s = restride(student, student_strides), u = restride(teacher, teacher_strides);
  if (!accepted([&] { got = run(s, u, target, options); })) return 0;
  require(same(got, run(s, u, target, options)), "a second call gives the same bits");
  require(same(got, run(student.contiguous(), teacher.contiguous(), target, options)),
          "strides change no bit");
  if (options.reduction == "none") {
    check_rows(student, teacher, target, options, got);
    const std::int64_t left = s.size(0);  // both may have lost one
    if (left > 0) check_neighbours(s, u, target, options, got, bytes.pick(left));
  }
  check_group(s, u, target, options);
  return 0;
}
