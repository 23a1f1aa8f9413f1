"""Generators against decimal arithmetic, quadrature of divergences' definitions, and duality."""

import itertools
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

from divjax import fdiv
from divjax.core.pytrees import pytree
from tests.fdiv.formulas import (
    DEFINITIONS,
    FORMULAS,
    METHODS,
    conjugate,
    evaluate,
    ratios,
    slopes,
)

LOG_2 = np.log(2)
# Compiling a generator's methods takes seconds: of those that share code some are left for later.
SLOW = (
    "SquaredHellinger",
    "ChiSquared",
    "NeymanChiSquared",
    "CressieRead(0.5)",
    "Mixed(ChiSquared)",
    "Combination",
)
every = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in SLOW)) for name in FORMULAS],
)


@every
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_are_the_formulas_to_few_ulps(name, dtype):
    generator, f, first, weight = FORMULAS[name]
    u = np.array([-80, -31.5, -8, -1.7, -0.9, -0.1, -1e-3, 1e-3, 0.1, 0.9, 1.7, 8, 31.5, 80], dtype)
    with jax.enable_x64(True):
        values = evaluate(ratios(generator, dtype), jnp.asarray(u))
    expected = {
        "f": [],
        "derivative": [],
        "second_derivative": [],
        "curvature": [],
        "dual_integrand_q": [],
    }
    with localcontext() as context:
        context.prec = 150
        for r in (Decimal(float(x)).exp() for x in u):
            expected["f"].append(float(f(r)))
            expected["derivative"].append(float(first(r)))
            expected["curvature"].append(float(weight(r)))
            expected["second_derivative"].append(float(weight(r) / r**2))
            expected["dual_integrand_q"].append(float(f(r) - r * first(r)))
    with np.errstate(over="ignore"):
        for method, exact in expected.items():
            rounded = np.array(exact).astype(dtype)
            assert values[method].dtype == dtype
            np.testing.assert_array_equal(np.isinf(values[method]), np.isinf(rounded), method)
            finite = np.isfinite(rounded)
            # Of a mixture the logarithm log(m/q) is rounded, up to 80/2 ulps of m/q.
            np.testing.assert_allclose(
                np.asarray(values[method])[finite],
                rounded[finite],
                rtol=(150 if name.startswith(("Mixed", "Skew")) else 30) * np.finfo(dtype).eps,
                atol=4 * np.finfo(dtype).tiny,
                err_msg=method,
            )


@every
def test_gradients_are_finite_where_values_are(name):
    with jax.enable_x64(True):
        u = np.concatenate([np.linspace(-80, 80, 33), [-1e-30, 1e-30]]).astype(np.float32)
        generator = ratios(FORMULAS[name][0], jnp.float32)
        values, gradients = evaluate(generator, u), slopes(generator, u)
    for method in METHODS:
        # A slope may overflow where its value nearly does: e^{2u}/2 with slope e^{2u}.
        fits = np.abs(values[method]) < 1e37
        assert np.isfinite(gradients[method][fits]).all(), method


@every
def test_slopes_are_the_generators_own(name):
    """df = r T du, dT = e^{−u} h du, dS = −h du."""
    with jax.enable_x64(True):
        u = jnp.array([-9.0, -2.0, -0.3, 0.2, 1.5, 7.0])
        generator = ratios(FORMULAS[name][0])
        values, gradients = evaluate(generator, u), slopes(generator, u)
        np.testing.assert_allclose(gradients["f"], jnp.exp(u) * values["derivative"], rtol=1e-12)
        np.testing.assert_allclose(
            gradients["derivative"], jnp.exp(-u) * values["curvature"], rtol=1e-12
        )
        np.testing.assert_allclose(gradients["dual_integrand_q"], -values["curvature"], rtol=1e-12)


