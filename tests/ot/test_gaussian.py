"""Gaussian transport against POT, SciPy's matrix roots, closed forms and optimality."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
import scipy.linalg

from divjax import Normal
from divjax.ot.gaussian import (
    gaussian_barycenter,
    gaussian_map,
    gaussian_wasserstein,
)
from divjax.ot.gaussian_entropic import gaussian_entropic
from divjax.ot.maps.gaussian_samples import gaussian_map_from_samples

D = 3
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
distance = jit(gaussian_wasserstein)
gradient = jit(jax.grad(gaussian_wasserstein, argnums=(0, 1)))
transport = jit(gaussian_map)
barycenter = jit(functools.partial(gaussian_barycenter, num_steps=60))


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def normal(seed, rank=D, d=D):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(d, rank)) / np.sqrt(d)
    return Normal(rng.normal(size=d), factor @ factor.T + 0.1 * np.eye(d) * (rank == d))


def test_the_distance_matches_pot_and_the_textbook():
    p, q = normal(0), normal(1)
    np.testing.assert_allclose(
        distance(p, q),
        float(ot.gaussian.bures_wasserstein_distance(p[0], q[0], p[1], q[1])) ** 2,
        rtol=1e-10,
    )
    root = scipy.linalg.sqrtm(p[1])
    cross = np.trace(scipy.linalg.sqrtm(root @ q[1] @ root))
    expected = np.sum((p[0] - q[0]) ** 2) + np.trace(p[1] + q[1]) - 2 * cross
    np.testing.assert_allclose(distance(p, q), expected, rtol=1e-10)


def test_diagonal_covariances_match_full_ones():
    (mean, p), (other, q) = normal(0), normal(1)
    p, q = np.diag(p), np.diag(q)
    few, many = (Normal(mean, p), Normal(other, q)), ((mean, np.diag(p)), (other, np.diag(q)))
    expected = distance(*many)
    np.testing.assert_allclose(distance(*few), expected, rtol=1e-12)
    np.testing.assert_allclose(distance(many[0], few[1]), expected, rtol=1e-12)
    slopes, full = jax.tree.leaves(gradient(*few)), jax.tree.leaves(gradient(*many))
    for one, two in zip(slopes, full, strict=True):
        np.testing.assert_allclose(one, two if two.ndim == 1 else np.diag(two), rtol=1e-9)
    matrix = transport(*few).matrix
    np.testing.assert_allclose(matrix, np.sqrt(q / p), rtol=1e-12)


@pytest.mark.parametrize(("rank_p", "rank_q"), [(D, D), (1, D), (D, 2), (1, 2), (2, 2)])
def test_gradients_are_differences_along_paths_of_constant_rank(rank_p, rank_q):
    """Through factors: S = L Lᵀ with L of `rank` columns, also where S is singular."""
    rng = np.random.default_rng(4)
    left, right = rng.normal(size=(D, rank_p)), rng.normal(size=(D, rank_q))
    zero = np.zeros(D)
    of_factors = lambda l, r: gaussian_wasserstein((zero, l @ l.T), (zero, r @ r.T))
    slopes = jit(jax.grad(of_factors, argnums=(0, 1)))(left, right)
    for position, slope in enumerate(slopes):
        direction = rng.normal(size=slope.shape)

        def moved(step, at=position, direction=direction):
            factors = [
                f + step * direction * (i == at) if i == at else f
                for i, f in enumerate((left, right))
            ]
            # The nuclear norm of Lᵀ K, by the definition and SciPy.
            fidelity = np.sum(scipy.linalg.svdvals(factors[0].T @ factors[1]))
            return sum(np.sum(f**2) for f in factors) - 2 * fidelity

        expected = (moved(1e-6) - moved(-1e-6)) / 2e-6
        np.testing.assert_allclose(np.sum(slope * direction), expected, rtol=1e-6)


def test_where_both_are_the_same_singular_covariance_the_gradient_is_off_their_range():
    """S + δE at T = S moves by δ tr E off the range of S, and by O(δ²) within it."""
    p = normal(2, rank=2)
    mean, cov = p
    slope = gradient(p, p)[0].covariance
    basis = scipy.linalg.orth(cov, rcond=1e-8)
    np.testing.assert_allclose(slope, np.eye(D) - basis @ basis.T, atol=1e-6)
    assert distance(p, p) < 1e-15
    outside = np.eye(D) - basis @ basis.T
    np.testing.assert_allclose(distance(Normal(mean, cov + 1e-3 * outside), p), 1e-3, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_gradients_are_finite_at_every_singular_pair(dtype):
    zero, line, other = np.zeros(D), np.diag([1.0, 0, 0]), np.diag([0, 2.0, 0])
    nothing, ball, ones = np.zeros((D, D)), np.eye(D), np.ones((D, D))
    for s in (line, nothing, ones, ball, 1e-30 * ball, 1e20 * line):
        for t in (other, line, nothing, ones, ball):
            for form in (np.asarray, np.diag):
                pair = Normal(zero, form(s)), Normal(zero + 1, form(t))
                slopes = gradient(*jax.tree.map(lambda v: jnp.asarray(v, dtype), pair))
                assert all(jnp.isfinite(slope).all() for slope in jax.tree.leaves(slopes))
    # Orthogonal ranges: nothing to gain within them, B² = tr S + tr T.
    np.testing.assert_allclose(distance((zero, line), (zero, other)), 3, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_small_distances_keep_their_digits(dtype):
    """N(0, c²C) against N(0, C): (c − 1)² tr C, far below the rounding of tr C."""
    mean, cov = (jnp.asarray(v, dtype) for v in normal(3))
    scale = 1 + 2.0**-9
    expected = 2.0**-18 * float(jnp.trace(cov))
    value = distance(Normal(mean, scale**2 * cov), Normal(mean, cov))
    assert value.dtype == dtype
    # Roundings of a few units, in differences of 2⁻⁹ that are squared.
    np.testing.assert_allclose(value, expected, rtol=10 * 2 * 2**9 * float(jnp.finfo(dtype).eps))


def test_curvature_at_equality_is_the_lyapunov_form():
    """B²(C + δE, C) ≈ δ²/2 · tr(Y C Y)·… with the Y of YC + CY = E: the Riemannian metric."""
    mean, cov = normal(5)
    rng = np.random.default_rng(0)
    change = rng.normal(size=(D, D))
    change = change + change.T
    along = lambda s: gaussian_wasserstein(Normal(mean, cov + s * change), (mean, cov))
    curvature = jit(jax.grad(jax.grad(along)))(0.0)
    solution = scipy.linalg.solve_sylvester(cov, cov, change)
    np.testing.assert_allclose(curvature / 2, np.trace(solution @ cov @ solution), rtol=1e-8)
    forward = jit(jax.jacfwd(jax.jacfwd(along)))(0.0)
    np.testing.assert_allclose(forward, curvature, rtol=1e-8)


def test_second_derivatives_are_differences_of_the_first():
    p, q = normal(0), normal(1)
    rng = np.random.default_rng(1)
    change = rng.normal(size=(2, D, D))
    change = change + np.swapaxes(change, 1, 2)
    path = lambda s: tuple(
        Normal(g.mean, g.covariance + s * c) for g, c in zip((p, q), change, strict=True)
    )
    second = jit(jax.grad(jax.grad(lambda s: gaussian_wasserstein(*path(s)))))(0.0)

    def slope(s):
        slopes = gradient(*path(s))
        return sum(np.sum(g.covariance * c) for g, c in zip(slopes, change, strict=True))

    np.testing.assert_allclose(second, (slope(1e-5) - slope(-1e-5)) / 2e-5, rtol=1e-6)


def test_indefinite_covariances_are_flagged():
    mean, bad = np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]])
    assert jnp.isnan(distance((mean, bad), (mean, np.eye(2))))
    assert jnp.isnan(distance((mean, np.eye(2)), (mean, bad)))
    assert jnp.isnan(distance((mean, np.array([1.0, -1.0])), (mean, np.ones(2))))


def test_the_map_matches_pot_and_carries_the_one_to_the_other():
    p, q = normal(0), normal(1)
    to_q = transport(p, q)
    matrix, offset = ot.gaussian.bures_wasserstein_mapping(p[0], q[0], p[1], q[1])
    np.testing.assert_allclose(to_q.matrix, matrix, rtol=1e-8)
    np.testing.assert_allclose(to_q(np.zeros(D)), np.ravel(offset), rtol=1e-8)
    np.testing.assert_allclose(to_q.matrix @ p[1] @ to_q.matrix, q[1], rtol=1e-9)
    np.testing.assert_allclose(to_q(p[0]), q[0], rtol=1e-12)
    # Optimal: the cost of moving is the distance.
    left = np.eye(D) - to_q.matrix
    moved = np.trace(left @ p[1] @ left) + np.sum((p[0] - q[0]) ** 2)
    np.testing.assert_allclose(moved, distance(p, q), rtol=1e-9)


def gaussians(k=4, d=D):
    drawn = [normal(10 + i, d=d) for i in range(k)]
    return Normal(np.stack([m for m, _ in drawn]), np.stack([c for _, c in drawn]))


def test_the_barycenter_matches_pot_and_its_maps_average_to_the_identity():
    means, covs = gaussians()
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    found = barycenter((means, covs), 5 * weights)
    mean, cov = ot.gaussian.bures_wasserstein_barycenter(
        means, covs, weights, num_iter=2000, eps=1e-12
    )
    np.testing.assert_allclose(found.mean, np.ravel(mean), rtol=1e-10)
    np.testing.assert_allclose(found.covariance, cov, rtol=1e-7)
    assert found.converged
    assert found.residual < 1e-8
    few = gaussian_barycenter((means, covs), weights, num_steps=1)
    assert not few.converged
    assert few.num_steps == 1


def test_the_barycenter_is_where_the_sum_of_distances_is_least():
    means, covs = gaussians()
    found = barycenter((means, covs))
    total = jit(
        jax.grad(
            lambda s: sum(
                gaussian_wasserstein((found.mean, s), target)
                for target in zip(means, covs, strict=True)
            )
        )
    )
    np.testing.assert_allclose(total(found.covariance), 0, atol=1e-7)


def test_diagonal_barycenters_average_standard_deviations():
    means, covs = gaussians(3)
    variances = np.stack([np.diag(c) for c in covs])
    variances[:, 0] = 0
    weights = np.array([0.5, 0.25, 0.25])
    found = gaussian_barycenter(Normal(means, variances), weights)
    np.testing.assert_allclose(found.covariance, (weights @ np.sqrt(variances)) ** 2, rtol=1e-12)
    full = barycenter((means, np.stack([np.diag(v) for v in variances + 0.1])), weights)
    np.testing.assert_allclose(
        full.covariance, np.diag((weights @ np.sqrt(variances + 0.1)) ** 2), atol=1e-9
    )
    assert found.converged
    assert found.num_steps == 0


def test_barycenters_differentiate_and_vmap():
    means, covs = gaussians(2, d=2)
    trace = lambda w: jnp.trace(gaussian_barycenter((means, covs), w, num_steps=25).covariance)
    run, weights = jit(trace), np.array([0.3, 0.7])
    slope = jit(jax.grad(trace))(weights)
    step = np.array([1e-5, -1e-5])
    np.testing.assert_allclose(
        slope @ step, (run(weights + step) - run(weights - step)) / 2, rtol=1e-5
    )
    # Two Gaussians: the barycenter is on the geodesic, (1 − t) I + t A applied to the first.
    matrix = gaussian_map((means[0], covs[0]), (means[1], covs[1])).matrix
    for t in (0.3, 0.7):
        middle = (1 - t) * np.eye(2) + t * matrix
        expected = middle @ covs[0] @ middle
        np.testing.assert_allclose(run(np.array([1 - t, t])), np.trace(expected), rtol=1e-8)
    both = jit(jax.vmap(trace))(np.array([[0.7, 0.3], [0.3, 0.7]]))
    np.testing.assert_allclose(both[1], run(weights), rtol=1e-10)


def several(*normals):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *normals)


def skewed(p):
    return p._replace(covariance=p.covariance.at[0, 1].set(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p: gaussian_wasserstein((p.mean, p.covariance[:1]), p),
            r"p must be a mean \(d,\) with variances \(d,\) or a covariance \(d, d\); got shapes",
        ),
        (lambda p: gaussian_wasserstein(p, (p.mean[None], p.covariance)), "q must be a mean"),
        (lambda p: gaussian_wasserstein(p, p.mean[:1]), "q must be a Normal, or a pair of a mean"),
        (
            lambda p: gaussian_map(p, (p.mean[:1], p.covariance[:1, :1])),
            "p and q must have the same dimension; got 2 and 1",
        ),
        (lambda p: gaussian_barycenter(p), "normals must be means"),
        (lambda p: gaussian_barycenter(several(p), -jnp.ones(1)), "weights must be"),
        (lambda p: gaussian_barycenter(several(p), num_steps=0), "num_steps must be"),
        (lambda p: gaussian_wasserstein(skewed(p), p), "the covariance of p must be symmetric"),
        (lambda p: gaussian_map(p, skewed(p)), "the covariance of q must be symmetric"),
        (
            lambda p: gaussian_barycenter(several(skewed(p))),
            "the covariance of normals must be symmetric",
        ),
        (
            lambda p: gaussian_wasserstein(*[jax.tree.map(lambda v: v.astype("bfloat16"), p)] * 2),
            "must be float32 or float64",
        ),
        (lambda p: gaussian_entropic(p, p, epsilon=0.0), "epsilon must be positive"),
        (
            lambda p: gaussian_map_from_samples(p.covariance, p.covariance, shrinkage=2.0),
            "shrinkage must be in",
        ),
        (
            lambda p: gaussian_map_from_samples(p.covariance, p.covariance, shrinkage="oas"),
            'or "ledoit-wolf"',
        ),
    ],
)
def test_bad_input_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call(Normal(jnp.zeros(2), jnp.eye(2)))


def test_a_barycenter_that_is_not_a_number_has_not_converged():
    means, variances = np.ones((2, D)), np.ones((2, D))
    assert gaussian_barycenter(Normal(means, variances)).converged
    assert not gaussian_barycenter(Normal(means * np.nan, variances)).converged
    assert not gaussian_barycenter(Normal(means, -variances)).converged
    with pytest.raises(ValueError, match="x must have 3 features"):
        gaussian_map((means[0], variances[0]), (means[1], variances[1]))(jnp.ones((4, 2)))


def test_what_is_not_a_number_or_traced_out_of_range_is_flagged():
    mean, ones = np.zeros(D), np.ones(D)
    bad = ones.copy()
    bad[1] = np.nan
    for s, t in ((bad, ones), (ones, bad)):
        assert jnp.isnan(distance((mean, s), (mean, t)))
        assert jnp.isnan(distance((mean, np.diag(s)), (mean, np.diag(t))))
        assert jnp.isnan(transport((mean, s), (mean, t)).matrix).any()
        assert not gaussian_barycenter([Normal(mean, s), Normal(mean, t)]).converged
    skew = np.eye(D) + np.triu(np.ones((D, D)), 1)
    assert jnp.isnan(distance((mean, skew), (mean, np.eye(D))))
    covs = np.stack([np.eye(D)] * 2)
    run = jax.jit(lambda w, c: gaussian_barycenter((np.zeros((2, D)), c), w))
    found = run(np.array([-1.0, 2.0]), covs)
    assert not found.converged
    assert jnp.isnan(found.covariance).all()
    # A Gaussian of weight zero is padding.
    found = run(np.array([0.0, 2.0]), covs * np.array([np.nan, 1])[:, None, None])
    np.testing.assert_allclose(found.covariance, covs[1], atol=1e-12)
    assert found.converged


@pytest.mark.parametrize("far", [1e4, 123456789.1])
def test_a_map_between_means_far_apart_keeps_both(far):
    """m_q + A (x − m_p): about one common point both means would be rounded."""
    mean, z = np.array([0.3, 0.7]), np.array([[1.0, 2.0], [-3.0, 0.4]])
    with jax.enable_x64(False):
        p, q = Normal(mean + far, np.ones(2)), Normal(np.array([0.1, 0.2]), 4 * np.ones(2))
        expected = np.array([0.1, 0.2]) + 2 * (z - mean)
        np.testing.assert_allclose(gaussian_map(p, q)(z + far), expected, atol=1e-5)
        near = gaussian_entropic(p._replace(mean=mean), q, epsilon=0.1).transport(z)
        moved = gaussian_entropic(p, q, epsilon=0.1).transport(z + far)
        np.testing.assert_allclose(moved, near, atol=1e-5)
