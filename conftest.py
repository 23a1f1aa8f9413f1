"""Eight virtual devices for every test, and nothing compiled kept from file to file."""

import gc

import jax
import pytest

# So that sharded results can be compared with unsharded ones.
jax.config.update("jax_num_cpu_devices", 8)

# Traces are large and live long: collected as often as by default, they are a fifth of the time.
gc.set_threshold(100_000, 20, 100)


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_functions():
    """No other file calls them; by the end they would fill gigabytes."""
    yield
    jax.clear_caches()
