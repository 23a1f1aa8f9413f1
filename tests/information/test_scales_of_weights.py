"""Weights count relative to their sum: a common factor changes nothing, at any scale."""

import jax.numpy as jnp
import numpy as np
import pytest

from divjax import discrepancy, fdiv, kernels, ot
from divjax import information as info

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 2))
Y = X**2 + RNG.normal(size=(40, 2))
WEIGHTS = RNG.uniform(0.5, 1, size=40)
U = RNG.normal(size=(1024, 1))
V = U**2 + RNG.normal(size=(1024, 1))
LONG = RNG.uniform(0.5, 1, size=1024)
GAUSS = kernels.Gaussian(1.0)

FUNCTIONS = {
    "distance_covariance on the line": (
        LONG,
        lambda w: info.distance_covariance(U, V, weights=w),
    ),
    "distance_covariance": (WEIGHTS, lambda w: info.distance_covariance(X, Y, weights=w)),
    "hsic": (WEIGHTS, lambda w: info.hsic(X, Y, weights=w)),
    "cka": (WEIGHTS, lambda w: info.cka(X, Y, weights=w)),
    "joint": (WEIGHTS, lambda w: info.joint_distance_covariance((X, Y), weights=w)),
    "kernel_stein": (
        WEIGHTS,
        lambda w: discrepancy.kernel_stein(X, score=jnp.negative, weights=w, kernel=GAUSS),
    ),
    "mmd": (WEIGHTS, lambda w: discrepancy.mmd(X, Y, w, kernel=GAUSS)),
    "sliced_wasserstein": (
        WEIGHTS,
        lambda w: ot.sliced_wasserstein(
            None, X, Y, directions=np.resize(np.eye(2), (40, 2)), direction_weights=w
        ),
    ),
    "jensen_shannon": (
        WEIGHTS[:2],
        lambda w: fdiv.categorical.jensen_shannon(
            jnp.array([0.3, 0.7]), jnp.array([0.6, 0.4]), weights=w
        ),
    ),
}


@pytest.mark.parametrize("scale", [2.0**-66, 2.0**127])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_common_factor_of_the_weights_changes_nothing(name, scale):
    """By powers of two, which round nothing; sums of the largest are infinite."""
    weights, function = FUNCTIONS[name]
    weights = np.float32(weights)
    expected = function(jnp.asarray(weights, jnp.float32))
    found = function(jnp.asarray(scale * weights, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
