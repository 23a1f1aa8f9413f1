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


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_temperature_undoes_a_power(power):
    """Labels drawn from p, probabilities given as p^power: log loss is least at T = power.

    The estimate's standard error is about two per cent for so many labels.
    """
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(4), size=(4000, 1))
    labels = np.array([[rng.choice(4, p=row[0])] for row in probs])
    given = calibration.temper(jnp.asarray(probs, jnp.float32), 1 / power)
    np.testing.assert_allclose(given.sum(-1), 1, rtol=1e-5)
    found = calibration.temperature(given, jnp.asarray(labels))
    assert found == pytest.approx(power, rel=0.1)
