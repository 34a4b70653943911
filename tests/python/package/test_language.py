"""The language model: its text, its losses, a small run, and that its table is its results'."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("gkd.cache")

from examples.language import losses, report, text, train
from examples.language.__main__ import main
from examples.language.model import Shape
from oracle import error

TINY = train.Settings(
    vocabulary=200,
    length=12,
    batch=4,
    teacher=Shape(width=32, depth=2, heads=2),
    student=Shape(width=16, depth=1, heads=2),
    teacher_steps=30,
    kept=12,
    epochs=2,
    group_size=7,
    progress=False,
)
#: Kinds of students, and the shares of cross-entropy.
STUDENTS = [("labels", 1.0), *((x, s) for s in losses.SHARES for x in list(report.LABELS)[1:])]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def texts():
    return text.documents(100_000, progress=False)


@pytest.fixture(scope="module")
def sequences(texts):
    return text.sequences(text.corpus(texts, TINY.vocabulary).train, TINY.length)


@pytest.fixture(scope="module")
def teacher(sequences):
    return train.train_teacher(sequences, TINY)


def test_text(texts):
    """English in some length, no paragraph in two documents, and the parts apart."""
    assert 100_000 <= sum(map(len, texts)) < 600_000
    paragraphs = [{part.strip() for part in document.split("\n\n")} - {""} for document in texts]
    assert len(set().union(*paragraphs)) == sum(map(len, paragraphs))
    words = text.corpus(texts, 500)
    assert words.vocabulary[:2] == [text.RARE, text.END] and len(words.vocabulary) == 500
    assert {"the", "of", ".", "returns"} <= set(words.vocabulary)
    counts = words.train.bincount(minlength=500)[2:]
    assert (counts.diff() <= 0).all() and 0.02 < words.rare < 0.4
    ends = [int((part == 1).sum()) for part in (words.train, words.validation)]
    assert sum(ends) == len(texts) and ends[1] == round(0.05 * len(texts))
    again = text.corpus(texts, 500)
    assert again.train.equal(words.train) and again.vocabulary == words.vocabulary


def test_sequences_follow_each_other():
    found = text.sequences(torch.arange(10), 4)
    assert found.tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]


def test_all_classes_on_disk_are_the_live_teacher(sequences, teacher, tmp_path):
    every = dataclasses.replace(TINY, group_size=TINY.vocabulary)
    kept = sequences[: TINY.kept]
    reader = train.keep(teacher, kept, every, tmp_path, torch.float32)
    likely = train.likeliest(teacher, sequences, TINY.group_size)
    scores, weights = [], []
    for loss in (losses.Live(teacher, 0.5), losses.Cached(reader, 0.5)):
        student = train.train_student(loss, kept, every, seed=0, name="")
        scores.append(train.scored(student, sequences, likely))
        weights.append(torch.cat([x.detach().flatten() for x in student.parameters()]))
    assert scores[1] == pytest.approx(scores[0], rel=1e-4)
    assert error(weights[1], weights[0]) <= 1e-3


def test_losses_are_what_they_say(sequences, teacher, tmp_path):
    """In float64 and in plain PyTorch: KL over the k classes, the target and one class of all
    others; and KL over the k classes that were made to sum to 1."""
    kept = sequences[: TINY.kept]
    reader = train.keep(teacher, kept, TINY, tmp_path, torch.float32)
    samples = torch.tensor([5, 0, 9])
    inputs, targets = kept[samples, :-1], kept[samples, 1:]
    with torch.no_grad():
        theirs = teacher(inputs).double().flatten(0, 1).log_softmax(1)
    logits = torch.randn(3, TINY.length, TINY.vocabulary)
    own = logits.double().flatten(0, 1).log_softmax(1)
    entropy = F.nll_loss(own, targets.flatten())
    top = theirs.topk(TINY.group_size).indices
    inside = torch.zeros(theirs.shape, dtype=torch.bool).scatter_(1, top, True)
    share = theirs.exp() * inside / (theirs.exp() * inside).sum(1, keepdim=True)
    renormalised = (share * (share.log() - own)).masked_fill(~inside, 0).sum(1)
    inside.scatter_(1, targets.flatten()[:, None], True)
    assert inside.sum() > top.numel(), "a target outside of the likeliest"
    p, q = ((x.exp() * ~inside).sum(1) for x in (theirs, own))
    coarse = (theirs.exp() * (theirs - own) * inside).sum(1) + p * (p / q).log()
    for loss, wanted in (
        (losses.Cached(reader, 0.3), coarse),
        (losses.Renormalised(reader, 0.3, TINY.group_size), renormalised),
        (losses.Live(teacher, 0.3), (theirs.exp() * (theirs - own)).sum(1)),
    ):
        found = loss(logits, samples, inputs, targets)
        assert error(found, 0.3 * entropy + 0.7 * wanted.mean()) <= 1e-5
    assert losses.labels(logits, samples, inputs, targets).item() == pytest.approx(entropy.item())


def test_a_small_run(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text, "documents", lambda *_, **__: texts)
    monkeypatch.setattr("examples.language.__main__.Settings", small_settings)
    small = ["--vocabulary", "200", "--teacher-steps", "20", "--kept", "8", "--epochs", "1"]
    small += ["--group-size", "5", "--rounds", "2", "--quiet", "--out", str(tmp_path)]
    assert main([*small, "--seeds", "2"]) == 0
    rows = report.load(tmp_path)
    for method, share in STUDENTS:
        assert len(report.values(rows, "perplexity", method, share)) == 2
        assert all(0 < x < 1 for x in report.values(rows, "tail", method, share))
        assert report.step_ratio(rows, method) > 0
    assert report.table(rows) in capsys.readouterr().out
    # Again, times alone: the teacher and its cache are there.
    monkeypatch.setattr("examples.language.__main__.train_teacher", None)
    assert main([*small, "--times"]) == 0
    assert report.load(tmp_path)["runs"] == rows["runs"]
    with pytest.raises(SystemExit):
        main([*small, "--teacher-steps", "21"])
    assert "was trained with other settings" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*small, "--group-size", "6"])
    assert "was stored with group_size = 5, asked for 6" in capsys.readouterr().err


def small_settings(**given):
    shapes = {"teacher": TINY.teacher, "student": TINY.student, "length": 12, "batch": 4}
    return train.Settings(**{**shapes, **given})


def test_the_committed_results():
    rows = report.load(report.RESULTS)
    assert len(report.values(rows, "perplexity", "teacher", 1.0)) == 1
    for method, share in STUDENTS:
        assert len(report.values(rows, "perplexity", method, share)) == 3
        assert len({row["round"] for row in rows["times"] if row["method"] == method}) >= 9
    assert {row["machine"] for name in report.FILES for row in rows[name]} == {"2 CPU cores"}
    for page in report.PAGES:
        assert report.table(rows) in page.read_text(), page.name
