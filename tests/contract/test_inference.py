"""Confidence bounds, intervals and tests."""

import jax
import jax.numpy as jnp

from divjax import inference
from tests.contract.edges import Edges
from tests.contract.promises import Row, of_scores

END = "the end of the interval that the values lie in"
SCORE = "a score above, or below, all others"


def _numbers(estimate):
    return jnp.stack([estimate.value, estimate.std_error, *estimate.interval])


ROWS = {
    "inference.empirical_bernstein_lower_bound": Row(
        0.4,
        lambda confidence, key, x, w: inference.empirical_bernstein_lower_bound(
            jnp.tile(jax.nn.sigmoid(x[:, 0]), 8), 0.0, 1.0, confidence_level=confidence
        ),
        sampled=True,
        infinite=END,
        positive=(0,),
    ),
    "inference.empirical_bernstein_upper_bound": Row(
        0.4,
        lambda confidence, key, x, w: inference.empirical_bernstein_upper_bound(
            jnp.tile(jax.nn.sigmoid(x[:, 0]), 8), 0.0, 1.0, confidence_level=confidence
        ),
        sampled=True,
        infinite=END,
        positive=(0,),
    ),
    "inference.betting_upper_bound": Row(
        0.4,
        lambda confidence, key, x, w: inference.betting_upper_bound(
            jnp.tile(jax.nn.sigmoid(x[:, 0]), 8), 0.0, 1.0, confidence_level=confidence
        ),
        "random",
        sampled=True,
        infinite=END,
        positive=(0,),
    ),
    "inference.sum_of_means_lower_bound": Row(
        0.4,
        lambda confidence, key, x, w: inference.sum_of_means_lower_bound(
            *(inference.Bounded(jnp.tile(jax.nn.sigmoid(c), 8), 0.0, 1.0) for c in x.T),
            confidence_level=confidence,
        ),
        sampled=True,
        infinite=END,
        positive=(0,),
    ),
    "inference.betting_lower_bound": Row(
        0.4,
        lambda confidence, key, x, w: inference.betting_lower_bound(
            jnp.tile(jax.nn.sigmoid(x[:, 0]), 8), 0.0, 1.0, confidence_level=confidence
        ),
        "random",  # it bets on the rows one after the other
        sampled=True,
        infinite=END,
        positive=(0,),
    ),
    "inference.auc": Row(
        0.6,
        of_scores(lambda m, p, q, w: _numbers(inference.auc(p, q, w, w, confidence_level=m))),
        smooth=False,
        weighted=True,
        sampled=True,
        infinite=SCORE,
        positive=(0,),
    ),
    "inference.accuracy": Row(
        (0.1, 0.6),
        of_scores(
            lambda m, p, q, w: _numbers(
                inference.accuracy(p, q, w, w, threshold=m[0], confidence_level=m[1])
            )
        ),
        smooth=False,
        weighted=True,
        sampled=True,
        infinite=SCORE,
        positive=(1,),
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
        sampled=True,
    ),
    "inference.score_permutation_test": Row(
        (),
        lambda m, key, x, w: (
            inference.score_permutation_test(key, x[:, 0], x[:, 1], "mean", num_permutations=9).null
        ),
        "random",
        sampled=True,
    ),
    "inference.normal_interval": Row(
        0.6,
        lambda level, key, x, w: jnp.stack(
            inference.normal_interval(x[:, 0], jnp.exp(x[:, 1]), level), axis=1
        ),
        "equivariant",
        positive=(0,),
    ),
    "inference.logit_interval": Row(
        0.6,
        lambda level, key, x, w: jnp.stack(
            inference.logit_interval(jax.nn.sigmoid(x[:, 0]), 0.05, level), axis=1
        ),
        "equivariant",
        infinite=END,
        positive=(0,),
    ),
}


class TestInference(Edges):
    rows = ROWS
