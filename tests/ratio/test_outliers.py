"""A few bad rows, extreme units and values that are not finite, in every learned estimator."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from divjax import ratio
from divjax.ratio import heads as h

KEY = jax.random.key(2)
MEMBERS = {"num_folds": 2}
RATIOS = {
    "linear": ratio.ClassifierRatio(h.Linear(0.5), **MEMBERS),
    "quadratic": ratio.ClassifierRatio(h.Quadratic(0.5), **MEMBERS),
    "gaussian": ratio.ClassifierRatio(h.GaussianDiscriminant(0.0), **MEMBERS),
    "fourier": ratio.ClassifierRatio(h.RandomFourier(50, ridge=0.5), **MEMBERS),
    "telescoping": ratio.TelescopingRatio(h.Telescoping(2, network=None), **MEMBERS),
    "least squares": ratio.LeastSquaresRatio(h.LeastSquares((0.7, 1.4), (0.1,)), **MEMBERS),
    "kliep": ratio.KLIEPRatio(h.KLIEP((0.7, 1.4)), **MEMBERS),
    "mlp": ratio.ClassifierRatio("mlp", **MEMBERS),
    "auto": ratio.ClassifierRatio(**MEMBERS),
}
SLOW = {"mlp", "auto", "telescoping", "quadratic", "gaussian", "fourier", "least squares"}
names = [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in SLOW)) for name in RATIOS]


@jax.jit
def both(fit):
    return fit.js(base=2), fit.kl()


def samples(n=1000, seed=0):
    """JS .161 bits, KL ½."""
    p, q = np.random.default_rng(seed).normal(size=(2, n, 2))
    p[:, 0] += 1
    return jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32)


@pytest.mark.parametrize("name", names)
def test_a_typing_error_moves_an_estimate_by_its_share(name):
    """One row of 1000 moves JS by .001 bits, if the bad row looks like one of p."""
    p, q = samples()
    clean_js, clean_kl = both(RATIOS[name].fit(KEY, p, q))
    assert abs(clean_js.value - 0.161) < 3 * clean_js.std_error + 0.02
    for bad in (999999.0, -999999.0, -3e38):
        js, kl = both(RATIOS[name].fit(KEY, p.at[0, 0].set(bad), q))
        # At five deviations a linear log ratio is wrong by 5½ nats, a quadratic one by some more;
        # that of vanishing kernels is the logarithm of their floor, −13.8.
        wrong = {"linear": 5.5, "least squares": 13.8, "kliep": 13.8}.get(name, 9.0)
        assert abs(js.value - clean_js.value) < 0.002 + wrong / 2000 / np.log(2)
        assert abs(kl.value - clean_kl.value) < 0.03 + wrong / 1000
        assert js.diagnostics.finite


@pytest.mark.parametrize("name", names)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_flagged(name, bad):
    p, q = samples()
    fit = RATIOS[name].fit(KEY, p, q.at[7, 1].set(bad))
    for estimate in both(fit):
        assert jnp.isnan(estimate.value)
        assert not estimate.diagnostics.finite
    assert jnp.isnan(fit.two_sample_test(KEY).p_value)
    assert jnp.isnan(fit.log_ratio(p[:3])).all()
    assert jnp.isnan(fit.certified_js())


@pytest.mark.parametrize(
    "name", ["linear", pytest.param("fourier", marks=pytest.mark.exhaustive), "kliep"]
)
@pytest.mark.parametrize("units", [(1e-8, 1e8), (1.0, 1e8)])
def test_units_of_features_do_not_matter(name, units):
    p, q = samples()
    plain, scaled = (
        both(RATIOS[name].fit(KEY, p * u, q * u)) for u in (jnp.ones(2), jnp.asarray(units))
    )
    for one, two in zip(plain, scaled, strict=True):
        np.testing.assert_allclose(one.value, two.value, atol=2e-3)


def test_new_rows_that_are_not_finite_have_no_log_ratio():
    p, q = samples()
    fits = [RATIOS[name].fit(KEY, p, q) for name in ("linear", "kliep")]
    x = jnp.array([[0.0, 0.0], [jnp.inf, 0.0], [0.0, jnp.nan], [1e30, 0.0]])
    for fit in fits:
        assert jnp.isfinite(fit.log_ratio(x)).tolist() == [True, False, False, True]


def test_a_linear_log_ratio_extrapolates():
    """Between x = 10 and 40 it rises like between 0 and 1, though all rows are below 6."""
    p, q = samples()
    fit = RATIOS["linear"].fit(KEY, p.at[0, 0].set(999999.0), q)
    u = fit.log_ratio(jnp.array([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0], [40.0, 0.0]]))
    np.testing.assert_allclose(u[3] - u[2], 30 * (u[1] - u[0]), rtol=1e-3)


@pytest.mark.exhaustive
def test_a_linear_log_ratio_of_exponentials_is_not_cut_off():
    """Exp(1) and Exp(½): KL(q‖p) = 1 − log 2 rests on q's tail, where the log ratio is linear."""
    key_p, key_q = jax.random.split(jax.random.key(3))
    p, q = jax.random.exponential(key_p, (20000, 1)), 2 * jax.random.exponential(key_q, (20000, 1))
    estimate = RATIOS["linear"].fit(KEY, p, q).reverse_kl()
    assert abs(estimate.value - (1 - np.log(2))) < 3 * estimate.std_error
    assert estimate.std_error < 0.015


