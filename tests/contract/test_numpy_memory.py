"""A NumPy array counts as it is when the call is made, whatever its owner writes to it later.

JAX computes after the call has returned, and may read NumPy's memory then: all the more surely the
better the array is aligned, the longer the computation.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divjax import Normal, fdiv, flows, inference, kernels, ot, ratio
from divjax.fdiv import categorical, gaussian, histogram
from divjax.ratio import heads

KEY = jax.random.key(0)
N, D = 2000, 100
RNG = np.random.default_rng(0)
X, Y = np.float32(RNG.normal(size=(N, 2))), np.float32(RNG.normal(size=(N, 2)) + 1)
A = np.float32(RNG.uniform(size=N))
A /= A.sum()
MEAN = np.float32(RNG.normal(size=D))
COVARIANCE = np.float32(np.diag(RNG.uniform(1, 2, size=D)) + 0.1)
ROWS = np.float32(RNG.dirichlet(np.ones(400), size=300))


def _squared_shift(x, y):
    return jnp.sum((x.mean(0) - y.mean(0)) ** 2)


def _flow(x, y):
    objective = flows.MMD(y, kernels.Gaussian(1.0))
    optimizer = optax.sgd(0.1)
    result = flows.Flow([objective], velocity=flows.SVGD(), optimizer=optimizer).run(
        KEY, x, num_steps=3
    )
    return result.particles


CASES = {
    "knn_kl": (lambda x, y: fdiv.knn_kl(x, y).value, X, Y),
    "plug_in_kl": (lambda x, y: fdiv.gaussian.plug_in_kl(x, y).value, X, Y),
    "histogram": (lambda x, y: histogram.divergence(categorical.jensen_shannon, x, y), X, Y),
    "gaussian.kl": (
        lambda m, s: gaussian.kl(Normal(m, s), Normal(jnp.zeros(D), jnp.eye(D))),
        MEAN,
        COVARIANCE,
    ),
    "categorical.kl": (categorical.kl, ROWS, ROWS[::-1].copy()),
    "sinkhorn": (
        lambda x, y, a, b: ot.sinkhorn(x, y, a, b, epsilon=1.0).value,
        *(X, Y, A, A[::-1].copy()),
    ),
    "sliced_wasserstein": (
        lambda x, y, a: ot.sliced_wasserstein(KEY, x, y, a, num_projections=64),
        *(X, Y, A),
    ),
    "wasserstein_1d": (lambda x, y, a: ot.wasserstein_1d(x, y, a), X[:, 0], Y[:, 0], A),
    "gaussian_map_from_samples": (
        lambda x, y, a: ot.gaussian_map_from_samples(x, y, a).matrix,
        *(X, Y, A),
    ),
    "cost_matrix": (lambda x, y: ot.cost_matrix(ot.SqEuclidean(), x, y), X, Y),
    "KernelMeanMatching": (
        lambda x, y, a: ratio.KernelMeanMatching(num_steps=50).fit(KEY, x, y, a).weights,
        *(X, Y, A),
    ),
    "ClassifierRatio": (
        lambda x, y, a: (
            ratio.ClassifierRatio(heads.Linear(0.5), num_folds=2).fit(KEY, x, y, a).js().value
        ),
        *(X, Y, A),
    ),
    "auc": (lambda x, y, a: inference.auc(x, y, a).value, X[:, 0], Y[:, 0], A),
    "permutation_test": (
        lambda x, y: (
            inference.permutation_test(KEY, _squared_shift, x, y, num_permutations=99).p_value
        ),
        *(X, Y),
    ),
    "flows.Flow": (_flow, X, Y),
}


def aligned(array):
    """A copy at an address that JAX can read from directly."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[:] = array
    return copy


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.exhaustive] * (name == "ClassifierRatio"))
        for name in CASES
    ],
)
def test_what_is_written_after_the_call_does_not_count(name):
    function, *arrays = CASES[name]
    expected = np.asarray(function(*(jnp.array(array) for array in arrays)))
    assert np.isfinite(expected).all()
    for index in range(len(arrays)):
        copies = [aligned(array) for array in arrays]
        result = function(*copies)
        copies[index][...] = np.nan
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)
