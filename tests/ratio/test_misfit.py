"""Does the probe find what a head has missed, and nothing where there is nothing?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import problems
from divjax.problems import dependence
from divjax.ratio import ClassifierRatio
from divjax.ratio.misfit import misfit
from divjax.ratio.plug_in_estimates import EXCESS_SHARE

KEY = jax.random.key(8)
N, FOLDS = 2000, 5
TASKS = {
    "shift": problems.gaussian_shift(2, 0.5),
    "correlated": problems.correlated_gaussians(2, 0.5),
}


@jax.jit
def probe(p, q, u_p, u_q):
    folds = jnp.arange(N) % FOLDS
    even = jnp.full(N, 1 / N)
    return misfit((p, q), (u_p, u_q), (even, even), (folds, folds), FOLDS)


@pytest.mark.parametrize("name", TASKS)
def test_the_exact_ratio_misses_nothing(name):
    """Of 40 samples none is flagged; the larger of two gains is less than an error on average."""
    gains, errors = [], []
    for key in jax.random.split(KEY, 40):
        p, q = TASKS[name].sample(key, N)
        found = probe(p, q, TASKS[name].log_ratio(p), TASKS[name].log_ratio(q))
        assert not found.exceeds(0)
        gains.append(float(found.gain))
        errors.append(float(found.std_error))
    assert np.mean(gains) < np.mean(errors)


def test_half_of_a_ratio_is_found():
    """The gain is at most the excess over log 2 − JS, and most of it."""
    task = TASKS["correlated"]
    p, q = task.sample(KEY, N)
    found = probe(p, q, jnp.zeros(N), jnp.zeros(N))
    assert found.exceeds(0)
    assert 0.5 * task.js < found.gain < task.js + 3 * found.std_error


def test_a_linear_fit_is_too_simple_for_a_correlation():
    """The value is near 0, the interval's upper end is not."""
    method = ClassifierRatio("linear")
    fits = {name: method.fit(KEY, *task.sample(KEY, N)) for name, task in TASKS.items()}
    assert not fits["shift"].diagnostics.too_simple
    assert fits["correlated"].diagnostics.too_simple
    js = fits["correlated"].js()
    assert js.value < 0.1 * TASKS["correlated"].js
    assert js.interval.upper > 0.5 * TASKS["correlated"].js


def test_estimation_is_no_misfit():
    """Frequencies of the other folds in a table of 3 × 3: the model contains every ratio.

    Pairs and products in blocks of two rows. The excess is known, and on average the probe's gain
    is at most that. In none of 40 samples is it more than the gap explains.
    """
    rng, n = np.random.default_rng(3), 1000
    table = np.full(9, 0.4 / 9) + 0.6 / 3 * np.eye(3).ravel()
    exact = np.log(9 * table)
    cell = np.array([[i, j] for i in range(3) for j in range(3)], np.float32)
    block, even = np.arange(n) // 2, jnp.full(n, 1 / n)
    fold = block % FOLDS
    groups = jnp.asarray(np.tile(block, 2))
    samples = lambda z: tuple(jnp.asarray(part, jnp.float32) for part in z)
    grouped = jax.jit(
        lambda x, u: misfit(x, u, (even, even), (jnp.asarray(fold),) * 2, FOLDS, groups)
    )
    loss = lambda u_p, u_q, p, q: (p @ np.logaddexp(0, -u_p) + q @ np.logaddexp(0, u_q)) / 2
    found, gaps, excesses = [], [], []
    for _ in range(40):
        p = rng.choice(9, n, p=table)
        # The x of a row and the y of the other one in its block.
        q = p // 3 * 3 + p[np.arange(n) ^ 1] % 3
        scores, gap, excess = np.zeros((FOLDS, 9)), 0, 0
        for k in range(FOLDS):
            own = [np.bincount(z[fold == k], minlength=9) / np.sum(fold == k) for z in (p, q)]
            others = [np.bincount(z[fold != k], minlength=9) for z in (p, q)]
            u = scores[k] = np.log((others[0] + 0.5) / (others[1] + 0.5))
            gap += loss(u, u, *own) - loss(u, u, *(count / count.sum() for count in others))
            uniform = np.full(9, 1 / 9)
            excess += loss(u, u, table, uniform) - loss(exact, exact, table, uniform)
        u = samples((scores[fold, p], scores[fold, q]))
        found.append(grouped(samples((cell[p], cell[q])), u))
        gaps.append(gap / FOLDS)
        excesses.append(excess / FOLDS)
    assert not any(
        each.exceeds(EXCESS_SHARE * max(gap, 0)) for each, gap in zip(found, gaps, strict=True)
    )
    beyond = np.array([each.gain for each in found]) - excesses
    assert np.mean(beyond) < 3 * np.std(beyond) / np.sqrt(len(beyond))


def test_neighbors_see_a_narrow_band():
    """Of a log ratio of 0 the neighbours see ½ E[tanh²(u/2)], which is at most JS (Topsøe 2000)."""
    task = dependence.additive_uniform(0.1)
    p, q = task.sample(KEY, N)
    found = probe(p, q, jnp.zeros(N), jnp.zeros(N))
    squares = [jnp.mean(jnp.tanh(task.log_ratio(z) / 2) ** 2) for z in (p, q)]
    seen = (squares[0] + squares[1]) / 4
    assert found.exceeds(0)
    assert seen < task.js
    assert 0.8 * seen < found.gain < seen + 3 * found.std_error


def test_neighbors_among_ties():
    """Levels in .5, .3, .2 of p's rows and .2, .3, .5 of q's: of ties no sample's come first."""
    level = jax.random.permutation(KEY, jnp.repeat(jnp.arange(3), jnp.array([1000, 600, 400])))
    p = jnp.stack([level.astype(jnp.float32), jnp.zeros(N)], axis=1)
    q = jnp.array([2.0, 0.0]) - p
    log_ratio = lambda z: jnp.log(2.5) * (1 - z[:, 0])
    exact = probe(p, q, log_ratio(p), log_ratio(q))
    assert not exact.exceeds(0)
    assert abs(exact.gain) < 3 * exact.std_error + 1e-3
    found = probe(p, q, jnp.zeros(N), jnp.zeros(N))
    seen = jnp.mean(jnp.tanh(log_ratio(p) / 2) ** 2) / 2
    assert found.exceeds(0)
    np.testing.assert_allclose(found.gain, seen, rtol=0.1)


def test_rows_without_weight_are_no_rows():
    p, q = TASKS["shift"].sample(KEY, 60)
    weights, fold = jnp.full(60, 1 / 40) * (jnp.arange(60) < 40), jnp.arange(60) % 2
    fold = jnp.where(weights > 0, fold, -1)
    u = jnp.where(weights > 0, 0.1, jnp.nan)
    run = lambda keep: misfit(
        (p[keep], q[keep]), (u[keep],) * 2, (weights[keep],) * 2, (fold[keep],) * 2, 2
    )
    all_rows, kept = run(slice(None)), run(slice(40))
    np.testing.assert_allclose(all_rows, kept, rtol=1e-3, atol=1e-6)
