"""Bugs in training_loss: scale, margin, cross-entropy, and the weight of the distillation."""

from .mutant import Mutant

VALUES = "tests/python/training/test_training_values.py"
EDGES = "tests/python/training/test_training_edges.py"
GROUPS = "tests/python/training/test_training_groups.py"

TRAINING = [
    Mutant(
        name="scale-missing-in-gradient",
        fault="the gradient is that of the scaled logits, not of the cosines",
        file="csrc/math/loss.h",
        old="const double slope = w.temperature * w.scale * w.distillation;",
        new="const double slope = w.temperature * w.distillation;",
        by=(f"{VALUES} -k 'test_equals_the_usual_steps'",),
    ),
    Mutant(
        name="scaled-temperature-in-loss",
        fault="the loss has (T/scale)^2 in place of T^2",
        file="csrc/math/loss.h",
        old="return w.temperature * w.temperature * sum;",
        new="return w.exponent_temperature() * w.exponent_temperature() * sum;",
        by=(f"{VALUES} -k 'test_equals_the_usual_steps'",),
    ),
    Mutant(
        name="target-in-its-own-sum",
        fault="cross-entropy's sum holds the target without its margin",
        file="csrc/cpu/kernels/load_store-inl.h",
        old="buffers->others[target - begin] = -kInfinity<T>;",
        new="buffers->others[target - begin] = student[target - begin];",
        by=(f"{VALUES} -k 'test_equals_the_usual_steps'",),
    ),
    Mutant(
        name="powers-trusted",
        fault="powers far under their shift, which underflow, are taken for cross-entropy's sum",
        file="csrc/cpu/kernels/row_moments-inl.h",
        old="if (squarings >= 0 && !powers_are_accurate(sums)) sums.others = sum_others();",
        new="",
        by=("tests/python/training/test_training_accuracy.py",),
    ),
    Mutant(
        name="sure-row-loses-digits",
        fault="log(1 + x) of a tiny x is 0",
        file="csrc/math/cross_entropy.h",
        old="row.loss = std::log1p(std::exp(z));",
        new="row.loss = std::log(1 + std::exp(z));",
        by=(f"{EDGES} -k sure",),
    ),
    Mutant(
        name="margin-of-one-network",
        fault="distill_margin lowers the student's target alone",
        file="csrc/cpu/tensors.h",
        old="for (LogitsRow* logits : {&task.student, &task.teacher}) {",
        new="for (LogitsRow* logits : {&task.student}) {",
        by=(f"{VALUES} -k 'test_the_authors_step'",),
    ),
    Mutant(
        name="part-with-its-weight",
        fault="the logged distillation has its weight in it",
        file="csrc/cpu/kernels/row.cpp",
        old="result.loss = total_loss(task.weights, result.cross_entropy, result.distillation);",
        new="result.loss = total_loss(task.weights, result.cross_entropy, result.distillation);"
        " result.distillation *= task.weights.distillation;",
        by=(f"{VALUES} -k test_parts",),
    ),
    Mutant(
        name="float16-bound-without-cross-entropy",
        fault="a float16 gradient of cross-entropy overflows",
        file="csrc/math/loss.h",
        old="* terms + std::fabs(w.cross_entropy));",
        new="* terms);",
        by=(f"{EDGES} -k float16",),
    ),
    Mutant(
        name="target-logit-of-no-rank",
        fault="ranks take the last one's target logit, which is -inf for most rows",
        file="csrc/math/messages.h",
        old="target = message[kMsgTarget] > target ? message[kMsgTarget] : target;",
        new="target = message[kMsgTarget];",
        by=("tests/python/training/test_training_shards.py -k stages_equal",),
    ),
    Mutant(
        name="group-temperature-without-scale",
        fault="gkd.group divides only the terms' temperature by the scale",
        file="python/gkd/groups.py",
        old='for key in ("temperature", "group_temperature"):',
        new='for key in ("temperature",):',
        by=(f"{GROUPS} -k prepared",),
    ),
    Mutant(
        name="group-margin-rounded",
        fault="gkd.group rounds x - m to the dtype of half logits",
        file="python/gkd/groups.py",
        old="dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32",
        new="dtype = logits.dtype",
        by=(f"{GROUPS} -k rounded",),
    ),
]
