"""What every function of the room takes, and what it refuses by the name of the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.stats

from divjax import inference
from divjax.inference.rank import midranks

BOUNDS = {
    name: getattr(inference, name)
    for name in (
        "betting_lower_bound",
        "betting_upper_bound",
        "empirical_bernstein_lower_bound",
        "empirical_bernstein_upper_bound",
    )
}
BOUNDS["sum_of_means_lower_bound"] = lambda *sample, mask=None, **options: (
    inference.sum_of_means_lower_bound(inference.Bounded(*sample, mask), **options)
)
TESTS = {
    f"{kind} test": lambda x, y, kind=kind: inference.score_permutation_test(
        jax.random.key(0), x, y, kind, num_permutations=19
    )
    for kind in ("mean", "auc", "accuracy")
}
SCORES = {"auc": inference.auc, "accuracy": inference.accuracy, **TESTS}
VALUES = [0.0, 1.0, 1.0, 0.25]
HELD = {
    "tuple": tuple,
    "array": np.array,
    "series": pd.Series,
    "nullable": lambda values: pd.Series(values, dtype="Float64"),
}
REFUSED = {"text": "abc", "none": None, "strings": ["a", "b"], "complex": np.array([1j, 2.0])}
VECTOR = jnp.array([0.5, 0.9])


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_of_numbers_in_whatever_holds_them(name):
    mask = [True, True, True, False]
    expected = BOUNDS[name](jnp.array(VALUES), 0.0, 1.0, mask=jnp.array(mask))
    for held in (*HELD.values(), list):
        found = BOUNDS[name](held(VALUES), np.float64(0), jnp.float32(1), mask=pd.Series(mask))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        found = BOUNDS[name](held(VALUES), [0.0] * 4, pd.Series([1.0] * 4), mask=mask)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_of_booleans(name):
    values = jnp.array([True, False, True, True])
    expected = BOUNDS[name](values.astype(float), 0.0, 1.0)
    for ends in ((0.0, 1.0), (0, True), (False, jnp.array(True))):
        np.testing.assert_allclose(BOUNDS[name](values, *ends), expected, rtol=1e-6)


@pytest.mark.parametrize("name", BOUNDS)
def test_ends_that_are_not_in_order(name):
    values = jnp.array(VALUES)
    for ends in (
        (1.0, 0.0),
        (np.float32(1), np.float32(1)),
        (jnp.zeros(4), jnp.array([1.0, 1.0, 0.0, 1.0])),
        (np.nan, 1.0),
    ):
        with pytest.raises(ValueError, match="lower must be below upper"):
            BOUNDS[name](values, *ends)
    assert jnp.isnan(jax.jit(BOUNDS[name])(values, 1.0, 0.0))
    padded = BOUNDS[name](values, 0.0, np.array([1, 1, 1, 0.0]), mask=np.arange(4) < 3)
    assert jnp.isfinite(padded)


@pytest.mark.parametrize("name", BOUNDS)
def test_ends_whose_rounding_hides_the_interval(name):
    """Not the values' place in it by chance."""
    values = np.random.default_rng(0).uniform(size=50)
    assert jnp.isnan(BOUNDS[name](values + 1e9, 1e9, 1e9 + 1))
    near = BOUNDS[name](values + 1e2, 1e2, 1e2 + 1) - 100
    np.testing.assert_allclose(near, BOUNDS[name](values, 0.0, 1.0), atol=1e-3)


@pytest.mark.parametrize("name", SCORES)
def test_scores_in_whatever_holds_them(name):
    x, y = [0.5, 1.5, -0.25, 2.0], [0.0, 1.0, -1.0]
    expected = jax.tree.leaves(SCORES[name](jnp.array(x), jnp.array(y)))
    for held in HELD.values():
        found = jax.tree.leaves(SCORES[name](held(x), held(y)))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", SCORES)
def test_scores_that_are_no_numbers(name, kind):
    for argument, pair in {
        "x": (REFUSED[kind], [0.0, 1.0]),
        "y": ([0.0, 1.0], REFUSED[kind]),
    }.items():
        with pytest.raises(ValueError, match=f"^{argument} must hold real numbers"):
            SCORES[name](*pair)


