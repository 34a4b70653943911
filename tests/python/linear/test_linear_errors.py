"""Every error of gkd.linear_loss names the argument, what was expected and what came."""

import pytest
import torch

import gkd
from linear_reference import D_S, D_T, B, C, networks

pytestmark = pytest.mark.products


def shapes(**changed):
    """Networks of which some tensors are replaced by fresh ones of another shape."""
    net = dict(zip("fwgv", networks("cpu", torch.float32), strict=True))
    return [*{**net, **{k: torch.randn(shape) for k, shape in changed.items()}}.values()]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (shapes(f=(B,)), "student_features must be [..., D], got 1 dimensions"),
        (shapes(v=(C, 2, 2)), "teacher_weight must be [C, D], got 3 dimensions"),
        (shapes(w=(C, 4)), "student_weight must be [C, 6], got [33, 4]"),
        (shapes(v=(C, 4)), "teacher_weight must be [C, 5], got [33, 4]"),
        (shapes(g=(4, D_T)), "teacher_features must be [7, D] as student_features, got [4, 5]"),
        (shapes(v=(9, D_T)), "teacher_weight must have 33 classes as student_weight, got 9"),
        (shapes(w=(0, D_S), v=(0, D_T)), "student_logits must have at least one class, got [7, 0]"),
    ],
)
def test_errors_of_shape(net, message):
    with pytest.raises(ValueError) as raised:
        gkd.linear_loss(*net)
    assert str(raised.value).startswith(f"gkd.linear_loss: {message}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk_rows": 0}, "chunk_rows must be >= 1, got 0"),
        ({"scale": 0.0}, "scale must be finite and > 0, got 0.0"),
        ({"scale": float("nan")}, "scale must be finite and > 0, got nan"),
        ({"temperature": -1.0}, "temperature must be finite and > 0, got -1"),
        ({"reduction": "max"}, "reduction must be none, mean or sum, got max"),
        ({"rank_by": "both"}, "rank_by must be teacher or student, got both"),
        ({"group_temperature": 0.0}, "group_temperature must be finite and > 0, got 0"),
        ({"target": torch.zeros(3, dtype=torch.long)}, "target must be [7], got [3]"),
    ],
)
def test_errors_of_settings(settings, message):
    with pytest.raises(ValueError) as raised:
        gkd.linear_loss(*shapes(), **settings)
    assert str(raised.value).startswith(f"gkd.linear_loss: {message}")


def test_other_errors():
    net = shapes()
    with pytest.raises(TypeError, match="student_features must be float16, .* got torch.int64"):
        gkd.linear_loss(net[0].long(), *net[1:])
    with pytest.raises(TypeError, match="teacher_weight must be torch.float32 as teacher_features"):
        gkd.linear_loss(*net[:3], net[3].half())
    with pytest.raises(TypeError, match="linear_loss: target must be int64 or int32"):
        gkd.linear_loss(*net, torch.zeros(B))
    with pytest.raises(RuntimeError, match="must be on one device, got cpu and meta"):
        gkd.linear_loss(*net[:3], net[3].to("meta"))
    with pytest.raises(NotImplementedError, match="teacher_weight must be a dense"):
        gkd.linear_loss(*net[:3], net[3].to_sparse())
    target = torch.zeros(B, dtype=torch.long)
    target[5] = C
    message = rf"gkd.linear_loss: target {C} is out of bounds for {C} classes \(row 5\)"
    with pytest.raises(IndexError, match=message):
        gkd.linear_loss(*net, target, chunk_rows=2)
    for n, name in ((2, "features"), (3, "weight")):
        needs = [x.clone().requires_grad_() if k == n else x for k, x in enumerate(net)]
        with pytest.raises(ValueError, match=f"pass teacher_{name}.detach"):
            gkd.linear_loss(*needs)
        with torch.no_grad():
            gkd.linear_loss(*needs)
