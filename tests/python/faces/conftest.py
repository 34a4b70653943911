"""What the tests of examples/faces share."""

import pytest

import face_runs


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread):
    """In every module here."""


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A data set of 28 identities."""
    with pytest.MonkeyPatch.context() as patch:
        return face_runs.write(tmp_path_factory.mktemp("files"), patch)
