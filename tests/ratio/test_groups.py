"""Rows that depend on each other: in one fold, exchanged as one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.core.types import Status
from divjax.ratio import ClassifierRatio, TelescopingRatio
from divjax.ratio import heads as h
from tests.ratio.test_cross_fitting import parts_played, spy

KEY = jax.random.key(0)


def subjects(seed, num_p=12, num_q=15, rows=5, both=0):
    """Rows of subjects, of whom the first `both` have rows in both samples."""
    rng = np.random.default_rng(seed)
    of_p, of_q = np.arange(num_p), np.arange(num_q) + num_p - both
    of_p, of_q = (rng.permutation(np.repeat(names, rows)) for names in (of_p, of_q))
    means = rng.normal(size=(num_p + num_q, 2))
    p, q = (means[of] + 0.3 * rng.normal(size=(len(of), 2)) for of in (of_p, of_q))
    return np.float32(p), np.float32(q), (of_p, of_q)


@pytest.mark.parametrize("both", [0, 4])
def test_rows_of_a_group_play_one_part(both):
    p, q, groups = subjects(1, both=both)
    fit = spy(3).fit(KEY, p, q, groups=groups)
    parts = {}
    for sample, name, of, held in (
        (p, "p", groups[0], fit.held_out_p),
        (q, "q", groups[1], fit.held_out_q),
    ):
        train, validation = parts_played(fit, sample, name)
        np.testing.assert_allclose(train.sum(axis=2), 1, rtol=1e-5)
        np.testing.assert_allclose(validation.sum(axis=2), 1, rtol=1e-5)
        assert ((train > 0) & (validation > 0)).sum() == 0
        tests = (train == 0) & (validation == 0)
        assert (tests.sum(axis=1) == 1).all()
        np.testing.assert_array_equal(tests[0].argmax(axis=0), held.fold)
        # Subjects are spread evenly over the folds of their kind.
        assert (tests.sum(axis=2) >= 5 * 2).all()
        for name in np.unique(of):
            own = np.sign(train[..., of == name]) + 2 * np.sign(validation[..., of == name])
            assert (own == own[..., :1]).all()
            other = parts.setdefault(name, own[..., 0])
            np.testing.assert_array_equal(own[..., 0], other)


@pytest.mark.exhaustive
def test_each_row_its_own_group_is_no_group():
    p, q, _ = subjects(2)
    names = np.arange(len(p) + len(q))
    method = ClassifierRatio(h.Linear(0.5), num_folds=3)
    grouped = method.fit(KEY, p, q, groups=(names[: len(p)], names[len(p) :]))
    fits = [method.fit(key, p, q) for key in jax.random.split(KEY, 20)]
    values = np.array([fit.js().value for fit in fits])
    assert abs(grouped.js().value - values.mean()) < 4 * values.std()
    assert np.ptp(np.bincount(grouped.held_out_p.fold)) <= 1


@pytest.mark.exhaustive
def test_the_test_of_grouped_rows_has_its_level():
    """Twenty subjects a sample of ten rows each, alike: without groups a third is rejected."""
    method = ClassifierRatio(h.Quadratic(5.0), num_folds=2)
    names = np.repeat(np.arange(40), 10)
    groups = names[:200], names[200:]

    def p_values(key):
        mean_key, noise_key, fit_key, test_key = jax.random.split(key, 4)
        means = jnp.repeat(jax.random.normal(mean_key, (40, 2)), 10, axis=0)
        rows = means + 0.2 * jax.random.normal(noise_key, means.shape)
        fits = (method.fit(fit_key, rows[:200], rows[200:], groups=g) for g in (None, groups))
        return [fit.two_sample_test(test_key, num_permutations=99).p_value for fit in fits]

    keys = jax.random.split(jax.random.key(3), 400)
    alone, together = np.asarray(jax.jit(lambda keys: jax.lax.map(p_values, keys))(keys))
    assert np.mean(alone <= 0.05) > 0.2
    assert np.mean(together <= 0.05) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 400)
    assert np.mean(together <= 0.5) > 0.35


def test_a_difference_of_subjects_is_found():
    p, q, groups = subjects(4)
    p[:, 0] += 3  # pyright: ignore[reportIndexIssue]
    fit = ClassifierRatio(h.Linear(0.5), num_folds=3).fit(KEY, p, q, groups=groups)
    assert fit.two_sample_test(KEY).p_value < 0.01


def test_groups_that_are_refused_or_flagged():
    p, q, groups = subjects(5, both=2)
    method = ClassifierRatio(h.Linear(0.5), num_folds=3)
    few = np.repeat(np.arange(5), 12)
    for bad, message in (
        ((groups[0], groups[0]), r"groups must be two vectors, of shapes \(60,\) and \(75,\)"),
        (np.arange(135), r"of shapes \(60,\) and \(75,\); got one ndarray"),
        ((few, groups[1]), "groups must hold at least two groups of x per fold, 6 in all; got 5"),
    ):
        with pytest.raises(ValueError, match=message):
            method.fit(KEY, p, q, groups=bad)
    with pytest.raises(ValueError, match="groups are of single rows: pack_size must be 1; got 2"):
        TelescopingRatio(pack_size=2).fit(KEY, p, q, groups=groups)
    traced = jax.jit(lambda of_p, of_q: method.fit(KEY, p, q, groups=(of_p, of_q)))
    assert jnp.isnan(traced(few, groups[1]).js().value)
    # In folds a group may have rows in both samples; they cannot be exchanged.
    fit = traced(*groups)
    assert jnp.isfinite(fit.js().value)
    shared = method.fit(KEY, p, q, groups=groups)
    np.testing.assert_allclose(fit.log_ratio_p, shared.log_ratio_p, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="groups must lie in one sample"):
        shared.two_sample_test(KEY)
    test = jax.jit(lambda fit: fit.two_sample_test(KEY))(fit)
    assert test.status in (Status.INVALID_INPUT, Status.CONVERGED)


@pytest.mark.exhaustive
def test_errors_are_those_of_groups():
    """Five copies of each row are worth one row."""
    p, q = jax.random.normal(jax.random.key(6), (2, 300, 2))
    p = p.at[:, 0].add(1)
    method = ClassifierRatio(h.Linear(0.5), num_folds=2)
    plain = method.fit(KEY, p, q).js()
    copied = [jnp.repeat(x, 5, axis=0) for x in (p, q)]
    names = np.repeat(np.arange(600), 5)
    grouped = method.fit(KEY, *copied, groups=(names[:1500], names[1500:])).js()
    alone = method.fit(KEY, *copied).js()
    # Folds and models of the copies are others: within a factor, where five rows would make √5.
    np.testing.assert_allclose(grouped.std_error, plain.std_error, rtol=0.5)
    # Without their names, copies agree where the model is wrong, as if it missed something.
    assert not grouped.diagnostics.too_simple
    assert alone.diagnostics.too_simple
