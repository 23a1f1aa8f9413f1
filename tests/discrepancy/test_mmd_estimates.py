"""Standard errors against the spread over repetitions, and random features against MMD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import discrepancy, kernels

KEY = jax.random.key(0)
REPETITIONS = 500


def draws(shift, scale, n, m, d=2):
    keys = jax.random.split(KEY, REPETITIONS)

    def draw(key):
        x_key, y_key = jax.random.split(key)
        x, y = jax.random.normal(x_key, (n, d)), jax.random.normal(y_key, (m, d))
        return x, scale * y + shift

    return jax.vmap(draw)(keys)


def estimates(function, samples):
    return jax.jit(jax.vmap(function))(*samples)


def variance_error(values):
    """The standard error of the variance over repetitions, from the fourth moment."""
    centred = values - values.mean()
    return np.sqrt((np.mean(centred**4) - np.var(values) ** 2) / values.size)


@pytest.mark.parametrize(
    ("shift", "scale", "sigma"), [(1.5, 0.7, 1.0), (0.5, 1.0, 1.0), (0.5, 1.0, 3.0)]
)
def test_the_variance_is_unbiased_where_samples_differ(shift, scale, sigma):
    found = estimates(
        lambda x, y: discrepancy.mmd_estimate(x, y, kernel=kernels.Gaussian(sigma)),
        draws(shift, scale, 30, 20),
    )
    values, variances = np.asarray(found.value), np.asarray(found.std_error) ** 2
    error = np.hypot(variance_error(values), variances.std() / REPETITIONS**0.5)
    assert abs(variances.mean() - values.var()) < 3 * error
    assert error < 0.15 * values.var()


def test_the_variance_is_conservative_where_they_do_not():
    """Of order 1/n², of which the first-order terms alone would give nothing right."""
    found = estimates(
        lambda x, y: discrepancy.mmd_estimate(x, y, kernel=kernels.Gaussian(1.0)),
        draws(0.0, 1.0, 30, 20),
    )
    values, variances = np.asarray(found.value), np.asarray(found.std_error) ** 2
    assert abs(values.mean()) < 3 * values.std() / REPETITIONS**0.5
    assert 0.9 < variances.mean() / values.var() < 2


def by_anova(k, n, m):
    """Var of the U-statistic from Hoeffding's terms, of a matrix small enough for plain NumPy."""
    center = lambda size: np.eye(size) - 1 / size
    xy = center(n) @ k[:n, n:] @ center(m)
    squares = [(xy**2).sum() / ((n - 1) * (m - 1))]
    parts = []
    for block, size in ((k[:n, :n], n), (k[n:, n:], m)):
        block = block - np.diag(np.diag(block))
        rows, total = block.sum(1), block.sum()
        u = block - rows[:, None] / (size - 2) - rows / (size - 2)
        u = u + total / ((size - 1) * (size - 2))
        np.fill_diagonal(u, 0)
        squares.append((u**2).sum() / (size * (size - 3)))
        parts.append(rows / (size - 2))
    at_x, at_y = parts[0] - k[:n, n:].mean(1), parts[1] - k[:n, n:].mean(0)
    of_xy, of_xx, of_yy = squares
    first = 4 * (at_x.var(ddof=1) - of_xx / (n - 2) - of_xy / m) / n
    first += 4 * (at_y.var(ddof=1) - of_yy / (m - 2) - of_xy / n) / m
    second = 2 * of_xx / (n * (n - 1)) + 2 * of_yy / (m * (m - 1)) + 4 * of_xy / (n * m)
    return max(first, 0) + second


