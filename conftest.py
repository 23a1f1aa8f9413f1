"""Eight virtual devices for every test, and nothing compiled kept from file to file."""

import jax
import pytest

# So that sharded results can be compared with unsharded ones.
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_functions():
    """No other file calls them; by the end they would fill gigabytes."""
    yield
    jax.clear_caches()
