"""Gaussian closed forms against quadrature, textbook formulas, simulation and maximisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats

from divjax import Normal
from divjax.fdiv import gaussian, inequalities

# Many programs, each run a few times: what takes time is LLVM.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def normal(seed, d=3, kind="full"):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(d, d + 2)) / np.sqrt(d)
    covariance = root @ root.T + 0.1 * np.eye(d)
    mean = 0.7 * rng.normal(size=d)
    return Normal(mean, np.diag(covariance) if kind == "diagonal" else covariance)


def full(p):
    return Normal(p.mean, np.diag(p.covariance) if p.covariance.ndim == 1 else p.covariance)


PAIRS = {
    "full": (normal(0), normal(1)),
    "diagonal": (normal(0, kind="diagonal"), normal(1, kind="diagonal")),
    "mixed": (normal(0, kind="diagonal"), normal(1)),
    "one": (normal(0, d=1), normal(1, d=1)),
}


every = pytest.mark.parametrize("name", PAIRS)


def everything(p, q, alpha):
    return {
        "kl": gaussian.kl(p, q),
        "renyi": gaussian.renyi(p, q, alpha),
        "bhattacharyya": gaussian.bhattacharyya(p, q),
        "hellinger": gaussian.squared_hellinger(p, q),
        "js": gaussian.js_bounds(p, q),
    }


divergences = jit(everything)


def textbook(p, q, alpha):
    """With inverses and determinants, as printed."""
    (m, a), (n, b) = (tuple(map(np.asarray, full(x))) for x in (p, q))
    delta, mixed = m - n, alpha * b + (1 - alpha) * a
    log_det = lambda c: np.linalg.slogdet(c)[1]
    kl = np.trace(np.linalg.solve(b, a)) - len(m) + delta @ np.linalg.solve(b, delta)
    renyi = alpha / 2 * delta @ np.linalg.solve(mixed, delta) - (
        log_det(mixed) - (1 - alpha) * log_det(a) - alpha * log_det(b)
    ) / (2 * (alpha - 1))
    half = (a + b) / 2
    distance = delta @ np.linalg.solve(half, delta) / 8
    distance += (log_det(half) - (log_det(a) + log_det(b)) / 2) / 2
    return (kl + log_det(b) - log_det(a)) / 2, renyi, distance


@every
@pytest.mark.parametrize("alpha", [0.3, 0.95, 1.05])
def test_formulas_are_the_textbooks(name, alpha):
    p, q = PAIRS[name]
    ours = divergences(p, q, alpha)
    kl, renyi, distance = textbook(p, q, alpha)
    np.testing.assert_allclose(ours["kl"], kl, rtol=1e-12)
    np.testing.assert_allclose(ours["renyi"], renyi, rtol=1e-11)
    np.testing.assert_allclose(ours["bhattacharyya"], distance, rtol=1e-12)
    np.testing.assert_allclose(ours["hellinger"], 1 - np.exp(-distance), rtol=1e-12)


def quadrature(p, q, function):
    p, q = (
        scipy.stats.norm(float(x.mean[0]), np.sqrt(float(x.covariance.ravel()[0]))) for x in (p, q)
    )
    integrand = lambda x: function(p.pdf(x), q.pdf(x))
    return scipy.integrate.quad(integrand, -15, 15, epsabs=1e-12, limit=400, points=[-1, 0, 1])[0]


@pytest.mark.parametrize(("shift", "variance"), [(0.0, 0.2), (0.3, 1.1), (1.5, 0.5), (4.0, 2.0)])
def test_one_dimension_is_quadrature(shift, variance):
    p, q = Normal(jnp.array([shift]), jnp.array([variance])), Normal(jnp.zeros(1), jnp.ones(1))
    ours = divergences(p, q, 1.4)
    xlog = lambda a, b: a * (np.log(a + 1e-300) - np.log(b + 1e-300))
    np.testing.assert_allclose(ours["kl"], quadrature(p, q, xlog), rtol=1e-8)
    np.testing.assert_allclose(
        ours["hellinger"], 1 - quadrature(p, q, lambda a, b: np.sqrt(a * b)), rtol=1e-8
    )
    js = quadrature(p, q, lambda a, b: (xlog(a, (a + b) / 2) + xlog(b, (a + b) / 2)) / 2)
    lower, upper = ours["js"]
    assert 0 < lower <= js <= upper <= np.log(2)
    # Each bound says something: neither is 0 or log 2, and they are within a third of the value.
    assert upper - lower < js / 3 + 0.02


def test_js_bounds_are_ordered_for_random_pairs():
    """Both bounds of the coefficient are attained by discrete pairs, which the theorem covers."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.full(4, 0.5), (2, 20000))
    coefficient = np.minimum(np.sqrt(p * q).sum(1), 1)
    m = (p + q) / 2
    js = (scipy.special.rel_entr(p, m) + scipy.special.rel_entr(q, m)).sum(1) / 2
    squares = np.asarray(jit(inequalities.entropy_deficit)(1 - coefficient**2))
    assert np.all((1 - coefficient) * np.log(2) <= js + 1e-12)
    assert np.all(js <= squares + 1e-12)
    kl, back = scipy.special.rel_entr(p, q).sum(1), scipy.special.rel_entr(q, p).sum(1)
    crooks = np.log(2) - (np.log1p(np.exp(-kl)) + np.log1p(np.exp(-back))) / 2
    assert np.all(js <= crooks + 1e-12)
    assert np.all(crooks <= np.minimum((kl + back) / 4, np.log(2)) + 1e-12)


