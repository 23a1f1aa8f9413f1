"""Units: what is measured does not depend on them, and the offset of numbers on a line neither."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import discrepancy, information, kernels

KEY = jax.random.key(0)
UNITS = [1e-20, 1e20]


def samples(d):
    x, y = np.random.default_rng(d).normal(size=(2, 40, d)).astype(np.float32)
    return x, 1.5 * y + 1


@pytest.mark.parametrize("unit", [1e-20, 1e19])
def test_precision_and_recall_have_no_unit(unit):
    x, y = samples(3)
    scaled = [jnp.asarray(rows * np.float32(unit)) for rows in (x, y)]
    found, expected = (discrepancy.precision_recall(*pair) for pair in (scaled, (x, y)))
    np.testing.assert_array_equal(np.stack(found), np.stack(expected))
    assert 0 < expected.precision < 1
    apart = discrepancy.precision_recall(scaled[0], scaled[0] + np.float32(100 * unit))
    assert np.stack(apart).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("d", [2, 12])
def test_distances_are_in_the_samples_unit(d, unit):
    x, y = samples(d)
    scaled = [jnp.asarray(rows * np.float32(unit)) for rows in (x, y)]
    weights = np.arange(40.0)
    rows = scaled[0].at[0].set(jnp.nan)
    distance = lambda x, y: discrepancy.energy_distance(x, y, weights)
    value, slope = jax.value_and_grad(distance)(rows, scaled[1])
    expected, of_unit = jax.value_and_grad(distance)(jnp.asarray(x), y)
    np.testing.assert_allclose(value, np.float32(unit) * expected, rtol=1e-5)
    np.testing.assert_allclose(slope[1:], of_unit[1:], rtol=1e-3, atol=1e-6)
    as_mmd = discrepancy.mmd(*scaled, kernel=kernels.Energy())
    np.testing.assert_allclose(as_mmd, discrepancy.energy_distance(*scaled), rtol=1e-5)


def test_tests_have_no_unit():
    x, y = samples(2)
    scaled = [jnp.asarray(rows * np.float32(1e-20)) for rows in (x, y)]
    for test in (discrepancy.energy_test, discrepancy.aggregated_mmd_test):
        found, expected = (test(KEY, *pair, num_permutations=99) for pair in (scaled, (x, y)))
        assert found.p_value == expected.p_value == np.float32(0.01)
    statistic = discrepancy.energy_test(KEY, *scaled, num_permutations=99).statistic
    np.testing.assert_allclose(statistic, discrepancy.energy_distance(*scaled), rtol=1e-4)


@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_dependence_is_in_the_variables_units(exponent):
    x, y = samples(2)
    z = x * y
    small = x * np.float32(1e-20)
    factor = np.float32(1e-20) ** exponent
    joint = lambda *rows: information.joint_distance_covariance(rows, exponent=exponent, offset=0)
    np.testing.assert_allclose(joint(small, y, z) / factor, joint(x, y, z), rtol=1e-4)
    parts = lambda x: information.concatenated_distance_covariance(x, [y, z], exponent=exponent)
    found, expected = parts(small), parts(x)
    np.testing.assert_allclose(found.value / factor, expected.value, rtol=1e-4)
    np.testing.assert_allclose(found.parts / factor, expected.parts, rtol=1e-4)


@pytest.mark.parametrize("offset", [1e6, 1e7])
def test_derivatives_in_weights_do_not_depend_on_the_offset(offset):
    """On the line; the coordinates are multiples of four, and held exactly."""
    rng = np.random.default_rng(0)
    x, y = (4 * rng.integers(-50, 50, size=(60, 1)).astype(np.float32) for _ in range(2))
    a = np.ones(60, np.float32)
    slope = lambda at: jax.grad(
        lambda a: discrepancy.energy_distance(jnp.asarray(x + at), jnp.asarray(y + at), a)
    )(a)
    wide_x, wide_y = np.float64(x[:, 0]), np.float64(y[:, 0])
    potential = 2 * (abs(wide_x[:, None] - wide_y).mean(1) - abs(wide_x[:, None] - wide_x).mean(1))
    expected = (potential - potential.mean()) / 60
    np.testing.assert_allclose(slope(np.float32(offset)), expected, atol=1e-4 * abs(expected).max())
