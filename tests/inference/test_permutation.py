"""Permutation tests: exact levels by enumeration, SciPy's p-values, strata, power."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from divjax import inference
from divjax.core.types import Status
from divjax.inference import permutation, permutation_test, score_permutation_test

KEY = jax.random.key(0)
jit_scores = jax.jit(
    score_permutation_test, static_argnames=("kind", "num_permutations", "batch_size")
)


def difference(x, y):
    return jnp.mean(x) - jnp.mean(y)


def exact_p_value(statistic, x, y):
    """Over all ways to choose the rows of the first sample."""
    pooled, n = np.concatenate([x, y]), len(x)
    observed, null = statistic(x, y), []
    for chosen in itertools.combinations(range(len(pooled)), n):
        rest = np.setdiff1d(np.arange(len(pooled)), chosen)
        null.append(statistic(pooled[list(chosen)], pooled[rest]))
    return np.mean(np.asarray(null) >= observed - 1e-9)


def close_to(p_value, exact, num_permutations):
    """(1 + B)/(1 + N), B binomial."""
    expected = (1 + num_permutations * exact) / (1 + num_permutations)
    return abs(p_value - expected) < 4 * np.sqrt(exact * (1 - exact) / num_permutations) + 1e-6


STATISTICS = {
    "mean": lambda x, y: np.mean(x) - np.mean(y),
    "auc": lambda x, y: np.mean((x[:, None] > y) + 0.5 * (x[:, None] == y)),
    "accuracy": lambda x, y: (2 + np.mean(np.sign(x)) - np.mean(np.sign(y))) / 4,
}


@pytest.mark.parametrize("kind", STATISTICS)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_scores_p_value_is_the_enumerated_one(kind, offset):
    """With ties within the samples and of the statistic, also far from the origin."""
    x, y = np.array([1.0, 2.0, 2.0, -1.0, 0.5]) + offset, np.array([0.0, 2.0, -1.0, -2.0]) + offset
    test = jit_scores(KEY, x, y, kind, num_permutations=4000)
    np.testing.assert_allclose(test.statistic, STATISTICS[kind](x, y), rtol=1e-4)
    assert close_to(test.p_value, exact_p_value(STATISTICS[kind], x, y), 4000)


def test_the_p_value_of_any_statistic_is_the_enumerated_one():
    rng = np.random.default_rng(1)
    x, y = rng.normal(0.8, 1, (5, 2)), rng.normal(0, 1, (4, 2))
    distance = lambda x, y: ((x.mean(0) - y.mean(0)) ** 2).sum()
    test = permutation_test(
        KEY, distance, jnp.asarray(x), jnp.asarray(y), num_permutations=4000, batch_size=500
    )
    np.testing.assert_allclose(test.statistic, distance(x, y), rtol=1e-5)
    assert close_to(test.p_value, exact_p_value(distance, x, y), 4000)


def test_the_general_and_the_fast_form_agree_with_scipy():
    rng = np.random.default_rng(2)
    x, y = rng.normal(0.5, 1, 40), rng.normal(0, 1, 30)
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    fast = jit_scores(KEY, x, y, "mean", num_permutations=3000)
    general = permutation_test(KEY, difference, x, y, num_permutations=3000, batch_size=100)
    # The same key, the same permutations.
    np.testing.assert_allclose(general.statistic, fast.statistic, rtol=1e-5)
    np.testing.assert_allclose(general.null, fast.null, atol=1e-6)
    theirs = scipy.stats.ttest_ind(x, y, alternative="greater").pvalue
    assert close_to(fast.p_value, theirs, 3000)
    ranks = jit_scores(KEY, x, y, num_permutations=3000)
    theirs = scipy.stats.mannwhitneyu(x, y, alternative="greater").pvalue
    assert close_to(ranks.p_value, theirs, 3000)


def test_the_level_is_exact_for_every_key():
    """Under the null p ≤ α with probability ≤ α, and = α without ties if α(1 + N) is an integer."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(3000, 7)).astype(np.float32)
    keys = jax.random.split(KEY, 3000)
    test = lambda key, v: score_permutation_test(key, v[:3], v[3:], "mean", num_permutations=19)
    p_values = np.asarray(jax.jit(jax.vmap(test))(keys, rows).p_value)
    # 35 relabellings: one of them is drawn again among 19 now and then, and counts as a tie.
    for alpha in (0.1, 0.25, 0.5):
        share = np.mean(p_values <= alpha + 1e-6)
        assert share < alpha + 4 * np.sqrt(alpha * (1 - alpha) / 3000)
        assert share > alpha - 0.05
    discrete = np.round(rows)
    p_values = np.asarray(jax.jit(jax.vmap(test))(keys, discrete).p_value)
    assert np.mean(p_values <= 0.1 + 1e-6) < 0.1 + 4 * 0.3 / np.sqrt(3000)


