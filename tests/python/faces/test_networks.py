"""The recipe with real networks: timm's, and those of a checkout of arcface_torch with its files.

ARCFACE_TORCH names the folder recognition/arcface_torch of a checkout of deepinsight/insightface.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

import gkd.convert
from examples.faces import networks, recipe, run
from examples.faces.__main__ import main
from examples.faces.data import Photographs, open_source
from examples.faces.teacher import embeddings_of, fingerprint
from examples.faces.train import Place
from face_runs import ROOT, curve, options, torchrun

BESIDE = ROOT.parent / "insightface" / "recognition" / "arcface_torch"
CHECKOUT = Path(os.environ.get("ARCFACE_TORCH", BESIDE))
with_checkout = pytest.mark.skipif(
    not (CHECKOUT / "backbones").is_dir(),
    reason=f"no backbones in {CHECKOUT}: ARCFACE_TORCH names the folder arcface_torch",
)
CPU, CLASSES = torch.device("cpu"), 28
STAND_IN = """
from torch import nn
def get_model(name, fp16, num_features, dropout):
    return nn.Sequential(
        nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(),
        nn.Linear(784, num_features), nn.BatchNorm1d(num_features),
    )
"""


@pytest.fixture
def arcface_torch(monkeypatch):
    """The checkout, whose modules are forgotten again."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(CHECKOUT))
    yield str(CHECKOUT)
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("backbones", "partial_fc_v2", "lr_scheduler"):
            del sys.modules[name]


def named(student, teacher, checkout=""):
    words = {"student": student, "teacher": teacher, "arcface_torch": checkout}
    return [x for name, value in words.items() for x in ("--set", f"{name}={value}")]


def losses(out, name="student"):
    return torch.tensor([float(row["total"]) for row in curve(out, name)])


def test_with_timm(files, tmp_path):
    pytest.importorskip("timm", reason="timm is not installed")
    names = named("timm:mobilenetv3_small_050", "timm:resnet18")
    fewer = ("--set", "epochs=0.5", "--set", "teacher_epochs=0.25")
    assert main(options(files, tmp_path / "out", *names, *fewer)) == 0
    assert losses(tmp_path / "out").isfinite().all()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["parameters"]["teacher"] > 11_000_000, "ResNet-18"


@with_checkout
def test_with_a_teacher_as_arcface_torch_saves_it(files, tmp_path, arcface_torch):
    """train_v2.py's shards, by gkd.convert one file of backbone and head, distilled into mbf."""
    network = networks.build("r18", 16, 112, arcface_torch)
    with torch.no_grad():
        network(torch.randn(8, 3, 112, 112))  # statistics that are not those of a new network
    torch.save(network.state_dict(), tmp_path / "model.pt")
    head = torch.randn(CLASSES, 16)
    (tmp_path / "saved").mkdir()
    for rank, rows in enumerate(head.chunk(2)):
        softmax = torch.nn.Linear(16, len(rows), bias=False)  # as PartialFC_V2, which needs CUDA
        softmax.weight.data.copy_(rows)
        optimiser = torch.optim.SGD([*network.parameters(), *softmax.parameters()], 0.1, 0.9)
        saved = {
            "epoch": 1,
            "global_step": 3,
            "state_dict_backbone": network.state_dict(),
            "state_dict_softmax_fc": softmax.state_dict(),
            "state_optimizer": optimiser.state_dict(),
            # What its scheduler has; the class itself refuses new versions of torch.
            "state_lr_scheduler": {"total_iters": 9, "power": 1.0, "warmup_iters": 0},
        }
        torch.save(saved, tmp_path / "saved" / f"checkpoint_gpu_{rank}.pt")
    both = tmp_path / "teacher.safetensors"
    gkd.convert.main([str(tmp_path / "saved"), str(both), "--classes", str(CLASSES)])
    loaded = networks.build("r18", 16, 112, arcface_torch)
    networks.load_backbone(loaded, both)
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert torch.equal(networks.load_head(both, CLASSES), head)

    short = ("--set", "epochs=0.25", "--set", "pairs=[]", "--set", "ijb=[]")
    names = named("mbf", "r18", arcface_torch)
    converted = ("--set", f"teacher_backbone={both}", "--set", f"teacher_head={both}")
    assert main(options(files, tmp_path / "converted", *names, *converted, *short)) == 0
    assert losses(tmp_path / "converted").isfinite().all()


