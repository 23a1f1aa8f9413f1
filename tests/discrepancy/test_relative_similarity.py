"""Which of two samples is nearer to a third: NumPy, closed forms, levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import norm

from divjax import discrepancy, kernels
from divjax.core.types import Status

KEY = jax.random.key(0)
KERNEL = kernels.Gaussian(bandwidth=1.0)


def test_the_difference_of_two_statistics():
    """In units of the deviation that its influences give, each by deleting a row in turn."""
    rng = np.random.default_rng(0)
    x, y, z = rng.normal(size=(9, 2)), rng.normal(size=(7, 2)) + 1, rng.normal(size=(8, 2)) - 0.5
    k = lambda a, b: np.exp(-cdist(a, b, "sqeuclidean") / 2)

    def difference(x, y, z):
        without_self = lambda a: (k(a, a).sum() - len(a)) / (len(a) * (len(a) - 1))
        return without_self(y) - without_self(z) - 2 * (k(x, y).mean() - k(x, z).mean())

    variance = 0
    for place, sample in enumerate((x, y, z)):
        others = [
            difference(*(np.delete(s, i, 0) if j == place else s for j, s in enumerate((x, y, z))))
            for i in range(len(sample))
        ]
        variance += (len(sample) - 1) ** 2 / len(sample) * np.var(others, ddof=1)
    test = discrepancy.relative_mmd_test(x, y, z, kernel=KERNEL)
    # The jackknife deletes a row from a mean over the others, hence its own factor (n − 1)/n.
    expected = difference(x, y, z) / np.sqrt(variance)
    np.testing.assert_allclose(test.statistic, expected, rtol=0.1)
    np.testing.assert_allclose(test.p_value, norm.sf(float(test.statistic)), rtol=1e-4)
    exchanged = discrepancy.relative_mmd_test(x, z, y, kernel=KERNEL)
    np.testing.assert_allclose(exchanged.p_value, 1 - test.p_value, rtol=1e-4)


def repeated(shift_y, shift_z, num=1000, n=80):
    def score(key):
        x, y, z = jax.random.normal(key, (3, n, 2))
        y, z = y.at[:, 0].add(shift_y), z.at[:, 1].add(shift_z)
        return discrepancy.relative_mmd_test(x, y[: n - 10], z, kernel=KERNEL).p_value

    return np.asarray(jax.jit(jax.vmap(score))(jax.random.split(KEY, num)))


def test_the_level_at_equal_distance():
    p_values = repeated(0.8, 0.8)
    for level in (0.05, 0.1):
        share = np.mean(p_values <= level)
        assert abs(share - level) < 3 * np.sqrt(level * (1 - level) / 1000)


def test_the_nearer_one_is_found():
    p_values = repeated(1.2, 0.2, num=100)
    assert np.mean(p_values <= 0.05) > 0.9


def test_three_samples_of_one_distribution():
    """The limit is not normal there: the test must not reject more often than its level."""
    p_values = repeated(0.0, 0.0)
    assert np.mean(p_values <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


def test_what_has_no_answer():
    equal = np.full((4, 2), 0.3)
    test = discrepancy.relative_mmd_test(equal, equal[:3], equal, kernel=KERNEL)
    assert np.isnan(test.p_value)
    assert test.status == Status.FLOATING_POINT_RESOLUTION
    x, y = np.zeros((5, 2)), np.ones((4, 2))
    with pytest.raises(ValueError, match="z must have at least two rows"):
        discrepancy.relative_mmd_test(x, y, y[:1])
    with pytest.raises(ValueError, match="same number of features"):
        discrepancy.relative_mmd_test(x, y, y[:, :1])
    y[1, 1] = np.inf
    test = discrepancy.relative_mmd_test(x, x + jnp.eye(5, 2), y, kernel=KERNEL)
    assert np.isnan(test.p_value)
    assert test.status == Status.NOT_FINITE
