"""Bugs in csrc/math and csrc/cpu."""

from .mutant import Mutant

PARITY = "tests/python/loss/test_loss.py -k 'test_matches_oracle and float64'"

MATHS = [
    Mutant(
        name="temperature-once",
        fault="the loss is scaled by T, not T^2",
        file="csrc/math/loss.h",
        old="return w.temperature * w.temperature * sum;",
        new="return w.temperature * sum;",
        by=("gkd_math_test RowMaths*",),
    ),
    Mutant(
        name="gradient-without-temperature",
        fault="the KL's part of the gradient misses T, the loss has it",
        file="csrc/math/loss.h",
        old="c.coef_diff = static_cast<T>(slope * row.kl_weight[g]);",
        new="c.coef_diff = static_cast<T>(row.kl_weight[g]);",
        by=("gkd_math_test RowMaths*",),
    ),
    Mutant(
        name="other-group-reference",
        fault="the rest is taken relative to the primary group's shift",
        file="csrc/math/loss.h",
        old="c.shift.student = static_cast<T>(finite_or_zero(m[g].shift.student));",
        new="c.shift.student = static_cast<T>(finite_or_zero(m[0].shift.student));",
        by=("gkd_math_test RowMaths*",),
    ),
    Mutant(
        name="rest-by-subtraction",
        fault="P' = 1 - P, which keeps no digit of a small P'",
        file="csrc/math/loss.h",
        old="row.p_rest = value[3];",
        new="row.p_rest = 1 - row.p;",
        by=("gkd_math_test RowMaths*",),
    ),
    Mutant(
        name="binary-plain",
        fault="Binary-KD by differences of logarithms where student and teacher nearly agree",
        file="csrc/math/loss.h",
        old="if (w >= -1 && w <= 1) {",
        new="if (w != w) {",
        by=("gkd_math_test Binary*",),
    ),
    Mutant(
        name="phi-plain",
        fault="phi(d) = exp(-d) - 1 + d as it is written: it cancels near 0",
        file="csrc/math/elementary.h",
        old="const V phi = d * d * alternating_series<2, kLast>(d);",
        new="const V phi = exp_of(V(-d)) - ScalarOf<V>(1) + d;",
        by=("gkd_math_test Phi*",),
    ),
    Mutant(
        name="merge-without-rescale",
        fault="merged moments keep their own shift",
        file="csrc/math/moments.h",
        old="    other.change_shift(common, inv_temperature);\n",
        new="",
        by=("gkd_math_test Moments*",),
    ),
    Mutant(
        name="negative-zero",
        fault="-0.0 ranks under +0.0, which splits a tie",
        file="csrc/math/cut.h",
        old="if (magnitude == 0) return sign;",
        new="",
        by=("gkd_math_test OrderedKey*",),
    ),
    Mutant(
        name="nan-key",
        fault="a NaN of negative sign ranks under -inf (pytorch#117617, tt-metal#56626)",
        file="csrc/math/cut.h",
        old="if (magnitude > infinity) return static_cast<Bits>(~Bits(0));",
        new="",
        by=("gkd_math_test OrderedKey*",),
    ),
    Mutant(
        name="threshold-strictly",
        fault="a group that weighs the threshold exactly takes one class more",
        file="csrc/math/cut.h",
        old="return static_cast<double>(mass) >= threshold * static_cast<double>(total);",
        new="return static_cast<double>(mass) > threshold * static_cast<double>(total);",
        by=("gkd_math_test Mass*",),
    ),
    Mutant(
        name="weight-0-times-inf",
        fault="a weight of 0 times an infinite KL is NaN",
        file="csrc/math/loss.h",
        old="if (row.kl_weight[0] != 0) sum += row.kl_weight[0] * primary;",
        new="sum += row.kl_weight[0] * primary;",
        by=("gkd_math_test RowMaths*",),
    ),
]

