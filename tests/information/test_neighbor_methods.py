"""Information by neighbours: against the definitions, closed forms and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from scipy import stats
from sklearn.feature_selection import mutual_info_regression

from divjax import information, problems
from divjax.information.entropy_sums import (
    CONDITIONAL,
    INTERACTION,
    MUTUAL,
    total_correlation_of,
)
from tests.information import formulas

MEASURES = {
    "mutual": (information.mutual_information, 2, MUTUAL),
    "conditional": (information.conditional_mutual_information, 3, CONDITIONAL),
    "interaction": (information.interaction_information, 3, INTERACTION),
    "total": (information.total_correlation, 3, total_correlation_of(3)),
}


def continuous(n, d, seed=0):
    """Three dependent variables, with d, 1 and 1 features."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    y = 0.6 * x[:, :1] + rng.normal(size=(n, 1))
    return x, y, rng.exponential(size=(n, 1)) + x[:, -1:]


def mixed(n, seed=0):
    """Discrete, continuous, and discrete in half of the rows."""
    x, y, z = continuous(n, 1, seed)
    return np.round(x), y, np.where(np.arange(n)[:, None] % 2, np.round(z), z)


@pytest.mark.parametrize("n", [60, pytest.param(2500, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("mutual", 1),
        ("mutual", 2),
        ("conditional", 2),
        *(
            pytest.param(*case, marks=pytest.mark.exhaustive)
            for case in [("conditional", 1), ("interaction", 1), ("total", 1), ("total", 2)]
        ),
    ],
)
def test_ksg_is_its_definition(name, algorithm, n):
    function, count, measure = MEASURES[name]
    with jax.enable_x64(True):
        variables = continuous(n, 2)[:count]
        estimate = function(*variables, method=information.KSG(3, algorithm))
        terms = formulas.ksg(variables, *measure, 3, algorithm)
        np.testing.assert_allclose(estimate.diagnostics.terms, terms, atol=1e-9)
        np.testing.assert_allclose(estimate.value, terms.mean(), atol=1e-9)


@pytest.mark.parametrize("n", [60, pytest.param(2500, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", ["mutual", "conditional"])
def test_mixed_neighbors_are_their_definition(name, n):
    function, count, measure = MEASURES[name]
    with jax.enable_x64(True):
        for variables in (mixed(n), [np.round(v) for v in mixed(n, 1)]):
            variables = variables[:count]
            estimate = function(*variables, method=information.MixedNeighbors(3))
            terms = formulas.mixed(variables, *measure, 3)
            np.testing.assert_allclose(estimate.diagnostics.terms, terms, atol=1e-9)


def test_scikit_learn_has_the_same_number():
    """But for the noise of 1e-10 that it adds."""
    x, y, _ = continuous(300, 1)
    with jax.enable_x64(True):
        value = information.mutual_information(x, y, method=information.KSG()).value
    known = mutual_info_regression(x, y[:, 0], n_neighbors=3, random_state=0)[0]
    np.testing.assert_allclose(value, known, atol=1e-6)


@pytest.mark.parametrize(
    "task",
    [problems.binormal(0.75), problems.additive_uniform(0.1), problems.additive_uniform(0.75)],
    ids=["binormal", "narrow band", "wide band"],
)
def test_tasks_with_exact_values(task):
    x, y = task.sample_pairs(jax.random.key(1), 1500)
    estimate = information.mutual_information(x, y)
    assert abs(estimate.value - task.kl) < 3 * estimate.std_error
    assert estimate.std_error < 0.06


def test_a_discrete_and_a_continuous_variable():
    """x uniform on 0 … m − 1, y uniform on [x, x + 2]: I = log m − (m − 1)/m log 2."""
    key_x, key_y = jax.random.split(jax.random.key(2))
    x = jax.random.randint(key_x, (1500, 1), 0, 5)
    y = x + 2 * jax.random.uniform(key_y, (1500, 1))
    exact = np.log(5) - 0.8 * np.log(2)
    estimate = information.mutual_information(x, y, method=information.MixedNeighbors())
    assert abs(estimate.value - exact) < 3 * estimate.std_error
    assert estimate.std_error < 0.05


def test_two_discrete_variables():
    """A binary symmetric channel, I = log 2 − h(0.2)."""
    key_x, key_flip = jax.random.split(jax.random.key(3))
    x = jax.random.bernoulli(key_x, 0.5, (1500, 1))
    y = x ^ jax.random.bernoulli(key_flip, 0.2, (1500, 1))
    exact = np.log(2) + 0.2 * np.log(0.2) + 0.8 * np.log(0.8)
    estimate = information.mutual_information(x, y, method=information.MixedNeighbors())
    assert abs(estimate.value - exact) < 3 * estimate.std_error
    assert estimate.std_error < 0.03


@pytest.mark.parametrize(
    ("own", "common"), [(5, 45), pytest.param(1, 20, marks=pytest.mark.exhaustive)]
)
def test_two_counts(own, common):
    """Poisson variables with a common part: the joint pmf is summed. Few rows share a cell."""
    levels = np.arange(3 * (own + common) + 20)
    alone, shared = (stats.poisson.pmf(levels, rate) for rate in (own, common))
    # Of x and y given the common part.
    given = [np.roll(alone, z) * (levels >= z) for z in levels]
    joint = np.sum([shared[z] * np.outer(given[z], given[z]) for z in levels], axis=0)
    sides = np.outer(joint.sum(1), joint.sum(0))
    exact = np.sum(scipy.special.rel_entr(joint, sides))
    method, values = information.MixedNeighbors(), []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        shared_part = rng.poisson(common, 500)
        x, y = (np.float32(shared_part + rng.poisson(own, 500))[:, None] for _ in range(2))
        values.append(float(information.mutual_information(x, y, method=method).value))
    # Among a single estimate's own errors.
    assert abs(np.mean(values) - exact) < 2 * np.std(values, ddof=1)


def test_repeated_values_are_flagged():
    x, y, _ = mixed(200)
    estimate = information.mutual_information(x, y)
    assert not estimate.diagnostics.suitable
    assert jnp.isnan(estimate.std_error)
    with pytest.raises(RuntimeError, match="MixedNeighbors"):
        estimate.diagnostics.check()
    # A copied row in a hundred is no discrete variable.
    y = continuous(200, 1)[1]
    copied = y.copy()
    copied[:2] = copied[2]
    assert information.mutual_information(y, copied).diagnostics.suitable


@pytest.mark.parametrize(
    "method",
    [information.KSG(), information.KSG(algorithm=2), information.MixedNeighbors()],
    ids=["1", "2", "mixed"],
)
def test_a_constant_carries_no_information(method):
    x, y, _ = continuous(60, 1)
    constant = np.full((60, 1), 0.1)
    estimate = information.mutual_information(constant, y, method=method)
    np.testing.assert_allclose(estimate.value, 0, atol=1e-6)
    assert estimate.std_error == 0
    # As a condition it changes nothing.
    given = information.conditional_mutual_information(x, y, constant, method=method)
    plain = information.mutual_information(x, y, method=method)
    np.testing.assert_allclose(given.value, plain.value, atol=1e-5)


def test_units_do_not_matter():
    x, y, _ = continuous(60, 2)
    one = information.mutual_information(x, y).value
    two = information.mutual_information(x * [1e6, 1e-6] + 3, y * 1e-9).value
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_transfer_entropy_is_conditional_information():
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(2, 62, 1))
    value = information.transfer_entropy(source, target, lag=2).value
    x, y, z = target[2:], source[:-2], target[1:-1]
    np.testing.assert_array_equal(value, information.conditional_mutual_information(x, y, z).value)


def test_a_derivative_is_refused():
    x, y, _ = map(jnp.asarray, continuous(20, 1))
    with pytest.raises(ValueError, match="piecewise constant"):
        jax.grad(lambda x: information.mutual_information(x, y).value)(x)


def test_bad_inputs():
    x = np.zeros((10, 1))
    with pytest.raises(ValueError, match="paired rows"):
        information.mutual_information(x, x[1:])
    with pytest.raises(ValueError, match=r"k \+ 2 = 11 rows"):
        information.mutual_information(x, x, method=information.KSG(9))
    with pytest.raises(ValueError, match="two or more"):
        information.total_correlation(x)
    with pytest.raises(ValueError, match="method"):
        information.mutual_information(x, x, method=information.KSG)
    with pytest.raises(ValueError, match="more than 3 rows"):
        information.transfer_entropy(x[:3], x[:3], source_history=3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
@pytest.mark.parametrize("k", [3, 10])
def test_intervals_cover(correlation, k):
    """90 % intervals, in 200 repetitions."""
    task = problems.binormal(correlation)

    @jax.jit
    def covers(key):
        x, y = task.sample_pairs(key, 500)
        ends = information.mutual_information(
            x, y, method=information.KSG(k), confidence_level=0.9
        ).interval
        return (ends.lower <= task.kl) & (task.kl <= ends.upper)

    covered = jax.lax.map(covers, jax.random.split(jax.random.key(0), 200), batch_size=10)
    assert covered.mean() >= 0.85


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("atom", [-9999.0, 30.0])
def test_one_value_of_many_rows_far_from_the_others_sets_no_unit(share, atom):
    """Where a value is drawn by chance for a share of the rows, the others' information remains."""
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 1000, 1))
    y = np.where(rng.random((1000, 1)) < share, atom, x + 0.3 * noise)
    truth = (1 - share) * 0.5 * np.log(1 + 1 / 0.3**2)
    estimate = information.mutual_information(x, y, method=information.MixedNeighbors())
    assert estimate.interval.lower < truth < estimate.interval.upper
    np.testing.assert_allclose(estimate.value, truth, rtol=0.15)
