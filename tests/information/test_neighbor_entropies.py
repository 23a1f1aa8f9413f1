"""The entropy by neighbours: against closed forms, SciPy's k-d tree, and leaving rows out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.special import digamma

from divjax import information


def entropy(x, k=5, bias_order=0):
    return information.entropy(x, method=information.KozachenkoLeonenko(k, bias_order))


def tree_entropy(x, k):
    """Of two columns, by the definition."""
    rho = cKDTree(x).query(x, k + 1)[0][:, -1]
    return 2 * np.mean(np.log(rho)) + np.log(np.pi) + digamma(len(x)) - digamma(k)


def test_the_entropy_of_gaussians_and_its_jackknife():
    x = np.random.default_rng(0).normal(size=(40, 400, 2)) * np.array([1.0, 3.0])
    truth = np.log(2 * np.pi * np.e) + np.log(3)
    estimate = jax.jit(jax.vmap(lambda x: entropy(x, 10, 1)))(jnp.asarray(x, jnp.float32))
    spread = estimate.value.std(ddof=1)
    assert abs(estimate.value.mean() - truth) < 4 * spread / np.sqrt(40)
    assert 0.8 * spread < estimate.std_error.mean() < 2.2 * spread

    x = x[0, :30]
    without = [tree_entropy(np.delete(x, i, axis=0), 3) for i in range(30)]
    with jax.enable_x64(True):
        estimate, scaled = entropy(x, 3), entropy(1e-3 * x, 3)
    np.testing.assert_allclose(estimate.value, tree_entropy(x, 3), rtol=1e-12)
    np.testing.assert_allclose(estimate.std_error, np.std(without, ddof=1) * 29 / np.sqrt(30))
    expected = float(estimate.value) + 2 * np.log(1e-3)
    np.testing.assert_allclose(scaled.value, expected, rtol=1e-12)


def test_offsets_units_and_sets_without_a_density():
    x = np.random.default_rng(1).normal(size=(200, 2))
    plain = entropy(x)
    np.testing.assert_allclose(entropy(x + 123456789.0).value, plain.value, rtol=1e-4)
    # The derivative is that of how distances scale: 2 of 2 log c.
    slope = jax.grad(lambda c: entropy(c * jnp.asarray(x, jnp.float32)).value)(1.0)
    np.testing.assert_allclose(slope, 2, rtol=1e-4)
    # A large value is no sign of disjoint supports, for there is one sample.
    assert not entropy(1e9 * x).diagnostics.beyond_log_n

    on_a_line = entropy(np.column_stack([x[:, 0], np.ones(200)]))
    assert on_a_line.value == -jnp.inf
    assert jnp.isnan(on_a_line.std_error)
    x[0, 0] = np.inf
    assert jnp.isnan(entropy(x).value)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="k must be an integer from 1 to 4"):
        entropy(jnp.ones((6, 2)), 5)
    with pytest.raises(ValueError, match="bias_order must be an integer from 0"):
        entropy(jnp.ones((6, 2)), 2, 2)
