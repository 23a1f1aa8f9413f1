"""Eight virtual devices for every test, and nothing compiled kept from file to file."""

import gc
from pathlib import Path

import jax
import pytest

# So that sharded results can be compared with unsharded ones.
jax.config.update("jax_num_cpu_devices", 8)

# Traces are large and live long: collected as often as by default, they are a fifth of the time.
gc.set_threshold(100_000, 20, 100)

# Cases that compile for more than three seconds and have cheaper neighbours (`--durations` tells).
EXHAUSTIVE_CASES = frozenset(
    Path(__file__).with_name("tests").joinpath("exhaustive_cases.txt").read_text().split("\n")
)


@pytest.hookimpl(tryfirst=True)  # before markers are selected by `-m`
def pytest_collection_modifyitems(items):
    """Mark those cases."""
    for item in items:
        if item.nodeid in EXHAUSTIVE_CASES:
            item.add_marker(pytest.mark.exhaustive)


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_functions():
    """No other file calls them; by the end they would fill gigabytes."""
    yield
    jax.clear_caches()
