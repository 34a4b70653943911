"""The whole of examples/faces on glyphs: one process, two ranks with split heads, and a stop."""

import json
import sys

import pytest
import torch

from examples.faces import networks, recipe, saved, teacher, train
from examples.faces.__main__ import main
from examples.faces.data import Photographs, open_source
from face_runs import ROOT, TINY, curve, gap, options, torchrun


@pytest.fixture(scope="module")
def one_process(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "out"
    assert main(options(files, out)) == 0
    return out


def test_what_it_writes(one_process):
    report = json.loads((one_process / "report.json").read_text())
    assert report["identities"] == 28 and report["images"] == 280
    assert [(x["network"], x["set"]) for x in report["results"]] == [
        (network, name) for network in ("teacher", "student") for name in ("glyphs", "ijb-glyphs")
    ]
    for result in report["results"]:
        assert result["tar"]["1e-06"] is None, "so few pairs say nothing about that"
    assert report["results"][0]["genuine"] == 30
    lines = (one_process / "table.md").read_text().splitlines()
    assert len(lines) == 6 and lines[2].startswith("| teacher | glyphs |")
    for name in ("roc.png", "training.png", "student.pt", "teacher_head.pt"):
        assert (one_process / name).stat().st_size > 1000, name
    rows = curve(one_process)
    assert len(rows) == 8 and rows[0]["group_size"] and not rows[1]["group_size"]
    assert float(rows[-1]["total"]) < float(rows[0]["total"])
    head = networks.load_head(one_process / "student_head.pt", 28)
    assert head.shape == (28, 16)
    with pytest.raises(ValueError, match="28 classes, and the data have 29"):
        networks.load_head(one_process / "student_head.pt", 29)


@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-12), ("float32", 1e-5)])
def test_two_ranks_with_split_heads_have_the_same_curve(files, one_process, tmp_path, dtype, most):
    """In float64 it is the same curve: what differs in float32 is rounding.

    In float32 the bound is not a promise for any length of run: the group of a row is a cut between
    two of the student's cosines. Where those two are one rounding apart, ranks that add in another
    order cut elsewhere, and that row's distillation jumps. The whole rehearsal has one such step.
    """
    one = one_process
    if dtype == "float64":
        one = tmp_path / "one"
        assert main(options(files, one, "--set", "dtype=float64")) == 0
    torchrun(options(files, tmp_path / "two", "--sharded", "--set", f"dtype={dtype}"))
    assert json.loads((tmp_path / "two" / "report.json").read_text())["ranks"] == 2
    for name in ("teacher", "student"):
        assert gap(curve(one, name), curve(tmp_path / "two", name)) <= most, name


