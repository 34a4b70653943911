"""Bugs in teacher_group and sparse_loss."""

from .mutant import Mutant

VALUES = "tests/python/sparse/test_sparse_values.py"
FAULTS = "tests/python/sparse/test_sparse_faults.py"
GROUPS = "tests/python/sparse/test_teacher_groups.py"
ACCURACY = "tests/python/sparse/test_sparse_accuracy.py"
WHOLE = f"{VALUES} -k 'test_equals_the_loss_of_the_whole_teacher and flat'"
TRAINING = f"{VALUES} -k 'test_training_equals and flat'"
LINEAR = "tests/python/sparse/test_sparse_linear.py"
SHARDS = "tests/python/sparse/test_sparse_shards.py"

SPARSE = [
    Mutant(
        name="group-in-the-rest",
        fault="the rest's sum holds the group's classes too",
        file="csrc/cpu/kernels/sparse_passes-inl.h",
        old="buffer[*next - j] = -kInfinity<T>;",
        new="(void)0;",
        by=(WHOLE,),
    ),
    Mutant(
        name="rest-not-rescaled",
        fault="a larger logit becomes the reference of a sum that keeps its old scale",
        file="csrc/cpu/kernels/rest_sums-inl.h",
        old="sum.multiply(std::exp(gap * terms.inv_t));",
        new="",
        by=(WHOLE,),
    ),
    Mutant(
        name="other-powers-not-rescaled",
        fault="likewise of cross-entropy's sum",
        file="csrc/cpu/kernels/rest_sums-inl.h",
        old="sum_others.multiply(std::exp(gap * terms.scale));",
        new="",
        by=(TRAINING,),
    ),
    Mutant(
        name="nan-outside-the-group-unseen",
        fault="a NaN of the student outside the group is taken for a class without mass",
        file="csrc/cpu/kernels/rest_sums-inl.h",
        old="has_nan |= is_number != kAllTrue<V>;",
        new="",
        by=(f"{FAULTS} -k 'nan_alone'",),
    ),
    Mutant(
        name="group-teacher-nan-unseen",
        fault="a NaN that is kept as a teacher's logit does not make its row NaN",
        file="csrc/cpu/kernels/sparse_passes-inl.h",
        old="is_valid &= u[k] < kInfinity<T>;",
        new="",
        by=(f"{FAULTS} -k 'nan_alone and logits'",),
    ),
    Mutant(
        name="teacher-scaled-too",
        fault="the scale multiplies the finished logits of the group",
        file="csrc/cpu/kernels/sparse_passes-inl.h",
        old="u[k] = static_cast<T>(u[k] / scale);",
        new="u[k] = static_cast<T>(u[k]);",
        by=(TRAINING,),
    ),
    Mutant(
        name="target-in-the-groups-others",
        fault="cross-entropy's sum over the group holds the target",
        file="csrc/cpu/kernels/sparse_passes-inl.h",
        old="if (found != end && *found == task.target) s[found - begin] = -kInfinity<T>;",
        new="(void)found;",
        by=(TRAINING,),
    ),
    Mutant(
        name="rest-mass-of-the-student",
        fault="the rest's teacher mass is not that of the stored number",
        file="csrc/cpu/kernels/sparse.cpp",
        old="has_mass ? sparse.rest / inv_temperature : 0",
        new="has_mass ? sparse.rest : 0",
        by=(WHOLE,),
    ),
    Mutant(
        name="index-past-the-end",
        fault="a class of the group that the student does not have is read",
        file="csrc/cpu/group_rows.h",
        old="TORCH_CHECK_INDEX(*k >= 0 && *k < classes,",
        new="TORCH_CHECK_INDEX(*k >= 0,",
        by=(f"{FAULTS} -k 'test_values'",),
    ),
    Mutant(
        name="class-twice",
        fault="a class may be in a group twice",
        file="csrc/cpu/group_rows.h",
        old="TORCH_CHECK_VALUE(k == first || k[-1] < *k,",
        new="TORCH_CHECK_VALUE(k == first || k[-1] <= *k,",
        by=(f"{FAULTS} -k 'test_classes_must_ascend'",),
    ),
    Mutant(
        name="target-outside-its-group",
        fault="a target that the group has not is taken",
        file="csrc/cpu/group_rows.h",
        old="std::isnan(group.rest(row)) || holds(group, row, target)",
        new="true",
        by=(f"{FAULTS} -k 'test_target_outside'",),
    ),
    Mutant(
        name="secondary-accepted",
        fault="a weight of Secondary-KD is ignored in silence",
        file="csrc/sparse.cpp",
        old="s.secondary_weight == 0, name,",
        new="true, name,",
        by=(f"{FAULTS} -k 'test_settings'",),
    ),
    Mutant(
        name="rest-of-all-classes",
        fault="the log-sum-exp that is kept is over the group too",
        file="csrc/teacher_group.cpp",
        old="masked_fill(mask, -std::numeric_limits<double>::infinity())",
        new="clone()",
        by=(f"{GROUPS} -k 'masks_of_the_loss and flat'",),
    ),
    Mutant(
        name="rows-of-a-chunk",
        fault="the rows of a later chunk are counted from its start",
        file="csrc/teacher_group.cpp",
        old="rest.narrow(0, row, count)",
        new="rest.narrow(0, 0, count)",
        by=(f"{GROUPS} -k 'number_of_chunks'",),
    ),
    Mutant(
        name="targets-logit-of-any-rank",
        fault="a rank without the target's class sends a logit of it",
        file="csrc/cpu/kernels/sparse.cpp",
        old="message[kMsgTarget] = is_here ? row.target_logit() : -kInfinity<double>;",
        new="message[kMsgTarget] = is_here ? row.target_logit() : 1e3;",
        by=(f"{SHARDS} -k 'equal_the_whole and head'",),
    ),
    Mutant(
        name="bad-row-of-a-shard-taken",
        fault="a rank whose group cannot be the call's does not tell the others",
        file="csrc/cpu/sparse_shard_ops.cpp",
        old="message[kMsgInvalid] = 1;",
        new="message[kMsgInvalid] = 0;",
        by=(f"{SHARDS} -k 'bad_rows'",),
    ),
    Mutant(
        name="rest-of-each-rank",
        fault="a rank's rest is relative to its own largest logit",
        file="csrc/cpu/sparse_shard_ops.cpp",
        old="group[1].change_shift({group[1].shift.teacher, high}, inv_temperature);",
        new="group[1].shift.student = high;",
        by=(f"{SHARDS} -k 'equal_the_whole and plain'",),
    ),
    Mutant(
        name="no-rest-of-the-teacher",
        fault="what the teacher has outside the group is not in the sharded sums",
        file="csrc/sharded_sparse.cpp",
        old="fields[8] = fields[11] = some.to(at::kDouble);",
        new="fields[8] = some.to(at::kDouble);",
        by=(f"{SHARDS} -k 'equals_unsharded and 2'",),
    ),
    Mutant(
        name="chunk-has-the-first-rows",
        fault="every chunk takes the groups of the first rows",
        file="python/gkd/_plan.py",
        old="indptr[rows.start : rows.stop + 1]",
        new="indptr[: rows.stop - rows.start + 1]",
        by=(f"{LINEAR} -k 'equals_the_steps and size'",),
    ),
    Mutant(
        name="part-keeps-its-classes",
        fault="a shard's classes are counted from class 0 of the whole row",
        file="python/gkd/_distributed_sparse.py",
        old="indices[kept] - start",
        new="indices[kept]",
        by=(f"{SHARDS} -k 'is_its_part'",),
    ),
    Mutant(
        name="rest-in-float32",
        fault="the number of the rest is rounded to float32",
        file="csrc/teacher_group.cpp",
        old=".copy_(log_sum_outside(part, mask, o.temperature)",
        new=".copy_(log_sum_outside(part, mask, o.temperature).to(at::kFloat)",
        by=(f"{ACCURACY} -k 'language_model'",),
    ),
]
