"""What a run does besides its loss: half precision, TensorBoard, verification while it trains."""

import functools
import json

import pytest
import torch

from examples.faces import networks, recipe, run, saved, verify, watch
from examples.faces.__main__ import main
from face_runs import curve, options

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plain(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "out"
    assert main(options(files, out)) == 0
    return out


def test_a_wrong_student_is_noticed_before_the_teacher_works(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "_teacher", None)
    assert main(options(files, tmp_path / "out", "--set", "student=r51")) == 1
    assert "r51 is neither small:WIDTH nor timm:NAME" in capsys.readouterr().err


def test_files_are_looked_for_before_the_training(files, tmp_path, capsys):
    given = recipe.from_mapping({"data": str(files), "pairs": ["glyphs.bin"]})
    assert run.with_files(given).pairs == (str(files / "glyphs.bin"),)
    given = recipe.from_mapping({"data": str(files / "train.rec"), "pairs": ["glyphs.bin"]})
    assert run.with_files(given).pairs == (str(files / "glyphs.bin"),)
    for setting in ('pairs=["lfw.bin"]', 'ijb=["IJBC"]', "teacher_backbone=t.pt", "teacher_head=h"):
        assert main(options(files, tmp_path / "out", "--set", setting)) == 1
        error = capsys.readouterr().err
        assert f"{setting.split('=')[0]}: there is no " in error
        assert not list((tmp_path / "out").glob("*.csv")), "it stopped at once"


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_half_precision_is_near(files, tmp_path, monkeypatch, amp):
    """Autocast on the CPU, and with float16 a scaled loss; clipping needs the gradients unscaled.

    The scale begins where no gradient overflows: each that does costs a step.
    """
    scaler = functools.partial(torch.amp.GradScaler, init_scale=16.0)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    more = ("--set", f"amp={amp}", "--set", "clip=5")
    assert main(options(files, tmp_path / "half", *more)) == 0
    assert main(options(files, tmp_path / "full", "--set", "clip=5")) == 0
    gaps = []
    for name in ("teacher", "student"):
        full, half = curve(tmp_path / "full", name), curve(tmp_path / "half", name)
        for a, b in zip(full, half, strict=True):
            gaps += [abs(float(b[x]) / float(a[x]) - 1) for x in ("total", "cross_entropy")]
    assert 0 < max(gaps) < 0.02


def test_a_step_that_overflows_is_left_out(files, tmp_path):
    """With the scale that training begins with; the losses stay finite."""
    assert main(options(files, tmp_path / "out", "--set", "amp=float16")) == 0
    (state,) = (tmp_path / "out" / "teacher").glob("*.pt")
    assert torch.load(state)["scaler"]["scale"] < 65536
    for name in ("teacher", "student"):
        totals = torch.tensor([float(row["total"]) for row in curve(tmp_path / "out", name)])
        assert totals.isfinite().all()


def test_tensorboard_has_what_the_csv_has(files, tmp_path):
    reason = "tensorboard is not installed"
    loading = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason=reason
    )
    assert main(options(files, tmp_path / "out", "--set", "verify_every=3")) == 0
    for name in ("teacher", "student"):
        events = loading.EventAccumulator(str(tmp_path / "out" / name), {loading.SCALARS: 0})
        events.Reload()
        rows = curve(tmp_path / "out", name)
        for column in rows[0].keys() - {"step"}:
            expected = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
            if not expected:
                continue
            found = [(event.step, event.value) for event in events.Scalars(column)]
            assert [step for step, _ in found] == [step for step, _ in expected], column
            gaps = [abs(a[1] - b[1]) for a, b in zip(found, expected, strict=True)]
            assert max(gaps) <= 1e-6 * max(abs(x) for _, x in expected), column


def accuracies(out):
    return {int(row["step"]): float(row["glyphs"]) for row in curve(out) if row.get("glyphs")}


def test_verification_while_training(files, plain, tmp_path):
    out = tmp_path / "out"
    assert main(options(files, out, "--set", "verify_every=3", "--set", "log_every=100")) == 0
    found = accuracies(out)
    assert list(found) == [3, 6, 8], "every third step, and the last network"
    report = json.loads((out / "report.json").read_text())
    of_student = [x for x in report["results"] if x["network"] == "student"]
    assert found[8] == of_student[0]["accuracy"]
    best = networks.build("small:4", 16, 112)
    networks.load_backbone(best, out / "student_best.pt")
    again = verify.on_pairs("best", best, files / "glyphs.bin", CPU, False)
    assert again.accuracy == max(found.values())
    # It changes nothing in the training.
    by_step = {row["step"]: row["total"] for row in curve(plain)}
    for row in curve(out):
        assert not row["total"] or row["total"] == by_step[row["step"]], row["step"]
    assert not (plain / "student_best.pt").exists() and "glyphs" not in curve(plain)[0]


def test_a_watched_network_stays_in_its_mode(files, tmp_path):
    """Or its statistics would stop at the first verification."""
    settings = {"data": str(files), "pairs": [str(files / "glyphs.bin")], "verify_every": 1}
    watched = watch.Watch(tmp_path / "x.csv", recipe.from_mapping(settings), CPU)
    network = networks.build("small:4", 16, 112).train()
    assert watched(network).keys() == {"glyphs"} and network.training


def test_a_stopped_run_remembers_its_best(files, tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = options(files, out, "--set", "verify_every=2", "--set", "save_every=5")
    real, real_save = verify.on_pairs, saved.save
    made = iter([0.5, 0.5, 0.9, 0.6, 0.7, 0.7, 0.8])  # of the teacher two, of the student at 2, ...

    def on_pairs(name, *rest):
        result = real(name, *rest)
        if not name:
            result.accuracy = next(made)
        return result

    def stopping(folder, step, state):
        real_save(folder, step, state)
        if folder.name == "student" and step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(verify, "on_pairs", on_pairs)
    monkeypatch.setattr(saved, "save", stopping)
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    best = (out / "student_best.pt").read_bytes()
    monkeypatch.setattr(saved, "save", real_save)
    assert main(arguments) == 0
    assert accuracies(out) == {2: 0.9, 4: 0.6, 6: 0.7, 8: 0.7}
    assert (out / "student_best.pt").read_bytes() == best, "that of step 2"
