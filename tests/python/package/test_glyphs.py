"""The glyph example: its photographs, its split, and a small run through the command line."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from examples.glyphs import data
from examples.glyphs.__main__ import main
from examples.glyphs.augment import distorted, to_bytes, to_float
from examples.glyphs.evaluate import _tar
from examples.glyphs.losses import RECIPES
from examples.glyphs.models import Recogniser
from oracle import error

TINY = ["--epochs", "1", "--teacher-epochs", "1", "--batch", "32", "--quiet", "--threads", "1"]


@pytest.fixture(autouse=True)
def _torch_settings():
    """The program sets these for its process; other tests share this one."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def photos():
    return data.render_dejavu(progress=False)


def rows_of(images):
    return {image.numpy().tobytes() for image in images}


def test_every_face_draws_every_character_once(photos):
    assert 2100 <= len(photos.names) <= 2200
    assert photos.images.shape == (12 * len(photos.names), 1, 32, 32)
    assert torch.equal(photos.identity.bincount(), torch.full((len(photos.names),), 12))
    assert torch.equal(photos.is_test.view(-1, 12).any(0), torch.arange(12) >= 10)
    assert int(photos.is_test.sum()) == 2 * len(photos.names)
    assert photos.images.flatten(1).amax(1).min() > 0, "a blank photograph"


def test_look_alikes_are_dropped(photos):
    characters = {name[0] for name in photos.names}
    assert {"A", "a", "O", "o", "Ж"} <= characters
    # Greek and Cyrillic A, the Kelvin sign, and the Cyrillic ligature that looks like ae.
    assert not characters & {"\u0391", "\u0410", "\u212a", "\u04d5"}
    for face in range(12):
        assert len(rows_of(photos.images[face::12])) == len(photos.names)


def test_the_split_shares_nothing(photos):
    split = data.split(photos, identities=300, seed=3)
    assert (split.classes, len(split.train.labels), len(split.closed_test.labels)) == (
        *(213, 2130, 426),
    )
    assert len(split.validation.labels) == 30 * 10 and len(split.open_test.labels) == 57 * 12
    known = photos.of(torch.tensor([photos.names.index(name) for name in split.names]))
    assert rows_of(split.train.images) == rows_of(photos.images[known & ~photos.is_test])
    assert rows_of(split.closed_test.images) == rows_of(photos.images[known & photos.is_test])
    others = rows_of(photos.images[known])
    # By content: look-alikes are gone, so a character in two parts would be the same bytes twice.
    for face in range(10):
        validation = rows_of(split.validation.images[face::10])
        test = rows_of(split.open_test.images[face::12])
        assert not validation & test and not validation & others and not test & others
    assert split.names == data.split(photos, identities=300, seed=3).names
    assert split.names != data.split(photos, identities=300, seed=4).names


def test_distortion_is_repeatable_and_bytes_survive(photos):
    part = data.Part(photos.images[:64], photos.identity[:64])
    first = distorted(part, seed=1)
    assert torch.equal(first.images, distorted(part, seed=1).images)
    assert not torch.equal(first.images, distorted(part, seed=2).images)
    assert torch.equal(to_bytes(to_float(part.images)), part.images)


def test_tar_at_far():
    genuine = torch.tensor([0.1, 0.5, 0.75, 0.95]).numpy()
    impostor = torch.linspace(0, 0.9, 10).numpy()
    # One impostor in ten may pass: the bar is the second highest, 0.8.
    assert _tar(genuine, impostor, 0.1) == 0.25
    assert _tar(genuine, impostor, 0.3) == 0.5
    assert _tar(genuine, impostor, 1.0) == 1.0


def run(tmp_path, name, *options):
    out = tmp_path / name
    assert main([*TINY, "--out", str(out), *options]) == 0
    return json.loads((out / "results.json").read_text())