def test_permutations_are_uniform_within_strata():
    """Each of the 2! 3! orders that keep strata equally often, and no other."""
    strata = jnp.array([1, 0, 1, 0, 1])
    keys = jax.random.split(KEY, 6000)
    orders = np.asarray(jax.vmap(lambda key: permutation._permutation(key, 5, strata))(keys))
    assert np.all(np.asarray(strata)[orders] == np.asarray(strata))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 12
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_strata_remove_what_differs_between_strata():
    """Two sites, one with high values and mostly x: pooled it looks like a difference."""
    rng = np.random.default_rng(4)
    site_x, site_y = np.repeat([0, 1], [40, 10]), np.repeat([0, 1], [10, 40])
    x, y = rng.normal(size=50) - 3 * site_x, rng.normal(size=50) - 3 * site_y
    strata = (jnp.asarray(site_x), jnp.asarray(site_y))
    pooled = jit_scores(KEY, x, y, num_permutations=499)
    within = jit_scores(KEY, x, y, num_permutations=499, strata=strata)
    assert pooled.p_value < 0.01 < 0.05 < within.p_value
    moved = permutation_test(
        KEY, difference, jnp.asarray(x + 1.5), jnp.asarray(y), num_permutations=199, strata=strata
    )
    assert moved.p_value == pytest.approx(1 / 200)


def grouped_p_value(statistic, x, y, of_x, of_y):
    """Over all ways to choose as many groups as x has."""
    pooled, labels = np.concatenate([x, y]), np.concatenate([of_x, of_y])
    observed, null, names = statistic(x, y), [], np.unique(labels)
    for chosen in itertools.combinations(names, len(np.unique(of_x))):
        in_x = np.isin(labels, chosen)
        null.append(statistic(pooled[in_x], pooled[~in_x]))
    return np.mean(np.asarray(null) >= observed - 1e-9)


@pytest.mark.parametrize("kind", STATISTICS)
def test_groups_p_value_is_the_enumerated_one(kind):
    """Groups of unequal sizes, their rows apart from each other."""
    of_x, of_y = np.array([3, 7, 3, 7, 7, 3, 5]), np.array([1, 2, 1, 9, 9, 2, 9, 9])
    rng = np.random.default_rng(5)
    x, y = rng.normal(0.5, 1, 7).round(1), rng.normal(0, 1, 8).round(1)
    test = jit_scores(KEY, x, y, kind, num_permutations=4000, groups=(of_x, of_y))
    np.testing.assert_allclose(test.statistic, STATISTICS[kind](x, y), rtol=1e-4)
    exact = grouped_p_value(STATISTICS[kind], x, y, of_x, of_y)
    assert 0.05 < exact < 0.95
    assert close_to(test.p_value, exact, 4000)


def test_groups_of_one_size_trade_places_in_any_statistic():
    of_x, of_y = np.array(list("abba")), np.array(list("ccdeedee"))
    x, y = np.array([2.0, 1.0, 0.0, 1.5]), np.array([0.5, 1.0, -1.0, 0.0, 0.3, 1.2, 0.1, 0.7])
    test = permutation_test(
        KEY, difference, jnp.asarray(x), jnp.asarray(y), num_permutations=2000, groups=(of_x, of_y)
    )
    # The group e has four rows; a, b, c and d have two each.
    pooled, labels = np.concatenate([x, y]), np.concatenate([of_x, of_y])
    null = [
        pooled[np.isin(labels, pair)].mean() - pooled[~np.isin(labels, pair)].mean()
        for pair in itertools.combinations("abcd", 2)
    ]
    np.testing.assert_allclose(np.unique(test.null), np.unique(null), rtol=1e-5)
    exact = np.mean(np.asarray(null) >= test.statistic - 1e-6)
    assert close_to(test.p_value, exact, 2000)


