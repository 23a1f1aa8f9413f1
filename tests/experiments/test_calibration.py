"""Scores of probabilities against scikit-learn's and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from experiments import calibration


def test_metrics_are_scikit_learns():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(10), size=(60, 2))
    labels = rng.integers(10, size=(60, 2))
    found = calibration.metrics(jnp.asarray(probs, jnp.float32), jnp.asarray(labels))
    for task in range(2):
        p, y = probs[:, task], labels[:, task]
        assert found["accuracy"][task] == pytest.approx(accuracy_score(y, p.argmax(1)))
        assert found["log_loss"][task] == pytest.approx(log_loss(y, p, labels=range(10)), rel=1e-5)
        one_against_rest = sum(brier_score_loss(y == c, p[:, c]) for c in range(10))
        assert found["brier"][task] == pytest.approx(one_against_rest, rel=1e-5)


def test_calibration_error_by_hand():
    """Two bins: confidence .9 right half the time, confidence .6 always right."""
    probs = jnp.array([[[0.9, 0.1]], [[0.9, 0.1]], [[0.6, 0.4]], [[0.6, 0.4]]])
    labels = jnp.array([[0], [1], [0], [0]])
    expected = 0.5 * abs(0.9 - 0.5) + 0.5 * abs(0.6 - 1.0)
    assert calibration.metrics(probs, labels)["ece"][0] == pytest.approx(expected, rel=1e-5)
