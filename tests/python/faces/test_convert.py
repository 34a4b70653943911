"""gkd.convert: files written by each project's layout come back whole; what is wrong has a name."""

import argparse
import os
import re

import pytest
import torch

import gkd.convert
from processes import python

CLASSES, DIMENSION, RANKS = 11, 6, 3
HEAD = torch.arange(CLASSES * DIMENSION, dtype=torch.float32).view(CLASSES, DIMENSION)
BACKBONE = {
    "conv1.weight": torch.randn(4, 3, 3, 3),
    "bn1.num_batches_tracked": torch.tensor(7),
}
OTHER = {"momentum_buffer": torch.zeros(CLASSES, DIMENSION)}


def shards(ranks=RANKS):
    each, more = divmod(CLASSES, ranks)
    return HEAD.split([each + (r < more) for r in range(ranks)])


def arcface_2021(folder, separator="_"):
    for r, shard in enumerate(shards()):
        name = f"rank{separator}{r}_softmax_weight"
        torch.save(shard.clone(), folder / f"{name}.pt")
        torch.save(torch.zeros_like(shard), folder / f"{name}_mom.pt")
    torch.save(BACKBONE, folder / "backbone.pth")
    return folder


def arcface_2021_march(folder):
    return arcface_2021(folder, separator=":")


def arcface_2022(folder, key="weight"):
    for r, shard in enumerate(shards()):
        torch.save({key: shard.clone()}, folder / f"softmax_fc_gpu_{r}.pt")
    torch.save(BACKBONE, folder / "model.pt")
    return folder


def arcface_2022_activated(folder):
    return arcface_2022(folder, key="weight_activated")


def arcface_now(folder):
    for r, shard in enumerate(shards()):
        state = {
            "epoch": 3,
            "global_step": 70,
            "state_dict_backbone": BACKBONE,
            "state_dict_softmax_fc": {"weight": torch.nn.Parameter(shard.clone())},
            "state_optimizer": {"state": {0: OTHER}, "param_groups": [{"lr": 0.1, "params": [0]}]},
            "state_lr_scheduler": {"warmup_iters": 0, "_last_lr": [0.1]},
        }
        torch.save(state, folder / f"checkpoint_gpu_{r}.pt")
    torch.save(BACKBONE, folder / "model.pt")
    return folder


def one_of_the_shards(folder):
    return arcface_now(folder) / "checkpoint_gpu_1.pt"


def adaface(folder):
    state = {f"model.{k}": v for k, v in BACKBONE.items()}
    state |= {"head.kernel": HEAD.T.contiguous(), "head.t": torch.zeros(1)}
    state |= {"head.batch_mean": torch.ones(1) * 20, "head.batch_std": torch.ones(1) * 100}
    whole = {
        "epoch": 25,
        "pytorch-lightning_version": "1.4.4",
        "state_dict": state,
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9), "dirpath": "x"}},
        "hyper_parameters": {"arch": "ir_101", "options": argparse.Namespace(head="adaface")},
    }
    torch.save(whole, folder / "adaface.ckpt")
    return folder / "adaface.ckpt"


def adadistill(folder):
    torch.save({"kernel": torch.nn.Parameter(HEAD.T.contiguous())}, folder / "295672header.pth")
    torch.save(BACKBONE, folder / "295672backbone.pth")
    return folder


def authors(folder):
    state = {f"module.{k}": v for k, v in {**BACKBONE, "fc.weight": HEAD}.items()}
    torch.save({"state_dict": state, "epoch": 19}, folder / "gkd.tmp")
    return folder / "gkd.tmp"


LAYOUTS = [
    arcface_2021,
    arcface_2021_march,
    arcface_2022,
    arcface_2022_activated,
    arcface_now,
    one_of_the_shards,
    adaface,
    adadistill,
    authors,
]


@pytest.mark.parametrize("write", LAYOUTS, ids=lambda f: f.__name__)
def test_layouts(write, tmp_path):
    found = gkd.convert.read(write(tmp_path), CLASSES)
    assert torch.equal(found.head, HEAD)
    assert found.backbone.keys() == BACKBONE.keys()
    assert all(torch.equal(found.backbone[k], BACKBONE[k]) for k in BACKBONE)


def test_heads_alone(tmp_path):
    torch.save(HEAD.half(), tmp_path / "a")
    torch.save({"weight": HEAD}, tmp_path / "b")
    torch.save({"weight": HEAD}, tmp_path / "old", _use_new_zipfile_serialization=False)
    for name in ("a", "b", "old"):
        found = gkd.convert.read(tmp_path / name, CLASSES)
        assert torch.equal(found.head.float(), HEAD) and found.backbone is None
    assert gkd.convert.read(tmp_path / "a", CLASSES).head.dtype == torch.float16


