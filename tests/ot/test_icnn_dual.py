"""The dual: closed forms, the conjugate, convexity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from divjax.core.networks import BuildICNN, apply_network, init_network
from divjax.core.types import Status
from divjax.ot.gaussian import gaussian_wasserstein
from divjax.ot.maps.icnn_dual import ICNNDual

KEY = jax.random.key(0)
fitted = jax.jit(lambda method, key, x, y: method.fit(key, x, y))


def normal(seed, n=500, d=2):
    return jax.random.normal(jax.random.key(seed), (n, d))


def test_the_network_is_convex():
    """Midpoints lie below chords."""
    build = BuildICNN((16, 8))
    params = init_network(build, KEY, 3, jnp.float32)
    f = lambda z: apply_network(build, params, z)[:, 0]
    x, y = 3 * normal(1, 500, 3), 3 * normal(2, 500, 3)
    assert jnp.all(f((x + y) / 2) <= (f(x) + f(y)) / 2 + 1e-6)
    assert jnp.any(f((x + y) / 2) < (f(x) + f(y)) / 2 - 1e-3)


def test_a_known_map():
    """z + 0.3 z³ feature by feature, the gradient of a convex function."""
    truth = lambda z: z + 0.3 * z**3
    x, y, z = normal(1, 4000), truth(normal(2, 4000)), normal(3)
    options = {"num_steps": 400, "batch_size": 128, "learning_rate": 0.1}
    method = ICNNDual(hidden=(32, 32), start_hidden=(32,), **options)
    found = fitted(method, KEY, x, y)
    variance = jnp.sum(jnp.var(truth(z), axis=0))
    uvp = jnp.mean(jnp.sum((found(z) - truth(z)) ** 2, axis=1)) / variance
    # Of a variance of 4.15 a feature the linear map misses 0.56.
    assert uvp < 0.05
    # E (0.3 z³)² = 0.09 · 15 a feature, from 800 held-out rows.
    np.testing.assert_allclose(found.squared_distance, 2 * 1.35, rtol=0.2)
    assert found.residual < 0.02
    assert found.finite
    assert found.validation[-1] < found.validation[0] - 0.1
    # Its inverse is one, and the potential's gradient the map.
    np.testing.assert_allclose(found.inverse(found(z)), z, atol=0.01)
    slope = jax.grad(lambda z: jnp.sum(found.potential(z)))(z)
    np.testing.assert_allclose(slope, found(z), rtol=1e-4, atol=1e-4)


def test_it_starts_near_the_gaussian_map_and_its_distance():
    scale = jnp.array([2.0, 0.5])
    x, y = normal(1, 4000), normal(2, 4000) * scale + 3
    method = ICNNDual(num_steps=1, num_checks=1, hidden=(8,), start_hidden=(8,))
    found = fitted(method, KEY, x, y)
    truth = gaussian_wasserstein((jnp.zeros(2), jnp.ones(2)), (jnp.full(2, 3.0), scale**2))
    # Means of 800 held-out squares of size 20.
    np.testing.assert_allclose(found.squared_distance, truth, rtol=0.1)
    error = found(normal(3)) - (normal(3) * scale + 3)
    assert jnp.mean(jnp.sum(error**2, axis=1)) < 0.03 * jnp.sum(scale**2)
    assert found.residual < 1e-3
    # What is not a number is said.
    assert not fitted(method, KEY, x.at[0].set(jnp.nan), y).finite


def test_dtypes_are_kept():
    method = ICNNDual(num_steps=1, num_checks=1, hidden=(4,), start_hidden=(4,))
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            shapes = jax.eval_shape(method.fit, KEY, *[jnp.ones((20, 2), dtype)] * 2)
            leaves = jax.tree.leaves(shapes)
            floats = {v.dtype for v in leaves if jnp.issubdtype(v.dtype, jnp.floating)}
            assert floats == {np.dtype(dtype)}


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"hidden": 3}, {}, "hidden must be a tuple"),
        ({"learning_rate": 0.0}, {}, "learning_rate"),
        ({"num_steps": 0}, {}, "num_steps"),
        ({"num_inner_steps": 0}, {}, "num_inner_steps"),
        ({"batch_size": 0}, {}, "batch_size"),
        ({}, {"key": 1}, "key must be one typed key"),
        ({}, {"x": jnp.zeros((2, 2))}, "x must have at least 3 rows; got 2"),
        ({}, {"y": jnp.zeros((5, 3))}, "same number of features"),
    ],
)
def test_bad_input_raises(options, change, message):
    arguments = {"key": KEY, "x": normal(0, 5), "y": normal(1, 5)} | change
    with pytest.raises(ValueError, match=message):
        ICNNDual(**options).fit(**arguments)


def quick(**options):
    return ICNNDual(hidden=(8,), start_hidden=(8,), num_steps=20, num_checks=2, **options)


def test_a_failed_fit_is_flagged():
    """One row at NaN, a network that is far too steep, and a fit that is none of these."""
    x, y = normal(1, 500), 2 * normal(2, 500)
    found = fitted(quick(), KEY, x, y)
    assert found.status == Status.CONVERGED
    assert found.misfit < 1
    assert fitted(quick(), KEY, x.at[3].set(jnp.nan), y).status == Status.NOT_FINITE
    # Images where no target is, and V above that of the best translation.
    moved = jax.jit(lambda x, y: ICNNDual(network=Steep, num_steps=1, num_checks=1).fit(KEY, x, y))
    assert moved(x, y).status == Status.MAX_ITERATIONS


class Steep(nnx.Module):
    """100 |z|²: whatever the start, images far beyond all targets."""

    def __init__(self, in_features, rngs):
        self.size = nnx.Param(jnp.array(100.0))

    def __call__(self, z):
        return self.size[...] * jnp.sum(z**2, axis=1, keepdims=True)


@pytest.mark.exhaustive
@pytest.mark.parametrize("d", [2, pytest.param(64, marks=pytest.mark.exhaustive)])
def test_few_rows_and_outliers_are_survived_or_flagged(d):
    x, y, z = normal(1, 60, d), 2 * normal(2, 60, d), normal(3, 200, d)
    found = fitted(quick(), KEY, x, y)
    error = jnp.mean(jnp.sum((found(z) - 2 * z) ** 2, axis=1)) / (4 * d)
    assert (error < 0.5) | ~found.converged
    assert (found.squared_distance > 0) | ~found.converged
    if d == 2:
        x, y = normal(1, 1000), (2 * normal(2, 1000)).at[0].set(1000.0)
        found = fitted(quick(), KEY, x, y)
        error = jnp.median(jnp.linalg.norm(found(z) - 2 * z, axis=1))
        assert (error < 0.5) | ~found.converged


def test_weights_and_offsets():
    """Half of the rows are padding; of the others those of one cluster count nine times."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1000, 2)), 2 * rng.normal(size=(1000, 2)) + 1e6
    a = np.r_[np.ones(500), np.zeros(500)]
    padded = np.where(a[:, None] > 0, x, 1e9)
    found = fitted_with_weights(quick(), KEY, padded, y, a)
    assert found.converged
    z = rng.normal(size=(200, 2))
    assert np.mean(np.sum((found(z) - 1e6 - 2 * z) ** 2, 1)) < 0.1 * 8


