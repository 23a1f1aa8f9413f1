"""The neighbours' log ratio against scikit-learn's neighbours, and what it leaves out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from sklearn.neighbors import NearestNeighbors

from divjax import problems
from divjax.ratio import ClassifierRatio, Fold, Rows
from divjax.ratio.heads import Auto, Average, Linear, Neighbors, Network, Tuned, Zero
from divjax.ratio.protocols import training_log_ratios

KEY = jax.random.key(5)
fit = jax.jit(lambda head, fold: head.fit(KEY, fold))
evaluate = jax.jit(lambda head, params, z: head(params, z))
scores = jax.jit(training_log_ratios)


def make_rows(n, m, d=2, seed=0):
    rng = np.random.default_rng(seed)
    p, q = rng.normal(0.5, 1, (n, d)), rng.normal(0, 1.3, (m, d))
    weights = [rng.uniform(0.5, 2, k) for k in (n, m)]
    return Rows(*map(jnp.asarray, (p, q, *(w / w.sum() for w in weights))))


def log_ratio(rows, z, k, prior=1.0):
    """By scikit-learn's neighbours and Epanechnikov's weights."""
    p, q, a, b = map(np.asarray, rows)
    distance, which = NearestNeighbors(n_neighbors=k).fit(np.concatenate([p, q])).kneighbors(z)
    weight = 1 - (distance / distance[:, -1:]) ** 2
    mass_p, mass_q = np.append(a, 0 * b), np.append(0 * a, b)
    c = prior * (np.sum(a**2) + np.sum(b**2)) / 2
    of_p, of_q = (np.sum(weight * mass[which], axis=1) for mass in (mass_p, mass_q))
    return np.log(of_p + c) - np.log(of_q + c)


@pytest.mark.parametrize("d", [2, 10])
def test_scikit_learn(d):
    with jax.enable_x64(True):
        rows, validation, z = make_rows(60, 40, d), make_rows(20, 20, d, 1), make_rows(9, 1, d, 2).x
        head = Neighbors((7,), prior=0.5)
        u = evaluate(head, fit(head, Fold(rows, validation)), z)
        np.testing.assert_allclose(u, log_ratio(rows, z, 7, 0.5), rtol=1e-9, atol=1e-9)


def test_the_validation_rows_choose_k():
    rows, validation = make_rows(60, 40), make_rows(50, 50, seed=1)
    _, choice = fit(Neighbors((4, 16, 60)), Fold(rows, validation))
    losses = []
    for k in (4, 16, 60):
        u_p, u_q = (log_ratio(rows, z, k) for z in validation[:2])
        of_p, of_q = np.logaddexp(0, -u_p), np.logaddexp(0, u_q)
        losses.append(of_p @ validation.a + of_q @ validation.b)
    assert choice == np.argmin(losses)


@pytest.mark.parametrize("wrap", [lambda head: head, lambda head: Tuned(stacked(head))])
def test_training_rows_are_scored_by_the_others(wrap):
    """As if the head had been fitted without the row; the prior's unit is that of all rows."""
    with jax.enable_x64(True):
        rows = make_rows(30, 20)
        head = wrap(Neighbors((6,)))
        u_p, _ = scores(head, fit(head, Fold(rows, rows)), rows)
        a, b = rows.weights
        one_row = (np.sum(np.square(a)) + np.sum(np.square(b))) / 2
        for i in (0, 7):
            others = rows._replace(x=np.delete(rows.x, i, axis=0), a=np.delete(rows.a, i))
            own = (np.sum(np.square(others.a)) + np.sum(np.square(b))) / 2
            expected = log_ratio(others, rows.x[i : i + 1], 6, one_row / own)
            np.testing.assert_allclose(u_p[i], expected[0], rtol=1e-9)


def stacked(head):
    return Neighbors(head.num_neighbors, prior=jnp.array([1.0]))


def test_a_network_starts_at_the_neighbours_of_others():
    """What remembers the rows would otherwise be a start that is right on them and nowhere else."""
    rows = make_rows(40, 40)
    short = Network((2,), num_steps=2, num_checks=1, batch_size=4, start=Neighbors((4,)))
    params = fit(short, Fold(rows, rows))
    for head, own in ((short, params), (Average((short, Zero())), None)):
        own = fit(head, Fold(rows, rows)) if own is None else own
        left_out, seen = scores(head, own, rows)[0], evaluate(head, own, rows.x)
        assert jnp.mean(left_out) < jnp.mean(seen)
    assert hasattr(Auto, "leave_one_out")
    assert not hasattr(Linear, "leave_one_out")


def test_at_most_max_rows_of_each_sample():
    rows = make_rows(50, 9)
    references, _ = fit(Neighbors((4,), max_rows=12), Fold(rows, rows))
    assert references.x.shape == (21, 2)
    np.testing.assert_allclose(jnp.sum(references.mass_p), 1, rtol=1e-6)
    assert len(np.unique(references.index)) == 21