@pytest.mark.exhaustive
def test_cauchy_samples():
    """Shifted by 2 in the first of two features; moments say nothing."""
    p, q = np.random.default_rng(4).standard_cauchy((2, 1000, 2))
    p[:, 0] += 2
    f, g = scipy.stats.cauchy(2).pdf, scipy.stats.cauchy(0).pdf
    kl = lambda x: f(x) * np.log2(2 * f(x) / (f(x) + g(x)))
    js = scipy.integrate.quad(kl, -np.inf, np.inf)[0]  # either half, by symmetry
    fit = RATIOS["fourier"].fit(KEY, jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32))
    estimate = fit.js(base=2)
    assert abs(estimate.value - js) < 3 * estimate.std_error + 0.02


SMALL = {"hidden": (16,), "learning_rate": 1e-2, "num_steps": 200, "num_checks": 4}
mutual = ratio.MutualInformationBound(network="separable", **SMALL).fit
divergence = ratio.DivergenceBound(**SMALL).fit


def correlated(n=2000):
    """I = .511 nats."""
    x, noise = jax.random.normal(jax.random.key(5), (2, n, 1))
    return x, 0.8 * x + 0.6 * noise


@pytest.mark.parametrize("bad", [999999.0, pytest.param(-3e38, marks=pytest.mark.exhaustive)])
def test_mutual_information_of_pairs_with_a_typing_error(bad):
    x, y = correlated()
    for pair in ((x.at[0].set(bad), y), (x, y.at[0].set(bad))):
        estimate = mutual(KEY, *pair).estimate("dv")
        # At a tenth of the default's steps and ten times its rate.
        assert abs(estimate.value - mutual(KEY, x, y).value("dv")) < 2 * estimate.std_error
        assert estimate.std_error < 0.15


def test_mutual_information_is_that_of_monotone_functions():
    """Of e^{2y}, of which the largest of 2000 is a thousand times the median, as of y."""
    x, y = correlated()
    keys = jax.random.split(KEY, 4)
    of_y, of_function = (
        np.array([mutual(key, x, z).value("dv") for key in keys]) for z in (y, jnp.exp(2 * y))
    )
    # At a tenth of the default's steps the tail is learned less well.
    assert abs(np.mean(of_function - of_y)) < 0.15
    assert np.mean(of_function) > 0.3


def test_a_divergence_bound_with_a_typing_error():
    p, q = samples(2000)
    clean, spoiled = (
        divergence(KEY, x, q).estimate("js").value for x in (p, p.at[0, 0].set(-999999.0))
    )
    assert abs(clean - spoiled) < 0.01
    assert clean > 0.09  # of .1114 nats


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bounds_flag_what_is_not_finite(bad):
    """In whatever part of the rows it is: every row of a small sample in turn."""
    x, y = correlated(320)
    rows = jnp.arange(0, 320, 40)
    spoiled = jax.vmap(lambda i: x.at[i, 0].set(bad))(rows)
    for bound in (
        ratio.MutualInformationBound(hidden=(4,), num_steps=2, num_checks=1),
        ratio.DivergenceBound(hidden=(4,), num_steps=2, num_checks=1),
    ):
        estimate = jax.jit(jax.vmap(lambda x, b=bound: b.fit(KEY, x, y).estimate("dv")))(spoiled)
        assert jnp.isnan(estimate.value).all()
        assert not estimate.diagnostics.finite.any()


match = functools.partial(ratio.KernelMeanMatching().fit, KEY)


def test_matched_weights_see_all_features_whatever_their_units():
    """The first feature, in which the samples differ, is a million times the second or alike."""
    p, q = samples(300)
    plain, scaled = (match(p * unit, q * unit) for unit in (jnp.ones(2), jnp.array([1e3, 1e-3])))
    assert np.corrcoef(plain.weights, scaled.weights)[0, 1] > 0.99
    np.testing.assert_allclose(plain.mmd, scaled.mmd, atol=1e-3)
    assert abs(jnp.mean(scaled.weights * q[:, 0]) - jnp.mean(p[:, 0])) < 0.2


