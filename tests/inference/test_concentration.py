"""Bounds against their formulas, simulated coverage, and the theorems they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from divjax import inference
from divjax.inference import Bounded, sum_of_means_lower_bound

EAGER = {
    "bernstein": inference.empirical_bernstein_lower_bound,
    "betting": inference.betting_lower_bound,
}
LOWER = {kind: jax.jit(bound) for kind, bound in EAGER.items()}
UPPER = {
    "bernstein": jax.jit(inference.empirical_bernstein_upper_bound),
    "betting": jax.jit(inference.betting_upper_bound),
}
both = pytest.mark.parametrize("kind", LOWER)
swept = {
    kind: jax.jit(
        jax.vmap(lambda v, c, bound=bound: bound(v, 0.0, 1.0, confidence_level=c), (0, None))
    )
    for kind, bound in LOWER.items()
}
# Distributions on [0, 1]: rare events, of either kind, skewed and smooth ones.
LAWS = {
    "rare": (lambda rng, shape: rng.binomial(1, 0.02, shape), 0.02),
    "even": (lambda rng, shape: rng.binomial(1, 0.5, shape), 0.5),
    "frequent": (lambda rng, shape: rng.binomial(1, 0.97, shape), 0.97),
    "beta": (lambda rng, shape: rng.beta(0.3, 3.0, shape), 0.3 / 3.3),
}


@both
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("n", [2, 10, 200])
def test_coverage(kind, law, n):
    """At most δ of the bounds are above the mean, up to four standard errors of 4000 draws."""
    draw, mean = LAWS[law]
    values = draw(np.random.default_rng(n), (4000, n)).astype(np.float32)
    wrong = np.mean(swept[kind](values, 0.8) > mean + 1e-6)
    assert wrong <= 0.2 + 4 * np.sqrt(0.2 * 0.8 / 4000)


def test_the_normal_interval_fails_where_the_bounds_hold():
    """Ten events of probability .97: nearly every sample has a variance of zero."""
    draw, mean = LAWS["frequent"]
    values = draw(np.random.default_rng(0), (4000, 10))
    normal = values.mean(1) - scipy.stats.norm.ppf(0.8) * values.std(1, ddof=1) / np.sqrt(10)
    assert np.mean(normal > mean) > 0.6


def bernstein(samples, confidence):
    """The bound of the docstring, written out."""
    log_term = np.log(2 / (1 - confidence))
    w = sum(np.var(x, ddof=1) / len(x) for x, *_ in samples)
    a = max((high - low) ** 2 / (len(x) * (len(x) - 1)) for x, low, high in samples)
    c = max((high - low) / len(x) for x, low, high in samples)
    mean = sum(np.mean(x) for x, *_ in samples)
    root = np.sqrt(2 * log_term * w + log_term**2 * a)
    return mean - root - log_term * (np.sqrt(a) + c / 3)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 2e-5), (np.float64, 1e-12)])
def test_bernstein_is_its_formula_and_at_least_maurer_and_pontils(dtype, rtol):
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        for n in (30, 400):
            x = rng.beta(2, 5, n) * 3 - 1
            bound = LOWER["bernstein"](jnp.asarray(x, dtype), -1.0, 2.0, confidence_level=0.9)
            assert bound.dtype == dtype
            np.testing.assert_allclose(bound, bernstein([(x, -1, 2)], 0.9), rtol=rtol)
            log_term = np.log(2 / 0.1)
            published = x.mean() - np.sqrt(2 * x.var(ddof=1) * log_term / n)
            assert bound > published - 7 * 3 * log_term / (3 * (n - 1))
        y = rng.uniform(0, 5, 70)
        samples = (
            Bounded(jnp.asarray(x, dtype), -1.0, 2.0),
            Bounded(jnp.asarray(y, dtype), 0.0, 5.0),
        )
        expected = bernstein([(x, -1, 2), (y, 0, 5)], 0.95)
        np.testing.assert_allclose(sum_of_means_lower_bound(*samples), expected, rtol=rtol)


def test_two_samples_cover_and_are_tighter_than_two_bounds():
    rng = np.random.default_rng(2)
    x, y = rng.binomial(1, 0.9, (4000, 60)), 3 * rng.beta(1, 4, (4000, 200))
    confidence, truth = 0.8, 0.9 + 0.6

    @jax.jit
    @jax.vmap
    def bounds(x, y):
        joint = sum_of_means_lower_bound(
            Bounded(x, 0.0, 1.0), Bounded(y, 0.0, 3.0), confidence_level=confidence
        )
        alone = [
            LOWER["bernstein"](v, 0.0, high, confidence_level=(1 + confidence) / 2)
            for v, high in ((x, 1.0), (y, 3.0))
        ]
        return joint, sum(alone)

    joint, split = bounds(x.astype(np.float32), y.astype(np.float32))
    assert np.mean(joint > truth) <= 0.2 + 4 * 0.4 / np.sqrt(4000)
    assert np.mean(joint) > np.mean(split) + 0.05


def test_the_sums_variance_is_self_bounding():
    """What E[W] is bounded by: Σ_k (W − inf_k W)² ≤ a W, and no decrease above a."""
    rng = np.random.default_rng(3)
    for n, m, high in ((2, 7, 1.0), (5, 3, 4.0), (6, 6, 1.0)):
        x, y = rng.binomial(1, 0.4, n) * 1.0, high * rng.uniform(size=m)
        w = lambda x, y: np.var(x, ddof=1) / len(x) + np.var(y, ddof=1) / len(y)
        a = max(1 / (n * (n - 1)), high**2 / (m * (m - 1)))
        drops = []
        for sample, other, swap in ((x, y, False), (y, x, True)):
            for k in range(len(sample)):
                moved = sample.copy()
                moved[k] = np.delete(sample, k).mean()  # where the variance is least
                drops.append(w(x, y) - (w(other, moved) if swap else w(moved, other)))
        assert min(drops) > -1e-12
        assert max(drops) <= a + 1e-12
        assert np.sum(np.square(drops)) <= a * w(x, y) + 1e-12


def capital(x, m, confidence, c=0.75):
    """The gambler's largest capital, value by value."""
    n, target = len(x), np.log(1 / (1 - confidence))
    best = log = 0.0
    mean_sum, squares, variance = 0.5, 0.25, 0.25
    for t, value in enumerate(x, start=1):
        stake = min(np.sqrt(2 * target / (n * variance)), c / m)
        log += np.log1p(stake * (value - m))
        best = max(best, log)
        mean_sum += value
        squares += (value - mean_sum / (t + 1)) ** 2
        variance = squares / (t + 1)
    return best - target


