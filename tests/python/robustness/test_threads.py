"""Many threads at once: each gets what it would get alone, to the bit.

The jobs differ in shape, dtype and settings, so that state of one call that leaked into another
would show. 3 x 40,000 classes: rows that torch's own threads share among them; the rest: rows that
they take apart, long enough to be interrupted in the middle.
"""

import threading

import pytest
import torch

import gkd
from cases import MODES, logits, settings_of, targets
from linear_reference import networks
from oracle import DTYPES, same_bits
from processes import python

THREADS = 8
REPEATS = 6


def at_once(work):
    """[work(0), ..., work(7)], each in a thread of its own; they start together."""
    results, errors = [None] * THREADS, []
    gate = threading.Barrier(THREADS)

    def enter(index):
        try:
            gate.wait(60)
            results[index] = work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=enter, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]
    return results


def equal(got, wanted):
    return all(same_bits(a, b) for a, b in zip(got, wanted, strict=True))


def job(index):
    """Everything that one thread does, as a function of nothing: the tensors are made here."""
    shape = (3, 40_000) if index == 3 else (30 + index, 2000 + 131 * index)
    mode = list(MODES)[index]
    settings, with_target = settings_of(mode)
    student, teacher = logits(shape, DTYPES[index % 4], teacher_dtype=DTYPES[index // 2])
    target = targets(shape) if with_target else None
    grad_output = torch.randn(shape[0], dtype=torch.float64)
    net = networks("cpu", rows=5, classes=40 + index)
    inner = [x.detach() for x in net]
    method = "sort" if index % 2 else "select"

    def work():
        leaf = student.detach().requires_grad_()
        value = gkd.loss(leaf, teacher, target, reduction="none", method=method, **settings)
        made = [value.detach(), *torch.autograd.grad(value, leaf, grad_output.to(value))]
        made += gkd.group(student, teacher, target, return_mask=True, **settings)
        leaves = [x.detach().requires_grad_() for x in inner[:2]]
        value = gkd.linear_loss(*leaves, *inner[2:], chunk_rows=2, **settings)
        return [*made, value.detach(), *torch.autograd.grad(value, leaves)]

    return work


def test_unlike_calls_at_once_give_the_serial_bits():
    jobs = [job(index) for index in range(THREADS)]
    expected = [work() for work in jobs]
    seen = at_once(lambda index: [jobs[index]() for _ in range(REPEATS)])
    for index, repeats in enumerate(seen):
        assert all(equal(got, expected[index]) for got in repeats), index


def test_one_module_serves_every_thread(device):
    module = gkd.GKDLoss(temperature=2.0, secondary_weight=0.5, reduction="sum")
    shapes = [(6, 300 + n) for n in range(THREADS)]
    batches = [(*logits(shape, device=device), targets(shape, device)) for shape in shapes]

    def step(index):
        student, *rest = batches[index]
        leaf = student.detach().requires_grad_()
        value = module(leaf, *rest)
        return value.detach(), *torch.autograd.grad(value, leaf)

    expected = [step(index) for index in range(THREADS)]
    for _ in range(REPEATS):
        assert all(equal(*pair) for pair in zip(at_once(step), expected, strict=True))


def test_errors_of_one_thread_stay_there():
    """Every other thread calls with a bad target; it alone gets the exception, with its own row."""
    student, teacher = logits((THREADS, 200))
    fine = targets((THREADS, 200))
    expected = gkd.loss(student, teacher, fine)

    def work(index):
        for _ in range(20):
            if index % 2 == 0:
                assert same_bits(gkd.loss(student, teacher, fine), expected)
                continue
            bad = fine.clone()
            bad[index] = 1000 + index
            with pytest.raises(IndexError, match=rf"target {1000 + index} .*\(row {index}\)"):
                gkd.loss(student, teacher, bad)
        return True

    assert all(at_once(work))


@pytest.mark.parametrize("backward", ["one graph", "graphs of another thread"])
def test_backward_away_from_the_forward(backward):
    """One kept graph whose backward all run, and graphs made by the main thread, each run once.

    A graph's last backward may write over the saved gradient; a kept graph's may not.
    """
    student, teacher = logits((7, 400))
    leaf = student.requires_grad_()
    weights = [torch.randn(7) for _ in range(THREADS)]
    keep = backward == "one graph"
    values = [gkd.loss(leaf, teacher, reduction="none") for _ in range(1 if keep else THREADS)]
    expected = [
        torch.autograd.grad(gkd.loss(leaf, teacher, reduction="none"), leaf, w) for w in weights
    ]

    def work(index):
        value = values[0 if keep else index]
        return torch.autograd.grad(value, leaf, weights[index], retain_graph=keep)

    for _ in range(REPEATS if keep else 1):
        assert all(equal(*pair) for pair in zip(at_once(work), expected, strict=True))


FIRST_CALLS = """
import threading, torch, gkd
x = torch.randn(2, 8, 500)
gate, seen = threading.Barrier(8), []
def work():
    leaf = x[0].detach().requires_grad_()
    gate.wait(60)
    value = gkd.loss(leaf, x[1])
    seen.append((value.detach(), *torch.autograd.grad(value, leaf)))
threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
work.__globals__["gate"] = threading.Barrier(1)
work()
assert len(seen) == 9 and all(a.equal(b) for s in seen for a, b in zip(s, seen[-1]))
"""


def test_first_calls_of_a_process_at_once():
    """What a first call sets up (handles of the dispatcher, the instruction set) is set up once."""
    python("-c", FIRST_CALLS)