@every
def test_generators_are_convex_and_vanish_at_one(name):
    with jax.enable_x64(True):
        u = jnp.linspace(-6, 6, 121)
        values = evaluate(ratios(FORMULAS[name][0]), jnp.append(u, 0.0))
        for method in ("f", "derivative", "integrand_p", "integrand_q", "dual_integrand_q"):
            assert values[method][-1] == 0
        secant = jnp.diff(values["f"][:-1]) / jnp.diff(jnp.exp(u))
        slope = values["derivative"][:-1]
        assert jnp.all(slope[:-1] <= secant + 1e-10 * (1 + jnp.abs(secant)))
        assert jnp.all(secant <= slope[1:] + 1e-10 * (1 + jnp.abs(secant)))
        assert jnp.all(values["f"] >= 0)


def pair(kind):
    if kind == "Gaussian":
        p, q = scipy.stats.norm(0, 1), scipy.stats.norm(0.7, 1.2)
        breaks = np.roots([1 / 1.44 - 1, -1.4 / 1.44, 0.49 / 1.44 + 2 * np.log(1.2)])
    else:
        p, q = scipy.stats.laplace(0, 1), scipy.stats.laplace(0.6, 0.8)
        # log p = log q: −|x| = log(1/0.8) − |x − 0.6|/0.8 left of, between and right of the peaks.
        breaks = [0, 0.6, (0.75 - np.log(1.25)) / 2.25, 3 + 4 * np.log(1.25), 3 - 4 * np.log(1.25)]
    return p, q, sorted(np.real(breaks))


def integrate(function, breaks):
    edges = [-60, *breaks, 60]
    return sum(
        scipy.integrate.quad(function, a, b, epsabs=1e-12, epsrel=1e-11, limit=200)[0]
        for a, b in itertools.pairwise(edges)
    )


@every
@pytest.mark.parametrize("kind", ["Gaussian", "Laplace"])
def test_both_pairs_of_integrands_integrate_to_the_divergence(name, kind):
    p, q, breaks = pair(kind)
    # Ten-point Gauss–Legendre panels: smooth between the breaks.
    nodes, weights = np.polynomial.legendre.leggauss(10)
    edges = np.unique(np.concatenate([np.linspace(-40, 40, 321), breaks]))
    half = np.diff(edges)[:, None] / 2
    x, weight = (edges[:-1, None] + half + half * nodes).ravel(), (half * weights).ravel()
    with jax.enable_x64(True):
        values = evaluate(ratios(FORMULAS[name][0]), jnp.asarray(p.logpdf(x) - q.logpdf(x)))
    definition = DEFINITIONS[name]
    expected = integrate(lambda x: definition(p.pdf(x) + 1e-300, q.pdf(x) + 1e-300), breaks)
    for one, other in (("integrand_p", "integrand_q"), ("dual_integrand_p", "dual_integrand_q")):
        ours = np.sum(weight * (p.pdf(x) * values[one] + q.pdf(x) * values[other]))
        np.testing.assert_allclose(ours, expected, rtol=1e-7)


