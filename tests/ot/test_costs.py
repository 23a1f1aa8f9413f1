"""Costs against SciPy; ∇h* against the gradient it inverts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from divjax import ot

COSTS = {
    "SqEuclidean": (ot.SqEuclidean(), lambda x, y: cdist(x, y, "sqeuclidean")),
    "Euclidean": (ot.Euclidean(), cdist),
    "EuclideanPower": (ot.EuclideanPower(1.7), lambda x, y: cdist(x, y) ** 1.7 / 1.7),
    "PNorm": (ot.PNorm(3.0), lambda x, y: cdist(x, y, "minkowski", p=3)),
    "PNormPower": (ot.PNormPower(3.0), lambda x, y: cdist(x, y, "minkowski", p=3) ** 3 / 3),
    "Cosine": (ot.Cosine(), lambda x, y: cdist(x, y, "cosine")),
    "SphereGeodesic": (ot.SphereGeodesic(), lambda x, y: np.arccos(1 - cdist(x, y, "cosine"))),
}
every = pytest.mark.parametrize("name", COSTS)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def points(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


@every
@pytest.mark.parametrize("d", [3, 20])
def test_the_matrix_matches_scipy_and_single_pairs(name, d):
    cost, formula = COSTS[name]
    x, y = points(5, d), points(4, d, seed=1)
    matrix = ot.cost_matrix(cost, jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(matrix, formula(x, y), rtol=1e-9)
    pairs = ot.cost_matrix(lambda a, b: cost(a, b), jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(pairs, matrix, rtol=1e-9)


@pytest.mark.parametrize("name", ["SqEuclidean", "EuclideanPower", "PNormPower"])
def test_the_conjugates_gradient_inverts_the_gradient(name):
    cost = COSTS[name][0]
    z = jnp.asarray(points(6, 3))
    back = cost.grad_conjugate(jax.vmap(jax.grad(cost.h))(z))
    np.testing.assert_allclose(back, z, rtol=1e-9)
    assert (cost.grad_conjugate(jnp.zeros(3)) == 0).all()


@every
def test_derivatives_are_finite_where_points_coincide(name):
    cost, x = COSTS[name][0], jnp.asarray(points(3, 2)).at[1].set(0)
    gradient = jax.grad(lambda cost, x: jnp.sum(ot.cost_matrix(cost, x, x[:2])), argnums=(0, 1))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(cost, x)))


def test_hessians_of_squared_distances_are_right_where_points_coincide():
    for d in (2, 10):
        x = jnp.asarray(points(1, d))
        hessian = jax.hessian(lambda z, x=x: ot.cost_matrix(ot.SqEuclidean(), z[None], x)[0, 0])
        np.testing.assert_allclose(hessian(x[0]), 2 * np.eye(d), atol=1e-12)


def test_small_angles_keep_their_digits_in_single_precision():
    x = jnp.array([[1.0, 0.0]], jnp.float32)
    y = jnp.array([[np.cos(1e-4), np.sin(1e-4)]], jnp.float32)
    np.testing.assert_allclose(ot.SphereGeodesic().matrix(x, y), 1e-4, rtol=1e-3)


def test_many_features_are_not_held():
    """The compiled gradient's memory stays under four matrices; n × m × d were 64."""
    n, d = 256, 64
    function = jax.jit(jax.grad(lambda x, y: jnp.sum(ot.PNorm(1.5).matrix(x, y))))
    shape = jax.ShapeDtypeStruct((n, d), jnp.float32)
    memory = function.lower(shape, shape).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 * n * n * 4


@pytest.mark.parametrize(
    ("cost", "p"),
    [(ot.PNorm, 0.5), (ot.PNormPower, 1.0), (ot.EuclideanPower, 1.0), (ot.PNorm, np.inf)],
)
def test_bad_exponents_raise(cost, p):
    with pytest.raises(ValueError, match="p must be a finite number"):
        cost(p)
