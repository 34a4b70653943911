#!/usr/bin/env bash
# Installs gkd beside one version of torch, as the README says, and runs the CPU tests on it. Usage:
#   tests/torch_versions.sh VERSION [PYTHON]
# VERSION is of torch (2.8.0); PYTHON an interpreter for it (python3). The environment is made in
# build/torch-VERSION and needs a package index and nothing else. GKD_CMAKE_ARGS holds, by default
# -DGKD_WITH_CUDA=OFF: then no CUDA toolkit is needed. PYTEST_ARGS are passed to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:?usage: tests/torch_versions.sh VERSION [PYTHON]}
export GKD_CMAKE_ARGS=${GKD_CMAKE_ARGS--DGKD_WITH_CUDA=OFF}
folder=$PWD/build/torch-$version
python=$folder/bin/python
unset PYTHONPATH

"${2:-python3}" -m venv --clear "$folder"
"$python" -m pip install -q "torch==$version" "setuptools>=77" wheel
# A build tree of this version's own: another's would hold another torch's paths.
export GKD_BUILD_DIR=build/torch-$version/cpp
"$python" -m pip install -q --no-build-isolation .
(cd / && "$python" -m gkd.info)
"$python" -m pip install -q pytest hypothesis numpy pillow matplotlib tqdm
# The installed package is tested, not the source tree: only helpers, examples and benchmarks are on
# the path. Left out is what tests this tree instead of the package: documents, seeded bugs, sanitizers.
"$python" -m pytest -q -rs -o pythonpath="tests/python/support ." tests/python \
  --ignore tests/python/robustness/test_mutants.py --ignore tests/python/package/test_documents.py \
  --ignore tests/python/package/test_snippets.py ${PYTEST_ARGS:-}
