"""Verification: .bin files and hostile ones, folds, and ROC curves against scikit-learn's."""

import os
import pickle

import numpy as np
import pytest

from examples.faces.verification import bins, folds, roc, templates

metrics = pytest.importorskip("sklearn.metrics")
selection = pytest.importorskip("sklearn.model_selection")

IMAGES = [b"one", b"two\0", b"", b"\xff\xd8three"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_set_in_every_protocol(tmp_path, protocol):
    path = tmp_path / "lfw.bin"
    path.write_bytes(pickle.dumps((IMAGES, [True, False]), protocol))
    images, same = bins.read(path)
    assert images == IMAGES and same.tolist() == [True, False]


@pytest.mark.parametrize("protocol", range(5))
def test_a_set_of_arrays(tmp_path, protocol):
    path = tmp_path / "old.bin"
    arrays = [np.frombuffer(image, np.uint8) for image in IMAGES]
    for same in ([np.True_, np.False_], np.array([1, 0], bool)):
        path.write_bytes(pickle.dumps((arrays, same), protocol))
        images, found = bins.read(path)
        assert images == IMAGES and found.tolist() == [True, False]


def test_a_set_of_python_2(tmp_path):
    """As its cPickle wrote strings, an array and a numpy truth value: protocol 2."""
    dtype = b"cnumpy\ndtype\nU\x02%sK\x00K\x01\x87R"
    dtype += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x03\x85"
        + dtype % b"u1" + b"\x89U\x03ab\xfftb"
    )  # fmt: skip
    truth = b"cnumpy.core.multiarray\nscalar\n" + dtype % b"b1" + b"U\x01\x01\x86R"
    path = tmp_path / "old.bin"
    path.write_bytes(b"\x80\x02](U\x03a\xff\x00" + array + b"e](" + truth + b"e\x86.")
    images, same = bins.read(path)
    assert images == [b"a\xff\0", b"ab\xff"] and same.tolist() == [True]


class Call:
    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("where", ["images", "same", "whole"])
def test_a_pickle_that_calls_something(tmp_path, protocol, where):
    ran, path = tmp_path / "ran", tmp_path / "hostile.bin"
    call = Call(os.system, f"touch {ran}")
    found = {"images": ([call], []), "same": ([b"a", b"b"], [call]), "whole": call}[where]
    path.write_bytes(pickle.dumps(found, protocol))
    with pytest.raises(ValueError, match=rf"hostile.bin: it names {os.system.__module__}.system,"):
        bins.read(path)
    assert not ran.exists()
    pickle.loads(path.read_bytes())
    assert ran.exists(), "the pickle has to be able to"


@pytest.mark.parametrize(
    "function",
    [eval, exec, getattr, __import__, open, np.load, np.frombuffer, print, pickle.loads, bytearray],
)
def test_other_names(tmp_path, function):
    path = tmp_path / "hostile.bin"
    path.write_bytes(pickle.dumps(([Call(function, "1")], []), 2))
    with pytest.raises(ValueError, match="it names"):
        bins.read(path)


def test_dotted_names_are_names(tmp_path):
    """Protocol 4 may ask for an attribute of what a module has."""
    path = tmp_path / "hostile.bin"
    path.write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.")
    with pytest.raises(ValueError, match="it names numpy.dtype.__init__"):
        bins.read(path)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ((IMAGES, [True]), "4 images for 1 pairs"),
        ((IMAGES, [True, 2]), "pair 1 has no truth value but 2"),
        ((IMAGES[:3] + ["text"], [True, False]), "image 3 is of type str"),
        (IMAGES[:2], "not a pair of images"),
        ((np.zeros(3, np.float32), [True]), "an array of something else"),
    ],
)
def test_what_is_no_set(tmp_path, found, message):
    path = tmp_path / "set.bin"
    path.write_bytes(pickle.dumps(found, 4))
    with pytest.raises(ValueError, match=message):
        bins.read(path)
    path.write_bytes(pickle.dumps((IMAGES, [True, False]), 4)[:-9])
    with pytest.raises(ValueError, match="set.bin"):
        bins.read(path)


def test_what_is_written_is_read(tmp_path):
    bins.write(tmp_path / "set.bin", IMAGES, [np.False_, True])
    assert bins.read(tmp_path / "set.bin").same.tolist() == [False, True]


def the_fields_accuracy(distance, same):
    """As InsightFace's verification.py goes about it, threshold by threshold."""
    found = []
    for train, test in selection.KFold(n_splits=10, shuffle=False).split(distance):
        best = [np.mean((distance[train] < t) == same[train]) for t in np.arange(0, 4, 0.01)]
        threshold = np.arange(0, 4, 0.01)[np.argmax(best)]
        found.append(np.mean((distance[test] < threshold) == same[test]))
    return np.mean(found), np.std(found)


