"""Divergences from log-partition functions against quadrature, sums and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from divjax.fdiv import exponential_family as ef

# A family, two parameter settings, and SciPy's distribution of the same name (None: no density).
CASES = {
    "bernoulli": (ef.BERNOULLI, (0.2,), (0.7,), scipy.stats.bernoulli),
    "poisson": (ef.POISSON, (2.0,), (3.5,), scipy.stats.poisson),
    "exponential": (ef.EXPONENTIAL, (2.0,), (0.5,), lambda rate: scipy.stats.expon(scale=1 / rate)),
    "gamma": (ef.GAMMA, (2.5, 1.0), (4.0, 2.0), lambda a, b: scipy.stats.gamma(a, scale=1 / b)),
    "beta": (ef.BETA, (2.0, 3.0), (4.0, 1.5), scipy.stats.beta),
    "normal": (ef.NORMAL, (0.5, 1.0), (-1.0, 2.0), scipy.stats.norm),
}
SOME_CASES = [
    pytest.param(name, marks=[pytest.mark.exhaustive] * (name == "beta")) for name in CASES
]
ORDER = 0.7


def integral(name, function):
    """∫ function(log p, log q) over the support, by SciPy."""
    _, p, q, distribution = CASES[name]
    p, q = distribution(*p), distribution(*q)
    if hasattr(p, "logpmf"):
        x = np.arange(2 if name == "bernoulli" else 120)
        return function(p.logpmf(x), q.logpmf(x)).sum()
    low, high = p.support()
    return scipy.integrate.quad(
        lambda x: function(p.logpdf(x), q.logpdf(x)), low, high, epsabs=1e-12, limit=200
    )[0]


def evaluate(family):
    return jax.jit(
        lambda p, q, order: {
            "kl": ef.kl(family, family.natural(*p), family.natural(*q)),
            "jeffreys": ef.jeffreys(family, family.natural(*p), family.natural(*q)),
            "bhattacharyya": ef.bhattacharyya(family, family.natural(*p), family.natural(*q)),
            "renyi": ef.renyi(family, family.natural(*p), family.natural(*q), order),
        }
    )


@pytest.mark.parametrize("name", SOME_CASES)
def test_named_families_by_quadrature(name):
    family, p, q, _ = CASES[name]
    kl = integral(name, lambda p, q: np.exp(p) * (p - q))
    reverse = integral(name, lambda p, q: np.exp(q) * (q - p))
    affinity = integral(name, lambda p, q: np.exp((p + q) / 2))
    power = integral(name, lambda p, q: np.exp(ORDER * p + (1 - ORDER) * q))
    expected = {
        "kl": kl,
        "jeffreys": kl + reverse,
        "bhattacharyya": -np.log(affinity),
        "renyi": np.log(power) / (ORDER - 1),
    }
    single = divergences(name)(*(family.natural(*map(jnp.float32, v)) for v in (p, q)), ORDER)
    for key, value in single.items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected[key], 2e-5, 2e-6, err_msg=key)
    with jax.enable_x64(True):
        values = evaluate(family)
        for key, value in values(p, q, ORDER).items():
            np.testing.assert_allclose(value, expected[key], rtol=1e-8, err_msg=key)
        # At order one Rényi's divergence is KL, and near it close to it.
        np.testing.assert_allclose(values(p, q, 1.0)["renyi"], kl, rtol=1e-8)
        np.testing.assert_allclose(values(p, q, 1 + 1e-6)["renyi"], kl, rtol=1e-5)


# A and its gradient by SciPy.
EXACT = {
    "poisson": lambda e: (np.exp(e[0]), [np.exp(e[0])]),
    "gamma": lambda e: (
        scipy.special.gammaln(e[0]) - e[0] * np.log(-e[1]),
        [scipy.special.digamma(e[0]) - np.log(-e[1]), -e[0] / e[1]],
    ),
    "beta": lambda e: (
        scipy.special.gammaln(e).sum() - scipy.special.gammaln(e.sum()),
        scipy.special.digamma(e) - scipy.special.digamma(e.sum()),
    ),
    "normal": lambda e: (
        -(e[0] ** 2) / e[1] / 4 - np.log(-2 * e[1]) / 2,
        [-e[0] / e[1] / 2, (e[0] / e[1]) ** 2 / 4 - 0.5 / e[1]],
    ),
}
SOME_EXACT = [
    pytest.param(name, marks=[pytest.mark.exhaustive] * (name == "beta")) for name in EXACT
]
LARGE = {
    "normal": [((1e4, 1.0), (1e4 + 1, 1.0)), ((100.0, 0.01), (100.01, 0.01)), ((9.0, 1), (9.5, 2))],
    "gamma": [((1e6, 1.0), (1.001e6, 1.0)), ((2.0, 1.0), (2.0, 1.0001)), ((0.01, 1), (200, 3))],
    "beta": [((1e6, 1e6), (1.001e6, 1e6)), ((0.01, 0.01), (300.0, 2.0))],
    "poisson": [((1e6,), (1.001e6,)), ((1e-6,), (1e6,)), ((3.0,), (3.0,))],
}
LARGE = [(name, *pair) for name, pairs in LARGE.items() for pair in pairs]


def exact(name, p, q, order):
    """By the textbook's differences in double precision."""
    (a_p, mean_p), (a_q, mean_q) = EXACT[name](p), EXACT[name](q)
    gap = lambda share: (
        share * a_p + (1 - share) * a_q - EXACT[name](share * p + (1 - share) * q)[0]
    )
    return {
        "kl": a_q - a_p - (q - p) @ np.array(mean_p),
        "jeffreys": (q - p) @ (np.array(mean_q) - np.array(mean_p)),
        "bhattacharyya": gap(0.5),
        "renyi": gap(order) / (1 - order),
    }


