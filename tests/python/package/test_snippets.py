"""Every snippet of README, docs and examples is run, and every example in a docstring.

Python blocks of a page share a namespace, in order. C++ blocks are whole files: one program is made
of them all, linked with the library and run. Nothing is skipped but for want of an extra.
"""

import doctest
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.utils import cpp_extension

import gkd
import markdown
from gkd._load import library_path

PYTHON = {markdown.name_of(page): page for page in markdown.pages_with("python")}


@pytest.fixture
def one_rank(monkeypatch):
    """What torchrun sets in a process's environment, for a run of one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def own_threads():
    """A page may change the number of threads; the tests after it do not notice."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", PYTHON)
@pytest.mark.usefixtures("one_rank", "own_threads")
def test_python(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": name}
    blocks = markdown.blocks(PYTHON[name], "python")
    if any("import gkd.cache" in block.code for block in blocks):
        pytest.importorskip("gkd.cache")  # an extra, which a machine with a GPU may not have
    if any("import gkd.convert" in block.code for block in blocks):
        pytest.importorskip("safetensors")
    for block in blocks:
        if not block.included:
            # Blank lines in front, so that a traceback has the page's own line.
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, str(PYTHON[name]), "exec"), namespace)


def test_the_pages_that_must_have_snippets_have_them():
    expected = {"README.md", "docs/index.md", "docs/settings.md", "docs/performance.md"}
    assert expected <= set(PYTHON)
    assert any(markdown.blocks(page, "cpp") for page in markdown.PAGES)


def cpp_program():
    """All C++ blocks in one file, each in a namespace of its own, and a main that calls theirs."""
    includes, bodies, calls = [], [], []
    for page in markdown.pages_with("cpp"):
        for block in markdown.blocks(page, "cpp"):
            if block.included:
                continue
            lines = block.code.splitlines()
            includes += [line for line in lines if line.startswith("#include")]
            kept = ["" if line.startswith("#include") else line for line in lines]
            space = f"snippet_{len(bodies)}"
            where = f'#line {block.line} "{block.page}"'
            bodies.append(f"namespace {space} {{\n{where}\n" + "\n".join(kept) + "\n}")
            if re.search(r"^int main\(\)", block.code, re.MULTILINE):
                calls.append(f"if (int rc = {space}::main()) return rc;")
    main = "int main() {\n" + "\n".join(calls) + "\nreturn 0;\n}\n"
    return "\n".join([*dict.fromkeys(includes), *bodies, main])


def test_cpp(tmp_path):
    source, program = tmp_path / "snippets.cpp", tmp_path / "snippets"
    source.write_text(cpp_program())
    torch_lib = Path(torch.__file__).parent / "lib"
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O0", "-Wall", "-Wno-main"]
    command += [f"-I{markdown.ROOT / 'csrc' / 'include'}"]
    command += [f"-isystem{path}" for path in cpp_extension.include_paths()]
    command += [str(source), "-o", str(program), str(library_path())]
    command += [f"-L{torch_lib}", "-ltorch", "-ltorch_cpu", "-lc10"]
    # The CUDA runtime that a CUDA build of the library needs is torch's business.
    command += ["-Wl,--unresolved-symbols=ignore-in-shared-libs"]
    command += [f"-Wl,-rpath,{library_path().parent}", f"-Wl,-rpath,{torch_lib}"]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert not built.stderr, built.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


#: Modules with examples in docstrings, and names that must have one.
DOCUMENTED = {
    gkd.functional: {"loss"},
    gkd.class_centers: {"centers", "ClassCenters"},
    gkd.groups: {"group", "adaptive_group_size"},
    gkd.training: {"training_loss"},
    gkd.linear: {"linear_loss", "training_linear_loss"},
    gkd.module: {"GKDLoss", "GKDTrainingLoss"},
    gkd.distributed: {"loss", "training_loss"},
    gkd.reference: {"loss", "training_loss"},
}


@pytest.mark.parametrize("module", DOCUMENTED, ids=lambda m: m.__name__)
def test_docstrings(module):
    finder = doctest.DocTestFinder()
    tests = finder.find(module, extraglobs={"gkd": gkd, "torch": torch})
    with_examples = {t.name.rsplit(".", 1)[-1] for t in tests if t.examples}
    assert DOCUMENTED[module] <= with_examples
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
