"""The sets have the dimension that is stated; a tiny run writes its tables and figure."""

import numpy as np
import pytest

from experiments import intrinsic_dimension as job


@pytest.mark.parametrize(("name", "features"), [("cube 5", 5), ("sphere 2", 3), ("Swiss roll", 3)])
def test_sets_lie_in_a_subspace(name, features):
    draw, d = job.MANIFOLDS[name]
    rng = np.random.default_rng(0)
    plain = draw(rng, 200, d)
    rows = job.embedded(rng, plain)
    assert rows.shape == (200, job.AMBIENT)
    assert np.linalg.matrix_rank(rows) == features
    distances = [np.linalg.norm(each[0] - each[1:], axis=1) for each in (plain, rows)]
    np.testing.assert_allclose(*distances)


def test_the_swiss_roll_is_a_strip():
    """Radius and angle are one number."""
    rows = job.swiss_roll(np.random.default_rng(1), 300, 2)
    radius, angle = np.hypot(rows[:, 0], rows[:, 2]), np.arctan2(rows[:, 2], rows[:, 0])
    np.testing.assert_allclose(np.cos(radius - angle), 1, atol=1e-9)


def test_normal_rows_have_the_moments_of_others():
    rng = np.random.default_rng(2)
    rows = rng.uniform(size=(20_000, 3)) @ rng.normal(size=(3, 4))
    found = job.normal_like(rng, rows)
    np.testing.assert_allclose(found.mean(axis=0), rows.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(np.cov(found.T), np.cov(rows.T), atol=0.05)


def test_subsets_are_disjoint(monkeypatch):
    monkeypatch.setattr(job, "all_rows", lambda name, settings: np.arange(100.0)[:, None])
    drawn = job.draws("digits", 30, job.Settings(repetitions=10))
    assert drawn.shape == (3, 30, 1)
    assert len(np.unique(drawn)) == 90


def test_a_tiny_run_writes_its_tables_and_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "peers", lambda: {"TwoNN": lambda x: 2.0})
    # Spanning trees take twenty seconds of what is not optimised.
    monkeypatch.setattr(job, "ESTIMATORS", {"TwoNN": job.ESTIMATORS["TwoNN"]})
    job.main(job.Settings(quick=True), tmp_path / "run")
    folder = tmp_path / "run"
    assert (folder / "figures" / "dimensions.png").exists()
    assert "Swiss roll" in (folder / "values.md").read_text()
    assert "TwoNN" in (folder / "time.md").read_text()


def test_unknown_sets_are_refused():
    with pytest.raises(SystemExit, match="manifolds must be among cube 2"):
        job.Settings(manifolds=("nothing",))
