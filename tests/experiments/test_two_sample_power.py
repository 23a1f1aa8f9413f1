"""The problems are what they say; a tiny run writes its tables and figure."""

import numpy as np
import pytest
import scipy.stats

from experiments import two_sample_power as job


def test_blobs_differ_within_each_and_in_no_column():
    x, y = job.blobs(np.random.default_rng(0), 20_000, 2)
    for column in range(2):
        assert scipy.stats.ks_2samp(x[:, column], y[:, column]).pvalue > 0.01
    within = [rows - 10 * np.round(rows / 10) for rows in (x, y)]
    correlations = [np.corrcoef(rows.T)[0, 1] for rows in within]
    assert abs(correlations[0]) < 0.03
    assert abs(correlations[1] - 0.8) < 0.02


def test_images_of_q_lack_a_class(monkeypatch):
    rows, labels = np.arange(100.0)[:, None], np.arange(100) % 10
    monkeypatch.setattr(job, "images", lambda name: (rows, labels))
    x, y = job.without_a_class(np.random.default_rng(0), 40, 0, "digits", 8)
    assert not set(x[:, 0]) & set(y[:, 0])
    assert not (labels[y[:, 0].astype(int)] == 8).any()
    assert len(y) == 40


def test_a_shuffled_column_keeps_its_values(monkeypatch):
    rows = np.random.default_rng(1).normal(size=(300, 1)) * np.ones(3)
    monkeypatch.setattr(job, "adult", lambda: rows)
    x, y = job.shuffled_column(np.random.default_rng(0), 100, 0)
    assert np.allclose(x[:, 0], x[:, 1])
    assert np.allclose(np.sort(y[:, 0]), np.sort(y[:, 1]))
    assert abs(np.corrcoef(y[:, 0], y[:, 1])[0, 1]) < 0.3


def test_unknown_problems_are_refused():
    with pytest.raises(SystemExit, match="problems must be among null, shift"):
        job.Settings(problems=("nothing",))


def test_a_tiny_run_writes_its_tables_and_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "peers", lambda: {"KS": job._kolmogorov_smirnov})
    settings = job.Settings(quick=True)
    job.main(settings, tmp_path / "run")
    folder = tmp_path / "run"
    assert (folder / "figures" / "power.png").exists()
    assert "blobs" in (folder / "power.md").read_text()
    assert "aggregated MMD" in (folder / "time.md").read_text()


def test_the_table_is_numbers():
    try:
        rows = job.adult()
    except FileNotFoundError:
        pytest.skip("Adult is not there")
    assert rows.shape[1] == 6
    assert np.allclose(rows.std(0), 1)
