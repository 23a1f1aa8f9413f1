"""Mutual information by a ratio's estimator, on Gaussians, tables and independent rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import information, ratio
from divjax.information import learned_information

KEY = jax.random.key(0)
QUADRATIC = information.ClassifierInformation(ratio.ClassifierRatio("quadratic"), num_products=1)


@pytest.mark.parametrize(("num_rows", "num_products"), [(2, 1), (9, 1), (23, 3), (5, 4)])
def test_products(num_rows, num_products):
    """Of rows of one block, never of a row with itself, each as often as any other."""
    first, second, blocks = learned_information._products(KEY, num_rows, num_products)
    assert (first != second).all()
    assert (blocks[first] == blocks[second]).all()
    assert len({*zip(first.tolist(), second.tolist(), strict=True)}) == num_rows * num_products
    for index in (first, second):
        assert (np.bincount(index, minlength=num_rows) == num_products).all()
    counts = np.bincount(blocks)
    assert len(counts) == num_rows // (num_products + 1)
    assert counts.min() > num_products
    assert counts.max() < 2 * (num_products + 1)


def test_what_is_refused():
    x = jnp.ones((30, 1))
    with pytest.raises(ValueError, match="y is missing"):
        QUADRATIC.fit(KEY, x)
    with pytest.raises(ValueError, match="same number of rows"):
        QUADRATIC.fit(KEY, x, x[1:])
    with pytest.raises(ValueError, match="groups must hold at least two"):
        QUADRATIC.fit(KEY, x[:12], x[:12])
    with pytest.raises(ValueError, match="estimator must"):
        information.ClassifierInformation("quadratic").fit(KEY, x, x)
    with pytest.raises(ValueError, match="num_products"):
        information.ClassifierInformation(num_products=0)


@pytest.mark.exhaustive
@pytest.mark.parametrize("num_products", [1, 3])
def test_gaussians(num_products):
    """−½ log(1 − ρ²), in eight samples, and its pointwise terms."""
    rng, rho = np.random.default_rng(0), 0.8
    truth, scores = -0.5 * np.log(1 - rho**2), []
    method = information.ClassifierInformation(QUADRATIC.estimator, num_products=num_products)
    pointwise = lambda x, y: truth - (rho**2 * (x**2 + y**2) - 2 * rho * x * y) / (2 - 2 * rho**2)
    for seed in range(8):
        x, noise = rng.normal(size=(2, 600, 1))
        y = rho * x + np.sqrt(1 - rho**2) * noise
        fit = method.fit(jax.random.key(seed), x + 1e6, y)
        estimate = fit.mutual_information()
        scores.append((estimate.value - truth) / estimate.std_error)
        assert estimate.std_error < 0.1
    assert np.max(np.abs(scores)) < 3
    assert abs(np.mean(scores)) < 1.2
    known = pointwise(x[:, 0], y[:, 0])
    assert np.sqrt(np.mean((np.asarray(fit.log_ratios) - known) ** 2)) < 0.3
    grid = np.linspace(-1, 1, 5)[:, None]
    found = fit.pointwise_mutual_information(grid + 1e6, grid[::-1])
    np.testing.assert_allclose(found, pointwise(grid, grid[::-1])[:, 0], atol=0.25, rtol=0.2)
    np.testing.assert_allclose(
        fit.pointwise_mutual_information(grid + 1e6, grid, base=2) * np.log(2),
        fit.pointwise_mutual_information(grid + 1e6, grid),
        rtol=1e-5,
    )


@pytest.mark.exhaustive
def test_categories_and_independence():
    rng = np.random.default_rng(1)
    x = rng.integers(3, size=1500)
    y = np.where(rng.random(1500) < 0.6, x, rng.integers(3, size=1500))
    # P(x = y) = .6 + .4/3, and the rest in equal parts.
    same = 0.6 + 0.4 / 3
    truth = same * np.log(3 * same) + (1 - same) * np.log(3 * (1 - same) / 2)
    columns = np.eye(3)
    dependent = QUADRATIC.fit(KEY, columns[x], columns[y]).mutual_information()
    assert abs(dependent.value - truth) < 3 * dependent.std_error
    assert dependent.std_error < 0.1 * truth + 0.02
    independent = QUADRATIC.fit(KEY, columns[x], columns[rng.permutation(y)]).mutual_information()
    assert abs(independent.value) < 3 * independent.std_error + 0.005


@pytest.mark.exhaustive
def test_weights_and_other_estimators():
    rng = np.random.default_rng(2)
    x, noise = rng.normal(size=(2, 400, 1)).astype(np.float32)
    y = x + noise
    plain = QUADRATIC.fit(KEY, x, y, np.ones(400)).mutual_information()
    np.testing.assert_allclose(plain.value, QUADRATIC.fit(KEY, x, y).mutual_information().value)
    # Where x is positive, by weights: p changes, and the ratio with it.
    weights = (x[:, 0] > 0).astype(float)
    spoilt = np.where(weights[:, None] > 0, x, np.nan)
    one, two = (QUADRATIC.fit(KEY, z, y, weights).mutual_information() for z in (x, spoilt))
    np.testing.assert_allclose(one.value, two.value)
    assert jnp.isfinite(one.std_error)
    kernel = information.ClassifierInformation(ratio.LeastSquaresRatio())
    found = kernel.fit(KEY, x, y).mutual_information()
    assert abs(found.value - 0.5 * np.log(2)) < 3 * found.std_error + 0.05
