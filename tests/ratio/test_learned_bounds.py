"""Learned critics: what they estimate, on which rows, with which errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from divjax import fdiv
from divjax.core.training import row_batch
from divjax.ratio.bounds.bound_fit import BoundFit
from divjax.ratio.bounds.critics import Critic
from divjax.ratio.bounds.learned import DivergenceBound, MutualInformationBound
from divjax.ratio.bounds.named_bounds import as_bound
from divjax.ratio.bounds.variational import MINE

SMALL = {"hidden": (16,), "learning_rate": 1e-2, "num_steps": 200, "num_checks": 4}


def pairs(seed, n, rho, d=1):
    x, noise = jax.random.normal(jax.random.key(seed), (2, n, d))
    return x, rho * x + np.sqrt(1 - rho**2) * noise


@pytest.fixture(scope="module")
def fitted():
    """I = −½ log(1 − ρ²) = 0.5108 for ρ = 0.8."""
    longer = SMALL | {"num_steps": 400, "learning_rate": 5e-3}
    bound = MutualInformationBound(network="separable", **longer)
    return jax.jit(bound.fit)(jax.random.key(1), *pairs(0, 3000, 0.8))


@pytest.mark.parametrize("read_out", ["dv", "nwj", "infonce", "log_ratio", "smile", "kl_from_js"])
def test_mutual_information_of_a_gaussian_pair(fitted, read_out):
    truth = -0.5 * np.log(1 - 0.8**2)
    estimate = jax.jit(BoundFit.estimate, static_argnums=1)(fitted, read_out)
    assert estimate.diagnostics.finite
    assert estimate.std_error < 0.06
    assert estimate.value < truth + 4 * estimate.std_error
    if read_out != "kl_from_js":  # whose gap to the truth is not the critic's
        assert estimate.value > truth - 0.05 - 4 * estimate.std_error
    assert abs(estimate.diagnostics.mean_ratio - 1) < 0.3


def test_errors_are_those_of_independent_groups(fitted):
    """Of a mean over groups of equal size: sd(group means)/√g, and Student's quantile."""
    estimate = fitted.estimate("log_ratio", confidence_level=0.9)
    means = np.asarray(fitted.u_p).mean(axis=1)
    error = means.std(ddof=1) / np.sqrt(len(means))
    np.testing.assert_allclose(estimate.std_error, error, rtol=1e-4)
    half = scipy.stats.t.ppf(0.95, len(means) - 1) * error
    np.testing.assert_allclose(
        estimate.interval, (means.mean() - half, means.mean() + half), rtol=1e-4
    )
    weights = np.exp(np.asarray(fitted.u_q, np.float64))
    np.testing.assert_allclose(
        estimate.effective_sample_size, weights.sum() ** 2 / (weights**2).sum(), rtol=1e-4
    )


@pytest.mark.slow
def test_what_is_known_by_heart_is_not_chosen():
    """On few rows and many steps a critic tells its own pairs, and is wrong on all others."""
    x, y = pairs(3, 200, 0.0, d=4)
    bound = MutualInformationBound(
        hidden=(64,), learning_rate=1e-2, num_steps=500, num_checks=25, num_negatives=8
    )
    z = jnp.concatenate([x, y], axis=1)

    def sample(key):
        rows = jax.random.choice(key, 100, (64,), replace=False)
        return x[rows], y[rows]

    critic = jax.jit(lambda key: bound.stream(key, sample))(jax.random.key(0)).critic
    at_true, at_false = critic.at_pairs(z[:100], 99)
    assert (at_true > 0).mean() > 0.9 > 0.1 > (at_false > 0).mean()
    assert as_bound("js")(*critic.at_pairs(z[100:], 99)) < -0.2
    for num_checks in (1, 25):
        fit = jax.jit(dataclasses.replace(bound, num_checks=num_checks).fit)(
            jax.random.key(0), x, y
        )
        assert abs(fit.estimate("js").value) < 0.05
        assert fit.values.shape == (num_checks + 1,)


@pytest.mark.parametrize("network", ["joint", "separable"])
def test_false_pairs_are_the_rows_that_follow(network):
    z = jax.random.normal(jax.random.key(0), (5, 3))
    critic = Critic((), jnp.ones(3), 2 * jnp.ones(3), network, (4,), 2).init(jax.random.key(1))
    # The networks start at zero.
    critic = critic.replace(jax.tree.map(lambda leaf: leaf + 0.3, critic.params))
    u_p, u_q = critic.at_pairs(z, 3)
    np.testing.assert_allclose(u_p, critic(z), rtol=1e-5)
    for i in range(5):
        for s in range(3):
            row = jnp.concatenate([z[i, :2], z[(i + s + 1) % 5, 2:]])
            np.testing.assert_allclose(u_q[i, s], critic(row[None])[0], rtol=1e-5)


@pytest.mark.parametrize(("rows", "size"), [(10, 4), (7, 7)])
def test_batches_have_distinct_rows_all_equally_likely(rows, size):
    keys = jax.random.split(jax.random.key(0), 3000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: row_batch(key, rows, size)))(keys))
    assert all(len(set(row)) == size for row in drawn.tolist())
    counts = np.bincount(drawn[:, 0], minlength=rows)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.slow
