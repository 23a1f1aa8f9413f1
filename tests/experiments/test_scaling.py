"""The count of what devices hold and receive, against what is known by hand."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from experiments import scaling


def test_what_is_received_is_read_from_the_program():
    """A sample in reversed order needs all of it, n · d floats, on each device."""

    def gathered(x, y):
        whole = jax.lax.with_sharding_constraint(y, PartitionSpec())
        return jnp.sum(x) + jnp.sum(whole[::-1] * jnp.arange(3.0))

    found = scaling.measure(gathered, 4096, 3, 8)
    assert 4096 * 3 * 4 <= found["received"] < 1.1 * 4096 * 3 * 4
    assert scaling.measure(gathered, 4096, 3, 1)["received"] == 0


def test_a_kernel_flows_step_is_shared():
    """On eight devices a device holds less than on one, and receives a few samples' worth."""
    one, eight = (scaling.measure(scaling.kernel_step, 100_032, 16, count) for count in (1, 8))
    sample = 100_032 * 16 * 4
    assert eight["memory"] < one["memory"] / 2
    assert sample <= eight["received"] < 4 * sample
    settings = scaling.Settings(sizes=(10_000,), devices=(1, 8))
    assert settings.sizes == (10_048,)