@pytest.mark.parametrize("name", ["full", "diagonal"])
def test_renyi_is_smooth_through_kl(name):
    p, q = PAIRS[name]
    jet = jit(jax.vmap(jax.value_and_grad(lambda a: gaussian.renyi(p, q, a))))
    step = 1e-4
    values, slopes = jet(1 + step * jnp.array([0.0, 1.0, -1.0]))
    np.testing.assert_allclose(values[0], gaussian.kl(p, q), rtol=1e-12)
    np.testing.assert_allclose(slopes[0], (values[1] - values[2]) / (2 * step), rtol=1e-6)
    # To order 0 nothing is left, and Rényi's divergence grows with the order.
    small, half = jet(jnp.array([1e-9, 0.5]))[0]
    np.testing.assert_allclose(small, 0, atol=1e-7)
    assert half < values[0] < values[1]


def test_renyi_diverges_where_the_mixed_covariance_is_indefinite():
    wide, narrow = (Normal(jnp.zeros(2), c * jnp.eye(2)) for c in (4.0, 1.0))
    for p, q in ((wide, narrow), (Normal(jnp.zeros(2), 4 * jnp.ones(2)), Normal(*narrow))):
        assert jnp.isinf(gaussian.renyi(p, q, 2.0))
        assert jnp.isfinite(gaussian.renyi(q, p, 2.0))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_small_divergences_keep_their_digits(dtype):
    """N(0, (1 + s)²) against N(0, 1): KL = ½ ((1 + s)² − 1 − 2 log(1 + s)) ≈ s²."""
    shift = 2.0**-9
    p, q = (Normal(jnp.zeros(2, dtype), c * jnp.eye(2, dtype=dtype)) for c in ((1 + shift) ** 2, 1))
    value = gaussian.kl(p, q)
    assert value.dtype == dtype
    expected = 2 * (shift + shift**2 / 2 - np.log1p(shift))
    np.testing.assert_allclose(value, expected, rtol=4 * jnp.finfo(dtype).eps / shift)
    assert gaussian.kl(p, p) == 0


@pytest.mark.parametrize("name", ["full", "diagonal", "mixed"])
def test_gradients_are_finite_at_equality_and_far_apart(name):
    """Also of the bounds, whose closed form has a root at equality."""
    p, _ = PAIRS[name]
    far = Normal(p.mean + 1e3, 1e4 * p.covariance)
    total = lambda p, q: sum(jax.tree.leaves(everything(p, q, 0.7)))
    gradient = jit(jax.grad(total, argnums=(0, 1)))
    for q in (p, far):
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(p, q)))
    # Where p = q everything has its minimum, 0, and bounds on JS have theirs.
    for leaf in jax.tree.leaves(gradient(p, p)):
        np.testing.assert_allclose(leaf, 0, atol=1e-12)


def test_the_curvature_of_every_divergence_at_equality_is_fishers():
    """∂²/∂m² of D(N(m, C)‖N(0, C)) at 0: C⁻¹ for KL, α C⁻¹ for Rényi, C⁻¹/4 for Hellinger."""
    p, _ = PAIRS["full"]
    shifted = lambda f: jit(jax.hessian(lambda m: f(Normal(p.mean + m, p.covariance), p)))(
        jnp.zeros(3)
    )
    precision = np.linalg.inv(p.covariance)
    np.testing.assert_allclose(shifted(gaussian.kl), precision, rtol=1e-10)
    np.testing.assert_allclose(
        shifted(lambda p, q: gaussian.renyi(p, q, 0.7)), 0.7 * precision, rtol=1e-10
    )
    np.testing.assert_allclose(shifted(gaussian.squared_hellinger), precision / 4, rtol=1e-10)


