"""Repetitions counted by brute force, and what a fit says against itself."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax.ratio import ClassifierRatio, heads, ties

KEY = jax.random.key(0)
ties_jit = jax.jit(ties)


def brute_force(p, q, a, b):
    """Shares of rows with a twin, and of values that others hold, by comparing all pairs."""
    p, q = np.asarray(p)[np.asarray(a) > 0], np.asarray(q)[np.asarray(b) > 0]

    def duplicates(x):
        same = (x[:, None] == x).all(axis=2)
        return np.mean(same.sum(axis=1) > 1)

    def shared(x, others):
        return np.mean((x[:, None] == others).all(axis=2).any(axis=1))

    def held(of, among, own):
        return np.mean([(among == value).sum() > own for value in of])

    lattice, copied = [], []
    for x, y in zip(p.T, q.T, strict=True):
        on_p = held(x, x, 1) - held(y, x, 0)
        on_q = held(y, y, 1) - held(x, y, 0)
        lattice.append(max(on_p, on_q, 0))
        copied.append(max(-on_p, -on_q, 0))
    return duplicates(p), duplicates(q), shared(p, q), shared(q, p), lattice, copied


def shares(found):
    return found.duplicates_p, found.duplicates_q, found.shared_p, found.shared_q


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("seed", range(4))
def test_ties_by_brute_force(seed, dtype):
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        p = np.stack([rng.integers(0, 3, 30), rng.normal(size=30)], 1)
        q = np.stack([rng.integers(0, 9, 25) / 2, rng.integers(0, 2, 25)], 1)
        p[20:] = p[:10]
        q[3] = q[17]
        q[5], q[6] = p[4], p[4]
        a, b = (rng.uniform(0, 1, 30) > 0.3) * 0.5, np.ones(25) * (seed % 2 + np.arange(25) % 2 > 0)
        p[a == 0] = np.nan
        found = ties_jit(*(jnp.asarray(x, dtype) for x in (p, q, a, b)))
        expected = brute_force(p.astype(dtype), q.astype(dtype), a, b)
        np.testing.assert_allclose(shares(found), expected[:4], rtol=1e-6)
        np.testing.assert_allclose(found.lattice, expected[4], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(found.copied, expected[5], rtol=1e-5, atol=1e-7)
        assert found.lattice.dtype == found.duplicates_p.dtype == dtype


def test_ties_at_their_ends():
    ones, distinct = jnp.ones((5, 1)), jnp.arange(5.0)[:, None] + 10
    alike = ties(ones, ones)
    assert (alike.duplicates_p, alike.duplicates_q, alike.lattice[0]) == (1, 1, 0)
    apart = ties(ones, distinct)
    assert (apart.duplicates_p, apart.duplicates_q, apart.lattice[0]) == (1, 0, 1)
    # Every value of q is one of p's, and p repeats none: copies, no lattice.
    subset = ties(distinct, distinct[:3])
    assert (subset.duplicates_p, subset.lattice[0], subset.copied[0]) == (0, 0, 1)
    np.testing.assert_allclose((subset.shared_p, subset.shared_q), (0.6, 1))


def test_copies_are_not_a_lattice():
    """Of continuous rows, of a lattice, of an identifier beside features of one's own."""
    x, y = jax.random.normal(KEY, (2, 500, 2))
    same = ties(x, x)
    assert (same.lattice == 0).all()
    assert (same.copied == 1).all()
    assert (same.shared_p, same.duplicates_p) == (1, 0)
    rounded = ties(jnp.round(x, 1), jnp.round(x, 1))
    assert (rounded.lattice == 0).all()
    assert (rounded.copied < 0.05).all()
    half = ties(x, jnp.concatenate([x[:250], y[250:]]))
    np.testing.assert_allclose(half.copied, 0.5, atol=1e-6)
    assert (half.lattice == 0).all()
    identified = ties(*(z.at[:, 0].set(jnp.arange(500.0)) for z in (x, y)))
    assert identified.copied.tolist() == [1, 0]
    assert (identified.lattice == 0).all()
    # A lattice of which the other sample holds copies of half the rows: the other half misses it.
    mixed = ties(jnp.round(x, 1), jnp.concatenate([jnp.round(x[:250], 1), y[250:]]))
    assert (mixed.lattice > 0.4).all()


def test_ties_of_double_precision_far_from_zero():
    """Float32 has steps of 8 there."""
    x, y = np.random.default_rng(0).normal(size=(2, 300, 1)) + 123456789.0
    found = ties(x, y)
    assert (found.duplicates_p, found.shared_p, found.lattice[0]) == (0, 0, 0)