@every
def test_conjugates_are_suprema(name):
    """f*(t) = max_r (rt − f(r)), attained at t = f'(r); its slope is r."""
    generator, f, *_ = FORMULAS[name]
    with jax.enable_x64(True):
        generator = ratios(generator)
        u = jnp.array([-5.0, -1.0, -1e-3, 1e-4, 0.5, 2.0])
        values = evaluate(generator, u)
        t = values["derivative"]
        if name == "TotalVariation":  # inside its jump
            t = jnp.array([-0.4, -0.1, 0.1, 0.2, 0.3, 0.4])
        star, slope = conjugate(generator, t)
        numeric = []
        for target in np.asarray(t):
            objective = lambda r, target=target: float(f(Decimal(r))) - r * target
            best = scipy.optimize.minimize_scalar(
                objective, bounds=(1e-9, 20), method="bounded", options={"xatol": 1e-10}
            )
            numeric.append(-best.fun)
        # At a kink the search is as exact as its argument.
        atol = 1e-8 if name == "TotalVariation" else 1e-13
        np.testing.assert_allclose(star, numeric, rtol=1e-9, atol=atol)
        if name == "TotalVariation":
            return
        np.testing.assert_allclose(slope, jnp.exp(u), rtol=1e-9)
        # Fenchel and Young: f + f* = r f' there, that is S = −f*(T).
        np.testing.assert_allclose(star, -values["dual_integrand_q"], rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "supremum", "at", "below"),
    [
        ("KL", np.inf, np.inf, -1),
        ("ReverseKL", 1, np.inf, None),
        ("JensenShannon", LOG_2 / 2, np.inf, -LOG_2 / 2),
        ("SquaredHellinger", 0.5, np.inf, None),
        ("TotalVariation", 0.5, 0.5, -0.5),
        ("ChiSquared", np.inf, np.inf, -1),
        ("NeymanChiSquared", 1, 2, None),
        ("SoftenedReverseKL", 1 - LOG_2, LOG_2, None),
        ("Alpha(0.25)", 4 / 3, np.inf, None),
        ("SkewKL(0.125)", np.log(8) - 0.875, 7 * 0.875, None),
    ],
)
def test_conjugates_outside_of_the_slopes_range(name, supremum, at, below):
    with jax.enable_x64(True):
        generator = ratios(FORMULAS[name][0])
        np.testing.assert_allclose(generator.conjugate_supremum, supremum, rtol=1e-12)
        if np.isfinite(supremum):
            assert conjugate(generator, jnp.array([supremum + 1e-6]))[0] == jnp.inf
            value = conjugate(generator, generator.conjugate_supremum[None])[0]
            np.testing.assert_allclose(value, at, rtol=1e-12)
        if below is not None:  # f'(0) is finite, and the supremum is at r = 0
            slack = conjugate(generator, jnp.array([-50.0]))
            np.testing.assert_allclose(slack, [[below], [0]], rtol=1e-12, atol=1e-20)


def test_general_conjugates_have_second_derivatives():
    """f*'' = 1/f'' at the maximiser, through bisection and one Newton step."""
    with jax.enable_x64(True):
        u = jnp.array(0.7)
        curvature = jax.jit(jax.hessian(fdiv.Jeffreys().conjugate))(fdiv.Jeffreys().derivative(u))
        expected = 1 / fdiv.Jeffreys().second_derivative(u)
        np.testing.assert_allclose(curvature, expected, rtol=1e-9)
        jet = jax.jit(jax.vmap(jax.value_and_grad(lambda a: fdiv.SkewKL(a).conjugate(0.2))))
        step = 1e-6
        (_, up, down), slope = jet(0.3 + step * jnp.array([0.0, 1.0, -1.0]))
        np.testing.assert_allclose(slope[0], (up - down) / (2 * step), rtol=1e-7)


@pytest.mark.parametrize("name", ["KL", "JensenShannon", "SkewKL(0.125)"])
def test_reversing_exchanges_p_and_q(name):
    with jax.enable_x64(True):
        u = jnp.array([-3.0, -0.2, 0.4, 2.0])
        generator = ratios(FORMULAS[name][0])
        values, back = evaluate(generator.reverse(), u), evaluate(generator, -u)
        np.testing.assert_allclose(values["f"], jnp.exp(u) * back["f"], rtol=1e-13)
        np.testing.assert_array_equal(values["integrand_p"], back["integrand_q"])
        np.testing.assert_array_equal(values["dual_integrand_p"], back["dual_integrand_q"])
        np.testing.assert_allclose(values["curvature"], jnp.exp(u) * back["curvature"], rtol=1e-13)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (fdiv.KL().reverse(), fdiv.ReverseKL()),
        (fdiv.ChiSquared().reverse(), fdiv.NeymanChiSquared()),
        (fdiv.JensenShannon().reverse(), fdiv.JensenShannon()),
        (fdiv.Alpha(0.3).reverse(), fdiv.Alpha(0.7)),
        (fdiv.KL() + fdiv.ReverseKL(), fdiv.Jeffreys()),
        (0.5 * fdiv.SkewKL(0.5) + 0.5 * fdiv.SkewKL(0.5).reverse(), fdiv.JensenShannon()),
        (np.float64(4) * fdiv.SquaredHellinger(), fdiv.Alpha(0.5)),
        (fdiv.SkewKL(0.0), fdiv.KL()),
        (fdiv.CressieRead(-1.0), fdiv.ReverseKL()),
    ],
)
def test_relations_between_divergences(one, other):
    with jax.enable_x64(True):
        u, t = jnp.array([-4.0, -0.3, 0.1, 2.5]), jnp.array([-0.3, 0.1])
        ours, theirs = evaluate(one, u), evaluate(other, u)
        for method in ("f", "derivative", "second_derivative", "curvature", "dual_integrand_q"):
            np.testing.assert_allclose(ours[method], theirs[method], rtol=1e-12, err_msg=method)
        for left, right in zip(conjugate(one, t), conjugate(other, t), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-10)


