"""Inequalities on random discrete pairs, where they are equalities, and against exact roots."""

from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.fdiv import inequalities

LOG_2 = np.log(2)
ROUNDING = 1e-12


def pairs(count, seed=0):
    """Discrete pairs: near and far, with zeros, on 2 to 6 points."""
    rng = np.random.default_rng(seed)
    for size in (2, 3, 6):
        concentration = rng.choice([0.05, 0.3, 1.0, 5.0], (2, count, 1))
        p, q = rng.gamma(np.broadcast_to(concentration, (2, count, size))) + 1e-200
        p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
        share = rng.uniform(0, 1, (count, 1)) ** 4
        yield p, np.where(rng.uniform(size=(count, 1)) < 0.5, q, (1 - share) * p + share * q)


def xlogy_ratio(a, b):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(a > 0, a * (np.log(a) - np.log(b)), 0).sum(1)


def divergences(p, q):
    """KL, JS, the gap log 2 − JS without cancellation, TV, squared Hellinger, best error, AUC."""
    m = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = (
            np.where(p > 0, p * np.log1p(q / p), 0) + np.where(q > 0, q * np.log1p(p / q), 0)
        ).sum(1) / 2
    order = np.argsort(-p / np.maximum(p + q, 1e-300), axis=1)
    sorted_p, sorted_q = (np.take_along_axis(x, order, 1) for x in (p, q))
    below = 1 - np.cumsum(sorted_q, 1)
    return {
        "kl": xlogy_ratio(p, q),
        "js": (xlogy_ratio(p, m) + xlogy_ratio(q, m)) / 2,
        "gap": gap,
        "tv": np.abs(p - q).sum(1) / 2,
        "hellinger": ((np.sqrt(p) - np.sqrt(q)) ** 2).sum(1) / 2,
        "auc": (sorted_p * (below + sorted_q / 2)).sum(1),
    }


def below(lower, upper):
    lower, upper = np.asarray(lower), np.asarray(upper)
    assert np.all(lower <= upper + ROUNDING * (1 + np.abs(upper))), np.max(lower - upper)


@jax.jit
def bounds(d):
    return {
        "kl from gap": inequalities.kl_lower_bound_from_cross_entropy(d["gap"]),
        "kl from js": inequalities.kl_lower_bound_from_js(d["js"]),
        # A total variation that rounds to 1 would make KL infinite.
        "kl from tv": inequalities.kl_lower_bound_from_tv(jnp.maximum(d["tv"] - 1e-15, 0)),
        # The root of a KL of 0 that is rounded.
        "tv from kl": inequalities.tv_upper_bound_from_kl(jnp.maximum(d["kl"], 0) + 1e-15),
        "js from tv": inequalities.js_bounds_from_tv(jnp.minimum(d["tv"], 1)),
        "js from error": inequalities.js_lower_bound_from_error((1 - d["tv"]) / 2),
        "tv from hellinger": inequalities.tv_bounds_from_hellinger(jnp.minimum(d["hellinger"], 1)),
        "auc from tv": inequalities.auc_upper_bound_from_tv(d["tv"]),
        "tv from auc": inequalities.tv_lower_bound_from_auc(d["auc"]),
    }


def test_no_pair_violates_an_inequality():
    with jax.enable_x64(True):
        for p, q in pairs(4000):
            d = divergences(p, q)
            bound = jax.tree.map(np.asarray, bounds(d))
            below(bound["kl from gap"], d["kl"])
            # Near log 2 the rounding of JS is multiplied by 2 e^y/(1 + y).
            inside = d["js"] < 0.6
            below(bound["kl from js"][inside], d["kl"][inside])
            below(bound["kl from tv"], d["kl"])
            below(d["tv"], bound["tv from kl"])
            lower, upper = bound["js from tv"]
            below(lower, d["js"])
            below(d["js"], upper)
            below(bound["js from error"], d["js"])
            lower, upper = bound["tv from hellinger"]
            below(lower, d["tv"])
            below(d["tv"], upper)
            below(d["auc"], bound["auc from tv"])
            # √(1 − AUC) makes 10⁻⁸ of rounding near 1.
            below(bound["tv from auc"], d["tv"] + 1e-7)


