// One class in the passes over vectors: exponentials as powers of 2, and expm1 and phi as minimax
// polynomials. The polynomials' relative errors are those of Remez's algorithm, below one ulp.
#pragma once

#include "cuda/fused/vectors.cuh"
#include "math/loss.h"

namespace gkd::cuda {

/// The row's largest logits. A NaN is skipped here; it makes the sums NaN, so that they are not
/// accurate.
struct RowMaxima {
  float teacher = -std::numeric_limits<float>::infinity();
  float student = -std::numeric_limits<float>::infinity();

  __device__ __forceinline__ void merge(const RowMaxima& y) {
    teacher = fmaxf(teacher, y.teacher);
    student = fmaxf(student, y.student);
  }
};

/// |d| <= 1/2 ? yes : no, where both are known: a branch for each class would keep the classes of a
/// vector from overlapping. `no` if d is NaN.
__device__ __forceinline__ float if_short(float d, float yes, float no) {
  float x;
  asm("{\n  .reg .pred is_short;\n  setp.le.f32 is_short, %1, 0f3f000000;\n"
      "  selp.f32 %0, %2, %3, is_short;\n}"
      : "=f"(x)
      : "f"(fabsf(d)), "f"(yes), "f"(no));
  return x;
}

/// expm1(-d) for |d| <= 1/2, to 3e-9.
__device__ __forceinline__ float short_expm1(float d) {
  float p = fmaf(d, -1.98411828e-4f, 1.39973243e-3f);
  p = fmaf(d, p, -8.33363403e-3f);
  p = fmaf(d, p, 4.16653194e-2f);
  p = fmaf(d, p, -1.66666627e-1f);
  p = fmaf(d, p, 5.00000060e-1f);
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

/// phi(d) for |d| <= 2, to 1e-7.
__device__ __forceinline__ float long_phi(float d) {
  float p = fmaf(d, 2.81623670e-7f, -2.98431678e-6f);
  p = fmaf(d, p, 2.48479428e-5f);
  p = fmaf(d, p, -1.97741101e-4f);
  p = fmaf(d, p, 1.38869754e-3f);
  p = fmaf(d, p, -8.33404902e-3f);
  p = fmaf(d, p, 4.16668467e-2f);
  p = fmaf(d, p, -1.66666463e-1f);
  return d * d * fmaf(d, p, 0.49999997f);
}

/// A row's constants in registers. a_j = 2^(U_j c - k) and b_j = 2^(S_j c - l) with c = log2(e)/T:
/// k is the integer next to the teacher's largest exponent, so that it loses no digits, and l is k
/// less the difference of the two largest, rounded once.
struct VectorRow {
  float scale, teacher_zero, student_zero;  ///< c, k, l
  float inv_temperature, gap;               ///< 1/T, (k - l) ln 2
  float cut;

  __device__ VectorRow(const RowMaxima& maxima, float inv_temperature, float cut)
      : scale(inv_temperature * kLog2e),
        teacher_zero(rintf(maxima.teacher * scale)),
        student_zero(fmaf(maxima.student - maxima.teacher, scale, teacher_zero)),
        inv_temperature(inv_temperature),
        gap(static_cast<float>((static_cast<double>(teacher_zero) - student_zero) * kLn2)),
        cut(cut) {}

  /// Whether the exponents are exact enough: k and l are integers that a float holds.
  __device__ bool is_accurate() const {
    return fabsf(teacher_zero) < 1e6f && fabsf(student_zero) < 1e6f;
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
    return kFromGap ? fmaf(u - s, inv_temperature, ratio - gap) : fmaf(x - y, float(kLn2), ratio);
  }
  static constexpr double kLn2 = 0.69314718055994531;
};

}  // namespace gkd::cuda
