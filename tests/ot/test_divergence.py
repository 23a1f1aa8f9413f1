"""The divergence against ott-jax, its definition and its theorems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ott.geometry import pointcloud
from ott.tools import sinkhorn_divergence as ott_divergence

from divjax import ot
from divjax.core.types import Status


def clouds(n=30, m=20, d=2, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, d)), 0.5 + 1.2 * rng.normal(size=(m, d))
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


DIVERGENCE = jax.jit(
    lambda x, y, e: ot.sinkhorn_divergence(x, y, epsilon=e, solver=ot.Sinkhorn(tolerance=1e-5))
)


@pytest.mark.parametrize("epsilon", [0.3, 3.0])
def test_values_match_ott(epsilon):
    x, y = clouds()
    expected, _ = ott_divergence.sinkhorn_divergence(
        pointcloud.PointCloud, x, y, epsilon=epsilon, solve_kwargs={"threshold": 1e-6}
    )
    result = DIVERGENCE(x, y, epsilon)
    assert result.converged
    np.testing.assert_allclose(result.value, expected, rtol=1e-4)


def test_symmetric_updates_find_the_general_solution():
    x, _ = clouds()
    result = DIVERGENCE(x, x[:20], 0.3).xx
    np.testing.assert_array_equal(result.f, result.g)
    general = ot.sinkhorn(x, x, epsilon=0.3, solver=ot.Sinkhorn(tolerance=1e-5))
    np.testing.assert_allclose(result.value, general.value, rtol=1e-5)
    np.testing.assert_allclose(result.f, general.f, atol=1e-3)


def test_of_a_sample_and_its_shift_it_is_the_squared_shift():
    """For the squared Euclidean cost S(a, a + s) = ‖s‖², whatever ε."""
    x, _ = clouds()
    shift = jnp.array([1.0, -2.0])
    for epsilon in (0.3, 3.0, 100.0):
        np.testing.assert_allclose(DIVERGENCE(x, x + shift, epsilon).value, 5, rtol=1e-4)
        np.testing.assert_allclose(DIVERGENCE(x, x, epsilon).value, 0, atol=1e-5)


@pytest.mark.parametrize("penalty", [None, 0.5])
def test_gradients_are_slopes_and_vanish_where_both_agree(penalty):
    with jax.enable_x64(True):
        x, y = clouds(8, 6, dtype=jnp.float64)
        a = jnp.linspace(0, 1, 8) / 4
        b = jnp.full(6, 1 / 6)
        settings = dict(epsilon=0.4, marginal_penalty=penalty, solver=ot.Sinkhorn(tolerance=1e-13))
        value = lambda x, y, a, b: ot.sinkhorn_divergence(x, y, a, b, **settings).value
        function = jax.jit(jax.value_and_grad(value))
        _, gradient = function(x, y, a, b)
        direction, step = jnp.cos(jnp.arange(16.0)).reshape(8, 2), 1e-5
        above, below = (function(x + s * direction, y, a, b)[0] for s in (step, -step))
        expected = (above - below) / (2 * step)
        np.testing.assert_allclose(jnp.vdot(gradient, direction), expected, rtol=1e-6)
        gradient = jax.jit(jax.grad(value))(x, x, a, a)
        np.testing.assert_allclose(gradient, 0, atol=1e-10)


def test_a_matrix_has_no_self_terms():
    x, y = clouds()
    with pytest.raises(ValueError, match="cost must be a function of two points"):
        ot.sinkhorn_divergence(x, y, epsilon=1.0, cost=jnp.zeros((30, 20)))


def test_a_start_that_is_no_result_raises():
    x = jnp.zeros((3, 2))
    with pytest.raises(ValueError, match="init must be the four `potentials`"):
        ot.sinkhorn_divergence(x, x, epsilon=1.0, init=(jnp.zeros(3), jnp.zeros(3)))


def test_what_rounding_hides_is_nan_and_an_early_stop_keeps_its_value():
    """S ≥ 0 for the squared Euclidean cost: at ε = 1e-10 single precision gives anything."""
    x, y = clouds()
    x, y = 10 * x, 10 * y
    value = jax.jit(
        lambda e, most: (
            ot.sinkhorn_divergence(x, y, epsilon=e, solver=ot.Sinkhorn(max_iterations=most)).value
        ),
        static_argnums=1,
    )
    assert jnp.isnan(value(1e-10, 50))
    result = ot.sinkhorn_divergence(x, y, epsilon=1.0, solver=ot.Sinkhorn(max_iterations=5))
    assert result.status == Status.MAX_ITERATIONS
    assert value(1.0, 5) == pytest.approx(float(result.value), rel=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_cost_that_is_not_symmetric_is_flagged(compiled):
    """The updates of self terms assume c(x, y) = c(y, x)."""
    x = jax.random.normal(jax.random.key(3), (20, 1))
    uphill = lambda x, y: jnp.sum(jnp.where(x > y, x - y, 3 * (y - x)))
    own = lambda x, y: ot.sinkhorn_divergence(x, y, epsilon=0.5, cost=uphill)
    result = (jax.jit(own) if compiled else own)(x, x + 1)
    assert int(result.status) == Status.INVALID_INPUT
    assert jnp.isnan(result.value)
    # Up to rounding, a function that is symmetric is one.
    even = lambda x, y: jnp.sum(jnp.abs(x - y) ** 1.5)
    assert ot.sinkhorn_divergence(x, x + 1, epsilon=0.5, cost=even).converged
