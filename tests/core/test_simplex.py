import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from divjax.core import simplex
from divjax.core.simplex import mass_of_distinct_pairs, min_norm_weights, project_simplex

solve = jax.jit(min_norm_weights)
solve_all = jax.jit(jax.vmap(min_norm_weights))
project = jax.jit(project_simplex)


def kkt_residual(gram, weights):
    """How far `weights` are from optimal, in float64, relative to the largest diagonal entry."""
    gram, weights = np.asarray(gram, np.float64), np.asarray(weights, np.float64)
    assert (weights >= 0).all()
    assert abs(weights.sum() - 1) < 1e-5
    gradient = gram @ weights
    value = weights @ gradient
    violation = max((value - gradient).max(), 0) + np.abs(weights * (gradient - value)).max()
    return violation / max(np.diagonal(gram).max(), np.finfo(np.float64).tiny)


def best_over_supports(gram):
    """The exact minimiser: of all supports' critical points, the shortest that is feasible."""
    size = len(gram)
    best, found = np.inf, None
    for count in range(1, size + 1):
        for support in map(list, itertools.combinations(range(size), count)):
            kkt = np.block(
                [[gram[np.ix_(support, support)], np.ones((count, 1))], [np.ones(count), 0.0]]
            )
            part = np.linalg.lstsq(kkt, np.append(np.zeros(count), 1.0), rcond=None)[0][:-1]
            value = part @ gram[np.ix_(support, support)] @ part
            if part.min() >= -1e-12 and abs(part.sum() - 1) < 1e-9 and value < best - 1e-12:
                best, found = value, np.zeros(size)
                found[support] = part
    return found