def test_the_power_family_is_smooth_in_alpha():
    """Values, integrands and conjugates are differentiable in α, also at 0 and 1."""
    u, step = jnp.array([-2.0, 0.5, 1.5]), 1e-5
    methods = (*METHODS, "conjugate")

    @jax.jit
    @jax.vmap
    def jet(alpha):
        function = lambda a: {m: getattr(fdiv.Alpha(a), m)(0.2 * u) for m in methods}
        return function(alpha), jax.jvp(function, (alpha,), (jnp.ones_like(alpha),))[1]

    with jax.enable_x64(True):
        alpha = jnp.array([-1.0, 0.0, 0.5, 1.0, 2.0])
        values, slopes = jet(jnp.concatenate([alpha, alpha + step, alpha - step]))
        for method in methods:
            _, up, down = values[method].reshape(3, 5, 3)
            np.testing.assert_allclose(
                slopes[method][:5], (up - down) / (2 * step), rtol=1e-4, atol=2e-4, err_msg=method
            )


@pytest.mark.parametrize(
    ("name", "at_zero", "T_at_zero", "T_at_infinity", "S_at_infinity"),
    [
        ("KL", 1, -np.inf, np.inf, -np.inf),
        ("ReverseKL", np.inf, -np.inf, 1, -np.inf),
        ("Jeffreys", np.inf, -np.inf, np.inf, -np.inf),
        ("JensenShannon", LOG_2 / 2, -np.inf, LOG_2 / 2, -np.inf),
        ("SquaredHellinger", 0.5, -np.inf, 0.5, -np.inf),
        ("TotalVariation", 0.5, -0.5, 0.5, -0.5),
        ("ChiSquared", 1, -2, np.inf, -np.inf),
        ("NeymanChiSquared", np.inf, -np.inf, 1, -2),
        ("SoftenedReverseKL", np.inf, -np.inf, 1 - LOG_2, -LOG_2),
        ("SkewKL(0.125)", 0.875, -np.inf, np.log(8) - 0.875, -7 * 0.875),
    ],
)
def test_infinite_ratios_give_the_limits(name, at_zero, T_at_zero, T_at_infinity, S_at_infinity):
    values = evaluate(ratios(FORMULAS[name][0], jnp.float32), jnp.array([-jnp.inf, jnp.inf]))
    for method, limits in (
        ("f", (at_zero, np.inf)),
        ("derivative", (T_at_zero, T_at_infinity)),
        ("dual_integrand_q", (at_zero, S_at_infinity)),
    ):
        np.testing.assert_allclose(values[method], limits, rtol=1e-6, err_msg=method)


@pytree
class OwnKL(fdiv.Generator):
    def f(self, u):
        return jnp.exp(u) * u - jnp.exp(u) + 1


def test_a_generator_of_ones_own_needs_only_f():
    with jax.enable_x64(True):
        u = jnp.array([-30.0, -2.0, 0.0, 0.3, 5.0])
        own, built_in = evaluate(OwnKL(), u), evaluate(fdiv.KL(), u)
        for method in ("f", "derivative", "second_derivative", "curvature", "dual_integrand_q"):
            np.testing.assert_allclose(own[method], built_in[method], rtol=1e-9, atol=1e-15)
        t = jnp.array([-3.0, -1e-6, 0.0, 0.5, 4.0])
        for one, other in zip(conjugate(OwnKL(), t), conjugate(fdiv.KL(), t), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9)
    extremes = evaluate(OwnKL(), jnp.array([-jnp.inf, -80.0, 80.0, jnp.inf]))
    assert not any(np.isnan(extremes[method]).any() for method in METHODS if method != "f")


