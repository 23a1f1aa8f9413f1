"""Many features at once, and the test of conditional independence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.feature_selection import mutual_info_regression

from divjax import information
from divjax.information.local_permutations import _local_permutation


def test_screening_is_the_information_of_each_column():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 4))
    features[:, 3] = np.round(features[:, 3])
    target = features[:, :1] + features[:, 3:] + rng.normal(size=(200, 1))
    with jax.enable_x64(True):
        method = information.KSG()
        found = information.mutual_information_screening(features, target, method=method)
        one = information.mutual_information(features[:, 1:2], target, method=method)
    known = mutual_info_regression(features[:, :3], target[:, 0], random_state=0)
    np.testing.assert_allclose(np.maximum(found.value[:3], 0), known, atol=1e-6)
    np.testing.assert_allclose(found.std_error[1], one.std_error)
    # The repeated values of the last are flagged, and no others.
    assert found.diagnostics.suitable.tolist() == [True, True, True, False]
    assert jnp.isnan(found.std_error).tolist() == [False, False, False, True]


def test_local_permutations_stay_near_and_take_each_once():
    """On a line of evenly spaced rows all rows can take one of five neighbours."""
    n, k = 50, 5
    near = (jnp.arange(n)[:, None] + jnp.arange(k)) % n
    keys = jax.random.split(jax.random.key(0), 20)
    chosen = np.asarray(
        jax.jit(jax.vmap(lambda key: _local_permutation(key, near, jnp.full(n, k))))(keys)
    )
    assert ((chosen - np.arange(n)) % n < k).all()
    distinct = np.array([len(set(row)) for row in chosen]) / n
    # A draw with replacement would have 0.63.
    assert distinct.mean() > 0.85
    assert len({tuple(row) for row in chosen.tolist()}) == 20


def confounded(key, n, effect=0.0):
    z, noise_x, noise_y = jax.random.normal(key, (3, n, 1))
    x = z + noise_x
    return x, z + effect * x + noise_y, z


def test_dependence_beyond_the_condition_is_found():
    variables = confounded(jax.random.key(0), 150, effect=1.0)
    test = information.conditional_independence_test(
        jax.random.key(1), *variables, num_permutations=39
    )
    assert test.converged
    assert float(test.p_value) == pytest.approx(1 / 40)


def test_what_is_not_finite_has_no_p_value():
    x, y, z = confounded(jax.random.key(0), 20)
    test = information.conditional_independence_test(
        jax.random.key(1), x.at[0].set(jnp.nan), y, z, num_permutations=9
    )
    assert jnp.isnan(test.p_value)
    assert not test.finite


@pytest.mark.exhaustive
def test_the_level_is_kept():
    """At 10 %, in 300 repetitions."""

    @jax.jit
    def p_value(key):
        variables = confounded(key, 100)
        return information.conditional_independence_test(
            jax.random.fold_in(key, 1), *variables, num_permutations=49
        ).p_value

    keys = jax.random.split(jax.random.key(0), 300)
    rejected = jnp.mean(jax.lax.map(p_value, keys, batch_size=20) <= 0.1)
    assert rejected < 0.1 + 2 * (0.09 / 300) ** 0.5