def vectors(rng, kind, size):
    """K vectors in general position, or in one of the positions that make the problem singular."""
    match kind:
        case "independent":
            return rng.normal(size=(size, 20 * size))
        case "zero in the hull":
            return rng.normal(size=(size, max(size // 3, 1)))
        case "zero outside the hull":
            return rng.normal(size=(size, size)) + 2 * rng.normal(size=(1, size))
        case "duplicates":
            distinct = rng.normal(size=(max(size // 2, 1), size))
            return distinct[rng.integers(len(distinct), size=size)]
        case "nearly duplicates":
            distinct = rng.normal(size=(max(size // 2, 1), size))
            copies = distinct[rng.integers(len(distinct), size=size)]
            return copies + 10 ** rng.uniform(-7, -2) * rng.normal(size=(size, size))
        case "nearly collinear":
            return rng.normal(size=(size, size)) * 10.0 ** -np.linspace(0, 6, size)
        case "widely scaled":
            return rng.normal(size=(size, size)) * 10 ** rng.uniform(-6, 6, size=(size, 1))
        case "lattice":
            return rng.integers(-1, 2, size=(size, 4))


KINDS = (
    "independent",
    "zero in the hull",
    "zero outside the hull",
    "duplicates",
    "nearly duplicates",
    "nearly collinear",
    "widely scaled",
    "lattice",
)


@pytest.mark.parametrize("size", [2, 3, 4, 8, 16, 64])
def test_the_minimiser_is_optimal_in_single_precision(size):
    rng = np.random.default_rng(size)
    repeats = 200 if size <= 8 else 10
    for kind in KINDS:
        x = np.stack([vectors(rng, kind, size) for _ in range(repeats)]).astype(np.float32)
        grams = np.asarray(x @ x.transpose(0, 2, 1))
        weights = solve_all(grams)
        assert weights.dtype == jnp.float32
        worst = max(map(kkt_residual, grams, weights))
        assert worst <= 2e-6, (kind, worst)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_minimiser_agrees_with_an_enumeration_of_all_supports(size):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for shift in (0.0, 0.5, 2.0):
            x = rng.normal(size=(size, size + 1)) + shift
            weights = solve(x @ x.T)
            assert weights.dtype == jnp.float64
            np.testing.assert_allclose(weights, best_over_supports(x @ x.T), atol=1e-9)


def test_the_minimiser_agrees_with_sequential_quadratic_programming():
    x = np.random.default_rng(3).normal(size=(12, 15)) + 0.4
    gram = x @ x.T / 15
    reference = minimize(
        lambda w: w @ gram @ w,
        np.full(12, 1 / 12),
        jac=lambda w: 2 * gram @ w,
        bounds=[(0, 1)] * 12,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    weights = solve(jnp.asarray(gram, jnp.float32))
    assert (np.asarray(weights) == 0).any()
    np.testing.assert_allclose(weights, reference.x, atol=2e-4)


@given(seed=st.integers(0, 2**31), rank=st.integers(1, 8), spread=st.floats(0, 4))
@settings(max_examples=100, deadline=None)
def test_any_gram_matrix_is_solved_and_its_scale_does_not_matter(seed, rank, spread):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(6, rank)) * 10 ** rng.uniform(-spread, spread, size=(6, 1))
    gram = (x @ x.T).astype(np.float32)
    weights = solve(gram)
    assert kkt_residual(gram, weights) <= 1e-6
    np.testing.assert_array_equal(weights, solve(gram * 2.0**20))


@pytest.mark.parametrize(
    ("gram", "expected"),
    [
        ([[1.0, 0.0], [0.0, 3.0]], [0.75, 0.25]),
        ([[1.0, 2.0], [2.0, 9.0]], [1.0, 0.0]),
        ([[1.0, -2.0], [-2.0, 4.0]], [2 / 3, 1 / 3]),
        ([[2.0, 2.0], [2.0, 2.0]], [0.5, 0.5]),
        ([[0.0, 0.0], [0.0, 1.0]], [1.0, 0.0]),
        # Closer together than rounding can tell, but not equally long.
        ([[1.0, 1.0001], [1.0001, 1.0002]], [1.0, 0.0]),
        ([[1e-12, 0.0], [0.0, 1e12]], [1.0, 1e-24]),
    ],
)
def test_two_vectors_have_a_closed_form(gram, expected):
    weights = solve(jnp.array(gram, jnp.float32))
    np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("size", [2, 4])
def test_gram_matrices_of_any_scale_have_the_same_weights(size):
    """And derivatives with respect to their logarithm."""
    x = np.random.default_rng(8).normal(size=(size, 3)) + 0.5
    gram = (x @ x.T / np.max(np.sum(x**2, axis=1))).astype(np.float32)
    slope = jax.jit(jax.jacfwd(lambda s, gram: solve(gram * jnp.exp(s * jnp.eye(size)))))
    expected, expected_slope = solve(gram), slope(0.0, gram)
    for scale in (3e38, 1e30, 1e-10, 1e-30):
        scaled = jnp.asarray(gram * np.float32(scale))
        np.testing.assert_allclose(solve(scaled), expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(slope(0.0, scaled), expected_slope, rtol=1e-3, atol=1e-5)


def test_small_weights_of_long_vectors_keep_their_digits():
    squared_lengths = jnp.array([1.0, 10.0, 1e3, 1e5])
    expected = 1 / np.asarray(squared_lengths, np.float64)
    weights = solve(jnp.diag(squared_lengths))
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_no_vectors_at_all_are_weighed_equally(size):
    np.testing.assert_allclose(solve(jnp.zeros((size, size))), np.full(size, 1 / size), rtol=1e-6)


def test_a_zero_vector_takes_all_weight_and_one_vector_too():
    np.testing.assert_allclose(solve(jnp.diag(jnp.array([2.0, 1.0, 0.0]))), [0, 0, 1], atol=1e-6)
    assert solve(jnp.array([[3.0]])).tolist() == [1.0]


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_give_nan_everywhere(size, bad):
    for index in ((0, 0), (0, 1), (size - 1, size - 1)):
        gram = np.eye(size, dtype=np.float32)
        gram[index] = bad
        assert np.isnan(solve(gram)).all()


@pytest.mark.parametrize("size", [2, 4])
def test_vmap_equals_a_loop(size):
    x = np.random.default_rng(5).normal(size=(20, size, 3)).astype(np.float32)
    grams = x @ x.transpose(0, 2, 1)
    loop = np.stack([solve(gram) for gram in grams])
    np.testing.assert_allclose(solve_all(grams), loop, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_the_gradient_equals_finite_differences(size):
    rng = np.random.default_rng(size)
    with jax.enable_x64(True):
        x = rng.normal(size=(size, 3 * size)) + 0.3
        gram, direction, cost = x @ x.T, rng.normal(size=(size, size)), rng.normal(size=size)
        direction = direction + direction.T
        gradient = jax.jit(jax.grad(lambda gram: cost @ min_norm_weights(gram)))(gram)
        step = 1e-5
        difference = cost @ (solve(gram + step * direction) - solve(gram - step * direction))
        assert abs(difference) > 1e-9
        np.testing.assert_allclose((gradient * direction).sum(), difference / (2 * step), rtol=1e-5)


@pytest.mark.parametrize("size", [2, 3, 6])
def test_the_gradient_is_finite_where_the_problem_is_singular(size):
    gradient = jax.jit(jax.jacrev(min_norm_weights))
    for gram in (jnp.zeros((size, size)), jnp.ones((size, size)), 1e-30 * jnp.eye(size)):
        assert jnp.isfinite(gradient(gram)).all()
    x = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 1.0], [1.0, 1.0]])
    assert jnp.isfinite(gradient(x[:size] @ x[:size].T)).all()


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=7), st.integers(-1000, 1000))
@settings(max_examples=100, deadline=None)
def test_the_projection_satisfies_its_optimality_conditions(values, offset):
    v = np.asarray(values, np.float32)
    w = np.asarray(project(v), np.float64)
    assert (w >= 0).all()
    np.testing.assert_allclose(w.sum(), 1, rtol=1e-5)
    # v − w is one number on the support of w, and no larger off it.
    threshold = (v - w)[np.argmax(w)]
    np.testing.assert_allclose((v - w)[w > 0], threshold, atol=3e-5)
    assert (v[w == 0] <= threshold + 3e-5).all()
    np.testing.assert_allclose(project(v + np.float32(offset)), w, atol=2e-3)


def test_the_projection_is_the_identity_on_the_simplex_and_differentiable():
    w = jnp.array([0.2, 0.5, 0.3])
    np.testing.assert_allclose(project(w), w, atol=1e-6)
    jacobian = jax.jacobian(project_simplex)(jnp.array([1.0, 0.5, -2.0]))
    expected = [[0.5, -0.5, 0.0], [-0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(jacobian, expected, atol=1e-6)
    assert np.isnan(project(jnp.array([1.0, jnp.nan]))).all()


def test_wrong_shapes_raise():
    for shape in [(2, 3), (4,), (0, 0)]:
        with pytest.raises(ValueError, match="gram must be a non-empty square matrix"):
            min_norm_weights(jnp.zeros(shape))
    with pytest.raises(ValueError, match="v must be a non-empty vector"):
        project_simplex(jnp.zeros((2, 2)))


def test_the_effective_sample_size_of_negative_weights_is_nan():
    size = jax.jit(simplex.effective_sample_size)
    assert size(jnp.array([0.5, 0.5, 0.0])) == 2
    assert size(jnp.array([3e38, 3e38, 1e-30])) == 2
    for bad in (-1.0, jnp.nan):
        assert jnp.isnan(size(jnp.array([0.5, bad, 0.5])))


def test_strict_promotion_of_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        for size in (2, 3):
            jax.eval_shape(simplex.min_norm_weights, jnp.eye(size))
        jax.eval_shape(simplex.project_simplex, jnp.ones(3))
        jax.eval_shape(simplex.effective_sample_size, jnp.ones(3))


@pytest.mark.parametrize(
    "matrix",
    [
        [[1.0, 0.5], [0.0, 1.0]],
        [[-1.0, 0.0], [0.0, -1.0]],
        [[1.0, 2.0], [2.0, 1.0]],
        [[1.0, 0.0, 0.0], [0.0, 1.0, -2.0], [0.0, -2.0, 1.0]],
        [[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 1.0]],
    ],
)
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e30])
def test_what_is_no_gram_matrix_has_no_weights(matrix, unit):
    assert np.isnan(min_norm_weights(unit * jnp.array(matrix))).all()


def test_rounding_leaves_a_gram_matrix():
    """Of a thousand nearly parallel rows in single precision, and of a vector and its half."""
    rows = 1 + 1e-4 * jax.random.normal(jax.random.key(0), (6, 1000))
    assert np.isfinite(min_norm_weights(rows @ rows.T)).all()
    assert np.isfinite(min_norm_weights(jnp.outer(rows[:, 0], rows[:, 0]))).all()


@pytest.mark.parametrize("unit", [1e-300, 1e-50, 1e50, 1e300])
def test_doubles_beyond_the_range_of_float32_keep_their_ratios(unit):
    expected = np.array([15, 5, 3]) / 23  # inverse to the diagonal
    np.testing.assert_allclose(
        min_norm_weights(unit * np.diag([1.0, 3.0, 5.0])), expected, rtol=1e-6
    )
    np.testing.assert_allclose(min_norm_weights(unit * np.diag([1.0, 3.0])), [0.75, 0.25])
    weights = np.array([0.5, 0.25, 0.25])
    np.testing.assert_allclose(simplex.effective_sample_size(unit * weights), 8 / 3, rtol=1e-6)


def test_gram_matrices_and_weights_in_other_forms():
    diagonal = [[1, 0], [0, 3]]
    for gram in (diagonal, np.array(diagonal, np.uint8), jnp.array(diagonal, jnp.uint8)):
        np.testing.assert_allclose(min_norm_weights(gram), [0.75, 0.25])
    for bad in (jnp.eye(2) * 1j, "text", [["a", "b"], ["c", "d"]]):
        with pytest.raises(ValueError, match="gram must hold real numbers"):
            min_norm_weights(bad)
    assert np.isnan(min_norm_weights(np.diag([1e-50, np.nan]))).all()
    assert np.isnan(min_norm_weights(np.diag([1e-50, np.inf]))).all()
    assert simplex.effective_sample_size([1, 1, 0]) == 2
    for bad in (np.ones((2, 2)), [], jnp.ones(2) * 1j, "text"):
        with pytest.raises(ValueError, match="weights must"):
            simplex.effective_sample_size(bad)


def test_the_mass_of_distinct_pairs_keeps_its_digits():
    """1 − Σ w², in exact arithmetic, for weights of which one is almost all."""
    for tiny in (0.25, 1e-4, 1e-9):
        weights = np.array([1 - 2 * tiny, tiny, tiny], np.float32)
        exact = [Fraction(float(weight)) for weight in weights]
        expected = float(2 * (exact[0] * exact[1] + exact[0] * exact[2] + exact[1] * exact[2]))
        np.testing.assert_allclose(
            mass_of_distinct_pairs(jnp.asarray(weights)), expected, rtol=1e-6
        )