def test_rows_of_a_group_are_no_independent_rows():
    """Twelve subjects of ten rows each, without any difference: the level holds by groups alone."""
    rng = np.random.default_rng(6)
    subjects, noise = rng.normal(size=(400, 12, 1)), rng.normal(size=(400, 12, 10))
    scores = np.float32(subjects + 0.5 * noise).reshape(400, 120)
    labels = np.repeat(np.arange(12), 10)

    def p_values(groups):
        test = lambda key, row: score_permutation_test(
            key, row[:60], row[60:], num_permutations=39, groups=groups
        )
        keys = jax.random.split(KEY, 400)
        return np.asarray(
            jax.jit(lambda s: jax.lax.map(lambda v: test(*v).p_value, s))((keys, scores))
        )

    error = 4 * np.sqrt(0.05 * 0.95 / 400)
    assert np.mean(p_values(None) <= 0.05) > 0.25
    assert abs(np.mean(p_values((labels[:60], labels[60:])) <= 0.05) - 0.05) < error


def test_groups_stay_within_their_strata():
    site_x, site_y = np.repeat([0, 1], [16, 2]), np.repeat([0, 1], [4, 14])
    of_x, of_y = np.arange(18) // 2, 9 + np.arange(18) // 2
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=18) - 9 * site_x, rng.normal(size=18) - 9 * site_y
    options = dict(num_permutations=499, groups=(of_x, of_y))
    assert jit_scores(KEY, x, y, **options).p_value < 0.02
    within = jit_scores(KEY, x, y, **options, strata=(site_x, site_y))
    assert within.p_value > 0.05
    # Eight of ten groups of one site, one of eight of the other: 45 · 8 samples.
    assert 20 < len(np.unique(np.round(within.null, 5))) <= 360


def test_a_group_in_both_samples_is_refused_or_flagged():
    of_x, of_y = jnp.array([0, 0, 1]), jnp.array([1, 2, 2])
    x, y = jnp.array([3.0, 2.0, 1.0]), jnp.array([0.0, 1.0, 2.0])
    for test in (
        lambda groups: score_permutation_test(KEY, x, y, groups=groups),
        lambda groups: permutation_test(KEY, difference, x, y, groups=groups),
    ):
        with pytest.raises(ValueError, match="groups must lie in one sample"):
            test((of_x, of_y))
        traced = jax.jit(lambda *groups, test=test: test(groups))(of_x, of_y)
        assert jnp.isnan(traced.p_value)
        assert traced.status == Status.INVALID_INPUT


def test_a_statistic_that_is_not_a_number_has_no_p_value():
    nan = lambda x, y: jnp.sum(x) * jnp.nan
    test = permutation_test(KEY, nan, jnp.ones(3), jnp.zeros(3), num_permutations=19)
    assert jnp.isnan(test.p_value)
    assert test.status == Status.NOT_FINITE
    scores = jnp.array([5.0, 6.0, jnp.nan])
    test = jit_scores(KEY, scores, jnp.zeros(3), num_permutations=19)
    assert jnp.isnan(test.p_value)
    assert jnp.isnan(test.statistic)


def test_a_null_that_is_not_a_number_counts_against():
    """The observed order alone has a number."""
    statistic = lambda x, y: jnp.where((x > y).all(), 1.0, jnp.nan)
    test = permutation_test(
        KEY, statistic, jnp.arange(9.0) + 9, jnp.arange(9.0), num_permutations=19
    )
    assert test.p_value == 1
    assert test.status == Status.NOT_FINITE
    assert len(repr(test)) < 200


