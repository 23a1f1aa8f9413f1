"""Mixtures against SciPy's densities, quadrature, autodiff and the law of large numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import dblquad
from scipy.stats import multivariate_normal

from divjax import problems
from divjax.problems import GaussianMixture

WEIGHTS, MEANS = np.array([0.2, 0.5, 0.3]), np.array([[0.0, 1.0], [2.0, -1.0], [-1.0, -1.0]])
ROOTS = np.array([[[1.0, 0.0], [0.3, 0.5]], [[0.4, 0.0], [-0.2, 0.9]], [[0.7, 0.0], [0.0, 0.7]]])
COVARIANCES = {
    "scalar": np.array(0.6),
    "variances": np.array([0.3, 1.0, 2.0]),
    "matrix": ROOTS[1] @ ROOTS[1].T,
    "matrices": ROOTS @ ROOTS.transpose(0, 2, 1),
}
every = pytest.mark.parametrize("kind", COVARIANCES)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def full(kind):
    covariances = COVARIANCES[kind]
    if covariances.ndim > 1:
        return np.broadcast_to(covariances, (3, 2, 2))
    return np.broadcast_to(covariances, (3,))[:, None, None] * np.eye(2)


def mixture(kind):
    return GaussianMixture(*map(jnp.asarray, (WEIGHTS, MEANS, COVARIANCES[kind])))


def scipy_log_prob(kind, x):
    parts = zip(WEIGHTS, MEANS, full(kind), strict=True)
    return np.log(sum(w * multivariate_normal(m, s).pdf(x) for w, m, s in parts))


@every
def test_log_prob_is_scipys_and_score_its_gradient(kind):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 2)) * 3)
    target = mixture(kind)
    np.testing.assert_allclose(jax.vmap(target.log_prob)(x), scipy_log_prob(kind, x), rtol=1e-9)
    gradient = jax.vmap(jax.grad(target.log_prob))(x)
    np.testing.assert_allclose(jax.vmap(target.score)(x), gradient, rtol=1e-8, atol=1e-12)


def test_the_density_integrates_to_one():
    density = jax.jit(lambda x, y: jnp.exp(mixture("matrices").log_prob(jnp.array([x, y]))))
    total, _ = dblquad(lambda y, x: float(density(x, y)), -7, 8, -7, 7, epsabs=1e-5)
    np.testing.assert_allclose(total, 1, atol=1e-4)


@every
def test_moments_of_samples(kind):
    target, n = mixture(kind), 20_000
    x = np.asarray(target.sample(jax.random.key(0), n))
    mean = WEIGHTS @ MEANS
    offsets = MEANS - mean
    covariance = np.einsum("c,cij->ij", WEIGHTS, full(kind)) + (offsets.T * WEIGHTS) @ offsets
    np.testing.assert_allclose(target.mean(), mean, rtol=1e-12)
    np.testing.assert_allclose(target.covariance(), covariance, rtol=1e-12)
    assert np.all(np.abs(x.mean(0) - mean) < 4 * np.sqrt(np.diag(covariance) / n))
    products = np.einsum("ni,nj->nij", x - mean, x - mean)
    errors = products.std(0) / np.sqrt(n)
    assert np.all(np.abs(products.mean(0) - covariance) < 4 * errors)


def test_the_toys_are_as_published():
    x = np.array([0.4, -1.2])
    corners = [
        ((4, -4), (0.1, 0.2)),
        ((-4, 4), (-0.1, 0.3)),
        ((-4, -4), (0.4, -0.4)),
        ((4, 4), (-0.2, 0.3)),
    ]
    for target, (one, two) in zip(problems.two_component_targets(), corners, strict=True):
        density = 0.7 * multivariate_normal(one).pdf(x) + 0.3 * multivariate_normal(two).pdf(x)
        np.testing.assert_allclose(target.log_prob(jnp.asarray(x)), np.log(density), rtol=1e-5)
    target = problems.three_component_targets()[0]
    parts = ((0.2, (4, 4)), (0.7, (-2, 0)), (0.1, (2, 0)))
    density = sum(w * multivariate_normal(m, 0.5).pdf(x) for w, m in parts)
    np.testing.assert_allclose(target.log_prob(jnp.asarray(x)), np.log(density), rtol=1e-5)


def test_jitter_moves_every_mean_once():
    moved = problems.three_component_targets(jax.random.key(0))
    plain = problems.three_component_targets()
    shifts = np.concatenate([a.means - b.means for a, b in zip(moved, plain, strict=True)])
    assert 0.2 < shifts.std() < 0.4  # 24 draws of .3 N(0, 1)
    assert len(np.unique(shifts)) == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (np.ones(2), np.zeros((2, 1)), np.ones(())),
            "weights must be non-negative and sum to one",
        ),
        ((np.ones(1), np.zeros((2, 1)), np.ones(())), "weights and means must have shapes"),
        ((np.full(2, np.nan), np.zeros((2, 1)), np.ones(())), "weights must be non-negative"),
        ((np.ones(1), np.zeros((1, 2)), np.ones(3)), "covariances must be a scalar"),
        ((np.ones(1), np.zeros((1, 2)), -1.0), "covariances must be a positive number; got -1"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments).mean()
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments).log_prob(jnp.zeros(arguments[1].shape[1:]))


def test_a_point_of_another_dimension_is_named():
    with pytest.raises(ValueError, match=r"x must be one point of shape \(2,\); got shape \(1,\)"):
        mixture("scalar").score(jnp.zeros(1))


def test_a_gradient_is_a_tree_of_the_same_kind():
    """Whose weights do not sum to one: construction must not mind."""
    gradient = jax.grad(lambda target: target.log_prob(jnp.zeros(2)))(mixture("variances"))
    assert jnp.isfinite(gradient.means).all()


@every
def test_a_component_of_no_weight_is_absent_and_harmless(kind):
    """Even far inside it, where its own density dwarfs the others'."""
    weights, x = jnp.array([0.4, 0.6, 0.0]), jnp.array([-40.0, -30.0])
    means = jnp.asarray(MEANS).at[2].set(x)
    target = GaussianMixture(weights, means, jnp.asarray(COVARIANCES[kind]))
    parts = list(zip((0.4, 0.6), MEANS, full(kind), strict=False))
    logs = [np.log(w) + multivariate_normal(m, s).logpdf(x) for w, m, s in parts]
    np.testing.assert_allclose(target.log_prob(x), np.logaddexp(*logs), rtol=1e-10)
    gradients = jax.grad(lambda target, x: target.log_prob(x) + target.score(x).sum(), (0, 1))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients(target, x)))
    assert (target.sample(jax.random.key(1), 500)[:, 0] > -20).all()


