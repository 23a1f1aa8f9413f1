"""Costs against SciPy; ∇h* against the gradient it inverts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

import divjax
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


@every
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("d", [2, 20])
def test_what_is_not_finite_is_no_finite_cost(name, value, d):
    x, y = points(3, d), points(4, d, seed=1)
    x[1, 1] = value
    matrix = ot.cost_matrix(COSTS[name][0], jnp.asarray(x), jnp.asarray(y))
    assert not jnp.isfinite(matrix[1]).any()
    assert jnp.isfinite(matrix[::2]).all()


def test_numbers_of_features_must_agree():
    x, y = jnp.zeros((3, 3)), jnp.zeros((4, 2))
    for cost in (ot.SqEuclidean(), ot.Cosine(), lambda x, y: jnp.sum(x) - jnp.sum(y)):
        with pytest.raises(ValueError, match="same number of features; got 3 and 2"):
            ot.cost_matrix(cost, x, y)
    for first, second in ((x[0], y[0]), (x[0], y[0, :1])):
        with pytest.raises(ValueError, match="same number of features; got 3 and"):
            ot.SqEuclidean()(first, second)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int8])
def test_integers_do_not_overflow(dtype):
    x, y = np.array([[1], [100]], dtype), np.array([[3], [100]], dtype)
    exact = cdist(x.astype(float), y.astype(float))
    for cost in (ot.PNorm(1.0), ot.SqEuclidean()):
        expected = exact if isinstance(cost, ot.PNorm) else exact**2
        np.testing.assert_allclose(ot.cost_matrix(cost, x, y), expected, rtol=1e-6)
        np.testing.assert_allclose(cost(x[0], y[0]), expected[0, 0], rtol=1e-6)
    assert ot.SqEuclidean()(np.array([60_000]), np.array([0])) == 3.6e9


def test_a_traced_order_out_of_range_has_no_cost():
    x = jnp.asarray(points(3, 2))
    matrix = jax.jit(lambda p: ot.cost_matrix(ot.PNorm(p), x, x + 1))(0.5)
    assert jnp.isnan(matrix).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10, 1e30])
@pytest.mark.parametrize("p", [1.5, 3.0, 40.0, 1e30])
def test_p_norms_neither_over_nor_underflow(p, scale):
    """Homogeneous; ‖(3, 4, 5)‖_p by NumPy in double precision, 5 in the limit."""
    point = jnp.array([3.0, -4.0, 5.0])
    expected = 5.0 if p > 100 else np.linalg.norm([3.0, 4.0, 5.0], p)
    cost = ot.PNorm(p)
    value, gradient = jax.value_and_grad(cost)(scale * point, jnp.zeros(3))
    np.testing.assert_allclose(value / scale, expected, rtol=1e-5)
    slopes = np.sign(point) * (np.abs(point) / expected) ** (p - 1)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("cost", [ot.PNorm, ot.PNormPower, ot.EuclideanPower])
def test_infinite_exponents_give_nan(cost):
    for p in (np.float32(np.inf), jnp.array(jnp.inf)):
        assert jnp.isnan(jax.jit(lambda p: cost(p)(jnp.zeros(2), jnp.ones(2)))(p))


@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1e20, 1e30])
def test_angles_do_not_depend_on_lengths(scale):
    x, y = jnp.array([1.0, 1.0]), jnp.array([3.0, 4.0])
    cosine = 7 / (5 * np.sqrt(2))
    np.testing.assert_allclose(ot.Cosine()(scale * x, y), 1 - cosine, rtol=1e-4)
    np.testing.assert_allclose(ot.SphereGeodesic()(scale * x, y), np.arccos(cosine), rtol=1e-4)


@pytest.mark.parametrize("p", [1.5, 4.0])
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_conjugates_gradient_inverts_the_costs_in_any_unit(p, scale):
    """∇h*(∇h(z)) = z."""
    z = jnp.array([0.3 * scale, -2.0 * scale], jnp.float32)
    for cost in (ot.EuclideanPower(p), ot.PNormPower(p)):
        np.testing.assert_allclose(cost.grad_conjugate(jax.grad(cost.h)(z)), z, rtol=1e-4)


@pytest.mark.parametrize("p", [0.5, -1.0, np.nan])
@pytest.mark.parametrize("cost", [ot.PNorm, ot.PNormPower, ot.EuclideanPower])
def test_a_traced_exponent_out_of_range_has_no_cost_at_distance_one(cost, p):
    """One to the power of NaN is one."""
    x, y = jnp.zeros((1, 1)), jnp.ones((1, 1))
    assert jnp.isnan(jax.jit(lambda p: ot.cost_matrix(cost(p), x, y))(p)).all()
    if hasattr(cost(2.0), "grad_conjugate"):
        assert jnp.isnan(jax.jit(lambda p: cost(p).grad_conjugate(y))(p)).all()


@pytest.mark.parametrize("p", [0.5, np.nan])
def test_a_traced_order_out_of_range_has_no_cost_at_distance_one(p):
    x = jnp.array([0.0])
    assert jnp.isnan(jax.jit(lambda p: ot.wasserstein_1d(x, x + 1, p=p, root=True))(p))
    assert jnp.isnan(jax.jit(lambda p: ot.wasserstein_1d(x, x + 1, p=p))(p))


@divjax.pytree
class Weighted:
    """Squared distances of weighted features, declared as a quadratic form of differences."""

    weights: Any
    quadratic = True

    def h(self, z):
        return self.weights @ z**2

    def __call__(self, x, y):
        return self.h(x - y)

    def grad_conjugate(self, w):
        return w / (2 * self.weights)


def test_a_declared_cost_is_centred_and_has_its_map():
    """The plan of a quadratic cost does not depend on a shift, which float32 could not resolve."""
    x, y = points(30, 2), points(30, 2, seed=1)
    cost = Weighted(np.array([1.0, 4.0], np.float32))
    declared = ot.MatrixCost, ot.DisplacementCost, ot.QuadraticCost, ot.ConvexCost
    assert [isinstance(cost, kind) for kind in declared] == [False, True, True, True]
    solver = ot.Sinkhorn(tolerance=1e-5)
    plan = ot.sinkhorn(x * [1, 2], y * [1, 2], epsilon=0.5, solver=solver).plan()
    with jax.enable_x64(False):
        far = ot.sinkhorn(x, y + 1e6, epsilon=0.5, cost=cost, solver=solver)
        assert far.converged
        np.testing.assert_allclose(far.plan(), plan, atol=1e-5)
        image = far.transport(x)
    np.testing.assert_allclose(image - 1e6, 30 * plan @ y, atol=0.1)


@pytest.mark.exhaustive
def test_a_declared_quadratic_cost_is_differentiable_in_its_numbers():
    """Half of the cost is in the shift, which centring takes out. At fixed plans it is linear."""
    x, y = points(12, 2), np.add(points(10, 2, seed=1), [3.0, 1.0])
    solver = ot.Sinkhorn(tolerance=1e-8, max_iterations=5000)
    weights = jnp.array([1.0, 2.0])
    changes = (x[:, None] - y) ** 2

    def numbers(weights):
        found = ot.sinkhorn(x, y, epsilon=1.0, cost=Weighted(weights), solver=solver)
        divergence = ot.sinkhorn_divergence(x, y, epsilon=1.0, cost=Weighted(weights))
        gap = ot.monge_gap(x, y[:1] * x, epsilon=1.0, cost=Weighted(weights), solver=solver)
        exact = ot.exact(x, y, cost=Weighted(weights)).value
        return found.value, exact, found.transport_cost, found.f, divergence.value, gap.transport

    slopes = jax.jit(jax.jacobian(numbers))(weights)
    plan = ot.sinkhorn(x, y, epsilon=1.0, cost=Weighted(weights), solver=solver).plan()
    np.testing.assert_allclose(slopes[0], np.einsum("ij,ijk->k", plan, changes), rtol=1e-5)
    plan = ot.exact(x, y, cost=Weighted(weights)).plan
    np.testing.assert_allclose(slopes[1], np.einsum("ij,ijk->k", plan, changes), rtol=1e-5)
    solve = jax.jit(numbers)
    for k in range(2):
        step = 1e-4 * np.eye(2)[k]
        up, down = solve(weights + step), solve(weights - step)
        for slope, above, below in zip(slopes, up, down, strict=True):
            numeric = (above - below) / 2e-4
            np.testing.assert_allclose(slope[..., k], numeric, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("factor", [1.0, 2.5, 3.0, 0.1, -1.0])
def test_equal_directions_have_no_derivative(factor):
    """Normalised in two fusions, they differ by their rounding, whose direction says nothing."""
    x = jax.random.normal(jax.random.key(0), (200, 3))
    gradient = jax.vmap(jax.grad(ot.SphereGeodesic()))
    for own in (gradient, jax.jit(gradient)):
        np.testing.assert_array_equal(own(x, factor * x), 0)
    pairs = jax.vmap(ot.SphereGeodesic())(x, factor * x)
    np.testing.assert_allclose(pairs, np.pi if factor < 0 else 0, atol=1e-6)


def test_small_angles_keep_their_derivative():
    angle = 1e-5
    x, y = jnp.array([1.0, 0.0]), 2 * jnp.array([np.cos(angle), np.sin(angle)])
    np.testing.assert_allclose(jax.grad(ot.SphereGeodesic())(x, y), [0, -1], atol=1e-2)


def test_conjugate_gradients_of_integers():
    """sign(w)|w|^{1/(p−1)}: in the dtype of integers the exponent would be 0."""
    w = np.array([1, -2, 3])
    found = ot.PNormPower(3.0).grad_conjugate(w)
    np.testing.assert_allclose(found, np.sign(w) * np.sqrt(np.abs(w)), rtol=1e-6)
