"""Tests of whether two samples differ, and of whether a sample is a density's."""

import jax.numpy as jnp

from divjax import discrepancy, kernels
from tests.contract.edges import Edges
from tests.contract.promises import Row, samples

GAUSSIAN = kernels.Gaussian(bandwidth=0.9)


def _null(test):
    """The statistics of the relabelled samples, which vary with what the test is given."""
    return lambda method, key, x, w: test(method, key, x).null


def _score(test):
    return jnp.stack([test.statistic, test.p_value])


def _log_prob(z):
    return -jnp.sum(z**2) / 2 - jnp.sum(z**4) / 8


def _numbers(estimate):
    return jnp.stack([estimate.value, estimate.std_error, *estimate.interval])


ROWS: dict[str, Row] = {
    "discrepancy.kernel_stein": Row(
        GAUSSIAN,
        lambda kernel, key, x, w: discrepancy.kernel_stein(
            x, log_prob=_log_prob, weights=w, kernel=kernel
        ),
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "discrepancy.kernel_stein(debiased)": Row(
        kernels.InverseMultiquadric(bandwidth=0.9),
        lambda kernel, key, x, w: discrepancy.kernel_stein(
            x, score=jnp.negative, weights=w, kernel=kernel, debias=True
        ),
        slow=True,
        weighted=True,
        sampled=True,
        positive=(0, 1),
    ),
    "discrepancy.kernel_stein_blocks": Row(
        (GAUSSIAN, 0.6),
        lambda m, key, x, w: _numbers(
            discrepancy.kernel_stein_blocks(
                x, log_prob=_log_prob, kernel=m[0], confidence_level=m[1]
            )
        ),
        "random",  # blocks are of consecutive rows
        sampled=True,
        positive=(0, 1),
    ),
    "discrepancy.kernel_stein_test": Row(
        (GAUSSIAN, 0.4),
        _null(
            lambda m, key, x: discrepancy.kernel_stein_test(
                key,
                x,
                log_prob=_log_prob,
                kernel=m[0],
                flip_probability=m[1],
                num_resamples=9,
            )
        ),
        "random",
        sampled=True,
        positive=(0, 1),
    ),
    "discrepancy.mmd_test": Row(
        GAUSSIAN,
        _null(
            lambda kernel, key, x: discrepancy.mmd_test(
                key, x, samples(x.dtype), kernel=kernel, num_permutations=9
            )
        ),
        "random",
        sampled=True,
        positive=(0,),
    ),
    "discrepancy.aggregated_mmd_test": Row(
        (GAUSSIAN, kernels.Gaussian(bandwidth=2.0), kernels.Energy()),
        _null(
            lambda m, key, x: discrepancy.aggregated_mmd_test(
                key, x, samples(x.dtype), kernels=m, num_permutations=9
            )
        ),
        "random",
        sampled=True,
        positive=(0, 1),
    ),
    "discrepancy.aggregated_mmd_test(default)": Row(
        (),
        _null(
            lambda m, key, x: discrepancy.aggregated_mmd_test(
                key, x, samples(x.dtype), num_permutations=9
            )
        ),
        "random",
        smooth=False,  # the bandwidths are constants to differentiation, not to differences
        slow=True,
        sampled=True,
    ),
    "discrepancy.relative_mmd_test": Row(
        GAUSSIAN,
        lambda kernel, key, x, w: _score(
            discrepancy.relative_mmd_test(samples(x.dtype), x, 0.8 * x + 0.3, kernel=kernel)
        ),
        sampled=True,
        positive=(0,),
    ),
    "discrepancy.energy_test": Row(
        (),
        _null(
            lambda m, key, x: discrepancy.energy_test(key, x, samples(x.dtype), num_permutations=9)
        ),
        "random",
        sampled=True,
    ),
    "discrepancy.energy_test(line)": Row(
        (),
        _null(
            lambda m, key, x: discrepancy.energy_test(
                key, x[:, :1], samples(x.dtype)[:, :1], num_permutations=9
            )
        ),
        "random",
        sampled=True,
    ),
}


class TestTwoSampleTests(Edges):
    rows = ROWS
