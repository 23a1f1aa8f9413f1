"""Distillation losses."""

import jax.numpy as jnp

from divjax import losses
from tests.contract.edges import Edges
from tests.contract.promises import Row

COSTS = jnp.array([[0.0, 0.3, 0.6], [0.3, 0.0, 0.5], [0.6, 0.5, 0.0]])


def _of_logits(loss):
    """A loss `(student "n 3", teacher "n 3", method)`, the teacher a function of the student."""

    def evaluate(method, key, x, weights):
        student = jnp.concatenate([x, jnp.sin(3 * x[:, :1])], axis=1)
        return loss(student, jnp.cos(student), method)

    return evaluate


def _wkd_logits(student, teacher, method):
    weight, temperature, epsilon, costs = method
    labels = jnp.argmax(teacher, axis=1)
    options = {"weight": weight, "temperature": temperature, "epsilon": epsilon}
    return losses.wkd_logits(student, teacher, labels, costs, num_steps=3, **options)


def _sinkhorn_distillation(student, teacher, method):
    weight, temperature, epsilon = method
    options = {"weight": weight, "temperature": temperature, "epsilon": epsilon}
    return losses.sinkhorn_distillation(student, teacher, **options)


def _of_features(covariance):
    """Of images with the same few positions, stretched by each row."""

    def evaluate(method, key, x, weights):
        positions = jnp.array([[0.0, 1.0], [1.0, -1.0], [-2.0, 0.5]], x.dtype)
        features = positions * x[:, None] + x[:, None] ** 2
        mean_weight, floor = method
        return losses.wkd_features(
            features,
            jnp.cos(features),
            covariance=covariance,
            mean_weight=mean_weight,
            floor=floor,
        )

    return evaluate


def _class_costs(sharpness, key, x, weights):
    return losses.class_costs(jnp.tanh(x @ x.T), sharpness=sharpness)


def _class_similarity(method, key, x, weights):
    """Of two classes, a sample for each row."""
    base = jnp.concatenate([x, jnp.sin(3 * x), x**2], axis=1)
    return losses.class_similarity(jnp.stack([base, jnp.cos(base)]))


ROWS = {
    "losses.wkd_logits": Row((30.0, 2.0, 0.05, COSTS), _of_logits(_wkd_logits), positive=(0, 1, 2)),
    "losses.sinkhorn_distillation": Row(
        (1.0, 2.0, 0.1), _of_logits(_sinkhorn_distillation), positive=(0, 1, 2)
    ),
    "losses.wkd_features": Row((2.0, 1e-2), _of_features("diagonal"), positive=(0, 1)),
    "losses.wkd_features full": Row((2.0, 1e-2), _of_features("full"), positive=(0, 1)),
    "losses.class_similarity": Row(
        (),
        _class_similarity,
    ),
    "losses.class_costs": Row(1.5, _class_costs, "random", positive=(0,)),
}


class TestLosses(Edges):
    rows = ROWS