STANDARD = Normal(jnp.zeros(2), jnp.eye(2))


@pytest.mark.parametrize("covariance", [jnp.array([1.0, 0.0]), jnp.ones((2, 2))])
def test_a_singular_gaussian_is_mutually_singular_with_one_that_is_not(covariance):
    singular = Normal(jnp.zeros(2), covariance)
    for pair in ((singular, STANDARD), (STANDARD, singular)):
        ours = divergences(*pair, 0.5)
        for name in ("kl", "renyi", "bhattacharyya"):
            assert ours[name] == jnp.inf
        assert ours["hellinger"] == 1
        np.testing.assert_allclose(ours["js"], np.log(2), rtol=1e-12)


def test_features_without_variance_are_compared_by_their_means():
    flat = lambda *mean: Normal(jnp.array(mean), jnp.array([2.0, 0.0]))
    other = Normal(jnp.array([1.0, 3.0]), jnp.array([1.0, 0.0]))
    along = [Normal(m[:1], c[:1]) for m, c in (flat(0.0, 3.0), other)]
    np.testing.assert_allclose(gaussian.kl(flat(0.0, 3.0), other), gaussian.kl(*along))
    assert gaussian.kl(flat(0.0, 2.0), other) == jnp.inf
    # Whether two full matrices share their subspace is lost in rounding.
    full_rank_one = Normal(jnp.zeros(2), jnp.ones((2, 2)))
    assert jnp.isnan(gaussian.kl(full_rank_one, full_rank_one))


NAN = jnp.nan


@pytest.mark.parametrize(
    "invalid",
    [
        Normal(jnp.zeros(2), jnp.array([[1.0, 2.0], [2.0, 1.0]])),
        Normal(jnp.zeros(2), jnp.array([[1.0, 0.5], [0.0, 1.0]])),
        Normal(jnp.zeros(2), jnp.array([[1.0, NAN], [NAN, 1.0]])),
        Normal(jnp.zeros(2), jnp.array([[jnp.inf, 0.0], [0.0, 1.0]])),
        Normal(jnp.array([0.0, NAN]), jnp.eye(2)),
        Normal(jnp.array([0.0, jnp.inf]), jnp.eye(2)),
        Normal(jnp.zeros(2), jnp.array([1.0, -1.0])),
        Normal(jnp.zeros(2), jnp.array([1.0, NAN])),
        Normal(jnp.zeros(2), jnp.array([1.0, jnp.inf])),
    ],
)
def test_what_is_no_gaussian_gives_nan(invalid):
    for pair in ((invalid, STANDARD), (STANDARD, invalid), (invalid, invalid)):
        assert jnp.isnan(jnp.stack(jax.tree.leaves(divergences(*pair, 0.5)))).all()


def test_infinite_covariances_warn_of_nothing():
    infinite = Normal(np.zeros(2), np.array([[np.inf, np.inf], [np.inf, 1.0]]))
    assert jnp.isnan(gaussian.kl(infinite, STANDARD))


@pytest.mark.parametrize("alpha", [NAN, -0.5])
def test_orders_out_of_range_give_nan(alpha):
    assert jnp.isnan(divergences(*PAIRS["full"], alpha)["renyi"])
    assert jnp.isnan(divergences(STANDARD, STANDARD, alpha)["renyi"])


def test_integers_are_numbers():
    p = Normal(jnp.array([1, 2]), jnp.array([2, 3]))
    q = Normal(jnp.array([0, 0]), jnp.array([1, 1]))
    floats = [Normal(*(leaf.astype(float) for leaf in x)) for x in (p, q)]
    np.testing.assert_allclose(gaussian.bhattacharyya(p, q), gaussian.bhattacharyya(*floats))
    np.testing.assert_allclose(gaussian.renyi(p, q, 2), gaussian.renyi(*floats, 2.0))


