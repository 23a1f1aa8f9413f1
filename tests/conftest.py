"""Eight virtual devices, so that sharded results can be compared with unsharded ones."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_functions():
    """What one file has traced and compiled, no other calls: gigabytes, by the end."""
    yield
    jax.clear_caches()
