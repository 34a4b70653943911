"""What `cmake --install` gives a C++ project, in both layouts, and the programs of examples/cpp."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch

import gkd
from install_fixtures import BUILD, PACKAGE, ROOT, TORCH, build, cpp_package, python_package, run

EXAMPLES = ROOT / "examples" / "cpp"
LAYOUTS = ("cpp_package", "python_package")
CUDA = torch.version.cuda is not None  # torch links its own CUDA libraries into all that use it

pytestmark = pytest.mark.skipif(
    not (BUILD / "cmake_install.cmake").exists(), reason=f"no build tree in {BUILD}"
)


@pytest.fixture(scope="module")
def installs(tmp_path_factory):
    makers = {"cpp_package": cpp_package, "python_package": python_package}
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in makers.items()}


@pytest.fixture(params=LAYOUTS)
def install(installs, request):
    return installs[request.param]


def test_cmake_files_hold_no_path_of_this_machine(install):
    files = sorted(install.cmake.iterdir())
    assert {"gkdConfig.cmake", "gkdConfigVersion.cmake", "gkdTargets.cmake", "gkdTorch.cmake"} <= {
        file.name for file in files
    }
    for file in files:
        absolute = re.findall(r'["; ](/[\w.-]+/[^"; ]*)', file.read_text())
        assert not absolute, f"{file.name}: {absolute}"


def test_headers_are_the_public_ones(install):
    installed = {file.relative_to(install.include) for file in install.include.rglob("*.h")}
    public = ROOT / "csrc" / "include"
    assert installed == {file.relative_to(public) for file in public.rglob("*.h")}


def test_one_version_everywhere(install):
    version = (ROOT / "VERSION").read_text().strip()
    assert gkd.__version__ == version
    assert (
        f'set(PACKAGE_VERSION "{version}")'
        in (install.cmake / "gkdConfigVersion.cmake").read_text()
    )


# libgomp: GCC's OpenMP runtime, which torch carries under the same soname, so that one is loaded.
SYSTEM = r"lib(gomp|stdc\+\+|m|gcc_s|c|pthread|dl|rt)\.so\.\d+|ld-linux-[\w-]+\.so\.\d"
FRAMEWORK = r"lib(torch|torch_cpu|c10)\.so" + (
    r"|lib(torch_cuda|c10_cuda)\.so|libcudart\.so\.\d+" if CUDA else ""
)


def dynamic(library: Path, tag: str) -> list[str]:
    return re.findall(rf"\({tag}\).*\[(.*)\]", run("readelf", "-d", library))


def test_needs_only_torch_cudart_and_the_system(install):
    needed = dynamic(install.library, "NEEDED")
    assert "libtorch_cpu.so" in needed
    assert any("libcudart" in name for name in needed) == bool(gkd._build.cuda_version)
    strangers = [name for name in needed if not re.fullmatch(f"{FRAMEWORK}|{SYSTEM}", name)]
    assert not strangers


def test_the_run_path_is_relative(install):
    (path,) = dynamic(install.library, "RUNPATH")
    assert path.split(":")[:2] == ["$ORIGIN/../torch/lib", "$ORIGIN"]
    assert all(folder.startswith("$ORIGIN") for folder in path.split(":"))


def test_exports_the_header_and_nothing_else_of_its_own(install):
    header = (ROOT / "csrc/include/gkd/gkd.h").read_text()
    public = set(re.findall(r"^GKD_API \S+ (\w+)\(", header, re.MULTILINE))
    assert {"loss", "group", "sharded_loss", "adaptive_group_size"} <= public
    symbols = [
        line.split() for line in run("nm", "-D", "--defined-only", install.library).splitlines()
    ]
    own = {name for _, _, name in symbols if "gkd" in name}
    mangled = [f"_ZN3gkd{len(name)}{name}E" for name in public]
    assert not [name for name in own if not name.startswith(tuple(mangled))]
    assert len(own) == len(public)
    # The rest is torch's and the standard library's inline code, which every user of it may export.
    assert {kind for _, kind, name in symbols if name not in own} <= {"W", "V", "u"}
    assert not [name for *_, name in symbols if re.search(r"\d(cub|thrust)", name)]


@pytest.fixture(scope="module")
def programs(installs, tmp_path_factory):
    """All of examples/cpp, against the C++ package."""
    prefixes = [installs["cpp_package"].prefix, Path(torch.utils.cmake_prefix_path)]
    return build(EXAMPLES, tmp_path_factory.mktemp("programs"), prefixes)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The files of examples/cpp/package.py, and what Python computed."""
    folder = tmp_path_factory.mktemp("saved")
    out = run(
        sys.executable, EXAMPLES / "package.py", "--out", folder, stderr=None, env=python_env()
    )
    return folder, dict(line.split() for line in out.splitlines())


def python_env() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}


def loaded(program: Path) -> dict[str, Path]:
    """The libraries that a program starts with."""
    lines = re.findall(r"(\S+) => (/\S+)", run("ldd", program))
    return {name: Path(path).resolve() for name, path in lines}


