"""Splits are apart and in units of the training rows; a tiny run writes its tables and figure."""

import jax.numpy as jnp
import numpy as np
import pytest

from divjax import kernels
from experiments import information_bottleneck as job


def test_splits_are_apart_and_standardised_by_training_rows():
    x = np.arange(100.0)[:, None]
    parts = job.split(x, 2 * x[:, 0], 0)
    assert [len(part) for part in parts] == [60, 20, 20]
    np.testing.assert_allclose(parts.train.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(parts.train.std(0), 1, rtol=1e-5)
    assert len(np.unique(np.concatenate(parts)[:, 0])) == 100


def test_losses_at_the_truth_and_away():
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(50, d)), jnp.float32) for d in (2, 1))
    standard = jnp.zeros((50, 3)), jnp.zeros((50, 3)), jnp.ones((50, 3))
    for name, loss in job.METHODS.items():
        right, wrong = (
            float(loss(x, y, (predicted, *standard), 1.0, kernels.Gaussian(1.0)))
            for predicted in (y, y + 1)
        )
        # t is constant, and standard normal: no information, no divergence from the prior.
        assert abs(right) < 1e-5, name
        assert wrong > 0.1, name


def test_the_chosen_beta_is_that_of_validation():
    arrays = {"validation": np.array([[0.3, 0.1], [0.2, 0.4]]), "test": np.arange(4).reshape(2, 2)}
    assert job.at_chosen(arrays, "test").tolist() == [1, 2]


def test_unknown_methods_are_refused():
    with pytest.raises(SystemExit, match="methods must be among MSE, CS-IB"):
        job.Settings(methods=("nothing",))


@pytest.mark.exhaustive
def test_a_tiny_run_writes_its_tables_and_figure(tmp_path):
    settings = job.Settings(quick=True, methods=("MSE", "CS-IB"), seeds=(0,))
    job.main(settings, tmp_path / "run")
    assert (tmp_path / "run" / "figures" / "plane.png").exists()
    assert "CS-IB" in (tmp_path / "run" / "chosen_friedman.md").read_text()
