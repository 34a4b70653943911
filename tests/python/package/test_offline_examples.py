"""Examples whose teachers are on disk: what they learn is what a live teacher's students learn."""

import dataclasses
import re

import pytest
import torch

pytest.importorskip("gkd.cache")

from examples.glyphs import data, offline
from examples.glyphs.losses import RECIPES
from examples.glyphs.train import Settings, look, train_student, train_teacher

TINY = Settings(
    image_size=16, batch=32, epochs=2, teacher_epochs=1, views=2, log_points=5, progress=False
)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def glyphs():
    """Latin letters alone, so that rendering takes no time."""
    real = data.FT2Font

    class Few:
        def __init__(self, path):
            drawn = real(path).get_charmap()
            self.drawn = {code: drawn[code] for code in drawn if 0x41 <= code < 0x5B}

        def get_charmap(self):
            return self.drawn

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "FT2Font", Few)
        return data.render_dejavu(16, progress=False)


def test_a_kept_recogniser_is_the_live_one(glyphs, tmp_path):
    split = data.split(glyphs, seed=0)
    teacher = train_teacher(split.train, split.classes, TINY)
    views = look(teacher, split.train, TINY)
    live = dataclasses.replace(views, embeddings=offline.Live(teacher, views.images))
    recipe = RECIPES["gkd-student"]

    def history(seen):
        return train_student(recipe, seen, split.classes, TINY)[1]

    memory = history(views)
    first, largest = offline.apart(memory, history(live))
    assert first <= largest <= 1e-4  # 0 where a row's embedding does not depend on its batch
    for dtype in (torch.float32, torch.float16):
        folder = tmp_path / str(dtype)
        reader = offline.keep(teacher, views.images, folder, dtype, TINY)
        kept = history(dataclasses.replace(views, embeddings=offline.Kept(reader, "cpu")))
        if dtype == torch.float32:
            assert kept == memory
        else:
            # A cosine changes by 2^-11 at most, a logit at T = 4 by 16 times that.
            first, largest = offline.apart(memory, kept)
            assert 0 < first <= 2 * 16 * 2**-11 <= 0.02
    # Nothing is left to write; another teacher's embeddings are not taken for this one's.
    files = sorted(path.name for path in folder.iterdir())
    offline.keep(teacher, views.images, folder, torch.float16, TINY)
    assert sorted(path.name for path in folder.iterdir()) == files
    with pytest.raises(ValueError, match="was stored with teacher"):
        offline.keep(teacher, views.images + 1, folder, torch.float16, TINY)


def test_the_program_for_recognisers(glyphs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "render_dejavu", lambda *_, **__: glyphs)
    small = ["--teacher-epochs", "1", "--epochs", "1", "--views", "1", "--image-size", "16"]
    small += ["--batch", "32", "--rounds", "1", "--quiet", "--cache", str(tmp_path)]
    assert offline.main([*small, "--dtype", "float32"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^\| from disk +\| +[\d.]+% \| +[\d.]+ \| +[\d.]+ \|$", printed, re.MULTILINE)
    assert "embeddings, " in printed and " in the first step, where" in printed
    with pytest.raises(SystemExit):
        offline.main([*small, "--dtype", "float16"])
    assert "was stored with dtype = 'float32', asked for 'float16'" in capsys.readouterr().err
