"""What installs and documents the cache: its extra, its docstrings."""

import doctest
import importlib

import pytest
import torch

import gkd
from processes import python


def test_gkd_alone_imports_no_pyarrow():
    python("-c", "import gkd, sys; assert 'pyarrow' not in sys.modules")


@pytest.mark.parametrize("missing", ["pyarrow", "numpy"])
def test_without_it_the_extra_is_named(missing):
    code = f"import sys; import torch, gkd; sys.modules[{missing!r}] = None; import gkd.cache"
    _, errors = python("-c", code, exits=1)
    assert f'gkd.cache needs {missing}: pip install "gkd[cache]"' in errors


def test_the_command_runs(tmp_path):
    pytest.importorskip("gkd.cache")
    gkd.cache.EmbeddingWriter(tmp_path, dimension=3).close()
    out, _ = python("-m", "gkd.cache", "verify", str(tmp_path))
    assert out == "no faults\n"


@pytest.mark.parametrize(
    ("module", "named"),
    [
        ("gkd.cache._groups", {"GroupWriter"}),
        ("gkd.cache._embeddings", {"EmbeddingWriter"}),
        ("gkd.cache._fingerprint", {"fingerprint"}),
        ("gkd._reference_groups", {"teacher_group"}),
    ],
)
def test_docstrings(module, named):
    if ".cache" in module:
        pytest.importorskip("gkd.cache")
    tests = doctest.DocTestFinder().find(
        importlib.import_module(module), extraglobs={"gkd": gkd, "torch": torch}
    )
    assert named <= {t.name.rsplit(".", 1)[-1] for t in tests if t.examples}
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
