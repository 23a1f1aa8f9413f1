"""Power on the same data: every test here, a classifier's, and a peer's where it is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divjax import discrepancy, inference, ratio
from divjax.ratio import heads

NUM, N = 100, 100
KEY = jax.random.key(0)


def moved(key, n):
    x, y = jax.random.normal(key, (2, n, 5))
    return x, y.at[:, 0].add(0.6)


def widened(key, n):
    x, y = jax.random.normal(key, (2, n, 5))
    return x, 1.3 * y


def waving(key, n):
    x, y = jax.random.uniform(key, (2, n, 1))
    return x, y + 0.05 * jnp.sin(10 * jnp.pi * y)


def classified(key, x, y):
    """Of held-out rows' scores by a quadratic logistic regression on the other half."""
    fit_key, key = jax.random.split(key)
    half = x.shape[0] // 2
    fit = ratio.ClassifierRatio(heads.Quadratic()).fit(fit_key, x[:half], y[:half])
    scores = fit.log_ratio(x[half:]), fit.log_ratio(y[half:])
    return inference.score_permutation_test(key, *scores, num_permutations=199)


TESTS = {
    "mmd": lambda key, x, y: discrepancy.mmd_test(key, x, y, num_permutations=199),
    "energy": lambda key, x, y: discrepancy.energy_test(key, x, y, num_permutations=199),
    "aggregated": lambda key, x, y: discrepancy.aggregated_mmd_test(
        key, x, y, num_permutations=199
    ),
    "classifier": classified,
}


def power(test, sample):
    def p_value(key):
        draw, key = jax.random.split(key)
        return test(key, *sample(draw, N)).p_value

    p_values = jax.jit(lambda keys: jax.lax.map(p_value, keys, batch_size=20))
    return float(np.mean(np.asarray(p_values(jax.random.split(KEY, NUM))) <= 0.05))


@pytest.mark.exhaustive
def test_power_on_the_same_data():
    found = {
        (name, sample.__name__): power(test, sample)
        for name, test in TESTS.items()
        for sample in (moved, widened, waving)
    }
    error = 3 * np.sqrt(2 * 0.25 / NUM)
    assert min(found["energy", "moved"], found["aggregated", "moved"]) - error > 0.6
    assert found["aggregated", "widened"] - error > 0.6
    # Only a small bandwidth sees a difference at a small scale.
    assert found["aggregated", "waving"] > 0.9
    assert found["aggregated", "waving"] > found["mmd", "waving"] + error
    # The classifier has half of the rows to test with, and a head that does not see waves.
    for sample in ("moved", "waving"):
        assert found["aggregated", sample] > found["classifier", sample] + error


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
def test_power_beside_a_peer():
    """hyppo's two-sample test by distance covariance, which is the energy distance's."""
    ksample = pytest.importorskip("hyppo.ksample")
    rejected = {"here": 0, "there": 0}
    for key in jax.random.split(KEY, 60):
        x, y = moved(key, 40)
        p_value = discrepancy.energy_test(key, x, y, num_permutations=199).p_value
        rejected["here"] += bool(p_value <= 0.05)
        peer = ksample.KSample("Dcorr").test(
            np.asarray(x, float), np.asarray(y, float), reps=199, auto=False, workers=1
        )
        rejected["there"] += bool(peer[1] <= 0.05)
    assert abs(rejected["here"] - rejected["there"]) < 3 * np.sqrt(2 * 60 * 0.25)
