"""Bugs in autograd, in the checks, and between ranks."""

from .mutant import Mutant

SHARD = "tests/python/test_shard.py -k 'equals_the_oracle and float64'"

AUTOGRAD = [
    Mutant(
        name="grad-output-ignored",
        fault="grad_output is taken to be 1 (TransformerEngine#2139)",
        file="csrc/cpu/loss.cpp",
        old="(grad_output.to(at::kDouble) * by)",
        new="(at::ones_like(grad_output, at::kDouble) * by)",
        by=("tests/python/test_loss.py -k test_rows_take_their_own_grad_output",),
    ),
    Mutant(
        name="first-grad-output",
        fault="all rows times grad_output[0] (Liger#968, #1298, #678)",
        file="csrc/cpu/loss.cpp",
        old="(grad_output.to(at::kDouble) * by)",
        new="((grad_output.dim() ? grad_output[0] : grad_output).to(at::kDouble) * by)",
        by=("tests/python/test_loss.py -k test_rows_take_their_own_grad_output",),
    ),
    Mutant(
        name="retained-graph-scaled",
        fault="the saved gradient is scaled in place though the graph is kept (quack#209, k2#1106)",
        file="csrc/saved_gradient.cpp",
        old="if (!torch::autograd::get_current_graph_task_keep_graph() && is_plain(gradient) &&",
        new="if (is_plain(gradient) &&",
        by=("tests/python/test_autograd.py -k 'row_51 or backward_twice'",),
    ),
    Mutant(
        name="student-edit-unnoticed",
        fault="an edit of the student between the passes is not reported",
        file="csrc/saved_gradient.cpp",
        old="ctx->save_for_backward({student, gradient, weight});",
        new="ctx->save_for_backward({gradient, gradient, weight});",
        by=("tests/python/test_autograd.py -k row_52",),
    ),
    Mutant(
        name="gradient-into-input",
        fault="the gradient is written over the student, its version unchanged (Liger#1251, #272)",
        file="csrc/cpu/loss.cpp",
        old="need_grad ? at::empty({student.size(0), student.size(1)}, student.options())",
        new="need_grad ? student.detach()",
        by=("tests/python/test_autograd.py -k test_inputs_stay_as_they_are",),
    ),
    Mutant(
        name="second-derivative-zero",
        fault="a second derivative is a silent 0",
        file="csrc/saved_gradient.cpp",
        old='TORCH_CHECK_NOT_IMPLEMENTED(false, "gkd::loss is not differentiable twice");',
        new="return variable_list(5);",
        by=("tests/python/test_bad_inputs.py -k row_49",),
    ),
]

CHECKS = [
    Mutant(
        name="row-stride-ignored",
        fault="rows are taken to lie end to end (TransformerEngine#2734)",
        file="csrc/cpu/rows.h",
        old="return {data + row * t.stride(0) * t.element_size(), t.stride(1), dtype_of(t)};",
        new="return {data + row * t.size(1) * t.element_size(), t.stride(1), dtype_of(t)};",
        by=("tests/python/test_strides.py -k 'strided_rows or transposed'",),
    ),
    Mutant(
        name="target-bound",
        fault="a target of C passes for a class",
        file="csrc/check.cpp",
        old="TORCH_CHECK_INDEX(value >= 0 && value < classes, name,",
        new="TORCH_CHECK_INDEX(value >= 0 && value <= classes, name,",
        by=("tests/python/test_bad_inputs.py -k row_37",),
    ),
    Mutant(
        name="ranks-swapped",
        fault="rank_by student ranks by the teacher, and the other way round",
        file="csrc/cpu/rows.h",
        old='s.rank_by == "student", s.method',
        new='s.rank_by != "student", s.method',
        by=("tests/python/test_loss.py -k 'test_matches_oracle and float64'",),
    ),
    Mutant(
        name="devices-unchecked",
        fault="student and teacher may be on different devices",
        file="csrc/check.cpp",
        old="TORCH_CHECK(student.device() == teacher.device(), name,",
        new="TORCH_CHECK(true, name,",
        by=("tests/python/test_bad_inputs.py -k row_11",),
    ),
    Mutant(
        name="nan-threshold",
        fault="a NaN for a threshold is let through",
        file="csrc/check.cpp",
        old="TORCH_CHECK_VALUE(s.threshold > 0 && s.threshold <= 1, name,",
        new="TORCH_CHECK_VALUE(!(s.threshold <= 0 || s.threshold > 1), name,",
        by=("tests/python/test_bad_inputs.py -k row_29",),
    ),
]

SHARDING = [
    Mutant(
        name="gradient-times-world-size",
        fault="a shard's gradient is too large by the number of ranks",
        file="csrc/sharded.cpp",
        old="return {loss, gradient, weight};",
        new="return {loss, gradient * ranks.world_size, weight};",
        by=("tests/python/test_distributed.py -k 'equals_the_unsharded_loss and 2'",),
    ),
    Mutant(
        name="mass-above-window",
        fault="what ranks above the window of a shard's search is not counted",
        file="csrc/cpu/shard.cpp",
        old="to.amounts[kWireAbove] = static_cast<long long>(above);",
        new="to.amounts[kWireAbove] = 0;",
        by=(SHARD,),
    ),
    Mutant(
        name="class-start-ignored",
        fault="a shard looks for the whole row's target among its own classes",
        file="csrc/cpu/shard_stages.cpp",
        old="own.value >= c.class_start ? own.value - c.class_start : -1;",
        new="own.value >= c.class_start ? own.value : -1;",
        by=(SHARD,),
    ),
    Mutant(
        name="bad-row-stays-local",
        fault="a NaN on one rank leaves the others' part of the row finite",
        file="csrc/cpu/shard_stages.cpp",
        old="all.bad |= part[kWireBad] != 0;",
        new="all.bad = part[kWireBad] != 0;",
        by=("tests/python/test_shard.py -k bad_and_ignored",),
    ),
    Mutant(
        name="agreement-rounds",
        fault="ranks compare their settings as whole numbers, so 4 and 4.5 agree",
        file="python/gkd/_agreement.py",
        old='return int(struct.unpack("q", struct.pack("d", value))[0])',
        new="return int(value)",
        by=("tests/python/test_distributed.py -k ranks_that_disagree",),
    ),
    Mutant(
        name="agreement-forgets",
        fault="ranks do not compare whether they have a target",
        file="python/gkd/_agreement.py",
        old='            "whether there is a target": self.target is not None,\n',
        new="",
        by=("tests/python/test_distributed.py -k ranks_that_disagree",),
    ),
    Mutant(
        name="local-target-shifted",
        fault="partial FC's targets are not moved by class_start",
        file="python/gkd/distributed.py",
        old='target.long() + settings["class_start"])',
        new="target.long())",
        by=("tests/python/test_distributed_use.py -k partial_fc",),
    ),
]