@pytest.mark.parametrize("law", ["even", "frequent", "beta"])
def test_the_capital_reaches_its_target_at_the_betting_bound(law):
    x = LAWS[law][0](np.random.default_rng(4), 60).astype(float)
    with jax.enable_x64(True):
        bound = float(LOWER["betting"](jnp.asarray(x), 0.0, 1.0, confidence_level=0.9))
    np.testing.assert_allclose(capital(x, bound, 0.9), 0, atol=1e-10)
    assert capital(x, bound + 1e-6, 0.9) < 0 <= capital(x, bound - 1e-6, 0.9)


@pytest.mark.parametrize("n", [10, 200])
def test_betting_is_the_tighter(n):
    values = [draw(np.random.default_rng(n), (1000, n)) for draw, _ in LAWS.values()]
    values = np.concatenate(values).astype(np.float32)
    betting, bernstein = (
        np.asarray(swept[kind](values, 0.95)).reshape(len(LAWS), 1000).mean(axis=1)
        for kind in ("betting", "bernstein")
    )
    for (_, mean), one, other in zip(LAWS.values(), betting, bernstein, strict=True):
        assert one >= other
        if n == 200 and mean >= 0.5:  # the distance to the mean
            assert (mean - one) / (mean - other) < 0.8


@both
def test_masked_rows_are_absent_whatever_they_hold(kind):
    rng = np.random.default_rng(5)
    x = rng.uniform(1, 3, 50)
    mask = rng.uniform(size=80) < 0.5
    mask[:] = False
    mask[rng.choice(80, 50, replace=False)] = True
    padded = np.full(80, np.nan)
    padded[mask] = x
    with jax.enable_x64(True):
        alone = LOWER[kind](jnp.asarray(x), 1.0, 3.0)
        masked = LOWER[kind](jnp.asarray(padded), 1.0, 3.0, mask=jnp.asarray(mask))
        np.testing.assert_allclose(masked, alone, rtol=1e-12)
        gradient = jax.jit(jax.grad(LOWER[kind]))
        slopes = np.asarray(
            gradient(jnp.where(mask, padded, 2.0), 1.0, 3.0, mask=jnp.asarray(mask))
        )
    assert np.all(slopes[~mask] == 0)
    assert np.isfinite(slopes).all()