@pytest.mark.parametrize("name", ["auc", "accuracy"])
def test_weights_of_scores(name):
    x, y = [0.5, 1.5], [0.0, 1.0]
    expected = SCORES[name](jnp.array(x), jnp.array(y), jnp.array([1.0, 2.0]), jnp.ones(2))
    found = SCORES[name](x, y, pd.Series([1, 2]), [1, 1])
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-6)
    with pytest.raises(ValueError, match="b must hold real numbers"):
        SCORES[name](x, y, None, ["a", "b"])


@pytest.mark.parametrize("shift", [0.0, 1e9, -1e9])
def test_scores_far_from_zero_in_double_precision(shift):
    """float32 at 1e9 would tie all of them."""
    x, y = np.random.default_rng(0).normal(size=(2, 30)) + shift
    area = scipy.stats.mannwhitneyu(x, y).statistic / 900
    np.testing.assert_allclose(inference.auc(x, y).value, area, rtol=1e-6)
    for kind, expected in {"auc": area, "mean": x.mean() - y.mean()}.items():
        found = TESTS[f"{kind} test"](x, y).statistic
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    share = ((x > shift).mean() + (y < shift).mean()) / 2
    np.testing.assert_allclose(inference.accuracy(x, y, threshold=shift).value, share, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inference.normal_interval(0.3, -0.1), "std_error must not be negative; got -0.1"),
        (lambda: inference.normal_interval(0.3, np.array([0.1, -1])), "std_error must not be neg"),
        (lambda: inference.logit_interval(0.3, -0.1), "std_error must not be negative"),
        (lambda: inference.logit_interval(0.3, 0.1, upper=-1.0), "upper must be positive"),
        (lambda: inference.logit_interval(0.3, 0.1, upper=0), "upper must be positive"),
        (lambda: inference.normal_interval("a", 0.1), "value must hold real numbers"),
        (
            lambda: inference.normal_interval(0.3, 0.1, VECTOR),
            "confidence_level must be one real number",
        ),
        (
            lambda: inference.logit_interval(0.3, 0.1, VECTOR),
            "confidence_level must be one real number",
        ),
        (
            lambda: inference.auc([1.0], [0.0], confidence_level=VECTOR),
            "confidence_level must be one real number",
        ),
        (
            lambda: inference.accuracy([1.0], [0.0], confidence_level=VECTOR),
            "confidence_level must be one real number",
        ),
        (
            lambda: inference.accuracy([1.0], [0.0], threshold=VECTOR),
            "threshold must be one real number",
        ),
        (
            lambda: BOUNDS["betting_lower_bound"](VECTOR, 0, 1, confidence_level=VECTOR),
            "confidence_level must be",
        ),
        (lambda: BOUNDS["betting_lower_bound"](["a"], 0, 1), "values must hold real numbers"),
        (lambda: BOUNDS["betting_upper_bound"](None, 0, 1), "values must hold real numbers"),
        (lambda: BOUNDS["betting_upper_bound"](VECTOR, 0, 1, mask=["a", "b"]), "mask must be bool"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_traced_intervals_out_of_range_are_nan():
    normal, logit = jax.jit(inference.normal_interval), jax.jit(inference.logit_interval)
    assert jnp.isnan(jnp.stack(normal(0.3, -0.1))).all()
    assert jnp.isnan(jnp.stack(normal(0.3, jnp.nan))).all()
    for value in (0.3, 0.0, -1.0):
        for std_error, upper in ((-0.1, 1.0), (0.1, -1.0), (0.1, 0.0), (jnp.nan, 1.0)):
            assert jnp.isnan(jnp.stack(logit(value, std_error, upper=upper))).all()


def test_an_infinite_statistic():
    """Beside finite ones it counts as it is; where all are infinite it says nothing."""
    key, x, y = jax.random.key(0), jnp.arange(8.0), jnp.arange(8.0) + 100
    apart = lambda x, y: jnp.where(x.max() < y.min(), jnp.inf, 0.0)
    run = lambda statistic, x: inference.permutation_test(key, statistic, x, y, num_permutations=19)
    test = run(apart, x)
    assert float(test.p_value) == pytest.approx(0.05)
    assert test.status == 0
    assert float(run(lambda x, y: -apart(x, y), x).p_value) == 1
    difference = lambda x, y: jnp.abs(x.mean() - y.mean())
    test = run(difference, x.at[0].set(jnp.inf))
    assert jnp.isnan(test.p_value)
    assert test.status == 3


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_holds_values_and_no_more(name, dtype):
    """Bounds of the same numbers, which half precision rounds by less than a hundredth."""
    values = jnp.linspace(0.2, 0.8, 50)
    found = BOUNDS[name](values.astype(dtype), 0.0, 1.0)
    np.testing.assert_allclose(found, BOUNDS[name](values, 0.0, 1.0), atol=1e-2)


def _tied(dtype):
    """A thousand scores on a grid that bfloat16 holds exactly, shifted by a twentieth."""
    places = (np.arange(1000) % 100) / 128
    return jnp.asarray(places + 8 / 128, dtype), jnp.asarray(places, dtype)


@pytest.mark.parametrize(
    "dtype", [pytest.param(jnp.bfloat16, marks=pytest.mark.exhaustive), jnp.float16]
)
def test_ranks_and_sums_of_half_precision_scores(dtype):
    """The same numbers in another dtype have the same AUC, errors and p-values."""
    expected, found = _tied(jnp.float32), _tied(dtype)
    np.testing.assert_array_equal(*(jnp.stack(v).astype(float) for v in (found, expected)))
    for estimate in (inference.auc, inference.accuracy):
        one, other = estimate(*found), estimate(*expected)
        np.testing.assert_allclose(one.value, other.value, rtol=1e-6)
        np.testing.assert_allclose(one.std_error, other.std_error, rtol=1e-6)
        np.testing.assert_allclose(one.interval, other.interval, rtol=1e-6)
        np.testing.assert_allclose(one.effective_sample_size, 2000, rtol=1e-6)
    # Mann and Whitney's statistic in integers.
    x, y = (np.asarray(v, np.float64) for v in expected)
    wins = (x[:, None] > y).mean() + (x[:, None] == y).mean() / 2
    np.testing.assert_allclose(inference.auc(*found).value, wins, rtol=1e-6)
    np.testing.assert_array_equal(midranks(found[0]), scipy.stats.rankdata(np.asarray(expected[0])))
    for kind in ("auc", "mean", "accuracy"):
        run = lambda scores, kind=kind: inference.score_permutation_test(
            jax.random.key(0), *scores, kind, num_permutations=99
        )
        assert run(found).p_value == run(expected).p_value
    difference = lambda x, y: jnp.abs(x.mean() - y.mean())
    run = lambda scores: inference.permutation_test(
        jax.random.key(0), difference, *scores, num_permutations=99
    )
    assert run(found).p_value == run(expected).p_value <= 0.05


def test_many_strata_of_groups_do_not_wrap():
    """Values that are constant in each of 65 536 strata: no exchange changes the statistic."""
    size = 131_071
    order = np.concatenate([np.arange(0, size, 2), np.arange(1, size, 2)])
    stratum = np.arange(size) // 2
    values = jnp.asarray(stratum >= 32_768, jnp.float32)
    x, y = order[:65_536], order[65_536:]
    test = inference.permutation_test(
        jax.random.key(0),
        lambda x, y: jnp.abs(x[:65_535] - y).sum(),
        values[x],
        values[y],
        num_permutations=2,
        strata=(stratum[x], stratum[y]),
        groups=(x, y),
    )
    np.testing.assert_array_equal(test.null, 0)


def test_traced_integers_keep_their_order():
    high, low = jnp.array([16_777_217] * 2), jnp.array([16_777_216] * 2)
    area = lambda x, y: inference.auc(x, y).value
    assert area(high, low) == jax.jit(area)(high, low) == 1
    np.testing.assert_array_equal(jax.jit(midranks)(jnp.append(high, low)), [3.5, 3.5, 1.5, 1.5])