@functools.cache
def batch_of_divergences(name):
    """Compiled once for all tests: special functions take XLA seconds."""
    family = getattr(ef, name.upper())

    @jax.jit
    @jax.vmap
    def values(p, q, order):
        return {
            "kl": ef.kl(family, p, q),
            "jeffreys": ef.jeffreys(family, p, q),
            "bhattacharyya": ef.bhattacharyya(family, p, q),
            "renyi": ef.renyi(family, p, q, order),
        }

    return values


def divergences(name):
    """Of one pair, as the first of a hundred."""

    def of(p, q, order):
        dtype = jnp.result_type(p, q)
        hundred = lambda number: jnp.broadcast_to(
            jnp.asarray(number, dtype), (100, *jnp.shape(number))
        )
        found = batch_of_divergences(name)(hundred(p), hundred(q), hundred(order))
        return {key: value[0] for key, value in found.items()}

    return of


@pytest.mark.parametrize(("name", "p", "q"), LARGE)
def test_single_precision_of_large_and_close_parameters(name, p, q):
    p, q = (getattr(ef, name.upper()).natural(*map(jnp.float32, eta)) for eta in (p, q))
    values = divergences(name)(p, q, 0.9)
    for key, expected in exact(name, *(np.asarray(eta, float) for eta in (p, q)), 0.9).items():
        np.testing.assert_allclose(values[key], expected, rtol=2e-4, atol=1e-9, err_msg=key)
    gradients = jax.jit(jax.grad(lambda *eta: ef.kl(getattr(ef, name.upper()), *eta), (0, 1)))
    assert jnp.isfinite(jnp.stack(gradients(p, q))).all()


@pytest.mark.parametrize("name", SOME_EXACT)
def test_what_rounding_hides_is_nan(name):
    """Over all scales, a number in single precision has two digits or is NaN; most are numbers."""
    rng = np.random.default_rng(0)
    scales = 10 ** rng.uniform(-3, 7, (100, 2, 2))
    if name == "normal":
        scales[..., 1] **= 0.3
    scales[::2, 1] = scales[::2, 0] * 10 ** rng.normal(0, 0.03, (50, 2))
    number = 1 if name == "poisson" else 2
    family = getattr(ef, name.upper())
    natural = jax.vmap(jax.vmap(lambda p: family.natural(*p[:number])))
    etas = natural(jnp.asarray(scales, jnp.float32))
    values = batch_of_divergences(name)(etas[:, 0], etas[:, 1], jnp.full(100, 0.7))
    with np.errstate(over="ignore"):
        truths = [exact(name, *np.asarray(pair, float), 0.7) for pair in etas]
    for key, value in values.items():
        truth = np.array([each[key] for each in truths])
        finite = np.isfinite(value)
        assert finite.mean() > (0.3 if name == "normal" else 0.8)
        np.testing.assert_allclose(
            np.asarray(value)[finite], truth[finite], rtol=0.02, atol=1e-5, err_msg=key
        )


def test_parameters_out_of_all_proportion():
    gamma = ef.GAMMA.natural(2.0, 1.5), ef.GAMMA.natural(4.0, 1.0)
    for scale in (1e30, 1e20, 1e-30):
        for value in divergences("gamma")(scale * gamma[0], gamma[1], 0.5).values():
            assert jnp.isnan(value) | (value > 0)