@with_checkout
def test_with_model_pt_and_no_head(files, tmp_path, arcface_torch):
    """All that arcface_torch keeps by default: the head is the classes' centres."""
    torch.save(networks.build("mbf", 16, 112, arcface_torch).state_dict(), tmp_path / "model.pt")
    names = [*named("small:4", "mbf", arcface_torch), "--set", "pairs=[]", "--set", "ijb=[]"]
    plain = ("--set", f"teacher_backbone={tmp_path / 'model.pt'}")
    assert main(options(files, tmp_path / "out", *names, *plain)) == 0
    assert losses(tmp_path / "out").isfinite().all()


@with_checkout
def test_arcface_torch_computes_in_half_precision(arcface_torch):
    """On CUDA it has an autocast of its own, which would overrule the recipe's, on or off."""
    for amp, half in (("", False), ("float16", True)):
        given = recipe.from_mapping({"amp": amp, "arcface_torch": arcface_torch})
        assert run._build("mbf", given, Place(torch.device("cuda"), Path())).fp16 is half


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_one_autocast_per_network():
    cuda, cpu = Place(torch.device("cuda"), Path()), Place(CPU, Path())
    given = recipe.from_mapping({"amp": "bfloat16"})
    for place, name, ours in (
        (cuda, "r50", False),
        (cuda, "timm:resnet18", True),
        (cpu, "r50", True),
    ):
        assert isinstance(place.autocast(given, name), torch.autocast) is ours, name
    with pytest.raises(ValueError, match="on CUDA this network of arcface_torch computes"):
        run._build("r50", given, cuda)
    with pytest.raises(ValueError, match=r"vit_t with amp = ''.*in float16$"):
        run._build("vit_t", recipe.from_mapping({}), cuda)


def test_statistics_of_batches_on_two_ranks(files, tmp_path):
    """Each rank has its own while it trains, as in arcface_torch; afterwards all have the first's.

    The cache shows what network each rank had as its teacher: it made every other image's
    embeddings.
    """
    gkd_cache = pytest.importorskip("gkd.cache")
    (tmp_path / "code" / "backbones").mkdir(parents=True)
    (tmp_path / "code" / "backbones" / "__init__.py").write_text(STAND_IN)
    names = named("normed", "normed", tmp_path / "code")
    cached = ("--set", f"teacher_cache={tmp_path / 'cache'}", "--sharded")
    torchrun(options(files, tmp_path / "two", *names, *cached))
    states = [
        torch.load(tmp_path / "two" / "teacher" / f"step_4_rank_{rank}_of_2.pt")["network"]
        for rank in range(2)
    ]
    assert torch.equal(states[0]["0.weight"], states[1]["0.weight"])
    assert not torch.equal(states[0]["1.running_mean"], states[1]["1.running_mean"])

    code = {}
    exec(STAND_IN, code)
    kept = code["get_model"]("normed", False, 16, 0)
    networks.load_backbone(kept, tmp_path / "two" / "teacher.pt")
    photographs = Photographs(open_source(files / "train.rec"), CLASSES)
    some = torch.arange(20)
    ((_, expected),) = embeddings_of(kept, photographs, some, CPU, 0, False)
    described = {"dimension": 16, "teacher": fingerprint(kept, photographs)}
    reader = gkd_cache.EmbeddingReader(tmp_path / "cache", **described)
    found = reader.read(some[:, None], torch.arange(2)).float()
    expected = torch.nn.functional.normalize(expected, dim=-1)
    assert (found - expected).abs().max() < 1e-3, "float16"
