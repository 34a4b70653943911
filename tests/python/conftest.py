"""Fixtures shared by every test: the device under test, and the sizes that suit it."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import settings as hypothesis_settings

from devices import DEVICES, EMULATED

# Examples of a property; tests/run.sh nightly picks its profile by --hypothesis-profile. On every
# change the same ones, so that a failure is the change's and not the day's; at night fresh ones,
# printed so that a failure can be repeated.
hypothesis_settings.register_profile("change", max_examples=200, deadline=None, derandomize=True)
hypothesis_settings.register_profile("emulated", max_examples=5, deadline=None, derandomize=True)
hypothesis_settings.register_profile(
    "nightly", max_examples=5000, deadline=None, print_blob=True, database=None
)
hypothesis_settings.load_profile("emulated" if EMULATED else "change")


def pytest_addoption(parser):
    parser.addoption("--large", action="store_true", help="run the tests marked large too")


def pytest_configure(config):
    config.addinivalue_line("markers", "cuda: needs a CUDA device")
    config.addinivalue_line("markers", "products: needs matrix products on its device")
    config.addinivalue_line("markers", "large: gigabytes or minutes; runs with --large")


def pytest_collection_modifyitems(config, items):
    no_device = pytest.mark.skip(reason="needs a CUDA device")
    no_products = pytest.mark.skip(reason="the emulated device has no cuBLAS")
    too_large = pytest.mark.skip(reason="takes gigabytes or minutes: --large, tests/run.sh nightly")
    for item in items:
        if item.get_closest_marker("large") and not config.getoption("--large"):
            item.add_marker(too_large)
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(no_device)
        on_cuda = hasattr(item, "callspec") and item.callspec.params.get("device") == "cuda"
        if item.get_closest_marker("products") and on_cuda and EMULATED:
            item.add_marker(no_products)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(20230446)


@pytest.fixture(scope="module")
def one_thread():
    """For networks so small that threads wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=DEVICES)
def device(request):
    """Where the operator runs: everything that a test compares with is computed on the CPU."""
    return request.param


@pytest.fixture
def filled_with_nan():
    """Memory that torch hands out holds NaN, or the largest integer, instead of what lay there."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Sizes:
    """Shapes by what they are for: thousands of elements, since a device may be an emulated one."""

    # [B, C]. 1 and 2 classes: degenerate groups; 3..33: around a pack of 16 and a warp; 255..1025:
    # around a block's tile and a 1,024-class chunk; 8193: many chunks. One row, and many.
    parity: tuple[tuple[int, int], ...] = (
        (5, 1),
        (5, 2),
        (4, 3),
        (3, 16),
        (5, 33),
        (3, 255),
        (3, 256),
        (2, 511),
        (2, 1025),
        (1, 4099),
        (1, 8193),
        (20, 7),
    )
    strides: tuple[int, int] = (5, 77)  # [B, C]: rows that no vector width divides
    long_row: int = 3000  # more than a block's tile
    repeats: int = 100  # runs that must agree to the bit
    many_rows: int = 70_000  # more than a grid's y and z dimensions hold
    many_classes: int = 2**24 + 3  # more than a float counts


@pytest.fixture
def sizes(device):
    if device == "cuda" and EMULATED:
        return Sizes(many_rows=300, many_classes=20_000, repeats=10)
    return Sizes()