def test_a_normal_far_from_zero_of_another_scale():
    """The natural parameters hold no difference of the scales in single precision."""
    p, q = ef.NORMAL.natural(1e4, 1.0), ef.NORMAL.natural(1e4, 1.1)
    for value in divergences("normal")(p, q, 0.7).values():
        assert jnp.isnan(value)
    with jax.enable_x64(True):
        p, q = ef.NORMAL.natural(1e4, 1.0), ef.NORMAL.natural(1e4, 1.1)
        expected = np.log(1.1) + 0.5 / 1.21 - 0.5
        np.testing.assert_allclose(ef.kl(ef.NORMAL, p, q), expected, rtol=1e-5)


def test_derivatives_of_close_parameters():
    """∇²KL at p = q is the Fisher information; in single precision too."""
    eta = ef.GAMMA.natural(jnp.float32(2.0), jnp.float32(1.5))
    information = [[scipy.special.polygamma(1, 2), 1 / 1.5], [1 / 1.5, 2 / 1.5**2]]
    gradient = jax.jit(jax.grad(lambda q: ef.kl(ef.GAMMA, eta, q)))
    for step in np.eye(2, dtype=np.float32) * 1e-5:
        close = eta + step
        expected = np.array(information) @ np.asarray(close - eta)
        np.testing.assert_allclose(gradient(close), expected, rtol=1e-3)


def test_dirichlet_closed_form():
    rng = np.random.default_rng(0)
    p, q = rng.uniform(0.3, 4, (2, 5))
    g, psi = scipy.special.gammaln, scipy.special.digamma
    expected = g(p.sum()) - g(p).sum() - g(q.sum()) + g(q).sum() + (p - q) @ (psi(p) - psi(p.sum()))
    with jax.enable_x64(True):
        family = ef.DIRICHLET
        value = ef.kl(family, family.natural(p), family.natural(q))
        np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_a_log_partition_of_ones_own():
    """Multivariate Gaussians of identity covariance, A = ½‖η‖²: KL = ½‖η_p − η_q‖²."""
    eta_p, eta_q = jax.random.normal(jax.random.key(0), (2, 4))
    value = ef.kl(lambda eta: 0.5 * jnp.sum(eta**2), eta_p, eta_q)
    np.testing.assert_allclose(value, 0.5 * jnp.sum((eta_p - eta_q) ** 2), rtol=1e-5)


def test_derivatives_are_those_of_the_closed_form():
    """Poisson: KL = λ log(λ/μ) − λ + μ, so ∂/∂λ = log(λ/μ), ∂²/∂μ² = λ/μ²; a sweep is a vmap."""
    kl = lambda rate_p, rate_q: ef.kl(
        ef.POISSON, ef.POISSON.natural(rate_p), ef.POISSON.natural(rate_q)
    )
    with jax.enable_x64(True):
        np.testing.assert_allclose(jax.jit(jax.grad(kl))(2.0, 3.0), np.log(2 / 3), rtol=1e-12)
        second = jax.jit(jax.grad(jax.grad(kl, argnums=1), argnums=1))(2.0, 3.0)
        np.testing.assert_allclose(second, 2 / 9, rtol=1e-12)
        rates = np.array([0.5, 1.0, 4.0])
        swept = jax.jit(jax.vmap(kl, in_axes=(None, 0)))(2.0, rates)
        np.testing.assert_allclose(swept, 2 * np.log(2 / rates) - 2 + rates, rtol=1e-12)


@pytest.mark.parametrize("name", ["poisson", "gamma", "normal"])
def test_renyi_is_smooth_through_order_one(name):
    """Its derivative there is half the variance of log p/q under p: ½ δᵀ ∇²A(η_p) δ."""
    family, *parameters, _ = CASES[name]
    with jax.enable_x64(True):
        p, q = (family.natural(*map(jnp.float64, parameter)) for parameter in parameters)
        jet = jax.jit(jax.vmap(jax.value_and_grad(lambda a: ef.renyi(family, p, q, a))))
        values, slope = jet(jnp.array([1.0, 0.951, 0.949, 1.049, 1.051]))
        kl = integral(name, lambda p, q: np.exp(p) * (p - q))
        square = integral(name, lambda p, q: np.exp(p) * (p - q) ** 2)
        np.testing.assert_allclose(values[0], kl, rtol=1e-8)
        np.testing.assert_allclose(slope[0], (square - kl**2) / 2, rtol=1e-7)
        # Both forms agree where one takes over from the other.
        for a, b in ((1, 2), (3, 4)):
            step = 0.002 if a == 3 else -0.002
            middle = (slope[a] + slope[b]) / 2
            np.testing.assert_allclose(values[b] - values[a], step * middle, rtol=1e-5)
        # So near to 1 the quotient's digits are lost in float32.
    p, q = (family.natural(*parameter) for parameter in parameters)
    near = jax.jit(lambda a: ef.renyi(family, p, q, a))(jnp.float32(1 + 1e-5))
    np.testing.assert_allclose(near, kl, rtol=1e-4)