def test_stacked_mixtures_are_one_compilation():
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems.two_component_targets())
    x, traces = jnp.array([0.3, -2.0]), []

    @jax.jit
    def log_probs(targets):
        traces.append(None)
        return jax.vmap(lambda target: target.log_prob(x))(targets)

    alone = [target.log_prob(x) for target in problems.two_component_targets()]
    np.testing.assert_allclose(log_probs(stacked), alone, rtol=1e-6)
    log_probs(GaussianMixture(stacked.weights[:, ::-1], stacked.means + 1, stacked.covariances))
    assert len(traces) == 1


def test_an_absent_components_weight_has_its_derivative():
    """∂ log p(x) / ∂w_c = N_c(x) / p(x), also at w_c = 0; and far denser, it is at least finite."""
    log_prob = lambda w, x: GaussianMixture(w, jnp.array([[0.0], [1.0]]), 1.0).log_prob(x)
    weights = jnp.array([1.0, 0.0])
    slope = jax.jacobian(log_prob)(weights, jnp.ones(1))
    np.testing.assert_allclose(slope, [1, np.exp(0.5)], rtol=1e-12)
    far = jnp.array([1e4])
    np.testing.assert_allclose(log_prob(weights, far), -0.5 * (1e8 + np.log(2 * np.pi)), rtol=1e-12)
    assert jnp.isfinite(jax.jacobian(log_prob)(weights, far)).all()


@pytest.mark.parametrize(
    ("weights", "variance"),
    [([-1.0, 2.0], 1.0), ([0.5, 0.4], 1.0), ([np.nan, 1.0], 1.0), ([0.5, 0.5], -1.0)],
)
def test_traced_parameters_out_of_range_give_nan(weights, variance):
    @jax.jit
    def everything(weights, variance):
        it = GaussianMixture(weights, jnp.eye(2), variance)
        point = jnp.zeros(2)
        return (
            it.log_prob(point),
            it.score(point),
            it.sample(jax.random.key(0), 3),
            it.covariance(),
            it.mean(),
        )

    for value in everything(jnp.array(weights), jnp.float32(variance)):
        assert jnp.isnan(value).all()
    for value in everything(jnp.array([0.5, 0.5]), jnp.float32(1)):
        assert jnp.isfinite(value).all()