def test_batches_change_nothing():
    x, y = jnp.arange(6.0), jnp.arange(4.0)
    one = jit_scores(KEY, x, y, num_permutations=7)
    batched = jit_scores(KEY, x, y, num_permutations=7, batch_size=3)
    np.testing.assert_allclose(one.null, batched.null, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtypes_are_kept(dtype):
    with jax.enable_x64(True):
        x, y = jax.ShapeDtypeStruct((6,), dtype), jax.ShapeDtypeStruct((4,), dtype)
        general = lambda key, x, y: permutation_test(key, difference, x, y, num_permutations=7)
        for test in (general, *(lambda *args, k=k: jit_scores(*args, k) for k in STATISTICS)):
            found = jax.eval_shape(test, KEY, x, y)
            floats = found.statistic, found.p_value, found.null
            assert {leaf.dtype for leaf in floats} == {jnp.dtype(dtype)}


def test_rows_may_be_lists_and_integers():
    x, y = [3, 4, 5, 6], np.array([0, 1, 2])
    expected = permutation_test(KEY, difference, jnp.array([3.0, 4, 5, 6]), jnp.array([0.0, 1, 2]))
    np.testing.assert_array_equal(permutation_test(KEY, difference, x, y).null, expected.null)


def test_rows_may_be_of_any_shape():
    images = jax.random.normal(KEY, (12, 4, 4))
    statistic = lambda x, y: jnp.abs(jnp.mean(x) - jnp.mean(y))
    test = permutation_test(KEY, statistic, images[:6] + 3, images[6:], num_permutations=99)
    assert test.p_value < 0.05
    assert test.null.shape == (99,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: permutation_test(0, difference, jnp.ones(3), jnp.ones(3)), "key must be one"),
        (lambda: permutation_test(KEY, 1.0, jnp.ones(3), jnp.ones(3)), "statistic must be a func"),
        (
            lambda: permutation_test(KEY, lambda x, y: x, jnp.ones(3), jnp.ones(3)),
            r"statistic must return a scalar; got shape \(3,\)",
        ),
        (lambda: permutation_test(KEY, difference, jnp.ones(0), jnp.ones(3)), "x must have at"),
        (
            lambda: permutation_test(KEY, difference, jnp.ones(2), ["a", "b"]),
            "y must hold real numbers; got entries of type str",
        ),
        (
            lambda: permutation_test(KEY, difference, jnp.ones((3, 2)), jnp.ones((3, 1))),
            "x and y must have rows of the same shape",
        ),
        (
            lambda: inference.score_permutation_test(KEY, jnp.ones(3), jnp.ones(3), "median"),
            'kind must be "mean", "auc" or "accuracy"; got \'median\'',
        ),
        (
            lambda: score_permutation_test(KEY, jnp.ones(3), jnp.ones(3), num_permutations=0),
            "num_permutations must be an integer of at least 1; got 0",
        ),
        (
            lambda: score_permutation_test(
                KEY, jnp.ones(3), jnp.ones(2), strata=(jnp.ones(3), jnp.ones(3))
            ),
            r"strata must be two vectors, of shapes \(3,\) and \(2,\)",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kind", ["auc", "mean", "accuracy"])
def test_masked_rows_do_not_count(kind):
    x, y = jax.random.normal(jax.random.key(0), (2, 40))
    x = x + 0.5
    masks = jnp.arange(40) % 3 > 0, jnp.arange(40) % 2 > 0
    masked = score_permutation_test(jax.random.key(1), x, y, kind, masks=masks)
    alone = score_permutation_test(jax.random.key(2), x[masks[0]], y[masks[1]], kind)
    np.testing.assert_allclose(masked.statistic, alone.statistic, rtol=1e-5)
    # Both nulls sample one distribution: their means and spreads agree within sampling error.
    spread = float(jnp.std(alone.null))
    assert abs(float(jnp.mean(masked.null) - jnp.mean(alone.null))) < 4 * spread / np.sqrt(500)
    assert abs(float(jnp.std(masked.null)) / spread - 1) < 4 / np.sqrt(1000)


def test_masks_are_booleans():
    scores, masks = jnp.arange(4.0), (np.array([0, 1, 1, 2]), np.ones(4, int))
    with pytest.raises(ValueError, match="masks must hold booleans"):
        score_permutation_test(KEY, scores, scores, masks=masks)
    with pytest.raises(ValueError, match="masks must hold booleans"):
        jax.jit(lambda masks: score_permutation_test(KEY, scores, scores, masks=masks))(masks)


@pytest.mark.parametrize("dtype", [np.longdouble, ">f8"])
def test_rows_of_any_kind_of_float(dtype):
    x, y = np.random.default_rng(0).normal(size=(2, 9))
    test = lambda x, y: inference.permutation_test(
        jax.random.key(0), lambda u, v: u.mean() - v.mean(), x, y, num_permutations=50
    )
    assert test(x.astype(dtype), y.astype(dtype)).p_value == test(x, y).p_value


def test_traced_integers_keep_their_order():
    """Integers that float32 would merge, all of x above all of y."""
    x, y = jnp.arange(2**30, 2**30 + 8), jnp.arange(2**30 - 8, 2**30)
    test = lambda x, y: score_permutation_test(KEY, x, y, "auc", num_permutations=99)
    for call in (test, jax.jit(test)):
        found = call(x, y)
        assert found.statistic == 1
        assert found.p_value < 0.05


@pytest.mark.parametrize("padding", [1, 50])
def test_masked_rows_do_not_tie_with_infinite_scores(padding):
    """Five of the 25 pairs are in order. At the top, padding would raise the ranks of infinity."""
    x = jnp.array([jnp.inf, 0.1, 0.2, 0.3, 0.4])
    y = jnp.array([1.0, 2.0, 3.0, 0.5, 0.6])
    padded = [jnp.append(scores, jnp.full(padding, 7.0)) for scores in (x, y)]
    counted = jnp.arange(5 + padding) < 5
    found = score_permutation_test(KEY, *padded, "auc", masks=(counted, counted))
    np.testing.assert_allclose(found.statistic, 0.2, rtol=1e-6)
    assert found.null.max() <= 1 + 1e-6


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("offset", [36.6, 100.0])
def test_ties_far_from_zero_are_ties(offset, x64):
    """A difference of means of two-valued rows is a count: the test is the hypergeometric one.

    It is a small difference of large sums, which round by more than its own last digits.
    """
    difference = lambda x, y: x.mean() - y.mean()
    with jax.enable_x64(x64):
        for n, ones_x, ones_y in [(10, 7, 3), (50, 30, 23)]:
            rng = np.random.default_rng(n)
            x = 0.1 * rng.permutation(np.repeat([1.0, 0.0], [ones_x, n - ones_x]))
            y = 0.1 * rng.permutation(np.repeat([1.0, 0.0], [ones_y, n - ones_y]))
            of = lambda shift, x=x, y=y: permutation_test(
                jax.random.key(1), difference, x + shift, y + shift, num_permutations=1999
            )
            exact = scipy.stats.hypergeom.sf(ones_x - 1, 2 * n, ones_x + ones_y, n)
            assert abs(float(of(offset).p_value) - exact) < 4 * np.sqrt(exact * (1 - exact) / 2000)
            assert float(of(offset).p_value) == float(of(0.0).p_value)


def test_no_p_value_is_below_the_share_of_the_observed_split():
    """With three rows a sample, one relabelling in twenty is the observed one."""
    x, y = np.array([299.35, 300.19, 300.37]), np.array([298.3, 298.65, 298.85])
    difference = lambda x, y: x.mean() - y.mean()
    test = permutation_test(jax.random.key(0), difference, x, y, num_permutations=1999)
    assert abs(float(test.p_value) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 2000)


def test_a_statistic_that_depends_on_the_order_of_rows_keeps_its_p_value():
    """As one that learns from the first rows and is tested on the others."""
    x, y = jax.random.normal(jax.random.key(0), (2, 40)) + jnp.array([[0.5], [0.0]])
    first = lambda x, y: x[:10].mean() - y[:10].mean()
    test = permutation_test(jax.random.key(1), first, x, y, num_permutations=1999)
    counted = (1 + np.sum(np.asarray(test.null) >= float(test.statistic))) / 2000
    assert 0 <= float(test.p_value) - counted < 0.006


@pytest.mark.parametrize("unit", [1e-50, 1e-42, 1e-38])
def test_scores_below_the_dtypes_range_are_flagged(unit):
    """As raw likelihoods are: XLA computes with zeros."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=20) + 2) * unit, rng.normal(size=20) * unit
    key = jax.random.key(0)
    by_mean = score_permutation_test(key, x, y, "mean", num_permutations=99)
    assert by_mean.status == Status.FLOATING_POINT_RESOLUTION
    difference = lambda x, y: x.mean() - y.mean()
    recomputed = permutation_test(key, difference, x, y, num_permutations=99)
    assert recomputed.status == Status.FLOATING_POINT_RESOLUTION or recomputed.p_value == 0.01
    # The order of the scores is that of numbers of any size.
    by_rank = score_permutation_test(key, x, y, num_permutations=99)
    assert by_rank.converged
    assert by_rank.p_value == np.float32(0.01)