def test_integer_parameters_are_numbers():
    """Of Poisson distributions by their natural parameters: ½ (e^{½·2} − e^{½})² …"""
    p, q = jnp.array([2]), jnp.array([0])
    np.testing.assert_allclose(ef.bhattacharyya(ef.POISSON, p, q), (np.e - 1) ** 2 / 2, rtol=1e-6)
    np.testing.assert_allclose(ef.renyi(ef.POISSON, p, q, 0.5), (np.e - 1) ** 2, rtol=1e-6)
    np.testing.assert_allclose(ef.kl(ef.POISSON, p, q), 1 + np.exp(2), rtol=1e-6)
    np.testing.assert_allclose(ef.jeffreys(ef.POISSON, p, q), 2 * (np.exp(2) - 1), rtol=1e-6)


def test_parameters_outside_of_the_family_give_nan():
    good, bad = ef.GAMMA.natural(2.0, 1.0), ef.GAMMA.natural(2.0, -1.0)
    nan = good.at[0].set(jnp.nan)

    def every(p, q):
        found = divergences("gamma")(p, q, 0.5)
        return jnp.stack([found[key] for key in ("jeffreys", "bhattacharyya", "renyi", "kl")])

    for p in (bad, nan):
        assert jnp.isnan(every(p, good)).all()
        assert jnp.isnan(every(good, p)[:3]).all()
    assert ef.kl(ef.GAMMA, good, bad) == jnp.inf
    for order in (jnp.nan, -0.5):
        assert jnp.isnan(ef.renyi(ef.GAMMA, good, good, jnp.float32(order)))