def test_a_stopped_run_goes_on(files, one_process, tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = options(files, out, "--set", "save_every=3")
    real, kept = saved.save, []

    def stopping(folder, step, state):
        real(folder, step, state)
        kept.append((folder.name, step))
        if kept[-1] == ("student", 6):
            raise KeyboardInterrupt

    monkeypatch.setattr(saved, "save", stopping)
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    assert main(arguments) == 0
    assert kept.count(("teacher", 3)) == 1 and kept[-1] == ("student", 8)
    assert gap(curve(one_process), curve(out)) == 0
    assert [path.name for path in (out / "student").glob("*.pt")] == ["step_8_rank_0_of_1.pt"]


@pytest.mark.parametrize("margin", ["cosface", pytest.param("arcface", marks=pytest.mark.large)])
def test_other_ways_are_the_same_loss(files, one_process, tmp_path, margin):
    """With logits and without; the teacher from its file, and from the cache."""
    gkd_cache = pytest.importorskip("gkd.cache")
    common = ("--set", f"margin={margin}")
    teacher = (
        *("--set", f"teacher_backbone={one_process / 'teacher.pt'}"),
        *("--set", f"teacher_head={one_process / 'teacher_head.pt'}"),
    )
    assert main(options(files, tmp_path / "plain", *common, *teacher)) == 0
    plain = curve(tmp_path / "plain")
    if margin == "cosface":
        assert gap(curve(one_process), plain) == 0
    else:
        assert gap(curve(one_process), plain) > 1e-3
    assert main(options(files, tmp_path / "logits", *common, *teacher, "--set", "logits=true")) == 0
    assert gap(plain, curve(tmp_path / "logits")) <= 1e-5
    cache = ("--set", f"teacher_cache={tmp_path / 'cache'}")
    assert main(options(files, tmp_path / "cached", *common, *teacher, *cache)) == 0
    reader = gkd_cache.EmbeddingReader(tmp_path / "cache", dimension=16)
    assert not reader.missing(torch.arange(280)[:, None], torch.arange(2)).any()
    assert 0 < gap(plain, curve(tmp_path / "cached")) <= 2e-3, "float16 embeddings"


def test_a_teacher_without_a_head(files, one_process, tmp_path):
    teacher = ("--set", f"teacher_backbone={one_process / 'teacher.pt'}")
    assert main(options(files, tmp_path / "out", *teacher)) == 0


def test_centres_from_the_cache(files, tmp_path, monkeypatch):
    """They are the network's but for float16; with other labels the cache is refused."""
    photographs = Photographs(open_source(files / "train.rec"), 28)
    network, cpu = networks.build("small:4", 16, 112).requires_grad_(False), torch.device("cpu")
    of_network = teacher.Teacher(network)
    expected = teacher.centers(of_network, photographs, cpu, 0, False)
    cached = teacher.Teacher(network)
    cached.cache = teacher.fill_cache(tmp_path, network, photographs, cpu, 16, 0, False)
    cached.network = None
    found = teacher.centers(cached, photographs, cpu, 0, False)
    assert (found - expected).abs().max() < 2e-3
    monkeypatch.setattr(photographs.source, "label", lambda k: 0)
    with pytest.raises(ValueError, match="was stored with teacher"):
        teacher.fill_cache(tmp_path, network, photographs, cpu, 16, 0, False)


def test_folders_of_images(files, tmp_path, capsys):
    """PGM among them, as the ORL faces are."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for identity in range(12):
        folder = tmp_path / "people" / f"s{identity}"
        folder.mkdir(parents=True)
        face = torch.randint(200, (56, 46), generator=generator)
        for shot in range(5):
            noisy = (face + torch.randint(55, face.shape, generator=generator)).byte()
            Image.fromarray(noisy.numpy()).save(folder / f"{shot}.{'pgm' if shot else 'png'}")
    out = tmp_path / "out"
    words = ["--data", str(tmp_path / "people"), "--output", str(out), *TINY, "--set", "batch=16"]
    assert main(words) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["identities"] == 9 and report["images"] == 45
    assert "45 images of 9 identities" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--synthetic", "--set", "epoch=3"], "there is no epoch; names are data, classes"),
        (["--synthetic", "--set", "batch=big"], "batch must be int, got 'big'"),
        (["--synthetic", "--set", "margin=ada"], "margin must be one of cosface, arcface"),
        (["--synthetic", "--set", "batch"], "--set batch: not NAME=VALUE"),
        (["--config", "nowhere.toml"], "--config nowhere.toml: no such file"),
        (["--data", "nowhere"], "--data nowhere is not a folder"),
    ],
)
def test_wrong_options_end_with_one_sentence(words, message, capsys):
    with pytest.raises(SystemExit) as error:
        main([*words, "--device", "cpu"])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_recipes_in_the_tree():
    for name in ("authors", "recommended"):
        path = ROOT / "examples" / "faces" / "configs" / f"{name}.toml"
        found = recipe.from_mapping(recipe.read(path), name)
        assert found.gkd["rank_by"] == "student" and found.batch == 1024
    with pytest.raises(SystemExit):
        main(["--config", "authors", "--set", "epochs=none", "--device", "cpu"])


def test_the_schedule_is_timms():
    """CosineLRScheduler with t_in_epochs=False: values by hand from its formula."""
    r = recipe.from_mapping({"epochs": 20, "warmup_epochs": 4})
    assert train.learning_rate(r, 0, 200, 10) == 2.5e-7
    assert abs(train.learning_rate(r, 20, 200, 10) - (2.5e-7 + 0.5 * (0.1 - 2.5e-7))) < 1e-12
    assert abs(train.learning_rate(r, 100, 200, 10) - (0.1 + 2.5e-7) / 2) < 1e-12
    line = recipe.from_mapping({"schedule": "linear", "warmup_epochs": 0, "least_rate": 0.0})
    assert [train.learning_rate(line, k, 10, 1) for k in (0, 5)] == [0.1, 0.05]


def test_networks_of_others(tmp_path, monkeypatch):
    """By name from a checkout of arcface_torch, and from timm; both are stood in for here."""
    with pytest.raises(ValueError, match="clone github.com/deepinsight/insightface"):
        networks.build("r50", 8, 112)
    (tmp_path / "backbones").mkdir()
    (tmp_path / "backbones" / "__init__.py").write_text(
        "import torch\n"
        "def get_model(name, fp16, num_features, dropout):\n"
        "    assert name == 'mbf' and fp16 is False\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(num_features))\n"
    )
    monkeypatch.setitem(sys.modules, "backbones", None)
    monkeypatch.delitem(sys.modules, "backbones")
    network = networks.build("mbf", 8, 112, str(tmp_path))
    assert network(torch.zeros(2, 3, 112, 112)).shape == (2, 8)
    assert str(tmp_path) not in sys.path
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="pip install timm"):
        networks.build("timm:resnet18", 8, 112)


def test_weights_of_another_network(one_process):
    with pytest.raises(ValueError, match="missing or of another shape"):
        networks.load_backbone(networks.build("small:8", 16, 112), one_process / "teacher.pt")
