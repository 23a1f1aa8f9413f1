"""Confidence bounds, intervals and tests."""

import jax
import jax.numpy as jnp

from divjax import inference
from tests.contract.promises import Promises, Row, of_scores

ROWS = {
    "inference.empirical_bernstein_lower_bound": Row(
        0.4,
        lambda confidence, key, x, w: inference.empirical_bernstein_lower_bound(
            jnp.tile(jax.nn.sigmoid(x[:, 0]), 8), 0.0, 1.0, confidence=confidence
        ),
    ),
    "inference.empirical_bernstein_upper_bound": Row(
        0.4,
        lambda confidence, key, x, w: inference.empirical_bernstein_upper_bound(
            jnp.tile(jax.nn.sigmoid(x[:, 0]), 8), 0.0, 1.0, confidence=confidence
        ),
    ),
    "inference.betting_upper_bound": Row(
        0.4,
        lambda confidence, key, x, w: inference.betting_upper_bound(
            jnp.tile(jax.nn.sigmoid(x[:, 0]), 8), 0.0, 1.0, confidence=confidence
        ),
        "random",
    ),
    "inference.sum_of_means_lower_bound": Row(
        0.4,
        lambda confidence, key, x, w: inference.sum_of_means_lower_bound(
            *(inference.Bounded(jnp.tile(jax.nn.sigmoid(c), 8), 0.0, 1.0) for c in x.T),
            confidence=confidence,
        ),
    ),
    "inference.betting_lower_bound": Row(
        0.4,
        lambda confidence, key, x, w: inference.betting_lower_bound(
            jnp.tile(jax.nn.sigmoid(x[:, 0]), 8), 0.0, 1.0, confidence=confidence
        ),
        "random",  # it bets on the rows one after the other
    ),
    "inference.auc": Row(
        0.6,
        of_scores(lambda m, p, q, w: jnp.stack(inference.auc(p, q, w, level=m)[:2])),
        smooth=False,
    ),
    "inference.accuracy": Row(
        0.1,
        of_scores(lambda m, p, q, w: jnp.stack(inference.accuracy(p, q, w, threshold=m)[:2])),
        smooth=False,
    ),
    "inference.permutation_test": Row(
        (),
        lambda m, key, x, w: (
            inference.permutation_test(
                key,
                lambda a, b: jnp.sum((a.mean(0) - b.mean(0)) ** 2),
                x,
                x + 1,
                num_permutations=9,
            ).null
        ),
        "random",
    ),
    "inference.score_permutation_test": Row(
        (),
        lambda m, key, x, w: (
            inference.score_permutation_test(key, x[:, 0], x[:, 1], "mean", num_permutations=9).null
        ),
        "random",
    ),
    "inference.normal_interval": Row(
        0.6,
        lambda level, key, x, w: jnp.stack(
            inference.normal_interval(x[:, 0], jnp.exp(x[:, 1]), level), axis=1
        ),
        "equivariant",
    ),
    "inference.logit_interval": Row(
        0.6,
        lambda level, key, x, w: jnp.stack(
            inference.logit_interval(jax.nn.sigmoid(x[:, 0]), 0.05, level), axis=1
        ),
        "equivariant",
    ),
}


class TestInference(Promises):
    rows = ROWS