def values(out: str) -> dict[str, float]:
    return {name: float(value) for name, value in (line.split() for line in out.splitlines())}


def test_the_dispatcher_finds_the_operator(programs, saved):
    folder, expected = saved
    out = values(run(programs / "dispatch", folder / "inputs.pt"))
    assert out == {name: float(expected[name]) for name in ("loss", "gradient")}


def test_saved_models_run_without_python(programs, saved):
    folder, expected = saved
    models = [folder / "script.pt", folder / "loss.pt2"]
    out = values(run(programs / "packaged", folder / "inputs.pt", *models))
    # The cosines' own arithmetic may be ordered otherwise: float32's rounding, of a loss of ~300.
    assert out == {
        name: pytest.approx(float(expected["model"]), rel=1e-5) for name in ("script", "package")
    }


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory):
    """Sixteen pixels and few characters: seconds, and enough to tell learning from guessing."""
    file = tmp_path_factory.mktemp("glyphs") / "glyphs.pt"
    small = ["--identities", "70", "--image-size", "16", "--teacher-epochs", "6", "--views", "2"]
    module = [sys.executable, "-m", "examples.glyphs.export"]
    run(*module, "--out", file, "--quiet", *small, cwd=ROOT, env=python_env())
    return file


def test_trains_from_the_teacher_alone(programs, glyphs):
    """Nothing but gkd::loss moves the weights, so that its gradient is what is tested."""
    out = run(programs / "train", "--data", glyphs, "--no-labels", "--epochs", "12")
    losses = [float(value) for value in re.findall(r"^epoch +\d+  loss (\S+)$", out, re.MULTILINE)]
    assert len(losses) == 12
    assert losses[-1] < losses[0] / 2
    assert "accuracy" in out


def test_not_learning_is_a_failure(programs, glyphs):
    out = run(programs / "train", "--data", glyphs, "--epochs", "1", "--rate", "0", fails=True)
    assert "did not learn" in out


def test_help_and_bad_options(programs):
    assert "--no-labels" in run(programs / "train", "--help")
    assert "--eopchs is not an option" in run(programs / "train", "--eopchs", "3", fails=True)
    assert "cannot read nowhere.pt" in run(programs / "train", "--data", "nowhere.pt", fails=True)


def test_the_python_package_serves_cmake_alone(installs, saved, tmp_path):
    """torch is found beside it; the smallest program shows the link."""
    installed = installs["python_package"]
    folder = build(EXAMPLES, tmp_path, [installed.prefix], "dispatch")
    assert loaded(folder / "dispatch")["libgkd.so"] == installed.library.resolve()
    files, expected = saved
    assert values(run(folder / "dispatch", files / "inputs.pt"))["loss"] == float(expected["loss"])


def test_one_openmp_runtime(programs, saved):
    """Torch's own: two would each have their threads."""
    runtimes = {n: path for n, path in loaded(programs / "dispatch").items() if "gomp" in n}
    assert runtimes.keys() == {"libgomp.so.1"}
    if (TORCH / "lib" / "libgomp.so.1").exists():
        assert runtimes["libgomp.so.1"] == (TORCH / "lib" / "libgomp.so.1").resolve()


def refusal(tmp_path, *prefixes: Path, options=(), **env: str) -> str:
    """What CMake says where find_package(gkd) fails."""
    command = ["cmake", "-S", EXAMPLES, "-B", tmp_path / "build", *options]
    command.append(f"-DCMAKE_PREFIX_PATH={';'.join(map(str, prefixes))}")
    return " ".join(run(*command, fails=True, env=os.environ | env).split())


def test_no_torch_is_said_in_one_sentence(installs, tmp_path):
    said = refusal(tmp_path, installs["cpp_package"].prefix)
    assert (
        "torch's CMake files were not found: put what Python prints for "
        "torch.utils.cmake_prefix_path into CMAKE_PREFIX_PATH"
    ) in said


def test_another_torch_is_refused(installs, tmp_path):
    folder = tmp_path / "Torch"
    folder.mkdir()
    (folder / "TorchConfig.cmake").write_text("")
    (folder / "TorchConfigVersion.cmake").write_text("set(PACKAGE_VERSION 2.10.0)\n")
    said = refusal(tmp_path, installs["cpp_package"].prefix, options=[f"-DTorch_DIR={folder}"])
    assert "but torch 2.10.0 was found" in said


def test_no_toolkit_is_asked_for(programs):
    """Also where torch and gkd have CUDA: a program has no code of a device's own."""
    assert "CUDA_COMPILER" not in (programs / "CMakeCache.txt").read_text()


def test_a_source_tree_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(gkd.utils, "__file__", str(tmp_path / "utils.py"))
    with pytest.raises(FileNotFoundError, match="run `pip install --no-build-isolation .`"):
        _ = gkd.utils.cmake_prefix_path
    with pytest.raises(AttributeError, match="cmake_prefix"):
        _ = gkd.utils.cmake_prefix