@pytest.mark.parametrize(
    ("epsilon", "largest", "smallest"),
    [
        (0.001, 0.001044, 0.000959),
        (0.01, 0.011479, 0.008789),
        (0.05, 0.069022, 0.037878),
        (0.1, 0.160326, 0.068252),
        (0.5, 1.731995, 0.232019),
        (1.0, 7.555653, 0.363603),
        (2.0, 70.708, 0.540503),
    ],
)
def test_reversed_kl_in_tables_and_by_scipys_lambert_w(epsilon, largest, smallest):
    z = -np.exp(-1 - 2 * epsilon)
    for ours, branch, rounded in (
        (gaussian.reverse_kl_supremum(epsilon), 0, largest),
        (gaussian.reverse_kl_infimum(epsilon), -1, smallest),
    ):
        w = -scipy.special.lambertw(z, branch).real
        np.testing.assert_allclose(ours, (1 / w - 1 + np.log(w)) / 2, rtol=1e-9)
        np.testing.assert_allclose(ours, rounded, rtol=6e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_reversed_kl_near_zero_has_the_constant_four_thirds(dtype):
    """sup = ε + (4/3) ε^{3/2} + (4/3) ε² + …: full relative precision in float32 at ε = 10⁻⁸."""
    epsilon = jnp.asarray([1e-12, 1e-8, 1e-6], dtype)
    exact = np.asarray(epsilon, np.float64)
    for function, sign in ((gaussian.reverse_kl_supremum, 1), (gaussian.reverse_kl_infimum, -1)):
        jet = jit(jax.vmap(jax.value_and_grad(function)))
        value, slope = jet(jnp.append(epsilon, 0))
        np.testing.assert_array_equal((value[-1], slope[-1]), [0, 1])
        value, slope = value[:-1], slope[:-1]
        assert value.dtype == dtype
        series = exact + sign * 4 / 3 * exact**1.5 + 4 / 3 * exact**2
        np.testing.assert_allclose(value, series, rtol=4 * jnp.finfo(dtype).eps + 2e-9)
        np.testing.assert_allclose(slope, 1 + 2 * sign * np.sqrt(exact), rtol=1e-5)


def test_reversed_kl_is_attained_and_never_exceeded():
    """By the variance w of one coordinate; random Gaussians of three stay within."""
    epsilon = 0.3
    for function, sign in ((gaussian.reverse_kl_supremum, 1), (gaussian.reverse_kl_infimum, -1)):
        # KL(N₂‖N₁) = ½ (w − 1 − log w) = ε for N₂ of variance w.
        root = scipy.optimize.brentq(
            lambda w: (w - 1 - np.log(w)) / 2 - epsilon, *((1e-6, 1) if sign > 0 else (1, 50))
        )
        attained = gaussian.kl(
            Normal(jnp.zeros(1), jnp.ones(1)), Normal(jnp.zeros(1), jnp.array([root]))
        )
        np.testing.assert_allclose(attained, function(epsilon), rtol=1e-9)
    rng = np.random.default_rng(3)
    scale = rng.uniform(0, 1, (5000, 1))
    q = Normal(scale * rng.normal(size=(5000, 3)), np.exp(2 * scale * rng.normal(size=(5000, 3))))
    p = Normal(np.zeros(3), np.ones(3))
    both = jit(jax.vmap(lambda q: (gaussian.kl(p, q), gaussian.kl(q, p))))
    forward, back = both(Normal(*map(jnp.asarray, q)))
    assert jnp.all(forward <= gaussian.reverse_kl_supremum(back) * (1 + 1e-9))
    assert jnp.all(forward >= gaussian.reverse_kl_infimum(back) * (1 - 1e-9))


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(0.01, 0.01), (0.1, 0.1), (0.5, 0.5), (0.02, 0.4)])
def test_the_triangle_bound_holds_at_the_maximum(first, second):
    """Maximised in two dimensions over N₁ and N₃, their divergences from N₂ = N(0, I) used up."""
    standard = Normal(jnp.zeros(2), jnp.eye(2))

    def chain(theta):
        means, roots = theta[:4].reshape(2, 2), theta[4:].reshape(2, 2, 2)
        lower = jax.vmap(lambda r: jnp.tril(r, -1) + jnp.diag(jnp.exp(jnp.diag(r))))(roots)
        n1, n3 = (Normal(m, c @ c.T) for m, c in zip(means, lower, strict=True))
        slack = jnp.stack([first - gaussian.kl(n1, standard), second - gaussian.kl(standard, n3)])
        return -gaussian.kl(n1, n3), slack

    objective = jit(jax.value_and_grad(lambda t: chain(t)[0]))
    slack, slack_slope = (
        jit(lambda t: chain(t)[1]),
        jit(jax.jacobian(lambda t: chain(t)[1])),
    )
    rng, best = np.random.default_rng(0), 0.0
    scale = np.sqrt((first + second) / 24) * np.array([1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 1])
    for _ in range(6):
        result = scipy.optimize.minimize(
            lambda t: tuple(map(np.asarray, objective(t))),
            scale * rng.normal(size=12),
            jac=True,
            method="SLSQP",
            constraints={
                "type": "ineq",
                "fun": lambda t: np.asarray(slack(t)),
                "jac": lambda t: np.asarray(slack_slope(t)),
            },
            options={"maxiter": 200, "ftol": 1e-10},
        )
        if np.all(slack(result.x) > -1e-7):
            best = max(best, -result.fun)
    bound = gaussian.kl_triangle_bound(first, second)
    # Two shifts along one line already make ε₁ + ε₂ + 2√(ε₁ε₂).
    assert first + second + 2 * np.sqrt(first * second) < best + 1e-5
    assert best < bound