ASYMMETRIC, INDEFINITE = np.array([[1.0, 0.9], [0.0, 1.0]]), np.array([[1.0, 2.0], [2.0, 1.0]])
USES = {
    "log_prob": lambda it: it.log_prob(jnp.zeros(2)),
    "score": lambda it: it.score(jnp.zeros(2)),
    "sample": lambda it: it.sample(jax.random.key(0), 3),
    "mean": lambda it: it.mean(),
    "covariance": lambda it: it.covariance(),
}


@pytest.mark.parametrize("use", USES)
def test_matrices_that_are_no_covariances(use):
    """Cholesky's algorithm takes the symmetric part of one, and moments need no factor."""
    of = lambda matrix: USES[use](GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), matrix))
    for stacked in (False, True):
        asymmetric, indefinite, nan, good = (
            matrix[None] if stacked else matrix
            for matrix in (ASYMMETRIC, INDEFINITE, np.eye(2) * np.nan, np.eye(2))
        )
        with pytest.raises(ValueError, match="covariances must be symmetric"):
            of(asymmetric)
        assert jnp.isnan(of(indefinite)).all()
        assert jnp.isfinite(of(good)).all()
        traced = jax.jit(of)
        for matrix in (asymmetric, indefinite, nan):
            assert jnp.isnan(traced(matrix)).all()
        assert jnp.isfinite(traced(good)).all()


@pytest.mark.parametrize("covariances", [2, [2, 2], [[2, 1], [1, 2]], [[[2, 1], [1, 2]]] * 2])
@pytest.mark.parametrize("use", USES)
def test_lists_are_arrays(use, covariances):
    lists = GaussianMixture([0.5, 0.5], [[0, 1], [2, -1]], covariances)
    arrays = GaussianMixture(
        jnp.array([0.5, 0.5]), jnp.array([[0.0, 1.0], [2.0, -1.0]]), jnp.array(covariances, float)
    )
    np.testing.assert_allclose(USES[use](lists), USES[use](arrays), rtol=1e-12)
    np.testing.assert_allclose(jax.jit(USES[use])(lists), USES[use](arrays), rtol=1e-12)
    np.testing.assert_allclose(lists.log_prob([1, 2]), arrays.log_prob(jnp.array([1.0, 2.0])))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("weights", ([1j], [[0.0, 0.0]], 1.0)),
        ("means", ([1.0], [[0.0, 1j]], 1.0)),
        ("covariances", ([1.0], [[0.0, 0.0]], [[1.0, 0.0], [1.0]])),
        ("covariances", ([1.0], [[0.0, 0.0]], None)),
    ],
)
def test_what_are_no_numbers_are_named(name, arguments):
    with pytest.raises(ValueError, match=f"^{name} must"):
        GaussianMixture(*arguments).mean()
    with pytest.raises(ValueError, match=r"^x must hold real numbers"):
        GaussianMixture([1.0], [[0.0, 0.0]], 1.0).log_prob([1j, 2.0])


def test_draws_that_rounding_would_merge_are_refused():
    """At 10⁸ standard deviations float32 has one number for eight of them."""
    with jax.enable_x64(False):
        far = np.array([[1e8], [1e8 + 3]])
        mixture = GaussianMixture(np.array([0.5, 0.5]), far, 1.0)
        for use in (
            lambda: mixture.log_prob(far[0]),
            lambda: mixture.sample(jax.random.key(0), 3),
            mixture.covariance,
            lambda: problems.gaussian_pair((far[0], [1.0]), (far[1], [1.0])),
        ):
            with pytest.raises(ValueError, match="standard deviations of the origin"):
                use()
        density = lambda means: GaussianMixture(jnp.ones(2) / 2, means, 1.0).log_prob(jnp.ones(1))
        assert jnp.isnan(jax.jit(density)(jnp.asarray(far)))
        # An absent component may be anywhere.
        near = GaussianMixture(jnp.array([1.0, 0.0]), jnp.array([[0.0], [1e8]]), 1.0)
        np.testing.assert_allclose(near.log_prob(jnp.zeros(1)), -np.log(2 * np.pi) / 2, rtol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("points", [[[2.0]], np.array([[2.0]]), np.array([[2]])], ids=type)
def test_log_ratios_take_any_numbers(points):
    task = problems.gaussian_pair(([1.0], [1.0]), ([0.0], [1.0]))
    np.testing.assert_allclose(task.log_ratio(points), [1.5], rtol=1e-6)