@pytest.mark.parametrize("kernel", [kernels.Gaussian(50.0), kernels.Energy(), kernels.Polynomial()])
def test_the_standard_error_is_its_formula(kernel):
    """Also for a kernel so wide that its matrix is nearly constant."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(9, 3)) + 0.4
    with jax.enable_x64(True):
        found = discrepancy.mmd_estimate(x, y, kernel=kernel)
        matrix = np.asarray(kernel(jnp.asarray(np.concatenate([x, y]))))
        np.testing.assert_allclose(found.std_error**2, by_anova(matrix, 12, 9), rtol=1e-7)
        value = discrepancy.mmd(x, y, kernel=kernel, debias=True)
        np.testing.assert_allclose(found.value, value, rtol=1e-8, atol=1e-12)
    single = discrepancy.mmd_estimate(jnp.float32(x), jnp.float32(y), kernel=kernel)
    if not isinstance(kernel, kernels.Gaussian):  # whose values differ by 1e-4
        np.testing.assert_allclose(single.std_error, found.std_error, rtol=1e-3)


@pytest.mark.parametrize("block_size", [2, 5])
def test_blocks_are_unbiased_with_their_standard_error(block_size):
    kernel = kernels.Gaussian(1.0)
    found = estimates(
        lambda x, y: discrepancy.mmd_block(x, y, kernel=kernel, block_size=block_size),
        draws(0.6, 1.0, 61, 60),
    )
    values = np.asarray(found.value)
    mean = lambda v, gap: (1 / (1 + v)) * np.exp(-2 * gap**2 / (2 * (1 + v)))
    truth = 2 * mean(2.0, 0.0) - 2 * mean(2.0, 0.6)
    assert abs(values.mean() - truth) < 3 * values.std() / REPETITIONS**0.5
    variances = np.asarray(found.std_error) ** 2
    error = np.hypot(variance_error(values), variances.std() / REPETITIONS**0.5)
    assert abs(variances.mean() - values.var()) < 3 * error
    covered = np.mean((found.interval.lower < truth) & (truth < found.interval.upper))
    assert covered > 0.95 - 3 * np.sqrt(0.05 * 0.95 / REPETITIONS) - 0.03


def test_fifty_thousand_rows_take_bounded_memory():
    """Compiled, not run: what is held is blocks, and numbers of pairs beyond 32 bits are none."""
    rows = jax.ShapeDtypeStruct((50_000, 4), jnp.float32)
    kernel = kernels.Gaussian(1.0)
    slope = jax.grad(lambda x, y: discrepancy.mmd(x, y, kernel=kernel, debias=True))
    error = lambda x, y: discrepancy.mmd_estimate(x, y, kernel=kernel).std_error
    for function in (slope, error):
        compiled = jax.jit(function).lower(rows, rows).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 200e6


SPECTRAL = {
    "Gaussian": kernels.Gaussian(0.8),
    "Laplace": kernels.Laplace(0.8),
    "Matern(1.5)": kernels.Matern(0.8, 1.5),
    "Matern(2.5)": kernels.Matern(0.8, 2.5),
    "InverseMultiquadric": kernels.InverseMultiquadric(0.8, 0.7),
    "two scales": kernels.Gaussian((0.5, 2.0)),
}


@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("debias", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_random_frequencies_are_mmd_in_expectation(name, debias):
    """For each kernel's own spectral distribution."""
    kernel = SPECTRAL[name]
    rng = np.random.default_rng(0)
    x, y = np.float32(rng.normal(size=(9, 2))), np.float32(rng.normal(size=(7, 2)) + 0.8)
    a = np.float32(rng.uniform(size=9))
    drawn = jax.jit(
        lambda key: discrepancy.characteristic_function_distance(
            key, x, y, a, kernel=kernel, num_frequencies=100, debias=debias
        )
    )
    values = np.stack([drawn(key) for key in jax.random.split(KEY, 200)])
    exact = discrepancy.mmd(x, y, a, kernel=kernel, debias=debias)
    assert abs(values.mean() - exact) < 3 * values.std() / 200**0.5
    assert values.std() / 200**0.5 < 0.05 * abs(exact)


def test_given_frequencies_are_the_definition():
    rng = np.random.default_rng(0)
    x, y, frequencies = rng.normal(size=(9, 2)), rng.normal(size=(7, 2)), rng.normal(size=(5, 2))
    phi = lambda z: np.exp(1j * frequencies @ z.T).mean(axis=1)
    with jax.enable_x64(True):
        found = discrepancy.characteristic_function_distance(None, x, y, frequencies=frequencies)
    np.testing.assert_allclose(found, np.mean(np.abs(phi(x) - phi(y)) ** 2), rtol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: discrepancy.mmd_estimate(x[:3], x), "x must have at least 4 rows"),
        (lambda x: discrepancy.mmd_estimate(x, x, confidence_level=1.0), "confidence_level must"),
        (lambda x: discrepancy.mmd_block(x, x, block_size=3), "block_size must leave two blocks"),
        (lambda x: discrepancy.mmd_block(x, x, block_size=1), "block_size must be an integer"),
        (
            lambda x: discrepancy.characteristic_function_distance(
                KEY, x, x, kernel=kernels.Energy()
            ),
            "kernel must be a kernel with a spectral distribution",
        ),
        (
            lambda x: discrepancy.characteristic_function_distance(KEY, x, x, frequencies=x),
            "key must be None if frequencies are given",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((5, 2)))
