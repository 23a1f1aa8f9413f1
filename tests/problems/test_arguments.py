"""What tasks and moments refuse, by the name of the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import Normal, problems
from divjax.problems import GaussianMixture

KEY = jax.random.key(0)
NAN, INF = float("nan"), float("inf")
EYE = np.eye(2)

COUNTS = {
    "d": [
        lambda n: problems.gaussian_shift(n, 1.0),
        lambda n: problems.gaussian_scale(n, 2.0),
        lambda n: problems.correlated_gaussians(n, 1.0),
        lambda n: problems.chasm(1.0, n),
        lambda n: problems.random_gaussians(0, n),
        lambda n: problems.lattice(n),
    ],
    "x_dim": [
        lambda n: problems.dense_gaussian(n, 3),
        lambda n: problems.two_pairs(n, 3),
        lambda n: problems.student_t(n, 3, 2.0),
        lambda n: problems.gaussian_dependence(np.eye(4), n),
    ],
    "y_dim": [
        lambda n: problems.dense_gaussian(3, n),
        lambda n: problems.two_pairs(3, n),
        lambda n: problems.student_t(3, n, 2.0),
    ],
    "seed": [lambda n: problems.random_gaussians(n)],
    "num_rows": [lambda n: problems.fitted_mixture(KEY, n, lambda x: None)],
    "points": [
        lambda n: problems.mixtures(
            *[GaussianMixture(jnp.ones(1), jnp.ones((1, 1)), 1.0)] * 2, points=n
        )
    ],
}
NUMBERS = {
    "kl": [
        lambda v: problems.gaussian_shift(2, v),
        lambda v: problems.correlated_gaussians(2, v),
    ],
    "scale": [lambda v: problems.gaussian_scale(2, v)],
    "a": [lambda v: problems.chasm(v)],
    "spacing": [lambda v: problems.lattice(2, v)],
    "correlation": [
        lambda v: problems.binormal(v),
        lambda v: problems.dense_gaussian(2, 2, v),
        lambda v: problems.two_pairs(2, 2, v),
    ],
    "freedom": [lambda v: problems.student_t(2, 2, v)],
    "epsilon": [lambda v: problems.additive_uniform(v)],
}


def each(table):
    return [
        pytest.param(name, call, id=f"{name} {i}")
        for name, calls in table.items()
        for i, call in enumerate(calls)
    ]


@pytest.mark.parametrize(
    "value", [2.0, 1.5, -1, NAN, True, "2", (2,), np.array([2]), None], ids=repr
)
@pytest.mark.parametrize(("name", "call"), each(COUNTS))
def test_counts(name, call, value):
    with pytest.raises(ValueError, match=rf"{name} must be"):
        call(value)


@pytest.mark.parametrize(
    "value", [NAN, INF, -INF, "1", (1.0,), np.array([0.5]), None, 1j], ids=repr
)
@pytest.mark.parametrize(("name", "call"), each(NUMBERS))
def test_numbers(name, call, value):
    with pytest.raises(ValueError, match=rf"^{name} must be"):
        call(value)


@pytest.mark.parametrize("kind", [float, np.float32, jnp.float32])
@pytest.mark.parametrize(("name", "call"), each(NUMBERS))
def test_numbers_of_any_kind_are_one(name, call, kind):
    """And out of range none is: a negative scale was that of no Gaussian."""
    assert call(kind(0.5)).kl == call(0.5).kl
    if name not in ("a", "correlation"):
        with pytest.raises(ValueError, match=rf"^{name} must"):
            call(kind(-1))


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("value", [NAN, INF])
def test_moments_of_a_pair_are_finite(which, value):
    moments = [np.zeros(2), np.eye(2), np.zeros(2), np.eye(2)]
    moments[which] = moments[which] + value
    with pytest.raises(ValueError, match="finite"):
        problems.gaussian_pair(moments[:2], moments[2:])


MIXTURE = GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), 1.0)
SAMPLERS = {
    "mixture": MIXTURE.sample,
    "task": problems.chasm(1.0).sample,
    "p": problems.student_t(1, 1, 2.0).sample_p,
    "q": problems.lattice(2).sample_q,
    "pairs": problems.binormal().sample_pairs,
    "transformed": problems.binormal().transformed(jnp.sinh, jnp.arcsinh).sample_p,
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_need_a_key_and_a_count(name):
    draw = SAMPLERS[name]
    for key in (0, None, jax.random.split(KEY)):
        with pytest.raises(ValueError, match=r"^key must be one typed key"):
            draw(key, 3)
    for n in (1.5, -1, None, jnp.array([2])):
        with pytest.raises(ValueError, match=r"^n must be an integer"):
            draw(KEY, n)


def test_targets_are_jittered_by_a_key():
    with pytest.raises(ValueError, match=r"^key must be one typed key"):
        problems.three_component_targets(0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_mixtures_of_matrices_need_full_precision(dtype):
    mixture = GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2, dtype=dtype))
    with pytest.raises(ValueError, match="covariances must be float32 or float64"):
        mixture.log_prob(jnp.zeros(2))


def test_integers_are_covariances():
    whole = GaussianMixture(jnp.ones(1), jnp.zeros((1, 2)), jnp.eye(2, dtype=int))
    np.testing.assert_allclose(whole.log_prob(jnp.zeros(2)), -np.log(2 * np.pi), rtol=1e-6)


def flows_of(times, covariance):
    initial = Normal(jnp.zeros(2), covariance)
    target = Normal(jnp.ones(2), jnp.eye(2))
    targets = Normal(jnp.ones((1, 2)), jnp.eye(2)[None])
    return {
        "explicit": lambda: problems.fokker_planck_moments(times, initial, target),
        "first": lambda: problems.multi_objective_moments(times, initial, targets, 0.0, 4),
        "second": lambda: problems.accelerated_moments(times, initial, targets, 1.0, 0.0, 4),
    }


@pytest.mark.parametrize("kind", ["explicit", "first", "second"])
@pytest.mark.parametrize(
    "covariance",
    [
        -EYE,
        np.diag([1.0, -1.0]),
        np.array([[1.0, 2.0], [2.0, 1.0]]),
        np.array([[1.0, 1.0], [0.0, 1.0]]),
    ],
)
def test_what_is_no_covariance_has_no_moments(kind, covariance):
    found = jax.jit(lambda c: flows_of(jnp.ones(1), c)[kind]())(jnp.asarray(covariance))
    assert np.isnan(found.mean).all()
    assert np.isnan(found.covariance).all()


@pytest.mark.parametrize("kind", ["first", "second"])
@pytest.mark.parametrize("times", [[-1.0], [0.5, 0.2], [0.5, NAN], [INF]])
def test_times_go_forwards(kind, times):
    times = jnp.array(times)
    with pytest.raises(ValueError, match=r"^times must"):
        flows_of(times, jnp.eye(2))[kind]()
    found = jax.jit(lambda t: flows_of(t, jnp.eye(2))[kind]())(times)
    assert np.isnan(found.mean[-1]).all()


def test_a_vanishing_start_is_a_covariance():
    """A point spreads by 1 − exp(−2t)."""
    found = flows_of(jnp.ones(1), jnp.zeros((2, 2)))["explicit"]()
    np.testing.assert_allclose(found.covariance[0], (1 - np.exp(-2)) * EYE, rtol=1e-5)


@pytest.mark.parametrize("kind", ["explicit", "first", "second"])
@pytest.mark.parametrize(
    "covariance",
    [np.array([[1.0, 2.0], [2.0, 1.0]]), np.diag([1.0, NAN]), np.diag([1.0, -1.0])],
)
def test_targets_of_what_is_no_covariance_give_nan(kind, covariance):
    initial, one = Normal(np.zeros(2), EYE), np.array([1.0])
    target = Normal(np.ones(2), covariance)
    both = Normal(np.ones((2, 2)), np.stack([EYE, covariance]))
    found = {
        "explicit": lambda: problems.fokker_planck_moments(one, initial, target),
        "first": lambda: problems.multi_objective_moments(one, initial, both, 0.0, 4),
        "second": lambda: problems.accelerated_moments(one, initial, both, 1.0, 0.0, 4),
    }[kind]()
    assert np.isnan(found.mean).all()
    assert np.isnan(found.covariance).all()


def test_moments_and_times_of_lists():
    lists = Normal([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]), Normal([1, 1], [[2, 1], [1, 2]])
    arrays = (
        Normal(jnp.zeros(2), jnp.eye(2)),
        Normal(jnp.ones(2), jnp.array([[2.0, 1.0], [1.0, 2.0]])),
    )
    stacked = lambda moments: Normal([moments.mean], [moments.covariance])
    for flow in (problems.multi_objective_moments, problems.accelerated_moments):
        found = flow([0.5, 1], lists[0], stacked(lists[1]), num_substeps=4)
        targets = Normal(*(leaf[None] for leaf in arrays[1]))
        expected = flow(jnp.array([0.5, 1.0]), arrays[0], targets, num_substeps=4)
        np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-6)
    found = problems.fokker_planck_moments([0.5, 1], *lists)
    expected = problems.fokker_planck_moments(jnp.array([0.5, 1.0]), *arrays)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6)
    for name, arguments in {
        "times": (["a"], *lists),
        "the mean of initial": ([1.0], Normal([0.0, "a"], EYE), lists[1]),
        "the covariance of target": ([1.0], lists[0], Normal(np.ones(2), [[1.0, 0.0], [1.0]])),
        "target": ([1.0], lists[0], np.ones(3)),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} must"):
            problems.fokker_planck_moments(*arguments)


@pytest.mark.parametrize(
    ("task", "smaller", "message"),
    [
        (problems.additive_uniform, 1e-6, "epsilon must be at least 1e-05, or y is x"),
        (lambda spacing: problems.lattice(2, spacing), 2.0**-16, "spacing must be at least"),
    ],
)
def test_tasks_that_float32_cannot_draw(task, smaller, message):
    with jax.enable_x64(False), pytest.raises(ValueError, match=message):
        task(smaller)
    with jax.enable_x64(True):
        task(smaller)


def test_half_precision_does_not_draw_far_from_the_origin():
    """Draws at 2000 would be whole numbers, of a standard deviation of .57 for .5."""
    numbers = (np.ones(1), np.full((1, 1), 2000.0), np.array(0.25))
    mixture = problems.GaussianMixture(*(jnp.asarray(each, jnp.float16) for each in numbers))
    with pytest.raises(ValueError, match=r"means must lie within 2e\+01 standard deviations"):
        mixture.sample(jax.random.key(0), 3)
