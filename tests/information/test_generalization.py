"""Bounds on the gap between training and test loss: where they are attained, and on a network."""

import jax.numpy as jnp
import numpy as np
import pytest

from divjax import ot
from divjax.information import generalization


def test_the_kl_bound_is_attained_by_gaussians():
    """A shift of N(0, σ²) by m changes the mean of the σ-sub-Gaussian loss t by m."""
    shift, sigma = np.array([0.1, 2.0]), 3.0
    kl = shift**2 / (2 * sigma**2)
    np.testing.assert_allclose(generalization.kl_bound(kl, sigma), shift, rtol=1e-5)
    assert jnp.isnan(generalization.kl_bound(-0.1, sigma))


def test_the_kl_bound_holds_for_losses_between_zero_and_one():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.full(4, 0.5), size=(2, 200))
    losses = rng.uniform(size=(200, 4))
    gaps = np.abs(np.sum((p - q) * losses, axis=1))
    bounds = generalization.kl_bound(np.sum(p * np.log(p / q), axis=1), 0.5)
    assert (gaps <= bounds).all()
    assert (gaps > bounds / 4).any()


def network(x, matrices):
    layers = [x]
    for matrix in matrices:
        layers.append(np.maximum(layers[-1] @ matrix, 0))
    return layers


def test_the_wasserstein_bound_of_a_network():
    """The gap of the last output, W₁ by linear programs; and of a shift, where it is attained."""
    rng = np.random.default_rng(1)
    matrices = [rng.normal(size=shape) for shape in ((3, 5), (5, 2), (2, 1))]
    constants = generalization.lipschitz_constants(matrices)
    norms = [np.linalg.norm(matrix, 2) for matrix in matrices]
    expected = [np.prod(norms[layer:]) for layer in range(4)]
    np.testing.assert_allclose(constants, expected, rtol=1e-5)

    train, test = rng.normal(size=(2, 40, 3)) + np.array([[[0.0]], [[0.5]]])
    layers = [network(rows, matrices) for rows in (train, test)]
    wasserstein = lambda x, y: ot.exact(x, y, cost=ot.Euclidean()).value
    distances = jnp.stack(generalization.layer_divergences(wasserstein, *layers))
    gap = abs(np.mean(layers[0][-1]) - np.mean(layers[1][-1]))
    bounds = [float(one) for one in distances * constants]
    np.testing.assert_allclose(
        generalization.wasserstein_bound(distances, constants), min(bounds), rtol=1e-6
    )
    assert gap <= min(bounds)
    # The first layers' constants are those of the worst direction.
    assert min(bounds) < 0.9 * bounds[0]

    moved = generalization.layer_divergences(wasserstein, [train[:, :1]], [train[:, :1] + 0.25])
    np.testing.assert_allclose(moved[0], 0.25, rtol=1e-5)


def test_layers_of_any_shape_and_structure():
    means = lambda x, y: jnp.mean(x) - jnp.mean(y) + x.shape[1]
    train = {"images": np.ones((4, 2, 3)), "codes": (np.zeros((4, 1)),)}
    test = {"images": np.zeros((5, 2, 3)), "codes": (np.ones((5, 1)),)}
    found = generalization.layer_divergences(means, train, test)
    assert float(found["images"]) == 7
    assert float(found["codes"][0]) == 0


def test_inputs():
    with pytest.raises(ValueError, match="the same layers"):
        generalization.layer_divergences(max, [np.ones((2, 1))], [])
    with pytest.raises(ValueError, match="one number for each layer; got 2 and 1"):
        generalization.wasserstein_bound([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="at least one matrix"):
        generalization.lipschitz_constants([])
    with pytest.raises(ValueError, match="sub_gaussian"):
        generalization.kl_bound(0.1, -1.0)