def test_the_triangle_bound_is_its_formula():
    for first, second in ((0.01, 0.01), (0.1, 0.1), (0.5, 0.5)):
        w = lambda e, k: -scipy.special.lambertw(-np.exp(-1 - 2 * e), k).real
        a, b = w(first, -1), w(second, -1)
        root = np.sqrt(2 * first) + np.sqrt(2 * second / w(second, 0))
        formula = first + second + (a * b - a - b + 1 + b * root**2) / 2
        np.testing.assert_allclose(gaussian.kl_triangle_bound(first, second), formula, rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian.kl(Normal(jnp.zeros(2), jnp.ones(3)), normal(0, 2)), "p must be a mean"),
        (
            lambda: gaussian.kl(normal(0, 2), Normal(jnp.zeros(()), jnp.ones(()))),
            "q must be a mean",
        ),
        (lambda: gaussian.kl(normal(0, 2), normal(0, 3)), "same dimension; got 2 and 3"),
        (lambda: gaussian.renyi(normal(0), normal(1), -0.5), "alpha must not be negative"),
        (lambda: gaussian.reverse_kl_supremum(-0.1), "epsilon must not be negative; got -0.1"),
        (lambda: gaussian.reverse_kl_infimum(-0.1), "minimum must not be negative; got -0.1"),
        (lambda: gaussian.kl_triangle_bound(0.1, -0.1), "second must not be negative; got -0.1"),
        (
            lambda: gaussian.kl(Normal(np.zeros(2), np.array([[1, 0.5], [0, 1]])), normal(0, 2)),
            "the covariance of p must be symmetric; got entries that differ by 0.5",
        ),
        (lambda: gaussian.plug_in_kl(jnp.ones((3, 3)), jnp.ones((9, 3))), "x must have at least 4"),
        (lambda: gaussian.plug_in_kl(jnp.ones((9, 3)), jnp.ones((5, 3))), "y must have at least 6"),
        (
            lambda: gaussian.plug_in_kl(jnp.ones((9, 3)), jnp.ones((9, 2))),
            "same number of features",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("change", [1e-4, 1e-3, 0.05, 0.9])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9, 2.0])
def test_renyi_of_full_covariances_that_are_near_keeps_its_digits(change, alpha):
    """Against ½ Σ log(1 + cx)/c − log(1 + x) of the eigenvalues x, in double precision."""
    root = np.random.default_rng(0).normal(size=(4, 4))
    of_q = np.float32(root @ root.T + np.eye(4))
    of_p = np.float32(of_q + np.float32(change) * np.diag([1.0, 0.5, 0.2, 0.0]))
    whiten = np.linalg.inv(np.linalg.cholesky(of_q.astype(float)))
    x = np.linalg.eigvalsh(whiten @ (of_p.astype(float) - of_q) @ whiten.T)
    c = 1 - alpha
    expected = np.sum(np.log1p(c * x) / c - np.log1p(x)) / 2
    p, q = (Normal(jnp.zeros(4), jnp.asarray(covariance)) for covariance in (of_p, of_q))
    # What rounding of the covariances' entries can move: a share of their difference.
    tolerance = 1e-5 + 4 * np.finfo(np.float32).eps / np.abs(x).max()
    np.testing.assert_allclose(gaussian.renyi(p, q, alpha), expected, rtol=tolerance)
    np.testing.assert_allclose(
        gaussian.bhattacharyya(p, q), gaussian.renyi(p, q, 0.5) / 2, rtol=1e-6
    )


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("scale", [1e-50, 1e-40, 1e45])
def test_numpy_variances_beyond_single_precision(full, scale):
    """½ (¼ − 1 + log 4 + z²/4), whatever the unit."""
    variance = np.array([[1.0]]) if full else np.array([1.0])
    p = Normal(np.zeros(1), scale * variance)
    q = Normal(np.sqrt(scale) * np.ones(1), 4 * scale * variance)
    np.testing.assert_allclose(gaussian.kl(p, q), (0.25 - 1 + np.log(4) + 0.25) / 2, rtol=1e-5)