CPU = [
    Mutant(
        name="cut-left-out",
        fault="the gradient leaves the class at the cut, and its ties, to the rest",
        file="csrc/cpu/kernels/row_passes-inl.h",
        old="const MaskOf<V> in = r[k] >= cut_vector;",
        new="const MaskOf<V> in = r[k] > cut_vector;",
        by=("tests/python/autograd/test_autograd.py -k gradcheck", PARITY),
    ),
    Mutant(
        name="tail-not-written",
        fault="a 16-bit gradient lacks what is left of a row after whole vectors",
        file="csrc/cpu/kernels/simd-inl.h",
        old="std::memcpy(out + k, &v, bytes);",
        new="if (k == 0 || bytes == sizeof(v)) std::memcpy(out + k, &v, bytes);",
        by=("gkd_row_test Row.SixteenBits*",),
    ),
    Mutant(
        name="ties-rounded-up",
        fault="bfloat16 is rounded half up, not half to even",
        file="csrc/cpu/kernels/simd-inl.h",
        old="bits + 0x8000u + even",
        new="bits + 0x8000u + 0 * even",
        by=("tests/python/loss/test_loss.py -k ties_to_even",),
    ),
    Mutant(
        name="window-unverified",
        fault="the first class of a window under the cut is taken for the cut",
        file="csrc/cpu/kernels/select-inl.h",
        old="return bracket.is_not_met(before) && bracket.is_met(above);",
        new="return true;",
        by=("gkd_row_test Row.NoOrder*",),
    ),
    Mutant(
        name="sums-without-error",
        fault="sums in double decide a threshold that lies between them and the integers",
        file="csrc/cpu/kernels/select-inl.h",
        old="if (stop.by_mass) error = 2 * n * (1 / scale + 0x1p-53 * total);",
        new="",
        by=("gkd_row_test Row.AThreshold*",),
    ),
    Mutant(
        name="far-as-near",
        fault="logits many nats apart take the terms of those close together",
        file="csrc/cpu/kernels/near_terms-inl.h",
        old="limit(T(kMaxNats * kMaxNats) / (inv_t * inv_t))",
        new="limit(T(1e30))",
        by=("gkd_row_test Row.NearAndFar*",),
    ),
    Mutant(
        name="kept-padding",
        fault="what follows a row's last kept exponential is -inf, not 0",
        file="csrc/cpu/kernels/row_passes-inl.h",
        old="if (tile == buffer) std::fill(buffer + count, buffer + padded<T>(count), T(0));",
        new="",
        by=("gkd_row_test Row.InstructionSetsAgree",),
    ),
    Mutant(
        name="target-above-the-window",
        fault="a target that ranks below the window weighs as if it were above it",
        file="csrc/cpu/kernels/row.cpp",
        old="weight[0] -= own;",
        new="",
        by=("gkd_row_test Row.ATargetBelow*",),
    ),
    Mutant(
        name="last-block-of-one",
        fault="a last tile that is one class long is skipped",
        file="csrc/cpu/kernels/load_store-inl.h",
        old="""\
  void for_each_tile(std::int64_t begin, std::int64_t end, Visit visit) const {
    Buffers buffers;
    // Only when ranking == teacher, so that the compiler converts it once.
    const bool halves = is_half_row(s) && is_half_row(u) && s.dtype == u.dtype && !by_student;
    for (std::int64_t j = begin, count; j < end; j += count) {
""",
        new="""\
  void for_each_tile(std::int64_t begin, std::int64_t end, Visit visit) const {
    Buffers buffers;
    // Only when ranking == teacher, so that the compiler converts it once.
    const bool halves = is_half_row(s) && is_half_row(u) && s.dtype == u.dtype && !by_student;
    for (std::int64_t j = begin, count; j < end - (end > kTile); j += count) {
""",
        by=("gkd_row_test Row.InstructionSetsAgree", PARITY),
    ),
    Mutant(
        name="ties-split",
        fault="of the classes tied at the cut one joins the group (flashinfer#3774)",
        file="csrc/cpu/kernels/sums-inl.h",
        old="""\
      const MaskOf<V> in = r[k] >= high;
      const unsigned in_bits = compare_bits(r[k], high);
""",
        new="""\
      const MaskOf<V> in = r[k] > high;
      const unsigned in_bits = movemask(in);
""",
        by=("tests/python/loss/test_loss.py -k test_methods_agree", PARITY),
    ),
    Mutant(
        name="ignored-row-unwritten",
        fault="an ignored row's gradient is whatever lay in memory (Liger#1338)",
        file="csrc/cpu/tensors.h",
        old="if (to.data) std::memset(to.data, 0, classes() * gradient.itemsize());",
        new="(void)to;",
        by=("tests/python/loss/test_edge_values.py -k ignored_rows",),
    ),
    Mutant(
        name="int32-row-offset",
        fault="a row's offset wraps past 2^31 elements (pytorch#84144, flashinfer#2937)",
        file="csrc/cpu/tensors.h",
        old="return {data + row * t.stride(0) * t.element_size(), t.stride(1), dtype_of(t)};",
        new="""\
return {data + static_cast<int>(row * t.stride(0)) * t.element_size(), t.stride(1),
          dtype_of(t)};""",
        by=("tests/python/robustness/test_memory.py -k offsets_past_32_bits",),
    ),
    Mutant(
        name="ignored-rows-counted",
        fault="the ignored rows count in the mean (Liger#177)",
        file="csrc/cpu/tensors.h",
        old="counted += !target(row).ignored;",
        new="counted += 1;",
        by=("tests/python/loss/test_edge_values.py -k ignored_rows",),
    ),
    Mutant(
        name="row-ratio-of-the-rest",
        fault="log(P/Q) is taken from the rest's ratio where the groups have one shift",
        file="csrc/math/loss.h",
        old="value[kOfRow] - ratio[0]",
        new="value[kOfRow] - ratio[1]",
        by=("gkd_math_test RowMaths.*",),
    ),
]
