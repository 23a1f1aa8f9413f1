"""Numbers with more digits than JAX's float are compared, or subtracted, before they are rounded.

NumPy's float64 and whole numbers, JAX's int32: what depends on differences alone is the same far
from zero, and what depends on the order alone is the same for numbers that round to one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import fdiv, flows, inference, kernels, losses, ot
from divjax.core.simplex import project_simplex
from divjax.fdiv import categorical
from divjax.inference.rank import midranks
from divjax.kernels import kernel_sums
from divjax.ratio import bounds

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, 12, 2))
STUDENT, TEACHER = RNG.normal(size=(2, 6, 5))
LABELS = np.arange(6) % 5
COSTS = 1 - np.eye(5)
IMAGES, OTHER_IMAGES = RNG.normal(size=(2, 3, 4, 4, 2))
CLASSES = RNG.normal(size=(3, 4, 6))
U_P, U_Q = RNG.normal(size=(2, 8))
U_ROWS = RNG.normal(size=(8, 3))
COLUMN = np.ones((12, 1))
FAR = 1e9
# An offset of each row, image or sample of its own.
ROW_OFFSETS = FAR * RNG.normal(size=(6, 1))
IMAGE_OFFSETS = FAR * RNG.normal(size=(3, 1, 1, 2))
SAMPLE_OFFSETS = FAR * RNG.normal(size=(3, 4, 1))


def _kernel(kernel):
    return lambda far: kernel(X + FAR * far, Y + FAR * far)


# What a move by 1 (far = 1) or none (far = 0) leaves as it is.
OF_DIFFERENCES = {
    "kernels.Gaussian": _kernel(kernels.Gaussian(1.0)),
    "kernels.Laplace": _kernel(kernels.Laplace(1.0)),
    "kernels.InverseMultiquadric": _kernel(kernels.InverseMultiquadric(1.0)),
    "kernels.Energy": _kernel(kernels.Energy()),
    "kernels.Median": lambda far: kernels.Gaussian().at(X + FAR * far).bandwidth,
    "kernels.Mean": lambda far: kernels.Gaussian(kernels.Mean()).at(X + FAR * far).bandwidth,
    "kernels.MultiScale": lambda far: (
        kernels.Gaussian(kernels.MultiScale()).at(X + FAR * far).bandwidth
    ),
    "kernels.kernel_sums": lambda far: kernel_sums(
        kernels.Gaussian(1.0), X + FAR * far, Y + FAR * far, COLUMN, COLUMN
    )[1],
    **{
        f"ot.{type(cost).__name__}": lambda far, cost=cost: np.append(
            cost.matrix(X + FAR * far, Y + FAR * far), cost(X[0] + FAR * far, Y[0] + FAR * far)
        )
        for cost in (
            ot.SqEuclidean(),
            ot.Euclidean(),
            ot.EuclideanPower(),
            ot.PNorm(),
            ot.PNormPower(),
        )
    },
    "fdiv.sampled_kl": lambda far: fdiv.sampled_kl(U_P - FAR * far, U_Q - FAR * far),
    "ratio.bounds.donsker_varadhan": lambda far: bounds.donsker_varadhan(
        U_P + FAR * far, U_Q + FAR * far
    ),
    "ratio.bounds.info_nce(one row)": lambda far: bounds.info_nce(U_P + FAR * far, U_Q + FAR * far),
    "ratio.bounds.info_nce": lambda far: bounds.info_nce(
        U_P + FAR * far * U_P, U_ROWS + FAR * far * U_P[:, None]
    ),
    "losses.wkd_logits": lambda far: losses.wkd_logits(
        STUDENT + far * ROW_OFFSETS, TEACHER - far * ROW_OFFSETS, LABELS, COSTS, weight=1.0
    ),
    "losses.sinkhorn_distillation": lambda far: losses.sinkhorn_distillation(
        STUDENT + far * ROW_OFFSETS, TEACHER - far * ROW_OFFSETS, weight=1.0
    ),
    "losses.wkd_features(diagonal)": lambda far: losses.wkd_features(
        IMAGES + far * IMAGE_OFFSETS, OTHER_IMAGES + far * IMAGE_OFFSETS
    ),
    "losses.wkd_features(full)": lambda far: losses.wkd_features(
        IMAGES + far * IMAGE_OFFSETS, OTHER_IMAGES + far * IMAGE_OFFSETS, covariance="full"
    ),
    "losses.class_similarity": lambda far: losses.class_similarity(CLASSES + far * SAMPLE_OFFSETS),
    "flows.hypervolume": lambda far: flows.hypervolume(X + FAR * far, np.full(2, 3.0) + FAR * far),
    "flows.distinct_particles": lambda far: flows.distinct_particles(X + FAR * far),
    "project_simplex": lambda far: project_simplex(U_P + FAR * far),
    "fdiv.categorical.kl(Logits)": lambda far: categorical.kl(
        categorical.Logits(STUDENT + far * ROW_OFFSETS),
        categorical.Logits(TEACHER - far * ROW_OFFSETS),
    ),
}


@pytest.mark.parametrize("name", OF_DIFFERENCES)
def test_an_offset_of_numpy_changes_nothing(name):
    function = OF_DIFFERENCES[name]
    near = np.asarray(function(0.0))
    assert np.isfinite(near).all()
    np.testing.assert_allclose(function(1.0), near, rtol=1e-4, atol=1e-5)


STEPS = np.array([5, 3, 8, 1, 2, 7])
OTHER_STEPS = np.array([4, 2, 6, 0, 9])

# x and y, whose differences are those of the steps.
WIDE = {
    "jax int32": lambda steps: jnp.asarray(steps + 2**30, jnp.int32),
    "numpy int64": lambda steps: steps + 2**62,
    "numpy float64": lambda steps: steps * 1e-3 + 1e9,
    "tiny float64": lambda steps: (steps - 4.5) * 1e-60,
}


@pytest.mark.parametrize("held", WIDE)
@pytest.mark.parametrize("double", [False, True])
def test_scores_keep_their_order(held, double):
    """P(X > Y) + ½ P(X = Y), counted."""
    x, y = STEPS[:, None], OTHER_STEPS
    share = ((x > y) + (x == y) / 2).mean()
    with jax.enable_x64(double):
        x, y = WIDE[held](STEPS), WIDE[held](OTHER_STEPS)
        np.testing.assert_allclose(inference.auc(x, y).value, share, rtol=1e-6)
        test = inference.score_permutation_test(KEY, x, y, num_permutations=9)
        np.testing.assert_allclose(test.statistic, share, rtol=1e-6)
        ranks = midranks(x)
    np.testing.assert_array_equal(ranks, [4, 3, 6, 1, 2, 5])


def test_scores_on_the_wrong_side_by_a_hair_are_wrong():
    x, y = np.array([1e-60, 2.0, -1e-50, 3e-42]), np.array([-1e-45, -1.0, 1e-300])
    expected = (3 / 4 + 2 / 3) / 2
    np.testing.assert_allclose(inference.accuracy(x, y).value, expected, rtol=1e-6)
    beside = inference.accuracy(x + 1.0, y + 1.0, threshold=1.0)
    np.testing.assert_allclose(beside.value, ((1 + 1 / 2 * 3) / 4 + (1 + 1 / 2 * 2) / 3) / 2)
    test = inference.score_permutation_test(KEY, x, y, "accuracy", num_permutations=9)
    np.testing.assert_allclose(test.statistic, expected, rtol=1e-6)


@pytest.mark.parametrize("held", ["jax int32", "numpy int64", "numpy float64"])
def test_scores_keep_their_differences(held):
    x, y = WIDE[held](STEPS), WIDE[held](OTHER_STEPS)
    unit = 1e-3 if held == "numpy float64" else 1.0
    expected = unit * (STEPS.mean() - OTHER_STEPS.mean())
    test = inference.score_permutation_test(KEY, x, y, "mean", num_permutations=9)
    np.testing.assert_allclose(test.statistic, expected, rtol=1e-3)
    equally_many = OTHER_STEPS[:5], STEPS[:5]
    cost = np.abs(np.sort(equally_many[0]) - np.sort(equally_many[1])).mean() * unit
    one, other = (WIDE[held](steps) for steps in equally_many)
    np.testing.assert_allclose(ot.wasserstein_1d(one, other, p=1), cost, rtol=1e-3)


@pytest.mark.parametrize("label", [2**32, 2**32 + 1, -(2**32) + 1, 2**63 - 1])
def test_labels_out_of_range_do_not_wrap_round(label):
    labels = np.array([label, 1])
    third = np.full((2, 3), 1 / 3)
    value = categorical.cross_entropy(categorical.Labels(labels, 3), third)
    np.testing.assert_allclose(value, [np.nan, np.log(3)], rtol=1e-6)
    logits = np.zeros((2, 5))
    assert np.isnan(losses.wkd_logits(logits, logits, labels, COSTS))


def test_numpy_is_as_exact_as_it_is_far_away():
    """At 1e12 float64 still resolves 1e-4."""
    far = X + 1e12
    kernel = kernels.Gaussian(1.0)
    np.testing.assert_allclose(kernel(far), kernel(far - far[0]), rtol=1e-6)