def test_products_stay_within_their_bounds():
    with jax.enable_x64(True):
        for p, q in pairs(300, seed=1):
            if p.shape[1] > 3:
                continue
            tv, product_p, product_q = np.abs(p - q).sum(1) / 2, p, q
            for m in (2, 3, 4):
                product_p = np.einsum("ni,nj->nij", product_p, p).reshape(len(p), -1)
                product_q = np.einsum("ni,nj->nij", product_q, q).reshape(len(p), -1)
                lower, upper = inequalities.tv_bounds_of_product(np.minimum(tv, 1), m)
                exact = np.abs(product_p - product_q).sum(1) / 2
                below(lower, exact)
                below(exact, upper)


def test_where_inequalities_are_equalities():
    tv = np.array([0.0, 1e-3, 0.2, 0.7, 1.0])
    with jax.enable_x64(True):
        # Equal or apart everywhere: mass 1 − TV in common.
        p, q = (np.stack([1 - tv, *other], 1) for other in ((tv, 0 * tv), (0 * tv, tv)))
        d = divergences(p, q)
        np.testing.assert_allclose(inequalities.js_bounds_from_tv(tv).upper, d["js"], atol=1e-15)
        np.testing.assert_allclose(inequalities.auc_upper_bound_from_tv(tv), d["auc"], rtol=1e-14)
        np.testing.assert_allclose(inequalities.tv_lower_bound_from_auc(d["auc"]), tv, atol=1e-12)
        np.testing.assert_allclose(
            inequalities.tv_bounds_from_hellinger(d["hellinger"]).lower, tv, atol=1e-15
        )
        product = np.abs(np.einsum("ni,nj->nij", p, p) - np.einsum("ni,nj->nij", q, q))
        np.testing.assert_allclose(
            inequalities.tv_bounds_of_product(tv, 2).upper, product.sum((1, 2)) / 2, atol=1e-15
        )
        # Two points exchanged: TV = |1 − 2e|, H² = 1 − 2√(e(1 − e)).
        p = np.stack([(1 + tv) / 2, (1 - tv) / 2], 1)
        d = divergences(p, p[:, ::-1])
        np.testing.assert_allclose(inequalities.js_bounds_from_tv(tv).lower, d["js"], atol=1e-15)
        np.testing.assert_allclose(
            inequalities.js_lower_bound_from_error(p[:, 1]), d["js"], atol=1e-15
        )
        np.testing.assert_allclose(
            inequalities.tv_bounds_from_hellinger(d["hellinger"]).upper, tv, atol=1e-12
        )
        # Pinsker's constant is the best at small divergences.
        d = divergences(*(np.array([[0.5 + s, 0.5 - s]]) for s in (5e-4, -5e-4)))
        np.testing.assert_allclose(inequalities.kl_lower_bound_from_tv(d["tv"]), d["kl"], rtol=1e-5)


def exact_gap(y):
    """g(y) with 60 digits."""
    with localcontext() as context:
        context.prec = 60
        x = (-Decimal(float(y))).exp()
        value = ((1 + x) * (1 + x).ln() - x * x.ln()) / 2
        return float(value), float(Decimal(2).ln() - value)


kl_from_gap = jax.jit(inequalities.kl_lower_bound_from_cross_entropy)
kl_from_js = jax.jit(inequalities.kl_lower_bound_from_js)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bernoulli_pairs_attain_the_bound_from_js(dtype):
    """KL(B(1)‖B(e^{−y})) = y, from the rounded gap or JS, up to what the rounding moves it."""
    y = np.concatenate([np.geomspace(1e-6, 1, 20), np.linspace(1.3, 80, 40)])
    gap, js = np.array([exact_gap(v) for v in y]).T
    eps = np.finfo(dtype).eps
    slope = 2 * np.exp(y) / np.logaddexp(0, y)
    with jax.enable_x64(dtype == np.float64):
        from_gap = np.asarray(kl_from_gap(jnp.asarray(gap.astype(dtype))))
        small = js < 0.34
        from_js = np.asarray(kl_from_js(jnp.asarray(js[small].astype(dtype))))
    assert from_gap.dtype == from_js.dtype == dtype
    assert np.all(np.abs(from_gap - y) <= 4 * eps * (y + slope * gap))
    np.testing.assert_allclose(from_js, y[small], rtol=8 * eps)


