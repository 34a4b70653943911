"""What the suite answers for: every input and every regression of others' kernels, by number.

Tests carry `@pytest.mark.input(37)` or `@pytest.mark.regression("Liger#968")`; account.py counts
them. A number without a test needs a reason here.
"""

from typing import NamedTuple


class Input(NamedTuple):
    given: str
    expected: str
    cpp: bool = False  #: GoogleTest has it too
    reason: str = ""  #: why there is no test


class Regression(NamedTuple):
    sources: tuple[str, ...]  #: PROJECT#NUMBER of an issue or a change
    symptom: str
    reason: str = ""


#: Student and teacher logits are [B, C]. V, T, I, R, N: ValueError, TypeError, IndexError,
#: RuntimeError, NotImplementedError, each with a message that names the argument.
INPUTS = {
    1: Input("B = 0", "losses of 0, none of them for none, and an empty gradient", cpp=True),
    2: Input("C = 0", "V: a row needs a class", cpp=True),
    3: Input("C = 1", "loss and gradient are 0", cpp=True),
    4: Input("C = 2, a group of 0 or 1", "finite; a group without a class adds nothing"),
    5: Input("two shapes that would broadcast", "V with both shapes", cpp=True),
    6: Input("1-D or 3-D logits", "V with the number of dimensions", cpp=True),
    7: Input("integer or bool logits", "T with the dtype", cpp=True),
    8: Input("student and teacher of two dtypes", "the bits of the wider one's call"),
    9: Input("complex or 8-bit logits", "T with the dtype", cpp=True),
    10: Input("float64", "computed in float64: gradcheck passes"),
    11: Input("tensors on two devices", "R with both devices", cpp=True),
    12: Input("transposed, strided and turned layouts", "the contiguous copy's bits"),
    13: Input("rows or columns of stride 0", "the copy's bits; a dense gradient", cpp=True),
    14: Input("storage offsets of 1 to 15", "the aligned copy's bits"),
    15: Input("a NaN of either sign", "its row is NaN, the others keep their bits", cpp=True),
    16: Input("+inf", "its row is NaN", cpp=True),
    17: Input("-inf for the teacher alone", "probability 0; finite"),
    18: Input("-inf for the student alone", "the term it is part of is +inf, gradients finite"),
    19: Input("-inf for both", "adds nothing"),
    20: Input("a row of -inf", "is NaN, and the call ends", cpp=True),
    21: Input("a row of equal logits", "all are in the group; 0 if the student's are equal too"),
    22: Input("-0.0 beside +0.0", "one tie"),
    23: Input("student equal to teacher", "loss and gradient are exactly 0", cpp=True),
    24: Input("one class 1e4 above the rest", "finite, and as in float64"),
    25: Input("logits of 1e30, float16's largest", "finite: differences come before the division"),
    26: Input("subnormal logits", "ranked apart, on every device"),
    27: Input("temperature 0, negative, NaN, inf", "V with the value", cpp=True),
    28: Input("temperature 1e-8, 1e8", "V outside [1e-6, 1e6]; right at both ends", cpp=True),
    29: Input("threshold 0, negative, above 1, NaN", "V with the value", cpp=True),
    30: Input("threshold 1", "every class but those of -inf"),
    31: Input("threshold 1e-30", "the largest logit and its ties"),
    32: Input("group_size below 0", "V with the value", cpp=True),
    33: Input("group_size of C or more", "every class", cpp=True),
    34: Input("threshold and group_size", "V: one of them", cpp=True),
    35: Input("weights NaN or inf; negative", "V with the value; computed", cpp=True),
    36: Input("every weight 0", "0, even where a term is infinite", cpp=True),
    37: Input("target below 0 or past C", "I on the CPU; on a device a NaN row, or I", cpp=True),
    38: Input("target = ignore_index", "no loss and no gradient, NaN row or not", cpp=True),
    39: Input("ignore_index that is a class", "such rows are ignored"),
    40: Input("every row ignored", "a mean of 0 and no gradient", cpp=True),
    41: Input("target of another dtype", "T unless int64 or int32", cpp=True),
    42: Input("target of another shape", "V with both shapes", cpp=True),
    43: Input("no target", "every setting is defined: group_size 0 leaves the group empty"),
    44: Input("unknown reduction", "V with the three", cpp=True),
    45: Input("more than 2^31 and 2^32 elements", "right to the last row"),
    46: Input("more classes than float32 counts", "counted right"),
    47: Input("more rows than a grid's y and z", "right to the last row"),
    48: Input("a teacher that requires grad", "V: detach it", cpp=True),
    49: Input("double backward", "N", cpp=True),
    50: Input("backward twice", "autograd's own error", cpp=True),
    51: Input("backward twice with retain_graph", "both right, to the bit"),
    52: Input("student edited between the passes", "autograd's version error"),
    53: Input("one tensor as student and teacher", "loss and gradient are exactly 0"),
    54: Input("no_grad, inference_mode", "the same bits without a gradient's memory", cpp=True),
    55: Input("autocast", "float32 loss, no 16-bit sums"),
    56: Input("torch.func transforms", "vmap works; gradients and jvp are N with the way out"),
    57: Input("torch.compile, dynamic shapes", "no break, the same bits"),
    58: Input("a captured CUDA graph, new data", "right, without waiting or allocating"),
    59: Input("streams and threads", "the serial bits"),
    60: Input("deterministic mode", "the same bits on every run"),
    61: Input("not enough memory", "torch's error; the next call works"),
    62: Input("fork after CUDA was used", "torch's error, no hang; the CPU works"),
    63: Input("pickle, deepcopy, state_dict", "settings are kept, weights_only loads"),
    64: Input("tensor subclasses, DTensor", "dispatched, or refused by name"),
    65: Input("sparse, quantized, MKLDNN", "N with operator and layout", cpp=True),
    66: Input("meta and fake tensors", "shapes and dtypes", cpp=True),
    67: Input("negative bit", "resolved"),
    68: Input("grad_output expanded or strided", "right"),
}

