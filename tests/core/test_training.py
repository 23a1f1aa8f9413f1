"""The training loop's own report."""

import jax
import jax.numpy as jnp
import optax

from divjax.core.training import fit


def test_parameters_that_leave_the_reals_are_flagged():
    """√p at 0 has a finite value and an infinite slope."""
    trained = fit(
        jax.random.key(0), lambda key, p: jnp.sqrt(p), jnp.zeros(()), optax.sgd(1.0), num_steps=1
    )
    assert jnp.isfinite(trained.losses).all()
    assert not trained.finite