def test_results_print_in_a_few_lines(fit):
    for result in (fit, fit.kl(), fit.diagnostics, fit.ties, fit.two_sample_test(KEY)):
        assert 20 < len(repr(result)) < 700
        assert repr(result).count("\n") <= 2
    assert "60 rows of p" in repr(fit)
    assert "Linear" in repr(fit)
    assert jax.jit(lambda fit: len(repr(fit)) > 0 and fit.kl().value)(fit) == fit.kl().value


def test_ties_refuse():
    x = jnp.ones((3, 2))
    for bad in (jnp.ones(3), jnp.ones((0, 2)), jnp.ones((3, 1))):
        with pytest.raises(ValueError, match="got"):
            ties(x, bad)


@pytest.fixture(scope="module")
def fit():
    p, q = jax.random.normal(KEY, (2, 60, 1))
    return ClassifierRatio(head="linear", num_folds=2).fit(KEY, p + 1, q)


def replaced(fit, u_p, u_q, a, b):
    names = "log_ratio_p", "log_ratio_q", "weights_p", "weights_q"
    values = (jnp.asarray(x, jnp.float32) for x in (u_p, u_q, a / a.sum(), b / b.sum()))
    return dataclasses.replace(fit, **dict(zip(names, values, strict=True)))


def test_diagnostics_by_hand(fit):
    rng = np.random.default_rng(0)
    u_p, u_q, a, b = rng.normal(1, 1, 60), rng.normal(-1, 1, 60), *rng.uniform(0, 1, (2, 60))
    a[:5] = b[:7] = 0
    u_p[0], u_q[0] = np.nan, np.inf  # without weight
    found = replaced(fit, u_p, u_q, a, b).diagnostics
    u_p, u_q, a, b = u_p[5:], u_q[7:], a[5:] / a.sum(), b[7:] / b.sum()
    r = np.exp(u_q)
    np.testing.assert_allclose(found.mean_ratio, b @ r, rtol=1e-5)
    np.testing.assert_allclose(
        found.effective_sample_size, (b @ r) ** 2 / np.sum((b * r) ** 2), rtol=1e-5
    )
    entropy = (a @ np.logaddexp(0, -u_p) + b @ np.logaddexp(0, u_q)) / 2
    np.testing.assert_allclose(found.cross_entropy, entropy, rtol=1e-5)
    np.testing.assert_allclose(found.max_log_ratio, np.abs(np.r_[u_p, u_q]).max(), rtol=1e-6)
    np.testing.assert_allclose(found.generalization_gap, np.mean(fit.test - fit.train), rtol=1e-5)
    assert found.finite
    assert not found.beyond_log_n


def test_kl_beyond_the_logarithm_of_the_rows_is_flagged(fit):
    """Log 55 = 4.007 for the rows of q that have a weight."""
    a = b = np.ones(60)
    b[:5] = 0
    zeros = np.zeros(60)
    for level, flag in ((3.99, False), (4.02, True)):
        assert replaced(fit, zeros + level, zeros, a, b).diagnostics.beyond_log_n == flag


def test_the_mean_ratio_of_what_overflows_is_not_lost(fit):
    ones = np.ones(60)
    found = replaced(fit, 0 * ones, 60 * ones, ones, ones).diagnostics
    np.testing.assert_allclose(found.mean_ratio, np.exp(60), rtol=1e-4)
    np.testing.assert_allclose(found.effective_sample_size, 60, rtol=1e-5)
    found = replaced(fit, 0 * ones, -300 * ones, ones, ones).diagnostics
    np.testing.assert_allclose(found.effective_sample_size, 60, rtol=1e-5)


def test_losses_are_of_those_who_train_validate_and_test(fit):
    """Out of fold the cross-entropy is that of the raw log ratios of each fold."""
    for fold in range(2):
        u_p, u_q = (
            np.asarray(held.log_ratio)[np.asarray(held.fold) == fold]
            for held in (fit.held_out_p, fit.held_out_q)
        )
        expected = (np.logaddexp(0, -u_p).mean() + np.logaddexp(0, u_q).mean()) / 2
        np.testing.assert_allclose(fit.test[0, fold], expected, rtol=1e-5)
    assert fit.train.shape == fit.validation.shape == (1, 2)


@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize(
    "weights", [[np.nan, 1, 1], [-1, 1, 1], [np.inf, 1, 1], [0, 0, 0]], ids=str
)
def test_weights_that_are_none_have_no_ties(side, weights):
    x, weights = jnp.arange(6.0).reshape(3, 2), jnp.array(weights, float)
    with pytest.raises(ValueError, match=rf"\b{side} must"):
        ties(x, x, **{side: weights})
    found = jax.jit(lambda w: ties(x, x, **{side: w}))(weights)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1), ()])