@pytest.mark.parametrize("pairs", [10, 57, 600])
def test_folds(pairs):
    generator = np.random.default_rng(pairs)
    embeddings = generator.standard_normal((2 * pairs, 8)).astype(np.float32)
    same = generator.random(pairs) < 0.5
    embeddings[1::2][same] = embeddings[0::2][same] + generator.standard_normal((same.sum(), 8)) / 2
    distance = folds.distances(embeddings)
    # Rounded, so that many lie on a threshold and on each other.
    for values in (distance, distance.round(2), THRESHOLD_TIES[:1].repeat(pairs)):
        mean, std = the_fields_accuracy(values, same)
        found = folds.accuracy(values, same)
        assert abs(found.mean - mean) < 1e-12 and abs(found.std - std) < 1e-12


THRESHOLD_TIES = np.arange(0, 4, 0.01)[100:102]


def test_a_zero_embedding():
    assert folds.distances(np.array([[0.0, 0], [3, 4]])) == 1.0
    with pytest.raises(ValueError, match="9 pairs do not make 10 folds"):
        folds.accuracy(np.zeros(9), np.zeros(9, bool))


@pytest.mark.parametrize("decimals", [0, 1, 2, 9])
def test_the_curve_is_scikit_learns(decimals):
    """Few decimals: most scores are equal to others."""
    generator = np.random.default_rng(decimals)
    same = generator.random(3000) < 0.1
    scores = (generator.standard_normal(3000) + 2 * same).round(decimals)
    found = roc.roc(scores, same)
    far, tar, _ = metrics.roc_curve(same, scores, drop_intermediate=False)
    assert np.abs(found.far - far).max() < 1e-15 and np.abs(found.tar - tar).max() < 1e-15
    for rate in (0.5, 0.1, 1e-2, 1e-3):
        gaps = list(zip(abs(np.flipud(far) - rate), range(len(far)), strict=True))
        assert roc.tar_at(found, rate) == np.flipud(tar)[min(gaps)[1]], rate
    assert roc.tar_at(found, 1e-4) is None


def test_tar_by_hand():
    same = np.array([True, True, False, True, False, False, False, False])
    found = roc.roc(np.array([9.0, 8, 7, 6, 5, 5, 4, 3]), same)
    # At 5 two impostors are accepted at once: FAR goes from 1/5 to 3/5.
    assert found.far.tolist() == [0, 0, 0, 0.2, 0.2, 0.6, 0.8, 1]
    assert roc.tar_at(found, 0.2) == 1.0
    assert roc.tar_at(roc.roc(-np.arange(8.0), ~same), 0.5) == 0.2
    for bad in (np.ones(8, bool), np.zeros(8, bool)):
        with pytest.raises(ValueError, match="make no ROC curve"):
            roc.roc(np.arange(8.0), bad)
    with pytest.raises(ValueError, match="NaN"):
        roc.roc(np.full(8, np.nan), same)


def the_fields_templates(embeddings, media):
    """As InsightFace's eval_ijbc.py pools them, template by template."""
    rows = []
    for template in np.unique(media.templates):
        (at,) = np.where(media.templates == template)
        means = [
            embeddings[at][media.media[at] == m].mean(0, keepdims=True)
            for m in np.unique(media.media[at])
        ]
        rows.append(np.sum(np.concatenate(means), 0))
    rows = np.array(rows)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_templates(tmp_path):
    generator = np.random.default_rng(0)
    numbers, media_numbers = generator.integers(5, 25, 90), generator.integers(0, 4, 90)
    lines = [f"{k}.jpg {numbers[k]} {media_numbers[k]}\n" for k in range(90)]
    text = "".join(lines)
    (tmp_path / "media.txt").write_text(text)
    media = templates.read_media(tmp_path / "media.txt")
    assert media.images[3] == "3.jpg" and media.templates.tolist() == numbers.tolist()
    embeddings = generator.standard_normal((90, 6))
    names, rows = templates.embed_templates(embeddings, media)
    assert names.tolist() == sorted(set(numbers.tolist()))
    assert np.abs(rows - the_fields_templates(embeddings, media)).max() < 1e-12
    (tmp_path / "pairs.txt").write_text(f"{names[0]} {names[3]} 1\n{names[2]} {names[2]} 0\n")
    pairs = templates.read_pairs(tmp_path / "pairs.txt")
    assert pairs.same.tolist() == [True, False]
    found = templates.scores(names, rows, pairs)
    assert abs(found[0] - rows[0] @ rows[3]) < 1e-12 and abs(found[1] - 1) < 1e-12
    (tmp_path / "pairs.txt").write_text(f"{names[0]} 999 1\n")
    with pytest.raises(ValueError, match="template 999 has pairs and no photograph"):
        templates.scores(names, rows, templates.read_pairs(tmp_path / "pairs.txt"))
    (tmp_path / "media.txt").write_text("a 1 2\nb 1\n")
    with pytest.raises(ValueError, match="line 2"):
        templates.read_media(tmp_path / "media.txt")
    with pytest.raises(ValueError, match="89 embeddings of 90"):
        templates.embed_templates(embeddings[1:], media)
