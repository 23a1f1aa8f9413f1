"""Targets of flows."""

import jax

from divjax import problems
from tests.contract.promises import Promises, Row


def _log_prob(method, key, x, weights):
    return jax.vmap(method.log_prob)(x)[:, None]


def _score(method, key, x, weights):
    return jax.vmap(method.score)(x)


ROWS = {
    "problems.GaussianMixture.log_prob": Row(
        problems.two_component_targets()[0], _log_prob, "equivariant"
    ),
    "problems.GaussianMixture.score": Row(
        problems.two_component_targets()[0], _score, "equivariant"
    ),
}


class TestProblems(Promises):
    rows = ROWS