@jax.jit
def at(u):
    methods = (*METHODS, "dual_integrand_p", "conjugate")
    return {
        name: {method: getattr(generator, method)(u) for method in methods}
        for name, (generator, *_) in FORMULAS.items()
    }


def test_nan_in_is_nan_out():
    for name, values in at(jnp.nan).items():
        for method, value in values.items():
            assert jnp.isnan(value), (name, method)


@jax.jit
def with_parameter(a, u):
    methods = (*METHODS, "conjugate")
    generators = {
        "Alpha": fdiv.Alpha(a),
        "CressieRead": fdiv.CressieRead(a),
        "SkewKL": fdiv.SkewKL(a),
        "Mixed": fdiv.Mixed(fdiv.ReverseKL(), a),
        "Combination": a * fdiv.KL(),
        "Sum": a * fdiv.KL() + fdiv.ReverseKL(),
    }
    values = {
        name: {method: getattr(generator, method)(u) for method in methods}
        for name, generator in generators.items()
    }
    methods = (
        "integrand_p",
        "integrand_q",
        "dual_integrand_p",
        "dual_integrand_q",
        "curvature",
        "transform",
    )
    values["Renyi"] = {method: getattr(fdiv.Renyi(a), method)(u) for method in methods}
    values["Renyi"]["plug_in"] = fdiv.Renyi(a).plug_in(u, u).value
    return values


@pytest.mark.parametrize("a", [jnp.nan, -0.5, 1.0, 2.0])
def test_parameters_out_of_range_give_nan(a):
    ranges = {
        "SkewKL": 0 <= a < 1,
        "Mixed": 0 <= a < 1,
        "Alpha": True,
        "CressieRead": True,
    }
    u = jnp.array([-jnp.inf, -2.0, 0.5, jnp.inf])
    for name, values in with_parameter(jnp.float32(a), u).items():
        if jnp.isnan(a) or not ranges.get(name, a > 0):
            for method, value in values.items():
                assert jnp.isnan(value).all(), (name, method)


def test_samples_without_weight_do_not_enter():
    u, weights = jnp.array([0.3, jnp.nan, -0.2]), jnp.array([0.5, 0.0, 0.5])
    for divergence in (fdiv.KL(), fdiv.ReverseKL(), fdiv.JensenShannon(), fdiv.Renyi(0.5)):
        value, *influences = divergence.plug_in(u, u, weights, weights)
        plain, *others = divergence.plug_in(u[::2], u[::2])
        np.testing.assert_allclose(value, plain, rtol=1e-6)
        for ours, theirs in zip(influences, others, strict=True):
            np.testing.assert_allclose(ours[::2], theirs, rtol=1e-6)
            assert ours[1] == 0
        assert jnp.isnan(divergence.plug_in(u, u, jnp.array([0.5, -1.0, 1.5]), weights).value)
    assert jnp.isnan(fdiv.KL().plug_in(u, u).value)


def test_a_share_of_zero_is_the_generator_itself():
    """Of values and slopes, also where one of them is far from what float32 holds."""
    u = jnp.array([-160.0, -100.0, -50.0, -1.0, 0.0, 1.0, 50.0, 100.0, 160.0])
    for generator in (fdiv.KL(), fdiv.ReverseKL(), fdiv.ChiSquared(), fdiv.JensenShannon()):
        mixed = fdiv.Mixed(generator, jnp.float32(0))
        ours, theirs = evaluate(mixed, u), evaluate(generator, u)
        our_slopes, their_slopes = slopes(mixed, u), slopes(generator, u)
        for method in METHODS:
            np.testing.assert_allclose(ours[method], theirs[method], rtol=1e-5, err_msg=method)
            finite = np.isfinite(their_slopes[method])
            np.testing.assert_allclose(
                np.asarray(our_slopes[method])[finite],
                np.asarray(their_slopes[method])[finite],
                rtol=1e-4,
                err_msg=method,
            )