def test_run_and_run_again(tmp_path, capsys, photos, monkeypatch):
    monkeypatch.setattr(data, "render_dejavu", lambda *_, **__: photos)  # rendered once is enough
    options = ["--identities", "30", "--students", "ce,kd,gkd,gkd-student"]
    first = run(tmp_path, "first", *options)
    printed = capsys.readouterr().out
    for entry in first["students"].values():
        assert entry["label"] in printed
        assert 0 <= entry["top1"] <= 1 and set(entry["tar"]) == {"0.01", "0.001"}
        assert entry["seconds_per_step"] > 0
        assert all(0 < share <= 1 for share in entry["history"]["group_share"])
    # One start for all: the first batch is the same, and what differs later is the loss.
    starts = [entry["history"]["cross_entropy"][0] for entry in first["students"].values()]
    assert starts == pytest.approx([starts[0]] * 4, rel=1e-5)
    # One student has no logits: its head's loss is made from embeddings and weights.
    assert [name for name, recipe in RECIPES.items() if recipe.linear] == ["gkd-student"]
    ends = {entry["history"]["cross_entropy"][-1] for entry in first["students"].values()}
    assert len(ends) == 4
    for name in ("sheet", "roc", "training"):
        with Image.open(tmp_path / "first" / f"glyphs_{name}.png") as image:
            assert min(image.size) > 200
    again = run(tmp_path, "second", *options[:2], "--students", "gkd")["students"]["gkd"]
    for figure in ("history", "top1", "tar", "roc"):
        assert again[figure] == first["students"]["gkd"][figure]


def test_folders_of_images(tmp_path, photos, capsys):
    root = tmp_path / "people"
    for index in range(12):
        folder = root / f"person{index:02}"
        folder.mkdir(parents=True)
        # Colour, not square, and of several sizes: what a folder of photographs is like.
        for shot in range(2 if index == 11 else 4 + index % 3):
            glyph = photos.images[12 * index + shot, 0].numpy()
            image = Image.fromarray(glyph).convert("RGB").resize((48 + index, 40))
            image.save(folder / f"{shot}.{'png' if shot % 2 else 'jpg'}")
        (folder / "notes.txt").write_text("not a photograph")
    report = run(tmp_path, "out", "--data", str(root), "--students", "gkd")
    assert "left out: 1 folders" in capsys.readouterr().out
    assert report["classes"] == 7
    loaded = data.load_folders(root, progress=False)
    assert loaded.names == [f"person{index:02}" for index in range(11)]
    assert loaded.identity.bincount().tolist() == [4 + index % 3 for index in range(11)]
    assert sum(report["photographs"].values()) < len(loaded.images)  # validation leaves some out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--students", "gdk"], "--students takes ce, kd, gkd, gkd-student, got 'gdk'"),
        (["--data", "nowhere"], "--data nowhere is not a folder"),
        (["--epochs", "0"], "--epochs must be 1 at least, got 0"),
    ],
)
def test_wrong_options_end_with_one_sentence(options, message, capsys):
    with pytest.raises(SystemExit) as error:
        main([*TINY, *options])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_logits_are_never_needed():
    """Both ways in which a student may train are one loss."""
    torch.manual_seed(0)
    model = Recogniser(50, width=2, depth=1, embedding=16)
    features = torch.randn(6, 16).requires_grad_()
    teacher = F.normalize(torch.randn(6, 24)), F.normalize(torch.randn(50, 24))
    sizes = {"scale": 32.0, "distillation_scale": 64.0, "margin": 0.2, "ramp": 0.5}
    found = []
    for linear in (False, True):
        recipe = replace(RECIPES["gkd-student"], linear=linear)
        embeddings = F.normalize(features)
        value = recipe.training_loss(model, embeddings, teacher, torch.arange(6), **sizes)
        gradients = torch.autograd.grad(value.total, (features, model.head))
        found.append((*value, *gradients))
    for one, other in zip(*found, strict=True):
        assert error(one, other) <= 1e-5
