"""Instances with known plans, the paper's energy distance, and a tiny run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from experiments import data
from experiments import schrodinger_bridge as job


def test_the_energy_distance_is_that_of_the_papers_code():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 12)), rng.normal(size=(20, 12)) + 1
    expected = cdist(x, y).mean() - cdist(x, x).sum() / (30 * 29) / 2 - cdist(y, y).sum() / 380 / 2
    found = job.energy_distance(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_instances_have_the_scales_they_say_and_no_distance_from_themselves():
    truth = job.known_bridge(jax.random.key(0), 3, 0.5)
    values = np.linalg.eigvalsh(truth.scales)
    assert values.min() > 0.3
    assert values.max() < 0.7
    np.testing.assert_allclose(np.linalg.norm(truth.means, axis=1), 5, rtol=1e-5)
    x = jax.random.normal(jax.random.key(1), (4, 3))
    assert jnp.max(job.conditional_uvp(truth, truth, x, jnp.float32(1))) < 1e-8
    # All means moved by δ: the squared distance is |δ|² at every start.
    moved = dataclasses.replace(truth, origins=jnp.array([[0.0] * 3, [0.1, 0.0, 0.0]]))
    np.testing.assert_allclose(
        job.conditional_uvp(moved, truth, x, jnp.float32(2)), 100 * 0.01 / 2, rtol=1e-3
    )


def test_a_tiny_run_writes_its_tables_and_figures(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(
        data, "load_cells", lambda _, day: rng.normal(size=(40, 5)).astype(np.float32) + day
    )
    settings = dataclasses.replace(
        job.Settings(quick=True),
        dimensions=(2,),
        epsilons=(1.0,),
        num_rows=2000,
        num_steps=4,
        cell_potentials=2,
        roll_epsilons=(0.1,),
    )
    job.main(settings, tmp_path / "run")
    for name, count in (("roll", 1), ("cells", 2), ("plans", 1)):
        assert len((tmp_path / "run" / f"{name}.csv").read_text().splitlines()) == count + 1
    assert (tmp_path / "run" / "figures" / "roll.png").exists()
    uvp = np.load(tmp_path / "run" / "stages" / "plan_2_1.0_0.npz")["uvp"]
    assert uvp.shape == (50,)
    assert uvp.mean() < 5


def test_files_that_are_missing_or_unknown_are_said_so(tmp_path, monkeypatch):
    monkeypatch.setenv("DIVJAX_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="put there by hand"):
        data.load_cells(50, 2)
    with pytest.raises(ValueError, match="components must be 50 or 100"):
        data.load_cells(60, 2)


def test_bridges_that_are_not_finite_are_said_to_be():
    """Of plans; of cells, of which a single seed has no standard deviation."""
    run = {"uvp": np.ones(5), "fit_seconds": 1.0, "finite": np.array(False)}
    (row,) = job.plan_rows({(1.0, 2): [run, run | {"finite": np.array(True)}]})
    assert row["finite"] == "NO: 1 of 2"
    cells = {"distances": np.ones(1), "ends": np.ones(2), "finite": np.array([False])}
    cells |= {"fit_seconds": np.array(1.0), "compile_seconds": np.array(1.0)}
    (row,) = job.cell_rows({(50, (2, 4, 3)): cells})
    assert (row["finite"], row["energy distance"]) == ("NO: 1 of 1", "1.000")