def fitted_with_weights(method, key, x, y, a):
    return method.fit(key, x, y, a)


def test_a_learning_rate_has_no_derivative():
    x, y = normal(1, 40), normal(2, 40)
    run = lambda rate: quick(learning_rate=rate).fit(KEY, x, y)(x).sum()
    with pytest.raises(ValueError, match="cannot be differentiated in its learning rate"):
        jax.eval_shape(jax.grad(run), 0.1)


@pytest.mark.parametrize("unit", [1e-8, 1e8])
def test_the_unit_of_the_samples_does_not_matter(unit):
    """Squared distances scale by its square, images by itself, to what training amplifies."""
    rng = np.random.default_rng(0)
    x, signs = rng.normal(size=(200, 1)), np.sign(rng.normal(size=(200, 1)))
    y = 2 * signs + 1 + 0.2 * rng.normal(size=(200, 1))
    counts = {"num_steps": 30, "num_inner_steps": 4, "num_checks": 3}
    method = ICNNDual((8,), start_hidden=(4,), **counts)
    one, other = (method.fit(jax.random.key(0), s * x, s * y) for s in (1.0, unit))
    assert int(one.status) == int(other.status)
    np.testing.assert_allclose(other.squared_distance / unit**2, one.squared_distance, rtol=1e-2)
    np.testing.assert_allclose(other.validation / unit**2, one.validation, rtol=1e-2)
    np.testing.assert_allclose(other.losses / unit**2, one.losses, rtol=1e-2)
    np.testing.assert_allclose(other(unit * x) / unit, one(x), atol=2e-2)


def test_rows_that_the_common_origin_rounds_are_flagged():
    """10⁸ spreads apart, float32 merges rows about any origin of both samples."""
    x, y = np.random.default_rng(3).normal(size=(2, 60, 2))
    method = ICNNDual(num_steps=2, batch_size=16, hidden=(4,))
    found = method.fit(jax.random.key(1), x + 123456789.0, y)
    assert int(found.status) >= Status.FLOATING_POINT_RESOLUTION