def test_matched_weights_with_a_typing_error():
    p, q = samples(300)
    plain = match(p, q)
    for spoiled in (match(p.at[0, 0].set(999999.0), q), match(p, q.at[0, 0].set(-999999.0))):
        mean = jnp.mean(spoiled.weights[1:, None] * q[1:], axis=0)
        np.testing.assert_allclose(
            mean, jnp.mean(plain.weights[1:, None] * q[1:], axis=0), atol=0.03
        )
        assert spoiled.converged
    for bad in (np.nan, np.inf):
        flagged = match(p, q.at[0, 0].set(bad))
        assert not flagged.converged
        assert jnp.isnan(flagged.mmd)
        assert jnp.isnan(flagged.weights).any()
        # A kernel of a given bandwidth vanishes at infinity.
        method = ratio.KernelMeanMatching(1.0, num_steps=5)
        assert not method.fit(KEY, p, q.at[0, 0].set(bad)).converged


@pytest.mark.parametrize("offset", [123456789.0])
def test_bounds_and_weights_of_double_precision_far_from_zero(offset):
    """In float32 nothing would be left of the samples; new points are centred alike."""
    x, y = (np.asarray(rows, np.float64) for rows in correlated())
    plain, moved = mutual(KEY, x, y), mutual(KEY, x + offset, y - offset)
    np.testing.assert_allclose(moved.value("dv"), plain.value("dv"), atol=0.02)
    z = np.array([[0.5, 0.5], [1.0, -1.0]])
    at = moved.critic(z + np.array([offset, -offset]))
    np.testing.assert_allclose(at, plain.critic(z), atol=0.2)
    assert at[0] > at[1] + 1
    p, q = (np.asarray(rows, np.float64) for rows in samples(300))
    weights = match(p + offset, q + offset).weights
    assert np.corrcoef(weights, match(p, q).weights)[0, 1] > 0.99
    p, q = (np.asarray(rows, np.float64) for rows in samples(2000))
    far = divergence(KEY, p + offset, q + offset).value("js")
    np.testing.assert_allclose(far, divergence(KEY, p, q).value("js"), atol=5e-3)


def test_samples_of_two_dtypes_are_one():
    with jax.enable_x64(True):
        x, y = correlated(400)
        x, y = x.astype(jnp.float32), y.astype(jnp.float64)
        small = {"hidden": (4,), "num_steps": 2, "num_checks": 1}
        for bound in (ratio.MutualInformationBound(**small), ratio.DivergenceBound(**small)):
            fit = jax.eval_shape(bound.fit, KEY, x, y)
            assert fit.u_p.dtype == fit.u_q.dtype == jnp.float64
        fit = jax.eval_shape(lambda *args: RATIOS["fourier"].fit(KEY, *args), x, y)
        assert fit.log_ratio_p.dtype == jnp.float64
        assert jax.eval_shape(match, x, y).mmd.dtype == jnp.float64
        # Fourier features of float32 stay so, also where float64 exists.
        narrow = jax.eval_shape(lambda *args: RATIOS["fourier"].fit(KEY, *args), x, x)
        assert narrow.log_ratio_p.dtype == jnp.float32


def test_messages_name_the_argument_and_never_print_data():
    p, q = samples(300)
    bound = ratio.DivergenceBound()
    for call, message in (
        (lambda: ratio.KernelMeanMatching().fit(p, q), "key must be one typed key"),
        (lambda: bound.fit(p, q), r"key must be one typed key.*of shape \(300, 2\)"),
        (lambda: bound.fit(KEY, p), "y is missing"),
        (lambda: ratio.classifier_kl(p, q), "key must be one typed key"),
        (lambda: match(p, [["a", "b"]]), "y must hold real numbers"),
        (lambda: match(p.astype(jnp.float16), q.astype(jnp.float16)), "float32 or float64"),
        (lambda: bound.fit(KEY, p.astype(jnp.bfloat16), q.astype(jnp.bfloat16)), "float32"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            call()
        assert len(str(raised.value)) < 200


def test_fits_print_without_their_arrays():
    p, q = samples(300)
    small = ratio.DivergenceBound(hidden=(4,), num_steps=2, num_checks=1)
    fit = small.fit(KEY, p, q)
    for result in (fit, fit.critic, fit.estimate(), match(p, q)):
        assert 20 < len(repr(result)) < 600
        assert repr(result).count("\n") < 3
