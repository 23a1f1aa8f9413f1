"""Information of jointly normal variables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import digamma

from divjax import information, problems

GAUSSIAN = information.Gaussian()


def expected_log_determinant(n, d):
    """Of a sample covariance with divisor n of standard normal variables."""
    return sum(digamma((n - i) / 2) + np.log(2 / n) for i in range(1, d + 1))


def test_it_is_its_definition():
    x, y, z = (np.random.default_rng(seed).normal(size=(40, 2)) for seed in range(3))
    y, z = y + 0.5 * x, z + x + y

    def corrected(*variables):
        joint = np.hstack(variables)
        log_determinant = np.linalg.slogdet(np.cov(joint.T, bias=True))[1]
        return (log_determinant - expected_log_determinant(40, joint.shape[1])) / 2

    with jax.enable_x64(True):
        mutual = information.mutual_information(x, y, method=GAUSSIAN)
        given = information.conditional_mutual_information(x, y, z, method=GAUSSIAN)
    np.testing.assert_allclose(mutual.value, corrected(x) + corrected(y) - corrected(x, y))
    exact = corrected(x, z) + corrected(y, z) - corrected(z) - corrected(x, y, z)
    np.testing.assert_allclose(given.value, exact)


@pytest.mark.parametrize("task", [problems.binormal(0.3), problems.two_pairs(2, 3)], ids=["1", "2"])
def test_it_is_unbiased_for_few_rows(task):
    @jax.jit
    def estimate(key):
        x, y = task.sample_pairs(key, 15)
        return information.mutual_information(x, y, method=GAUSSIAN).value

    values = jax.lax.map(estimate, jax.random.split(jax.random.key(0), 4000), batch_size=100)
    assert abs(values.mean() - task.kl) < 3 * values.std() / 4000**0.5
    assert values.std() < 0.5


def test_dependent_features():
    x = jax.random.normal(jax.random.key(0), (30, 2))
    of = lambda x, y: information.mutual_information(x, y, method=GAUSSIAN)
    assert of(x, x[:, :1] - x[:, 1:]).value == jnp.inf
    assert jnp.isnan(of(jnp.concatenate([x, x], axis=1), x[:, :1] ** 2).value)
    constant = of(jnp.full((30, 1), 0.1), x)
    assert constant.value == constant.std_error == 0
    with pytest.raises(ValueError, match="two more rows"):
        of(x[:4], x[:4])


@pytest.mark.exhaustive
@pytest.mark.parametrize("correlation", [0.0, 0.4, 0.9])
def test_intervals_cover(correlation):
    """90 % intervals, in 2000 repetitions."""
    task = problems.binormal(correlation)

    @jax.jit
    def covers(key):
        x, y = task.sample_pairs(key, 100)
        ends = information.mutual_information(x, y, method=GAUSSIAN, confidence_level=0.9).interval
        return (ends.lower <= task.kl) & (task.kl <= ends.upper)

    covered = jax.lax.map(covers, jax.random.split(jax.random.key(0), 2000), batch_size=100)
    assert covered.mean() >= 0.85
