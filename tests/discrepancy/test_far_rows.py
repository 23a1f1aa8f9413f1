"""A row far from all others, or few of them: the others' digits count, as in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import discrepancy, information, kernels
from divjax.core.pairwise import common_center

KEY = jax.random.key(0)


def gaussian(x, y, h):
    return np.exp(-((x[:, None] - y) ** 2).sum(-1) / (2 * h**2))


def exact_mmd(x, y, h):
    return gaussian(x, x, h).mean() + gaussian(y, y, h).mean() - 2 * gaussian(x, y, h).mean()


def exact_stein(x):
    """With the kernel (1 + |x − y|²)^(−½), for independent Cauchy features."""
    score, differences = -2 * x / (1 + x**2), x[:, None] - x
    base = 1 + (differences**2).sum(-1)
    turn = (differences * (score[None] - score[:, None])).sum(-1)
    trace = x.shape[1] * base**-1.5 - 3 * (base - 1) * base**-2.5
    return (base**-0.5 * (score @ score.T) - base**-1.5 * turn + trace).mean()


def samples(d, far, num_far=1):
    rng = np.random.default_rng(d)
    x, y = rng.normal(size=(2, 80, d)).astype(np.float32)
    x[:num_far] = far
    return x, y + np.float32(0.5)


@pytest.mark.parametrize("far", [-9999999.0, 1e10, 9.97e36])
@pytest.mark.parametrize(("d", "h"), [(2, 2.0), (12, 5.0)])
def test_a_far_row_leaves_the_others_their_digits(d, h, far):
    x, y = samples(d, far)
    wide_x, wide_y = np.float64(x), np.float64(y)
    kernel, truth = kernels.Gaussian(h), exact_mmd(wide_x, wide_y, h)
    test = discrepancy.mmd_test(KEY, x, y, kernel=kernel, num_permutations=1)
    np.testing.assert_allclose(test.statistic, truth, rtol=1e-4)
    value, slope = jax.value_and_grad(lambda x: discrepancy.mmd(x, y, kernel=kernel))(
        jnp.asarray(x)
    )
    np.testing.assert_allclose(value, truth, rtol=1e-4)
    step = np.zeros_like(wide_x)
    step[5, 0] = 1e-4
    difference = exact_mmd(wide_x + step, wide_y, h) - exact_mmd(wide_x - step, wide_y, h)
    np.testing.assert_allclose(slope[5, 0], difference / 2e-4, rtol=1e-3)
    own_x, own_y = (gaussian(rows, rows, h) for rows in (wide_x, wide_y))
    centring = np.eye(80) - 1 / 80
    np.testing.assert_allclose(
        information.hsic(x, y, kernel_x=kernel, kernel_y=kernel),
        np.trace(own_x @ centring @ own_y @ centring) / 80**2,
        rtol=1e-4,
    )
    cross = gaussian(wide_x, wide_y, h).mean()
    np.testing.assert_allclose(
        discrepancy.cauchy_schwarz(x, y, kernel=kernel),
        np.log(own_x.mean() * own_y.mean() / cross**2),
        rtol=1e-3,
    )


def test_a_far_row_of_both_samples_leaves_a_wide_kernel_wide():
    """The row cancels, and rounding of values near one exceeds the difference of the others."""
    x, y = samples(3, 1e4)
    y[:1] = x[:1]
    truth = exact_mmd(np.float64(x), np.float64(y), 1000.0)
    value = discrepancy.mmd(x, y, kernel=kernels.Gaussian(1000.0))
    np.testing.assert_allclose(value, truth, rtol=2e-2)


@pytest.mark.parametrize("far", [1e10, 1e12])
def test_a_far_row_leaves_the_stein_discrepancy(far):
    x, _ = samples(12, far)
    found = discrepancy.kernel_stein(
        jnp.asarray(x), score=lambda z: -2 * z / (1 + z**2), kernel=kernels.InverseMultiquadric(1.0)
    )
    np.testing.assert_allclose(found, exact_stein(np.float64(x)), rtol=1e-4)


@pytest.mark.parametrize("n", [5, 63, 64, 1000])
@pytest.mark.parametrize("masked", [False, True])
def test_the_centre_is_among_most_rows(n, masked):
    """Also if every tenth row is far away, whatever the others hold, and under `vmap`."""
    x = np.random.default_rng(n).normal(size=(n, 2)).astype(np.float32)
    x[::10] = 1e30
    used = None
    if masked:
        used = jnp.arange(n) % 4 != 1
        x[1::4] = np.nan
    center = common_center(jnp.asarray(x), used)
    assert jnp.max(jnp.abs(center)) < 2
    if masked:
        lanes = jax.vmap(common_center)(jnp.stack([x, x]), jnp.stack([used, used]))
        assert (lanes == center).all()
    broken = x.copy()
    broken[2, 0] = np.inf
    center = common_center(jnp.asarray(broken), used)
    assert np.isnan(center).tolist() == [True, False]
