"""The maps of the tasks are invertible; a tiny run writes its tables and figure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import mutual_information_tasks as job


def test_a_map_and_its_inverse():
    z = jnp.linspace(-3, 3, 25)
    np.testing.assert_allclose(job._undo_half_cube(job._half_cube(z)), z, rtol=1e-5, atol=1e-6)


def test_a_map_of_the_margins_leaves_ranks():
    key = jax.random.key(0)
    plain = job.TASKS["normal 1 × 1"]().sample_pairs(key, 100)
    for name in ("uniform margins", "half-cube"):
        mapped = job.TASKS[name]().sample_pairs(key, 100)
        for one, two in zip(plain, mapped, strict=True):
            np.testing.assert_array_equal(np.argsort(one[:, 0]), np.argsort(two[:, 0]))


def test_unknown_tasks_are_refused():
    with pytest.raises(SystemExit, match="tasks must be among normal 1 × 1"):
        job.Settings(tasks=("nothing",))


def test_a_tiny_run_writes_its_tables_and_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "peers", lambda: {"nothing": lambda x, y: 0.0})
    job.main(job.Settings(quick=True), tmp_path / "run")
    folder = tmp_path / "run"
    assert (folder / "figures" / "errors.png").exists()
    assert "uniform noise .75" in (folder / "values.md").read_text()
    assert "Gaussian" in (folder / "coverage.md").read_text()
    assert "nothing" in (folder / "summary.md").read_text()
