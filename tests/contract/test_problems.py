"""Targets of flows."""

import dataclasses

import jax
import jax.numpy as jnp

from divjax import problems
from tests.contract.edges import Edges
from tests.contract.promises import Row


def _normalised(mixture):
    """A sweep over leaves scales the weights, which sum to one; negative ones stay so."""
    total = jnp.sum(jnp.abs(mixture.weights))
    return dataclasses.replace(mixture, weights=mixture.weights / total)


def _log_prob(method, key, x, weights):
    return jax.vmap(_normalised(method).log_prob)(x)[:, None]


def _score(method, key, x, weights):
    return jax.vmap(_normalised(method).score)(x)


ROWS = {
    "problems.GaussianMixture.log_prob": Row(
        problems.two_component_targets()[0], _log_prob, "equivariant", positive=(0, 2)
    ),
    "problems.GaussianMixture.score": Row(
        problems.two_component_targets()[0], _score, "equivariant", positive=(0, 2)
    ),
}


class TestProblems(Edges):
    rows = ROWS
