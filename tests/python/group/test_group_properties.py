"""Laws of the group that hold for any input, tried on drawn ones."""

import torch
from hypothesis import strategies as st

import gkd
from oracle import rows_and_gradient, same_bits
from strategies import batches, close, groupings, law, mask_of, on


@law(batches(), groupings(), st.integers(0, 2**31))
def test_class_permutation_permutes_the_group(device, batch, how, seed):
    student, teacher, target = on(device, batch)
    order = torch.randperm(student.shape[1], generator=torch.Generator().manual_seed(seed))
    place = order.argsort().to(device)[target]  # where each target went
    order = order.to(device)
    moved = student[:, order], teacher[:, order], place
    mask = mask_of(student, teacher, target, **how)
    assert mask[:, order].equal(mask_of(*moved, **how))
    rows, gradient = rows_and_gradient(student, teacher, target, secondary_weight=1.0, **how)
    got = rows_and_gradient(*moved, secondary_weight=1.0, **how)
    assert close(got[0], rows) and close(got[1], gradient[:, order])


@law(batches(), groupings())
def test_ties_stay_together(device, batch, how):
    student, teacher, _ = on(device, batch)
    group = gkd.group(student, teacher, return_mask=True, **how)
    rank = student if how["rank_by"] == "student" else teacher
    tied = rank[:, :, None] == rank[:, None, :]
    assert (group.mask[:, :, None] == group.mask[:, None, :])[tied].all()
    assert group.mask.equal(rank >= group.cut[:, None])
    if "group_size" in how:
        # Beyond the size go ties of the last class alone.
        size = min(how["group_size"], rank.shape[1])
        above = (rank > group.cut[:, None]).sum(1)
        assert (group.size >= size).all() and ((above < size) | (group.size == size)).all()


SHARE = st.one_of(st.floats(1e-6, 1.0), st.sampled_from((1e-30, 0.5, 0.93, 1.0)))


@law(batches(), st.lists(SHARE, min_size=2, max_size=5), st.lists(st.integers(0, 45), min_size=2))
def test_group_grows_with_threshold_and_size(device, batch, thresholds, sizes):
    student, teacher, target = on(device, batch)
    for name, values in (("threshold", thresholds), ("group_size", sizes[:5])):
        last = torch.zeros_like(student, dtype=torch.bool)
        mass = torch.zeros(len(student), dtype=torch.float64, device=device)
        for value in sorted(values):
            group = gkd.group(student, teacher, target, return_mask=True, **{name: value})
            assert (last <= group.mask).all() and (group.mass_teacher >= mass - 1e-12).all()
            last, mass = group.mask, group.mass_teacher


@law(batches(), groupings(), st.sampled_from((torch.float64, torch.float32, torch.bfloat16)))
def test_sort_and_select_find_the_same_group(device, batch, how, dtype):
    student, teacher, target = on(device, batch)
    args = (student.to(dtype), teacher.to(dtype), target)
    found = [
        gkd.group(*args, method=method, return_mask=True, **how) for method in ("sort", "select")
    ]
    for name in ("mask", "size", "cut"):
        assert same_bits(*(getattr(group, name) for group in found))


@law(batches(), st.floats(0.01, 0.999))
def test_group_is_the_smallest_that_reaches_the_threshold(device, batch, threshold):
    student, teacher, _ = on(device, batch)
    group = gkd.group(student, teacher, threshold=threshold, return_mask=True)
    p = (teacher / 4).softmax(1)
    assert (group.mass_teacher >= threshold - 1e-12).all()
    lowest = group.mask & (teacher == group.cut[:, None])
    assert lowest.any(1).all() and group.mask.equal(teacher >= group.cut[:, None])
    assert (group.mass_teacher - (p * lowest).sum(1) < threshold + 1e-12).all()
