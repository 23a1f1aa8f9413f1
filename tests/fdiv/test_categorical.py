"""Categorical divergences against SciPy, theorems, and exact enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from divjax.fdiv import categorical, sampled
from divjax.fdiv.categorical import Logits, Weights

C = 6


DIVERGENCES = {
    "kl": categorical.kl,
    "reverse_kl": categorical.reverse_kl,
    "skew_kl": lambda p, q: categorical.skew_kl(p, q, 0.3),
    "jensen_shannon": categorical.jensen_shannon,
    "weighted jensen_shannon": lambda p, q: categorical.jensen_shannon(
        p, q, weights=jnp.array([0.2, 0.8])
    ),
    "total_variation": categorical.total_variation,
    "squared_hellinger": categorical.squared_hellinger,
    "cross_entropy": categorical.cross_entropy,
    "renyi": lambda p, q: categorical.renyi(p, q, 0.7),
}


def scipys(name, p, q):
    """The same divergence of normalised arrays by SciPy or NumPy, in float64."""
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    relative = lambda p, q: scipy.special.rel_entr(p, q).sum(-1)
    mixed = lambda w: (
        w * relative(p, w * p + (1 - w) * q) + (1 - w) * relative(q, w * p + (1 - w) * q)
    )
    return {
        "kl": lambda: relative(p, q),
        "reverse_kl": lambda: relative(q, p),
        "skew_kl": lambda: relative(p, 0.3 * p + 0.7 * q),
        "jensen_shannon": lambda: scipy.spatial.distance.jensenshannon(p, q, axis=-1) ** 2,
        "weighted jensen_shannon": lambda: mixed(0.2),
        "total_variation": lambda: 0.5 * np.abs(p - q).sum(-1),
        "squared_hellinger": lambda: 1 - np.sqrt(p * q).sum(-1),
        "cross_entropy": lambda: relative(p, q) + scipy.stats.entropy(p, axis=-1),
        "renyi": lambda: np.log((p**0.7 * q**0.3).sum(-1)) / -0.3,
    }[name]()


def random_pair(seed=0, shape=(4, C)):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(shape[-1]), shape[:-1]), rng.dirichlet(
        np.ones(shape[-1]), shape[:-1]
    )


# All at once, so that one compilation serves them.
all_divergences = jax.jit(lambda p, q: {name: d(p, q) for name, d in DIVERGENCES.items()})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_logits_and_counts_give_scipys_values(dtype):
    p, q = random_pair()
    p[0, 1] = q[0, 1] = 0  # 0 log 0 = 0
    p[1, 2] = 0
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    with jax.enable_x64(True):
        rtol = 2e-6 if dtype == np.float32 else 1e-13
        with np.errstate(divide="ignore"):
            logits = [jnp.asarray(np.log(a) + 3, dtype) for a in (p, q)]
        weights = [jnp.asarray(a, dtype) for a in (p, q)]
        for pair in (
            weights,
            [Logits(a) for a in logits],
            [Weights(7 * weights[0]), Logits(2 * logits[1], temperature=2.0)],
        ):
            for name, value in all_divergences(*pair).items():
                assert value.dtype == dtype
                expected = scipys(name, p, q)
                np.testing.assert_allclose(value, expected, rtol, rtol / 4, err_msg=name)
                assert np.isinf(value[1]) == (name == "reverse_kl")


def test_entropy_and_map_are_scipys():
    p, q = random_pair()
    with jax.enable_x64(True):
        np.testing.assert_allclose(categorical.entropy(p), scipy.stats.entropy(p, axis=-1))
        np.testing.assert_allclose(categorical.kl_map(p, q), scipy.special.rel_entr(p, q))
    terms = categorical.kl_map(jnp.array([0.5, 0.5, 0.0, 0.0]), jnp.array([0.7, 0.0, 0.0, 0.3]))
    assert terms[0] < 0
    np.testing.assert_array_equal(terms[1:], [np.inf, 0, 0])


def test_jensen_shannon_of_several_is_an_entropy_difference():
    """H(Σ w p) − Σ w H(p), in bits."""
    rng = np.random.default_rng(1)
    ps, weights = rng.dirichlet(np.ones(C), (3, 5)), np.array([0.5, 0.2, 0.3])
    entropy = lambda p: scipy.stats.entropy(p, axis=-1, base=2)
    expected = entropy(np.tensordot(weights, ps, 1)) - np.tensordot(weights, entropy(ps), 1)
    with jax.enable_x64(True):
        mixed = jax.jit(lambda weights: categorical.jensen_shannon(*ps, weights=weights, base=2))
        np.testing.assert_allclose(mixed(10 * weights), expected, rtol=1e-12)
        np.testing.assert_allclose(mixed(np.array([1.0, 0.0, 0.0])), 0, atol=1e-15)
    disjoint = jax.jit(categorical.jensen_shannon)(*np.eye(3, dtype=np.float32))
    np.testing.assert_allclose(disjoint, np.log(3), rtol=1e-6)


def test_near_equality_float32_keeps_its_digits():
    """With p = q(1 + ε), Σ p log(p/q) has an error near 1e-7: more than the value itself."""
    rng = np.random.default_rng(2)
    logits = rng.normal(size=1000).astype(np.float32)
    shifted = logits + (2.0**-10 * rng.choice([-1, 1], size=1000)).astype(np.float32)
    p, q = (scipy.special.softmax(a.astype(np.float64)) for a in (logits, shifted))
    values = all_divergences(Logits(jnp.asarray(logits)), Logits(jnp.asarray(shifted)))
    for name in ("kl", "reverse_kl", "jensen_shannon", "squared_hellinger"):
        expected = scipys(name, p, q)
        assert expected < 1e-6
        np.testing.assert_allclose(values[name], expected, rtol=2e-3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 30.0]))
def test_theorems(seed, spread):
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        p, q = (Logits(jnp.asarray(spread * rng.normal(size=C))) for _ in range(2))
        value = {name: float(v) for name, v in all_divergences(p, q).items()}
    tv, js, hellinger = (
        value[k] for k in ("total_variation", "jensen_shannon", "squared_hellinger")
    )
    tiny = 1e-12
    assert min(value.values()) >= 0
    assert tv <= 1 + tiny
    assert 2 * tv**2 <= value["kl"] + tiny  # Pinsker
    assert hellinger <= tv + tiny
    assert tv <= np.sqrt(hellinger * (2 - hellinger)) + tiny  # Le Cam
    error = max(0, 1 - tv) / 2
    assert np.log(2) - scipy.stats.entropy([error, 1 - error]) <= js + tiny  # Fano
    assert js <= np.log(2) * tv + tiny
    assert value["skew_kl"] <= min(-np.log(0.3), 0.7 * value["kl"]) + tiny  # and convexity


def test_packing_raises_total_variation_as_it_must():
    """Collapse of a fifth of the mass: TV of m-fold products is 1 − 0.8^m."""
    p, q = np.array([0.2, 0.8], np.float32), np.array([0.0, 1.0], np.float32)
    products = lambda a, m: a if m == 1 else np.outer(products(a, m - 1), a).ravel()
    packed = [(products(p, m), products(q, m)) for m in (1, 2, 3, 4)]
    both = lambda p, q: (categorical.total_variation(p, q), categorical.jensen_shannon(p, q))
    values = jax.jit(lambda packed: [both(*pair) for pair in packed])(packed)
    tv = [value[0] for value in values]
    np.testing.assert_allclose(tv, [0.2, 0.36, 0.488, 0.5904], rtol=1e-6)
    js = [value[1] for value in values]
    np.testing.assert_allclose(js, [0.0749, 0.1447, 0.2092, 0.2684], atol=6e-5)


def sums(p, q):
    """One number that every divergence enters, with weights that tell them apart."""
    return sum((i + 1) * jnp.sum(d(p, q)) for i, d in enumerate(DIVERGENCES.values()))


def test_derivatives_equal_differences():
    with jax.enable_x64(True):
        p, q = (jnp.asarray(np.random.default_rng(s).normal(size=C)) for s in (3, 4))
        mask = jnp.arange(C) != 2

        def of(function):
            return lambda point: function(
                Logits(point[0], point[2], mask), Weights(point[1] ** 2, 0.1, mask)
            )

        point, step = (p, q, jnp.asarray(1.3)), 1e-5
        direction = jax.tree.map(lambda a: jnp.cos(7 * a), point)
        ends = [jax.tree.map(lambda a, b, s=s: a + s * b, point, direction) for s in (step, -step)]
        # The first derivative of all of them, and KL's second.
        value, slope = jax.jit(of(sums)), jax.jit(jax.grad(of(categorical.kl)))
        products = jax.tree.map(jnp.vdot, jax.jit(jax.grad(of(sums)))(point), direction)
        difference = (value(ends[0]) - value(ends[1])) / (2 * step)
        np.testing.assert_allclose(sum(products), difference, rtol=1e-7)
        second = jax.jit(lambda: jax.jvp(jax.grad(of(categorical.kl)), (point,), (direction,))[1])()
        for ours, up, down in zip(second, slope(ends[0]), slope(ends[1]), strict=True):
            np.testing.assert_allclose(ours, (up - down) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (Weights(jnp.array([0.5, 0.5, 0.0, 0.0])), Weights(jnp.array([0.0, 0.5, 0.5, 0.0]))),
        (
            Logits(jnp.array([0.0, 1.0, -jnp.inf, -jnp.inf])),
            Logits(jnp.array([-jnp.inf, 1.0, 2.0, -jnp.inf])),
        ),
        (Logits(jnp.array([3e4, -3e4, 0.0, 0])), Logits(jnp.array([-3e4, 3e4, 1.0, 0]))),
        (Weights(jnp.array([1e-37, 1.0, 1, 1])), Weights(jnp.array([1.0, 1e-37, 1, 1]))),
        (Weights(jnp.array([3e38, 1.0, 1, 1])), Weights(jnp.array([0.0, 1.0, 1, 1]), 1e-8)),
        (Logits(jnp.zeros(4), mask=jnp.zeros(4)), Logits(jnp.zeros(4))),
    ],
    ids=["zeros", "excluded", "far", "tiny", "huge", "empty"],
)
def test_values_and_gradients_at_the_edge(p, q):
    values, gradients = edge(p, q)
    assert jax.tree.all(jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), gradients))
    in_p, in_q = (jnp.exp(categorical.log_probs(a)) > 0 for a in (p, q))
    excluded = [categorical.log_probs(a) == -jnp.inf for a in (p, q)]
    for name, value in values.items():
        assert jnp.isnan(value) == (not in_p.any())
        infinite = {
            "kl": jnp.any(in_p & excluded[1]),
            "cross_entropy": jnp.any(in_p & excluded[1]),
            "reverse_kl": jnp.any(in_q & excluded[0]) & in_p.any(),
        }.get(name, False)
        assert jnp.isinf(value) == infinite


@jax.jit
def edge(p, q):
    values = {name: d(p, q) for name, d in DIVERGENCES.items()}
    return values, [jax.grad(d, argnums=(0, 1))(p, q) for d in DIVERGENCES.values()]


def test_gradients_at_zero_mixture_weight_and_share():
    p, q = jnp.array([0.5, 0.5, 0.0]), jnp.array([0.0, 0.0, 1.0])
    mixed = jax.jit(jax.grad(lambda w: categorical.jensen_shannon(p, q, weights=w)))
    assert jnp.isfinite(mixed(jnp.array([1.0, 0.0]))).all()
    # dJS/dw_k = KL(p_k‖m) − JS for normalised weights, also where w_k = 0 and the KL is finite.
    p2 = jnp.array([0.8, 0.2, 0.0])
    slope = jax.jit(jax.grad(lambda w: categorical.jensen_shannon(p, p2, weights=w)))(
        jnp.array([1.0, 0.0])
    )
    np.testing.assert_allclose(slope, [0, np.dot([0.8, 0.2], np.log([1.6, 0.4]))], atol=1e-6)
    value, slope = jax.jit(jax.value_and_grad(lambda a: categorical.skew_kl(p, q, a)))(0.0)
    assert jnp.isfinite(slope)
    assert value == jnp.inf


def test_nan_and_negative_weights_show():
    q = jnp.full(3, 1 / 3)
    for p in (jnp.array([0.5, jnp.nan, 0.5]), jnp.array([-0.5, 1.0, 0.5])):
        for pair in ((p, q), (q, p)):
            assert all(jnp.isnan(value) for value in all_divergences(*pair).values())


@pytest.mark.parametrize(
    "invalid",
    [
        Weights(jnp.array([2.0, 3.0, 1.0]), jnp.float32(-0.5)),
        Weights(jnp.array([2.0, 3.0, 1.0]), jnp.float32(jnp.nan)),
        Weights(jnp.zeros(3)),
        Logits(jnp.array([1.0, 0.0, 2.0]), jnp.float32(-1.0)),
        Logits(jnp.array([1.0, 0.0, 2.0]), jnp.float32(0.0)),
        Logits(jnp.array([1.0, jnp.nan, 2.0])),
        Logits(jnp.array([1.0, jnp.inf, 2.0])),
        jnp.array([0.5, 0.6, 0.0]),
        jnp.array([1.5, -0.5, 0.0]),
        categorical.Labels(jnp.array(3), 3),
        categorical.Labels(jnp.array(-1), 3),
    ],
)
def test_what_is_no_distribution_gives_nan(invalid):
    q = jnp.array([0.25, 0.25, 0.5])
    for pair in ((invalid, q), (q, invalid)):
        assert jnp.isnan(jnp.stack(list(all_divergences(*pair).values()))).all()
        assert jnp.isnan(jax.jit(categorical.kl_map)(*pair)).any()


def test_parameters_out_of_range_give_nan():
    p, q = jnp.array([0.25, 0.75]), jnp.array([0.5, 0.5])
    skew, mixed, in_base, order = (
        jax.jit(lambda a: categorical.skew_kl(p, q, a)),
        jax.jit(lambda w: categorical.jensen_shannon(p, q, weights=w)),
        jax.jit(lambda b: categorical.jensen_shannon(p, q, base=b)),
        jax.jit(lambda a: categorical.renyi(p, q, a)),
    )
    for alpha in (jnp.nan, -0.5, 1.0, 2.0):
        assert jnp.isnan(skew(alpha))
    for weights in ([-1.0, 2.0], [0.0, 0.0], [jnp.nan, 1.0], [2.0, -0.5]):
        assert jnp.isnan(mixed(jnp.array(weights)))
    for base in (jnp.nan, -1.0, 0.0, 0.5, 1.0):
        assert jnp.isnan(in_base(base))
    for alpha in (jnp.nan, -0.5, jnp.inf):
        assert jnp.isnan(order(alpha))


def test_shares_of_zero_do_not_underflow():
    """Far apart p has a log-density of −160 where q has its mass."""
    p, q = Logits(jnp.array([80.0, -80.0])), Logits(jnp.array([-80.0, 80.0]))
    np.testing.assert_allclose(categorical.skew_kl(p, q, 0.0), 160, rtol=1e-6)
    np.testing.assert_allclose(categorical.skew_kl(p, q, jnp.float32(0)), 160, rtol=1e-6)
    weighted = lambda *w: categorical.jensen_shannon(p, q, weights=jnp.array(w))
    np.testing.assert_array_equal([weighted(0.0, 1.0), weighted(1.0, 0.0)], 0)
    assert jnp.isfinite(jax.grad(lambda a: categorical.skew_kl(p, q, a))(0.0))


def test_kl_of_unnormalised_measures_is_scipys():
    rng = np.random.default_rng(11)
    p, q = rng.exponential(size=(2, 3, C)) * rng.choice([1e-3, 1.0, 1e3], (2, 3, 1))
    p[0, 0] = q[0, 0] = q[1, 1] = 0
    with jax.enable_x64(True):
        value = jax.jit(categorical.generalized_kl)(p, q)
        np.testing.assert_allclose(value, scipy.special.kl_div(p, q).sum(-1), rtol=1e-12)
        assert np.isinf(value[1])
    gradient = jax.jit(jax.grad(lambda p, q: categorical.generalized_kl(p, q), argnums=(0, 1)))
    for leaf in gradient(jnp.array([0.0, 0.0, 1.0]), jnp.array([0.0, 1.0, 2.0])):
        assert jnp.isfinite(leaf).all()
    # No mass is a measure, and what is negative is none.
    assert categorical.generalized_kl(jnp.zeros(3), jnp.ones(3)) == 3
    for bad in (-1.0, jnp.nan):
        measure = jnp.ones(3).at[1].set(bad)
        assert jnp.isnan(jax.jit(categorical.generalized_kl)(measure, jnp.ones(3)))
        assert jnp.isnan(jax.jit(categorical.generalized_kl)(jnp.ones(3), measure))


def test_distillation_gradient_is_the_difference_of_probabilities():
    """∇_student KL(teacher‖student) = (student − teacher)/T, and no retrace over T."""
    rng = np.random.default_rng(6)
    teacher, student = (jnp.asarray(rng.normal(size=C), jnp.float32) for _ in range(2))
    traces = []

    @jax.jit
    def gradient(temperature):
        traces.append(None)
        return jax.grad(
            lambda s: categorical.kl(Logits(teacher, temperature), Logits(s, temperature))
        )(student)

    for t in (0.5, 2.0):
        expected = (jax.nn.softmax(student / t) - jax.nn.softmax(teacher / t)) / t
        np.testing.assert_allclose(gradient(t), expected, rtol=1e-4, atol=1e-7)
    assert len(traces) == 1
    swept = jax.jit(jax.vmap(lambda t: categorical.kl(Logits(teacher, t), Logits(student, t))))(
        jnp.array([0.5, 2.0])
    )
    assert swept.shape == (2,)
    assert swept[0] > swept[1]


def test_pairwise_is_a_loop(monkeypatch):
    rng = np.random.default_rng(7)
    ps, qs = rng.dirichlet(np.ones(C), 7), rng.dirichlet(np.ones(C), 4)
    expected = scipys("kl", ps[:, None], qs)
    for entries in (2**20, 2 * 4 * C):
        monkeypatch.setattr("divjax.core.pairwise.BLOCK_ENTRIES_CPU", entries)
        matrix = jax.jit(lambda ps, qs: categorical.pairwise(categorical.kl, ps, qs))(ps, qs)
        np.testing.assert_allclose(matrix, expected, rtol=2e-5)


THIRDS = jnp.full(3, 1 / 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: categorical.kl(THIRDS, jnp.full(4, 0.25)),
            r"same number of classes.*\(3,\), \(4,",
        ),
        (lambda: categorical.kl(THIRDS, jnp.ones(1)), "same number of classes"),
        (
            lambda: categorical.kl(Logits(jnp.ones((2, 3))), Logits(jnp.ones((4, 3)))),
            "other axes that broadcast",
        ),
        (lambda: categorical.entropy(jnp.ones(())), "p must have a non-empty axis -1 of classes"),
        (lambda: categorical.entropy(jnp.ones((2, 0))), "p must have a non-empty axis -1"),
        (lambda: categorical.kl(THIRDS, THIRDS, axis=1), "p must have a non-empty axis 1"),
        (
            lambda: categorical.kl(THIRDS, jnp.array([0.5, 0.6, 0.0])),
            "q must be non-negative probabilities that sum to one; got a sum of 1.1",
        ),
        (lambda: categorical.entropy(jnp.array([1.5, -0.5])), "p must be non-negative prob"),
        (lambda: categorical.kl(jnp.array([3, 1, 0]), THIRDS), r"categorical.Weights\(values\)"),
        (
            lambda: categorical.jensen_shannon(THIRDS, jnp.ones(3)),
            r"distributions\[1\] must be non-negative probabilities",
        ),
        (lambda: Logits(jnp.ones(3), temperature=0.0), "temperature must be a positive"),
        (lambda: Weights(jnp.ones(3), smoothing=-1.0), "smoothing must not be negative; got -1"),
        (lambda: categorical.Labels(jnp.array(0), 0), "num_classes must be an integer"),
        (lambda: categorical.entropy(categorical.Labels(0.5, 3)), "p must be integers"),
        (lambda: categorical.skew_kl(THIRDS, THIRDS, 1.0), r"alpha must lie in \[0, 1\)"),
        (lambda: categorical.renyi(THIRDS, THIRDS, -1.0), "alpha must be a finite number"),
        (lambda: categorical.renyi(THIRDS, THIRDS, np.inf), "alpha must be a finite number"),
        (lambda: categorical.generalized_kl(-THIRDS, THIRDS), "p must be non-negative; got -0.3"),
        (lambda: categorical.generalized_kl(THIRDS, jnp.ones(4)), "same number of classes"),
        (lambda: categorical.jensen_shannon(THIRDS), "two or more"),
        (lambda: categorical.jensen_shannon(THIRDS, THIRDS, base=1), "base must be"),
        (lambda: categorical.kl(THIRDS, THIRDS, base=0), "base must be"),
        (
            lambda: categorical.jensen_shannon(THIRDS, THIRDS, weights=jnp.ones(3)),
            r"weights must have shape \(2,\)",
        ),
        (
            lambda: categorical.jensen_shannon(THIRDS, THIRDS, weights=jnp.array([-1.0, 2.0])),
            "weights must be finite and non-negative",
        ),
        (lambda: categorical.pairwise(categorical.kl, THIRDS, jnp.eye(3)), "ps must"),
        (lambda: sampled.sampled_kl(jnp.ones(3), jnp.ones(3), "k4"), "estimator must be"),
        (lambda: sampled.sampled_kl(jnp.ones(3), jnp.ones(2)), "same shape"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("logit", [-20.0, -14.0, -3.0])
def test_a_total_variation_among_small_classes_keeps_its_digits(logit):
    """The class near one differs by less than its rounding in float32."""
    with jax.enable_x64(False):
        logits = np.array([[logit, logit - 2, 0.0], [logit - 1, logit, 0.0]], np.float32)
        tv = lambda a, b: categorical.total_variation(Logits(a), Logits(b))
        value, slopes = jax.value_and_grad(tv, (0, 1))(*logits)
    p, q = scipy.special.softmax(logits.astype(float), axis=1)
    np.testing.assert_allclose(value, np.abs(p - q).sum() / 2, rtol=2e-6)
    # ∂TV/∂a_k = ½ p_k (s_k − Σ_i p_i s_i) with the signs s of p − q.
    for slope, own, sign in zip(slopes, (p, q), (1, -1), strict=True):
        signs = sign * np.sign(p - q)
        expected = own * (signs - own @ signs) / 2
        np.testing.assert_allclose(slope, expected, atol=1e-5 * np.abs(expected).max())


def test_masses_below_the_dtypes_range():
    """NumPy's 1e-50 is no zero: ½ log(½/1e-50) − ½ + 1e-50 and the first class's −½ log 2 + ½."""
    p, q = np.array([0.5, 0.5]), np.array([1.0, 1e-50])
    expected = np.sum(p * np.log(p / q) - p + q)
    np.testing.assert_allclose(categorical.generalized_kl(p, q), expected, rtol=1e-6)
    assert categorical.generalized_kl(p, np.array([1.0, 0.0])) == np.inf
