"""What the tests of examples/faces share."""

import pytest
import torch

import face_runs


@pytest.fixture(autouse=True, scope="module")
def _threads():
    """One: networks this small wait for each other's threads most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A data set of 28 identities."""
    with pytest.MonkeyPatch.context() as patch:
        return face_runs.write(tmp_path_factory.mktemp("files"), patch)
