"""What hypothesis draws for the laws: batches of logits, and ways to group them.

Most batches are a seed and a shape, which torch turns into numbers in microseconds; the rest are
written out number by number, which hypothesis can shrink to a small counterexample.
"""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gkd
from oracle import error

#: Halves and small integers among them: ties at the cut are frequent.
LOGIT = st.one_of(
    st.integers(-6, 6).map(lambda n: n / 2),
    st.floats(-40, 40, allow_subnormal=False),
)
#: Multiples of 1/64 up to 8: 10 bits, so that sums with powers of two stay exact in float64.
GRID = 64


def law(*strategies):
    """A test that holds for every draw; how many are drawn is the profile's (conftest.py)."""

    def decorate(test):
        # The device is the same for every example.
        calm = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
        return calm(given(*strategies)(test))

    return decorate


@st.composite
def batches(draw, grid=False):
    """(student, teacher, target) in float64: up to 6 rows of up to 40 classes."""
    rows, classes = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    kind = draw(st.sampled_from(("normal", "peaked", "ties", "written")))
    if kind == "written" and not grid:
        rows, classes = min(rows, 3), min(classes, 8)
        count = 2 * rows * classes
        flat = draw(st.lists(LOGIT, min_size=count, max_size=count))
        both = torch.tensor(flat, dtype=torch.float64).view(2, rows, classes)
    else:
        seed = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        both = torch.randn(2, rows, classes, dtype=torch.float64, generator=seed)
        both = both * {"peaked": 12.0, "ties": 1.5}.get(kind, 3.0)
        both = both.round() if kind == "ties" else both
        both = (both.clamp(-8, 8) * GRID).round() / GRID if grid else both
    target = torch.tensor([draw(st.integers(0, classes - 1)) for _ in range(rows)])
    return both[0], both[1], target


@st.composite
def groupings(draw, by_mass=True):
    """A way to choose the group, and a temperature."""
    sizes = st.integers(0, 45).map(lambda k: {"group_size": k})
    shares = st.one_of(st.floats(0.01, 1.0), st.sampled_from((1e-30, 0.5, 0.93, 1.0)))
    how = draw(st.one_of(shares.map(lambda t: {"threshold": t}), sizes) if by_mass else sizes)
    how["rank_by"] = draw(st.sampled_from(("teacher", "student")))
    how["temperature"] = draw(st.sampled_from((1.0, 3.0, 4.0)))
    return how


#: Three weights; 0 switches a term off.
WEIGHTS = st.tuples(*[st.sampled_from((0.0, 0.5, 1.0, 8.0))] * 3).map(
    lambda w: dict(zip(("primary_weight", "binary_weight", "secondary_weight"), w, strict=True))
)


def on(device, batch):
    return [x.to(device) for x in batch]


def rows_of(student, teacher, target=None, **settings):
    return gkd.loss(student, teacher, target, reduction="none", **settings)


def mask_of(student, teacher, target=None, **how):
    return gkd.group(student, teacher, target, return_mask=True, **how).mask


def close(actual, expected, bound=1e-12):
    """Within the bound, or both 0 but for rounding."""
    return error(actual, expected) <= bound or bool((actual - expected).abs().max() <= 1e-13)
