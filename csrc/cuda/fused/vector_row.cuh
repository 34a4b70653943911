// One class in the passes over vectors: exponentials as powers of 2, and expm1 and phi as minimax
// polynomials. The polynomials' relative errors are those of Remez's algorithm, below one ulp.
#pragma once

#include "cuda/block/class_weight.cuh"
#include "cuda/fused/vectors.cuh"
#include "math/loss.h"

namespace gkd::cuda {

/// The row's largest logits, its smallest ranking logit, and for cross-entropy the largest student
/// logit of all classes but the target. A NaN is skipped here; it makes the
/// sums NaN, so that they are not accurate.
struct RowExtremes {
  float teacher = -std::numeric_limits<float>::infinity();
  float student = -std::numeric_limits<float>::infinity();
  float low = std::numeric_limits<float>::infinity();
  float others = -std::numeric_limits<float>::infinity();

  __device__ __forceinline__ void merge(const RowExtremes& y) {
    teacher = fmaxf(teacher, y.teacher);
    student = fmaxf(student, y.student);
    low = fminf(low, y.low);
    others = fmaxf(others, y.others);
  }
};

/// |d| <= bound ? yes : no, where both are known: a branch for each class would keep the classes of
/// a vector from overlapping. `no` if d is NaN.
__device__ __forceinline__ float if_within(float d, float bound, float yes, float no) {
  float x;
  asm("{\n  .reg .pred within;\n  setp.le.f32 within, %1, %2;\n"
      "  selp.f32 %0, %3, %4, within;\n}"
      : "=f"(x)
      : "f"(fabsf(d)), "f"(bound), "f"(yes), "f"(no));
  return x;
}

/// x in a register of its own. The compiler knows that a row's constants are the same for all
/// threads, and would copy each of them from a uniform register for every class.
__device__ __forceinline__ float in_register(float x) {
  float y;
  asm volatile("mov.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// expm1(-d) for |d| <= 3/8, to 2e-8.
__device__ __forceinline__ float short_expm1(float d) {
  float p = fmaf(d, 1.38888671e-3f, -8.37516878e-3f);
  p = fmaf(d, p, 4.16673087e-2f);
  p = fmaf(d, p, -1.66664466e-1f);
  p = fmaf(d, p, 4.99999970e-1f);
  return d * fmaf(d, p, -1.0f);
}

/// phi(d) = expm1(-d) + d for |d| <= 1/2, to 3e-8.
__device__ __forceinline__ float short_phi(float d) {
  float p = fmaf(d, -1.98756214e-4f, 1.39819970e-3f);
  p = fmaf(d, p, -8.33345205e-3f);
  p = fmaf(d, p, 4.16657962e-2f);
  p = fmaf(d, p, -1.66666657e-1f);
  return d * d * fmaf(d, p, 0.5f);
}

/// phi(d) for |d| <= kLongPhi, to 1e-7.
constexpr float kLongPhi = 1.5f;
__device__ __forceinline__ float long_phi(float d) {
  float p = fmaf(d, -2.79255391e-6f, 2.60521247e-5f);
  p = fmaf(d, p, -1.98554582e-4f);
  p = fmaf(d, p, 1.38715445e-3f);
  p = fmaf(d, p, -8.33306927e-3f);
  p = fmaf(d, p, 4.16674241e-2f);
  p = fmaf(d, p, -1.66666761e-1f);
  return d * d * fmaf(d, p, 4.99999940e-1f);
}

constexpr float kLn2 = 0.693147181f;

/// A row's constants in registers. a_j = 2^(U_j c - k) and b_j = 2^(S_j c - l) with c = log2(e)/T:
/// k is the integer next to the teacher's largest exponent, so that it loses no digits, and l is k
/// less the difference of the two largest, rounded once.
struct VectorRow {
  float scale, teacher_zero, student_zero;  ///< c, k, l
  float inv_temperature, gap;               ///< 1/T, (k - l) ln 2
  float cut;

  __device__ VectorRow(const RowExtremes& maxima, float inv_temperature, float cut)
      : scale(in_register(inv_temperature * kLog2e)),
        teacher_zero(in_register(rintf(maxima.teacher * scale))),
        student_zero(in_register(fmaf(maxima.student - maxima.teacher, scale, teacher_zero))),
        inv_temperature(in_register(inv_temperature)),
        gap(in_register((teacher_zero - student_zero) * kLn2)),
        cut(cut) {}

  /// The same with the cut from elsewhere and the gap made anew: moved to local memory during the
  /// search, they would be read from there again and again.
  __device__ __forceinline__ VectorRow anew(float cut) const {
    VectorRow row = *this;
    row.cut = cut;
    asm volatile("{\n.reg .f32 d;\nsub.f32 d, %1, %2;\nmul.f32 %0, d, %3;\n}"
                 : "=f"(row.gap)
                 : "f"(teacher_zero), "f"(student_zero), "f"(kLn2));
    return row;
  }
  /// The constants where student and teacher change places.
  __device__ VectorRow swapped() const {
    VectorRow row = *this;
    row.teacher_zero = student_zero;
    row.student_zero = teacher_zero;
    row.gap = -gap;
    return row;
  }
  __device__ bool is_accurate() const {
    return has_exact_exponents(teacher_zero) && has_exact_exponents(student_zero);
  }
  /// As class_log_ratio() chooses, but once for the row.
  __device__ bool from_gap() const { return fabsf(gap) <= 4; }

  __device__ __forceinline__ float teacher_exponent(float u) const {
    return fmaf(u, scale, -teacher_zero);
  }
  __device__ __forceinline__ float student_exponent(float s) const {
    return fmaf(s, scale, -student_zero);
  }
  /// e_j + `ratio` from the logits or from the exponents x and y of teacher and student.
  template <bool kFromGap>
  __device__ __forceinline__ float log_ratio(float s, float u, float y, float x,
                                             float ratio) const {
    return kFromGap ? fmaf(u - s, inv_temperature, ratio - gap) : fmaf(x - y, kLn2, ratio);
  }
};

/// Cross-entropy's exponentials: exp(scale (S_j - high)) = 2^(S_j c - k) with c = scale log2(e) and
/// k the integer next to the exponent of the largest logit but the target's, so that the classes
/// that matter have small exponents.
struct VectorHead {
  float scale = 0, zero = 0;     ///< c, k
  float factor = 0, target = 0;  ///< CrossEntropyCoef

  VectorHead() = default;
  __device__ VectorHead(float scale, const RowExtremes& extremes)
      : scale(in_register(scale * kLog2e)),
        zero(in_register(rintf(extremes.others * this->scale))) {}

  /// False where there is no other class that is finite.
  __device__ bool is_accurate() const { return has_exact_exponents(zero); }
  __device__ __forceinline__ float exponential(float s) const {
    return exp2_approx(fmaf(s, scale, -zero));
  }
  /// What OtherSum calls `high`.
  __device__ double high() const { return static_cast<double>(zero) / static_cast<double>(scale); }
};

}  // namespace gkd::cuda