def test_coinciding_rows_count_alike():
    """Two values, of which p has one in 3 of 4 rows and q in 1 of 4: log 3 but for the prior."""
    value = jnp.tile(jnp.array([[0.0], [0.0], [0.0], [1.0]]), (100, 1))
    even = jnp.full(400, 1 / 400)
    rows = Rows(value, 1 - value, even, even)
    head = Neighbors((400,))
    u = evaluate(head, fit(head, Fold(rows, rows)), jnp.array([[0.0], [1.0]]))
    np.testing.assert_allclose(u, [np.log(301 / 101), -np.log(301 / 101)], rtol=1e-5)


def test_more_coinciding_rows_than_neighbours():
    """Of a discrete or zero-inflated feature: the ratio of the values' counts, whatever k is."""
    rng = np.random.default_rng(3)
    even = jnp.full(1000, 1 / 1000)
    levels = [rng.permutation(np.repeat([0.0, 1, 2], counts)) for counts in ((500, 300, 200),) * 2]
    inflated = [rng.normal(mean, 1, 1000) for mean in (1.5, 0)]
    for rows in inflated:
        rows[rng.permutation(1000)[:400]] = 0
    ratio = np.log(501 / 201)
    for (p, q), expected in (((levels[0], 2 - levels[1]), [ratio, 0, -ratio]), (inflated, [0])):
        rows = Rows(*(jnp.asarray(rows[:, None], jnp.float32) for rows in (p, q)), even, even)
        head = Neighbors()
        params = fit(head, Fold(rows, rows))
        # Also beside a value, where the nearest rows are those of the value.
        for beside in (0.0, 0.25)[: len(expected)]:
            u = evaluate(head, params, jnp.array([[0.0], [1.0], [2.0]]) + beside)
            np.testing.assert_allclose(u[: len(expected)], expected, atol=1e-4)
        u_p, u_q = scores(head, params, rows)
        # Without the row itself.
        one_less = np.log((501 - 1) / 201) if len(expected) > 1 else np.log(400 / 401)
        np.testing.assert_allclose(u_p[p == 0], one_less, atol=1e-4)
        assert np.isfinite(u_q).all()


@pytest.mark.exhaustive
def test_a_zero_inflated_feature():
    """JS is .6 of that of N(1.5, 1) and N(0, 1), by quadrature: .1327."""
    rng = np.random.default_rng(0)
    p, q = (np.where(rng.random(1000) < 0.4, 0, rng.normal(mean, 1, 1000)) for mean in (1.5, 0))
    found = ClassifierRatio(Neighbors(), num_folds=2).fit(KEY, p[:, None], q[:, None]).js()
    assert abs(found.value - 0.1327) < 3 * found.std_error


def test_a_narrow_band():
    """Noise of width .2 on a uniform variable, JS .437: found by neighbours, hardly by networks."""
    task = problems.additive_uniform(0.1)
    p, q = task.sample(KEY, 1000)
    found = ClassifierRatio(Neighbors(), num_folds=2).fit(KEY, p, q).js()
    assert 0.25 < found.value < task.js
    assert found.interval.upper > 0.8 * task.js


@pytest.mark.exhaustive
def test_intervals_know_that_neighbours_are_noisy():
    """Of 24 pairs of samples of N((½, 0), I) and N(0, I) most intervals hold KL and JS."""
    p, q = scipy.stats.norm(0.5).pdf, scipy.stats.norm(0).pdf
    half = lambda z: sum(f(z) * np.log(2 * f(z) / (p(z) + q(z))) / 2 for f in (p, q))
    truth = {"kl": 1 / 8, "js": scipy.integrate.quad(half, -12, 12)[0]}

    def intervals(key, x, y):
        fit = ClassifierRatio(Neighbors()).fit(key, x, y)
        return {"kl": fit.kl().interval, "js": fit.js().interval}

    x, y = jnp.asarray(np.random.default_rng(0).normal(size=(2, 24, 200, 2)), jnp.float32)
    keys = jax.random.split(KEY, 24)
    found = jax.jit(jax.vmap(intervals))(keys, x.at[..., 0].add(0.5), y)
    for name, (lower, upper) in found.items():
        # At 95 % fewer than 20 of 24 have a probability of a few in a thousand.
        assert np.mean((lower <= truth[name]) & (truth[name] <= upper)) >= 20 / 24


def test_what_is_refused():
    for numbers in ((), (1,), (4, 2.5), 8):
        with pytest.raises(ValueError, match="num_neighbors"):
            Neighbors(numbers)  # pyright: ignore
    with pytest.raises(ValueError, match="prior"):
        Neighbors(prior=0.0)
    with pytest.raises(ValueError, match="max_rows"):
        Neighbors(max_rows=0)