def test_weights_of_another_shape_are_named(shape):
    x = jnp.arange(6.0).reshape(3, 2)
    for side in ("a", "b"):
        with pytest.raises(ValueError, match=rf"\b{side} must have shape \(3,\)"):
            ties(x, x, **{side: jnp.ones(shape)})


@pytest.mark.parametrize("dtype", [np.int64, float])
@pytest.mark.parametrize("far", [10**8, 10**10, 10**12, 10**14, 2**53 - 8])
def test_values_are_distinct_wherever_others_lie(far, dtype):
    x = np.array([[far], [far + 1], [far + 2], [far + 2]], dtype)
    y = np.array([[far + 1], [5], [6]], dtype)
    found = ties(x, y)
    expected = brute_force(x, y, np.ones(4), np.ones(3))
    np.testing.assert_allclose(shares(found), expected[:4], rtol=1e-6)
    np.testing.assert_allclose(found.lattice, expected[4], rtol=1e-6)
    np.testing.assert_allclose(found.copied, expected[5], rtol=1e-6)


def test_doubles_below_the_range_of_float32_are_distinct():
    x = np.array([[1e-60, 1.0], [2e-60, 1.0], [-1e-60, 1.0], [0.0, 1.0], [-0.0, 1.0]])
    found = ties(x, x + 1)
    np.testing.assert_allclose((found.duplicates_p, found.duplicates_q), (0.4, 1), rtol=1e-6)


def test_samples_of_two_precisions_meet_in_the_coarser():
    """A float32 copy of a double is a copy; doubles that float32 merges do not repeat."""
    wide = np.random.default_rng(0).normal(size=(40, 1))
    rounded = jnp.asarray(wide, jnp.float32)
    for copies in (ties(rounded, wide), ties(wide, rounded)):
        assert (copies.shared_p, copies.shared_q, copies.copied[0]) == (1, 1, 1)
        assert (copies.duplicates_p, copies.duplicates_q, copies.lattice[0]) == (0, 0, 0)
    near = jax.random.normal(KEY, (40, 1))
    for found in (ties(near, wide + 123456789.0), ties(wide + 123456789.0, near)):
        assert (found.duplicates_p, found.duplicates_q, found.shared_p) == (0, 0, 0)
        assert (found.lattice[0], found.copied[0]) == (0, 0)


TIED = {
    "binary": lambda g: g.integers(0, 2, (300, 10)).astype(np.float32),
    "ternary": lambda g: g.integers(0, 3, (5000, 12)).astype(np.float32),
    "one-hot": lambda g: np.eye(50, dtype=np.float32)[g.integers(0, 50, 1000)],
    "thirds": lambda g: (g.integers(0, 5, (300, 4)) / 3).astype(np.float32),
    "half": lambda g: g.integers(0, 3, (300, 3)).astype(np.float16),
    "integers": lambda g: g.integers(0, 3, (300, 5)),
}


@pytest.mark.parametrize("kind", TIED)
def test_equal_rows_of_few_digits_are_found(kind):
    """Against a count of rows: y is a permutation of x."""
    generator = np.random.default_rng(0)
    x = TIED[kind](generator)
    counts = collections.Counter(map(bytes, x))
    repeated = np.mean([counts[bytes(row)] > 1 for row in x])
    found = ties(x, generator.permutation(x))
    np.testing.assert_allclose(found.duplicates_p, repeated, rtol=1e-5)
    np.testing.assert_allclose([found.shared_p, found.shared_q], 1.0)


@pytest.mark.parametrize("first", [2**24, 2**31 - 10])
def test_traced_integers_are_no_ties(first):
    """float32 holds every second integer from 2²⁴ on."""
    x = jnp.arange(first, first + 6, dtype=jnp.int32)[:, None]
    for found in (ties(x, x[:3] - 1000), jax.jit(ties)(x, x[:3] - 1000)):
        assert found.duplicates_p == found.shared_p == found.shared_q == 0


@pytest.mark.parametrize("half", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("wide", [np.float32, np.float64])
def test_a_copy_in_half_precision_is_one(half, wide):
    x = np.array([[0.1], [0.2], [0.3]], wide)
    found = ties(x, jnp.asarray(x, half))
    assert found.shared_p == found.shared_q == found.copied[0] == 1
    assert found.duplicates_p == found.lattice[0] == 0


@pytest.mark.exhaustive
def test_a_divergence_from_another_point_is_flagged():
    """KL between two points is infinite, and no number of rows is evidence of one: JS is log 2."""
    p = jnp.ones((20, 2))
    fit = ClassifierRatio(heads.GaussianDiscriminant(0.0), num_folds=2).fit(KEY, p, -p)
    assert fit.kl().value > jnp.log(20)
    assert fit.diagnostics.beyond_log_n
    np.testing.assert_allclose(fit.js(base=2).value, 1, rtol=1e-5)
