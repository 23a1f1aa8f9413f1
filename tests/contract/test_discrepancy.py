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


ROWS = {
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
        kernels.Gaussian(), _of_samples(discrepancy.mmd), smooth=False, weighted=True, sampled=True
    ),
    "discrepancy.witness": Row(
        kernels.Matern(0.9, 2.5),
        _witness,
        "equivariant",
        weighted=True,
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