def test_safetensors(tmp_path, capsys):
    safetensors = pytest.importorskip("safetensors")
    out = tmp_path / "adaface.safetensors"
    gkd.convert.main([str(adaface(tmp_path)), str(out), "--classes", str(CLASSES)])
    printed = capsys.readouterr().out
    assert printed == "AdaFace, Lightning: 11 classes of 6 dimensions, backbone: 2 tensors\n"
    with safetensors.safe_open(out, "pt") as file:
        assert torch.equal(file.get_tensor("head.weight"), HEAD)
        assert torch.equal(file.get_slice("head.weight")[4:8], HEAD[4:8])
        for key, value in BACKBONE.items():
            assert torch.equal(file.get_tensor(f"backbone.{key}"), value)
        assert file.metadata() == {"source": "AdaFace, Lightning"}


def test_tensors_that_share_memory(tmp_path):
    pytest.importorskip("safetensors")
    shared = torch.randn(4)
    state = {"fc.weight": HEAD, "a": shared, "b": shared, "c": shared[1:3]}
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    gkd.convert.write(gkd.convert.read(tmp_path / "x.pth", CLASSES), tmp_path / "x.safetensors")


def fails(kind, text, path, classes=CLASSES):
    with pytest.raises(kind, match="^gkd.convert: .*" + text):
        gkd.convert.read(path, classes)


def test_missing_shards(tmp_path):
    arcface_2022(tmp_path)
    (tmp_path / "softmax_fc_gpu_1.pt").unlink()
    fails(FileNotFoundError, "the shard of rank 1 is missing, of ranks 0 to 2", tmp_path)
    arcface_2022(tmp_path)
    (tmp_path / "softmax_fc_gpu_2.pt").unlink()
    text = "softmax_fc_gpu_0.pt has 4 classes; rank 0 of 2 has 6 of 11, and all the files together "
    fails(ValueError, text + "have 8.*last rank's file", tmp_path)
    fails(FileNotFoundError, "nowhere does not exist", tmp_path / "nowhere")


def test_wrong_sizes(tmp_path):
    fails(ValueError, "gpu_2.pt has 3 classes; rank 2 of 3 has 4 of 12", arcface_now(tmp_path), 12)
    fails(ValueError, "the head has 11 classes, not 12$", adaface(tmp_path), 12)
    fails(ValueError, r"has 11 classes, not 6 \(its other size is", authors(tmp_path), DIMENSION)
    swapped = {"weight": HEAD[:4]}
    torch.save(swapped, tmp_path / "checkpoint_gpu_1.pt")
    torch.save({"weight": HEAD[:4, :5]}, tmp_path / "checkpoint_gpu_0.pt")
    fails(ValueError, "shards of different dimensions", tmp_path / "checkpoint_gpu_0.pt")
    with pytest.raises(ValueError, match="num_classes must be >= 1, got 0"):
        gkd.convert.read(tmp_path, 0)
    with pytest.raises(TypeError, match="num_classes"):
        gkd.convert.read(tmp_path, "11")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"conv1.weight": HEAD, "bn1.bias": HEAD[0]}, "it has conv1.weight, bn1.bias$"),
        ({f"layer{k}": HEAD for k in range(20)}, "layer0, .*layer11 and 8 more$"),
        ({"state_dict": {"output.weight": HEAD}}, "its state_dict has output.weight$"),
        ({}, "it has nothing$"),
        ([HEAD], "unknown format, a list$"),
        (HEAD.long(), r"not a float matrix, but torch.int64 \[11, 6\]$"),
        ({"kernel": HEAD[0]}, r"not a float matrix, but torch.float32 \[6\]$"),
    ],
)
def test_unknown_formats(content, text, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    fails(ValueError, "x.pt: .*" + text, tmp_path / "x.pt")


def test_folders_with_no_head_or_several(tmp_path):
    (tmp_path / "model.pt").touch()
    fails(ValueError, "no head known to gkd; pass one file. It has: model.pt", tmp_path)
    adadistill(tmp_path)
    arcface_2021(tmp_path)
    fails(ValueError, "heads of several kinds, arcface_torch 2021, .*295672header.pth", tmp_path)


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"fc.weight": HEAD}, "args": Bomb()}, "bomb.pth")
    name = re.escape(f"{os.system.__module__}.system")
    fails(ValueError, f"it holds {name}, which is not loaded", tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()
    (tmp_path / "text.pth").write_text("no checkpoint")
    fails(ValueError, "text.pth: no tensors and plain values", tmp_path / "text.pth")
    whole = adadistill(tmp_path) / "295672header.pth"
    whole.write_bytes(whole.read_bytes()[:700])
    fails(ValueError, "295672header.pth: no tensors and plain values", whole)


def test_the_command(tmp_path):
    _, errors = python(
        "-m", "gkd.convert", str(tmp_path), str(tmp_path / "out"), "--classes", "3", exits=2
    )
    assert "no head known to gkd" in errors and "Traceback" not in errors


def test_without_it_the_extra_is_named():
    code = (
        "import sys, torch, gkd.convert as c; sys.modules['safetensors'] = None\n"
        "c.write(c.Checkpoint(torch.ones(1, 1), None, ''), 'x')"
    )
    _, errors = python("-c", code, exits=1)
    assert 'gkd.convert needs safetensors: pip install "gkd[convert]"' in errors