def test_renyi_is_infinite_where_its_mixture_leaves_the_family():
    """N(0, 1) against N(0, ¼): the integral of p^α q^(1−α) diverges once α + 4(1 − α) ≤ 0."""
    p, q = ef.NORMAL.natural(0.0, 1.0), ef.NORMAL.natural(0.0, 0.5)

    @jax.jit
    def value(order):
        return jax.value_and_grad(lambda p: ef.renyi(ef.NORMAL, p, q, order))(p)

    for order, infinite in ((1.3, False), (1.4, True), (5.0, True)):
        divergence, gradient = value(order)
        assert jnp.isinf(divergence) == infinite
        assert jnp.isfinite(gradient).all()
    # ∫ p^α q^(1−α) = 2^(1−α) (α + 4(1 − α))^(−½)
    expected = (-0.3 * np.log(2) - 0.5 * np.log(1.3 - 1.2)) / 0.3
    np.testing.assert_allclose(value(1.3)[0], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ef.kl(ef.POISSON, jnp.ones(1), jnp.ones(2)), r"same length; got shapes \(1,\)"),
        (lambda: ef.kl(ef.POISSON, jnp.ones(()), jnp.ones(())), "must be vectors"),
        (lambda: ef.kl(lambda eta: eta, jnp.ones(2), jnp.ones(2)), "log_partition must return"),
        (lambda: ef.renyi(ef.POISSON, jnp.ones(1), jnp.ones(1), -1.0), "alpha must not be neg"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def of_scales(name, p, q, order):
    """KL, Rényi's, Bhattacharyya's and Jeffreys' by closed forms in double precision."""
    if name == "exponential":
        p, q = (1.0, *p), (1.0, *q)
    log_gamma, (k, b), (l, c) = scipy.special.gammaln, p, q
    kl = lambda k, b, l, c: (
        (k - l) * scipy.special.digamma(k)
        + (log_gamma(l) - log_gamma(k))
        + l * np.log(b / c)
        + k * (c / b - 1)
    )

    def gap(share):
        shape, rate = share * k + (1 - share) * l, share * b + (1 - share) * c
        logs = share * k * np.log(b / rate) + (1 - share) * l * np.log(c / rate)
        ends = share * log_gamma(k) + (1 - share) * log_gamma(l)
        return ends - log_gamma(shape) - logs

    return {
        "kl": kl(k, b, l, c),
        "jeffreys": kl(k, b, l, c) + kl(l, c, k, b),
        "bhattacharyya": gap(0.5),
        "renyi": gap(order) / (1 - order),
    }


def log_gamma_partition(eta):
    return jax.scipy.special.gammaln(eta[0]) - eta[0] * jnp.log(-eta[1])


@pytest.mark.parametrize("unit", [1e-20, 1e10, 1e19, 1e20, 1e30])
@pytest.mark.parametrize(
    ("name", "p", "q"),
    [("exponential", (1.0,), (1.1,)), ("gamma", (1e3, 1.0), (1010.0, 1.1))],
)
def test_rates_whose_squares_overflow(name, p, q, unit):
    """JAX's derivative of a quotient has the divisor to the power −2."""
    family, own = {
        "exponential": (ef.EXPONENTIAL, lambda eta: -jnp.log(-eta[0])),
        "gamma": (ef.GAMMA, log_gamma_partition),
    }[name]
    p, q = (*p[:-1], p[-1] * unit), (*q[:-1], q[-1] * unit)
    etas = [family.natural(*map(jnp.float32, eta)) for eta in (p, q)]
    expected = of_scales(name, p, q, 0.7)
    for log_partition, known in ((family, True), (own, False)):
        values = {key: getattr(ef, key)(log_partition, *etas) for key in list(expected)[:3]}
        values["renyi"] = ef.renyi(log_partition, *etas, 0.7)
        for key, value in values.items():
            if known or not jnp.isnan(value):
                np.testing.assert_allclose(value, expected[key], rtol=0.01, err_msg=key)


def test_a_function_that_is_not_convex_has_no_divergence():
    concave = lambda eta: -jnp.sum(eta**2)
    for p, q in (([1.0], [2.0]), ([1.0, 2.0], [0.0, 3.0])):
        p, q = jnp.array(p), jnp.array(q)
        for divergence in (ef.kl, ef.jeffreys, ef.bhattacharyya):
            assert jnp.isnan(divergence(concave, p, q))
        for order in (0.5, 1.0, 2.0):
            assert jnp.isnan(ef.renyi(concave, p, q, order))


@pytest.mark.parametrize("scale", [-1.0, 0.0, np.nan, 1e-30, 1e30])
def test_a_normal_of_no_scale_is_nan(scale):
    """A square forgets the sign; one out of range is of another scale."""
    assert jnp.isnan(ef.NORMAL.natural(0.0, scale)).all()
    p, q = ef.NORMAL.natural(0.0, scale), ef.NORMAL.natural(0.0, 1.0)
    for pair in ((p, q), (q, p)):
        assert jnp.isnan(ef.kl(ef.NORMAL, *pair))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("order", [0.955, 0.99, 0.999, 1 - 1e-5, 1.00005])
@pytest.mark.parametrize("rate", [3.0, 100.0, 1e4, 1e8])
def test_renyi_near_order_one_between_unlike_scales(rate, order, wide):
    """log(αλ_p + (1 − α)λ_q) − α log λ_p − (1 − α) log λ_q, over 1 − α, in float64."""
    mixed = order + (1 - order) * rate
    expected = (np.log(mixed) - (1 - order) * np.log(rate)) / (1 - order) if mixed > 0 else np.inf
    with jax.enable_x64(wide):
        p, q = (ef.EXPONENTIAL.natural(v) for v in (1.0, rate))
        found = ef.renyi(ef.EXPONENTIAL, p, q, order)
    np.testing.assert_allclose(found, expected, rtol=1e-9 if wide else 1e-2)


def test_the_derivative_of_renyi_between_unlike_scales():
    formula = lambda a: (np.log(a + (1 - a) * 1e3) - (1 - a) * np.log(1e3)) / (1 - a)
    expected = (formula(0.97 + 1e-6) - formula(0.97 - 1e-6)) / 2e-6
    with jax.enable_x64(True):
        p, q = (ef.EXPONENTIAL.natural(v) for v in (1.0, 1e3))
        slope = jax.grad(lambda a: ef.renyi(ef.EXPONENTIAL, p, q, a))(0.97)
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


@pytest.mark.parametrize("order", [0.955, 0.99, 1.00005])
def test_renyi_near_order_one_of_a_narrow_normal(order):
    """log(σ_q/σ_p) + log(σ_q²/σ*²)/(2(α − 1)) with σ*² = (1 − α)σ_p² + ασ_q²."""
    variance = (1 - order) + order * 1e-4
    expected = np.log(1e-2) + np.log(1e-4 / variance) / (2 * (order - 1))
    with jax.enable_x64(True):
        p, q = ef.NORMAL.natural(0.0, 1.0), ef.NORMAL.natural(0.0, 1e-2)
        found = ef.renyi(ef.NORMAL, p, q, order)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
