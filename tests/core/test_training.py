"""The training loop's own report."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax.core.training import fit, hold_out


def test_parameters_that_leave_the_reals_are_flagged():
    """√p at 0 has a finite value and an infinite slope."""
    trained = fit(
        jax.random.key(0), lambda key, p: jnp.sqrt(p), jnp.zeros(()), optax.sgd(1.0), num_steps=1
    )
    chex.assert_tree_all_finite(trained.losses)
    assert not trained.finite


def towards(target):
    return lambda key, p: (p - target) ** 2 / 2


def trajectory(start, target, rate, num_steps):
    """Gradient descent on a parabola: p ← p + rate (target − p)."""
    return target + (start - target) * (1 - rate) ** np.arange(num_steps + 1)


def descend(validate, num_steps, num_checks, start=0.0):
    return fit(
        jax.random.key(0),
        towards(4.0),
        jnp.asarray(start),
        optax.sgd(0.1),
        num_steps=num_steps,
        validate=validate,
        num_checks=num_checks,
    )


@pytest.mark.parametrize(("best_at", "stop"), [(0.0, 0), (1.5, 4), (10.0, 20)])
def test_the_best_of_all_checks_is_returned(best_at, stop):
    """Descending to 4, what is nearest to `best_at` every fourth step: start, middle, or end."""
    trained = descend(lambda p: (p - best_at) ** 2, 20, 5)
    path = trajectory(0.0, 4.0, 0.1, 20)
    np.testing.assert_allclose(trained.validation, (path[::4] - best_at) ** 2, rtol=1e-5)
    np.testing.assert_allclose(trained.params, path[stop], rtol=1e-5)
    np.testing.assert_allclose(trained.losses, (path[:-1] - 4) ** 2 / 2, rtol=1e-4)
    assert trained.finite


def test_steps_round_up_to_a_multiple_of_the_checks():
    trained = descend(lambda p: -p, 7, 3)
    assert trained.losses.shape == (9,)
    assert trained.validation.shape == (4,)
    np.testing.assert_allclose(trained.params, trajectory(0.0, 4.0, 0.1, 9)[-1], rtol=1e-5)


def test_validation_that_is_not_a_number_never_wins():
    late = descend(lambda p: jnp.where(p > 1, jnp.nan, -p), 20, 20)
    path = trajectory(0.0, 4.0, 0.1, 20)
    np.testing.assert_allclose(late.params, path[path <= 1][-1], rtol=1e-5)
    first = descend(lambda p: jnp.where(p == 0, jnp.nan, -p), 20, 20)
    np.testing.assert_allclose(first.params, path[-1], rtol=1e-5)
    below = descend(lambda p: jnp.where(p == 0, 0.0, -jnp.inf), 20, 20)
    assert below.params == 0


def test_without_validation_the_last_parameters_and_none_recorded():
    trained = descend(None, 7, 3)
    assert trained.losses.shape == (7,)
    assert trained.validation.shape == (0,)
    np.testing.assert_allclose(trained.params, trajectory(0.0, 4.0, 0.1, 7)[-1], rtol=1e-5)


def test_validated_fits_vmap_over_starts():
    starts = jnp.array([0.0, 3.0])
    together = jax.vmap(lambda s: descend(lambda p: (p - 1.5) ** 2, 8, 4, s).params)(starts)
    single = [descend(lambda p: (p - 1.5) ** 2, 8, 4, s).params for s in starts]
    np.testing.assert_allclose(together, single, rtol=1e-6)
    assert together[1] == 3


def test_checks_are_at_most_one_a_step():
    trained = descend(lambda p: -p, 3, 20)
    assert trained.losses.shape == (3,)
    assert trained.validation.shape == (4,)


@pytest.mark.parametrize("num_rows", [2, 4, 8, 23, 100])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_rows_with_weight_are_held_out_in_the_same_proportion(num_rows, share):
    with_weight = max(2, int(share * num_rows))
    weights = jnp.arange(num_rows) % num_rows < with_weight
    train, held = jax.jit(hold_out, static_argnums=1)(jax.random.key(0), num_rows, weights * 0.1)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(num_rows))
    assert weights[train].any()
    assert weights[held].any()
    assert abs(weights[held].sum() - len(held) * with_weight / num_rows) < 1
