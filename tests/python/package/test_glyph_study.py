"""The study of the glyph losses: its plan is fair, its sweep resumes, its tables are its data."""

import dataclasses

import pytest
import torch

from examples.glyph_study import plan, report, sweep
from examples.glyph_study.lab import Lab
from examples.glyph_study.record import Record, load, where
from examples.glyphs import data
from few_letters import limited

TINY = dataclasses.replace(
    plan.SETTINGS, epochs=1, teacher_epochs=1, views=1, batch=64, log_points=2, progress=False
)
# The second takes over what the first has tuned.
STAGES = (
    plan.Stage(("ce", "gkd-student", "adaptive")),
    plan.Stage(("ce", "PBS-teacher"), "100x", 2),
)
SETTING = ("learning_rate", "margin", "weight", "warmup")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photos():
    """Latin and Tifinagh letters; the latter are drawn by the proportional faces alone."""
    codes = [*range(0x41, 0x5B), *range(0x2D30, 0x2D60)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "FT2Font", limited(codes))
        return data.render_dejavu(least_faces=2, progress=False)


def searched(name, score):
    done = []
    ladder = plan.ladder(name)
    while (entry := plan.next_try(done, ladder.seconds)) is not None:
        done.append((entry, score(entry)))
    return done


@pytest.mark.parametrize("name", plan.MAIN)
def test_every_loss_has_as_many_tries(name):
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        done = searched(name, lambda _: torch.rand((), generator=generator).item())
        assert len({entry for entry, _ in done}) == len(done) == plan.TRIES == 5
        ladder = plan.ladder(name)
        assert len({ladder.value(entry.rung) for entry, _ in done}) == plan.RUNGS == 4


def test_the_search_goes_where_the_score_is():
    rising = searched("kd", lambda entry: entry.rung)
    assert [entry.rung for entry, _ in rising] == [0, -1, 1, 2, 2]
    assert not plan.is_bracketed(rising)
    peak = searched("kd", lambda entry: -abs(entry.rung - 0.1) - entry.second)
    assert [entry.rung for entry, _ in peak] == [0, -1, 1, 0.5, 0]
    assert plan.best(peak) == plan.Try(0, 0.0) and plan.is_bracketed(peak)


def start(photos, out, **options):
    return sweep.Sweep(photos, out, TINY, seeds=2, **options)