REGRESSIONS = {
    1: Regression(
        ("TransformerEngine#2139",), "a wrong gradient that a grad_output of 1 did not show"
    ),
    2: Regression(
        ("Liger#968", "Liger#1298", "Liger#678"), "every row took the first row's grad_output"
    ),
    3: Regression(("TransformerEngine#2476",), "a test that compared a result with itself"),
    4: Regression(("Liger#262",), "a lax comparison let a wrong KL through"),
    5: Regression(("Liger#1251", "Liger#272"), "the gradient was written over the input"),
    6: Regression(("Megatron#1594",), "float() copies nothing of a float32 input, then in place"),
    7: Regression(("quack#209", "k2#1106"), "scaling in place spoilt the second backward"),
    8: Regression(("TransformerEngine#2734",), "one stride was checked, the other not"),
    9: Regression(("pytorch#71550",), "an expanded target was refused"),
    10: Regression(
        ("pytorch#84144", "pytorch#111484", "pytorch#85786"), "wrong beyond 2^31 or 2^32 elements"
    ),
    11: Regression(("pytorch#192007",), "rows of almost 2^31 classes overflowed an index"),
    12: Regression(("flashinfer#2937",), "row * stride wrapped to 0 past 2^32"),
    13: Regression(("flash-linear-attention#1080",), "only the last of many rows overflowed"),
    14: Regression(("cccl#2061", "cub#459"), "a chunk that begins past 0 read the wrong memory"),
    15: Regression(("flashinfer#1049",), "a row of -inf never ended"),
    16: Regression(("flashinfer#2402", "flashinfer#2456"), "a row of NaN left an index unset"),
    17: Regression(("flashinfer#2202",), "a group of 0.89999 passed for 0.9"),
    18: Regression(("flashinfer#3774",), "ties at the cut were counted past the goal"),
    19: Regression(("flashinfer#4811",), "+inf was left out"),
    20: Regression(("pytorch#117617", "tt-metal#56626"), "a negative NaN ranked below -inf"),
    21: Regression(
        ("flashinfer#4831", "sglang#22458"), "float atomics made ranks disagree, then hang"
    ),
    22: Regression(("Liger#1338",), "ignored rows were never written"),
    23: Regression(("Liger#177",), "a mean over no rows divided by 0"),
    24: Regression(("Liger#1453", "Liger#769"), "0 * log 0 once an exponential underflowed"),
    25: Regression(("pytorch#51910",), "KL of empty or huge logits was NaN"),
    26: Regression(("mdistiller#60",), "two classes leave one beside the target: probability 1"),
    27: Regression(("CTKD#9", "CTKD#10"), "DKD's backward gave NaN for a probability of 0"),
    28: Regression(("insightface#1437",), "a clamp held the loss at -ln 1e-30 = 69.08"),
    29: Regression(
        ("pytorch#12372", "pytorch#43840", "pytorch#106467"),
        "a bad target broke the context, was silent, or wrote past memory",
    ),
    30: Regression(("tritonbench#477",), "waiting for the device broke a graph's capture"),
    31: Regression(("FBGEMM#5113", "pytorch#54077"), "the current device was not the tensors'"),
    32: Regression(("pytorch#56325",), "a misaligned row broke vector loads"),
}