@both
def test_little_data_says_nothing_and_illegal_data_is_flagged(kind):
    bound, values = LOWER[kind], jnp.linspace(-1.0, 2.0, 50)
    assert bound(values, -1.0, 2.0, mask=jnp.zeros(50, bool)) == -1
    # Of one row in the middle nothing follows.
    assert bound(values, -1.0, 2.0, mask=jnp.arange(50) == 25) == -1
    assert jnp.isnan(bound(values, -1.0, 1.9))
    assert jnp.isnan(bound(values.at[3].set(jnp.nan), -1.0, 2.0))
    # An end that rounds differently in another precision is no violation.
    assert jnp.isfinite(bound(jnp.full(50, jnp.nextafter(jnp.log(2.0), 2.0)), 0.0, np.log(2)))


@both
def test_upper_bounds_mirror_lower_ones(kind):
    x = jax.random.uniform(jax.random.key(0), (100,))
    upper = UPPER[kind](x, 0.0, 1.0)
    np.testing.assert_allclose(upper, 1 - LOWER[kind](1 - x, 0.0, 1.0), rtol=1e-5)
    assert LOWER[kind](x, 0.0, 1.0) < x.mean() < upper


@both
def test_bounds_follow_shift_and_scale_and_fall_with_confidence(kind):
    x = jax.random.uniform(jax.random.key(1), (200,))
    plain = LOWER[kind](x, 0.0, 1.0)
    moved = LOWER[kind](5 * x - 2, -2.0, 3.0)
    np.testing.assert_allclose(moved, 5 * plain - 2, atol=1e-5)
    confidences = jnp.array([0.5, 0.9, 0.99, 1 - 1e-6])
    bounds = [LOWER[kind](x, 0.0, 1.0, confidence_level=c) for c in confidences]
    assert np.all(np.diff(bounds) < 0)
    together = jax.vmap(lambda c: LOWER[kind](x, 0.0, 1.0, confidence_level=c))(confidences)
    np.testing.assert_allclose(together, bounds, rtol=1e-5)