def test_renyi_of_order_zero_is_the_mass_of_q_where_p_has_some():
    u_p, u_q = jnp.array([0.3, 1.0]), jnp.array([0.2, -jnp.inf, -1.0, 0.5])
    order = lambda a: fdiv.Renyi(a).plug_in(u_p, u_q)
    np.testing.assert_allclose(order(0.0).value, -np.log(3 / 4), rtol=1e-6)
    np.testing.assert_allclose(order(jnp.float32(0)).value, -np.log(3 / 4), rtol=1e-6)
    np.testing.assert_allclose(order(1e-4).value, -np.log(3 / 4), atol=1e-3)
    influence = order(0.0).influence_q  # of −log mean 1[u > −∞], up to a constant
    np.testing.assert_allclose(influence[0] - influence[1], -4 / 3, rtol=1e-6)
    assert fdiv.Renyi(0.0).plug_in(u_p, u_p).value == 0


@pytest.mark.parametrize("alpha", [0.5, 2])
def test_python_parameters_do_not_promote(alpha):
    def everything(u):
        yield fdiv.Renyi(alpha).plug_in(u, u)
        for generator in (
            fdiv.Alpha(alpha),
            fdiv.CressieRead(alpha),
            alpha * fdiv.Jeffreys() + fdiv.TotalVariation(),
            fdiv.SkewKL(0.5),
            fdiv.JensenShannon().reverse(),
        ):
            yield [getattr(generator, method)(u) for method in (*METHODS, "conjugate", "transform")]

    with jax.enable_x64(True):
        outputs = jax.eval_shape(lambda u: list(everything(u)), jnp.ones(5, jnp.float32))
    assert {output.dtype for output in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fdiv.Renyi(-0.5), "alpha must not be negative; got -0.5"),
        (lambda: fdiv.Renyi(np.inf), "alpha must be finite; got inf"),
        (lambda: fdiv.Alpha(np.nan), "alpha must be finite; got nan"),
        (lambda: fdiv.CressieRead(np.inf), "power must be finite; got inf"),
        (lambda: fdiv.SkewKL(1.0), r"alpha must be a number in \[0, 1\); got 1.0"),
        (lambda: fdiv.Mixed(fdiv.KL(), -0.1), r"alpha must be a number in \[0, 1\); got -0.1"),
        (lambda: -1 * fdiv.KL(), "factor must be a positive number; got -1"),
    ],
)
def test_bad_parameters_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@every
@pytest.mark.parametrize("fill", [np.nan, np.inf, -200.0, 1e30])
def test_padding_has_no_slope_and_changes_none(name, fill):
    generator = FORMULAS[name][0]
    u, v, a = jnp.array([0.1, -0.3]), jnp.array([0.2, 0.1]), jnp.array([0.5, 0.5])
    slopes = lambda u, v, a: jax.grad(
        lambda u, v: generator.plug_in(u, v, a, a).value, argnums=(0, 1)
    )(u, v)
    padded = slopes(jnp.append(u, fill), jnp.append(v, fill), jnp.append(a, 0))
    for found, expected in zip(padded, slopes(u, v, a), strict=True):
        np.testing.assert_allclose(found, jnp.append(expected, 0), rtol=1e-5)


@pytest.mark.parametrize("u", [-20.0, -46.0, -60.0])
def test_curvatures_of_reversed_generators_do_not_underflow(u):
    """r f(1/r) of SkewKL(α) has the second derivative ((1 − α)/α)² at r = 0."""
    found = fdiv.SkewKL(0.3).reverse().second_derivative(u)
    np.testing.assert_allclose(found, (0.7 / 0.3) ** 2, rtol=1e-4)


def test_the_slope_of_the_total_variation_at_its_kink():
    assert jax.grad(fdiv.TotalVariation().f)(0.0) == 0
    np.testing.assert_allclose(jax.grad(fdiv.TotalVariation().f)(1.0), np.e / 2, rtol=1e-6)