def test_the_bound_from_js_at_published_values():
    """JS/log 2 and the bound, from roots found in extended precision."""
    share = jnp.array([0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999, 0.9999])
    table = [0.0201, 0.2060, 0.6648, 1.2248, 1.9961, 3.4787, 6.2612, 8.8707, 11.4015]
    with jax.enable_x64(True):
        js = jnp.asarray(share, jnp.float64) * LOG_2
        np.testing.assert_allclose(kl_from_js(js), table, rtol=3e-3)
        np.testing.assert_allclose(kl_from_gap(LOG_2 - js), kl_from_js(js), rtol=1e-9)


def test_the_bound_from_js_at_the_ends():
    np.testing.assert_array_equal(
        kl_from_gap(jnp.array([-1.0, 0.0, 0.7, 5.0])), [np.inf, np.inf, 0, 0]
    )
    np.testing.assert_array_equal(kl_from_js(jnp.array([-0.1, 0.0, 0.7])), [0, 0, np.inf])
    assert jnp.isnan(kl_from_gap(jnp.nan))
    assert jnp.isnan(kl_from_js(jnp.nan))
    # Clamped on both sides: no slope, and none that is not a number.
    slopes = jax.jit(jax.vmap(jax.grad(kl_from_gap)))(jnp.array([0.8, -0.1]))
    np.testing.assert_array_equal(slopes, 0)


def test_derivatives_are_implicit():
    with jax.enable_x64(True):
        for function, points in (
            (kl_from_gap, [1e-9, 0.02, 0.3, 0.6]),
            (kl_from_js, [1e-3, 0.1, 0.5, 0.65]),
        ):
            x = jnp.array(points)
            step = 1e-5 * x
            difference = (function(x + step) - function(x - step)) / (2 * step)
            np.testing.assert_allclose(jax.vmap(jax.grad(function))(x), difference, rtol=1e-6)
        # Twice: d²y/dgap² from y' = −2 e^y/softplus(y).
        gradient, x, step = jax.jit(jax.grad(kl_from_gap)), 0.2, 1e-6
        difference = (gradient(x + step) - gradient(x - step)) / (2 * step)
        np.testing.assert_allclose(jax.jit(jax.grad(gradient))(x), difference, rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "points"),
    [
        (inequalities.tv_upper_bound_from_kl, (0.0, 1e-30, 0.5, 100.0)),
        (inequalities.kl_lower_bound_from_tv, (0.0, 0.5, 0.999)),
        (lambda t: sum(inequalities.js_bounds_from_tv(t)), (0.0, 0.5, 0.999)),
        (lambda h: sum(inequalities.tv_bounds_from_hellinger(h)), (0.0, 0.5, 1.0)),
        (lambda t: sum(inequalities.tv_bounds_of_product(t, 1)), (0.0, 0.5, 1.0)),
        (lambda t: sum(inequalities.tv_bounds_of_product(t, 3)), (0.0, 0.5, 1.0)),
        (inequalities.tv_lower_bound_from_auc, (0.0, 0.5, 1.0)),
    ],
)
def test_gradients_are_finite_at_equality_and_far_from_it(function, points):
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(function)))(jnp.array(points))
    assert jnp.isfinite(value).all()
    assert jnp.isfinite(slope).all()