@both
def test_gradients_are_differences(kind):
    x = np.random.default_rng(6).uniform(size=60)
    with jax.enable_x64(True):
        bound = jax.jit(lambda x, c: LOWER[kind](x, 0.0, 1.0, confidence_level=c))
        gradients = jax.jit(jax.grad(bound, (0, 1)))
        gradient, slope = gradients(x, 0.9)
        direction, step = np.cos(np.arange(60)), 1e-6
        for exact, ends in (
            (gradient @ direction, [(x + s * direction, 0.9) for s in (step, -step)]),
            (slope, [(x, 0.9 + step), (x, 0.9 - step)]),
        ):
            high, low = (bound(*end) for end in ends)
            np.testing.assert_allclose(exact, (high - low) / (2 * step), rtol=1e-5)
        # Values without a variance.
        constant, _ = gradients(jnp.full(60, 0.7), 0.9)
    assert jnp.isfinite(constant).all()


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((jnp.zeros((2, 2)), 0.0, 1.0), {}, r"values must be a non-empty vector; got shape \(2, 2"),
        ((jnp.zeros(0), 0.0, 1.0), {}, "values must be a non-empty vector"),
        ((jnp.zeros(3), 1.0, 1.0), {}, "lower must be below upper; got 1.0 and 1.0"),
        (
            (jnp.zeros(3), 0.0, 1.0),
            {"confidence_level": 1.0},
            r"confidence_level must be .* got 1.0",
        ),
        ((jnp.zeros(3), 0.0, 1.0), {"mask": jnp.ones(2, bool)}, r"mask must be booleans .*\(3,\)"),
        ((jnp.zeros(3), 0.0, 1.0), {"mask": jnp.ones(3)}, "mask must be booleans"),
    ],
)
@both
def test_bad_input_is_named(kind, arguments, keywords, message):
    with pytest.raises(ValueError, match=message):
        EAGER[kind](*arguments, **keywords)


def test_no_sample_is_named():
    with pytest.raises(ValueError, match="at least one Bounded"):
        sum_of_means_lower_bound()


@both
@pytest.mark.parametrize("confidence", [-0.5, 0.0, 1.0, 1.5])
def test_traced_confidence_out_of_range(kind, confidence):
    x = jax.random.uniform(jax.random.key(0), (50,))
    assert jnp.isnan(LOWER[kind](x, 0.0, 1.0, confidence_level=jnp.asarray(confidence)))


def test_values_with_ends_of_their_own():
    """The ends only limit stakes: wider ones of single values cost a little, and not as all do."""
    x = jax.random.uniform(jax.random.key(2), (300,))
    bet = jax.jit(lambda lower: LOWER["betting"](x, lower, 1.0))
    narrow, few, wide = (bet(-5.0 * mask) for mask in (x > 2, jnp.arange(300) % 10 == 0, x < 2))
    np.testing.assert_allclose(narrow, LOWER["betting"](x, 0.0, 1.0), rtol=1e-5)
    assert wide < few < narrow < x.mean()


@pytest.mark.parametrize("kind", UPPER)
def test_bounds_do_not_leave_the_interval_by_rounding(kind):
    ones = np.ones(3)
    for end in (1.0, 3.0, 0.1, 1e5):
        assert float(UPPER[kind](end * ones, 0.0, end)) <= np.float32(end)
        assert float(EAGER[kind](end * ones, end, 2 * end)) >= np.float32(end)


@pytest.mark.parametrize("kind", EAGER)
def test_rows_that_do_not_count_have_ends_that_do_not(kind):
    values, mask = np.array([0.2, 0.4, 0.3, 0.6, np.nan]), np.arange(5) < 4
    lower, upper = np.array([0, 0, 0, 0, -np.inf]), np.array([1, 1, 1, 1, 1e30])
    expected = EAGER[kind](values[:4], 0.0, 1.0)
    for hold in (np.asarray, jnp.asarray):
        bound = EAGER[kind](hold(values), hold(lower), hold(upper), mask=hold(mask))
        np.testing.assert_allclose(bound, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_bounds_of_half_precision_are_not_computed_in_it(dtype):
    """Every row is the mean: no bound may be on its other side."""
    for value, lower, upper, n in ((1000.5, 1000.2, 1010.2, 1000), (0.0006, -1.0, 1.0, 100_000)):
        values = np.full(n, value).astype(dtype)
        mean = float(values[0])
        if not lower <= mean <= upper:  # the half-precision number is another one
            continue
        for bound in (inference.betting_lower_bound, inference.empirical_bernstein_lower_bound):
            assert lower <= bound(values, lower, upper) <= mean
        for bound in (inference.betting_upper_bound, inference.empirical_bernstein_upper_bound):
            assert mean <= bound(values, lower, upper) <= upper
