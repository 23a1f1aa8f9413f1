"""Kernel mean matching against sequential quadratic and linear programming, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from scipy.spatial.distance import cdist

from divjax.ratio.mean_matching import KernelMeanMatching, _least_linear, project_box_slab

N, M = 14, 10
KEY = jax.random.key(0)
fit = jax.jit(lambda method, p, q, a, b: method.fit(KEY, p, q, a, b))
project = jax.jit(project_box_slab)
least_linear = jax.jit(_least_linear)


def samples(seed=0, n=N, m=M):
    rng = np.random.default_rng(seed)
    p, q = rng.normal(size=(n, 2)), rng.normal(size=(m, 2)) + 0.7
    return p, q, rng.dirichlet(np.full(n, 3.0)), rng.dirichlet(np.full(m, 3.0))


def problem(p, q, a, b, sigma):
    """½ MMD² as a function of w, and its gradient."""
    kernel = lambda x, y: np.exp(-(cdist(x, y) ** 2) / (2 * sigma**2))
    gram, target, constant = kernel(q, q), kernel(q, p) @ a, a @ kernel(p, p) @ a

    def value(w):
        return 0.5 * ((b * w) @ gram @ (b * w) - 2 * (b * w) @ target + constant)

    return value, lambda w: b * (gram @ (b * w) - target)


def double(*arrays):
    return tuple(jnp.asarray(v) for v in arrays)


@pytest.mark.parametrize(("bound", "tolerance"), [(10.0, 0.1), (1.5, 0.0), (3.0, 0.3)])
def test_the_minimum_is_that_of_sequential_quadratic_programming(bound, tolerance):
    p, q, a, b = samples()
    value, gradient = problem(p, q, a, b, 0.8)
    reference = minimize(
        value,
        np.ones(M),
        jac=gradient,
        bounds=[(0, bound)] * M,
        constraints=[
            {"type": "ineq", "fun": lambda w: 1 + tolerance - b @ w},
            {"type": "ineq", "fun": lambda w: b @ w - 1 + tolerance},
        ],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    with jax.enable_x64(True):
        method = KernelMeanMatching(0.8, bound, tolerance, accuracy=1e-7, num_steps=2000)
        matched = fit(method, *double(p, q, a, b))
    w = np.asarray(matched.weights)
    assert (w >= 0).all()
    assert (w <= bound).all()
    assert abs(b @ w - 1) <= tolerance + 1e-12
    assert matched.converged
    assert abs(value(w) - reference.fun) < 1e-7
    assert value(w) - reference.fun <= float(matched.gap) + 1e-9
    np.testing.assert_allclose(matched.mmd, np.sqrt(2 * value(w)), rtol=1e-8)
    mass = b * w
    np.testing.assert_allclose(
        matched.effective_sample_size, mass.sum() ** 2 / (mass**2).sum(), rtol=1e-12
    )
    # Karush, Kuhn, Tucker: one multiplier for all weights strictly between their bounds.
    slopes = gradient(w) / b
    free = (w > 1e-3) & (w < bound - 1e-3)
    assert free.sum() >= 2
    assert np.ptp(slopes[free]) < 1e-3
    if (w <= 1e-3).any():
        assert slopes[w <= 1e-3].min() > slopes[free].min() - 1e-3
    if (w >= bound - 1e-3).any():
        assert slopes[w >= bound - 1e-3].max() < slopes[free].max() + 1e-3


def test_weights_of_far_atoms_are_the_ratio_of_their_masses():
    # The kernel of far atoms is the identity: ½ Σ_j (b_j w_j − a_j)² is zero at w = a/b.
    x = np.array([[0.0], [100.0], [300.0]])
    a, b = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.25, 0.25])
    method = KernelMeanMatching(bandwidth=1.0, bound=5.0, tolerance=0.0)
    with jax.enable_x64(True):
        matched = fit(method, *double(x, x, a, b))
    np.testing.assert_allclose(matched.weights, a / b, rtol=1e-6)
    assert matched.converged
    assert float(matched.mmd) < 1e-6


def test_matched_weights_move_the_mean_of_q_to_that_of_p():
    # With the true weights the mean of y errs by the sampling error, sd(r·y)/√m; matching does no
    # worse than four of those.
    rng = np.random.default_rng(1)
    p, q = rng.normal(size=(400, 1)), rng.normal(size=(400, 1)) + 0.5
    matched = fit(KernelMeanMatching(), *(jnp.asarray(v, jnp.float32) for v in (p, q)), None, None)
    ratio = np.exp(-0.5 * q[:, 0] + 0.125)
    error = np.std(ratio * q[:, 0]) / 20 + np.std(p) / 20
    assert matched.converged
    assert abs(np.mean(np.asarray(matched.weights) * q[:, 0]) - p.mean()) < 4 * error
    assert abs(np.mean(q) - p.mean()) > 4 * error
    assert 20 < matched.effective_sample_size < 400


vectors = st.lists(st.floats(-20, 20), min_size=1, max_size=8)


@given(values=vectors, seed=st.integers(0, 99), bound=st.floats(1, 20), tolerance=st.floats(0, 0.9))
@settings(max_examples=60, deadline=None)
def test_the_projection_satisfies_its_optimality_conditions(values, seed, bound, tolerance):
    v = np.zeros(8)
    v[: len(values)] = values
    b = np.random.default_rng(seed).dirichlet(np.ones(8))
    with jax.enable_x64(True):
        w = np.asarray(project(*double(v, b, bound, tolerance)))
    assert (w >= 0).all()
    assert (w <= bound).all()
    mean = b @ w
    assert 1 - tolerance - 1e-8 <= mean <= 1 + tolerance + 1e-8
    # v − w is one number ν between the bounds, at most ν at zero, at least ν at B; ν = 0 unless
    # the mean is at an end of the slab, and then it points inwards.
    shifts, free = v - w, (w > 1e-9) & (w < bound - 1e-9)
    plain = np.clip(v, 0, bound)
    if abs(b @ plain - 1) <= tolerance:
        np.testing.assert_allclose(w, plain, atol=1e-7)
    elif free.any():
        shift = shifts[free][0]
        np.testing.assert_allclose(shifts[free], shift, atol=1e-7)
        assert (shifts[w <= 1e-9] <= shift + 1e-7).all()
        assert (shifts[w >= bound - 1e-9] >= shift - 1e-7).all()
        assert (shift > 0) == (b @ plain > 1)
        end = 1 + tolerance if shift > 0 else 1 - tolerance
        np.testing.assert_allclose(mean, end, atol=1e-8)


@given(values=vectors, seed=st.integers(0, 99), bound=st.floats(1, 20), tolerance=st.floats(0, 0.9))
@settings(max_examples=40, deadline=None)
def test_the_certificate_solves_its_linear_programme(values, seed, bound, tolerance):
    slopes = np.zeros(8)
    slopes[: len(values)] = values
    b = np.random.default_rng(seed).dirichlet(np.ones(8))
    reference = linprog(
        b * slopes,
        A_ub=np.stack([b, -b]),
        b_ub=[1 + tolerance, tolerance - 1],
        bounds=(0, bound),
    )
    with jax.enable_x64(True):
        found = least_linear(*double(slopes, b, bound, tolerance))
    np.testing.assert_allclose(found, reference.fun, rtol=1e-7, atol=1e-7)


def test_a_row_without_weight_is_not_there_and_a_weight_is_as_good_as_repetition():
    p, q, _, _ = samples()
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 4, size=N) * 1.0, rng.integers(0, 4, size=M) * 1.0
    b[0] = 0
    repeat = lambda x, counts: np.repeat(x, counts.astype(int), axis=0)
    method = KernelMeanMatching(bound=4.0)
    with jax.enable_x64(True):
        hidden = np.where(a[:, None] > 0, p, np.nan), np.where(b[:, None] > 0, q, np.inf)
        one = fit(method, *double(*hidden, a, b))
        two = fit(method, *double(repeat(p, a), repeat(q, b)), None, None)
    np.testing.assert_array_equal(np.asarray(one.weights)[b == 0], 0)
    np.testing.assert_allclose(repeat(np.asarray(one.weights), b), two.weights, atol=1e-4)
    np.testing.assert_allclose(one.mmd, two.mmd, rtol=1e-5)
    assert one.converged
    assert two.converged


def test_vmap_over_leaves_equals_a_loop():
    p, q, a, b = (jnp.asarray(v, jnp.float32) for v in samples())
    grid = [(0.5, 2.0, 0.0), (0.8, 5.0, 0.1), (1.5, 1.0, 0.2)]
    methods = [KernelMeanMatching(*map(jnp.float32, row), accuracy=1e-4) for row in grid]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(jnp.asarray(leaves)), *methods)
    swept = jax.jit(jax.vmap(lambda m: m.fit(KEY, p, q, a, b)))(stacked)
    for index, method in enumerate(methods):
        alone = fit(method, p, q, a, b)
        np.testing.assert_allclose(swept.mmd[index], alone.mmd, atol=1e-3)
        np.testing.assert_allclose(swept.weights[index], alone.weights, atol=0.05)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtypes_are_kept(dtype):
    with jax.enable_x64(True):
        p, q = (jnp.asarray(v, dtype) for v in samples()[:2])
        for method in (KernelMeanMatching(), KernelMeanMatching(0.5, 2.0, 0.1, 1e-3)):
            matched = jax.eval_shape(method.fit, KEY, p, q)
            *numbers, status = jax.tree.leaves(matched)
            assert {leaf.dtype for leaf in numbers} == {jnp.dtype(dtype)}
            assert status.dtype == jnp.int32


def test_the_gradient_of_the_discrepancy_equals_differences():
    p, q, _, _ = samples(3)
    method = KernelMeanMatching(bandwidth=0.8, bound=2.0, tolerance=0.0, num_steps=20000)
    with jax.enable_x64(True):
        value = jax.jit(jax.value_and_grad(lambda p, q: method.fit(KEY, p, q).mmd, (0, 1)))
        p, q = double(p, q)
        found, gradients = value(p, q)
        assert found > 0.05
        rng = np.random.default_rng(4)
        directions = double(rng.normal(size=p.shape), rng.normal(size=q.shape))
        step = 1e-4
        ahead, _ = value(p + step * directions[0], q + step * directions[1])
        behind, _ = value(p - step * directions[0], q - step * directions[1])
        expected = sum(jnp.sum(g * d) for g, d in zip(gradients, directions, strict=True))
        np.testing.assert_allclose((ahead - behind) / (2 * step), expected, rtol=1e-4)


def test_results_and_gradients_are_finite_at_extremes_and_flags_tell():
    p, q, _, _ = (jnp.asarray(v, jnp.float32) for v in samples())
    ones = jnp.ones(N), jnp.ones(M)
    method = KernelMeanMatching()
    gradient = jax.jit(jax.grad(lambda x: method.fit(KEY, x[0], x[1]).mmd))
    for x in ((p, q + 1e4), (p * 0, q * 0), (jnp.round(p), jnp.round(q)), (1e15 * p, 1e15 * q)):
        matched = fit(method, *x, *ones)
        for leaf in jax.tree.leaves((matched, gradient(x))):
            assert jnp.isfinite(leaf).all()
        assert matched.converged
    # The same rows: uniform weights match them exactly.
    same = fit(method, q, q, ones[1], ones[1])
    assert same.converged
    assert same.mmd < 1e-3
    assert not fit(KernelMeanMatching(bound=jnp.float32(0.5)), p, q, *ones).converged
    assert not fit(method, p.at[0, 0].set(jnp.nan), q, *ones).converged
    assert not fit(KernelMeanMatching(0.8, num_steps=1), p, q, *ones).converged


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: KernelMeanMatching(bandwidth=0.0), "bandwidth must be a positive number"),
        (lambda p: KernelMeanMatching(bound=0.5), "bound must be at least one.* got 0.5"),
        (lambda p: KernelMeanMatching(tolerance=-1), "tolerance must not be negative; got -1"),
        (lambda p: KernelMeanMatching(accuracy=0), "accuracy must be a positive number; got 0"),
        (
            lambda p: KernelMeanMatching(num_steps=0),
            "num_steps must be an integer of at least 1; got 0",
        ),
        (lambda p: KernelMeanMatching().fit(KEY, p, p[:0]), "y must be a non-empty matrix"),
        (lambda p: KernelMeanMatching().fit(KEY, p[0], p), "x must be a matrix"),
        (lambda p: KernelMeanMatching().fit(KEY, p, p[:, :1]), "x and y must have the same number"),
        (lambda p: KernelMeanMatching().fit(KEY, p, p, jnp.ones(2)), r"a must have shape \(3,"),
        (
            lambda p: KernelMeanMatching().fit(KEY, p, p, None, -jnp.ones(3)),
            "b must be finite and non-neg",
        ),
        (
            lambda p: KernelMeanMatching().fit(KEY, p, p, jnp.zeros(3)),
            "a must be .*not all zero",
        ),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((3, 2)))