@jax.jit
def of_one_number(x):
    return {
        "kl from gap": inequalities.kl_lower_bound_from_cross_entropy(x),
        "kl from js": inequalities.kl_lower_bound_from_js(x),
        "kl from tv": inequalities.kl_lower_bound_from_tv(x),
        "tv from kl": inequalities.tv_upper_bound_from_kl(x),
        "js from tv": inequalities.js_bounds_from_tv(x),
        "js from error": inequalities.js_lower_bound_from_error(x),
        "tv from hellinger": inequalities.tv_bounds_from_hellinger(x),
        "of products": inequalities.tv_bounds_of_product(x, 3),
        "auc from tv": inequalities.auc_upper_bound_from_tv(x),
        "tv from auc": inequalities.tv_lower_bound_from_auc(x),
    }


@pytest.mark.parametrize("x", [jnp.nan, -0.5, 2.0, jnp.inf])
def test_numbers_out_of_range_give_nan(x):
    """Any gap and any JS mean something: a bound of 0, or an infinite one."""
    for name, values in of_one_number(jnp.float32(x)).items():
        in_range = name.endswith(("gap", "js")) or (name == "tv from kl" and x > 0)
        for value in jax.tree.leaves(values):
            assert jnp.isnan(value) == (jnp.isnan(x) or not in_range), name


def test_rounding_beyond_the_range_is_no_fault():
    eps = jnp.finfo(jnp.float32).eps
    outside = of_one_number(jnp.float32(1 + 4 * eps)), of_one_number(jnp.float32(-4 * eps))
    ends = of_one_number(jnp.float32(1)), of_one_number(jnp.float32(0))
    for ours, end in zip(outside, ends, strict=True):
        for name in ("kl from tv", "js from tv", "tv from hellinger", "of products", "tv from auc"):
            jax.tree.map(np.testing.assert_array_equal, ours[name], end[name])


def test_python_numbers_do_not_promote():
    with jax.enable_x64(True):
        x = jnp.array([0.3], jnp.float32)
        for function in (
            inequalities.kl_lower_bound_from_js,
            inequalities.kl_lower_bound_from_cross_entropy,
            inequalities.js_bounds_from_tv,
            lambda tv: inequalities.tv_bounds_of_product(tv, 3),
        ):
            outputs = jax.tree.leaves(jax.eval_shape(function, x))
            assert {output.dtype for output in outputs} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inequalities.kl_lower_bound_from_js("a"), "js must hold real numbers"),
        (lambda: inequalities.kl_lower_bound_from_tv(1.5), r"tv must be a number in \[0, 1\]"),
        (lambda: inequalities.tv_upper_bound_from_kl(-1.0), r"kl must be a number in \[0, inf\]"),
        (lambda: inequalities.tv_bounds_from_hellinger(-0.5), "squared_hellinger must be"),
        (lambda: inequalities.tv_bounds_of_product(0.5, 0), "num_samples must be at least 1"),
        (lambda: inequalities.js_lower_bound_from_error(2), "error must be a number"),
        (lambda: inequalities.tv_lower_bound_from_auc(2), "auc must be a number"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_small_areas_keep_their_digits():
    """TV ≥ 1 − √(2 AUC) of a score that counts reversed, with the slope −1/√(2 AUC)."""
    auc = np.float32([1e-8, 1e-7, 1e-6, 0.125])
    exact = np.sqrt(2 * auc.astype(float))
    value, slope = jax.vmap(jax.value_and_grad(inequalities.tv_lower_bound_from_auc))(auc)
    np.testing.assert_allclose(1 - value.astype(float), exact, atol=1e-7)
    np.testing.assert_allclose(slope, -1 / exact, rtol=1e-5)
    assert (value <= 1 - exact + 1e-7).all()
    assert jax.grad(inequalities.tv_lower_bound_from_auc)(1.0) == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_numbers_far_out_of_range_are_nan_in_every_precision(dtype):
    for bound, value in (
        (inequalities.kl_lower_bound_from_tv, 1.4),
        (inequalities.tv_upper_bound_from_kl, -0.4),
        (inequalities.auc_upper_bound_from_tv, 1.4),
        (inequalities.tv_lower_bound_from_auc, -0.4),
        (inequalities.js_lower_bound_from_error, 1.4),
    ):
        assert jnp.isnan(bound(jnp.asarray(value, dtype))).all(), bound
