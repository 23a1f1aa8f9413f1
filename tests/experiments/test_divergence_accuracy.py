"""What the tables say of given estimates, and a tiny evaluation."""

import numpy as np
import pytest

from divjax import problems
from experiments import divergence_accuracy
from experiments.divergence_accuracy import Settings


def test_summaries_are_of_errors_not_of_values():
    """Truths that differ from seed to seed, estimates that are off by 1, 2 and 3."""
    truth = np.array([10.0, 20.0, 30.0])
    errors = np.array([1.0, 2.0, 3.0])
    low, high = truth - 1, truth + np.array([1, 1, -0.5])  # the last does not cover
    values = np.column_stack([truth + errors, [0.5, 0.5, 0.5], low, high])
    row = divergence_accuracy.summarize(values, truth)
    assert row["mean"] == "22.000"
    assert row["bias"] == "+2.000 ± 0.577"  # the standard deviation 1 over √3
    assert (row["spread"], row["std_error"], row["covers"]) == ("1.000", "0.500", "2/3")
    doubled = divergence_accuracy.summarize(values, truth, unit=2.0)
    assert (doubled["mean"], doubled["covers"]) == ("44.000", "2/3")
    assert set(divergence_accuracy.summarize(None, truth).values()) == {"–"}
    failed = divergence_accuracy.summarize(np.full((3, 4), np.nan), truth)
    assert (failed["mean"], failed["covers"]) == ("nan", "0/3")


def test_a_task_is_evaluated_seed_by_seed(monkeypatch):
    """The Gaussian plug-in's mean error over seeds is within its own standard errors."""
    task = lambda seed: problems.gaussian_shift(2, 0.5)
    monkeypatch.setitem(divergence_accuracy.TASKS, "shift", task)
    settings = Settings(tasks=("shift",), seeds=tuple(range(6)))
    found = divergence_accuracy.evaluate(settings, "shift", 400, "gaussian")
    table = divergence_accuracy.by_estimator({("shift", 400, "gaussian"): found})
    ((key, arrays),) = table.items()
    assert key == ("shift", 400, "Gaussian plug-in")
    assert arrays["kl"].shape == (6, 4)
    assert arrays["seconds_each"].shape == (6,)
    value, error, low, high = arrays["kl"].T
    assert len(set(value)) == 6
    assert abs(value.mean() - 0.5) < 4 * error.mean() / np.sqrt(6)
    np.testing.assert_allclose(high - low, 2 * 1.644854 * error, rtol=1e-4)


def test_unknown_names_are_refused():
    with pytest.raises(SystemExit, match=r"tasks must be among use case 1, .*'dice'"):
        Settings(tasks=("dice",))
    with pytest.raises(SystemExit, match=r"methods must be among neighbors, .*'oracle'"):
        Settings(methods=("oracle",))