def test_unpaired_samples_by_any_generator():
    """N(1, 1) and N(0, 1), many trained at once: KL ½, squared Hellinger 1 − e^{−1/8}."""
    keys = jax.random.split(jax.random.key(0), 2)
    p, q = 1 + jax.random.normal(keys[0], (1500, 1)), jax.random.normal(keys[1], (1200, 1))
    bound = DivergenceBound(fdiv.SquaredHellinger(), **SMALL)
    rates = jnp.array([1e-2, 3e-3])
    at_rate = lambda rate: DivergenceBound(bound.train, **SMALL | {"learning_rate": rate})
    fits = jax.jit(jax.vmap(lambda rate: at_rate(rate).fit(jax.random.key(1), p, q)))(rates)
    for row in range(2):
        fit = jax.tree.map(lambda leaf, row=row: leaf[row], fits)
        for read_out, truth in (
            (fdiv.SquaredHellinger(), 1 - np.exp(-1 / 8)),
            ("dv", 0.5),
            ("log_ratio", 0.5),
        ):
            estimate = fit.estimate(read_out)
            assert truth - 0.06 < estimate.value + 4 * estimate.std_error
            assert estimate.value < truth + 0.06 + 4 * estimate.std_error
    assert fits.u_p.shape == (2, 16, 18)
    assert fits.u_q.shape == (2, 16, 15)


class Linear(nnx.Module):
    """A critic that is given, not learned: its default parameters at a step size of nothing."""

    def __init__(self, in_features, rngs):
        self.layer = nnx.Linear(in_features, 1, rngs=rngs)

    def __call__(self, z):
        return self.layer(z)


def test_mine_averages_over_the_steps_of_a_stream():
    """A constant batch and a fixed critic: the average is the batch's, its weight 1 − (1 − r)^t."""
    x, y = pairs(5, 6, 0.5)
    bound = MutualInformationBound(
        MINE(0.3), network=Linear, learning_rate=1e-12, num_steps=4, num_checks=1, num_groups=1
    )
    sample = lambda key: (x, y)
    first = bound.stream(jax.random.key(0), sample)
    fit = bound.stream(jax.random.key(1), sample, first.training)
    u_q = np.asarray(fit.critic.at_pairs(jnp.concatenate([x, y], axis=1), 5)[1])
    state = fit.training.bound
    np.testing.assert_allclose(state.log_normalizer, np.log(np.exp(u_q).mean()), rtol=1e-4)
    np.testing.assert_allclose(state.weight, 1 - 0.7**8, rtol=1e-5)
    assert fit.u_q.shape == (1, 6, 5)
    with pytest.raises(ValueError, match="num_groups must be at least 2"):
        fit.estimate()


def test_dtypes_are_the_samples():
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            bound = MutualInformationBound(MINE(), **SMALL)
            rows = jax.ShapeDtypeStruct((200, 2), dtype)
            keys = jax.eval_shape(lambda: jax.random.key(0))
            fit = jax.eval_shape(bound.fit, keys, rows, rows)
            estimate = jax.eval_shape(BoundFit.estimate, fit)
            numbers = estimate.value, estimate.std_error, *estimate.interval, fit.u_p
            assert {leaf.dtype for leaf in numbers} == {jnp.dtype(dtype)}


def test_leaves_do_not_retrace():
    traces = []

    @jax.jit
    def fit(bound, key, x, y):
        traces.append(None)
        return bound.fit(key, x, y).u_p

    x, y = pairs(6, 200, 0.5)
    for rate in (1e-3, 1e-2):
        bound = MutualInformationBound(
            MINE(rate), network="separable", **SMALL | {"num_steps": 4, "learning_rate": rate}
        )
        fit(bound, jax.random.key(0), x, y)
    assert len(traces) == 1


X = jnp.zeros((200, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DivergenceBound(train="smile"), "train must be one of js, dv"),
        (lambda: DivergenceBound(network="separable"), "network must be one of joint"),
        (lambda: DivergenceBound(learning_rate=0.0), "learning_rate must be"),
        (lambda: DivergenceBound(train=fdiv.TotalVariation()), "train must have a slope"),
        (
            lambda: MutualInformationBound(network="separable", hidden=()),
            "hidden must hold at least one width",
        ),
        (
            lambda: DivergenceBound(train=None).fit(jax.random.key(0), X, X),
            "train must be a function",
        ),
        (lambda: MutualInformationBound(num_negatives=0), "num_negatives must be"),
        (lambda: MutualInformationBound(batch_size=1), "batch_size must be"),
        (lambda: DivergenceBound().fit(jax.random.key(0), X, X[:, :1]), "same number of features"),
        (lambda: MutualInformationBound().fit(jax.random.key(0), X, X[:9]), "equally many rows"),
        (
            lambda: MutualInformationBound().fit(jax.random.key(0), X[:9], X[:9]),
            "x must hold at least 160",
        ),
        (lambda: MutualInformationBound().fit(jax.random.key(0), X[0], X), "x must be a matrix"),
        (lambda: MutualInformationBound().fit(0, X, X), "key must be"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_critic_takes_lists():
    x, y = jax.random.normal(jax.random.key(0), (2, 40, 2))
    options = {"hidden": (4,), "num_steps": 2, "num_checks": 1, "batch_size": 4, "num_groups": 2}
    critic = DivergenceBound(**options).fit(jax.random.key(1), x, y).critic
    np.testing.assert_array_equal(critic(x[:3].tolist()), critic(x[:3]))


@pytest.mark.parametrize("read_out", [None, MINE, MINE()])
def test_what_is_no_read_out_is_refused(read_out):
    rows = jnp.zeros((2, 3))
    fit = BoundFit(None, rows, rows, jnp.zeros(1), jnp.array(True), None)
    for use in (fit.estimate, fit.value):
        with pytest.raises(ValueError, match="read_out must be a name"):
            use(read_out)
