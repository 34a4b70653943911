"""Arguments that every function of logits must refuse, and the text of its error.

The text follows the name of the function; CPU, CUDA and Meta give the same one.
"""

import torch

NAN, INF = float("nan"), float("inf")

#: Settings, exception, text.
SETTINGS = [
    ({"temperature": 0.0}, ValueError, "temperature must be finite and > 0, got 0"),
    ({"temperature": -1.0}, ValueError, "temperature must be finite and > 0, got -1"),
    ({"temperature": NAN}, ValueError, "temperature must be finite and > 0, got nan"),
    ({"temperature": INF}, ValueError, "temperature must be finite and > 0, got inf"),
    ({"temperature": 1e-8}, ValueError, "temperature must be in [1e-6, 1e6], got 1e-08"),
    ({"temperature": 1e8}, ValueError, "temperature must be in [1e-6, 1e6], got 1e+08"),
    ({"threshold": 0.0}, ValueError, "threshold must be in (0, 1], got 0"),
    ({"threshold": -0.5}, ValueError, "threshold must be in (0, 1], got -0.5"),
    ({"threshold": 1.5}, ValueError, "threshold must be in (0, 1], got 1.5"),
    ({"threshold": NAN}, ValueError, "threshold must be in (0, 1], got nan"),
    ({"group_size": -1}, ValueError, "group_size must be >= 0, got -1"),
    (
        {"threshold": 0.93, "group_size": 2},
        ValueError,
        "give one of threshold and group_size, got threshold 0.93 and group_size 2",
    ),
    ({"primary_weight": NAN}, ValueError, "primary_weight must be finite, got nan"),
    ({"binary_weight": INF}, ValueError, "binary_weight must be finite, got inf"),
    ({"secondary_weight": -INF}, ValueError, "secondary_weight must be finite, got -inf"),
    (
        {"binary_weight": -1e31},
        ValueError,
        "binary_weight must be in [-1e30, 1e30], got -1e+31",
    ),
    ({"reduction": "max"}, ValueError, "reduction must be none, mean or sum, got max"),
    ({"rank_by": "loss"}, ValueError, "rank_by must be teacher or student, got loss"),
    ({"method": "bogo"}, ValueError, "method must be auto, sort or select, got bogo"),
]


def shaped(*shape, dtype=torch.float32):
    return lambda device: torch.zeros(shape, dtype=dtype, device=device)


X = shaped(4, 10)
WRONG_KIND = "expected floating point "
#: Student, teacher, target, exception, text.
TENSORS = [
    (
        shaped(4, 0),
        shaped(4, 0),
        None,
        ValueError,
        "student_logits must have at least one class, got [4, 0]",
    ),
    (
        X,
        shaped(4, 9),
        None,
        ValueError,
        "teacher_logits must be [4, 10] as student_logits, got [4, 9]",
    ),
    (
        X,
        shaped(1, 10),
        None,
        ValueError,
        "teacher_logits must be [4, 10] as student_logits, got [1, 10]",
    ),
    (shaped(), shaped(), None, ValueError, "student_logits must be [..., C], got a scalar"),
    (X, shaped(), None, ValueError, "teacher_logits must be [..., C], got a scalar"),
    (
        X,
        shaped(2, 2, 10),
        None,
        ValueError,
        "teacher_logits must be [4, 10] as student_logits, got [2, 2, 10]",
    ),
    (shaped(4, 10, dtype=torch.int32), X, None, TypeError, WRONG_KIND + "student_logits, got Int"),
    (shaped(4, 10, dtype=torch.bool), X, None, TypeError, WRONG_KIND + "student_logits, got Bool"),
    (X, shaped(4, 10, dtype=torch.int64), None, TypeError, WRONG_KIND + "teacher_logits, got Long"),
    (
        shaped(4, 10, dtype=torch.complex64),
        X,
        None,
        TypeError,
        "unsupported dtype of student_logits: expected float16, bfloat16, float32 or float64, "
        "got ComplexFloat",
    ),
    (
        X,
        shaped(4, 10, dtype=torch.float8_e4m3fn),
        None,
        TypeError,
        "unsupported dtype of teacher_logits: expected float16, bfloat16, float32 or float64, "
        "got Float8_e4m3fn",
    ),
    (
        X,
        X,
        shaped(4),
        TypeError,
        "target must be int64 or int32, got Float",
    ),
    (
        X,
        X,
        shaped(4, dtype=torch.bool),
        TypeError,
        "target must be int64 or int32, got Bool",
    ),
    (X, X, shaped(4, 1, dtype=torch.long), ValueError, "target must be [4], got [4, 1]"),
    (X, X, shaped(5, dtype=torch.long), ValueError, "target must be [4], got [5]"),
    (X, X, shaped(dtype=torch.long), ValueError, "target must be [4], got []"),
]
