"""Lower confidence bounds on Jensen–Shannon: coverage on simulated scores, and the bets by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from divjax.ratio import certificates
from divjax.ratio.certificates import HeldOut, SequentialScores
from divjax.ratio.certificates import js_lower_bound as lower_bound

FOLDS = 5


def folds_of(n, num_folds, order):
    """Rows in random order, cut into equal folds."""
    rank = jnp.argsort(order)
    return (2 * rank + 1) * num_folds // (2 * n), rank


def simulate(key, n, m, shift, error=0.3, num_folds=FOLDS, validation=60):
    """Scores of unit Gaussians by models whose slope and intercept err at random."""
    keys = iter(jax.random.split(key, 7))
    p, q = shift + jax.random.normal(next(keys), (n,)), jax.random.normal(next(keys), (m,))
    models = num_folds + (num_folds > 2)
    slope, intercept = error * jax.random.normal(next(keys), (2, models))
    score = lambda x, model: (shift + slope[model]) * x - shift**2 / 2 + intercept[model]
    held_out, first = [], []
    for x in (p, q):
        order = jax.random.permutation(next(keys), x.shape[0])
        fold, rank = folds_of(x.shape[0], num_folds, order)
        held_out.append(HeldOut(score(x, fold), fold, rank))
        first.append(score(x, models - 1))
    unseen = shift + jax.random.normal(next(keys), (models, validation))
    other = jax.random.normal(next(keys), (models, validation))
    of = jnp.arange(models)[:, None]
    even = jnp.full((models, validation), 1 / validation)
    return tuple(held_out), SequentialScores(
        *first, score(unseen, of), score(other, of), even, even
    )


def true_js(shift):
    p, q = (lambda x: scipy.stats.norm.pdf(x, shift)), scipy.stats.norm.pdf
    entropy = lambda f: scipy.integrate.quad(lambda x: -f(x) * np.log(f(x)), -12, 14)[0]
    return entropy(lambda x: (p(x) + q(x)) / 2) - (entropy(p) + entropy(q)) / 2


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def many(n, m, num_folds, repetitions, shift, error, confidence):
    """Bounds of as many simulations."""

    def one(key):
        simulated = simulate(key, n, m, shift, error, num_folds)
        return lower_bound(*simulated, num_folds, confidence)

    return jax.lax.map(one, jax.random.split(jax.random.key(3), repetitions), batch_size=100)


@pytest.mark.parametrize("shift", [0.0, 0.2853, 1.0])
def test_coverage(shift):
    """Of 2000 nominal 95 % bounds at most 5 % exceed JS 0, .01 and .111."""
    found = many(200, 250, FOLDS, 2000, shift, 0.3, 0.95)
    assert (found > true_js(shift)).mean() <= 0.05


@pytest.mark.exhaustive
@pytest.mark.parametrize(("n", "m", "num_folds"), [(30, 30, 5), (500, 60, 2), (100, 700, 3)])
def test_coverage_of_few_and_uneven_rows(n, m, num_folds):
    for confidence in (0.5, 0.9):
        for shift in (0.0, 1.0, 3.0):
            found = many(n, m, num_folds, 2000, shift, 0.1, confidence)
            assert (found > true_js(shift)).mean() <= 1 - confidence


def test_bounds_say_something():
    """JS .111 and .31, 1000 and 250 rows, models that err by a twentieth."""
    assert np.median(many(1000, 1000, FOLDS, 100, 1.0, 0.05, 0.95)) > 0.65 * true_js(1.0)
    assert np.median(many(200, 250, FOLDS, 2000, 1.9, 0.05, 0.95)) > 0.5 * true_js(1.9)


def wager(values, m, delta, lower, upper):
    """The gambler's largest log capital against a mean of at most m, value by value."""
    n, least, width = len(values), min(lower), max(upper) - min(lower)
    best = log = 0.0
    total, squares, variance = 0.5, 0.25, 0.25
    for t, (value, low) in enumerate(zip(values, lower, strict=True), start=1):
        x, end, mean = (value - least) / width, (low - least) / width, (m - least) / width
        stake = min(np.sqrt(2 * np.log(1 / delta) / (n * variance)), 0.75 / (mean - end))
        log += np.log1p(stake * (x - mean))
        best = max(best, log)
        total += x
        squares += (x - total / (t + 1)) ** 2
        variance = squares / (t + 1)
    return best


@pytest.mark.parametrize(("n", "m", "num_folds"), [(60, 60, 5), (44, 90, 3), (150, 91, 2)])
def test_bound_by_hand(monkeypatch, n, m, num_folds):
    """Pairs, folds and sequence in NumPy; the bound is where the larger capital is just reached."""
    monkeypatch.setattr(certificates, "_SLOPES", (1.0,))
    with jax.enable_x64(True):
        held_out, scores = simulate(jax.random.key(4), n, m, 2.5, num_folds=num_folds)
        # One program, of the slopes above.
        bound = float(
            jax.jit(lambda *args: lower_bound(*args, num_folds, 0.9, 2.0))(held_out, scores)
        )
    gain = lambda u: np.log(2) - np.logaddexp(0, -np.clip(u, -2, 2))
    low, high = gain(-9), gain(9)

    def pairs(fold, u_p, u_q):
        sides = []
        for u, sign, part in ((u_p, 1, held_out[0]), (u_q, -1, held_out[1])):
            rows = np.flatnonzero(np.asarray(part.fold) == fold)
            rows = rows[np.argsort(np.asarray(part.rank)[rows])]
            sides.append(gain(sign * np.asarray(u)[rows]))
        count = min(map(len, sides))
        return [sum(side[i::count].mean() for side in sides) / 2 for i in range(count)]

    own = [pairs(fold, *(part.log_ratio for part in held_out)) for fold in range(num_folds)]
    share = 1 if num_folds == 2 else 2
    bets = [(values, 0.1 / (share * num_folds)) for values in own]
    if num_folds > 2:
        middle = range(num_folds // 2, num_folds - 1)
        chain = [v for fold in middle for v in pairs(fold, scores.first_p, scores.first_q)]
        bets.append((chain + own[-1], 0.05))

    def refuted(m):
        return max(
            wager(values, m, delta, [low] * len(values), [high] * len(values)) + np.log(delta)
            for values, delta in bets
        )

    assert bound > 0.05
    np.testing.assert_allclose(refuted(bound), 0, atol=1e-6)


def test_row_order_does_not_matter():
    """A sorted sample is bet on in the random order of its folds."""
    held_out, scores = simulate(jax.random.key(5), 200, 200, 1.0)
    order = [jnp.argsort(part.log_ratio) for part in held_out]
    moved = tuple(
        HeldOut(*(leaf[i] for leaf in part)) for part, i in zip(held_out, order, strict=True)
    )
    first = {"first_p": scores.first_p[order[0]], "first_q": scores.first_q[order[1]]}
    bound = jax.jit(lambda *args: lower_bound(*args, FOLDS, 0.95))
    one, other = bound(held_out, scores), bound(moved, scores._replace(**first))
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_not_a_number_is_no_bound():
    held_out, scores = simulate(jax.random.key(6), 50, 50, 1.0)
    broken = held_out[0]._replace(log_ratio=held_out[0].log_ratio.at[3].set(jnp.nan))
    bound = jax.jit(lambda *args: lower_bound(*args, FOLDS, 0.95))
    assert jnp.isnan(bound((broken, held_out[1]), scores))
