"""Discrepancies of two samples."""

import jax.numpy as jnp

from divjax import discrepancy, kernels
from tests.contract.edges import Edges
from tests.contract.promises import Row, samples

FAR = "samples that are infinitely far apart"


def _of_samples(function, **options):
    """A discrepancy `(x, y, weights, kernel=method)` of the particles and a fixed second sample."""

    def evaluate(kernel, key, x, weights):
        return function(x, samples(x.dtype), weights, kernel=kernel, **options)

    return evaluate


def _witness(kernel, key, x, weights):
    """At the particles, of which those without weight may be anywhere."""
    values = discrepancy.witness(
        jnp.where(weights[:, None] > 0, x, 0), x, samples(x.dtype), weights, kernel=kernel
    )
    return values[:, None]


def _conditional(method, key, x, weights):
    """Of the second feature given the first."""
    y = samples(x.dtype)
    return discrepancy.conditional_cauchy_schwarz(
        x[:, :1],
        x[:, 1:],
        y[:, :1],
        y[:, 1:],
        weights,
        kernel=method[0],
        response_kernel=method[1],
    )


def _numbers(estimate):
    return jnp.stack([estimate.value, estimate.std_error, *estimate.interval])


def _estimate(function, **options):
    """Of the particles and as many others."""

    def evaluate(method, key, x, weights):
        kernel, level = method
        y = jnp.concatenate([samples(x.dtype), 1.5 * samples(x.dtype)[1:4] + 0.3])
        return _numbers(function(x, y, kernel=kernel, confidence_level=level, **options))

    return evaluate


ROWS = {
    "discrepancy.cauchy_schwarz": Row(
        kernels.Gaussian(bandwidth=0.9),
        _of_samples(discrepancy.cauchy_schwarz),
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "discrepancy.cauchy_schwarz (U-statistics)": Row(
        kernels.InverseMultiquadric(0.9, 0.7),
        _of_samples(discrepancy.cauchy_schwarz, debias=True),
        slow=True,
        weighted=True,
        sampled=True,
        positive=(0, 1),
    ),
    "discrepancy.conditional_cauchy_schwarz": Row(
        (kernels.Gaussian(bandwidth=0.9), kernels.Matern(0.8, 1.5)),
        _conditional,
        slow=True,
        weighted=True,
        sampled=True,
        positive=(0, 1),
    ),
    "discrepancy.characteristic_function_distance": Row(
        kernels.Gaussian(bandwidth=0.9),
        lambda kernel, key, x, w: discrepancy.characteristic_function_distance(
            key, x, samples(x.dtype), w, kernel=kernel, num_frequencies=16, debias=True
        ),
        weighted=True,
        slow=True,
        sampled=True,
        positive=(0,),
    ),
    "discrepancy.frechet_distance": Row(
        (),
        lambda m, key, x, w: discrepancy.frechet_distance(x, samples(x.dtype), w),
        weighted=True,
        sampled=True,
    ),
    "discrepancy.precision_recall": Row(
        (),
        lambda m, key, x, w: jnp.stack(discrepancy.precision_recall(x, samples(x.dtype), k=2)),
        smooth=False,
        sampled=True,
    ),
    "discrepancy.mmd_estimate": Row(
        (kernels.Gaussian(bandwidth=0.9), 0.6),
        _estimate(discrepancy.mmd_estimate),
        smooth=False,  # the standard error is a constant to differentiation
        sampled=True,
        positive=(0, 1),
    ),
    "discrepancy.mmd_block": Row(
        (kernels.Gaussian(bandwidth=0.9), 0.6),
        _estimate(discrepancy.mmd_block, block_size=3),
        "random",  # rows are in blocks by their positions
        smooth=False,
        slow=True,
        sampled=True,
        positive=(0, 1),
    ),
    "discrepancy.mmd": Row(
        kernels.Gaussian(bandwidth=0.9),
        _of_samples(discrepancy.mmd),
        weighted=True,
        sampled=True,
        positive=(0,),
    ),
    "discrepancy.mmd (U-statistic of a kernel that is not radial)": Row(
        kernels.Polynomial(2, 0.5, 0.8),
        _of_samples(discrepancy.mmd, debias=True),
        weighted=True,
        sampled=True,
        positive=(0, 1),
    ),
    "discrepancy.mmd (bandwidth of both samples)": Row(
        kernels.Gaussian(),
        _of_samples(discrepancy.mmd),
        smooth=False,
        slow=True,
        weighted=True,
        sampled=True,
    ),
    "discrepancy.witness": Row(
        kernels.Matern(0.9, 2.5),
        _witness,
        "equivariant",
        weighted=True,
        slow=True,
        sampled=True,
        positive=(0,),
    ),
    "discrepancy.energy_distance": Row(
        (),
        lambda m, key, x, w: discrepancy.energy_distance(x, samples(x.dtype), w, debias=True),
        weighted=True,
        sampled=True,
        infinite=FAR,
    ),
    "discrepancy.energy_distance (one feature)": Row(
        (),
        lambda m, key, x, w: discrepancy.energy_distance(
            x[:, :1], samples(x.dtype)[:, :1], w, debias=True
        ),
        weighted=True,
        sampled=True,
        infinite=FAR,
    ),
    "discrepancy.sliced_energy_distance": Row(
        (),
        lambda m, key, x, w: discrepancy.sliced_energy_distance(
            key, x, samples(x.dtype), w, num_projections=6
        ),
        weighted=True,
        sampled=True,
        infinite=FAR,
    ),
}


class TestDiscrepancy(Edges):
    rows = ROWS
