"""The measures of known models; a tiny run writes its tables and figure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import linear_memorisation as job


def test_measures_of_known_covariances():
    """Diagonal models: Σ (√λ − √μ)²/d, and directions along axes."""
    one, other, truth = np.array([[9.0, 1, 1, 0], [4.0, 1, 1, 1], [1.0, 1, 1, 16]])
    measure = jax.jit(lambda *models: job.measure(*map(jnp.diag, models), lambda x: x))
    found = measure(one, other, truth)
    squares = lambda p, q: np.mean((np.sqrt(p) - np.sqrt(q)) ** 2)
    to_truth = (squares(one, truth) + squares(other, truth)) / 2
    np.testing.assert_allclose(found, [squares(one, other), to_truth, 0, 1], atol=1e-3)


def test_a_tiny_run_writes_its_tables_and_figure(tmp_path):
    job.main(job.Settings(quick=True), tmp_path / "run")
    folder = tmp_path / "run"
    assert (folder / "figures" / "memorisation.png").exists()
    assert "model to model, d = 20" in (folder / "distances.md").read_text()
    assert "overlap with truth, d = 20" in (folder / "overlaps.md").read_text()


def test_a_load_that_is_not_positive_is_refused():
    with pytest.raises(SystemExit, match="loads must be positive"):
        job.Settings(loads=(0.5, 0.0))