def scores(path):
    left_out = {"seconds", "seconds_per_step", "ms_per_step", "to_ce"}  # clocks
    return [{k: v for k, v in row.items() if k not in left_out} for row in load(path)]


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """A whole sweep in small, and how many students it trained."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "STAGES", STAGES)
        patch.setattr(plan, "MAIN", STAGES[0].recipes)
        patch.setattr(plan, "TIMED_ROUNDS", 1)
        start(photos, out).run()
    return out


def test_a_small_sweep(whole):
    rows = load(whole / "runs.jsonl")
    for name in STAGES[0].recipes:
        tuned = where(rows, stage="tune", recipe=name)
        assert len(tuned) == plan.TRIES and {row["seed"] for row in tuned} == {0}
        tested = where(rows, stage="test", recipe=name, shape="50x")
        assert [row["seed"] for row in tested] == [0, 1]
        chosen = max(tuned, key=lambda row: row["val_tar"])
        assert all(row[field] == chosen[field] for row in tested for field in SETTING)
    later = where(rows, stage="test", shape="100x", epochs=2)
    assert [(row["recipe"], row["seed"]) for row in later] == [
        *(("ce", 0), ("PBS-teacher", 0), ("ce", 1), ("PBS-teacher", 1)),
    ]
    (borrowed,) = {row["weight"] for row in where(rows, stage="test", recipe="gkd-student")}
    assert {row["weight"] for row in where(rows, recipe="PBS-teacher")} == {borrowed}
    assert {row["recipe"] for row in where(rows, stage="time")} == set(STAGES[0].recipes)


def test_a_stopped_sweep_goes_on(whole, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "STAGES", STAGES)
    monkeypatch.setattr(plan, "MAIN", STAGES[0].recipes)
    monkeypatch.setattr(plan, "TIMED_ROUNDS", 1)
    with pytest.raises(sweep.OutOfTime):
        start(photos, tmp_path, minutes=0).run()
    assert load(tmp_path / "runs.jsonl") == []

    add, stops = Record.add, [3, 22]  # while tuning, and while testing

    def stopping(self, row):
        row = add(self, row)
        if len(self.rows) == stops[0]:
            stops.pop(0)
            with self.path.open("a") as file:
                file.write('{"stage": "tu')  # killed while it wrote the next one
            raise KeyboardInterrupt
        return row

    monkeypatch.setattr(Record, "add", stopping)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            start(photos, tmp_path).run()
    monkeypatch.setattr(Record, "add", add)
    before = load(tmp_path / "runs.jsonl")
    start(photos, tmp_path).run()
    assert load(tmp_path / "runs.jsonl")[: len(before)] == before
    assert scores(tmp_path / "runs.jsonl") == scores(whole / "runs.jsonl")
    monkeypatch.setattr(Lab, "open", None)  # nothing is left to do, so no lab is wanted
    start(photos, tmp_path).run()


def test_tuning_sees_no_test_part(photos, tmp_path, monkeypatch):
    opened = Lab.open.__func__

    def blind(cls, *arguments):
        lab, is_new = opened(cls, *arguments)
        seen = lab.parts
        test = {seen_image.numpy().tobytes() for seen_image in seen.open_test.images}
        assert not test & {image.numpy().tobytes() for image in seen.validation.images}
        lab.parts = dataclasses.replace(seen, open_test=None, closed_test=None)
        return lab, is_new

    monkeypatch.setattr(Lab, "open", classmethod(blind))
    monkeypatch.setattr(sweep.Sweep, "_report_teacher", lambda *_: None)
    tuned = start(photos, tmp_path).tune("gkd-teacher")[1]
    assert len(tuned) == plan.TRIES
    with pytest.raises(AttributeError):
        start(photos, tmp_path).test("gkd-teacher", 0, plan.TUNED_SHAPE)


def test_what_a_tie_is():
    def rows(*values):
        return [{"seed": seed, report.SCORE: value} for seed, value in enumerate(values)]

    base = rows(0.5, 0.6, 0.7)
    assert report.compare(rows(0.54, 0.65, 0.73), base) == ("+4.0", "above")
    assert report.compare(rows(0.49, 0.58, 0.69), base) == ("-1.3", "below")
    assert report.compare(rows(0.6, 0.7, 0.69), base)[1] == "tie"  # one seed disagrees
    assert report.compare(rows(0.7, 0.61, 0.701), base)[1] == "tie"  # one seed decides
    assert report.compare(rows(0.6), base[:1]) == ("+10.0", "?")
    with pytest.raises(ValueError, match="not the same seeds"):
        report.compare(rows(0.5, 0.6), base)


def test_the_committed_study(tmp_path):
    rows = load(report.RESULTS)
    for name in plan.MAIN:
        found = report.tries(rows, name)
        assert len(found) == plan.TRIES and {row["seed"] for _, row in found} == {0}
        assert not any(field.startswith("test") for _, row in found for field in row)
        chosen = plan.best([(entry, row["val_tar"]) for entry, row in found])
        setting = next(row for entry, row in found if entry == chosen)
        tested = report.reported(rows, name)
        assert [row["seed"] for row in tested] == [0, 1, 2]
        for row in tested:
            for field in ("learning_rate", "margin", "weight", "warmup", "epochs", "classes"):
                assert row[field] == setting[field]
    text = report.README.read_text()
    assert report.filled(text, rows) == text
    for name, table in report.TABLES.items():
        assert f"<!-- {name} -->\n{table(rows)}\n<!-- end -->" in text
    # The figures can be drawn from these rows alone.
    assert report.main(["--figures", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("glyphs_study_*.png"))) == 4
